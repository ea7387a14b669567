//! What a person says of pins: a changed key is the node's own, a pin is to go, a key is to be
//! trusted although no tailnet speaks of it.
//!
//! In: names, keys, what may be done until when. Out: changed pins, or why not, with what to do
//! instead. A key added here never has an owner, so no rule about owners ever means it.

use std::net::IpAddr;
use std::time::Duration;

use super::book::Book;
use super::hello::{MAX_PINS, is_local};
use super::keys::{LIFE, MOST};
use super::pins::{ByHand, MAX_ADDRESSES, Pin, PinState};
use crate::types::{NodeId, NodeName, PublicKey, Verb, Wall};

/// Longest life of a key added by hand. Its holder hears of no later key of ours, and as many
/// earlier ones are kept.
const LONGEST: Duration = Duration::from_secs(LIFE.as_secs() * (MOST as u64 - 1));

/// Why a person's word on a pin was not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// Nothing is remembered to change.
    #[error(
        "no tailnet was seen here yet, so this node has no key of its own and keeps no pins: start \
         tailherd once where tailscaled runs and is logged in, to any tailnet"
    )]
    NoTailnet,
    /// No pin has that name.
    #[error("no pin is called `{0}`: `tailherd trust` lists them")]
    Unknown(String),
    /// Several have.
    #[error("`{name}` names {} pins: say which by id, one of {}", ids.len(), ids.join(", "))]
    Ambiguous {
        /// The name.
        name: String,
        /// Their ids.
        ids: Vec<String>,
    },
    /// The pin waits for nothing.
    #[error("{0} answers with the key it is pinned by: there is nothing to accept")]
    Nothing(NodeName),
    /// The name cannot be one.
    #[error("`{0}` cannot be a name: letters, digits, `-`, `_` and `.`, at most 63")]
    Name(String),
    /// The key is pinned already.
    #[error("that key is {0}'s")]
    Taken(NodeName),
    /// It is this node's own key.
    #[error("that is this node's own key: `tailherd trust export` on the other device prints its")]
    OwnKey,
    /// A key added by hand may only list and infer.
    #[error("a key added by hand may only `list` and `infer`, not `{0}`")]
    Verb(&'static str),
    /// Its time is over already.
    #[error("the time it would end at is past")]
    Over,
    /// It would outlive the keys that both know each other by.
    #[error("at most {} days: after that neither keeps the key that the other knows it by", LONGEST.as_secs() / 86_400)]
    TooLong,
    /// Nobody is met at that address on a local network.
    #[error("{0} is no address of a device on a local network (192.168.1.20, fd12::20)")]
    Address(IpAddr),
    /// There are more addresses than are kept.
    #[error("at most {MAX_ADDRESSES} addresses are kept of a device")]
    Addresses,
    /// There are too many pins.
    #[error("there are {MAX_PINS} pins already")]
    Full,
}

impl Book {
    /// The pins a name means: by hand first, then of nodes.
    fn named(&self, name: &str) -> Result<usize, PinError> {
        let found: Vec<usize> =
            (0..self.pins.len()).filter(|i| self.pins[*i].is_named(name)).collect();
        match found[..] {
            [] => Err(PinError::Unknown(name.to_owned())),
            [one] => Ok(one),
            _ => {
                let id = |i: &usize| {
                    let pin = &self.pins[*i];
                    pin.stable().map_or_else(|| pin.node.to_string(), str::to_owned)
                };
                let ids = found.iter().map(id).collect();
                Err(PinError::Ambiguous { name: name.to_owned(), ids })
            }
        }
    }

    /// A person says that a node's changed key is its own.
    pub(super) fn accept(&mut self, name: &str) -> Result<NodeName, PinError> {
        let at = self.named(name)?;
        let pin = &mut self.pins[at];
        let Some(changed) = pin.changed.take() else {
            return Err(PinError::Nothing(pin.name.clone()));
        };
        let name = pin.name.clone();
        if let Some(other) = self.by_key(&changed.key) {
            return Err(PinError::Taken(other.name.clone()));
        }
        let pin = &mut self.pins[at];
        pin.key = changed.key;
        pin.learned = changed.first;
        pin.verified = changed.last;
        Ok(name)
    }

    /// A person wants a pin gone.
    pub(super) fn forget(&mut self, name: &str) -> Result<NodeName, PinError> {
        let at = self.named(name)?;
        Ok(self.pins.remove(at).name)
    }

    /// A person adds a key, and perhaps says at which addresses its holder is met. What was
    /// added under that name before is replaced.
    pub(super) fn add(
        &mut self,
        (name, key): (&str, PublicKey),
        hand: ByHand,
        lan: &[IpAddr],
        own_keys: &[PublicKey],
        now: Wall,
    ) -> Result<NodeName, PinError> {
        let wrong = || PinError::Name(name.to_owned());
        let name = NodeName::parse(name).filter(|n| !n.is_self()).ok_or_else(wrong)?;
        if let Some(verb) = hand.verbs.iter().find(|v| !matches!(v, Verb::List | Verb::Infer)) {
            return Err(PinError::Verb(verb.label()));
        }
        if hand.until <= now {
            return Err(PinError::Over);
        }
        if hand.until > now + LONGEST {
            return Err(PinError::TooLong);
        }
        if let Some(wrong) = lan.iter().find(|address| !is_local(**address)) {
            return Err(PinError::Address(*wrong));
        }
        if lan.len() > MAX_ADDRESSES {
            return Err(PinError::Addresses);
        }
        if own_keys.contains(&key) {
            return Err(PinError::OwnKey);
        }
        let node = NodeId::Pin(name.as_str().into());
        match self.by_key(&key) {
            Some(pin) if pin.node != node => return Err(PinError::Taken(pin.name.clone())),
            _ => {}
        }
        self.pins.retain(|p| p.node != node);
        if self.pins.len() >= MAX_PINS {
            return Err(PinError::Full);
        }
        let pin = Pin {
            node,
            state: PinState::Live,
            by_hand: Some(hand),
            lan: lan.to_vec(),
            // It was told our key on the same occasion, and hears of no later one.
            knows: own_keys.last().copied(),
            ..Pin::blank(name.clone(), key, now)
        };
        self.pins.push(pin);
        Ok(name)
    }
}
