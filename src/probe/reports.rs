//! Reading along: one stream of reports from each peer that has a sidecar and a living way.
//!
//! In flow lines of peers; out flow numbers into cells, signs of life, and wishes for a look
//! where a list has changed or a peer has fallen silent. A line is bounded before it is read
//! ([`Line::read`]), and counts only for offers this node lists of that very peer. A stream that
//! ends, skips a line or falls silent is opened again, ever later; one whose way is no longer
//! the best is opened there.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::ask::{Asker, Target, request};
use crate::api::report::{Line, LineError, MOST_LINE, MOST_ROWS, REPORTS, Row, weights};
use crate::api::wire;
use crate::directory::ledger::Claimed;
use crate::directory::{Cell, Directory, Event, Look, NodeCell, PathCell, Snapshot};
use crate::net::{ConnectError, PooledBody, Task};
use crate::types::{ModelKey, Moment, NodeId, NodeKind, Timing};

/// Lines that may come within a second before the next is read later: no node has more to say,
/// unless it is a full report.
const MOST_LINES: u32 = 32;
/// How long a stream that failed is left alone, as parts of a fifth of a probe's interval.
const AGAIN: [u32; 5] = [1, 2, 5, 10, 30];

/// Follows all peers, for as long as the directory lives.
pub(super) async fn run(ask: Asker, directory: Arc<Directory>) {
    let mut pictures = directory.changed();
    let mut streams: BTreeMap<NodeId, (Target, Task)> = BTreeMap::new();
    loop {
        let wanted = wanted(&directory.load());
        streams.retain(|node, (to, _)| wanted.get(node) == Some(to));
        for (node, to) in wanted {
            streams.entry(node).or_insert_with(|| {
                let stream = Stream::new(ask.clone(), directory.clone(), to.clone());
                (to, Task::spawn(stream.run()))
            });
        }
        if pictures.changed().await.is_err() {
            return;
        }
    }
}

/// Whose reports are read, and by which way.
fn wanted(snapshot: &Snapshot) -> BTreeMap<NodeId, Target> {
    let rich = snapshot.nodes.iter().filter(|node| node.kind == NodeKind::Rich);
    let best = rich.filter_map(|node| Some((node, node.best_path()?)));
    let target = best.map(|(node, path)| Target {
        node: node.id.clone(),
        dial: path.dial.clone(),
        prefix: path.prefix.clone(),
    });
    target.map(|to| (to.node.clone(), to)).collect()
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("it tells no reports ({0})")]
    No(StatusCode),
    #[error("it broke off: {0}")]
    Broke(String),
    #[error("it ended")]
    Ended,
    #[error("{0}")]
    Line(#[from] LineError),
    #[error("line {0} is missing")]
    Gap(u64),
    #[error("it fell silent")]
    Silent,
    #[error("this program ends")]
    Over,
}

/// One peer's stream.
struct Stream {
    ask: Asker,
    directory: Arc<Directory>,
    to: Target,
    node: Arc<NodeCell>,
    path: Arc<PathCell>,
    pictures: watch::Receiver<u64>,
    /// What it says of others.
    claimed: Claimed,
    /// Cells its rows went into, by engine and model.
    held: HashMap<(String, ModelKey), Arc<Cell>>,
    /// Rows of offers that are not listed, yet.
    pending: Vec<Row>,
    list: String,
    /// When its list is to be read, because it has become another.
    look: Option<Instant>,
    looked: Option<Instant>,
    /// The time between two lines, as it says.
    every: Duration,
}

impl Stream {
    fn new(ask: Asker, directory: Arc<Directory>, to: Target) -> Stream {
        Stream {
            node: directory.cells().node(&to.node),
            path: directory.path(&to.node, &to.dial),
            pictures: directory.changed(),
            claimed: Claimed::default(),
            held: HashMap::new(),
            pending: Vec::new(),
            list: String::new(),
            look: None,
            looked: None,
            every: ask.timing.report_idle,
            ask,
            directory,
            to,
        }
    }

