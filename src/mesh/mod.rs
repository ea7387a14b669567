//! What sidecars tell each other: that they live, what their engines offer, who they are.
//!
//! In flows a control request of a peer whose identity is already known; out flows a small
//! JSON answer. Only this node's own engines are spoken of, and of those only what the
//! caller's rule lets it list. Two tasks speak first: [`Hellos`] over the tailnet, by which
//! nodes learn each other's keys, and [`Meets`] on the local network, by which they learn
//! whether they may use them there. One answer goes on: the stream of reports, for which the
//! reader is judged anew before each line. One question changes something: a peer may take back a
//! request of its own that still waits at a gate. Nothing is forwarded from here, and no prompt ever comes
//! here.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, ORIGIN};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::api::report::REPORTS;
use crate::api::{attempt, wire};
use crate::directory::{Directory, Offer, wire_of};
use crate::net::{Body, Connector, Identity, LanView, TailnetView, full};
use crate::telemetry::{Clock, Events};
use crate::trust::{Granted, Trust};
use crate::types::{Caller, NodeId, Timing, Verb, Verbs};

use report::Reports;

mod call;
mod greet;
mod hello;
mod meet;
mod pace;
mod report;
mod say;
mod turns;
mod withdraw;

pub use hello::Hellos;
pub use meet::Meets;
pub use report::Sources;

pub use crate::api::attempt::WITHDRAW;

/// The folder of paths that are between sidecars and never forwarded.
pub const PREFIX: &str = "/mesh/";

/// Nodes that wait to be called back; more are dropped, since they say hello again.
const CALLBACKS: usize = 64;

/// What both sides of the mesh protocol need.
#[derive(Clone)]
pub struct Parts {
    /// What is known of this node and its peers.
    pub directory: Arc<Directory>,
    /// Keys and pins.
    pub trust: Trust,
    /// What LocalAPI says.
    pub tailnet: watch::Receiver<Arc<TailnetView>>,
    /// Where the local network may be used.
    pub lan: watch::Receiver<Arc<LanView>>,
    /// Makes connections.
    pub connector: Connector,
    /// What happened, for `status`.
    pub events: Arc<Events>,
    /// The time.
    pub clock: Clock,
    /// Waits.
    pub timing: Arc<Timing>,
    /// Whether this node forgets its keys when its machine stops.
    pub ephemeral: bool,
}

/// The serving side of the mesh protocol.
pub struct Mesh {
    parts: Parts,
    /// A number drawn at start, by which a node recognises itself.
    instance: Arc<str>,
    /// Nodes that said hello and have to be dialled.
    callbacks: mpsc::Sender<NodeId>,
    /// What was last said of nodes whose hello was refused.
    said: Mutex<HashMap<NodeId, String>>,
    reports: Reports,
}

impl Mesh {
    /// The serving side, and the nodes that are to be called back.
    pub fn new(
        parts: Parts,
        reports: Sources,
        instance: Arc<str>,
    ) -> (Mesh, mpsc::Receiver<NodeId>) {
        let (callbacks, called) = mpsc::channel(CALLBACKS);
        let reports = Reports::start(reports);
        (Mesh { parts, instance, callbacks, said: Mutex::default(), reports }, called)
    }

    /// Answers a control request of a caller to whom `granted` applies. `who` says it again,
    /// later, where an answer goes on.
    pub fn answer<B>(
        &self,
        request: &Request<B>,
        caller: &Caller,
        granted: &Granted,
        who: &Arc<Identity>,
    ) -> Response<Body> {
        if !is_ours(request.headers()) {
            return empty(StatusCode::NOT_FOUND);
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, wire::PING) => self.ping(),
            (&Method::GET, wire::OFFERS) => self.offers(request, granted),
            (&Method::GET, REPORTS) if !granted.has(Verb::List) => no_access(),
            (&Method::GET, REPORTS) => {
                let stream = self.reports.stream(caller.node_id(), Arc::clone(who));
                stream.unwrap_or_else(no_access)
            }
            _ => empty(StatusCode::NOT_FOUND),
        }
    }

    /// Answers a request for a sign of life, of whoever may have one.
    pub fn alive<B>(&self, request: &Request<B>) -> Response<Body> {
        if request.method() == Method::GET && is_ours(request.headers()) {
            self.ping()
        } else {
            empty(StatusCode::NOT_FOUND)
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
            return no_access();
        }
        let snapshot = self.parts.directory.load();
        let version = env!("CARGO_PKG_VERSION");
        let may = |offer: &Offer| !offer.remote && granted.may(Verb::List, &offer.key).is_some();
        let (accepting, why) = self.reports.accepting();
        let accepting = accepting.label().to_owned();
        let offers = wire::Offers { accepting, why, ..wire_of(&snapshot, version, may) };
        let Ok((body, tag)) = offers.encode() else {
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

/// Whether a request is one of a sidecar's own: a forwarded one, or a web page's, has no
/// business at these paths.
fn is_ours(headers: &HeaderMap) -> bool {
    let ours =
        headers.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes() == wire::CONTENT_TYPE.as_bytes());
    ours && !headers.contains_key("x-tailherd-hop") && !headers.contains_key(ORIGIN)
}

fn no_access() -> Response<Body> {
    let mut response = empty(StatusCode::FORBIDDEN);
    let word = HeaderValue::from_static("access");
    response.headers_mut().insert(attempt::REFUSED, word);
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    response
}
