//! How pins come to be: hellos over the tailnet.
//!
//! In: what a hello said, what WhoIs or the dialled address says of who said it, the key that
//! TLS proved. Out: a pin, or why there is none. Nothing here is ever fed from the local
//! network. A pin goes live only by our own dial: that a key came *from* a node proves only
//! that some program there has it, that it answers *at* the node's mesh port proves that the
//! node's own service does.

use std::net::IpAddr;
use std::time::Duration;

use super::book::Book;
use super::keys::verify_chain;
use super::netmap::ListedPeer;
use super::pins::{Bounds, Changed, MAX_ADDRESSES, Pin, PinState, Step, What, node_id};
use crate::api::hello::HelloSay;
use crate::types::{NodeId, NodeName, PublicKey, Wall};

/// How long a changed key has to be the one to answer.
const CONSISTENT: u64 = 24 * 3600;
/// Most time that two callbacks may stand for.
const CALLBACK: Duration = Duration::from_secs(3600);
/// Most pins of one tailnet.
pub(super) const MAX_PINS: usize = 1024;

/// A hello, as it went over the tailnet.
#[derive(Debug, Clone, Copy)]
pub struct Hello<'a> {
    /// The other end, as WhoIs named it (or as the dialled address belongs to, in the list).
    pub node: ListedPeer<'a>,
    /// What it said.
    pub said: &'a HelloSay,
    /// The key that TLS proved it has.
    pub key: PublicKey,
    /// Our key in that handshake.
    pub own_key: PublicKey,
    /// Its mesh port, if we dialled it.
    pub port: Option<u16>,
    /// The raw values of our capability that WhoIs gave, if it was asked.
    pub grants: Option<&'a [String]>,
}

impl Hello<'_> {
    /// Whether the keys it showed lead from `known` to the one it has, each signed by the one
    /// before.
    fn follows(&self, known: &PublicKey) -> bool {
        self.said.chain.last().is_some_and(|l| l.key == self.key)
            && verify_chain(known, &self.said.chain)
    }
}

/// What a hello that was heard leads to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heard {
    /// Whether the caller should be dialled back now.
    pub callback: bool,
    /// What changed.
    pub steps: Vec<Step>,
}

/// Why a hello made or renewed no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelloRefused {
    /// No tailnet is named.
    #[error("no tailnet is named here")]
    NoTailnet,
    /// Both ends do not mean the same two nodes.
    #[error("{0} is not what this node sees: something stands between the two")]
    Mismatch(&'static str),
    /// It is this node's own key.
    #[error("it has this node's own key: a copy of its state folder")]
    OwnKey,
    /// The key is another node's.
    #[error("{name} shows the key that {other} is pinned by: one of them is a copy of the other")]
    Taken {
        /// Who showed it.
        name: NodeName,
        /// Whose it is.
        other: NodeName,
    },
    /// The key is not the pinned one, and nothing vouches for it.
    #[error(
        "{name} answers with another key than before, for {for_hours} h of 24 h: `tailherd trust accept {name}` takes it now"
    )]
    Changed {
        /// Who answered.
        name: NodeName,
        /// For how many hours it has done so, each time it was asked.
        for_hours: u64,
    },
    /// Without its coordinator a tailnet vouches for nobody new.
    #[error("the coordinator is away, and a new key needs it")]
    Offline,
    /// The node's own key has ended.
    #[error("its node key has ended")]
    Expired,
    /// There are too many pins.
    #[error("there are {MAX_PINS} pins already")]
    Full,
}

