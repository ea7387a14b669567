//! Where this node stands on the ladder, read off LocalAPI and the cells of the directory.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use crate::directory::Snapshot;
use crate::ladder::{self, Alive, Backend, Daemon, Ladder, Signals};
use crate::net::TailnetView;
use crate::telemetry::events::Events;
use crate::telemetry::metrics::Metrics;
use crate::types::{Moment, NodeId, PathKind, Rung, RungState, Timing};

/// Why a tailnet that the configuration switches off is not there.
pub(super) const SWITCHED_OFF: &str = "switched_off";

/// A wall clock that went further than ours by this much means that this machine slept.
const JUMP: Duration = Duration::from_secs(5);

/// The ladder and what it has to remember between two looks.
#[derive(Debug)]
pub(super) struct Rungs {
    ladder: Ladder,
    ever_found: bool,
    offline_polls: u32,
    backend: (String, Moment),
    woke: Option<Moment>,
    last: Option<(SystemTime, Moment)>,
}

impl Rungs {
    pub(super) fn new() -> Rungs {
        Rungs {
            ladder: Ladder::default(),
            ever_found: false,
            offline_polls: 0,
            backend: (String::new(), Moment::ZERO),
            woke: None,
            last: None,
        }
    }

    /// Takes in one answer (or silence) of LocalAPI. Only a regular poll counts towards a lost
    /// coordinator: bells come in bursts.
    pub(super) fn heard(&mut self, view: &TailnetView, found: bool, poll: bool, now: Moment) {
        self.ever_found |= found;
        if view.state != self.backend.0 {
            self.backend = (view.state.clone(), now);
        }
        match view.online {
            Some(false) if poll => self.offline_polls = self.offline_polls.saturating_add(1),
            Some(false) => self.offline_polls = self.offline_polls.max(1),
            _ => self.offline_polls = 0,
        }
    }

    /// Whether a LocalAPI was ever found.
    pub(super) fn found(&self) -> bool {
        self.ever_found
    }

    /// Whether the wall clock jumped since the last call: this machine slept.
    pub(super) fn slept(&mut self, wall: SystemTime, now: Moment) -> bool {
        let jumped = self.last.is_some_and(|(wall_then, then)| {
            let outside = wall.duration_since(wall_then).unwrap_or_default();
            outside > now.since(then) + JUMP
        });
        self.last = Some((wall, now));
        if jumped {
            self.woke = Some(now);
        }
        jumped
    }

    /// Says that a tailnet was used here before this program was started: that no LocalAPI is
    /// found is a loss then.
    pub(super) fn remembers(&mut self) {
        self.ever_found = true;
    }

    /// Whether the coordinator answers; `None` without a tailnet.
    pub(super) fn coordinator(&self, view: &TailnetView) -> Option<bool> {
        self.ever_found.then(|| view.online == Some(true) || self.hopes(view))
    }

    fn hopes(&self, view: &TailnetView) -> bool {
        view.running && self.offline_polls < 2
    }

    /// The next state of the ladder; `Some` if it is another one than before.
    pub(super) fn next(
        &mut self,
        view: &TailnetView,
        snapshot: &Snapshot,
        now: Moment,
        timing: &Timing,
    ) -> Option<RungState> {
        let daemon = match (self.ever_found, view.state.as_str()) {
            (false, _) => Daemon::Never,
            _ if view.why == SWITCHED_OFF => Daemon::Never,
            (true, "") => Daemon::Down,
            (true, state) => Daemon::Up {
                backend: Backend::read(state, self.backend.1),
                offline_polls: self.offline_polls,
            },
        };
        let (alive, tailnet_heard) = alive(snapshot);
        let signals = Signals { daemon, alive, tailnet_heard, woke: self.woke };
        let next = self.ladder.next(&signals, now, timing);
        let changed = next.state() != self.ladder.state();
        self.ladder = next;
        changed.then(|| self.ladder.state().clone())
    }

    /// The state now.
    pub(super) fn state(&self) -> &RungState {
        self.ladder.state()
    }
}

/// Says a step aloud: one log line, one event, the metric. `pinned` peers may be met on the
/// local network.
pub(super) fn tell(state: &RungState, pinned: usize, metrics: &Metrics, events: &Arc<Events>) {
    let meaning = ladder::meaning(state);
    let next = ladder::next(state.rung, pinned);
    let (rung, why) = (state.rung.label(), &*state.why);
    metrics.rung(state.rung);
    if state.rung == Rung::Full {
        tracing::info!(rung, why, next, "the mesh works: {}", meaning.works);
    } else {
        let (works, lost) = (meaning.works, meaning.lost);
        tracing::warn!(rung, why, works, lost, next, "a rung of the mesh");
    }
    let because = if why.is_empty() { String::new() } else { format!(" ({why})") };
    let text =
        format!("{rung}{because}: works: {}; lost: {}; next: {next}", meaning.works, meaning.lost);
    events.note("rung", text);
}

/// Which peers answer by which path, and when one was last heard over the tailnet.
fn alive(snapshot: &Snapshot) -> (Alive, Option<Moment>) {
    let mut alive = Alive::default();
    let mut heard: Option<Moment> = None;
    for node in snapshot.nodes.iter().filter(|n| !n.is_this()) {
        let lives = |kind| node.paths.iter().any(|p| p.kind == kind && p.cell.is_alive());
        // A key added by hand is a place a person named: that it answers on the local network
        // says nothing of the tailnet, which it was never in.
        if matches!(node.id, NodeId::Configured(_) | NodeId::Pin(_)) {
            alive.configured += usize::from(node.paths.iter().any(|p| p.cell.is_alive()));
        } else if lives(PathKind::Tailnet) {
            alive.tailnet += 1;
        } else if lives(PathKind::Lan) {
            alive.lan += 1;
        }
        for path in node.paths.iter().filter(|p| p.kind == PathKind::Tailnet) {
            let last = path.cell.last_ok.load(Relaxed);
            if last > 0 {
                heard = heard.max(Some(Moment::from_millis(last)));
            }
        }
    }
    (alive, heard)
}
