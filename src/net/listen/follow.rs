//! Listeners that come and go with addresses.
//!
//! In flow the addresses that are wanted, again and again; out flow accepted connections, all
//! on one channel. An address that is new gets its listener, one that went loses it, and a
//! network device that was made anew gets a new one: a socket bound to the old one hears
//! nothing any more. A port that is taken is tried again with the next step.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use super::{Listener, bind};
use crate::net::device::Device;
use crate::net::sockets::Sockets;
use crate::net::task::Task;
use crate::types::ListenerKind;

/// Accepted connections that wait for the program.
pub(super) const WAITING: usize = 64;

/// How one listener fares, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshPort {
    /// Where it listens, or would.
    pub addr: SocketAddr,
    /// Why it does not.
    pub error: Option<String>,
}

/// A connection that came in.
pub(super) struct Arrival {
    /// For which of the wanted addresses the listener stands.
    pub(super) wanted: SocketAddr,
    pub(super) stream: TcpStream,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// A listener that ought to be.
pub(super) struct Wanted {
    pub(super) addr: SocketAddr,
    /// The device to bind to (`None` on loopback), or why there is none.
    pub(super) device: Result<Option<Device>, &'static str>,
}

/// The listeners of one kind.
pub(super) struct Follower {
    kind: ListenerKind,
    sockets: Sockets,
    send: mpsc::Sender<Arrival>,
    tell: watch::Sender<Vec<MeshPort>>,
    doors: BTreeMap<SocketAddr, Door>,
}

/// An open listener: the device it is bound to, and the task that accepts. Dropping it closes
/// the listener; connections that were accepted live on.
struct Door {
    device: Option<Device>,
    local: SocketAddr,
    _task: Task,
}

impl Follower {
    /// No listener yet, the channel of what comes in, and how the listeners fare.
    pub(super) fn new(
        kind: ListenerKind,
        sockets: Sockets,
    ) -> (Follower, mpsc::Receiver<Arrival>, watch::Receiver<Vec<MeshPort>>) {
        let (send, arrivals) = mpsc::channel(WAITING);
        let (tell, state) = watch::channel(Vec::new());
        (Follower { kind, sockets, send, tell, doors: BTreeMap::new() }, arrivals, state)
    }

    /// Ends when nobody takes what comes in any more.
    pub(super) async fn abandoned(&self) {
        self.send.closed().await;
    }

    /// Makes the listeners those that are wanted.
    pub(super) fn step(&mut self, wanted: Vec<Wanted>) {
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
        let kind = self.kind.label();
        self.tell.send_if_modified(|now| {
            let changed = *now != state;
            if changed {
                for port in state.iter().filter(|p| !now.contains(p)) {
                    match &port.error {
                        None => tracing::info!(at = %port.addr, kind, "listening"),
                        Some(error) => tracing::warn!(at = %port.addr, kind, "{error}"),
                    }
                }
                *now = state;
            }
            changed
        });
    }

    fn open(&mut self, addr: SocketAddr, device: Option<Device>) -> Result<(), String> {
        if self.doors.contains_key(&addr) {
            return Ok(());
        }
        let listener = bind(&self.sockets, self.kind, addr, device.as_ref())
            .map_err(|error| error.to_string())?;
        let local = listener.local;
        let task = Task::spawn(accept(listener, addr, self.send.clone()));
        self.doors.insert(addr, Door { device, local, _task: task });
        Ok(())
    }
}

async fn accept(listener: Listener, wanted: SocketAddr, send: mpsc::Sender<Arrival>) {
    loop {
        let (stream, local, remote) = listener.accept().await;
        if send.send(Arrival { wanted, stream, local, remote }).await.is_err() {
            return;
        }
    }
}
