//! Chains over real sockets: when a provider is asked, what it gets, and what its errors mean.

use serde_json::{Value, json};
use tailherd::app::control::{Said, Wish};
use tailherd::demo::client::{Answer, get};
use tailherd::demo::engine::{Fault, ModelSpec};
use tailherd::demo::node::NodeSpec;
use tailherd::demo::tailscaled::Owner;

use crate::provider::{Provider, Reply, chat_stream, error, events, later};
use crate::world::{Sends as _, World, chat, engine, me, ms, served_by};

const CHAT: &str = "/v1/chat/completions";

/// A laptop without an engine that may spend at `provider`, and a GPU box with `tiny`.
async fn world(provider: &Provider, more: Value) -> World {
    let mut rented = json!({
        "baseUrl": format!("{}/v1", provider.url()), "apiKey": "sk-canary",
        "api": "openai-completions", "headers": {"X-Title": "herd"}, "body": {"store": false},
        "models": [{"id": "gpt-9", "contextWindow": 1000, "cost": {"input": 2.5, "output": 10}}],
    });
    if let (Some(rented), Some(more)) = (rented.as_object_mut(), more["rented"].as_object()) {
        rented.extend(more.clone());
    }
    let mut config = json!({
        "failover": {"cooldown": ["1h"]},
        "agents": {
            "defaults": {"model": {"primary": "ollama/tiny", "fallbacks": ["rented/gpt-9"]}},
            "writing": {"model": {"primary": "rented/gpt-9", "fallbacks": ["ollama/tiny"]}},
            "inside": {"model": {"primary": "ollama/tiny", "fallbacks": ["rented/gpt-9"]}, "where": "mesh"},
        },
        "aliases": {"claude-*": "rented/gpt-9"},
        "models": {"providers": {"rented": rented}},
    });
    if let (Some(models), Some(more)) =
        (config["models"].as_object_mut(), more["models"].as_object())
    {
        models.extend(more.clone());
    }
    if let (Some(config), Some(more)) = (config.as_object_mut(), more["config"].as_object()) {
        config.extend(more.clone());
    }
    let gpu = engine("gpu", vec![ModelSpec::tiny(), ModelSpec::words("other", "from the gpu")]);
    let world = World::start(vec![
        NodeSpec::new("laptop", me(), None).with(config),
        NodeSpec::new("gpu", Owner::tag("tag:ollama"), Some(gpu)),
    ])
    .await;
    world.sees("laptop", "tiny:latest", "gpu").await;
    if more["models"]["mode"] != "replace" {
        world.sees("laptop", "other:latest", "gpu").await;
    }
    world.engine("gpu").forget();
    world
}

async fn ask(world: &World, model: &str) -> Answer {
    world.post("laptop", CHAT, chat(model, 3)).send().await
}

#[tokio::test]
async fn a_chain_goes_on_to_its_provider_when_the_mesh_cannot() {
    let provider = Provider::start(chat_stream()).await;
    let world = world(&provider, json!({})).await;
    assert_eq!(served_by(&ask(&world, "tiny").await), "gpu");
    assert!(provider.seen().is_empty(), "the mesh comes first");
    world.engine("gpu").fault(Some(Fault::Broken));
    let answer = world
        .post("laptop", CHAT, chat("tiny", 3))
        .header("authorization", "Bearer mine")
        .header("cookie", "c=mine")
        .header("x-private", "mine")
        .send()
        .await;
    assert_eq!((answer.status, answer.whole), (200, true), "{}", answer.text());
    assert_eq!(answer.header("x-tailherd-served-by"), "rented/gpt-9");
    assert_eq!(answer.header("x-tailherd-attempts"), "2");
    assert!(answer.text().contains("hosted") && answer.text().ends_with("data: [DONE]\n\n"));
    assert_eq!(answer.items()[0]["model"], "tiny", "the caller's own spelling");
    let seen = provider.seen();
    assert_eq!((seen.len(), seen[0].path.as_str()), (1, "/v1/chat/completions"));
    assert_eq!(seen[0].header("authorization"), "bearer sk-canary");
    assert_eq!(seen[0].header("x-title"), "herd");
    assert!(!seen[0].head.contains("mine"), "{}", seen[0].head);
    assert_eq!((&seen[0].body["model"], &seen[0].body["store"]), (&json!("gpt-9"), &json!(false)));
    assert!(seen[0].body["options"].is_null(), "strict servers refuse Ollama's options");
    assert_eq!(seen[0].body["messages"][0]["content"], "x");
}

