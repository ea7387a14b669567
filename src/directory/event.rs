//! What the writer is told: plain values, made by discovery, probes, the ladder and the gate.
//!
//! An event is a claim about the world at the moment it was sent. Claims of other nodes pass
//! [`super::bounds`] before anything is made of them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use super::snapshot::Unused;
use crate::api::report::Accepting;
use crate::balance::claims::Kept;
use crate::types::{
    ApiSet, Capabilities, ClientKind, Dial, Digest, EngineKind, NodeId, NodeKind, NodeName,
    PathKind, Principal, RungState,
};

/// One thing the directory is told.
#[derive(Debug, Clone)]
pub enum Event {
    /// Who this node is.
    This(Identity),
    /// All nodes of the tailnet that may be used now; who is missing is gone at once.
    Peers(Vec<Peer>),
    /// All configured servers that may be used on this network; who is missing is gone.
    Servers(Vec<Server>),
    /// All nodes that are seen and not used.
    Unused(Vec<Unused>),
    /// This node's engines, all of them.
    Local(Vec<EngineListing>),
    /// A peer or a configured server answered with its list.
    Listed {
        /// Who.
        node: NodeId,
        /// What it said.
        listing: Listing,
    },
    /// There is a way to this node on the local network, beside those its lists came by.
    /// Whether it lives is its cell's business.
    Way {
        /// Who.
        node: NodeId,
        /// How. Anything but [`Dial::Lan`] is ignored: other ways show themselves by a list.
        dial: Dial,
        /// Path prefix there.
        prefix: Arc<str>,
    },
    /// That way is no more.
    NoWay {
        /// Who.
        node: NodeId,
        /// Which.
        dial: Dial,
    },
    /// A path of this node died, came back or stands by: its cell says which.
    Paths(NodeId),
    /// A node was looked at and has nothing for us.
    NoServer {
        /// Who.
        node: NodeId,
        /// Why, for showing.
        why: String,
    },
    /// What an earlier run knew of nodes; believed for a node once it is allowed.
    Remembered(Vec<Remembered>),
    /// How much of the mesh is left.
    Rung(RungState),
    /// What LocalAPI says of the coordinator.
    Coordinator(Option<bool>),
    /// The configuration changed.
    Settings(Settings),
    /// Time passed: a row may have lingered long enough.
    Tick,
}

/// The part of the configuration that shapes a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whether copies with other content under one name count as one model.
    pub merge: bool,
    /// Globs of models that are listed.
    pub show: Vec<String>,
    /// Globs of models that are not.
    pub hide: Vec<String>,
    /// Whether stubs of hosted models are absent.
    pub offline: bool,
    /// How long a model stays listed after its last node was lost.
    pub linger: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            merge: false,
            show: vec!["*".to_owned()],
            hide: Vec::new(),
            offline: false,
            linger: Duration::from_secs(60),
        }
    }
}

/// Who a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its identity.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its owner or tags.
    pub principal: Option<Principal>,
}

impl Identity {
    /// This node before a tailnet names it.
    pub fn lone(name: NodeName) -> Identity {
        Identity { id: NodeId::This, name, principal: None }
    }
}

/// Which models of a node may be used, by what runs on it; an empty list is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// Globs, while it runs a sidecar.
    pub rich: Vec<String>,
    /// Globs, while it runs only an engine.
    pub bare: Vec<String>,
}

impl Grant {
    /// Everything, whatever runs there.
    pub fn all() -> Grant {
        Grant { rich: vec!["*".to_owned()], bare: vec!["*".to_owned()] }
    }

    /// The globs for a kind of node.
    pub fn of(&self, kind: NodeKind) -> &[String] {
        match kind {
            NodeKind::Rich => &self.rich,
            NodeKind::Bare => &self.bare,
            NodeKind::This => &[],
        }
    }
}

/// A node of the tailnet to which prompts may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub who: Identity,
    /// Its tailnet addresses, best first.
    pub addrs: Vec<IpAddr>,
    /// Further places on it to look at, beside the mesh ports and the bare port of each
    /// address (`dns.names` with a port).
    pub also: Vec<SocketAddr>,
    /// What of it may be used.
    pub grant: Grant,
}

/// A server named in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its name there.
    pub name: NodeName,
    /// Where it is.
    pub dial: Dial,
    /// Path prefix in front of every route.
    pub prefix: Arc<str>,
}

impl Server {
    /// Its identity as a node.
    pub fn id(&self) -> NodeId {
        NodeId::Configured(self.name.as_str().into())
    }
}

/// What a peer said of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    /// Rich or bare.
    pub kind: NodeKind,
    /// The version of its sidecar.
    pub version: Option<String>,
    /// On which path it answered.
    pub dial: Dial,
    /// Path prefix there.
    pub prefix: Arc<str>,
    /// For whom it works, and why not for all; `None` = it does not say.
    pub accepting: Option<(Accepting, String)>,
    /// Its engines.
    pub engines: Vec<EngineListing>,
}

