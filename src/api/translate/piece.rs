//! What an answer is made of, whoever gave it and whoever reads it.

use serde_json::{Map, Value};

/// One piece of an answer, in the order in which the answer has them.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    /// Something thought.
    Thinking(String),
    /// Something said.
    Text(String),
    /// A tool that is to be called.
    Call(Call),
    /// Tokens: the last word on each number counts.
    Usage(Usage),
    /// Why it ended.
    Stop(Stop),
    /// Fields that nobody here knows, for whoever reads the answer.
    Other(Map<String, Value>),
    /// It failed.
    Error(String),
}

/// A tool call.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    /// Its name for the answer to it.
    pub(super) id: String,
    /// The tool's name.
    pub(super) name: String,
    /// What the tool is given.
    pub(super) arguments: Map<String, Value>,
}

impl Call {
    /// From arguments as text, which an empty one may be.
    pub(super) fn read(id: String, name: String, arguments: &str) -> Result<Call, String> {
        let text = if arguments.trim().is_empty() { "{}" } else { arguments };
        match serde_json::from_str(text) {
            Ok(arguments) => Ok(Call { id, name, arguments }),
            Err(_) => Err(format!("the arguments of the tool call `{name}` are no JSON object")),
        }
    }

    /// Its arguments as text.
    pub(super) fn text(&self) -> String {
        Value::Object(self.arguments.clone()).to_string()
    }
}

/// Tokens of a request; what nobody said is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Usage {
    /// Of the prompt, those from a cache included.
    pub(super) prompt: Option<u64>,
    /// Of those, from a cache.
    pub(super) cached: Option<u64>,
    /// Of the answer.
    pub(super) output: Option<u64>,
    /// Of those, thought.
    pub(super) reasoning: Option<u64>,
}

impl Usage {
    /// Takes over what is said later.
    pub(super) fn update(&mut self, later: Usage) {
        self.prompt = later.prompt.or(self.prompt);
        self.cached = later.cached.or(self.cached);
        self.output = later.output.or(self.output);
        self.reasoning = later.reasoning.or(self.reasoning);
    }

    /// All tokens.
    pub(super) fn total(&self) -> u64 {
        self.prompt.unwrap_or(0).saturating_add(self.output.unwrap_or(0))
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Stop {
    /// It was said.
    #[default]
    End,
    /// There was no room for more.
    Length,
    /// Tools are to be called.
    Tools,
    /// A word came at which to stop; which one, if that is known.
    Word(Option<String>),
    /// It was refused or filtered.
    Refusal,
}

/// A string at that name, empty ones and others left out.
pub(super) fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name)?.as_str().filter(|text| !text.is_empty())
}

/// The text of a message's content: a string, or parts of which those that are text are joined.
pub(super) fn joined(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

/// What an `error` says, however it is shaped.
pub(super) fn error_text(error: &Value) -> String {
    let said = match error {
        Value::String(said) => Some(said.as_str()),
        // Some wrap theirs in an array.
        Value::Array(errors) => return errors.first().map(error_text).unwrap_or_default(),
        error => error["message"].as_str().or_else(|| error["error"].as_str()),
    };
    match said {
        Some(said) => said.to_owned(),
        None if error["error"].is_object() => error_text(&error["error"]),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_error_is_understood_in_each_shape_that_was_seen() {
        for error in [
            json!("no"),
            json!({ "message": "no", "code": 429 }),
            json!([{ "error": { "code": 429, "message": "no" } }]),
            json!({ "error": "no" }),
            json!({ "error": { "message": "no" } }),
        ] {
            assert_eq!(error_text(&error), "no", "{error}");
        }
        assert_eq!(error_text(&json!({ "code": 7 })), r#"{"code":7}"#);
    }

    #[test]
    fn arguments_are_an_object_or_an_error() {
        let read = |text: &str| Call::read("1".into(), "f".into(), text);
        assert_eq!(read(" ").unwrap().text(), "{}");
        assert_eq!(read(r#"{"b":1,"a":2}"#).unwrap().text(), r#"{"b":1,"a":2}"#);
        for text in ["[]", "7", "{", "null"] {
            assert!(read(text).unwrap_err().contains("`f`"), "{text}");
        }
    }
}
