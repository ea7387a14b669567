//! Doors: the listeners of this node.
//!
//! In flow a kind and an address; out flows a bound listener or the reason why there is none,
//! which is a line in `status` and never ends the program. Trust is fixed by the kind at bind
//! ([`ListenerKind`]), so nothing ever binds a wildcard address, and what is meant for one
//! network device is bound to that device.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::sleep;

use super::Io;
use super::connect::bind_to_device;
use super::device::Device;
use super::sockets::Sockets;
use crate::types::ListenerKind;

mod bridge;
mod follow;
mod lan;
mod mesh;
mod tls;

pub use bridge::{BridgeError, bridge};
pub use follow::MeshPort;
pub use lan::{LanAccepted, LanListeners};
pub use mesh::{Accepted, MeshListeners};
pub use tls::{HANDSHAKE_FAILED, TOO_MANY, is_tls, tls_hello};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// How long accepting rests when the process has no descriptors left.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Why a listener could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address means every network of this machine.
    #[error("{0} would listen on every network: name an address")]
    Wildcard(SocketAddr),
    /// The system said no.
    #[error("cannot listen on {at}: {source}")]
    Io {
        /// Where.
        at: String,
        /// What the system said.
        source: io::Error,
    },
    /// There is something at that path which is not a socket.
    #[error("cannot listen on {0}: there is something else")]
    NotASocket(PathBuf),
}

impl BindError {
    /// Whether another program holds the address.
    pub fn is_in_use(&self) -> bool {
        matches!(self, BindError::Io { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
    }
}

/// A bound TCP listener.
#[derive(Debug)]
pub struct Listener {
    /// Its kind.
    pub kind: ListenerKind,
    /// Where it is bound.
    pub local: SocketAddr,
    tcp: TcpListener,
}

/// Binds a listener of this kind at `wanted`, if given on `device` only. One that this machine
/// puts elsewhere is on no such device.
pub fn bind(
    sockets: &Sockets,
    kind: ListenerKind,
    wanted: SocketAddr,
    device: Option<&Device>,
) -> Result<Listener, BindError> {
    let place = sockets.place(kind, wanted);
    if place.ip().to_canonical().is_unspecified() {
        return Err(BindError::Wildcard(place));
    }
    let device = device.filter(|_| place.ip() == wanted.ip());
    let made = || -> io::Result<(TcpListener, SocketAddr)> {
        let socket = Socket::new(Domain::for_address(place), Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait for connections of the last run to fade.
        socket.set_reuse_address(true)?;
        if place.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if let Some(device) = device {
            bind_to_device(&socket, device, place.is_ipv4())?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&place.into())?;
        socket.listen(BACKLOG)?;
        let tcp = TcpListener::from_std(socket.into())?;
        let local = tcp.local_addr()?;
        Ok((tcp, local))
    };
    let (tcp, local) = made().map_err(|source| BindError::Io { at: place.to_string(), source })?;
    sockets.bound(kind, wanted, local);
    Ok(Listener { kind, local, tcp })
}

impl Listener {
    /// The next connection: the stream, our address in it, theirs. Errors that belong to one
    /// connection are passed over; without free descriptors it waits.
    pub async fn accept(&self) -> (TcpStream, SocketAddr, SocketAddr) {
        loop {
            match self.tcp.accept().await {
                Ok((stream, remote)) => {
                    // A connection that is gone already has no address any more.
                    let Ok(local) = stream.local_addr() else { continue };
                    // Frames of a stream must not wait for each other.
                    if stream.set_nodelay(true).is_ok() {
                        return (stream, local, remote);
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(at = %self.local, %error, "cannot accept connections");
                    sleep(EXHAUSTED).await;
                }
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// A bound unix socket; its file goes when this value goes.
#[derive(Debug)]
pub struct UnixDoor {
    listener: UnixListener,
    path: PathBuf,
    /// The file's inode: another program may take the place once ours was deleted by hand.
    inode: u64,
}

/// Binds a unix socket with these permission bits (0660 for apps, 0600 for commands). The
/// socket of a program that died is replaced, that of a living one is not.
pub fn unix(path: &Path, mode: u32) -> Result<UnixDoor, BindError> {
    let failed = |source| BindError::Io { at: path.display().to_string(), source };
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(failed(io::ErrorKind::AddrInUse.into()));
        }
        _ => {}
    }
    let made = || -> io::Result<(UnixListener, u64)> {
        // Bound where nobody else can reach it, and moved into place once its permissions are
        // right: there is no moment in which others could connect.
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        let closed = tempfile::Builder::new()
            .prefix(".th")
            .rand_bytes(4)
            .tempdir_in(folder.unwrap_or(Path::new(".")))?;
        let inside = closed.path().join("s");
        let listener = UnixListener::bind(&inside)?;
        std::fs::set_permissions(&inside, PermissionsExt::from_mode(mode))?;
        let inode = std::fs::symlink_metadata(&inside)?.ino();
        std::fs::rename(&inside, path)?;
        Ok((listener, inode))
    };
    let (listener, inode) = made().map_err(failed)?;
    Ok(UnixDoor { listener, path: path.to_owned(), inode })
}

/// A connection to a unix socket of this machine: for commands that talk to the running
/// program.
pub async fn call(path: &Path) -> io::Result<Box<dyn Io>> {
    Ok(Box::new(UnixStream::connect(path).await?))
}

impl UnixDoor {
    /// The next connection and the user id at its other end.
    pub async fn accept(&self) -> (tokio::net::UnixStream, Option<u32>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let uid = stream.peer_cred().ok().map(|cred| cred.uid());
                    return (stream, uid);
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(at = %self.path.display(), %error, "cannot accept connections");
                    sleep(EXHAUSTED).await;
                }
            }
        }
    }
}

impl Drop for UnixDoor {
    fn drop(&mut self) {
        let meta = std::fs::symlink_metadata(&self.path);
        if meta.is_ok_and(|meta| meta.ino() == self.inode) {
            // What is gone is gone.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The addresses a bridge's listener binds: those of the device that others on it can reach.
fn addresses_of(name: &str) -> Vec<(IpAddr, Device)> {
    let all = if_addrs::get_if_addrs().unwrap_or_default();
    all.into_iter()
        .filter(|i| i.name == name && !i.is_link_local())
        .map(|i| (i.ip(), Device { name: i.name, index: i.index }))
        .collect()
}
