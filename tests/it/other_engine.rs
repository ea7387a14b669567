//! Engines that are no Ollama: what they are asked, and what others see of them.

use serde_json::{Value, json};
use tailherd::demo::client::get;
use tailherd::demo::node::NodeSpec;
use tailherd::demo::tailscaled::Owner;

use crate::provider::{Provider, Reply, error};
use crate::world::{Sends as _, World, me, until};

const FOLDER: &str = "/people/me/models";

fn whole(body: &Value) -> Reply {
    error(200, &body.to_string())
}

/// A llama.cpp server that nobody gave names for its models, on `gpu`; the laptop has no engine.
async fn world(files: &[&str]) -> (Provider, World) {
    let engine =
        Provider::start(error(404, r#"{"error":{"code":404,"message":"File Not Found"}}"#)).await;
    let row = |file: &&str| {
        let path = format!("{FOLDER}/{file}");
        json!({ "id": path, "object": "model", "created": 1, "owned_by": "llamacpp",
                "path": path, "meta": { "n_ctx_train": 4096, "size": 1000 } })
    };
    let rows: Vec<Value> = files.iter().map(row).collect();
    engine.says_at("/v1/models", whole(&json!({ "object": "list", "data": rows })));
    let said = json!({ "index": 0, "finish_reason": "stop",
                       "message": { "role": "assistant", "content": "hello" } });
    let model = format!("{FOLDER}/{}", files[0]);
    engine.says_at(
        "/v1/chat/completions",
        whole(&json!({ "id": "chatcmpl-1", "object": "chat.completion", "model": model,
                       "choices": [said], "usage": { "prompt_tokens": 3, "completion_tokens": 1 } })),
    );
    let world = World::start(vec![
        NodeSpec::new("laptop", me(), None),
        NodeSpec::new("gpu", Owner::tag("tag:ollama"), None)
            .with(json!({ "local": [{ "baseUrl": engine.url() }] })),
    ])
    .await;
    for at in ["laptop", "gpu"] {
        let listed = until(async || ids(&world, at).await.contains(&files[0].to_owned())).await;
        assert!(listed, "{at} never lists {}: {:?}", files[0], ids(&world, at).await);
    }
    engine.forget();
    (engine, world)
}

async fn ids(world: &World, at: &str) -> Vec<String> {
    let list = world.get(at, "/v1/models").send().await.json();
    let rows = list["data"].as_array().cloned().unwrap_or_default();
    rows.iter().filter_map(|row| Some(row["id"].as_str()?.to_owned())).collect()
}

#[tokio::test]
async fn a_model_named_by_a_file_is_listed_by_its_name_and_asked_by_its_path() {
    let (engine, world) = world(&["qwen2.gguf"]).await;
    let body = json!({ "model": "qwen2.gguf", "messages": [{ "role": "user", "content": "x" }] });
    for at in ["gpu", "laptop"] {
        engine.forget();
        let call = world.post(at, "/v1/chat/completions", body.to_string());
        let answer = call.send().await;
        assert_eq!(answer.status, 200, "{at}: {}", answer.text());
        assert_eq!(answer.json()["model"], "qwen2.gguf", "{at}");
        assert!(!answer.text().contains(FOLDER), "{at}: {}", answer.text());
        let seen = engine.seen();
        let asked = seen.iter().find(|s| s.path == "/v1/chat/completions").unwrap();
        assert_eq!(asked.body["model"], format!("{FOLDER}/qwen2.gguf"), "{at}");
        let one = world.get(at, "/v1/models/qwen2.gguf").send().await;
        assert_eq!((one.status, &one.json()["id"]), (200, &json!("qwen2.gguf")), "{at}");
    }
    // Where the file is, is told to nobody.
    let call = get(world.node("gpu").apps(), "/mesh/v1/offers")
        .header("content-type", "application/vnd.tailherd+json");
    let offers = world.across("laptop", "gpu", call).await;
    assert_eq!(offers.status, 200);
    assert!(offers.text().contains("qwen2.gguf"), "{}", offers.text());
    let tags = world.get("laptop", "/api/tags").send().await;
    for text in [offers.text(), tags.text()] {
        assert!(!text.contains(FOLDER), "{text}");
    }
}

#[tokio::test]
async fn what_cannot_be_called_anything_here_is_said_to_be_there() {
    let (_engine, world) = world(&["qwen2.gguf", "my model.gguf", "old/qwen2.gguf"]).await;
    assert_eq!(ids(&world, "gpu").await, ["qwen2.gguf"]);
    let status = world.status("gpu").await;
    let unlisted = &status["node"]["endpoints"][0]["unlisted"];
    assert_eq!(unlisted, &json!(["my model.gguf", "qwen2.gguf"]), "{status:#}");
}
