//! The task that follows the tailnet.
//!
//! It polls LocalAPI (a small question every two seconds, the whole list when the bell rings,
//! when something moved, and now and then), keeps looking for one that is not there, and turns
//! each picture into what others need: the view for `net`, the resolved `access` rules for the
//! mesh listener, peers for the directory, the rung.
//!
//! While LocalAPI is away or the tailnet does not run, the last peers stay what they were: a
//! coordinator that is silent removes nobody. Only a running tailnet's own list does that.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::dns::{self, Place};
use super::known::{AcceptError, Known};
use super::peers::{self, Sorted};
use super::rung::{self, Rungs};
use crate::config::Config;
use crate::directory::event::{Event, Identity};
use crate::directory::{Directory, Look, Unused};
use crate::net::TailnetView;
use crate::net::localapi::{self, ApiError, FindError, LocalApi};
use crate::telemetry::Clock;
use crate::telemetry::events::Events;
use crate::telemetry::metrics::Metrics;
use crate::trust::{Access, SendTo, Tailnet};
use crate::types::{ControlId, NodeName, Timing};

/// What the task is given.
#[derive(Debug)]
pub struct Setup {
    /// The configuration, and each one that replaces it.
    pub config: watch::Receiver<Arc<Config>>,
    /// Waits.
    pub timing: Timing,
    /// The time.
    pub clock: Clock,
    /// Where peers are told.
    pub directory: Arc<Directory>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What happened, for `status`.
    pub events: Arc<Events>,
    /// The state folder; `None` = nothing is kept, and every start is a first one.
    pub state: Option<PathBuf>,
    /// What this node is called without a tailnet.
    pub name: NodeName,
    /// Where the LocalAPI in use is put for dials and WhoIs.
    pub localapi: localapi::Current,
    /// Where each new picture of the tailnet is put.
    pub view: watch::Sender<Arc<TailnetView>>,
    /// Counts up when something about peers or rights may have changed: identities are asked
    /// for again, probes look again.
    pub bell: watch::Sender<u64>,
    /// Where the rules of this node are put, resolved for this tailnet.
    pub access: watch::Sender<Arc<Access>>,
}

/// A handle on the running task; it ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Discovery {
    commands: mpsc::Sender<Command>,
}

enum Command {
    Accept(String, oneshot::Sender<Result<NodeName, AcceptError>>),
}

impl Discovery {
    /// Lets prompts go to a node that waits for it. Returns its name.
    pub async fn accept(&self, name: &str) -> Result<NodeName, AcceptError> {
        let (answer, wait) = oneshot::channel();
        let unknown = || AcceptError::Unknown(name.to_owned());
        self.commands
            .send(Command::Accept(name.to_owned(), answer))
            .await
            .map_err(|_| unknown())?;
        wait.await.unwrap_or_else(|_| Err(unknown()))
    }
}

/// Starts the task on the current runtime.
pub fn start(setup: Setup) -> Discovery {
    let (commands, inbox) = mpsc::channel(4);
    tokio::spawn(Watch::new(setup).run(inbox));
    Discovery { commands }
}

struct Watch {
    setup: Setup,
    config: Arc<Config>,
    rungs: Rungs,
    api: Option<LocalApi>,
    rings: Option<mpsc::Receiver<()>>,
    /// Reads that LocalAPI did not answer in time, in a row.
    slow: u32,
    /// What was last said about the lack of a LocalAPI, so that it is said once.
    lack: String,
    view: TailnetView,
    /// When the peers were last read; `None` = they have to be.
    read: Option<Instant>,
    known: Option<(ControlId, Known)>,
    /// What `dns.names` say.
    places: watch::Receiver<Arc<Vec<Place>>>,
    /// What the directory was last told.
    told: Told,
}

#[derive(Default)]
struct Told {
    this: Option<Identity>,
    sorted: Option<Sorted>,
    coordinator: Option<Option<bool>>,
    /// The facts the rules were last resolved for.
    facts: Option<Tailnet>,
}

/// What made the task wake.
enum Woken {
    Tick,
    Ring,
    Config,
    Names,
    Directory,
    Command(Command),
    End,
}

