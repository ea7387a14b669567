//! How fast an engine is, as the program knows it after requests that were made anyway.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tailherd::app::{App, Setup};
use tailherd::config::{self, FixedEnv};
use tailherd::demo::client::{Answer, get, post};
use tailherd::demo::engine::{Engine, EngineSpec, ModelSpec};
use tailherd::net::Sockets;
use tailherd::types::{ListenerKind, Power, Timing};
use tokio::time::Instant;

use crate::world::{Sends as _, World, ms, until};

/// One node with this engine.
struct Node {
    app: App,
    apps: SocketAddr,
    admin: SocketAddr,
}

impl Node {
    async fn start(engine: &Engine, state: Option<&Path>) -> Node {
        let text = json!({
            "listen": ["127.0.0.1:11434"],
            "local": [{ "baseUrl": engine.url() }],
            "tailnet": { "enabled": false },
        });
        Node::with(&text, Sockets::real(), Timing::shrunk(), state).await
    }

    async fn with(text: &Value, sockets: Sockets, timing: Timing, state: Option<&Path>) -> Node {
        let config = config::parse(&text.to_string(), None, &FixedEnv::default()).unwrap();
        let bound: Arc<Mutex<Vec<(ListenerKind, SocketAddr)>>> = Arc::default();
        let seen = Arc::clone(&bound);
        let sockets = sockets
            .placed(|_, _| (Ipv4Addr::LOCALHOST, 0).into())
            .on_bound(move |kind, _, actual| seen.lock().push((kind, actual)));
        let state = state.map(Path::to_owned);
        let app = App::start(Setup { config, sockets, timing, state, name: "desk".into() });
        let app = app.await.unwrap();
        let at = |kind| bound.lock().iter().find(|(k, _)| *k == kind).unwrap().1;
        let node = Node { apps: at(ListenerKind::Apps), admin: at(ListenerKind::Admin), app };
        assert!(until(async || node.offer().await.is_object()).await, "no model shows");
        node
    }

    /// The first model's offer, as status has it.
    async fn offer(&self) -> Value {
        let status = get(self.admin, "/status").answer().await.unwrap().json();
        status["models"][0]["offers"][0].clone()
    }

    /// Waits until status has a value there.
    async fn measured(&self, field: &str) -> f64 {
        assert!(until(async || self.offer().await[field].is_number()).await, "no {field}");
        self.offer().await[field].as_f64().unwrap()
    }

    async fn ask(&self, path: &str, body: &Value) -> Answer {
        let call = post(self.apps, path, body.to_string()).header("user-agent", "undici");
        call.answer().await.unwrap()
    }

    /// A native request, and the speeds its engine says: reading, writing.
    async fn generate(&self, prompt: &str, tokens: u64) -> (f64, f64) {
        let body = json!({
            "model": "count", "prompt": prompt, "options": { "num_predict": tokens },
        });
        let last = self.ask("/api/generate", &body).await.items().pop().unwrap();
        let rate = |count: &str, time: &str| {
            last[count].as_f64().unwrap() * 1e9 / last[time].as_f64().unwrap()
        };
        (rate("prompt_eval_count", "prompt_eval_duration"), rate("eval_count", "eval_duration"))
    }
}

/// An engine that reads 1000 tokens a second and writes 100.
async fn engine() -> Engine {
    Engine::start(spec()).await.unwrap()
}

fn spec() -> EngineSpec {
    EngineSpec {
        prefill: ms(1),
        token: ms(10),
        prefix_cache: true,
        ..EngineSpec::new("gpu", vec![ModelSpec::count("count").sized(2_000_000_000, "3B")])
    }
}

fn near(is: f64, should: f64, part: f64) -> bool {
    (is / should - 1.0).abs() <= part
}

/// Prompts that begin in different ways.
fn prompt(seed: u8, chars: usize) -> String {
    let letter = char::from(b'a' + seed % 26);
    std::iter::repeat_n(letter, chars).collect()
}

#[tokio::test]
async fn after_two_requests_the_speeds_are_the_engines() {
    let engine = engine().await;
    let node = Node::start(&engine, None).await;
    let offer = node.offer().await;
    for field in ["tokensPerSecond", "promptTokensPerSecond", "ttftMs", "measuredSeconds"] {
        assert!(offer[field].is_null(), "{field}: nothing was asked yet");
    }
    let mut said = Vec::new();
    for seed in [0, 1] {
        said.push(node.generate(&prompt(seed, 200), 40).await);
    }
    let mean = |each: fn(&(f64, f64)) -> f64| said.iter().map(each).sum::<f64>() / 2.0;
    let (read, wrote) = (mean(|s| s.0), mean(|s| s.1));
    let is = async |field: &str, should: f64| near(node.measured(field).await, should, 0.2);
    assert!(
        until(async || is("tokensPerSecond", wrote).await).await,
        "{wrote} {}",
        node.offer().await
    );
    assert!(is("promptTokensPerSecond", read).await, "{read} {}", node.offer().await);
    assert!(node.measured("ttftMs").await >= 200.0);
    assert_eq!(node.measured("measuredSeconds").await, 0.0);
}

