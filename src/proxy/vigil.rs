//! Signs of life of the node a request waits at.
//!
//! In flows the path the request went by; nothing flows out but the end of waiting, when the
//! path has been silent for long enough. It asks on that very path: another one that lives
//! says nothing of an answer that has to come by this one.

use http::Request;
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep_until, timeout};

use crate::api::wire;
use crate::directory::{Event, Offer, Path};
use crate::net::Body;
use crate::types::NodeKind;

use super::Proxy;

/// Ends when the node has shown no life for [`crate::types::Timing::vigil_misses`] probes in
/// a row, each on a connection of its own.
pub(crate) async fn vigil(px: &Proxy, offer: &Offer, path: &Path) {
    let mut misses = 0;
    // A short request is over before it is worth a probe; a long one should not wait for the
    // first of three any longer than that.
    let mut next = Instant::now() + px.timing.vigil / 3;
    loop {
        sleep_until(next).await;
        next = Instant::now() + px.timing.vigil;
        let limit = path.cell.rtt().map_or(px.timing.vigil, |rtt| (rtt * 4).max(px.timing.vigil));
        let before = px.clock.now();
        match timeout(limit, ping(px, offer, path)).await {
            Ok(true) => {
                misses = 0;
                let now = px.clock.now();
                if path.cell.ok(now, Some(now.since(before))) {
                    px.directory.send(Event::Paths(offer.node.id.clone()));
                }
            }
            _ => {
                misses += 1;
                if misses >= px.timing.vigil_misses {
                    return;
                }
            }
        }
    }
}

async fn ping(px: &Proxy, offer: &Offer, path: &Path) -> bool {
    let dial = &path.dial;
    let Ok(lease) = px.pool.acquire(&offer.node.id, dial).await else { return false };
    let route = match offer.node.kind {
        NodeKind::Rich => wire::PING.to_owned(),
        NodeKind::This | NodeKind::Bare => format!("{}/", path.prefix),
    };
    let empty: Body = super::error::full("");
    let request = Request::get(route)
        .header(http::header::HOST, super::ask::host_of(dial))
        .header("content-type", wire::CONTENT_TYPE)
        .body(empty);
    let Ok(request) = request else { return false };
    match lease.send(request).await {
        Ok(response) => {
            let mut body = response.into_body();
            while let Some(Ok(_)) = body.frame().await {}
            true
        }
        Err(_) => false,
    }
}
