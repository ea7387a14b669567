//! From what the writer knows to the picture the data side reads.
//!
//! Everything that may not be used is left out here, once, so that nobody has to remember to
//! filter: models outside a node's grant, stubs of hosted models when `offline`, offers of
//! nodes and engines that do not answer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::cell::Cell;
use super::event::{EngineListing, ModelListing, Settings};
use super::snapshot::{Endpoint, Lost, Model, Node, Offer, Path, Snapshot, Unused};
use super::union;
use super::writer::{State, distinct};
use crate::api::translate::Translation;
use crate::types::{
    Dial, Digest, EngineKind, ModelKey, Moment, NodeId, NodeKind, NodeName, Principal,
};

/// A node's raw material.
struct Source {
    id: NodeId,
    name: NodeName,
    kind: NodeKind,
    principal: Option<Principal>,
    version: Option<String>,
    why: Option<String>,
    paths: Vec<Arc<Path>>,
    engines: Vec<EngineListing>,
    globs: Option<Vec<String>>,
    before: Duration,
}

/// An offer and whether it can be used now.
struct Found {
    offer: Arc<Offer>,
    alive: bool,
    before: Duration,
}

/// Makes the next snapshot.
pub(super) fn snapshot(state: &mut State, now: Moment) -> Snapshot {
    let mut unused = state.unused.clone();
    let ways = ways(state);
    let sources = sources(state, &ways, &mut unused);
    let contents = contents(&sources);
    let mut nodes = Vec::new();
    let mut found: BTreeMap<ModelKey, Vec<Found>> = BTreeMap::new();
    for source in sources {
        nodes.push(place(state, source, &contents, &mut found, now));
    }

    let mut models = BTreeMap::new();
    let mut lingering = BTreeMap::new();
    let mut lost_at = BTreeMap::new();
    let mut away = BTreeMap::new();
    for (key, found) in found {
        let mut absent: Vec<NodeName> =
            found.iter().filter(|f| !f.alive).map(|f| f.offer.node.name.clone()).collect();
        absent.dedup();
        if !absent.is_empty() {
            away.insert(key.clone(), absent);
        }
        let chosen = chosen_class(&found, state.settings.merge);
        let in_class = |f: &&Found| chosen.holds(f);
        if !found.iter().any(|f| f.alive && in_class(&f)) {
            let at = state.lost_at.get(&key).map_or(now, |(at, _)| *at);
            let mut linger = state.settings.linger;
            if let Some(lost) = lost(&found, at, state, now) {
                linger = lost.lingers(linger);
                lingering.insert(key.clone(), lost);
            }
            lost_at.insert(key.clone(), (at, linger));
        }
        let (offers, variants): (Vec<_>, Vec<_>) =
            found.iter().filter(|f| f.alive).partition(|f| in_class(f));
        if offers.is_empty() && variants.is_empty() {
            continue;
        }
        let take = |of: Vec<&Found>| of.into_iter().map(|f| f.offer.clone()).collect();
        let listed = is_listed(&state.settings, &key);
        let model =
            Model { key: key.clone(), offers: take(offers), variants: take(variants), listed };
        models.insert(key, Arc::new(model));
    }
    state.lost_at = lost_at;
    state.built = now;
    state.version += 1;
    let unions = union::of(&models, &lingering);
    Snapshot {
        version: state.version,
        nodes,
        models,
        unions,
        lingering,
        ways,
        unused,
        rung: state.rung.clone(),
        coordinator_up: state.coordinator,
        coordinator_since: state.coordinator_since,
        away,
    }
}

/// When the next row of the last picture has lingered long enough; zero if that has passed
/// since, however many messages came that changed nothing.
pub(super) fn next_change(state: &State, now: Moment) -> Option<Duration> {
    state
        .lost_at
        .values()
        .map(|(at, linger)| *at + *linger)
        .filter(|end| *end > state.built)
        .map(|end| end.since(now))
        .min()
}

/// The ways to every node that may be used, each with its numbers.
fn ways(state: &State) -> BTreeMap<NodeId, Vec<Arc<Path>>> {
    let path = |id: &NodeId, (dial, prefix): &(Dial, Arc<str>)| {
        Arc::new(Path {
            kind: dial.kind(),
            dial: dial.clone(),
            prefix: prefix.clone(),
            cell: state.cells.path(id, dial),
        })
    };
    let members = state.members.iter();
    members.map(|(id, m)| (id.clone(), m.ways.iter().map(|way| path(id, way)).collect())).collect()
}

