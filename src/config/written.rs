//! The configuration as written: every key, its form, its default, and what it means.
//!
//! The doc comments are the descriptions in the schema and the comments of the example, so
//! they speak to the person who writes the file. No `flatten`, `untagged` or `tag` here: they
//! lose the place of an error.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::depth::too_deep;
use super::error::{ConfigError, SourceText};
use super::forms::{Auto, Size, WordOr};
use crate::types::Verb;

/// The configuration of tailherd. Every key may be left out: with no file at all it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Config {
    /// Where programs on this machine reach tailherd: loopback addresses, `unix:PATH`, or a
    /// container bridge by its name (`docker0`). No login is asked for here.
    pub(super) listen: Vec<String>,
    /// Further host names that may stand in `Host`.
    #[schemars(extend("examples" = [["ollama.lan"]]))]
    pub(super) allowed_hosts: Vec<String>,
    /// Web pages that may call, beside those Ollama itself lets in; as in `OLLAMA_ORIGINS`.
    #[schemars(extend("examples" = [["http://nas.local:3000"]]))]
    pub(super) origins: Vec<String>,
    /// This machine's model servers: "auto" looks at ports 11435, 11434 (if it is not
    /// tailherd), 1234, 8000 and 8080; an empty list means none.
    #[schemars(extend("examples" = [[{
        "baseUrl": "http://127.0.0.1:11435", "slots": 1, "contextLength": 65536, "user": "ollama"
    }]]))]
    pub(super) local: Auto<Vec<LocalEngine>>,
    /// Models to hold in memory from the start.
    #[schemars(extend("examples" = [["qwen3-coder"]]))]
    pub(super) preload: Vec<String>,
    /// How long a model that tailherd loads stays in memory without use, as Ollama's
    /// `keep_alive` (`-1` = for ever); null = as the server is set up.
    #[schemars(extend("examples" = ["30m"]))]
    pub(super) keep_alive: Option<String>,
    /// The longest `keep_alive` a request from another node may ask for.
    pub(super) max_remote_keep_alive: String,
    /// Nothing beyond this mesh and its networks is ever contacted.
    pub(super) offline: bool,
    /// The tailnet.
    pub(super) tailnet: Tailnet,
    /// Plain Ollamas that you trust with prompts, by address. One on a local network belongs
    /// to the network where it was first met.
    #[schemars(extend("examples" = [[{ "name": "nas", "url": "http://192.168.1.100:11434" }]]))]
    pub(super) ollamas: Vec<Ollama>,
    /// Names in the DNS.
    pub(super) dns: Dns,
    /// The local network, for when the tailnet is gone.
    pub(super) lan: Lan,
    /// Who may use this node. "auto": your own devices, `tag:ollama`, and tagged nodes as long
    /// as every node with an owner belongs to one person.
    #[schemars(extend("examples" = [[{
        "from": ["owner:self"], "verbs": ["infer", "list"], "models": ["*"],
        "maxInflight": 4, "mayLoad": true
    }]]))]
    pub(super) access: Auto<Vec<AccessRule>>,
    /// To whom prompts may go. "auto" means the same nodes as in `access`.
    #[schemars(extend("examples" = [[{
        "to": ["owner:self", "tag:ollama"], "models": ["*"], "kinds": ["rich", "bare"]
    }]]))]
    pub(super) send_to: Auto<Vec<SendRule>>,
    /// A node seen for the first time. "auto": your own devices and what the first list held
    /// are used, later ones wait for `tailherd trust accept`.
    pub(super) new_nodes: NewNodes,
    /// Take requests that came through `tailscale serve` as coming from this machine.
    pub(super) trust_serve: bool,
    /// What this node does for others.
    pub(super) share: Share,
    /// Factor on the predicted time of other nodes: above 1 = rather here.
    #[schemars(range(min = 0.01, max = 100.0))]
    pub(super) prefer_local: f64,
    /// Copies of one model name with other content: "strict" keeps them apart, "merge" takes
    /// them for the same.
    pub(super) variants: Variants,
    /// Named chains of models, as in openclaw.json.
    #[schemars(extend("examples" = [{
        "defaults": { "model": { "primary": "ollama/gpt-oss:20b", "fallbacks": ["ollama/llama3.3"] } },
        "coding": { "model": { "primary": "ollama/qwen3-coder" }, "minContext": 65536,
                    "where": "mesh", "priority": "interactive" }
    }]))]
    pub(super) agents: BTreeMap<String, Value>,
    /// What is listed, and hosted providers.
    pub(super) models: Models,
    /// Other names of models; one `*` may stand in a name.
    #[schemars(extend("examples" = [{ "claude-*": "ollama/gpt-oss:20b" }]))]
    pub(super) aliases: BTreeMap<String, String>,
    /// Which requests may wait: the first rule that matches counts.
    #[schemars(extend("examples" = [[{ "match": { "path": "/api/embed" }, "class": "batch" }]]))]
    pub(super) priority: Vec<PriorityRule>,
    /// Trying again.
    pub(super) failover: Failover,
    /// Bounds.
    pub(super) limits: Limits,
    /// Metrics, health and status.
    pub(super) admin: Admin,
    /// How long a shutdown waits for running requests.
    pub(super) drain: String,
    /// What is logged.
    pub(super) log: Log,
}