#[tokio::test]
async fn nothing_leaves_the_mesh_that_no_chain_names() {
    let provider = Provider::start(chat_stream()).await;
    let world = world(&provider, json!({})).await;
    world.engine("gpu").fault(Some(Fault::Broken));
    for (model, header) in [
        ("other", ("x-a", "")),
        ("tiny", ("x-tailherd-where", "mesh")),
        ("tiny", ("x-tailherd-where", "mine")),
        ("tiny", ("x-tailherd-peer", "gpu")),
        ("tiny@gpu", ("x-a", "")),
        ("inside", ("x-a", "")),
        ("other", ("x-tailherd-agent", "inside")),
        ("rented", ("x-a", "")),
        ("rented/gpt-8", ("x-a", "")),
        ("gpt-9", ("x-a", "")),
    ] {
        let answer = world.post("laptop", CHAT, chat(model, 3)).header(header.0, header.1);
        let answer = answer.send().await;
        assert!(answer.status >= 404, "{model} {header:?}: {}", answer.text());
    }
    // Neither vectors nor a load.
    let body = json!({"model": "tiny", "input": "x"}).to_string();
    assert!(world.post("laptop", "/v1/embeddings", body).send().await.status >= 400);
    let body = json!({"model": "tiny"}).to_string();
    assert!(world.post("laptop", "/api/generate", body).send().await.status >= 400);
    assert_eq!(provider.connections(), 0);
}

#[tokio::test]
async fn a_chain_is_named_by_agent_header_alias_and_provider() {
    let provider = Provider::start(chat_stream()).await;
    let world = world(&provider, json!({})).await;
    for model in ["writing", "WRITING:latest", "claude-haiku-4-5", "rented/gpt-9"] {
        let answer = ask(&world, model).await;
        assert_eq!(answer.header("x-tailherd-served-by"), "rented/gpt-9", "{}", answer.text());
        assert_eq!(answer.items()[0]["model"], model);
    }
    let call = world.post("laptop", CHAT, chat("other", 3)).header("x-tailherd-agent", "Writing");
    assert_eq!(served_by(&call.send().await), "rented");
    let call = world.post("laptop", CHAT, chat("other", 3)).header("x-tailherd-agent", "nobody");
    let answer = call.send().await;
    assert_eq!(answer.status, 404);
    assert!(answer.text().contains("'nobody'") && answer.text().contains("writing"));
}

