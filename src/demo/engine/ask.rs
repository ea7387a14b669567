//! Reading requests as Ollama's Go code does.
//!
//! Go's decoder folds the case of keys and lets the last one win, so a body can say `model`
//! twice and mean the second. A stand-in that read it otherwise would hide that from tests.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::runner::{Keep, RunnerOptions};
use super::spec::Asked;

/// Options of the engine process, beside `num_ctx`.
const RUNNER_OPTIONS: [&str; 5] = ["num_batch", "num_gpu", "num_thread", "main_gpu", "use_mmap"];

/// A JSON object with its keys in order, doubled ones included.
#[derive(Debug, Clone, Default)]
pub(super) struct Fields(Vec<(String, Value)>);

impl Fields {
    /// Reads a body; the error is Ollama's text for it.
    pub(super) fn read(body: &[u8]) -> Result<Fields, String> {
        if body.is_empty() {
            return Err("missing request body".to_owned());
        }
        serde_json::from_slice(body).map_err(|e| {
            if e.is_eof() {
                return "unexpected EOF".to_owned();
            }
            let at = body.split(|b| *b == b'\n').take(e.line().saturating_sub(1));
            let start: usize = at.map(|l| l.len() + 1).sum();
            let c = body.get(start + e.column().saturating_sub(1)).copied().unwrap_or(b'?');
            format!("invalid character '{}' looking for beginning of value", char::from(c))
        })
    }

    /// The last value under this name, in any case, as long as it is not null.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().rev().find(|(k, v)| fold(k) == name && !v.is_null()).map(|(_, v)| v)
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }

    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.get(name).and_then(Value::as_bool)
    }

    pub(super) fn list(&self, name: &str) -> &[Value] {
        self.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// `model`, else `name`.
    pub(super) fn model(&self) -> &str {
        let said = |n| self.text(n).filter(|s| !s.is_empty());
        said("model").or_else(|| said("name")).unwrap_or_default()
    }

    /// `options.NAME` or, at the top level, NAME.
    pub(super) fn option(&self, name: &str) -> Option<&Value> {
        self.get("options").and_then(|o| o.get(name)).filter(|v| !v.is_null())
    }

    /// What decides whether a loaded engine will do.
    pub(super) fn runner_options(&self, default_ctx: u64) -> RunnerOptions {
        RunnerOptions {
            num_ctx: self.option("num_ctx").and_then(Value::as_u64).unwrap_or(default_ctx),
            shift: self.flag("shift").unwrap_or(true),
            other: RUNNER_OPTIONS
                .iter()
                .filter_map(|n| Some(((*n).to_owned(), self.option(n)?.to_string())))
                .collect(),
        }
    }

    /// `keep_alive`: a number is seconds, a text is a duration with a unit, negative is for
    /// ever. The error is Ollama's text.
    pub(super) fn keep_alive(&self) -> Result<Option<Keep>, String> {
        let seconds = match self.get("keep_alive") {
            None => return Ok(None),
            Some(Value::String(text)) => go_duration(text)?,
            Some(value) => value.as_f64().ok_or("invalid duration")?,
        };
        Ok(Some(if seconds < 0.0 {
            Keep::Forever
        } else {
            std::time::Duration::try_from_secs_f64(seconds).map_or(Keep::Forever, Keep::For)
        }))
    }

    /// What the scripts look at.
    pub(super) fn asked(&self) -> Asked {
        let messages = self.list("messages");
        Asked {
            think: self.flag("think").unwrap_or(true),
            tools: !self.list("tools").is_empty(),
            tool_result: messages.last().is_some_and(|m| {
                m.get("role").and_then(Value::as_str) == Some("tool")
                    || m.get("content").and_then(Value::as_array).is_some_and(|parts| {
                        parts.iter().any(|p| p.get("type") == Some(&"tool_result".into()))
                    })
            }),
        }
    }

    /// All text a model would read, wherever the dialect puts it.
    pub(super) fn prompt(&self) -> String {
        let mut out = String::new();
        for name in ["system", "prompt", "suffix", "input", "instructions", "messages"] {
            if let Some(value) = self.get(name) {
                collect(value, &mut out);
            }
        }
        out
    }
}

/// Adds the texts of strings, message lists and content parts.
fn collect(value: &Value, out: &mut String) {
    match value {
        Value::String(text) => out.push_str(text),
        Value::Array(items) => items.iter().for_each(|v| collect(v, out)),
        Value::Object(map) => {
            for name in ["content", "text", "thinking"] {
                if let Some(v) = map.get(name) {
                    collect(v, out);
                }
            }
        }
        _ => {}
    }
}

/// Simple case folding of the letters that fold into ASCII, as Go's decoder does it.
fn fold(key: &str) -> String {
    key.chars()
        .map(|c| match c {
            '\u{212a}' => 'k',
            '\u{17f}' => 's',
            c => c.to_ascii_lowercase(),
        })
        .collect()
}

/// Go's `time.ParseDuration` for one or more number-unit pairs, in seconds.
fn go_duration(text: &str) -> Result<f64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0.0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..unit] {
                "" => return Err(format!("time: missing unit in duration {text:?}")),
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                other => {
                    return Err(format!("time: unknown unit {other:?} in duration {text:?}"));
                }
            };
        rest = &rest[unit..];
    }
    Ok(sign * seconds)
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Fields(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_key_in_any_case_wins() {
        let model = |body: &str| Fields::read(body.as_bytes()).unwrap().model().to_owned();
        assert_eq!(model(r#"{"model":"tiny","MODEL":"secret"}"#), "secret");
        assert_eq!(model(r#"{"MoDeL":"a","model":"b"}"#), "b");
        assert_eq!(model(r#"{"mod\u0065l":"a"}"#), "a");
        assert_eq!(model(r#"{"model":"","name":"tiny"}"#), "tiny");
        let fields = Fields::read("{\"\u{212a}eep_alive\":0}".as_bytes()).unwrap();
        assert_eq!(fields.keep_alive(), Ok(Some(Keep::For(std::time::Duration::ZERO))));
    }

    #[test]
    fn errors_are_in_ollamas_words() {
        let error = |body: &str| Fields::read(body.as_bytes()).unwrap_err();
        assert_eq!(error(""), "missing request body");
        assert_eq!(error(r#"{"model":"#), "unexpected EOF");
        let keep = |v: &str| {
            Fields::read(format!(r#"{{"keep_alive":{v}}}"#).as_bytes()).unwrap().keep_alive()
        };
        assert_eq!(keep("\"10\""), Err("time: missing unit in duration \"10\"".to_owned()));
        assert_eq!(keep("\"-1\""), Err("time: missing unit in duration \"-1\"".to_owned()));
        assert_eq!(keep("-1"), Ok(Some(Keep::Forever)));
        assert_eq!(keep("\"-1s\""), Ok(Some(Keep::Forever)));
        let half = std::time::Duration::from_millis(500);
        assert_eq!(keep("0.5"), Ok(Some(Keep::For(half))));
        let long = std::time::Duration::from_secs(5400);
        assert_eq!(keep("\"1h30m\""), Ok(Some(Keep::For(long))));
    }
}
