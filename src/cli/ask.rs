//! Asks the tailherd that runs on this machine.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use serde_json::Value;
use tokio::sync::watch;

use crate::config::Config;
use crate::net::{Connector, Pool, TailnetView};
use crate::telemetry::Clock;
use crate::types::{Dial, NodeId, Timing};

/// Far more than the largest mesh needs.
const MAX: usize = 64 << 20;

/// `GET /status` of the admin listener.
pub(super) async fn status(config: &Config) -> anyhow::Result<Value> {
    let Some(addr) = config.admin_listen else {
        bail!("`admin.listen` is null in the configuration, so there is nobody to ask");
    };
    ensure!(
        addr.ip().is_loopback(),
        "`admin.listen` is {addr}: off loopback only metrics and health are served"
    );
    let body = get(addr, "/status").await.with_context(|| {
        format!("no tailherd answers at {addr} (start it with `tailherd serve`)")
    })?;
    serde_json::from_slice(&body).with_context(|| format!("what answers at {addr} is no tailherd"))
}

async fn get(addr: SocketAddr, path: &str) -> anyhow::Result<Bytes> {
    let timing = Timing::default();
    let (_view, view) = watch::channel(Arc::new(TailnetView::default()));
    let connector = Connector::new(view, Default::default(), timing.clone());
    let pool = Pool::new(connector, Clock::start(), &timing);
    let request = Request::get(path)
        .header(header::HOST, addr.to_string())
        .body(Empty::new().map_err(|never| match never {}).boxed_unsync())?;
    let lease = pool.acquire(&NodeId::This, &Dial::Loopback(addr)).await?;
    let answer = async {
        let response = lease.send(request).await.map_err(|e| anyhow::anyhow!("{e}"))?;
        let status = response.status();
        ensure!(status.is_success(), "the answer was {status}");
        let body = Limited::new(response.into_body(), MAX);
        Ok(body.collect().await.map_err(|e| anyhow::anyhow!("{e}"))?.to_bytes())
    };
    tokio::time::timeout(timing.head, answer).await.context("no answer in time")?
}
