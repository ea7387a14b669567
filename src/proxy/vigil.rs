//! Signs of life of the node a request waits at.
//!
//! In flows the path the request went by; nothing flows out but the end of waiting, when the
//! path has been silent for long enough. It asks on that very path: another one that lives
//! says nothing of an answer that has to come by this one. Whatever comes back there, late or
//! to somebody else, is a sign of life: slow is not silent, and a request that is sent away
//! from a node that lives is begun twice.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Request;
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep_until, timeout};

use crate::api::wire;
use crate::directory::{Event, Offer, Path};
use crate::net::{Body, Lease};
use crate::types::NodeKind;

use super::Proxy;

/// Most probes of one request that may be unanswered at a time.
const UNANSWERED: usize = 8;

/// Ends when nothing has come back on the path while [`crate::types::Timing::vigil_misses`]
/// probes were sent, each on a connection of its own, and the last of them had its time.
pub(crate) async fn vigil(px: &Proxy, offer: &Offer, path: &Path) {
    let every = px.timing.vigil;
    let mut silence = Silence::default();
    let mut probes = FuturesUnordered::new();
    let mut looked = px.clock.now();
    // A short request is over before it is worth a probe; a long one should not wait for the
    // first of three any longer than that.
    let mut due = Instant::now() + every / 3;
    loop {
        tokio::select! {
            biased;
            Some(()) = probes.next(), if !probes.is_empty() => continue,
            () = sleep_until(due) => {}
        }
        let late = due.elapsed() > every / 3;
        let now = px.clock.now();
        let tick = Tick {
            heard: path.cell.ok_within(now.since(looked) + Duration::from_millis(1), now),
            late,
            most: most(px.timing.vigil_misses, every, path.cell.rtt()),
        };
        if silence.lasts(tick) {
            return;
        }
        looked = now;
        due = Instant::now() + every;
        // Others who wait there ask as well: one answer is enough for all.
        if !path.cell.ok_within(every / 2, now) && probes.len() < UNANSWERED {
            silence.asked = true;
            probes.push(probe(px, offer, path));
        }
    }
}

/// How many probes in a row may be missed: more where the way is so long that an answer takes
/// longer than the next probe.
fn most(misses: u32, every: Duration, rtt: Option<Duration>) -> u32 {
    let limit = rtt.map_or(every, |rtt| rtt.saturating_mul(4).max(every));
    let more = (limit - every).as_nanos().div_ceil(every.as_nanos().max(1));
    misses.saturating_add(u32::try_from(more).unwrap_or(u32::MAX))
}

/// How long nothing has been heard, in probes.
#[derive(Debug, Default)]
struct Silence {
    /// Whether a probe was sent since the last sign of life.
    asked: bool,
    missed: u32,
    forgiven: u32,
}

/// One look at the path, when the next probe is due.
#[derive(Debug, Clone, Copy)]
struct Tick {
    /// Something came back since the last one.
    heard: bool,
    /// This process came to it late: what it has not heard may lie there unread.
    late: bool,
    most: u32,
}

impl Silence {
    /// Whether it has lasted for long enough. Being late oneself counts only if it goes on: a
    /// machine that is always late has to notice a dead node, too.
    fn lasts(&mut self, tick: Tick) -> bool {
        if tick.heard {
            *self = Silence::default();
        } else if self.asked && tick.late && self.forgiven < tick.most {
            self.forgiven += 1;
        } else if self.asked {
            self.missed += 1;
        }
        self.missed >= tick.most
    }
}

/// Asks for a sign of life, and notes one in the path's cell.
async fn probe(px: &Proxy, offer: &Offer, path: &Path) {
    let (node, dial) = (&offer.node.id, &path.dial);
    let asked = async {
        let lease = px.pool.acquire(node, dial).await.ok()?;
        let (reused, before) = (lease.reused, px.clock.now());
        match ping(offer, path, lease).await {
            Some(()) => Some(before),
            // A kept connection that the other side had closed says nothing of its health.
            None if reused => {
                let lease = px.pool.fresh(node, dial).await.ok()?;
                let before = px.clock.now();
                ping(offer, path, lease).await.map(|()| before)
            }
            None => None,
        }
    };
    let limit = px.timing.probe_limit.max(px.timing.vigil * px.timing.vigil_misses);
    if let Ok(Some(before)) = timeout(limit, asked).await {
        let now = px.clock.now();
        if path.cell.ok(now, round_trip(now.since(before), px.timing.vigil)) {
            px.directory.send(Event::Paths(node.clone()));
        }
    }
}

/// What an answer to a probe says of the way. What comes late shows life, and that its process was
/// held up.
fn round_trip(took: Duration, every: Duration) -> Option<Duration> {
    (took < every).then_some(took)
}

async fn ping(offer: &Offer, path: &Path, lease: Lease) -> Option<()> {
    let route = match offer.node.kind {
        NodeKind::Rich => wire::PING.to_owned(),
        NodeKind::This | NodeKind::Bare => format!("{}/", path.prefix),
    };
    let empty: Body = super::error::full("");
    let request = Request::get(route)
        .header(http::header::HOST, super::ask::host_of(&path.dial))
        .header("content-type", wire::CONTENT_TYPE)
        .body(empty)
        .ok()?;
    let mut body = lease.send(request).await.ok()?.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a row of looks comes to: `h`eard, nothing (`.`), nothing and itself `l`ate. Gives the
    /// look at which the node is left.
    #[track_caller]
    fn check(looks: &str, most: u32, want: Option<usize>) {
        let mut silence = Silence::default();
        let left = looks.chars().position(|look| {
            let tick = Tick { heard: look == 'h', late: look == 'l', most };
            let lasts = silence.lasts(tick);
            silence.asked = true;
            lasts
        });
        assert_eq!(left, want, "{looks}");
    }

    #[test]
    fn three_probes_in_a_row_without_any_sign_of_life_are_silence() {
        // The first look only asks.
        check("....", 3, Some(3));
        check("...h..", 3, None);
        check("...h...", 3, Some(6));
        check("..h..h..h..h..h", 3, None);
        check("......", 5, Some(5));
    }

    #[test]
    fn being_late_oneself_is_not_the_others_silence_unless_it_goes_on() {
        check("..l.", 3, None);
        check("..l..", 3, Some(4));
        check(".lllh.lll.", 3, None);
        check(".llllll", 3, Some(6));
    }

    #[test]
    fn what_was_not_asked_is_not_missed() {
        let mut silence = Silence::default();
        let tick = Tick { heard: false, late: false, most: 1 };
        assert!(!silence.lasts(tick));
        silence.asked = true;
        assert!(silence.lasts(tick));
    }

    #[test]
    fn an_answer_after_the_next_probe_measures_no_way() {
        let ms = Duration::from_millis;
        let round_trip = |took| round_trip(ms(took), ms(300));
        assert_eq!(
            [round_trip(299), round_trip(300), round_trip(5000)],
            [Some(ms(299)), None, None]
        );
    }

    #[test]
    fn a_long_way_has_time_to_answer() {
        let ms = Duration::from_millis;
        for (rtt, want) in [(None, 3), (Some(5), 3), (Some(75), 3), (Some(76), 4), (Some(250), 6)] {
            assert_eq!(most(3, ms(300), rtt.map(ms)), want, "{rtt:?}");
        }
        assert_eq!(most(3, Duration::ZERO, Some(Duration::MAX)), u32::MAX);
    }
}