impl Watch {
    fn new(mut setup: Setup) -> Watch {
        let config = setup.config.borrow_and_update().clone();
        let places = dns::watch_names(
            setup.config.clone(),
            setup.bell.subscribe(),
            setup.timing.dns_refresh,
            setup.timing.dns_limit,
        );
        Watch {
            setup,
            config,
            rungs: Rungs::new(),
            api: None,
            rings: None,
            slow: 0,
            lack: String::new(),
            view: TailnetView::absent("starting"),
            read: None,
            known: None,
            places,
            told: Told::default(),
        }
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut tick = tokio::time::interval(self.setup.timing.tailnet_poll);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut directory = self.setup.directory.changed();
        let mut reloads = true;
        self.resolve(true);
        self.setup.metrics.rung(self.rungs.state().rung);
        loop {
            let woken = tokio::select! {
                _ = tick.tick() => Woken::Tick,
                ring = ring(&mut self.rings) => {
                    if ring.is_none() {
                        self.rings = None;
                    }
                    Woken::Ring
                }
                changed = self.setup.config.changed(), if reloads => {
                    reloads = changed.is_ok();
                    Woken::Config
                }
                // The other task never ends before this one.
                Ok(()) = self.places.changed() => Woken::Names,
                changed = directory.changed() => {
                    if changed.is_ok() { Woken::Directory } else { Woken::End }
                }
                command = inbox.recv() => command.map_or(Woken::End, Woken::Command),
            };
            match woken {
                Woken::End => return,
                Woken::Tick => {
                    if self.rungs.slept(SystemTime::now(), self.setup.clock.now()) {
                        tracing::info!("this machine slept: looking at everything again");
                        self.ring();
                        self.look_at_all();
                    }
                    self.look(true).await;
                }
                Woken::Ring => {
                    self.ring();
                    self.look(false).await;
                }
                Woken::Config => self.reload().await,
                Woken::Names => self.resolve(false),
                Woken::Directory => {}
                Woken::Command(Command::Accept(name, answer)) => {
                    let _ = answer.send(self.accept(&name));
                }
            }
            self.step();
        }
    }

