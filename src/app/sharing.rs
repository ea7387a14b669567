//! Watches for whom this node works: what the machine says, what the configuration says, what a
//! person ordered.
//!
//! In: the battery, the link, the clock, orders to pause and drain. Out: the gates' [`Share`],
//! which reports tell to peers. A pause is kept over restarts; a drain ends with the program.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::sleep_until;

use super::control::{Said, SharingRow};
use crate::balance::sharing::{self, Machine, Orders, Pause, Rules};
use crate::config::{Config, ShareLoads};
use crate::directory::Directory;
use crate::gate::{Gates, Share};
use crate::net::{Host, Sockets};
use crate::telemetry::{Clock, Events, wall};
use crate::trust::store;
use crate::types::{Accepting, Power, Principal, Wall};

/// What watching needs.
pub(super) struct Parts {
    pub(super) config: watch::Receiver<Arc<Config>>,
    pub(super) gates: Arc<Gates>,
    pub(super) directory: Arc<Directory>,
    pub(super) sockets: Sockets,
    pub(super) host: watch::Receiver<Host>,
    pub(super) events: Arc<Events>,
    /// The folder that is kept over restarts.
    pub(super) state: Option<PathBuf>,
    pub(super) clock: Clock,
    /// How often the machine is looked at.
    pub(super) every: Duration,
}

/// For whom this node works, watched.
pub(super) struct Sharing {
    parts: Parts,
    orders: Mutex<Orders>,
    /// Held while it is looked: of two looks the later one counts.
    looking: Mutex<()>,
}

/// What is kept over restarts.
#[derive(Serialize, Deserialize)]
struct Kept {
    v: u32,
    pause: Option<Pause>,
}

impl Sharing {
    /// With the pause that was ordered before the last restart, if it is not over.
    pub(super) fn open(parts: Parts) -> Arc<Sharing> {
        let pause = parts.state.as_deref().and_then(|folder| read(folder, &parts.events));
        let orders = Mutex::new(Orders { pause, drain: false });
        let sharing = Arc::new(Sharing { parts, orders, looking: Mutex::default() });
        sharing.look();
        sharing
    }

    /// Looks again whenever something may have changed.
    pub(super) async fn keep(self: Arc<Self>) {
        let (mut config, mut host) = (self.parts.config.clone(), self.parts.host.clone());
        // Whose this node is, is learned after the start, and refused meanwhile is the caller who
        // would be let in.
        let mut whose = self.parts.directory.changed();
        loop {
            self.look();
            tokio::select! {
                changed = config.changed() => if changed.is_err() { return },
                Ok(()) = host.changed() => {}
                Ok(()) = whose.changed() => {}
                () = sleep_until(self.parts.clock.next(self.parts.every)) => {}
            }
        }
    }

    /// Nothing for others, for so long or until it is taken back.
    pub(super) async fn pause(&self, length: Option<Duration>) -> Said {
        let saved = self.order(|orders, now| orders.pause = Some(Pause::new(now, length))).await;
        let share = self.share();
        let back = if share.until.is_some() { "earlier" } else { "again" };
        self.said(format!("{}: nothing is taken from other nodes", share.why), back, saved)
    }

    /// Nothing new for others, until it is taken back or the program ends.
    pub(super) async fn drain(&self) -> Said {
        let saved = self.order(|orders, _| orders.drain = true).await;
        self.said("draining: nothing new is taken from other nodes".to_owned(), "again", saved)
    }

    /// Takes both back.
    pub(super) async fn resume(&self) -> Said {
        let before = *self.orders.lock();
        let saved = self.order(|orders, _| *orders = Orders::default()).await;
        let share = self.share();
        let whom = match share.accepting {
            Accepting::All => "works for everybody `access` names".to_owned(),
            Accepting::Mine => format!("works for your own devices only: {}", share.why),
            Accepting::None => format!("works for nobody else all the same: {}", share.why),
        };
        let what = match (before.pause.is_some(), before.drain) {
            (false, false) => "nothing was paused",
            _ => "resumed",
        };
        self.done(format!("{what}: this node {whom}{}", unsaved(saved)))
    }

    /// How it stands.
    pub(super) fn row(&self) -> SharingRow {
        let share = self.share();
        let (running, waiting) = self.parts.gates.of_others();
        SharingRow {
            accepting: share.accepting.label().to_owned(),
            why: share.why.to_string(),
            draining: share.draining,
            running,
            waiting,
        }
    }

