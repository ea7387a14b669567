//! While an attempt waits: what it was chosen for, and whether it is better made elsewhere.
//!
//! In flow the numbers of the choice, again and again, about once a second; out flows, at most,
//! that a request is taken back from the queue it stands in. A node with a sidecar is asked to
//! let it go, and the attempt ends only with that node's own answer to it: nothing is ever at
//! two nodes. This node's own queue, and a server that says nothing of its queue, are simply
//! left. What has begun is never moved, and a request that came over the mesh neither.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Limited};
use tokio::time::{sleep, timeout};

use crate::api::attempt::{self, Refused, Withdraw, Withdrawn};
use crate::api::wire;
use crate::balance::moves::{self, Silent, Tries, Waiting};
use crate::balance::{self, Pick, Terms};
use crate::directory::{Need, Offer, Path, candidates};
use crate::gate::Line;
use crate::net::{Body, full};
use crate::types::Moment;

use super::Proxy;
use super::ask::{Ask, host_of};
use super::attempt::{Fail, Reason};
use super::tried::{Again, Tried};

/// Most offers that may say that the model is not in memory there; the next one may load it.
const MOST_COLD: usize = 2;

/// What a choice is made among.
#[derive(Clone, Copy)]
pub(crate) struct Among<'a> {
    pub(crate) offers: &'a [Arc<Offer>],
    pub(crate) need: &'a Need,
    pub(crate) wants: &'a balance::Ask,
}

/// One attempt as it was chosen: what was assumed of it, and what else there is.
pub(crate) struct Chosen<'a> {
    pub(crate) offer: &'a Arc<Offer>,
    /// Whether there is another candidate.
    pub(crate) others: bool,
    /// The longest wait it is sent for; `None` = however long.
    pub(crate) budget: Option<Duration>,
    /// Whether the model may have to be loaded for it.
    pub(crate) loads: bool,
    among: Among<'a>,
    index: usize,
    tried: &'a Tried,
    tries: Tries,
    terms: Terms,
    at: Moment,
    /// It has been asked back.
    asked_back: AtomicBool,
}

/// What goes with a request to another sidecar.
pub(crate) struct Pass {
    /// The attempt's number.
    pub(crate) number: String,
    /// The longest wait it is sent for.
    pub(crate) budget: Option<Duration>,
    /// Whether the model may have to be loaded for it.
    pub(crate) loads: bool,
}

impl<'a> Chosen<'a> {
    /// What goes with the choice of `offer` at `now`. Who is alone, and whose body cannot be sent
    /// again for sure, is sent for however long it takes.
    pub(crate) fn new(
        among: Among<'a>,
        pick: &Pick,
        offer: &'a Arc<Offer>,
        tried: &'a Tried,
        others: bool,
        ask: &Ask<'_>,
        now: Moment,
    ) -> Chosen<'a> {
        let (terms, tries) = (pick.terms, tried.tries);
        let choosy = others && ask.held.is_here();
        let known = tried.cold.contains(&pick.index) || tried.cold.len() >= MOST_COLD;
        Chosen {
            offer,
            others,
            budget: moves::wait_budget(terms.takes(), tries).filter(|_| choosy),
            loads: terms.load > 0.0 || terms.load_cost != 0.0 || known || !choosy,
            among,
            index: pick.index,
            tried,
            tries,
            terms,
            at: now,
            asked_back: AtomicBool::new(false),
        }
    }

    /// What is said of it to another sidecar, under a number of its own.
    pub(crate) fn pass(&self, px: &Proxy) -> Pass {
        Pass { number: px.next_attempt_id(), budget: self.budget, loads: self.loads }
    }

    /// Tokens that a byte of the prompt is there; 0 = not known.
    pub(crate) fn per_byte(&self) -> f64 {
        candidates::per_byte(self.among.offers, self.offer)
    }

    /// What a refusal means for the next attempt. `None`: it put the offer out, as it did not
    /// follow from what this attempt was sent with.
    pub(crate) fn refusal(&self, fail: &Fail) -> Option<Again> {
        match fail.reason {
            Reason::Refused(Refused::Wait) if self.budget.is_some() => Some(Again::Wait),
            Reason::Refused(Refused::NotLoaded) if !self.loads => Some(Again::Load),
            Reason::Refused(Refused::Withdrawn) if self.asked_back.load(Relaxed) => {
                Some(Again::Moved)
            }
            Reason::Left => Some(Again::Left),
            _ => None,
        }
    }

    /// Seconds the best other node would take, and those the work takes here.
    fn compare(&self, now: Moment) -> (f64, f64) {
        let Among { offers, need, wants } = self.among;
        let mut numbers = Vec::with_capacity(offers.len());
        candidates::of(offers, need, now, &mut numbers);
        let (mut there, mut work) = (f64::INFINITY, self.terms.prefill + self.terms.decode);
        for candidate in &numbers {
            let terms = balance::score(candidate, wants, now);
            if candidate.index == self.index {
                work = terms.prefill + terms.decode;
            } else if terms.behind.is_empty()
                && !candidate.closed
                && !self.tried.is_out(candidate.index)
                && offers.get(candidate.index).is_some_and(|o| self.is_elsewhere(o))
            {
                there = there.min(terms.total);
            }
        }
        (there, work)
    }

    /// Whether it is another place. Which of a peer's engines serves a request is that peer's own
    /// choice.
    fn is_elsewhere(&self, other: &Offer) -> bool {
        other.node.is_this() || other.node.id != self.offer.node.id
    }

    /// Seconds it was predicted to wait, a load included.
    fn wait(&self) -> f64 {
        self.terms.wait + self.terms.load
    }

    /// How much longer it waits at another sidecar, as far as that says; `None` = it has begun, or
    /// nothing can be known.
    fn left(&self, number: &str, path: &Path, now: Moment) -> Option<f64> {
        let node = &self.offer.node.cell;
        if !node.is_live() {
            return None;
        }
        let (wait, said) = node.waiting(number);
        let arrives =
            path.cell.rtt().unwrap_or_default() + Duration::from_secs_f64(self.terms.upload);
        if said > self.at + arrives {
            return Some(wait?.saturating_sub(now.since(said)).as_secs_f64());
        }
        // It has said nothing since the request is there.
        Some((self.wait() - now.since(self.at).as_secs_f64()).max(0.0))
    }

    /// Whether a server that says nothing of its queue is worth leaving.
    fn is_worth_leaving(&self, now: Moment) -> bool {
        let (there, work) = self.compare(now);
        let terms = &self.terms;
        let here = Silent {
            elapsed: now.since(self.at).as_secs_f64(),
            first_token: terms.rtt + terms.upload + self.wait() + terms.prefill,
            wait: terms.rtt + terms.upload + self.wait(),
            work,
            loads: terms.load > 0.0 && !self.offer.cell.is_loaded(),
        };
        moves::is_worth_leaving(here, there, self.tries)
    }

    fn is_worth_moving(&self, left: f64, now: Moment) -> bool {
        let (there, work) = self.compare(now);
        moves::is_worth_moving(Waiting { left, work }, there, self.tries)
    }
}

