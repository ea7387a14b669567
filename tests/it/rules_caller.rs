//! Rules 1, 6, 8 and 11: who a caller is, and what a caller from the mesh may do.

use http::Method;
use serde_json::json;
use tailherd::demo::client::{Call, get, post};
use tailherd::demo::engine::{Engine, EngineSpec, ModelSpec};
use tailherd::demo::node::NodeSpec;
use tailherd::demo::tailscaled::Owner;
use tokio::time::Instant;

use crate::world::{Sends as _, World, chat, count, engine, me, ms, until};

/// An address nobody is asked at: calls across go through the daemon.
fn nowhere() -> std::net::SocketAddr {
    "127.0.0.1:1".parse().unwrap()
}

fn call(method: Method, path: &str, body: &str) -> Call {
    post(nowhere(), path, body.to_owned()).method(method)
}

fn friend() -> Owner {
    Owner::user("friend@example.com")
}

/// A GPU box that lets a friend's device infer and list, nothing else.
async fn shared(provider: Option<&Engine>) -> World {
    let mut config = json!({
        "access": [
            {"from": ["user:friend@example.com"], "verbs": ["infer", "list"], "models": ["tiny", "*cloud", "writer", "claude-*"]},
            {"from": ["owner:self"], "verbs": ["infer", "list", "load", "observe"]},
        ],
        "aliases": {"claude-*": "ollama/nasmodel", "mine": "ollama/secret"},
        "sendTo": [{"to": ["owner:self"]}],
    });
    if let Some(provider) = provider {
        config["models"] = json!({"providers": {"rented": {
            "baseUrl": format!("{}/v1", provider.url()), "apiKey": "sk-canary", "api": "openai-completions",
            "models": [{"id": "gpt-9", "name": "gpt-9"}],
        }}});
        config["agents"] = json!({"writer": {"model": {"primary": "rented/gpt-9"}}});
    }
    let models = vec![ModelSpec::tiny(), ModelSpec::words("secret", "not for you")];
    let gpu = EngineSpec { cloud: true, ..engine("gpu", models) };
    let world = World::start(vec![
        NodeSpec::new("gpu", me(), Some(gpu)).with(config),
        NodeSpec::new(
            "nas",
            me(),
            Some(engine(
                "nas",
                vec![ModelSpec::tiny(), ModelSpec::words("nasmodel", "from the nas")],
            )),
        ),
        NodeSpec::new("friend", friend(), None).with(json!({"sendTo": []})),
        NodeSpec::new("stranger", Owner::user("x@example.com"), None).with(json!({"sendTo": []})),
    ])
    .await;
    world.sees("gpu", "nasmodel:latest", "nas").await;
    for node in ["gpu", "nas"] {
        world.engine(node).forget();
    }
    world
}

#[tokio::test]
async fn a_mesh_caller_reaches_only_this_nodes_own_engines() {
    let provider =
        Engine::start(EngineSpec::new("provider", vec![ModelSpec::tiny()])).await.unwrap();
    let world = shared(Some(&provider)).await;
    for hop in [None, Some("0"), Some("1"), Some("7")] {
        for (path, body) in [
            ("/api/chat", chat("rented/gpt-9", 1)),
            ("/api/chat", chat("writer", 1)),
            ("/v1/chat/completions", chat("agent:writer", 1)),
            ("/v1/chat/completions", chat("gpt-9", 1)),
            ("/api/chat", chat("claude-sonnet", 1)),
            ("/api/chat", chat("mine", 1)),
            ("/api/chat", chat("gpt-oss:120b-cloud", 1)),
            ("/api/chat", chat("nasmodel", 1)),
            ("/api/chat", chat("tiny@nas", 1)),
            ("/node/nas/api/chat", chat("tiny", 1)),
            ("/api/me", "{}".to_owned()),
            ("/api/signout", "{}".to_owned()),
        ] {
            let mut c = call(Method::POST, path, &body);
            for (name, value) in [
                ("x-tailherd-hop", hop),
                ("x-tailherd-agent", Some("writer")),
                ("x-tailherd-where", Some("mesh")),
                ("x-tailherd-peer", hop.map(|_| "nas")),
            ] {
                if let Some(value) = value {
                    c = c.header(name, value);
                }
            }
            let answer = world.across("friend", "gpu", c).await;
            assert!(
                matches!(answer.status, 403 | 404),
                "{path} {body} {}: {}",
                answer.status,
                answer.text()
            );
        }
    }
    assert!(provider.seen().is_empty(), "{:?}", provider.seen());
    let inference = |n: &str| {
        world
            .engine(n)
            .seen()
            .into_iter()
            .filter(|s| s.path.ends_with("chat") || s.path == "/api/me")
            .count()
    };
    assert_eq!((inference("gpu"), inference("nas")), (0, 0));
    let fine =
        world.across("friend", "gpu", call(Method::POST, "/api/chat", &chat("tiny", 1))).await;
    assert_eq!(fine.status, 200, "{}", fine.text());
}

