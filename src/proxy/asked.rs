//! What is known of a request before its body: who asks, by which door, for what.
//!
//! In flow a request head and its caller; out flows an [`Asked`] or a refusal. The headers
//! that are between sidecars, or from an app to us, are read here and then stripped.

use std::net::{IpAddr, SocketAddr};

use std::sync::Arc;

use http::HeaderMap;
use http::header::{HOST, USER_AGENT};
use http::request::Parts;

use crate::api::browser::{self, HostVerdict, Origins};
use crate::api::headers;
use crate::api::route::{Route, classify};
use crate::config::Config;
use crate::trust::Granted;
use crate::types::{Api, Caller, Class, ClientKind, ListenerKind, NodeName, Side};

use super::error::Failure;
use super::wishes::Wishes;

/// What this machine is called.
#[derive(Debug, Default)]
pub struct Own {
    /// Names.
    pub names: Vec<String>,
    /// Addresses.
    pub addrs: Vec<IpAddr>,
}

/// The configuration in force, with what is made from it once.
#[derive(Debug)]
pub struct Settings {
    /// The configuration.
    pub config: Arc<Config>,
    /// Whose pages may use apps listeners.
    pub origins: Origins,
    /// Whose pages may use the mesh listener: only those named by hand.
    pub listed: Origins,
}

impl Settings {
    /// Prepares `config` for the data side.
    pub fn new(config: Arc<Config>) -> Settings {
        let origins = Origins::with_defaults(&config.origins);
        let listed = Origins::listed(&config.origins);
        Settings { config, origins, listed }
    }
}

/// A request head, understood.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) caller: Arc<Caller>,
    pub(crate) route: Route,
    /// What the caller may do here; `None` for programs on this machine, who may all.
    pub(crate) mesh_rule: Option<Granted>,
    /// What `x-tailherd-*` headers asked for.
    pub(crate) wishes: Wishes,
    /// Which kind of program asks.
    pub(crate) client: ClientKind,
    pub(crate) request_id: String,
    /// The head as it came, our own and hop-by-hop headers removed.
    pub(crate) head: Parts,
}

impl Asked {
    /// Whether the request came from another node: it reaches only this node's own engines,
    /// whatever its headers say.
    pub(crate) fn is_mesh(&self) -> bool {
        self.mesh_rule.is_some()
    }

    /// The node named by `/node/NAME/` or by header.
    pub(crate) fn named_node(&self) -> Option<NodeName> {
        self.route.node.clone().or_else(|| self.wishes.node())
    }

    /// The dialect in which errors are said.
    pub(crate) fn api(&self) -> Api {
        self.route.api
    }

    /// How near it is to this node's owner.
    pub(crate) fn side(&self) -> Side {
        match &self.mesh_rule {
            None => Side::Here,
            Some(granted) if granted.is_own() => Side::Mine,
            Some(_) => Side::Guest,
        }
    }

    /// Its class in this node's queue.
    pub(crate) fn class(&self) -> Class {
        if !self.is_mesh() {
            return Class::Own;
        }
        match self.wishes.priority {
            Some(Class::Batch) => Class::Batch,
            _ => Class::Interactive,
        }
    }
}

/// What a listener knows of itself when a request arrives.
#[derive(Debug, Clone)]
pub struct Door {
    /// The kind.
    pub kind: ListenerKind,
    /// Our own end of the connection; `None` for a unix socket.
    pub local: Option<SocketAddr>,
}

/// Host, Origin and forwarding headers, before anything else is looked at.
pub(crate) fn admit(
    door: &Door,
    head: &Parts,
    settings: &Settings,
    own: &Own,
) -> Result<(), Failure> {
    let headers = &head.headers;
    let page = match door.kind {
        ListenerKind::Apps | ListenerKind::Admin => {
            if !settings.config.trust_serve && headers::is_forwarded(headers) {
                return Err(Failure::refused(
                    "forwarded",
                    "this request came through a proxy; set trustServe if `tailscale serve` \
                     stands in front of tailherd on purpose",
                ));
            }
            // Nobody rebinds the name of a unix socket.
            let host = match door.local {
                Some(_) => {
                    let named = head.uri.host().map(str::as_bytes);
                    let host = named.or_else(|| headers.get(HOST).map(|h| h.as_bytes()));
                    let host = host.and_then(|h| std::str::from_utf8(h).ok());
                    let allowed = &settings.config.allowed_hosts;
                    browser::host_allowed(host, &own.names, &own.addrs, allowed)
                }
                None => HostVerdict::Allowed,
            };
            browser::apps(headers, host, &settings.origins)
        }
        ListenerKind::Mesh | ListenerKind::Lan => browser::mesh(headers, &settings.listed),
    };
    page.map_err(|refusal| Failure::silent(refusal.label()))
}

/// The family of the program that asks, by what it says of itself.
fn client(headers: &HeaderMap) -> ClientKind {
    // Open WebUI leaves its HTTP library's own name in place, and has headers of its own.
    if headers.keys().any(|name| name.as_str().starts_with("x-openwebui-")) {
        return ClientKind::OpenWebui;
    }
    let agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok());
    ClientKind::of_agent(agent.unwrap_or_default())
}

/// Takes a request head apart.
pub(crate) fn read_head(
    caller: Arc<Caller>,
    mesh_rule: Option<Granted>,
    head: Parts,
    request_id: String,
) -> Asked {
    let route = classify(&head.method, head.uri.path());
    let wishes = Wishes::read(&head.headers, mesh_rule.is_some());
    let client = client(&head.headers);
    Asked { caller, route, mesh_rule, wishes, client, request_id, head }
}
