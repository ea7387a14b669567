//! Meetings: whether pinned peers can be reached on the local network, and would answer there.
//!
//! In: the peers prompts may go to, their pins and addresses, the links that may be used. Out:
//! for each address a living, standing-by or dead path in the directory. One task per address
//! keeps one connection of its own; a meeting is rare while the tailnet carries the peer, and
//! frequent once it does not. No prompt and no model's name is ever in a meeting.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::call::{CallError, Line};
use super::pace::{Pace, Went};
use super::{Parts, say};
use crate::api::hello::{Admit, MEET, MeetAnswer, MeetSay};
use crate::directory::{Event, PathCell, Peer};
use crate::net::{ConnectError, LanLink, LanView, Task};
use crate::telemetry::wall;
use crate::trust::{View, tell};
use crate::types::{Dial, NodeId, PathKind, PublicKey, Wall};

/// The task that meets peers, for as long as this value lives.
#[derive(Debug)]
pub struct Meets {
    _task: Task,
}

impl Meets {
    /// Starts it.
    pub fn start(parts: Parts) -> Meets {
        Meets { _task: Task::spawn(run(parts)) }
    }
}

/// A way to a peer: who, and where it holds which key.
type Way = (NodeId, SocketAddr, PublicKey);

async fn run(parts: Parts) {
    let mut running = Running { parts: parts.clone(), ways: HashMap::new() };
    let mut peers = parts.directory.peers();
    let mut lan = parts.lan.clone();
    let mut trust = parts.trust.changed();
    loop {
        trust.borrow_and_update();
        let wanted = {
            let (peers, lan) = (peers.borrow_and_update().clone(), lan.borrow_and_update().clone());
            ways(&peers, &parts.trust.view(), &lan, wall())
        };
        running.change_to(&wanted);
        tokio::select! {
            changed = peers.changed() => if changed.is_err() { return },
            changed = lan.changed() => if changed.is_err() { return },
            changed = trust.changed() => if changed.is_err() { return },
            // A pin may end without a word.
            () = tokio::time::sleep(parts.timing.meet) => {}
        }
    }
}

/// The ways to try: to each peer whose pin lives, at each of its addresses that is on a link
/// which may be used. Every word about an address came from elsewhere, so each is held
/// against the links, here and again when it is dialled.
fn ways(peers: &[Peer], known: &View, lan: &LanView, now: Wall) -> BTreeSet<Way> {
    let mut ways = BTreeSet::new();
    for peer in peers {
        let Some(pin) = known.live(&peer.who.id, now) else { continue };
        let port = known.port(pin);
        for address in pin.addresses(|address| lan.allows(address).is_ok()) {
            ways.insert((pin.node.clone(), SocketAddr::new(address, port), pin.key));
        }
    }
    ways
}

struct Running {
    parts: Parts,
    ways: HashMap<Way, Kept>,
}

/// A way that is kept.
struct Kept {
    /// Whether the directory was seen to have it.
    shown: bool,
    _task: Task,
}

impl Running {
    fn change_to(&mut self, wanted: &BTreeSet<Way>) {
        let gone: Vec<Way> = self.ways.keys().filter(|w| !wanted.contains(w)).cloned().collect();
        for way in gone {
            self.ways.remove(&way);
            let (node, addr, key) = way;
            let dial = Dial::Lan { addr, key };
            // (Its task is ended, so nobody touches the cell any more.)
            self.parts.directory.send(Event::NoWay { node, dial });
        }
        let snapshot = self.parts.directory.load();
        for way in wanted {
            let (node, addr, key) = way.clone();
            let dial = Dial::Lan { addr, key };
            let shown =
                snapshot.ways.get(&node).is_some_and(|ways| ways.iter().any(|w| w.dial == dial));
            // A node that went and came again has lost its ways, and what they were measured by.
            if !shown {
                let (node, dial) = (node.clone(), dial.clone());
                self.parts.directory.send(Event::Way { node, dial, prefix: "".into() });
            }
            match self.ways.get_mut(way) {
                Some(kept) if shown || !kept.shown => kept.shown = shown,
                _ => {
                    let meeting = Meeting::new(self.parts.clone(), node, dial);
                    let kept = Kept { shown, _task: Task::spawn(meeting.run()) };
                    self.ways.insert(way.clone(), kept);
                }
            }
        }
    }
}

impl Drop for Running {
    /// Whoever looks at the directory afterwards must not find ways that nobody keeps.
    fn drop(&mut self) {
        self.change_to(&BTreeSet::new());
    }
}

/// Why a meeting came to nothing.
#[derive(Debug, thiserror::Error)]
enum Missed {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Call(#[from] CallError),
}

/// One way to one peer.
struct Meeting {
    parts: Parts,
    node: NodeId,
    dial: Dial,
    cell: Arc<PathCell>,
    line: Option<Line>,
    pace: Pace,
}

impl Meeting {
    fn new(parts: Parts, node: NodeId, dial: Dial) -> Meeting {
        let cell = parts.directory.path(&node, &dial);
        Meeting { parts, node, dial, cell, line: None, pace: Pace::default() }
    }

