//! Streams over one and two hops: every byte, in time, and cancelled when the client leaves.

use std::time::Duration;

use tailherd::demo::client::{counted, said};
use tailherd::demo::engine::{EngineSpec, ModelSpec};
use tailherd::demo::node::NodeSpec;
use tokio::time::Instant;

use crate::world::{SOON, Sends as _, World, chat, count, counting, engine, me, ms, served_by};

const ROUTES: [&str; 5] =
    ["/api/chat", "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"];

/// One device that has the engine (one hop to it), and one that has not (two hops).
async fn both() -> World {
    let fast = EngineSpec { prefill: Duration::ZERO, ..counting("gpu", Duration::ZERO) };
    World::pair_of(fast).await
}

#[tokio::test]
async fn a_stream_arrives_byte_for_byte_over_one_and_two_hops() {
    let world = both().await;
    for at in ["gpu", "laptop"] {
        for route in ROUTES {
            world.engine("gpu").forget();
            let answer = world.post(at, route, chat("count", 300)).send().await;
            assert_eq!((answer.status, answer.whole), (200, true), "{at} {route}");
            let sent = world.engine("gpu").sent().concat();
            assert!(sent.len() > 10_000);
            assert_eq!(answer.body.as_ref(), sent, "{at} {route}");
        }
        let answer = world.post(at, "/api/generate", count("count", 2000)).send().await;
        assert_eq!(answer.said(), counted(2000), "{at}");
        assert_eq!(answer.header("content-type"), "application/x-ndjson");
    }
}

#[tokio::test]
async fn no_token_is_held_back() {
    let world = World::pair_of(counting("gpu", ms(100))).await;
    for at in ["gpu", "laptop"] {
        let mut stream = world.post(at, "/api/generate", count("count", 5)).open().await.unwrap();
        let made = world.engine("gpu").counts().tokens;
        for n in 0..5 {
            let piece = stream.next().await.unwrap().unwrap();
            assert_eq!(said(std::str::from_utf8(&piece).unwrap()), format!(" {}", n + 1), "{at}");
            let tokens = world.engine("gpu").counts().tokens;
            assert!(tokens <= made + n + 1, "{at}: token {tokens} was made before {n} came");
        }
        assert!(stream.rest().await.whole);
    }
}

