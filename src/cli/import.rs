//! `tailherd import FILE`: the agents and providers of an openclaw.json, as a configuration.
//!
//! In flows OpenClaw's file; out flows text to be looked at and put in its place by a person:
//! nothing is written. Keys that stand in the file are not copied: what is printed may end in a
//! terminal's history. In their place stands the variable that has to be set.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use serde_json::{Map, Value, json};

use super::{Context, Failure};
use crate::config;
use crate::telemetry::plain;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// OpenClaw's file, such as ~/.openclaw/openclaw.json.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// What of an agent is taken over.
const AGENT: &[&str] = &["model"];
/// What of a provider is taken over.
const PROVIDER: &[&str] =
    &["baseUrl", "api", "auth", "headers", "body", "models", "timeoutSeconds"];

pub(super) fn run(args: Args, context: Context<'_>) -> Result<(), Failure> {
    let file = args.file.display();
    let text = context.env.read(&args.file).with_context(|| format!("{file} cannot be read"))?;
    let theirs: Value = json5::from_str(&text).map_err(|e| anyhow!("{file}: {e}"))?;
    let mut notes = Vec::new();
    let ours = taken_over(&theirs, &mut notes);
    let text = serde_json::to_string_pretty(&ours).map_err(anyhow::Error::from)?;
    config::parse(&text, None, &*context.env)?;
    let out = context.out;
    writeln!(
        out,
        "// From {}: put it into ~/.config/tailherd/config.json5",
        plain(&file.to_string())
    )?;
    for note in notes {
        writeln!(out, "// {}", plain(&note))?;
    }
    Ok(writeln!(out, "{text}")?)
}

/// Our configuration out of theirs.
fn taken_over(theirs: &Value, notes: &mut Vec<String>) -> Value {
    let mut ours = Map::new();
    let mut agents = Map::new();
    let some = |agent: &Value, keys: &[&str]| {
        let of = agent.as_object().into_iter().flatten();
        let kept = of.filter(|(key, _)| keys.contains(&key.as_str()));
        Value::Object(kept.map(|(key, value)| (key.clone(), value.clone())).collect())
    };
    if let Some(defaults) = theirs.pointer("/agents/defaults") {
        let mut kept = some(defaults, AGENT);
        let models = defaults.get("models").and_then(Value::as_object).into_iter().flatten();
        let aliases: Map<String, Value> = models
            .filter_map(|(target, entry)| {
                Some((target.clone(), json!({ "alias": entry.get("alias")? })))
            })
            .collect();
        if !aliases.is_empty() {
            kept["models"] = Value::Object(aliases);
        }
        agents.insert("defaults".to_owned(), kept);
    }
    let entries = theirs.pointer("/agents/entries").and_then(Value::as_object);
    for (name, agent) in entries.into_iter().flatten() {
        agents.insert(name.clone(), some(agent, AGENT));
    }
    let list = theirs.pointer("/agents/list").and_then(Value::as_array);
    for agent in list.into_iter().flatten() {
        if let Some(id) = agent.get("id").and_then(Value::as_str) {
            agents.insert(id.to_owned(), some(agent, AGENT));
        }
    }
    if !agents.is_empty() {
        ours.insert("agents".to_owned(), Value::Object(agents));
    }
    let mut providers = Map::new();
    let named = theirs.pointer("/models/providers").and_then(Value::as_object);
    for (name, provider) in named.into_iter().flatten() {
        if name == config::chains::MESH {
            notes.push(format!("models.providers.{name} is this mesh, and needs no entry"));
            continue;
        }
        let mut kept = some(provider, PROVIDER);
        if let Some(key) = provider.get("apiKey") {
            kept["apiKey"] = Value::from(variable(name, key, notes));
        }
        if let Some(headers) = kept.get_mut("headers").and_then(Value::as_object_mut) {
            for (header, value) in headers {
                if value.as_str().is_some_and(|v| !v.contains("${")) && is_secret(header) {
                    *value = Value::from(variable(name, value, notes));
                }
            }
        }
        providers.insert(name.clone(), kept);
    }
    let mut models = Map::new();
    if let Some(mode) = theirs.pointer("/models/mode") {
        models.insert("mode".to_owned(), mode.clone());
    }
    if !providers.is_empty() {
        models.insert("providers".to_owned(), Value::Object(providers));
    }
    if !models.is_empty() {
        ours.insert("models".to_owned(), Value::Object(models));
    }
    Value::Object(ours)
}

/// The variable that holds a key: the one that is named, or one that has to be set.
fn variable(provider: &str, key: &Value, notes: &mut Vec<String>) -> String {
    let source = key.get("source").and_then(Value::as_str);
    if let (Some("env"), Some(id)) = (source, key.get("id").and_then(Value::as_str)) {
        return format!("${{{id}}}");
    }
    match key.as_str() {
        Some(text) if text.contains("${") || text == "ollama-local" => text.to_owned(),
        _ => {
            let name: String = provider
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
                .collect();
            notes.push(format!("the key of {provider} is not copied: set {name}_API_KEY"));
            format!("${{{name}_API_KEY}}")
        }
    }
}

fn is_secret(header: &str) -> bool {
    let header = header.to_ascii_lowercase();
    ["auth", "key", "token", "secret", "cookie"].iter().any(|part| header.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_and_providers_come_along_and_keys_do_not() {
        let theirs = json!({
            "gateway": {"port": 1},
            "agents": {
                "ownership": "explicit",
                "defaults": {
                    "model": {"primary": "ollama/gpt-oss:20b", "fallbacks": ["my-openai/gpt-4o"]},
                    "models": {"my-openai/gpt-4o": {"alias": "GPT", "streaming": true}, "x/y": {}},
                    "workspace": "/home/me",
                },
                "entries": {"coding": {"model": "ollama/qwen3-coder", "tools": {}}},
            },
            "models": {"mode": "merge", "providers": {
                "ollama": {"baseUrl": "http://127.0.0.1:11434"},
                "my-openai": {"baseUrl": "https://api.openai.com/v1", "apiKey": "sk-canary",
                    "headers": {"X-Api-Key": "sk-canary2", "X-Title": "me"}, "models": [{"id": "gpt-4o"}]},
                "groq": {"baseUrl": "https://api.groq.com/openai/v1",
                    "apiKey": {"source": "env", "provider": "default", "id": "GROQ_KEY"}, "models": []},
            }},
        });
        let mut notes = Vec::new();
        let ours = taken_over(&theirs, &mut notes);
        assert!(!ours.to_string().contains("canary"), "{ours}");
        assert!(notes.iter().any(|n| n.contains("MY_OPENAI_API_KEY")), "{notes:?}");
        assert_eq!(ours["models"]["providers"]["groq"]["apiKey"], "${GROQ_KEY}");
        assert_eq!(ours["models"]["providers"]["my-openai"]["headers"]["X-Title"], "me");
        assert!(
            ours["models"]["providers"].get("ollama").is_none() && ours.get("gateway").is_none()
        );
        let env = config::FixedEnv::default().with("MY_OPENAI_API_KEY", "k").with("GROQ_KEY", "k");
        let config = config::parse(&ours.to_string(), None, &env).unwrap();
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        assert_eq!(config.models.providers.len(), 2);
        assert_eq!(config.agents.named["coding"].models, ["ollama/qwen3-coder"]);
        assert_eq!(config.agents.aliases, [("GPT".to_owned(), "my-openai/gpt-4o".to_owned())]);
    }
}