impl Book {
    /// Takes in the answer to a hello that this node dialled.
    pub(super) fn dialled(
        &mut self,
        hello: &Hello<'_>,
        now: Wall,
    ) -> Result<Vec<Step>, HelloRefused> {
        self.heed(now);
        self.check(hello)?;
        let mut steps = self.forget_another(&hello.node);
        let id = node_id(&self.control, hello.node.stable);
        let online = self.online;
        let Some(at) = self.pins.iter().position(|p| p.node == id) else {
            if !online {
                return Err(HelloRefused::Offline);
            }
            self.believe(now);
            let mut pin = self.heard_of(hello, now)?;
            pin.state = PinState::Live;
            confirm(&mut pin, hello, online, &self.bounds, now);
            steps.push(Step::new(&pin.name, What::Pinned));
            self.pins.push(pin);
            return Ok(steps);
        };
        let pin = &mut self.pins[at];
        if pin.key != hello.key {
            if !online {
                return Err(HelloRefused::Offline);
            }
            let what = if !pin.was_live() {
                None
            } else if hello.follows(&pin.key) {
                Some(What::Renewed)
            } else if consistent(pin, hello.key, now) {
                Some(What::Replaced)
            } else {
                let for_hours = pin.changed.map_or(0, |c| c.seen / 3600);
                return Err(HelloRefused::Changed { name: pin.name.clone(), for_hours });
            };
            pin.key = hello.key;
            pin.learned = now;
            pin.changed = None;
            steps.extend(what.map(|w| Step::new(&pin.name, w)));
        }
        // The one that was pinned answers: whoever else did was not the node.
        pin.changed = None;
        if pin.state == PinState::Pending && online {
            let what = if pin.was_live() { What::Restored } else { What::Pinned };
            pin.state = PinState::Live;
            steps.push(Step::new(&pin.name, what));
        }
        confirm(pin, hello, online, &self.bounds, now);
        if online {
            self.believe(now);
        }
        Ok(steps)
    }

    /// Takes in a hello that another node sent, whose prompts this node's rules let in or to
    /// which its own may go.
    pub(super) fn heard(&mut self, hello: &Hello<'_>, now: Wall) -> Result<Heard, HelloRefused> {
        self.heed(now);
        self.check(hello)?;
        let mut heard = Heard { callback: false, steps: self.forget_another(&hello.node) };
        let id = node_id(&self.control, hello.node.stable);
        let online = self.online;
        let Some(at) = self.pins.iter().position(|p| p.node == id) else {
            if online {
                let mut pin = self.heard_of(hello, now)?;
                pin.reached = Some(now);
                self.pins.push(pin);
                heard.callback = true;
            }
            return Ok(heard);
        };
        let pin = &mut self.pins[at];
        if pin.key != hello.key {
            if !online {
                return Ok(heard);
            }
            if !pin.was_live() {
                pin.key = hello.key;
                pin.learned = now;
            } else if hello.follows(&pin.key) {
                pin.key = hello.key;
                pin.learned = now;
                pin.changed = None;
                heard.steps.push(Step::new(&pin.name, What::Renewed));
            } else {
                // Our own dial decides; until then nothing it says is taken in.
                heard.callback = true;
                return Ok(heard);
            }
        }
        heard.callback = pin.state == PinState::Pending;
        // Only what was once confirmed by our own dial is kept fresh by a hello from there.
        let vouched = online && pin.was_live() && pin.state != PinState::Pending;
        confirm(pin, hello, vouched, &self.bounds, now);
        if online {
            pin.reached = Some(now);
        }
        if vouched {
            self.believe(now);
        }
        Ok(heard)
    }

