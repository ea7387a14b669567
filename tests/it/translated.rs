//! Providers that do not speak what the caller speaks: what they get, and what he gets back.

use serde_json::{Value, json};
use tailherd::demo::client::{Answer, get};
use tailherd::demo::node::NodeSpec;

use crate::provider::{Provider, Reply, chat_stream, error, events, later};
use crate::world::{Sends as _, World, me, served_by};

/// A node without an engine and two providers at one stand-in: `chat` speaks OpenAI's chat,
/// `claude` Anthropic's messages.
async fn world(provider: &Provider) -> World {
    let models = json!([{"id": "m-9", "contextWindow": 100_000, "maxTokens": 4000,
                         "cost": {"input": 2.0, "output": 10.0}}]);
    World::start(vec![NodeSpec::new("laptop", me(), None).with(json!({
        "failover": {"cooldown": ["1h"]},
        "models": {"providers": {
            "chat": {"baseUrl": format!("{}/v1", provider.url()), "apiKey": "sk-canary",
                     "body": {"store": false}, "models": models},
            "claude": {"baseUrl": provider.url(), "apiKey": "sk-canary",
                       "api": "anthropic-messages", "models": models},
        }},
    }))])
    .await
}

async fn post(world: &World, path: &str, body: &Value) -> Answer {
    let call = world.post("laptop", path, body.to_string());
    let call = call.header("anthropic-beta", "tools-2099").header("content-type", "text/plain");
    call.send().await
}

fn whole(body: &Value) -> Reply {
    error(200, &body.to_string())
}

/// What a chat server answers in one piece: a tool call after a thought.
fn chat_whole() -> Reply {
    whole(&json!({
        "id": "chatcmpl-1", "object": "chat.completion", "model": "m-9",
        "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
            "role": "assistant", "content": "Let me see.", "reasoning_content": "hm",
            "tool_calls": [{"id": "call_7", "type": "function",
                            "function": {"name": "weather", "arguments": "{\"city\":\"Rome\"}"}}],
        }}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16},
    }))
}

