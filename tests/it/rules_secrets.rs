//! Rules 10 and 12: secrets stay where they belong; prompts are written down nowhere.

use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;
use tailherd::demo::client::get;
use tailherd::demo::engine::{Cut, Fault, ModelSpec};
use tailherd::demo::node::NodeSpec;
use tracing_subscriber::fmt::MakeWriter;

use crate::world::{Sends as _, World, chat, count, counting, engine, me, ms};

const SECRETS: [&str; 9] = [
    "authorization",
    "cookie",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "proxy-authorization",
    "x-openwebui-user-email",
    "x-openwebui-user-id",
    "baggage",
];

const OURS: [&str; 6] = [
    "x-tailherd-hop",
    "x-tailherd-made-up",
    "tailscale-user-login",
    "connection-named",
    "te",
    "keep-alive",
];

async fn world() -> World {
    let world = World::start(vec![
        NodeSpec::new(
            "laptop",
            me(),
            Some(engine("laptop", vec![ModelSpec::words("here", "a b")])),
        ),
        NodeSpec::new("gpu", me(), Some(engine("gpu", vec![ModelSpec::tiny()]))),
        NodeSpec::bare("nas", me(), engine("nas", vec![ModelSpec::think("think")])),
    ])
    .await;
    world.sees("laptop", "tiny:latest", "gpu").await;
    world.sees("laptop", "think:latest", "nas").await;
    world
}

#[tokio::test]
async fn no_secret_leaves_this_node() {
    let world = world().await;
    for (model, on) in [("here", "laptop"), ("tiny", "gpu"), ("think", "nas")] {
        for route in ["/api/chat", "/v1/chat/completions", "/v1/messages", "/v1/responses"] {
            world.engine(on).forget();
            let mut call = world.post("laptop", route, chat(model, 1));
            for name in SECRETS {
                call = call.header(name, "canary-key");
            }
            call = call.header("connection", "connection-named").header("connection-named", "x");
            call = call
                .header("te", "trailers")
                .header("keep-alive", "x")
                .header("x-tailherd-made-up", "x");
            call = call.header("user-agent", "ollama-python/0.6.3").header("x-tailherd-hop", "9");
            let answer = call.send().await;
            assert_eq!(answer.status, 200, "{route} {model} {}", answer.text());
            let seen = world.engine(on).seen_at(route);
            let headers = &seen.last().unwrap().headers;
            for name in SECRETS {
                let there = headers.contains_key(name);
                assert!(
                    on == "laptop" && name != "proxy-authorization" || !there,
                    "{route} {on} got {name}"
                );
            }
            for name in OURS {
                assert!(!headers.contains_key(name), "{route} {on} got {name}");
            }
            assert!(!headers.contains_key("accept-encoding"), "no compression upstream");
            assert_eq!(headers["user-agent"], "ollama-python/0.6.3");
            let host = headers["host"].to_str().unwrap();
            assert!(
                host.starts_with("localhost") || host.starts_with("127.0.0.1") || on == "nas",
                "{host}"
            );
        }
    }
    // This machine's engine may have them: they are this machine's.
    let call = world.post("laptop", "/api/chat", chat("here", 1)).header("authorization", "mine");
    call.send().await;
    let seen = world.engine("laptop").seen_at("/api/chat");
    assert_eq!(seen.last().unwrap().headers["authorization"], "mine");
}

#[tokio::test]
async fn answers_pass_only_what_is_known() {
    let world = World::pair(vec![ModelSpec::tiny()]).await;
    for (at, kind) in
        [("gpu", "text/html"), ("laptop", "text/html"), ("gpu", "application/javascript")]
    {
        let page = "<script>alert(1)</script>".to_owned();
        world.engine("gpu").fault(Some(Fault::Raw(200, kind.to_owned(), page)));
        let answer = world.post(at, "/api/chat", chat("tiny", 1)).send().await;
        assert!(matches!(answer.status, 502 | 503), "{at} {kind} {}", answer.status);
        assert!(!answer.text().contains("script"), "{at} {}", answer.text());
        tokio::time::sleep(ms(600)).await;
    }
    world.engine("gpu").fault(Some(Fault::Raw(302, "text/plain".to_owned(), String::new())));
    let answer = world.post("gpu", "/api/chat", chat("tiny", 1)).send().await;
    assert!(matches!(answer.status, 502 | 503), "{}", answer.status);
    world.engine("gpu").fault(None);
    tokio::time::sleep(ms(600)).await;
    let answer = world.post("laptop", "/api/chat", chat("tiny", 1)).send().await;
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert!(!answer.header("x-request-id").is_empty());
    assert_eq!(answer.header("x-tailherd-attempts"), "1");
}