    async fn run(mut self) {
        let mut failed = 0;
        loop {
            let began = Instant::now();
            let end = match self.once().await {
                End::Over => return,
                end => end,
            };
            self.rest();
            let timing = &self.ask.timing;
            // One that held for a while was a good one.
            if began.elapsed() > timing.report_idle {
                failed = 0;
            }
            tracing::debug!(node = %self.to.node, %end, "a stream of reports ended");
            let step = match end {
                // A sidecar of before there were reports, or a rule.
                End::No(_) => timing.probe_backoff_max,
                _ => timing.probe / 5 * AGAIN.get(failed).or(AGAIN.last()).copied().unwrap_or(1),
            };
            failed += 1;
            if !matches!(end, End::No(_)) {
                self.directory.look_at(&self.to.node, Look::Failed);
            }
            sleep(step.mul_f64(0.9 + 0.2 * rand::random::<f64>())).await;
        }
    }

    /// What was said holds for a while, and what was said of others no longer.
    fn rest(&mut self) {
        self.node.set_live(false);
        self.node.hold(self.ask.timing.report_believed);
        self.claimed.clear();
    }

    /// Opens the stream and reads it to its end.
    async fn once(&mut self) -> End {
        let mut lines = match self.open().await {
            Ok(lines) => lines,
            Err(end) => return end,
        };
        self.every = self.ask.timing.report_idle;
        let mut seq = None;
        let mut pace = Pace::default();
        let mut quiet = Instant::now() + self.ask.timing.probe_limit * 2;
        loop {
            let look = self.look.unwrap_or(quiet).min(quiet);
            tokio::select! {
                line = lines.next() => {
                    let text = match line {
                        Ok(text) => text,
                        Err(end) => return end,
                    };
                    let line = match Line::read(&text) {
                        Ok(line) => line,
                        Err(error) => return error.into(),
                    };
                    match seq {
                        None if line.full => {}
                        Some(last) if line.seq == last + 1 => {}
                        last => return End::Gap(last.map_or(1, |last| last + 1)),
                    }
                    seq = Some(line.seq);
                    self.take(&line);
                    pace.line().await;
                    quiet = Instant::now() + self.every * 2;
                }
                changed = self.pictures.changed() => {
                    if changed.is_err() {
                        return End::Over;
                    }
                    self.place_pending();
                }
                () = sleep_until(look) => {
                    let now = Instant::now();
                    if self.look.is_some_and(|at| at <= now) {
                        self.look = None;
                        self.looked = Some(now);
                        self.directory.look_at(&self.to.node, Look::List);
                    }
                    if quiet <= now {
                        // The look that follows is the second sign.
                        if self.path.miss(self.ask.timing.probe_misses) {
                            self.directory.send(Event::Paths(self.to.node.clone()));
                        }
                        return End::Silent;
                    }
                }
            }
        }
    }

    /// On a connection of its own, which lives as long as the stream.
    async fn open(&mut self) -> Result<Lines, End> {
        let lease = self.ask.pool.fresh(&self.to.node, &self.to.dial).await?;
        let broke = |error: String| End::Broke(error);
        let request = request(&self.to, Method::GET, REPORTS, None, Bytes::new())
            .map_err(|error| broke(error.to_string()))?;
        let limit = self.ask.timing.probe_limit;
        let response = match timeout(limit, lease.send(request)).await {
            Ok(sent) => sent.map_err(|error| broke(error.to_string()))?,
            Err(_) => return Err(End::Silent),
        };
        let kind = response.headers().get(http::header::CONTENT_TYPE);
        let ours = kind.is_some_and(|kind| kind.as_bytes() == wire::CONTENT_TYPE.as_bytes());
        match response.status() {
            StatusCode::OK if ours => {
                Ok(Lines { body: response.into_body(), held: BytesMut::new() })
            }
            status => Err(End::No(status)),
        }
    }