#[tokio::test]
async fn a_client_that_leaves_at_twenty_stops_the_engine_and_the_next_starts_at_once() {
    let world = World::pair_of(counting("gpu", ms(5))).await;
    for (i, at) in ["gpu", "laptop"].into_iter().enumerate() {
        let engine = world.engine("gpu");
        let cancelled = engine.counts().cancelled;
        let mut stream =
            world.post(at, "/api/generate", count("count", 100_000)).open().await.unwrap();
        let got = stream.lines(20).await;
        assert!(said(std::str::from_utf8(&got).unwrap()).starts_with(&counted(20)), "{i}");
        drop(stream);
        let from = Instant::now();
        assert!(engine.until(SOON, |c| c.running == 0 && c.cancelled == cancelled + 1).await);
        assert!(from.elapsed() < ms(500), "{at}: stopped after {:?}", from.elapsed());
        let next = world.post(at, "/api/generate", count("count", 1)).send().await;
        assert_eq!(next.said(), " 1");
        assert!(from.elapsed() < ms(1000));
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_byte_stops_the_engine_too() {
    let slow = EngineSpec { prefill: ms(200), ..counting("gpu", ms(1)) };
    let world = World::pair_of(slow).await;
    let engine = world.engine("gpu");
    world.post("gpu", "/api/generate", r#"{"model":"count"}"#).send().await;
    for at in ["gpu", "laptop"] {
        for stream in [true, false] {
            let cancelled = engine.counts().cancelled;
            let body = format!(r#"{{"model":"count","prompt":"long","stream":{stream}}}"#);
            let call = tokio::spawn(world.post(at, "/api/generate", body).open_unlimited());
            assert!(engine.until(SOON, |c| c.running == 1).await);
            call.abort();
            let so = |c: &tailherd::demo::engine::Counts| c.running == 0 && c.cancelled > cancelled;
            assert!(engine.until(ms(1000), so).await, "{at} {stream}");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_a_model_loads_does_not_abort_the_load() {
    for at in ["gpu", "laptop"] {
        let slow = EngineSpec { load: ms(600), ..counting("gpu", ms(1)) };
        let world = World::pair_of(slow).await;
        let engine = world.engine("gpu");
        let call =
            tokio::spawn(world.post(at, "/api/generate", count("count", 1)).open_unlimited());
        assert!(engine.until(SOON, |c| c.loads_started == 1).await);
        call.abort();
        assert!(engine.until(SOON, |c| c.loads_finished == 1).await, "{at}");
        assert_eq!(engine.counts().loads_aborted, 0, "{at}");
        assert_eq!(engine.loaded(), ["count:latest"]);
        let next = world.post(at, "/api/generate", count("count", 3)).send().await;
        assert_eq!(next.said(), " 1 2 3");
        assert_eq!(engine.counts().loads_started, 1, "the next one found it loaded");
    }
}

#[tokio::test]
async fn a_cold_load_far_longer_than_every_limit_survives() {
    let slow = EngineSpec { load: Duration::from_secs(6), ..counting("gpu", ms(1)) };
    let world = World::pair_of(slow).await;
    let from = Instant::now();
    let answer = world.post("laptop", "/api/generate", count("count", 3)).send().await;
    assert_eq!((answer.status, answer.said().as_str()), (200, " 1 2 3"), "{}", answer.text());
    assert!(from.elapsed() >= Duration::from_secs(6));
    let counts = world.engine("gpu").counts();
    assert_eq!((counts.loads_started, counts.loads_aborted), (1, 0));
}

#[tokio::test]
async fn the_gate_loads_with_the_callers_options_and_serves_without_a_second_load() {
    let world = World::pair_of(counting("gpu", ms(1))).await;
    for (at, ctx, loads) in [("laptop", 2048, 1), ("gpu", 2048, 1), ("laptop", 1024, 2)] {
        let body = format!(
            r#"{{"model":"count","prompt":"x","options":{{"num_predict":2,"num_ctx":{ctx}}}}}"#
        );
        assert_eq!(world.post(at, "/api/generate", body).send().await.status, 200);
        assert_eq!(world.engine("gpu").counts().loads_started, loads, "{at} {ctx}");
    }
}

#[tokio::test]
async fn requests_queue_in_the_gate_and_leave_it_when_their_client_leaves() {
    let world = World::pair_of(counting("gpu", ms(5))).await;
    let engine = world.engine("gpu");
    world.post("gpu", "/api/generate", r#"{"model":"count"}"#).send().await;
    let long = tokio::spawn(world.post("laptop", "/api/generate", count("count", 200)).send());
    assert!(engine.until(SOON, |c| c.running == 1).await);
    let waits: Vec<_> = (0..4)
        .map(|_| tokio::spawn(world.post("laptop", "/api/generate", count("count", 2)).send()))
        .collect();
    tokio::time::sleep(ms(200)).await;
    assert_eq!(engine.counts().waiting, 0, "they wait in the gate, not in the engine");
    waits[0].abort();
    waits[2].abort();
    assert_eq!(long.await.unwrap().said(), counted(200));
    let mut served = 0;
    for wait in waits {
        if let Ok(answer) = wait.await {
            assert_eq!(answer.said(), " 1 2");
            served += 1;
        }
    }
    assert_eq!(served, 2);
    assert_eq!(engine.seen_at("/api/generate").iter().filter(|s| s.body.len() > 40).count(), 3);
}

#[tokio::test]
async fn a_large_body_reaches_the_engine_whole() {
    let world = both().await;
    let long = "lorem ".repeat(300_000);
    for at in ["gpu", "laptop"] {
        world.engine("gpu").forget();
        let body = serde_json::json!({"messages": [{"role": "user", "content": long}],
            "model": "count", "options": {"num_predict": 2}});
        let answer = world.post(at, "/api/chat", body.to_string()).send().await;
        assert_eq!((answer.status, answer.said().as_str()), (200, " 1 2"), "{}", answer.text());
        let seen = world.engine("gpu").seen_at("/api/chat");
        let last = seen.last().unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&last.body).unwrap(), body);
    }
}

#[tokio::test]
async fn a_zstd_body_is_read_and_passed_on_plain() {
    let world = both().await;
    let plain = br#"{"model":"count","messages":[{"role":"user","content":"x"}],"max_tokens":2}"#;
    for at in ["gpu", "laptop"] {
        let call = world.post(at, "/v1/chat/completions", zstd(plain));
        let answer = call.header("content-encoding", "zstd").send().await;
        assert_eq!(answer.status, 200, "{at} {}", answer.text());
        let seen = world.engine("gpu").seen_at("/v1/chat/completions");
        let last = seen.last().unwrap();
        assert_eq!((last.body.as_ref(), last.headers.get("content-encoding")), (&plain[..], None));
    }
}

/// One zstd frame with one raw block: valid, and made without a compressor.
pub(crate) fn zstd(plain: &[u8]) -> Vec<u8> {
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, u8::try_from(plain.len()).unwrap()];
    let header = 1 | u32::try_from(plain.len()).unwrap() << 3;
    out.extend_from_slice(&header.to_le_bytes()[..3]);
    out.extend_from_slice(plain);
    out
}

#[tokio::test]
async fn embeddings_are_served_by_the_node_that_has_them() {
    let gpu = engine("gpu", vec![ModelSpec::embed("embed")]);
    let world = World::pair_of(gpu).await;
    for (route, body) in [
        ("/api/embed", r#"{"model":"embed","input":["hello","hallo"],"dimensions":3}"#),
        ("/api/embeddings", r#"{"model":"embed","prompt":"hello"}"#),
        ("/v1/embeddings", r#"{"model":"embed","input":"hello","encoding_format":"base64"}"#),
    ] {
        let ours = world.post("laptop", route, body).send().await;
        let own =
            tailherd::demo::client::post(world.engine("gpu").addr(), route, body).send().await;
        let (mut ours, mut own) = (ours.json(), own.json());
        for v in [&mut ours, &mut own] {
            for time in ["total_duration", "load_duration"] {
                v.as_object_mut().unwrap().remove(time);
            }
        }
        assert_eq!(ours, own, "{route}");
    }
}

#[tokio::test]
async fn two_nodes_share_the_work() {
    let specs = ["gpu", "nas"].map(|n| NodeSpec::new(n, me(), Some(counting(n, ms(5)))));
    let mut all = vec![NodeSpec::new("laptop", me(), None)];
    all.extend(specs);
    let world = World::start(all).await;
    world.sees("laptop", "count:latest", "gpu").await;
    world.sees("laptop", "count:latest", "nas").await;
    for n in ["gpu", "nas"] {
        let model = format!("count@{n}");
        world.post("laptop", "/api/generate", count(&model, 20)).send().await;
    }
    // Until it is known to be loaded in both places.
    tokio::time::sleep(ms(500)).await;
    let calls: Vec<_> = (0..6)
        .map(|_| tokio::spawn(world.post("laptop", "/api/generate", count("count", 60)).send()))
        .collect();
    let mut by = std::collections::BTreeMap::<String, u32>::new();
    for call in calls {
        let answer = call.await.unwrap();
        assert_eq!(answer.said(), counted(60), "{}", answer.text());
        *by.entry(served_by(&answer).to_owned()).or_default() += 1;
    }
    // (How many each gets is a matter of how fast each was measured to be.)
    assert_eq!(by.len(), 2, "{by:?}");
}
