//! Pins: what this node remembers of another node's key, and of the node behind it.
//!
//! Plain values. How a pin comes to be is in `hello`, how it is lost in `netmap`, what it is
//! worth at a moment in `judge`.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::hello::is_local;
use crate::config::Config;
use crate::telemetry::Events;
use crate::types::{ControlId, NodeId, NodeName, Principal, PublicKey, Verb, Wall};

/// Most addresses on local networks that are kept of a node.
pub(super) const MAX_ADDRESSES: usize = 8;

/// Most addresses of a node that were only announced.
const MAX_ANNOUNCED: usize = 2;

/// How long it takes until a node may name other addresses on the local network.
const TOLD_AGAIN: Duration = Duration::from_secs(10);

/// How long an ephemeral node's pin lives.
pub(super) const EPHEMERAL: Duration = Duration::from_secs(24 * 3600);

/// A node and the key it is known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pin {
    /// The node: of the tailnet, or one whose key a person added ([`NodeId::Pin`]).
    pub node: NodeId,
    /// When the coordinator made it, in the coordinator's writing. Empty for a key added.
    pub created: String,
    /// Its name.
    pub name: NodeName,
    /// Its whole MagicDNS name.
    pub dns: String,
    /// Its owner or tags; `None` for a key added by hand, which never has an owner.
    pub principal: Option<Principal>,
    /// Whether it is shared in from another tailnet.
    pub shared: bool,
    /// The key.
    pub key: PublicKey,
    /// The node's own key, as the network map last had it.
    pub node_key: String,
    /// Whether it may be used.
    pub state: PinState,
    /// When the tailnet last vouched for the key; zero = never.
    pub verified: Wall,
    /// When the key was first heard of.
    pub learned: Wall,
    /// When the node's own key ends, if it does.
    pub expires: Option<Wall>,
    /// Whether the network map calls the node expired.
    pub expired: bool,
    /// Whether the node is one that comes and goes.
    pub ephemeral: bool,
    /// Its mesh port.
    pub port: u16,
    /// Its addresses on local networks, the newest first: it was met there, or said so over
    /// the tailnet.
    pub lan: Vec<IpAddr>,
    /// Addresses that it is only said to have; worth a dial, not worth a place in the file.
    #[serde(skip)]
    pub hints: Hints,
    /// Its tailnet addresses.
    pub tailnet: Vec<IpAddr>,
    /// Our capability's values that the tailnet's policy last gave it here.
    pub grants: Vec<String>,
    /// When it last reached our mesh port over the tailnet while the coordinator was there.
    pub reached: Option<Wall>,
    /// Another key that answers in its place.
    pub changed: Option<Changed>,
    /// Which of our keys it last took for ours.
    pub knows: Option<PublicKey>,
    /// Since when it is missing in the network map.
    pub gone: Option<Gone>,
    /// What a person said it may do, if a person added it.
    pub by_hand: Option<ByHand>,
}

/// Addresses on local networks where nobody has proved the key yet.
#[derive(Debug, Clone, Default)]
pub struct Hints {
    /// Announced there, which anybody can do: the newest first.
    announced: Vec<IpAddr>,
    /// Named by the node itself on the local network.
    told: Vec<IpAddr>,
    /// When it last named others than before.
    told_at: Wall,
}

/// What was only said makes no pin another one: it is no reason to write it.
impl PartialEq for Hints {
    fn eq(&self, _: &Hints) -> bool {
        true
    }
}

impl Eq for Hints {}

/// Whether a pin may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "is")]
pub enum PinState {
    /// Its key was only heard, or has to be heard again.
    Pending,
    /// It may.
    Live,
    /// Not until the tailnet lists the node again.
    Suspended {
        /// Since when.
        since: Wall,
        /// Why.
        why: Why,
    },
}

/// Why a pin is suspended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Why {
    /// The network map does not list the node any more.
    Gone,
    /// More than half of the nodes went at once, which is rather the map's fault than theirs.
    ManyGone,
    /// A device of the same owner said so.
    Told(NodeName),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Gone => f.write_str("not in the tailnet's list any more"),
            Why::ManyGone => f.write_str("gone with more than half of the tailnet's nodes at once"),
            Why::Told(by) => write!(f, "{by} saw it leave the tailnet"),
        }
    }
}

