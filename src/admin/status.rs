//! The status as JSON: all of it for this machine, less of it for a peer.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::pins;
use crate::config::Config;
use crate::config::chains::{Chains, Step};
use crate::directory::{Model, Node, Offer, Path, Snapshot};
use crate::gate::Share;
use crate::ladder;
use crate::net::{LanView, TailnetView};
use crate::telemetry::events::{Events, timestamp};
use crate::telemetry::{plain, words};
use crate::trust::{Granted, View};
use crate::types::{Dial, ModelKey, Moment, NodeKind, Verb, Wall};

/// What status is made of beside the directory.
pub(super) struct Seen<'a> {
    pub(super) trust: &'a View,
    pub(super) tailnet: &'a TailnetView,
    pub(super) lan: &'a LanView,
    pub(super) share: &'a Share,
    pub(super) wall: Wall,
    pub(super) now: Moment,
}

/// Everything, for people and programs on this machine.
pub(super) fn status(
    snapshot: &Snapshot,
    config: &Config,
    events: &Events,
    started: SystemTime,
    seen: &Seen<'_>,
) -> Value {
    let wall = |at: Moment| timestamp(started + now_less(at));
    let this = Snapshot::this(snapshot);
    let nodes = snapshot.nodes.iter().filter(|n| !n.is_this());
    let mut peers: Vec<Value> = nodes.map(|node| peer(node, seen, &wall)).collect();
    peers.extend(snapshot.unused.iter().map(|unused| {
        json!({
            "name": plain(unused.name.as_str()), "kind": null, "owner": plain(&unused.owner),
            "accepting": null, "why": words(&unused.why), "path": null, "paths": [], "endpoints": [],
        })
    }));
    let lost = snapshot.lingering.iter().map(|(key, lost)| {
        json!({
            "name": key.short(), "node": lost.node.as_str(), "away": away(snapshot, key),
            "seconds": lost.age(seen.now).as_secs(), "listed": lost.listed,
        })
    });
    let models = snapshot.models.values().map(|m| {
        let mut row = model(m, |_| true, seen.now);
        row["away"] = away(snapshot, &m.key);
        row
    });
    let meaning = ladder::meaning(&snapshot.rung);
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started": timestamp(started),
        "node": {
            "name": this.map(|n| n.name.as_str()),
            "id": this.map(|n| n.id.to_string()),
            "owner": this.and_then(|n| n.principal.as_ref()).map(|p| plain(&p.to_string()).into_owned()),
            "endpoints": this.map(|n| endpoints(n)),
        },
        "rung": snapshot.rung.rung.label(),
        "why": &*snapshot.rung.why,
        "since": wall(snapshot.rung.since),
        "works": meaning.works,
        "lost": meaning.lost,
        "coordinator": {
            "up": snapshot.coordinator_up,
            "since": snapshot.coordinator_up.is_some().then(|| wall(snapshot.coordinator_since)),
        },
        "lan": pins::lan(seen.lan),
        "sharing": sharing(config, seen.share),
        "offline": config.offline,
        "hosted": hosted(config),
        "listen": config.listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "peers": peers,
        "models": models.collect::<Vec<_>>(),
        "lostModels": lost.collect::<Vec<_>>(),
        "requests": events.requests(),
        "running": events.running(),
        "events": events.notes(),
        "pins": pins::list(seen.trust, seen.wall),
        "warnings": config.warnings,
        "config": {
            "file": config.origin.file.as_ref().map(|f| f.display().to_string()),
            "loadedAt": config.origin.loaded_at.map(timestamp),
        },
    })
}

/// The providers that may be asked, and the chains that name them.
fn hosted(config: &Config) -> Vec<Value> {
    let chains = Chains::of(config);
    let of = |name: &str| -> Vec<String> {
        let names =
            |step: &Step| matches!(step, Step::Hosted { provider, .. } if *provider.name == *name);
        let named = chains.all().filter(|chain| chain.steps.iter().any(names));
        named.map(|chain| chain.agent.as_deref().unwrap_or("defaults").to_owned()).collect()
    };
    let providers = chains.providers();
    providers.map(|p| json!({ "name": words(&p.name), "chains": of(&p.name) })).collect()
}

/// What a peer sees: this node's own engines, and of those what it may list.
pub(super) fn reduced(snapshot: &Snapshot, granted: &Granted, now: Moment) -> Value {
    let this = Snapshot::this(snapshot);
    let models: Vec<Value> = snapshot
        .models
        .values()
        .filter(|m| granted.may(Verb::List, &m.key).is_some())
        .map(|m| model(m, |o| o.node.is_this(), now))
        .filter(|m| m["offers"].as_array().is_some_and(|o| !o.is_empty()))
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": { "name": this.map(|n| n.name.as_str()) },
        "rung": snapshot.rung.rung.label(),
        "sinceSeconds": now.since(snapshot.rung.since).as_secs(),
        "engines": this.map(|n| {
            n.endpoints
                .iter()
                .map(|e| {
                    let version = e.version.as_deref().map(plain);
                    json!({ "kind": e.kind.label(), "version": version, "state": state(e.up) })
                })
                .collect::<Vec<_>>()
        }),
        "models": models,
    })
}

fn now_less(at: Moment) -> Duration {
    at.since(Moment::ZERO)
}

/// For whom this node works, why, and until when.
fn sharing(config: &Config, share: &Share) -> Value {
    let until = share.until.map(|at| timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(at.0)));
    json!({
        "when": config.share.when.label(),
        "accepting": share.accepting.label(),
        "why": &*share.why,
        "until": until,
        // What the configuration asks for and this machine does not say.
        "notKnown": share.unknown,
    })
}

