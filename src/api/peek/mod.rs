//! What a request's body says, read while it comes in.
//!
//! Bytes go in frame by frame ([`Scanner::feed`]); out comes [`Peeked`]: the model and the
//! few other top-level fields that decide where a request goes, with the places of those
//! that may have to be replaced ([`rewrite`]). The body itself is never kept, copied or
//! changed here, and nothing deeper than `options` is looked at.
//!
//! The meaning is that of Go's decoder, because Ollama's is the meaning that counts: keys
//! match in any letter case (`ſ` and the Kelvin sign fold to `s` and `k`), a later key
//! replaces an earlier one, a second `options` is merged into the first, `null` leaves texts
//! as they were, and what follows the top-level value is not read.
//!
//! [`Scanner::model`] answers early, in the middle of a body. Until the end a later second
//! `model` could still change it; whoever decides early (only for programs on this machine,
//! only for large bodies) accepts that for such a body. [`Peeked::model`] is the final word.

mod field;
mod keep_alive;
mod scan;
mod splice;

use std::collections::BTreeMap;
use std::ops::Range;

pub use super::json::Problem;
pub use keep_alive::KeepAlive;
pub use scan::Scanner;
pub use splice::{ends_with, quote, rewrite, rewrite_all};

use crate::types::{Api, LoadKey, Op};

/// A value and where it stands in the whole body, quotes included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its bytes, counted from the start of the body: what [`rewrite`] replaces.
    pub range: Range<usize>,
}

/// Whether a field says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Content {
    /// Not there, or `null`.
    #[default]
    Absent,
    /// `""`, `[]` or `{}`.
    Empty,
    /// Something.
    Some,
}

impl Content {
    /// Whether there is something.
    pub const fn is_some(self) -> bool {
        matches!(self, Content::Some)
    }
}

/// Why a body means different things to different readers. A peer's request with such a
/// body is refused: what a rule checked has to be what an engine gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// A second top-level key that counts as this one.
    #[error("`{0}` stands twice in the request")]
    Twice(&'static str),
    /// Both are there and say different things.
    #[error("`model` and `name` differ")]
    ModelAndName,
    /// Something follows the request's JSON.
    #[error("something follows the JSON of the request")]
    Trailing,
}

/// What a body says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Peeked {
    /// Why the body is not JSON that we read. The engine owns the error, except for
    /// [`Problem::TooDeep`], which an engine might still read.
    pub problem: Option<Problem>,
    /// Why a peer may not send it.
    pub conflict: Option<Conflict>,
    /// Whether a field we know is spelled in other letter case, which Go reads and
    /// OpenAI-kind engines do not.
    pub folded: bool,
    /// `model`, as Go takes it; may be empty.
    pub model: Option<At<String>>,
    /// `name`.
    pub name: Option<At<String>>,
    /// `from` of a create.
    pub from: Option<At<String>>,
    /// `source` of a copy.
    pub source: Option<At<String>>,
    /// `destination` of a copy.
    pub destination: Option<At<String>>,
    /// `stream`, if said.
    pub stream: Option<bool>,
    /// `keep_alive`, if said.
    pub keep_alive: Option<At<KeepAlive>>,
    /// `prompt`.
    pub prompt: Content,
    /// `messages`.
    pub messages: Content,
    /// `input` of embeddings and responses.
    pub input: Content,
    /// `tools`.
    pub tools: Content,
    /// Top-level `images`.
    pub images: Content,
    /// `suffix` (fill in the middle).
    pub suffix: Content,
    /// `shift`.
    pub shift: Option<bool>,
    /// `think`: on with `true` or any level.
    pub think: Option<bool>,
    /// `max_tokens`, `max_completion_tokens` or `max_output_tokens`, whichever came last.
    pub max_tokens: Option<At<i64>>,
    /// `options.num_ctx`.
    pub num_ctx: Option<At<i64>>,
    /// `options.num_predict`.
    pub num_predict: Option<At<i64>>,
    /// Bytes of images and the like, wherever they stand: base64, which is no text.
    pub encoded: u64,
    /// The other `options` that belong to the runner, as compact JSON.
    pub runner: BTreeMap<String, String>,
}

impl Peeked {
    /// Whether the body is JSON.
    pub const fn is_valid(&self) -> bool {
        self.problem.is_none()
    }

    /// The model that is asked for: `model`, else `name`; an empty text is none.
    pub fn wanted(&self) -> Option<&At<String>> {
        let said = |at: &Option<At<String>>| at.as_ref().is_some_and(|t| !t.value.is_empty());
        if said(&self.model) {
            self.model.as_ref()
        } else {
            self.name.as_ref().filter(|_| said(&self.name))
        }
    }

    /// Whether the answer will be a stream, as that dialect's default has it.
    pub fn streams(&self, api: Api, op: Op) -> bool {
        match (api, op) {
            (_, Op::Embed) | (Api::Embeddings, _) => false,
            (Api::Ollama, _) => self.stream.unwrap_or(true),
            _ => self.stream.unwrap_or(false),
        }
    }

    /// Whether the request only loads or unloads: a native request without a prompt.
    pub fn is_bare(&self, api: Api, op: Op) -> bool {
        match (api, op) {
            (Api::Ollama, Op::Generate) => !self.prompt.is_some(),
            (Api::Ollama, Op::Chat) => !self.messages.is_some(),
            _ => false,
        }
    }

    /// Whether the request unloads a model: bare, with a `keep_alive` under a second (some
    /// versions of Ollama count whole seconds).
    pub fn unloads(&self, api: Api, op: Op) -> bool {
        self.is_bare(api, op)
            && self.keep_alive.as_ref().is_some_and(|k| k.value.whole_seconds() == Some(0))
    }

    /// Most tokens the answer may have, if the request says.
    pub fn predict(&self, api: Api) -> Option<&At<i64>> {
        if api == Api::Ollama { self.num_predict.as_ref() } else { self.max_tokens.as_ref() }
    }

    /// What of this request would make Ollama restart its engine. Only its own dialect has
    /// `options`; through `/v1` they are ignored.
    pub fn load_key(&self, api: Api) -> LoadKey {
        if api != Api::Ollama {
            return LoadKey::default();
        }
        LoadKey {
            num_ctx: self.num_ctx.as_ref().and_then(|n| u64::try_from(n.value).ok()),
            shift: self.shift,
            runner: self.runner.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