    fn said(&self, what: String, back: &str, saved: std::io::Result<()>) -> Said {
        let runs = match self.parts.gates.of_others().0 {
            0 => String::new(),
            1 => "; 1 request of theirs runs to its end".to_owned(),
            n => format!("; {n} requests of theirs run to their end"),
        };
        self.done(format!("{what}{runs}; `tailherd resume` lets them in {back}{}", unsaved(saved)))
    }

    fn done(&self, text: String) -> Said {
        tracing::info!("by a person: {text}");
        Said::Done(text)
    }

    /// Changes what was ordered. In force when it returns, and kept.
    async fn order(&self, change: impl FnOnce(&mut Orders, Wall)) -> std::io::Result<()> {
        let orders = {
            let mut orders = self.orders.lock();
            change(&mut orders, wall());
            *orders
        };
        self.look();
        let Some(folder) = self.parts.state.clone() else { return Ok(()) };
        let saved = tokio::task::spawn_blocking(move || save(&folder, orders.pause)).await;
        saved.unwrap_or_else(|error| Err(std::io::Error::other(error)))
    }

    /// Whether this node is tagged: then it has no owner.
    fn is_nobodys(&self) -> bool {
        let snapshot = self.parts.directory.load();
        let principal = snapshot.this().and_then(|this| this.principal.as_ref());
        matches!(principal, Some(Principal::Tags { .. }))
    }

    fn share(&self) -> Share {
        self.parts.gates.share().borrow().clone()
    }

    fn look(&self) {
        let _one = self.looking.lock();
        let parts = &self.parts;
        let now = wall();
        let (orders, changed) = {
            let mut orders = self.orders.lock();
            let before = orders.pause;
            if let Some(pause) = &mut orders.pause
                && !pause.look(now)
            {
                orders.pause = None;
            }
            let until = |pause: Option<Pause>| pause.map(|pause| pause.until);
            (*orders, until(before) != until(orders.pause))
        };
        if changed
            && let Some(folder) = &parts.state
            && let Err(error) = save(folder, orders.pause)
        {
            tracing::warn!("what is shared could not be saved: {error}");
        }
        let (rules, loads, inflight) = {
            let config = parts.config.borrow();
            (rules(&config), config.share.loads, config.share.inflight)
        };
        let loads = match loads {
            // There is nobody whose models would have to stay.
            ShareLoads::Fit if self.is_nobodys() => ShareLoads::Any,
            loads => loads,
        };
        let host = *parts.host.borrow();
        let machine = Machine {
            power: host.power.unwrap_or_else(|| parts.sockets.power()),
            metered: host.metered,
            idle: host.idle,
            asked: parts.gates.unused_for(),
            sleeping: host.sleeping,
        };
        let is = sharing::decide(&rules, &machine, orders, now, &|at| parts.sockets.local(at));
        let share = Share {
            accepting: is.accepting,
            why: is.why.into(),
            until: is.until,
            draining: orders.drain,
            sparing: machine.power == Power::Battery || machine.metered == Some(true),
            unknown: is.unknown,
            loads,
            inflight,
        };
        let before = self.share();
        if (before.accepting, &before.why) != (share.accepting, &share.why) {
            let whom = share.accepting.label();
            tracing::info!(accepting = whom, why = &*share.why, "sharing changed");
            let why = if share.why.is_empty() { "shared again" } else { &share.why };
            parts.events.note("sharing", format!("{why} (accepting: {whom})"));
        }
        parts.gates.share_with(share);
    }
}

fn rules(config: &Config) -> Rules {
    let share = &config.share;
    Rules {
        when: share.when,
        idle_after: share.idle_after,
        quiet: share.quiet.clone(),
        metered: share.metered,
    }
}

fn file(folder: &Path) -> PathBuf {
    folder.join("sharing.json")
}

fn save(folder: &Path, pause: Option<Pause>) -> std::io::Result<()> {
    store::write(&file(folder), &serde_json::to_vec(&Kept { v: 1, pause })?)
}

fn read(folder: &Path, events: &Events) -> Option<Pause> {
    let bytes = match store::read(&file(folder)) {
        Ok(bytes) => bytes?,
        Err(error) => {
            tracing::warn!("{error}");
            events.note("sharing", format!("whether this node was paused is not known: {error}"));
            return None;
        }
    };
    let kept: Kept = serde_json::from_slice(&bytes).ok()?;
    kept.pause
}

fn unsaved(saved: std::io::Result<()>) -> String {
    match saved {
        Ok(()) => String::new(),
        Err(error) => format!("; that could not be saved, and ends with a restart: {error}"),
    }
}