impl Config {
    /// Reads the text of a file.
    pub(super) fn read(source: &SourceText<'_>) -> Result<Config, ConfigError> {
        if let Some(at) = too_deep(source.text) {
            return Err(source.whole(at, "nested too deep"));
        }
        // The form of the whole text first: the second reading stops at the end of the value.
        json5::from_str::<IgnoredAny>(source.text).map_err(|e| source.refuse("", &e))?;
        let mut de = json5::Deserializer::from_str(source.text);
        serde_path_to_error::deserialize(&mut de)
            .map_err(|e| source.refuse(&e.path().to_string(), e.inner()))
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: vec!["127.0.0.1:11434".to_owned(), "[::1]:11434".to_owned()],
            allowed_hosts: Vec::new(),
            origins: Vec::new(),
            local: Auto::default(),
            preload: Vec::new(),
            keep_alive: None,
            max_remote_keep_alive: "5m".to_owned(),
            offline: false,
            tailnet: Tailnet::default(),
            ollamas: Vec::new(),
            dns: Dns::default(),
            lan: Lan::default(),
            access: Auto::default(),
            send_to: Auto::default(),
            new_nodes: NewNodes::Auto,
            trust_serve: false,
            share: Share::default(),
            prefer_local: 1.0,
            variants: Variants::Strict,
            agents: BTreeMap::new(),
            models: Models::default(),
            aliases: BTreeMap::new(),
            priority: Vec::new(),
            failover: Failover::default(),
            limits: Limits::default(),
            admin: Admin::default(),
            drain: "30s".to_owned(),
            log: Log::default(),
        }
    }
}

/// One model server on this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct LocalEngine {
    /// Its address, as `OLLAMA_HOST` would name it.
    pub(super) base_url: String,
    /// How many requests it runs at once; null = find out.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(super) slots: Option<u32>,
    /// Its context window in tokens; null = ask it.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(super) context_length: Option<u64>,
    /// The user that has to own its listening socket.
    #[serde(default)]
    pub(super) user: Option<String>,
}

/// The tailnet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Tailnet {
    /// "auto": on where tailscaled is found.
    pub(super) enabled: Auto<bool>,
    /// The path of tailscaled's socket, or "auto": the usual places of the platform.
    pub(super) socket: String,
    /// A user id, beside root and tailherd's own, under which tailscaled may run.
    pub(super) socket_uid: Option<u32>,
    /// The ports at which other nodes reach this one; the first is asked first.
    pub(super) ports: Vec<u16>,
    /// Which nodes to look at: "auto" = all that `sendTo` allows.
    #[schemars(extend("examples" = [["tag:ollama", "node:gpu"]]))]
    pub(super) peers: Auto<Vec<String>>,
    /// The port of a plain Ollama on nodes without tailherd.
    #[schemars(range(min = 1))]
    pub(super) bare_port: u16,
    /// The app capability by which the tailnet's policy file may grant access here.
    pub(super) capability: String,
}

impl Default for Tailnet {
    fn default() -> Self {
        Tailnet {
            enabled: Auto::default(),
            socket: "auto".to_owned(),
            socket_uid: None,
            ports: vec![11436, 11434],
            peers: Auto::default(),
            bare_port: 11434,
            capability: "tailherd.dev/cap/use".to_owned(),
        }
    }
}

