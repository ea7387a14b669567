//! This node's engines: where they are, what they hold, what is in memory.
//!
//! Each place is asked again and again; one that answers is identified first and listed from
//! then on. One that falls silent stays known as down: its models linger in the lists and come
//! back with it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::{Notify, watch};

use super::ask::{AskError, Asker, Target};
use super::identify::{Identity, NoEngine, identify, is_ours};
use super::list::{self, Held};
use super::shows::Shows;
use crate::config::LocalEngine;
use crate::directory::{Directory, EngineListing, Event, ModelListing};
use crate::telemetry::plain;
use crate::types::{Dial, EngineKind, NodeId};

/// Where engines usually listen. 11435 is where an Ollama goes that left its port to us.
pub(super) const USUAL_PORTS: [u16; 5] = [11435, 11434, 1234, 8000, 8080];

/// A place without an engine is looked at in one round of so many.
const SEARCH_EVERY: u32 = 5;
/// An engine that answers is identified again in one round of so many: it may have been
/// replaced by a newer one between two looks.
const IDENTIFY_EVERY: u32 = 30;

/// Watches this node's engines.
pub(super) struct Engines {
    ask: Asker,
    directory: Arc<Directory>,
    shows: Arc<Shows>,
    ours: watch::Receiver<Vec<SocketAddr>>,
    /// Somebody asked for a look now.
    asked: Arc<Notify>,
    places: Vec<Place>,
    /// How many engines of a kind have a name so far.
    named: BTreeMap<&'static str, u32>,
    round: u32,
}

/// Somewhere an engine may be.
struct Place {
    to: Target,
    url: String,
    slots: Option<u32>,
    default_ctx: Option<u64>,
    /// What was found there last.
    found: Option<Found>,
    misses: u32,
}

struct Found {
    name: Arc<str>,
    identity: Identity,
    models: Vec<ModelListing>,
    unlisted: Vec<Arc<str>>,
    up: bool,
}

/// What one look at a place gave.
enum Seen {
    /// It was not its turn.
    Skipped,
    Nothing,
    Engine(Identity, Held),
}

impl Engines {
    pub(super) fn new(
        ask: Asker,
        directory: Arc<Directory>,
        shows: Arc<Shows>,
        ours: watch::Receiver<Vec<SocketAddr>>,
        asked: Arc<Notify>,
        named: Option<&[LocalEngine]>,
    ) -> Engines {
        let places = match named {
            Some(engines) => engines.iter().map(Place::named).collect(),
            None => USUAL_PORTS.into_iter().map(Place::usual).collect(),
        };
        Engines { ask, directory, shows, ours, asked, places, named: BTreeMap::new(), round: 0 }
    }

    /// Looks for ever.
    pub(super) async fn run(mut self) {
        loop {
            self.look().await;
            // What somebody just made or deleted here is not waited for.
            let next = self.ask.clock.next(self.ask.timing.probe_local);
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.asked.notified() => {}
            }
        }
    }

    /// One look at every place, and the news of it.
    async fn look(&mut self) {
        let ours = self.ours.borrow().clone();
        let searching = self.round.is_multiple_of(SEARCH_EVERY);
        let trusting = !self.round.is_multiple_of(IDENTIFY_EVERY);
        self.round = self.round.wrapping_add(1);
        let (ask, shows) = (&self.ask, &self.shows);
        let asked = ask.clock.now();
        let seen = join_all(self.places.iter().map(|place| {
            let ours = &ours;
            async move {
                match &place.to.dial {
                    Dial::Loopback(addr) if is_ours(*addr, ours) => Seen::Nothing,
                    _ => place.look(ask, shows, searching, trusting).await,
                }
            }
        }))
        .await;
        let misses = self.ask.timing.probe_misses;
        for (place, seen) in self.places.iter_mut().zip(seen) {
            place.take(seen, misses, &mut self.named);
        }
        self.tell();
        self.directory.settled().await;
        self.directory.told_memory(asked);
        // Answers to `show` may take long; what the lists say is told first.
        let mut learnt = false;
        for place in &self.places {
            let Some(found) = place.found.as_ref().filter(|f| f.up && f.is_ollama()) else {
                continue;
            };
            learnt |= self.shows.fetch(&self.ask, &place.to, &found.models).await;
        }
        if learnt {
            for found in self.places.iter_mut().filter_map(|p| p.found.as_mut()) {
                self.shows.fill(&NodeId::This, &mut found.models);
            }
            self.tell();
        }
    }

    fn tell(&self) {
        self.directory.send(Event::Local(self.places.iter().filter_map(Place::listing).collect()));
    }
}

impl Found {
    fn is_ollama(&self) -> bool {
        self.identity.kind == EngineKind::Ollama
    }
}

impl Place {
    fn usual(port: u16) -> Place {
        Place::at(Dial::Loopback((Ipv4Addr::LOCALHOST, port).into()), "".into())
    }

    fn named(engine: &LocalEngine) -> Place {
        let server = &engine.server;
        let dial = dial_of(&server.host, server.port, server.tls);
        Place {
            slots: engine.slots,
            default_ctx: engine.context_length,
            ..Place::at(dial, server.prefix.clone())
        }
    }

