//! Whether an answer that says 200 begins with an error.
//!
//! Some providers (OpenRouter) answer 200, send comments to keep the line open, and then an
//! error. As long as nothing but comments has come, another step can still be tried, so the
//! first bytes of a hosted answer are looked at before the caller gets any.

use serde_json::Value;

/// Longest opening that is looked at.
const LONGEST: usize = 64 * 1024;

/// What an answer begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// Nothing that could be told yet: comments, the half of a line.
    Unclear,
    /// An answer.
    Answer,
    /// An error, and the status that it stands for if it says one.
    Error(Option<u16>),
}

/// Looks at the beginning of a body.
pub fn opening(content_type: &str, bytes: &[u8]) -> Opening {
    let event = content_type.starts_with("text/event-stream");
    if bytes.len() > LONGEST || !(event || content_type.starts_with("application/")) {
        return Opening::Answer;
    }
    if !event {
        // One document, or a line of Ollama's: an error begins with its name.
        let start = bytes.trim_ascii_start();
        let first = start.strip_prefix(b"[").unwrap_or(start).trim_ascii_start();
        let first = first.strip_prefix(b"{").unwrap_or(first).trim_ascii_start();
        if first.len() < 8 && !start.is_empty() {
            return Opening::Unclear;
        }
        if !first.starts_with(b"\"error\"") {
            return if start.is_empty() { Opening::Unclear } else { Opening::Answer };
        }
        let mut lines = serde_json::Deserializer::from_slice(start).into_iter::<Value>();
        return match lines.next() {
            Some(Ok(value)) => error_in(&value).unwrap_or(Opening::Answer),
            _ => Opening::Unclear,
        };
    }
    let mut rest = bytes;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let line = rest[..end].trim_ascii_end();
        rest = &rest[end + 1..];
        let Some(data) = line.strip_prefix(b"data:") else { continue };
        let value = serde_json::from_slice::<Value>(data.trim_ascii_start());
        return value.ok().and_then(|value| error_in(&value)).unwrap_or(Opening::Answer);
    }
    Opening::Unclear
}

/// The error in an item, if it is one. One that stands beside a piece of an answer came too
/// late.
fn error_in(value: &Value) -> Option<Opening> {
    let value = value.as_array().and_then(|list| list.first()).unwrap_or(value);
    let error = value.get("error").filter(|error| !error.is_null())?;
    let spoke = value.pointer("/choices/0/delta/content").and_then(Value::as_str);
    if spoke.is_some_and(|text| !text.is_empty()) {
        return None;
    }
    let code = error.get("code").and_then(|code| {
        code.as_u64().or_else(|| code.as_str().and_then(|code| code.parse().ok()))
    });
    let kind = match error.get("type").and_then(Value::as_str) {
        Some("overloaded_error") => Some(529),
        Some("rate_limit_error") => Some(429),
        Some("authentication_error" | "permission_error") => Some(401),
        Some("invalid_request_error") => Some(400),
        _ => None,
    };
    let code = code.and_then(|code| u16::try_from(code).ok()).filter(|c| (400..600).contains(c));
    Some(Opening::Error(code.or(kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_from_an_answer_by_its_first_item() {
        use Opening::{Answer, Error, Unclear};
        let sse = "text/event-stream; charset=utf-8";
        for (kind, text, want) in [
            (sse, "", Unclear),
            (sse, ": OPENROUTER PROCESSING\n\n", Unclear),
            (sse, ": P\n\ndata: {\"id\":\"x\",\"choi", Unclear),
            (sse, ": P\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n", Answer),
            (
                sse,
                ": P\n\ndata: {\"error\":{\"code\":502,\"message\":\"x\"},\"choices\":[{\"delta\":{\"content\":\"\"},\"finish_reason\":\"error\"}]}\n\n",
                Error(Some(502)),
            ),
            (
                sse,
                "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n",
                Error(Some(529)),
            ),
            (sse, "event: message_start\r\ndata: {\"type\":\"message_start\"}\r\n\r\n", Answer),
            (sse, "data: [DONE]\n\n", Answer),
            (
                "application/json",
                "{\"error\":{\"code\":\"429\",\"message\":\"x\"}}",
                Error(Some(429)),
            ),
            ("application/json", "[{ \"error\":{\"code\":503}}]", Error(Some(503))),
            ("application/json", "{\"err", Unclear),
            ("application/json", "{\"error\":null,\"choices\":[]}", Answer),
            ("application/json", "{\"id\":\"chatcmpl-1\"", Answer),
            ("application/x-ndjson", "{\"error\":\"boom\"}\n", Error(None)),
            ("application/x-ndjson", "{\"model\":\"x\"}\n", Answer),
            ("text/plain", "hello", Answer),
        ] {
            assert_eq!(opening(kind, text.as_bytes()), want, "{kind} {text}");
        }
    }
}
