//! Whom a node serves first, and who is asked when a node has become slow.

use std::time::Duration;

use serde_json::{Value, json};
use tailherd::demo::client::{Answer, counted, get, post};
use tailherd::demo::engine::EngineSpec;
use tailherd::demo::node::NodeSpec;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::world::{Sends as _, World, count, counting, me, ms, ran, served_by, until};

fn body(prompt: &str, tokens: u64) -> String {
    json!({"model": "count", "prompt": prompt, "options": {"num_predict": tokens}}).to_string()
}

/// How long a program of the desk's own waits for its first byte.
async fn first_byte(world: &World, prompt: &str) -> Duration {
    let from = Instant::now();
    let mut stream = world.post("desk", "/api/generate", body(prompt, 2)).open().await.unwrap();
    stream.next().await.unwrap().unwrap();
    let took = from.elapsed();
    assert_eq!(stream.rest().await.status, 200);
    took
}

#[tokio::test]
async fn five_who_flood_a_node_keep_its_own_programs_waiting_for_one_answer_at_most() {
    const ANSWER: Duration = Duration::from_millis(500);
    let slow = EngineSpec { token: ms(10), ..counting("desk", ms(10)) };
    let callers = ["a", "b", "c", "d", "e"];
    let mut specs = vec![NodeSpec::new("desk", me(), Some(slow))];
    specs
        .extend(callers.map(|name| NodeSpec { sidecar: false, ..NodeSpec::new(name, me(), None) }));
    let world = World::start(specs).await;
    world.sees("desk", "count:latest", "desk").await;
    first_byte(&world, "warm").await;
    let mut solo = Duration::ZERO;
    for n in 0..5 {
        solo = solo.max(first_byte(&world, &format!("solo {n}")).await);
    }
    // Twelve seconds of work, at once.
    let mut flood: Vec<JoinHandle<Answer>> = Vec::new();
    for caller in callers {
        for n in 0..5 {
            let nowhere = ([127, 0, 0, 1], 1).into();
            let call = post(nowhere, "/api/generate", body(&format!("{caller} {n}"), 50));
            let call = call.header("x-tailherd-hop", "1");
            let wire = world.node(caller).wire(world.node("desk"), 11436).await.unwrap();
            flood.push(tokio::spawn(async move { call.open_on(wire).await.unwrap().rest().await }));
        }
    }
    let waits = async || {
        let metrics = get(world.node("desk").admin(), "/metrics").send().await;
        let line = "tailherd_queued_requests{model=\"count:latest\"} ";
        let found = metrics.text().lines().find_map(|l| l.strip_prefix(line)).map(str::to_owned);
        found.and_then(|n| n.parse::<u32>().ok()).unwrap_or(0)
    };
    assert!(until(async || waits().await >= 15).await, "they wait");
    let mut worst = Duration::ZERO;
    for n in 0..6 {
        let before = ran(&world, "desk").len();
        let own = format!("own {n}");
        worst = worst.max(first_byte(&world, &own).await);
        let ran = ran(&world, "desk");
        let at = ran.iter().position(|prompt| *prompt == own).unwrap();
        // One may have begun while the request was on its way.
        assert!(at <= before + 1, "{before}: {ran:?}");
    }
    assert!(waits().await > 0, "they were there all the time");
    // Behind all of them it would have been ten seconds, behind one of each two and a half.
    assert!(worst <= solo + ANSWER * 2, "{worst:?} instead of {solo:?}");
    flood.iter().for_each(JoinHandle::abort);
}

async fn explain(world: &World) -> Value {
    let explain = get(world.node("laptop").admin(), "/explain?model=count&promptTokens=10");
    explain.send().await.json()
}

/// Whether both nodes are known to run four at a time.
async fn four(world: &World) -> bool {
    let explain = explain(world).await;
    let all = explain["candidates"].as_array().unwrap();
    all.len() == 2 && all.iter().all(|c| c["state"]["slots"] == 4)
}

/// Which nodes the next request could go to.
async fn goes(world: &World) -> Vec<String> {
    let explain = explain(world).await;
    let goes = explain["goes"].as_array().unwrap_or_else(|| panic!("{explain:#}"));
    goes.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_node_whose_stream_becomes_slow_gets_no_more_and_what_runs_there_goes_on() {
    let node = |name, token| {
        let engine = EngineSpec { num_parallel: 4, ..counting(name, token) };
        NodeSpec::new(name, me(), Some(engine))
    };
    let specs = vec![NodeSpec::new("laptop", me(), None), node("gpu", ms(5)), node("nas", ms(40))];
    let world = World::start(specs).await;
    for name in ["gpu", "nas"] {
        let local = json!([{"baseUrl": world.engine(name).url(), "slots": 4}]);
        world.node(name).configure(json!({"local": local})).unwrap();
    }
    for node in ["gpu", "nas"] {
        world.sees("laptop", "count:latest", node).await;
        for _ in 0..3 {
            let body = count(&format!("count@{node}"), 40);
            assert_eq!(world.post("laptop", "/api/generate", body).send().await.status, 200);
        }
    }
    assert!(until(async || four(&world).await).await, "{:?}", goes(&world).await);
    let call = world.post("laptop", "/api/generate", body("long", 500));
    let mut stream = call.open_unlimited().await.unwrap();
    let mut said = stream.lines(20).await;
    let call = world.post("laptop", "/api/generate", body("beside", 5000));
    let mut beside = call.open_unlimited().await.unwrap();
    beside.lines(20).await;
    assert!(until(async || goes(&world).await == ["gpu"]).await, "{:?}", goes(&world).await);
    world.engine("gpu").slow(60.0);
    // Two at once may stand still for a prompt that is read: that is no slow node.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(goes(&world).await, ["gpu"]);
    drop(beside);
    let reads = tokio::spawn(async move {
        said.extend_from_slice(&stream.rest().await.body);
        said
    });
    assert!(until(async || goes(&world).await == ["nas"]).await, "{:?}", goes(&world).await);
    let answer = world.post("laptop", "/api/generate", body("next", 5)).send().await;
    assert_eq!((answer.status, served_by(&answer)), (200, "nas"), "{}", answer.text());
    assert!(!reads.is_finished());
    world.engine("gpu").slow(1.0);
    let all = reads.await.unwrap();
    let text = String::from_utf8(all).unwrap();
    assert_eq!(tailherd::demo::client::said(&text), counted(500), "nothing is lost of it");
    assert_eq!(world.engine("gpu").counts().cancelled, 1, "the one that was given up");
}
