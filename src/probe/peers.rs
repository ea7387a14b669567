//! Looking at one peer or configured server.
//!
//! A rich peer answers `GET /mesh/v1/offers` on one of the mesh ports; if none does, and rules
//! allow it, the port of bare Ollamas is tried. What was found is tried first the next time.
//! While the tailnet's way is not alive, a living way of the local network serves as well.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::StatusCode;

use super::ask::{Answer, AskError, Asker, Target};
use super::engines;
use super::identify::{Identity, NoEngine, identify};
use super::list::{self, Held};
use super::shows::Shows;
use crate::api::{attempt, wire};
use crate::directory::{Directory, EngineListing, Event, Grant, Listing, Peer, Server};
use crate::net::home::{self, Belongs, Homes};
use crate::types::{Dial, EngineKind, NodeId, NodeKind};

/// What every look needs.
pub(super) struct Tools {
    pub(super) ask: Asker,
    pub(super) directory: Arc<Directory>,
    pub(super) shows: Arc<Shows>,
    pub(super) homes: Arc<Homes>,
    pub(super) mesh_ports: Vec<u16>,
    pub(super) bare_port: u16,
}

/// Whom to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whom {
    Peer(Peer),
    Server(Server),
}

/// What is remembered from one look to the next.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    /// Where a server was found.
    known: Option<Known>,
    /// What it last said by way of the local network.
    lan: Option<Known>,
    /// Whether a sidecar ever answered, be it with a refusal.
    rich: bool,
    /// Which of its addresses is tried next.
    turn: usize,
}

#[derive(Debug, Clone)]
struct Known {
    to: Target,
    kind: NodeKind,
    identity: Option<Identity>,
    tag: Option<String>,
    listing: Option<Listing>,
}

/// How a look ended, for the time of the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It answered.
    Alive,
    /// It missed one, and is not given up yet.
    Missed,
    /// It was known and is dead.
    Dead,
    /// There is no server for us.
    Nothing,
}

impl Memory {
    /// What was last heard there.
    fn held(&self, to: &Target, kind: NodeKind) -> Option<&Known> {
        [&self.known, &self.lan].into_iter().flatten().find(|k| k.to == *to && k.kind == kind)
    }

    #[cfg(test)]
    pub(super) fn knows(&self, to: &Target) -> bool {
        self.known.as_ref().is_some_and(|known| known.to == *to)
    }

    fn keep(&mut self, known: Known) {
        match known.to.dial {
            Dial::Lan { .. } => self.lan = Some(known),
            _ => self.known = Some(known),
        }
    }
}

impl Whom {
    pub(super) fn id(&self) -> NodeId {
        match self {
            Whom::Peer(peer) => peer.who.id.clone(),
            Whom::Server(server) => server.id(),
        }
    }
}

/// Looks once.
pub(super) async fn look(tools: &Tools, whom: &Whom, memory: &mut Memory) -> Outcome {
    let outcome = match whom {
        Whom::Peer(peer) => look_at_peer(tools, peer, memory).await,
        Whom::Server(server) => look_at_server(tools, server, memory).await,
    };
    match outcome {
        Ok(()) => Outcome::Alive,
        Err(why) => failed(tools, &whom.id(), memory, &why),
    }
}

/// Why a look found nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Why {
    #[error("{0}")]
    Silent(#[from] AskError),
    #[error("it refuses this node")]
    Refuses,
    #[error("it answers over the tailnet only")]
    UseTailnet,
    #[error("no server found")]
    NoServer,
    #[error("{0}")]
    NoEngine(NoEngine),
    #[error("{0}")]
    Odd(String),
    #[error("it belongs to another network")]
    Elsewhere,
}

impl From<NoEngine> for Why {
    fn from(why: NoEngine) -> Why {
        match why {
            NoEngine::Silent(error) => Why::Silent(error),
            other => Why::NoEngine(other),
        }
    }
}

impl Why {
    /// Whether it leaves no doubt: one sign is enough.
    fn is_sure(&self) -> bool {
        match self {
            Why::Silent(error) => error.is_refused(),
            Why::Refuses | Why::UseTailnet | Why::Elsewhere => true,
            Why::NoServer | Why::NoEngine(_) | Why::Odd(_) => false,
        }
    }

    /// Whether something came back, be it a refusal.
    fn is_from_a_living_machine(&self) -> bool {
        match self {
            Why::Silent(error) => error.is_refused(),
            Why::Elsewhere => false,
            Why::Refuses | Why::UseTailnet | Why::NoServer | Why::NoEngine(_) | Why::Odd(_) => true,
        }
    }
}

