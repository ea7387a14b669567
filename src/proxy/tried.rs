//! What one request has tried: which offers are out for it, what may be tried again, and what it
//! is told when nothing is left.
//!
//! In flow ends of attempts. A failure puts an offer out. A refusal does not, as long as the
//! request still had something to give: it was sent for a wait, or for a model in memory, or was
//! taken back. What it had is counted, so that each request ends: at most two refusals for its
//! wait, at most one of each offer for a model that was not in memory, at most three moves. After
//! that it takes what it gets.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Response};

use crate::api::attempt::Refused;
use crate::balance::Candidate;
use crate::balance::moves::Tries;
use crate::config::Config;
use crate::directory::{Offer, reason};
use crate::net::Body;
use crate::telemetry::events::{Finished, Why};
use crate::types::{Moment, Outcome};

use super::Proxy;
use super::ask::Ask;
use super::attempt::{Fail, Reason};
use super::error::{self, Failure};
use super::plan::{self, Plan};
use super::serve::served_by;
use super::told;

/// What one request has tried.
#[derive(Default)]
pub(crate) struct Tried {
    /// Offers that are out, by their place in the plan.
    out: Vec<usize>,
    /// Offers whose connect was late, to come back to.
    pub(crate) late: Vec<usize>,
    /// Offers that said the model is not in memory there: their next attempt may load it.
    pub(crate) cold: Vec<usize>,
    /// An offer that said nothing for too long and was left: the next choice is another.
    left: Option<usize>,
    /// Moves, and refusals for the wait.
    pub(crate) tries: Tries,
    /// Refusals of any kind after which another attempt was made.
    pub(crate) refusals: u32,
    /// Node, reason, words; for the client and the log.
    log: Vec<(String, Reason, String)>,
    /// The last engine's own answer.
    answer: Option<Fail>,
    retry_after: Option<Duration>,
    /// What this node's gate said last, for another sidecar, and of which offer.
    refused: Option<(&'static str, Arc<Offer>)>,
    used_engine: u32,
    /// Why the last choice fell as it did.
    pub(crate) why: Option<reason::Reason>,
}

/// What a refusal means for the attempts after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// The same node may be asked again, with a longer budget or without any.
    Wait,
    /// The same node may be asked again, and load.
    Load,
    /// It was taken back: whoever is best now is asked.
    Moved,
    /// A node that says nothing was left: somebody else is asked.
    Left,
}

impl Tried {
    /// What was tried, by its place in the plan, with a word each.
    pub(crate) fn words(&self, offers: &[Arc<Offer>]) -> Vec<(usize, &'static str)> {
        let word = |index: usize| {
            let name = offers.get(index)?.node.name.as_str();
            let (_, reason, _) = self.log.iter().rev().find(|l| l.0 == name)?;
            Some((index, reason.label()))
        };
        self.out.iter().chain(&self.late).filter_map(|index| word(*index)).collect()
    }

    /// What became of the tries, if all failed.
    fn failed(&self) -> String {
        let words: Vec<String> = self
            .log
            .iter()
            .map(|(node, reason, _)| format!("{node}: {}", reason.label()))
            .collect();
        words.join("; ")
    }

    /// Why the node that was asked last was asked.
    pub(crate) fn reason(self) -> Why {
        let Tried { log, why, .. } = self;
        let Some(why) = why else { return Why::default() };
        match log.last() {
            Some((node, reason, _)) => Why::new(format!("after {node}: {}; {why}", reason.label())),
            None => Why::new(why),
        }
    }

    /// How many attempts failed.
    pub(crate) fn attempts(&self) -> u32 {
        u32::try_from(self.log.len()).unwrap_or(u32::MAX)
    }

    /// Offers that may not be chosen any more.
    pub(crate) fn is_out(&self, index: usize) -> bool {
        self.out.contains(&index) || self.late.contains(&index)
    }

    /// Takes away what may not be chosen now.
    pub(crate) fn leave_out(&mut self, numbers: &mut Vec<Candidate>) {
        numbers.retain(|c| !c.closed && !self.is_out(c.index));
        let left = self.left.take();
        if numbers.iter().any(|c| Some(c.index) != left) {
            numbers.retain(|c| Some(c.index) != left);
        }
    }

