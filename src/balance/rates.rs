//! How fast an engine is, learned from answers that it gave anyway.
//!
//! What flows in: what is known of an answer when it ended ([`Reply`]): the engine's own
//! numbers where it says them, else the times at which its pieces came. What flows out:
//! [`Sample`]s, each with how far it is to be trusted, and [`Estimate`]s that samples move.
//! Every number that comes out is finite and within bounds, whatever goes in.
//!
//! What a sample must not be made of:
//! - waiting: only the parts that an engine says it worked count, never `total`;
//! - cached tokens: Ollama counts them into `prompt_eval_count` and not into its duration. A
//!   prompt whose beginning was there just before teaches no prefill, and a sample far above
//!   the estimate is cut to twice of it, with little trust;
//! - a few tokens or milliseconds: they say more of the machine's clock than of its speed;
//! - an answer that was no answer: refusals and errors never get here.

use std::time::Duration;

use super::choose::SHARING;

/// Weight of a whole new sample of a speed: follows a card that throttles in about 8 answers.
pub const SPEED: f64 = 0.25;
/// The same for loads, which are rarer.
pub const LOAD: f64 = 0.3;
/// The same for the length of answers, which differs more.
pub const LENGTH: f64 = 0.1;
/// Tokens of an answer where none was seen.
pub const USUAL_LENGTH: f64 = 200.0;
/// Bytes of weights loaded a second where no load was ever seen. Rather too many than too few: who
/// is thought fast is asked to load, and then it is known; who is thought slow may never be asked.
pub const USUAL_LOAD_RATE: f64 = 1.5e9;
/// The same of a server that does not say itself what its loads take.
pub const UNSAID_LOAD_RATE: f64 = 1e9;
/// What a load takes beside reading the weights, in seconds.
pub const LOAD_START: f64 = 0.8;

/// How long a load of so many bytes takes, in seconds: at `known` bytes a second, or at `usual` where
/// that is 0.
pub fn load_time(bytes: f64, known: f64, usual: f64) -> f64 {
    LOAD_START + bytes / if known > 0.0 { known } else { usual }
}

/// Estimates of less trust count as not measured.
const ENOUGH: f64 = 0.1;
/// A larger share of a prompt that was there just before, and it teaches no prefill.
const MOST_PREFIX: f64 = 0.1;
/// How far above the estimate a prefill may be before cached tokens explain it better.
const SURPLUS: f64 = 2.0;
/// The trust of what is left of such a sample.
const SURPLUS_TRUST: f64 = 0.25;
/// The trust of a decode speed that the relay saw, where the engine said how many tokens.
const SEEN: f64 = 0.5;
/// The same where pieces were counted for tokens, and for a prefill that the relay saw.
const GUESSED: f64 = 0.25;
/// Tokens that have to have come before an answer that was broken off teaches anything.
const CANCELLED: u64 = 32;
/// An estimate from an earlier run loses half of its trust in this time.
const HALF_LIFE: f64 = 24.0 * 3600.0;

/// Tokens and bytes a second that anything can have.
const TOKENS: std::ops::RangeInclusive<f64> = 1e-3..=1e7;
const BYTES: std::ops::RangeInclusive<f64> = 1e2..=1e13;

/// One measured value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Per second, or tokens.
    pub value: f64,
    /// How far it is to be trusted: above 0, at most 1.
    pub trust: f64,
}

impl Sample {
    fn new(value: f64, trust: f64, bounds: &std::ops::RangeInclusive<f64>) -> Option<Sample> {
        let useful = bounds.contains(&value) && trust.is_finite() && trust > 1e-4;
        useful.then(|| Sample { value, trust: trust.min(1.0) })
    }

    /// A value of full trust.
    pub fn whole(value: f64) -> Option<Sample> {
        Sample::new(value, 1.0, &(f64::MIN_POSITIVE..=1e15))
    }
}

/// What the samples so far say.
///
/// An average while there are few, an exponentially weighted one from then on: a whole sample
/// moves it by `weight` in the long run, and by more as long as little is known.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Estimate {
    /// The value; 0 = none.
    pub value: f64,
    /// The sum of the trust of its samples, bounded.
    pub trust: f64,
}

