//! Engines that are no Ollama: what they are asked, and what others see of them.

use serde_json::{Value, json};
use tailherd::demo::client::get;
use tailherd::demo::node::NodeSpec;
use tailherd::demo::tailscaled::Owner;

use crate::provider::{Provider, Reply, error, events};
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

/// What the engine says as a stream: a thought, a word, its usage, its end.
fn stream() -> Reply {
    let chunk = |delta: Value, finish: Value| {
        let choice = json!([{ "index": 0, "delta": delta, "finish_reason": finish }]);
        let model = format!("{FOLDER}/qwen2.gguf");
        format!("data: {}\n\n", json!({ "id": "c", "model": model, "choices": choice }))
    };
    let usage = json!({ "choices": [], "usage": { "prompt_tokens": 3, "completion_tokens": 2 } });
    events(&format!(
        "{}{}{}data: {usage}\n\ndata: [DONE]\n\n",
        chunk(json!({ "role": "assistant", "reasoning_content": "hm" }), Value::Null),
        chunk(json!({ "content": "hello" }), Value::Null),
        chunk(json!({}), json!("stop")),
    ))
}

#[tokio::test]
async fn an_engine_of_another_kind_is_asked_in_every_dialect() {
    let (engine, world) = world(&["qwen2.gguf"]).await;
    let chat = json!([{ "role": "user", "content": "x" }]);
    for (path, more, said) in [
        ("/api/chat", json!({ "messages": chat, "think": false }), "/message/content"),
        ("/api/generate", json!({ "prompt": "x" }), "/response"),
        ("/v1/messages", json!({ "messages": chat, "max_tokens": 9 }), "/content/0/text"),
        ("/v1/responses", json!({ "input": "x" }), "/output/0/content/0/text"),
        ("/v1/chat/completions", json!({ "messages": chat }), "/choices/0/message/content"),
    ] {
        for at in ["gpu", "laptop"] {
            engine.forget();
            let mut body = json!({ "model": "qwen2.gguf", "stream": false });
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = world.post(at, path, body.to_string()).send().await;
            let text = answer.text();
            assert_eq!(answer.status, 200, "{at} {path}: {text}");
            assert_eq!(answer.json().pointer(said), Some(&json!("hello")), "{at} {path}: {text}");
            assert_eq!(answer.json()["model"], "qwen2.gguf", "{at} {path}");
            assert!(!text.contains(FOLDER), "{at} {path}: {text}");
            let asked: Vec<_> = engine.seen().into_iter().filter(|s| s.path.len() > 10).collect();
            let at_chat: Vec<_> = asked.iter().filter(|s| s.path.contains("chat")).collect();
            let [one] = at_chat.as_slice() else { panic!("{at} {path}: {asked:?}") };
            assert_eq!(one.path, "/v1/chat/completions", "{at} {path}");
            assert_eq!(one.body["model"], format!("{FOLDER}/qwen2.gguf"), "{at} {path}");
            assert_eq!(one.header("anthropic-version"), "", "{at} {path}");
            let quiet = &one.body["chat_template_kwargs"]["enable_thinking"];
            assert_eq!(quiet == false, path == "/api/chat", "{at} {path}: {}", one.body);
        }
    }
}

#[tokio::test]
async fn its_stream_is_told_as_ollama_tells_and_its_errors_word_for_word() {
    let (engine, world) = world(&["qwen2.gguf"]).await;
    let body = json!({ "model": "qwen2.gguf", "messages": [{ "role": "user", "content": "x" }] });
    engine.says_at("/v1/chat/completions", stream());
    for at in ["gpu", "laptop"] {
        let answer = world.post(at, "/api/chat", body.to_string()).send().await;
        let lines = answer.items();
        assert_eq!(answer.status, 200, "{at}: {}", answer.text());
        assert_eq!(answer.header("content-type"), "application/x-ndjson", "{at}");
        assert_eq!(lines[0]["message"]["thinking"], "hm", "{at}: {lines:?}");
        assert_eq!(lines[1]["message"]["content"], "hello", "{at}: {lines:?}");
        let last = lines.last().unwrap();
        assert_eq!((&last["done"], &last["eval_count"]), (&json!(true), &json!(2)), "{last}");
        assert!(lines.iter().all(|line| line["model"] == "qwen2.gguf"), "{at}: {lines:?}");
    }
    let said = "the request exceeds the available context size";
    let refusal =
        json!({ "error": { "code": 400, "message": said, "type": "invalid_request_error" } });
    engine.says_at("/v1/chat/completions", error(400, &refusal.to_string()));
    for at in ["gpu", "laptop"] {
        let answer = world.post(at, "/api/chat", body.to_string()).send().await;
        assert_eq!((answer.status, answer.json()), (400, json!({ "error": said })), "{at}");
        let call = json!({ "max_tokens": 9, "model": "qwen2.gguf", "messages": body["messages"] });
        let answer = world.post(at, "/v1/messages", call.to_string()).send().await;
        let told = answer.json()["error"]["message"].clone();
        assert_eq!((answer.status, told), (400, json!(said)), "{at}");
    }
    // It has no words for this, and says so; and none of it looks like a model that is not there.
    let odd = json!({ "model": "qwen2.gguf", "prompt": "x", "raw": true, "stream": false });
    let answer = world.post("gpu", "/api/generate", odd.to_string()).send().await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    let why = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(why.contains("at llama.cpp") && why.contains("raw"), "{why}");
}

