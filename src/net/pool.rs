//! HTTP/1 connections that are kept for the next request.
//!
//! In flow a node and the way to it; out flows a [`Lease`] on an idle connection or a new
//! one. A connection is reused only for the same node over the same way, while that way is
//! still permitted, and only after its last exchange ended cleanly on both sides.
//!
//! A connection has one owner at any time: the pool, a lease, or an answer's body. Whoever
//! drops it closes the socket, and that is how an engine learns that nobody waits any more.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::{sleep_until, timeout};

use super::connect::{ConnectError, Connector};
use super::task::Task;
use super::{Body, BoxError};
use crate::telemetry::Clock;
use crate::types::{Dial, Moment, NodeId, Timing};

/// Most idle connections kept for one way to one node.
const MAX_IDLE: usize = 64;

/// How long a connection whose answer has ended may need to become ready for the next request
/// (the end of a request body may still be under way).
const SETTLE: Duration = Duration::from_secs(1);

type Key = (NodeId, Dial);

/// Kept connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connector: Connector,
    clock: Clock,
    idle_limit: Duration,
    idle: Mutex<HashMap<Key, Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Moment,
}

/// One HTTP connection. Dropping it closes the socket.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Body>,
    _task: Task,
}

impl Pool {
    /// An empty pool. Has to be made inside a runtime: a task of the pool closes connections
    /// that nobody has used for [`Timing::pool_idle`].
    pub fn new(connector: Connector, clock: Clock, timing: &Timing) -> Pool {
        let inner = Arc::new(Inner {
            connector,
            clock,
            idle_limit: timing.pool_idle,
            idle: Mutex::default(),
        });
        tokio::spawn(sweep(Arc::downgrade(&inner), clock, timing.pool_idle));
        Pool(inner)
    }

    /// A connection to `node` over `dial`: the one used last that is still good, or a new one.
    pub async fn acquire(&self, node: &NodeId, dial: &Dial) -> Result<Lease, ConnectError> {
        let key = (node.clone(), dial.clone());
        if let Some(connection) = self.0.take_idle(&key) {
            return Ok(Lease { reused: true, connection, home: self.home(key) });
        }
        self.fresh(node, dial).await
    }

    /// A new connection, whatever is idle: for a try after a kept one turned out to be dead.
    pub async fn fresh(&self, node: &NodeId, dial: &Dial) -> Result<Lease, ConnectError> {
        // Rare, and large: whoever may come here should not have to carry it along.
        let io = Box::pin(self.0.connector.connect(node, dial)).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(io))
            .await
            .map_err(|source| ConnectError::Http { to: format!("{dial:?}"), source })?;
        let task = Task::spawn(async move {
            // An error shows at the request or its body, too.
            let _ = connection.await;
        });
        let connection = Connection { sender, _task: task };
        let home = self.home((node.clone(), dial.clone()));
        Ok(Lease { reused: false, connection, home })
    }

    /// How many connections are kept for `dial` now.
    pub fn idle(&self, node: &NodeId, dial: &Dial) -> usize {
        let key = (node.clone(), dial.clone());
        self.0.idle.lock().get(&key).map_or(0, Vec::len)
    }

    fn home(&self, key: Key) -> Home {
        Home { pool: Arc::downgrade(&self.0), key }
    }
}

impl Inner {
    fn take_idle(&self, key: &Key) -> Option<Connection> {
        let permitted = self.connector.permits(&key.0, &key.1);
        let now = self.clock.now();
        let mut idle = self.idle.lock();
        let list = idle.get_mut(key)?;
        let mut found = None;
        if permitted {
            while let Some(Idle { connection, since }) = list.pop() {
                if now.since(since) < self.idle_limit && connection.sender.is_ready() {
                    found = Some(connection);
                    break;
                }
            }
        } else {
            list.clear();
        }
        found
    }

    fn put_idle(&self, key: Key, connection: Connection) {
        let since = self.clock.now();
        let mut idle = self.idle.lock();
        let list = idle.entry(key).or_default();
        if list.len() < MAX_IDLE {
            list.push(Idle { connection, since });
        }
    }

    fn sweep(&self) {
        let now = self.clock.now();
        self.idle.lock().retain(|key, list| {
            let permitted = self.connector.permits(&key.0, &key.1);
            list.retain(|kept| {
                permitted
                    && now.since(kept.since) < self.idle_limit
                    && !kept.connection.sender.is_closed()
            });
            !list.is_empty()
        });
    }
}

/// Closes what is too old, for as long as the pool lives.
async fn sweep(pool: Weak<Inner>, clock: Clock, idle_limit: Duration) {
    let every = (idle_limit / 4).max(Duration::from_millis(50));
    loop {
        sleep_until(clock.next(every)).await;
        match pool.upgrade() {
            Some(pool) => pool.sweep(),
            None => return,
        }
    }
}

/// Where a connection goes back to.
#[derive(Debug)]
struct Home {
    pool: Weak<Inner>,
    key: Key,
}

impl Home {
    /// Takes a connection back whose exchange has ended cleanly.
    fn take_back(self, mut connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let Some(pool) = self.pool.upgrade() else { return };
        if connection.sender.is_ready() {
            pool.put_idle(self.key, connection);
            return;
        }
        drop(pool);
        tokio::spawn(async move {
            let ready = timeout(SETTLE, connection.sender.ready()).await;
            if let (Ok(Ok(())), Some(pool)) = (ready, self.pool.upgrade()) {
                pool.put_idle(self.key, connection);
            }
        });
    }
}

/// A connection that is ours for one exchange. Dropping it closes the connection.
#[derive(Debug)]
pub struct Lease {
    /// Whether the connection was used before: then it may turn out to be closed by the other
    /// side, which is nobody's fault.
    pub reused: bool,
    connection: Connection,
    home: Home,
}

/// Why a request got no answer's head.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct SendError {
    /// Whether the request may have reached the other side. `false` = surely it did not.
    pub sent: bool,
    /// What broke.
    pub source: hyper::Error,
    /// The request, if it was not sent.
    pub request: Option<Box<Request<Body>>>,
}

impl Lease {
    /// Sends a request (its `Host` set, its URI in origin form) and waits for the answer's
    /// head, however long that takes. Dropping the future closes the connection.
    pub async fn send(self, request: Request<Body>) -> Result<Response<PooledBody>, SendError> {
        let Lease { mut connection, home, .. } = self;
        match connection.sender.try_send_request(request).await {
            Ok(response) => Ok(response.map(|body| PooledBody::new(body, connection, home))),
            Err(mut error) => {
                let request = error.take_message().map(Box::new);
                Err(SendError { sent: request.is_none(), source: error.into_error(), request })
            }
        }
    }
}

/// An answer's body. At its end the connection goes back to the pool; dropped before that, it
/// closes at once.
#[derive(Debug)]
pub struct PooledBody {
    body: Incoming,
    /// Gone once the body has ended.
    connection: Option<(Connection, Home)>,
}

impl PooledBody {
    fn new(body: Incoming, connection: Connection, home: Home) -> PooledBody {
        let mut body = PooledBody { body, connection: Some((connection, home)) };
        body.settle();
        body
    }

    /// Gives the connection back if nothing is left to read.
    fn settle(&mut self) {
        if http_body::Body::is_end_stream(&self.body) {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Some((connection, home)) = self.connection.take() {
            home.take_back(connection);
        }
    }
}

impl http_body::Body for PooledBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(None) => self.end(),
            // The reader of a body of known length may never ask again after its last byte.
            Poll::Ready(Some(Ok(_))) => self.settle(),
            Poll::Ready(Some(Err(_))) => self.connection = None,
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