impl Estimate {
    /// The estimate after one more sample; `weight` is that of a whole one in the long run.
    #[must_use]
    pub fn learn(self, sample: Sample, weight: f64) -> Estimate {
        let most = (1.0 / weight.clamp(0.01, 1.0)) - 1.0;
        let trust = if sample.trust.is_finite() { sample.trust.clamp(0.0, 1.0) } else { 0.0 };
        if !sample.value.is_finite() || sample.value <= 0.0 || trust == 0.0 {
            return self;
        }
        let had = if self.value > 0.0 { self.trust.clamp(0.0, most) } else { 0.0 };
        let gain = trust / (had + trust);
        let value = self.value + gain * (sample.value - self.value);
        // Rounding must not lead out of what was said.
        let (low, high) = (self.value.min(sample.value), self.value.max(sample.value));
        let value = if had > 0.0 { value.clamp(low, high) } else { sample.value };
        Estimate { value, trust: (had + trust).min(most.max(1.0)) }
    }

    /// The value, if enough was seen.
    pub fn known(self) -> Option<f64> {
        (self.value > 0.0 && self.value.is_finite() && self.trust >= ENOUGH).then_some(self.value)
    }

    /// What it is worth when it is that old: known things stay known, and give way sooner.
    #[must_use]
    pub fn aged(self, age: Duration) -> Estimate {
        let trust = self.trust.min(1.0) * 0.5_f64.powf(age.as_secs_f64() / HALF_LIFE);
        let floor = if self.known().is_some() { ENOUGH } else { 0.0 };
        Estimate { trust: trust.max(floor), ..self }
    }
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum End {
    /// As a whole.
    #[default]
    Whole,
    /// At a limit of tokens that was asked for.
    Limit,
    /// The client left.
    Cancelled,
    /// Otherwise.
    Broken,
}

/// What is known of a successful answer when it ended. `None` = nobody said.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reply {
    /// How it ended.
    pub end: End,
    /// Tokens of the prompt, as the engine counted them: cached ones included.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer, as the engine counted them.
    pub output_tokens: Option<u64>,
    /// How long the engine says it read the prompt.
    pub prompt: Option<Duration>,
    /// How long the engine says it wrote.
    pub decode: Option<Duration>,
    /// Pieces of the answer that were seen.
    pub items: u64,
    /// From when the engine could begin to the first piece of a stream; `None` where it may
    /// have been waited for something else meanwhile.
    pub first: Option<Duration>,
    /// From the first piece of a stream to the last.
    pub stream: Option<Duration>,
    /// Other requests beside it, at its end.
    pub beside: u32,
    /// The share of its prompt that was there just before.
    pub prefix: f64,
}

/// The speed at which tokens were written by a lone request.
pub fn decode(reply: &Reply) -> Option<Sample> {
    let (tokens, time, trust) = match (reply.output_tokens, reply.decode) {
        (Some(tokens), Some(time)) => (tokens, time, 1.0),
        // The first piece came at the end of the prompt: the others took the time between.
        (Some(tokens), None) => (tokens.checked_sub(1)?, reply.stream?, SEEN),
        (None, _) => (reply.items.checked_sub(1)?, reply.stream?, GUESSED),
    };
    let broken = matches!(reply.end, End::Cancelled | End::Broken);
    if tokens < if broken { CANCELLED } else { 2 } {
        return None;
    }
    let beside = f64::from(reply.beside);
    let trust = trust * ramp(tokens as f64, 32.0) * millis(time, 50.0) / (1.0 + beside);
    let lone = (1.0 + beside).powf(SHARING);
    Sample::new(tokens as f64 / time.as_secs_f64() * lone, trust, &TOKENS)
}