    /// Writes the end of an attempt down. True if another one is allowed.
    #[expect(clippy::too_many_arguments, reason = "one call site; each is a different thing")]
    pub(crate) fn note(
        &mut self,
        px: &Proxy,
        config: &Config,
        ask: &Ask<'_>,
        index: usize,
        offer: &Arc<Offer>,
        fail: Fail,
        again: Option<Again>,
    ) -> bool {
        let mesh = ask.asked.is_mesh();
        let resend = ask.held.replayable() && !ask.asked.route.op.is_never_retried();
        if !fail.reason.is_fault() {
            tracing::debug!(
                request_id = %ask.asked.request_id, node = %offer.node.name,
                reason = fail.reason.label(), "an attempt ended without a fault",
            );
            if !mesh {
                px.metrics.moved(fail.reason.label());
            }
        } else {
            px.metrics.attempt(offer.node.name.as_str(), fail.reason.label());
            tracing::info!(
                request_id = %ask.asked.request_id, node = %offer.node.name,
                reason = fail.reason.label(), "a try failed before the first byte",
            );
        }
        self.retry_after = fail.retry_after.or(self.retry_after);
        if let Some(word) = fail.refused {
            self.refused = Some((word, Arc::clone(offer)));
        }
        if let Some(again) = again {
            match again {
                Again::Wait => self.tries.refusals += 1,
                Again::Load => self.cold.push(index),
                Again::Moved => self.tries.moves += 1,
                Again::Left => {
                    self.tries.moves += 1;
                    self.left = Some(index);
                }
            }
            self.refusals += u32::from(matches!(again, Again::Wait | Again::Load));
            if resend {
                return true;
            }
        }
        match fail.reason {
            Reason::SlowConnect => self.late.push(index),
            _ => self.out.push(index),
        }
        let taken_back = mesh && fail.reason == Reason::Refused(Refused::Withdrawn);
        let wrong = fail.reason == Reason::Rejected || taken_back;
        let cost = fail.used_engine();
        self.log.push((offer.node.name.to_string(), fail.reason, fail.text.clone()));
        if fail.answer.is_some() {
            self.answer = Some(fail);
        }
        if cost {
            self.used_engine += 1;
            if self.used_engine >= config.failover.max_attempts || !px.retries.lock().spend() {
                return false;
            }
        }
        !wrong && resend
    }

    /// All that could be tried was tried: the engine's own words if it is the only one that
    /// was asked, else what was tried.
    pub(crate) fn give_up(
        self,
        px: &Proxy,
        ask: &Ask<'_>,
        plan: &Plan,
        arrived: Moment,
    ) -> Result<Response<Body>, Failure> {
        let wrong = self.log.last().is_some_and(|last| last.1 == Reason::Rejected);
        if ask.taken.more && !wrong {
            // The chain's next step is tried, and whoever ends the request counts it.
            let lines = self.log.iter().map(|(node, _, text)| format!("{node}: {text}"));
            return Err(Failure::exhausted(lines.collect::<Vec<_>>().join(", ")));
        }
        let last = self.log.last().map_or("", |l| l.0.as_str());
        let took = px.clock.now().since(arrived);
        if let Some(meter) = px.meter(ask.asked, ask.model.key.short(), last) {
            meter.finish(Outcome::UpstreamError, took);
        }
        let failed = self.failed();
        // Another sidecar that was told no asks elsewhere: nothing went wrong.
        let refused = self.refused.filter(|_| ask.asked.is_mesh());
        px.events.finished(Finished {
            node: last.into(),
            attempts: u32::try_from(self.log.len()).unwrap_or(u32::MAX),
            moves: self.tries.moves,
            refusals: self.refusals,
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            outcome: match refused {
                Some(_) => Outcome::Refused,
                None => Outcome::UpstreamError,
            },
            why: Why::new(failed),
            ..px.line(ask.asked, ask.model.key.short())
        });
        let only = self.log.iter().all(|l| Some(&l.0) == self.log.first().map(|l| &l.0));
        if let (true, Some(Fail { answer: Some((status, headers, body)), .. })) =
            (only, self.answer)
        {
            let mut response = Response::new(error::full(body));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response.headers_mut().insert("x-should-retry", HeaderValue::from_static("false"));
            let attempts = u32::try_from(self.log.len()).unwrap_or(u32::MAX);
            served_by(&mut response, self.log.last().map_or("", |l| &l.0), attempts);
            return Ok(response);
        }
        if let Some(node) = &plan.pinned {
            let why = self.log.last().map_or("no path", |l| l.2.as_str());
            let text = format!("{node} does not answer ({why})");
            return Err(Failure { counted: true, ..Failure::exhausted(text) });
        }
        let mut list: Vec<String> =
            self.log.iter().map(|(node, _, text)| format!("{node}: {text}")).collect();
        list.extend(plan.offers.iter().filter_map(|offer| offer.node.says_no()));
        list.extend(plan::outage(&px.directory.load(), px.clock.now()));
        let mut failure = Failure::exhausted(format!(
            "no node could answer for model '{}' ({})",
            ask.model.bare,
            list.join("; ")
        ));
        failure.counted = true;
        failure.retry_after = self.retry_after;
        if let Some((word, offer)) = refused {
            failure.refused = Some(word);
            failure.row = told::row(px, &offer);
        }
        Err(failure)
    }
}
