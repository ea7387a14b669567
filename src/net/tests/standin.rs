//! A stand-in tailscaled: LocalAPI on a unix socket in a temporary folder, with answers the
//! test can change while it runs.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::broadcast;

use crate::config;
use crate::net::localapi::LocalApi;
use crate::net::task::Task;
use crate::net::{Body, BoxError};
use crate::types::Timing;

/// One of the recorded answers.
pub(super) fn golden(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tailscale");
    std::fs::read_to_string(format!("{folder}/{name}")).unwrap()
}

pub(super) struct Answers {
    pub(super) status: String,
    pub(super) prefs: String,
    /// WhoIs answers by address; others are 404.
    pub(super) whois: HashMap<SocketAddr, String>,
    /// The answer to a ping through the tunnel; without one it hangs. To disco it always says
    /// the recorded thing.
    pub(super) ping: Option<String>,
    /// WhoIs answers nothing at all.
    pub(super) hang: bool,
    /// It hangs altogether: it is connected to and answers nothing.
    pub(super) frozen: bool,
}

pub(super) struct StandIn {
    pub(super) answers: Mutex<Answers>,
    pub(super) asked_whois: AtomicUsize,
    pub(super) asked_ping: AtomicUsize,
    pub(super) dialled: Mutex<Vec<String>>,
    pub(super) bus: broadcast::Sender<String>,
    folder: tempfile::TempDir,
}

/// The stand-in, and the task that serves it: dropping that is the daemon's death.
pub(super) fn start() -> (Arc<StandIn>, Task) {
    let standin = Arc::new(StandIn {
        answers: Mutex::new(Answers {
            status: golden("status-running.json"),
            prefs: golden("prefs.json"),
            whois: HashMap::new(),
            ping: Some(golden("ping.json")),
            hang: false,
            frozen: false,
        }),
        asked_whois: AtomicUsize::new(0),
        asked_ping: AtomicUsize::new(0),
        dialled: Mutex::default(),
        bus: broadcast::channel(16).0,
        folder: tempfile::tempdir().unwrap(),
    });
    let listener = UnixListener::bind(standin.socket()).unwrap();
    let served = Arc::clone(&standin);
    let task = Task::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let served = Arc::clone(&served);
            let service = service_fn(move |request| {
                let served = Arc::clone(&served);
                async move { Ok::<_, Infallible>(served.answer(request).await) }
            });
            connections.spawn(async move {
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
            });
        }
    });
    (standin, task)
}

impl StandIn {
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("s.sock")
    }

    pub(super) fn config(&self) -> config::Tailnet {
        config::Tailnet {
            enabled: None,
            socket: Some(self.socket()),
            socket_uid: None,
            ports: vec![11436, 11434],
            peers: None,
            bare_port: 11434,
            capability: "example.com/cap/ollama-mesh".to_owned(),
        }
    }

    pub(super) async fn api(&self) -> LocalApi {
        let limits = Timing { localapi_read: Duration::from_millis(300), ..Timing::shrunk() };
        LocalApi::find(&self.config(), &limits).await.unwrap()
    }

    /// From now on WhoIs names the recorded user-owned node behind `addr`.
    pub(super) fn knows(&self, addr: SocketAddr) {
        self.answers.lock().whois.insert(addr, golden("whois-capabilities.json"));
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if self.answers.lock().frozen {
            return std::future::pending().await;
        }
        if request.headers().get("host").is_none_or(|h| h != "local-tailscaled.sock") {
            return plain(StatusCode::FORBIDDEN, "invalid localapi request");
        }
        let query = request.uri().query().unwrap_or_default().to_owned();
        match request.uri().path().trim_start_matches("/localapi/v0/") {
            "status" => {
                let text = self.answers.lock().status.clone();
                if query == "peers=false" {
                    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
                    value["Peer"] = serde_json::Value::Null;
                    return plain(StatusCode::OK, &value.to_string());
                }
                plain(StatusCode::OK, &text)
            }
            "prefs" => plain(StatusCode::OK, &self.answers.lock().prefs.clone()),
            "serve-config" => plain(StatusCode::OK, &golden("serve-config.json")),
            "ping" => {
                self.asked_ping.fetch_add(1, Relaxed);
                if query.ends_with("&type=disco") {
                    return plain(StatusCode::OK, &golden("ping.json"));
                }
                let answer = self.answers.lock().ping.clone();
                match answer {
                    Some(text) => plain(StatusCode::OK, &text),
                    None => std::future::pending().await,
                }
            }
            "whois" => {
                self.asked_whois.fetch_add(1, Relaxed);
                if self.answers.lock().hang {
                    std::future::pending::<()>().await;
                }
                let addr = query.strip_prefix("addr=").and_then(|q| q.strip_suffix("&proto=tcp"));
                let addr: SocketAddr = addr.unwrap().parse().unwrap();
                match self.answers.lock().whois.get(&addr) {
                    Some(text) => plain(StatusCode::OK, text),
                    None => plain(StatusCode::NOT_FOUND, "no match for IP:port"),
                }
            }
            "watch-ipn-bus" => {
                assert_eq!(query, "mask=4226");
                let lines = futures_util::stream::unfold(self.bus.subscribe(), |mut bus| async {
                    let line = bus.recv().await.ok()?;
                    Some((Ok::<_, BoxError>(Frame::data(Bytes::from(line + "\n"))), bus))
                });
                // hyper sends the head with the first line; the daemon sends its state at once.
                let first = Ok(Frame::data(Bytes::from("{\"State\":6}\n")));
                let lines = futures_util::stream::iter([first]).chain(lines);
                Response::new(Body::new(StreamBody::new(lines)))
            }
            "dial" => {
                let header = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
                assert_eq!(header("upgrade"), "ts-dial");
                let to = format!("{}:{}", header("dial-host"), header("dial-port"));
                self.dialled.lock().push(to.clone());
                let Ok(mut stream) = TcpStream::connect(&to).await else {
                    return plain(StatusCode::BAD_GATEWAY, "dial failure: connection was refused");
                };
                tokio::spawn(async move {
                    let mut io = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
                    let _ = tokio::io::copy_bidirectional(&mut io, &mut stream).await;
                });
                let mut response = plain(StatusCode::SWITCHING_PROTOCOLS, "");
                response.headers_mut().insert("upgrade", "ts-dial".parse().unwrap());
                response.headers_mut().insert("connection", "upgrade".parse().unwrap());
                response
            }
            _ => plain(StatusCode::NOT_FOUND, "not found"),
        }
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(text.to_owned())).map_err(|never| match never {});
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = status;
    response
}
