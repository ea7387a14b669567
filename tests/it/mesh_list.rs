//! What a client of one node sees of the whole mesh: lists, show, names.

use serde_json::Value;
use tailherd::demo::client::Kept;
use tailherd::demo::engine::ModelSpec;
use tailherd::demo::node::NodeSpec;
use tailherd::demo::tailscaled::Owner;
use tokio::time::Instant;

use crate::world::{Sends as _, World, chat, count, engine, me, ms, served_by, until};

async fn three() -> World {
    let laptop = engine("laptop", vec![ModelSpec::tiny(), ModelSpec::embed("embed")]);
    let gpu = engine("gpu", vec![ModelSpec::count("big:70b"), ModelSpec::tiny()]);
    let nas = engine("nas", vec![ModelSpec::think("think"), ModelSpec::tools("tools")]);
    let world = World::start(vec![
        NodeSpec::new("laptop", me(), Some(laptop)),
        NodeSpec::new("gpu", Owner::tag("tag:ollama"), Some(gpu)),
        NodeSpec::bare("nas", me(), nas),
    ])
    .await;
    for (model, on) in [("tiny:latest", "gpu"), ("big:70b", "gpu"), ("think:latest", "nas")] {
        world.sees("laptop", model, on).await;
    }
    world
}

fn rows(tags: &Value) -> Vec<Value> {
    tags["models"].as_array().unwrap().clone()
}

#[tokio::test]
async fn the_list_is_the_union_of_rich_and_bare_with_one_row_a_name() {
    let world = three().await;
    let tags = world.get("laptop", "/api/tags").send().await;
    assert_eq!(tags.header("content-type"), "application/json; charset=utf-8");
    let mut names: Vec<String> =
        rows(&tags.json()).iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    let all = ["big:70b", "embed:latest", "think:latest", "tiny:latest", "tools:latest"];
    assert_eq!(names, all);
    // Every row is what the engine itself says, plus where it is.
    for (node, model) in [("laptop", "tiny:latest"), ("gpu", "big:70b"), ("nas", "tools:latest")] {
        let own = tailherd::demo::client::get(world.engine(node).addr(), "/api/tags").send().await;
        let own = rows(&own.json()).into_iter().find(|r| r["name"] == model).unwrap();
        let mut ours = rows(&tags.json()).into_iter().find(|r| r["name"] == model).unwrap();
        assert!(ours.as_object_mut().unwrap().remove("mesh").is_some());
        assert_eq!(ours, own, "{model}");
    }
    let openai = world.get("laptop", "/v1/models").send().await.json();
    assert_eq!(openai["data"].as_array().unwrap().len(), 5);
    assert_eq!(openai["data"][0]["object"], "model");
    let one = world.get("laptop", "/v1/models/big:70b").send().await;
    assert_eq!((one.status, &one.json()["id"]), (200, &"big:70b".into()));
}

