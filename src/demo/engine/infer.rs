//! Inference: from a request to a stream of tokens.
//!
//! As in Ollama, nothing is said before the first token: waiting for the load, for a slot and
//! for the prompt all lie before the status line. No task is spawned: the work lives in the
//! request's future and then in the answer's body, so a client that goes away ends it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::Shared;
use super::ask::Fields;
use super::events::{Messages, Responses};
use super::fault::{Cut, Fault};
use super::reply::{self, Body, Dialect};
use super::runner::{Held, Keep};
use super::seen::Visit;
use super::serve::Line;
use super::spec::{Asked, ModelSpec, Piece, Script};
use super::voice::{CRASHED, Chat, Completions, Finish, Native, Reason, Voice};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Generate,
    Chat,
    OpenAiChat,
    Completions,
    Responses,
    Messages,
}

impl Kind {
    fn verb(self) -> &'static str {
        if matches!(self, Kind::Generate | Kind::Completions) { "generate" } else { "chat" }
    }

    fn is_native(self) -> bool {
        matches!(self, Kind::Generate | Kind::Chat)
    }

    fn voice(
        self,
        serial: u64,
        model: String,
        fields: &Fields,
        prompt_tokens: u64,
    ) -> Box<dyn Voice> {
        match self {
            Kind::Generate | Kind::Chat => {
                Box::new(Native { model, chat: self == Kind::Chat, serial })
            }
            Kind::OpenAiChat => {
                let options = fields.get("stream_options");
                let usage =
                    options.and_then(|o| o.get("include_usage")) == Some(&Value::Bool(true));
                Box::new(Chat { model, serial, usage, begun: false })
            }
            Kind::Completions => Box::new(Completions { model, serial }),
            Kind::Responses => {
                let limit = fields.get("max_output_tokens").and_then(Value::as_u64);
                Box::new(Responses { model, serial, limit, said: String::new(), sequence: 0 })
            }
            Kind::Messages => Box::new(Messages { model, serial, prompt_tokens, block: None }),
        }
    }
}

/// Answers, or the connection ends (an error of the service closes it).
pub(super) async fn infer(
    shared: &Arc<Shared>,
    line: &Line,
    kind: Kind,
    dialect: Dialect,
    fields: &Fields,
) -> io::Result<Response<Body>> {
    let said = fields.model().to_owned();
    let model = match shared.find(&said) {
        Ok(model) => model,
        Err(error) => return Ok(error.answer(dialect, &said)),
    };
    if let Err(text) = fits(&model, &said, kind, fields) {
        return Ok(dialect.error(400, &text));
    }
    let keep = match fields.keep_alive() {
        Ok(keep) => keep,
        Err(text) => return Ok(dialect.error(400, &text)),
    };
    if let Some(answer) = fault(shared, line, dialect)? {
        return Ok(answer);
    }
    let serial = shared.notes.serial();
    let prompt = fields.prompt();
    let empty = match kind {
        Kind::Generate => prompt.is_empty(),
        Kind::Chat => fields.list("messages").is_empty(),
        _ => false,
    };
    let native = Native { model: said.clone(), chat: kind == Kind::Chat, serial };
    if empty && keep == Some(Keep::For(Duration::ZERO)) {
        shared.scheduler.unload(&model);
        return Ok(reply::whole(200, reply::JSON, native.moved("unload")));
    }
    let mut visit = Visit::new(&shared.notes);
    let begun = Instant::now();
    let options = fields.runner_options(shared.spec.default_ctx);
    let Ok(held) = shared.scheduler.hold(&model, &options, keep).await else {
        visit.finish();
        return Ok(dialect.error(503, super::BUSY));
    };
    if empty {
        visit.finish();
        return Ok(reply::whole(200, reply::JSON, native.moved("load")));
    }
    let slot = held.slot().await;
    visit.run();
    let prompt_tokens = prompt.len() as u64 + 3;
    let cached = shared.cached(&model, &prompt);
    let mut work = Work {
        shared: shared.clone(),
        visit,
        _slot: slot,
        script: model.script.clone(),
        asked: fields.asked(),
        limit: limit(fields, options.num_ctx),
        made: 0,
        begun,
        load: held.load,
        _held: held,
        prefill: Duration::ZERO,
        decode_from: Instant::now(),
        prompt_tokens,
        cached,
        cuts: shared.faults.cuts(),
        cut_after: shared.faults.cut_after(),
    };
    let mut first = work.prefill().await;
    if first.is_none() {
        first = Some(work.step().await);
    }
    let mut voice = kind.voice(serial, said, fields, prompt_tokens);
    let streams = fields.flag("stream").unwrap_or(kind.is_native());
    let mut pieces = Vec::new();
    loop {
        let step = match first.take() {
            Some(step) => step,
            None => work.step().await,
        };
        match step {
            // Nothing was said yet: Ollama answers 500.
            Step::Cut(Cut::Crash) => {
                work.visit.fail();
                return Ok(dialect.error(500, CRASHED));
            }
            Step::Cut(cut) if !streams || cut == Cut::Reset || cut == Cut::Close => {
                work.visit.fail();
                return Err(line.cut(cut));
            }
            step if streams => return Ok(stream(line.clone(), work, voice, step)),
            Step::Piece(piece) => pieces.push(piece),
            Step::End(reason) => {
                let finish = work.finish(reason);
                let whole = voice.whole(&pieces, &finish);
                return Ok(reply::whole(200, voice.whole_type(), whole));
            }
            Step::Cut(cut) => return Err(line.cut(cut)),
        }
    }
}

