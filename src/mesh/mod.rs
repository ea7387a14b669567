//! What this node tells other sidecars: that it lives, and what its own engines offer.
//!
//! In flows a control request of a peer, whose identity is already known; out flows a small
//! JSON answer. Only this node's own engines are spoken of, and of those only what the
//! caller's rule lets it list. Nothing is forwarded from here, and no prompt ever comes here.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, ORIGIN};
use http::{Method, Request, Response, StatusCode};

use crate::api::wire;
use crate::directory::{Directory, Offer, wire_of};
use crate::net::{Body, full};
use crate::trust::Granted;
use crate::types::{Verb, Verbs};

/// The folder of paths that are between sidecars and never forwarded.
pub const PREFIX: &str = "/mesh/";

/// The serving side of the mesh protocol.
pub struct Mesh {
    /// What is known of this node.
    pub directory: Arc<Directory>,
    /// A number drawn at start, by which a node recognises itself.
    pub instance: Arc<str>,
}

impl Mesh {
    /// Answers a control request of a caller to whom `granted` applies.
    pub fn answer<B>(&self, request: &Request<B>, granted: &Granted) -> Response<Body> {
        let headers = request.headers();
        let ours = headers
            .get(CONTENT_TYPE)
            .is_some_and(|v| v.as_bytes() == wire::CONTENT_TYPE.as_bytes());
        // A forwarded request or a web page has no business here.
        if !ours || headers.contains_key("x-tailherd-hop") || headers.contains_key(ORIGIN) {
            return empty(StatusCode::NOT_FOUND);
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, wire::PING) => self.ping(),
            (&Method::GET, wire::OFFERS) => self.offers(request, granted),
            _ => empty(StatusCode::NOT_FOUND),
        }
    }

    fn ping(&self) -> Response<Body> {
        let mut response = empty(StatusCode::NO_CONTENT);
        if let Ok(instance) = HeaderValue::from_str(&self.instance) {
            response.headers_mut().insert(wire::INSTANCE, instance);
        }
        response
    }

    fn offers<B>(&self, request: &Request<B>, granted: &Granted) -> Response<Body> {
        if granted.verbs() == Verbs::NONE {
            return empty(StatusCode::FORBIDDEN);
        }
        let snapshot = self.directory.load();
        let version = env!("CARGO_PKG_VERSION");
        let may = |offer: &Offer| !offer.remote && granted.may(Verb::List, &offer.key).is_some();
        let Ok((body, tag)) = wire_of(&snapshot, version, may).encode() else {
            return empty(StatusCode::INTERNAL_SERVER_ERROR);
        };
        let same =
            request.headers().get(IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == tag.as_bytes());
        let mut response = if same {
            empty(StatusCode::NOT_MODIFIED)
        } else {
            let mut response = Response::new(full(body));
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static(wire::CONTENT_TYPE));
            response
        };
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        if let Ok(instance) = HeaderValue::from_str(&self.instance) {
            response.headers_mut().insert(wire::INSTANCE, instance);
        }
        response
    }
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    response
}