/// Everything that is logged by this test binary, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Log;
    fn make_writer(&self) -> Log {
        self.clone()
    }
}

#[tokio::test]
async fn no_prompt_and_no_key_is_written_down_anywhere() {
    const PROMPT: &str = "canary-prompt-7f3a";
    const KEY: &str = "canary-key-91bc";
    let log = Log::default();
    tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).init();

    let world = World::start(vec![
        NodeSpec::new("laptop", me(), None),
        NodeSpec::new("gpu", me(), Some(counting("gpu", ms(1)))),
        NodeSpec::bare("nas", me(), counting("nas", ms(1))),
    ])
    .await;
    world.sees("laptop", "count:latest", "gpu").await;
    world.sees("laptop", "count:latest", "nas").await;
    let ask = async |model: &str, route: &str| {
        let body = json!({
            "model": model, "stream": true, "input": PROMPT, "prompt": PROMPT, "max_tokens": 20,
            "messages": [{"role": "user", "content": PROMPT}], "options": {"num_predict": 20},
        });
        let target = format!("{route}?key={KEY}");
        let call = world.post("laptop", &target, body.to_string());
        let call = call.header("authorization", &format!("Bearer {KEY}")).header("x-api-key", KEY);
        if let Ok(stream) = call.open().await {
            stream.rest().await;
        }
    };
    let all = async || {
        for model in ["count", "count@gpu", "count@nas", "nope", "bad name"] {
            for route in [
                "/api/chat",
                "/api/generate",
                "/v1/chat/completions",
                "/v1/messages",
                "/v1/responses",
                "/api/embed",
            ] {
                ask(model, route).await;
            }
        }
    };
    all().await;
    let echo = format!(r#"{{"error":"you said {PROMPT}"}}"#);
    for status in [400, 404, 500, 503] {
        let fault = Fault::Raw(status, "application/json".to_owned(), echo.clone());
        for node in ["gpu", "nas"] {
            world.engine(node).fault(Some(fault.clone()));
        }
        ask("count@gpu", "/api/chat").await;
        ask("count@nas", "/v1/chat/completions").await;
        ask("count", "/api/chat").await;
    }
    for node in ["gpu", "nas"] {
        world.engine(node).fault(None);
    }
    for cut in [Cut::Reset, Cut::Close, Cut::Clean, Cut::Crash] {
        for node in ["gpu", "nas"] {
            world.engine(node).cut_after(Some((3, cut)));
        }
        ask("count@gpu", "/api/chat").await;
        ask("count@nas", "/v1/messages").await;
    }
    let broken = format!(r#"{{"model":"count","prompt":"{PROMPT}"#);
    world.post("laptop", "/api/generate", broken).send().await;
    let twice = format!(r#"{{"model":"count","MODEL":"x","prompt":"{PROMPT}"}}"#);
    let call = tailherd::demo::client::post("127.0.0.1:1".parse().unwrap(), "/api/generate", twice);
    world.across("laptop", "gpu", call).await;
    let mut left =
        world.post("laptop", "/api/generate", count("count@gpu", 100)).open().await.unwrap();
    left.next().await;
    drop(left);
    world.engine("gpu").die();
    world.node("nas").daemon.asleep(true);
    ask("count", "/api/chat").await;

    let logged = String::from_utf8_lossy(&log.0.lock()).into_owned();
    assert!(logged.contains("DEBUG") && logged.contains("trying"), "the log was not captured");
    let mut places = vec![("the log", logged)];
    for node in ["laptop", "gpu"] {
        for path in ["/metrics", "/status", "/"] {
            let text = get(world.node(node).admin(), path).send().await.text().to_owned();
            places.push((path, text));
        }
    }
    for (place, text) in places {
        for canary in [PROMPT, KEY] {
            let at = text.find(canary);
            let around =
                at.map(|at| text[at.saturating_sub(200)..(at + 100).min(text.len())].to_owned());
            assert!(at.is_none(), "{canary} in {place}: {around:?}");
        }
    }
}
