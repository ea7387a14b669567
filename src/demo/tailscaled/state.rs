//! What the coordinator of a stand-in tailnet knows, and how far each node can see it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::Value;

/// A node's number: its `NodeID`, and its stable id as text (Headscale has both the same).
pub type NodeNumber = u64;

/// Who a node belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A person, by login name.
    User(String),
    /// Nobody: these tags, each with its `tag:` prefix.
    Tags(Vec<String>),
}

impl Owner {
    /// A person.
    pub fn user(login: &str) -> Self {
        Owner::User(login.to_owned())
    }

    /// One tag.
    pub fn tag(tag: &str) -> Self {
        Owner::Tags(vec![tag.to_owned()])
    }
}

/// A node as the coordinator lists it.
#[derive(Debug, Clone)]
pub(super) struct NodeEntry {
    pub(super) number: NodeNumber,
    pub(super) name: String,
    pub(super) owner: Owner,
    /// The MagicDNS suffix it lives under; another tailnet's for a node that is shared in.
    pub(super) suffix: String,
    pub(super) shared: bool,
    pub(super) os: String,
    /// What the coordinator believes; a hint, nothing more.
    pub(super) online: bool,
    pub(super) created: String,
    pub(super) routes: Vec<String>,
}

impl NodeEntry {
    pub(super) fn v4(&self) -> Ipv4Addr {
        let [.., hi, lo] = self.number.to_be_bytes();
        Ipv4Addr::new(100, 64, hi, lo)
    }

    pub(super) fn v6(&self) -> Ipv6Addr {
        let [.., hi, lo] = self.number.to_be_bytes();
        let last = u16::from_be_bytes([hi, lo]);
        Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, last)
    }

    pub(super) fn has(&self, ip: IpAddr) -> bool {
        ip == IpAddr::V4(self.v4()) || ip == IpAddr::V6(self.v6())
    }
}

/// A copy of the coordinator's list.
#[derive(Debug, Clone, Default)]
pub(super) struct Netmap {
    pub(super) nodes: BTreeMap<NodeNumber, NodeEntry>,
    pub(super) users: BTreeMap<i64, String>,
    /// Pairs (from, to) between which the policy opens no port.
    pub(super) closed: BTreeSet<(NodeNumber, NodeNumber)>,
    /// What (from) may do on (to), by capability.
    pub(super) grants: BTreeMap<(NodeNumber, NodeNumber), BTreeMap<String, Vec<Value>>>,
}

/// The user id Tailscale gives every tagged node.
pub(super) const TAGGED: i64 = 2_147_455_555;

impl Netmap {
    pub(super) fn user_of(&self, node: &NodeEntry) -> (i64, String) {
        match &node.owner {
            Owner::Tags(_) => (TAGGED, "tagged-devices".to_owned()),
            Owner::User(login) => {
                let id = self.users.iter().find(|(_, l)| *l == login).map_or(0, |(id, _)| *id);
                (id, login.clone())
            }
        }
    }

    pub(super) fn by_ip(&self, ip: IpAddr) -> Option<&NodeEntry> {
        self.nodes.values().find(|n| n.has(ip))
    }
}

/// The daemon of one node.
#[derive(Debug, Clone)]
pub(super) struct Daemon {
    /// Whether the process runs.
    pub(super) up: bool,
    /// `BackendState`.
    pub(super) state: &'static str,
    /// `TUN` in its status; `None` = the field is missing.
    pub(super) tun: Option<bool>,
    /// Whether its machine sleeps: nothing comes through, nothing is refused.
    pub(super) asleep: bool,
    /// Which program listens behind which tailnet port.
    pub(super) ports: BTreeMap<u16, SocketAddr>,
    /// Sources of connections it has forwarded to programs here, and whose they are.
    pub(super) forwarded: BTreeMap<SocketAddr, NodeNumber>,
    /// The same sources from the moment they exist: WhoIs may learn of them later.
    pub(super) sockets: BTreeSet<SocketAddr>,
    pub(super) serve: Value,
    pub(super) whois_hangs: bool,
    pub(super) whois_lag: std::time::Duration,
    pub(super) asked: Asked,
}

/// What a daemon was asked, as numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// `status`.
    pub status: u64,
    /// `whois`.
    pub whois: u64,
    /// `dial`.
    pub dials: u64,
    /// Connections from other nodes that arrived here, or were refused here.
    pub arrivals: u64,
}

impl Default for Daemon {
    fn default() -> Self {
        Daemon {
            up: true,
            state: "Running",
            tun: Some(false),
            asleep: false,
            ports: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            sockets: BTreeSet::new(),
            serve: Value::Object(serde_json::Map::new()),
            whois_hangs: false,
            whois_lag: std::time::Duration::ZERO,
            asked: Asked::default(),
        }
    }
}

/// The whole stand-in tailnet.
#[derive(Debug)]
pub(super) struct State {
    pub(super) control_url: String,
    pub(super) suffix: String,
    pub(super) live: Netmap,
    /// The list as it was when the coordinator went away: what nodes go on seeing.
    pub(super) frozen: Option<Netmap>,
    pub(super) daemons: BTreeMap<NodeNumber, Daemon>,
    pub(super) next: NodeNumber,
}

/// What happens to a packet from one node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// It arrives at this program.
    Open(SocketAddr),
    /// Nobody listens: refused.
    Refused,
    /// It is lost on the way: policy, sleep, a dead daemon.
    Silent,
    /// The daemon that should send it knows no such node.
    Unknown,
}

impl State {
    pub(super) fn coordinator(&self) -> bool {
        self.frozen.is_none()
    }

    /// What nodes see.
    pub(super) fn netmap(&self) -> &Netmap {
        self.frozen.as_ref().unwrap_or(&self.live)
    }

    pub(super) fn running(&self, number: NodeNumber) -> bool {
        self.daemons.get(&number).is_some_and(|d| d.up && d.state == "Running")
            && self.netmap().nodes.contains_key(&number)
    }

    pub(super) fn reach(&self, from: NodeNumber, ip: IpAddr, port: u16) -> (Reach, NodeNumber) {
        let Some(to) = self.netmap().by_ip(ip).map(|n| n.number) else {
            return (Reach::Unknown, 0);
        };
        if !self.passes(from, to) {
            return (Reach::Silent, to);
        }
        let port = self.daemons.get(&to).and_then(|d| d.ports.get(&port));
        (port.map_or(Reach::Refused, |addr| Reach::Open(*addr)), to)
    }

    /// Whether packets between two nodes come through.
    pub(super) fn passes(&self, from: NodeNumber, to: NodeNumber) -> bool {
        let awake = |n| self.daemons.get(&n).is_some_and(|d| !d.asleep);
        self.running(from)
            && self.running(to)
            && awake(from)
            && awake(to)
            && !self.netmap().closed.contains(&(from, to))
    }
}
