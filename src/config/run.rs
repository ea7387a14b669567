//! The configuration as the program needs it: every default filled in, every text parsed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use crate::types::ShareWhen;
use crate::types::{Class, Compat, Dial, ProviderApi, Secret, Verbs, Via, Who};

/// The configuration as run. Made only by [`super::parse`] and [`super::load`].
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where programs on this machine reach us.
    pub listen: Vec<ListenAt>,
    /// Whether `listen` was left to the default (then another port is taken if 11434 is held).
    pub listen_is_default: bool,
    /// Further host names accepted in `Host` on apps listeners.
    pub allowed_hosts: Vec<String>,
    /// Further browser origins, each as in `OLLAMA_ORIGINS` (`*` allowed).
    pub origins: Vec<String>,
    /// This node's engines; `None` = look for them.
    pub local: Option<Vec<LocalEngine>>,
    /// Models to hold in memory.
    pub preload: Vec<String>,
    /// `keep_alive` of our own loads, as Ollama reads it (`30m`); `None` = the engine's default.
    pub keep_alive: Option<String>,
    /// Longest `keep_alive` that a peer's request may ask for.
    pub max_remote_keep_alive: Duration,
    /// Nothing outside mesh and LAN is ever contacted.
    pub offline: bool,
    /// The tailnet.
    pub tailnet: Tailnet,
    /// Bare servers named by hand.
    pub ollamas: Vec<ConfiguredServer>,
    /// SRV and A names that give addresses to known nodes.
    pub dns_names: Vec<String>,
    /// The local network.
    pub lan: Lan,
    /// Who may use this node; `None` = auto.
    pub access: Option<Vec<AccessRule>>,
    /// To whom prompts may go; `None` = auto.
    pub send_to: Option<Vec<SendRule>>,
    /// What happens with a node seen for the first time.
    pub new_nodes: NewNodes,
    /// Requests that came through `tailscale serve` are taken as local.
    pub trust_serve: bool,
    /// What this node does for others.
    pub share: Share,
    /// Factor on the predicted time of other nodes (above 1 = stay here longer).
    pub prefer_local: f64,
    /// Whether copies with other weights under one name count as one model.
    pub variants: Variants,
    /// Named chains.
    pub agents: Agents,
    /// `models.*`: hosted providers and what is shown.
    pub models: Models,
    /// Other names of models (may hold one `*`) and what they mean, the most particular first.
    pub aliases: Vec<(String, String)>,
    /// Which requests are of which class.
    pub priority: Vec<PriorityRule>,
    /// Trying again.
    pub failover: Failover,
    /// Bounds.
    pub limits: Limits,
    /// The admin listener; `None` = off.
    pub admin_listen: Option<SocketAddr>,
    /// A file for Prometheus' `file_sd_configs`.
    pub prometheus_file: Option<PathBuf>,
    /// How long a shutdown waits for running requests.
    pub drain: Duration,
    /// What is logged, and how.
    pub log: Log,
    /// Where this came from.
    pub origin: Origin,
    /// Things that are not wrong but worth saying: keys whose behaviour comes in a later
    /// version, unknown keys in pasted OpenClaw blocks, providers without their key.
    pub warnings: Vec<String>,
}

/// Where the configuration came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The file, if there was one.
    pub file: Option<PathBuf>,
    /// When it was taken into use; set by whoever does that.
    pub loaded_at: Option<SystemTime>,
}

/// An apps listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAt {
    /// An address and port.
    Tcp(SocketAddr),
    /// `unix:PATH`.
    Unix(PathBuf),
    /// A container bridge by interface name, with the port of the first TCP entry.
    Bridge(String),
}

impl fmt::Display for ListenAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAt::Tcp(addr) => addr.fmt(f),
            ListenAt::Unix(path) => write!(f, "unix:{}", path.display()),
            ListenAt::Bridge(name) => f.write_str(name),
        }
    }
}

/// One of this node's engines, named by hand.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalEngine {
    /// Host name or address, port, and whether TLS.
    pub server: Server,
    /// How many requests it runs at once; `None` = find out.
    pub slots: Option<u32>,
    /// Its context window; `None` = ask it.
    pub context_length: Option<u64>,
    /// The user its socket has to belong to.
    pub user: Option<String>,
}

/// A base URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    /// Host name or address.
    pub host: Arc<str>,
    /// Port.
    pub port: u16,
    /// `https`.
    pub tls: bool,
    /// Path prefix without a trailing slash; empty for most.
    pub prefix: Arc<str>,
}

/// `ollamas[]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfiguredServer {
    /// Its name as a node.
    pub name: String,
    /// Where it is.
    pub server: Server,
}

