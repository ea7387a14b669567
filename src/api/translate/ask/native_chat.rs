//! Ollama's chat and generate to OpenAI chat completions.

use serde_json::{Map, Value, json};

use super::super::image;
use super::super::piece::joined;
use super::super::{Target, Unfit};
use super::{
    Calls, as_chat, calls_of, head, images_of, messages_of, most, predict, rest, take, without,
};

/// Fields that only Ollama has.
const OWN: [&str; 4] = ["keep_alive", "truncate", "shift", "stream_options"];
/// Options that OpenAI's dialect has under the same name.
const SAME: [&str; 6] =
    ["temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty"];
/// Options that some who speak it have: Ollama's name, theirs.
const SAMPLING: [(&str, &str); 3] =
    [("top_k", "top_k"), ("min_p", "min_p"), ("repeat_penalty", "repetition_penalty")];

pub(in super::super) fn request(
    mut body: Map<String, Value>,
    generate: bool,
    target: &Target,
) -> Result<(Map<String, Value>, bool), Unfit> {
    let stream = take(&mut body, "stream").is_none_or(|stream| stream != false);
    let list = if generate { as_chat(&mut body)? } else { messages_of(&mut body)? };
    if list.is_empty() {
        return Err(Unfit::Nothing);
    }
    without(&mut body, &OWN);
    let format = take(&mut body, "format");
    let think = take(&mut body, "think");
    let options = match take(&mut body, "options") {
        Some(Value::Object(options)) => options,
        _ => Map::new(),
    };
    let mut out = Map::new();
    head(&mut out, target, stream);
    out.insert("messages".to_owned(), messages(list)?.into());
    match take(&mut body, "tools") {
        Some(Value::Array(tools)) if !tools.is_empty() => {
            out.insert("tools".to_owned(), tools.into());
        }
        _ => {}
    }
    if let Some(format) = format.as_ref().and_then(response_format) {
        out.insert("response_format".to_owned(), format);
    }
    if let Some(effort) = think.as_ref().filter(|_| target.reasoning).and_then(effort) {
        out.insert("reasoning_effort".to_owned(), effort.into());
    }
    for name in SAME {
        if let Some(value) = options.get(name).filter(|value| !value.is_null()) {
            out.insert(name.to_owned(), value.clone());
        }
    }
    if target.sampling {
        for (name, theirs) in SAMPLING {
            if let Some(value) = options.get(name).filter(|value| !value.is_null()) {
                out.insert(theirs.to_owned(), value.clone());
            }
        }
    }
    most(&mut out, target, predict(&options));
    rest(&mut out, body);
    Ok((out, stream))
}

fn messages(list: Vec<Map<String, Value>>) -> Result<Vec<Value>, Unfit> {
    let mut calls = Calls::default();
    list.into_iter().map(|message| one(message, &mut calls)).collect()
}

fn one(mut message: Map<String, Value>, calls: &mut Calls) -> Result<Value, Unfit> {
    let content = message.get("content").cloned().unwrap_or_default();
    let role = message.get("role").and_then(Value::as_str).unwrap_or("user").to_owned();
    let mut out = Map::new();
    out.insert("role".to_owned(), role.clone().into());
    if role == "tool" {
        let (id, name) = (take(&mut message, "tool_call_id"), take(&mut message, "tool_name"));
        let id = id.as_ref().and_then(Value::as_str).filter(|id| !id.is_empty());
        let Some(id) = calls.answered(id, name.as_ref().and_then(Value::as_str)) else {
            return Err(Unfit::Wrong("a tool's answer belongs to no call".to_owned()));
        };
        out.insert("tool_call_id".to_owned(), id.into());
    }
    let images: Vec<Value> = images_of(&message).into_iter().map(image::part).collect();
    let called: Vec<Value> = calls_of(&message)
        .into_iter()
        .map(|(id, name, arguments)| {
            let id = calls.called(id.as_deref(), &name);
            let arguments = Value::Object(arguments).to_string();
            json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
        })
        .collect();
    let said = joined(&content);
    let content = match (images.is_empty(), said.is_empty() && !called.is_empty()) {
        (true, true) => Value::Null,
        (true, false) if content.is_array() => content,
        (true, false) => said.into(),
        (false, _) => {
            let words = (!said.is_empty()).then(|| json!({ "type": "text", "text": said }));
            words.into_iter().chain(images).collect()
        }
    };
    out.insert("content".to_owned(), content);
    if !called.is_empty() {
        out.insert("tool_calls".to_owned(), called.into());
    }
    // What was thought is not sent back: most take no such field.
    without(&mut message, &["role", "content", "images", "tool_calls", "thinking"]);
    out.extend(message);
    Ok(out.into())
}

fn response_format(format: &Value) -> Option<Value> {
    match format {
        Value::String(word) if word == "json" => Some(json!({ "type": "json_object" })),
        Value::Object(_) => Some(json!({
            "type": "json_schema", "json_schema": { "name": "schema", "schema": format },
        })),
        _ => None,
    }
}

/// `true` leaves it to the provider how much.
fn effort(think: &Value) -> Option<&str> {
    match think {
        Value::Bool(false) => Some("none"),
        Value::String(word) if !word.is_empty() => Some(word),
        _ => None,
    }
}
