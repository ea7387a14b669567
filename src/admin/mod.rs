//! Metrics, health, status and the page: what people and Prometheus look at.
//!
//! It only reads. Off loopback it shows metrics and health alone; over the mesh a reduced
//! status. Names from elsewhere are made harmless before they are shown.

mod explain;
mod pins;
mod requests;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use serde_json::Value;
use tokio::sync::watch;

use crate::api::browser;
use crate::api::query::Query;
use crate::config::Config;
use crate::directory::Directory;
use crate::directory::accounts::Accounts;
use crate::gate::Share;
use crate::net::{Body, LanView, TailnetView, full};
use crate::telemetry::events::timestamp;
use crate::telemetry::{Clock, Events, Metrics};
use crate::trust::{Granted, Trust};
use crate::types::{Moment, PathKind, Timing, Wall};

use requests::Has;

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What [`Admin::new`] is made from.
pub struct Parts {
    /// The picture of the mesh.
    pub directory: Arc<Directory>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is remembered.
    pub events: Arc<Events>,
    /// The time.
    pub clock: Clock,
    /// The configuration in force.
    pub config: watch::Receiver<Arc<Config>>,
    /// What is pinned.
    pub trust: Trust,
    /// The tailnet.
    pub tailnet: watch::Receiver<Arc<TailnetView>>,
    /// The local network.
    pub lan: watch::Receiver<Arc<LanView>>,
    /// What providers were asked and paid, and how they rest.
    pub accounts: Arc<Accounts>,
    /// For whom this node works.
    pub share: watch::Receiver<Share>,
    /// True from when the program stops: nobody waits here any longer.
    pub draining: watch::Receiver<bool>,
    /// All waits.
    pub timing: Arc<Timing>,
}

/// The admin service. It answers reads alone: `/metrics`, `/healthz`, `/readyz`, and on a loopback
/// address `/status`, `/requests`, `/explain` and the page.
pub struct Admin {
    parts: Parts,
    started: std::time::SystemTime,
}

impl Admin {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Arc<Admin> {
        Arc::new(Admin { parts, started: std::time::SystemTime::now() })
    }

    /// Answers a request on the admin listener, after a wait for news if it asks for that.
    pub async fn serve<B>(&self, request: &Request<B>, loopback: bool) -> Response<Body> {
        let (method, uri) = (request.method(), request.uri());
        let query = Query::read(uri.query());
        if loopback
            && *method == Method::GET
            && uri.path() == "/requests"
            && query.is_set("wait")
            && browser::admin(request.headers()).is_ok()
        {
            let (has, draining) = (Has::read(&query), self.parts.draining.clone());
            let (events, most) = (&self.parts.events, self.parts.timing.requests_wait);
            requests::news(events, &self.run(), &has, most, draining).await;
        }
        self.answer(request, loopback)
    }

    /// Answers a request on the admin listener at once. `loopback` says whether the listener is on a
    /// loopback address.
    pub fn answer<B>(&self, request: &Request<B>, loopback: bool) -> Response<Body> {
        if loopback && browser::admin(request.headers()).is_err() {
            return text(StatusCode::FORBIDDEN, "");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed");
        }
        match request.uri().path() {
            "/metrics" => self.metrics(),
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => self.ready(),
            "/status" if loopback => json(&self.status()),
            "/requests" if loopback => {
                let has = Has::read(&Query::read(request.uri().query()));
                json(&requests::requests(&self.parts.events, &self.run(), &has))
            }
            "/explain" if loopback => self.explain(&Query::read(request.uri().query())),
            "/" if loopback => typed("text/html; charset=utf-8", PAGE),
            "/page.js" if loopback => typed("text/javascript; charset=utf-8", SCRIPT),
            _ => text(StatusCode::NOT_FOUND, "404 page not found"),
        }
    }

    /// The answer to somebody who may not ask here.
    pub fn refuse(&self, status: StatusCode) -> Response<Body> {
        text(status, "")
    }

    /// `/metrics`, in Prometheus' text format.
    pub fn metrics(&self) -> Response<Body> {
        let snapshot = self.parts.directory.load();
        let metrics = &self.parts.metrics;
        for node in snapshot.nodes.iter().filter(|n| !n.is_this()) {
            let name = node.name.as_str();
            for kind in [PathKind::Loopback, PathKind::Tailnet, PathKind::Lan] {
                let mut paths = node.paths.iter().filter(|path| path.kind == kind);
                // The first one that lives stands for its kind.
                match paths.clone().find(|path| path.cell.is_alive()).or_else(|| paths.next()) {
                    Some(path) => {
                        metrics.peer(name, kind, path.cell.is_alive(), path.cell.rtt());
                    }
                    None => metrics.no_path(name, kind),
                }
            }
        }
        metrics.pins(pins::live(&self.parts.trust.view(), wall()));
        typed("text/plain; version=0.0.4; charset=utf-8", metrics.render())
    }

    /// `/readyz`: whether a request would find a model.
    pub fn ready(&self) -> Response<Body> {
        if self.parts.directory.load().models.is_empty() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "no model is known yet\n");
        }
        text(StatusCode::OK, "ok\n")
    }

    /// The whole status, for this machine.
    pub fn status(&self) -> Value {
        let config = Arc::clone(&self.parts.config.borrow());
        let events = &self.parts.events;
        let seen = status::Seen {
            trust: &self.parts.trust.view(),
            tailnet: &self.parts.tailnet.borrow().clone(),
            lan: &self.parts.lan.borrow().clone(),
            share: &self.parts.share.borrow().clone(),
            wall: wall(),
            now: self.now(),
        };
        status::status(&self.parts.directory.load(), &config, events, self.started, &seen)
    }

    /// `/explain`: where a request for a model would go now.
    fn explain(&self, query: &Query) -> Response<Body> {
        let config = Arc::clone(&self.parts.config.borrow());
        let snapshot = self.parts.directory.load();
        match explain::explain(&snapshot, &config, &self.parts.accounts, query, self.now()) {
            Ok(explained) => json(&explained),
            Err(error) => {
                let mut response = json(&serde_json::json!({ "error": error }));
                *response.status_mut() = StatusCode::BAD_REQUEST;
                response
            }
        }
    }

    /// Which run of the program this is: the numbers of requests begin anew with each.
    fn run(&self) -> String {
        timestamp(self.started)
    }

    /// What a peer may see.
    pub fn reduced_status(&self, granted: &Granted) -> Value {
        status::reduced(&self.parts.directory.load(), granted, self.now())
    }

    fn now(&self) -> Moment {
        self.parts.clock.now()
    }
}

fn wall() -> Wall {
    Wall::of(std::time::SystemTime::now())
}

fn typed(kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

fn text(status: StatusCode, body: &'static str) -> Response<Body> {
    let mut response = typed("text/plain; charset=utf-8", body);
    *response.status_mut() = status;
    response
}

fn json(value: &Value) -> Response<Body> {
    typed("application/json", value.to_string())
}
