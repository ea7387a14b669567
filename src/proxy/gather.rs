//! Answers that come from the directory alone, without waiting for anyone.
//!
//! The root, the version, preflights, lists, `show` of a model whose description is known,
//! and the fixed answers for paths that do not exist.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, LOCATION};
use http::{Method, Response, StatusCode};

use crate::api::route::{Class, redirect_body};
use crate::api::{self, browser, show, union};
use crate::directory::{Offer, Snapshot};
use crate::net::Body;
use crate::types::{EngineKind, ModelKey, NodeKind, NodeName, Op, RequestedModel, Verb};

use super::asked::Asked;
use super::error::{self, Failure, full, plain};
use super::plan::{Plan, find_node};
use super::serve::served_by;
use super::{Proxy, Settings, listed};

const JSON: &str = "application/json; charset=utf-8";

/// Answers that need nothing but the request head.
pub(crate) fn fixed(asked: &Asked) -> Option<Response<Body>> {
    let text = |status, body: &'static str| Some(plain(status, "text/plain", body));
    match &asked.route.class {
        Class::Reserved | Class::NotFound => text(StatusCode::NOT_FOUND, api::error::NOT_FOUND),
        Class::Refused => text(StatusCode::BAD_REQUEST, "400 this path can be read in two ways"),
        Class::MethodNotAllowed => Some(not_allowed(asked.route.allow)),
        Class::Redirect { status, to } => Some(redirect(asked, *status, to)),
        _ => None,
    }
}

fn not_allowed(allow: &'static str) -> Response<Body> {
    let text = api::error::METHOD_NOT_ALLOWED;
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "text/plain", text);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

fn redirect(asked: &Asked, status: u16, to: &str) -> Response<Body> {
    let to = match asked.head.uri.query() {
        Some(query) => format!("{to}?{query}"),
        None => to.to_owned(),
    };
    let mut response = match asked.head.method {
        Method::GET => {
            let body = redirect_body(status, &to);
            plain(StatusCode::OK, "text/html; charset=utf-8", body)
        }
        _ => Response::new(full(Bytes::new())),
    };
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::TEMPORARY_REDIRECT);
    if let Ok(location) = HeaderValue::from_str(&to) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// The root, the version, preflights: answered also while the engine is down.