/// The end of a look that found nothing.
fn failed(tools: &Tools, node: &NodeId, memory: &Memory, why: &Why) -> Outcome {
    tracing::debug!(%node, %why, "a look found nothing");
    let Some(known) = &memory.known else {
        let why = match why {
            Why::Silent(error) if error.is_out_of_reach() => "no way to it now".to_owned(),
            Why::Silent(_) => Why::NoServer.to_string(),
            other => other.to_string(),
        };
        tools.directory.send(Event::NoServer { node: node.clone(), why });
        return Outcome::Nothing;
    };
    match tools.directory.path(node, &known.to.dial).is_alive() {
        true => Outcome::Missed,
        false => Outcome::Dead,
    }
}

/// Looks where a server was found before, and keeps count of misses there.
async fn look_again(tools: &Tools, memory: &mut Memory) -> Option<Result<(), Why>> {
    let Known { to, kind, .. } = memory.known.clone()?;
    let found = match kind {
        NodeKind::Rich => look_at_offers(tools, &to, memory).await,
        NodeKind::Bare | NodeKind::This => look_at_engine(tools, &to, memory).await,
    };
    if let Err(why) = &found {
        missed(tools, &to, why);
    }
    Some(found)
}

/// Keeps count of misses on a path, and says why.
fn missed(tools: &Tools, to: &Target, why: &Why) {
    let path = tools.directory.path(&to.node, &to.dial);
    let changed = match why {
        Why::UseTailnet => path.stand_by(),
        why if why.is_sure() => path.lost(),
        _ => path.miss(tools.ask.timing.probe_misses),
    };
    if !path.is_alive() {
        path.because(&why.to_string());
    }
    if changed {
        tools.directory.send(Event::Paths(to.node.clone()));
    }
}

/// Reads a peer's list by the local network, as long as a way there lives and none of another
/// kind does.
async fn look_by_lan(tools: &Tools, node: &NodeId, memory: &mut Memory) -> Option<Result<(), Why>> {
    let snapshot = tools.directory.load();
    let path = snapshot.lan_only(node)?;
    let (dial, prefix) = (path.dial.clone(), path.prefix.clone());
    let to = Target { node: node.clone(), dial, prefix };
    let found = look_at_offers(tools, &to, memory).await;
    if let Err(why) = &found {
        missed(tools, &to, why);
    }
    Some(found)
}

async fn look_at_peer(tools: &Tools, peer: &Peer, memory: &mut Memory) -> Result<(), Why> {
    // What is at an address that is no longer its own is not its server.
    let is_its_own = |known: &Known| match known.to.dial {
        Dial::Tailnet(addr) => peer.addrs.contains(&addr.ip()),
        Dial::Loopback(_) | Dial::Lan { .. } | Dial::Configured { .. } | Dial::Hosted { .. } => {
            true
        }
    };
    memory.known = memory.known.take().filter(is_its_own);
    // First, because it answers at once, and what is silent takes its time to be.
    let by_lan = look_by_lan(tools, &peer.who.id, memory).await;
    let found = look_at_tailnet(tools, peer, memory).await;
    match (found, by_lan) {
        (Err(_), Some(Ok(()))) => Ok(()),
        (found, _) => found,
    }
}

async fn look_at_tailnet(tools: &Tools, peer: &Peer, memory: &mut Memory) -> Result<(), Why> {
    match look_again(tools, memory).await {
        Some(Ok(())) => Ok(()),
        // A silent machine is silent on every port.
        Some(Err(why)) if !why.is_from_a_living_machine() => Err(why),
        // It may have been restarted on another port, or have got a sidecar.
        Some(Err(why)) => search(tools, peer, memory).await.map_err(|_| why),
        None => search(tools, peer, memory).await,
    }
}