/// `tailnet`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tailnet {
    /// `None` = auto: on if LocalAPI is found.
    pub enabled: Option<bool>,
    /// LocalAPI's socket; `None` = look in the platform's places.
    pub socket: Option<PathBuf>,
    /// A user id, beside root and ours, that LocalAPI may belong to.
    pub socket_uid: Option<u32>,
    /// Mesh ports: the first is the one peers look at first.
    pub ports: Vec<u16>,
    /// Which peers are looked at; `None` = all that `sendTo` allows.
    pub peers: Option<Vec<Who>>,
    /// Port of bare Ollamas on peers.
    pub bare_port: u16,
    /// Name of our app capability.
    pub capability: String,
}

/// `lan`.
#[derive(Debug, Clone, PartialEq)]
pub struct Lan {
    /// Whether LAN paths are used at all.
    pub enabled: bool,
    /// Whether mDNS is used.
    pub mdns: bool,
    /// On which networks.
    pub networks: LanNetworks,
    /// How long a pin lives without a tailnet contact.
    pub trust: Duration,
    /// How long tags and grants live without a tailnet contact.
    pub grant: Duration,
    /// LAN while logged out of the tailnet.
    pub when_logged_out: bool,
    /// LAN while the tailnet is stopped by its user.
    pub when_stopped: bool,
}

/// `lan.networks`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LanNetworks {
    /// Only where a pinned peer was met.
    Known,
    /// Everywhere.
    Any,
    /// These network ids.
    Ids(Vec<String>),
}

/// One rule of `access`.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessRule {
    /// Whom it means. Empty for a grant's rule: the grant says whom.
    pub from: Vec<Who>,
    /// What they may do.
    pub verbs: Verbs,
    /// Which models, as globs.
    pub models: Vec<String>,
    /// Most requests at once per principal.
    pub max_inflight: Option<u32>,
    /// Largest `num_ctx`.
    pub max_num_ctx: Option<u64>,
    /// Largest `num_predict`.
    pub max_predict: Option<u64>,
    /// Whether a request may bring a model into memory.
    pub may_load: bool,
}

/// One rule of `sendTo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendRule {
    /// Whom it means.
    pub to: Vec<Who>,
    /// Which models, as globs.
    pub models: Vec<String>,
    /// Rich peers.
    pub rich: bool,
    /// Bare peers.
    pub bare: bool,
}

/// `newNodes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewNodes {
    /// Own devices, and what the first list of an empty state holds, are allowed; later ones
    /// wait for `trust accept`.
    Auto,
    /// All are allowed.
    Allow,
    /// All wait for `trust accept`.
    Hold,
}

/// `share`.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// When this node works for others.
    pub when: ShareWhen,
    /// After how long without local use the node counts as idle.
    pub idle_after: Duration,
    /// Quiet hours, as minutes of the day (from, to).
    pub quiet: Vec<(u16, u16)>,
    /// Most requests of others at once, at each engine.
    pub inflight: Option<u32>,
    /// Loads for others.
    pub loads: ShareLoads,
    /// Share over metered links.
    pub metered: bool,
    /// Measure own speed once where it was never measured.
    pub self_measure: bool,
}

/// `share.loads`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShareLoads {
    /// Only if it evicts nothing of this node's owner.
    #[default]
    Fit,
    /// Always.
    Any,
    /// Never.
    None,
}

/// `variants`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variants {
    /// One name is routed inside one class of equal content.
    Strict,
    /// All copies of a name count as equal.
    Merge,
}

/// `models`.
#[derive(Debug, Clone, PartialEq)]
pub struct Models {
    /// `mode: "replace"`: only what is listed.
    pub replace: bool,
    /// Globs of what is listed.
    pub show: Vec<String>,
    /// Globs of what is not.
    pub hide: Vec<String>,
    /// `models.providers` that can be used.
    pub providers: BTreeMap<String, Arc<Provider>>,
    /// The names of those that are off (no key, no address): a chain passes over them.
    pub off: Vec<String>,
}

/// A hosted provider, or another server that speaks a provider's dialect.
#[derive(Debug, Clone, PartialEq)]
pub struct Provider {
    /// Its name in `models.providers`.
    pub name: Arc<str>,
    /// Its origin, and the path below which its routes stand.
    pub server: Server,
    /// What it speaks.
    pub api: ProviderApi,
    /// How it is told who pays.
    pub auth: Auth,
    /// Further headers of its own. They may hold keys.
    pub headers: Vec<(String, Secret)>,
    /// Members of every request's body.
    pub body: serde_json::Map<String, serde_json::Value>,
    /// Its models.
    pub models: Vec<HostedModel>,
    /// Whether it may be asked for models that are not listed: none is.
    pub open: bool,
    /// How many requests it takes.
    pub limit: Limit,
    /// Most dollars a day.
    pub budget: Option<f64>,
    /// Who may use it; `None` = whoever may use hosted providers at all.
    pub users: Option<Vec<Who>>,
    /// How long the beginning of an answer is awaited, and the longest pause in it.
    pub timeout: Option<Duration>,
    /// How far away it is.
    pub reach: Reach,
    /// The proxy through which it is reached.
    pub via: Option<Via>,
}