/// A plain Ollama by address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Ollama {
    /// Its name in lists and in `model@name`.
    pub(super) name: String,
    /// Its address, as `OLLAMA_HOST` would name it.
    pub(super) url: String,
}

/// Names in the DNS.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Dns {
    /// SRV and A names that give addresses to nodes already known; they never add trust.
    #[schemars(extend("examples" = [["_ollama._tcp.example.net"]]))]
    pub(super) names: Vec<String>,
}

/// The local network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Lan {
    /// Whether it is used at all.
    pub(super) enabled: bool,
    /// Whether mDNS finds addresses of known nodes.
    pub(super) mdns: bool,
    /// On which networks: "known" = where a pinned node was met before, "any", or a list of
    /// network ids.
    pub(super) networks: Networks,
    /// How many days your own devices are trusted without having met over the tailnet.
    #[schemars(range(min = 1))]
    pub(super) trust_days: u32,
    /// How many hours tags and grants last without the tailnet.
    #[schemars(range(min = 1))]
    pub(super) grant_hours: u32,
    /// Also while logged out of the tailnet.
    pub(super) when_logged_out: bool,
    /// Also while the tailnet was stopped by hand.
    pub(super) when_stopped: bool,
}

impl Default for Lan {
    fn default() -> Self {
        Lan {
            enabled: true,
            mdns: true,
            networks: WordOr::Word(NetworksWord::Known),
            trust_days: 14,
            grant_hours: 24,
            when_logged_out: false,
            when_stopped: false,
        }
    }
}

pub(super) type Networks = WordOr<NetworksWord, Vec<String>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum NetworksWord {
    Known,
    Any,
}

/// Who may use this node, for what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AccessRule {
    /// Whom it means: `owner:self`, `person`, `user:a@b`, `tag:x`, `tagged`, `node:NAME`,
    /// `pin:NAME`, `local`, `uid:N` or `*`.
    pub(super) from: Vec<String>,
    /// What they may do.
    #[serde(default = "list_and_infer")]
    pub(super) verbs: Vec<Verb>,
    /// With which models; `*` stands for anything.
    #[serde(default = "every_model")]
    pub(super) models: Vec<String>,
    /// Most requests at once, for all connections of one owner together; null = 4. Your own
    /// devices are not bound by it.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(super) max_inflight: Option<u32>,
    /// Largest `num_ctx`; null = no bound.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(super) max_num_ctx: Option<u64>,
    /// Largest `num_predict`; null = no bound.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(super) max_predict: Option<u64>,
    /// Whether a request may bring a model into memory.
    #[serde(default = "yes")]
    pub(super) may_load: bool,
}

/// To whom prompts may go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SendRule {
    /// Whom it means, in the same words as `access[].from`.
    pub(super) to: Vec<String>,
    /// For which models; `*` stands for anything.
    #[serde(default = "every_model")]
    pub(super) models: Vec<String>,
    /// Nodes with tailherd ("rich"), nodes with only an Ollama ("bare").
    #[serde(default = "both_kinds")]
    pub(super) kinds: Vec<Kind>,
}

fn list_and_infer() -> Vec<Verb> {
    vec![Verb::List, Verb::Infer]
}

fn every_model() -> Vec<String> {
    vec!["*".to_owned()]
}

fn both_kinds() -> Vec<Kind> {
    vec![Kind::Rich, Kind::Bare]
}