    /// Takes one line in.
    fn take(&mut self, line: &Line<'_>) {
        let (now, timing) = (self.ask.clock.now(), &self.ask.timing);
        if line.next_ms > 0 {
            let least = timing.report_spacing * 2;
            self.every = Duration::from_millis(line.next_ms).max(least);
        }
        self.node.hear(now, timing.report_believed.max(self.every.mul_f64(1.5)));
        self.node.set_live(true);
        // A path that requests found dead is brought back by its probe.
        if self.path.is_alive() {
            self.path.ok(now, None);
        }
        if let Some(accepting) = line.accepting {
            self.node.accepts(accepting, &line.why);
        }
        self.node.waits(line.yours.clone().unwrap_or_default(), now);
        if !line.list.is_empty() && *line.list != *self.list {
            self.list = line.list.to_string();
            self.look_soon();
        }
        if line.full {
            self.held.drain().for_each(|(_, cell)| cell.report.forget());
            self.pending.clear();
        }
        let snapshot = self.directory.load();
        if let Some(bare) = &line.bare {
            self.claimed.replace(bare, &snapshot);
        }
        for row in &line.rows {
            self.row(row, &snapshot, now);
        }
    }

    /// Reads its list soon, and not more often than a peer is usually looked at.
    fn look_soon(&mut self) {
        let now = Instant::now();
        let next = self.looked.map_or(now, |last| (last + self.ask.timing.probe).max(now));
        self.look.get_or_insert(next);
    }

    fn row(&mut self, row: &Row, snapshot: &Snapshot, now: Moment) {
        let Ok(key) = ModelKey::parse(&row.name) else { return };
        let wait = Duration::from_millis(row.wait_ms);
        match snapshot.offer(&self.to.node, &row.engine, &key) {
            Some(offer) => {
                let listed = offer.weights.as_ref().map_or("", |digest| weights(&digest.0));
                if !row.weights.is_empty() && !listed.is_empty() && row.weights != listed {
                    // Something else has that name by now.
                    return self.look_soon();
                }
                if self.held.len() < MOST_ROWS {
                    self.held.insert((row.engine.clone(), key), Arc::clone(&offer.cell));
                }
                offer.hear(row, wait, now);
            }
            None if self.pending.len() < MOST_ROWS => {
                self.pending.retain(|p| p.name != row.name || p.engine != row.engine);
                self.pending.push(row.clone());
            }
            None => {}
        }
    }

    /// Another picture may list what rows have spoken of.
    fn place_pending(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let (snapshot, now) = (self.directory.load(), self.ask.clock.now());
        for row in std::mem::take(&mut self.pending) {
            self.row(&row, &snapshot, now);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.rest();
    }
}

/// The lines of a body.
struct Lines {
    body: PooledBody,
    held: BytesMut,
}

impl Lines {
    /// The next whole line. May be dropped while it waits.
    async fn next(&mut self) -> Result<Bytes, End> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.held) {
                let mut line = self.held.split_to(end + 1);
                line.truncate(end);
                return Ok(line.freeze());
            }
            if self.held.len() > MOST_LINE {
                return Err(LineError::Long.into());
            }
            match self.body.frame().await {
                None => return Err(End::Ended),
                Some(Err(error)) => return Err(End::Broke(error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.held.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

/// Reads no more lines in a second than a node can have to say.
#[derive(Default)]
struct Pace {
    since: Option<Instant>,
    lines: u32,
}

impl Pace {
    async fn line(&mut self) {
        let second = Duration::from_secs(1);
        let since = *self.since.get_or_insert_with(Instant::now);
        self.lines += 1;
        if since.elapsed() >= second {
            *self = Pace::default();
        } else if self.lines >= MOST_LINES {
            sleep_until(since + second).await;
            *self = Pace::default();
        }
    }
}

/// How long until a peer is looked at again that has just answered a look.
pub(super) fn pace(node: &NodeCell, is_whole: bool, timing: &Timing) -> Duration {
    if is_whole && node.is_live() { timing.probe_listed } else { timing.probe }
}
