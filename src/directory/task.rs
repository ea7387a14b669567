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
use super::registry::Registry;
use super::snapshot::Snapshot;
use super::writer::{State, apply};
use crate::telemetry::Clock;
use crate::types::{Dial, NodeId};

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
}

/// The handle: readers load snapshots, everybody else sends events.
#[derive(Debug)]
pub struct Directory {
    snapshot: ArcSwap<Snapshot>,
    cells: Arc<Registry>,
    events: mpsc::UnboundedSender<Message>,
    version: watch::Receiver<u64>,
    peers: watch::Receiver<Arc<Vec<Peer>>>,
    looks: mpsc::Sender<(NodeId, Look)>,
    looked: Mutex<Option<mpsc::Receiver<(NodeId, Look)>>>,
}

enum Message {
    Event(Event),
    Flush(oneshot::Sender<()>),
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
        let (looks, looked) = mpsc::channel(LOOKS);
        let directory = Arc::new(Directory {
            snapshot: ArcSwap::from_pointee(first),
            cells,
            events,
            version: version_rx,
            peers: peers_rx,
            looks,
            looked: Mutex::new(Some(looked)),
        });
        let writer =
            Writer { directory: Arc::downgrade(&directory), inbox, version, peers, state, clock };
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
        let _ = self.looks.try_send((node.clone(), why));
    }

    /// A path was seen dead by a request: marks it, tells the writer, asks for a look.
    pub fn path_lost(&self, node: &NodeId, path: &PathCell) {
        if path.lost() {
            self.send(Event::Paths(node.clone()));
        }
        self.look_at(node, Look::Failed);
    }

    /// The requests for looks; there is one taker, the probes.
    pub fn looks(&self) -> Option<mpsc::Receiver<(NodeId, Look)>> {
        self.looked.lock().take()
    }
}

struct Writer {
    directory: std::sync::Weak<Directory>,
    inbox: mpsc::UnboundedReceiver<Message>,
    version: watch::Sender<u64>,
    peers: watch::Sender<Arc<Vec<Peer>>>,
    state: State,
    clock: Clock,
}

impl Writer {
    async fn run(mut self) {
        loop {
            let lingers = build::next_change(&self.state, self.clock.now());
            let first = tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => message,
                    None => return,
                },
                () = sleep(lingers) => Message::Event(Event::Tick),
            };
            // Whatever has come in meanwhile goes into the same snapshot.
            let (mut changed, mut flushed) = (false, Vec::new());
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Event(event) => changed |= self.take(event),
                    Message::Flush(done) => flushed.push(done),
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

    fn take(&mut self, event: Event) -> bool {
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