#[tokio::test]
async fn what_surrounds_a_chat_with_ollamas_own_program_works() {
    let (engine, world) = world(&["qwen2.gguf"]).await;
    for at in ["gpu", "laptop"] {
        engine.forget();
        let list = world.get(at, "/api/tags").send().await.json();
        let row = list["models"].as_array().unwrap().iter().find(|r| r["name"] == "qwen2.gguf");
        let row = row.unwrap_or_else(|| panic!("{at}: {list:#}")).clone();
        assert_eq!(row["mesh"]["nodes"], json!(["gpu"]), "{at}");
        let named = json!({ "model": "qwen2.gguf" });
        let show = world.post(at, "/api/show", named.to_string()).send().await;
        assert_eq!(show.status, 200, "{at}: {}", show.text());
        assert_eq!(show.json()["capabilities"], json!(["completion", "tools"]), "{at}");
        assert_eq!(show.json()["model_info"]["llama.cpp.context_length"], 4096, "{at}");
        // `ollama run` begins with a load, and `ollama stop` asks for its end.
        let load = world.post(at, "/api/generate", named.to_string()).send().await;
        assert_eq!((load.status, load.json()["done_reason"].clone()), (200, json!("load")), "{at}");
        let stop = json!({ "model": "qwen2.gguf@gpu", "keep_alive": 0 });
        let stop = world.post(at, "/api/generate", stop.to_string()).send().await;
        assert_eq!(stop.status, 400, "{at}: {}", stop.text());
        assert!(stop.text().contains("llama.cpp"), "{at}: {}", stop.text());
        let asked = engine.seen();
        assert!(!asked.iter().any(|s| s.path.contains("chat")), "{at}: {asked:?}");
    }
}

#[tokio::test]
async fn vectors_are_asked_of_it_too_and_the_count_of_tokens_is_not() {
    let (engine, world) = world(&["qwen2.gguf"]).await;
    let rows = json!([{ "index": 0, "embedding": [0.5, 1.0] }]);
    let body = json!({ "data": rows, "usage": { "prompt_tokens": 2 } });
    engine.says_at("/v1/embeddings", whole(&body));
    for at in ["gpu", "laptop"] {
        let asked = json!({ "model": "qwen2.gguf", "input": "x" });
        let answer = world.post(at, "/api/embed", asked.to_string()).send().await;
        assert_eq!(answer.json()["embeddings"], json!([[0.5, 1.0]]), "{at}: {}", answer.text());
        let asked = json!({ "model": "qwen2.gguf", "messages": [] });
        let counted = world.post(at, "/v1/messages/count_tokens", asked.to_string()).send().await;
        assert_eq!(counted.status, 404, "{at}: {}", counted.text());
    }
}

#[tokio::test]
async fn what_it_speaks_itself_is_passed_as_it_is() {
    let engine = Provider::start(error(404, "{}")).await;
    let row = json!({ "id": "qwen2@q4_k_m", "object": "model", "owned_by": "organization_owner" });
    engine.says_at("/v1/models", whole(&json!({ "object": "list", "data": [row] })));
    let own = json!({ "id": "resp_own", "object": "response", "status": "completed",
                      "model": "qwen2@q4_k_m", "odd": 7, "output": [] });
    engine.says_at("/v1/responses", whole(&own));
    let laptop = NodeSpec::new("laptop", me(), None);
    let laptop = laptop.with(json!({ "local": [{ "baseUrl": engine.url() }] }));
    let world = World::start(vec![laptop]).await;
    // LM Studio tells two of one name apart by what is a node's mark here.
    let listed = until(async || ids(&world, "laptop").await == ["qwen2:q4_k_m"]).await;
    assert!(listed, "{:?}", ids(&world, "laptop").await);
    let body = json!({ "model": "qwen2:q4_k_m", "input": "x", "odd": [1] });
    let answer = world.post("laptop", "/v1/responses", body.to_string()).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let want = json!({ "id": "resp_own", "object": "response", "status": "completed",
                       "model": "qwen2:q4_k_m", "odd": 7, "output": [] });
    assert_eq!(answer.json(), want);
    let asked = engine.seen().into_iter().find(|s| s.path == "/v1/responses").unwrap();
    assert_eq!(asked.body, json!({ "model": "qwen2@q4_k_m", "input": "x", "odd": [1] }));
}

#[tokio::test]
async fn a_server_without_a_sidecar_is_asked_in_its_own_words_too() {
    let (engine, _world) = world(&["qwen2.gguf"]).await;
    let desk = NodeSpec::new("desk", me(), None)
        .with(json!({ "ollamas": [{ "name": "box", "url": engine.url() }] }));
    let world = World::start(vec![desk]).await;
    let listed = until(async || ids(&world, "desk").await == ["qwen2.gguf"]).await;
    assert!(listed, "{:?}", ids(&world, "desk").await);
    engine.forget();
    let chat = json!([{ "role": "user", "content": "x" }]);
    let body = json!({ "model": "qwen2.gguf", "messages": chat, "stream": false });
    let answer = world.post("desk", "/api/chat", body.to_string()).send().await;
    assert_eq!(answer.json()["message"]["content"], "hello", "{}", answer.text());
    let asked = engine.seen().into_iter().find(|s| s.path == "/v1/chat/completions").unwrap();
    assert_eq!(asked.body["model"], format!("{FOLDER}/qwen2.gguf"));
}
