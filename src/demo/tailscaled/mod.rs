//! A stand-in for tailscaled and its coordinator: nodes without a network.
//!
//! Every node gets a LocalAPI on a unix socket in a private temporary folder. All of them
//! are in userspace mode (`TUN: false`), where connections leave through `dial` and arrive on
//! 127.0.0.1: so one process can hold a whole tailnet without any privilege. What goes in: who
//! owns which node, which program listens behind which port, what breaks. What comes out: the
//! JSON recorded from tailscaled 1.102.5. It never opens a socket off this machine.

mod dial;
mod json;
mod localapi;
mod state;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::watch;

use self::state::{Daemon, Netmap, NodeEntry, State};

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
        let number = self.enter(name, owner, None);
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let folder =
            tempfile::Builder::new().prefix("tailherd-demo-").permissions(private).tempdir()?;
        let socket = folder.path().join("tailscaled.sock");
        let stop = open(&self.shared, number, &socket)?;
        let daemon =
            Tailscaled { tailnet: self.clone(), number, socket, stop: Mutex::new(stop), folder };
        Ok(daemon)
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

fn open(
    shared: &Arc<Shared>,
    number: NodeNumber,
    socket: &Path,
) -> io::Result<watch::Sender<bool>> {
    let listener = UnixListener::bind(socket)?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(localapi::accept(shared.clone(), number, listener, stopped));
    Ok(stop)
}

/// The stand-in daemon of one node. Dropped, it goes down.
#[derive(Debug)]
pub struct Tailscaled {
    tailnet: Tailnet,
    number: NodeNumber,
    socket: PathBuf,
    stop: Mutex<watch::Sender<bool>>,
    folder: TempDir,
}

impl Tailscaled {
    /// Where its LocalAPI is.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The private folder of the socket (0700).
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The node's number.
    pub fn number(&self) -> NodeNumber {
        self.number
    }

    /// The node's tailnet addresses, IPv4 first.
    pub fn addrs(&self) -> Vec<IpAddr> {
        let state = self.tailnet.shared.state.lock();
        let node = state.live.nodes.get(&self.number);
        node.map_or_else(Vec::new, |n| vec![n.v4().into(), n.v6().into()])
    }

    /// Connections to this tailnet port go to that program on this machine; `None` = nobody
    /// listens there any more.
    pub fn port(&self, port: u16, program: Option<SocketAddr>) {
        self.edit(|d| match program {
            Some(addr) => drop(d.ports.insert(port, addr)),
            None => drop(d.ports.remove(&port)),
        });
        self.tailnet.shared.changed.send_modify(|n| *n += 1);
    }

    /// Whether a connection from this address was opened by this daemon for a peer. It is the
    /// daemon's own descriptor, and so true before WhoIs knows whose it is.
    pub fn owns(&self, source: SocketAddr) -> bool {
        let state = self.tailnet.shared.state.lock();
        state.daemons.get(&self.number).is_some_and(|d| d.sockets.contains(&source))
    }

    /// Kills the process: the socket file stays and refuses, every connection through it ends.
    pub fn kill(&self) {
        self.edit(|d| d.up = false);
        self.stop.lock().send_replace(true);
        self.tailnet.shared.changed.send_modify(|n| *n += 1);
    }

    /// Starts the process again. Without a coordinator it knows nothing: `NoState`.
    pub fn start(&self) -> io::Result<()> {
        std::fs::remove_file(&self.socket)?;
        let known = self.tailnet.shared.state.lock().coordinator();
        self.edit(|d| {
            d.up = true;
            d.state = if known { "Running" } else { "NoState" };
        });
        *self.stop.lock() = open(&self.tailnet.shared, self.number, &self.socket)?;
        self.tailnet.shared.ring();
        Ok(())
    }

    /// Sets `BackendState` (`Running`, `Stopped`, `NeedsLogin`, `Starting`, `NoState`).
    pub fn backend(&self, state: &'static str) {
        self.edit(|d| d.state = state);
        self.tailnet.shared.ring();
    }

    /// Says what `TUN` is in its status; `None` leaves the field out.
    pub fn tun(&self, tun: Option<bool>) {
        self.edit(|d| d.tun = tun);
        self.tailnet.shared.ring();
    }

    /// Puts the machine to sleep: connections to and from it stand still, nothing is refused.
    pub fn asleep(&self, asleep: bool) {
        self.edit(|d| d.asleep = asleep);
        self.tailnet.shared.changed.send_modify(|n| *n += 1);
    }

    /// WhoIs never answers.
    pub fn whois_hangs(&self, hangs: bool) {
        self.edit(|d| d.whois_hangs = hangs);
    }

    /// For so long after a connection was forwarded here, WhoIs says 404 for it.
    pub fn whois_lag(&self, lag: Duration) {
        self.edit(|d| d.whois_lag = lag);
    }

    /// What `serve-config` answers.
    pub fn serve(&self, config: Value) {
        self.edit(|d| d.serve = config);
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Asked {
        self.tailnet
            .shared
            .state
            .lock()
            .daemons
            .get(&self.number)
            .map_or_else(Asked::default, |d| d.asked)
    }

    fn edit(&self, change: impl FnOnce(&mut Daemon)) {
        change(self.tailnet.shared.state.lock().daemons.entry(self.number).or_default());
    }
}

impl Drop for Tailscaled {
    fn drop(&mut self) {
        self.kill();
    }
}