    /// Whether both ends mean the same two nodes, and the key is no one else's.
    fn check(&self, hello: &Hello<'_>) -> Result<(), HelloRefused> {
        let (said, node, own) = (hello.said, &hello.node, &self.own);
        for (ok, what) in [
            (*said.control == *self.control.0, "the tailnet it names"),
            (said.me == node.stable, "the node it says it is"),
            (said.you == own.stable, "the node it means by us"),
            (said.my_node_key == node.node_key, "its node key"),
            (said.your_node_key == own.node_key, "the node key it knows us by"),
            (node.stable != own.stable, "that it is another node"),
            (said.chain.last().is_some_and(|l| l.key == hello.key), "the key it says it has"),
        ] {
            if !ok {
                return Err(HelloRefused::Mismatch(what));
            }
        }
        if node.expired {
            return Err(HelloRefused::Expired);
        }
        if hello.key == hello.own_key {
            return Err(HelloRefused::OwnKey);
        }
        match self.by_key(&hello.key) {
            Some(pin) if pin.stable() != Some(node.stable) => {
                Err(HelloRefused::Taken { name: node.name.clone(), other: pin.name.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Deletes the pin of the node that had this one's number before.
    fn forget_another(&mut self, node: &ListedPeer<'_>) -> Vec<Step> {
        let mut steps = Vec::new();
        self.pins.retain(|pin| {
            let why = (pin.stable() == Some(node.stable)).then(|| node.differs(pin)).flatten();
            steps.extend(why.map(|w| Step::new(&pin.name, What::Deleted(w))));
            why.is_none()
        });
        steps
    }

    fn heard_of(&self, hello: &Hello<'_>, now: Wall) -> Result<Pin, HelloRefused> {
        if self.pins.len() >= MAX_PINS {
            return Err(HelloRefused::Full);
        }
        let mut pin = Pin {
            node: node_id(&self.control, hello.node.stable),
            created: hello.node.created.to_owned(),
            shared: hello.node.shared,
            node_key: hello.node.node_key.to_owned(),
            ..Pin::blank(hello.node.name.clone(), hello.key, now)
        };
        confirm(&mut pin, hello, false, &self.bounds, now);
        Ok(pin)
    }

    /// A live pin's node was met at this address.
    pub(super) fn address(&mut self, node: &NodeId, address: IpAddr) -> bool {
        is_local(address)
            && self.pins.iter_mut().find(|p| p.node == *node).is_some_and(|p| p.met_at(address))
    }
}

/// Where its node listens on local networks. It answers a hello on each of its mesh ports and
/// there on one only, which it names; but no port is dialled at a node's word that is not a mesh
/// port here or the one that answered.
fn port(hello: &Hello<'_>, bounds: &Bounds) -> Option<u16> {
    let said = hello.said.port;
    let is_one = |said: &u16| bounds.ports.contains(said) || hello.port == Some(*said);
    Some(said).filter(is_one).or(hello.port)
}

/// Takes in what a hello says of a node whose key is the pinned one.
fn confirm(pin: &mut Pin, hello: &Hello<'_>, vouched: bool, bounds: &Bounds, now: Wall) {
    hello.node.refresh(pin);
    pin.ephemeral = hello.said.ephemeral;
    pin.knows = hello.said.holds.or(pin.knows);
    pin.port = port(hello, bounds).unwrap_or(pin.port);
    if let Some(grants) = hello.grants {
        pin.grants = grants.to_vec();
    }
    // The one it names first is to be the first.
    for address in hello.said.lan.iter().take(MAX_ADDRESSES).rev().filter(|a| is_local(**a)) {
        pin.met_at(*address);
    }
    if vouched {
        pin.verified = now;
        hello.node.node_key.clone_into(&mut pin.node_key);
    }
}

/// Whether a changed key has now been the one to answer for long enough.
fn consistent(pin: &mut Pin, key: PublicKey, now: Wall) -> bool {
    let changed = match pin.changed {
        Some(c) if c.key == key => {
            let seen = c.seen + now.since(c.last).min(CALLBACK).as_secs();
            Changed { last: now, seen, ..c }
        }
        _ => Changed { key, first: now, last: now, seen: 0 },
    };
    pin.changed = Some(changed);
    changed.seen >= CONSISTENT
}

/// Whether an address can be one on a local network: private, and not of a tailnet.
pub(super) fn is_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(a) => a.is_private(),
        IpAddr::V6(a) => a.is_unique_local() && a.segments()[..3] != [0xfd7a, 0x115c, 0xa1e0],
    }
}
