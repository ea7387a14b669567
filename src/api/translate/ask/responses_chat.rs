//! OpenAI responses to OpenAI chat completions.

use serde_json::{Map, Value, json};

use super::super::piece::text;
use super::super::{Target, Unfit};
use super::{head, most, rest, take, tools, without};

/// Fields about what the provider would keep or add, which there is none of in a chat.
const OWN: [&str; 12] = [
    "background",
    "context_management",
    "conversation",
    "include",
    "max_tool_calls",
    "previous_response_id",
    "prompt",
    "prompt_cache_key",
    "prompt_cache_retention",
    "service_tier",
    "store",
    "truncation",
];

pub(in super::super) fn request(
    mut body: Map<String, Value>,
    target: &Target,
) -> Result<(Map<String, Value>, bool), Unfit> {
    let stream = take(&mut body, "stream").is_some_and(|stream| stream == true);
    for name in ["previous_response_id", "conversation", "prompt"] {
        if body.get(name).is_some_and(|value| !value.is_null()) {
            return Err(Unfit::Cannot(format!("`{name}` means what only its provider has kept")));
        }
    }
    if body.get("background") == Some(&Value::Bool(true)) {
        return Err(Unfit::Cannot("`background` has no counterpart at this provider".to_owned()));
    }
    let mut messages = Vec::new();
    if let Some(Value::String(words)) = take(&mut body, "instructions") {
        messages.push(json!({ "role": "system", "content": words }));
    }
    match take(&mut body, "input") {
        Some(Value::String(words)) => messages.push(json!({ "role": "user", "content": words })),
        Some(Value::Array(items)) => {
            for item in &items {
                one(item, &mut messages)?;
            }
        }
        _ => return Err(Unfit::Wrong("input is missing".to_owned())),
    }
    without(&mut body, &OWN);
    body.shift_remove("stream_options");
    let mut out = Map::new();
    head(&mut out, target, stream);
    out.insert("messages".to_owned(), messages.into());
    let tools = tools(&mut body, tool);
    let choice = take(&mut body, "tool_choice");
    let parallel = take(&mut body, "parallel_tool_calls");
    if !tools.is_empty() {
        out.insert("tools".to_owned(), tools.into());
        out.extend(choice.and_then(tool_choice).map(|choice| ("tool_choice".to_owned(), choice)));
        out.extend(parallel.map(|parallel| ("parallel_tool_calls".to_owned(), parallel)));
    }
    let form = take(&mut body, "text").and_then(|said| response_format(&said["format"]));
    out.extend(form.map(|form| ("response_format".to_owned(), form)));
    let reasoning = take(&mut body, "reasoning").filter(|_| target.reasoning);
    if let Some(effort) = reasoning.as_ref().and_then(|reasoning| text(reasoning, "effort")) {
        out.insert("reasoning_effort".to_owned(), effort.into());
    }
    let tokens = take(&mut body, "max_output_tokens").and_then(|tokens| tokens.as_u64());
    most(&mut out, target, tokens);
    body.retain(|_, value| !value.is_null());
    rest(&mut out, body);
    Ok((out, stream))
}

/// One item of the input.
fn one(item: &Value, out: &mut Vec<Value>) -> Result<(), Unfit> {
    match item["type"].as_str().unwrap_or("message") {
        "message" => {
            let role = match text(item, "role").unwrap_or("user") {
                "developer" => "system",
                role => role,
            };
            let content = content(&item["content"])?;
            // What is said before calls of the same turn stands with them.
            out.push(json!({ "role": role, "content": content }));
        }
        "function_call" => {
            let call = json!({
                "id": item["call_id"], "type": "function",
                "function": {
                    "name": item["name"], "arguments": text(item, "arguments").unwrap_or("{}"),
                },
            });
            match out.last_mut().filter(|last| last["role"] == "assistant") {
                Some(last) => match last["tool_calls"].as_array_mut() {
                    Some(calls) => calls.push(call),
                    None => last["tool_calls"] = json!([call]),
                },
                None => {
                    out.push(json!({ "role": "assistant", "content": null, "tool_calls": [call] }))
                }
            }
        }
        "function_call_output" => {
            let output = &item["output"];
            let said = match output {
                Value::String(said) => said.clone(),
                Value::Array(parts) => {
                    parts.iter().filter_map(|part| part["text"].as_str()).collect()
                }
                Value::Null => String::new(),
                other => other.to_string(),
            };
            out.push(json!({ "role": "tool", "tool_call_id": item["call_id"], "content": said }));
        }
        // What was thought is not sent back: most take no such field.
        "reasoning" => {}
        kind => {
            return Err(Unfit::Cannot(format!(
                "an input item `{kind}` has no counterpart at this provider"
            )));
        }
    }
    Ok(())
}

/// Text alone is a string; with images it is parts.
fn content(content: &Value) -> Result<Value, Unfit> {
    let Some(parts) = content.as_array() else {
        return Ok(content.as_str().unwrap_or_default().into());
    };
    let mut out: Vec<Value> = Vec::new();
    for part in parts {
        match part["type"].as_str().unwrap_or("input_text") {
            "input_text" | "output_text" | "text" => {
                out.push(json!({ "type": "text", "text": text(part, "text").unwrap_or_default() }));
            }
            "refusal" => {
                let said = text(part, "refusal").unwrap_or_default();
                out.push(json!({ "type": "text", "text": said }));
            }
            "input_image" if part["image_url"].is_string() => {
                let mut url = json!({ "url": part["image_url"] });
                if part["detail"].is_string() {
                    url["detail"] = part["detail"].clone();
                }
                out.push(json!({ "type": "image_url", "image_url": url }));
            }
            kind => {
                return Err(Unfit::Cannot(format!(
                    "content of the kind `{kind}` has no counterpart at this provider"
                )));
            }
        }
    }
    let words = out.iter().all(|part| part["type"] == "text");
    Ok(match words {
        true => out.iter().filter_map(|part| part["text"].as_str()).collect::<String>().into(),
        false => out.into(),
    })
}

/// Tools that the provider would have to run itself have no counterpart.
fn tool(tool: &Value) -> Option<Value> {
    if tool["type"] != "function" {
        return None;
    }
    let mut function = tool.as_object()?.clone();
    function.shift_remove("type");
    function.retain(|_, value| !value.is_null());
    Some(json!({ "type": "function", "function": function }))
}

fn tool_choice(choice: Value) -> Option<Value> {
    match &choice {
        Value::String(_) => Some(choice),
        _ if choice["type"] == "function" => {
            Some(json!({ "type": "function", "function": { "name": choice["name"] } }))
        }
        _ => None,
    }
}

fn response_format(format: &Value) -> Option<Value> {
    match text(format, "type")? {
        "json_object" => Some(json!({ "type": "json_object" })),
        "json_schema" => {
            let mut schema = format.as_object()?.clone();
            schema.shift_remove("type");
            schema.retain(|_, value| !value.is_null());
            Some(json!({ "type": "json_schema", "json_schema": schema }))
        }
        _ => None,
    }
}
