//! What the tailnet vouches for, handed to `trust` as long as it does: which tailnet this is,
//! who is listed in it, what its packet filter lets in. And back: who there is while no
//! tailnet says so.
//!
//! Only a running tailnet's own words enter a tailnet or take a pin away; a daemon that is
//! silent, stopped or logged out only makes trust recall what was.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::daemon::Daemon;
use super::peers;
use crate::directory::event::Identity;
use crate::net::{TailnetNode, TailnetView};
use crate::telemetry::events::Events;
use crate::telemetry::wall;
use crate::trust::{ListedPeer, Me, Netmap, Own, Pin, Tailnet, Trust, tell};
use crate::types::{ControlId, NodeId, Wall};

/// The packet filter is read again if it could not be read.
const AGAIN: Duration = Duration::from_secs(20);

/// Bells come in bursts: one reading for all of a burst.
const BURST: Duration = Duration::from_secs(1);

/// Between trust and the tailnet.
pub(super) struct Vouch {
    trust: Trust,
    events: Arc<Events>,
    /// What trust was told last.
    told: Told,
    /// When the packet filter is to be read.
    filter: Instant,
    /// How often it is, although no bell rang.
    every: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    /// A tailnet runs.
    Entered(ControlId, Box<Own>, Option<usize>, String),
    /// None does; the coordinator's URL, if it is known.
    Recalled(Option<String>),
}

impl Vouch {
    pub(super) fn new(trust: Trust, events: Arc<Events>, every: Duration) -> Vouch {
        Vouch { trust, events, told: Told::Nothing, filter: Instant::now(), every }
    }

    /// A bell rang: the packet filter may be another one.
    pub(super) fn rang(&mut self) {
        self.filter = self.filter.min(Instant::now() + BURST);
    }

    /// Takes in a picture; `fresh` as the daemon said it. Returns whether pins moved.
    pub(super) async fn take(&mut self, view: &TailnetView, fresh: bool, now: Wall) -> bool {
        let (Some(control), Some(me), true) = (&view.control, &view.me, view.running) else {
            self.recall(view, now).await;
            return false;
        };
        let Some(own) = own(me) else { return false };
        let people = peers::facts(view).people;
        let entered =
            Told::Entered(control.clone(), Box::new(own), people, view.control_url.clone());
        if self.told != entered {
            if let Told::Entered(control, own, people, url) = &entered {
                let (control, own, people) = (control.clone(), own.clone(), *people);
                let url = url.clone();
                self.disk(move |trust| trust.enter(&control, &own, people, &url, now)).await;
            }
            // What could not be opened is tried again with the next picture.
            if self.control().as_ref() == Some(control) {
                self.told = entered;
                self.filter = Instant::now();
            }
        }
        if !fresh {
            return false;
        }
        let nodes: Vec<ListedPeer<'_>> =
            view.peers.iter().filter_map(TailnetNode::listed).collect();
        let online = view.online == Some(true);
        let steps = self.trust.netmap(&Netmap { control, online, nodes: &nodes }, now);
        let moved = !steps.is_empty();
        tell(&self.events, steps);
        moved
    }

    /// Reads the packet filter if it is due.
    pub(super) async fn read_filter(&mut self, daemon: &Daemon, view: &TailnetView) {
        let due = Instant::now() >= self.filter;
        if !due || !view.running || view.online != Some(true) {
            return;
        }
        let filter = daemon.filter(view).await;
        self.filter = Instant::now() + if filter.is_some() { self.every } else { AGAIN };
        if let Some(filter) = filter {
            self.trust.heard_filter(filter, wall());
        }
    }

    async fn recall(&mut self, view: &TailnetView, now: Wall) {
        let url = Some(view.control_url.clone()).filter(|url| !url.is_empty());
        let recalled = Told::Recalled(url);
        if self.told == recalled {
            self.trust.tick(now);
        } else if let Told::Recalled(url) = &recalled {
            let url = url.clone();
            self.disk(move |trust| trust.recall(url.as_deref(), now)).await;
            // Nothing to recall is an answer; a file that cannot be read now is none.
            if self.control().is_some() || !self.trust.is_unread() {
                self.told = recalled;
            }
        }
    }

    /// Files are read and written by a thread that may wait, and this task goes on after it: no
    /// picture is acted on before what is remembered of its tailnet is in use.
    async fn disk(&self, f: impl FnOnce(&Trust) -> Vec<String> + Send + 'static) {
        let trust = self.trust.clone();
        let said = tokio::task::spawn_blocking(move || f(&trust)).await;
        for text in said.unwrap_or_else(|error| vec![format!("pins are not known: {error}")]) {
            tracing::warn!("{text}");
            self.events.note("trust", text);
        }
    }

    /// The tailnet that is remembered or in use.
    pub(super) fn control(&self) -> Option<ControlId> {
        self.trust.view().control.clone()
    }

