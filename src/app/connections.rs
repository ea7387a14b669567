//! Connections: from an accepted stream to a served one.
//!
//! HTTP/1.1 only. Heads are bounded in size and time; a connection ends with its client or,
//! on a drain, after the request it is serving. Each kind of door has places of its own, and
//! each node has few of them: whoever holds many open shuts nobody else out.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tower::{Service, ServiceExt};

use crate::api::heads::Heads;
use crate::net::Body;
use crate::types::{ListenerKind, Timing};

/// Largest request head.
const HEAD_BYTES: usize = 32 * 1024;
/// Most header fields.
const HEAD_FIELDS: usize = 100;
/// Most connections on the local network.
const LAN: u32 = 256;
/// Most connections of who looks at numbers.
const ADMIN: u32 = 64;
/// Most connections of one other node.
const NODE: u32 = 64;
/// The same of all together where a tailscaled in userspace mode forwards them: its own address
/// is all that is seen of them before they are named.
const FORWARDED: u32 = 512;
/// Most bytes read at once, which is what a held frame of a body weighs at most.
const BUFFER: usize = 256 * 1024;

/// The open connections of all listeners.
pub(super) struct Connections {
    open: [AtomicU32; 4],
    nodes: Mutex<HashMap<IpAddr, u32>>,
    most: u32,
    timing: Arc<Timing>,
    draining: watch::Receiver<bool>,
}

impl Connections {
    pub(super) fn new(
        most: u32,
        timing: Arc<Timing>,
        draining: watch::Receiver<bool>,
    ) -> Arc<Connections> {
        let (open, nodes) = Default::default();
        Arc::new(Connections { open, nodes, most, timing, draining })
    }

    /// How many are open.
    pub(super) fn open(&self) -> u32 {
        self.open.iter().map(|open| open.load(Relaxed)).sum()
    }

    /// A place for one more connection by a door of this kind, from that address if it is
    /// another node's. Over the limit there is none, and it has to be closed at once: a full
    /// house must not make those inside wait.
    pub(super) fn place(
        self: &Arc<Self>,
        kind: ListenerKind,
        from: Option<IpAddr>,
    ) -> Option<Place> {
        let most = match kind {
            ListenerKind::Apps | ListenerKind::Mesh => self.most,
            ListenerKind::Lan => self.most.min(LAN),
            ListenerKind::Admin => ADMIN,
        };
        let open = &self.open[number(kind)];
        if open.fetch_add(1, Relaxed) >= most {
            open.fetch_sub(1, Relaxed);
            tracing::warn!(most, door = ?kind, "a connection was closed: limits.connections");
            return None;
        }
        // From here on dropping it gives it back.
        let mut place = Place { all: Arc::clone(self), kind, from: None };
        if let Some(from) = from {
            let mut nodes = self.nodes.lock();
            let held = nodes.entry(from).or_default();
            if *held >= if from.is_loopback() { FORWARDED } else { NODE } {
                drop(nodes);
                tracing::debug!(%from, "a connection was closed: its node has too many");
                return None;
            }
            *held += 1;
            place.from = Some(from);
        }
        Some(place)
    }
}

const fn number(kind: ListenerKind) -> usize {
    match kind {
        ListenerKind::Apps => 0,
        ListenerKind::Mesh => 1,
        ListenerKind::Lan => 2,
        ListenerKind::Admin => 3,
    }
}

/// What answers the requests of one connection.
pub(super) trait Serves:
    Service<
        Request<Incoming>,
        Response = Response<Body>,
        Error = Infallible,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static
{
}

impl<S> Serves for S
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
}

/// A connection's place, until it is dropped.
pub(super) struct Place {
    all: Arc<Connections>,
    kind: ListenerKind,
    from: Option<IpAddr>,
}

