//! What the directory knows, and how an event changes it.
//!
//! In: events and the moment they are taken. Out: whether the snapshot has to be made anew;
//! numbers go straight into the cells. Pure but for the cells: no waiting, no clock, no file.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::bounds;
use super::event::{
    EngineListing, Event, Grant, Identity, Listing, ModelListing, Peer, Remembered, Server,
    Settings,
};
use super::registry::Registry;
use super::saved::Scope;
use super::snapshot::Unused;
use crate::types::{
    Dial, EndpointId, ModelKey, Moment, NodeId, NodeKind, NodeName, Rung, RungState,
};

/// Most nodes whose earlier lists are kept until they are allowed.
const MOST_REMEMBERED: usize = 256;

/// Most ways to one node that are kept: those that answered, and those of the local network,
/// of which no more addresses are believed of a peer.
const MOST_WAYS: [usize; 2] = [4, 8];

/// How long a node that is no longer allowed stays in the file.
const MEMORY: Duration = Duration::from_secs(30 * 24 * 3600);

/// Everything the writer knows.
#[derive(Debug)]
pub struct State {
    pub(super) settings: Settings,
    pub(super) this: Identity,
    pub(super) engines: Vec<EngineListing>,
    pub(super) members: BTreeMap<NodeId, Member>,
    pub(super) peers: Arc<Vec<Peer>>,
    pub(super) unused: Vec<Unused>,
    pub(super) rung: RungState,
    pub(super) coordinator: Option<bool>,
    pub(super) coordinator_since: Moment,
    pub(super) cells: Arc<Registry>,
    /// When each model that has no living node lost its last one, and for how long it stays
    /// listed.
    pub(super) lost_at: BTreeMap<ModelKey, (Moment, Duration)>,
    /// When the last picture was made.
    pub(super) built: Moment,
    pub(super) version: u64,
    remembered: HashMap<NodeId, Remembered>,
    ids: HashMap<(NodeId, Arc<str>), EndpointId>,
}

/// A node that may be used, and what is known of it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) who: Identity,
    pub(super) grant: Grant,
    /// Ways that answered, and those of the local network that may: see [`Member::lead`].
    pub(super) ways: Vec<(Dial, Arc<str>)>,
    pub(super) listing: Option<Known>,
    pub(super) was_rich: bool,
    /// How long before this run it was last heard of.
    pub(super) before: Duration,
    /// Why it has nothing, if it said so.
    pub(super) why: Option<String>,
}

impl Member {
    /// Puts a way at the head of its kind: ways of the local network stand behind all others,
    /// so that an answer there never pushes the tailnet away. True if that changed anything.
    fn lead(&mut self, way: (Dial, Arc<str>)) -> bool {
        let lan = is_lan(&way.0);
        if self.ways.iter().find(|(dial, _)| is_lan(dial) == lan) == Some(&way) {
            return false;
        }
        self.ways.retain(|(dial, _)| *dial != way.0);
        let at = if lan { self.ways.iter().position(|(d, _)| is_lan(d)) } else { Some(0) };
        self.ways.insert(at.unwrap_or(self.ways.len()), way);
        let mut kept = [0; 2];
        self.ways.retain(|(dial, _)| {
            let kind = usize::from(is_lan(dial));
            kept[kind] += 1;
            kept[kind] <= MOST_WAYS[kind]
        });
        true
    }
}

fn is_lan(dial: &Dial) -> bool {
    matches!(dial, Dial::Lan { .. })
}

/// The list of a node, from now or from an earlier run.
#[derive(Debug, PartialEq)]
pub(super) struct Known {
    pub(super) kind: NodeKind,
    pub(super) version: Option<String>,
    pub(super) engines: Vec<EngineListing>,
}

impl State {
    /// Nothing known but who we are.
    pub fn new(settings: Settings, this: Identity, cells: Arc<Registry>) -> State {
        State {
            settings,
            this,
            engines: Vec::new(),
            members: BTreeMap::new(),
            peers: Arc::default(),
            unused: Vec::new(),
            rung: RungState { rung: Rung::Starting, why: "".into(), since: Moment::ZERO },
            coordinator: None,
            coordinator_since: Moment::ZERO,
            cells,
            lost_at: BTreeMap::new(),
            built: Moment::ZERO,
            version: 0,
            remembered: HashMap::new(),
            ids: HashMap::new(),
        }
    }

