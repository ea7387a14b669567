//! The ways to one peer, one after the other, and what an answer says of the way it came.
//!
//! In flows a node of the snapshot; out flow its paths in the order in which they are worth a
//! try: those that live, then those that stand by. All of them come before another node is
//! asked. What is learnt on the way goes into the path's cell, and the writer is told.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::response::Parts;
use tokio::time::timeout;

use crate::api::attempt::REFUSED;
use crate::directory::{Directory, Event, Look, Node, Path, PathCell};
use crate::net::Lease;
use crate::types::{Dial, Moment, NodeId, NodeKind, PathKind, Timing};

use super::Proxy;
use super::attempt::{Fail, Reason};

/// The ways to one node that are left.
#[derive(Debug)]
pub(crate) struct Ways<'a> {
    node: &'a Node,
    tried: Vec<&'a Arc<Path>>,
    /// The node itself said that it answers over the tailnet.
    called: bool,
    /// Where it said so has been let be tried a second time.
    again: bool,
}

impl<'a> Ways<'a> {
    pub(crate) fn of(node: &'a Node) -> Ways<'a> {
        Ways { node, tried: Vec::new(), called: false, again: false }
    }

    /// The best way that was not taken yet. A node without any that lives is tried on its
    /// first: somebody wanted it although it is thought dead.
    pub(crate) fn take(&mut self) -> Option<&'a Arc<Path>> {
        let next =
            self.left().or_else(|| self.node.paths.first().filter(|_| self.tried.is_empty()));
        self.tried.extend(next);
        next
    }

    /// Whether there is another way after those that were taken.
    pub(crate) fn more(&self) -> bool {
        self.left().is_some()
    }

    fn left(&self) -> Option<&'a Arc<Path>> {
        let new = |path: &&Arc<Path>| !self.tried.iter().any(|tried| Arc::ptr_eq(tried, path));
        let called = |path: &&Arc<Path>| self.called && path.kind == PathKind::Tailnet;
        self.node.tries().find(new).or_else(|| self.node.paths.iter().filter(called).find(new))
    }

    /// Takes in why a way did not do. True if the next one should be taken: the request can be
    /// sent again, and it was the way that failed, not the node.
    pub(crate) fn failed(&mut self, directory: &Directory, path: &Path, reason: Reason) -> bool {
        let node = &self.node.id;
        let died = !matches!(reason, Reason::UseTailnet | Reason::Policy);
        if died && self.called && !self.again && path.kind == PathKind::Tailnet {
            // The tunnel it called us to is dead by now. It knows that, too, before long: where
            // it sent us away (and only there does a way stand by) it is worth asking once more.
            self.again = true;
            self.tried.retain(|way| way.kind == PathKind::Tailnet);
        }
        match reason {
            Reason::Connect | Reason::Silent => directory.path_lost(node, &path.cell),
            Reason::SlowConnect => {}
            Reason::UseTailnet => {
                // The peer has just reached us there: what we think of that way is old.
                self.called = true;
                if path.cell.stand_by() {
                    directory.send(Event::Paths(node.clone()));
                }
                path.cell.because("it answers over the tailnet only");
            }
            Reason::Policy => {
                self.called = true;
                directory.path_lost(node, &path.cell);
                path.cell.because("it lets this node in over the tailnet only, if at all");
            }
            // The daemon or the link that carried it may be gone, and the node be well.
            Reason::Reset => directory.look_at(node, Look::Failed),
            _ => return false,
        }
        true
    }
}

/// What a sidecar's refusal says of the way a request came; `None` if it is about the request.
pub(crate) fn refusal(node: NodeKind, head: &Parts) -> Option<Reason> {
    if node != NodeKind::Rich {
        return None;
    }
    let word = head.headers.get(REFUSED).map(|word| word.as_bytes());
    match (head.status, word) {
        (StatusCode::MISDIRECTED_REQUEST, Some(b"use_tailnet")) => Some(Reason::UseTailnet),
        (StatusCode::FORBIDDEN, Some(b"policy" | b"not_pinned" | b"clock_back")) => {
            Some(Reason::Policy)
        }
        _ => None,
    }
}

