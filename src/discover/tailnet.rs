//! The task that follows the tailnet.
//!
//! It polls LocalAPI (a small question every two seconds, the whole list when the bell rings,
//! when something moved, and now and then), keeps looking for one that is not there, and turns
//! each picture into what others need: the view for `net`, the resolved `access` rules for the
//! mesh listener, peers for the directory, the rung.
//!
//! While LocalAPI is away or the tailnet does not run, the last peers stay what they were: a
//! coordinator that is silent removes nobody. Only a running tailnet's own list does that. A
//! program that starts in such a time begins with what trust remembers of the tailnet used
//! last. Another tailnet's name takes the peers of this one away, whatever state it is in.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::daemon::{Answer, Daemon};
use super::dns::{self, Place};
use super::known::{AcceptError, Known};
use super::links;
use super::peers::{self, Sorted};
use super::rung::{self, Rungs};
use super::vouch::Vouch;
use crate::config::Config;
use crate::directory::event::{Event, Identity};
use crate::directory::{Directory, Look, Unused};
use crate::net::lan::LanView;
use crate::net::localapi;
use crate::net::{Sockets, TailnetNode, TailnetView};
use crate::telemetry::events::Events;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{Clock, wall};
use crate::trust::{Access, Bounds, Networks, SendTo, Tailnet, Trust};
use crate::types::{ControlId, NodeId, NodeName, Timing};

/// What the task is given.
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
    /// What the tailnet vouched for.
    pub trust: Trust,
    /// The local networks that are known.
    pub networks: Networks,
    /// This machine's interfaces.
    pub sockets: Sockets,
    /// Where it is put which local networks may be used.
    pub lan: watch::Sender<Arc<LanView>>,
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
    links::start(&setup);
    tokio::spawn(Watch::new(setup).run(inbox));
    Discovery { commands }
}

struct Watch {
    setup: Setup,
    config: Arc<Config>,
    rungs: Rungs,
    daemon: Daemon,
    vouch: Vouch,
    view: TailnetView,
    known: Option<(ControlId, Known)>,
    /// What `dns.names` say.
    places: watch::Receiver<Arc<Vec<Place>>>,
    /// What the directory was last told.
    told: Told,
}