#[tokio::test]
async fn a_prompt_that_is_cached_does_not_make_the_engine_faster() {
    let engine = engine().await;
    let node = Node::start(&engine, None).await;
    node.generate(&prompt(0, 400), 20).await;
    let before = node.measured("promptTokensPerSecond").await;
    for more in 0..4 {
        let said = node.generate(&(prompt(0, 400) + &prompt(7, more)), 20).await;
        assert!(said.0 > 3.0 * before, "the engine says that it was fast: {said:?}");
    }
    let after = node.measured("promptTokensPerSecond").await;
    assert!(near(after, before, 0.05), "{before} {after}");
}

#[tokio::test]
async fn a_stream_without_numbers_is_timed() {
    let engine = Engine::start(EngineSpec { token: ms(20), ..spec() }).await.unwrap();
    let node = Node::start(&engine, None).await;
    let message = json!({ "role": "user", "content": prompt(3, 100) });
    let body = json!({ "model": "count", "messages": [message], "stream": true, "max_tokens": 40 });
    node.ask("/v1/chat/completions", &body).await;
    let speed = node.measured("tokensPerSecond").await;
    assert!((20.0..=55.0).contains(&speed), "{speed}");
}

#[tokio::test]
async fn a_refusal_and_a_client_that_leaves_are_no_fast_answers() {
    let engine = engine().await;
    let node = Node::start(&engine, None).await;
    let tools = json!([{ "type": "function", "function": { "name": "f", "parameters": {} } }]);
    let body = json!({
        "model": "count", "tools": tools, "messages": [{ "role": "user", "content": "x" }],
    });
    assert_eq!(node.ask("/api/chat", &body).await.status, 400);
    let body = json!({ "model": "count", "prompt": prompt(1, 9) });
    let mut stream = post(node.apps, "/api/generate", body.to_string()).open().await.unwrap();
    stream.lines(3).await;
    drop(stream);
    assert!(engine.until(Duration::from_secs(5), |c| c.running == 0).await);
    tokio::time::sleep(ms(100)).await;
    let offer = node.offer().await;
    for field in ["tokensPerSecond", "promptTokensPerSecond", "ttftMs", "measuredSeconds"] {
        assert!(offer[field].is_null(), "{field}: {offer}");
    }
}

#[tokio::test]
async fn a_restart_remembers_and_says_how_old_that_is() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine().await;
    let node = Node::start(&engine, Some(folder.path())).await;
    node.generate(&prompt(0, 200), 300).await;
    let before = node.measured("tokensPerSecond").await;
    // What was never measured before is worth a write of its own, however the program ends.
    let file = folder.path().join("directory-here.json");
    let saved = async || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.contains("\"decode\":") && text.contains("\"openclaw\"")
    };
    assert!(until(saved).await, "{}", std::fs::read_to_string(&file).unwrap_or_default());
    drop(node);
    tokio::time::sleep(ms(1100)).await;
    let node = Node::start(&engine, Some(folder.path())).await;
    assert!(near(node.measured("tokensPerSecond").await, before, 0.001));
    assert!(node.measured("measuredSeconds").await >= 1.0);
    // Another model under the same name is as fast as it is.
    engine.add(ModelSpec::count("count").weighing("other"));
    assert!(until(async || node.offer().await["tokensPerSecond"].is_null()).await);
    node.app.stop().await;
}

/// A node that measures itself soon, if it may, with its model in memory and nobody asking.
async fn measuring(engine: &Engine, power: Power, share: Value, state: Option<&Path>) -> Node {
    let text = json!({
        "listen": ["127.0.0.1:11434"],
        "local": [{ "baseUrl": engine.url() }],
        "tailnet": { "enabled": false },
        "preload": ["count"],
        "share": share,
    });
    let sockets = Sockets::real().with_power(move || power);
    let timing = Timing { measure: ms(400), ..Timing::shrunk() };
    let node = Node::with(&text, sockets, timing, state).await;
    assert!(engine.until(Duration::from_secs(10), |c| c.loads_finished > 0).await);
    node
}

/// Generations that were asked of the engine, preloads aside.
fn generations(engine: &Engine) -> Vec<Value> {
    let seen = engine.seen_at("/api/generate").into_iter();
    let bodies = seen.map(|seen| serde_json::from_slice::<Value>(&seen.body).unwrap());
    bodies.filter(|body| body["prompt"].is_string()).collect()
}