fn fits(model: &ModelSpec, said: &str, kind: Kind, fields: &Fields) -> Result<(), String> {
    if !model.can("completion") {
        return Err(format!("{said:?} does not support {}", kind.verb()));
    }
    if !fields.list("tools").is_empty() && !model.can("tools") {
        return Err(format!("registry.ollama.ai/library/{} does not support tools", model.name));
    }
    if fields.flag("think") == Some(true) && !model.can("thinking") {
        return Err(format!("{said:?} does not support thinking"));
    }
    Ok(())
}

/// The fault that is switched on, as an answer.
pub(super) fn fault(
    shared: &Shared,
    line: &Line,
    dialect: Dialect,
) -> io::Result<Option<Response<Body>>> {
    Ok(Some(match shared.faults.fault() {
        None => return Ok(None),
        Some(Fault::Broken) => dialect.error(500, CRASHED),
        Some(Fault::Busy) => dialect.error(503, super::BUSY),
        Some(Fault::Gone) => dialect.error(404, "model 'gone' not found"),
        Some(Fault::Raw(status, kind, body)) => reply::whole(status, &kind, body),
        Some(Fault::Reset) => return Err(line.cut(Cut::Reset)),
    }))
}

fn limit(fields: &Fields, num_ctx: u64) -> u64 {
    let said = fields
        .option("num_predict")
        .or_else(|| fields.get("max_tokens"))
        .or_else(|| fields.get("max_completion_tokens"))
        .or_else(|| fields.get("max_output_tokens"))
        .and_then(Value::as_i64);
    // Without a limit Ollama stops at ten windows.
    said.and_then(|n| u64::try_from(n).ok()).unwrap_or(10 * num_ctx)
}

enum Step {
    Piece(Piece),
    End(Reason),
    Cut(Cut),
}

/// A request that holds a slot.
struct Work {
    shared: Arc<Shared>,
    visit: Visit,
    _slot: Option<OwnedSemaphorePermit>,
    _held: Held,
    script: Script,
    asked: Asked,
    limit: u64,
    made: u64,
    begun: Instant,
    load: Duration,
    prefill: Duration,
    decode_from: Instant,
    prompt_tokens: u64,
    cached: u64,
    cuts: watch::Receiver<Option<Cut>>,
    cut_after: Option<(u64, Cut)>,
}