#[derive(Default)]
struct Told {
    this: Option<Identity>,
    /// The nodes of the tailnet, sorted out.
    nodes: Sorted,
    /// Those, and whose keys a person added.
    sorted: Option<Sorted>,
    /// Of which tailnet these are.
    tailnet: Option<ControlId>,
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
    Pins,
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
        let daemon = Daemon::new(Arc::clone(&setup.localapi), setup.timing.clone());
        let vouch =
            Vouch::new(setup.trust.clone(), Arc::clone(&setup.events), setup.timing.packet_filter);
        Watch {
            setup,
            config,
            rungs: Rungs::new(),
            daemon,
            vouch,
            view: TailnetView::absent("starting"),
            known: None,
            places,
            told: Told::default(),
        }
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut due = Instant::now();
        let mut directory = self.setup.directory.changed();
        let mut pins = self.setup.trust.changed();
        let mut reloads = true;
        self.resolve(true);
        self.setup.metrics.rung(self.rungs.state().rung);
        loop {
            let woken = tokio::select! {
                () = sleep_until(due) => {
                    due = self.setup.clock.next(self.setup.timing.tailnet_poll);
                    Woken::Tick
                }
                () = self.daemon.ring() => Woken::Ring,
                changed = self.setup.config.changed(), if reloads => {
                    reloads = changed.is_ok();
                    Woken::Config
                }
                // The other task never ends before this one.
                Ok(()) = self.places.changed() => Woken::Names,
                // (`Setup` holds it.)
                Ok(()) = pins.changed() => Woken::Pins,
                changed = directory.changed() => {
                    if changed.is_ok() { Woken::Directory } else { Woken::End }
                }
                command = inbox.recv() => command.map_or(Woken::End, Woken::Command),
            };
            // Whatever is heard first after a sleep: what was seen before it is old.
            if self.rungs.slept(SystemTime::now(), self.setup.clock.now()) {
                tracing::info!("this machine slept: looking at everything again");
                self.ring();
                self.look_at(|_| true);
            }
            match woken {
                Woken::End => return,
                Woken::Tick => {
                    self.look(true).await;
                    // A key added by hand ends without a word.
                    self.tell();
                }
                Woken::Ring => {
                    self.ring();
                    self.look(false).await;
                }
                Woken::Config => self.reload().await,
                Woken::Names => self.resolve(false),
                Woken::Pins => self.tell(),
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
        self.daemon.look_anew();
        self.vouch.rang();
        self.setup.bell.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Nobody waits out a pause that was earned while there was no way to anybody.
    fn look_at(&self, is_back: impl Fn(&NodeId) -> bool) {
        let peers = self.told.sorted.iter().flat_map(|sorted| &sorted.peers);
        for peer in peers.filter(|peer| is_back(&peer.who.id)) {
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
            self.daemon.lose();
            self.look(false).await;
        }
        self.setup.trust.set_bounds(Bounds::of(&self.config));
        self.resolve(true);
        self.tell();
        self.ring();
    }

    /// Asks LocalAPI, and publishes what it says.
    async fn look(&mut self, poll: bool) {
        let known = self.rungs.found();
        let Answer { view, fresh } = self.daemon.ask(&self.config.tailnet, &self.view, known).await;
        let now = self.setup.clock.now();
        self.rungs.heard(&view, self.daemon.is_found(), poll, now);
        let moved = view != self.view;
        let back: Vec<NodeId> = peers::returned(&self.view, &view).cloned().collect();
        self.view = view;
        // Before anybody acts on the picture: a key must not be that of another tailnet.
        let steps = self.vouch.take(&self.view, fresh, wall()).await;
        if self.vouch.control().is_some() {
            self.rungs.remembers();
        }
        if moved {
            self.setup.view.send_replace(Arc::new(self.view.clone()));
        }
        if moved || self.vouch.control() != self.told.tailnet {
            self.resolve(false);
        }
        if steps {
            self.setup.bell.send_modify(|n| *n = n.wrapping_add(1));
        }
        self.look_at(|node| back.contains(node));
        let coordinator = self.rungs.coordinator(&self.view);
        if self.told.coordinator != Some(coordinator) {
            self.told.coordinator = Some(coordinator);
            self.setup.metrics.coordinator_up(coordinator == Some(true));
            self.setup.directory.send(Event::Coordinator(coordinator));
        }
        self.vouch.read_filter(&self.daemon, &self.view).await;
    }

    /// Makes rules and peers of the picture and the configuration.
    fn resolve(&mut self, config_changed: bool) {
        if self.config.tailnet.enabled == Some(false) {
            self.rules(Tailnet::default(), config_changed);
            self.told.tailnet = None;
            self.told.nodes = Sorted::default();
            return self.tell();
        }
        // Every picture of a running tailnet has its peers; no other one removes anybody.
        if self.view.running
            && let (Some(me), Some(control)) = (&self.view.me, self.view.control.clone())
        {
            self.this(peers::identity(me));
            let facts = peers::facts(&self.view);
            let send_to = SendTo::resolve(&self.config, &facts);
            self.rules(facts, config_changed);
            let nodes = self.view.peers.clone();
            return self.sort(&control, &nodes, &send_to, true);
        }
        let remembered = self.vouch.control();
        let another = self.view.control.as_ref().is_some_and(|c| Some(c) != remembered.as_ref());
        if another || remembered != self.told.tailnet {
            self.resolve_saved(another, config_changed);
        } else {
            self.this_somehow();
            let facts = self.told.facts.clone().unwrap_or_default();
            self.rules(facts, config_changed);
        }
    }

    /// The same, of what is remembered of the tailnet used last; of none if the daemon names
    /// `another` one.
    fn resolve_saved(&mut self, another: bool, config_changed: bool) {
        let saved = self.vouch.saved(wall()).filter(|_| !another);
        let Some(saved) = saved else {
            self.this_somehow();
            self.rules(Tailnet::default(), config_changed);
            self.told.tailnet = None;
            self.told.nodes = Sorted::default();
            return self.tell();
        };
        tracing::info!(
            pinned = saved.nodes.len(),
            "no tailnet says who is in it: peers are those pinned in the one used last"
        );
        self.this(saved.this);
        let send_to = SendTo::resolve(&self.config, &saved.facts);
        self.rules(saved.facts, config_changed);
        self.sort(&saved.control, &saved.nodes, &send_to, false);
    }

    /// This node while nothing of a tailnet is in use: as it was, or as the daemon names it.
    fn this_somehow(&mut self) {
        if let Some(me) = &self.view.me {
            self.this(peers::identity(me));
        } else if self.told.this.is_none() {
            self.this(Identity::lone(self.setup.name.clone()));
        }
    }

    fn this(&mut self, this: Identity) {
        if self.told.this.as_ref() != Some(&this) {
            self.setup.directory.send(Event::This(this.clone()));
            self.told.this = Some(this);
        }
    }

    fn rules(&mut self, facts: Tailnet, config_changed: bool) {
        if config_changed || self.told.facts.as_ref() != Some(&facts) {
            self.setup.access.send_replace(Arc::new(Access::resolve(&self.config, &facts)));
            self.told.facts = Some(facts);
        }
    }

    /// Sorts `nodes` of the tailnet `control` out; `listed` = they are its whole list, now.
    fn sort(&mut self, control: &ControlId, nodes: &[TailnetNode], send_to: &SendTo, listed: bool) {
        self.know(control);
        self.told.tailnet = Some(control.clone());
        let Some((_, known)) = &mut self.known else { return };
        let (new, changed) = if listed {
            known.list(nodes.iter().filter_map(|node| peers::listed(node, send_to)), today())
        } else {
            (Vec::new(), false)
        };
        let new_nodes = self.config.new_nodes;
        if changed
            && self.setup.state.is_some()
            && let Err(error) = known.save()
        {
            tracing::warn!("the list of known nodes could not be written: {error}");
        }
        let places = self.places.borrow_and_update().clone();
        let sorted = peers::sort(nodes, send_to, known, new_nodes, &places);
        for name in new {
            let unused = sorted.unused.iter().find(|u| u.name == name);
            let what = unused.map_or("used from now on", |u: &Unused| &u.why);
            tracing::info!(node = %name, "a node seen for the first time: {what}");
            self.setup.events.note("new_node", format!("{name}: {what}"));
        }
        self.told.nodes = sorted;
        self.tell();
    }

    /// Tells the directory who may be used, if that changed.
    fn tell(&mut self) {
        let mut sorted = self.told.nodes.clone();
        let trust = self.setup.trust.view();
        // Like its pins, what a person said belongs to one tailnet.
        let another = self.view.control.is_some() && self.view.control != trust.control;
        if self.config.tailnet.enabled != Some(false) && !another {
            let facts = self.told.facts.clone().unwrap_or_default();
            let send_to = SendTo::resolve(&self.config, &facts);
            peers::sort_pins(&mut sorted, &trust, &send_to, wall());
        }
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
            let usable = !self.setup.lan.borrow().links.is_empty();
            let pinned = if usable { self.vouch.pinned(wall()) } else { 0 };
            rung::tell(&state, pinned, &self.setup.metrics, &self.setup.events);
            self.setup.directory.send(Event::Rung(state));
        }
    }
}

/// Days since 1970.
fn today() -> u64 {
    wall().0 / 86_400
}
