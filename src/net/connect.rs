//! Making connections, each in the only way its [`Dial`] allows.
//!
//! In flow a node and a [`Dial`], out flows a byte stream or the reason why there is none.
//!
//! A tailnet address is dialled only while the daemon says `Running` and lists it for that
//! very node, from this node's own tailnet address, and bound to the network device that
//! carries it. Without these a packet to a tailnet address leaves by the default route as
//! soon as the daemon dies, and the prompt in it reaches a stranger. In userspace mode there
//! is no device: the daemon itself is asked to dial.
//!
//! An address on the local network is dialled only where [`LanView`] has a link for it, for a
//! node whose pin lives, inside TLS that accepts the pinned key and no other.

use std::io;
use std::net::{IpAddr, SocketAddr};
#[cfg(target_os = "macos")]
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Io;
use super::device::{Device, device_of};
use super::lan::{Dialler, LanView};
use super::localapi::{ApiError, Current};
use super::sockets::Sockets;
use super::tunnel;
use super::view::{TailnetNode, TailnetView, is_tailnet_range};
use crate::trust::{Trust, tls};
use crate::types::{Dial, NodeId, PublicKey, Timing, Via};

/// Why there is no connection. Each of these happens before anything was sent, so another
/// node or another path may always be tried.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The other side, or the system, said no.
    #[error("cannot connect to {to}: {source}")]
    Io {
        /// Where to.
        to: String,
        /// What the system said.
        source: io::Error,
    },
    /// No answer in time.
    #[error("no connection to {to} within {limit:?}")]
    TimedOut {
        /// Where to.
        to: String,
        /// The limit.
        limit: Duration,
    },
    /// The tailnet does not run, so its addresses are not dialled.
    #[error("{0} is not dialled: the tailnet does not run")]
    NotRunning(SocketAddr),
    /// The daemon does not list that address for that node.
    #[error("{0} is not dialled: the tailnet lists no such address for that node")]
    NotListed(SocketAddr),
    /// No network device carries this node's tailnet address, or sockets cannot be bound to
    /// it.
    #[error("{to} is not dialled: {why}")]
    NoDevice {
        /// Where to.
        to: SocketAddr,
        /// What is missing.
        why: String,
    },
    /// The daemon did not dial for us.
    #[error("cannot connect to {to}: {source}")]
    Daemon {
        /// Where to.
        to: SocketAddr,
        /// What it said.
        source: ApiError,
    },
    /// The name is unknown.
    #[error("cannot look up {host}: {source}")]
    Name {
        /// The name.
        host: Arc<str>,
        /// What the resolver said.
        source: io::Error,
    },
    /// TLS failed.
    #[error("TLS with {host} failed: {source}")]
    Tls {
        /// The name.
        host: Arc<str>,
        /// Why.
        source: io::Error,
    },
    /// The address is none that may be dialled on the local network now, or for that node.
    #[error("{to} is not dialled: {why}")]
    Lan {
        /// Where to.
        to: SocketAddr,
        /// Why not.
        why: &'static str,
    },
    /// The other side did not prove the key it should have, or took ours for none it knows.
    #[error("the handshake with {to} failed: {source}")]
    Handshake {
        /// Where to.
        to: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// HTTP could not begin on the new connection.
    #[error("HTTP with {to} failed: {source}")]
    Http {
        /// Where to.
        to: String,
        /// Why.
        source: hyper::Error,
    },
}

impl ConnectError {
    /// Whether the address refused at once: its machine is up and nothing listens there.
    pub fn is_refused(&self) -> bool {
        match self {
            ConnectError::Io { source, .. } => source.kind() == io::ErrorKind::ConnectionRefused,
            // The daemon says it in words.
            ConnectError::Daemon { source: ApiError::Refused(_, _, text), .. } => {
                text.contains("refused")
            }
            _ => false,
        }
    }

    /// Whether a node answered that holds another key than the pinned one.
    pub fn is_other_key(&self) -> bool {
        let ConnectError::Handshake { source, .. } = self else { return false };
        let inner = source.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
    }

    /// Whether nothing came back in time. A port closed by policy looks like this, too.
    pub fn is_timeout(&self) -> bool {
        matches!(self, ConnectError::TimedOut { .. })
            || matches!(self, ConnectError::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut)
    }
}

/// Makes connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Connector(Arc<Inner>);

