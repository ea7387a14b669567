//! The socket for commands that change something: `tailherd.sock`, mode 0600.
//!
//! In: HTTP over a unix socket in a folder only this user (and root) enters. Out: [`Order`]s
//! for the running program, each with the way back for what is said to the person. Nothing
//! else listens for changes: the admin port only reads.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::config::{self, Env};
use crate::net::BindError;
use crate::net::listen::unix;
use crate::types::{PublicKey, Verb};

/// The socket's name in its folder.
const NAME: &str = "tailherd.sock";

/// Longest order.
const LONGEST: usize = 64 * 1024;

/// How long a client may take to say what it wants.
const HEAD: Duration = Duration::from_secs(10);

/// Where the socket may be, the place this process would open it first. A service's folder
/// under `/run` is looked at too: whoever types a command has not its environment.
pub fn places(env: &dyn Env) -> Vec<PathBuf> {
    let var = |name| env.var(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let mut folders: Vec<PathBuf> = Vec::new();
    // systemd joins several with colons; ours is the first.
    let runtime = env.var("RUNTIME_DIRECTORY");
    folders.extend(runtime.and_then(|all| all.split(':').next().map(PathBuf::from)));
    folders.extend(var("XDG_RUNTIME_DIR"));
    folders.push(config::state_dir(env));
    folders.push("/run/tailherd".into());
    folders.into_iter().map(|folder| folder.join(NAME)).collect()
}

/// What a person wants, as it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Wish {
    /// Let prompts go to this node, or take its new key for its own.
    TrustAccept(String),
    /// Forget this node's key.
    TrustForget(String),
    /// Take a key for that of a device on the local network.
    TrustAdd(AddKey),
    /// Say which keys are pinned.
    TrustList,
    /// Say this node's own key.
    TrustExport,
    /// Use the local networks this machine is on now.
    LanAllow {
        /// For how many seconds; for good without.
        seconds: Option<u64>,
    },
    /// Say which local networks are known.
    LanList,
    /// Forget local networks.
    LanForget(Which),
    /// Ask nothing on the internet, or do so again.
    Offline {
        /// Whether nothing is asked.
        on: bool,
    },
    /// Take nothing from other nodes.
    Pause {
        /// For how many seconds; until it is taken back without.
        seconds: Option<u64>,
    },
    /// Take nothing new from other nodes; what runs, ends.
    Drain,
    /// Take requests of other nodes again.
    Resume,
    /// Say for whom this node works, and what of others runs here.
    Sharing,
    /// Read the configuration again.
    Reload,
}

/// Which of the known local networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Which {
    /// Those this machine is on now.
    Here,
    /// All.
    All,
    /// The one with this id, or whose id begins so, or that this device leads to.
    Named(String),
}

/// A key that a person adds, and what its holder may do here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddKey {
    /// What its holder is called from now on; rules say `pin:NAME`.
    pub name: String,
    /// The key.
    pub key: PublicKey,
    /// What it may do.
    pub verbs: Vec<Verb>,
    /// With which models, as globs.
    pub models: Vec<String>,
    /// For how many seconds.
    pub seconds: u64,
    /// Its addresses on the local network; what mDNS says of it is added.
    #[serde(default)]
    pub addrs: Vec<IpAddr>,
}

/// What is said back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Said {
    /// It was done: what.
    Done(String),
    /// It was not: why.
    Failed(String),
    /// What was asked for.
    Pins(Vec<PinRow>),
    /// What was asked for.
    Networks(Vec<NetworkRow>),
    /// What was asked for.
    Sharing(SharingRow),
}

/// For whom this node works, and what of others is here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SharingRow {
    /// `all`, `mine`, `none`.
    pub accepting: String,
    /// Why not for all; may be empty.
    pub why: String,
    /// Whether it is being drained.
    pub draining: bool,
    /// Requests of other nodes that run here.
    pub running: usize,
    /// Those that wait here.
    pub waiting: usize,
}

/// A local network, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkRow {
    /// The keyed hash it is known by.
    pub network: String,
    /// By which device this machine is on it now, and its prefix.
    pub here: Vec<String>,
    /// How it became known: `met`, `allowed`; `over`, or `unknown`.
    pub how: String,
    /// Seconds since it is known.
    pub since: Option<u64>,
    /// Seconds since it was last seen to be.
    pub seen: Option<u64>,
    /// Seconds until it ends; `null` = never.
    pub ends: Option<u64>,
}

/// A pin, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PinRow {
    /// The node's name.
    pub name: String,
    /// Its stable id; empty for a key that a person added.
    pub id: String,
    /// Its owner or tags; empty for a key that a person added.
    pub owner: String,
    /// The first characters of its key.
    pub key: String,
    /// `live`, `waits`, or in few words why it is not used.
    pub state: String,
    /// Seconds since the tailnet last vouched for it; `null` = never.
    pub verified: Option<u64>,
    /// Seconds until it ends unless the tailnet vouches for it again; `null` = it has ended.
    pub ends: Option<u64>,
    /// What a person should know about it; may be empty.
    pub why: String,
}

/// A wish and the way back.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) wish: Wish,
    pub(super) answer: oneshot::Sender<Said>,
}

