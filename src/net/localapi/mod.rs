//! LocalAPI: what this machine's tailscaled says, over its own socket.
//!
//! In flow small questions, out flow plain values; nothing here remembers an answer. Every
//! call is bounded in time and length, every connection proves anew that the daemon belongs
//! to somebody we believe ([`believe`]), and JSON of an unknown shape is an error, never a
//! default. Nothing is ever changed through it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Method, StatusCode};
use hyper_util::rt::TokioIo;

use super::Io;
use super::view::{TailnetNode, TailnetView};

pub mod believe;
mod bell;
mod filter;
mod find;
mod transport;
mod wire;

pub use find::FindError;
#[cfg(test)]
pub(super) use find::find_in;
pub use transport::{ApiError, Daemon};
pub use wire::control_id;

/// The LocalAPI that is in use now, if one is: one value, many readers.
pub type Current = Arc<ArcSwapOption<LocalApi>>;

/// A found and believed LocalAPI.
#[derive(Debug, Clone)]
pub struct LocalApi {
    capability: Arc<str>,
    transport: Arc<transport::Transport>,
}

/// Who stands behind an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhoIs {
    /// The node.
    pub node: TailnetNode,
    /// The values of our capability that the tailnet's policy grants that node here, each as
    /// raw JSON.
    pub caps: Vec<String>,
    /// The addresses its tunnel can be reached at, those on its local networks among them.
    pub endpoints: Vec<SocketAddr>,
}

/// The daemon's settings, as far as we read them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefs {
    /// The coordinator's URL; empty means Tailscale's own.
    pub control_url: String,
    /// Whether the user wants the tailnet to run.
    pub want_running: Option<bool>,
    /// Whether the user logged out.
    pub logged_out: Option<bool>,
    /// Whether traffic goes through an exit node.
    pub exit_node: bool,
    /// Whether the local network stays reachable beside that exit node.
    pub exit_node_allows_lan: bool,
}

/// A disco ping's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ping {
    /// Round-trip time.
    pub rtt: Duration,
    /// The peer's own address, if the path is direct.
    pub direct: Option<SocketAddr>,
    /// The relay's region code, if it is not.
    pub relay: Option<String>,
}

/// Something `tailscale serve` or Funnel forwards to this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeTarget {
    /// The port the tailnet (or the internet) sees.
    pub port: u16,
    /// Where it leads, as written: `127.0.0.1:11434` or `http://127.0.0.1:11434`.
    pub to: String,
    /// Whether the internet sees it.
    pub funnel: bool,
}

impl LocalApi {
    /// The picture of the tailnet; without `peers` it costs the daemon under a millisecond.
    pub async fn status(&self, peers: bool) -> Result<TailnetView, ApiError> {
        let (prefs, status) = tokio::try_join!(self.prefs(), self.status_bytes(peers))?;
        let mut view =
            wire::status(&status, &prefs).map_err(|text| ApiError::Shape("status", text))?;
        if view.tun == Some(true) {
            let address = view.me.as_ref().and_then(|me| me.addrs.first().copied());
            view.device = address.and_then(super::device_of).map(|device| device.name);
        }
        Ok(view)
    }

    async fn status_bytes(&self, peers: bool) -> Result<Bytes, ApiError> {
        self.get("status", &format!("/localapi/v0/status?peers={peers}")).await
    }

    /// Who stands behind this address and port; `None` if the daemon knows nobody there.
    pub async fn whois(&self, addr: SocketAddr) -> Result<Option<WhoIs>, ApiError> {
        let path = format!("/localapi/v0/whois?addr={addr}&proto=tcp");
        // Which tailnet the answer belongs to is asked anew, too: the user may have switched
        // accounts a moment ago, and Headscales all number their users 1, 2, 3.
        let (prefs, status, answer) = tokio::try_join!(
            self.prefs(),
            self.status_bytes(false),
            self.transport.ask(Method::GET, "whois", &path)
        )?;
        let Some(answer) = answer else { return Ok(None) };
        let shape = |text| ApiError::Shape("whois", text);
        let scope = wire::scope(&status, &prefs.control_url).map_err(shape)?;
        let scope = scope.ok_or_else(|| shape("no tailnet is named".to_owned()))?;
        wire::whois(&answer, &scope, &self.capability).map(Some).map_err(shape)
    }

