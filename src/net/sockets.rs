//! What a machine lends the program: its ports, its interfaces, its knowledge of who connects
//! to it, and of what it runs on.
//!
//! The demo and the tests run several nodes in one process on one machine. This is the only
//! thing they replace: where a listener really binds, who is told, who is at the other end of
//! a connection, which local networks there are, and where an address on one of them is
//! really found.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use super::host::{self, Host};
use super::lan::{self, Interface, LanView, Leashes, Machine};
use super::localapi::Daemon;
use super::peerproc::{self, OtherEnd};
use super::power;
use super::task::Task;
use super::zone;
use crate::types::{ListenerKind, LocalTime, Power, Wall};

type Place = dyn Fn(ListenerKind, SocketAddr) -> SocketAddr + Send + Sync;
type Bound = dyn Fn(ListenerKind, SocketAddr, SocketAddr) + Send + Sync;
type Look = dyn Fn(SocketAddr, SocketAddr, Option<Daemon>) -> OtherEnd + Send + Sync;
type Interfaces = dyn Fn() -> Vec<Interface> + Send + Sync;
type Reach = dyn Fn(ListenerKind, SocketAddr) -> SocketAddr + Send + Sync;
type Source = dyn Fn(SocketAddr) -> SocketAddr + Send + Sync;
type PowerNow = dyn Fn() -> Power + Send + Sync;
type Local = dyn Fn(Wall) -> LocalTime + Send + Sync;

/// A machine's ports and its knowledge of connections. Cheap to clone.
#[derive(Clone)]
pub struct Sockets {
    place: Arc<Place>,
    bound: Arc<Bound>,
    look: Arc<Look>,
    interfaces: Arc<Interfaces>,
    reach: Arc<Reach>,
    source: Arc<Source>,
    power: Arc<PowerNow>,
    local: Arc<Local>,
    host: Option<watch::Receiver<Host>>,
    multicast: bool,
    leashes: Leashes,
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sockets")
    }
}

impl Sockets {
    /// This machine: listeners bind where they want to.
    pub fn real() -> Sockets {
        let machine = Machine::default();
        Sockets {
            place: Arc::new(|_, wanted| wanted),
            bound: Arc::new(|_, _, _| {}),
            look: Arc::new(peerproc::other_end),
            interfaces: Arc::new(move || machine.read()),
            reach: Arc::new(|_, addr| addr),
            source: Arc::new(|remote| remote),
            power: Arc::new(power::read),
            local: Arc::new(zone::local),
            host: None,
            multicast: true,
            leashes: Leashes::default(),
        }
    }

    /// A machine on which a listener binds where `place` says (port 0 = any free one). It has
    /// no multicast: what is announced for a place elsewhere would be wrong.
    #[must_use]
    pub fn placed(
        self,
        place: impl Fn(ListenerKind, SocketAddr) -> SocketAddr + Send + Sync + 'static,
    ) -> Sockets {
        Sockets { place: Arc::new(place), multicast: false, ..self }
    }

    /// A machine that tells `bound` of each listener: its kind, the address it wanted, and the
    /// one it got.
    #[must_use]
    pub fn on_bound(
        self,
        bound: impl Fn(ListenerKind, SocketAddr, SocketAddr) + Send + Sync + 'static,
    ) -> Sockets {
        Sockets { bound: Arc::new(bound), ..self }
    }

    /// A machine that knows the other ends of connections (our address, theirs, the daemon) in
    /// its own way.
    #[must_use]
    pub fn with_other_end(
        self,
        look: impl Fn(SocketAddr, SocketAddr, Option<Daemon>) -> OtherEnd + Send + Sync + 'static,
    ) -> Sockets {
        Sockets { look: Arc::new(look), ..self }
    }

    /// A machine with these interfaces. It has no multicast.
    #[must_use]
    pub fn with_interfaces(
        self,
        interfaces: impl Fn() -> Vec<Interface> + Send + Sync + 'static,
    ) -> Sockets {
        Sockets { interfaces: Arc::new(interfaces), multicast: false, ..self }
    }

