//! What belongs to this node: its disk, its account, its memory.
//!
//! Pull, push, create, copy, delete, blobs and account routes go to this node's own Ollama
//! unless the caller names another node and has the verb for it there. Requests that nobody
//! in the mesh can serve come here too, so that Ollama itself says what is wrong with them.
//! Bodies stream; nothing here is ever tried twice.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;

use crate::api::peek::{Peeked, Scanner};
use crate::api::{
    self,
    headers::{self, Target},
};
use crate::config::Config;
use crate::directory::{Endpoint, Look, Node, Snapshot};
use crate::net::{Body, BoxError, Lease};
use crate::types::{Dial, ModelKey, NameError, NodeKind, Op, Outcome, RequestedModel, Source};

use super::asked::Asked;
use super::error::{self, Failure};
use super::plan::{self, find_node, local_ollama};
use super::replay::Held;
use super::serve::served_by;
use super::way::{self, Ways};
use super::{Proxy, Running, may};

/// Routes of this node's own disk and account.
pub(crate) async fn this_node(
    px: &Arc<Proxy>,
    config: &Config,
    asked: &Asked,
    body: Body,
) -> Result<Response<Body>, Failure> {
    let running = px.enter(config)?;
    let op = asked.route.op;
    if asked.is_mesh() && matches!(op, Op::Account | Op::Other) {
        return Err(Failure::not_found(api::error::NOT_FOUND));
    }
    if config.offline
        && let Some(answer) = offline(asked)
    {
        return answer;
    }
    let snapshot = px.directory.load();
    // A blob has no model in its body, and gigabytes of it: it streams.
    let (held, names) = if op == Op::Blob || asked.head.method == http::Method::GET {
        (Held::new(body, &px.memory, 0, u64::MAX), Named::default())
    } else {
        let limits = &config.limits;
        let held = Held::new(body, &px.memory, limits.replay_bytes, limits.body_bytes);
        let mut scanner = Scanner::new();
        while let Some(data) = held.next().await? {
            scanner.feed(&data);
        }
        let peeked = scanner.finish();
        if asked.is_mesh() {
            super::question::plain_only(&peeked)?;
        }
        (held, Named::of(peeked))
    };
    // Each model that is named has to be one the caller may do this to: what a copy is made
    // from and what it overwrites.
    for key in &names.keys {
        may(asked, Some(key), false)?;
    }
    if names.keys.is_empty() {
        may(asked, None, false)?;
    }
    let node = match names.node.clone().or_else(|| asked.named_node()) {
        Some(name) => find_node(&snapshot, &name)?,
        None => this(&snapshot)?,
    };
    if !node.is_this() && asked.is_mesh() {
        return Err(Failure::not_found(api::error::NOT_FOUND));
    }
    if node.is_this()
        && !asked.is_mesh()
        && matches!(op, Op::Delete | Op::Copy | Op::Push)
        && let Some(model) = &names.model
        && let Some(failure) = elsewhere(&snapshot, model, op)
    {
        return Err(failure);
    }
    let edits = names.edits;
    let body = if edits.is_empty() {
        held.attempt(Vec::new(), 0)
    } else {
        let frames = held.frames();
        let skip = frames.len();
        held.attempt(crate::api::peek::rewrite_all(&frames, &edits), skip)
    };
    let landing = (op == Op::Pull && !asked.is_mesh()).then(|| node.name.to_string());
    forward(px, asked, &node, body, false, landing, running).await
}

/// What a body of these routes names.
#[derive(Default)]
struct Named {
    model: Option<RequestedModel>,
    /// All of them.
    keys: Vec<ModelKey>,
    node: Option<crate::types::NodeName>,
    edits: Vec<(std::ops::Range<usize>, Bytes)>,
}

impl Named {
    fn of(peeked: Peeked) -> Named {
        let mut named = Named::default();
        let Peeked { model, name, source, destination, from, .. } = &peeked;
        for field in [model, name, source, destination, from].into_iter().flatten() {
            let Ok(model) = RequestedModel::parse(&field.value) else { continue };
            named.keys.push(model.key.clone());
            if let Some(node) = &model.node {
                named.edits.push((field.range.clone(), crate::api::peek::quote(&model.bare)));
                named.node.get_or_insert_with(|| node.clone());
            }
            named.model.get_or_insert(model);
        }
        named.edits.sort_by_key(|(range, _)| range.start);
        named
    }
}

/// The model is on another node only: say where, and how to mean it.
fn elsewhere(snapshot: &Snapshot, model: &RequestedModel, op: Op) -> Option<Failure> {
    let known = snapshot.models.get(&model.key)?;
    if known.offers.iter().chain(&known.variants).any(|o| o.node.is_this()) {
        return None;
    }
    let node = &known.offers.first()?.node.name;
    let name = &model.bare;
    let command = match op {
        Op::Delete => format!("ollama rm {name}@{node}"),
        Op::Copy => format!("ollama cp {name}@{node} NEW@{node}"),
        _ => format!("ollama push {name}@{node}"),
    };
    Some(Failure::not_found(format!(
        "model '{name}' not found on this device (it is on {node}: {command})"
    )))
}

