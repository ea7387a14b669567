//! What an answer says it counted.

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

/// Token counts and durations; `None` = not said. Only Ollama's own dialect says durations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    pub prompt_tokens: Option<u64>,
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
            let choice = whole.choices.and_then(|c| c.into_iter().next());
            let word = choice.and_then(|c| c.finish_reason).or(whole.stop_reason).or(whole.status);
            usage.done_reason = word.map(|w| DoneReason::of(&w));
        }
        usage
    }

    /// Takes over what `counts` says.
    pub(super) fn count(&mut self, counts: Option<Counts>) {
        let Some(counts) = counts else { return };
        self.prompt_tokens = counts.prompt_tokens.or(counts.input_tokens).or(self.prompt_tokens);
        self.output_tokens =
            counts.completion_tokens.or(counts.output_tokens).or(self.output_tokens);
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
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    stop_reason: Option<String>,
    #[serde(default)]
    status: Option<String>,
}
