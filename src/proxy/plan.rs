//! From a name to the offers that may serve it.
//!
//! In flows what the request asks and who asks; out flows a [`Plan`]: the offers in which the
//! choice is made, and how the model is to be spelt for them. What the caller may not use is
//! not in the plan. Nothing here waits.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::config::Config;
use crate::directory::{Node, Offer, Snapshot};
use crate::ladder;
use crate::trust::Limits;
use crate::types::{Api, EngineKind, Moment, NodeKind, NodeName, Op, RequestedModel, Source, Verb};

use super::asked::Asked;
use super::error::Failure;
use super::may;
use super::wishes::Where;
use super::words;

/// Ollama's own text for a hosted model of its account while its cloud is off.
pub(crate) const CLOUD_OFF: &str = "ollama cloud is disabled: remote model is unavailable";

/// Who may serve a request.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The offers among which the choice is made.
    pub(crate) offers: Vec<Arc<Offer>>,
    /// The node the caller named, if it named one: nobody else may answer.
    pub(crate) pinned: Option<NodeName>,
    /// The limits the caller's rule sets, on the mesh listener.
    pub(crate) limits: Option<Limits>,
}

/// What became of a name.
#[derive(Debug)]
pub(crate) enum Planned {
    /// These may serve it.
    Serve(Plan),
    /// Nobody is known to have it; this node's Ollama is to say so (or to know better, right
    /// after a pull).
    AskLocal,
}

/// Finds who may serve `model`.
pub(crate) fn plan(
    snapshot: &Snapshot,
    config: &Config,
    asked: &Asked,
    model: &RequestedModel,
    unload: bool,
    now: Moment,
) -> Result<Planned, Failure> {
    let pinned = pinned_node(snapshot, asked, model)?;
    if asked.is_mesh() && pinned.as_ref().is_some_and(|node| !node.is_this()) {
        // A request that arrived over the mesh reaches only this node's own engines.
        return Err(unknown(asked, model));
    }
    // What a caller may not list is not to be told from a model that does not exist.
    if let Some(granted) = &asked.mesh_rule
        && granted.may(Verb::List, &model.key).is_none()
        && granted.may(Verb::Infer, &model.key).is_none()
    {
        return Err(unknown(asked, model));
    }
    let limits = may(asked, Some(&model.key), unload)?;
    if model.source == Source::Cloud {
        let spends = asked.mesh_rule.as_ref().is_some_and(|granted| {
            granted.may(Verb::Spend, &model.key).is_some() && asked.caller.lan.is_none()
        });
        if asked.is_mesh() && !spends {
            return Err(unknown(asked, model));
        }
        if config.offline {
            return Err(Failure::caller(http::StatusCode::FORBIDDEN, CLOUD_OFF));
        }
        return Ok(Planned::AskLocal);
    }
    let Some(known) = snapshot.models.get(&model.key) else {
        return missing(snapshot, asked, model, pinned.as_deref(), now);
    };
    let allowed = |offer: &Arc<Offer>| {
        // An unload without a pin means this node's memory, whoever else has the model.
        (!(asked.is_mesh() || (unload && pinned.is_none())) || offer.node.is_this())
            && (!offer.remote || (offer.node.is_this() && !asked.is_mesh() && !config.offline))
            && speaks(offer, asked)
            && match asked.wishes.place {
                Where::Anywhere | Where::Mesh => true,
                Where::This => offer.node.is_this(),
                Where::Mine => offer.node.mine,
            }
    };
    let offers: Vec<Arc<Offer>> = match &pinned {
        Some(node) => known
            .offers
            .iter()
            .chain(&known.variants)
            .filter(|o| o.node.id == node.id && allowed(o))
            .cloned()
            .collect(),
        None => known.offers.iter().filter(|o| allowed(o)).cloned().collect(),
    };
    if offers.is_empty() {
        return missing(snapshot, asked, model, pinned.as_deref(), now);
    }
    if let Some(closed) = closed(&offers, now) {
        let text = match pinned {
            Some(_) => closed,
            None => format!("no node takes requests for model '{}' now: {closed}", model.bare),
        };
        return Err(Failure::exhausted(text));
    }
    Ok(Planned::Serve(Plan { offers, pinned: pinned.map(|n| n.name.clone()), limits }))
}

/// Why none of these takes requests of ours now, each node once; `None` if one does.
pub(crate) fn closed(offers: &[Arc<Offer>], now: Moment) -> Option<String> {
    let why: Option<Vec<String>> = offers.iter().map(|offer| offer.says_no(now)).collect();
    let mut why = why?;
    why.dedup();
    Some(why.join("; "))
}

