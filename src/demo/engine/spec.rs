//! What a stand-in engine is: its models, its limits, its speeds.
//!
//! Everything is a value given at the start. The answers are scripts, so the same request
//! always gets the same words, whichever engine and dialect it goes to.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::types::ModelKey;

/// A stand-in engine before it is started.
#[derive(Debug, Clone)]
pub struct EngineSpec {
    /// A name for messages of tests.
    pub name: String,
    /// What `/api/version` says.
    pub version: String,
    /// The models it has.
    pub models: Vec<ModelSpec>,
    /// What a `pull` finds.
    pub registry: Vec<ModelSpec>,
    /// Requests a loaded model runs at once (`OLLAMA_NUM_PARALLEL`).
    pub num_parallel: usize,
    /// Models in memory at once (`OLLAMA_MAX_LOADED_MODELS`).
    pub max_loaded: usize,
    /// Requests that may wait for a load (`OLLAMA_MAX_QUEUE`).
    pub max_queue: usize,
    /// How long an idle model stays in memory (`OLLAMA_KEEP_ALIVE`).
    pub keep_alive: Duration,
    /// Context window of a model that is loaded without `num_ctx`.
    pub default_ctx: u64,
    /// How long a load takes.
    pub load: Duration,
    /// How long one prompt token takes.
    pub prefill: Duration,
    /// How long one answer token takes.
    pub token: Duration,
    /// Whether the beginning that a prompt shares with the model's last one takes no time. It
    /// is counted all the same, as Ollama does.
    pub prefix_cache: bool,
    /// Whether hosted (`:cloud`) models answer, as with an account that is signed in.
    pub cloud: bool,
    /// Which port to take on 127.0.0.1; 0 = any free one.
    pub port: u16,
}

impl EngineSpec {
    /// A fast engine with Ollama's defaults and these models.
    pub fn new(name: &str, models: Vec<ModelSpec>) -> Self {
        EngineSpec {
            name: name.to_owned(),
            version: "0.32.15".to_owned(),
            models,
            registry: Vec::new(),
            num_parallel: 1,
            max_loaded: 3,
            max_queue: 512,
            keep_alive: Duration::from_secs(300),
            default_ctx: 4096,
            load: Duration::from_millis(20),
            prefill: Duration::from_micros(20),
            token: Duration::from_millis(1),
            prefix_cache: false,
            cloud: false,
            port: 0,
        }
    }
}

/// A model of a stand-in engine.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// Its name as lists show it, with the tag.
    pub name: String,
    /// Bytes on disk.
    pub size: u64,
    /// Digest of the weights (64 hex digits). Models with the same weights share a runner.
    pub weights: String,
    /// The prompt template; part of what makes two copies equal.
    pub template: String,
    /// The words of `capabilities` in `/api/show`.
    pub capabilities: Vec<String>,
    /// Largest context window.
    pub context: u64,
    /// `details.parameter_size`.
    pub parameters: String,
    /// When it was last changed, seconds since 1970.
    pub modified: u64,
    /// For a stub of a hosted model: the host it stands for.
    pub remote: Option<String>,
    /// What it answers.
    pub script: Script,
}

/// What a model answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Script {
    /// ` 1`, ` 2`, ` 3` … for ever: a lost, doubled or swapped chunk is visible.
    Count,
    /// These words, one token each, then it stops.
    Words(Vec<String>),
    /// Thinks first, then answers.
    Think,
    /// Calls `get_weather` while tools are offered; says the weather after a tool result.
    Tools,
    /// Vectors.
    Embed,
}

impl ModelSpec {
    fn new(name: &str, capabilities: &[&str], script: Script) -> Self {
        let name = if name.contains(':') { name.to_owned() } else { format!("{name}:latest") };
        let weights = hex(name.as_bytes());
        ModelSpec {
            name,
            size: 1_089_994,
            weights,
            template: "{{ .Prompt }}".to_owned(),
            capabilities: capabilities.iter().map(|c| (*c).to_owned()).collect(),
            context: 4096,
            parameters: "536K".to_owned(),
            modified: 1_795_244_960,
            remote: None,
            script,
        }
    }