    /// The tailnet nodes that may be used.
    pub fn peers(&self) -> &Arc<Vec<Peer>> {
        &self.peers
    }

    /// What is worth keeping of the nodes of one file. Nodes that were remembered and have not
    /// been allowed again stay in the file, unless the tailnet's own list left them out.
    pub fn memory(&self, scope: &Scope, now: Moment) -> Vec<Remembered> {
        let mut nodes = Vec::new();
        if *scope == Scope::Here {
            nodes.push(Remembered {
                node: NodeId::This,
                kind: NodeKind::This,
                was_rich: false,
                version: None,
                age: Duration::ZERO,
                engines: Vec::new(),
                rates: self.cells.rates(&NodeId::This, now),
                lengths: self.cells.seen_lengths(now),
                uplinks: Vec::new(),
            });
        }
        let members = self.members.iter().filter(|(id, _)| Scope::of(id) == *scope);
        for (id, member) in members {
            let Some(listing) = &member.listing else { continue };
            let heard = member.ways.iter().map(|(dial, _)| self.cells.path(id, dial));
            let heard = heard.map(|cell| cell.last_ok.load(Relaxed)).max().unwrap_or_default();
            nodes.push(Remembered {
                node: id.clone(),
                kind: listing.kind,
                was_rich: member.was_rich,
                version: listing.version.clone(),
                age: now.since(Moment::from_millis(heard)) + member.before,
                engines: listing.engines.clone(),
                rates: self.cells.rates(id, now),
                lengths: Vec::new(),
                uplinks: self.cells.seen_uplinks(id, now),
            });
        }
        let absent = self.remembered.values().filter(|r| Scope::of(&r.node) == *scope);
        let aged = absent.map(|r| r.clone().older(now.since(Moment::ZERO)));
        nodes.extend(aged.filter(|r| r.age < MEMORY));
        nodes
    }

    /// The number of an engine, the same from one snapshot to the next.
    pub(super) fn endpoint_id(&mut self, node: &NodeId, engine: &Arc<str>) -> EndpointId {
        let next = EndpointId(u32::try_from(self.ids.len()).unwrap_or(u32::MAX));
        *self.ids.entry((node.clone(), engine.clone())).or_insert(next)
    }

    /// Sends nodes out of the picture. What was known of them is kept apart, for the file and
    /// for the day they are allowed again: another tailnet may be up, and a node that was rich
    /// stays one. True if there were any.
    fn dismiss(&mut self, who: impl Fn(&NodeId) -> bool) -> bool {
        let gone: Vec<NodeId> = self.members.keys().filter(|id| who(id)).cloned().collect();
        for id in &gone {
            let Some(member) = self.members.remove(id) else { continue };
            let Some(listing) = member.listing else { continue };
            let remembered = Remembered {
                node: id.clone(),
                kind: listing.kind,
                was_rich: member.was_rich,
                version: listing.version,
                age: member.before,
                engines: listing.engines,
                // Ages of what is remembered are those at the start.
                rates: self.cells.rates(id, Moment::ZERO),
                lengths: Vec::new(),
                uplinks: self.cells.seen_uplinks(id, Moment::ZERO),
            };
            if self.remembered.len() < MOST_REMEMBERED {
                self.remembered.insert(id.clone(), remembered);
            }
        }
        let known: HashSet<&NodeId> = self.members.keys().collect();
        self.cells.keep(&known);
        !gone.is_empty()
    }

    fn admit(&mut self, who: Identity, grant: Grant) -> &mut Member {
        let remembered = self.remembered.remove(&who.id);
        let cells = &self.cells;
        let member = self.members.entry(who.id.clone()).or_insert_with(|| {
            let before = remembered.as_ref().map_or(Duration::ZERO, |r| r.age);
            for rates in remembered.iter().flat_map(|r| &r.rates) {
                cells.seed(&who.id, &bounds::rates(rates.clone()));
            }
            for uplink in remembered.iter().flat_map(|r| &r.uplinks) {
                cells.seed_uplink(&who.id, uplink);
            }
            let was_rich = remembered.as_ref().is_some_and(|r| r.was_rich);
            let listing = remembered.map(|r| Known {
                kind: r.kind,
                version: r.version,
                engines: bounds::engines(r.engines),
            });
            let (who, grant) = (who.clone(), grant.clone());
            Member { who, grant, ways: Vec::new(), listing, was_rich, before, why: None }
        });
        member.who = who;
        member.grant = grant;
        member
    }
}