    fn at(dial: Dial, prefix: Arc<str>) -> Place {
        let url = format!("{}{prefix}", dial.url());
        let to = Target { node: NodeId::This, dial, prefix };
        Place { to, url, slots: None, default_ctx: None, found: None, misses: 0 }
    }

    async fn look(&self, ask: &Asker, shows: &Shows, searching: bool, trusting: bool) -> Seen {
        let known = self.found.as_ref().filter(|f| f.up && trusting).map(|f| f.identity.clone());
        // One that went down is looked at each time: it is likely to come back.
        if known.is_none() && self.found.is_none() && !searching {
            return Seen::Skipped;
        }
        let identity = match known {
            Some(identity) => identity,
            None => match identify(ask, &self.to).await {
                Ok(identity) => identity,
                Err(reason) => {
                    if !matches!(reason, NoEngine::Silent(_)) {
                        tracing::debug!(url = %self.url, %reason, "no engine here");
                    }
                    return Seen::Nothing;
                }
            },
        };
        match models(ask, &self.to, identity.kind).await {
            Ok(Some(mut held)) => {
                shows.fill(&NodeId::This, &mut held.models);
                if identity.kind == EngineKind::Ollama {
                    mark_loaded(ask, &self.to, &mut held.models).await;
                }
                Seen::Engine(identity, held)
            }
            _ => Seen::Nothing,
        }
    }

    fn take(&mut self, seen: Seen, misses: u32, named: &mut BTreeMap<&'static str, u32>) {
        match seen {
            Seen::Skipped => {}
            Seen::Nothing => {
                self.misses = self.misses.saturating_add(1);
                if let Some(found) = self.found.as_mut().filter(|_| self.misses >= misses) {
                    found.up = false;
                }
            }
            Seen::Engine(identity, Held { models, unlisted }) => {
                self.misses = 0;
                let same = self.found.take().filter(|f| f.identity.kind == identity.kind);
                let said = same.as_ref().map_or(&[][..], |found| &found.unlisted);
                for model in unlisted.iter().filter(|model| !said.contains(model)) {
                    tracing::warn!(
                        url = %self.url, model = %plain(model),
                        "a model cannot be listed: no model can be called that here, or another \
                         is; start {} with {}", identity.kind.label(), naming(identity.kind),
                    );
                }
                let name = same.map_or_else(|| new_name(identity.kind, named), |f| f.name);
                self.found = Some(Found { name, identity, models, unlisted, up: true });
            }
        }
    }

    fn listing(&self) -> Option<EngineListing> {
        let found = self.found.as_ref()?;
        Some(EngineListing {
            name: found.name.clone(),
            kind: found.identity.kind,
            apis: found.identity.apis,
            version: found.identity.version.clone(),
            dial: self.to.dial.clone(),
            prefix: self.to.prefix.clone(),
            slots: self.slots.or(found.identity.slots),
            default_ctx: self.default_ctx,
            up: found.up,
            url: self.url.clone(),
            models: found.models.clone(),
            unlisted: found.unlisted.clone(),
        })
    }
}

/// How an engine is told what to call its model.
fn naming(kind: EngineKind) -> &'static str {
    match kind {
        EngineKind::Vllm => "--served-model-name NAME",
        EngineKind::LlamaCpp => "--alias NAME",
        _ => "another name for it",
    }
}

/// `ollama`, then `ollama-2`.
fn new_name(kind: EngineKind, named: &mut BTreeMap<&'static str, u32>) -> Arc<str> {
    let count = named.entry(kind.label()).or_default();
    *count += 1;
    match *count {
        1 => kind.label().into(),
        n => format!("{}-{n}", kind.label()).into(),
    }
}

/// What an engine holds; `None` if its answer is no list.
pub(super) async fn models(
    ask: &Asker,
    to: &Target,
    kind: EngineKind,
) -> Result<Option<Held>, AskError> {
    if kind == EngineKind::Ollama {
        let tags = ask.get(to, "/api/tags", None).await?;
        let models = list::tags(&tags.body).filter(|_| tags.is_ok());
        return Ok(models.map(|models| Held { models, unlisted: Vec::new() }));
    }
    let answer = ask.get(to, "/v1/models", None).await?;
    let mut held = list::openai(kind, &answer.body).filter(|_| answer.is_ok());
    if let (EngineKind::LmStudio, Some(held)) = (kind, &mut held) {
        list::lm_studio(&mut held.models, &ask.get(to, "/api/v0/models", None).await?.body);
    }
    if let Some(held) = &mut held {
        list::told(kind, &mut held.models);
    }
    Ok(held)
}

/// Adds what is in memory. A list without it is still a list.
pub(super) async fn mark_loaded(ask: &Asker, to: &Target, models: &mut [ModelListing]) {
    if let Ok(ps) = ask.get(to, "/api/ps", None).await {
        list::loaded(models, &ps.body);
    }
}

/// How a server of the configuration is dialled.
pub(super) fn dial_of(host: &Arc<str>, port: u16, tls: bool) -> Dial {
    let ip = match &**host {
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        text => text.parse::<std::net::IpAddr>().ok(),
    };
    match ip.filter(|ip| ip.is_loopback() && !tls) {
        Some(ip) => Dial::Loopback((ip, port).into()),
        None => Dial::Configured { host: host.clone(), port, tls },
    }
}
