//! The end of a request: everything that must be counted or given back, exactly once.
//!
//! A [`Finish`] is made when an attempt is accepted and travels inside the body that the
//! client reads. Dropping it early is what "the client went away" means.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::api::ending::{DoneReason, Usage};
use crate::balance::pace::{Pace, Seen};
use crate::balance::prefix::Print;
use crate::balance::prompt::{Count, Prompt};
use crate::balance::rates::{self, End, Reply, Sample};
use crate::directory::{Cell, Offer, PathCell, Sent};
use crate::gate;
use crate::telemetry::events::{Events, Finished};
use crate::telemetry::running::Place;
use crate::telemetry::{Clock, RequestMeter};
use crate::types::{ClientKind, Moment, Outcome};

use super::bill::Bill;
use super::{Proxy, Running, rest};

/// What an answer may teach of the engine that gave it.
pub(crate) struct Lesson {
    /// Which kind of program asked.
    pub(crate) client: ClientKind,
    /// The print of its prompt.
    pub(crate) print: Print,
    /// What its body is made of, if that is known.
    pub(crate) prompt: Option<Prompt>,
    /// Most tokens that the model takes; 0 = not known.
    pub(crate) window: u64,
    /// Whether the durations in the usage are the engine's own.
    pub(crate) counts: bool,
    /// Whether nothing is written.
    pub(crate) embeds: bool,
    /// From when the engine could work for it and nobody else, where that is known.
    pub(crate) from: Option<Moment>,
    /// Most other requests that run beside it.
    pub(crate) most_beside: u32,
}

