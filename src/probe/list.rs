//! Reading lists: `/api/tags`, `/api/ps`, `/v1/models`, LM Studio's `/api/v0/models`, a peer's
//! offers. Bytes in, rows out; a row that makes no sense is left out, a body that makes none is
//! no list.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::about::About;
use crate::api::show::{self, Shown};
use crate::api::{engine_id, wire};
use crate::directory::{EngineListing, ModelListing};
use crate::types::{Capabilities, Dial, Digest, EngineKind, ModelKey};

/// The rows of `/api/tags`.
pub(super) fn tags(body: &[u8]) -> Option<Vec<ModelListing>> {
    let rows = show::tags_rows(body)?.into_iter().map(|row| ModelListing {
        digest: row.digest,
        capabilities: row.capabilities,
        context: row.context,
        size: row.size,
        remote: row.remote,
        ..named(&row.name, row.row)
    });
    Some(rows.collect())
}

fn named(name: &str, row: Value) -> ModelListing {
    ModelListing {
        name: name.into(),
        id: None,
        digest: None,
        weights: None,
        content: None,
        capabilities: Capabilities::default(),
        context: None,
        num_ctx: None,
        size: 0,
        remote: false,
        row: Arc::new(row),
        show: None,
        ps: None,
        loaded_ctx: 0,
        loading: false,
        running: 0,
        queued: 0,
    }
}

/// What a `show` adds to a row.
pub(super) fn learn(model: &mut ModelListing, shown: &Shown) {
    model.weights.clone_from(&shown.weights);
    model.content = Some(shown.class).filter(|class| *class != 0);
    if shown.capabilities != Capabilities::default() {
        model.capabilities = shown.capabilities;
    }
    model.context = shown.context.or(model.context);
    model.num_ctx = shown.num_ctx;
}

/// Marks what `/api/ps` says is in memory. False if `body` is no such list.
///
/// Ollama has one row for each file of weights in memory, under the name by which it was
/// loaded: every model with the same weights is in memory then.
pub(super) fn loaded(models: &mut [ModelListing], body: &[u8]) -> bool {
    let Some(rows) = show::ps_rows(body) else { return false };
    for model in models.iter_mut() {
        (model.ps, model.loaded_ctx) = (None, 0);
    }
    for row in rows {
        let Ok(key) = ModelKey::parse(&row.name) else { continue };
        let by_name = |m: &&mut ModelListing| ModelKey::parse(&m.name).is_ok_and(|k| k == key);
        let Some(model) = models.iter_mut().find(by_name) else { continue };
        // 1 says that the window is not known.
        let window = row.context.unwrap_or(1);
        model.loaded_ctx = window;
        model.ps = Some(Arc::new(row.row));
        let Some(weights) = model.weights.clone() else { continue };
        for same in models.iter_mut().filter(|m| m.weights.as_ref() == Some(&weights)) {
            same.loaded_ctx = window;
        }
    }
    true
}

/// The rows of `/v1/models` of an engine that is not Ollama, each under a name that it can have
/// here; what has none comes second.
pub(super) fn openai(kind: EngineKind, body: &[u8]) -> Option<Held> {
    // These two hold what they list in memory, with the window they say.
    let in_memory = matches!(kind, EngineKind::Vllm | EngineKind::LlamaCpp);
    let sees = multimodal(body);
    let mut held = Held::default();
    for row in show::model_rows(body)? {
        let name = engine_id::listed(&row.name);
        // Of two with one name the second could never be meant.
        let key = name.as_deref().and_then(|name| ModelKey::parse(name).ok());
        let twice = held.models.iter().any(|m| ModelKey::parse(&m.name).ok() == key);
        let Some(name) = name.filter(|_| !twice) else {
            held.unlisted.push(engine_id::last(&row.name).into());
            continue;
        };
        let id = (*name != *row.name).then(|| row.name.as_str().into());
        held.models.push(ModelListing {
            id,
            context: row.context,
            size: row.row.pointer("/meta/size").and_then(Value::as_u64).unwrap_or(0),
            loaded_ctx: if in_memory { row.context.unwrap_or(1) } else { 0 },
            capabilities: match sees.contains(&row.name) || reads_images(&row.row) {
                true => Capabilities::from_words(["completion", "tools", "vision"]),
                false => Capabilities::default(),
            },
            ..named(&name, openai_row(&row, in_memory))
        });
    }
    Some(held)
}

