//! Rules 2, 3 and 9: who gets prompts, what is never forwarded, what pages may do.

use serde_json::json;
use tailherd::demo::client::raw;
use tailherd::demo::engine::ModelSpec;
use tailherd::demo::node::NodeSpec;
use tailherd::demo::tailscaled::Owner;

use crate::world::{Sends as _, World, chat, count, engine, me, ms, until};

fn colleague() -> Owner {
    Owner::user("ops@example.com")
}

#[tokio::test]
async fn honeypot_peer_gets_nothing() {
    let models = || vec![ModelSpec::count("count"), ModelSpec::count("honey")];
    let world = World::start(vec![
        NodeSpec::new("laptop", me(), None),
        NodeSpec::new("gpu", me(), Some(engine("gpu", vec![ModelSpec::count("count")]))),
        // Theirs lets everybody in, and would be the fastest.
        NodeSpec::new("trap", colleague(), Some(engine("trap", models()))).with(
            json!({"access": [{"from": ["*"], "verbs": ["infer", "list", "load", "observe"]}]}),
        ),
        NodeSpec::bare("open", Owner::user("other@example.com"), engine("open", models())),
    ])
    .await;
    world.sees("laptop", "count:latest", "gpu").await;
    for node in ["trap", "open"] {
        world.engine(node).forget();
    }
    // In waves: each connection of a program costs a look at who it is.
    for _ in 0..25 {
        let models = ["count", "honey", "count@trap", "honey@open"];
        let wave: Vec<_> = (0..20)
            .map(|i| world.post("laptop", "/api/generate", count(models[i % 4], 1)).send())
            .map(tokio::spawn)
            .collect();
        let list = world.get("laptop", "/api/tags").send().await;
        assert!(!list.text().contains("honey"), "{}", list.text());
        for (i, answer) in wave.into_iter().enumerate() {
            let want = if i % 4 == 0 { 200 } else { 404 };
            let answer = answer.await.unwrap();
            assert_eq!(answer.status, want, "{}: {}", models[i % 4], answer.text());
        }
    }
    // The trap's sidecar looks after its own engine; nothing else may have come.
    let own = ["/mesh/v1/ping", "/", "/api/version", "/api/tags", "/api/ps", "/api/show"];
    let strange = world.engine("trap").seen().into_iter().find(|s| !own.contains(&s.path.as_str()));
    assert!(strange.is_none(), "{strange:?}");
    assert!(world.engine("open").seen().is_empty(), "{:?}", world.engine("open").seen());
    for node in ["trap", "open"] {
        assert_eq!(
            world.node(node).daemon.asked().arrivals,
            0,
            "no connection to {node}, not even a probe"
        );
    }
    let status = world.status("laptop").await.to_string();
    assert!(status.contains("trap") && status.contains("sendTo"), "it is shown, with its rule");
}

#[tokio::test]
async fn a_newcomer_waits_until_it_is_accepted() {
    let world = World::start(vec![NodeSpec::new("laptop", me(), None)]).await;
    assert!(until(async || world.status("laptop").await["rung"] != "starting").await);
    tokio::time::sleep(ms(300)).await;
    let spec = NodeSpec::new(
        "late",
        Owner::tag("tag:ollama"),
        Some(engine("late", vec![ModelSpec::tiny()])),
    );
    let late =
        tailherd::demo::node::Node::start(&world.net, spec, tailherd::types::Timing::shrunk())
            .await
            .unwrap();
    let seen = async || world.status("laptop").await.to_string().contains("trust accept late");
    assert!(until(seen).await, "{}", world.status("laptop").await);
    assert_eq!(world.holders("laptop", "tiny:latest").await, None);
    assert_eq!(late.engine().unwrap().seen_at("/api/generate").len(), 0);
    assert_eq!(late.daemon.asked().arrivals, 0);
}

/// The content type of calls between sidecars.
const MESH: &str = "application/vnd.tailherd+json";

/// A call as sidecars make it.
fn control(path: &str) -> tailherd::demo::client::Call {
    let call = tailherd::demo::client::get("127.0.0.1:1".parse().unwrap(), path);
    call.header("content-type", MESH)
}

/// Twenty ways to spell a reserved path.
const RESERVED: [&str; 20] = [
    "/mesh/v1/offers",
    "/mesh/v1/hello",
    "/mesh/",
    "/mesh",
    "/MESH/v1/offers",
    "//mesh/v1/offers",
    "/%6desh/v1/offers",
    "/mesh%2fv1%2foffers",
    "/./mesh/v1/offers",
    "/api/../mesh/v1/offers",
    "/node/gpu/mesh/v1/offers",
    "/node/gpu//mesh/v1/offers",
    "/node/gpu/%6desh/v1/offers",
    "/node/gpu/%6Desh%2Fv1%2Foffers",
    "/node/gpu/../mesh/v1/offers",
    "/node/gpu/%2e%2e/mesh/v1/offers",
    "/node/gpu/api/..%2fmesh/v1/offers",
    "/node/gpu/..\\mesh\\v1\\offers",
    "/node/gpu/%5cmesh/v1/offers",
    "/node/gpu/node/gpu/mesh/v1/offers",
];

