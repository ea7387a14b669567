//! Blocks pasted from openclaw.json: what of them we know.
//!
//! `agents` and `models.providers` are read from JSON, so that a block works as it is; a key we
//! do not know is worth a warning, never an error. A provider whose key is missing from the
//! environment is off, with a warning.

use serde_json::{Map, Value};

use super::env::Env;
use super::error::nearest;
use super::expand::expand;
use super::hosted;
use super::run::{Agent, Agents, Place, Provider};
use crate::types::Class;

/// What may stand in one agent.
const AGENT: &[&str] =
    &["id", "model", "models", "imageModel", "minContext", "where", "priority", "maxConcurrent"];
/// Keys beside the agents themselves in OpenClaw's current form.
const AGENTS: &[&str] = &["ownership", "entries", "list"];
const CHAIN: &[&str] = &["primary", "fallbacks"];
const PROVIDER: &[&str] = &[
    "baseUrl",
    "api",
    "apiKey",
    "apiKeyFile",
    "auth",
    "headers",
    "models",
    "scope",
    "timeoutSeconds",
    "users",
    "body",
    "limit",
    "budget",
];
const MODEL: &[&str] = &[
    "id",
    "name",
    "api",
    "reasoning",
    "input",
    "cost",
    "contextWindow",
    "maxTokens",
    "compat",
    "headers",
    "contextTokens",
    "params",
];
const COST: &[&str] = &["input", "output", "cacheRead", "cacheWrite"];

/// Reads `agents`: named ones beside `defaults`, or below `entries` as OpenClaw has them now.
/// What is odd is worth a warning.
pub(super) fn agents<'a>(
    agents: impl IntoIterator<Item = (&'a String, &'a Value)>,
    warnings: &mut Vec<String>,
) -> Agents {
    let mut read = Agents::default();
    for (name, agent) in agents {
        let at = format!("agents.{name}");
        match (name.as_str(), agent) {
            ("entries", Value::Object(entries)) => {
                for (name, agent) in entries {
                    named(&mut read, &format!("{at}.{name}"), name, agent, warnings);
                }
            }
            ("list", Value::Array(list)) => {
                for (i, agent) in list.iter().enumerate() {
                    let name = agent.get("id").and_then(Value::as_str).unwrap_or_default();
                    named(&mut read, &format!("{at}[{i}]"), name, agent, warnings);
                }
            }
            ("defaults", _) => {
                read.defaults = one_agent(&at, agent, warnings);
                let models = agent.get("models").and_then(Value::as_object);
                for (target, entry) in models.into_iter().flatten() {
                    if let Some(alias) = entry.get("alias").and_then(Value::as_str) {
                        read.aliases.push((alias.to_owned(), target.clone()));
                    }
                }
            }
            (name, _) if AGENTS.contains(&name) => {}
            (name, _) => named(&mut read, &at, name, agent, warnings),
        }
    }
    // Whoever says nothing of its own does as the defaults do.
    let models = read.defaults.as_ref().map(|d| d.models.clone()).unwrap_or_default();
    for agent in read.named.values_mut().filter(|agent| agent.models.is_empty()) {
        agent.models.clone_from(&models);
    }
    read
}

fn named(read: &mut Agents, at: &str, name: &str, agent: &Value, warnings: &mut Vec<String>) {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(good) {
        warnings.push(format!("{at} is not used: `{name}` cannot be asked for as a model"));
    } else if let Some(agent) = one_agent(at, agent, warnings) {
        read.named.insert(name.to_ascii_lowercase(), agent);
    }
}

fn one_agent(at: &str, agent: &Value, warnings: &mut Vec<String>) -> Option<Agent> {
    let agent = object(at, agent, warnings)?;
    known(at, agent, AGENT, warnings);
    for key in ["model", "imageModel"] {
        if let Some(Value::Object(chain)) = agent.get(key) {
            known(&format!("{at}.{key}"), chain, CHAIN, warnings);
        }
    }
    let mut models = Vec::new();
    match agent.get("model") {
        Some(Value::String(primary)) => models.push(primary.clone()),
        Some(Value::Object(chain)) => {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let fallbacks = chain.get("fallbacks").and_then(Value::as_array);
            models.extend(chain.get("primary").and_then(text));
            models.extend(fallbacks.into_iter().flatten().filter_map(text));
        }
        _ => {}
    }
    let mut word = |key: &str, words: &[&str]| {
        let said = agent.get(key).and_then(Value::as_str)?;
        if !words.contains(&said) {
            let words = words.join(", ");
            warnings.push(format!("{at}.{key}: `{said}` is none of {words} and is not used"));
        }
        Some(said)
    };
    let place = match word("where", &["self", "mine", "mesh"]) {
        Some("self") => Some(Place::This),
        Some("mine") => Some(Place::Mine),
        Some("mesh") => Some(Place::Mesh),
        _ => None,
    };
    let priority = match word("priority", &["interactive", "batch"]) {
        Some("interactive") => Some(Class::Interactive),
        Some("batch") => Some(Class::Batch),
        _ => None,
    };
    let min_context = agent.get("minContext").and_then(Value::as_u64).unwrap_or(0);
    Some(Agent { models, min_context, place, priority })
}

/// Fills the variables of one provider in and warns of keys we do not know; `None` if it is off.
pub(super) fn provider(
    name: &str,
    provider: &Value,
    env: &dyn Env,
    warnings: &mut Vec<String>,
) -> Option<Provider> {
    let at = format!("models.providers.{name}");
    let map = object(&at, provider, warnings)?;
    known(&at, map, PROVIDER, warnings);
    for (i, model) in map.get("models").and_then(Value::as_array).into_iter().flatten().enumerate()
    {
        let at = format!("{at}.models[{i}]");
        let Some(model) = object(&at, model, warnings) else { continue };
        known(&at, model, MODEL, warnings);
        if let Some(Value::Object(cost)) = model.get("cost") {
            known(&format!("{at}.cost"), cost, COST, warnings);
        }
    }
    let read = filled(provider, env).and_then(|filled| {
        let map = filled.as_object().ok_or("it is no object")?;
        hosted::read(name, map, env)
    });
    match read {
        Ok(provider) => Some(provider),
        Err(why) => {
            warnings.push(format!("{at} is off: {why}"));
            None
        }
    }
}

fn object<'a>(
    at: &str,
    value: &'a Value,
    warnings: &mut Vec<String>,
) -> Option<&'a Map<String, Value>> {
    if !value.is_object() {
        warnings.push(format!("{at} is not an object and is not used"));
    }
    value.as_object()
}

fn known(at: &str, map: &Map<String, Value>, known: &[&str], warnings: &mut Vec<String>) {
    for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
        let hint = nearest(key, known.iter().copied())
            .map_or_else(String::new, |k| format!(" (did you mean `{k}`?)"));
        warnings.push(format!("{at}: unknown key `{key}` is not used{hint}"));
    }
}

fn filled(value: &Value, env: &dyn Env) -> Result<Value, String> {
    Ok(match value {
        Value::String(text) => Value::String(expand(text, env)?),
        Value::Array(items) => {
            Value::Array(items.iter().map(|v| filled(v, env)).collect::<Result<_, _>>()?)
        }
        Value::Object(map) => Value::Object(
            map.iter()
                .map(|(k, v)| Ok((k.clone(), filled(v, env)?)))
                .collect::<Result<_, String>>()?,
        ),
        other => other.clone(),
    })
}
