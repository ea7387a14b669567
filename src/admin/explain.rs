//! `/explain`: where a request for a model would go now, and why.
//!
//! In flow the picture of the mesh and, from the query, what such a request would be like; out
//! flows each offer weighed, the nodes that have the model and cannot be asked for it, and the
//! steps of the chain that the name means, providers' with why they are passed over. It is
//! the choice that a program on this machine would meet, without a session and without being
//! made: nothing is sent, and nobody is asked.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::hosted;
use crate::api::query::Query;
use crate::balance;
use crate::config::Config;
use crate::config::chains::{Chain, Chains, Meaning, Step};
use crate::directory::accounts::{Accounts, today};
use crate::directory::weigh::{self, Fate, Scales};
use crate::directory::{Model, Need, Offer, Snapshot};
use crate::telemetry::words;
use crate::types::{Api, Capabilities, ClientKind, ModelKey, Moment, RequestedModel};

/// Tokens of a prompt when nothing is said: a question in a chat that has just begun.
const PROMPT: u64 = 500;
/// Most tokens that can be asked about.
const MOST: u64 = 1 << 32;

/// What would become of a request; `Err` = what is wrong with the question.
pub(super) fn explain(
    snapshot: &Snapshot,
    config: &Config,
    accounts: &Accounts,
    query: &Query,
    now: Moment,
) -> Result<Value, String> {
    let named = query.text("model").unwrap_or_default();
    let named =
        RequestedModel::parse(named).map_err(|error| format!("model={}: {error}", words(named)))?;
    let has = |key: &ModelKey| snapshot.models.contains_key(key);
    let chain = match Chains::of(config).resolve(&named, None, has) {
        Meaning::Chain(chain) => chain,
        Meaning::Plain | Meaning::NoAgent => Chain::default(),
    };
    // Nodes are weighed for the first step that one of them has.
    let in_mesh = chain.steps.iter().filter_map(|step| match step {
        Step::Mesh { key, .. } => Some(key),
        Step::Hosted { .. } => None,
    });
    let key = in_mesh.clone().find(|key| has(key)).or(in_mesh.clone().next());
    let key = key.unwrap_or(&named.key).clone();
    let prompt = query.number("promptTokens").unwrap_or(PROMPT).min(MOST);
    let num_ctx = query.number("numCtx").map(|n| n.min(MOST));
    let model = snapshot.models.get(&key);
    let offers: Vec<Arc<Offer>> = match (model, &named.node) {
        (None, _) => Vec::new(),
        (Some(model), Some(node)) => model.on(node).cloned().collect(),
        (Some(model), None) => model.offers.clone(),
    };
    let api = [Api::Ollama, Api::Chat, Api::Embeddings]
        .into_iter()
        .find(|api| offers.iter().any(|o| o.endpoint.apis.has(*api)))
        .unwrap_or(Api::Ollama);
    // Models that only embed write nothing.
    let embeds = !offers.is_empty()
        && offers.iter().all(|o| o.capabilities.embedding && !o.capabilities.completion);
    let need = Need {
        api,
        capabilities: Capabilities {
            completion: !embeds,
            embedding: embeds,
            tools: query.is_set("tools"),
            vision: query.is_set("images"),
            thinking: query.is_set("think"),
            insert: false,
        },
        client: ClientKind::Other,
        bytes: prompt.saturating_mul(4),
        // It is in tokens already.
        prompt: Default::default(),
        // Of a prompt that nobody has written nothing was read before.
        print: Default::default(),
    };
    let ask = balance::Ask {
        prompt_tokens: prompt,
        max_output: embeds.then_some(0),
        num_ctx,
        min_context: chain.min_context,
        prefer_local: config.prefer_local,
    };
    let scales = Scales { offers: &offers, need: &need, ask: &ask, now };
    let weighed = weigh::weigh(&scales, None, &[]);
    let usable = weighed.iter().filter(|w| w.verdict.is_able()).count();
    let goes: Vec<&str> = weighed
        .iter()
        .filter(|w| w.verdict == Fate::Near)
        .filter_map(|w| offers.get(w.index))
        .map(|o| o.node.name.as_str())
        .collect();
    Ok(json!({
        "model": key.short(),
        "alias": (key != named.key).then(|| named.key.short().to_owned()),
        "pinned": named.node.as_ref().map(ToString::to_string),
        "ask": {
            "api": api.label(), "promptTokens": prompt, "numCtx": num_ctx,
            "preferLocal": config.prefer_local,
        },
        "usable": usable,
        "goes": goes,
        "agent": chain.agent.as_deref(),
        "steps": chain.steps.iter().map(|step| row(step, &chain, snapshot, accounts, now)).collect::<Vec<_>>(),
        "candidates": weighed.into_iter().map(|w| w.row).collect::<Vec<_>>(),
        "others": others(snapshot, model, &key, &offers, now),
    }))
}

