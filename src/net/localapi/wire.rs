//! The daemon's JSON, read tolerantly.
//!
//! The JSON is not promised to anybody, so every field is optional, every peer is read alone
//! (one odd peer does not hide the others), and an unknown `BackendState` stays a string. A
//! node that lacks what an identity needs does not exist for us.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::{Ping, Prefs, ServeTarget, WhoIs};
use crate::net::view::{TailnetNode, TailnetView};
use crate::types::{ControlId, NodeId, NodeName, Principal, Wall};

/// Most endpoints of one node that are kept: an honest one has a handful.
const MAX_ENDPOINTS: usize = 64;

/// What an empty `ControlURL` means.
const DEFAULT_CONTROL: &str = "https://controlplane.tailscale.com";

/// The coordinator and tailnet as one id: the first 16 hex digits of SHA-256 over the control
/// URL, a newline and the tailnet's domain.
pub fn control_id(control_url: &str, domain: &str) -> ControlId {
    let url = if control_url.is_empty() { DEFAULT_CONTROL } else { control_url };
    let hash = Sha256::new().chain_update(url).chain_update("\n").chain_update(domain).finalize();
    let hex: String = hash.iter().take(8).map(|b| format!("{b:02x}")).collect();
    ControlId(hex.into())
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Status {
    #[serde(rename = "TUN")]
    tun: Option<bool>,
    backend_state: Option<String>,
    #[serde(rename = "Self")]
    me: Option<Box<RawValue>>,
    health: Option<Vec<String>>,
    #[serde(rename = "MagicDNSSuffix")]
    suffix: Option<String>,
    current_tailnet: Option<CurrentTailnet>,
    peer: Option<BTreeMap<String, Box<RawValue>>>,
    user: Option<BTreeMap<String, Box<RawValue>>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct CurrentTailnet {
    name: Option<String>,
    #[serde(rename = "MagicDNSSuffix")]
    suffix: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct StatusNode {
    #[serde(rename = "ID")]
    id: Option<String>,
    host_name: Option<String>,
    #[serde(rename = "DNSName")]
    dns_name: Option<String>,
    #[serde(rename = "OS")]
    os: Option<String>,
    #[serde(rename = "UserID")]
    user: Option<i64>,
    #[serde(rename = "AltSharerUserID")]
    sharer: Option<i64>,
    sharee_node: Option<bool>,
    #[serde(rename = "TailscaleIPs")]
    ips: Option<Vec<IpAddr>>,
    tags: Option<Vec<String>>,
    online: Option<bool>,
    created: Option<String>,
    public_key: Option<String>,
    key_expiry: Option<String>,
    expired: Option<bool>,
    cur_addr: Option<String>,
    relay: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Profile {
    login_name: Option<String>,
}

/// The tailnet's domain, from whichever field names it.
fn domain_of(status: &Status) -> Option<String> {
    let current = status.current_tailnet.as_ref();
    [
        status.suffix.as_ref(),
        current.and_then(|t| t.suffix.as_ref()),
        current.and_then(|t| t.name.as_ref()),
    ]
    .into_iter()
    .flatten()
    .find(|s| !s.is_empty())
    .cloned()
}

/// Reads a status. Which coordinator it is, and what becomes of the local network, only the
/// prefs say.
pub(super) fn status(bytes: &[u8], prefs: &Prefs) -> Result<TailnetView, String> {
    let control_url = prefs.control_url.as_str();
    let status: Status = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let state = status.backend_state.clone().unwrap_or_default();
    let scope = domain_of(&status)
        .map(|domain| Scope { control: control_id(control_url, &domain), domain });
    let logins: BTreeMap<i64, String> = status
        .user
        .iter()
        .flatten()
        .filter_map(|(id, raw)| {
            let profile: Profile = serde_json::from_str(raw.get()).ok()?;
            Some((id.parse().ok()?, profile.login_name?))
        })
        .collect();
    let node = |raw: &RawValue| -> Option<TailnetNode> {
        let node: StatusNode = serde_json::from_str(raw.get()).ok()?;
        let login = node.user.and_then(|id| logins.get(&id)).cloned();
        scope.as_ref()?.node(Facts {
            stable: node.id?,
            dns: node.dns_name.unwrap_or_default(),
            host: node.host_name.unwrap_or_default(),
            os: node.os.unwrap_or_default(),
            user: node.user.unwrap_or_default(),
            login: login.unwrap_or_default(),
            tags: node.tags.unwrap_or_default(),
            sharee: node.sharee_node.unwrap_or_default() || node.sharer.unwrap_or_default() != 0,
            addrs: node.ips.unwrap_or_default(),
            online: node.online.unwrap_or_default(),
            created: node.created.unwrap_or_default(),
            key: node.public_key.unwrap_or_default(),
            expires: wall(node.key_expiry),
            expired: node.expired.unwrap_or_default(),
            current: node.cur_addr.and_then(|addr| addr.parse().ok()),
            relay: node.relay.unwrap_or_default(),
        })
    };
    let me = status.me.as_ref().and_then(|raw| node(raw));
    let online = status
        .me
        .as_ref()
        .and_then(|raw| serde_json::from_str::<StatusNode>(raw.get()).ok())
        .and_then(|n| n.online);
    let mut peers: Vec<TailnetNode> =
        status.peer.iter().flatten().filter_map(|(_, raw)| node(raw)).collect();
    peers.sort_by(|a, b| (a.name.as_str(), &a.id).cmp(&(b.name.as_str(), &b.id)));
    let why = match state.as_str() {
        "Running" => "",
        "Stopped" => "stopped_by_user",
        "NeedsLogin" | "NeedsMachineAuth" => "logged_out",
        _ => "starting",
    };
    Ok(TailnetView {
        running: state == "Running",
        why: why.to_owned(),
        state,
        online,
        tun: status.tun,
        me,
        device: None,
        peers,
        control: scope.map(|s| s.control),
        control_url: control_url.to_owned(),
        exit_node_blocks_lan: prefs.exit_node && !prefs.exit_node_allows_lan,
        health: status.health.unwrap_or_default(),
    })
}

/// The tailnet's domain and control id, from a status without peers.
pub(super) fn scope(bytes: &[u8], control_url: &str) -> Result<Option<Scope>, String> {
    let status: Status = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    Ok(domain_of(&status).map(|domain| Scope { control: control_id(control_url, &domain), domain }))
}

/// The tailnet that names belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scope {
    control: ControlId,
    domain: String,
}

/// A node's facts, whichever answer they came from.
struct Facts {
    stable: String,
    dns: String,
    host: String,
    os: String,
    user: i64,
    login: String,
    tags: Vec<String>,
    sharee: bool,
    addrs: Vec<IpAddr>,
    online: bool,
    created: String,
    key: String,
    expires: Option<Wall>,
    expired: bool,
    current: Option<SocketAddr>,
    relay: String,
}

/// A time as Go writes it; its zero (year 1) is none.
fn wall(text: Option<String>) -> Option<Wall> {
    let seconds = crate::api::time::seconds(&text?)?;
    u64::try_from(seconds).ok().filter(|s| *s > 0).map(Wall)
}

impl Scope {
    fn node(&self, f: Facts) -> Option<TailnetNode> {
        if f.stable.is_empty() || f.addrs.is_empty() {
            return None;
        }
        let control = self.control.clone();
        let tags: BTreeSet<Arc<str>> =
            f.tags.iter().filter(|t| t.starts_with("tag:")).map(|t| Arc::from(&**t)).collect();
        let principal = match (tags.is_empty(), f.tags.is_empty(), f.user) {
            (false, _, _) => Principal::Tags { control: control.clone(), set: tags },
            // Neither tags we understand nor an owner: nobody.
            (true, false, _) | (true, true, 0) => return None,
            (true, true, id) => {
                Principal::User { control: control.clone(), id, login: f.login.into() }
            }
        };
        let dns = f.dns.trim_end_matches('.').to_owned();
        // A node of another tailnet keeps that tailnet's domain in its name.
        let ours = dns
            .strip_suffix(self.domain.as_str())
            .is_some_and(|rest| rest.ends_with('.') && rest.len() > 1);
        let name = NodeName::from_dns(if dns.is_empty() { &f.host } else { &dns });
        Some(TailnetNode {
            id: NodeId::Tailnet { control, stable: f.stable.into() },
            name,
            shared: f.sharee || !ours,
            dns,
            principal,
            addrs: f.addrs,
            mobile: matches!(f.os.as_str(), "iOS" | "android" | "tvOS"),
            os: f.os,
            online: f.online,
            created: f.created,
            key: f.key,
            expires: f.expires,
            expired: f.expired,
            current: f.current,
            relay: f.relay,
        })
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct WhoIsAnswer {
    node: Option<WhoIsNode>,
    user_profile: Option<Profile>,
    cap_map: Option<BTreeMap<String, Box<RawValue>>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct WhoIsNode {
    #[serde(rename = "StableID")]
    id: Option<String>,
    name: Option<String>,
    user: Option<i64>,
    sharer: Option<i64>,
    addresses: Option<Vec<String>>,
    hostinfo: Option<Hostinfo>,
    tags: Option<Vec<String>>,
    online: Option<bool>,
    created: Option<String>,
    computed_name: Option<String>,
    key: Option<String>,
    key_expiry: Option<String>,
    expired: Option<bool>,
    endpoints: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Hostinfo {
    #[serde(rename = "OS")]
    os: Option<String>,
    sharee_node: Option<bool>,
}

/// An address out of a prefix that holds nothing else.
fn single(prefix: &str) -> Option<IpAddr> {
    let (address, bits) = prefix.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let whole = if address.is_ipv4() { "32" } else { "128" };
    (bits == whole).then_some(address)
}

/// Reads a WhoIs answer. A capability that is not a list grants nothing.
pub(super) fn whois(bytes: &[u8], scope: &Scope, capability: &str) -> Result<WhoIs, String> {
    let answer: WhoIsAnswer = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let node = answer.node.ok_or("no node")?;
    let hostinfo = node.hostinfo.unwrap_or_default();
    let facts = Facts {
        stable: node.id.unwrap_or_default(),
        dns: node.name.unwrap_or_default(),
        host: node.computed_name.unwrap_or_default(),
        os: hostinfo.os.unwrap_or_default(),
        user: node.user.unwrap_or_default(),
        login: answer.user_profile.and_then(|p| p.login_name).unwrap_or_default(),
        tags: node.tags.unwrap_or_default(),
        sharee: hostinfo.sharee_node.unwrap_or_default() || node.sharer.unwrap_or_default() != 0,
        addrs: node.addresses.iter().flatten().filter_map(|p| single(p)).collect(),
        online: node.online.unwrap_or_default(),
        created: node.created.unwrap_or_default(),
        key: node.key.unwrap_or_default(),
        expires: wall(node.key_expiry),
        expired: node.expired.unwrap_or_default(),
        // Neither is part of this answer.
        current: None,
        relay: String::new(),
    };
    let endpoints = node.endpoints.iter().flatten().filter_map(|e| e.parse().ok());
    let endpoints = endpoints.take(MAX_ENDPOINTS).collect();
    let node = scope.node(facts).ok_or("the node has no id, no address or no owner")?;
    let caps = answer
        .cap_map
        .and_then(|mut map| map.remove(capability))
        .and_then(|raw| serde_json::from_str::<Vec<Box<RawValue>>>(raw.get()).ok())
        .unwrap_or_default()
        .iter()
        .map(|raw| raw.get().to_owned())
        .collect();
    Ok(WhoIs { node, caps, endpoints })
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct PrefsAnswer {
    #[serde(rename = "ControlURL")]
    control_url: Option<String>,
    want_running: Option<bool>,
    logged_out: Option<bool>,
    #[serde(rename = "ExitNodeID")]
    exit_node: Option<String>,
    #[serde(rename = "ExitNodeIP")]
    exit_node_address: Option<String>,
    auto_exit_node: Option<String>,
    #[serde(rename = "ExitNodeAllowLANAccess")]
    exit_node_allows_lan: Option<bool>,
}

/// Reads the prefs.
pub(super) fn prefs(bytes: &[u8]) -> Result<Prefs, String> {
    let prefs: PrefsAnswer = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let said = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    Ok(Prefs {
        exit_node: said(&prefs.exit_node)
            || said(&prefs.exit_node_address)
            || said(&prefs.auto_exit_node),
        exit_node_allows_lan: prefs.exit_node_allows_lan.unwrap_or_default(),
        control_url: prefs.control_url.unwrap_or_default(),
        want_running: prefs.want_running,
        logged_out: prefs.logged_out,
    })
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct PingAnswer {
    err: Option<String>,
    latency_seconds: Option<f64>,
    endpoint: Option<String>,
    #[serde(rename = "DERPRegionCode")]
    relay: Option<String>,
}

/// Reads a ping's answer.
pub(super) fn ping(bytes: &[u8]) -> Result<Ping, String> {
    let answer: PingAnswer = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if let Some(text) = answer.err.filter(|text| !text.is_empty()) {
        return Err(text);
    }
    let seconds = answer.latency_seconds.filter(|s| s.is_finite() && (0.0..3600.0).contains(s));
    Ok(Ping {
        rtt: std::time::Duration::from_secs_f64(seconds.ok_or("no latency")?),
        direct: answer.endpoint.and_then(|e| e.parse().ok()),
        relay: answer.relay.filter(|r| !r.is_empty()),
    })
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct ServeConfig {
    #[serde(rename = "TCP")]
    tcp: Option<BTreeMap<String, TcpHandler>>,
    web: Option<BTreeMap<String, WebServer>>,
    allow_funnel: Option<BTreeMap<String, bool>>,
    foreground: Option<BTreeMap<String, ServeConfig>>,
    services: Option<BTreeMap<String, ServeConfig>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct TcpHandler {
    #[serde(rename = "TCPForward")]
    forward: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct WebServer {
    handlers: Option<BTreeMap<String, WebHandler>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct WebHandler {
    proxy: Option<String>,
}

/// Reads what `tailscale serve` and Funnel forward to this machine.
pub(super) fn serve(bytes: &[u8]) -> Result<Vec<ServeTarget>, String> {
    let config: Option<ServeConfig> = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let mut all = Vec::new();
    targets(&config.unwrap_or_default(), &mut all);
    Ok(all)
}

fn targets(config: &ServeConfig, all: &mut Vec<ServeTarget>) {
    let port_of = |text: &str| text.rsplit(':').next().and_then(|p| p.parse::<u16>().ok());
    let funnels: BTreeSet<u16> = config
        .allow_funnel
        .iter()
        .flatten()
        .filter(|(_, on)| **on)
        .filter_map(|(host, _)| port_of(host))
        .collect();
    let mut push = |port: Option<u16>, to: &str| {
        if let Some(port) = port {
            all.push(ServeTarget { port, to: to.to_owned(), funnel: funnels.contains(&port) });
        }
    };
    for (port, handler) in config.tcp.iter().flatten() {
        if let Some(to) = &handler.forward {
            push(port_of(port), to);
        }
    }
    for (host, server) in config.web.iter().flatten() {
        for handler in server.handlers.iter().flat_map(BTreeMap::values) {
            if let Some(to) = &handler.proxy {
                push(port_of(host), to);
            }
        }
    }
    for inner in config.foreground.iter().chain(&config.services).flat_map(BTreeMap::values) {
        targets(inner, all);
    }
}