/// A node's absence from the network map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gone {
    /// When it was first missed.
    pub since: Wall,
    /// For how many seconds that was seen with the coordinator there.
    pub seen: u64,
    /// Whether most of the others were missing at the same time.
    pub many: bool,
}

/// A key that answers where another was pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changed {
    /// The new key.
    pub key: PublicKey,
    /// When it first answered.
    pub first: Wall,
    /// When it last did.
    pub last: Wall,
    /// For how many seconds it was the one to answer, each time we asked.
    pub seen: u64,
}

/// What a person said of a key added by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ByHand {
    /// What it may do here.
    pub verbs: Vec<Verb>,
    /// With which models, as globs.
    pub models: Vec<String>,
    /// Until when.
    pub until: Wall,
}

/// This node as its tailnet knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Own {
    /// Its stable id.
    pub stable: String,
    /// When the coordinator made it.
    pub created: String,
    /// Its name.
    pub name: NodeName,
    /// Its owner or tags.
    pub principal: Principal,
    /// Its node key.
    pub node_key: String,
    /// Its tailnet addresses.
    pub addrs: Vec<IpAddr>,
}

#[cfg(test)]
impl Own {
    /// One for tests that are about something else.
    pub(crate) fn laptop(control: &ControlId) -> Own {
        Own {
            stable: "n1".to_owned(),
            created: String::new(),
            name: NodeName::from_dns("laptop"),
            principal: Principal::User { control: control.clone(), id: 1, login: "a@x".into() },
            node_key: String::new(),
            addrs: Vec::new(),
        }
    }
}

/// How long a pin lives without the tailnet, and which ports the packet filter is asked about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Since the tailnet last vouched for it (`lan.trustDays`).
    pub trust: Duration,
    /// The same, for what tags and grants give (`lan.grantHours`).
    pub grant: Duration,
    /// This node's mesh ports.
    pub ports: Vec<u16>,
}

impl Bounds {
    /// Those of the configuration.
    pub fn of(config: &Config) -> Bounds {
        Bounds {
            trust: config.lan.trust,
            grant: config.lan.grant,
            ports: config.tailnet.ports.clone(),
        }
    }
}

/// One thing that happened to a pin: for the log, and for whoever looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The node's name; empty if it is about all of them.
    pub name: String,
    /// What happened.
    pub what: What,
}

/// Tells people what happened to pins.
pub fn tell(events: &Events, steps: Vec<Step>) {
    for Step { name, what } in steps {
        let text = if name.is_empty() { what.to_string() } else { format!("{name}: {what}") };
        tracing::info!("{text}");
        events.note("pin", text);
    }
}

/// What happened to a pin.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each says what happened, as its text does")]
pub enum What {
    Pinned,
    Renewed,
    Changed { for_hours: u64 },
    Replaced,
    Suspended(Why),
    Restored,
    AskAgain,
    Deleted(&'static str),
    ManyGone { gone: usize, of: usize },
}

impl Step {
    pub(super) fn new(name: &NodeName, what: What) -> Step {
        Step { name: name.to_string(), what }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Pinned => f.write_str("pinned: it may be met on the local network"),
            What::Renewed => f.write_str("has a new key, signed with its old one"),
            What::Changed { for_hours: 0 } => f.write_str(
                "answers with another key than before: it is taken after 24 h of the same \
                 answer, or at once by `tailherd trust accept`",
            ),
            What::Changed { for_hours } => {
                write!(f, "still answers with another key than before, for {for_hours} h of 24 h")
            }
            What::Replaced => {
                f.write_str("answered with its new key for 24 h, which is now its pin")
            }
            What::Suspended(why) => write!(f, "pin suspended: {why}"),
            What::Restored => f.write_str("pin restored: the tailnet lists it again"),
            What::AskAgain => f.write_str(
                "is listed again with another node key: its pin waits until it answers over the \
                 tailnet",
            ),
            What::Deleted(why) => write!(f, "pin deleted: {why}"),
            What::ManyGone { gone, of } => write!(
                f,
                "{gone} of {of} pinned nodes left the tailnet's list at once: suspended, nothing \
                 deleted"
            ),
        }
    }
}

