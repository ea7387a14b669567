//! Which of several offers will answer first.
//!
//! In: candidates as plain numbers, what is asked, the time, chance. Out: the place of one
//! candidate and the terms of its score, in seconds. It never remembers anything, never
//! allocates, and never filters what may not be used: that is absent before it gets here.
//!
//! Constants and their reasons: the simulation behind `ARCHITECTURE.md`'s section on choice.

use std::time::Duration;

use rand::Rng;

use super::rates::{LOAD_START, UNSAID_LOAD_RATE, USUAL_LENGTH, USUAL_LOAD_RATE};
use crate::types::Moment;

/// Scores up to this much above the best count as equal: the predictions are no better.
const NEAR: f64 = 1.15;
/// The same as a difference, for short requests.
const NEAR_SECONDS: f64 = 0.05;
/// Part of a load that is added as its cost to others, where its node says how long one waits: it
/// puts out of memory what somebody will ask for again.
const LOAD_COST: f64 = 0.5;
/// The same where it puts nothing out of memory: it is work all the same.
const ROOM_LOAD_COST: f64 = 0.1;
/// Part of such a load that does not count where one waits for so long where the model is: whoever
/// comes next is spared that. Who never loads until the wait elsewhere is longer than the load
/// leaves good machines idle beside others' queues.
const LOAD_WORTH: f64 = 0.9;
/// The same of a server without a sidecar, where all who use it say what they have there: how long
/// its line of loads is, is in the wait already.
const LINED_LOAD_COST: f64 = 0.1;
/// The same where nobody says: it stands in a hidden line of loads, holds that up, and lets go
/// what others use.
const UNSAID_LOAD_COST: f64 = 2.0;
/// Part of a prompt that is left to read where the session's last request ran: the rest is still
/// in the engine's prefix cache. So a session is worth at most the reading it saves.
const SESSION_PROMPT: f64 = 0.1;
/// A prompt is never quicker to read than this many tokens.
const LEAST_PROMPT: f64 = 60.0;
/// Speeds of a node that was never measured, for a model of [`PRIOR_SIZE`] bytes.
const PRIOR_PREFILL: f64 = 300.0;
const PRIOR_DECODE: f64 = 25.0;
const PRIOR_SIZE: f64 = 5e9;
/// The same where the engine says that nothing of the model is on a GPU.
const PRIOR_CPU_PREFILL: f64 = 40.0;
const PRIOR_CPU_DECODE: f64 = 6.0;
/// One stream of `n` side by side runs at `n^-SHARING` of its lone speed.
pub(super) const SHARING: f64 = 0.25;
/// No term counts for more than this: a week orders as well as for ever, and stays finite.
const MOST: f64 = 7.0 * 24.0 * 3600.0;

/// One offer, as numbers. Zero means "not known" wherever zero makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Candidate {
    /// Its place in the list of offers the caller holds.
    pub index: usize,
    /// Whether it is on this node.
    pub is_local: bool,
    /// Whether its node can be reached and its engine answered.
    pub alive: bool,
    /// Whether the model can do what is asked (tools, images, …), as far as is known.
    pub able: bool,
    /// Until when it rests after failures.
    pub rest_until: Moment,
    /// Whether its node works for nobody else now, or not for us.
    pub closed: bool,
    /// Why it should get no more requests than it has while another can take them; empty if
    /// nothing is against it.
    pub held: &'static str,
    /// Context window it is loaded with; 0 = not loaded; 1 = loaded, window not known.
    pub loaded_ctx: u64,
    /// Window it would be loaded with when nothing is asked for.
    pub default_ctx: u64,
    /// Largest window of the model.
    pub context: u64,
    /// Whether it is being loaded now.
    pub loading: bool,
    /// Whether its engine says that nothing of it is on a GPU.
    pub on_cpu: bool,
    /// Requests running there. With a `wait`: as its report says, without those of `since`;
    /// otherwise as far as is known, ours included.
    pub inflight: u32,
    /// Requests waiting there, known in the same way.
    pub queued: u32,
    /// How many seconds its node said that a new request would wait, the load it needs included,
    /// less the time since. `None`: there is no report young enough to be believed.
    pub wait: Option<f64>,
    /// Without a `wait`: the seconds for which what runs and waits there will keep it busy, added
    /// up, as those say who sent it. `None`: nobody told.
    pub left: Option<f64>,
    /// Without a `wait`: seconds until a load of it would begin. `None`: nobody knows.
    pub line: Option<f64>,
    /// Whether its node says that a load of it would put nothing else out of memory.
    pub fits: bool,
    /// How many seconds one waits at least where the model is in memory ([`queues`]).
    pub queue: f64,
    /// Requests for it that were sent from here after that report and are not in it.
    pub since: u32,
    /// Whether the session's last request ran there, on the model as it is loaded now.
    pub session: bool,
    /// The share of the prompt that is still in its engine's prefix cache, as far as is known
    /// here.
    pub prefix: f64,
    /// Tokens that its engine makes of the prompt; 0 = as the request has them.
    pub prompt: u64,
    /// How many run side by side.
    pub slots: u32,
    /// Prompt tokens a second.
    pub prefill: f64,
    /// Answer tokens a second.
    pub decode: f64,
    /// Bytes of weights loaded a second.
    pub load_rate: f64,
    /// Tokens of a usual answer.
    pub out_tokens: f64,
    /// Bytes of the model.
    pub size: u64,
    /// Round trip in seconds.
    pub rtt: f64,
    /// Seconds that sending this request's body there takes.
    pub upload: f64,
}

