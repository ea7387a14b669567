//! When whom: one schedule for each peer and configured server, at most eight looks at once.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use super::peers::{self, Memory, Outcome, Tools, Whom};
use super::reports;
use crate::directory::{Event, Look, Peer, Server, Snapshot};
use crate::types::{Moment, NodeId, Rung, Timing};

/// Most looks at once.
const AT_ONCE: usize = 8;

/// How long a path that just died is left alone, look by look, as parts of a fifth of the
/// usual interval: 1, 2, 5, 10, 30 s.
const AFTER_DEATH: [u32; 5] = [1, 2, 5, 10, 30];

/// Runs the schedules.
pub(super) struct Schedule {
    tools: Arc<Tools>,
    /// All configured servers, wherever they belong.
    servers: Vec<Server>,
    /// Those that belong to this network, as last told.
    here: Option<Vec<Server>>,
    peers: watch::Receiver<Arc<Vec<Peer>>>,
    looks: mpsc::Receiver<(NodeId, Look)>,
    /// Told when the look that is asked for is one at this node's own engines.
    own: Arc<Notify>,
    turns: BTreeMap<NodeId, Turn>,
    /// Nodes that can be asked by the local network alone, as last seen.
    by_lan: HashSet<NodeId>,
    running: JoinSet<(NodeId, Memory, Outcome)>,
}

/// Whose turn it is, and when.
#[derive(Debug)]
struct Turn {
    whom: Whom,
    next: Moment,
    waits: Waits,
    memory: Memory,
    running: bool,
    /// Somebody asked for a look while one was running.
    again: bool,
}

/// How long the next wait is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Waits {
    nothing: u32,
    dead: usize,
}

impl Waits {
    /// The wait after a look that ended so.
    fn after(&mut self, outcome: Outcome, timing: &Timing) -> Duration {
        let step = timing.probe / 5;
        if outcome != Outcome::Nothing {
            self.nothing = 0;
        }
        if outcome != Outcome::Dead {
            self.dead = 0;
        }
        match outcome {
            Outcome::Alive => timing.probe,
            Outcome::Missed => step,
            Outcome::Dead => {
                let parts = AFTER_DEATH[self.dead.min(AFTER_DEATH.len() - 1)];
                self.dead += 1;
                step * parts
            }
            Outcome::Nothing => {
                let doubled = timing.probe_backoff * 2u32.saturating_pow(self.nothing.min(16));
                self.nothing += 1;
                doubled.min(timing.probe_backoff_max)
            }
        }
    }
}

impl Schedule {
    pub(super) fn new(tools: Arc<Tools>, servers: Vec<Server>, own: Arc<Notify>) -> Schedule {
        let (peers, looks) = (tools.directory.peers(), tools.directory.looks());
        let (turns, by_lan, running) = (BTreeMap::new(), HashSet::new(), JoinSet::new());
        Schedule { tools, servers, here: None, peers, looks, own, turns, by_lan, running }
    }

    /// Runs until the directory is gone.
    pub(super) async fn run(mut self) {
        let mut pictures = self.tools.directory.changed();
        self.update();
        loop {
            self.start_due();
            let wait = self.wait();
            tokio::select! {
                changed = self.peers.changed() => match changed {
                    Ok(()) => self.update(),
                    Err(_) => return,
                },
                changed = pictures.changed() => match changed {
                    Ok(()) => self.notice_ways(),
                    Err(_) => return,
                },
                Some((node, why)) = self.looks.recv() => self.asked(&node, why),
                Some(done) = self.running.join_next() => {
                    if let Ok((node, memory, outcome)) = done {
                        self.done(&node, memory, outcome);
                    }
                }
                () = tokio::time::sleep(wait) => self.update_servers(),
            }
        }
    }

    /// Takes in who may be looked at.
    fn update(&mut self) {
        self.update_servers();
        let peers = self.peers.borrow_and_update().clone();
        let here = self.here.iter().flatten().cloned().map(Whom::Server);
        let wanted: Vec<Whom> = peers.iter().cloned().map(Whom::Peer).chain(here).collect();
        self.keep(wanted);
    }

    /// Servers come and go with the network this machine is on.
    fn update_servers(&mut self) {
        let is_here = |server: &&Server| peers::is_here(&self.tools, server);
        let here: Vec<Server> = self.servers.iter().filter(is_here).cloned().collect();
        if self.here.as_ref() == Some(&here) {
            return;
        }
        self.tools.directory.send(Event::Servers(here.clone()));
        let known = self.turns.values().map(|t| t.whom.clone());
        let peers = known.filter(|whom| matches!(whom, Whom::Peer(_)));
        let wanted = peers.chain(here.iter().cloned().map(Whom::Server)).collect();
        self.here = Some(here);
        self.keep(wanted);
    }

    fn keep(&mut self, wanted: Vec<Whom>) {
        let now = self.tools.ask.clock.now();
        let ids: HashSet<NodeId> = wanted.iter().map(Whom::id).collect();
        self.turns.retain(|id, _| ids.contains(id));
        for whom in wanted {
            let turn = self.turns.entry(whom.id()).or_insert_with(|| Turn {
                whom: whom.clone(),
                next: now,
                waits: Waits::default(),
                memory: Memory::default(),
                running: false,
                again: false,
            });
            if turn.whom != whom {
                (turn.whom, turn.next, turn.waits) = (whom, now, Waits::default());
                turn.again = turn.running;
            }
        }
    }

    /// A node that was given up can be asked again once a way of the local network to it lives.
    fn notice_ways(&mut self) {
        let snapshot = self.tools.directory.load();
        let ids = snapshot.ways.keys();
        let now: HashSet<NodeId> =
            ids.filter(|id| snapshot.lan_only(id).is_some()).cloned().collect();
        for node in now.difference(&self.by_lan).cloned().collect::<Vec<_>>() {
            self.hurry(&node);
        }
        self.by_lan = now;
        self.hurry_all_unless_whole(&snapshot);
    }