/// The stream of a messages server.
fn messages_stream() -> Reply {
    let item = |kind: &str, more: Value| {
        let mut data = more;
        data["type"] = kind.into();
        format!("event: {kind}\ndata: {data}\n\n")
    };
    events(
        &[
            item(
                "message_start",
                json!({"message": {"id": "msg_1", "role": "assistant",
            "content": [], "model": "m-9", "usage": {"input_tokens": 12, "output_tokens": 1}}}),
            ),
            item("ping", json!({})),
            item(
                "content_block_start",
                json!({"index": 0, "content_block": {"type": "text", "text": ""}}),
            ),
            item(
                "content_block_delta",
                json!({"index": 0, "delta": {"type": "text_delta", "text": "Rome is "}}),
            ),
            item(
                "content_block_delta",
                json!({"index": 0, "delta": {"type": "text_delta", "text": "warm"}}),
            ),
            item("content_block_stop", json!({"index": 0})),
            item(
                "message_delta",
                json!({"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}}),
            ),
            item("message_stop", json!({})),
        ]
        .concat(),
    )
}

/// A tool, its call and its answer, as Ollama's clients send them.
fn native_round(model: &str) -> Value {
    let tool = json!({"type": "function", "function": {"name": "weather",
        "description": "the weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}});
    json!({
        "model": model, "stream": true, "keep_alive": -1, "truncate": false,
        "options": {"num_ctx": 32768, "temperature": 0.5, "num_predict": 9000},
        "tools": [tool],
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Rome?"},
            {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [
                {"id": "call_7", "function": {"name": "weather", "arguments": {"city": "Rome"}}}]},
            {"role": "tool", "content": "warm", "tool_name": "weather", "tool_call_id": "call_7"},
        ],
    })
}

#[tokio::test]
async fn ollamas_own_clients_are_served_by_a_chat_server() {
    let provider = Provider::start(chat_stream()).await;
    let world = world(&provider).await;
    let answer = post(&world, "/api/chat", &native_round("chat/m-9")).await;
    assert_eq!((answer.status, served_by(&answer)), (200, "chat"), "{}", answer.text());
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    let lines: Vec<Value> =
        answer.text().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines[0]["message"]["content"], "hosted");
    let last = lines.last().unwrap();
    assert_eq!((&last["done"], &last["model"]), (&json!(true), &json!("chat/m-9")));
    assert_eq!((&last["prompt_eval_count"], &last["eval_count"]), (&json!(1000), &json!(200)));

    let seen = provider.seen().remove(0);
    assert_eq!(seen.path, "/v1/chat/completions");
    assert_eq!(seen.header("content-type"), "application/json");
    assert_eq!(seen.header("anthropic-beta"), "", "it says something of another dialect");
    let body = &seen.body;
    assert_eq!((&body["model"], &body["store"]), (&json!("m-9"), &json!(false)));
    assert_eq!(body["stream_options"]["include_usage"], true);
    assert_eq!(body["max_tokens"], 4000, "as much as the model writes");
    for name in ["options", "keep_alive", "truncate"] {
        assert!(body[name].is_null(), "{name}: {body}");
    }
    let call = &body["messages"][2]["tool_calls"][0];
    assert_eq!(call["function"]["arguments"], r#"{"city":"Rome"}"#);
    assert_eq!(body["messages"][3]["tool_call_id"], call["id"]);

    // In one piece, with a tool call; the money is counted in both.
    provider.says(chat_whole());
    let mut once = native_round("chat/m-9");
    once["stream"] = false.into();
    let answer = post(&world, "/api/chat", &once).await.json();
    assert_eq!(answer["message"]["tool_calls"][0]["function"]["arguments"]["city"], "Rome");
    assert_eq!((&answer["message"]["thinking"], &answer["eval_count"]), (&json!("hm"), &json!(5)));
    let metrics = get(world.node("laptop").admin(), "/metrics").send().await;
    // 1011 tokens read at 2 and 205 written at 10 dollars a million.
    let cost = "tailherd_cost_usd_total{model=\"m-9\",provider=\"chat\"} 0.004072";
    assert!(metrics.text().contains(cost), "{}", metrics.text());
}

#[tokio::test]
async fn ollamas_own_clients_are_served_by_a_messages_server() {
    let provider = Provider::start(messages_stream()).await;
    let world = world(&provider).await;
    let answer = post(&world, "/api/chat", &native_round("claude/m-9")).await;
    let text: String = answer
        .text()
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap())
        .map(|l| l["message"]["content"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!((answer.status, text.as_str()), (200, "Rome is warm"), "{}", answer.text());
    let seen = provider.seen().remove(0);
    assert_eq!(seen.path, "/v1/messages");
    assert_eq!((seen.header("x-api-key"), seen.header("authorization")), ("sk-canary", ""));
    assert_eq!(seen.header("anthropic-version"), "2023-06-01");
    let body = &seen.body;
    assert_eq!((&body["system"], &body["max_tokens"]), (&json!("Be short."), &json!(4000)));
    let said = body["messages"].as_array().unwrap();
    let kinds: Vec<&Value> = said.iter().map(|m| &m["content"][0]["type"]).collect();
    assert_eq!(kinds[1..], [&json!("tool_use"), &json!("tool_result")], "{body}");
    // The old way to generate is a chat of one message.
    let prompt = json!({"model": "claude/m-9", "prompt": "Rome?", "system": "Be short."});
    let answer = post(&world, "/api/generate", &prompt).await;
    assert!(answer.text().contains(r#""response":"Rome is ""#), "{}", answer.text());
}

#[tokio::test]
async fn claude_codes_and_responses_clients_are_served_by_a_chat_server() {
    let provider = Provider::start(chat_stream()).await;
    let world = world(&provider).await;
    let tools = json!([{"name": "weather", "input_schema": {"type": "object"}}]);
    let messages = json!({
        "model": "chat/m-9", "stream": true, "max_tokens": 100, "system": "Be short.", "tools": tools,
        "messages": [
            {"role": "user", "content": "Rome?"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "warm"}]},
        ],
    });
    let answer = post(&world, "/v1/messages?beta=true", &messages).await;
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert!(answer.text().contains("event: message_stop"), "{}", answer.text());
    let seen = provider.seen().remove(0);
    assert_eq!(seen.path, "/v1/chat/completions", "without the query of another dialect");
    let said = seen.body["messages"].as_array().unwrap();
    let roles: Vec<&Value> = said.iter().map(|m| &m["role"]).collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool"], "{}", seen.body);
    assert_eq!(said[3]["tool_call_id"], "toolu_1");

    provider.forget();
    let responses = json!({
        "model": "chat/m-9", "stream": true, "instructions": "Be short.", "store": false,
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Rome?"}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "warm"},
        ],
    });
    let answer = post(&world, "/v1/responses", &responses).await;
    assert!(answer.text().contains("event: response.completed"), "{}", answer.text());
    assert!(answer.text().contains(r#""model":"chat/m-9""#));
    let seen = provider.seen().remove(0);
    let roles: Vec<Value> =
        seen.body["messages"].as_array().unwrap().iter().map(|m| m["role"].clone()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool"], "{}", seen.body);
}

#[tokio::test]
async fn vectors_are_asked_of_the_model_that_was_named() {
    let vectors = json!({"object": "list", "model": "m-9", "usage": {"prompt_tokens": 3},
        "data": [{"index": 0, "object": "embedding", "embedding": [0.5, -1.0]}]});
    let provider = Provider::start(whole(&vectors)).await;
    let world = world(&provider).await;
    let body = json!({"model": "chat/m-9", "input": "x"});
    let answer = post(&world, "/api/embed", &body).await.json();
    assert_eq!(answer["embeddings"], json!([[0.5, -1.0]]));
    assert_eq!(provider.seen()[0].path, "/v1/embeddings");
    let old = json!({"model": "chat/m-9", "prompt": "x"});
    assert!(post(&world, "/api/embeddings", &old).await.status >= 400);
    assert_eq!(provider.seen().len(), 1);
}

#[tokio::test]
async fn errors_come_back_in_the_callers_dialect_with_the_providers_text() {
    let context = "This model's maximum context length is 8192 tokens";
    let provider =
        Provider::start(error(400, &json!({"error": {"message": context}}).to_string())).await;
    let world = world(&provider).await;
    let native = json!({"model": "chat/m-9", "messages": [{"role": "user", "content": "x"}]});
    let answer = post(&world, "/api/chat", &native).await;
    assert_eq!((answer.status, answer.json()), (400, json!({ "error": context })));
    let messages = json!({"model": "chat/m-9", "max_tokens": 9,
        "messages": [{"role": "user", "content": "x"}]});
    let answer = post(&world, "/v1/messages", &messages).await.json();
    assert_eq!((&answer["type"], &answer["error"]["message"]), (&json!("error"), &json!(context)));
    // Gemini's errors stand in a list, which no SDK expects, whatever the dialect.
    provider.says(later(429, "0", r#"[{"error":{"code":429,"message":"Resource exhausted"}}]"#));
    let chat = json!({"model": "chat/m-9", "messages": [{"role": "user", "content": "x"}]});
    let answer = post(&world, "/v1/chat/completions", &chat).await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, "0"));
    assert_eq!(answer.json()["error"]["message"], "Resource exhausted");
    // What is wrong in the caller's own dialect asks nobody.
    provider.forget();
    let wrong = json!({"model": "chat/m-9", "messages": "x"});
    assert_eq!(post(&world, "/api/chat", &wrong).await.status, 400);
    assert_eq!(provider.seen().len(), 0);
}

#[tokio::test]
async fn a_stream_that_breaks_ends_in_the_callers_error_item() {
    let start = r#"data: {"choices":[{"index":0,"delta":{"content":"half"}}]}"#;
    let provider = Provider::start(events(&format!("{start}\n\n"))).await;
    let world = world(&provider).await;
    let native = json!({"model": "chat/m-9", "messages": [{"role": "user", "content": "x"}]});
    let failed = r#"data: {"error":{"code":502,"message":"upstream died"},"choices":[]}"#;
    for (said, error) in [("", "stopped answering"), (failed, "upstream died")] {
        provider.says(events(&format!("{start}\n\n{said}\n\n")));
        let answer = post(&world, "/api/chat", &native).await;
        let last: Value = serde_json::from_str(answer.text().lines().last().unwrap()).unwrap();
        assert!(answer.text().contains("half") && answer.whole, "{}", answer.text());
        assert!(last["error"].as_str().unwrap_or_default().contains(error), "{last}");
    }
    // What answers with no stream where one was asked for is no answer.
    provider.says(chat_whole());
    let answer = post(&world, "/api/chat", &native).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
}

#[tokio::test]
async fn ollama_run_may_begin_with_a_load() {
    let provider = Provider::start(chat_stream()).await;
    let world = world(&provider).await;
    for (path, keep, reason) in
        [("/api/generate", json!("5m"), "load"), ("/api/chat", json!("5m"), "load")]
    {
        let body = json!({"model": "chat/m-9", "keep_alive": keep});
        let answer = post(&world, path, &body).await;
        assert_eq!((answer.status, &answer.json()["done_reason"]), (200, &json!(reason)));
    }
    assert_eq!(provider.connections(), 0);
}

#[tokio::test]
async fn a_dialect_that_nobody_translates_is_named_with_the_ones_that_do() {
    let provider = Provider::start(messages_stream()).await;
    let world = world(&provider).await;
    let body = json!({"model": "claude/m-9", "messages": [{"role": "user", "content": "x"}]});
    let answer = post(&world, "/v1/chat/completions", &body).await;
    let told = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert_eq!(answer.status, 400, "{told}");
    for word in
        ["claude/m-9", "anthropic-messages", "/v1/chat/completions", "asked at /v1/messages"]
    {
        assert!(told.contains(word), "{word}: {told}");
    }
    assert!(provider.seen().is_empty());
    let explained = get(world.node("laptop").admin(), "/explain?model=claude/m-9").send().await;
    let only = explained.json()["steps"][0]["only"].clone();
    assert!(only.as_str().unwrap().contains("/v1/messages"), "{}", explained.text());
}

#[tokio::test]
async fn what_a_server_does_not_take_is_not_sent() {
    let provider = Provider::start(chat_whole()).await;
    let compat = json!({"supportsTools": false, "maxTokensField": "max_completion_tokens"});
    let models = json!([{"id": "m-9", "compat": compat}]);
    let chat = json!({"baseUrl": format!("{}/v1", provider.url()), "models": models});
    let config = json!({"models": {"providers": {"chat": chat}}});
    let world = World::start(vec![NodeSpec::new("laptop", me(), None).with(config)]).await;
    let mut body = native_round("chat/m-9");
    body["stream"] = false.into();
    body["options"] = json!({"num_predict": 7});
    let answer = post(&world, "/api/chat", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let asked = provider.seen().pop().unwrap().body;
    assert_eq!((&asked["tools"], &asked["max_tokens"]), (&Value::Null, &Value::Null), "{asked}");
    assert_eq!(asked["max_completion_tokens"], 7, "{asked}");
}