/// The open socket. Dropping it closes and removes it.
#[derive(Debug)]
pub(super) struct Control {
    orders: mpsc::Receiver<Order>,
    task: JoinHandle<()>,
}

impl Control {
    /// Opens the socket at `path`.
    pub(super) fn open(path: &Path) -> Result<Control, BindError> {
        let door = unix(path, 0o600)?;
        let (sender, orders) = mpsc::channel(4);
        // Mode 0600 keeps others out already; a folder with odd rights would not let them in.
        let ours = rustix::process::geteuid().as_raw();
        let task = tokio::spawn(async move {
            loop {
                let (stream, uid) = door.accept().await;
                if uid.is_none_or(|uid| uid != 0 && uid != ours) {
                    continue;
                }
                let sender = sender.clone();
                let service = service_fn(move |request| answer(request, sender.clone()));
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD)
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move {
                    // Whoever breaks off does not want to know.
                    let _ = tokio::time::timeout(3 * HEAD, connection).await;
                });
            }
        });
        Ok(Control { orders, task })
    }

    /// The next order.
    pub(super) async fn next(&mut self) -> Option<Order> {
        self.orders.recv().await
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    request: Request<Incoming>,
    orders: mpsc::Sender<Order>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let failed = |status, text: &str| response(status, &Said::Failed(text.to_owned()));
    if request.method() != Method::POST || request.uri().path() != "/" {
        return Ok(failed(StatusCode::NOT_FOUND, "no such command"));
    }
    let Ok(body) = Limited::new(request.into_body(), LONGEST).collect().await else {
        return Ok(failed(StatusCode::BAD_REQUEST, "the order broke off or is too long"));
    };
    let wish = match serde_json::from_slice::<Wish>(&body.to_bytes()) {
        Ok(wish) => wish,
        Err(error) => return Ok(failed(StatusCode::BAD_REQUEST, &error.to_string())),
    };
    let (answer, wait) = oneshot::channel();
    if orders.send(Order { wish, answer }).await.is_err() {
        return Ok(failed(StatusCode::SERVICE_UNAVAILABLE, "tailherd is stopping"));
    }
    Ok(match wait.await {
        Ok(said @ Said::Failed(_)) => response(StatusCode::CONFLICT, &said),
        Ok(said) => response(StatusCode::OK, &said),
        Err(_) => failed(StatusCode::SERVICE_UNAVAILABLE, "tailherd is stopping"),
    })
}

fn response(status: StatusCode, said: &Said) -> Response<Full<Bytes>> {
    // A sum type of strings always has a JSON form.
    let body = serde_json::to_vec(said).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;
    use crate::config::FixedEnv;

    async fn said(path: &Path, text: &str) -> (String, Option<Said>) {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), serde_json::from_str(body).ok())
    }

    fn post(body: &str) -> String {
        let len = body.len();
        format!(
            "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n{body}"
        )
    }

    #[tokio::test]
    async fn orders_come_in_and_what_is_said_goes_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let mut control = Control::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let serving = tokio::spawn(async move {
            while let Some(Order { wish, answer }) = control.next().await {
                let said = match wish {
                    Wish::TrustAccept(name) => Said::Done(format!("{name} is in")),
                    Wish::TrustList => Said::Pins(Vec::new()),
                    _ => Said::Failed("line 3".to_owned()),
                };
                answer.send(said).unwrap();
            }
        });
        let (head, what) = said(&path, &post(r#"{"trustAccept":"gpu"}"#)).await;
        assert_eq!(
            (head.as_str(), what),
            ("HTTP/1.1 200 OK", Some(Said::Done("gpu is in".into())))
        );
        let (head, what) = said(&path, &post("\"reload\"")).await;
        assert_eq!(head, "HTTP/1.1 409 Conflict");
        assert_eq!(what, Some(Said::Failed("line 3".into())));
        let (head, what) = said(&path, &post("\"trustList\"")).await;
        assert_eq!((head.as_str(), what), ("HTTP/1.1 200 OK", Some(Said::Pins(Vec::new()))));
        for bad in ["{}", "", r#"{"forgetEverything":1}"#] {
            assert_eq!(said(&path, &post(bad)).await.0, "HTTP/1.1 400 Bad Request", "{bad}");
        }
        let get = "GET /status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        assert_eq!(said(&path, get).await.0, "HTTP/1.1 404 Not Found");
        serving.abort();
        let _ = serving.await;
        assert!(Control::open(&path).is_ok(), "the place is free again");
    }

    #[test]
    fn the_socket_lies_where_only_its_user_looks() {
        let env = FixedEnv::default().with("TAILHERD_STATE", "/s");
        let shown = |env: &FixedEnv| -> Vec<String> {
            places(env).iter().map(|p| p.display().to_string()).collect()
        };
        assert_eq!(shown(&env), ["/s/tailherd.sock", "/run/tailherd/tailherd.sock"]);
        let env = env.with("XDG_RUNTIME_DIR", "/run/user/7").with("RUNTIME_DIRECTORY", "/run/a:/b");
        assert_eq!(shown(&env)[..2], ["/run/a/tailherd.sock", "/run/user/7/tailherd.sock"]);
    }
}
