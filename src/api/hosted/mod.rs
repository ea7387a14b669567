//! What is asked of a provider, and what its answer means.
//!
//! In flow the caller's dialect and the provider's; out flows whether the request goes as it is
//! or translated ([`fit()`]), the body as the provider gets it ([`Fields`]), and what a failure means for the
//! chain ([`verdict()`], [`opening()`]). A request passes as it is where provider and caller speak one
//! dialect: then only the model's name, the provider's own fields and the key differ.

mod fields;
mod opening;
mod suit;
mod verdict;

use super::translate::Translation;
use crate::types::{Api, ApiSet, Op, ProviderApi};

pub use fields::Fields;
pub use opening::{Opening, opening};
pub use suit::suit;
pub use verdict::{Rest, Verdict, verdict};

/// How a request of one dialect can be put to a provider of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// As it is, at this route below the provider's base URL.
    Pass(&'static str),
    /// In the provider's words, at this route.
    Translate(Translation, &'static str),
    /// Not at all.
    Cannot,
}

/// Whether a provider that speaks `provider` can be asked this.
pub fn fit(api: Api, op: Op, provider: ProviderApi) -> Fit {
    use ProviderApi::{Completions, Messages, Ollama, Responses};
    match (api, op, provider) {
        // Ollama speaks all dialects, under its own paths.
        (Api::Ollama, Op::Chat, Ollama) => Fit::Pass("/api/chat"),
        (Api::Ollama, Op::Generate, Ollama) => Fit::Pass("/api/generate"),
        (Api::Ollama, Op::Embed, Ollama) => Fit::Pass("/api/embed"),
        (Api::Chat, Op::Chat, Ollama) => Fit::Pass("/v1/chat/completions"),
        (Api::Completions, Op::Completions, Ollama) => Fit::Pass("/v1/completions"),
        (Api::Responses, Op::Responses, Ollama) => Fit::Pass("/v1/responses"),
        (Api::Embeddings, Op::Embed, Ollama) => Fit::Pass("/v1/embeddings"),
        (Api::Messages, Op::Messages, Ollama | Messages) => Fit::Pass("/v1/messages"),
        (Api::Messages, Op::CountTokens, Messages) => Fit::Pass("/v1/messages/count_tokens"),
        (Api::Chat, Op::Chat, Completions | Responses) => Fit::Pass("/chat/completions"),
        (Api::Completions, Op::Completions, Completions | Responses) => Fit::Pass("/completions"),
        (Api::Embeddings, Op::Embed, Completions | Responses) => Fit::Pass("/embeddings"),
        (Api::Responses, Op::Responses, Responses) => Fit::Pass("/responses"),
        // Whoever speaks responses speaks chat, too.
        (_, Op::Embed, Completions | Responses) => translated(api, op, Api::Chat, "/embeddings"),
        (_, _, Completions | Responses) => translated(api, op, Api::Chat, "/chat/completions"),
        (_, _, Messages) => translated(api, op, Api::Messages, "/v1/messages"),
        (_, _, Ollama) => Fit::Cannot,
    }
}

fn translated(api: Api, op: Op, provider: Api, path: &'static str) -> Fit {
    Translation::between(api, op, provider).map_or(Fit::Cannot, |way| Fit::Translate(way, path))
}

/// The dialects in which a provider's models can be asked, as they are or translated.
pub fn spoken(provider: ProviderApi) -> ApiSet {
    const ASKED: [(Api, Op); 5] = [
        (Api::Ollama, Op::Chat),
        (Api::Chat, Op::Chat),
        (Api::Completions, Op::Completions),
        (Api::Responses, Op::Responses),
        (Api::Messages, Op::Messages),
    ];
    let fits = |(api, op): &&(Api, Op)| fit(*api, *op, provider) != Fit::Cannot;
    ASKED.iter().filter(fits).fold(ApiSet::NONE, |set, (api, _)| set.with(*api))
}

/// What is said of a provider that cannot be asked in every dialect: where it can be.
pub fn only(provider: ProviderApi) -> Option<&'static str> {
    match provider {
        ProviderApi::Messages => {
            Some("it can be asked at /v1/messages, /api/chat and /api/generate")
        }
        ProviderApi::Completions | ProviderApi::Responses | ProviderApi::Ollama => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_be_asked_in_chat_is_said_to_be_so() {
        use ProviderApi::{Completions, Messages, Ollama, Responses};
        for provider in [Completions, Messages, Ollama, Responses] {
            let said = only(provider).is_some();
            assert_eq!(said, !spoken(provider).has(Api::Chat), "{provider:?}");
        }
    }

    #[test]
    fn one_dialect_passes_and_what_cannot_be_said_is_not_tried() {
        use ProviderApi::{Completions, Messages, Ollama, Responses};
        let translated =
            |api, op, to, path| Fit::Translate(Translation::between(api, op, to).unwrap(), path);
        let chat = "/chat/completions";
        for (api, op, provider, want) in [
            (Api::Chat, Op::Chat, Completions, Fit::Pass("/chat/completions")),
            (Api::Messages, Op::Messages, Messages, Fit::Pass("/v1/messages")),
            (Api::Ollama, Op::Chat, Ollama, Fit::Pass("/api/chat")),
            (Api::Responses, Op::Responses, Responses, Fit::Pass("/responses")),
            (
                Api::Responses,
                Op::Responses,
                Completions,
                translated(Api::Responses, Op::Responses, Api::Chat, chat),
            ),
            (
                Api::Messages,
                Op::Messages,
                Responses,
                translated(Api::Messages, Op::Messages, Api::Chat, chat),
            ),
            (
                Api::Ollama,
                Op::Chat,
                Messages,
                translated(Api::Ollama, Op::Chat, Api::Messages, "/v1/messages"),
            ),
            (
                Api::Ollama,
                Op::Embed,
                Completions,
                translated(Api::Ollama, Op::Embed, Api::Chat, "/embeddings"),
            ),
            (Api::Chat, Op::Chat, Messages, Fit::Cannot),
            (Api::Messages, Op::CountTokens, Completions, Fit::Cannot),
            (Api::Ollama, Op::Embed, Messages, Fit::Cannot),
            (Api::Ollama, Op::Show, Ollama, Fit::Cannot),
            (Api::OpenAi, Op::Other, Completions, Fit::Cannot),
        ] {
            assert_eq!(fit(api, op, provider), want, "{api:?} {op:?} {provider:?}");
        }
        assert!(spoken(Completions).has(Api::Chat) && spoken(Completions).has(Api::Ollama));
        assert!(spoken(Messages).has(Api::Ollama) && !spoken(Messages).has(Api::Chat));
    }
}