impl Work {
    /// Reads the prompt. `Some` = cut meanwhile.
    async fn prefill(&mut self) -> Option<Step> {
        let from = Instant::now();
        let tokens = self.prompt_tokens.saturating_sub(self.cached);
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        let cut =
            self.work(from + self.shared.faults.pace(self.shared.spec.prefill * tokens)).await;
        self.prefill = from.elapsed();
        self.decode_from = Instant::now();
        cut.map(Step::Cut)
    }

    async fn step(&mut self) -> Step {
        if let Some((_, cut)) = self.cut_after.filter(|(after, _)| self.made >= *after) {
            return Step::Cut(cut);
        }
        if self.made >= self.limit {
            return Step::End(Reason::Length);
        }
        let Some(piece) = self.script.piece(self.made, &self.asked) else {
            let called =
                self.script == Script::Tools && self.asked.tools && !self.asked.tool_result;
            return Step::End(if called { Reason::Tool } else { Reason::Stop });
        };
        let token = self.shared.faults.pace(self.shared.spec.token);
        if let Some(cut) = self.work(Instant::now() + token).await {
            return Step::Cut(cut);
        }
        self.made += 1;
        self.visit.token();
        Step::Piece(piece)
    }

    /// Works until then, unless cut or frozen.
    async fn work(&mut self, until: Instant) -> Option<Cut> {
        if until <= Instant::now() {
            // No speed limit: still let others run, and look for a cut.
            tokio::task::yield_now().await;
        }
        let cut = tokio::select! {
            biased;
            changed = self.cuts.changed() => changed.ok().and_then(|()| *self.cuts.borrow_and_update()),
            () = tokio::time::sleep_until(until) => None,
        };
        self.shared.faults.frozen.thawed().await;
        cut
    }

    fn finish(&mut self, reason: Reason) -> Finish {
        self.visit.finish();
        Finish {
            reason,
            prompt_tokens: self.prompt_tokens,
            tokens: self.made,
            total: self.begun.elapsed(),
            load: self.load,
            prefill: self.prefill,
            decode: self.decode_from.elapsed(),
        }
    }
}

/// The stream of an answer, from its first step on.
fn stream(line: Line, work: Work, mut voice: Box<dyn Voice>, first: Step) -> Response<Body> {
    struct State {
        line: Line,
        work: Work,
        voice: Box<dyn Voice>,
        next: Option<Step>,
    }
    let kind = voice.stream_type();
    let (notes, page) = (work.shared.notes.clone(), work.shared.notes.page());
    let mut open = voice.open();
    let state = State { line, work, voice, next: Some(first) };
    let chunks = futures_util::stream::unfold(Some(state), move |state| {
        let open = std::mem::take(&mut open);
        async move {
            let mut s = state?;
            let step = match s.next.take() {
                Some(step) => step,
                None => s.work.step().await,
            };
            let said = match step {
                Step::Piece(piece) => {
                    let text = open + &s.voice.piece(&piece);
                    return Some((Ok(Bytes::from(text)), Some(s)));
                }
                Step::End(reason) => {
                    let finish = s.work.finish(reason);
                    open + &s.voice.end(&finish)
                }
                Step::Cut(cut) => {
                    s.work.visit.fail();
                    match cut {
                        Cut::Crash => open + &s.voice.crash(),
                        Cut::Clean => open,
                        Cut::Reset | Cut::Close => return Some((Err(s.line.cut(cut)), None)),
                    }
                }
            };
            Some((Ok(Bytes::from(said)), None))
        }
    });
    use futures_util::StreamExt as _;
    reply::stream(
        kind,
        chunks.inspect(move |chunk| {
            if let Ok(bytes) = chunk {
                notes.sends(page, bytes);
            }
        }),
    )
}

impl Line {
    /// The error that ends this connection, in that way.
    pub(super) fn cut(&self, cut: Cut) -> io::Error {
        if cut == Cut::Reset {
            self.reset.store(true, SeqCst);
        }
        io::Error::new(io::ErrorKind::ConnectionAborted, "the stand-in was told to cut here")
    }
}
