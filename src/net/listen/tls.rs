//! TLS at a listener: the hello on the mesh port, and the handshake on the local network.
//!
//! Over the tailnet any key may say hello: who the caller is says WhoIs. On the local network
//! nobody is known yet, so not a byte is answered to whoever does not call this node by a tag
//! that only its pinned peers can make.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{StartHandshake, TlsAcceptor};

use crate::net::Io;
use crate::telemetry::wall;
use crate::trust::{Trust, tag, tls};
use crate::types::PublicKey;

/// The first byte of a TLS connection.
const HANDSHAKE: u8 = 0x16;

/// Longest first message of a client.
const MAX_HELLO: usize = 16 * 1024;

/// Why a handshake on the local network came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// No tag, or somebody else's.
    #[error("it does not call this node")]
    NotCalled,
    /// Overheard, most likely.
    #[error("its tag was used before")]
    TagUsed,
    /// The key it proved to hold is nobody's.
    #[error("no live pin has its key")]
    NotPinned,
    /// It broke, or is no such handshake.
    #[error("{0}")]
    Broken(#[from] io::Error),
}

impl Refused {
    /// The reason in `tailherd_refused_total`.
    pub(super) const fn label(&self) -> &'static str {
        match self {
            Refused::NotCalled => "not_called",
            Refused::TagUsed => "tag_used",
            Refused::NotPinned => "not_pinned",
            Refused::Broken(_) => HANDSHAKE_FAILED,
        }
    }
}

/// A handshake that broke or took too long, in `tailherd_refused_total`.
pub const HANDSHAKE_FAILED: &str = "handshake";

/// One connection too many, in `tailherd_refused_total`.
pub const TOO_MANY: &str = "too_many";

/// Whether a connection begins like TLS. Waits for its first byte, and leaves it there.
pub async fn is_tls(stream: &TcpStream) -> bool {
    let mut first = [0];
    matches!(stream.peek(&mut first).await, Ok(1)) && first[0] == HANDSHAKE
}

/// TLS on the mesh port: the client has to show a key, any key, which comes back with the
/// stream. Ends within `limit`.
pub async fn tls_hello(
    stream: TcpStream,
    trust: &Trust,
    limit: Duration,
) -> io::Result<(Box<dyn Io>, PublicKey)> {
    let ring = trust.view().ring.clone();
    let ring = ring.ok_or_else(|| io::Error::other("this node has no key yet"))?;
    let config = tls::server_hello(ring.own()).map_err(io::Error::other)?;
    let stream = timeout(limit, TlsAcceptor::from(config).accept(stream)).await??;
    let key = tls::peer_key(stream.get_ref().1).ok_or(io::ErrorKind::PermissionDenied)?;
    Ok((Box::new(stream), key))
}

/// A handshake on the local network with a peer whose pin lives. `at` is our address there, by
/// which the peer has to mean us: a tag that was said elsewhere calls nobody here. `fresh` says
/// whether a tag's random part is seen for the first time: one that was overheard does neither.
pub(super) async fn pinned<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    at: SocketAddr,
    trust: &Trust,
    fresh: impl FnOnce(tag::Nonce) -> bool,
) -> Result<(TlsStream<S>, PublicKey), Refused> {
    let accepted = client_hello(&mut stream).await?;
    let ring = trust.view().ring.clone().ok_or(Refused::NotCalled)?;
    let keys: Vec<PublicKey> = ring.all().map(|own| own.key()).collect();
    let hello = accepted.client_hello();
    let tag = hello.server_name().and_then(|name| tag::of_sni(name, &keys, at, wall()));
    let (key, nonce) = tag.ok_or(Refused::NotCalled)?;
    if !fresh(nonce) {
        return Err(Refused::TagUsed);
    }
    let own = ring.find(&key).ok_or(Refused::NotCalled)?;
    let (pins, stranger) = (trust.clone(), Arc::new(AtomicBool::new(false)));
    let refused = Arc::clone(&stranger);
    let accept = Arc::new(move |key: &PublicKey| {
        let live = pins.view().live_key(key, wall()).is_some();
        refused.fetch_or(!live, Relaxed);
        live
    });
    let config = tls::server(own, accept).map_err(io::Error::other)?;
    let shaken = StartHandshake::from_parts(accepted, stream).into_stream(config).await;
    let stream = match shaken {
        Ok(stream) => stream,
        Err(_) if stranger.load(Relaxed) => return Err(Refused::NotPinned),
        Err(error) => return Err(error.into()),
    };
    let key = tls::peer_key(stream.get_ref().1);
    let key = key.ok_or_else(|| io::Error::from(io::ErrorKind::PermissionDenied))?;
    Ok((stream, key))
}

/// Reads the first message of a client and answers nothing, whatever it is.
async fn client_hello<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Accepted> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let mut acceptor = Acceptor::default();
    let mut buffer = [0; 4096];
    let mut read = 0;
    loop {
        let n = stream.read(&mut buffer).await?;
        read += n;
        if n == 0 || read > MAX_HELLO {
            return Err(invalid());
        }
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            acceptor.read_tls(&mut rest)?;
            // (What would be answered to a message that cannot be read is dropped.)
            match acceptor.accept() {
                // Nobody who speaks to us sends more before we answer.
                Ok(Some(accepted)) if rest.is_empty() => return Ok(accepted),
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return Err(invalid()),
            }
        }
    }
}
