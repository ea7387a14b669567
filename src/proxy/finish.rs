//! The end of a request: everything that must be counted or given back, exactly once.
//!
//! A [`Finish`] is made when an attempt is accepted and travels inside the body that the
//! client reads. Dropping it early is what "the client went away" means.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::api::ending::Usage;
use crate::directory::{Cell, PathCell};
use crate::gate;
use crate::telemetry::events::{Events, Finished};
use crate::telemetry::{Clock, RequestMeter};
use crate::types::{Moment, Outcome};

use super::Running;

/// One more request of ours at an offer, until dropped.
pub(crate) struct Inflight(Arc<Cell>);

impl Inflight {
    pub(crate) fn new(cell: &Arc<Cell>) -> Inflight {
        cell.inflight.fetch_add(1, Relaxed);
        Inflight(Arc::clone(cell))
    }

    pub(crate) fn cell(&self) -> &Arc<Cell> {
        &self.0
    }
}

impl Drop for Inflight {
    fn drop(&mut self) {
        self.0.inflight.fetch_sub(1, Relaxed);
    }
}

/// What one request leaves behind when it ends.
pub(crate) struct Finish {
    pub(crate) clock: Clock,
    /// When the request came in, and when the attempt that answers began.
    pub(crate) arrived: Moment,
    pub(crate) attempted: Moment,
    pub(crate) first_byte: Option<Moment>,
    pub(crate) last_byte: Option<Moment>,
    /// Counted where the request entered the mesh.
    pub(crate) meter: Option<RequestMeter>,
    /// The place in the gate, given back with the last byte.
    pub(crate) ticket: Option<gate::Ticket>,
    pub(crate) inflight: Option<Inflight>,
    pub(crate) path: Option<Arc<PathCell>>,
    pub(crate) events: Arc<Events>,
    /// The line for `/status`, filled in as the request goes.
    pub(crate) line: Option<Finished>,
    /// Whether durations in the usage may teach this node the engine's speed.
    pub(crate) learns: bool,
    pub(crate) usage: Usage,
    /// Items of the answer seen, for the time per token where no usage is said.
    pub(crate) items: u64,
    pub(crate) outcome: Option<Outcome>,
    /// The place among the requests that run at once.
    pub(crate) _running: Running,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Finish {
    /// Something arrived from upstream.
    pub(crate) fn byte(&mut self) {
        let now = self.clock.now();
        if self.first_byte.is_none() {
            self.first_byte = Some(now);
            if let Some(meter) = &mut self.meter {
                meter.first_byte(now.since(self.arrived));
            }
        }
        self.last_byte = Some(now);
    }

    /// The time since the last byte, or since the attempt began.
    pub(crate) fn silence(&self) -> Duration {
        self.clock.now().since(self.last_byte.unwrap_or(self.attempted))
    }

    fn learn(&self) {
        let Some(inflight) = &self.inflight else { return };
        let cell = inflight.cell();
        if let Some(first) = self.first_byte {
            cell.ttft.observe(first.since(self.attempted).as_secs_f64(), 0.25);
        }
        if let Some(tokens) = self.usage.output_tokens.filter(|n| *n > 0) {
            cell.out_tokens.observe(tokens as f64, 0.1);
        }
        if !self.learns {
            return;
        }
        // The engine's own numbers: exact rates, for free.
        if let (Some(tokens), Some(ns)) = (self.usage.output_tokens, self.usage.eval_ns)
            && tokens >= 8
            && ns > 0
        {
            cell.decode.observe(tokens as f64 * 1e9 / ns as f64, 0.25);
        }
        if let (Some(tokens), Some(ns)) = (self.usage.prompt_tokens, self.usage.prompt_ns)
            && tokens >= 16
            && ns > 0
        {
            // `prompt_eval_count` counts cached tokens too, which take no time: a sample far
            // above the estimate is a cache hit and says nothing about speed.
            let sample = tokens as f64 * 1e9 / ns as f64;
            let known = cell.prefill.get();
            if known <= 0.0 || sample <= 2.0 * known {
                cell.prefill.observe(sample, 0.25);
            }
        }
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        let outcome = self.outcome.unwrap_or(Outcome::ClientCancel);
        let now = self.clock.now();
        if outcome == Outcome::Done {
            self.learn();
            // A dead path is brought back by its probe, which tells the writer.
            if let Some(path) = self.path.as_ref().filter(|path| path.is_alive()) {
                path.ok(now, None);
            }
        }
        let took = now.since(self.arrived);
        let prompt = self.usage.prompt_tokens.unwrap_or(0);
        let output = self.usage.output_tokens.unwrap_or(self.items);
        if let Some(mut meter) = self.meter.take() {
            meter.tokens(prompt, output);
            meter.finish(outcome, took);
        }
        if let Some(mut ticket) = self.ticket.take() {
            ticket.tokens(prompt, output);
            ticket.ended(outcome);
        }
        let Some(mut line) = self.line.take() else { return };
        line.outcome = outcome;
        line.took_ms = millis(took);
        line.ttft_ms = self.first_byte.map(|at| millis(at.since(self.arrived)));
        line.tokens = self.usage.output_tokens;
        self.events.finished(line);
    }
}