#[tokio::test]
async fn lists_and_show_hold_only_what_the_rule_names() {
    let world = shared(None).await;
    let tags = world.across("friend", "gpu", get(nowhere(), "/api/tags")).await;
    assert_eq!(tags.status, 200);
    let names: Vec<String> =
        tags.json()["models"].as_array().unwrap().iter().map(|r| r["name"].to_string()).collect();
    assert_eq!(names, [r#""tiny:latest""#]);
    for path in ["/v1/models", "/api/ps", "/mesh/v1/offers"] {
        let text = world.across("friend", "gpu", get(nowhere(), path)).await.text().to_owned();
        assert!(!text.contains("secret") && !text.contains("nasmodel"), "{path} {text}");
    }
    for (path, body) in [
        ("/api/show", r#"{"model":"secret"}"#),
        ("/api/chat", r#"{"model":"secret","messages":[]}"#),
    ] {
        let answer = world.across("friend", "gpu", call(Method::POST, path, body)).await;
        assert!(matches!(answer.status, 403 | 404), "{path} {}", answer.text());
    }
    let shown = world.across("friend", "gpu", get(nowhere(), "/v1/models/secret")).await;
    assert!(matches!(shown.status, 403 | 404));
    for path in ["/metrics", "/status"] {
        let answer = world.across("friend", "gpu", get(nowhere(), path)).await;
        assert!(matches!(answer.status, 403 | 404), "{path} needs observe");
    }
    let owner = world.across("nas", "gpu", get(nowhere(), "/metrics")).await;
    assert_eq!(owner.status, 200, "own devices may observe: {}", owner.text());
}

#[tokio::test]
async fn infer_is_no_more_than_infer() {
    let world = shared(None).await;
    let digest = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let blob = format!("/api/blobs/{digest}");
    for (method, path, body) in [
        (Method::POST, "/api/pull", r#"{"model":"tiny"}"#),
        (Method::POST, "/api/push", r#"{"model":"tiny"}"#),
        (Method::POST, "/api/create", r#"{"model":"tiny","from":"tiny","system":"x"}"#),
        (Method::POST, "/api/copy", r#"{"source":"tiny","destination":"tiny2"}"#),
        (Method::DELETE, "/api/delete", r#"{"model":"tiny"}"#),
        (Method::POST, &blob, "hello"),
        (Method::HEAD, &blob, ""),
        (Method::POST, "/api/generate", r#"{"model":"tiny","keep_alive":0}"#),
        (Method::POST, "/api/chat", r#"{"model":"tiny","messages":[],"keep_alive":"0s"}"#),
        (Method::POST, "/api/made-up", r#"{"model":"tiny"}"#),
        (Method::POST, "/v1/systemone", r#"{"model":"tiny"}"#),
        (Method::GET, "/api/experimental/model-recommendations", ""),
        (Method::POST, "/api/experimental/web_search", r#"{"query":"x"}"#),
    ] {
        let answer = world.across("friend", "gpu", call(method.clone(), path, body)).await;
        assert!(
            (400..500).contains(&answer.status),
            "{method} {path}: {} {}",
            answer.status,
            answer.text()
        );
        let seen = world.engine("gpu").seen();
        let touched = seen.iter().find(|s| s.method == method && s.path == path && s.body == body);
        assert!(touched.is_none(), "{method} {path} reached the engine");
    }
    let preload = world
        .across("friend", "gpu", call(Method::POST, "/api/generate", r#"{"model":"tiny"}"#))
        .await;
    assert_eq!(preload.status, 200, "an empty preload is infer: {}", preload.text());
}

#[tokio::test]
async fn whoever_is_not_in_the_rule_is_refused() {
    let world = shared(None).await;
    for path in ["/api/tags", "/mesh/v1/offers", "/v1/models", "/status"] {
        let answer = world.across("stranger", "gpu", get(nowhere(), path)).await;
        assert!(matches!(answer.status, 403 | 404), "{path} {}", answer.status);
        assert!(!answer.text().contains("tiny"));
    }
    let answer =
        world.across("stranger", "gpu", call(Method::POST, "/api/chat", &chat("tiny", 1))).await;
    assert_eq!(answer.status, 403, "{}", answer.text());
}

#[tokio::test]
async fn loopback_is_no_proof_of_local() {
    let world = shared(None).await;
    let gpu = world.node("gpu");
    for lag in [ms(0), ms(100)] {
        gpu.daemon.whois_lag(lag);
        for (port, path) in [(11434, "/api/tags"), (11437, "/status"), (11437, "/metrics")] {
            for who in ["stranger", "friend"] {
                for _ in 0..5 {
                    let answer = world
                        .node(who)
                        .across(gpu, port, get(nowhere(), path))
                        .await
                        .unwrap()
                        .rest()
                        .await;
                    let text = answer.text();
                    assert!(
                        !text.contains("secret") && !text.contains("tailherd_"),
                        "{who} {port} {lag:?} {text}"
                    );
                    assert!(
                        who == "friend" && port == 11434 || answer.status == 403,
                        "{who} {port}: {}",
                        answer.status
                    );
                }
            }
        }
    }
    // The daemon never says for whom: nobody is let in.
    gpu.daemon.whois_lag(ms(60_000));
    let answer = world
        .node("friend")
        .across(gpu, 11434, get(nowhere(), "/api/tags"))
        .await
        .unwrap()
        .rest()
        .await;
    assert_eq!(answer.status, 403);
}

#[tokio::test]
async fn a_daemon_that_does_not_answer_names_nobody() {
    let world = shared(None).await;
    world.node("gpu").daemon.whois_hangs(true);
    let c = call(Method::POST, "/api/chat", &chat("tiny", 1));
    let answer = world.across("friend", "gpu", c).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
}

#[tokio::test]
async fn a_grant_opens_and_its_end_closes_during_keep_alive() {
    let world = shared(None).await;
    let ask = async || {
        let c = call(Method::POST, "/api/chat", &chat("secret", 1));
        world.across("stranger", "gpu", c).await.status
    };
    assert_eq!(ask().await, 403);
    let rule = json!({"verbs": ["infer", "list"], "models": ["secret"]});
    world.net.grant("stranger", "gpu", "tailherd.dev/cap/use", vec![rule]);
    assert!(until(async || ask().await == 200).await);
    world.net.grant(
        "stranger",
        "gpu",
        "tailherd.dev/cap/use",
        vec![json!({"verbs": "everything"})],
    );
    let from = Instant::now();
    assert!(until(async || ask().await == 403).await, "what does not parse grants nothing");
    assert!(from.elapsed() < std::time::Duration::from_secs(15));
}

#[tokio::test]
async fn limits_of_a_rule_hold() {
    let config = json!({"access": [{
        "from": ["user:friend@example.com"], "verbs": ["infer", "list"], "models": ["*"],
        "maxNumCtx": 2048, "maxPredict": 5, "mayLoad": false,
    }]});
    let world = World::start(vec![
        NodeSpec::new(
            "gpu",
            me(),
            Some(engine("gpu", vec![ModelSpec::count("count"), ModelSpec::count("cold")])),
        )
        .with(config),
        NodeSpec::new("friend", friend(), None).with(json!({"sendTo": []})),
    ])
    .await;
    world.sees("gpu", "count:latest", "gpu").await;
    let warm = r#"{"model":"count","options":{"num_ctx":2048}}"#;
    assert_eq!(world.post("gpu", "/api/generate", warm).send().await.status, 200);
    let ask = async |body: String| {
        world.across("friend", "gpu", call(Method::POST, "/api/generate", &body)).await
    };
    let big = r#"{"model":"count","prompt":"x","options":{"num_ctx":4096,"num_predict":2}}"#;
    assert!((400..500).contains(&ask(big.to_owned()).await.status));
    let cold = ask(count("cold", 2)).await;
    assert!((400..=503).contains(&cold.status), "{}", cold.text());
    assert_eq!(world.engine("gpu").counts().loads_started, 1, "loaded nothing for a friend");
    let long = r#"{"model":"count","prompt":"x","options":{"num_ctx":2048,"num_predict":1000}}"#;
    let long = ask(long.to_owned()).await;
    assert!(long.status >= 400 || long.items().len() <= 6, "{}", long.items().len());
}
