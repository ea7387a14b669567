//! Ways to reach a peer, and the doors a request comes in by.

use std::borrow::Cow;
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

    /// What stands in `Host` (RFC 9110, section 7.2): the configured name, without the port that
    /// goes without saying. An engine of a node takes no other name than its own machine's.
    pub fn host(&self) -> String {
        match self {
            Dial::Loopback(addr) | Dial::Tailnet(addr) | Dial::Lan { addr, .. } => {
                format!("localhost:{}", addr.port())
            }
            Dial::Configured { host, port, tls } | Dial::Hosted { host, port, tls, .. } => {
                match (tls, port) {
                    (true, 443) | (false, 80) => bracketed(host).into_owned(),
                    _ => format!("{}:{port}", bracketed(host)),
                }
            }
        }
    }

    /// The root of its URLs, as it is shown.
    pub fn url(&self) -> String {
        match self {
            Dial::Loopback(addr) | Dial::Tailnet(addr) | Dial::Lan { addr, .. } => {
                format!("http://{addr}")
            }
            Dial::Configured { host, port, tls } | Dial::Hosted { host, port, tls, .. } => {
                let scheme = if *tls { "https" } else { "http" };
                format!("{scheme}://{}:{port}", bracketed(host))
            }
        }
    }
}

/// A host as it stands in a URL: an IPv6 address in brackets.
fn bracketed(host: &str) -> Cow<'_, str> {
    match host.contains(':') {
        true => format!("[{host}]").into(),
        false => host.into(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_its_port_unless_it_goes_without_saying() {
        let server = |host: &str, port, tls| Dial::Configured { host: host.into(), port, tls };
        let check = |dial: Dial, host: &str, url: &str| {
            assert_eq!((dial.host(), dial.url()), (host.into(), url.into()));
        };
        check(server("nas", 11434, false), "nas:11434", "http://nas:11434");
        check(server("nas", 80, false), "nas", "http://nas:80");
        check(server("nas", 80, true), "nas:80", "https://nas:80");
        check(server("api.test", 443, true), "api.test", "https://api.test:443");
        check(server("fd00::5", 8080, false), "[fd00::5]:8080", "http://[fd00::5]:8080");
        check(server("fd00::5", 443, true), "[fd00::5]", "https://[fd00::5]:443");
        let node = |addr: &str| addr.parse::<SocketAddr>().unwrap();
        check(
            Dial::Tailnet(node("100.64.0.7:11434")),
            "localhost:11434",
            "http://100.64.0.7:11434",
        );
        check(Dial::Loopback(node("[::1]:8080")), "localhost:8080", "http://[::1]:8080");
    }
}
