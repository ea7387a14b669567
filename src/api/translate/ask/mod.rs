//! Requests, each direction in a file of its own.
//!
//! A request's body is changed field by field: what the provider's dialect has under another name
//! is renamed, what it has not is left out, and what nobody here knows goes on as it is.

pub(super) mod messages_chat;
pub(super) mod native_chat;
pub(super) mod native_messages;
pub(super) mod responses_chat;

use serde_json::{Map, Value, json};

use super::piece::text;
use super::{Target, Unfit};

/// Takes these fields away.
fn without(body: &mut Map<String, Value>, names: &[&str]) {
    for name in names {
        body.shift_remove(*name);
    }
}

/// Takes a field away that may be `null` as well as not there.
fn take(body: &mut Map<String, Value>, name: &str) -> Option<Value> {
    body.shift_remove(name).filter(|value| !value.is_null())
}

/// The tools a request lists, each as the other dialect has it; what has no form there is left out.
fn tools(body: &mut Map<String, Value>, tool: fn(&Value) -> Option<Value>) -> Vec<Value> {
    take(body, "tools").iter().filter_map(Value::as_array).flatten().filter_map(tool).collect()
}

/// What nobody here knows goes on as it is, unless it would be taken for something that was set.
fn rest(out: &mut Map<String, Value>, body: Map<String, Value>) {
    for (name, value) in body {
        out.entry(name).or_insert(value);
    }
}

/// What both chat requests of OpenAI's shape have: the model, and how the answer comes.
fn head(out: &mut Map<String, Value>, target: &Target, stream: bool) {
    out.insert("model".to_owned(), target.model.clone().into());
    out.insert("stream".to_owned(), stream.into());
    if stream {
        out.insert("stream_options".to_owned(), json!({ "include_usage": true }));
    }
}

/// Most tokens of the answer, under the name that the provider takes.
fn most(out: &mut Map<String, Value>, target: &Target, tokens: Option<u64>) {
    let tokens = match (tokens, target.max_tokens) {
        (Some(asked), Some(most)) => Some(asked.min(most)),
        (asked, _) => asked,
    };
    if let Some(tokens) = tokens {
        let name = if target.completion_tokens { "max_completion_tokens" } else { "max_tokens" };
        out.insert(name.to_owned(), tokens.into());
    }
}

/// `messages` as objects; anything else in it is an error of the caller's.
fn messages_of(body: &mut Map<String, Value>) -> Result<Vec<Map<String, Value>>, Unfit> {
    let list = match take(body, "messages") {
        Some(Value::Array(list)) => list,
        None => Vec::new(),
        Some(_) => return Err(Unfit::Wrong("messages is no list".to_owned())),
    };
    list.into_iter()
        .map(|message| match message {
            Value::Object(message) => Ok(message),
            _ => Err(Unfit::Wrong("messages holds what is no object".to_owned())),
        })
        .collect()
}

/// The tool calls whose answers have not come, so that an answer without an id finds its call.
#[derive(Default)]
struct Calls {
    open: Vec<(String, String)>,
    made: usize,
}

impl Calls {
    /// A call; one without an id gets one.
    fn called(&mut self, id: Option<&str>, name: &str) -> String {
        let id = id.map_or_else(
            || {
                self.made += 1;
                format!("call_{:08}", self.made)
            },
            str::to_owned,
        );
        self.open.push((id.clone(), name.to_owned()));
        id
    }

    /// An answer: to the call it names, else to the last open one of that tool, else to the
    /// first open one.
    fn answered(&mut self, id: Option<&str>, name: Option<&str>) -> Option<String> {
        let at = match (id, name) {
            (Some(id), _) => match self.open.iter().position(|(open, _)| open == id) {
                Some(at) => at,
                None => return Some(id.to_owned()),
            },
            (None, Some(name)) => self.open.iter().rposition(|(_, tool)| tool == name)?,
            (None, None) => (!self.open.is_empty()).then_some(0)?,
        };
        Some(self.open.remove(at).0)
    }
}

/// The tool calls of a native or an OpenAI message: id, name, arguments as an object.
fn calls_of(message: &Map<String, Value>) -> Vec<(Option<String>, String, Map<String, Value>)> {
    let calls = message.get("tool_calls").and_then(Value::as_array);
    let read = |call: &Value| {
        let function = &call["function"];
        let name = text(function, "name")?.to_owned();
        let arguments = match &function["arguments"] {
            Value::Object(arguments) => arguments.clone(),
            Value::String(said) => serde_json::from_str(said).unwrap_or_default(),
            _ => Map::new(),
        };
        Some((text(call, "id").map(str::to_owned), name, arguments))
    };
    calls.into_iter().flatten().filter_map(read).collect()
}

/// The images of a native message or request.
fn images_of(holder: &Map<String, Value>) -> Vec<&str> {
    let images = holder.get("images").and_then(Value::as_array);
    images.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// A native `/api/generate` as the messages of a chat.
fn as_chat(body: &mut Map<String, Value>) -> Result<Vec<Map<String, Value>>, Unfit> {
    for name in ["raw", "suffix", "context", "template"] {
        let asked = take(body, name);
        if asked.is_some_and(|value| value != false && value != "" && value != json!([])) {
            return Err(Unfit::Cannot(format!("`{name}` has no counterpart at this provider")));
        }
    }
    let said = |value: Option<Value>| match value {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    };
    let (system, prompt) = (said(take(body, "system")), said(take(body, "prompt")));
    let images = take(body, "images");
    let mut messages = Vec::new();
    let mut say = |role: &str, text: String, images: Option<Value>| {
        let mut message = Map::new();
        message.insert("role".to_owned(), role.into());
        message.insert("content".to_owned(), text.into());
        message.extend(images.map(|images| ("images".to_owned(), images)));
        messages.push(message);
    };
    if let Some(system) = system {
        say("system", system, None);
    }
    let Some(prompt) = prompt else { return Err(Unfit::Nothing) };
    say("user", prompt, images);
    Ok(messages)
}

/// What a native request says of the answer's length: -1 and -2 mean as long as it takes.
fn predict(options: &Map<String, Value>) -> Option<u64> {
    options
        .get("num_predict")
        .and_then(Value::as_i64)
        .and_then(|n| u64::try_from(n).ok())
        .filter(|n| *n > 0)
}
