//! The requests of one connection, from the head as it came to the answer that leaves: a tower
//! service for each connection, and the layers around it.
//!
//! A request id for each request, a span that carries it, headers that must never be logged
//! marked as such, and a panic turned into a 500 for that one request. A request is boxed once,
//! innermost: what is around it then moves a pointer, and no layer hides another's type.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use http::{HeaderName, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tower::ServiceBuilder;
use tower_http::sensitive_headers::{SetSensitiveRequestHeaders, SetSensitiveRequestHeadersLayer};
use tracing::Instrument;

use crate::api::route::classify;
use crate::net::{Body, BoxError, Identity, Refusal};
use crate::types::{Api, Blame, Caller};

use super::asked::Door;
use super::error::Failure;
use super::{Proxy, REQUEST_ID};

/// Headers whose values no log may show.
const SENSITIVE: [HeaderName; 6] = [
    AUTHORIZATION,
    COOKIE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
];

/// What answers the requests of one connection.
pub type Service = SetSensitiveRequestHeaders<Requests>;

/// An answer under way.
pub type Answer = BoxFuture<'static, Result<Response<Body>, Infallible>>;

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub enum Who {
    /// Whoever the connection's identity says, asked again as the connection ages.
    Connection(Arc<Identity>),
    /// Known from the start: a unix socket tells its user.
    Known(Arc<Caller>),
}

impl Who {
    async fn caller(&self) -> Result<Arc<Caller>, Refusal> {
        match self {
            Who::Connection(identity) => identity.caller().await,
            Who::Known(caller) => Ok(Arc::clone(caller)),
        }
    }
}

/// Builds the service of one connection.
pub fn service(proxy: &Arc<Proxy>, door: Door, who: Who) -> Service {
    ServiceBuilder::new().layer(SetSensitiveRequestHeadersLayer::new(SENSITIVE)).service(Requests {
        proxy: Arc::clone(proxy),
        door,
        who,
    })
}

/// The requests of one connection, without what is around them.
#[derive(Clone)]
pub struct Requests {
    proxy: Arc<Proxy>,
    door: Door,
    who: Who,
}

impl tower::Service<Request<Incoming>> for Requests {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Answer {
        let (proxy, door, who) = (Arc::clone(&self.proxy), self.door.clone(), self.who.clone());
        let request = request.map(|body| body.map_err(BoxError::from).boxed_unsync());
        // tower-http's layer for panics would box each answer's body twice more.
        let one = AssertUnwindSafe(one(proxy, door, who, request)).catch_unwind();
        Box::pin(one.map(|answer| Ok(answer.unwrap_or_else(|_| panicked()))))
    }
}

async fn one(proxy: Arc<Proxy>, door: Door, who: Who, request: Request<Body>) -> Response<Body> {
    let request_id = request_id(&request, &proxy);
    let span = tracing::info_span!("request", request_id, listener = door.kind.label());
    async move {
        match who.caller().await {
            Ok(caller) => proxy.answer(door, caller, request_id, request).await,
            Err(refusal) => {
                proxy.metrics.refused(door.kind, refusal.label());
                tracing::warn!(reason = refusal.label(), "a caller could not be told");
                let failure = Failure {
                    refused: Some(refusal.label()),
                    ..Failure::new(refusal.status(), refusal.to_string(), Blame::Caller)
                };
                failure.answer(classify(request.method(), request.uri().path()).api, &request_id)
            }
        }
    }
    .instrument(span)
    .await
}

/// The caller's own id if it is short and plain, else a new one.
fn request_id(request: &Request<Body>, proxy: &Proxy) -> String {
    let given = request.headers().get(REQUEST_ID).and_then(|v| v.to_str().ok());
    match given {
        Some(id)
            if (1..=64).contains(&id.len())
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') =>
        {
            id.to_owned()
        }
        _ => proxy.next_attempt_id(),
    }
}

/// A panic is one request's bad luck, never the program's. What it said stays out of the log:
/// it may quote what a client sent.
fn panicked() -> Response<Body> {
    tracing::error!("a request handler panicked");
    Failure::ours("internal error").answer(Api::Ollama, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a future that such a function makes.
    fn weight<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_request_is_light_to_carry() {
        // It is moved several times before it waits for the first time, and kept for as long as
        // it lasts: what is rarely needed and large is boxed where it is needed.
        let bytes = weight(one);
        assert!(bytes <= 9 * 1024, "{bytes} bytes");
    }
}
