//! What the data side reads: one immutable picture of the mesh.
//!
//! What may not be used is absent from it, never filtered later: nodes outside `sendTo`,
//! nodes that wait for `trust accept`, bare servers of another network. What `status` shows
//! of those is [`Snapshot::unused`], which has no address in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::cell::{Cell, PathCell};
use super::heard::NodeCell;
use crate::api::report::Accepting;
use crate::types::{
    ApiSet, Capabilities, Dial, Digest, EndpointId, EngineKind, ModelKey, Moment, NodeId, NodeKind,
    NodeName, PathKind, Principal, RungState,
};

/// One picture of the mesh.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Counts up with every picture.
    pub version: u64,
    /// This node first, then the peers that may be used, by name.
    pub nodes: Vec<Arc<Node>>,
    /// Every model that may be asked for, by canonical name.
    pub models: BTreeMap<ModelKey, Arc<Model>>,
    /// The ready-made answers to list requests of local callers.
    pub unions: Unions,
    /// Models of which no living node is left, as long as a node that had one is known: the
    /// first while they stay listed, afterwards they give the words of a 404.
    pub lingering: BTreeMap<ModelKey, Lost>,
    /// The ways to each node that may be used, best first, whether it has listed anything yet
    /// or not: how it can be asked for its list.
    pub ways: BTreeMap<NodeId, Vec<Arc<Path>>>,
    /// Nodes that are seen and not used, for `status`.
    pub unused: Vec<Unused>,
    /// How much of the mesh is left.
    pub rung: RungState,
    /// What LocalAPI says of the coordinator; `None` without a tailnet.
    pub coordinator_up: Option<bool>,
    /// Since when it says that.
    pub coordinator_since: Moment,
    /// The nodes that hold a model and cannot serve it now: they, or the engine that has it, do
    /// not answer.
    pub away: BTreeMap<ModelKey, Vec<NodeName>>,
}

/// Ready-made list answers.
#[derive(Debug, Clone, Default)]
pub struct Unions {
    /// `/api/tags`.
    pub tags: Bytes,
    /// `/v1/models`.
    pub models: Bytes,
}

/// A model whose last node was lost: it stays listed for a while.
#[derive(Debug, Clone)]
pub struct Lost {
    /// The node that had it, the one last heard of if there were several.
    pub node: NodeName,
    /// When that node was last heard of.
    pub since: Moment,
    /// What is added to that age: a node known from an earlier run was lost before this
    /// program started.
    pub before: Duration,
    /// Whether that node said that it was about to sleep.
    pub asleep: bool,
    /// Whether its row is still in the lists.
    pub listed: bool,
    /// The dialects in which it could be asked.
    pub apis: ApiSet,
    /// Its row in `/api/tags`.
    pub row: Arc<serde_json::Value>,
}

impl Lost {
    /// For how long it stays listed, if others do for `usual`: who sleeps wakes up again.
    pub fn lingers(&self, usual: Duration) -> Duration {
        usual * if self.asleep { 15 } else { 1 }
    }

    /// For how long nothing was heard of the node.
    pub fn age(&self, now: Moment) -> Duration {
        now.since(self.since) + self.before
    }
}

/// A node that is seen and not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unused {
    /// Its name.
    pub name: NodeName,
    /// Its owner or tags, for showing.
    pub owner: String,
    /// Why not: `not in sendTo`, `waits for: tailherd trust accept NAME`, `no server found`.
    pub why: String,
}

/// A device.
#[derive(Debug)]
pub struct Node {
    /// Its identity.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// What runs on it.
    pub kind: NodeKind,
    /// Its owner or tags; `None` for this node without a tailnet, and for configured servers.
    pub principal: Option<Principal>,
    /// Whether it is this node, or of the same owner.
    pub mine: bool,
    /// The version of its sidecar.
    pub version: Option<String>,
    /// Why the last look at it found nothing; `None` while it answers.
    pub why: Option<String>,
    /// Its live numbers.
    pub cell: Arc<NodeCell>,
    /// The ways to it, best first: the tailnet's, the one that answered last first, then those
    /// of the local network. Empty for this node: its endpoints are dialled themselves.
    pub paths: Vec<Arc<Path>>,
    /// Its engines. A rich peer's are behind its mesh port: their `dial` is unused.
    pub endpoints: Vec<Arc<Endpoint>>,
}

