//! The stand-in daemon of one node: its life, and what breaks in it.

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

use super::state::{Asked, Daemon, NodeNumber, TUNNEL_PORT};
use super::{Shared, Tailnet, localapi};

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
    /// Starts the daemon of a node that has joined.
    pub(super) fn begin(tailnet: &Tailnet, number: NodeNumber) -> io::Result<Tailscaled> {
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let folder =
            tempfile::Builder::new().prefix("tailherd-demo-").permissions(private).tempdir()?;
        let socket = folder.path().join("tailscaled.sock");
        let stop = Mutex::new(open(&tailnet.shared, number, &socket)?);
        Ok(Tailscaled { tailnet: tailnet.clone(), number, socket, stop, folder })
    }

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
        self.again(false)
    }

    /// Ends the process and starts it again. Without a coordinator a daemon that kept its
    /// list in a file says `Running` and shows all its peers, and still every packet is lost:
    /// nobody has heard of its new keys.
    pub fn restart(&self, cached: bool) -> io::Result<()> {
        self.kill();
        self.again(cached)
    }

    fn again(&self, cached: bool) -> io::Result<()> {
        std::fs::remove_file(&self.socket)?;
        let known = self.tailnet.shared.state.lock().coordinator();
        self.edit(|d| {
            d.up = true;
            d.state = if known || cached { "Running" } else { "NoState" };
            d.cached = cached && !known;
            d.deaf = cached && !known;
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

    /// Logs its user out: the daemon forgets the tailnet, its coordinator included. Others see
    /// the node and its key as before.
    pub fn logout(&self) {
        self.edit(|d| (d.state, d.logged_out) = ("NeedsLogin", true));
        self.tailnet.shared.ring();
    }

    /// Logs its user in again.
    pub fn login(&self) {
        self.edit(|d| (d.state, d.logged_out) = ("Running", false));
        self.tailnet.shared.ring();
    }

    /// Whether packets come through its tunnels. Without, it goes on saying `Running`.
    pub fn tunnels(&self, alive: bool) {
        self.edit(|d| d.deaf = !alive);
        self.tailnet.shared.changed.send_modify(|n| *n += 1);
    }

    /// Whether it sends all traffic through an exit node, and if so, whether that leaves the
    /// local network alone.
    pub fn exit_node(&self, allows_lan: Option<bool>) {
        self.edit(|d| d.exit_node = allows_lan);
        self.tailnet.shared.ring();
    }

    /// Puts it on a local network under this address; tunnels between two nodes on the same
    /// one go straight. The coordinator, if it is there, is told the address.
    pub fn link(&self, place: Option<(u64, IpAddr)>) {
        self.edit(|d| d.link = place);
        let endpoint = place.map(|(_, addr)| SocketAddr::new(addr, TUNNEL_PORT));
        let number = self.number;
        self.tailnet.edit(|map| {
            if let Some(node) = map.nodes.get_mut(&number) {
                node.endpoints = endpoint.into_iter().collect();
            }
        });
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
