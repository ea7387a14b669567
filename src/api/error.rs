//! Error bodies in the three dialects, as Ollama writes them.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::json::quote;
use crate::types::Api;

/// Ollama's text for a path it does not have (`text/plain`).
pub const NOT_FOUND: &str = "404 page not found";

/// Ollama's text for a method a path does not have (`text/plain`, with `Allow`).
pub const METHOD_NOT_ALLOWED: &str = "405 method not allowed";

/// The content type and body of an error, in the caller's dialect.
///
/// `request_id` goes into Anthropic's form only; Ollama's own ids look like `req_` and 24
/// hex digits. (Ollama refuses cloud models under `/v1` in its native form: for that pass
/// [`Api::Ollama`].)
pub fn body(api: Api, status: StatusCode, text: &str, request_id: &str) -> (HeaderValue, Bytes) {
    let message = quote(text);
    match api {
        Api::Ollama => (
            HeaderValue::from_static("application/json; charset=utf-8"),
            Bytes::from(format!("{{\"error\":{message}}}")),
        ),
        Api::Messages => (
            HeaderValue::from_static("application/json"),
            Bytes::from(format!(
                "{{\"type\":\"error\",\"error\":{{\"type\":\"{}\",\"message\":{message}}},\"request_id\":{}}}\n",
                anthropic_type(status),
                quote(request_id),
            )),
        ),
        Api::Chat | Api::Completions | Api::Responses | Api::Embeddings | Api::OpenAi => (
            HeaderValue::from_static("application/json"),
            Bytes::from(format!(
                "{{\"error\":{{\"message\":{message},\"type\":\"{}\",\"param\":null,\"code\":null}}}}\n",
                openai_type(status),
            )),
        ),
    }
}

/// The native body of a streamed or unary error, without its newline.
pub(super) fn native(text: &str) -> String {
    format!("{{\"error\":{}}}", quote(text))
}

/// The text of an error body in any dialect, for messages of our own that quote it; at most
/// the first 64 KiB are read.
pub fn text_of(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Shape {
        #[serde(default)]
        error: serde_json::Value,
        #[serde(default)]
        message: Option<String>,
    }
    let body = body.get(..64 * 1024).unwrap_or(body);
    let shape: Shape = serde_json::from_slice(body).ok()?;
    match shape.error {
        serde_json::Value::String(text) => Some(text),
        serde_json::Value::Object(map) => {
            map.get("message").and_then(|m| m.as_str()).map(str::to_owned)
        }
        _ => shape.message,
    }
}

fn openai_type(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST => "invalid_request_error",
        StatusCode::NOT_FOUND => "not_found_error",
        _ => "api_error",
    }
}

fn anthropic_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        _ => "api_error",
    }
}