/// How a provider is told who pays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Not at all.
    None,
    /// `Authorization: Bearer`.
    Bearer(Secret),
    /// A header of its own.
    Header(&'static str, Secret),
}

/// How far away a provider is, the nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// On this machine.
    Here,
    /// On a network of this machine, or in the tailnet.
    Near,
    /// On the internet: absent when `offline`.
    Far,
}

/// One model of a provider.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HostedModel {
    /// What the provider calls it.
    pub id: Arc<str>,
    /// What is spoken for this model, if not what the provider speaks.
    pub api: Option<ProviderApi>,
    /// Its context window, in tokens.
    pub context: Option<u64>,
    /// Most tokens of an answer.
    pub max_tokens: Option<u64>,
    /// Whether it reads images.
    pub vision: bool,
    /// Whether it thinks.
    pub reasoning: bool,
    /// What it costs.
    pub cost: Cost,
    /// What its server takes and does not take, where that was written down.
    pub compat: Compat,
}

/// Dollars for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[expect(missing_docs, reason = "the words of openclaw.json")]
pub struct Cost {
    pub input: f64,
    pub output: f64,
    pub cache_read: f64,
    pub cache_write: f64,
}

/// How many requests a provider takes (free tiers), so that a step is passed over before it
/// answers 429.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limit {
    /// In any sixty seconds.
    pub per_minute: Option<u32>,
    /// From midnight to midnight, UTC.
    pub per_day: Option<u32>,
}

impl Provider {
    /// What is known of one of its models; `None` if it cannot be asked for it.
    pub fn model(&self, id: &str) -> Option<HostedModel> {
        let listed = self.models.iter().find(|m| m.id.eq_ignore_ascii_case(id)).cloned();
        listed.or_else(|| {
            (self.open && !id.is_empty())
                .then(|| HostedModel { id: id.into(), ..HostedModel::default() })
        })
    }

    /// Where a connection to it goes.
    pub fn dial(&self) -> Dial {
        let Server { host, port, tls, .. } = &self.server;
        let (host, port, tls) = (Arc::clone(host), *port, *tls);
        match self.reach {
            Reach::Far => Dial::Hosted { host, port, tls, via: self.via.clone().map(Arc::new) },
            Reach::Here | Reach::Near => Dial::Configured { host, port, tls },
        }
    }
}

/// `agents`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Agents {
    /// `agents.defaults`: for whoever asks for its primary.
    pub defaults: Option<Agent>,
    /// The others, by name in lower case.
    pub named: BTreeMap<String, Agent>,
    /// `alias` entries of `agents.defaults.models`: another name, and what it means.
    pub aliases: Vec<(String, String)>,
}

/// One agent.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Agent {
    /// What it asks, the first one first, as written (`ollama/x`, `provider/x`).
    pub models: Vec<String>,
    /// The shortest context window that will do, in tokens; 0 = any.
    pub min_context: u64,
    /// Where its answers may come from.
    pub place: Option<Place>,
    /// The class of its requests.
    pub priority: Option<Class>,
}

/// `where`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// This node only.
    This,
    /// Nodes of this node's owner.
    Mine,
    /// The mesh, and no hosted provider.
    Mesh,
}

/// One rule of `priority`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriorityRule {
    /// Path prefix; `None` = any.
    pub path: Option<String>,
    /// Model glob; `None` = any.
    pub model: Option<String>,
    /// Agent name; `None` = any.
    pub agent: Option<String>,
    /// The class.
    pub class: Class,
}

/// `failover`.
#[derive(Debug, Clone, PartialEq)]
pub struct Failover {
    /// Most tries that may have used an engine.
    pub max_attempts: u32,
    /// How long a failed (node, model) rests, step by step.
    pub cooldown: Vec<Duration>,
    /// How long a provider that wants money rests.
    pub billing_cooldown: Duration,
}

/// `limits`.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Largest request body, blobs excepted.
    pub body_bytes: u64,
    /// Most bytes held of one request for another try.
    pub replay_bytes: u64,
    /// Most bytes held of all requests for another try.
    pub replay_total: u64,
    /// Most requests at once.
    pub inflight: u32,
    /// Most requests waiting in the gate.
    pub queue: u32,
    /// Most connections.
    pub connections: u32,
}

/// `log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// A level or a `tracing` filter.
    pub level: String,
    /// One JSON object a line.
    pub json: bool,
}

impl Config {
    /// Whether a rule names users of this machine (`uid:N`).
    pub fn names_users(&self) -> bool {
        let rules = self.access.iter().flatten().flat_map(|rule| &rule.from);
        let spenders = self.models.providers.values().flat_map(|p| p.users.iter().flatten());
        rules.chain(spenders).any(|who| matches!(who, Who::Uid(_)))
    }
}