    /// Something may have changed: everybody looks again.
    fn ring(&mut self) {
        self.read = None;
        self.setup.bell.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Nobody waits out a pause that was earned while there was no way to anybody.
    fn look_at_all(&self) {
        for peer in self.told.sorted.iter().flat_map(|sorted| &sorted.peers) {
            self.setup.directory.look_at(&peer.who.id, Look::Back);
        }
    }

    async fn reload(&mut self) {
        let new = self.setup.config.borrow_and_update().clone();
        let old = std::mem::replace(&mut self.config, new);
        let (old, new) = (&old.tailnet, &self.config.tailnet);
        if (old.enabled, &old.socket, old.socket_uid, &old.capability)
            != (new.enabled, &new.socket, new.socket_uid, &new.capability)
        {
            self.lose();
            self.look(false).await;
        }
        self.resolve(true);
        self.ring();
    }

    /// Asks LocalAPI, and publishes what it says.
    async fn look(&mut self, poll: bool) {
        let view = self.ask().await;
        let now = self.setup.clock.now();
        self.rungs.heard(&view, self.api.is_some(), poll, now);
        if view != self.view {
            let back = view.running && !self.view.running;
            self.view = view;
            let view = Arc::new(self.view.clone());
            self.setup.view.send_replace(view);
            self.resolve(false);
            if back {
                self.look_at_all();
            }
        }
        let coordinator = self.rungs.coordinator(&self.view);
        if self.told.coordinator != Some(coordinator) {
            self.told.coordinator = Some(coordinator);
            self.setup.metrics.coordinator_up(coordinator == Some(true));
            self.setup.directory.send(Event::Coordinator(coordinator));
        }
    }

    async fn ask(&mut self) -> TailnetView {
        if self.config.tailnet.enabled == Some(false) {
            return TailnetView::absent("switched_off");
        }
        if self.api.is_none() {
            match LocalApi::find(&self.config.tailnet, &self.setup.timing).await {
                Ok(api) => {
                    tracing::info!(at = api.place(), "found tailscaled");
                    self.lack.clear();
                    self.rings = Some(api.bell());
                    self.setup.localapi.store(Some(Arc::new(api.clone())));
                    self.api = Some(api);
                    self.read = None;
                }
                Err(error) => return self.without(&error),
            }
        }
        let Some(api) = self.api.clone() else { return TailnetView::absent("no_tailnet") };
        match self.read_from(&api).await {
            Ok(view) => {
                self.slow = 0;
                view
            }
            // A busy machine may miss one answer; the dials are bound to the tailnet's device
            // all the same.
            Err(ApiError::Slow(_)) if self.slow == 0 => {
                self.slow = 1;
                self.view.clone()
            }
            Err(error) => {
                self.say(&error.to_string());
                self.lose();
                TailnetView::absent("daemon_down")
            }
        }
    }

    /// One picture. Peers are read anew when they are due or when this node's own part of the
    /// picture moved; otherwise they are those of the last one.
    async fn read_from(&mut self, api: &LocalApi) -> Result<TailnetView, ApiError> {
        let due = self.read.is_none_or(|at| at.elapsed() >= self.setup.timing.tailnet_refresh);
        if !due {
            let mut view = api.status(false).await?;
            let same = (&view.state, &view.control, &view.me, view.online)
                == (&self.view.state, &self.view.control, &self.view.me, self.view.online);
            if same {
                view.peers.clone_from(&self.view.peers);
                return Ok(view);
            }
        }
        let view = api.status(true).await?;
        self.read = Some(Instant::now());
        Ok(view)
    }

    fn without(&mut self, error: &FindError) -> TailnetView {
        // On a machine that never had a tailnet this is no fault and no news.
        if error.is_none() && self.config.tailnet.enabled != Some(true) {
            tracing::debug!("{error}");
        } else {
            self.say(&error.to_string());
        }
        TailnetView::absent(match error {
            FindError::Distrust { .. } => "untrusted_socket",
            _ if self.rungs.found() => "daemon_down",
            _ => "no_tailnet",
        })
    }

    fn say(&mut self, text: &str) {
        if self.lack != text {
            text.clone_into(&mut self.lack);
            tracing::warn!("no tailnet: {text}");
        }
    }

    fn lose(&mut self) {
        self.api = None;
        self.rings = None;
        self.slow = 0;
        self.read = None;
        self.setup.localapi.store(None);
    }

    /// Makes rules and peers of the picture and the configuration.
    fn resolve(&mut self, config_changed: bool) {
        let this = self.view.me.as_ref().map_or_else(
            || self.told.this.clone().unwrap_or_else(|| Identity::lone(self.setup.name.clone())),
            |me| Identity {
                id: me.id.clone(),
                name: me.name.clone(),
                principal: Some(me.principal.clone()),
            },
        );
        if self.told.this.as_ref() != Some(&this) {
            self.setup.directory.send(Event::This(this.clone()));
            self.told.this = Some(this);
        }
        let off = self.config.tailnet.enabled == Some(false);
        // Every picture of a running tailnet has its peers; no other one removes anybody.
        let running = self.view.running && self.view.me.is_some();
        let facts = if off {
            Tailnet::default()
        } else if running {
            peers::facts(&self.view)
        } else {
            self.told.facts.clone().unwrap_or_default()
        };
        if config_changed || self.told.facts.as_ref() != Some(&facts) {
            self.setup.access.send_replace(Arc::new(Access::resolve(&self.config, &facts)));
            self.told.facts = Some(facts.clone());
        }
        if off {
            self.tell(Sorted::default());
        } else if running {
            self.sort(&SendTo::resolve(&self.config, &facts));
        }
    }

    fn sort(&mut self, send_to: &SendTo) {
        let Some(control) = self.view.control.clone() else { return };
        self.know(&control);
        let Some((_, known)) = &mut self.known else { return };
        let listed = self.view.peers.iter().filter_map(|node| peers::listed(node, send_to));
        let (new, changed) = known.list(listed, today());
        let new_nodes = self.config.new_nodes;
        if changed
            && self.setup.state.is_some()
            && let Err(error) = known.save()
        {
            tracing::warn!("the list of known nodes could not be written: {error}");
        }
        let places = self.places.borrow_and_update().clone();
        let sorted = peers::sort(&self.view.peers, send_to, known, new_nodes, &places);
        for name in new {
            let unused = sorted.unused.iter().find(|u| u.name == name);
            let what = unused.map_or("used from now on", |u: &Unused| &u.why);
            tracing::info!(node = %name, "a node seen for the first time: {what}");
            self.setup.events.note("new_node", format!("{name}: {what}"));
        }
        self.tell(sorted);
    }

    fn tell(&mut self, sorted: Sorted) {
        if self.told.sorted.as_ref() != Some(&sorted) {
            self.setup.directory.send(Event::Peers(sorted.peers.clone()));
            self.setup.directory.send(Event::Unused(sorted.unused.clone()));
            self.told.sorted = Some(sorted);
        }
    }

    /// Opens the list of known nodes that belongs to `control`.
    fn know(&mut self, control: &ControlId) {
        if self.known.as_ref().is_some_and(|(c, _)| c == control) {
            return;
        }
        let (known, told) = match &self.setup.state {
            Some(state) => Known::open(state, control),
            None => (Known::forgetful(), None),
        };
        if let Some(told) = told {
            tracing::warn!("{told}");
            self.setup.events.note("state", told);
        }
        self.known = Some((control.clone(), known));
    }

    fn accept(&mut self, name: &str) -> Result<NodeName, AcceptError> {
        let Some((_, known)) = &mut self.known else {
            return Err(AcceptError::Unknown(name.to_owned()));
        };
        let accepted = known.accept(name)?;
        tracing::info!(node = %accepted, "accepted by a person");
        self.setup.events.note("accepted", accepted.to_string());
        self.resolve(false);
        self.setup.bell.send_modify(|n| *n = n.wrapping_add(1));
        Ok(accepted)
    }

    /// Takes the ladder's next step, if there is one.
    fn step(&mut self) {
        let now = self.setup.clock.now();
        let snapshot = self.setup.directory.load();
        if let Some(state) = self.rungs.next(&self.view, &snapshot, now, &self.setup.timing) {
            rung::tell(&state, &self.setup.metrics, &self.setup.events);
            self.setup.directory.send(Event::Rung(state));
        }
    }
}

/// Days since 1970.
fn today() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_secs() / 86_400
}

/// The next ring; never, if there is no bell.
async fn ring(rings: &mut Option<mpsc::Receiver<()>>) -> Option<()> {
    match rings {
        Some(rings) => rings.recv().await,
        None => std::future::pending().await,
    }
}
