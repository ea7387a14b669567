//! Ways to reach a peer, and the doors a request comes in by.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{PublicKey, Secret};

/// The kind of a way to a node.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum PathKind {
    /// This machine.
    Loopback,
    /// The tailnet.
    Tailnet,
    /// The local network.
    Lan,
    /// The internet.
    Hosted,
}

impl PathKind {
    /// The label in metrics, status and logs.
    pub const fn label(self) -> &'static str {
        match self {
            PathKind::Loopback => "loopback",
            PathKind::Tailnet => "tailnet",
            PathKind::Lan => "lan",
            PathKind::Hosted => "hosted",
        }
    }
}

/// Where a connection goes, and how it has to be made. Only `net` acts on it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Dial {
    /// A plain TCP connection to this machine.
    Loopback(SocketAddr),
    /// A tailnet address: bound to this node's tailnet address and device, or through
    /// LocalAPI `dial` in userspace mode; made only while the tailnet is `Running` and lists
    /// the address.
    Tailnet(SocketAddr),
    /// An address of a pinned peer on the local network: on-link there, on a known network,
    /// inside TLS that accepts exactly this key.
    Lan {
        /// The peer's address there, and its mesh port.
        addr: SocketAddr,
        /// The key it is pinned by.
        key: PublicKey,
    },
    /// A server named in the configuration, by IP address or name, with or without TLS.
    Configured {
        /// Host name or IP address.
        host: Arc<str>,
        /// TCP port.
        port: u16,
        /// Whether the URL said `https`.
        tls: bool,
    },
    /// A provider on the internet.
    Hosted {
        /// Host name or IP address.
        host: Arc<str>,
        /// TCP port.
        port: u16,
        /// Whether the URL said `https`.
        tls: bool,
        /// The proxy that the environment names for it.
        via: Option<Arc<Via>>,
    },
}

/// A proxy that opens connections for us (`HTTPS_PROXY`), asked by `CONNECT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Via {
    /// Host name or IP address.
    pub host: Arc<str>,
    /// TCP port.
    pub port: u16,
    /// What stands in `Proxy-Authorization`.
    pub login: Option<Secret>,
}

impl Dial {
    /// The kind of path this is. A configured server's kind depends on its address.
    pub fn kind(&self) -> PathKind {
        match self {
            Dial::Loopback(_) => PathKind::Loopback,
            Dial::Tailnet(_) => PathKind::Tailnet,
            Dial::Lan { .. } => PathKind::Lan,
            Dial::Configured { host, .. } => match host.parse::<std::net::IpAddr>() {
                Ok(ip) if ip.is_loopback() => PathKind::Loopback,
                _ if &**host == "localhost" => PathKind::Loopback,
                _ => PathKind::Lan,
            },
            Dial::Hosted { .. } => PathKind::Hosted,
        }
    }
}

/// By which door a request came in. Trust is fixed by it when the door is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListenerKind {
    /// Programs on this machine.
    Apps,
    /// Nodes of the tailnet.
    Mesh,
    /// Pinned peers on the local network.
    Lan,
    /// Metrics, health, status.
    Admin,
}

impl ListenerKind {
    /// The label in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            ListenerKind::Apps => "apps",
            ListenerKind::Mesh => "mesh",
            ListenerKind::Lan => "lan",
            ListenerKind::Admin => "admin",
        }
    }
}