impl Pin {
    /// One of which only a name and a key are known.
    pub(super) fn blank(name: NodeName, key: PublicKey, now: Wall) -> Pin {
        Pin {
            node: NodeId::This,
            created: String::new(),
            name,
            dns: String::new(),
            principal: None,
            shared: false,
            key,
            node_key: String::new(),
            state: PinState::Pending,
            verified: Wall(0),
            learned: now,
            expires: None,
            expired: false,
            ephemeral: false,
            port: 0,
            lan: Vec::new(),
            hints: Hints::default(),
            tailnet: Vec::new(),
            grants: Vec::new(),
            reached: None,
            changed: None,
            knows: None,
            gone: None,
            by_hand: None,
        }
    }

    /// Its stable id, if it is a node of a tailnet.
    pub fn stable(&self) -> Option<&str> {
        match &self.node {
            NodeId::Tailnet { stable, .. } => Some(stable),
            _ => None,
        }
    }

    /// Whether `name` means it: its name, its stable id, or the name given to its key.
    pub fn is_named(&self, name: &str) -> bool {
        self.name.as_str().eq_ignore_ascii_case(name) || self.stable() == Some(name)
    }

    /// Whether the tailnet ever vouched for its key.
    pub fn was_live(&self) -> bool {
        self.verified.0 > 0
    }

    /// Whether it belongs to this node's own owner. What is tagged, shared in or added by hand
    /// never does.
    pub fn is_own(&self, own: Option<&Own>) -> bool {
        !self.shared
            && match (&self.principal, own) {
                (Some(theirs), Some(own)) => own.principal.same_owner(theirs),
                _ => false,
            }
    }

    /// When it ends, if the tailnet does not vouch for it again before.
    pub fn ends(&self, bounds: &Bounds) -> Wall {
        if let Some(hand) = &self.by_hand {
            return hand.until;
        }
        let mut life = bounds.trust;
        if self.ephemeral {
            life = life.min(EPHEMERAL);
        }
        let ends = self.verified + life;
        self.expires.map_or(ends, |at| at.min(ends))
    }

    /// Puts `address` first among its addresses on local networks. Says whether that changed
    /// anything.
    pub(super) fn met_at(&mut self, address: IpAddr) -> bool {
        if self.lan.first() == Some(&address) {
            return false;
        }
        self.lan.retain(|a| *a != address);
        self.lan.insert(0, address);
        self.lan.truncate(MAX_ADDRESSES);
        self.hints.announced.retain(|a| *a != address);
        true
    }

    /// Somebody announced it at `address`. Never costs a proven address its place. Says whether
    /// that is news.
    pub(super) fn announced_at(&mut self, address: IpAddr) -> bool {
        let heard = &mut self.hints.announced;
        if !is_local(address) || self.lan.contains(&address) || heard.contains(&address) {
            return false;
        }
        heard.insert(0, address);
        heard.truncate(MAX_ANNOUNCED);
        true
    }

    /// It says on the local network that these are its addresses: not more often than now and
    /// then something else. Says whether that is news.
    pub(super) fn told(&mut self, addresses: &[IpAddr], now: Wall) -> bool {
        let new = addresses.iter().filter(|a| is_local(**a) && !self.lan.contains(a));
        let new: Vec<IpAddr> = new.take(MAX_ADDRESSES).copied().collect();
        let hints = &mut self.hints;
        if new == hints.told || now.since(hints.told_at) < TOLD_AGAIN {
            return false;
        }
        hints.told = new;
        hints.told_at = now;
        true
    }

    /// Where to look for it on local networks that `may` be used, at most eight: the places
    /// where it was met first, of which two give way to what is only said.
    pub fn addresses(&self, may: impl Fn(IpAddr) -> bool) -> Vec<IpAddr> {
        let mut said: Vec<IpAddr> = Vec::new();
        for address in self.hints.told.iter().chain(&self.hints.announced) {
            if may(*address) && !self.lan.contains(address) && !said.contains(address) {
                said.push(*address);
            }
        }
        let met = MAX_ADDRESSES - said.len().min(MAX_ANNOUNCED);
        let met = self.lan.iter().copied().filter(|a| may(*a)).take(met);
        // What was announced last is the likeliest to be true of one that moved.
        let mut all: Vec<IpAddr> = met.collect();
        all.extend(said.into_iter().rev().take(MAX_ADDRESSES - all.len()));
        all
    }
}

/// The node of `control` with this stable id.
pub(super) fn node_id(control: &ControlId, stable: &str) -> NodeId {
    NodeId::Tailnet { control: control.clone(), stable: stable.into() }
}