/// The way over the tailnet to which a node called us, once there is one: after a start without
/// any tailnet none was ever known, and it takes a look at the node to find it.
pub(crate) async fn called(px: &Proxy, node: &Node) -> Option<Arc<Path>> {
    let mut changed = px.directory.changed();
    let known = || {
        let snapshot = px.directory.load();
        let node = snapshot.nodes.iter().find(|n| n.id == node.id)?;
        let way = |path: &&Arc<Path>| path.kind == PathKind::Tailnet && path.cell.is_alive();
        node.paths.iter().find(way).cloned()
    };
    let found = async {
        loop {
            px.directory.look_at(&node.id, Look::Failed);
            if let Some(path) = known() {
                return Some(path);
            }
            // A look that came too early is made again.
            let again = px.timing.tailnet_poll / 2;
            if let Ok(Err(_)) = timeout(again, changed.changed()).await {
                return None;
            }
        }
    };
    timeout(px.timing.connect_tailnet, found).await.ok().flatten()
}

/// How long a connect may take while something else is left to try: on a path that answered
/// lately it should be quick, and one that is thought dead gets no more. A node that has just been
/// `silent` on another way sleeps, most likely: its next way gets a third of that.
pub(crate) fn race(
    cell: &PathCell,
    timing: &Timing,
    silent: bool,
    now: Moment,
) -> Option<Duration> {
    let race = if silent { timing.connect_race / 3 } else { timing.connect_race };
    let lately = cell.ok_within(timing.recently, now);
    let quick = cell.rtt().map_or(race, |rtt| (rtt * 4).max(race));
    (lately || !cell.is_alive()).then_some(quick)
}

