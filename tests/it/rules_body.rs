//! Rule 4: what the rule checked is what the engine gets.

use serde_json::json;
use tailherd::demo::client::{Call, post, raw};
use tailherd::demo::engine::ModelSpec;
use tailherd::demo::node::NodeSpec;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::mesh_stream::zstd;
use crate::world::{World, engine, me};

async fn world() -> World {
    let config = json!({"access": [{"from": ["owner:self"], "verbs": ["infer", "list", "manage", "load"], "models": ["tiny"]}]});
    let gpu = engine("gpu", vec![ModelSpec::tiny(), ModelSpec::words("secret", "not for you")]);
    let world = World::start(vec![
        NodeSpec::new("gpu", me(), Some(gpu)).with(config),
        NodeSpec::new("laptop", me(), None),
    ])
    .await;
    world.sees("laptop", "tiny:latest", "gpu").await;
    world.engine("gpu").forget();
    world
}

fn across(path: &str, body: impl Into<bytes::Bytes>) -> Call {
    post("127.0.0.1:1".parse().unwrap(), path, body)
}

#[tokio::test]
async fn bodies_that_go_reads_otherwise_are_refused_on_the_mesh() {
    let world = world().await;
    let kelvin = "{\"model\":\"tiny\",\"keep_alive\":1,\"\u{212a}eep_alive\":-1,\"prompt\":\"x\"}";
    for (path, body) in [
        ("/api/generate", r#"{"model":"tiny","MODEL":"secret","prompt":"x"}"#),
        ("/api/generate", r#"{"model":"tiny","prompt":"x","mod\u0065l":"secret"}"#),
        ("/api/generate", r#"{"Model":"secret","prompt":"x","model":"tiny"}"#),
        ("/api/show", r#"{"model":"tiny","name":"secret"}"#),
        ("/api/generate", kelvin),
        ("/api/generate", r#"{"model":"tiny","prompt":"x","stream":true,"Stream":false}"#),
        ("/api/copy", r#"{"source":"tiny","SOURCE":"secret","destination":"tiny"}"#),
        ("/api/create", r#"{"model":"tiny","from":"tiny","From":"secret"}"#),
    ] {
        let answer = world.across("laptop", "gpu", across(path, body)).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        let seen = world.engine("gpu").seen();
        let got = seen.iter().find(|s| s.path == path && s.body.as_ref() == body.as_bytes());
        assert!(got.is_none(), "the engine got {body}");
    }
    let fine =
        r#"{"model":"tiny","prompt":"x","options":{"model":"a","MODEL":"b"},"stream":false}"#;
    let answer = world.across("laptop", "gpu", across("/api/generate", fine)).await;
    assert_eq!(answer.status, 200, "inner keys are nobody's business: {}", answer.text());
}

#[tokio::test]
async fn a_second_zstd_frame_is_read_too() {
    let world = world().await;
    let (a, b) = (br#"{"model":"tiny","messages":[],"#, br#""MODEL":"secret"}"#);
    let body = [zstd(a), zstd(b)].concat();
    let call = across("/v1/chat/completions", body).header("content-encoding", "zstd");
    let answer = world.across("laptop", "gpu", call).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(world.engine("gpu").seen_at("/v1/chat/completions").is_empty());
}

#[tokio::test]
async fn a_key_split_over_frames_is_one_key() {
    let world = world().await;
    // One byte a chunk: every key and escape is cut.
    let body = r#"{"model":"tiny","prompt":"x","mod\u0065l":"secret"}"#;
    let mut request = "POST /api/generate HTTP/1.1\r\nHost: localhost\r\n\
                       Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\
                       Connection: close\r\n\r\n"
        .to_owned();
    for b in body.chars() {
        request.push_str(&format!("1\r\n{b}\r\n"));
    }
    request.push_str("0\r\n\r\n");
    let mut wire = world.node("laptop").wire(world.node("gpu"), 11436).await.unwrap();
    wire.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    wire.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(world.engine("gpu").seen_at("/api/generate").is_empty());
}

#[tokio::test]
async fn requests_that_two_servers_read_differently_are_refused() {
    let world = world().await;
    let apps = world.node("gpu").apps();
    let body = r#"{"model":"tiny","prompt":"x","stream":false}"#;
    for (what, head) in [
        ("two lengths", format!("Content-Length: {}\r\nContent-Length: 3\r\n", body.len())),
        (
            "length and chunked",
            format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", body.len()),
        ),
        ("obs-fold", format!("Content-Length: {}\r\nX-A: b\r\n c\r\n", body.len())),
    ] {
        let request = format!("POST /api/generate HTTP/1.1\r\nHost: localhost\r\n{head}\r\n{body}");
        let answer = raw(apps, request.as_bytes()).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400") || answer.is_empty(), "{what}: {answer}");
    }
    assert!(world.engine("gpu").seen_at("/api/generate").is_empty());
}