/// This node, then those that ever listed something, by name, each name once. What has
/// nothing to list is only shown.
fn sources(
    state: &State,
    ways: &BTreeMap<NodeId, Vec<Arc<Path>>>,
    unused: &mut Vec<Unused>,
) -> Vec<Source> {
    let mut members: Vec<_> = state.members.values().collect();
    members.sort_by(|a, b| {
        let order = |id: &NodeId| matches!(id, NodeId::Configured(_));
        (order(&a.who.id), &a.who.name, &a.who.id).cmp(&(order(&b.who.id), &b.who.name, &b.who.id))
    });
    let this_name = match state.this.name.is_self() {
        true => distinct(&state.this.name, &HashSet::new()),
        false => state.this.name.clone(),
    };
    let mut taken = HashSet::from([this_name.clone()]);
    let mut sources = vec![Source {
        id: state.this.id.clone(),
        name: this_name,
        kind: NodeKind::This,
        principal: state.this.principal.clone(),
        version: None,
        why: None,
        paths: Vec::new(),
        engines: state.engines.clone(),
        globs: None,
        before: Duration::ZERO,
    }];
    for member in members {
        let name = distinct(&member.who.name, &taken);
        taken.insert(name.clone());
        let globs = member.listing.as_ref().map(|l| member.grant.of(l.kind));
        let (Some(listing), false) = (&member.listing, globs.is_none_or(|g| g.is_empty())) else {
            unused.push(Unused {
                name,
                owner: member.who.principal.as_ref().map_or(String::new(), Principal::to_string),
                why: member.why.clone().unwrap_or_else(|| "no server found yet".to_owned()),
            });
            continue;
        };
        sources.push(Source {
            id: member.who.id.clone(),
            name,
            kind: listing.kind,
            principal: member.who.principal.clone(),
            version: listing.version.clone(),
            why: member.why.clone(),
            paths: ways.get(&member.who.id).cloned().unwrap_or_default(),
            engines: listing.engines.clone(),
            globs: globs.map(<[String]>::to_vec),
            before: member.before,
        });
    }
    sources
}

/// Makes one node and files its offers under their names.
fn place(
    state: &mut State,
    source: Source,
    contents: &HashMap<Digest, u64>,
    found: &mut BTreeMap<ModelKey, Vec<Found>>,
    now: Moment,
) -> Arc<Node> {
    // Own cells and numbers stay the same when the tailnet gives this node another name.
    let keyed = match source.kind {
        NodeKind::This => NodeId::This,
        _ => source.id.clone(),
    };
    let mut endpoints = Vec::new();
    for engine in &source.engines {
        endpoints.push(Arc::new(Endpoint {
            id: state.endpoint_id(&keyed, &engine.name),
            name: engine.name.clone(),
            kind: engine.kind,
            apis: match (source.kind, engine.kind) {
                (NodeKind::Rich, _) | (_, EngineKind::Ollama) => engine.apis,
                _ => Translation::reaches(engine.apis),
            },
            native: engine.apis,
            version: engine.version.clone(),
            dial: engine.dial.clone(),
            prefix: engine.prefix.clone(),
            slots: engine.slots,
            default_ctx: engine.default_ctx,
            up: engine.up,
            url: engine.url.clone(),
            unlisted: engine.unlisted.clone(),
        }));
    }
    let ours = state.this.principal.as_ref();
    let same = ours.zip(source.principal.as_ref()).is_some_and(|(a, b)| a.same_owner(b));
    let node = Arc::new(Node {
        mine: source.kind == NodeKind::This || same,
        id: source.id,
        name: source.name,
        kind: source.kind,
        principal: source.principal,
        version: source.version,
        why: source.why,
        cell: state.cells.node(&keyed),
        paths: source.paths,
        endpoints,
    });
    if !node.is_this() {
        node.cell.seen(node.may_answer(), now);
    }
    for (engine, endpoint) in source.engines.into_iter().zip(&node.endpoints) {
        for model in engine.models {
            let Ok(key) = ModelKey::parse(&model.name) else { continue };
            let allowed =
                source.globs.as_ref().is_none_or(|globs| globs.iter().any(|g| key.matches(g)));
            if !allowed || (model.remote && state.settings.offline) {
                continue;
            }
            let cell = state.cells.offer(&keyed, &endpoint.name, &key);
            let class = class(endpoint.kind, &key, &model, contents);
            let offer = Arc::new(offer(&node, endpoint, key.clone(), class, model, cell));
            let alive = endpoint.up && node.may_answer();
            found.entry(key).or_default().push(Found { offer, alive, before: source.before });
        }
    }
    node
}