/// A connection, if there is one within `limit`.
pub(crate) async fn connect(
    px: &Proxy,
    node: &NodeId,
    dial: &Dial,
    limit: Option<Duration>,
) -> Result<Lease, Fail> {
    let acquire = px.pool.acquire(node, dial);
    let made = match limit {
        None => acquire.await,
        Some(limit) => match timeout(limit, acquire).await {
            Ok(made) => made,
            Err(_) => return Err(Fail::new(Reason::SlowConnect, "connecting takes long")),
        },
    };
    made.map_err(|error| Fail::new(Reason::Connect, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::testing::{dial, id, lan, who};
    use crate::directory::{DirectoryConfig, Settings};
    use crate::telemetry::Clock;

    fn node(dials: &[Dial]) -> Node {
        let path = |dial: &Dial| {
            let (kind, dial) = (dial.kind(), dial.clone());
            Arc::new(Path { kind, dial, prefix: "".into(), cell: Arc::new(PathCell::default()) })
        };
        Node {
            mine: true,
            id: id("gpu"),
            name: who("gpu").name,
            kind: NodeKind::Rich,
            principal: None,
            version: None,
            why: None,
            cell: Arc::default(),
            paths: dials.iter().map(path).collect(),
            endpoints: Vec::new(),
        }
    }

    fn directory(clock: Clock) -> Arc<Directory> {
        let config = DirectoryConfig {
            settings: Settings::default(),
            this: who("laptop"),
            state: None,
            save: Duration::from_secs(60),
        };
        Directory::start(config, clock)
    }

    #[tokio::test]
    async fn a_node_that_calls_us_to_the_tailnet_is_tried_there_although_it_seemed_dead() {
        let clock = Clock::start();
        let directory = directory(clock);
        let node = node(&[dial(2), lan(7), lan(8)]);
        node.paths[1].cell.ok(clock.now(), None);
        for (reason, next) in [
            (Reason::Connect, None),
            (Reason::UseTailnet, Some(0)),
            (Reason::Policy, Some(0)),
            (Reason::Busy, None),
        ] {
            node.paths[1].cell.ok(clock.now(), None);
            let mut ways = Ways::of(&node);
            let first = ways.take().unwrap();
            assert!(Arc::ptr_eq(first, &node.paths[1]) && !ways.more());
            let again = ways.failed(&directory, first, reason);
            assert_eq!(again, reason != Reason::Busy);
            assert_eq!(ways.more(), next.is_some(), "{reason:?}");
            let same = |path: Option<&Arc<Path>>| path.map(Arc::as_ptr);
            assert_eq!(same(ways.take()), same(next.map(|n: usize| &node.paths[n])), "{reason:?}");
        }
    }

    #[tokio::test]
    async fn a_node_that_calls_us_to_a_dead_tunnel_is_asked_once_more_where_it_said_so() {
        let clock = Clock::start();
        let directory = directory(clock);
        let node = node(&[dial(2), lan(7)]);
        for (no, want) in [
            (Reason::UseTailnet, &[lan(7), dial(2), lan(7)][..]),
            // What policy forbids is not asked for again.
            (Reason::Policy, &[lan(7), dial(2)]),
        ] {
            node.paths[1].cell.ok(clock.now(), None);
            let mut ways = Ways::of(&node);
            let mut taken = Vec::new();
            while let Some(path) = ways.take() {
                taken.push(path.dial.clone());
                let tunnel = path.kind == PathKind::Tailnet;
                ways.failed(&directory, path, if tunnel { Reason::Silent } else { no });
            }
            assert_eq!(taken, want, "{no:?}");
        }
    }

    #[tokio::test]
    async fn living_ways_come_first_then_those_that_stand_by_and_a_dead_node_gets_one_try() {
        let now = Clock::start().now();
        let node = node(&[dial(2), lan(7), lan(8)]);
        let order = |node: &Node| {
            let mut ways = Ways::of(node);
            let mut taken = Vec::new();
            while let Some(path) = ways.take() {
                taken.push(path.dial.clone());
            }
            taken
        };
        assert_eq!(order(&node), [dial(2)]);
        assert!(!node.may_answer());
        node.paths[1].cell.stand_by();
        assert!(node.may_answer(), "it may be asked by a way that stands by");
        assert_eq!(order(&node), [lan(7)]);
        node.paths[2].cell.ok(now, None);
        assert_eq!(order(&node), [lan(8), lan(7)]);
        node.paths[0].cell.ok(now, None);
        assert_eq!(order(&node), [dial(2), lan(8), lan(7)]);
    }

    #[test]
    fn a_way_that_should_be_quick_gets_little_time_and_one_of_a_silent_node_a_third_of_it() {
        let ms = Duration::from_millis;
        let timing = Timing { connect_race: ms(300), recently: ms(5000), ..Timing::shrunk() };
        let race = |cell: &PathCell, silent, now| {
            race(cell, &timing, silent, Moment::from_millis(now)).map(|limit| limit.as_millis())
        };
        let cell = PathCell::default();
        assert_eq!((race(&cell, false, 9), race(&cell, true, 9)), (Some(300), Some(100)), "dead");
        cell.ok(Moment::from_millis(9), Some(ms(2)));
        assert_eq!((race(&cell, false, 99), race(&cell, true, 99)), (Some(300), Some(100)));
        assert_eq!(race(&cell, true, 60_000), None, "nobody knows how quick it is now");
        let long = PathCell::default();
        long.ok(Moment::from_millis(9), Some(ms(90)));
        assert_eq!((race(&long, false, 99), race(&long, true, 99)), (Some(360), Some(360)));
    }

    #[test]
    fn only_a_sidecars_refusal_says_something_of_the_way() {
        #[track_caller]
        fn check(node: NodeKind, status: u16, word: Option<&str>, want: Option<Reason>) {
            let mut answer = http::Response::builder().status(status);
            if let Some(word) = word {
                answer = answer.header("x-tailherd-refused", word);
            }
            assert_eq!(refusal(node, &answer.body(()).unwrap().into_parts().0), want);
        }
        use NodeKind::{Bare, Rich};
        check(Rich, 421, Some("use_tailnet"), Some(Reason::UseTailnet));
        check(Rich, 421, None, None);
        check(Rich, 403, Some("policy"), Some(Reason::Policy));
        check(Rich, 403, Some("access"), None);
        check(Rich, 403, None, None);
        check(Rich, 503, Some("policy"), None);
        check(Bare, 421, Some("use_tailnet"), None);
        check(Bare, 403, Some("policy"), None);
    }
}