/// An unload means this node's memory: a peer's model is not unloaded by its bare name.
pub(crate) fn unload_is_here(
    snapshot: &Snapshot,
    asked: &Asked,
    model: &RequestedModel,
) -> Result<(), Failure> {
    if model.node.is_some() || asked.named_node().is_some() {
        return Ok(());
    }
    let Some(known) = snapshot.models.get(&model.key) else { return Ok(()) };
    if known.offers.iter().chain(&known.variants).any(|o| o.node.is_this()) {
        return Ok(());
    }
    let Some(offer) = known.offers.first() else { return Ok(()) };
    let (name, node) = (&model.bare, &offer.node.name);
    let state = if offer.cell.is_loaded() { "runs" } else { "is" };
    Err(Failure::caller(
        StatusCode::BAD_REQUEST,
        format!("{name} {state} on {node}: ollama stop {name}@{node}"),
    ))
}

/// A request without a readable model: Ollama's own words if there is an Ollama here.
pub(crate) async fn no_model(
    px: &Arc<Proxy>,
    asked: &Asked,
    held: &Held,
    decoded: bool,
    error: NameError,
    running: Running,
) -> Result<Response<Body>, Failure> {
    let snapshot = px.directory.load();
    if asked.is_mesh() || local_ollama(&snapshot).is_none() {
        return Err(match (held.read(), error) {
            (0, _) if asked.head.method == http::Method::POST => {
                Failure::caller(StatusCode::BAD_REQUEST, "missing request body")
            }
            (_, NameError::Missing) if is_cut(&held.frames().concat()) => {
                Failure::caller(StatusCode::BAD_REQUEST, "unexpected EOF")
            }
            (_, error) => error.into(),
        });
    }
    ask(px, asked, held, decoded, None, running).await
}

/// Whether a body is the beginning of JSON and no more.
fn is_cut(body: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(body).is_err_and(|e| e.is_eof())
}

/// Hands a request to this node's Ollama as it is.
pub(crate) async fn ask(
    px: &Arc<Proxy>,
    asked: &Asked,
    held: &Held,
    decoded: bool,
    named: Option<(&RequestedModel, &Peeked)>,
    running: Running,
) -> Result<Response<Body>, Failure> {
    let snapshot = px.directory.load();
    let node = this(&snapshot)?;
    if local_ollama(&snapshot).is_none() {
        return Err(match named {
            Some((model, _)) if model.source == Source::Cloud => {
                Failure::not_found(format!("model '{}' needs an Ollama on this node", model.bare))
            }
            Some((model, _)) => plan::unknown(asked, model),
            None => Failure::not_found(api::error::NOT_FOUND),
        });
    }
    let mut body = None;
    if let Some((model, peeked)) = named
        && *model.bare != *model.spelling
        && let Some(field) = peeked.wanted()
    {
        let frames = held.frames();
        let skip = frames.len();
        let edits = vec![(field.range.clone(), crate::api::peek::quote(&model.bare))];
        body = Some(held.attempt(crate::api::peek::rewrite_all(&frames, &edits), skip));
    }
    let body = body.unwrap_or_else(|| held.attempt(Vec::new(), 0));
    forward(px, asked, &node, body, decoded, None, running).await
}

fn this(snapshot: &Snapshot) -> Result<Arc<Node>, Failure> {
    snapshot.nodes.first().cloned().ok_or_else(|| Failure::ours("the directory is empty"))
}

/// One try at a node, the answer streamed as it comes.
async fn forward(
    px: &Arc<Proxy>,
    asked: &Asked,
    node: &Arc<Node>,
    body: Body,
    decoded: bool,
    landing: Option<String>,
    running: Running,
) -> Result<Response<Body>, Failure> {
    let arrived = px.clock.now();
    let Way { lease, dial, prefix, target } = reach(px, node).await?;
    let mut path = format!("{prefix}{}", asked.route.upstream);
    if let Some(query) = asked.head.uri.query() {
        path.push('?');
        path.push_str(query);
    }
    let mut request = Request::new(body);
    *request.method_mut() = asked.head.method.clone();
    *request.uri_mut() = path.parse().map_err(|_| Failure::ours("the path cannot be sent on"))?;
    let mut head = asked.head.headers.clone();
    headers::request(&mut head, target);
    head.remove(CONTENT_LENGTH);
    if decoded {
        head.remove(CONTENT_ENCODING);
    }
    head.insert(HOST, super::ask::host_of(&dial));
    if target == Target::Mesh {
        head.insert("x-tailherd-hop", http::HeaderValue::from_static("1"));
    }
    *request.headers_mut() = head;
    let sent = lease.send(request).await;
    let response =
        sent.map_err(|e| Failure::exhausted(format!("{} broke off ({e})", node.name)))?;
    px.directory.look_at(&node.id, Look::List);
    let (mut head, upstream) = response.into_parts();
    headers::response(head.status, &mut head.headers).map_err(|reject| {
        Failure::new(StatusCode::BAD_GATEWAY, reject.to_string(), crate::types::Blame::Upstream)
    })?;
    let streams = head
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"application/x-ndjson"));
    let note = landing.filter(|_| head.status.is_success() && streams).map(|node| {
        let line = serde_json::json!({ "status": format!("pulling to {node}") });
        Bytes::from(format!("{line}\n"))
    });
    let noted = note.is_some();
    let then = Arc::clone(px);
    let id = node.id.clone();
    let meter = px.meter(asked, "", node.name.as_str());
    let after = After(Some(Box::new(move || {
        drop(running);
        if let Some(meter) = meter {
            meter.finish(Outcome::Done, then.clock.now().since(arrived));
        }
        then.directory.look_at(&id, Look::List);
    })));
    let body = Tail { note, upstream: Box::pin(upstream), _after: after };
    let mut response = Response::from_parts(head, body.boxed_unsync());
    if noted {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    served_by(&mut response, node.name.as_str(), 1);
    Ok(response)
}