/// Tries the places a DNS name gave, then the mesh ports in order, then the port of bare
/// Ollamas.
async fn search(tools: &Tools, peer: &Peer, memory: &mut Memory) -> Result<(), Why> {
    let at = |place: SocketAddr| Target {
        node: peer.who.id.clone(),
        dial: Dial::Tailnet(place),
        prefix: "".into(),
    };
    let (mesh, bare) = (&tools.mesh_ports, tools.bare_port);
    let mut places = Vec::new();
    for place in &peer.also {
        let named = doors(&peer.grant, memory.rich, &[place.port()], place.port());
        places.extend(named.into_iter().map(|(kind, _)| (kind, *place)));
    }
    if let Some(addr) = next_address(&peer.addrs, memory) {
        let usual = doors(&peer.grant, memory.rich, mesh, bare);
        places.extend(usual.into_iter().map(|(kind, port)| (kind, SocketAddr::new(addr, port))));
    }
    let mut last = Err(Why::NoServer);
    for (kind, port) in places {
        // A sidecar may have shown itself on the way.
        if kind == NodeKind::Bare && memory.rich {
            break;
        }
        last = match kind {
            NodeKind::Rich => look_at_offers(tools, &at(port), memory).await,
            NodeKind::Bare | NodeKind::This => look_at_engine(tools, &at(port), memory).await,
        };
        if matches!(last, Ok(()) | Err(Why::Refuses)) {
            break;
        }
    }
    last
}

/// What may be tried at a peer, in order. A sidecar that is down leaves its engine's port
/// open: that is no leave to go round it.
fn doors(grant: &Grant, rich: bool, mesh: &[u16], bare: u16) -> Vec<(NodeKind, u16)> {
    let mesh = mesh.iter().filter(|_| !grant.rich.is_empty()).map(|p| (NodeKind::Rich, *p));
    let bare = (!grant.bare.is_empty() && !rich).then_some((NodeKind::Bare, bare));
    mesh.chain(bare).collect()
}

/// A node's addresses in turn, in the order in which they are preferred: all lead through the
/// same tunnel, and one is usually enough.
fn next_address(addrs: &[IpAddr], memory: &mut Memory) -> Option<IpAddr> {
    let addr = addrs.get(memory.turn % addrs.len().max(1)).copied();
    memory.turn = memory.turn.wrapping_add(1);
    addr
}

/// Asks a sidecar for its list.
pub(super) async fn look_at_offers(
    tools: &Tools,
    to: &Target,
    memory: &mut Memory,
) -> Result<(), Why> {
    let held = memory.held(to, NodeKind::Rich).cloned();
    let tag = held.as_ref().and_then(|k| k.tag.clone());
    let answer = tools.ask.get(to, wire::OFFERS, tag.as_deref()).await?;
    memory.rich |= answer.is_tailherd();
    let listing = match (answer.status, held.and_then(|k| k.listing)) {
        (StatusCode::NOT_MODIFIED, Some(listing)) => listing,
        (StatusCode::OK, _) if answer.header("content-type").starts_with(wire::CONTENT_TYPE) => {
            let offers = wire::Offers::decode(&answer.body).map_err(|e| Why::Odd(e.to_string()))?;
            Listing {
                kind: NodeKind::Rich,
                version: Some(offers.node.version.clone()),
                dial: to.dial.clone(),
                prefix: to.prefix.clone(),
                accepting: Some(offers.accepts()),
                engines: list::offers(offers, &to.dial),
            }
        }
        (StatusCode::FORBIDDEN, _) if answer.is_tailherd() => return Err(Why::Refuses),
        (StatusCode::MISDIRECTED_REQUEST, _)
            if answer.header(attempt::REFUSED.as_str()) == "use_tailnet" =>
        {
            return Err(Why::UseTailnet);
        }
        _ => return Err(Why::NoServer),
    };
    let tag = Some(answer.header("etag").to_owned()).filter(|tag| !tag.is_empty());
    memory.rich = true;
    let known = Known { to: to.clone(), kind: NodeKind::Rich, identity: None, tag, listing: None };
    heard(tools, known, listing, &answer, memory).await;
    Ok(())
}

/// Asks an engine itself: a bare peer's or a configured one.
async fn look_at_engine(tools: &Tools, to: &Target, memory: &mut Memory) -> Result<(), Why> {
    let held = memory.held(to, NodeKind::Bare);
    let identity = match held.and_then(|k| k.identity.clone()) {
        // Identified again after each death: something else may listen there now.
        Some(identity) if tools.directory.path(&to.node, &to.dial).is_alive() => identity,
        _ => identify(&tools.ask, to).await.inspect_err(|why| {
            memory.rich |= matches!(why, NoEngine::Tailherd);
        })?,
    };
    // The quickest of its routes measures the way; lists take longer than a round trip.
    let answer = tools.ask.get(to, "/api/version", None).await?;
    let models = engines::models(&tools.ask, to, identity.kind).await?;
    let Held { mut models, unlisted } = models.ok_or(Why::NoServer)?;
    tools.shows.fill(&to.node, &mut models);
    if identity.kind == EngineKind::Ollama {
        engines::mark_loaded(&tools.ask, to, &mut models).await;
    }
    let listing = Listing {
        kind: NodeKind::Bare,
        version: None,
        dial: to.dial.clone(),
        prefix: to.prefix.clone(),
        accepting: None,
        engines: vec![EngineListing {
            name: identity.kind.label().into(),
            kind: identity.kind,
            apis: identity.apis,
            version: identity.version.clone(),
            dial: to.dial.clone(),
            prefix: to.prefix.clone(),
            slots: identity.slots,
            default_ctx: None,
            up: true,
            url: format!("{}{}", to.dial.url(), to.prefix),
            models,
            unlisted,
        }],
    };
    let (kind, identity) = (NodeKind::Bare, Some(identity));
    let known = Known { to: to.clone(), kind, identity, tag: None, listing: None };
    heard(tools, known, listing, &answer, memory).await;
    Ok(())
}