impl Snapshot {
    /// This node.
    pub fn this(&self) -> Option<&Arc<Node>> {
        self.nodes.first().filter(|n| n.is_this())
    }

    /// The way of the local network by which a node can be asked, while no other lives.
    pub fn lan_only(&self, node: &NodeId) -> Option<&Arc<Path>> {
        let first = self.ways.get(node)?.iter().find(|path| path.cell.is_alive())?;
        matches!(first.dial, Dial::Lan { .. }).then_some(first)
    }

    /// The offer of that name at that engine of a node, whatever its content.
    pub fn offer(&self, node: &NodeId, engine: &str, key: &ModelKey) -> Option<&Arc<Offer>> {
        let model = self.models.get(key)?;
        let mut offers = model.offers.iter().chain(&model.variants);
        offers.find(|o| o.node.id == *node && *o.endpoint.name == *engine)
    }

    /// The offers of this node's own engines, whatever their content.
    pub fn own(&self) -> impl Iterator<Item = &Arc<Offer>> {
        let models = self.models.values();
        models.flat_map(|m| m.offers.iter().chain(&m.variants)).filter(|o| o.node.is_this())
    }

    /// The node with that name; `self` is this one.
    pub fn node(&self, name: &NodeName) -> Option<&Arc<Node>> {
        if name.is_self() {
            return self.this();
        }
        self.nodes.iter().find(|n| n.name == *name)
    }
}

impl Node {
    /// Whether this is the device the program runs on.
    pub fn is_this(&self) -> bool {
        self.kind == NodeKind::This
    }

    /// The best living path.
    pub fn best_path(&self) -> Option<&Arc<Path>> {
        self.paths.iter().find(|p| p.cell.is_alive())
    }

    /// The paths worth a try, in order: those that live, then those that stand by.
    pub fn tries(&self) -> impl Iterator<Item = &Arc<Path>> {
        let alive = self.paths.iter().filter(|p| p.cell.is_alive());
        alive.chain(self.paths.iter().filter(|p| p.cell.is_standby()))
    }

    /// Whether requests surely get there now.
    pub fn is_alive(&self) -> bool {
        self.is_this() || self.best_path().is_some()
    }

    /// Why it takes no requests of ours now, in a sentence; `None` if it does, or never said.
    pub fn says_no(&self) -> Option<String> {
        let (whom, why) = self.cell.accepting()?;
        let theirs = match whom {
            Accepting::All => return None,
            _ if self.is_this() => return None,
            Accepting::Mine if self.mine => return None,
            Accepting::Mine => "works only for devices of its owner now",
            Accepting::None => "takes no requests of others now",
        };
        let state = ["paused", "draining", "asleep", "going to sleep", "in use"];
        Some(match &*why {
            "" => format!("{} {theirs}", self.name),
            why if state.iter().any(|word| why.starts_with(word)) => {
                format!("{} is {why}", self.name)
            }
            why => format!("{} {theirs} ({why})", self.name),
        })
    }

    /// Whether it is worth a try: besides a living node, one that said on the local network
    /// that it answers by its other way. When that way has just died, or is just coming back,
    /// nothing else is known of the node for a moment, and its models must not vanish.
    pub fn may_answer(&self) -> bool {
        self.is_this() || self.tries().next().is_some()
    }
}

/// A way to a peer.
#[derive(Debug)]
pub struct Path {
    /// The kind.
    pub kind: PathKind,
    /// Where and how to connect.
    pub dial: Dial,
    /// Path prefix of a configured server; empty for most.
    pub prefix: Arc<str>,
    /// Its live numbers.
    pub cell: Arc<PathCell>,
}