/// The node a request is pinned to: by header, by `/node/NAME/`, or by `model@node`.
pub(crate) fn pinned_node(
    snapshot: &Snapshot,
    asked: &Asked,
    model: &RequestedModel,
) -> Result<Option<Arc<Node>>, Failure> {
    let named = model.node.clone().or_else(|| asked.named_node());
    named.map(|name| find_node(snapshot, &name)).transpose()
}

/// The usable node of that name, or an answer that says why there is none.
pub(crate) fn find_node(snapshot: &Snapshot, name: &NodeName) -> Result<Arc<Node>, Failure> {
    if name.is_self()
        && let Some(this) = snapshot.nodes.first()
    {
        return Ok(Arc::clone(this));
    }
    if let Some(node) = snapshot.nodes.iter().find(|n| n.name == *name) {
        return Ok(Arc::clone(node));
    }
    match snapshot.unused.iter().find(|u| u.name == *name) {
        Some(unused) => {
            Err(Failure::not_found(format!("node '{name}' is not used: {}", unused.why)))
        }
        None => Err(Failure::not_found(format!("node '{name}' not found (tailherd status --all)"))),
    }
}

/// Nobody has it (any more): this node's Ollama says so in its own words if there is one.
fn missing(
    snapshot: &Snapshot,
    asked: &Asked,
    model: &RequestedModel,
    pinned: Option<&Node>,
    now: Moment,
) -> Result<Planned, Failure> {
    if asked.is_mesh() {
        return Err(unknown(asked, model));
    }
    let outage = outage(snapshot, now);
    if let Some(node) = pinned.filter(|n| !n.is_this()) {
        if !node.may_answer() {
            return Err(silent(node, now, outage));
        }
        return Err(Failure::not_found(format!(
            "model '{}' not found on {}",
            model.bare, node.name
        )));
    }
    if let Some(lost) = snapshot.lingering.get(&model.key) {
        let because = outage.map_or_else(String::new, |outage| format!("; {outage}"));
        return Err(Failure::not_found(format!(
            "model '{}' not found (last on {}, {} {}{because})",
            model.bare,
            lost.node,
            if lost.asleep { "asleep" } else { "not reachable for" },
            age(lost.age(now))
        )));
    }
    if local_ollama(snapshot).is_some() {
        return Ok(Planned::AskLocal);
    }
    let mut failure = unknown(asked, model);
    if let Some(outage) = outage {
        failure.text.push_str(&format!(" ({outage})"));
    }
    Err(failure)
}

/// The node that was named does not answer: since when, and why.
fn silent(node: &Node, now: Moment, outage: Option<String>) -> Failure {
    let heard = node.paths.iter().map(|path| path.cell.last_ok.load(Relaxed)).max();
    let since = heard
        .filter(|at| *at > 0)
        .map_or_else(String::new, |at| format!(" for {}", age(now.since(Moment::from_millis(at)))));
    let path = || node.paths.iter().map(|path| path.cell.why()).find(|why| !why.is_empty());
    let why = outage.or_else(|| path().map(|why| why.to_string())).or_else(|| node.why.clone());
    let why = why.map_or_else(String::new, |why| format!(" ({why})"));
    Failure::exhausted(format!("{} does not answer{since}{why}", node.name))
}

/// Why other nodes are away and since when, if it is not their own doing.
pub(crate) fn outage(snapshot: &Snapshot, now: Moment) -> Option<String> {
    let since = age(now.since(snapshot.rung.since));
    Some(format!("{}, for {since}", ladder::outage(&snapshot.rung)?))
}

/// `22 min`, `3 h`: as people say it.
fn age(age: std::time::Duration) -> String {
    match age.as_secs() {
        s @ ..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}

/// Ollama's own text for a model it does not have.
pub(crate) fn unknown(asked: &Asked, model: &RequestedModel) -> Failure {
    Failure::not_found(match asked.route.op {
        Op::Show | Op::Model => format!("model '{}' not found", model.key.short()),
        Op::Embed if asked.route.api == Api::Ollama => {
            format!("model \"{}\" not found, try pulling it first", model.bare)
        }
        _ => format!("model '{}' not found", model.bare),
    })
}

/// This node's Ollama, if it runs one.
pub(crate) fn local_ollama(snapshot: &Snapshot) -> Option<&Arc<crate::directory::Endpoint>> {
    let this = snapshot.nodes.first()?;
    this.endpoints.iter().find(|e| e.kind == EngineKind::Ollama && e.up)
}

/// Whether its engine can be asked this at all: as it is, by its sidecar, or in other words.
fn speaks(offer: &Offer, asked: &Asked) -> bool {
    let (api, op) = (asked.route.api, asked.route.op);
    let whole = offer.node.kind == NodeKind::Rich || offer.endpoint.native.has(api);
    offer.endpoint.apis.has(api) && (whole || op == Op::Show || words::way(asked, offer).is_some())
}