    async fn run(mut self) {
        let mut directory = self.parts.directory.changed();
        let mut tailnet = self.parts.tailnet.clone();
        let mut lan = self.parts.lan.clone();
        loop {
            let mut announced = self.parts.trust.announcements();
            let (link, met) = (self.link(), self.once().await);
            let went = match &met {
                Ok(_) => Went::Met,
                Err(Missed::Connect(error)) if error.is_other_key() => Went::OtherKey,
                Err(_) => Went::Missed,
            };
            self.take_in(met);
            let end = Instant::now();
            let carried = self.carried();
            let (clock, timing) = (self.parts.clock, Arc::clone(&self.parts.timing));
            let mut due = end + self.pace.after(went, carried, clock.now(), &timing);
            loop {
                // The tailnet's way dying is the moment in which this one is needed. (Who
                // answered for the peer does so then as well.)
                let needed = went != Went::OtherKey && self.carried() != carried;
                if needed || self.link() != link {
                    self.pace.anew();
                    break;
                }
                tokio::select! {
                    changed = directory.changed() => if changed.is_err() { return },
                    changed = tailnet.changed() => if changed.is_err() { return },
                    changed = lan.changed() => if changed.is_err() { return },
                    heard = announced.recv(), if went != Went::Met => if self.is_said(heard) {
                        self.pace.anew();
                        // Not at each word: anybody can repeat it.
                        due = due.min(end + timing.meet_dead);
                    },
                    () = tokio::time::sleep_until(due) => break,
                }
            }
        }
    }

    /// The link that leads there now. Another one is another network, perhaps.
    fn link(&self) -> Option<LanLink> {
        let Dial::Lan { addr, .. } = self.dial else { return None };
        self.parts.lan.borrow().allows(addr.ip()).ok().cloned()
    }

    /// Whether what was heard speaks for this address. Words that were missed may have.
    fn is_said(&self, heard: Result<(NodeId, IpAddr), RecvError>) -> bool {
        match (heard, &self.dial) {
            (Ok((node, at)), Dial::Lan { addr, .. }) => node == self.node && at == addr.ip(),
            (heard, _) => heard.is_err(),
        }
    }

    /// Whether the tailnet carries this peer, as far as probes can tell.
    fn carried(&self) -> bool {
        let snapshot = self.parts.directory.load();
        let ways = snapshot.ways.get(&self.node);
        self.parts.tailnet.borrow().running
            && ways.into_iter().flatten().any(|p| p.kind == PathKind::Tailnet && p.cell.is_alive())
    }

    async fn once(&mut self) -> Result<(MeetAnswer, Duration), Missed> {
        let say = MeetSay {
            departed: self.parts.trust.suspensions_for(&self.node),
            lan: say::addresses(&self.parts.lan.borrow()),
        };
        // It may have to ping us before it answers, and not longer.
        let limit = self.parts.timing.lan_ping + self.parts.timing.connect_lan;
        // A kept connection may have been closed by the other side meanwhile.
        if let Some(line) = &mut self.line
            && line.is_open()
        {
            let began = Instant::now();
            match line.ask(MEET, &say, limit).await {
                Ok(answer) => return Ok((answer, began.elapsed())),
                Err(CallError::Broke(_)) => {}
                Err(error) => {
                    self.line = None;
                    return Err(error.into());
                }
            }
        }
        self.line = None;
        let io = self.parts.connector.connect(&self.node, &self.dial).await?;
        let mut line = Line::open(io).await?;
        let began = Instant::now();
        let answer = line.ask(MEET, &say, limit).await?;
        self.line = Some(line);
        Ok((answer, began.elapsed()))
    }

    fn take_in(&mut self, met: Result<(MeetAnswer, Duration), Missed>) {
        let parts = &self.parts;
        // (It is another one after the node has gone and come again.)
        self.cell = parts.directory.path(&self.node, &self.dial);
        let changed = match met {
            Ok((answer, rtt)) => {
                let changed = match answer.admit {
                    Admit::Yes => self.cell.ok(parts.clock.now(), Some(rtt)),
                    Admit::Tailnet => {
                        let changed = self.cell.stand_by();
                        self.cell.because("it answers over the tailnet");
                        changed
                    }
                    Admit::Policy => {
                        let changed = self.cell.lost();
                        self.cell.because("policy: it does not let this node in");
                        changed
                    }
                };
                self.learn(&answer);
                changed
            }
            Err(missed) => {
                let changed = self.cell.lost();
                self.cell.because(&missed.to_string());
                changed
            }
        };
        if changed {
            parts.directory.send(Event::Paths(self.node.clone()));
        }
    }

    /// What an answer says beside whether it lets us in.
    fn learn(&self, answer: &MeetAnswer) {
        let parts = &self.parts;
        let known = parts.trust.view();
        let Some(pin) = known.live(&self.node, wall()) else { return };
        // Where it answered comes first, unless it still has the one that does.
        if let Dial::Lan { addr, .. } = self.dial
            && pin.lan.first() != Some(&addr.ip())
            && (!pin.lan.contains(&addr.ip())
                || !pin.lan.first().is_some_and(|first| answer.lan.contains(first)))
        {
            parts.trust.address(&self.node, addr.ip());
        }
        parts.trust.told_addresses(&self.node, &answer.lan, wall());
        if !answer.departed.is_empty() {
            let steps = parts.trust.told_suspended(&self.node, &answer.departed, wall());
            tell(&parts.events, steps);
        }
    }
}
