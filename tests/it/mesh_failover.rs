//! Nodes and engines that fail: before the first byte another one answers, after it the
//! client is told.

use serde_json::Value;
use tailherd::demo::client::{Answer, counted};
use tailherd::demo::engine::{Cut, Fault};
use tailherd::demo::node::NodeSpec;
use tailherd::types::Timing;
use tokio::time::Instant;

use crate::world::{Sends as _, World, chat, count, counting, me, ms, served_by, until};

/// What a test does to a mesh.
type Break = fn(&World);

/// `count` on two nodes, loaded on `first`, so that it is chosen.
async fn two(first: &str) -> World {
    let mut all = vec![NodeSpec::new("laptop", me(), None)];
    all.extend(["gpu", "nas"].map(|n| NodeSpec::new(n, me(), Some(counting(n, ms(2))))));
    let world = World::start(all).await;
    world.sees("laptop", "count:latest", "gpu").await;
    world.sees("laptop", "count:latest", "nas").await;
    let body = format!(r#"{{"model":"count@{first}","prompt":"x","options":{{"num_predict":1}}}}"#);
    assert_eq!(world.post("laptop", "/api/generate", body).send().await.status, 200);
    prefers(&world, first).await;
    world
}

/// Waits until the laptop sends its requests to this node.
async fn prefers(world: &World, node: &str) {
    let so = async || {
        let answer = world.post("laptop", "/api/generate", count("count", 1)).send().await;
        served_by(&answer) == node
    };
    assert!(until(so).await, "{node} is never preferred");
}

#[tokio::test]
async fn a_request_that_waits_at_an_asleep_node_moves_on() {
    let world = two("gpu").await;
    world.engine("gpu").slow(1000.0);
    // Both predictions are near each other, so that chance decides: ask until gpu has one.
    let ask = || tokio::spawn(world.post("laptop", "/api/generate", count("count", 3)).send());
    let mut call = ask();
    while !world.engine("gpu").until(ms(300), |c| c.running == 1).await {
        assert_eq!(served_by(&call.await.unwrap()), "nas");
        call = ask();
    }
    world.node("gpu").daemon.asleep(true);
    let from = Instant::now();
    let answer = call.await.unwrap();
    assert_eq!((answer.status, served_by(&answer)), (200, "nas"), "{}", answer.text());
    assert_eq!(answer.said(), " 1 2 3");
    // The lab measures it; here it only has to be the vigil that ends the wait.
    assert!(from.elapsed() < ms(20_000), "{:?}", from.elapsed());
}

#[tokio::test]
async fn dead_before_the_first_byte_means_the_other_node() {
    let broken: [(&str, Break); 6] = [
        ("its engine is killed", |w| w.engine("gpu").die()),
        ("its engine resets", |w| w.engine("gpu").fault(Some(Fault::Reset))),
        ("its engine says 500", |w| w.engine("gpu").fault(Some(Fault::Broken))),
        ("its engine is busy", |w| w.engine("gpu").fault(Some(Fault::Busy))),
        ("its engine lost the model", |w| w.engine("gpu").fault(Some(Fault::Gone))),
        ("its sidecar is killed", |w| w.node("gpu").quit()),
    ];
    for (what, break_it) in broken {
        let world = two("gpu").await;
        break_it(&world);
        for _ in 0..3 {
            let answer = world.post("laptop", "/api/generate", count("count", 3)).send().await;
            assert_eq!(
                (answer.status, served_by(&answer)),
                (200, "nas"),
                "{what}: {}",
                answer.text()
            );
            assert_eq!(answer.said(), " 1 2 3", "{what}");
        }
    }
}

#[tokio::test]
async fn a_node_whose_tailscaled_died_is_left_within_the_race() {
    let world = two("gpu").await;
    world.node("gpu").daemon.kill();
    let from = Instant::now();
    let answer = world.post("laptop", "/api/generate", count("count", 3)).send().await;
    assert_eq!((answer.status, served_by(&answer)), (200, "nas"), "{}", answer.text());
    assert!(from.elapsed() < ms(2000), "{:?}", from.elapsed());
}

#[tokio::test]
async fn the_callers_own_mistakes_are_not_tried_again() {
    let world = two("gpu").await;
    let gone = Fault::Raw(
        400,
        "application/json".into(),
        r#"{"error":"exceeds the available context size"}"#.into(),
    );
    for node in ["gpu", "nas"] {
        world.engine(node).fault(Some(gone.clone()));
    }
    let answer = world.post("laptop", "/api/chat", chat("count", 3)).send().await;
    assert_eq!(
        (answer.status, answer.text()),
        (400, r#"{"error":"exceeds the available context size"}"#)
    );
    let seen = ["gpu", "nas"].map(|n| world.engine(n).seen_at("/api/chat").len());
    assert_eq!(seen.iter().sum::<usize>(), 1, "{seen:?}");
}

#[tokio::test]
async fn when_all_failed_the_client_is_told_so_in_its_dialect() {
    let world = two("gpu").await;
    for node in ["gpu", "nas"] {
        world.engine(node).fault(Some(Fault::Broken));
    }
    for (route, pointer) in [
        ("/api/chat", "/error"),
        ("/v1/chat/completions", "/error/message"),
        ("/v1/messages", "/error/message"),
    ] {
        tokio::time::sleep(ms(600)).await;
        let answer = world.post("laptop", route, chat("count", 3)).send().await;
        let retry = answer.header("x-should-retry");
        assert_eq!((answer.status, retry), (503, "false"), "{route} {}", answer.text());
        let text = answer.json().pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let text = text.unwrap_or_else(|| panic!("{route}: {}", answer.text()));
        assert!(text.contains("gpu") && text.contains("nas"), "{text}");
    }
}

#[tokio::test]
async fn a_pinned_node_that_is_dead_is_named_and_nobody_else_is_asked() {
    let world = two("gpu").await;
    world.engine("gpu").die();
    world.engine("nas").forget();
    let answer = world.post("laptop", "/api/chat", chat("count@gpu", 3)).send().await;
    // 404 once gpu itself has said that its engine is gone.
    assert!([404, 503].contains(&answer.status), "{}", answer.text());
    assert!(answer.text().contains("gpu"), "{}", answer.text());
    assert!(world.engine("nas").seen_at("/api/chat").is_empty());
}

/// The end marker of each dialect, and how its error item is told.
const DIALECTS: [(&str, &str); 5] = [
    ("/api/chat", "\"done\":true"),
    ("/v1/chat/completions", "[DONE]"),
    ("/v1/completions", "[DONE]"),
    ("/v1/messages", "message_stop"),
    ("/v1/responses", "response.completed"),
];

#[track_caller]
fn told(answer: &Answer, marker: &str, what: &str) {
    assert_eq!((answer.status, answer.whole), (200, true), "{what}: ends properly");
    assert!(!answer.text().contains(marker), "{what}: never looks whole");
    let items = answer.items();
    let errors: Vec<&Value> = items.iter().filter(|i| !i["error"].is_null()).collect();
    assert_eq!(errors.len(), 1, "{what}: {}", answer.text());
    let last = items.last().unwrap();
    assert!(!last["error"].is_null(), "{what}: the error is the last item");
    let text = last["error"].as_str().or(last["error"]["message"].as_str()).unwrap();
    assert!(!text.is_empty());
    if what.contains("/v1/") {
        assert!(last["error"].is_object(), "{what}: SDKs raise only on an object");
    }
    if what.contains("messages") || what.contains("responses") {
        assert!(answer.text().contains("event: error\n"), "{what}");
        assert_eq!(last["type"], "error", "{what}");
    }
    if what.contains("responses") {
        let before = items[items.len() - 2]["sequence_number"].as_u64().unwrap();
        assert_eq!(last["sequence_number"], before + 1, "{what}");
    }
}

#[tokio::test]
async fn a_stream_cut_in_the_middle_ends_in_an_error_item_in_every_dialect() {
    let world = World::pair_of(counting("gpu", ms(1))).await;
    for at in ["gpu", "laptop"] {
        for cut in [Cut::Reset, Cut::Close, Cut::Clean, Cut::Crash] {
            world.engine("gpu").cut_after(Some((7, cut)));
            for (route, marker) in DIALECTS {
                let answer = world.post(at, route, chat("count", 100)).send().await;
                told(&answer, marker, &format!("{at} {route} {cut:?}"));
                let said = answer.said();
                match (route, cut) {
                    // What was still on its way is lost with the connection.
                    ("/api/chat", Cut::Reset | Cut::Close) => {
                        assert!(counted(7).starts_with(&said), "{said}")
                    }
                    ("/api/chat", _) => assert_eq!(said, counted(7), "what came is passed on"),
                    _ => {}
                }
            }
        }
    }
}

#[tokio::test]
async fn a_peer_that_dies_in_mid_stream_ends_in_an_error_item() {
    let ways: [(&str, Break, usize); 3] = [
        ("the engine is killed", |w| w.engine("gpu").die(), DIALECTS.len()),
        ("the sidecar is killed", |w| w.node("gpu").quit(), 1),
        ("our tailscaled is killed", |w| w.node("laptop").daemon.kill(), 1),
    ];
    for (how, kill, dialects) in ways {
        for (route, marker) in DIALECTS.into_iter().take(dialects) {
            let world = World::pair_of(counting("gpu", ms(5))).await;
            let mut stream = world.post("laptop", route, chat("count", 2000)).open().await.unwrap();
            let first = stream.next().await.unwrap().unwrap();
            kill(&world);
            let rest = stream.rest().await;
            let body = [&first[..], &rest.body[..]].concat().into();
            told(&Answer { body, ..rest }, marker, &format!("{how} {route}"));
        }
    }
}

#[tokio::test]
async fn a_whole_answer_that_breaks_is_never_a_whole_answer() {
    let world = World::pair_of(counting("gpu", ms(1))).await;
    world.engine("gpu").cut_after(Some((7, Cut::Close)));
    for at in ["gpu", "laptop"] {
        let body = r#"{"model":"count","prompt":"x","stream":false,"options":{"num_predict":9}}"#;
        let answer = world.post(at, "/api/generate", body).answer().await;
        let told = answer.as_ref().is_ok_and(|a| a.status >= 500 && a.json()["error"].is_string());
        let cut = answer.as_ref().map_or(true, |a| !a.whole);
        assert!(told || cut, "{at}: {answer:?}");
    }
}

#[tokio::test]
async fn the_coordinator_may_be_away() {
    let world = two("gpu").await;
    world.net.coordinator(false);
    let lost = async || world.status("laptop").await["rung"] == "coordinator_lost";
    assert!(until(lost).await);
    let answer = world.post("laptop", "/api/generate", count("count", 3)).send().await;
    assert_eq!((answer.status, answer.said().as_str()), (200, " 1 2 3"));
    world.net.coordinator(true);
    assert!(until(async || world.status("laptop").await["rung"] == "full").await);
}

#[tokio::test]
async fn without_tailscaled_this_nodes_engine_goes_on() {
    let world = World::pair_of(counting("gpu", ms(1))).await;
    world.node("gpu").daemon.kill();
    let so = async || {
        let answer = world.post("gpu", "/api/generate", count("count", 2)).send().await;
        answer.said() == " 1 2"
    };
    for _ in 0..10 {
        assert!(so().await);
        tokio::time::sleep(ms(50)).await;
    }
}

#[tokio::test]
async fn a_node_that_is_back_is_asked_although_it_was_just_lost() {
    let all = vec![
        NodeSpec::new("laptop", me(), None),
        NodeSpec::new("gpu", me(), Some(counting("gpu", ms(2)))),
    ];
    let patient = Timing { linger: ms(60_000), second_look: ms(3000), ..Timing::shrunk() };
    let world = World::timed(all, patient).await;
    world.sees("laptop", "count:latest", "gpu").await;
    let ask = || world.post("laptop", "/api/generate", count("count", 3)).send();
    world.node("gpu").quit();
    assert!(until(async || ask().await.status == 404).await, "gpu is never lost");
    // It is looked at ever more rarely, and its models are still listed.
    tokio::time::sleep(ms(1500)).await;
    let gone = ask().await;
    assert!(gone.status == 404 && gone.text().contains("last on gpu"), "{}", gone.text());
    world.node("gpu").run().await.unwrap();
    let answer = ask().await;
    assert_eq!((answer.status, served_by(&answer)), (200, "gpu"), "{}", answer.text());
}
