//! Hellos that this node dials: how it learns and keeps the keys of its peers.
//!
//! In: the tailnet's list of nodes, the peers with a sidecar, and who asked to be called back.
//! Out: what each answered, for `trust` to make or renew a pin of. Only while the tailnet runs
//! and its coordinator is there, so that every hello is vouched for: both ends' places in the
//! tailnet are what the coordinator says now. Nothing is ever dialled here over another path.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Parts;
use super::call::{CallError, Line};
use super::say;
use super::turns::Turns;
use crate::api::hello::{HELLO, HelloSay};
use crate::directory::Snapshot;
use crate::net::{self, ConnectError, TailnetNode, TailnetView};
use crate::telemetry::wall;
use crate::trust::{Hello, HelloRefused, PinState, Trust, View, tell};
use crate::types::{Dial, Moment, NodeId, NodeKind, PublicKey};

/// Most hellos under way at once.
const AT_ONCE: usize = 8;

/// The task that says hello, for as long as this value lives.
#[derive(Debug)]
pub struct Hellos {
    _task: net::Task,
}

impl Hellos {
    /// Starts it. `ports` are the mesh ports to try; `callbacks` are nodes that said hello to
    /// us and whose key only our own dial can confirm.
    pub fn start(parts: Parts, ports: Vec<u16>, callbacks: mpsc::Receiver<NodeId>) -> Hellos {
        let task = Task {
            parts,
            ports,
            turns: Turns::default(),
            running: JoinSet::new(),
            back: BTreeSet::new(),
        };
        Hellos { _task: net::Task::spawn(task.run(callbacks)) }
    }
}

/// Why a hello came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Call(#[from] CallError),
    #[error("{0}")]
    Refused(#[from] HelloRefused),
    #[error("the tailnet does not name both of us")]
    Nobody,
}

struct Task {
    parts: Parts,
    ports: Vec<u16>,
    turns: Turns,
    running: JoinSet<(NodeId, Result<(), Failed>)>,
    /// Nodes to call back although they may be none of the peers prompts go to.
    back: BTreeSet<NodeId>,
}

impl Task {
    async fn run(mut self, mut callbacks: mpsc::Receiver<NodeId>) {
        let mut tailnet = self.parts.tailnet.clone();
        let mut lan = self.parts.lan.clone();
        let mut directory = self.parts.directory.changed();
        let mut trust = self.parts.trust.changed();
        loop {
            let view = tailnet.borrow_and_update().clone();
            lan.borrow_and_update();
            trust.borrow_and_update();
            let next = if view.running && view.online == Some(true) {
                rotate(&self.parts.trust).await;
                self.step(&view)
            } else {
                // Once it is back, everybody is asked at once.
                self.turns.all();
                None
            };
            let now = self.parts.clock.now();
            let due = next.map(|at| at.since(now));
            tokio::select! {
                Some(done) = self.running.join_next() => {
                    if let Ok((node, ended)) = done {
                        self.ended(&node, ended);
                    }
                }
                called = callbacks.recv() => match called {
                    Some(node) => {
                        self.turns.now(&node);
                        self.back.insert(node);
                    }
                    None => return,
                },
                changed = tailnet.changed() => if changed.is_err() { return },
                changed = directory.changed() => if changed.is_err() { return },
                changed = trust.changed() => if changed.is_err() { return },
                changed = lan.changed() => if changed.is_err() { return },
                () = sleep(due) => {}
            }
        }
    }

    /// Dials whoever is due; says when the next one is.
    fn step(&mut self, view: &TailnetView) -> Option<Moment> {
        let snapshot = self.parts.directory.load();
        let known = self.parts.trust.view();
        let now = self.parts.clock.now();
        let ground = ground(view, &known, &say::addresses(&self.parts.lan.borrow()));
        let mut aims: Vec<(&TailnetNode, Vec<SocketAddr>)> = Vec::new();
        for peer in &view.peers {
            let back = self.back.contains(&peer.id);
            if let Some(places) = places(peer, &snapshot, &self.ports, back) {
                aims.push((peer, places));
            }
        }
        self.turns.keep(|node| aims.iter().any(|(peer, _)| peer.id == *node));
        for (peer, places) in aims {
            let pending = known.pin(&peer.id).is_some_and(|pin| pin.state == PinState::Pending);
            let facts = facts(peer, ground);
            // Those that find no room are due when one of the others has ended.
            if self.running.len() < AT_ONCE && self.turns.take(&peer.id, facts, pending, now) {
                let (parts, peer) = (self.parts.clone(), peer.clone());
                self.running.spawn(async move {
                    let ended = any(&parts, &peer, &places).await;
                    (peer.id, ended)
                });
            }
        }
        if self.running.len() >= AT_ONCE { None } else { self.turns.next() }
    }

