//! The tower stack around the data side: one service per connection.
//!
//! A request id for each request, a span that carries it, headers that must never be logged
//! marked as such, and a panic turned into a 500 for that one request.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use http::{HeaderName, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tower::util::BoxCloneSyncService;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tracing::Instrument;

use crate::api::route::classify;
use crate::net::{Body, BoxError, Identity, Refusal};
use crate::types::{Blame, Caller};

use super::Proxy;
use super::asked::Door;
use super::error::Failure;

/// A service for the requests of one connection.
pub type Service = BoxCloneSyncService<Request<Incoming>, Response<Body>, Infallible>;

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
    let proxy = Arc::clone(proxy);
    let inner = service_fn(move |request: Request<Body>| {
        let (proxy, door, who) = (Arc::clone(&proxy), door.clone(), who.clone());
        // Boxed here, once: the layers around it then move a pointer, not the whole request.
        let one = Box::pin(one(proxy, door, who, request));
        async move { Ok::<_, Infallible>(one.await) }
    });
    let sensitive = [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION]
        .into_iter()
        .chain(["x-api-key", "api-key", "x-goog-api-key"].map(HeaderName::from_static));
    let stack = ServiceBuilder::new()
        .layer(SetSensitiveRequestHeadersLayer::new(sensitive))
        .layer(CatchPanicLayer::custom(panicked))
        .service(inner)
        .map_request(|request: Request<Incoming>| {
            request.map(|body| body.map_err(BoxError::from).boxed_unsync())
        })
        .map_response(|response| response.map(BodyExt::boxed_unsync));
    BoxCloneSyncService::new(stack)
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
    let given = request.headers().get("x-request-id").and_then(|v| v.to_str().ok());
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
fn panicked(_: Box<dyn std::any::Any + Send>) -> Response<Body> {
    tracing::error!("a request handler panicked");
    Failure::ours("internal error").answer(crate::types::Api::Ollama, "")
}
