//! Whether the tailnet reaches a node now, by our own word.
//!
//! In flow a pinned node's tailnet addresses; out flows whether one of them answered the
//! daemon's ping through the tunnel, which passes all policy. A caller on the local network cannot
//! make us believe that the tailnet is dead: its own tunnel, if it lives, says otherwise. (A disco
//! ping would not do: it answers while WireGuard still has to agree on new keys, and the caller,
//! sent to a tunnel that carries nothing, would be answered nowhere.)

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::future::select_ok;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::localapi::LocalApi;
use crate::telemetry::Clock;
use crate::types::{Moment, PublicKey, Timing};

/// What the last pings said. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Witness(Arc<Mutex<HashMap<PublicKey, Arc<Seen>>>>);

#[derive(Debug, Default)]
struct Seen {
    /// When it last did not answer, unless it has answered since.
    silent: Mutex<Option<Moment>>,
    /// Held by whoever asks.
    asking: Arc<tokio::sync::Mutex<()>>,
}

/// Most nodes that are remembered: more have no pins.
const MOST: usize = 1024;

impl Witness {
    /// Whether one of these addresses of the holder of `key` answers. That none does takes
    /// long to learn and so holds for [`Timing::lan_ping_kept`]; in its second half it is
    /// asked for again beside, so that requests in a row do not wait for it. That one does is
    /// asked anew each time: it costs a moment, and an old word for it would send a caller
    /// away whose tailnet has just died.
    pub(super) async fn answers(
        &self,
        key: &PublicKey,
        addrs: &[IpAddr],
        api: Arc<LocalApi>,
        clock: Clock,
        timing: &Timing,
    ) -> bool {
        let seen = self.seen(key);
        if let Some(age) = seen.silent(clock)
            && age < timing.lan_ping_kept
        {
            if age > timing.lan_ping_kept / 2
                && let Ok(asking) = Arc::clone(&seen.asking).try_lock_owned()
            {
                let (addrs, limit) = (addrs.to_vec(), timing.lan_ping);
                tokio::spawn(async move {
                    let _asking = asking;
                    let silent = !ping(&api, &addrs, limit).await;
                    *seen.silent.lock() = silent.then(|| clock.now());
                });
            }
            return false;
        }
        let _asking = seen.asking.lock().await;
        // Somebody else may have asked while we waited.
        if seen.silent(clock).is_some_and(|age| age < timing.lan_ping_kept) {
            return false;
        }
        let answered = ping(&api, addrs, timing.lan_ping).await;
        *seen.silent.lock() = (!answered).then(|| clock.now());
        answered
    }

    fn seen(&self, key: &PublicKey) -> Arc<Seen> {
        let mut all = self.0.lock();
        if all.len() >= MOST && !all.contains_key(key) {
            all.clear();
        }
        Arc::clone(all.entry(*key).or_default())
    }
}

impl Seen {
    fn silent(&self, clock: Clock) -> Option<std::time::Duration> {
        let at = (*self.silent.lock())?;
        Some(clock.now().since(at))
    }
}

async fn ping(api: &LocalApi, addrs: &[IpAddr], limit: std::time::Duration) -> bool {
    let pings = addrs.iter().map(|addr| Box::pin(api.ping_tunnel(*addr)));
    matches!(timeout(limit, select_ok(pings)).await, Ok(Ok(_)))
}
