//! Whether the tailnet reaches a node now, by our own word.
//!
//! In flow a pinned node's tailnet addresses; out flows whether one of them answered the
//! daemon's ping, which passes all policy. A caller on the local network cannot make us
//! believe that the tailnet is dead: its own tunnel, if it lives, says otherwise.

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
    last: Mutex<Option<(Moment, bool)>>,
    /// Held by whoever asks.
    asking: Arc<tokio::sync::Mutex<()>>,
}

/// Most nodes that are remembered: more have no pins.
const MOST: usize = 1024;

impl Witness {
    /// Whether one of these addresses of the holder of `key` answers. An answer holds for
    /// [`Timing::lan_ping_kept`]; in its second half it is asked for again beside, so that
    /// requests in a row do not wait for it.
    pub(super) async fn answers(
        &self,
        key: &PublicKey,
        addrs: &[IpAddr],
        api: Arc<LocalApi>,
        clock: Clock,
        timing: &Timing,
    ) -> bool {
        let seen = self.seen(key);
        if let Some((age, answered)) = seen.last(clock)
            && age < timing.lan_ping_kept
        {
            if age > timing.lan_ping_kept / 2
                && let Ok(asking) = Arc::clone(&seen.asking).try_lock_owned()
            {
                let (addrs, limit) = (addrs.to_vec(), timing.lan_ping);
                tokio::spawn(async move {
                    let _asking = asking;
                    let answered = ping(&api, &addrs, limit).await;
                    *seen.last.lock() = Some((clock.now(), answered));
                });
            }
            return answered;
        }
        let _asking = seen.asking.lock().await;
        // Somebody else may have asked while we waited.
        if let Some((age, answered)) = seen.last(clock)
            && age < timing.lan_ping_kept
        {
            return answered;
        }
        let answered = ping(&api, addrs, timing.lan_ping).await;
        *seen.last.lock() = Some((clock.now(), answered));
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
    fn last(&self, clock: Clock) -> Option<(std::time::Duration, bool)> {
        let (at, answered) = (*self.last.lock())?;
        Some((clock.now().since(at), answered))
    }
}

async fn ping(api: &LocalApi, addrs: &[IpAddr], limit: std::time::Duration) -> bool {
    let pings = addrs.iter().map(|addr| Box::pin(api.ping(*addr)));
    matches!(timeout(limit, select_ok(pings)).await, Ok(Ok(_)))
}
