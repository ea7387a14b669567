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
use crate::config::chains::Chains;
use crate::config::{Config, PriorityRule};
use crate::trust::Granted;
use crate::types::{Api, Caller, Class, ClientKind, ListenerKind, ModelKey, NodeName, Side};

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
    /// What names stand for.
    pub chains: Chains,
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
        Settings { chains: Chains::of(&config), config, origins, listed }
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

    /// Its class in a queue: as it says itself, else as the first `priority` rule says that
    /// means it. A program here stands before all others unless nobody waits for its answer.
    pub(crate) fn class(&self, rules: &[PriorityRule], model: &ModelKey) -> Class {
        let said = self.wishes.priority.or_else(|| {
            let means = |rule: &&PriorityRule| self.is_meant(rule, model);
            rules.iter().find(means).map(|rule| rule.class)
        });
        match said {
            Some(Class::Batch) => Class::Batch,
            _ if self.is_mesh() => Class::Interactive,
            _ => Class::Own,
        }
    }

    fn is_meant(&self, rule: &PriorityRule, model: &ModelKey) -> bool {
        let agent = self.wishes.agent.as_deref().unwrap_or_default();
        rule.path.as_ref().is_none_or(|path| self.route.upstream.starts_with(&**path))
            && rule.model.as_ref().is_none_or(|pattern| model.matches(pattern))
            && rule.agent.as_ref().is_none_or(|name| name.eq_ignore_ascii_case(agent))
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

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::trust::{Access, Tailnet};

    #[track_caller]
    fn check(mesh: bool, path: &str, headers: &[(&str, &str)], model: &str, expect: Class) {
        let rule = |path: Option<&str>, model: Option<&str>, agent: Option<&str>, class| {
            let own = |text: Option<&str>| text.map(str::to_owned);
            PriorityRule { path: own(path), model: own(model), agent: own(agent), class }
        };
        let rules = [
            rule(Some("/api/embed"), Some("quick*"), None, Class::Interactive),
            rule(Some("/api/embed"), None, None, Class::Batch),
            rule(Some("/v1/embeddings"), None, None, Class::Batch),
            rule(None, Some("slow*"), None, Class::Batch),
            rule(None, None, Some("indexer"), Class::Batch),
        ];
        let mut request = Request::post(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let caller = Arc::new(Caller::local(None, None));
        let granted = Access::new(None, &Tailnet::default()).of(&caller);
        let (head, ()) = request.body(()).unwrap().into_parts();
        let asked = read_head(caller, mesh.then_some(granted), head, String::new());
        let model = ModelKey::parse(model).unwrap();
        assert_eq!(asked.class(&rules, &model), expect, "{path} {headers:?} {model}");
    }

    #[test]
    fn a_request_is_of_the_class_it_says_or_the_first_rule_that_means_it() {
        let (own, interactive, batch) = (Class::Own, Class::Interactive, Class::Batch);
        let says = |class| [("x-tailherd-priority", class)];
        check(false, "/api/chat", &[], "tiny", own);
        check(false, "/api/chat", &says("batch"), "tiny", batch);
        check(false, "/api/chat", &says("interactive"), "slow:7b", own);
        check(false, "/api/embed", &[], "tiny", batch);
        check(false, "/api/embeddings", &[], "tiny", batch);
        check(false, "/embeddings", &[], "tiny", batch);
        check(false, "/node/desk/api/embed", &[], "tiny", batch);
        check(false, "/api/embed", &[], "quick:1b", own);
        check(false, "/api/chat", &[], "slow:7b", batch);
        check(false, "/api/chat", &[("x-tailherd-agent", "Indexer")], "tiny", batch);
        check(false, "/api/chat", &[("x-tailherd-agent", "other")], "tiny", own);
        check(true, "/api/chat", &[], "tiny", interactive);
        check(true, "/api/chat", &says("batch"), "tiny", batch);
        check(true, "/api/chat", &says("own"), "tiny", interactive);
        check(true, "/api/embed", &[], "tiny", batch);
        // Whom a peer asks for is its own affair.
        check(true, "/api/chat", &[("x-tailherd-agent", "indexer")], "tiny", interactive);
    }
}