impl Place {
    /// Serves the connection in a task of its own.
    pub(super) fn serve<I>(self, io: I, service: impl Serves)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Connections { timing, draining, .. } = &*self.all;
        let mut draining = draining.clone();
        let begun = Arc::new(AtomicBool::new(false));
        let saw = Arc::clone(&begun);
        let service = service.map_request(move |request| {
            saw.store(true, Relaxed);
            request
        });
        let first_head = tokio::time::sleep(timing.head);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(timing.idle_connection)
            .max_headers(HEAD_FIELDS)
            .max_header_size(HEAD_BYTES)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(Strict::new(io)), TowerToHyperService::new(service));
        tokio::spawn(async move {
            let _place = self;
            tokio::pin!(connection, first_head);
            let (mut told, mut looked) = (false, false);
            loop {
                tokio::select! {
                    ended = connection.as_mut() => {
                        if let Err(error) = ended {
                            tracing::debug!(%error, "a connection ended badly");
                        }
                        return;
                    }
                    () = first_head.as_mut(), if !looked => {
                        looked = true;
                        // Connected, and never asked anything.
                        if !begun.load(Relaxed) {
                            return;
                        }
                    }
                    asked = draining.wait_for(|draining| *draining), if !told => {
                        // The program is gone, not draining: nothing of it may go on.
                        if asked.is_err() {
                            return;
                        }
                        told = true;
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        });
    }
}

/// A stream whose request heads are read strictly. A head that two readers could read in two
/// ways is made one that nobody can: the parser answers it with 400 and closes.
struct Strict<I> {
    io: I,
    heads: Heads,
}

impl<I> Strict<I> {
    fn new(io: I) -> Strict<I> {
        Strict { io, heads: Heads::default() }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Strict<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if let Err(flaw) = self.heads.feed(&buf.filled()[before..]) {
            tracing::debug!(%flaw, "a request head is refused");
            buf.set_filled(before);
            buf.put_slice(b"\0");
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Strict<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.open[number(self.kind)].fetch_sub(1, Relaxed);
        if let Some(from) = self.from {
            let mut nodes = self.all.nodes.lock();
            if let Some(held) = nodes.get_mut(&from) {
                *held -= 1;
                if *held == 0 {
                    nodes.remove(&from);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tower::service_fn;

    use super::*;

    fn open(connections: &Arc<Connections>) -> DuplexStream {
        let (ours, theirs) = duplex(4096);
        let service = service_fn(|_: Request<Incoming>| async {
            let body = Full::new(Bytes::from_static(b"here"));
            Ok::<_, Infallible>(Response::new(body.map_err(|n| match n {}).boxed_unsync()))
        });
        if let Some(place) = connections.place(ListenerKind::Apps, None) {
            place.serve(theirs, service);
        }
        ours
    }

    async fn ask(io: &mut DuplexStream) -> String {
        io.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 1024];
        let n = io.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..n]).into_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_asks_is_closed_and_who_asked_may_idle() {
        let (_keep, draining) = watch::channel(false);
        let connections = Connections::new(10, Arc::new(Timing::default()), draining);
        let (mut silent, mut idle) = (open(&connections), open(&connections));
        assert!(ask(&mut idle).await.ends_with("here"));
        assert_eq!(silent.read(&mut [0; 8]).await.unwrap(), 0, "closed after its 10 s");
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert!(ask(&mut idle).await.ends_with("here"), "kept for its next request");
    }

    #[tokio::test]
    async fn who_holds_many_connections_open_shuts_nobody_else_out() {
        let (_keep, draining) = watch::channel(false);
        let connections = Connections::new(100, Arc::new(Timing::default()), draining);
        let from = |n: u8| Some(IpAddr::from([100, 64, 0, n]));
        let take = |kind, from| (0..1000).map_while(|_| connections.place(kind, from)).collect();
        let one: Vec<Place> = take(ListenerKind::Mesh, from(1));
        let two: Vec<Place> = take(ListenerKind::Mesh, from(2));
        assert_eq!((one.len(), two.len()), (64, 36), "64 a node, 100 in all");
        let (admin, apps): (Vec<Place>, Vec<Place>) =
            (take(ListenerKind::Admin, None), take(ListenerKind::Apps, None));
        assert_eq!((admin.len(), apps.len(), connections.open()), (64, 100, 264));
        drop((one, admin));
        assert!(connections.place(ListenerKind::Mesh, from(1)).is_some());
        drop((two, apps));
        assert_eq!((connections.open(), connections.nodes.lock().len()), (0, 0));
    }

    #[tokio::test]
    async fn a_head_with_bare_line_ends_or_two_lengths_is_400_and_the_end() {
        let (_keep, draining) = watch::channel(false);
        let connections = Connections::new(10, Arc::new(Timing::default()), draining);
        for head in [
            "GET / HTTP/1.1\nHost: x\n\n",
            "GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
        ] {
            let mut io = open(&connections);
            io.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            io.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 400 "), "{head:?}: {answer}");
        }
    }
}