/// The models that llama.cpp's server says it shows images to, in a list of its own beside.
fn multimodal(body: &[u8]) -> Vec<String> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let rows = body["models"].as_array().into_iter().flatten();
    let sees = rows.filter(|row| {
        let words = row["capabilities"].as_array().into_iter().flatten();
        words.filter_map(Value::as_str).any(|word| word == "multimodal")
    });
    sees.filter_map(|row| Some(row["model"].as_str()?.to_owned())).collect()
}

/// The same in a row of newer versions.
fn reads_images(row: &Value) -> bool {
    let kinds = row.pointer("/architecture/input_modalities").and_then(Value::as_array);
    kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "image"))
}

/// What others are told of a row: the rest may name files, and may be another one each time
/// (llama.cpp and vLLM say that a model was made when they are asked).
fn openai_row(row: &show::ModelRow, now: bool) -> Value {
    let mut told = json!({});
    if let Some(created) = row.row.get("created").filter(|created| created.is_i64() && !now) {
        told["created"] = created.clone();
    }
    if !row.owner.is_empty() {
        told["owned_by"] = row.owner.as_str().into();
    }
    told
}

/// Makes of what is known of models at an engine of another kind what Ollama would say of them.
pub(super) fn told(kind: EngineKind, models: &mut [ModelListing]) {
    for model in models {
        let about = About {
            name: &model.name,
            format: if kind == EngineKind::LlamaCpp { "gguf" } else { "" },
            family: kind.label(),
            context: model.context,
            size: model.size,
            can: model.capabilities,
        };
        let mut row = about.row();
        for (name, value) in model.row.as_object().into_iter().flatten() {
            row[name] = value.clone();
        }
        (model.show, model.row) = (Some(Arc::new(about.show_bytes())), Arc::new(row));
    }
}

/// What an engine holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Held {
    pub(super) models: Vec<ModelListing>,
    /// What no model can be called here.
    pub(super) unlisted: Vec<Arc<str>>,
}

/// Adds what LM Studio's own list knows: kinds, windows, what is in memory.
pub(super) fn lm_studio(models: &mut [ModelListing], body: &[u8]) {
    for row in show::model_rows(body).unwrap_or_default() {
        let row = row.row;
        let text = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or_default();
        let number = |field: &str| row.get(field).and_then(Value::as_u64);
        let is = |m: &&mut ModelListing| *m.id.as_deref().unwrap_or(&m.name) == *text("id");
        let Some(model) = models.iter_mut().find(is) else { continue };
        model.context = number("max_context_length");
        model.capabilities = match text("type") {
            "embeddings" => Capabilities::from_words(["embedding"]),
            "vlm" => Capabilities::from_words(["completion", "vision", "tools"]),
            "llm" => Capabilities::from_words(["completion", "tools"]),
            _ => Capabilities::default(),
        };
        if text("state") == "loaded" {
            model.loaded_ctx = number("loaded_context_length").unwrap_or(1).max(1);
        }
    }
}

/// A rich peer's engines. Offers that name no engine of the list are left out.
pub(super) fn offers(offers: wire::Offers, dial: &Dial) -> Vec<EngineListing> {
    let mut engines: Vec<EngineListing> = offers
        .engines
        .into_iter()
        .map(|engine| EngineListing {
            kind: engine.engine_kind(),
            apis: engine.api_set(),
            name: engine.name.into(),
            version: engine.version,
            dial: dial.clone(),
            prefix: "".into(),
            slots: engine.slots,
            default_ctx: engine.default_ctx,
            up: engine.up,
            url: String::new(),
            models: Vec::new(),
            unlisted: Vec::new(),
        })
        .collect();
    for offer in offers.offers {
        let Some(engine) = engines.iter_mut().find(|e| *e.name == *offer.engine) else { continue };
        engine.models.push(ModelListing {
            digest: offer.digest.map(|hex| Digest(hex.into())),
            weights: offer.weights.map(|hex| Digest(hex.into())),
            content: offer.class.and_then(|class| u64::from_str_radix(&class, 16).ok()),
            capabilities: offer.capabilities,
            context: offer.context,
            num_ctx: offer.num_ctx,
            size: offer.size,
            remote: offer.remote,
            ps: offer.ps.map(Arc::new),
            loaded_ctx: offer.loaded_ctx,
            loading: offer.loading,
            running: offer.inflight,
            queued: offer.queued,
            ..named(&offer.name, offer.row)
        });
    }
    engines
}