/// What one request leaves behind when it ends.
pub(crate) struct Finish {
    pub(crate) clock: Clock,
    /// When the request came in, and when the attempt that answers began.
    pub(crate) arrived: Moment,
    pub(crate) attempted: Moment,
    pub(crate) first_byte: Option<Moment>,
    pub(crate) last_byte: Option<Moment>,
    /// When the client was handed the last piece, until it asks for the next one; and for how
    /// long it did not, all together.
    pub(crate) handed: Option<Moment>,
    pub(crate) held: Duration,
    /// Whether the answer comes as fast as others did.
    pub(crate) pace: Option<Pace>,
    /// Counted where the request entered the mesh.
    pub(crate) meter: Option<RequestMeter>,
    /// The place in the gate, given back with the last byte.
    pub(crate) ticket: Option<gate::Ticket>,
    pub(crate) inflight: Option<Sent>,
    pub(crate) path: Option<Arc<PathCell>>,
    pub(crate) events: Arc<Events>,
    /// The line for `/status`, filled in as the request goes.
    pub(crate) line: Option<Finished>,
    /// Its row among those that run.
    pub(crate) place: Place,
    /// What the answer may teach of its engine's speed.
    pub(crate) lesson: Option<Lesson>,
    /// Where the model has to rest if its answer breaks.
    pub(crate) breaks: Option<(Arc<Proxy>, Arc<Offer>)>,
    /// Whether the answer itself says that it failed on the way.
    pub(crate) failed: bool,
    /// Whether the answer comes piece by piece.
    pub(crate) streamed: bool,
    pub(crate) usage: Usage,
    /// Items of the answer seen, for the time per token where no usage is said.
    pub(crate) items: u64,
    pub(crate) outcome: Option<Outcome>,
    /// What a hosted answer costs.
    pub(crate) bill: Option<Bill>,
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
            // A quick refusal says nothing of how long an answer takes.
            if let Some(inflight) = self.inflight.as_mut().filter(|_| self.lesson.is_some()) {
                inflight.began(now);
            }
            if let Some(ticket) = &self.ticket {
                ticket.began();
            }
        }
        self.last_byte = Some(now);
        self.handed = Some(now);
        self.look(now);
        self.place.streams(self.items);
    }

    /// The client asks for more.
    pub(crate) fn asked(&mut self) {
        if let Some(at) = self.handed.take() {
            self.held += self.clock.now().since(at);
        }
    }

    /// Whether the node is much slower than it was: others should know before this answer ends.
    pub(crate) fn look(&mut self, now: Moment) {
        let (Some(pace), Some(inflight)) = (&mut self.pace, &self.inflight) else { return };
        let cell = inflight.cell();
        let most = self.lesson.as_ref().map_or(0, |lesson| lesson.most_beside);
        match pace.look(self.items, self.held, beside(cell, most) == 0, now) {
            Some(Seen::Slow(part)) => cell.slowed(part, now),
            Some(Seen::Usual) => cell.as_usual(),
            None => {}
        }
    }

    /// The time since the last byte, or since the attempt began.
    pub(crate) fn silence(&self) -> Duration {
        self.clock.now().since(self.last_byte.unwrap_or(self.attempted))
    }

    /// From the first byte of a stream to its last.
    fn stream(&self) -> Option<Duration> {
        let (first, last) = (self.first_byte?, self.last_byte?);
        self.streamed.then(|| last.since(first))
    }

    /// Tells the cell how it went. What was not answered at all never gets here: a refusal is
    /// no fast server.
    fn learn(&self, outcome: Outcome, now: Moment) {
        let Some((lesson, cell)) = self.lesson.as_ref().zip(self.inflight.as_ref()) else { return };
        let cell = cell.cell();
        let Some(first) = self.first_byte else { return };
        // Whatever became of the answer, the prompt has been read.
        let prefix = cell.read_before(lesson.print);
        let usage = &self.usage;
        if matches!(usage.done_reason, Some(DoneReason::Load | DoneReason::Unload)) {
            return;
        }
        if outcome == Outcome::Done && self.streamed {
            let seconds = first.since(self.attempted).as_secs_f64();
            if let Some(sample) = Sample::whole(seconds) {
                cell.ttft.learn(sample, rates::SPEED, now);
            }
        }
        if let Some((prompt, tokens)) = lesson.prompt.zip(usage.prompt_tokens) {
            let windows = [cell.loaded_ctx.load(Relaxed), lesson.window];
            let window = windows.into_iter().filter(|tokens| *tokens > 1).min().unwrap_or(0);
            let cached = usage.cached_tokens;
            cell.counted(&Count { prompt, tokens, cached, prefix, window }, now);
        }
        let seen = Watched {
            outcome,
            items: self.items,
            first: lesson.from.filter(|_| self.streamed).map(|from| first.since(from)),
            // A client that reads slowly is no slow engine.
            stream: self.stream().filter(|stream| self.held * 4 <= *stream),
            beside: beside(cell, lesson.most_beside),
            prefix,
        };
        let reply = reply(usage, lesson.counts, lesson.embeds, &seen);
        cell.learn(&reply, lesson.client, now);
    }
}

/// What the relay itself saw of an answer.
#[derive(Debug, Clone, Copy)]
struct Watched {
    outcome: Outcome,
    items: u64,
    first: Option<Duration>,
    stream: Option<Duration>,
    beside: u32,
    prefix: f64,
}

/// All that is known of an answer. `counts`: durations are the engine's own. `embeds`: all the
/// time that was no load went into reading.
fn reply(usage: &Usage, counts: bool, embeds: bool, seen: &Watched) -> Reply {
    let said = |ns: Option<u64>| ns.filter(|_| counts).map(Duration::from_nanos);
    let mut prompt = said(usage.prompt_ns);
    if prompt.is_none() && embeds {
        let spent = |total: Duration| total.saturating_sub(said(usage.load_ns).unwrap_or_default());
        prompt = said(usage.total_ns).map(spent);
    }
    // Who says what was cached need not be guessed at.
    let (prompt_tokens, prefix) = match usage.cached_tokens {
        Some(cached) => (usage.prompt_tokens.map(|all| all.saturating_sub(cached)), 0.0),
        None => (usage.prompt_tokens, seen.prefix),
    };
    Reply {
        end: match (seen.outcome, usage.done_reason) {
            (Outcome::Done, Some(DoneReason::Length)) => End::Limit,
            (Outcome::Done, _) => End::Whole,
            (Outcome::ClientCancel, _) => End::Cancelled,
            _ => End::Broken,
        },
        prompt_tokens,
        output_tokens: usage.output_tokens,
        prompt,
        decode: said(usage.eval_ns),
        items: seen.items,
        first: seen.first,
        stream: seen.stream,
        beside: seen.beside,
        prefix,
    }
}