/// Tells what was heard; then what its models are, as far as that was not known.
async fn heard(
    tools: &Tools,
    known: Known,
    mut listing: Listing,
    answer: &Answer,
    memory: &mut Memory,
) {
    let to = known.to.clone();
    let now = tools.ask.clock.now();
    let tell = |listing: &Listing| {
        let (node, listing) = (to.node.clone(), listing.clone());
        tools.directory.send(Event::Listed { node, listing });
    };
    let fill = |listing: &mut Listing| {
        listing.engines.iter_mut().for_each(|e| tools.shows.fill(&to.node, &mut e.models));
    };
    fill(&mut listing);
    tell(&listing);
    if tools.directory.path(&to.node, &to.dial).ok(now, Some(answer.took)) {
        tools.directory.send(Event::Paths(to.node.clone()));
    }
    let mut learnt = false;
    for engine in &listing.engines {
        let ollama = engine.kind == EngineKind::Ollama;
        if engine.up && ollama {
            learnt |= tools.shows.fetch(&tools.ask, &to, &engine.models).await;
        }
    }
    if learnt {
        fill(&mut listing);
        tell(&listing);
    }
    memory.keep(Known { listing: Some(listing), ..known });
}

async fn look_at_server(tools: &Tools, server: &Server, memory: &mut Memory) -> Result<(), Why> {
    let to = Target { node: server.id(), dial: server.dial.clone(), prefix: server.prefix.clone() };
    let url = format!("{}{}", server.dial.url(), server.prefix);
    let bound = home::is_bound(&server.dial);
    if bound && !is_here(tools, server) {
        tools.directory.path(&to.node, &to.dial).lost();
        return Err(Why::Elsewhere);
    }
    match look_again(tools, memory).await {
        Some(found) => found?,
        None => look_at_engine(tools, &to, memory).await?,
    }
    if bound {
        tools.homes.answered(&url, &home::place_of(&server.dial));
    }
    Ok(())
}

/// Whether a configured server belongs to the network this machine is on.
pub(super) fn is_here(tools: &Tools, server: &Server) -> bool {
    let url = format!("{}{}", server.dial.url(), server.prefix);
    !home::is_bound(&server.dial)
        || tools.homes.belongs(&url, &home::place_of(&server.dial)) == Belongs::Here
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_grant_names_is_tried_and_no_sidecar_is_gone_round() {
        let all = Grant::all();
        let rich = Grant { bare: vec![], ..Grant::all() };
        let bare = Grant { rich: vec![], ..Grant::all() };
        use NodeKind::{Bare, Rich};
        for (grant, seen_rich, want) in [
            (&all, false, vec![(Rich, 1), (Rich, 2), (Bare, 3)]),
            (&all, true, vec![(Rich, 1), (Rich, 2)]),
            (&rich, false, vec![(Rich, 1), (Rich, 2)]),
            (&bare, false, vec![(Bare, 3)]),
            (&bare, true, vec![]),
            (&Grant::default(), false, vec![]),
        ] {
            assert_eq!(doors(grant, seen_rich, &[1, 2], 3), want);
        }
    }

    #[test]
    fn addresses_take_turns_in_the_order_they_are_preferred() {
        let addrs: Vec<IpAddr> = ["fd7a::1", "100.64.0.1"].map(|a| a.parse().unwrap()).to_vec();
        let mut memory = Memory::default();
        let mut next = || next_address(&addrs, &mut memory).map(|ip| ip.is_ipv4());
        assert_eq!([next(), next(), next()], [Some(false), Some(true), Some(false)]);
        assert_eq!(next_address(&[], &mut Memory::default()), None);
    }
}