/// Takes one event in. True if the snapshot has to be made anew.
pub fn apply(state: &mut State, event: Event, now: Moment) -> bool {
    match event {
        Event::This(who) => replace(&mut state.this, who),
        Event::Settings(settings) => replace(&mut state.settings, settings),
        Event::Unused(unused) => replace(&mut state.unused, unused),
        Event::Rung(rung) => replace(&mut state.rung, rung),
        Event::Coordinator(up) => {
            let changed = replace(&mut state.coordinator, up);
            if changed {
                state.coordinator_since = now;
            }
            changed
        }
        Event::Peers(peers) => apply_peers(state, peers),
        Event::Servers(servers) => apply_servers(state, servers),
        Event::Local(engines) => {
            let engines = bounds::engines(engines);
            write_cells(&state.cells, &NodeId::This, &engines);
            replace_unless_same(&mut state.engines, engines, |a, b| same_engines(a, b))
        }
        Event::Listed { node, listing } => apply_listed(state, &node, listing, now),
        Event::Way { node, dial, prefix } => match state.members.get_mut(&node) {
            Some(member) if is_lan(&dial) => {
                !member.ways.contains(&(dial.clone(), prefix.clone()))
                    && member.lead((dial, prefix))
            }
            _ => false,
        },
        Event::NoWay { node, dial } => match state.members.get_mut(&node) {
            Some(member) => {
                let ways = member.ways.len();
                member.ways.retain(|(d, _)| *d != dial);
                state.cells.forget(&node, &dial);
                member.ways.len() != ways
            }
            None => false,
        },
        Event::Paths(node) => state.members.contains_key(&node),
        Event::NoServer { node, why } => match state.members.get_mut(&node) {
            Some(member) => replace(&mut member.why, Some(why)),
            None => false,
        },
        Event::Remembered(nodes) => {
            for node in nodes.into_iter().take(MOST_REMEMBERED) {
                remember(state, node);
            }
            false
        }
        Event::Tick => true,
    }
}

fn remember(state: &mut State, node: Remembered) {
    if node.node == NodeId::This {
        for rates in node.rates {
            state.cells.seed(&NodeId::This, &bounds::rates(rates));
        }
        for length in &node.lengths {
            state.cells.seed_length(length);
        }
    } else if !state.members.contains_key(&node.node) {
        state.remembered.insert(node.node.clone(), node);
    }
}

fn apply_peers(state: &mut State, peers: Vec<Peer>) -> bool {
    if *state.peers == peers {
        return false;
    }
    let listed: HashSet<&NodeId> = peers.iter().map(|p| &p.who.id).collect();
    state.dismiss(|id| !matches!(id, NodeId::Configured(_)) && !listed.contains(id));
    for peer in &peers {
        let member = state.admit(peer.who.clone(), peer.grant.clone());
        // An address that is no longer that node's must not be dialled for it.
        member.ways.retain(|(dial, _)| match dial {
            Dial::Tailnet(addr) => peer.addrs.contains(&addr.ip()),
            _ => true,
        });
    }
    state.peers = Arc::new(peers);
    true
}

fn apply_servers(state: &mut State, servers: Vec<Server>) -> bool {
    let listed: HashSet<NodeId> = servers.iter().map(Server::id).collect();
    let mut changed =
        state.dismiss(|id| matches!(id, NodeId::Configured(_)) && !listed.contains(id));
    for server in servers {
        let who = Identity { id: server.id(), name: server.name.clone(), principal: None };
        changed |= !state.members.contains_key(&who.id);
        let member = state.admit(who, Grant::all());
        let ways = member.ways.len();
        member.ways.retain(|(dial, _)| *dial == server.dial);
        changed |= member.ways.len() != ways;
    }
    changed
}