/// Other requests that an engine works on now, ours not counted.
fn beside(cell: &Cell, most: u32) -> u32 {
    let ours = cell.inflight.load(Relaxed).saturating_sub(cell.queued.load(Relaxed));
    ours.max(cell.running.load(Relaxed)).saturating_sub(1).min(most)
}

impl Drop for Finish {
    fn drop(&mut self) {
        let outcome = self.outcome.unwrap_or(Outcome::ClientCancel);
        let now = self.clock.now();
        self.learn(outcome, now);
        if outcome == Outcome::Done {
            if let Some(inflight) = self.inflight.as_ref().filter(|_| self.lesson.is_some()) {
                inflight.answered();
            }
            // A dead path is brought back by its probe, which tells the writer.
            if let Some(path) = self.path.as_ref().filter(|path| path.is_alive()) {
                path.ok(now, None);
            }
        }
        // The caller's leaving is no fault of the engine's.
        let broken = matches!(outcome, Outcome::Truncated | Outcome::IdleTimeout);
        if let Some((px, offer)) = self.breaks.take().filter(|_| broken || self.failed) {
            rest::broke(&px, &offer, self.attempted);
        }
        let took = now.since(self.arrived);
        if let Some(bill) = self.bill.take() {
            bill.settle(&self.usage, self.items);
        }
        let prompt = self.usage.prompt_tokens.unwrap_or(0);
        let output = self.usage.output_tokens.unwrap_or(self.items);
        let said = self.usage.eval_ns.map(Duration::from_nanos);
        let wrote = match (said.filter(|time| !time.is_zero()), self.stream()) {
            (Some(time), _) => Some((output, time)),
            // The first piece came at the end of the prompt.
            (None, time) => time.map(|time| (output.saturating_sub(1), time)),
        };
        if let Some(mut meter) = self.meter.take() {
            meter.tokens(prompt, output);
            if let Some((tokens, time)) = wrote {
                meter.wrote(tokens, time);
            }
            meter.finish(outcome, took);
        }
        if let Some(mut ticket) = self.ticket.take() {
            ticket.tokens(prompt, output);
            ticket.ended(outcome);
        }
        let Some(mut line) = self.line.take() else { return };
        line.outcome = outcome;
        line.at = std::time::SystemTime::now();
        line.took_ms = millis(took);
        line.ttft_ms = self.first_byte.map(|at| millis(at.since(self.arrived)));
        line.prompt_tokens = self.usage.prompt_tokens;
        line.tokens = self.usage.output_tokens;
        line.tokens_per_second = wrote
            .filter(|(tokens, time)| *tokens > 0 && !time.is_zero())
            .map(|(tokens, time)| tokens as f64 / time.as_secs_f64());
        self.events.finished(line);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::api::ending::Ending;
    use crate::balance::rates::Estimate;
    use crate::types::{Api, Op};

    /// The answer of a recording, as the relay sees it.
    fn recorded(file: &str, op: Op) -> Usage {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        let body = text.split_once("\n\n").unwrap().1.split_once("\n\n").map_or("", |b| b.1);
        let llama = file.starts_with("llamacpp");
        let (api, kind) = match llama {
            true => (Api::Chat, "text/event-stream"),
            false if body.starts_with('{') && !body.contains("\"done\":false") => {
                (Api::Ollama, "application/json")
            }
            false => (Api::Ollama, "application/x-ndjson"),
        };
        let mut ending = Ending::new(api, op, Some(kind));
        ending.feed(if llama { text.as_bytes() } else { body.as_bytes() });
        ending.usage()
    }

    const SEEN: Watched = Watched {
        outcome: Outcome::Done,
        items: 3,
        first: None,
        stream: None,
        beside: 0,
        prefix: 0.0,
    };

    /// Decode and prefill of a recorded answer, and whether the first alone makes it known.
    #[track_caller]
    fn check(file: &str, op: Op, expect: (f64, bool), prefill: Option<f64>) {
        let reply = reply(&recorded(file, op), true, false, &SEEN);
        let sample = rates::decode(&reply).unwrap();
        let known = Estimate::default().learn(sample, rates::SPEED).known().is_some();
        assert!((sample.value / expect.0 - 1.0).abs() < 0.001, "{file}: {sample:?}");
        assert_eq!(known, expect.1, "{file}: {sample:?}");
        let read = rates::prefill(&reply, Estimate::default()).map(|sample| sample.value);
        let near = match (read, prefill) {
            (Some(read), Some(expect)) => (read / expect - 1.0).abs() < 0.001,
            (read, expect) => read == expect,
        };
        assert!(near, "{file}: {read:?}");
    }

    #[test]
    fn the_last_chunk_of_either_ollama_is_read_as_speeds() {
        // Three tokens at a first run are no speed anybody should count on.
        check("ollama/0.24.0/generate-stream.txt", Op::Generate, (122.04, false), Some(125.39));
        check("ollama/0.24.0/generate.txt", Op::Generate, (390.31, false), Some(458.86));
        check("ollama/0.24.0/chat-stream.txt", Op::Chat, (35.82, false), Some(2224.5));
        check("ollama/0.24.0/chat-think-stream.txt", Op::Chat, (18.414, true), Some(841.76));
        check("ollama/0.24.0/chat-tools-stream.txt", Op::Chat, (26.187, true), Some(2211.14));
        check("ollama/generate-stream.txt", Op::Generate, (11.600, false), Some(31.636));
        check("ollama/chat-stream.txt", Op::Chat, (11.366, false), Some(36.188));
        // Nor are eleven in two milliseconds.
        check("ollama/chat-think-stream.txt", Op::Chat, (5949.16, false), Some(8928.6));
        check("ollama/chat-tools-stream.txt", Op::Chat, (4145.08, false), Some(432.61));
    }

    #[test]
    fn llama_cpp_says_what_was_cached() {
        let usage = recorded("llamacpp/v1_chat_completions.sse", Op::Chat);
        let reply = reply(&usage, true, false, &Watched { prefix: 0.9, ..SEEN });
        assert_eq!((usage.cached_tokens, reply.prompt_tokens), (Some(4), Some(1)));
        assert_eq!(reply.prompt, Some(Duration::from_micros(900_063)));
        assert_eq!(reply.decode, Some(Duration::from_micros(750_206)));
    }

    #[test]
    fn waiting_is_never_taken_for_work() {
        let usage = Usage {
            prompt_tokens: Some(512),
            output_tokens: Some(64),
            prompt_ns: Some(1_000_000_000),
            eval_ns: Some(2_000_000_000),
            load_ns: Some(3_000_000_000),
            total_ns: Some(60_000_000_000),
            ..Usage::default()
        };
        let all = reply(&usage, true, false, &SEEN);
        assert_eq!(rates::decode(&all).unwrap().value, 32.0);
        assert_eq!(rates::prefill(&all, Estimate::default()).unwrap().value, 512.0);
        // Durations that are not the engine's own word say nothing.
        assert_eq!(rates::decode(&reply(&usage, false, false, &SEEN)), None);
        // An embedding says only the whole; its load is no reading.
        let embed = Usage { prompt_ns: None, eval_ns: None, output_tokens: None, ..usage };
        let read = reply(&embed, true, true, &SEEN).prompt;
        assert_eq!(read, Some(Duration::from_secs(57)));
        assert_eq!(reply(&embed, true, false, &SEEN).prompt, None);
    }

    #[test]
    fn only_a_whole_answer_is_whole() {
        let end = |outcome, done_reason| {
            let usage = Usage { done_reason, ..Usage::default() };
            reply(&usage, true, false, &Watched { outcome, ..SEEN }).end
        };
        assert_eq!(end(Outcome::Done, Some(DoneReason::Stop)), End::Whole);
        assert_eq!(end(Outcome::Done, Some(DoneReason::Length)), End::Limit);
        assert_eq!(end(Outcome::ClientCancel, None), End::Cancelled);
        assert_eq!(end(Outcome::Truncated, None), End::Broken);
    }
}
