//! Vectors: Ollama's `/api/embed` put to OpenAI's `/embeddings`.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::piece::error_text;
use super::{Reply, Target, Unfit};

/// The request for the provider.
pub(super) fn request(
    mut body: Map<String, Value>,
    target: &Target,
) -> Result<Map<String, Value>, Unfit> {
    let Some(input) = body.shift_remove("input") else {
        // The old route has one prompt and answers one vector.
        let old = body.contains_key("prompt");
        return Err(match old {
            true => Unfit::Cannot("/api/embeddings, only /api/embed".to_owned()),
            false => Unfit::Wrong("input is missing".to_owned()),
        });
    };
    let is_text = |value: &Value| value.is_string();
    let texts = is_text(&input) || input.as_array().is_some_and(|list| list.iter().all(is_text));
    if !texts {
        return Err(Unfit::Wrong("input is neither a text nor a list of texts".to_owned()));
    }
    let mut out = Map::new();
    out.insert("model".to_owned(), target.model.clone().into());
    out.insert("input".to_owned(), input);
    // Ollama's are numbers; some clients' default is base64.
    out.insert("encoding_format".to_owned(), "float".into());
    for name in ["name", "model", "truncate", "options", "keep_alive", "stream"] {
        body.shift_remove(name);
    }
    for (name, value) in body {
        out.entry(name).or_insert(value);
    }
    Ok(out)
}

/// The answer for the caller.
pub(super) fn whole(body: &Value, reply: &Reply, took: Duration) -> Result<Value, String> {
    if let Some(error) = body.get("error").filter(|error| !error.is_null()) {
        return Err(error_text(error));
    }
    let rows = body["data"].as_array().ok_or("the provider sent no vectors")?;
    let mut vectors = vec![Value::Null; rows.len()];
    for (i, row) in rows.iter().enumerate() {
        let at = row["index"].as_u64().and_then(|at| usize::try_from(at).ok()).unwrap_or(i);
        let vector = row["embedding"].is_array().then(|| row["embedding"].clone());
        let (Some(vector), Some(place)) = (vector, vectors.get_mut(at)) else {
            return Err("the provider sent vectors that are none".to_owned());
        };
        *place = vector;
    }
    if vectors.iter().any(Value::is_null) {
        return Err("the provider left out a vector".to_owned());
    }
    let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    let mut out = json!({
        "model": reply.model, "embeddings": vectors, "total_duration": took, "load_duration": 0,
    });
    if let Some(tokens) = body.pointer("/usage/prompt_tokens").filter(|tokens| tokens.is_u64()) {
        out["prompt_eval_count"] = tokens.clone();
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(body: Value) -> Result<Value, Unfit> {
        let Value::Object(body) = body else { return Err(Unfit::Nothing) };
        let target = Target { model: "text-9".to_owned(), ..Target::default() };
        request(body, &target).map(Value::Object)
    }

    #[test]
    fn texts_go_out_and_what_is_ollamas_alone_stays() {
        let body = json!({
            "model": "x", "input": ["a", "b"], "truncate": true, "keep_alive": "5m",
            "options": { "num_ctx": 9 }, "dimensions": 64,
        });
        let want = json!({
            "model": "text-9", "input": ["a", "b"], "encoding_format": "float", "dimensions": 64,
        });
        assert_eq!(asked(body), Ok(want));
        assert!(matches!(asked(json!({ "prompt": "x" })), Err(Unfit::Cannot(_))));
        for wrong in [json!({}), json!({ "input": 7 }), json!({ "input": ["a", 7] })] {
            assert!(matches!(asked(wrong.clone()), Err(Unfit::Wrong(_))), "{wrong}");
        }
    }

    #[test]
    fn vectors_come_back_in_the_order_of_the_texts() {
        let reply = Reply { model: "mine".to_owned(), ..Reply::default() };
        let read = |body: Value| whole(&body, &reply, Duration::from_millis(2));
        let body = json!({
            "data": [
                { "index": 1, "embedding": [0.5] },
                { "index": 0, "embedding": [0.25, -1.0] },
            ],
            "usage": { "prompt_tokens": 4, "total_tokens": 4 },
        });
        let want = json!({
            "model": "mine", "embeddings": [[0.25, -1.0], [0.5]],
            "total_duration": 2_000_000, "load_duration": 0, "prompt_eval_count": 4,
        });
        assert_eq!(read(body), Ok(want));
        assert_eq!(read(json!({ "error": { "message": "no" } })), Err("no".to_owned()));
        for odd in [
            json!({}),
            json!({ "data": [{ "index": 3, "embedding": [1] }] }),
            json!({ "data": [{ "index": 0, "embedding": [1] }, { "index": 0, "embedding": [1] }] }),
            json!({ "data": [{ "index": 0, "embedding": "AAAA" }] }),
        ] {
            assert!(read(odd.clone()).is_err(), "{odd}");
        }
    }
}