impl Candidate {
    /// Tokens of the prompt there.
    pub fn reads(&self, ask: &Ask) -> u64 {
        if self.prompt > 0 { self.prompt } else { ask.prompt_tokens }
    }
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ask {
    /// Tokens of the prompt, estimated.
    pub prompt_tokens: u64,
    /// Most tokens of the answer; `Some(0)` where nothing is generated (embeddings, preloads).
    pub max_output: Option<u64>,
    /// The window the request asks for (`options.num_ctx`).
    pub num_ctx: Option<u64>,
    /// The window it has to have (an agent's `minContext`); 0 = what the prompt needs.
    pub min_context: u64,
    /// Factor on the time of other nodes.
    pub prefer_local: f64,
}

impl Default for Ask {
    fn default() -> Self {
        Ask { prompt_tokens: 0, max_output: None, num_ctx: None, min_context: 0, prefer_local: 1.0 }
    }
}

/// A score in seconds, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Terms {
    /// The way there and back.
    pub rtt: f64,
    /// Sending the body.
    pub upload: f64,
    /// Waiting for a slot.
    pub wait: f64,
    /// Bringing the model into memory.
    pub load: f64,
    /// What that load costs others; below zero, what it is worth to them.
    pub load_cost: f64,
    /// Reading the prompt.
    pub prefill: f64,
    /// Writing the answer.
    pub decode: f64,
    /// The sum, other nodes' multiplied by `prefer_local`.
    pub total: f64,
    /// Why it is not among the first choices, in one word; empty if it is.
    pub behind: &'static str,
}

impl Terms {
    /// How long it is predicted to take. What a load is to others is no part of that, nor that other
    /// nodes are less or more welcome.
    pub fn takes(&self) -> f64 {
        self.rtt + self.upload + self.wait + self.load + self.prefill + self.decode
    }
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// To this candidate.
    Send(Pick),
    /// There is no candidate that takes requests.
    Nobody,
}

/// The candidate that was chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pick {
    /// Its [`Candidate::index`].
    pub index: usize,
    /// Why.
    pub terms: Terms,
    /// Among how many near-equals it was drawn.
    pub among: usize,
}

impl Choice {
    /// The chosen candidate's [`Candidate::index`].
    pub fn index(&self) -> Option<usize> {
        match self {
            Choice::Send(pick) => Some(pick.index),
            Choice::Nobody => None,
        }
    }
}

/// Chooses: the best standing first (alive, able, not resting, window wide enough, not held),
/// then the least time, of those that rest the shortest rest, then chance among near-equals,
/// which keeps several nodes from all running to the same one. A near-equal on this node wins outright unless other nodes are preferred:
/// what happens here is known, not guessed.
pub fn choose(
    candidates: &[Candidate],
    ask: &Ask,
    now: Moment,
    rng: &mut (impl Rng + ?Sized),
) -> Choice {
    let mut best: Option<(u8, f64)> = None;
    for c in candidates.iter().filter(|c| !c.closed) {
        let this = (standing(c, ask, now).0, order(c, score(c, ask, now).total, now));
        best = Some(match best {
            Some(b) if (b.0, b.1) <= this => b,
            _ => this,
        });
    }
    let Some((rank, least)) = best else { return Choice::Nobody };

    // Weighted draw in one pass: each newcomer replaces the one held with the chance that its
    // weight has in the sum so far.
    let near = near(least);
    let (mut held, mut sum, mut among) = (None, 0.0, 0);
    let mut here = None;
    for c in candidates.iter().filter(|c| !c.closed) {
        if standing(c, ask, now).0 != rank {
            continue;
        }
        let terms = score(c, ask, now);
        if order(c, terms.total, now) > near {
            continue;
        }
        among += 1;
        if c.is_local && ask.prefer_local >= 1.0 && here.is_none() {
            here = Some((c.index, terms));
        }
        let weight = weight(terms.total);
        sum += weight;
        if held.is_none() || rng.random_range(0.0..sum) < weight {
            held = Some((c.index, terms));
        }
    }
    match here.or(held) {
        Some((index, terms)) => Choice::Send(Pick { index, terms, among }),
        None => Choice::Nobody,
    }
}

