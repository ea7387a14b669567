//! The ready-made answers to list requests, made once per snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::snapshot::{Lost, Model, Offer, Unions};
use crate::api::union::{self, UnionRow};
use crate::types::{Api, ApiSet, ModelKey, NodeName};

/// OpenAI's dialects: a model is in `/v1/models` if it can be asked in one of them.
const OPENAI: [Api; 4] = [Api::Chat, Api::Completions, Api::Responses, Api::Embeddings];

/// Makes the lists of all models that are shown, and of those whose last node was lost a
/// short while ago: each only where it can be asked.
pub(super) fn of(
    models: &BTreeMap<ModelKey, Arc<Model>>,
    lingering: &BTreeMap<ModelKey, Lost>,
) -> Unions {
    let listed: Vec<&Arc<Model>> = models.values().filter(|m| m.listed).collect();
    let nodes: Vec<Vec<NodeName>> = listed.iter().map(|m| nodes(&m.offers)).collect();
    let lost: Vec<(&Lost, [NodeName; 1])> =
        lingering.values().filter(|l| l.listed).map(|l| (l, [l.node.clone()])).collect();
    let rows = |speaks: &dyn Fn(ApiSet) -> bool| {
        let living = listed.iter().zip(&nodes).filter_map(|(model, nodes)| {
            let able = model.offers.iter().filter(|o| speaks(o.endpoint.apis));
            let row = union::pick(able.map(|o| (&*o.row, o.node.is_this())))?;
            Some(UnionRow { row, nodes })
        });
        let lost = lost.iter().filter(|(lost, _)| speaks(lost.apis));
        let lost = lost.map(|(lost, node)| UnionRow { row: &lost.row, nodes: node });
        living.chain(lost).collect::<Vec<_>>()
    };
    Unions {
        tags: union::tags(&rows(&|apis| apis.has(Api::Ollama))),
        models: union::models(&rows(&|apis| OPENAI.iter().any(|api| apis.has(*api)))),
    }
}

fn nodes(offers: &[Arc<Offer>]) -> Vec<NodeName> {
    let mut names: Vec<NodeName> = offers.iter().map(|o| o.node.name.clone()).collect();
    names.dedup();
    names
}
