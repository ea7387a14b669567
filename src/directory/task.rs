//! The one task that writes, and the handle everybody reads by.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::build;
use super::cell::PathCell;
use super::event::{Event, Identity, Peer, Settings};
use super::keeper::Keeper;
use super::registry::Registry;
use super::saved::Scope;
use super::snapshot::Snapshot;
use super::writer::{State, apply};
use crate::telemetry::Clock;
use crate::types::{Dial, Moment, NodeId};

/// Requests for a look that may wait; more are dropped, since a node asked for twice is
/// looked at once.
const LOOKS: usize = 256;

/// What the directory starts with.
#[derive(Debug, Clone)]
pub struct DirectoryConfig {
    /// The part of the configuration that shapes a snapshot.
    pub settings: Settings,
    /// This node, until a tailnet names it.
    pub this: Identity,
    /// The state folder; `None` = nothing is kept.
    pub state: Option<PathBuf>,
    /// How often the saved state is written when it changed.
    pub save: Duration,
}

/// Why a node should be looked at now, instead of when its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// A request to it failed on the way.
    Failed,
    /// It said it does not have a model that it had listed.
    List,
    /// The way to it was gone as a whole, and is back: what was measured meanwhile says nothing.
    Back,
}

/// The handle: readers load snapshots, everybody else sends events.
#[derive(Debug)]
pub struct Directory {
    snapshot: ArcSwap<Snapshot>,
    cells: Arc<Registry>,
    events: mpsc::UnboundedSender<Message>,
    version: watch::Receiver<u64>,
    peers: watch::Receiver<Arc<Vec<Peer>>>,
    looks: Mutex<mpsc::Sender<(NodeId, Look)>>,
    memory: watch::Sender<Moment>,
}

enum Message {
    Event(Event),
    Flush(oneshot::Sender<()>),
    Save(oneshot::Sender<()>),
}

impl Directory {
    /// Starts the writer on the current runtime. It ends when the last handle is dropped.
    pub fn start(config: DirectoryConfig, clock: Clock) -> Arc<Directory> {
        let cells = Arc::new(Registry::default());
        let mut state = State::new(config.settings, config.this, cells.clone());
        let first = build::snapshot(&mut state, clock.now());
        let (events, inbox) = mpsc::unbounded_channel();
        let (version, version_rx) = watch::channel(first.version);
        let (peers, peers_rx) = watch::channel(Arc::default());
        let directory = Arc::new(Directory {
            snapshot: ArcSwap::from_pointee(first),
            cells,
            events,
            version: version_rx,
            peers: peers_rx,
            looks: Mutex::new(mpsc::channel(1).0),
            memory: watch::Sender::new(Moment::ZERO),
        });
        let writer = Writer {
            directory: Arc::downgrade(&directory),
            inbox,
            version,
            peers,
            state,
            clock,
            keeper: Keeper::new(config.state, clock, config.save),
        };
        tokio::spawn(writer.run());
        directory
    }

    /// The current snapshot. Hold it for one decision, not longer.
    pub fn load(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Wakes with the version of every new snapshot.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.version.clone()
    }

    /// Tells the writer something. Never waits.
    pub fn send(&self, event: Event) {
        // Only fails while the program ends.
        let _ = self.events.send(Message::Event(event));
    }

    /// Returns when everything sent before is in the snapshot.
    pub async fn settled(&self) {
        let (done, wait) = oneshot::channel();
        if self.events.send(Message::Flush(done)).is_ok() {
            let _ = wait.await;
        }
    }

    /// Writes what is worth keeping now: before the program ends.
    pub async fn save(&self) {
        let (done, wait) = oneshot::channel();
        if self.events.send(Message::Save(done)).is_ok() {
            let _ = wait.await;
        }
    }

    /// The tailnet nodes that may be used, server found or not: whom probes look at.
    pub fn peers(&self) -> watch::Receiver<Arc<Vec<Peer>>> {
        self.peers.clone()
    }

    /// The live numbers of a path, made at first mention.
    pub fn path(&self, node: &NodeId, dial: &Dial) -> Arc<PathCell> {
        self.cells.path(node, dial)
    }

    /// All cells.
    pub fn cells(&self) -> &Arc<Registry> {
        &self.cells
    }

    /// Asks for a node to be looked at now. Never waits.
    pub fn look_at(&self, node: &NodeId, why: Look) {
        let _ = self.looks.lock().try_send((node.clone(), why));
    }

    /// A path was seen dead by a request: marks it, tells the writer, asks for a look.
    pub fn path_lost(&self, node: &NodeId, path: &PathCell) {
        if path.lost() {
            self.send(Event::Paths(node.clone()));
        }
        self.look_at(node, Look::Failed);
    }

    /// What this node's engines have in memory is in their cells, as they said when they were
    /// asked at that moment.
    pub fn told_memory(&self, asked: Moment) {
        self.memory.send_replace(asked);
    }

    /// Wakes whenever this node's engines have said what they have in memory: when they were
    /// asked.
    pub fn memory_told(&self) -> watch::Receiver<Moment> {
        self.memory.subscribe()
    }

    /// The requests for looks from now on. There is one taker, the probes that run; new ones
    /// take over.
    pub fn looks(&self) -> mpsc::Receiver<(NodeId, Look)> {
        let (looks, taker) = mpsc::channel(LOOKS);
        *self.looks.lock() = looks;
        taker
    }
}

struct Writer {
    directory: std::sync::Weak<Directory>,
    inbox: mpsc::UnboundedReceiver<Message>,
    version: watch::Sender<u64>,
    peers: watch::Sender<Arc<Vec<Peer>>>,
    state: State,
    clock: Clock,
    keeper: Keeper,
}

