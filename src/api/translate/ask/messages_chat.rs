//! Anthropic messages to OpenAI chat completions.

use serde_json::{Map, Value, json};

use super::super::image;
use super::super::piece::{joined, text};
use super::super::{Target, Unfit};
use super::{head, messages_of, most, rest, take, tools, without};

/// Fields that only Anthropic has.
const OWN: [&str; 7] = [
    "anthropic_version",
    "betas",
    "container",
    "context_management",
    "mcp_servers",
    "output_config",
    "service_tier",
];

pub(in super::super) fn request(
    mut body: Map<String, Value>,
    target: &Target,
) -> Result<(Map<String, Value>, bool), Unfit> {
    let stream = take(&mut body, "stream").is_some_and(|stream| stream == true);
    let mut messages = Vec::new();
    let system = take(&mut body, "system").map(|system| blocks_text(&system)).unwrap_or_default();
    if !system.is_empty() {
        messages.push(json!({ "role": "system", "content": system }));
    }
    for message in messages_of(&mut body)? {
        one(&message, &mut messages);
    }
    if messages.iter().all(|message| message["role"] == "system") {
        return Err(Unfit::Wrong("messages is empty".to_owned()));
    }
    without(&mut body, &OWN);
    let mut out = Map::new();
    head(&mut out, target, stream);
    out.insert("messages".to_owned(), messages.into());
    let tools = tools(&mut body, tool);
    let choice = take(&mut body, "tool_choice");
    if !tools.is_empty() {
        out.insert("tools".to_owned(), tools.into());
        if let Some(choice) = &choice {
            out.extend(tool_choice(choice).map(|choice| ("tool_choice".to_owned(), choice)));
            if choice["disable_parallel_tool_use"] == true {
                out.insert("parallel_tool_calls".to_owned(), false.into());
            }
        }
    }
    let tokens = take(&mut body, "max_tokens").and_then(|tokens| tokens.as_u64());
    most(&mut out, target, tokens);
    for (name, theirs) in
        [("temperature", "temperature"), ("top_p", "top_p"), ("stop_sequences", "stop")]
    {
        out.extend(take(&mut body, name).map(|value| (theirs.to_owned(), value)));
    }
    let top_k = take(&mut body, "top_k").filter(|_| target.sampling);
    out.extend(top_k.map(|value| ("top_k".to_owned(), value)));
    let thinking = take(&mut body, "thinking").filter(|_| target.reasoning);
    if let Some(effort) = thinking.as_ref().and_then(effort) {
        out.insert("reasoning_effort".to_owned(), effort.into());
    }
    let metadata = take(&mut body, "metadata");
    if let Some(user) = metadata.as_ref().and_then(|metadata| text(metadata, "user_id")) {
        out.insert("user".to_owned(), user.into());
    }
    rest(&mut out, body);
    Ok((out, stream))
}

/// One message: what tools said comes first, each as a message of its own.
fn one(message: &Map<String, Value>, out: &mut Vec<Value>) {
    let content = message.get("content").cloned().unwrap_or_default();
    let role = message.get("role").and_then(Value::as_str).unwrap_or("user");
    let blocks = match content {
        Value::Array(blocks) => blocks,
        Value::String(said) => {
            out.push(json!({ "role": role, "content": said }));
            return;
        }
        _ => return,
    };
    if role == "assistant" {
        return out.extend(assistant(&blocks));
    }
    let (mut parts, mut shown) = (Vec::new(), Vec::new());
    for block in &blocks {
        match block["type"].as_str().unwrap_or_default() {
            "tool_result" => {
                let mut said = blocks_text(&block["content"]);
                if block["is_error"] == true {
                    said.insert_str(0, "Error: ");
                }
                let id = text(block, "tool_use_id").unwrap_or_default();
                out.push(json!({ "role": "tool", "tool_call_id": id, "content": said }));
                // A tool's message holds no images there: they follow as the user's.
                let list = block["content"].as_array().into_iter().flatten();
                shown.extend(list.filter_map(image::of_block));
            }
            "image" => shown.extend(image::of_block(block)),
            "text" => {
                flush(&mut shown, &mut parts);
                parts.push(json!({ "type": "text", "text": block["text"] }));
            }
            // Documents and what is newer: their text, if they have one.
            _ => parts.extend(
                text(&block["source"], "data")
                    .filter(|_| block["source"]["type"] == "text")
                    .map(|said| json!({ "type": "text", "text": said })),
            ),
        }
    }
    flush(&mut shown, &mut parts);
    if parts.is_empty() {
        return;
    }
    let words = parts.iter().all(|part| part["type"] == "text");
    let content = match words {
        true => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
            texts.join("\n").into()
        }
        false => Value::Array(parts),
    };
    out.push(json!({ "role": role, "content": content }));
}

fn flush(shown: &mut Vec<String>, parts: &mut Vec<Value>) {
    parts.extend(shown.drain(..).map(|image| image::part(&image)));
}

/// What was thought is not sent back: it was signed for somebody else.
fn assistant(blocks: &[Value]) -> Option<Value> {
    let of = |kind: &'static str| blocks.iter().filter(move |block| block["type"] == kind);
    let said: String = of("text").filter_map(|block| block["text"].as_str()).collect();
    let calls: Vec<Value> = of("tool_use")
        .map(|block| {
            let arguments = block.get("input").filter(|input| input.is_object());
            let arguments = arguments.map_or_else(|| "{}".to_owned(), ToString::to_string);
            json!({
                "id": block["id"], "type": "function",
                "function": { "name": block["name"], "arguments": arguments },
            })
        })
        .collect();
    if said.is_empty() && calls.is_empty() {
        return None;
    }
    let content = if said.is_empty() { Value::Null } else { said.into() };
    let mut message = json!({ "role": "assistant", "content": content });
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    Some(message)
}

fn blocks_text(content: &Value) -> String {
    match content {
        Value::Array(blocks) => {
            let texts: Vec<&str> =
                blocks.iter().filter_map(|block| block["text"].as_str()).collect();
            texts.join("\n")
        }
        content => joined(content),
    }
}

/// Tools that the provider would have to run itself have no counterpart.
fn tool(tool: &Value) -> Option<Value> {
    let is_own = tool.get("type").is_none_or(|kind| kind.is_null() || kind == "custom");
    if !is_own {
        return None;
    }
    let mut function = Map::new();
    function.insert("name".to_owned(), tool.get("name")?.clone());
    if let Some(words) = tool.get("description").filter(|words| !words.is_null()) {
        function.insert("description".to_owned(), words.clone());
    }
    if let Some(schema) = tool.get("input_schema") {
        function.insert("parameters".to_owned(), schema.clone());
    }
    Some(json!({ "type": "function", "function": function }))
}

fn tool_choice(choice: &Value) -> Option<Value> {
    Some(match text(choice, "type")? {
        "auto" => "auto".into(),
        "any" => "required".into(),
        "none" => "none".into(),
        "tool" => json!({ "type": "function", "function": { "name": choice["name"] } }),
        _ => return None,
    })
}

fn effort(thinking: &Value) -> Option<&'static str> {
    match text(thinking, "type")? {
        "disabled" => Some("none"),
        "enabled" => Some(match thinking["budget_tokens"].as_u64() {
            Some(..=2048) => "low",
            Some(2049..=8192) | None => "medium",
            Some(8193..) => "high",
        }),
        // It is left to the provider how much.
        _ => None,
    }
}
