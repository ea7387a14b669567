//! What an answer says it counted.

use std::time::Duration;

use serde::Deserialize;

use crate::types::Api;

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoneReason {
    /// It was finished.
    Stop,
    /// The limit of tokens, or the context window.
    Length,
    /// It calls tools.
    Tools,
    /// A model was loaded, nothing was asked.
    Load,
    /// A model was unloaded.
    Unload,
    /// Something else.
    Other,
}

impl DoneReason {
    pub(super) fn of(word: &str) -> DoneReason {
        match word {
            "stop" | "end_turn" | "stop_sequence" | "completed" => DoneReason::Stop,
            "length" | "max_tokens" | "max_output_tokens" => DoneReason::Length,
            "tool_calls" | "tool_use" | "function_call" => DoneReason::Tools,
            "load" => DoneReason::Load,
            "unload" => DoneReason::Unload,
            _ => DoneReason::Other,
        }
    }
}

/// Token counts and durations; `None` = not said. Ollama's own dialect says durations, and
/// llama.cpp does in OpenAI's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    pub prompt_tokens: Option<u64>,
    /// How many of those were cached. Ollama does not say.
    pub cached_tokens: Option<u64>,
    /// How many were written into the provider's cache, which may cost more.
    pub cache_writes: Option<u64>,
    /// Tokens of the answer.
    pub output_tokens: Option<u64>,
    /// Nanoseconds of reading the prompt; tiny when it was cached.
    pub prompt_ns: Option<u64>,
    /// Nanoseconds of writing the answer.
    pub eval_ns: Option<u64>,
    /// Nanoseconds of loading, the wait for another model's eviction included.
    pub load_ns: Option<u64>,
    /// Nanoseconds in all. What is in none of the parts was spent waiting for a slot.
    pub total_ns: Option<u64>,
    /// Why it ended.
    pub done_reason: Option<DoneReason>,
}

impl Usage {
    /// Nanoseconds the request waited for a slot, where durations are said.
    pub fn queue_ns(&self) -> Option<u64> {
        let parts = [self.load_ns, self.prompt_ns, self.eval_ns];
        let spent = parts.into_iter().flatten().fold(0, u64::saturating_add);
        self.total_ns.map(|total| total.saturating_sub(spent))
    }

    /// From a unary answer.
    pub fn of_body(api: Api, body: &[u8]) -> Usage {
        let mut usage = Usage::default();
        if api == Api::Ollama {
            if let Ok(item) = serde_json::from_slice::<Native>(body) {
                item.fill(&mut usage);
            }
        } else if let Ok(whole) = serde_json::from_slice::<Whole>(body) {
            usage.count(whole.usage);
            usage.time(whole.timings);
            let choice = whole.choices.and_then(|c| c.into_iter().next());
            let word = choice.and_then(|c| c.finish_reason).or(whole.stop_reason).or(whole.status);
            usage.done_reason = word.map(|w| DoneReason::of(&w));
        }
        usage
    }

    /// Takes over what `counts` says.
    pub(super) fn count(&mut self, counts: Option<Counts>) {
        let Some(counts) = counts else { return };
        // Anthropic counts what the cache gave and took apart from the rest.
        let (read, written) = (counts.cache_read_input_tokens, counts.cache_creation_input_tokens);
        let apart = read.unwrap_or(0).saturating_add(written.unwrap_or(0));
        let prompt = counts.prompt_tokens.or(counts.input_tokens);
        self.prompt_tokens = prompt.map(|n| n.saturating_add(apart)).or(self.prompt_tokens);
        self.cache_writes = written.or(self.cache_writes);
        self.output_tokens =
            counts.completion_tokens.or(counts.output_tokens).or(self.output_tokens);
        let cached = counts.prompt_tokens_details.and_then(|details| details.cached_tokens);
        // Ollama says nought here whatever its cache gave.
        let input = counts.input_tokens_details.and_then(|details| details.cached_tokens);
        let cached = cached.or(input.filter(|tokens| *tokens > 0));
        self.cached_tokens = cached.or(read).or(self.cached_tokens);
    }

    /// Takes over what `timings` says.
    pub(super) fn time(&mut self, timings: Option<Timings>) {
        let Some(timings) = timings else { return };
        let ns = |ms: Option<f64>| {
            let time = Duration::try_from_secs_f64(ms? / 1e3).ok()?;
            u64::try_from(time.as_nanos()).ok()
        };
        self.prompt_ns = ns(timings.prompt_ms).or(self.prompt_ns);
        self.eval_ns = ns(timings.predicted_ms).or(self.eval_ns);
        self.cached_tokens = timings.cache_n.or(self.cached_tokens);
    }
}

/// The last item of Ollama's own dialect. Texts are owned: they may hold escapes.
#[derive(Deserialize)]
pub(super) struct Native {
    #[serde(default)]
    pub(super) done: Option<bool>,
    #[serde(default)]
    pub(super) status: Option<serde_json::Value>,
    #[serde(default)]
    pub(super) error: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    done_reason: Option<String>,
    #[serde(default)]
    total_duration: Option<u64>,
    #[serde(default)]
    load_duration: Option<u64>,
    #[serde(default)]
    prompt_eval_count: Option<u64>,
    #[serde(default)]
    prompt_eval_duration: Option<u64>,
    #[serde(default)]
    eval_count: Option<u64>,
    #[serde(default)]
    eval_duration: Option<u64>,
}

impl Native {
    pub(super) fn fill(&self, usage: &mut Usage) {
        *usage = Usage {
            prompt_tokens: self.prompt_eval_count,
            cached_tokens: None,
            cache_writes: None,
            output_tokens: self.eval_count,
            prompt_ns: self.prompt_eval_duration,
            eval_ns: self.eval_duration,
            load_ns: self.load_duration,
            total_ns: self.total_duration,
            done_reason: self.done_reason.as_deref().map(DoneReason::of),
        };
    }
}

/// `usage` of the other dialects.
#[derive(Deserialize, Default)]
pub(super) struct Counts {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
    #[serde(default)]
    input_tokens_details: Option<Details>,
    #[serde(default)]
    cache_read_input_tokens: Option<u64>,
    #[serde(default)]
    cache_creation_input_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

/// `timings` of llama.cpp.
#[derive(Deserialize)]
pub(super) struct Timings {
    #[serde(default)]
    cache_n: Option<u64>,
    #[serde(default)]
    prompt_ms: Option<f64>,
    #[serde(default)]
    predicted_ms: Option<f64>,
}

/// One choice of a chat or text completion.
#[derive(Deserialize)]
pub(super) struct Choice {
    #[serde(default)]
    pub(super) index: u32,
    #[serde(default)]
    pub(super) finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Whole {
    #[serde(default)]
    usage: Option<Counts>,
    #[serde(default)]
    timings: Option<Timings>,
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    stop_reason: Option<String>,
    #[serde(default)]
    status: Option<String>,
}