    /// A model that counts from 1.
    pub fn count(name: &str) -> Self {
        ModelSpec::new(name, &["completion"], Script::Count)
    }

    /// A model that says these words and stops.
    pub fn words(name: &str, text: &str) -> Self {
        let words = text.split_whitespace().map(|w| format!(" {w}")).collect();
        ModelSpec::new(name, &["completion"], Script::Words(words))
    }

    /// The model `tiny` of the recordings: one two … twenty.
    pub fn tiny() -> Self {
        ModelSpec::words(
            "tiny",
            "one two three four five six seven eight nine ten eleven twelve thirteen fourteen \
             fifteen sixteen seventeen eighteen nineteen twenty",
        )
    }

    /// A model that thinks aloud.
    pub fn think(name: &str) -> Self {
        ModelSpec::new(name, &["completion", "thinking"], Script::Think)
    }

    /// A model that calls tools.
    pub fn tools(name: &str) -> Self {
        ModelSpec::new(name, &["completion", "tools"], Script::Tools)
    }

    /// A model that makes vectors.
    pub fn embed(name: &str) -> Self {
        ModelSpec::new(name, &["embedding"], Script::Embed)
    }

    /// The same model with another size in bytes and parameter count.
    #[must_use]
    pub fn sized(mut self, bytes: u64, parameters: &str) -> Self {
        self.size = bytes;
        parameters.clone_into(&mut self.parameters);
        self
    }

    /// The same name with other weights: what `variants` is about.
    #[must_use]
    pub fn weighing(mut self, seed: &str) -> Self {
        self.weights = hex(seed.as_bytes());
        self
    }

    /// The same model with another largest context window.
    #[must_use]
    pub fn window(mut self, context: u64) -> Self {
        self.context = context;
        self
    }

    /// The manifest digest: equal for equal content, whoever has it.
    pub fn digest(&self) -> String {
        hex(format!("{}\n{}\n{:?}", self.weights, self.template, self.capabilities).as_bytes())
    }

    /// Whether the model can do this.
    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|c| c == capability)
    }

    pub(super) fn is(&self, key: &ModelKey) -> bool {
        ModelKey::parse(&self.name).is_ok_and(|own| own == *key)
    }
}

/// SHA-256 in hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// One step of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    Thinking(String),
    Tool { name: String, city: String },
}

impl Script {
    /// The `i`th piece (from 0) of the answer to a request that offers tools, or carries a
    /// tool's result, or asks not to think. `None` = the answer has ended.
    pub(super) fn piece(&self, i: u64, ask: &Asked) -> Option<Piece> {
        let word = |words: &[&str], i: u64| {
            usize::try_from(i).ok().and_then(|i| words.get(i)).map(|w| (*w).to_owned())
        };
        match self {
            Script::Count => Some(Piece::Text(format!(" {}", i + 1))),
            Script::Words(words) => {
                usize::try_from(i).ok().and_then(|i| words.get(i)).cloned().map(Piece::Text)
            }
            Script::Think => {
                let thoughts = ["First ", "I look. ", "Then ", "I answer."];
                let answer = ["The ", "answer ", "is ", "forty-two."];
                let skip = if ask.think { 0 } else { 4 };
                let i = i + skip;
                word(&thoughts, i)
                    .map(Piece::Thinking)
                    .or_else(|| word(&answer, i.checked_sub(4)?).map(Piece::Text))
            }
            Script::Tools if ask.tools && !ask.tool_result => {
                let call = Piece::Tool { name: "get_weather".into(), city: "Paris".into() };
                (i == 0).then_some(call)
            }
            Script::Tools => word(&["It ", "is ", "sunny ", "in ", "Paris."], i).map(Piece::Text),
            Script::Embed => None,
        }
    }
}

/// What of a request the script looks at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked {
    pub(super) think: bool,
    pub(super) tools: bool,
    pub(super) tool_result: bool,
}