/// What a provider says, and who answers then; the second request tells whether it rests.
#[track_caller]
fn check(
    world: &World,
    provider: &Provider,
    reply: Reply,
    want: (&'static str, usize),
) -> impl Future<Output = Answer> {
    let place = std::panic::Location::caller();
    provider.says(reply.clone());
    provider.forget();
    async move {
        let answer = ask(world, "writing").await;
        assert_eq!(served_by(&answer), want.0, "{place}: {reply:?}: {}", answer.text());
        ask(world, "writing").await;
        assert_eq!(provider.seen().len(), want.1, "{place}: {reply:?}");
        answer
    }
}

#[tokio::test]
async fn each_error_of_a_provider_has_its_meaning() {
    let context = r#"{"error":{"message":"This model's maximum context length is 8192 tokens","code":"context_length_exceeded"}}"#;
    let replies: [(Reply, (&str, usize)); 14] = [
        // Rests for an hour, so that the second request does not knock.
        (error(529, r#"{"type":"error","error":{"type":"overloaded_error"}}"#), ("gpu", 1)),
        (error(500, "{}"), ("gpu", 1)),
        (error(429, r#"{"error":{"message":"slow down"}}"#), ("gpu", 1)),
        (later(429, "0", r#"{"error":{"message":"slow down"}}"#), ("gpu", 2)),
        (error(429, r#"{"error":{"type":"insufficient_quota"}}"#), ("gpu", 1)),
        (error(402, r#"{"error":{"code":402}}"#), ("gpu", 1)),
        (error(401, r#"{"error":{"message":"bad key sk-canary"}}"#), ("gpu", 1)),
        (
            error(413, r#"{"error":{"message":"Limit 6000 TPM","code":"rate_limit_exceeded"}}"#),
            ("gpu", 2),
        ),
        (error(404, r#"{"error":{"message":"no such model"}}"#), ("gpu", 1)),
        (
            Reply {
                status: 302,
                headers: vec![("location", "http://127.0.0.1:1/")],
                body: String::new(),
            },
            ("gpu", 1),
        ),
        // 200, and then an error before anything was said.
        (
            events(
                ": OPENROUTER PROCESSING\n\ndata: {\"error\":{\"code\":502,\"message\":\"x\"},\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},\"finish_reason\":\"error\"}]}\n\n",
            ),
            ("gpu", 1),
        ),
        (error(200, r#"{"error":{"code":429,"message":"x"}}"#), ("gpu", 1)),
        // The request's own fault: word for word, and nobody else is asked.
        (error(400, context), ("rented", 2)),
        (error(422, r#"{"detail":"no"}"#), ("rented", 2)),
    ];
    for (reply, want) in replies {
        let provider = Provider::start(reply.clone()).await;
        let world = world(&provider, json!({})).await;
        let answer = check(&world, &provider, reply.clone(), want).await;
        match want.0 {
            "rented" => assert_eq!((answer.status, answer.text()), (reply.status, &*reply.body)),
            _ => assert_eq!((answer.status, answer.whole), (200, true)),
        }
    }
}

#[tokio::test]
async fn when_all_steps_failed_each_is_named_and_no_key_is() {
    let provider = Provider::start(error(401, r#"{"error":{"message":"wrong: sk-canary"}}"#)).await;
    let world = world(&provider, json!({})).await;
    world.engine("gpu").fault(Some(Fault::Broken));
    let answer = ask(&world, "writing").await;
    assert_eq!((answer.status, answer.header("x-should-retry")), (503, "false"));
    let text = answer.text().to_owned();
    assert!(text.contains("refused the key") && text.contains("gpu"), "{text}");
    let rests = ask(&world, "writing").await;
    assert!(rests.text().contains("it rests"), "{}", rests.text());
    let status = world.status("laptop").await.to_string();
    let metrics = get(world.node("laptop").admin(), "/metrics").send().await;
    for text in [&text, &status, metrics.text()] {
        assert!(!text.contains("sk-canary"), "{text}");
    }
    assert_eq!(provider.seen().len(), 1);
}

#[tokio::test]
async fn a_provider_that_is_the_only_step_is_quoted() {
    let said = r#"{"error":{"message":"at capacity, dear sk-canary"}}"#;
    let provider = Provider::start(error(503, said)).await;
    let agents = json!({"solo": {"model": "rented/gpt-9"}});
    let world = world(&provider, json!({"config": {"agents": agents}})).await;
    let answer = ask(&world, "solo").await;
    assert_eq!((answer.status, served_by(&answer)), (503, "rented"));
    assert_eq!(answer.text(), said.replace("sk-canary", "***"));
    assert_eq!(answer.header("x-should-retry"), "false");
}

#[tokio::test]
async fn an_error_in_mid_stream_reaches_the_caller_as_an_error() {
    let said = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"half\"},\"finish_reason\":null}]}\n\n";
    let broken = format!(
        "{said}data: {{\"error\":{{\"code\":502,\"message\":\"gone\"}},\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"\"}},\"finish_reason\":\"error\"}}]}}\n\n"
    );
    let provider = Provider::start(events(&broken)).await;
    let world = world(&provider, json!({})).await;
    let answer = ask(&world, "writing").await;
    assert_eq!((answer.status, answer.whole, served_by(&answer)), (200, true, "rented"));
    assert!(answer.text().contains("half") && answer.text().contains("\"gone\""));
    // One that stops without a word is repaired.
    provider.says(events(said));
    let answer = ask(&world, "writing").await;
    assert!(answer.text().contains("upstream_lost"), "{}", answer.text());
    let metrics = get(world.node("laptop").admin(), "/metrics").send().await;
    let line = |outcome: &str| {
        let lines = metrics.text().lines().filter(|l| l.starts_with("tailherd_requests_total"));
        lines.filter(|l| l.contains(outcome) && l.contains("peer=\"rented\"")).count()
    };
    assert_eq!((line("upstream_error"), line("truncated"), line("\"done\"")), (1, 1, 0));
}

#[tokio::test]
async fn anthropics_dialect_passes_with_its_own_key_header() {
    let stream = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"gpt-9\",\"usage\":{\"input_tokens\":10}}}\n\nevent: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"hi\"}}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":1}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    let provider = Provider::start(events(stream)).await;
    let rented = json!({"rented": {"api": "anthropic-messages"}});
    let world = world(&provider, rented).await;
    let call = world.post("laptop", "/v1/messages?beta=true", chat("writing", 3));
    let answer = call.header("anthropic-beta", "thinking").header("x-api-key", "mine").send().await;
    assert_eq!((answer.status, served_by(&answer)), (200, "rented"), "{}", answer.text());
    let seen = &provider.seen()[0];
    assert_eq!(seen.path, "/v1/messages?beta=true");
    assert_eq!(seen.header("x-api-key"), "sk-canary");
    assert_eq!(
        (seen.header("anthropic-version"), seen.header("anthropic-beta")),
        ("2023-06-01", "thinking")
    );
    assert_eq!(seen.header("authorization"), "");
    // A dialect it does not speak is not tried on it.
    assert_eq!(served_by(&ask(&world, "writing").await), "gpu");
    assert_eq!(provider.seen().len(), 1);
}

#[tokio::test]
async fn limits_budget_and_users_pass_over_a_provider() {
    let provider = Provider::start(chat_stream()).await;
    for (more, answers) in [
        (json!({"limit": {"perMinute": 2}}), ["rented", "rented", "gpu"]),
        // One answer costs 0.0045 dollars.
        (json!({"budget": 0.008}), ["rented", "rented", "gpu"]),
        (json!({"users": ["uid:4294967294"]}), ["gpu", "gpu", "gpu"]),
        (json!({"models": [{"id": "gpt-9", "contextWindow": 2}]}), ["gpu", "gpu", "gpu"]),
    ] {
        let world = world(&provider, json!({"rented": more})).await;
        for who in answers {
            assert_eq!(served_by(&ask(&world, "writing").await), who, "{more}");
        }
        if more["budget"].is_number() {
            let explain = get(world.node("laptop").admin(), "/explain?model=writing").send().await;
            let step = &explain.json()["steps"][0];
            assert_eq!((&step["step"], &step["open"]), (&json!("rented/gpt-9"), &json!(false)));
            assert_eq!(step["why"], "its budget for today is spent");
            let metrics = get(world.node("laptop").admin(), "/metrics").send().await;
            let line = "tailherd_cost_usd_total{model=\"gpt-9\",provider=\"rented\"} 0.009";
            assert!(metrics.text().contains(line), "{}", metrics.text());
        }
    }
}

#[tokio::test]
async fn a_provider_out_of_reach_costs_one_request_and_not_each() {
    let provider = Provider::start(chat_stream()).await;
    let url = provider.url();
    let port = provider.port();
    drop(provider);
    tokio::time::sleep(ms(50)).await;
    let provider = Provider::start(chat_stream()).await;
    let rented = json!({"rented": {"baseUrl": format!("{url}/v1")}});
    let world = world(&provider, rented).await;
    for _ in 0..3 {
        assert_eq!(served_by(&ask(&world, "writing").await), "gpu");
    }
    let metrics = get(world.node("laptop").admin(), "/metrics").send().await;
    let line = "tailherd_attempts_total{peer=\"rented\",reason=\"connect\"} 1";
    assert!(metrics.text().contains(line), "port {port}: {}", metrics.text());
}

#[tokio::test]
async fn offline_is_no_dial_to_the_internet() {
    let provider = Provider::start(chat_stream()).await;
    // A server on this machine that is said to be on the internet.
    let url = format!("https://127.0.0.1:{}/v1", provider.port());
    let rented = json!({"baseUrl": url, "scope": "internet"});
    for offline in [true, false] {
        let more = json!({"rented": rented, "config": {"offline": offline}});
        let world = world(&provider, more).await;
        for (model, status) in [("writing", 200), ("tiny", 200), ("rented/gpt-9", 0)] {
            let answer = ask(&world, model).await;
            if status > 0 {
                assert_eq!((answer.status, served_by(&answer)), (status, "gpu"), "{model}");
            }
        }
        assert_eq!(provider.connections() > 0, !offline);
    }
    assert!(provider.seen().is_empty(), "who cannot prove its name gets no key");
}

#[tokio::test]
async fn offline_is_ordered_at_once_and_taken_back() {
    let provider = Provider::start(chat_stream()).await;
    let url = format!("https://127.0.0.1:{}/v1", provider.port());
    let rented = json!({"baseUrl": url, "scope": "internet"});
    let world = world(&provider, json!({"rented": rented})).await;
    let laptop = world.node("laptop");
    let ordered = async |on| laptop.obey(Wish::Offline { on }).await.unwrap();
    assert!(matches!(ordered(true).await, Said::Done(_)));
    assert_eq!(served_by(&ask(&world, "writing").await), "gpu");
    let answer = ask(&world, "rented/gpt-9").await;
    assert_eq!((answer.status, provider.connections()), (404, 0), "{}", answer.text());
    let cloud = ask(&world, "gpt-oss:120b-cloud").await;
    assert_eq!(cloud.status, 403);
    assert!(cloud.text().contains("ollama cloud is disabled"), "{}", cloud.text());
    for route in ["/api/pull", "/api/push", "/api/experimental/web_search"] {
        let answer = world.post("laptop", route, r#"{"model":"x"}"#).send().await;
        assert_eq!(answer.status, 403, "{route}");
        assert!(answer.text().contains("offline is on"), "{}", answer.text());
    }
    // It outlasts the program.
    laptop.quit();
    laptop.run().await.unwrap();
    world.sees("laptop", "tiny:latest", "gpu").await;
    assert_eq!(ask(&world, "rented/gpt-9").await.status, 404);
    assert_eq!(provider.connections(), 0);
    assert!(matches!(ordered(false).await, Said::Done(_)));
    ask(&world, "rented/gpt-9").await;
    assert!(provider.connections() > 0);
}

#[tokio::test]
async fn another_nodes_caller_spends_only_with_the_verb() {
    let provider = Provider::start(chat_stream()).await;
    for (verbs, want) in [(json!(["infer", "list"]), 404), (json!(["infer", "list", "spend"]), 200)]
    {
        let access = json!([{"from": ["owner:self"], "verbs": verbs}]);
        let world = world(&provider, json!({"config": {"access": access}})).await;
        let net = &world.net;
        let timing = tailherd::types::Timing::shrunk();
        let spec = NodeSpec::new("phone", me(), None).with(json!({"sendTo": []}));
        let phone = tailherd::demo::node::Node::start(net, spec, timing).await.unwrap();
        for model in ["writing", "claude-x", "rented/gpt-9"] {
            let call = world.post("laptop", CHAT, chat(model, 3));
            let answer =
                phone.across(world.node("laptop"), 11436, call).await.unwrap().rest().await;
            assert_eq!(answer.status, want, "{model} {verbs}: {}", answer.text());
        }
        assert_eq!(provider.seen().len(), if want == 200 { 3 } else { 0 });
    }
}

#[tokio::test]
async fn agents_and_hosted_models_are_listed_where_they_can_be_asked() {
    let provider = Provider::start(chat_stream()).await;
    let names = |answer: &Answer, list: &str, name: &str| -> Vec<String> {
        let rows = answer.json()[list].as_array().cloned().unwrap_or_default();
        rows.iter().map(|r| r[name].as_str().unwrap_or_default().to_owned()).collect()
    };
    for (models, tags, openai) in [
        (
            json!({}),
            vec!["tiny:latest", "other:latest", "inside:latest", "writing:latest", "rented/gpt-9"],
            vec!["tiny:latest", "other:latest", "inside", "writing", "rented/gpt-9"],
        ),
        (
            json!({"mode": "replace", "hide": ["inside*"]}),
            vec!["tiny:latest", "writing:latest", "rented/gpt-9"],
            vec!["tiny:latest", "writing", "rented/gpt-9"],
        ),
    ] {
        let world = world(&provider, json!({"models": models})).await;
        let (mut tags, mut openai) = (tags, openai);
        let mut got = names(&world.get("laptop", "/api/tags").send().await, "models", "name");
        got.sort();
        tags.sort_unstable();
        assert_eq!(got, tags);
        let mut got = names(&world.get("laptop", "/v1/models").send().await, "data", "id");
        got.sort();
        openai.sort_unstable();
        assert_eq!(got, openai);
    }
    let world = world(&provider, json!({})).await;
    let show = async |model: &str| {
        let body = json!({"model": model}).to_string();
        world.post("laptop", "/api/show", body).send().await.json()
    };
    // The tools must never be lost on the way.
    assert_eq!(show("inside").await["capabilities"], show("tiny").await["capabilities"]);
    let hosted = show("rented/gpt-9").await;
    assert_eq!(hosted["capabilities"], json!(["completion", "tools"]));
    assert_eq!(hosted["model_info"]["hosted.context_length"], 1000);
    let model = world.get("laptop", "/v1/models/writing").send().await.json();
    assert_eq!(model["id"], "writing");
    assert_eq!(provider.connections(), 0);
}