/// A connection to where a request is to go.
struct Way {
    lease: Lease,
    dial: Dial,
    prefix: Arc<str>,
    target: Target,
}

/// Connects to this node's Ollama, or to a peer on the first of its ways that is open. The
/// local network is no way for this: nobody changes another node from there.
async fn reach(px: &Proxy, node: &Arc<Node>) -> Result<Way, Failure> {
    let unreachable =
        |why: &str| Failure::exhausted(format!("{} cannot be reached ({why})", node.name));
    if node.is_this() {
        let ollama = |e: &&Arc<Endpoint>| e.kind == crate::types::EngineKind::Ollama;
        let endpoint = node.endpoints.iter().find(ollama).ok_or_else(|| {
            Failure::exhausted("this node has no Ollama (tailherd doctor says where it looked)")
        })?;
        let (dial, prefix) = (endpoint.dial.clone(), endpoint.prefix.clone());
        let lease = way::connect(px, &node.id, &dial, None).await;
        let lease = lease.map_err(|fail| unreachable(&fail.text))?;
        return Ok(Way { lease, dial, prefix, target: Target::Engine });
    }
    let target = if node.kind == NodeKind::Rich { Target::Mesh } else { Target::Bare };
    let (mut ways, mut last) = (Ways::of(node), unreachable("it is over the tailnet only"));
    while let Some(path) = ways.take() {
        if matches!(path.dial, Dial::Lan { .. }) {
            continue;
        }
        match way::connect(px, &node.id, &path.dial, None).await {
            Ok(lease) => {
                let (dial, prefix) = (path.dial.clone(), path.prefix.clone());
                return Ok(Way { lease, dial, prefix, target });
            }
            Err(fail) => {
                ways.failed(&px.directory, path, fail.reason);
                last = unreachable(&fail.text);
            }
        }
    }
    Err(last)
}

/// What `offline` answers instead of the account's routes.
fn offline(asked: &Asked) -> Option<Result<Response<Body>, Failure>> {
    let json = |text: &'static str| {
        Some(Ok(error::plain(StatusCode::OK, "application/json; charset=utf-8", text)))
    };
    match (asked.route.op, &*asked.route.upstream) {
        (Op::Account, "/api/status") => json(r#"{"cloud":{"disabled":true,"source":"config"}}"#),
        (Op::Account, "/api/experimental/model-recommendations") => {
            json(r#"{"recommendations":[]}"#)
        }
        (Op::Pull | Op::Push | Op::Account, path) => Some(Err(Failure::refused(
            "offline",
            format!("{path} needs the internet, and offline is on (tailherd offline off)"),
        ))),
        _ => None,
    }
}

/// Something to do when a body ends or is dropped.
struct After(Option<Box<dyn FnOnce() + Send>>);

impl Drop for After {
    fn drop(&mut self) {
        if let Some(after) = self.0.take() {
            after();
        }
    }
}

/// A body behind a first line of our own.
struct Tail {
    note: Option<Bytes>,
    upstream: std::pin::Pin<Box<crate::net::PooledBody>>,
    _after: After,
}

impl http_body::Body for Tail {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
        if let Some(note) = self.note.take() {
            return std::task::Poll::Ready(Some(Ok(http_body::Frame::data(note))));
        }
        self.upstream.as_mut().poll_frame(cx).map_err(Into::into)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self.note {
            Some(_) => http_body::SizeHint::default(),
            None => self.upstream.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_a_body_names_is_checked() {
        for (body, want) in [
            (r#"{"source":"mine","destination":"yours"}"#, vec!["mine:latest", "yours:latest"]),
            (r#"{"model":"mine","from":"yours"}"#, vec!["mine:latest", "yours:latest"]),
            (r#"{"model":"","name":"mine"}"#, vec!["mine:latest"]),
        ] {
            let mut scanner = Scanner::new();
            scanner.feed(body.as_bytes());
            let named = Named::of(scanner.finish());
            assert_eq!(named.keys.iter().map(ModelKey::short).collect::<Vec<_>>(), want, "{body}");
        }
    }
}