fn offer(
    node: &Arc<Node>,
    endpoint: &Arc<Endpoint>,
    key: ModelKey,
    class: u64,
    model: ModelListing,
    cell: Arc<Cell>,
) -> Offer {
    Offer {
        node: node.clone(),
        endpoint: endpoint.clone(),
        key,
        name: model.name,
        id: model.id,
        digest: model.digest,
        weights: model.weights,
        class,
        content: model.content,
        capabilities: model.capabilities,
        context: model.context,
        num_ctx: model.num_ctx,
        size: model.size,
        remote: model.remote,
        row: model.row,
        show: model.show,
        ps: model.ps,
        cell,
    }
}

/// What is known of contents by manifest digest: one node's `show` speaks for every copy with
/// that digest. Of two that differ the first counts, and this node comes first.
fn contents(sources: &[Source]) -> HashMap<Digest, u64> {
    let mut contents = HashMap::new();
    for model in sources.iter().flat_map(|s| &s.engines).flat_map(|e| &e.models) {
        if let (Some(digest), Some(content)) = (&model.digest, model.content) {
            contents.entry(digest.clone()).or_insert(content);
        }
    }
    contents
}

fn class(
    kind: EngineKind,
    key: &ModelKey,
    model: &ModelListing,
    contents: &HashMap<Digest, u64>,
) -> u64 {
    let known = model.digest.as_ref().and_then(|d| contents.get(d)).copied().or(model.content);
    known.unwrap_or_else(|| {
        // Nothing says what it holds: copies with one digest are one class, and so are those
        // without a digest at engines of other kinds, which serve a name as a name.
        let mut hasher = DefaultHasher::new();
        match &model.digest {
            Some(digest) => digest.hash(&mut hasher),
            None => (kind == EngineKind::Ollama, key).hash(&mut hasher),
        }
        hasher.finish()
    })
}

/// Which offers of a name are routed as one.
enum Chosen {
    All,
    Class(u64),
}

impl Chosen {
    fn holds(&self, found: &Found) -> bool {
        match self {
            Chosen::All => true,
            Chosen::Class(class) => found.offer.class == *class,
        }
    }
}

/// The local copy's class, else the largest. If nobody of it is alive, the same among the
/// living; but embeddings stay with theirs, since vectors of two contents do not compare.
fn chosen_class(found: &[Found], merge: bool) -> Chosen {
    let embedding = found.iter().any(|f| {
        let c = &f.offer.capabilities;
        c.embedding && !c.completion
    });
    if merge && !embedding {
        return Chosen::All;
    }
    let all = largest(found.iter());
    let any_alive = found.iter().any(|f| f.alive && Some(f.offer.class) == all);
    let living = match any_alive || embedding {
        true => None,
        false => largest(found.iter().filter(|f| f.alive)),
    };
    Chosen::Class(living.or(all).unwrap_or_default())
}

fn largest<'a>(found: impl Iterator<Item = &'a Found>) -> Option<u64> {
    let mut sizes: BTreeMap<u64, usize> = BTreeMap::new();
    for f in found {
        if f.offer.node.is_this() {
            return Some(f.offer.class);
        }
        *sizes.entry(f.offer.class).or_default() += 1;
    }
    // Of equals the first by number, so that two rebuilds agree.
    sizes.into_iter().rev().max_by_key(|(_, n)| *n).map(|(class, _)| class)
}

/// The model as it was on the node last heard of.
fn lost(found: &[Found], at: Moment, state: &State, now: Moment) -> Option<Lost> {
    let heard = |f: &Found| {
        let paths = f.offer.node.paths.iter();
        paths.map(|p| p.cell.last_ok.load(Relaxed)).max().unwrap_or_default()
    };
    let last = found
        .iter()
        .filter(|f| !f.alive)
        .max_by_key(|f| (heard(f), std::cmp::Reverse(f.before)))?;
    let key = &last.offer.key;
    let since = match (last.offer.node.is_this(), heard(last)) {
        (true, _) => at,
        (false, 0) => Moment::ZERO,
        (false, millis) => Moment::from_millis(millis),
    };
    let mut lost = Lost {
        asleep: last.offer.node.cell.is_asleep(),
        node: last.offer.node.name.clone(),
        since,
        before: last.before,
        listed: false,
        apis: last.offer.endpoint.apis,
        row: last.offer.row.clone(),
    };
    let linger = lost.lingers(state.settings.linger);
    lost.listed = is_listed(&state.settings, key) && now < at + linger;
    Some(lost)
}

fn is_listed(settings: &Settings, key: &ModelKey) -> bool {
    let any = |globs: &[String]| globs.iter().any(|g| key.matches(g));
    any(&settings.show) && !any(&settings.hide)
}