/// A step of the chain: whether it would be tried now, or why not.
fn row(step: &Step, chain: &Chain, snapshot: &Snapshot, accounts: &Accounts, now: Moment) -> Value {
    let mut row = json!({ "step": words(&step.label()) });
    let why = match step {
        Step::Mesh { key, .. } => (!snapshot.models.contains_key(key)).then_some("no node has it"),
        Step::Hosted { provider, model } => {
            let day = today();
            let spent = accounts.spent(provider, day);
            row["requestsToday"] = spent.requests.into();
            row["usdToday"] = spent.usd.into();
            row["usdBudget"] = provider.budget.into();
            row["only"] = hosted::only(model.api.unwrap_or(provider.api)).into();
            match (chain.place, accounts.open(provider, &model.id, now, day)) {
                (Some(_), _) => Some("the agent's `where` keeps it in the mesh"),
                (None, Err(skip)) => Some(skip.text()),
                (None, Ok(())) if model.context.is_some_and(|c| c < chain.min_context) => {
                    Some("its context window is under the agent's `minContext`")
                }
                (None, Ok(())) => None,
            }
        }
    };
    row["hosted"] = matches!(step, Step::Hosted { .. }).into();
    row["open"] = why.is_none().into();
    row["why"] = why.into();
    row
}

/// The nodes that have the model, or had it, and are not in the choice.
fn others(
    snapshot: &Snapshot,
    model: Option<&Arc<Model>>,
    key: &ModelKey,
    offers: &[Arc<Offer>],
    now: Moment,
) -> Vec<Value> {
    let is_in = |name: &str| offers.iter().any(|o| o.node.name.as_str() == name);
    let mut rows: Vec<Value> = Vec::new();
    for offer in model.iter().flat_map(|m| m.offers.iter().chain(&m.variants)) {
        let name = offer.node.name.as_str();
        if is_in(name) {
            continue;
        }
        let why = match model.is_some_and(|m| m.offers.iter().any(|o| Arc::ptr_eq(o, offer))) {
            true => "another node is named".to_owned(),
            false => {
                format!("it has other content under this name: ask for {}@{name}", key.short())
            }
        };
        rows.push(json!({ "node": name, "why": why }));
    }
    for name in snapshot.away.get(key).into_iter().flatten() {
        let known = rows.iter().any(|row| row["node"] == name.as_str());
        if known || is_in(name.as_str()) {
            continue;
        }
        let node = snapshot.nodes.iter().find(|n| n.name == *name);
        let why = match node {
            Some(node) if node.is_alive() => "its engine does not answer".to_owned(),
            Some(node) => match &node.why {
                Some(why) => format!("does not answer: {}", words(why)),
                None => "does not answer".to_owned(),
            },
            None => "does not answer".to_owned(),
        };
        rows.push(json!({ "node": name.as_str(), "why": why }));
    }
    if let Some(lost) = snapshot.lingering.get(key)
        && rows.iter().all(|row| row["node"] != lost.node.as_str())
    {
        let seconds = lost.age(now).as_secs();
        let why = format!("nothing was heard of it for {seconds} s");
        rows.push(json!({ "node": lost.node.as_str(), "why": why }));
    }
    rows
}
