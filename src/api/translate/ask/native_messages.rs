//! Ollama's chat and generate to Anthropic messages.

use serde_json::{Map, Value, json};

use super::super::image;
use super::super::piece::joined;
use super::super::{Target, Unfit};
use super::{
    Calls, as_chat, calls_of, images_of, messages_of, predict, rest, take, tools, without,
};

/// Fields that only Ollama has.
const OWN: [&str; 6] =
    ["keep_alive", "truncate", "shift", "logprobs", "top_logprobs", "stream_options"];
/// Tokens of an answer where neither the request nor the model's entry says: a number is required.
const USUAL: u64 = 4096;
/// Fewest tokens of thinking that can be asked for.
const LEAST_THINKING: u64 = 1024;

pub(in super::super) fn request(
    mut body: Map<String, Value>,
    generate: bool,
    target: &Target,
) -> Result<(Map<String, Value>, bool), Unfit> {
    let stream = take(&mut body, "stream").is_none_or(|stream| stream != false);
    let list = if generate { as_chat(&mut body)? } else { messages_of(&mut body)? };
    without(&mut body, &OWN);
    let format = take(&mut body, "format");
    let think = take(&mut body, "think");
    let options = match take(&mut body, "options") {
        Some(Value::Object(options)) => options,
        _ => Map::new(),
    };
    let (mut system, messages) = messages(list)?;
    if messages.is_empty() {
        return Err(Unfit::Nothing);
    }
    system.extend(format.as_ref().and_then(in_words));
    let asked = predict(&options);
    let most = asked.or(target.max_tokens).unwrap_or(USUAL);
    let most = target.max_tokens.map_or(most, |cap| most.min(cap));
    let thinking = think
        .as_ref()
        .filter(|_| target.reasoning)
        .and_then(budget)
        .map(|b| b.min(most.saturating_sub(1)));
    let thinking = thinking.filter(|budget| *budget >= LEAST_THINKING);

    let mut out = Map::new();
    let mut set = |name: &str, value: Value| out.insert(name.to_owned(), value);
    set("model", target.model.clone().into());
    set("max_tokens", most.into());
    set("stream", stream.into());
    if !system.is_empty() {
        set("system", system.join("\n\n").into());
    }
    set("messages", messages.into());
    let tools = tools(&mut body, tool);
    if !tools.is_empty() {
        set("tools", tools.into());
    }
    match thinking {
        // Whoever thinks takes no other sampling.
        Some(budget) => {
            set("thinking", json!({ "type": "enabled", "budget_tokens": budget }));
        }
        None => {
            if let Some(heat) = options.get("temperature").and_then(Value::as_f64) {
                set("temperature", heat.clamp(0.0, 1.0).into());
            }
            for name in ["top_p", "top_k"] {
                if let Some(value) = options.get(name).filter(|value| value.is_number()) {
                    set(name, value.clone());
                }
            }
        }
    }
    let stop: Vec<Value> = match options.get("stop") {
        Some(Value::String(word)) => vec![word.clone().into()],
        Some(Value::Array(words)) => words.clone(),
        _ => Vec::new(),
    };
    if !stop.is_empty() {
        set("stop_sequences", stop.into());
    }
    rest(&mut out, body);
    Ok((out, stream))
}

/// The system's words, and the messages: what tools said goes to the user's side, and whatever
/// one side says in a row is one message.
fn messages(list: Vec<Map<String, Value>>) -> Result<(Vec<String>, Vec<Value>), Unfit> {
    let (mut system, mut calls) = (Vec::new(), Calls::default());
    let mut sides: Vec<(&str, Vec<Value>)> = Vec::new();
    for message in list {
        let said = joined(message.get("content").unwrap_or(&Value::Null));
        let role = message.get("role").and_then(Value::as_str).unwrap_or("user");
        let mut blocks = Vec::new();
        let side = match role {
            "system" | "developer" => {
                system.extend(Some(said).filter(|said| !said.is_empty()));
                continue;
            }
            "tool" => {
                let field = |name: &str| {
                    message.get(name).and_then(Value::as_str).filter(|t| !t.is_empty())
                };
                let Some(id) = calls.answered(field("tool_call_id"), field("tool_name")) else {
                    return Err(Unfit::Wrong("a tool's answer belongs to no call".to_owned()));
                };
                blocks.push(json!({ "type": "tool_result", "tool_use_id": id, "content": said }));
                "user"
            }
            _ => {
                if !said.is_empty() {
                    blocks.push(json!({ "type": "text", "text": said }));
                }
                if role == "assistant" { "assistant" } else { "user" }
            }
        };
        blocks.extend(images_of(&message).into_iter().map(image::block));
        for (id, name, arguments) in calls_of(&message) {
            let id = calls.called(id.as_deref(), &name);
            blocks.push(json!({ "type": "tool_use", "id": id, "name": name, "input": arguments }));
        }
        match sides.last_mut() {
            Some((last, all)) if *last == side => all.extend(blocks),
            _ if blocks.is_empty() => {}
            _ => sides.push((side, blocks)),
        }
    }
    let messages = sides.into_iter().map(|(role, mut blocks)| {
        // The answers of tools have to come first.
        blocks.sort_by_key(|block| block["type"] != "tool_result");
        let lone = match blocks.as_slice() {
            [block] if block["type"] == "text" => Some(block["text"].clone()),
            _ => None,
        };
        json!({ "role": role, "content": lone.unwrap_or(blocks.into()) })
    });
    Ok((system, messages.collect()))
}

fn tool(tool: &Value) -> Option<Value> {
    let function = &tool["function"];
    let mut out = Map::new();
    out.insert("name".to_owned(), function.get("name")?.clone());
    if let Some(words) = function.get("description").filter(|words| !words.is_null()) {
        out.insert("description".to_owned(), words.clone());
    }
    let schema = function.get("parameters").filter(|schema| schema.is_object()).cloned();
    out.insert("input_schema".to_owned(), schema.unwrap_or_else(|| json!({ "type": "object" })));
    Some(out.into())
}

/// This dialect has no field for a format that all its models take: it is asked for in words.
fn in_words(format: &Value) -> Option<String> {
    match format {
        Value::String(word) if word == "json" => {
            Some("Answer with one JSON value and nothing else.".to_owned())
        }
        Value::Object(_) => Some(format!(
            "Answer with one JSON value and nothing else. It has to match this JSON Schema: {format}"
        )),
        _ => None,
    }
}

fn budget(think: &Value) -> Option<u64> {
    match think {
        Value::Bool(true) => Some(4096),
        Value::String(word) => match word.as_str() {
            "minimal" | "low" => Some(LEAST_THINKING),
            "high" => Some(16_384),
            "xhigh" | "max" | "ultra" => Some(32_768),
            "" | "none" => None,
            _ => Some(4096),
        },
        _ => None,
    }
}
