//! A stand-in for tailscaled and its coordinator: nodes without a network.
//!
//! Every node gets a LocalAPI on a unix socket in a private temporary folder. All of them
//! are in userspace mode (`TUN: false`), where connections leave through `dial` and arrive on
//! 127.0.0.1: so one process can hold a whole tailnet without any privilege. What goes in: who
//! owns which node, which program listens behind which port, what breaks. What comes out: the
//! JSON recorded from tailscaled 1.102.5. It never opens a socket off this machine.

mod daemon;
mod dial;
mod json;
mod localapi;
mod state;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

use self::state::{Daemon, Netmap, NodeEntry, State};
use crate::types::Wall;

pub use self::daemon::Tailscaled;
pub use self::state::{Asked, NodeNumber, Owner};

/// A stand-in tailnet: what its coordinator knows.
#[derive(Debug, Clone)]
pub struct Tailnet {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Arc<Mutex<State>>,
    /// Rings what the bus rings.
    bell: watch::Sender<u64>,
    /// Rings on everything, for connections that wait.
    changed: watch::Sender<u64>,
}

impl Shared {
    fn ring(&self) {
        self.changed.send_modify(|n| *n += 1);
        self.bell.send_modify(|n| *n += 1);
    }
}

impl Default for Tailnet {
    fn default() -> Self {
        Tailnet::new("https://control.example", "demo.example")
    }
}

impl Tailnet {
    /// An empty tailnet under this coordinator and MagicDNS suffix.
    pub fn new(control_url: &str, suffix: &str) -> Self {
        let state = State {
            control_url: control_url.to_owned(),
            suffix: suffix.to_owned(),
            live: Netmap::default(),
            frozen: None,
            daemons: BTreeMap::new(),
            ways: BTreeMap::new(),
            next: 1,
        };
        Tailnet {
            shared: Arc::new(Shared {
                state: Arc::new(Mutex::new(state)),
                bell: watch::Sender::new(0),
                changed: watch::Sender::new(0),
            }),
        }
    }

    /// Adds a node and starts its daemon.
    pub async fn join(&self, name: &str, owner: Owner) -> io::Result<Tailscaled> {
        Tailscaled::begin(self, self.enter(name, owner, None))
    }

    /// Adds a node of another tailnet that was shared into this one. It has no daemon here:
    /// it is only listed.
    pub fn share_in(&self, name: &str, owner: Owner, suffix: &str) -> NodeNumber {
        self.enter(name, owner, Some(suffix))
    }

    /// Whether the coordinator answers. Without it everybody goes on seeing the last list,
    /// only `Self.Online` tells; the bus says nothing.
    pub fn coordinator(&self, up: bool) {
        let mut state = self.shared.state.lock();
        state.frozen = if up { None } else { Some(state.netmap().clone()) };
        // Daemons that started without it hear of their peers now, and their peers of them.
        for daemon in state.daemons.values_mut().filter(|_| up) {
            if daemon.state == "NoState" {
                daemon.state = "Running";
            }
            if std::mem::take(&mut daemon.cached) {
                daemon.deaf = false;
            }
        }
        drop(state);
        self.shared.changed.send_modify(|n| *n += 1);
        if up {
            self.shared.ring();
        }
    }

    /// Removes a node from the tailnet.
    pub fn remove(&self, name: &str) {
        self.edit(|map| map.nodes.retain(|_, n| n.name != name));
    }

    /// Says when a node's key expires; its own daemon then wants a login, and no packet to or
    /// from it comes through, coordinator or not.
    pub fn expires(&self, name: &str, at: Option<Wall>) {
        self.edit_all(|map| {
            for node in map.nodes.values_mut().filter(|n| n.name == name) {
                node.expires = at;
            }
        });
    }

    /// Lets a node's key expire now.
    pub fn expire(&self, name: &str) {
        self.expires(name, Some(Wall::of(SystemTime::now())));
    }

    /// Gives a node a new key that does not expire, as a new login does.
    pub fn renew(&self, name: &str) {
        self.edit(|map| {
            for node in map.nodes.values_mut().filter(|n| n.name == name) {
                node.renewed += 1;
                node.expires = None;
            }
        });
    }

    /// Says what the coordinator believes of a node's presence.
    pub fn believe_online(&self, name: &str, online: bool) {
        self.edit(|map| {
            for node in map.nodes.values_mut().filter(|n| n.name == name) {
                node.online = online;
            }
        });
    }

    /// Gives a node further `AllowedIPs`, as a subnet router has.
    pub fn route(&self, name: &str, prefix: &str) {
        self.edit(|map| {
            for node in map.nodes.values_mut().filter(|n| n.name == name) {
                node.routes.push(prefix.to_owned());
            }
        });
    }

    /// Opens or closes every port of `to` for `from`. A closed one swallows connections, as
    /// packet filters do.
    pub fn policy(&self, from: &str, to: &str, open: bool) {
        self.edit(|map| {
            if let Some(pair) = pair(map, from, to) {
                if open {
                    map.closed.remove(&pair);
                } else {
                    map.closed.insert(pair);
                }
            }
        });
    }

    /// How long a round trip between two nodes takes from now on, for new connections.
    pub fn way(&self, a: NodeNumber, b: NodeNumber, round_trip: Duration) {
        self.shared.state.lock().ways.insert((a.min(b), a.max(b)), round_trip);
    }

    /// Sets what `from` may do on `to` under a capability; an empty list takes it away.
    pub fn grant(&self, from: &str, to: &str, capability: &str, values: Vec<Value>) {
        self.edit(|map| {
            if let Some(pair) = pair(map, from, to) {
                if values.is_empty() {
                    map.grants.remove(&pair);
                } else {
                    map.grants.entry(pair).or_default().insert(capability.to_owned(), values);
                }
            }
        });
    }

    fn edit(&self, change: impl FnOnce(&mut Netmap)) {
        change(&mut self.shared.state.lock().live);
        self.shared.ring();
    }

    /// A change that needs no coordinator to be seen.
    fn edit_all(&self, change: impl Fn(&mut Netmap)) {
        let mut state = self.shared.state.lock();
        change(&mut state.live);
        if let Some(frozen) = &mut state.frozen {
            change(frozen);
        }
        drop(state);
        self.shared.ring();
    }

    fn enter(&self, name: &str, owner: Owner, shared_from: Option<&str>) -> NodeNumber {
        let mut state = self.shared.state.lock();
        let number = state.next;
        state.next += 1;
        if let Owner::User(login) = &owner {
            let users = &mut state.live.users;
            if !users.values().any(|l| l == login) {
                let id = users.keys().last().map_or(1, |id| id + 1);
                users.insert(id, login.clone());
            }
        }
        let entry = NodeEntry {
            number,
            name: name.to_owned(),
            owner,
            suffix: shared_from.unwrap_or(&state.suffix).to_owned(),
            shared: shared_from.is_some(),
            os: "linux".to_owned(),
            online: true,
            created: format!("2026-11-21T06:40:{:02}.84148595Z", number % 60),
            routes: Vec::new(),
            renewed: 0,
            expires: None,
            endpoints: Vec::new(),
        };
        state.live.nodes.insert(number, entry);
        state.daemons.insert(number, Daemon::default());
        drop(state);
        self.shared.ring();
        number
    }
}

fn pair(map: &Netmap, from: &str, to: &str) -> Option<(NodeNumber, NodeNumber)> {
    let number = |name: &str| map.nodes.values().find(|n| n.name == name).map(|n| n.number);
    Some((number(from)?, number(to)?))
}
