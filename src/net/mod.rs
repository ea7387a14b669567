//! Sockets: the only folder that opens, accepts or names them.
//!
//! In flow a [`crate::types::Dial`] that says where a connection has to go, or an address to
//! listen on; out flow byte streams ([`Io`]), HTTP/1 exchanges ([`Lease`], [`PooledBody`]),
//! what LocalAPI says of the tailnet ([`TailnetView`]), and who stands at the other end of a
//! connection ([`Callers`]).
//!
//! It never decides what a caller may do, and never lets a connection meant for the tailnet
//! leave by another way: see [`Connector`].

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncRead, AsyncWrite};

mod caller;
mod connect;
mod device;
pub mod home;
mod host;
pub mod lan;
pub mod listen;
pub mod localapi;
pub mod mdns;
mod peerproc;
mod pool;
mod power;
mod sockets;
mod task;
mod tunnel;
pub mod view;
mod witness;
mod zone;

pub use caller::{Callers, Identity, Refusal};
pub use connect::{ConnectError, Connector};
pub use device::{Device, device_of};
pub use host::Host;
pub use lan::{Interface, LanLink, LanView};
pub use listen::{
    Accepted, BindError, LanAccepted, LanListeners, Listener, MeshListeners, MeshPort, UnixDoor,
};
pub use localapi::LocalApi;
pub use peerproc::OtherEnd;
pub use pool::{Lease, Pool, PooledBody, SendError};
pub use sockets::Sockets;
pub use task::Task;
pub use view::{TailnetNode, TailnetView};

/// Any error, as bodies carry it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request body of any kind.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body of bytes that are already there.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A byte stream in both directions: TCP, TLS, a unix socket, a stream through tailscaled.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

#[cfg(test)]
mod tests;
