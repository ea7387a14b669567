//! The status as JSON: all of it for this machine, less of it for a peer.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::config::{Config, ShareWhen};
use crate::directory::{Model, Node, Offer, Snapshot};
use crate::telemetry::events::{Events, timestamp};
use crate::telemetry::plain;
use crate::trust::Granted;
use crate::types::{Dial, Moment, Rung, Verb};

/// Everything, for people and programs on this machine.
pub fn status(snapshot: &Snapshot, config: &Config, events: &Events, started: SystemTime) -> Value {
    let wall = |at: Moment| timestamp(started + now_less(at));
    let this = Snapshot::this(snapshot);
    let mut peers: Vec<Value> =
        snapshot.nodes.iter().filter(|n| !n.is_this()).map(|node| peer(node, &wall)).collect();
    peers.extend(snapshot.unused.iter().map(|unused| {
        json!({
            "name": plain(unused.name.as_str()), "kind": null, "owner": plain(&unused.owner),
            "accepting": null, "why": plain(&unused.why), "path": null, "paths": [], "endpoints": [],
        })
    }));
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
        "coordinator": {
            "up": snapshot.coordinator_up,
            // Since when it is there is not kept, since when it is missing is the rung's age.
            "since": (snapshot.rung.rung == Rung::CoordinatorLost)
                .then(|| wall(snapshot.rung.since)),
        },
        "sharing": { "when": share(config.share.when), "accepting": "all", "why": "" },
        "offline": config.offline,
        "listen": config.listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "peers": peers,
        "models": snapshot.models.values().map(|m| model(m, |_| true)).collect::<Vec<_>>(),
        "requests": events.requests(),
        "events": events.notes(),
        "pins": 0,
        "warnings": config.warnings,
        "config": {
            "file": config.origin.file.as_ref().map(|f| f.display().to_string()),
            "loadedAt": config.origin.loaded_at.map(timestamp),
        },
    })
}

/// What a peer sees: this node's own engines, and of those what it may list.
pub fn reduced(snapshot: &Snapshot, granted: &Granted, now: Moment) -> Value {
    let this = Snapshot::this(snapshot);
    let models: Vec<Value> = snapshot
        .models
        .values()
        .filter(|m| granted.may(Verb::List, &m.key).is_some())
        .map(|m| model(m, |o| o.node.is_this()))
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

fn share(when: ShareWhen) -> &'static str {
    match when {
        ShareWhen::Auto => "auto",
        ShareWhen::All => "all",
        ShareWhen::Mine => "mine",
        ShareWhen::None => "none",
        ShareWhen::Idle => "idle",
    }
}

fn state(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

fn peer(node: &Node, wall: &impl Fn(Moment) -> String) -> Value {
    let paths: Vec<Value> = node
        .paths
        .iter()
        .map(|path| {
            let cell = &path.cell;
            let last = cell.last_ok.load(Relaxed);
            json!({
                "kind": path.kind.label(),
                "addr": address(&path.dial),
                "state": state(cell.alive.load(Relaxed)),
                "why": if cell.misses.load(Relaxed) > 0 { "probes are missed" } else { "" },
                "rttMs": cell.rtt().map(|rtt| rtt.as_secs_f64() * 1e3),
                "lastOk": (last > 0).then(|| wall(Moment::from_millis(last))),
            })
        })
        .collect();
    json!({
        "name": node.name.as_str(),
        "id": node.id.to_string(),
        "kind": node.kind.label(),
        "owner": node.principal.as_ref().map(|p| plain(&p.to_string()).into_owned()),
        "version": node.version.as_deref().map(plain),
        // Known only where a peer reports it.
        "accepting": null,
        "why": if node.is_alive() { "" } else { "does not answer" },
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
            })
        })
        .collect()
}

fn address(dial: &Dial) -> String {
    match dial {
        Dial::Loopback(addr) | Dial::Tailnet(addr) | Dial::Lan { addr, .. } => addr.to_string(),
        Dial::Configured { host, port, tls } => {
            let scheme = if *tls { "https" } else { "http" };
            let host = if host.contains(':') { format!("[{host}]") } else { host.to_string() };
            format!("{scheme}://{host}:{port}")
        }
    }
}

fn model(model: &Model, show: impl Fn(&Offer) -> bool) -> Value {
    let shown: Vec<&Arc<Offer>> =
        model.offers.iter().chain(&model.variants).filter(|o| show(o)).collect();
    let offers: Vec<Value> = shown
        .iter()
        .map(|o| {
            let known = |value: f64| (value > 0.0).then_some(value);
            json!({
                "peer": o.node.name.as_str(),
                "loaded": o.cell.is_loaded(),
                "inflight": o.cell.inflight.load(Relaxed),
                "queued": o.cell.queued.load(Relaxed),
                "context": o.context,
                "tokensPerSecond": known(o.cell.decode.get()),
                "ttftMs": known(o.cell.ttft.get()).map(|s| s * 1e3),
            })
        })
        .collect();
    // Of what is shown: a peer may not learn what another one has.
    let digest = shown.first().and_then(|o| o.digest.as_ref()).map(|d| plain(&d.0).into_owned());
    json!({ "name": model.key.short(), "digest": digest, "offers": offers })
}
