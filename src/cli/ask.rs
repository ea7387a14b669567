//! Asks the tailherd that runs on this machine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use serde_json::Value;
use tokio::sync::watch;

use crate::config::Config;
use crate::net::{Connector, Pool, TailnetView};
use crate::telemetry::{Clock, words};
use crate::types::{Dial, NodeId, Timing};

/// Far more than the largest mesh needs.
const MAX: usize = 64 << 20;

/// `GET /status` of the admin listener.
pub(super) async fn status(config: &Config) -> anyhow::Result<Value> {
    admin(config, "/status", Timing::default().head).await
}

/// Where a request like that would go.
pub(super) async fn explain(config: &Config, query: &str) -> anyhow::Result<Value> {
    admin(config, &format!("/explain?{query}"), Timing::default().head).await
}

/// The last requests. Where the query asks to wait for news, the answer may take a while.
pub(super) async fn requests(config: &Config, query: &str) -> anyhow::Result<Value> {
    let Timing { head, requests_wait, .. } = Timing::default();
    admin(config, &format!("/requests?{query}"), head + requests_wait).await
}

/// What the admin listener answers, as JSON.
async fn admin(config: &Config, target: &str, limit: Duration) -> anyhow::Result<Value> {
    let Some(addr) = config.admin_listen else {
        bail!("`admin.listen` is null in the configuration, so there is nobody to ask");
    };
    ensure!(
        addr.ip().is_loopback(),
        "`admin.listen` is {addr}: off loopback only metrics and health are served"
    );
    let answer = look_within(addr, target, limit).await.with_context(|| {
        format!("no tailherd answers at {addr} (start it with `tailherd serve`)")
    })?;
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    if let Some(error) = body["error"].as_str() {
        bail!("{}", words(error));
    }
    ensure!(answer.status.is_success(), "what answers at {addr} says {}", answer.status);
    ensure!(body.is_object(), "what answers at {addr} is no tailherd");
    Ok(body)
}

/// What somebody on this machine answered.
pub(super) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// Whether a tailherd made it: no engine sets such headers.
    pub(super) fn is_tailherd(&self) -> bool {
        self.headers.keys().any(|name| name.as_str().starts_with("x-tailherd-"))
    }

    /// Whether it is a list in OpenAI's shape.
    pub(super) fn is_list(&self) -> bool {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        self.status.is_success() && body["data"].is_array()
    }
}

/// Asks whoever listens on this machine; `Err` also if nobody does.
pub(super) async fn look(addr: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    look_within(addr, path, Timing::default().head).await
}

async fn look_within(addr: SocketAddr, path: &str, limit: Duration) -> anyhow::Result<Answer> {
    let timing = Timing::default();
    let lease = pool(&timing).acquire(&NodeId::This, &Dial::Loopback(addr)).await?;
    let request = Request::get(path)
        .header(header::HOST, addr.to_string())
        .body(Empty::new().map_err(|never| match never {}).boxed_unsync())?;
    let answer = async {
        let response = lease.send(request).await.map_err(|e| anyhow::anyhow!("{e}"))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX).collect().await;
        let body = body.map_err(|e| anyhow::anyhow!("{e}"))?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    };
    tokio::time::timeout(limit, answer).await.context("no answer in time")?
}

/// Whether anybody takes connections there.
pub(super) async fn is_open(addr: SocketAddr) -> bool {
    pool(&Timing::default()).acquire(&NodeId::This, &Dial::Loopback(addr)).await.is_ok()
}

fn pool(timing: &Timing) -> Pool {
    let (_view, view) = watch::channel(Arc::new(TailnetView::default()));
    let connector = Connector::new(view, Default::default(), timing.clone());
    Pool::new(connector, Clock::start(), timing)
}