impl Writer {
    async fn run(mut self) {
        self.recall(Scope::Here).await;
        loop {
            let lingers = build::next_change(&self.state, self.clock.now());
            let first = tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => message,
                    None => return,
                },
                () = sleep(lingers) => Message::Event(Event::Tick),
                () = self.keeper.due() => {
                    self.keeper.save(&self.state, self.clock.now(), false).await;
                    continue;
                }
            };
            // Whatever has come in meanwhile goes into the same snapshot.
            let (mut changed, mut flushed) = (false, Vec::new());
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Event(event) => changed |= self.take(event).await,
                    Message::Flush(done) => flushed.push(done),
                    Message::Save(done) => {
                        self.keeper.save(&self.state, self.clock.now(), true).await;
                        flushed.push(done);
                    }
                }
                next = self.inbox.try_recv().ok();
            }
            if changed {
                let Some(directory) = self.directory.upgrade() else { return };
                let snapshot = build::snapshot(&mut self.state, self.clock.now());
                let version = snapshot.version;
                directory.snapshot.store(Arc::new(snapshot));
                self.version.send_replace(version);
            }
            for done in flushed {
                let _ = done.send(());
            }
        }
    }

    /// Believes a file of an earlier run, once.
    async fn recall(&mut self, scope: Scope) {
        let remembered = self.keeper.recall(scope).await;
        if !remembered.is_empty() {
            apply(&mut self.state, Event::Remembered(remembered), self.clock.now());
        }
    }

    async fn take(&mut self, event: Event) -> bool {
        // What was known of a tailnet's nodes has to be at hand before they are allowed.
        if let Event::Peers(peers) = &event {
            for scope in self.keeper.unread(peers.iter().map(|p| Scope::of(&p.who.id))) {
                self.recall(scope).await;
            }
        }
        let changed = apply(&mut self.state, event, self.clock.now());
        self.peers.send_if_modified(|peers| {
            let new = !Arc::ptr_eq(peers, self.state.peers());
            if new {
                *peers = self.state.peers().clone();
            }
            new
        });
        changed
    }
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{id, listing, model, peer};
    use super::*;
    use crate::types::{ModelKey, NodeName};

    fn start(state: Option<PathBuf>) -> Arc<Directory> {
        let config = DirectoryConfig {
            settings: Settings::default(),
            this: Identity::lone(NodeName::parse("laptop").unwrap()),
            state,
            save: Duration::from_millis(50),
        };
        Directory::start(config, Clock::start())
    }

    #[tokio::test]
    async fn readers_see_what_was_sent_and_are_woken_by_it() {
        let directory = start(None);
        let (mut changed, mut peers) = (directory.changed(), directory.peers());
        let mut looks = directory.looks();
        directory.send(Event::Peers(vec![peer("gpu", 2)]));
        directory.send(Event::Listed { node: id("gpu"), listing: listing(2, vec![model("a")]) });
        changed.changed().await.unwrap();
        directory.settled().await;
        let snapshot = directory.load();
        assert!(snapshot.models.contains_key(&ModelKey::parse("a").unwrap()));
        assert!(snapshot.version >= *changed.borrow_and_update());
        assert_eq!(peers.borrow_and_update().len(), 1);

        directory.path_lost(&id("gpu"), &snapshot.nodes[1].paths[0].cell);
        directory.settled().await;
        assert!(directory.load().models.is_empty());
        assert_eq!(looks.recv().await, Some((id("gpu"), Look::Failed)));
        assert!(directory.looks().is_empty(), "new probes begin anew");
        assert_eq!(looks.recv().await, None);
    }

    #[tokio::test]
    async fn a_restart_lists_the_models_of_peers_and_remembers_their_speed() {
        let folder = tempfile::tempdir().unwrap();
        let key = ModelKey::parse("a").unwrap();
        let directory = start(Some(folder.path().to_owned()));
        directory.send(Event::Peers(vec![peer("gpu", 2)]));
        directory.send(Event::Listed { node: id("gpu"), listing: listing(2, vec![model("a")]) });
        directory.settled().await;
        directory.load().models[&key].offers[0].cell.decode.set(77.0);
        directory.cells().offer(&NodeId::This, &"ollama".into(), &key).decode.set(33.0);
        directory.save().await;
        drop(directory);

        let directory = start(Some(folder.path().to_owned()));
        directory.settled().await;
        assert!(directory.load().lingering.is_empty(), "not before the node is allowed");
        directory.send(Event::Peers(vec![peer("gpu", 2)]));
        directory.settled().await;
        let snapshot = directory.load();
        assert!(snapshot.models.is_empty(), "nothing is asked before a path answers");
        assert_eq!(snapshot.lingering[&key].node.as_str(), "gpu");
        assert!(String::from_utf8_lossy(&snapshot.unions.tags).contains(r#""name":"a""#));

        directory.send(Event::Listed { node: id("gpu"), listing: listing(2, vec![model("a")]) });
        directory.settled().await;
        assert_eq!(directory.load().models[&key].offers[0].cell.decode.get(), 77.0);
        let own = directory.cells().offer(&NodeId::This, &"ollama".into(), &key);
        assert_eq!(own.decode.get(), 33.0);
    }

    #[tokio::test]
    async fn what_changed_is_saved_without_being_asked() {
        let folder = tempfile::tempdir().unwrap();
        let directory = start(Some(folder.path().to_owned()));
        directory.send(Event::Peers(vec![peer("gpu", 2)]));
        directory.send(Event::Listed { node: id("gpu"), listing: listing(2, vec![model("a")]) });
        let file = Scope::of(&id("gpu")).file(folder.path()).unwrap();
        let waited = tokio::time::timeout(Duration::from_secs(5), async {
            while !std::fs::read_to_string(&file).unwrap_or_default().contains("\"a\"") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        waited.await.unwrap();
    }
}