    /// A machine on which the other side's listener of a kind, known by its address on the
    /// local network, is really found where `reach` says.
    #[must_use]
    pub fn with_reach(
        self,
        reach: impl Fn(ListenerKind, SocketAddr) -> SocketAddr + Send + Sync + 'static,
    ) -> Sockets {
        Sockets { reach: Arc::new(reach), ..self }
    }

    /// A machine on which a connection that came from the local network seems to come from
    /// elsewhere: `source` says from where it really came.
    #[must_use]
    pub fn with_source(
        self,
        source: impl Fn(SocketAddr) -> SocketAddr + Send + Sync + 'static,
    ) -> Sockets {
        Sockets { source: Arc::new(source), ..self }
    }

    /// A machine that runs on what `power` says.
    #[must_use]
    pub fn with_power(self, power: impl Fn() -> Power + Send + Sync + 'static) -> Sockets {
        Sockets { power: Arc::new(power), ..self }
    }

    /// A machine that stands where the time is what `local` says.
    #[must_use]
    pub fn with_local(self, local: impl Fn(Wall) -> LocalTime + Send + Sync + 'static) -> Sockets {
        Sockets { local: Arc::new(local), ..self }
    }

    /// A machine that says this of its use, its link and its sleep.
    #[must_use]
    pub fn with_host(self, host: watch::Receiver<Host>) -> Sockets {
        Sockets { host: Some(host), ..self }
    }

    /// The time on the wall where the machine stands.
    pub fn local(&self, at: Wall) -> LocalTime {
        (self.local)(at)
    }

    /// What the machine says of its use, its link and its sleep, for as long as the task is
    /// kept.
    pub fn follow_host(&self) -> (Option<Task>, watch::Receiver<Host>) {
        if let Some(host) = &self.host {
            return (None, host.clone());
        }
        let (out, host) = watch::channel(Host::default());
        (Some(Task::spawn(host::follow(out))), host)
    }

    /// What the machine runs on now. Reads a few small files of the kernel's.
    pub fn power(&self) -> Power {
        (self.power)()
    }

    /// The addresses of this machine's network devices. Reads files, but only small ones of
    /// the kernel's.
    pub fn interfaces(&self) -> Vec<Interface> {
        (self.interfaces)()
    }

    /// Where a peer's listener of this kind at `addr` is really found. Only an address that
    /// stays as it is is dialled by way of its link's device.
    pub fn reach(&self, kind: ListenerKind, addr: SocketAddr) -> SocketAddr {
        (self.reach)(kind, addr)
    }

    /// Where a connection on the local network really came from.
    pub fn source(&self, remote: SocketAddr) -> SocketAddr {
        (self.source)(remote)
    }

    /// Whether names may be announced and looked for on the machine's networks.
    pub fn multicast(&self) -> bool {
        self.multicast
    }

    /// Follows the machine's links for as long as the task is kept: a connection on the local
    /// network ends when its network is lost, and the bell rings when anything changed.
    pub fn follow_links(&self) -> (Task, watch::Receiver<u64>) {
        (Task::spawn(lan::follow(self.leashes.clone())), self.leashes.bell())
    }

    /// Lets go what was kept of a network that was lost, where `now` allows it.
    pub fn settle(&self, now: &LanView) {
        self.leashes.settle(now);
    }

    pub(super) fn leashes(&self) -> &Leashes {
        &self.leashes
    }

    /// Where a listener that wants `wanted` has to bind.
    pub fn place(&self, kind: ListenerKind, wanted: SocketAddr) -> SocketAddr {
        (self.place)(kind, wanted)
    }

    /// Says that a listener is bound.
    pub fn bound(&self, kind: ListenerKind, wanted: SocketAddr, actual: SocketAddr) {
        (self.bound)(kind, wanted, actual);
    }

    /// Who is at the other end of the connection that we see as `local` ← `remote`. Reads
    /// files: not for a task that must not wait.
    pub fn other_end(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        daemon: Option<Daemon>,
    ) -> OtherEnd {
        (self.look)(local, remote, daemon)
    }
}
