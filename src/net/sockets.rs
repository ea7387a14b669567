//! What a machine lends the program: its ports, and its knowledge of who connects to them.
//!
//! The demo and the tests run several nodes in one process on one machine. This is the only
//! thing they replace: where a listener really binds, who is told, and who is at the other
//! end of a connection.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::localapi::Daemon;
use super::peerproc::{self, OtherEnd};
use crate::types::ListenerKind;

type Place = dyn Fn(ListenerKind, SocketAddr) -> SocketAddr + Send + Sync;
type Bound = dyn Fn(ListenerKind, SocketAddr, SocketAddr) + Send + Sync;
type Look = dyn Fn(SocketAddr, SocketAddr, Option<Daemon>) -> OtherEnd + Send + Sync;

/// A machine's ports and its knowledge of connections. Cheap to clone.
#[derive(Clone)]
pub struct Sockets {
    place: Arc<Place>,
    bound: Arc<Bound>,
    look: Arc<Look>,
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sockets")
    }
}

impl Sockets {
    /// This machine: listeners bind where they want to.
    pub fn real() -> Sockets {
        Sockets {
            place: Arc::new(|_, wanted| wanted),
            bound: Arc::new(|_, _, _| {}),
            look: Arc::new(peerproc::other_end),
        }
    }

    /// A machine on which a listener binds where `place` says (port 0 = any free one).
    #[must_use]
    pub fn placed(
        self,
        place: impl Fn(ListenerKind, SocketAddr) -> SocketAddr + Send + Sync + 'static,
    ) -> Sockets {
        Sockets { place: Arc::new(place), ..self }
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