struct Inner {
    tailnet: watch::Receiver<Arc<TailnetView>>,
    localapi: Current,
    timing: Timing,
    lan: Option<Dialler>,
    /// Made at the first need: reading the system's certificates takes a while.
    tls: Mutex<Option<TlsConnector>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl Connector {
    /// A connector that follows this tailnet.
    pub fn new(
        tailnet: watch::Receiver<Arc<TailnetView>>,
        localapi: Current,
        timing: Timing,
    ) -> Connector {
        let tls = Mutex::new(None);
        Connector(Arc::new(Inner { tailnet, localapi, timing, lan: None, tls }))
    }

    /// A connector that also dials pinned peers on the local network, on the links of `lan`,
    /// and says hello over the tailnet with the keys of `trust`.
    pub fn with_lan(
        tailnet: watch::Receiver<Arc<TailnetView>>,
        localapi: Current,
        lan: watch::Receiver<Arc<LanView>>,
        trust: Trust,
        sockets: Sockets,
        timing: Timing,
    ) -> Connector {
        let lan = Some(Dialler { lan, trust, sockets, timing: timing.clone() });
        Connector(Arc::new(Inner { tailnet, localapi, timing, lan, tls: Mutex::new(None) }))
    }

    /// Connects. A tailnet address has to be `node`'s own.
    pub async fn connect(&self, node: &NodeId, dial: &Dial) -> Result<Box<dyn Io>, ConnectError> {
        match dial {
            Dial::Loopback(addr) => self.plain(*addr).await.map(boxed),
            Dial::Tailnet(addr) => self.tailnet(*addr, |peer| peer.id == *node).await,
            Dial::Lan { addr, key } => {
                let lan = self.0.lan.as_ref().ok_or(no_lan(*addr))?;
                lan.connect(node, *addr, *key).await
            }
            Dial::Configured { host, port, tls } => {
                let io = self.configured(host, *port).await?;
                if *tls { self.tls(io, host).await } else { Ok(io) }
            }
            Dial::Hosted { host, port, tls, via } => {
                let io = match via {
                    None => self.configured(host, *port).await?,
                    Some(via) => self.through(via, host, *port).await?,
                };
                if *tls { self.tls(io, host).await } else { Ok(io) }
            }
        }
    }

    /// Whether a connection that was made this way earlier may still be used: the tailnet may
    /// have stopped, or listed the address for another node, in the meantime; a pin may have
    /// died, or the local network have become another.
    pub fn permits(&self, node: &NodeId, dial: &Dial) -> bool {
        match dial {
            Dial::Tailnet(addr) => {
                permitted(&self.0.tailnet.borrow(), *addr, |peer| peer.id == *node).is_ok()
            }
            Dial::Lan { addr, key } => {
                let lan = self.0.lan.as_ref();
                lan.is_some_and(|lan| lan.permit(node, *addr, key).is_ok())
            }
            Dial::Loopback(_) | Dial::Configured { .. } | Dial::Hosted { .. } => true,
        }
    }

    /// A stream to `node`'s mesh port over the tailnet, inside TLS in which any key is
    /// accepted, and the key that the other side proved to hold: for a hello.
    pub async fn hello(
        &self,
        node: &NodeId,
        addr: SocketAddr,
    ) -> Result<(Box<dyn Io>, PublicKey), ConnectError> {
        let lan = self.0.lan.as_ref().ok_or(no_lan(addr))?;
        let ring = lan.trust.view().ring.clone();
        let ring = ring.ok_or(ConnectError::Lan { to: addr, why: "this node has no key" })?;
        let io = self.tailnet(addr, |peer| peer.id == *node).await?;
        let failed = |source| ConnectError::Handshake { to: addr, source };
        let config = tls::client_hello(ring.own()).map_err(|e| failed(io::Error::other(e)))?;
        let name = ServerName::IpAddress(addr.ip().into());
        let limit = self.0.timing.handshake;
        let stream = timeout(limit, TlsConnector::from(config).connect(name, io))
            .await
            .map_err(|_| ConnectError::TimedOut { to: addr.to_string(), limit })?
            .map_err(failed)?;
        let key = tls::peer_key(stream.get_ref().1);
        let key = key.ok_or_else(|| failed(io::ErrorKind::PermissionDenied.into()))?;
        Ok((Box::new(stream), key))
    }

    async fn plain(&self, addr: SocketAddr) -> Result<TcpStream, ConnectError> {
        let limit = self.limit(addr.ip());
        within(addr, limit, TcpStream::connect(addr)).await
    }

    fn limit(&self, ip: IpAddr) -> Duration {
        let timing = &self.0.timing;
        let lan = match ip.to_canonical() {
            IpAddr::V4(a) if a.is_loopback() => return timing.connect_loopback,
            IpAddr::V6(a) if a.is_loopback() => return timing.connect_loopback,
            IpAddr::V4(a) => a.is_private() || a.is_link_local(),
            IpAddr::V6(a) => a.is_unique_local() || a.is_unicast_link_local(),
        };
        if lan { timing.connect_lan } else { timing.connect_tailnet }
    }

    async fn tailnet(
        &self,
        addr: SocketAddr,
        is_it: impl Fn(&TailnetNode) -> bool,
    ) -> Result<Box<dyn Io>, ConnectError> {
        let view = Arc::clone(&self.0.tailnet.borrow());
        permitted(&view, addr, is_it)?;
        let limit = self.0.timing.connect_tailnet;
        match view.tun {
            Some(true) => {
                let no_device = |why: &str| ConnectError::NoDevice { to: addr, why: why.into() };
                let source = view
                    .own_address_like(addr.ip())
                    .ok_or_else(|| no_device("this node has no tailnet address of that family"))?;
                // Looked up anew each time: a device that went away a moment ago is gone.
                let device = device_of(source)
                    .ok_or_else(|| no_device("no device carries this node's tailnet address"))?;
                let socket = bound(source, addr, &device, self.0.timing.unacknowledged)
                    .map_err(|error| no_device(&format!("{}: {error}", device.name)))?;
                within(addr, limit, socket.connect(addr)).await.map(boxed)
            }
            Some(false) => {
                let api = self.0.localapi.load_full();
                let api = api.ok_or(ConnectError::NotRunning(addr))?;
                match api.dial(addr.ip(), addr.port(), limit).await {
                    Ok(io) => Ok(io),
                    Err(ApiError::Slow(limit)) => {
                        Err(ConnectError::TimedOut { to: addr.to_string(), limit })
                    }
                    Err(source) => Err(ConnectError::Daemon { to: addr, source }),
                }
            }
            None => Err(ConnectError::NotRunning(addr)),
        }
    }

    async fn configured(&self, host: &Arc<str>, port: u16) -> Result<Box<dyn Io>, ConnectError> {
        let name = |source| ConnectError::Name { host: Arc::clone(host), source };
        // URLs write IPv6 addresses in brackets.
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let addrs: Vec<SocketAddr> = match bare.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => {
                let limit = self.0.timing.connect_tailnet;
                match timeout(limit, lookup_host((bare, port))).await {
                    Ok(found) => found.map_err(name)?.collect(),
                    Err(_) => return Err(name(io::ErrorKind::TimedOut.into())),
                }
            }
        };
        let mut last = name(io::ErrorKind::NotFound.into());
        for addr in addrs {
            // A tailnet address is one whoever named it: the same rules hold.
            let made = if is_tailnet_range(addr.ip()) {
                self.tailnet(addr, |_| true).await
            } else {
                self.plain(addr).await.map(boxed)
            };
            match made {
                Ok(io) => return Ok(io),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// A stream to `host` that a proxy opens. What the proxy is told is the host and its own
    /// login, and nothing of the request.
    async fn through(
        &self,
        via: &Via,
        host: &Arc<str>,
        port: u16,
    ) -> Result<Box<dyn Io>, ConnectError> {
        let mut io = self.configured(&via.host, via.port).await?;
        let to = || format!("{host}:{port} through the proxy {}:{}", via.host, via.port);
        let limit = self.0.timing.connect_tailnet;
        match timeout(limit, tunnel::open(&mut io, host, port, via.login.as_ref())).await {
            Ok(Ok(())) => Ok(io),
            Ok(Err(source)) => Err(ConnectError::Io { to: to(), source }),
            Err(_) => Err(ConnectError::TimedOut { to: to(), limit }),
        }
    }

    async fn tls(&self, io: Box<dyn Io>, host: &Arc<str>) -> Result<Box<dyn Io>, ConnectError> {
        let failed = |source| ConnectError::Tls { host: Arc::clone(host), source };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let connector = self.tls_connector().map_err(|e| failed(io::Error::other(e)))?;
        let limit = self.0.timing.connect_tailnet;
        match timeout(limit, connector.connect(name, io)).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
        }
    }

    fn tls_connector(&self) -> Result<TlsConnector, rustls::Error> {
        let mut made = self.0.tls.lock();
        if let Some(connector) = &*made {
            return Ok(connector.clone());
        }
        // The provider is named: a process-wide default could be another one.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_platform_verifier()?
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        *made = Some(connector.clone());
        Ok(connector)
    }
}

fn no_lan(to: SocketAddr) -> ConnectError {
    ConnectError::Lan { to, why: "this program does not use the local network" }
}

fn boxed(stream: TcpStream) -> Box<dyn Io> {
    Box::new(stream)
}

/// Whether a tailnet address may be dialled now: the tailnet runs, and one of the peers that
/// `is_it` means has this address for its own.
fn permitted(
    view: &TailnetView,
    addr: SocketAddr,
    is_it: impl Fn(&TailnetNode) -> bool,
) -> Result<(), ConnectError> {
    if !view.running {
        return Err(ConnectError::NotRunning(addr));
    }
    let listed = view.peers.iter().any(|peer| is_it(peer) && peer.addrs.contains(&addr.ip()));
    if listed { Ok(()) } else { Err(ConnectError::NotListed(addr)) }
}

pub(super) async fn within(
    addr: SocketAddr,
    limit: Duration,
    connect: impl Future<Output = io::Result<TcpStream>>,
) -> Result<TcpStream, ConnectError> {
    let to = || addr.to_string();
    let stream = timeout(limit, connect)
        .await
        .map_err(|_| ConnectError::TimedOut { to: to(), limit })?
        .map_err(|source| ConnectError::Io { to: to(), source })?;
    // Small frames must not wait for the other side's acknowledgement.
    stream.set_nodelay(true).map_err(|source| ConnectError::Io { to: to(), source })?;
    Ok(stream)
}

/// A socket whose packets can leave only by `device`, from `source`.
///
/// A black hole ends it after `unacknowledged`. That is for connections that we make and not for
/// those we take: the kernel counts a reader that pauses like one that is gone, and whoever reads
/// our answer may pause.
pub(super) fn bound(
    source: IpAddr,
    to: SocketAddr,
    device: &Device,
    unacknowledged: Duration,
) -> io::Result<TcpSocket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    bind_to_device(&socket, device, to.is_ipv4())?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(unacknowledged))?;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = unacknowledged;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// Ties a socket to a device. Without this a socket follows the routes, so where it is not
/// possible there is no dial. Linux allows it to everybody since 5.7.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn bind_to_device(socket: &Socket, device: &Device, _v4: bool) -> io::Result<()> {
    socket.bind_device(Some(device.name.as_bytes()))
}