    fn ended(&mut self, node: &NodeId, ended: Result<(), Failed>) {
        let now = self.parts.clock.now();
        match ended {
            Ok(()) => {
                self.back.remove(node);
                self.turns.answered(node, now, rand::random(), &self.parts.timing);
            }
            Err(failed) => {
                let given_up = self.turns.failed(node, now, &self.parts.timing);
                if given_up {
                    self.back.remove(node);
                }
                let text = failed.to_string();
                let name = self.name(node);
                if !self.turns.is_news(node, &text) {
                    return;
                }
                // What the network does is no news for a person; that a key or a place in the
                // tailnet is not what it should be is.
                if matches!(failed, Failed::Refused(_)) {
                    tracing::warn!(node = %name, "no pin: {text}");
                    self.parts.events.note("pin", format!("{name}: no pin: {text}"));
                } else {
                    tracing::debug!(node = %name, "no hello: {text}");
                }
            }
        }
    }

    fn name(&self, node: &NodeId) -> String {
        let view = self.parts.tailnet.borrow();
        let peer = view.peers.iter().find(|p| p.id == *node);
        peer.map_or_else(|| node.to_string(), |p| p.name.to_string())
    }
}

/// Lets the key change if it is time to. A new one is saved before anybody hears of it, which
/// may take the disk a while.
async fn rotate(trust: &Trust) {
    let now = wall();
    if !trust.is_rotation_due(now) {
        trust.rotate_if_due(now);
        return;
    }
    let trust = trust.clone();
    // It only fails when the program stops.
    let _ = tokio::task::spawn_blocking(move || trust.rotate_if_due(now)).await;
}

/// Where a node is dialled: where it answered as a sidecar, else, if it is to be called back,
/// the mesh ports on its own addresses. `None` = it is not.
fn places(
    peer: &TailnetNode,
    snapshot: &Snapshot,
    ports: &[u16],
    back: bool,
) -> Option<Vec<SocketAddr>> {
    let rich = snapshot.nodes.iter().find(|n| n.id == peer.id && n.kind == NodeKind::Rich);
    let mut places: Vec<SocketAddr> = Vec::new();
    for path in rich.into_iter().flat_map(|node| &node.paths) {
        if let Dial::Tailnet(at) = path.dial {
            places.push(at);
        }
    }
    if places.is_empty() && back {
        let each = |port: &u16| {
            let port = *port;
            peer.addrs.iter().map(move |ip| SocketAddr::new(*ip, port))
        };
        places.extend(ports.iter().flat_map(each));
    }
    (!places.is_empty()).then_some(places)
}

/// Dials one place after another until one can be connected to.
async fn any(parts: &Parts, peer: &TailnetNode, places: &[SocketAddr]) -> Result<(), Failed> {
    let mut last = Failed::Nobody;
    for at in places {
        match one(parts, peer, *at).await {
            Err(Failed::Connect(error)) => last = error.into(),
            ended => return ended,
        }
    }
    Err(last)
}

async fn one(parts: &Parts, peer: &TailnetNode, at: SocketAddr) -> Result<(), Failed> {
    let own_key = parts.trust.view().ring.as_ref().map(|ring| ring.current());
    let own_key = own_key.ok_or(Failed::Nobody)?;
    let (io, key) = parts.connector.hello(&peer.id, at).await?;
    let (tailnet, known) = (parts.tailnet.borrow().clone(), parts.trust.view());
    // As the list has it now: it may have been read again while the connection was made.
    let listed = tailnet.peers.iter().find(|p| p.id == peer.id).ok_or(Failed::Nobody)?;
    let lan = parts.lan.borrow().clone();
    let say = say::statement(&tailnet, &parts.trust, &known, &lan, listed, parts.ephemeral);
    let say = say.ok_or(Failed::Nobody)?;
    let mut line = Line::open(io).await?;
    let said: HelloSay = line.ask(HELLO, &say, parts.timing.hello_limit).await?;
    // What was said is held against what the tailnet says after it, not before.
    let tailnet = parts.tailnet.borrow().clone();
    let listed = tailnet.peers.iter().find(|p| p.id == peer.id).and_then(TailnetNode::listed);
    let node = listed.ok_or(Failed::Nobody)?;
    let port = Some(at.port());
    let hello = Hello { node, said: &said, key, own_key, port, grants: None };
    let steps = parts.trust.dialled(&hello, wall())?;
    tell(&parts.events, steps);
    let steps = parts.trust.told_suspended(&peer.id, &said.departed, wall());
    tell(&parts.events, steps);
    Ok(())
}

/// What of this node itself its peers should hear when it changes.
fn ground(view: &TailnetView, known: &View, lan: &[IpAddr]) -> u64 {
    let key: Option<PublicKey> = known.ring.as_ref().map(|ring| ring.current());
    let me = view.me.as_ref().map(|me| (&me.id, &me.key, &me.addrs));
    hash(&(key, me, lan))
}

/// What of both ends makes a new hello worth while when it changes.
fn facts(peer: &TailnetNode, ground: u64) -> u64 {
    hash(&(ground, &peer.key, &peer.created, &peer.addrs, peer.expires.map(|at| at.0)))
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

async fn sleep(due: Option<Duration>) {
    match due {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
