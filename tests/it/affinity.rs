//! A conversation goes on where it was, as long as that saves more than a faster node would.

use serde_json::json;
use std::time::Duration;
use tailherd::demo::client::{Answer, Call, post};
use tailherd::demo::engine::{EngineSpec, ModelSpec};
use tailherd::demo::node::NodeSpec;

use crate::world::{Sends as _, World, engine, me, ms, served_by, until};

/// Three nodes have the model and nothing else to do. Slow reads prompts at half the speed of the
/// others, so that nothing but what it has read already speaks for it. All take so long that what
/// a busy machine adds is little beside it.
async fn three() -> World {
    let reads = |micros, name| EngineSpec {
        prefill: Duration::from_micros(micros),
        token: ms(1),
        prefix_cache: true,
        default_ctx: 8192,
        ..engine(name, vec![ModelSpec::count("count")])
    };
    let node = |name, micros| NodeSpec::new(name, me(), Some(reads(micros, name)));
    let world = World::start(vec![
        NodeSpec::new("laptop", me(), None),
        node("slow", 1000),
        node("one", 500),
        node("two", 500),
    ])
    .await;
    for at in ["slow", "one", "two"] {
        world.sees("laptop", "count:latest", at).await;
        for seed in 0..2 {
            let prompt = words(&format!("{at} {seed}"), 1500);
            let body = json!({"model": "count", "options": {"num_predict": 40}, "prompt": prompt});
            assert_eq!(turn(&world, &format!("/node/{at}"), &body, None).send().await.status, 200);
        }
    }
    world
}

fn words(about: &str, chars: usize) -> String {
    format!("{about} ").repeat(chars).chars().take(chars).collect()
}

fn turn(world: &World, at: &str, body: &serde_json::Value, session: Option<&str>) -> Call {
    let to = world.node("laptop").apps();
    let call =
        post(to, &format!("{at}/api/generate"), body.to_string()).header("x-tailherd-explain", "1");
    match session {
        Some(session) => call.header("x-tailherd-session", session),
        None => call,
    }
}

/// Who answered, and why: what a failed assertion shows.
fn by(answer: &Answer) -> (&str, &str) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    (served_by(answer), answer.header("x-tailherd-explain"))
}

fn slow(answer: &Answer, turn: usize) {
    let (node, why) = by(answer);
    assert_eq!(node, "slow", "turn {turn}: {why}");
}

fn elsewhere(answer: &Answer) {
    let (node, why) = by(answer);
    assert_ne!(node, "slow", "{why}");
}

/// The first turn is made at slow on purpose; six more are free to go anywhere. Then slow dies.
async fn stays(world: &World, session: Option<&str>, prompt: impl Fn(usize) -> String) {
    let body = |n| json!({"model": "count", "options": {"num_predict": 2}, "prompt": prompt(n)});
    slow(&turn(world, "/node/slow", &body(0), session).send().await, 0);
    for n in 1..7 {
        slow(&turn(world, "", &body(n), session).send().await, n);
    }
    // What belongs to no conversation goes where it is read soonest.
    let other = json!({
        "model": "count", "options": {"num_predict": 2}, "prompt": words("something else", 1500),
    });
    elsewhere(&turn(world, "", &other, None).send().await);
}

#[tokio::test]
async fn a_conversation_stays_where_it_was_read_and_goes_on_elsewhere_when_that_is_gone() {
    let world = three().await;
    // Only the header says that these belong together.
    stays(&world, Some("chat-1"), |n| words(&format!("turn {n} of many"), 1000)).await;
    // Only their beginnings do.
    let growing = |n| words("a long conversation", 2100 + 60 * n);
    stays(&world, None, growing).await;

    world.node("slow").quit();
    let gone = async || {
        let holders = world.holders("laptop", "count:latest").await;
        holders.is_some_and(|holders| !holders.iter().any(|node| node == "slow"))
    };
    assert!(until(gone).await);
    for (session, prompt) in [(Some("chat-1"), words("turn 7", 1000)), (None, growing(7))] {
        let body = json!({"model": "count", "options": {"num_predict": 2}, "prompt": prompt});
        elsewhere(&turn(&world, "", &body, session).send().await);
    }
}