const fn yes() -> bool {
    true
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Rich,
    Bare,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum NewNodes {
    Auto,
    Allow,
    Hold,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Variants {
    Strict,
    Merge,
}

/// What this node does for others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Share {
    /// When: "auto" (for all; on battery for your own devices), "all", "mine", "none", "idle".
    pub(super) when: ShareWhen,
    /// After how long without use the machine is idle (for "idle").
    pub(super) idle_after: String,
    /// Hours in which it works for nobody else.
    #[schemars(extend("examples" = [["22:00-07:00"]]))]
    pub(super) quiet: Vec<String>,
    /// Most requests of others at once, at each engine; null = no bound.
    pub(super) inflight: Option<u32>,
    /// Loading models for others: "fit" (if it evicts nothing of yours), "any", "none".
    pub(super) loads: ShareLoads,
    /// Also over metered links; otherwise there only for your own devices.
    pub(super) metered: bool,
    /// Measure this node's speed once where no request has shown it.
    pub(super) self_measure: bool,
}

impl Default for Share {
    fn default() -> Self {
        Share {
            when: ShareWhen::Auto,
            idle_after: "10m".to_owned(),
            quiet: Vec::new(),
            inflight: None,
            loads: ShareLoads::Fit,
            metered: false,
            self_measure: true,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ShareWhen {
    Auto,
    All,
    Mine,
    None,
    Idle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ShareLoads {
    Fit,
    Any,
    None,
}

/// What is listed, and hosted providers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Models {
    /// "merge": everything found and everything named here; "replace": only what is named.
    pub(super) mode: Mode,
    /// What is listed; `*` stands for anything.
    pub(super) show: Vec<String>,
    /// What is not listed although `show` names it.
    #[schemars(extend("examples" = [["*:cloud"]]))]
    pub(super) hide: Vec<String>,
    /// Hosted providers, in the shape of openclaw.json.
    #[schemars(extend("examples" = [{ "anthropic": {
        "baseUrl": "https://api.anthropic.com", "api": "anthropic-messages",
        "apiKey": "${ANTHROPIC_API_KEY}", "models": [{ "id": "claude-sonnet-4-5" }]
    } }]))]
    pub(super) providers: BTreeMap<String, Value>,
}

impl Default for Models {
    fn default() -> Self {
        Models {
            mode: Mode::Merge,
            show: every_model(),
            hide: Vec::new(),
            providers: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    Merge,
    Replace,
}

/// Which requests may wait.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PriorityRule {
    /// What a request has to look like. All that is named has to match.
    pub(super) r#match: Match,
    /// Its class.
    pub(super) class: PriorityClass,
}

/// What a request has to look like.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Match {
    /// The beginning of its path.
    pub(super) path: Option<String>,
    /// Its model; `*` stands for anything.
    pub(super) model: Option<String>,
    /// Its agent.
    pub(super) agent: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum PriorityClass {
    Interactive,
    Batch,
}

/// Trying again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Failover {
    /// Most tries for one request.
    #[schemars(range(min = 1, max = 32))]
    pub(super) max_attempts: u32,
    /// How long a failed model on a node rests: after the first, second, third failure in a row.
    pub(super) cooldown: Vec<String>,
    /// How long a hosted provider rests that wants money.
    pub(super) billing_cooldown: String,
}

impl Default for Failover {
    fn default() -> Self {
        Failover {
            max_attempts: 4,
            cooldown: ["30s", "1m", "5m"].map(str::to_owned).to_vec(),
            billing_cooldown: "10m".to_owned(),
        }
    }
}

/// Bounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Limits {
    /// Largest request body; uploads of model files are not counted.
    pub(super) body_bytes: Size,
    /// Most bytes of one request kept for another try.
    pub(super) replay_bytes: Size,
    /// Most bytes of all requests kept for another try.
    pub(super) replay_total: Size,
    /// Most requests at once.
    #[schemars(range(min = 1))]
    pub(super) inflight: u32,
    /// Most requests that wait for this node's model servers.
    #[schemars(range(min = 1))]
    pub(super) queue: u32,
    /// Most connections.
    #[schemars(range(min = 1))]
    pub(super) connections: u32,
}

impl Default for Limits {
    fn default() -> Self {
        let size = |text: &str| Size::Text(text.to_owned());
        Limits {
            body_bytes: size("128MiB"),
            replay_bytes: size("16MiB"),
            replay_total: size("256MiB"),
            inflight: 1024,
            queue: 512,
            connections: 4096,
        }
    }
}

/// Metrics, health and status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Admin {
    /// The address; null = none. Off loopback only metrics and health are served.
    pub(super) listen: Option<String>,
    /// A file for Prometheus' `file_sd_configs`.
    #[schemars(extend("examples" = ["/var/lib/tailherd/prometheus.json"]))]
    pub(super) prometheus_file: Option<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Admin { listen: Some("127.0.0.1:11437".to_owned()), prometheus_file: None }
    }
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Log {
    /// off, error, warn, info, debug, trace, or a filter such as `info,tailherd::gate=debug`.
    pub(super) level: String,
    /// "text" or "json": one object a line.
    pub(super) format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Log { level: "info".to_owned(), format: LogFormat::Text }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogFormat {
    Text,
    Json,
}