#[tokio::test]
async fn a_model_that_nobody_asked_is_measured_once() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine().await;
    let node = measuring(&engine, Power::Mains, json!({}), Some(folder.path())).await;
    let speed = node.measured("tokensPerSecond").await;
    assert!((40.0..=105.0).contains(&speed), "{speed}");
    assert!(node.measured("promptTokensPerSecond").await > 0.0);
    tokio::time::sleep(ms(1500)).await;
    let asked = generations(&engine);
    assert_eq!(asked.len(), 1);
    assert!(asked[0]["options"]["num_predict"].as_u64().unwrap() <= 64);
    assert_eq!(asked[0]["raw"], true);
    // It is nobody's request.
    let status = get(node.admin, "/status").answer().await.unwrap().json();
    assert_eq!(status["requests"], json!([]));
    let metrics = get(node.admin, "/metrics").answer().await.unwrap();
    assert!(!metrics.text().contains("tailherd_tokens_total{"), "{}", metrics.text());
    assert!(metrics.text().contains(r#"tailherd_served_seconds_total{caller="self-measure"}"#));
    assert_eq!(engine.counts().loads_started, 1, "nothing was loaded for it");
    // Nor is it measured again after a restart.
    node.app.stop().await;
    drop(node);
    let _node = measuring(&engine, Power::Mains, json!({}), Some(folder.path())).await;
    tokio::time::sleep(ms(1500)).await;
    assert_eq!(generations(&engine).len(), 1);
}

#[tokio::test]
async fn nothing_is_measured_on_battery_or_where_it_is_not_wanted() {
    for (power, share) in [
        (Power::Battery, json!({})),
        (Power::Unknown, json!({})),
        (Power::Mains, json!({ "selfMeasure": false })),
    ] {
        let engine = engine().await;
        let node = measuring(&engine, power, share.clone(), None).await;
        tokio::time::sleep(ms(1500)).await;
        assert_eq!(generations(&engine), Vec::<Value>::new(), "{power:?} {share}");
        assert!(node.offer().await["tokensPerSecond"].is_null());
    }
}

#[tokio::test]
async fn measuring_gives_way_to_whoever_comes() {
    let engine = Engine::start(EngineSpec { token: ms(100), ..spec() }).await.unwrap();
    let node = measuring(&engine, Power::Mains, json!({}), None).await;
    let limit = Duration::from_secs(10);
    assert!(engine.until(limit, |c| c.running == 1).await, "it is never measured");
    let from = Instant::now();
    node.generate("abc", 2).await;
    // Its 64 tokens would have taken more than six seconds.
    assert!(from.elapsed() < Duration::from_secs(3), "{:?}", from.elapsed());
    assert!(until(async || engine.counts().cancelled == 1).await, "{:?}", engine.counts());
}

#[tokio::test]
async fn a_large_body_says_how_fast_the_way_is() {
    let quick = EngineSpec { prefill: Duration::ZERO, ..spec() };
    let world = World::pair_of(quick).await;
    let uplink = async || {
        let status = world.status("laptop").await;
        let peer = status["peers"].as_array().unwrap().iter().find(|p| p["name"] == "gpu").cloned();
        peer.unwrap()["paths"][0]["uplinkBytesPerSecond"].as_f64()
    };
    for (chars, known) in [(1000, false), (3_000_000, true)] {
        let body = json!({
            "model": "count", "prompt": prompt(4, chars), "options": { "num_predict": 1 },
        });
        let answer = world.post("laptop", "/api/generate", body.to_string()).send().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let so = async || uplink().await.is_some_and(|bytes| bytes > 1e4) == known;
        assert!(until(so).await, "{chars}: {:?}", uplink().await);
    }
}

/// Prompts of words, of which no two begin alike.
fn words(seed: usize, chars: usize) -> String {
    format!("{seed} ").repeat(chars / 2).chars().take(chars).collect()
}

/// How long the laptop thinks that a request would wait at gpu.
async fn wait_at_gpu(world: &World) -> f64 {
    let explain = get(world.node("laptop").admin(), "/explain?model=count&promptTokens=10");
    let explain = explain.send().await.json();
    explain["candidates"][0]["seconds"]["wait"].as_f64().unwrap_or_else(|| panic!("{explain:#}"))
}

/// The engine counts a token a byte. Whoever takes four bytes for one expects the answer four
/// times as soon, and thinks that its node lies.
#[tokio::test]
async fn who_reads_longer_prompts_than_most_is_not_taken_for_a_liar() {
    let reads = EngineSpec { prefill: Duration::from_micros(300), ..spec() };
    let world = World::pair_of(EngineSpec { token: ms(1), ..reads }).await;
    for seed in 1..=4 {
        let body = json!({
            "model": "count", "prompt": words(seed, 3000), "options": { "num_predict": 1 },
        });
        let answer = world.post("laptop", "/api/generate", body.to_string()).send().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        // Its speed is in its report before the next one goes.
        tokio::time::sleep(ms(300)).await;
    }
    let wait = wait_at_gpu(&world).await;
    assert!(wait < 0.5, "it is free, and is expected to make a request wait {wait} s");
}