    /// While something of the mesh is lost, it counts what lives and what does not: then every
    /// peer has its turn soon.
    fn hurry_all_unless_whole(&mut self, snapshot: &Snapshot) {
        if is_whole(snapshot) {
            return;
        }
        let timing = &self.tools.ask.timing;
        let soon = self.tools.ask.clock.now() + timing.probe;
        for turn in self.turns.values_mut().filter(|t| t.waits == Waits::default()) {
            turn.next = turn.next.min(soon);
        }
    }

    /// Somebody wants a node to be looked at. What was learned of it while there was no way to
    /// it says nothing about how soon it will answer.
    fn asked(&mut self, node: &NodeId, why: Look) {
        if why == Look::Back
            && let Some(turn) = self.turns.get_mut(node)
        {
            turn.waits = Waits::default();
        }
        self.hurry(node);
    }

    /// Looks at a node now, or as soon as the running look ends.
    fn hurry(&mut self, node: &NodeId) {
        let now = self.tools.ask.clock.now();
        if let Some(turn) = self.turns.get_mut(node) {
            turn.next = now;
            turn.again = turn.running;
        } else if self.tools.directory.load().this().is_some_and(|this| this.id == *node) {
            self.own.notify_one();
        }
    }

    fn start_due(&mut self) {
        let now = self.tools.ask.clock.now();
        let mut due: Vec<&mut Turn> =
            self.turns.values_mut().filter(|t| !t.running && t.next <= now).collect();
        // Who waits longest comes first.
        due.sort_by_key(|turn| turn.next);
        for turn in due.into_iter().take(AT_ONCE.saturating_sub(self.running.len())) {
            turn.running = true;
            let (tools, whom) = (self.tools.clone(), turn.whom.clone());
            let mut memory = turn.memory.clone();
            self.running.spawn(async move {
                let outcome = peers::look(&tools, &whom, &mut memory).await;
                (whom.id(), memory, outcome)
            });
        }
    }

    fn done(&mut self, node: &NodeId, memory: Memory, outcome: Outcome) {
        let now = self.tools.ask.clock.now();
        let Some(turn) = self.turns.get_mut(node) else { return };
        turn.running = false;
        turn.memory = memory;
        let timing = &self.tools.ask.timing;
        let wait = match turn.waits.after(outcome, timing) {
            // What has changed at a peer whose reports come in is known without a look.
            _ if outcome == Outcome::Alive => {
                let cell = self.tools.directory.cells().node(node);
                reports::pace(&cell, is_whole(&self.tools.directory.load()), timing)
            }
            wait => wait,
        };
        // Nodes that started together need not go on together.
        let jitter = rand::rng().random_range(0.9..1.1);
        turn.next = match std::mem::take(&mut turn.again) {
            true => now,
            false => now + wait.mul_f64(jitter),
        };
    }

    /// Until the next turn, and not longer than a probe's interval: the network may change.
    fn wait(&self) -> Duration {
        let now = self.tools.ask.clock.now();
        let most = self.tools.ask.timing.probe;
        if self.running.len() >= AT_ONCE {
            return most;
        }
        let idle = self.turns.values().filter(|t| !t.running);
        idle.map(|t| t.next.since(now)).min().map_or(most, |wait| wait.min(most))
    }
}

/// Whether nothing of the mesh is lost, as far as is known.
fn is_whole(snapshot: &Snapshot) -> bool {
    snapshot.rung.rung == Rung::Full && snapshot.coordinator_up == Some(true)
}

#[cfg(test)]
mod tests {
    use super::super::tests::tools;
    use super::*;
    use crate::directory::testing::peer;

    #[tokio::test]
    async fn a_node_that_is_back_is_looked_at_as_if_it_were_new() {
        let mut schedule = Schedule::new(Arc::new(tools()), Vec::new(), Arc::default());
        let gpu = peer("gpu", 2);
        let id = gpu.who.id.clone();
        schedule.keep(vec![Whom::Peer(gpu)]);
        let mut next = |why: Option<Look>| {
            let now = schedule.tools.ask.clock.now();
            if let Some(why) = why {
                schedule.asked(&id, why);
                assert!(schedule.turns[&id].next.since(now) < Duration::from_millis(50), "{why:?}");
            }
            schedule.done(&id, Memory::default(), Outcome::Nothing);
            schedule.turns[&id].next.since(now)
        };
        let first = Timing::shrunk().probe_backoff.mul_f64(1.2);
        assert!(next(None) < first);
        for _ in 0..3 {
            next(None);
        }
        assert!(next(Some(Look::Failed)) > 4 * first, "who is silent stays silent");
        assert!(next(Some(Look::Back)) < first);
    }

    #[test]
    fn waits_follow_what_was_found() {
        let timing = Timing::default();
        let mut waits = Waits::default();
        let mut check = |outcome, want: &[u64]| {
            for want in want {
                assert_eq!(
                    waits.after(outcome, &timing),
                    Duration::from_secs(*want),
                    "{outcome:?}"
                );
            }
        };
        check(Outcome::Nothing, &[10, 20, 40, 80, 160, 300, 300, 300]);
        check(Outcome::Alive, &[5, 5]);
        check(Outcome::Missed, &[1, 1]);
        check(Outcome::Dead, &[1, 2, 5, 10, 30, 30]);
        check(Outcome::Alive, &[5]);
        check(Outcome::Dead, &[1]);
        check(Outcome::Nothing, &[10]);
    }
}