    /// The daemon's settings.
    pub async fn prefs(&self) -> Result<Prefs, ApiError> {
        let bytes = self.get("prefs", "/localapi/v0/prefs").await?;
        wire::prefs(&bytes).map_err(|text| ApiError::Shape("prefs", text))
    }

    /// What `tailscale serve` and Funnel forward to this machine.
    pub async fn serve_config(&self) -> Result<Vec<ServeTarget>, ApiError> {
        let bytes = self.get("serve-config", "/localapi/v0/serve-config").await?;
        wire::serve(&bytes).map_err(|text| ApiError::Shape("serve-config", text))
    }

    /// Asks the daemon to reach a peer's daemon (disco), past all policy. A peer that answers
    /// this and not a connect is closed by policy, not dead.
    pub async fn ping(&self, address: IpAddr) -> Result<Ping, ApiError> {
        self.ping_by("disco", address).await
    }

    /// Asks the daemon to reach a peer's daemon through their tunnel (TSMP), past all policy.
    /// For the first seconds after a daemon's start [`ping`](Self::ping) may answer where this
    /// does not: WireGuard has still to agree on new keys, and no TCP gets through either.
    pub async fn ping_tunnel(&self, address: IpAddr) -> Result<Ping, ApiError> {
        self.ping_by("TSMP", address).await
    }

    async fn ping_by(&self, how: &str, address: IpAddr) -> Result<Ping, ApiError> {
        let path = format!("/localapi/v0/ping?ip={address}&type={how}");
        let bytes = self.transport.ask(Method::POST, "ping", &path).await?;
        let bytes = bytes.ok_or_else(|| not_found("ping"))?;
        wire::ping(&bytes).map_err(|text| ApiError::Shape("ping", text))
    }

    /// A TCP stream through the daemon: the only way out in userspace mode. The caller checks
    /// beforehand that `address` is a peer's.
    pub async fn dial(
        &self,
        address: IpAddr,
        port: u16,
        limit: Duration,
    ) -> Result<Box<dyn Io>, ApiError> {
        let headers = [
            ("upgrade", "ts-dial".to_owned()),
            ("connection", "upgrade".to_owned()),
            ("dial-host", address.to_string()),
            ("dial-port", port.to_string()),
            ("dial-network", "tcp".to_owned()),
        ];
        // Once the stream is handed over, the task of its HTTP connection has nothing left.
        let (response, _task) =
            self.transport.open(Method::POST, "/localapi/v0/dial", &headers, limit).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status();
            let text = tokio::time::timeout(limit, transport::text(response.into_body()));
            return Err(ApiError::Refused(status, "dial", text.await.unwrap_or_default()));
        }
        let io = hyper::upgrade::on(response)
            .await
            .map_err(|error| ApiError::Broken(Box::new(error)))?;
        Ok(Box::new(TokioIo::new(io)))
    }

    /// The process that answered last; `None` before the first call, and over TCP.
    pub fn daemon(&self) -> Option<Daemon> {
        *self.transport.daemon.lock()
    }

    /// The process that listens now, whether it answers questions or hangs; `None` if nobody
    /// who is believed does, and over TCP.
    pub async fn meet(&self) -> Option<Daemon> {
        self.transport.connect().await.ok()?;
        self.daemon()
    }

    /// Where the daemon listens, for showing.
    pub fn place(&self) -> String {
        self.transport.place.to_string()
    }

    async fn get(&self, what: &'static str, path: &str) -> Result<Bytes, ApiError> {
        self.transport.ask(Method::GET, what, path).await?.ok_or_else(|| not_found(what))
    }
}

fn not_found(what: &'static str) -> ApiError {
    ApiError::Refused(StatusCode::NOT_FOUND, what, String::new())
}
