//! What a provider's error means: for the chain, and for how long the provider rests.
//!
//! In flow the status, `retry-after` and the body; out flows a [`Verdict`]. Mistakes of the
//! request itself, refusals and a full context window go to the caller word for word: clients
//! recognise the texts, and no other provider would do better.

use std::time::Duration;

use serde_json::Value;

/// What happens next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The caller is told, in the provider's words.
    Tell,
    /// The next step is tried, and this one rests.
    Next {
        /// How long it rests.
        rest: Rest,
        /// One word: the reason in metrics and logs.
        why: &'static str,
    },
}

/// How long a provider rests after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Not at all.
    None,
    /// For this long if said, else longer with each failure in a row: this model.
    Model(Option<Duration>),
    /// Until somebody has paid or mended the key: the whole provider.
    Billing,
}

/// Parts of what Ollama and providers say of a prompt that does not fit.
const CONTEXT: &[&str] = &[
    "context length",
    "context_length",
    "context window",
    "context size",
    "maximum context",
    "prompt is too long",
    "input is too long",
];

/// Parts of what is said when an account has no money left.
const BILLING: &[&str] = &[
    "insufficient_quota",
    "credit_balance",
    "credit balance",
    "spend_limit",
    "spend limit",
    "usage_limit_exceeded",
    "insufficient credits",
    "billing",
];

/// Reads an error of a provider.
pub fn verdict(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Verdict {
    let said = Said::read(body);
    let next = |rest, why| Verdict::Next { rest, why };
    if said.has(CONTEXT) {
        return Verdict::Tell;
    }
    match status {
        402 => next(Rest::Billing, "billing"),
        400 | 403 | 429 if said.has(BILLING) => next(Rest::Billing, "billing"),
        // A moderated prompt is a refusal of the prompt, not of the key.
        403 if said.has(&["moderation", "flagged", "content policy", "safety"]) => Verdict::Tell,
        401 | 403 => next(Rest::Billing, "key"),
        // LiteLLM's word for a model it does not have.
        400 if said.has(&["invalid model name"]) => next(Rest::Model(retry_after), "not_found"),
        404 if said.is_json => next(Rest::Model(retry_after), "not_found"),
        404 | 405 => next(Rest::Model(retry_after), "dialect"),
        // Groq: larger than the rate allows, which another provider may serve.
        413 if said.has(&["rate_limit", "rate limit", "tokens per minute", "tpm"]) => {
            next(Rest::None, "too_large")
        }
        429 => next(Rest::Model(retry_after), "busy"),
        408 | 409 | 498 | 500..=599 => next(Rest::Model(retry_after), "engine"),
        300..=399 => next(Rest::Model(retry_after), "bad_answer"),
        _ => Verdict::Tell,
    }
}

/// What a body says, as far as it matters.
struct Said {
    is_json: bool,
    /// All texts of the error, in lower case.
    text: String,
}

impl Said {
    fn read(body: &[u8]) -> Said {
        let json: Option<Value> = serde_json::from_slice(body).ok();
        let mut text = String::new();
        match &json {
            Some(json) => words(json, &mut text, 0),
            None => text.push_str(&String::from_utf8_lossy(body.get(..4096).unwrap_or(body))),
        }
        Said { is_json: json.is_some(), text: text.to_lowercase() }
    }

    fn has(&self, parts: &[&str]) -> bool {
        parts.iter().any(|part| self.text.contains(part))
    }
}

/// The texts in an error, wherever it keeps them: Gemini wraps its errors in a list, vLLM has
/// none of the usual members, LiteLLM's code is a text.
fn words(value: &Value, out: &mut String, depth: u8) {
    match value {
        Value::String(text) => {
            out.push_str(text);
            out.push('\n');
        }
        Value::Array(items) if depth < 6 => items.iter().for_each(|v| words(v, out, depth + 1)),
        Value::Object(map) if depth < 6 => map.values().for_each(|v| words(v, out, depth + 1)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: u16, body: &str, want: Result<(Rest, &'static str), ()>) {
        let want = match want {
            Ok((rest, why)) => Verdict::Next { rest, why },
            Err(()) => Verdict::Tell,
        };
        let after = Some(Duration::from_secs(7));
        assert_eq!(verdict(status, after, body.as_bytes()), want, "{status} {body}");
    }

    #[test]
    fn each_error_of_the_table_has_its_meaning() {
        let model = Rest::Model(Some(Duration::from_secs(7)));
        let tell = Err(());
        check(
            429,
            r#"{"error":{"message":"Rate limit reached","type":"requests","code":"rate_limit_exceeded"}}"#,
            Ok((model, "busy")),
        );
        check(
            429,
            r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota"}}"#,
            Ok((Rest::Billing, "billing")),
        );
        check(
            429,
            r#"{"error":{"code":"credit_balance_exhausted","message":"x"}}"#,
            Ok((Rest::Billing, "billing")),
        );
        check(
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low"}}"#,
            Ok((Rest::Billing, "billing")),
        );
        check(
            402,
            r#"{"error":{"code":402,"message":"Insufficient credits"}}"#,
            Ok((Rest::Billing, "billing")),
        );
        check(
            401,
            r#"{"error":{"message":"Incorrect API key provided"}}"#,
            Ok((Rest::Billing, "key")),
        );
        check(403, r#"{"error":{"message":"no access"}}"#, Ok((Rest::Billing, "key")));
        check(403, r#"{"error":{"code":403,"message":"flagged by moderation"}}"#, tell);
        check(
            529,
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
            Ok((model, "engine")),
        );
        for status in [408, 409, 498, 500, 502, 503, 504, 522, 524] {
            check(status, "", Ok((model, "engine")));
        }
        check(
            413,
            r#"{"error":{"message":"Request too large for model: Limit 6000 TPM","code":"rate_limit_exceeded"}}"#,
            Ok((Rest::None, "too_large")),
        );
        check(413, r#"{"error":{"message":"too many bytes"}}"#, tell);
        check(404, r#"{"error":{"message":"The model does not exist"}}"#, Ok((model, "not_found")));
        check(404, "404 page not found", Ok((model, "dialect")));
        check(
            400,
            r#"{"error":{"message":"Invalid model name passed in model=x","code":"400"}}"#,
            Ok((model, "not_found")),
        );
        check(307, "", Ok((model, "bad_answer")));
        check(400, r#"{"error":{"message":"messages: at least one is required"}}"#, tell);
        check(422, r#"{"detail":[{"msg":"field required"}]}"#, tell);
        check(
            400,
            r#"{"object":"error","message":"This model's maximum context length is 8192 tokens","code":400}"#,
            tell,
        );
        check(500, r#"{"error":"the input length exceeds the context length"}"#, tell);
        check(
            429,
            r#"[{"error":{"code":429,"message":"Resource exhausted","status":"RESOURCE_EXHAUSTED"}}]"#,
            Ok((model, "busy")),
        );
    }
}
