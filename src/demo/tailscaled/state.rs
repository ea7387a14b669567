//! What the coordinator of a stand-in tailnet knows, and how far each node can see it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::types::Wall;

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
    /// How often its node key was made anew.
    pub(super) renewed: u64,
    /// When its node key expires.
    pub(super) expires: Option<Wall>,
    /// Where its tunnel can be reached on its local network.
    pub(super) endpoints: Vec<SocketAddr>,
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

    /// Whether its key has expired: its own daemon and all others see it at once, coordinator
    /// or not.
    pub(super) fn expired(&self) -> bool {
        self.expires.is_some_and(|at| at <= Wall::of(SystemTime::now()))
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

/// The port tunnels come in at.
pub(super) const TUNNEL_PORT: u16 = 41641;

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
    /// Whether its list came from a file, because it started without a coordinator.
    pub(super) cached: bool,
    /// Whether its user logged out: the daemon has forgotten the tailnet, not only lost it.
    pub(super) logged_out: bool,
    /// Whether every packet to and from it is lost, whatever its state says.
    pub(super) deaf: bool,
    /// Whether it uses an exit node, and if so, whether that leaves the local network alone.
    pub(super) exit_node: Option<bool>,
    /// Its place on a local network: which one, and its address there.
    pub(super) link: Option<(u64, IpAddr)>,
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
    pub(super) whois_lag: Duration,
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
    /// `ping`.
    pub pings: u64,
    /// Connections from other nodes that arrived here, or were refused here.
    pub arrivals: u64,
    /// Bytes of connections with other nodes that it sent or received.
    pub bytes: u64,
}

impl Default for Daemon {
    fn default() -> Self {
        Daemon {
            up: true,
            state: "Running",
            tun: Some(false),
            cached: false,
            logged_out: false,
            deaf: false,
            exit_node: None,
            link: None,
            asleep: false,
            ports: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            sockets: BTreeSet::new(),
            serve: Value::Object(serde_json::Map::new()),
            whois_hangs: false,
            whois_lag: Duration::ZERO,
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
    /// How long a round trip between two nodes takes, if it takes any time; the smaller number
    /// first.
    pub(super) ways: BTreeMap<(NodeNumber, NodeNumber), Duration>,
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

    /// `BackendState` of a node's daemon.
    pub(super) fn backend(&self, number: NodeNumber) -> &'static str {
        let Some(daemon) = self.daemons.get(&number) else { return "NoState" };
        let refused = self.netmap().nodes.get(&number).is_none_or(NodeEntry::expired);
        match daemon.state {
            "Running" if refused => "NeedsLogin",
            state => state,
        }
    }

    pub(super) fn running(&self, number: NodeNumber) -> bool {
        self.daemons.get(&number).is_some_and(|d| d.up) && self.backend(number) == "Running"
    }

    /// What a node's daemon knows of the tailnet: nothing if it started without a coordinator
    /// and without a file, or if its user logged out.
    pub(super) fn seen_by(&self, number: NodeNumber) -> Option<&NodeEntry> {
        let daemon = self.daemons.get(&number)?;
        let knows = daemon.state != "NoState" && !daemon.logged_out;
        self.netmap().nodes.get(&number).filter(|_| knows)
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

    /// How long a round trip between two nodes takes.
    pub(super) fn way(&self, a: NodeNumber, b: NodeNumber) -> Duration {
        self.ways.get(&(a.min(b), a.max(b))).copied().unwrap_or_default()
    }

    /// Counts what passed between two nodes, at both.
    pub(super) fn carried(&mut self, ends: (NodeNumber, NodeNumber), bytes: u64) {
        for end in [ends.0, ends.1] {
            if let Some(daemon) = self.daemons.get_mut(&end) {
                daemon.asked.bytes += bytes;
            }
        }
    }

    /// Whether packets between two nodes come through, whatever the policy says of ports.
    pub(super) fn answers(&self, from: NodeNumber, to: NodeNumber) -> bool {
        let awake = |n| self.daemons.get(&n).is_some_and(|d| !d.asleep && !d.deaf);
        self.running(from) && self.running(to) && awake(from) && awake(to)
    }

    /// Whether connections from one node to another come through.
    pub(super) fn passes(&self, from: NodeNumber, to: NodeNumber) -> bool {
        self.answers(from, to) && !self.netmap().closed.contains(&(from, to))
    }

    /// Where a node's tunnel to another one goes, if it goes straight over a local network.
    pub(super) fn direct(&self, from: NodeNumber, to: NodeNumber) -> Option<SocketAddr> {
        let link = |n| self.daemons.get(&n).and_then(|d| d.link);
        let ((here, _), (there, addr)) = (link(from)?, link(to)?);
        (from != to && here == there && self.answers(from, to))
            .then_some(SocketAddr::new(addr, TUNNEL_PORT))
    }
}
