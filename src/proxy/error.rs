//! The one place that turns a failure into an answer for a client, in its dialect.
//!
//! In flow failures as they arose, with whose fault they were and whether another try is
//! allowed; out flow responses. Texts are Ollama's where Ollama has one, because clients
//! recognise them.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};

use crate::api;
use crate::api::attempt::REFUSED;
use crate::api::report::HEADER;
use crate::net::Body;
pub(crate) use crate::net::full;
use crate::types::{Api, Blame, NameError, Outcome};

use super::replay::ReadError;

/// What a provider said of a failure, as a body of the caller's dialect and its type.
pub(crate) fn retold(
    dialect: Api,
    status: StatusCode,
    text: &str,
    request_id: &str,
) -> (HeaderValue, Bytes) {
    api::error::body(dialect, status, text, request_id)
}

/// A request that ends without an engine's answer.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// The status the client gets.
    pub(crate) status: StatusCode,
    /// What it is told. Never holds an upstream's body, a prompt or a key.
    pub(crate) text: String,
    /// Whose fault it is.
    pub(crate) blame: Blame,
    /// When to come back.
    pub(crate) retry_after: Option<Duration>,
    /// Everything was tried: SDKs need not try again (`x-should-retry: false`).
    pub(crate) exhausted: bool,
    /// A word for the other sidecar (`x-tailherd-refused`) and for `tailherd_refused_total`.
    pub(crate) refused: Option<&'static str>,
    /// How the offer stands that was asked for, for the other sidecar.
    pub(crate) row: Option<HeaderValue>,
    /// Sent without a body, as Ollama does for a refused Host or Origin.
    pub(crate) bare: bool,
    /// Whether the metrics have it already, with the model and the nodes that were tried.
    pub(crate) counted: bool,
}

impl Failure {
    /// The caller's own mistake.
    pub(crate) fn caller(status: StatusCode, text: impl Into<String>) -> Failure {
        Failure::new(status, text, Blame::Caller)
    }

    /// A rule said no.
    pub(crate) fn refused(why: &'static str, text: impl Into<String>) -> Failure {
        Failure { refused: Some(why), ..Failure::new(StatusCode::FORBIDDEN, text, Blame::Caller) }
    }

    /// A refused Host or Origin: 403 and nothing else, exactly as Ollama.
    pub(crate) fn silent(why: &'static str) -> Failure {
        Failure { bare: true, ..Failure::refused(why, "") }
    }

    /// All that could answer was tried and failed.
    pub(crate) fn exhausted(text: impl Into<String>) -> Failure {
        Failure {
            exhausted: true,
            ..Failure::new(StatusCode::SERVICE_UNAVAILABLE, text, Blame::Upstream)
        }
    }

    /// Nobody has the model.
    pub(crate) fn not_found(text: impl Into<String>) -> Failure {
        Failure::new(StatusCode::NOT_FOUND, text, Blame::Caller)
    }

    /// Something here is not as it should be.
    pub(crate) fn ours(text: impl Into<String>) -> Failure {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, text, Blame::Us)
    }

    pub(crate) fn new(status: StatusCode, text: impl Into<String>, blame: Blame) -> Failure {
        Failure {
            status,
            text: text.into(),
            blame,
            retry_after: None,
            exhausted: false,
            refused: None,
            row: None,
            bare: false,
            counted: false,
        }
    }

    /// How such a request counts.
    pub(crate) fn outcome(&self) -> Outcome {
        match self.blame {
            Blame::Caller => Outcome::Refused,
            Blame::Upstream | Blame::Us => Outcome::UpstreamError,
        }
    }

    /// The answer, in the caller's dialect.
    pub(crate) fn answer(&self, dialect: Api, request_id: &str) -> Response<Body> {
        let (kind, body) = if self.bare {
            (None, Bytes::new())
        } else {
            let (kind, body) = api::error::body(dialect, self.status, &self.text, request_id);
            (Some(kind), body)
        };
        let mut response = Response::new(full(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if let Some(kind) = kind {
            headers.insert(CONTENT_TYPE, kind);
        }
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if self.exhausted {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if let Some(why) = self.refused {
            headers.insert(REFUSED, HeaderValue::from_static(why));
        }
        if let Some(row) = &self.row {
            headers.insert(HEADER, row.clone());
        }
        response
    }
}

impl From<NameError> for Failure {
    fn from(error: NameError) -> Failure {
        Failure::caller(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Failure {
        let status = match &error {
            ReadError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            ReadError::Pause => StatusCode::REQUEST_TIMEOUT,
            ReadError::Client(_) => StatusCode::BAD_REQUEST,
        };
        Failure::caller(status, error.to_string())
    }
}

/// An engine's refusal that reached us in other words than the caller's: head and body in its
/// dialect.
pub(crate) fn engine_said(
    dialect: Api,
    status: StatusCode,
    text: &str,
    request_id: &str,
) -> (http::HeaderMap, Bytes) {
    let (kind, body) = api::error::body(dialect, status, text, request_id);
    (http::HeaderMap::from_iter([(CONTENT_TYPE, kind)]), body)
}

/// A plain answer.
pub(crate) fn plain(
    status: StatusCode,
    kind: &'static str,
    body: impl Into<Bytes>,
) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
