//! Errors: Ollama's own texts, in the dialect of the request, for local and for peers' models.

use tailherd::demo::engine::{BUSY, Fault, ModelSpec};

use crate::world::{Sends as _, World};

async fn world() -> World {
    World::pair(vec![ModelSpec::tiny(), ModelSpec::embed("embed")]).await
}

/// The same error in three dialects.
fn forms(kind: &str, text: &str) -> [(&'static str, String); 3] {
    let q = serde_json::Value::from(text).to_string();
    [
        ("/api/chat", format!(r#"{{"error":{q}}}"#)),
        (
            "/v1/chat/completions",
            format!(r#"{{"error":{{"message":{q},"type":"{kind}","param":null,"code":null}}}}"#),
        ),
        ("/v1/messages", format!(r#"{{"type":"error","error":{{"type":"{kind}","message":{q}}},"#)),
    ]
}

async fn check(world: &World, body: &str, status: u16, kind: &str, text: &str) {
    for at in ["gpu", "laptop"] {
        for (route, want) in forms(kind, text) {
            let answer = world.post(at, route, body.to_owned()).send().await;
            assert_eq!(answer.status, status, "{at} {route} {}", answer.text());
            let (got, json) = (answer.text().trim_end(), answer.header("content-type"));
            assert!(json.starts_with("application/json"), "{json}");
            if route == "/v1/messages" {
                assert!(got.starts_with(&want), "{at}: {got} against {want}");
            } else {
                assert_eq!(got, want, "{at}");
            }
        }
    }
}

#[tokio::test]
async fn an_unknown_model_is_not_found() {
    let body = r#"{"model":"nope","max_tokens":3,"messages":[{"role":"user","content":"x"}]}"#;
    check(&world().await, body, 404, "not_found_error", "model 'nope' not found").await;
}

#[tokio::test]
async fn bad_bodies_are_refused_as_ollama_does() {
    let world = world().await;
    check(&world, "", 400, "invalid_request_error", "missing request body").await;
    check(&world, r#"{"model":"#, 400, "invalid_request_error", "unexpected EOF").await;
    let body = r#"{"model":"tiny@@","messages":[{"role":"user","content":"x"}]}"#;
    check(&world, body, 400, "invalid_request_error", "invalid model name").await;
}

#[tokio::test]
async fn an_engines_own_400_is_passed_on_word_for_word() {
    let world = world().await;
    let message = r#""messages":[{"role":"user","content":"x"}]"#;
    for at in ["gpu", "laptop"] {
        for (body, text) in [
            (
                format!(r#"{{"model":"tiny","think":true,{message}}}"#),
                r#"{"error":"\"tiny\" does not support thinking"}"#,
            ),
            (
                format!(r#"{{"model":"embed",{message}}}"#),
                r#"{"error":"\"embed\" does not support chat"}"#,
            ),
            (
                format!(r#"{{"model":"tiny","tools":[{{"type":"function"}}],{message}}}"#),
                r#"{"error":"registry.ollama.ai/library/tiny:latest does not support tools"}"#,
            ),
            (
                format!(r#"{{"model":"tiny","keep_alive":"10",{message}}}"#),
                r#"{"error":"time: missing unit in duration \"10\""}"#,
            ),
        ] {
            let answer = world.post(at, "/api/chat", body).send().await;
            assert_eq!((answer.status, answer.text()), (400, text), "{at}");
        }
    }
}

#[tokio::test]
async fn busy_is_said_when_everybody_is() {
    let world = world().await;
    world.engine("gpu").fault(Some(Fault::Busy));
    let body = r#"{"model":"tiny","max_tokens":3,"messages":[{"role":"user","content":"x"}]}"#;
    for (route, _) in forms("", "") {
        let answer = world.post("laptop", route, body).send().await;
        assert_eq!(answer.status, 503, "{}", answer.text());
    }
    world.engine("gpu").fault(None);
    let direct =
        tailherd::demo::client::post(world.engine("gpu").addr(), "/api/chat", body).send().await;
    assert_ne!(direct.text(), BUSY);
}

#[tokio::test]
async fn cloud_models_are_this_machines_own_affair() {
    let world = world().await;
    let body = r#"{"model":"gpt-oss:120b-cloud","messages":[{"role":"user","content":"x"}]}"#;
    let answer = world.post("gpu", "/api/chat", body).send().await;
    assert_eq!(
        (answer.status, answer.text()),
        (403, r#"{"error":"ollama cloud is disabled: remote model is unavailable"}"#)
    );
    world.engine("gpu").forget();
    let answer = world.post("laptop", "/api/chat", body).send().await;
    assert!(matches!(answer.status, 403 | 404), "{}", answer.text());
    assert!(
        world.engine("gpu").seen().iter().all(|s| s.path != "/api/chat"),
        "never a peer's account"
    );
}

#[tokio::test]
async fn unknown_paths_and_methods_are_answered_as_ollama_does() {
    let world = world().await;
    for at in ["gpu", "laptop"] {
        let answer = world.get(at, "/api/nothing").send().await;
        assert_eq!((answer.status, answer.text()), (404, "404 page not found"), "{at}");
        assert_eq!(answer.header("content-type"), "text/plain");
        let answer = world.get(at, "/api/tags").method("PUT".parse().unwrap()).send().await;
        assert_eq!((answer.status, answer.text()), (405, "405 method not allowed"), "{at}");
        assert!(answer.header("allow").contains("GET"));
    }
}

#[tokio::test]
async fn what_is_this_machines_own_is_not_done_elsewhere() {
    let world = world().await;
    let before = world.engine("gpu").seen().len();
    for (method, route, body) in [
        ("POST", "/api/pull", r#"{"model":"x"}"#),
        ("POST", "/api/push", r#"{"model":"tiny"}"#),
        ("POST", "/api/create", r#"{"model":"x","from":"tiny"}"#),
        ("POST", "/api/copy", r#"{"source":"tiny","destination":"x"}"#),
        ("DELETE", "/api/delete", r#"{"model":"tiny"}"#),
        ("POST", "/api/generate", r#"{"model":"tiny","keep_alive":0}"#),
        ("POST", "/api/me", "{}"),
    ] {
        let call = world.post("laptop", route, body).method(method.parse().unwrap());
        let answer = call.send().await;
        assert!(
            answer.status >= 400 || answer.text().contains("unload"),
            "{route} {}",
            answer.text()
        );
        let touched = world.engine("gpu").seen();
        let touched = touched[before.min(touched.len())..].iter().find(|s| s.path == route);
        assert!(touched.is_none(), "{route} reached the gpu: {touched:?}");
    }
    let deleted = world.get("laptop", "/api/delete").method("DELETE".parse().unwrap());
    let deleted = tailherd::demo::client::Call { body: r#"{"model":"tiny"}"#.into(), ..deleted };
    let answer = deleted.send().await;
    assert!(answer.text().contains("gpu"), "says where it is: {}", answer.text());
}

#[tokio::test]
async fn this_nodes_engine_takes_what_a_plain_ollama_takes() {
    let world = world().await;
    let create = r#"{"model":"mine","from":"tiny","system":"be brief"}"#;
    let answer = world.post("gpu", "/api/create", create).send().await;
    assert!(answer.text().contains("\"success\""), "{}", answer.text());
    world.sees("gpu", "mine:latest", "gpu").await;
    world.sees("laptop", "mine:latest", "gpu").await;
    let copy = r#"{"source":"mine","destination":"yours"}"#;
    assert_eq!(world.post("gpu", "/api/copy", copy).send().await.status, 200);
    let digest = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let blob = format!("/api/blobs/{digest}");
    let head = world.get("gpu", &blob).method("HEAD".parse().unwrap()).send().await;
    assert_eq!(head.status, 404);
    assert_eq!(world.post("gpu", &blob, "hello").send().await.status, 201);
    let head = world.get("gpu", &blob).method("HEAD".parse().unwrap()).send().await;
    assert_eq!(head.status, 200);
    let delete = world.post("gpu", "/api/delete", r#"{"name":"yours"}"#);
    assert_eq!(delete.method("DELETE".parse().unwrap()).send().await.status, 200);
    let me = world.post("gpu", "/api/me", "{}").send().await;
    assert_eq!((me.status, me.text()), (503, r#"{"error":"account unavailable"}"#));
}