/// The speed at which a prompt was read. `known` is the estimate so far.
pub fn prefill(reply: &Reply, known: Estimate) -> Option<Sample> {
    let tokens = reply.prompt_tokens? as f64;
    if reply.end == End::Broken || reply.prefix.is_nan() || reply.prefix > MOST_PREFIX {
        return None;
    }
    let (time, trust) = match (reply.prompt, reply.first) {
        (Some(time), _) => (time, 1.0),
        // Everything before the first piece: the network, and what came before it in line.
        (None, Some(time)) if reply.beside == 0 && tokens >= 64.0 => (time, GUESSED),
        _ => return None,
    };
    let tokens = tokens * (1.0 - reply.prefix.max(0.0));
    let trust = trust * ramp(tokens, 128.0) * millis(time, 20.0) / (1.0 + f64::from(reply.beside));
    let rate = tokens / time.as_secs_f64();
    match known.known() {
        Some(known) if rate > SURPLUS * known => {
            Sample::new(SURPLUS * known, trust * SURPLUS_TRUST, &TOKENS)
        }
        _ => Sample::new(rate, trust, &TOKENS),
    }
}

/// How many tokens of a prompt were cached, by the time it took.
pub fn cached(tokens: u64, time: Duration, prefill: f64) -> u64 {
    let read = (time.as_secs_f64() * prefill.max(0.0)).ceil();
    // A float that is no number is no token.
    tokens.saturating_sub(if read.is_finite() { read as u64 } else { tokens })
}

/// The length of the answer, as a sample of what answers are like.
pub fn length(reply: &Reply, usual: f64) -> Option<Sample> {
    let tokens = reply.output_tokens? as f64;
    match reply.end {
        End::Whole => Sample::new(tokens, 1.0, &(1.0..=1e7)),
        // It would have been at least as long: says something only if that is much.
        End::Limit if tokens > usual => Sample::new(tokens, 1.0, &(1.0..=1e7)),
        _ => None,
    }
}

/// The speed at which `bytes` of weights came into memory.
pub fn load(bytes: u64, took: Duration) -> Option<Sample> {
    // Small models say how long an engine takes to start, and nothing of its disk.
    let trust = ramp(bytes as f64, 5e8);
    let time = (took.as_secs_f64() - LOAD_START).max(0.05);
    Sample::new(bytes as f64 / time, trust, &BYTES)
}

/// The speed at which a body left. The first part of it only fills buffers: it is measured how
/// long the rest took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Upload {
    sent: u64,
    /// Since when the buffers count as full, and how much had gone by then.
    full: Option<(Duration, u64)>,
    last: Duration,
    starved: Duration,
    starves: Option<Duration>,
}

impl Upload {
    /// What our own and the system's buffers take at once.
    const BUFFERS: u64 = 512 * 1024;
    /// What has to go beyond that for a sample of full trust.
    const PLENTY: f64 = 4e6;

    /// More is asked for at `now` (since the start of anything): all before has gone.
    pub fn asked(&mut self, now: Duration) {
        if let Some(since) = self.starves.take() {
            self.starved = self.starved.saturating_add(now.saturating_sub(since));
        }
        if self.full.is_none() && self.sent >= Upload::BUFFERS {
            self.full = Some((now, self.sent));
            self.starved = Duration::ZERO;
        }
        self.last = now;
    }

    /// There is nothing to give at `now`: the client is slow, not the way.
    pub fn starves(&mut self, now: Duration) {
        self.starves = Some(now);
    }

    /// So many bytes were given.
    pub fn gave(&mut self, bytes: u64) {
        self.sent = self.sent.saturating_add(bytes);
    }

    /// What it says of the way when the last bytes, `tail` of them, were asked for.
    pub fn sample(&self, tail: u64) -> Option<Sample> {
        let (since, before) = self.full?;
        let bytes = self.sent.saturating_sub(tail).checked_sub(before)? as f64;
        let time = self.last.saturating_sub(since).saturating_sub(self.starved);
        let trust = ramp(bytes, Upload::PLENTY);
        Sample::new(bytes / time.as_secs_f64().max(1e-3), trust, &BYTES)
    }
}

fn ramp(value: f64, full: f64) -> f64 {
    (value / full).clamp(0.0, 1.0)
}

fn millis(time: Duration, full: f64) -> f64 {
    ramp(time.as_secs_f64() * 1e3, full)
}

#[cfg(test)]
#[path = "rates/tests.rs"]
mod tests;