    /// What is remembered of the tailnet while none says anything.
    pub(super) fn saved(&self, now: Wall) -> Option<Saved> {
        let view = self.trust.view();
        let (Some(control), Some(own)) = (&view.control, &view.own) else { return None };
        let id = NodeId::Tailnet { control: control.clone(), stable: own.stable.as_str().into() };
        let me = Me { principal: own.principal.clone(), name: own.name.clone() };
        let live = view.pins.iter().filter(|pin| view.standing(pin, now).is_ok());
        Some(Saved {
            control: control.clone(),
            this: Identity { id, name: own.name.clone(), principal: Some(own.principal.clone()) },
            facts: Tailnet { me: Some(me), people: view.people },
            nodes: live.filter_map(node).collect(),
        })
    }

    /// How many peers may be met on the local network.
    pub(super) fn pinned(&self, now: Wall) -> usize {
        let view = self.trust.view();
        view.pins.iter().filter(|pin| view.standing(pin, now).is_ok()).count()
    }
}

/// A tailnet as it was when it was last seen.
#[derive(Debug)]
pub(super) struct Saved {
    pub(super) control: ControlId,
    /// This node in it.
    pub(super) this: Identity,
    /// What rules need to know.
    pub(super) facts: Tailnet,
    /// The nodes whose pins live: nobody else can be reached, or admitted, without it.
    pub(super) nodes: Vec<TailnetNode>,
}

fn own(me: &TailnetNode) -> Option<Own> {
    let NodeId::Tailnet { stable, .. } = &me.id else { return None };
    Some(Own {
        stable: stable.to_string(),
        created: me.created.clone(),
        name: me.name.clone(),
        principal: me.principal.clone(),
        node_key: me.key.clone(),
        addrs: me.addrs.clone(),
    })
}

/// A pinned node as the list would have it.
fn node(pin: &Pin) -> Option<TailnetNode> {
    pin.stable()?;
    Some(TailnetNode {
        dns: pin.dns.clone(),
        shared: pin.shared,
        addrs: pin.tailnet.clone(),
        created: pin.created.clone(),
        key: pin.node_key.clone(),
        expires: pin.expires,
        expired: pin.expired,
        ..TailnetNode::new(pin.node.clone(), pin.name.clone(), pin.principal.clone()?)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::trust::Bounds;
    use crate::types::{NodeName, Principal};

    fn home() -> TailnetView {
        let control = ControlId("home".into());
        let id = NodeId::Tailnet { control: control.clone(), stable: "n1".into() };
        let owner = Principal::User { control: control.clone(), id: 1, login: "a@x".into() };
        let me = TailnetNode {
            dns: "laptop.home.ts.net".to_owned(),
            online: true,
            created: "2026-01-01T00:00:00Z".to_owned(),
            key: "nodekey:1".to_owned(),
            ..TailnetNode::new(id, NodeName::from_dns("laptop"), owner)
        };
        let control = Some(control);
        TailnetView { running: true, online: Some(true), me: Some(me), control, ..absent() }
    }

    fn absent() -> TailnetView {
        TailnetView::absent("daemon_down")
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_slow_disk_does_not_stop_the_program() {
        let now = Wall(1_800_000_000);
        for picture in [home(), absent()] {
            let dir = tempfile::tempdir().unwrap();
            let pipe = dir.path().join("trust-home.json");
            let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
            assert!(made.success());
            let mut vouch =
                Vouch::new(Trust::open(Some(dir.path()), Bounds::default()), Events::new(), AGAIN);
            // Opening a pipe waits until somebody writes there.
            let (go, wait) = std::sync::mpsc::channel::<()>();
            let writer = std::thread::spawn(move || {
                let waited = wait.recv_timeout(Duration::from_secs(20)).is_ok();
                drop(fs::OpenOptions::new().write(true).open(&pipe).unwrap());
                waited
            });
            let others = async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                go.send(()).unwrap();
            };
            tokio::join!(vouch.take(&picture, true, now), others);
            assert!(writer.join().unwrap(), "everything waited for the disk");
        }
    }

    #[tokio::test]
    async fn what_could_not_be_read_is_read_again_with_the_next_picture() {
        let now = Wall(1_800_000_000);
        for picture in [home(), absent()] {
            let dir = tempfile::tempdir().unwrap();
            let start = || {
                let trust = Trust::open(Some(dir.path()), Bounds::default());
                Vouch::new(trust, Events::new(), AGAIN)
            };
            let mut first = start();
            first.take(&absent(), true, now).await;
            assert_eq!(first.told, Told::Recalled(None), "that there is nothing is an answer");
            first.take(&home(), true, now).await;
            assert_eq!(first.control(), home().control);

            let file = dir.path().join("trust-home.json");
            let away = dir.path().join("away");
            fs::rename(&file, &away).unwrap();
            fs::create_dir(&file).unwrap();
            let mut vouch = start();
            let changed = vouch.trust.changed();
            for _ in 0..3 {
                vouch.take(&picture, true, now).await;
            }
            assert_eq!(vouch.control(), None);
            assert!(!changed.has_changed().unwrap(), "nothing new is seen in trying");
            fs::remove_dir(&file).unwrap();
            fs::rename(&away, &file).unwrap();
            vouch.take(&picture, true, now).await;
            assert_eq!(vouch.control(), home().control);
            let keys = |v: &Vouch| v.trust.view().ring.as_ref().map(|ring| ring.current());
            assert_eq!(keys(&vouch), keys(&first));
        }
    }
}