fn state(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

/// The nodes that hold a model and cannot serve it now.
fn away(snapshot: &Snapshot, key: &ModelKey) -> Value {
    let nodes = snapshot.away.get(key).into_iter().flatten();
    nodes.map(|name| name.as_str()).collect()
}

/// Whether a tunnel goes straight to its node or through a relay; known of living ones only.
fn via(path: &Path, tailnet: &TailnetView) -> Option<&'static str> {
    let Dial::Tailnet(addr) = &path.dial else { return None };
    let peer = tailnet.peer_at(addr.ip()).filter(|_| path.cell.is_alive())?;
    Some(if peer.current.is_some() { "direct" } else { "relayed" })
}

fn peer(node: &Node, seen: &Seen<'_>, wall: &impl Fn(Moment) -> String) -> Value {
    let paths: Vec<Value> = node
        .paths
        .iter()
        .map(|path| {
            let cell = &path.cell;
            let last = cell.last_ok.load(Relaxed);
            let state = match (cell.is_alive(), cell.is_standby()) {
                (true, _) => "up",
                (_, true) => "standby",
                _ => "down",
            };
            let why = match (&*cell.why(), cell.misses.load(Relaxed)) {
                ("", 1..) => "probes are missed".to_owned(),
                (why, _) => words(why),
            };
            let ago = seen.now.since(Moment::from_millis(last));
            json!({
                "kind": path.kind.label(),
                "addr": address(&path.dial),
                "via": via(path, seen.tailnet),
                "state": state,
                "why": why,
                "rttMs": cell.rtt().map(|rtt| rtt.as_secs_f64() * 1e3),
                "uplinkBytesPerSecond": cell.uplink.estimate().known(),
                "lastOk": (last > 0).then(|| wall(Moment::from_millis(last))),
                "lastOkSeconds": (last > 0).then_some(ago.as_secs()),
            })
        })
        .collect();
    let said = node.cell.accepting();
    let why = match (node.is_alive(), &node.why) {
        (true, _) => said.as_ref().map_or_else(String::new, |(_, why)| words(why)),
        (false, Some(why)) => format!("does not answer: {}", words(why)),
        (false, None) => "does not answer".to_owned(),
    };
    json!({
        "name": node.name.as_str(),
        "id": node.id.to_string(),
        "kind": node.kind.label(),
        "owner": node.principal.as_ref().map(|p| plain(&p.to_string()).into_owned()),
        "version": node.version.as_deref().map(plain),
        // Known only where a peer reports it.
        "accepting": said.as_ref().map(|(whom, _)| whom.label()),
        "why": why,
        "path": node.best_path().map(|p| p.kind.label()),
        "paths": paths,
        "endpoints": endpoints(node),
    })
}

fn endpoints(node: &Node) -> Vec<Value> {
    node.endpoints
        .iter()
        .map(|e| {
            json!({
                "kind": e.kind.label(), "url": e.url,
                "version": e.version.as_deref().map(plain), "state": state(e.up),
                "unlisted": e.unlisted.iter().map(|name| words(name)).collect::<Vec<_>>(),
            })
        })
        .collect()
}

fn address(dial: &Dial) -> String {
    match dial {
        Dial::Loopback(addr) | Dial::Tailnet(addr) | Dial::Lan { addr, .. } => addr.to_string(),
        Dial::Configured { .. } | Dial::Hosted { .. } => dial.url(),
    }
}

/// For how long an offer rests after failures; `None` while it does not.
fn rests(offer: &Offer, now: Moment) -> Option<u64> {
    let left = offer.cell.rests.left(now);
    (!left.is_zero()).then_some(left.as_secs().max(1))
}

/// Requests that run there, as far as is known: ours, and those its node tells of, or those
/// other sidecars tell of where it cannot speak for itself.
fn inflight(offer: &Offer) -> u32 {
    let cell = &offer.cell;
    let ours = cell.inflight.load(Relaxed);
    match offer.node.kind {
        NodeKind::Bare => ours.saturating_add(cell.report.others()),
        // Those of ours that wait are there, too.
        NodeKind::This | NodeKind::Rich => {
            let waiting = cell.queued.load(Relaxed);
            cell.running.load(Relaxed).max(ours.saturating_sub(waiting))
        }
    }
}

fn model(model: &Model, show: impl Fn(&Offer) -> bool, now: Moment) -> Value {
    let shown: Vec<&Arc<Offer>> =
        model.offers.iter().chain(&model.variants).filter(|o| show(o)).collect();
    let offers: Vec<Value> = shown
        .iter()
        .map(|o| {
            let known = |value: f64| (value > 0.0).then_some(value);
            json!({
                "peer": o.node.name.as_str(),
                "loaded": o.cell.is_loaded(),
                "inflight": inflight(o),
                "queued": o.cell.queued.load(Relaxed),
                // As its node says; null where nobody does.
                "waitMs": o.believed(now).map(|b| b.wait * 1e3),
                "context": o.context,
                // Another content under the same name: it answers to `name@node` only.
                "variant": model.variants.iter().any(|v| Arc::ptr_eq(v, o)),
                "restsSeconds": rests(o, now),
                "tokensPerSecond": known(o.cell.decode.get()),
                "promptTokensPerSecond": known(o.cell.prefill.get()),
                "loadBytesPerSecond": known(o.cell.load_rate.get()),
                "ttftMs": known(o.cell.ttft.get()).map(|s| s * 1e3),
                // How old these speeds are: those of an earlier run are told, too.
                "measuredSeconds": o.cell.measured(now).map(|age| age.as_secs()),
            })
        })
        .collect();
    // Of what is shown: a peer may not learn what another one has.
    let digest = shown.first().and_then(|o| o.digest.as_ref()).map(|d| plain(&d.0).into_owned());
    json!({ "name": model.key.short(), "digest": digest, "offers": offers })
}