pub(crate) fn here(
    px: &Proxy,
    settings: &Settings,
    asked: &Asked,
) -> Result<Response<Body>, Failure> {
    let response = match asked.route.op {
        Op::Preflight => {
            let (request, allow) = (&asked.head.headers, asked.route.allow);
            match browser::preflight(request, &settings.origins, allow) {
                Some(headers) => {
                    let mut response = Response::new(full(Bytes::new()));
                    *response.status_mut() = StatusCode::NO_CONTENT;
                    *response.headers_mut() = headers;
                    response
                }
                None if allow.is_empty() => {
                    plain(StatusCode::NOT_FOUND, "text/plain", api::error::NOT_FOUND)
                }
                None => not_allowed(allow),
            }
        }
        Op::Version => {
            let version = version(&px.directory.load());
            plain(StatusCode::OK, JSON, format!(r#"{{"version":{}}}"#, serde_json::json!(version)))
        }
        _ => plain(StatusCode::OK, "text/plain; charset=utf-8", "Ollama is running"),
    };
    Ok(bodiless_for_head(asked, response))
}

/// This node's Ollama's version; while there is none, the lowest of the peers', because
/// clients switch features on by it.
fn version(snapshot: &Snapshot) -> String {
    let ollamas = |this: bool| {
        snapshot
            .nodes
            .iter()
            .filter(move |n| n.is_this() == this)
            .flat_map(|n| &n.endpoints)
            .filter(|e| e.kind == crate::types::EngineKind::Ollama)
            .filter_map(|e| e.version.clone())
    };
    ollamas(true)
        .next()
        .or_else(|| ollamas(false).min_by_key(|v| numbers(v)))
        .unwrap_or_else(|| "0.0.0".to_owned())
}

fn numbers(version: &str) -> Vec<u64> {
    version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

/// `/api/tags`, `/v1/models`, `/api/ps`.
pub(crate) fn union(
    px: &Proxy,
    settings: &Settings,
    asked: &Asked,
) -> Result<Response<Body>, Failure> {
    let snapshot = px.directory.load();
    let pinned = match asked.named_node() {
        Some(name) if asked.is_mesh() => {
            return Err(Failure::not_found(format!("node '{name}' not found")));
        }
        Some(name) => Some(find_node(&snapshot, &name)?),
        None => None,
    };
    let body = match (asked.route.op, &pinned, &asked.mesh_rule) {
        (Op::Tags, None, None) => listed::tags(settings, &snapshot),
        (Op::Models, None, None) => listed::models(settings, &snapshot),
        (op, pinned, rule) => {
            let listed =
                |key: &ModelKey| rule.as_ref().is_none_or(|r| r.may(Verb::List, key).is_some());
            let from = |offer: &Offer| match pinned {
                Some(node) => offer.node.id == node.id,
                None => rule.is_none() || (offer.node.is_this() && !offer.remote),
            };
            let offers = snapshot
                .models
                .values()
                .filter(|m| listed(&m.key))
                .flat_map(|m| m.offers.iter().chain(&m.variants).filter(|o| from(o)));
            let per_node = asked.head.uri.query().is_some_and(|q| q.contains("per_node=1"));
            match op {
                Op::Ps => ps(offers, per_node),
                op => list(offers, op),
            }
        }
    };
    let kind = if asked.route.op == Op::Models { "application/json" } else { JSON };
    Ok(bodiless_for_head(asked, plain(StatusCode::OK, kind, body)))
}

/// A list answer over these offers: one row per name.
fn list<'a>(offers: impl Iterator<Item = &'a Arc<Offer>>, op: Op) -> Bytes {
    let mut names: Vec<(&ModelKey, &Offer, Vec<NodeName>)> = Vec::new();
    for offer in offers {
        match names.iter_mut().find(|(key, ..)| **key == offer.key) {
            Some((.., nodes)) => nodes.push(offer.node.name.clone()),
            None => names.push((&offer.key, offer, vec![offer.node.name.clone()])),
        }
    }
    let rows: Vec<union::UnionRow<'_>> =
        names.iter().map(|(_, offer, nodes)| union::UnionRow { row: &offer.row, nodes }).collect();
    if op == Op::Models { union::models(&rows) } else { union::tags(&rows) }
}

/// `/api/ps` over these offers: what is in memory, and where.
fn ps<'a>(offers: impl Iterator<Item = &'a Arc<Offer>>, per_node: bool) -> Bytes {
    let mut names: Vec<(&ModelKey, Vec<(NodeName, &serde_json::Value)>)> = Vec::new();
    for offer in offers.filter(|o| o.cell.is_loaded()) {
        let Some(row) = offer.ps.as_deref() else { continue };
        let instance = (offer.node.name.clone(), row);
        match names.iter_mut().find(|(key, _)| **key == offer.key) {
            Some((_, instances)) => instances.push(instance),
            None => names.push((&offer.key, vec![instance])),
        }
    }
    let rows: Vec<union::PsRow<'_>> =
        names.iter().map(|(_, instances)| union::PsRow { instances }).collect();
    union::ps(&rows, per_node)
}

/// `show` and `/v1/models/:m` of a peer's model, from what is known: a late `show` silently
/// takes a client's tools away. This node's own engine is asked itself.
pub(crate) fn known(asked: &Asked, plan: &Plan, model: &RequestedModel) -> Option<Response<Body>> {
    let offer = plan.offers.first()?;
    let live = offer.node.is_this() && offer.endpoint.up && offer.node.kind == NodeKind::This;
    match asked.route.op {
        // What leaves the node never says where its files are: the kept description of an own
        // model is for programs here, so a peer gets it without them.
        Op::Show if asked.is_mesh() => {
            let body = show::blank_blob_path(offer.show.as_deref()?);
            Some(plain(StatusCode::OK, JSON, body))
        }
        Op::Show if !live || offer.endpoint.kind != EngineKind::Ollama => {
            let body = offer.show.as_deref()?;
            let mut response = plain(StatusCode::OK, JSON, Bytes::clone(body));
            served_by(&mut response, offer.node.name.as_str(), 0);
            Some(response)
        }
        // Other engines than Ollama have no such route.
        Op::Model if !live || asked.is_mesh() || offer.endpoint.kind != EngineKind::Ollama => {
            let body = union::model(&offer.row, &model.spelling);
            let mut response = plain(StatusCode::OK, "application/json", body);
            served_by(&mut response, offer.node.name.as_str(), 0);
            Some(response)
        }
        _ => None,
    }
}

fn bodiless_for_head(asked: &Asked, mut response: Response<Body>) -> Response<Body> {
    // hyper sends no body for HEAD, and takes the length from it: as Ollama does for `/`,
    // whose HEAD carries the type and no length.
    if asked.head.method == Method::HEAD {
        let kind = response.headers().get(CONTENT_TYPE).cloned();
        *response.body_mut() = error::full(Bytes::new());
        if let Some(kind) = kind {
            response.headers_mut().insert(CONTENT_TYPE, kind);
        }
    }
    response
}
