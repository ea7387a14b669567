//! Vectors: deterministic, close for texts that share bytes.

use std::io;
use std::sync::Arc;

use base64::Engine as _;
use http::Response;
use serde_json::Value;
use tokio::time::Instant;

use super::Shared;
use super::ask::Fields;
use super::infer::fault;
use super::reply::{self, Body, Dialect};
use super::seen::Visit;
use super::serve::Line;
use super::voice::quote;

/// Which of the three routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `/api/embed`
    Embed,
    /// `/api/embeddings`
    Old,
    /// `/v1/embeddings`
    OpenAi,
}

pub(super) async fn embed(
    shared: &Arc<Shared>,
    line: &Line,
    kind: Kind,
    dialect: Dialect,
    fields: &Fields,
) -> io::Result<Response<Body>> {
    let said = fields.model().to_owned();
    let model = match shared.find(&said) {
        Ok(model) => model,
        Err(super::NotFound::Missing) if kind != Kind::OpenAi => {
            let text = format!("model {said:?} not found, try pulling it first");
            return Ok(dialect.error(404, &text));
        }
        Err(error) => return Ok(error.answer(dialect, &said)),
    };
    let keep = match fields.keep_alive() {
        Ok(keep) => keep,
        Err(text) => return Ok(dialect.error(400, &text)),
    };
    if let Some(answer) = fault(shared, line, dialect)? {
        return Ok(answer);
    }
    let mut visit = Visit::new(&shared.notes);
    let begun = Instant::now();
    let options = fields.runner_options(shared.spec.default_ctx);
    let Ok(held) = shared.scheduler.hold(&model, &options, keep).await else {
        visit.finish();
        return Ok(dialect.error(503, super::BUSY));
    };
    let texts = texts(fields, kind);
    let tokens: u64 = texts.iter().map(|t| t.len() as u64 + 1).sum();
    let slot = held.slot().await;
    visit.run();
    let work = shared.spec.prefill * u32::try_from(tokens).unwrap_or(u32::MAX);
    tokio::time::sleep(shared.faults.pace(work)).await;
    shared.faults.frozen.thawed().await;
    drop(slot);
    visit.finish();
    let wanted = fields.get("dimensions").and_then(Value::as_u64);
    let size = wanted.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(256);
    let vectors: Vec<Vec<f32>> = texts.iter().map(|t| vector(t, size.min(256))).collect();
    Ok(match kind {
        Kind::Embed => reply::whole(
            200,
            reply::JSON,
            format!(
                r#"{{"model":{},"embeddings":[{}],"total_duration":{},"load_duration":{},"prompt_eval_count":{tokens}}}"#,
                quote(&said),
                vectors.iter().map(|v| numbers(v)).collect::<Vec<_>>().join(","),
                begun.elapsed().as_nanos(),
                held.load.as_nanos()
            ),
        ),
        Kind::Old => {
            let first = vectors.first().map_or("[]".to_owned(), |v| numbers(v));
            reply::whole(200, reply::JSON, format!(r#"{{"embedding":{first}}}"#))
        }
        Kind::OpenAi => {
            let packed = fields.text("encoding_format") == Some("base64");
            let rows: Vec<String> = vectors
                .iter()
                .enumerate()
                .map(|(i, v)| {
                    let v = if packed { quote(&base64(v)) } else { numbers(v) };
                    format!(r#"{{"object":"embedding","embedding":{v},"index":{i}}}"#)
                })
                .collect();
            reply::whole(
                200,
                "application/json",
                format!(
                    r#"{{"object":"list","data":[{}],"model":{},"usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}}}"#,
                    rows.join(","),
                    quote(&said)
                ),
            )
        }
    })
}

fn texts(fields: &Fields, kind: Kind) -> Vec<String> {
    if kind == Kind::Old {
        return vec![fields.text("prompt").unwrap_or_default().to_owned()];
    }
    match fields.get("input") {
        Some(Value::String(s)) if !s.is_empty() => vec![s.clone()],
        Some(Value::Array(list)) => {
            list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

/// A unit vector of byte counts, a constant first so that all texts are somewhat alike.
fn vector(text: &str, size: usize) -> Vec<f32> {
    let mut v = vec![0.0_f32; size];
    v[0] = 8.0;
    for b in text.bytes() {
        v[usize::from(b) % size] += 1.0;
    }
    let norm = v.iter().map(|x| x * x).sum::<f32>().sqrt();
    v.iter().map(|x| x / norm).collect()
}

fn numbers(v: &[f32]) -> String {
    let list: Vec<String> = v.iter().map(ToString::to_string).collect();
    format!("[{}]", list.join(","))
}

fn base64(v: &[f32]) -> String {
    let bytes: Vec<u8> = v.iter().flat_map(|x| x.to_le_bytes()).collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
