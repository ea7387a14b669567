//! Agents and hosted models in the lists of programs on this machine.
//!
//! In flow the lists of the mesh, ready made, and the names of the configuration; out flow the
//! lists with both. A name is listed only in dialects in which it can be asked. Where nothing is
//! configured the ready-made bytes leave as they are.

use bytes::Bytes;
use serde_json::Value;

use crate::api::about::About;
use crate::api::{hosted, union};
use crate::config::chains::{Chain, Step};
use crate::config::{HostedModel, Provider};
use crate::directory::Snapshot;
use crate::types::{Api, ApiSet, Capabilities, ModelKey, NodeName, glob};

use super::Settings;

/// A name that the configuration gives, as a row of either list.
struct Named {
    name: String,
    /// The row as an engine would write it for `/api/tags`.
    row: Value,
    nodes: Vec<NodeName>,
    apis: ApiSet,
}

/// The body of `/api/tags`.
pub(crate) fn tags(settings: &Settings, snapshot: &Snapshot) -> Bytes {
    let rows = rows(settings, snapshot, |apis| apis.has(Api::Ollama));
    let keep = keep(settings);
    if rows.is_empty() && !settings.config.models.replace {
        return snapshot.unions.tags.clone();
    }
    union::extended(&snapshot.unions.tags, "models", "name", keep, rows)
}

/// The body of `/v1/models`.
pub(crate) fn models(settings: &Settings, snapshot: &Snapshot) -> Bytes {
    let openai = [Api::Chat, Api::Completions, Api::Responses];
    let rows = rows(settings, snapshot, |apis| openai.iter().any(|api| apis.has(*api)));
    let keep = keep(settings);
    if rows.is_empty() && !settings.config.models.replace {
        return snapshot.unions.models.clone();
    }
    let rows = rows.into_iter().map(|row| union::as_openai(&row)).collect();
    union::extended(&snapshot.unions.models, "data", "id", keep, rows)
}

/// Which of the mesh's models stay: all, or with `mode: "replace"` those that are named.
fn keep(settings: &Settings) -> impl Fn(&str) -> bool {
    let replace = settings.config.models.replace;
    let steps = settings.chains.all().flat_map(|chain| &chain.steps);
    let named = steps.filter_map(|step| match step {
        Step::Mesh { key, .. } => Some(key.clone()),
        Step::Hosted { .. } => None,
    });
    let named: Vec<ModelKey> = named.collect();
    move |name| !replace || ModelKey::parse(name).is_ok_and(|key| named.contains(&key))
}

fn rows(settings: &Settings, snapshot: &Snapshot, fits: impl Fn(ApiSet) -> bool) -> Vec<Value> {
    let models = &settings.config.models;
    let shown = |name: &str| {
        models.show.iter().any(|pattern| glob(pattern, name))
            && !models.hide.iter().any(|pattern| glob(pattern, name))
    };
    // What the mesh has under a name comes before it.
    let taken = |name: &str| ModelKey::parse(name).is_ok_and(|k| snapshot.models.contains_key(&k));
    let agents = settings.chains.agents();
    let agents = agents.filter_map(|(name, chain)| agent(snapshot, name, chain));
    let hosted = settings.chains.hosted_models().map(|(provider, model)| {
        let name = format!("{}/{}", provider.name, model.id);
        let apis = hosted::spoken(model.api.unwrap_or(provider.api));
        Named { row: row(&name, provider, model), name, nodes: Vec::new(), apis }
    });
    let listed = agents.chain(hosted);
    let listed = listed.filter(|n| fits(n.apis) && shown(&n.name) && !taken(&n.name));
    listed.map(|named| union::mesh_row(named.row, &named.nodes)).collect()
}

/// An agent, as its first step that is there.
fn agent(snapshot: &Snapshot, name: &str, chain: &Chain) -> Option<Named> {
    let listed = format!("{name}:latest");
    let mut apis = ApiSet::NONE;
    let mut found = None;
    for step in &chain.steps {
        let (row, nodes, speaks) = match step {
            Step::Mesh { key, .. } => {
                let Some(model) = snapshot.models.get(key) else { continue };
                let rows = model.offers.iter().map(|o| (&*o.row, o.node.is_this()));
                let Some(row) = union::pick(rows) else { continue };
                let mut row = union::renamed(row, &listed);
                row["remote_model"] = Value::from(key.short());
                let nodes = model.offers.iter().map(|o| o.node.name.clone()).collect();
                let speaks = model.offers.iter().fold(ApiSet::NONE, |set, offer| {
                    ApiSet::from_bits(set.bits() | offer.endpoint.apis.bits())
                });
                (row, nodes, speaks)
            }
            Step::Hosted { provider, model } => {
                let speaks = hosted::spoken(model.api.unwrap_or(provider.api));
                (row(&listed, provider, model), Vec::new(), speaks)
            }
        };
        apis = ApiSet::from_bits(apis.bits() | speaks.bits());
        found.get_or_insert((row, nodes));
    }
    let (row, nodes) = found?;
    Some(Named { name: listed, row, nodes, apis })
}

fn about<'a>(name: &'a str, model: &HostedModel) -> About<'a> {
    let can = Capabilities {
        completion: true,
        tools: model.compat.tools.unwrap_or(true),
        vision: model.vision,
        thinking: model.reasoning,
        ..Capabilities::default()
    };
    About { name, family: "hosted", context: model.context, can, ..About::default() }
}

/// With where it really is, as Ollama says it of its own hosted models.
fn at(mut told: Value, provider: &Provider, model: &HostedModel) -> Value {
    told["remote_model"] = Value::from(&*model.id);
    told["remote_host"] = Value::from(&*provider.name);
    told
}

fn row(name: &str, provider: &Provider, model: &HostedModel) -> Value {
    at(about(name, model).row(), provider, model)
}

/// The body of `/api/show` for a provider's model: what the configuration says of it.
pub(crate) fn show(provider: &Provider, model: &HostedModel) -> Bytes {
    Bytes::from(at(about("", model).show(), provider, model).to_string())
}

/// The body of `/v1/models/:model`, under the caller's own spelling.
pub(crate) fn model(provider: &Provider, model: &HostedModel, spelling: &str) -> Bytes {
    let openai = union::as_openai(&row(spelling, provider, model));
    Bytes::from(format!("{openai}\n"))
}
