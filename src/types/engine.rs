//! Model servers and what they hold.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The kind of a model server, found by asking it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// Ollama.
    Ollama,
    /// llama.cpp's `llama-server`.
    LlamaCpp,
    /// vLLM.
    Vllm,
    /// LM Studio.
    LmStudio,
    /// A server with OpenAI's `/v1/models` that we know nothing more about.
    OpenAi,
}

impl EngineKind {
    /// The word in status and logs.
    pub const fn label(self) -> &'static str {
        match self {
            EngineKind::Ollama => "ollama",
            EngineKind::LlamaCpp => "llama.cpp",
            EngineKind::Vllm => "vllm",
            EngineKind::LmStudio => "lm-studio",
            EngineKind::OpenAi => "openai",
        }
    }
}

/// A number for one endpoint, unique while the program runs. Never reused for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub u32);

/// A content digest as Ollama writes it, without the `sha256:` prefix.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct Digest(pub Arc<str>);

/// What a model can do, from `/api/show`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(default)]
pub struct Capabilities {
    /// Text generation.
    pub completion: bool,
    /// Tool calls.
    pub tools: bool,
    /// Images.
    pub vision: bool,
    /// Thinking.
    pub thinking: bool,
    /// Embeddings.
    pub embedding: bool,
    /// Fill in the middle.
    pub insert: bool,
}

impl Capabilities {
    /// From the words of `/api/show`; unknown words are ignored.
    pub fn from_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let mut c = Capabilities::default();
        for word in words {
            match word {
                "completion" => c.completion = true,
                "tools" => c.tools = true,
                "vision" => c.vision = true,
                "thinking" => c.thinking = true,
                "embedding" => c.embedding = true,
                "insert" => c.insert = true,
                _ => {}
            }
        }
        c
    }

    /// The words of what is set here and not in `has`.
    pub fn lacking_in(&self, has: &Capabilities) -> Vec<&'static str> {
        let all = [
            (self.completion, has.completion, "completion"),
            (self.tools, has.tools, "tools"),
            (self.vision, has.vision, "vision"),
            (self.thinking, has.thinking, "thinking"),
            (self.embedding, has.embedding, "embedding"),
            (self.insert, has.insert, "insert"),
        ];
        all.iter().filter(|(need, has, _)| *need && !has).map(|(_, _, word)| *word).collect()
    }
}

/// All that makes Ollama restart its engine when it differs from one request to the next:
/// the weights, `num_ctx`, other runner options, and `shift`.
///
/// `None` in [`LoadKey::num_ctx`] means the request left it to the engine's default.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct LoadKey {
    /// `options.num_ctx`.
    pub num_ctx: Option<u64>,
    /// Top-level `shift`, if the request sets it.
    pub shift: Option<bool>,
    /// `options` that belong to the runner (`num_batch`, `num_gpu`, `main_gpu`, `use_mmap`,
    /// `num_thread`, …), as compact JSON.
    pub runner: BTreeMap<String, String>,
}

/// Whether an offer's model is in memory.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum LoadedState {
    /// Not in memory.
    #[default]
    Cold,
    /// Being brought in.
    Loading,
    /// In memory, with this context window (0 = unknown).
    Loaded,
}

/// What a machine runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Power {
    /// The mains.
    Mains,
    /// Its battery.
    Battery,
    /// Nobody says.
    Unknown,
}