/// A model server.
#[derive(Debug)]
pub struct Endpoint {
    /// Its number.
    pub id: EndpointId,
    /// Its name on its node (`ollama`, `vllm-2`), for headers and status.
    pub name: Arc<str>,
    /// What it is.
    pub kind: EngineKind,
    /// The dialects in which it can be asked: those it speaks, and of an engine that we ask
    /// ourselves those that can be put into them.
    pub apis: ApiSet,
    /// Of these, what it speaks itself; a peer with a sidecar does not say which those are.
    pub native: ApiSet,
    /// Its version, as it says.
    pub version: Option<String>,
    /// Where it is, for this node's own engines and bare peers.
    pub dial: Dial,
    /// Path prefix in front of every route; empty for most.
    pub prefix: Arc<str>,
    /// How many requests it runs at once per model, if known.
    pub slots: Option<u32>,
    /// The window it loads models with when nothing is asked for, if known.
    pub default_ctx: Option<u64>,
    /// Whether it answered its last probe.
    pub up: bool,
    /// A URL for showing; empty for a rich peer's engines.
    pub url: String,
    /// Models of its that no model can be called here.
    pub unlisted: Vec<Arc<str>>,
}

/// A model and everybody who has it.
#[derive(Debug)]
pub struct Model {
    /// Its canonical name.
    pub key: ModelKey,
    /// Living offers of the class that is routed, this node's first.
    pub offers: Vec<Arc<Offer>>,
    /// Living offers under the same name with other content; reached only by `name@node`.
    pub variants: Vec<Arc<Offer>>,
    /// Whether lists show it (`models.show`, `models.hide`).
    pub listed: bool,
}

impl Model {
    /// The offers of one node, whatever their content: what `name@node` means.
    pub fn on<'a>(&'a self, node: &'a NodeName) -> impl Iterator<Item = &'a Arc<Offer>> + 'a {
        let here = node.is_self();
        self.offers
            .iter()
            .chain(&self.variants)
            .filter(move |o| if here { o.node.is_this() } else { o.node.name == *node })
    }
}

/// One model at one endpoint.
#[derive(Debug)]
pub struct Offer {
    /// Whose it is.
    pub node: Arc<Node>,
    /// The engine that has it.
    pub endpoint: Arc<Endpoint>,
    /// Its canonical name.
    pub key: ModelKey,
    /// Its name as that engine lists it: what that engine is asked for when the caller's
    /// spelling would not do (aliases).
    pub name: Arc<str>,
    /// What that engine has to be asked for instead, where its own word is no name for others.
    pub id: Option<Arc<str>>,
    /// Manifest digest, if the engine says one.
    pub digest: Option<Digest>,
    /// Digest of the weights, if known.
    pub weights: Option<Digest>,
    /// Same class = same content: weights, template, parameters.
    pub class: u64,
    /// Hash of weights, template and parameters, where its own engine's `show` told them.
    pub content: Option<u64>,
    /// What it can do. All false = not known.
    pub capabilities: Capabilities,
    /// The model's largest context window; `None` = not known.
    pub context: Option<u64>,
    /// The window it is loaded with when nothing is asked for, if its parameters say one.
    pub num_ctx: Option<u64>,
    /// Bytes of the model.
    pub size: u64,
    /// Whether it is a stub of a hosted Ollama model.
    pub remote: bool,
    /// Its row in `/api/tags`, or in `/v1/models` of an engine of another kind.
    pub row: Arc<serde_json::Value>,
    /// The engine's answer to `/api/show`, blob paths of other machines blanked.
    pub show: Option<Arc<Bytes>>,
    /// Its row in `/api/ps` while loaded.
    pub ps: Option<Arc<serde_json::Value>>,
    /// Its live numbers.
    pub cell: Arc<Cell>,
}