/// Whether the request may be moved at all, as far as it has been read by now.
fn may_move(ask: &Ask<'_>, chosen: &Chosen<'_>) -> bool {
    let inference = ask.asked.route.op.is_inference() && !ask.unload;
    inference && !ask.asked.is_mesh() && chosen.among.offers.len() > 1 && ask.held.is_here()
}

async fn next_look() {
    let look = moves::next_look(&mut rand::rng());
    sleep(look).await;
}

/// Looks at an attempt that waits in this node's own queue. Ends when it is better made elsewhere.
pub(crate) async fn in_line(px: &Proxy, ask: &Ask<'_>, chosen: &Chosen<'_>, line: &Line) {
    loop {
        next_look().await;
        if !may_move(ask, chosen) {
            continue;
        }
        if let Some(left) = line.left()
            && chosen.is_worth_moving(left.as_secs_f64(), px.clock.now())
        {
            chosen.asked_back.store(true, Relaxed);
            return;
        }
    }
}

/// Looks at an attempt that waits at a peer. One with a sidecar is asked to let it go, and answers
/// to the request itself; this ends only when a peer without one is to be left.
pub(crate) async fn at_peer(
    px: &Proxy,
    ask: &Ask<'_>,
    chosen: &Chosen<'_>,
    path: &Path,
    pass: Option<&Pass>,
) {
    loop {
        next_look().await;
        if !may_move(ask, chosen) {
            continue;
        }
        let now = px.clock.now();
        let Some(Pass { number, .. }) = pass else {
            if chosen.is_worth_leaving(now) {
                return;
            }
            continue;
        };
        if let Some(left) = chosen.left(number, path, now)
            && chosen.is_worth_moving(left, now)
        {
            chosen.asked_back.store(true, Relaxed);
            let withdrawn = Box::pin(withdraw(px, chosen.offer, path, number)).await;
            tracing::debug!(
                request_id = %ask.asked.request_id, node = %chosen.offer.node.name, ?withdrawn,
                "asked back",
            );
        }
    }
}

/// Asks a node to let an attempt go. Whether it did shows in how the attempt ends; this only says
/// what was answered, if anything was.
async fn withdraw(px: &Proxy, offer: &Offer, path: &Path, number: &str) -> Option<bool> {
    let wish = serde_json::to_vec(&Withdraw { attempt: number.to_owned() }).ok()?;
    let asked = async {
        let lease = px.pool.acquire(&offer.node.id, &path.dial).await.ok()?;
        let body: Body = full(Bytes::from(wish));
        let request = Request::builder()
            .method(Method::POST)
            .uri(attempt::WITHDRAW)
            .header(http::header::HOST, host_of(&path.dial))
            .header(http::header::CONTENT_TYPE, wire::CONTENT_TYPE)
            .body(body)
            .ok()?;
        let body = lease.send(request).await.ok()?.into_body();
        let body = Limited::new(body, attempt::MOST_BYTES).collect().await.ok()?;
        let said: Withdrawn = serde_json::from_slice(&body.to_bytes()).ok()?;
        Some(said.waiting)
    };
    timeout(px.timing.probe_limit, asked).await.ok()?
}
