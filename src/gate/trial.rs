//! One small generation, made only to learn how fast an engine is.
//!
//! It goes to an engine of this node, for a model that is in memory anyway, with exactly the
//! options it was loaded with, so that nothing is loaded or thrown out for it. Dropping the
//! future closes the connection, and that is what stops the engine.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Map, Value};

use super::load::options;
use crate::api::ending::{Ending, Usage};
use crate::balance::rates::{End, Reply};
use crate::directory::Offer;
use crate::net::{Body, Pool, full};
use crate::types::{Api, LoadKey, NodeId, Op};

/// Tokens it asks for.
const TOKENS: u64 = 64;
/// Numbers the prompt consists of: some hundred tokens, whatever the tokenizer.
const PROMPT: u64 = 60;

/// Why a trial taught nothing.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The engine could not be asked.
    #[error("the engine could not be reached: {0}")]
    Reach(String),
    /// It answered something else than a generation.
    #[error("the engine answered {0}")]
    Answer(http::StatusCode),
    /// Its answer broke off, or says no times.
    #[error("the engine's answer was not whole")]
    Broken,
}

/// Lets an engine of this node write a few tokens. `salt` makes the prompt one it has not read.
pub async fn trial(
    pool: &Pool,
    offer: &Offer,
    key: &LoadKey,
    salt: u32,
) -> Result<Reply, TrialError> {
    let dial = &offer.endpoint.dial;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("{}/api/generate", offer.endpoint.prefix))
        .header(HOST, dial.host())
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/x-ndjson")
        .body(Body::new(full(Bytes::from(body(&offer.name, key, salt).to_string()))))
        .map_err(|error| TrialError::Reach(error.to_string()))?;
    // Never a kept connection, which the engine may just be closing: nobody would try again.
    let lease = pool.fresh(&NodeId::This, dial).await;
    let lease = lease.map_err(|error| TrialError::Reach(error.to_string()))?;
    let response = lease.send(request).await;
    let response = response.map_err(|error| TrialError::Reach(error.to_string()))?;
    if !response.status().is_success() {
        return Err(TrialError::Answer(response.status()));
    }
    let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let mut ending = Ending::new(Api::Ollama, Op::Generate, kind);
    let mut answer = response.into_body();
    while let Some(frame) = answer.frame().await {
        let frame = frame.map_err(|_| TrialError::Broken)?;
        ending.feed(frame.data_ref().map_or(&[], |data| &**data));
    }
    match (ending.complete() && !ending.failed(), ending.usage()) {
        (true, usage @ Usage { eval_ns: Some(_), .. }) => Ok(reply(&usage)),
        _ => Err(TrialError::Broken),
    }
}

fn reply(usage: &Usage) -> Reply {
    Reply {
        // How long the answer is was our choice.
        end: End::Limit,
        prompt_tokens: usage.prompt_tokens,
        output_tokens: usage.output_tokens,
        prompt: usage.prompt_ns.map(Duration::from_nanos),
        decode: usage.eval_ns.map(Duration::from_nanos),
        ..Reply::default()
    }
}

/// A sequence of numbers: what any model goes on with, and none has read before.
fn body(model: &str, key: &LoadKey, salt: u32) -> Value {
    let first = 1000 + u64::from(salt % 1_000_000);
    let numbers: Vec<String> = (first..first + PROMPT).map(|n| n.to_string()).collect();
    let mut options = options(key);
    options.insert("num_predict".into(), TOKENS.into());
    options.insert("temperature".into(), 0.into());
    let mut body = Map::new();
    body.insert("model".into(), model.into());
    body.insert("prompt".into(), format!("{},", numbers.join(", ")).into());
    body.insert("raw".into(), true.into());
    body.insert("stream".into(), true.into());
    body.insert("options".into(), Value::Object(options));
    if let Some(shift) = key.shift {
        body.insert("shift".into(), shift.into());
    }
    Value::Object(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_asks_for_little_and_changes_no_option_of_the_runner() {
        let key = LoadKey {
            num_ctx: Some(8192),
            shift: Some(false),
            runner: [("num_batch".to_owned(), "64".to_owned())].into(),
        };
        let said = body("tiny:latest", &key, 7);
        assert_eq!(
            said["options"],
            serde_json::json!({
                "num_ctx": 8192, "num_batch": 64, "num_predict": 64, "temperature": 0,
            })
        );
        assert_eq!((&said["shift"], &said["raw"]), (&Value::from(false), &Value::from(true)));
        assert!(said.get("keep_alive").is_none(), "it stays as long as it would have");
        let plain = body("tiny:latest", &LoadKey::default(), 8);
        assert!(plain["options"].get("num_ctx").is_none() && plain.get("shift").is_none());
        assert_ne!(plain["prompt"], said["prompt"]);
    }
}