/// Tells each candidate how long the queue is where the model is in memory: the shortest of them.
pub fn queues(candidates: &mut [Candidate]) {
    let there = |c: &&Candidate| c.loaded_ctx > 0 && c.alive && c.able && !c.closed;
    let wait = |c: &Candidate| c.wait.unwrap_or_else(|| unsaid_wait(c, c.slots.max(1), 0.0));
    let waits = candidates.iter().filter(there).map(|c| seconds(wait(c)));
    // Where nobody has it, there is no queue that a load would shorten.
    let queue = waits.min_by(f64::total_cmp).unwrap_or_default();
    candidates.iter_mut().for_each(|c| c.queue = queue);
}

/// The longest time that still counts as equal to the least one.
pub(super) fn near(least: f64) -> f64 {
    least * NEAR + NEAR_SECONDS
}

/// What a near-equal's time weighs in the draw.
pub(super) fn weight(total: f64) -> f64 {
    1.0 / total.max(1e-3)
}

/// The predicted time of one candidate, taken apart. Every number it returns is finite.
pub fn score(c: &Candidate, ask: &Ask, now: Moment) -> Terms {
    let size = c.size as f64;
    // A model of twice the size runs at about half the speed.
    let scale = if size > 0.0 { (PRIOR_SIZE / size).clamp(0.02, 20.0) } else { 1.0 };
    let (prior_prefill, prior_decode) = match c.on_cpu {
        true => (PRIOR_CPU_PREFILL * scale, PRIOR_CPU_DECODE * scale),
        false => (PRIOR_PREFILL * scale, PRIOR_DECODE * scale),
    };
    let prefill_rate = rate(c.prefill, prior_prefill);
    let decode_rate = rate(c.decode, prior_decode);
    let prior_load = if c.wait.is_some() { USUAL_LOAD_RATE } else { UNSAID_LOAD_RATE };
    let load_rate = rate(c.load_rate, prior_load);

    let usual = rate(c.out_tokens, USUAL_LENGTH);
    let output = ask.max_output.map_or(usual, |most| usual.min(most as f64));

    let slots = c.slots.max(1);
    let beside = c.inflight.saturating_add(c.since).min(slots - 1);
    let mut tokens = c.reads(ask) as f64;
    if c.loaded_ctx > 0 {
        let kept = if c.session { 1.0 } else { c.prefix.clamp(0.0, 1.0) };
        tokens *= (1.0 - kept).max(SESSION_PROMPT);
    }
    let prefill = seconds(tokens.max(LEAST_PROMPT) / prefill_rate);
    let decode = seconds(output / decode_rate * f64::from(beside + 1).powf(SHARING));
    let work = prefill + decode;

    let whole = seconds(size / load_rate + LOAD_START);
    let ready = fits_loaded(c, ask);
    let (wait, load) = match c.wait {
        Some(said) => {
            let said = seconds(said);
            let since = seconds(since_wait(c, slots) * work);
            match (ready, c.loaded_ctx) {
                (true, _) => (said + since, 0.0),
                // What was said is for the model as it is loaded, not as it is asked for.
                (false, 1..) => (said + since, whole),
                (false, 0) => ((said - whole).max(0.0) + since, said.min(whole)),
            }
        }
        None => {
            let load = match (ready, c.loading) {
                (true, _) => 0.0,
                // Somebody else's load: about half of it is left.
                (false, true) => whole * 0.5,
                (false, false) => whole,
            };
            let line = if ready || c.loading { 0.0 } else { c.line.map_or(0.0, seconds) };
            (line + seconds(unsaid_wait(c, slots, work)), load)
        }
    };
    // A load that goes on already evicts nothing more.
    let load_cost = match (c.wait, c.line) {
        _ if ready || c.loading => 0.0,
        (Some(_), _) if c.fits && c.loaded_ctx == 0 => {
            load * ROOM_LOAD_COST - seconds(c.queue).min(load * LOAD_WORTH)
        }
        (Some(_), _) => whole * LOAD_COST,
        (None, Some(_)) => whole * LINED_LOAD_COST,
        (None, None) => whole * UNSAID_LOAD_COST,
    };

    let rtt = seconds(if c.is_local { 0.0 } else { c.rtt });
    let factor = if c.is_local { 1.0 } else { rate(ask.prefer_local, 1.0).clamp(0.01, 100.0) };
    let upload = seconds(if c.is_local { 0.0 } else { c.upload });
    let sum = rtt + upload + wait + load + load_cost + prefill + decode;
    let total = seconds(sum * factor);
    let behind = standing(c, ask, now).1;
    Terms { rtt, upload, wait, load, load_cost, prefill, decode, total, behind }
}

