//! Whole answers and errors in Ollama's three dialects.

use bytes::Bytes;
use futures_util::Stream;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use std::io;

use super::spec::hex;
use super::voice::quote;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

pub(super) const JSON: &str = "application/json; charset=utf-8";
pub(super) const NDJSON: &str = "application/x-ndjson";

/// Whose error shape a path has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Native,
    OpenAi,
    Anthropic,
}

impl Dialect {
    pub(super) fn of(path: &str) -> Dialect {
        match path {
            "/v1/messages" => Dialect::Anthropic,
            p if p.starts_with("/v1/") => Dialect::OpenAi,
            _ => Dialect::Native,
        }
    }

    /// An error as this dialect says it.
    pub(super) fn error(self, status: u16, text: &str) -> Response<Body> {
        let kind = match status {
            404 => "not_found_error",
            400..=499 => "invalid_request_error",
            _ => "api_error",
        };
        let text = quote(text);
        match self {
            Dialect::Native => whole(status, JSON, format!(r#"{{"error":{text}}}"#)),
            Dialect::OpenAi => whole(
                status,
                "application/json",
                format!(
                    "{{\"error\":{{\"message\":{text},\"type\":\"{kind}\",\"param\":null,\"code\":null}}}}\n"
                ),
            ),
            Dialect::Anthropic => whole(
                status,
                "application/json",
                format!(
                    "{{\"type\":\"error\",\"error\":{{\"type\":\"{kind}\",\"message\":{text}}},\"request_id\":\"req_{}\"}}\n",
                    &hex(text.as_bytes())[..24]
                ),
            ),
        }
    }
}

/// An answer with a body of known length.
pub(super) fn whole(status: u16, kind: &str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = bare(status);
    *response.body_mut() = Full::new(body.into()).map_err(|e| match e {}).boxed_unsync();
    if let Ok(kind) = HeaderValue::from_str(kind) {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response
}

/// An answer without a body.
pub(super) fn bare(status: u16) -> Response<Body> {
    let empty = Full::new(Bytes::new()).map_err(|e| match e {}).boxed_unsync();
    let mut response = Response::new(empty);
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// A chunked answer.
pub(super) fn stream(
    kind: &'static str,
    chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Response<Body> {
    use futures_util::TryStreamExt as _;
    let mut response = bare(200);
    *response.body_mut() = StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A short stream of NDJSON lines.
pub(super) fn lines(lines: Vec<String>) -> Response<Body> {
    let chunks = lines.into_iter().map(|l| Ok(Bytes::from(l + "\n")));
    stream(NDJSON, futures_util::stream::iter(chunks.collect::<Vec<_>>()))
}

pub(super) fn no_page() -> Response<Body> {
    whole(404, "text/plain", "404 page not found")
}

pub(super) fn no_method(allow: &'static str) -> Response<Body> {
    let mut response = whole(405, "text/plain", "405 method not allowed");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}