#[tokio::test]
async fn show_of_a_peers_model_is_the_peers_without_its_paths() {
    let world = three().await;
    let ours = world.post("laptop", "/api/show", r#"{"model":"tools"}"#).send().await;
    assert_eq!(ours.status, 200, "{}", ours.text());
    assert_eq!(ours.json()["capabilities"], serde_json::json!(["completion", "tools"]));
    assert!(!ours.text().contains("/usr/share/ollama"), "no path of another machine");
    let missing = world.post("laptop", "/api/show", r#"{"model":"nope"}"#).send().await;
    assert_eq!(
        (missing.status, missing.text()),
        (404, r#"{"error":"model 'nope:latest' not found"}"#)
    );
}

#[tokio::test]
async fn ps_shows_what_is_loaded_anywhere() {
    let world = three().await;
    assert_eq!(world.post("laptop", "/api/generate", count("big:70b", 1)).send().await.status, 200);
    let so = async || {
        let ps = world.get("laptop", "/api/ps").send().await.json();
        rows(&ps).iter().any(|r| r["name"] == "big:70b" && r["context_length"] == 4096)
    };
    assert!(until(so).await);
}

#[tokio::test]
async fn the_heart_beats_without_an_engine() {
    let world = World::pair(vec![ModelSpec::tiny()]).await;
    let root = world.get("laptop", "/").send().await;
    assert_eq!((root.status, root.text()), (200, "Ollama is running"));
    let version = world.get("laptop", "/api/version").send().await;
    assert_eq!(version.json()["version"], "0.32.15");
}

#[tokio::test]
async fn an_answer_echoes_the_callers_spelling() {
    let world = three().await;
    for (spelling, on) in [
        ("TINY", "laptop"),
        ("tiny@gpu", "gpu"),
        ("Tiny:Latest@GPU", "gpu"),
        ("tiny@self", "laptop"),
        ("registry.ollama.ai/library/tiny", "laptop"),
        ("think@nas", "nas"),
    ] {
        for route in ["/api/chat", "/v1/chat/completions", "/v1/completions"] {
            let answer = world.post("laptop", route, chat(spelling, 2)).send().await;
            assert_eq!(answer.status, 200, "{spelling} {}", answer.text());
            assert_eq!(served_by(&answer), on, "{spelling}");
            for item in answer.items() {
                assert_eq!(item["model"], spelling, "{route}");
            }
        }
        let messages = world.post("laptop", "/v1/messages", chat(spelling, 2)).send().await;
        assert_eq!(messages.items()[0]["message"]["model"], spelling);
        let responses = world.post("laptop", "/v1/responses", chat(spelling, 2)).send().await;
        assert_eq!(responses.items()[0]["response"]["model"], spelling);
        let seen = world.engine(on).seen();
        let asked = seen.iter().rev().find_map(|s| s.model.clone()).unwrap();
        assert!(!asked.contains('@'), "the engine is asked for {asked}");
    }
}

#[tokio::test]
async fn a_node_is_pinned_by_path_and_by_header_too() {
    let world = three().await;
    let answer = world.post("laptop", "/node/gpu/api/chat", chat("tiny", 2)).send().await;
    assert_eq!((answer.status, served_by(&answer)), (200, "gpu"));
    let answer = world.post("laptop", "/api/chat", chat("tiny", 2));
    let answer = answer.header("x-tailherd-peer", "gpu").send().await;
    assert_eq!((answer.status, served_by(&answer)), (200, "gpu"));
    let none = world.post("laptop", "/node/nobody/api/chat", chat("tiny", 2)).send().await;
    assert_eq!(none.status, 404);
    let elsewhere = world.post("laptop", "/api/chat", chat("big:70b@nas", 2)).send().await;
    assert_eq!(elsewhere.status, 404, "{}", elsewhere.text());
}

#[tokio::test]
async fn an_asleep_peer_does_not_hold_up_the_list() {
    let world = three().await;
    world.node("gpu").daemon.asleep(true);
    world.engine("nas").hang();
    let mut kept = Kept::open(world.node("laptop").apps()).await.unwrap();
    kept.get("/").await.unwrap();
    let mut slow = Vec::new();
    for _ in 0..20 {
        let one = Instant::now();
        assert_eq!(kept.get("/api/tags").await.unwrap(), 200);
        if one.elapsed() > ms(100) {
            slow.push(one.elapsed());
        }
        tokio::time::sleep(ms(50)).await;
    }
    // One may be the machine's; a list that waits for a peer waits for it every time.
    assert!(slow.len() <= 2, "{slow:?}");
    let own = world.post("laptop", "/api/generate", count("tiny", 2)).send().await;
    assert_eq!((own.status, own.said().as_str()), (200, " one two"));
}

#[tokio::test]
async fn a_lost_nodes_models_linger_and_then_are_gone() {
    let world = three().await;
    world.node("gpu").quit();
    let refused = async || {
        let answer = world.post("laptop", "/api/generate", count("big:70b", 1)).send().await;
        answer.status == 404
    };
    assert!(until(refused).await);
    assert!(world.holders("laptop", "big:70b").await.is_some(), "listed a while longer");
    let gone = until(async || world.holders("laptop", "big:70b").await.is_none()).await;
    assert!(gone, "{:#}", world.status("laptop").await);
    let answer = world.post("laptop", "/api/generate", count("big:70b", 1)).send().await;
    assert_eq!(answer.status, 404, "{}", answer.text());
    assert!(answer.text().contains("model 'big:70b' not found (last on gpu"), "{}", answer.text());
    world.node("gpu").run().await.unwrap();
    world.sees("laptop", "big:70b", "gpu").await;
}
