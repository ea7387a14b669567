//! The mesh listeners: they follow this node's tailnet addresses.
//!
//! In flow pictures of the tailnet; out flow accepted connections, all on one channel. An
//! address that is new gets its listeners, one that went loses them, and a network device
//! that was made anew gets new ones: a socket bound to the old one hears nothing any more. A
//! port that is taken is tried again.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::{Listener, bind};
use crate::net::device::{Device, device_of};
use crate::net::sockets::Sockets;
use crate::net::task::Task;
use crate::net::view::TailnetView;
use crate::types::{ListenerKind, Timing};

/// Accepted connections that wait for the program.
const WAITING: usize = 64;

/// A connection that came in at a mesh listener.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: TcpStream,
    /// Our address in it.
    pub local: SocketAddr,
    /// Theirs.
    pub remote: SocketAddr,
}

/// How one mesh listener fares, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshPort {
    /// Where it listens, or would.
    pub addr: SocketAddr,
    /// Why it does not.
    pub error: Option<String>,
}

/// Listeners that follow the tailnet, for as long as this value lives.
#[derive(Debug)]
pub struct MeshListeners {
    accepted: mpsc::Receiver<Accepted>,
    state: watch::Receiver<Vec<MeshPort>>,
    _task: Task,
}

impl MeshListeners {
    /// Follows `tailnet` with listeners on `ports`; in userspace mode on the first of them, on
    /// loopback, where the daemon forwards to.
    pub fn follow(
        tailnet: watch::Receiver<Arc<TailnetView>>,
        ports: Vec<u16>,
        sockets: Sockets,
        timing: &Timing,
    ) -> MeshListeners {
        let (send, accepted) = mpsc::channel(WAITING);
        let (tell, state) = watch::channel(Vec::new());
        let follower = Follower {
            ports,
            sockets,
            send,
            tell,
            doors: BTreeMap::new(),
            every: timing.tailnet_poll,
        };
        MeshListeners { accepted, state, _task: Task::spawn(follower.run(tailnet)) }
    }

    /// The next connection; `None` once the tailnet is not followed any more.
    pub async fn accept(&mut self) -> Option<Accepted> {
        self.accepted.recv().await
    }

    /// How the listeners fare.
    pub fn state(&self) -> watch::Receiver<Vec<MeshPort>> {
        self.state.clone()
    }
}

struct Follower {
    ports: Vec<u16>,
    sockets: Sockets,
    send: mpsc::Sender<Accepted>,
    tell: watch::Sender<Vec<MeshPort>>,
    doors: BTreeMap<SocketAddr, Door>,
    every: Duration,
}

/// An open listener: the device it is bound to, and the task that accepts. Dropping it closes
/// the listener; connections that were accepted live on.
struct Door {
    device: Option<Device>,
    local: SocketAddr,
    _task: Task,
}

impl Follower {
    async fn run(mut self, mut tailnet: watch::Receiver<Arc<TailnetView>>) {
        let mut tick = interval(self.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let view = Arc::clone(&tailnet.borrow_and_update());
            self.step(&view);
            tokio::select! {
                changed = tailnet.changed() => if changed.is_err() { return },
                // Devices come and go, and ports become free, without a word from the daemon.
                _ = tick.tick() => {}
                () = self.send.closed() => return,
            }
        }
    }

    fn step(&mut self, view: &TailnetView) {
        let wanted = self.wanted(view);
        self.doors.retain(|addr, door| {
            wanted.iter().any(|w| w.addr == *addr && w.device.as_ref().ok() == Some(&door.device))
        });
        let mut state = Vec::new();
        for Wanted { addr, device } in wanted {
            let error = match device {
                Ok(device) => self.open(addr, device).err(),
                Err(why) => Some(why.to_owned()),
            };
            let addr = self.doors.get(&addr).map_or(addr, |door| door.local);
            state.push(MeshPort { addr, error });
        }
        self.tell.send_if_modified(|now| {
            let changed = *now != state;
            if changed {
                for port in state.iter().filter(|p| !now.contains(p)) {
                    match &port.error {
                        None => tracing::info!(at = %port.addr, "listening for the mesh"),
                        Some(error) => tracing::warn!(at = %port.addr, "{error}"),
                    }
                }
                *now = state;
            }
            changed
        });
    }

    fn wanted(&self, view: &TailnetView) -> Vec<Wanted> {
        let ports = &self.ports;
        match view.tun {
            _ if !view.running => Vec::new(),
            None => Vec::new(),
            Some(false) => ports
                .iter()
                .take(1)
                .map(|port| Wanted {
                    addr: SocketAddr::from((Ipv4Addr::LOCALHOST, *port)),
                    device: Ok(None),
                })
                .collect(),
            Some(true) => view
                .me
                .iter()
                .flat_map(|me| &me.addrs)
                .flat_map(|ip| {
                    let device = device_of(*ip).map(Some).ok_or("no network device carries it");
                    ports.iter().map(move |port| Wanted {
                        addr: SocketAddr::new(*ip, *port),
                        device: device.clone(),
                    })
                })
                .collect(),
        }
    }

    fn open(&mut self, addr: SocketAddr, device: Option<Device>) -> Result<(), String> {
        if self.doors.contains_key(&addr) {
            return Ok(());
        }
        let listener = bind(&self.sockets, ListenerKind::Mesh, addr, device.as_ref())
            .map_err(|error| error.to_string())?;
        let local = listener.local;
        let task = Task::spawn(accept(listener, self.send.clone()));
        self.doors.insert(addr, Door { device, local, _task: task });
        Ok(())
    }
}

struct Wanted {
    addr: SocketAddr,
    /// The device to bind to (`None` on loopback), or why there is none.
    device: Result<Option<Device>, &'static str>,
}

async fn accept(listener: Listener, send: mpsc::Sender<Accepted>) {
    loop {
        let (stream, local, remote) = listener.accept().await;
        if send.send(Accepted { stream, local, remote }).await.is_err() {
            return;
        }
    }
}
