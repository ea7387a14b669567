//! The mesh listeners: they follow this node's tailnet addresses.
//!
//! In flow pictures of the tailnet; out flow accepted connections, all on one channel.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;

use super::follow::{Arrival, Follower, MeshPort, Wanted};
use crate::net::device::device_of;
use crate::net::sockets::Sockets;
use crate::net::task::Task;
use crate::net::view::TailnetView;
use crate::telemetry::Clock;
use crate::types::{ListenerKind, Timing};

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

/// Listeners that follow the tailnet, for as long as this value lives.
#[derive(Debug)]
pub struct MeshListeners {
    arrivals: mpsc::Receiver<Arrival>,
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
        clock: Clock,
        timing: &Timing,
    ) -> MeshListeners {
        let (follower, arrivals, state) = Follower::new(ListenerKind::Mesh, sockets);
        let task = Task::spawn(run(follower, tailnet, ports, clock, timing.tailnet_poll));
        MeshListeners { arrivals, state, _task: task }
    }

    /// The next connection; `None` once the tailnet is not followed any more.
    pub async fn accept(&mut self) -> Option<Accepted> {
        let Arrival { stream, local, remote, .. } = self.arrivals.recv().await?;
        Some(Accepted { stream, local, remote })
    }

    /// How the listeners fare.
    pub fn state(&self) -> watch::Receiver<Vec<MeshPort>> {
        self.state.clone()
    }
}

async fn run(
    mut follower: Follower,
    mut tailnet: watch::Receiver<Arc<TailnetView>>,
    ports: Vec<u16>,
    clock: Clock,
    every: Duration,
) {
    loop {
        let view = Arc::clone(&tailnet.borrow_and_update());
        let wanted = wanted(&view, &ports);
        let some = !wanted.is_empty();
        follower.step(wanted);
        tokio::select! {
            changed = tailnet.changed() => if changed.is_err() { return },
            // Devices come and go, and ports become free, without a word from the daemon.
            () = sleep_until(clock.next(every)), if some => {}
            () = follower.abandoned() => return,
        }
    }
}

fn wanted(view: &TailnetView, ports: &[u16]) -> Vec<Wanted> {
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
