//! Dialling a pinned peer on the local network.
//!
//! Nothing is sent unless the view has a link for the address and the pin of that very node
//! lives with that very key; the socket is tied to the link's address and device, and the
//! first byte of a request leaves only after the other side has proved the key.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::leash::Leashed;
use super::tie::{Reason, Tied};
use super::view::{LanLink, LanView};
use crate::net::Io;
use crate::net::connect::{ConnectError, bound, within};
use crate::net::sockets::Sockets;
use crate::telemetry::wall;
use crate::trust::{Trust, View, keys, tag, tls};
use crate::types::{ListenerKind, NodeId, PublicKey, Timing, Wall};

/// What dials on the local network need to know.
#[derive(Clone)]
pub(in crate::net) struct Dialler {
    pub(in crate::net) lan: watch::Receiver<Arc<LanView>>,
    pub(in crate::net) trust: Trust,
    pub(in crate::net) sockets: Sockets,
    pub(in crate::net) timing: Timing,
}

impl Dialler {
    /// Whether `node` may be dialled there now as the holder of `key`: the link for it, and
    /// our key that the node knows us by.
    pub(in crate::net) fn permit(
        &self,
        node: &NodeId,
        addr: SocketAddr,
        key: &PublicKey,
    ) -> Result<(LanLink, keys::Own), ConnectError> {
        let refuse = |why| ConnectError::Lan { to: addr, why };
        let link = self.lan.borrow().allows(addr.ip()).cloned().map_err(refuse)?;
        let view = self.trust.view();
        let pin = view.live(node, wall()).filter(|pin| pin.key == *key);
        let pin = pin.ok_or(refuse("no live pin has that key"))?;
        if addr.port() != view.port(pin) {
            return Err(refuse("it is not the peer's mesh port"));
        }
        let ring = view.ring.as_ref().ok_or(refuse("this node has no key"))?;
        let known = pin.knows.as_ref().and_then(|key| ring.find(key));
        Ok((link, known.unwrap_or_else(|| ring.own()).clone()))
    }

    /// A stream to `node`, which proved to hold `key`. It is cut when the pin dies or the link
    /// may not be used any more.
    pub(in crate::net) async fn connect(
        &self,
        node: &NodeId,
        addr: SocketAddr,
        key: PublicKey,
    ) -> Result<Box<dyn Io>, ConnectError> {
        let limit = self.timing.connect_lan;
        let (link, own) = self.permit(node, addr, &key)?;
        let end = Instant::now() + limit;
        let stream = self.tcp(&link, addr, limit).await?;
        let handshake = |source| ConnectError::Handshake { to: addr, source };
        let config = tls::client(&own, key).map_err(|e| handshake(io::Error::other(e)))?;
        let name = tag::sni(&key, addr, wall(), rand::random());
        let name = ServerName::try_from(name)
            .map_err(|e| handshake(io::Error::new(io::ErrorKind::InvalidInput, e)))?;
        let leash = stream.leash();
        let stream = timeout_at(end, TlsConnector::from(config).connect(name, stream))
            .await
            .map_err(|_| ConnectError::TimedOut { to: addr.to_string(), limit })?
            .map_err(handshake)?;
        if tls::peer_key(stream.get_ref().1) != Some(key) {
            return Err(handshake(io::ErrorKind::PermissionDenied.into()));
        }
        let (node, lan, trust) = (node.clone(), self.lan.clone(), self.trust.clone());
        let alive =
            move |view: &View, now: Wall| view.live(&node, now).is_some_and(|pin| pin.key == key);
        let reason = Reason { lan, link, trust, alive, every: self.timing.pin_dead / 2 };
        Ok(Box::new(Tied::new(stream, leash, reason, ())))
    }

    async fn tcp(
        &self,
        link: &LanLink,
        addr: SocketAddr,
        limit: Duration,
    ) -> Result<Leashed, ConnectError> {
        let leashes = self.sockets.leashes();
        let failed = |source| ConnectError::Io { to: addr.to_string(), source };
        let to = self.sockets.reach(ListenerKind::Lan, addr);
        if to != addr {
            let stream = within(to, limit, TcpStream::connect(to)).await?;
            return leashes.tie(stream, link.clone(), None).map_err(failed);
        }
        let carrier = leashes.carrier(link);
        let device = link.device();
        let limit_sent = self.timing.unacknowledged;
        let socket = bound(link.addr, addr, &device, limit_sent).map_err(|error| {
            ConnectError::NoDevice { to: addr, why: format!("{}: {error}", device.name) }
        })?;
        // A question that is not answered is asked again by the kernel, and not by a socket that
        // is gone.
        let connect = within(addr, limit, socket.connect(addr));
        let lost = ConnectError::Lan { to: addr, why: "the local network was lost" };
        let stream = leashes.while_held(Some(&carrier), connect).await.ok_or(lost)??;
        leashes.tie(stream, link.clone(), Some(carrier)).map_err(failed)
    }
}
