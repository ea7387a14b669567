//! One question to another sidecar, on a connection that carries nothing else.
//!
//! In: a byte stream that `net` made, a path and what to say. Out: what was answered, or why
//! it cannot be used. Control calls never share a connection with requests, so nothing that is
//! forwarded can ever end up at a control path.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::api::hello::{self, HelloNo};
use crate::api::wire;
use crate::net::{Body, Io, full};

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// Nothing came in time.
    #[error("no answer within {0:?}")]
    Slow(Duration),
    /// The connection broke.
    #[error("{0}")]
    Broke(#[from] hyper::Error),
    /// It said no.
    #[error("it refused: {why}")]
    Refused {
        /// How.
        status: StatusCode,
        /// Why, as it says.
        why: String,
    },
    /// The answer is none.
    #[error("its answer cannot be read: {0}")]
    Unreadable(String),
}

/// A connection for questions. Dropping it closes it.
pub(super) struct Line {
    sender: SendRequest<Body>,
    driver: JoinHandle<()>,
}

impl Line {
    /// Begins HTTP on a connection.
    pub(super) async fn open(io: Box<dyn Io>) -> Result<Line, CallError> {
        let (sender, connection) = handshake(TokioIo::new(io)).await?;
        let driver = tokio::spawn(async move {
            // An error shows at the question, too.
            let _ = connection.await;
        });
        Ok(Line { sender, driver })
    }

    /// Whether another question may be asked on it.
    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Says something at `path` and reads the answer.
    pub(super) async fn ask<Q: Serialize, A: DeserializeOwned>(
        &mut self,
        path: &'static str,
        say: &Q,
        limit: Duration,
    ) -> Result<A, CallError> {
        let unreadable = |error: serde_json::Error| CallError::Unreadable(error.to_string());
        let body = serde_json::to_vec(say).map_err(unreadable)?;
        let mut request = Request::new(full(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static(path);
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_static("mesh"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(wire::CONTENT_TYPE));
        let asked = async {
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, hello::MOST_BYTES).collect().await;
            let body = body.map_err(|error| CallError::Unreadable(error.to_string()))?.to_bytes();
            match head.status {
                StatusCode::OK => hello::read(&body).map_err(unreadable),
                status => Err(CallError::Refused { status, why: why(status, &body) }),
            }
        };
        timeout(limit, asked).await.unwrap_or(Err(CallError::Slow(limit)))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What a refusal says, cut so that it can be shown.
fn why(status: StatusCode, body: &[u8]) -> String {
    match hello::read::<HelloNo>(body) {
        Ok(no) => no.why,
        Err(_) => status.to_string(),
    }
}

/// An answer with a body in the words of sidecars.
pub(super) fn answer<T: Serialize>(status: StatusCode, say: &T) -> Response<Body> {
    // Plain data always has a JSON form.
    let body = serde_json::to_vec(say).unwrap_or_default();
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    let ours = HeaderValue::from_static(wire::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, ours);
    response
}

/// What was said in a request, if it is short enough, whole, and came in time.
pub(super) async fn said<B, T>(body: B, most: usize, limit: Duration) -> Result<T, String>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<crate::net::BoxError>,
    T: DeserializeOwned,
{
    let read = Limited::new(body, most).collect();
    match timeout(limit, read).await {
        Ok(Ok(body)) => hello::read(&body.to_bytes()).map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("nothing was said within {limit:?}")),
    }
}
