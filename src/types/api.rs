//! Dialects: the shapes in which a client may speak.

/// A dialect (`Api` in metrics and logs).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Api {
    /// Ollama's own `/api/*`: NDJSON streams.
    Ollama,
    /// OpenAI `/v1/chat/completions`: server-sent events that end in `[DONE]`.
    Chat,
    /// OpenAI `/v1/completions`.
    Completions,
    /// OpenAI `/v1/responses`: named events.
    Responses,
    /// OpenAI `/v1/embeddings`; never streams.
    Embeddings,
    /// OpenAI `/v1/models` and anything else under `/v1/` with OpenAI's error shape.
    OpenAi,
    /// Anthropic `/v1/messages`.
    Messages,
}

impl Api {
    /// The label in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Api::Ollama => "ollama",
            Api::Chat => "chat",
            Api::Completions => "completions",
            Api::Responses => "responses",
            Api::Embeddings => "embeddings",
            Api::OpenAi => "openai",
            Api::Messages => "messages",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of dialects, as an endpoint serves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ApiSet(u8);

impl ApiSet {
    /// No dialect.
    pub const NONE: ApiSet = ApiSet(0);

    /// All dialects: what a current Ollama speaks.
    pub const ALL: ApiSet = ApiSet(0x7f);

    /// This set and one more dialect.
    #[must_use]
    pub const fn with(self, api: Api) -> ApiSet {
        ApiSet(self.0 | api.bit())
    }

    /// This set without one dialect.
    #[must_use]
    pub const fn without(self, api: Api) -> ApiSet {
        ApiSet(self.0 & !api.bit())
    }

    /// Whether the set holds `api`.
    pub const fn has(self, api: Api) -> bool {
        self.0 & api.bit() != 0
    }

    /// The bits, for the mesh protocol.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The set with these bits; unknown bits are dropped.
    pub const fn from_bits(bits: u8) -> ApiSet {
        ApiSet(bits & 0x7f)
    }
}

/// What a provider speaks (`api` in openclaw.json).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProviderApi {
    /// `openai-completions`: chat completions, text completions, embeddings.
    Completions,
    /// `openai-responses`: the same, and responses.
    Responses,
    /// `anthropic-messages`.
    Messages,
    /// `ollama`: Ollama's own dialect and all that Ollama speaks beside it.
    Ollama,
}

impl ProviderApi {
    /// The word in the configuration.
    pub const fn label(self) -> &'static str {
        match self {
            ProviderApi::Completions => "openai-completions",
            ProviderApi::Responses => "openai-responses",
            ProviderApi::Messages => "anthropic-messages",
            ProviderApi::Ollama => "ollama",
        }
    }
}

/// What a request asks for (`op` in metrics and logs).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the route's own name")]
pub enum Op {
    Chat,
    Generate,
    Embed,
    Completions,
    Responses,
    Messages,
    CountTokens,
    Show,
    Model,
    Tags,
    Models,
    Ps,
    Root,
    Version,
    Pull,
    Push,
    Create,
    Copy,
    Delete,
    Blob,
    Account,
    Preflight,
    Other,
}

impl Op {
    /// The label in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Op::Chat => "chat",
            Op::Generate => "generate",
            Op::Embed => "embed",
            Op::Completions => "completions",
            Op::Responses => "responses",
            Op::Messages => "messages",
            Op::CountTokens => "count_tokens",
            Op::Show => "show",
            Op::Model => "model",
            Op::Tags => "tags",
            Op::Models => "models",
            Op::Ps => "ps",
            Op::Root => "root",
            Op::Version => "version",
            Op::Pull => "pull",
            Op::Push => "push",
            Op::Create => "create",
            Op::Copy => "copy",
            Op::Delete => "delete",
            Op::Blob => "blob",
            Op::Account => "account",
            Op::Preflight => "preflight",
            Op::Other => "other",
        }
    }

    /// Whether the request makes an engine compute (and so passes the gate).
    pub const fn is_inference(self) -> bool {
        matches!(
            self,
            Op::Chat | Op::Generate | Op::Embed | Op::Completions | Op::Responses | Op::Messages
        )
    }

    /// Whether an answer to this may never be asked for twice, on any node.
    pub const fn is_never_retried(self) -> bool {
        matches!(self, Op::Pull | Op::Push | Op::Create | Op::Copy | Op::Delete | Op::Blob)
    }
}