/// What our own requests add to the wait its node spoke of, in requests of this kind.
fn since_wait(c: &Candidate, slots: u32) -> f64 {
    let free = slots.saturating_sub(c.inflight);
    let ahead = f64::from(c.since.saturating_sub(free)) / f64::from(slots);
    let last_slot_taken = free > 0 && c.since >= free;
    ahead + if last_slot_taken { 0.5 } else { 0.0 }
}

/// The wait where nobody spoke of one: until as many have ended, each as long as they are on
/// average, that a slot is free. Where nobody tells how much is left of them either, what waits
/// there counts with the length of this one, and what runs with half of it.
fn unsaid_wait(c: &Candidate, slots: u32, work: f64) -> f64 {
    if c.inflight < slots && c.queued == 0 {
        return 0.0;
    }
    let (busy, slots) = (f64::from(c.inflight) + f64::from(c.queued), f64::from(slots));
    let ahead = (busy - slots).max(0.0);
    match c.left {
        Some(left) => (ahead + 1.0) * seconds(left) / busy.max(1.0) / slots,
        None => (ahead + 0.5) / slots * work,
    }
}

/// The order in which candidates are thought of at all, and the word for those behind.
pub(super) fn standing(c: &Candidate, ask: &Ask, now: Moment) -> (u8, &'static str) {
    let rests = c.rest_until.since(now) > Duration::ZERO;
    match () {
        () if c.closed => (6, "closed"),
        () if !c.alive => (5, "dead"),
        () if !c.able => (4, "unable"),
        () if rests => (3, "rests"),
        () if !window_holds(c, ask) => (2, "window"),
        () if !c.held.is_empty() => (1, c.held),
        () => (0, ""),
    }
}

/// What a candidate is compared by with others of its standing: where all rest, the one that
/// would first be asked again is asked now.
pub(super) fn order(c: &Candidate, total: f64, now: Moment) -> f64 {
    let rest = c.rest_until.since(now);
    if rest > Duration::ZERO { rest.as_secs_f64() } else { total }
}

/// Whether the model is in memory in a way this request can use without a reload.
fn fits_loaded(c: &Candidate, ask: &Ask) -> bool {
    match (c.loaded_ctx, ask.num_ctx) {
        (0, _) => false,
        (1, _) | (_, None) => true,
        (loaded, Some(wanted)) => loaded == capped(wanted, c.context),
    }
}

/// Whether the window it has, or would be loaded with, holds the prompt. Ollama cuts what
/// does not fit without saying so. What is not known is taken to fit.
fn window_holds(c: &Candidate, ask: &Ask) -> bool {
    let window = match ask.num_ctx {
        Some(wanted) => capped(wanted, c.context),
        None if c.loaded_ctx > 1 => c.loaded_ctx,
        None => capped(c.default_ctx, c.context),
    };
    window == 0 || window >= c.reads(ask).max(ask.min_context)
}

fn capped(wanted: u64, most: u64) -> u64 {
    if most > 0 { wanted.min(most) } else { wanted }
}

/// A speed that can be divided by.
fn rate(measured: f64, prior: f64) -> f64 {
    let rate = if measured.is_finite() && measured > 0.0 { measured } else { prior };
    rate.clamp(1e-6, 1e15)
}

/// A time that can be added and compared.
fn seconds(value: f64) -> f64 {
    if value.is_nan() { MOST } else { value.clamp(0.0, MOST) }
}

#[cfg(test)]
pub(super) mod tests;