fn apply_listed(state: &mut State, node: &NodeId, listing: Listing, now: Moment) -> bool {
    let Some(member) = state.members.get_mut(node) else { return false };
    // A sidecar that is down leaves its engine's port open: that is no leave to go round it.
    if listing.kind == NodeKind::This || (listing.kind == NodeKind::Bare && member.was_rich) {
        return false;
    }
    let way = (listing.dial.clone(), listing.prefix.clone());
    // Such ways come and go by events of their own; an answer may have been on its way longer.
    if is_lan(&way.0) && (listing.kind != NodeKind::Rich || !member.ways.contains(&way)) {
        return false;
    }
    let mut listing = bounds::listing(listing);
    if listing.kind == NodeKind::Bare {
        // A stub's requests would run on that machine's account.
        listing.engines.iter_mut().for_each(|e| e.models.retain(|m| !m.remote));
    }
    let mut changed = state.cells.path(node, &listing.dial).ok(now, None);
    changed |= member.why.take().is_some();
    if listing.kind == NodeKind::Rich {
        member.was_rich = true;
        // Ways by which it was a bare server lead around its sidecar.
        let kind = member.listing.as_ref().map(|l| l.kind);
        if kind == Some(NodeKind::Bare) {
            member.ways.retain(|w| *w == way || is_lan(&w.0));
        }
    }
    changed |= member.lead(way);
    member.before = Duration::ZERO;
    if let Some((whom, why)) = &listing.accepting {
        state.cells.node(node).accepts(*whom, why);
    }
    write_cells(&state.cells, node, &listing.engines);
    let known = Known { kind: listing.kind, version: listing.version, engines: listing.engines };
    let same = member.listing.as_ref().is_some_and(|old| {
        old.kind == known.kind
            && old.version == known.version
            && same_engines(&old.engines, &known.engines)
    });
    if !same {
        member.listing = Some(known);
    }
    changed || !same
}

/// Numbers go into the cells, not into a new snapshot.
fn write_cells(cells: &Registry, node: &NodeId, engines: &[EngineListing]) {
    for engine in engines {
        for model in &engine.models {
            let Ok(key) = ModelKey::parse(&model.name) else { continue };
            let cell = cells.offer(node, &engine.name, &key);
            cell.about(model.digest.as_ref(), model.size);
            cell.set_loaded(if engine.up { model.loaded_ctx } else { 0 });
            // This node's gate writes these for its own engines; a poll knows them not.
            if *node != NodeId::This {
                cell.loading.store(model.loading, Relaxed);
                cell.running.store(model.running, Relaxed);
                cell.queued.store(model.queued, Relaxed);
            }
        }
    }
}

fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    replace_unless_same(old, new, |a, b| a == b)
}

fn replace_unless_same<T>(old: &mut T, new: T, same: impl Fn(&T, &T) -> bool) -> bool {
    let changed = !same(old, &new);
    if changed {
        *old = new;
    }
    changed
}

/// Equal but for the numbers that live in cells.
fn same_engines(a: &[EngineListing], b: &[EngineListing]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            a.name == b.name
                && a.kind == b.kind
                && a.apis == b.apis
                && a.version == b.version
                && a.dial == b.dial
                && a.prefix == b.prefix
                && a.slots == b.slots
                && a.default_ctx == b.default_ctx
                && a.up == b.up
                && a.url == b.url
                && a.unlisted == b.unlisted
                && a.models.len() == b.models.len()
                && a.models.iter().zip(&b.models).all(|(a, b)| same_model(a, b))
        })
}

fn same_model(a: &ModelListing, b: &ModelListing) -> bool {
    a.name == b.name
        && a.id == b.id
        && a.digest == b.digest
        && a.weights == b.weights
        && a.content == b.content
        && a.capabilities == b.capabilities
        && a.context == b.context
        && a.num_ctx == b.num_ctx
        && a.size == b.size
        && a.remote == b.remote
        && a.row == b.row
        && a.show == b.show
        && a.ps == b.ps
}

/// The name a node is shown and pinned by: the first of two with one name keeps it.
pub(super) fn distinct(name: &NodeName, taken: &HashSet<NodeName>) -> NodeName {
    if !name.is_self() && !taken.contains(name) {
        return name.clone();
    }
    let base: String = name.as_str().chars().take(56).collect();
    (2..=taken.len() + 2)
        .filter_map(|n| NodeName::parse(&format!("{base}-{n}")))
        .find(|n| !taken.contains(n))
        .unwrap_or_else(|| name.clone())
}