#[tokio::test]
async fn reserved_paths_are_never_forwarded() {
    let world = World::pair(vec![ModelSpec::tiny()]).await;
    let apps = world.node("laptop").apps();
    for method in ["GET", "POST"] {
        for path in RESERVED.into_iter().chain([
            "/node/gpu/metrics",
            "/node/gpu/status",
            "/node/gpu/healthz",
            "/metrics",
            "/status",
        ]) {
            let body = r#"{"model":"tiny","prompt":"x"}"#;
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/vnd.tailherd+json\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let answer = raw(apps, request.as_bytes()).await.unwrap();
            let status = answer.split(' ').nth(1).unwrap_or("closed");
            assert!(matches!(status, "400" | "403" | "404" | "405" | "closed"), "{path}: {answer}");
            assert!(
                !answer.contains("vnd.tailherd") && !answer.contains("\"offers\""),
                "{path}: {answer}"
            );
        }
    }
    let strange = world.engine("gpu").seen().into_iter().find(|s| {
        // Its own sidecar asks each engine whether it is a sidecar.
        let probe = s.path == "/mesh/v1/ping" && s.method == "GET" && s.body.is_empty();
        let path = s.path.to_ascii_lowercase();
        !probe && (path.contains("mesh") || path.contains('%') || path == "/metrics")
    });
    assert!(strange.is_none(), "{strange:?}");
    // The same through the front door: a sidecar is answered, so the paths do exist.
    let answer = world.across("laptop", "gpu", control("/mesh/v1/offers")).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, MESH));
}

#[tokio::test]
async fn mesh_calls_are_refused_with_a_hop_header_or_an_origin() {
    let world = World::pair(vec![ModelSpec::tiny()]).await;
    for (name, value) in [("x-tailherd-hop", "1"), ("origin", "http://localhost:3000")] {
        let offers = control("/mesh/v1/offers").header(name, value);
        let answer = world.across("laptop", "gpu", offers).await;
        assert!(matches!(answer.status, 400 | 403 | 404), "{name} {}", answer.text());
        assert!(!answer.text().contains("offers"));
    }
}

#[tokio::test]
async fn pages_get_nothing() {
    let world = World::pair(vec![ModelSpec::tiny()]).await;
    for (headers, allowed) in [
        (vec![("host", "evil.example")], false),
        (vec![("host", "100.64.0.9:11434")], false),
        (vec![("host", "laptop.demo.example")], true),
        (vec![("host", "localhost:11434")], true),
        (vec![("host", "desk.local")], true),
        (vec![("host", "desk.local"), ("origin", "http://desk.local")], false),
        (vec![("host", "desk.local"), ("sec-fetch-site", "same-origin")], false),
        (vec![("origin", "http://evil.example")], false),
        (vec![("origin", "http://localhost:3000")], true),
        (vec![("origin", "null")], false),
    ] {
        for at in ["gpu", "laptop"] {
            let mut call = world.post(at, "/api/chat", chat("tiny", 1));
            for (name, value) in &headers {
                call = call.header(name, value);
            }
            let answer = call.send().await;
            // The laptop's own name is not the gpu's.
            if at == "gpu" && headers[0].1.starts_with("laptop") {
                continue;
            }
            assert_eq!(answer.status, if allowed { 200 } else { 403 }, "{at} {headers:?}");
            if !allowed {
                assert!(
                    answer.body.is_empty()
                        && answer.header("access-control-allow-origin").is_empty()
                );
            }
        }
    }
    for (name, value) in
        [("origin", "http://localhost"), ("referer", "http://x/"), ("sec-fetch-mode", "cors")]
    {
        let call = world.post("laptop", "/api/chat", chat("tiny", 1)).header(name, value);
        assert_eq!(world.across("laptop", "gpu", call).await.status, 403, "mesh {name}");
    }
    for (path, name, value) in
        [("/status", "host", "evil.example"), ("/metrics", "origin", "http://evil.example")]
    {
        let call = tailherd::demo::client::get(world.node("gpu").admin(), path).header(name, value);
        assert_eq!(call.send().await.status, 403, "admin {name}");
    }
    let post =
        tailherd::demo::client::post(world.node("gpu").admin(), "/status", "{}").send().await;
    assert_eq!(post.status, 405);
}

#[tokio::test]
async fn forwarded_and_serve_headers_are_no_local_caller() {
    let world = World::pair(vec![ModelSpec::tiny()]).await;
    for name in ["tailscale-user-login", "x-forwarded-for", "forwarded", "x-forwarded-host"] {
        let call = world.post("gpu", "/api/chat", chat("tiny", 1)).header(name, "me@example.com");
        assert_eq!(call.send().await.status, 403, "{name}");
    }
}