/// As above; here devices are known by their index.
#[cfg(target_os = "macos")]
pub(super) fn bind_to_device(socket: &Socket, device: &Device, v4: bool) -> io::Result<()> {
    let index = device.index.and_then(NonZeroU32::new);
    let index = index.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    if v4 {
        socket.bind_device_by_index_v4(Some(index))
    } else {
        socket.bind_device_by_index_v6(Some(index))
    }
}

/// As above; here nothing ties a socket to a device.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "macos")))]
pub(super) fn bind_to_device(_: &Socket, _: &Device, _: bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tailnet_socket_is_tied_to_address_and_device_before_it_connects() {
        let source: IpAddr = "127.0.0.1".parse().unwrap();
        let lo = device_of(source).unwrap();
        let limit = Timing::default().unacknowledged;
        let socket = bound(source, "127.0.0.2:9".parse().unwrap(), &lo, limit).unwrap();
        let set = socket2::SockRef::from(&socket).tcp_user_timeout().unwrap();
        assert_eq!(set, Some(Duration::from_secs(10)), "a black hole ends it");
        assert_eq!(socket.local_addr().unwrap().ip(), source);
        let device = socket2::SockRef::from(&socket).device().unwrap().unwrap();
        assert_eq!(device, lo.name.as_bytes());
        let gone = Device { name: "no-such-device".to_owned(), index: None };
        assert!(bound(source, "127.0.0.2:9".parse().unwrap(), &gone, limit).is_err());
    }
}