/// One engine and what it has.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineListing {
    /// Its name on its node (`ollama`, `vllm-2`): the same from one listing to the next.
    pub name: Arc<str>,
    /// What it is.
    pub kind: EngineKind,
    /// The dialects it speaks.
    pub apis: ApiSet,
    /// Its version, as it says.
    pub version: Option<String>,
    /// Where it is. Of a rich peer's engines: the peer's mesh port.
    pub dial: Dial,
    /// Path prefix in front of every route.
    pub prefix: Arc<str>,
    /// How many requests it runs at once per model, if known.
    pub slots: Option<u32>,
    /// The window it loads models with when nothing is asked for, if known.
    pub default_ctx: Option<u64>,
    /// Whether it answered.
    pub up: bool,
    /// A URL for showing; empty for a rich peer's engines.
    pub url: String,
    /// What it has.
    pub models: Vec<ModelListing>,
    /// What it has and no model can be called here; without the folders of paths.
    pub unlisted: Vec<Arc<str>>,
}

/// One model at one engine.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelListing {
    /// Its name as the engine lists it.
    pub name: Arc<str>,
    /// What the engine itself calls it, where that is no name for others (a path). Never told.
    pub id: Option<Arc<str>>,
    /// Manifest digest.
    pub digest: Option<Digest>,
    /// Digest of the weights.
    pub weights: Option<Digest>,
    /// Hash of weights, template and parameters; `None` until its `show` was read.
    pub content: Option<u64>,
    /// What it can do. All false = not known.
    pub capabilities: Capabilities,
    /// Its largest window.
    pub context: Option<u64>,
    /// The window its parameters say it is loaded with.
    pub num_ctx: Option<u64>,
    /// Bytes.
    pub size: u64,
    /// Whether it is a stub of a hosted model.
    pub remote: bool,
    /// Its row in `/api/tags`, or in `/v1/models` of an engine of another kind.
    pub row: Arc<Value>,
    /// The answer to `/api/show`.
    pub show: Option<Arc<Bytes>>,
    /// Its row in `/api/ps`.
    pub ps: Option<Arc<Value>>,
    /// Window it is loaded with; 0 = not loaded; 1 = loaded, window not known.
    pub loaded_ctx: u64,
    /// Whether it is being loaded.
    pub loading: bool,
    /// Requests running there, of all callers.
    pub running: u32,
    /// Requests waiting there.
    pub queued: u32,
}

/// What an earlier run knew of a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Remembered {
    /// Who.
    pub node: NodeId,
    /// Rich or bare.
    pub kind: NodeKind,
    /// Whether it ever answered as rich.
    pub was_rich: bool,
    /// The version of its sidecar.
    pub version: Option<String>,
    /// How long before this run it was last heard of.
    pub age: Duration,
    /// Its engines, without addresses.
    pub engines: Vec<EngineListing>,
    /// Measured speeds.
    pub rates: Vec<Rates>,
    /// How long answers are; with this node's own row.
    pub lengths: Vec<Length>,
    /// How fast bodies go to it.
    pub uplinks: Vec<Uplink>,
}

impl Remembered {
    /// The same, later.
    #[must_use]
    pub fn older(mut self, by: Duration) -> Remembered {
        let rates = self.rates.iter_mut().map(|row| &mut row.age);
        let lengths = self.lengths.iter_mut().map(|row| &mut row.age);
        let uplinks = self.uplinks.iter_mut().map(|row| &mut row.age);
        for age in rates.chain(lengths).chain(uplinks).chain([&mut self.age]) {
            *age = age.saturating_add(by);
        }
        self
    }
}

/// How long the answers of one model are.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Length {
    /// The model's canonical name.
    pub model: String,
    /// For whom.
    pub client: ClientKind,
    /// Tokens.
    pub tokens: f64,
    /// How long ago that was last seen.
    #[serde(skip)]
    pub age: Duration,
}

/// How fast request bodies go one kind of way to a node.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Uplink {
    /// The kind of way.
    pub kind: PathKind,
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// How long ago that was last measured.
    #[serde(skip)]
    pub age: Duration,
}

/// Measured speeds of one offer.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rates {
    /// The engine's name on its node.
    pub engine: String,
    /// The model's canonical name.
    pub model: String,
    /// The content they were measured of.
    pub digest: Option<Digest>,
    /// Its bytes.
    pub size: u64,
    /// Prompt tokens a second; 0 = never measured, as in all that follow.
    pub prefill: f64,
    /// Answer tokens a second.
    pub decode: f64,
    /// Bytes of weights loaded a second.
    pub load_rate: f64,
    /// Seconds to the first byte.
    pub ttft: f64,
    /// Tokens of a byte of text.
    pub per_byte: f64,
    /// How well its node kept what it said of it, when one of these was last measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
    /// How long ago one of them was last measured.
    #[serde(skip)]
    pub age: Duration,
}
