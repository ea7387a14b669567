//! Blocks pasted from openclaw.json: what of them we know.
//!
//! `agents` and `models.providers` are kept as JSON, so that a block works as it is; a key we
//! do not know is worth a warning, never an error. A provider whose key is missing from the
//! environment is off, with a warning.

use serde_json::{Map, Value};

use super::env::Env;
use super::error::nearest;
use super::expand::expand;

/// What may stand in one agent.
const AGENT: &[&str] =
    &["model", "models", "imageModel", "minContext", "where", "priority", "maxConcurrent"];
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

/// Warns of keys in `agents` that we do not know.
pub(super) fn agents<'a>(
    agents: impl IntoIterator<Item = (&'a String, &'a Value)>,
    warnings: &mut Vec<String>,
) {
    for (name, agent) in agents {
        let at = format!("agents.{name}");
        match (name.as_str(), agent) {
            ("entries", Value::Object(entries)) => {
                for (name, agent) in entries {
                    one_agent(&format!("{at}.{name}"), agent, warnings);
                }
            }
            (name, _) if AGENTS.contains(&name) => {}
            _ => one_agent(&at, agent, warnings),
        }
    }
}

fn one_agent(at: &str, agent: &Value, warnings: &mut Vec<String>) {
    let Some(agent) = object(at, agent, warnings) else { return };
    known(at, agent, AGENT, warnings);
    for key in ["model", "imageModel"] {
        if let Some(Value::Object(chain)) = agent.get(key) {
            known(&format!("{at}.{key}"), chain, CHAIN, warnings);
        }
    }
}

/// Fills the variables of one provider in and warns of keys we do not know; `None` if it is off.
pub(super) fn provider(
    name: &str,
    provider: &Value,
    env: &dyn Env,
    warnings: &mut Vec<String>,
) -> Option<Value> {
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
    match filled(provider, env) {
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
