//! One exchange with the daemon: a new connection, one request, one bounded answer.
//!
//! Connections are not kept: a call is rare, a unix socket connects in microseconds, and a
//! fresh connection proves anew who the daemon is.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::believe::{Believed, Distrust};
use crate::net::Io;
use crate::net::task::Task;

/// The only `Host` the daemon accepts.
const HOST: &str = "local-tailscaled.sock";

/// Longest answer that is read: a status with ten thousand peers is a sixth of it.
pub(super) const MAX_ANSWER: usize = 64 << 20;

/// Longest error text that is kept.
const MAX_TEXT: usize = 256;

/// Why LocalAPI gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody listens there.
    #[error("tailscaled does not listen at {at}: {source}")]
    Away {
        /// Where it was asked.
        at: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It listens and takes no connection: those that wait already are too many.
    #[error("tailscaled at {0} takes no connection: it hangs")]
    Full(String),
    /// It listens and does not answer in time.
    #[error("tailscaled does not answer within {0:?}")]
    Slow(Duration),
    /// Whoever listens there is not believed.
    #[error(transparent)]
    Distrust(#[from] Distrust),
    /// The exchange broke.
    #[error("the exchange with tailscaled broke: {0}")]
    Broken(#[source] crate::net::BoxError),
    /// It refused.
    #[error("tailscaled answered {0} to {1}: {2}")]
    Refused(StatusCode, &'static str, String),
    /// The answer has a shape we do not know.
    #[error("tailscaled's answer to {0} has an unknown shape: {1}")]
    Shape(&'static str, String),
}

impl ApiError {
    /// Whether no daemon listens at all.
    pub fn is_away(&self) -> bool {
        matches!(self, ApiError::Away { .. })
    }

    pub(super) fn broken(error: impl Into<crate::net::BoxError>) -> ApiError {
        ApiError::Broken(error.into())
    }
}

/// Where the daemon listens.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A unix socket.
    Unix(PathBuf),
    /// macOS apps: a TCP port of this machine, and the token that proves who we are.
    Tcp { addr: SocketAddr, token: String },
}

impl std::fmt::Debug for Place {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Unix(path) => write!(f, "{}", path.display()),
            Place::Tcp { addr, .. } => write!(f, "{addr}"),
        }
    }
}

/// The daemon's process, as the socket's credentials name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Daemon {
    /// Its user id.
    pub uid: u32,
    /// Its process id, if it is visible from here.
    pub pid: Option<i32>,
}

/// Connects and asks.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) place: Place,
    pub(super) believed: Believed,
    pub(super) connect_limit: Duration,
    pub(super) read_limit: Duration,
    /// Who answered last.
    pub(super) daemon: Mutex<Option<Daemon>>,
}

impl Transport {
    /// A connection to a daemon that is believed.
    pub(super) async fn connect(&self) -> Result<Box<dyn Io>, ApiError> {
        let away = |source: std::io::Error| {
            let at = self.place.to_string();
            match source.kind() {
                // A daemon that hangs is not away: it may go on where it stopped.
                std::io::ErrorKind::WouldBlock => ApiError::Full(at),
                _ => ApiError::Away { at, source },
            }
        };
        let connect = async {
            match &self.place {
                Place::Unix(path) => {
                    let stream = UnixStream::connect(path).await.map_err(away)?;
                    let cred = stream.peer_cred().map_err(away)?;
                    self.believed.check_uid(cred.uid())?;
                    *self.daemon.lock() = Some(Daemon {
                        uid: cred.uid(),
                        // 0: the process lives in a process namespace we cannot see into.
                        pid: cred.pid().filter(|pid| *pid > 0),
                    });
                    Ok(Box::new(stream) as Box<dyn Io>)
                }
                Place::Tcp { addr, .. } => {
                    let stream = TcpStream::connect(addr).await.map_err(away)?;
                    Ok(Box::new(stream) as Box<dyn Io>)
                }
            }
        };
        timeout(self.connect_limit, connect)
            .await
            .map_err(|_| ApiError::Slow(self.connect_limit))?
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, String)],
    ) -> Result<Request<Empty<Bytes>>, ApiError> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, HOST);
        if let Place::Tcp { token, .. } = &self.place {
            let pair = base64::engine::general_purpose::STANDARD.encode(format!(":{token}"));
            let mut value = HeaderValue::try_from(format!("Basic {pair}"))
                .map_err(|error| ApiError::Broken(Box::new(error)))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        request.body(Empty::new()).map_err(ApiError::broken)
    }

    /// Sends a request and waits for the answer's head. The connection lives as long as the
    /// returned task.
    pub(super) async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, String)],
        limit: Duration,
    ) -> Result<(Response<Incoming>, Task), ApiError> {
        let request = self.request(method, path, headers)?;
        let io = self.connect().await?;
        let exchange = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
                .await
                .map_err(ApiError::broken)?;
            let task = Task::spawn(async move {
                // An error shows at the request, too.
                let _ = connection.with_upgrades().await;
            });
            let response = sender.send_request(request).await.map_err(ApiError::broken)?;
            Ok((response, task))
        };
        timeout(limit, exchange).await.map_err(|_| ApiError::Slow(limit))?
    }

    /// Sends a request and reads the whole answer; `None` = 404.
    pub(super) async fn ask(
        &self,
        method: Method,
        what: &'static str,
        path: &str,
    ) -> Result<Option<Bytes>, ApiError> {
        let exchange = async {
            let (response, _task) = self.open(method, path, &[], self.read_limit).await?;
            let status = response.status();
            let body = read(response.into_body()).await?;
            match status {
                StatusCode::OK => Ok(Some(body)),
                StatusCode::NOT_FOUND => Ok(None),
                _ => Err(ApiError::Refused(status, what, shorten(&body))),
            }
        };
        timeout(self.read_limit, exchange).await.map_err(|_| ApiError::Slow(self.read_limit))?
    }
}

async fn read(mut body: Incoming) -> Result<Bytes, ApiError> {
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(ApiError::broken)?.into_data() else { continue };
        if all.len() + data.len() > MAX_ANSWER {
            return Err(ApiError::broken("the answer is too long"));
        }
        all.extend_from_slice(&data);
    }
    Ok(all.freeze())
}

/// The text of a refusal; empty if it cannot be read.
pub(super) async fn text(body: Incoming) -> String {
    read(body).await.map(|body| shorten(&body)).unwrap_or_default()
}

pub(super) fn shorten(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_TEXT)]);
    text.trim().chars().filter(|c| !c.is_control()).collect()
}
