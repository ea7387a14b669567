//! Reports: what this node tells of its own engines as it changes, to whoever reads along.
//!
//! In: the gates of this node's engines, the directory, for whom it works. Out: rounds, at most
//! four a second; and for each reader a stream of lines made of them, cut to what that reader
//! may list at that moment. A row is written once, however many read it. A round without news
//! comes now and then as a sign of life. Nothing is kept of a reader but who it is, so that a
//! new stream of the same node ends its older one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::stream::unfold;
use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::api::report::Accepting;
use crate::api::wire;
use crate::directory::Directory;
use crate::gate::Gates;
use crate::net::{Body, BoxError, Identity, Task};
use crate::telemetry::Clock;
use crate::trust::Access;
use crate::types::{NodeId, Timing};

mod reader;
mod round;

use reader::Reader;
use round::{Desk, Round};

/// What reports are made of.
#[derive(Clone)]
pub struct Sources {
    /// The turnstiles of this node's engines.
    pub gates: Arc<Gates>,
    /// The picture of the mesh, and the cells.
    pub directory: Arc<Directory>,
    /// Who may use this node.
    pub access: watch::Receiver<Arc<Access>>,
    /// Whether this node is about to stop.
    pub draining: watch::Receiver<bool>,
    /// The time.
    pub clock: Clock,
    /// Waits.
    pub timing: Arc<Timing>,
}

/// The reports of this node.
pub(super) struct Reports {
    sources: Sources,
    rounds: watch::Receiver<Arc<Round>>,
    readers: Arc<Readers>,
    _task: Task,
}

impl Reports {
    /// Starts making rounds.
    pub(super) fn start(sources: Sources) -> Reports {
        let (out, rounds) = watch::channel(Arc::default());
        let _task = Task::spawn(run(sources.clone(), out));
        Reports { sources, rounds, readers: Arc::default(), _task }
    }

    /// For whom this node works now, and why not for all.
    pub(super) fn accepting(&self) -> (Accepting, String) {
        let share = self.sources.gates.share();
        let share = share.borrow();
        (share.accepting, share.why.to_string())
    }

    /// The turnstiles of this node's engines.
    pub(super) fn gates(&self) -> &Gates {
        &self.sources.gates
    }

    /// The stream for whoever is at the other end of a connection; `None` for a program of this
    /// machine.
    pub(super) fn stream(
        &self,
        node: Option<NodeId>,
        who: Arc<Identity>,
    ) -> Option<Response<Body>> {
        let place = self.readers.enter(node?);
        let reader = Reader::new(&self.sources, self.rounds.clone(), who, place);
        let lines = unfold(reader, |mut reader| async move {
            let line = reader.next().await?;
            Some((Ok::<_, BoxError>(Frame::data(line)), reader))
        });
        let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
        let ours = HeaderValue::from_static(wire::CONTENT_TYPE);
        response.headers_mut().insert(CONTENT_TYPE, ours);
        Some(response)
    }
}

/// Who reads: of each node the newest stream.
#[derive(Default)]
struct Readers {
    newest: Mutex<HashMap<NodeId, u64>>,
    streams: AtomicU64,
}

impl Readers {
    fn enter(self: &Arc<Self>, node: NodeId) -> Place {
        let number = self.streams.fetch_add(1, Relaxed);
        self.newest.lock().insert(node.clone(), number);
        Place { readers: Arc::clone(self), node, number }
    }
}

/// One node's place among those who read, until dropped.
struct Place {
    readers: Arc<Readers>,
    node: NodeId,
    number: u64,
}

impl Place {
    /// Whether that node has no newer stream.
    fn holds(&self) -> bool {
        self.readers.newest.lock().get(&self.node) == Some(&self.number)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut newest = self.readers.newest.lock();
        if newest.get(&self.node) == Some(&self.number) {
            newest.remove(&self.node);
        }
    }
}

/// Makes a round whenever something has changed, and one now and then although nothing has.
async fn run(sources: Sources, out: watch::Sender<Arc<Round>>) {
    let Sources { gates, directory, clock, timing, .. } = sources;
    let (mut queues, mut pictures) = (gates.changed(), directory.changed());
    let mut share = gates.share();
    let mut desk = Desk::default();
    let mut beat = Instant::now();
    loop {
        queues.borrow_and_update();
        pictures.borrow_and_update();
        let share_now = share.borrow_and_update().clone();
        let due = Instant::now() >= beat;
        let snapshot = directory.load();
        let round = desk.round(&snapshot, &gates, &share_now, due, clock.now(), &timing);
        if round.is_news || due {
            let every = round.every;
            out.send_replace(Arc::new(round));
            if due || Instant::now() + every < beat {
                beat = Instant::now() + every;
            }
        }
        sleep(timing.report_spacing).await;
        tokio::select! {
            changed = queues.changed() => if changed.is_err() { return },
            changed = pictures.changed() => if changed.is_err() { return },
            changed = share.changed() => if changed.is_err() { return },
            () = sleep_until(beat) => {}
        }
    }
}

/// How long what was said with such a pace is believed.
fn holds(every: Duration, timing: &Timing) -> Duration {
    timing.report_believed.max(every.mul_f64(1.5))
}
