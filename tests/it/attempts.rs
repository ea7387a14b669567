//! Attempts between sidecars: what a node says to a request it does not take, and how one that
//! waits is taken back.

use serde_json::{Value, json};
use tailherd::api::report::HEADER;
use tailherd::demo::client::{Answer, Call, get, post};
use tailherd::demo::engine::{EngineSpec, ModelSpec};
use tailherd::demo::node::NodeSpec;
use tailherd::demo::tailscaled::Owner;
use tailherd::types::Timing;
use tokio::task::JoinHandle;

use crate::eve::CONTENT_TYPE;
use crate::world::{Sends as _, World, count, engine, me, ms, ran, until};

const ONE: &str = "11111111111111111111111111111111";
const TWO: &str = "22222222222222222222222222222222";

/// Two requesters, and a node that counts slowly and loads slowly.
async fn three() -> World {
    let models = ["count", "cold"].map(ModelSpec::count).to_vec();
    let gpu = EngineSpec { token: ms(20), load: ms(2000), ..engine("gpu", models) };
    let specs = vec![
        NodeSpec::new("laptop", me(), None),
        NodeSpec::new("other", me(), None),
        NodeSpec::new("gpu", Owner::tag("tag:ollama"), Some(gpu)),
    ];
    let usual = Timing::default();
    // On a busy machine a connection takes its time.
    let timing = Timing {
        connect_tailnet: usual.connect_tailnet,
        localapi_connect: usual.connect_tailnet,
        ..Timing::shrunk()
    };
    let world = World::timed(specs, timing).await;
    world.sees("laptop", "count:latest", "gpu").await;
    world
}

/// As one sidecar sends it to another.
fn attempt(number: &str, body: String) -> Call {
    let call = post("127.0.0.1:1".parse().unwrap(), "/api/generate", body);
    call.header("x-tailherd-hop", "1").header("x-tailherd-attempt", number)
}

fn row(answer: &Answer) -> Value {
    serde_json::from_str(answer.header(HEADER)).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
}

/// What is sent between a tailnet's devices goes on by itself.
async fn sends(world: &World, from: &str, to: &str, call: Call) -> JoinHandle<Answer> {
    let stream = world.node(from).wire(world.node(to), 11436).await.unwrap();
    tokio::spawn(async move { call.open_on(stream).await.unwrap().rest().await })
}

/// Takes an attempt back.
async fn withdraw(world: &World, from: &str, number: &str) -> (u16, Value) {
    let body = json!({"attempt": number}).to_string();
    let call = post("127.0.0.1:1".parse().unwrap(), "/mesh/v1/withdraw", body);
    let answer = world.across(from, "gpu", call.header("content-type", CONTENT_TYPE)).await;
    (answer.status, answer.json())
}

async fn queued(world: &World, n: u64) {
    let so = async || {
        let metrics = get(world.node("gpu").admin(), "/metrics").send().await;
        let line = format!("tailherd_queued_requests{{model=\"count:latest\"}} {n}\n");
        metrics.text().contains(&line)
    };
    assert!(until(so).await, "never {n} in the queue");
}

#[tokio::test]
async fn who_would_wait_longer_than_it_was_sent_for_is_refused_with_how_it_stands() {
    let world = three().await;
    let busy = sends(&world, "laptop", "gpu", attempt(ONE, count("count", 400))).await;
    assert!(world.engine("gpu").until(ms(15_000), |c| c.running == 1).await);
    let call = attempt(TWO, count("count", 1)).header("x-tailherd-wait-budget", "200");
    let answer = world.across("laptop", "gpu", call).await;
    assert_eq!((answer.status, answer.header("x-tailherd-refused")), (503, "wait"));
    let after: u64 = answer.header("retry-after").parse().unwrap();
    let wait = row(&answer)["waitMs"].as_u64().unwrap();
    assert!(wait > 200 && after >= wait / 1000, "{wait} {after}");
    assert_eq!(row(&answer)["running"], 1);
    assert_eq!(ran(&world, "gpu").len(), 1);
    busy.abort();
}

#[tokio::test]
async fn a_request_for_a_model_in_memory_is_refused_where_it_is_not() {
    let world = three().await;
    let ask = async |plan: &'static str| {
        let call = attempt(ONE, count("cold", 1)).header("x-tailherd-plan", plan);
        world.across("laptop", "gpu", call).await
    };
    let answer = ask("loaded").await;
    assert_eq!((answer.status, answer.header("x-tailherd-refused")), (503, "not_loaded"));
    assert_eq!(row(&answer)["state"], "cold");
    assert_eq!(world.engine("gpu").counts().loads_started, 0);
    assert_eq!(ask("load").await.status, 200);
    assert_eq!(ask("loaded").await.status, 200, "now it is");
    assert_eq!(world.engine("gpu").counts().loads_started, 1);
}

#[tokio::test]
async fn what_waits_is_taken_back_by_who_sent_it_and_by_nobody_else() {
    let world = three().await;
    let runs = sends(&world, "laptop", "gpu", attempt(ONE, count("count", 200))).await;
    assert!(world.engine("gpu").until(ms(15_000), |c| c.running == 1).await);
    let waits = sends(&world, "laptop", "gpu", attempt(TWO, count("count", 1))).await;
    queued(&world, 1).await;

    let unknown = withdraw(&world, "other", TWO).await;
    assert_eq!((unknown.0, unknown.1["error"].as_str().is_some()), (404, true), "{unknown:?}");
    assert!(!waits.is_finished());
    assert_eq!(withdraw(&world, "laptop", ONE).await, (200, json!({"waiting": false})));
    assert_eq!(withdraw(&world, "laptop", TWO).await, (200, json!({"waiting": true})));
    let answer = waits.await.unwrap();
    assert_eq!((answer.status, answer.header("x-tailherd-refused")), (503, "withdrawn"));
    assert_eq!(row(&answer)["name"], "count:latest");
    queued(&world, 0).await;
    assert_eq!(withdraw(&world, "laptop", TWO).await.0, 404, "it is not here any more");
    let whole = runs.await.unwrap();
    assert_eq!((whole.status, whole.items().len()), (200, 201), "what had begun goes on");
    assert_eq!(ran(&world, "gpu").len(), 1);
    assert_eq!(withdraw(&world, "laptop", ONE).await.0, 404);
}

#[tokio::test]
async fn a_load_that_was_begun_for_a_request_goes_on_when_that_is_taken_back() {
    let world = three().await;
    let waits = sends(&world, "laptop", "gpu", attempt(ONE, count("cold", 1))).await;
    assert!(world.engine("gpu").until(ms(15_000), |c| c.loads_started == 1).await);
    assert_eq!(withdraw(&world, "laptop", ONE).await, (200, json!({"waiting": true})));
    assert_eq!(waits.await.unwrap().status, 503);
    assert!(world.engine("gpu").until(ms(15_000), |c| c.loads_finished == 1).await);
    assert_eq!((world.engine("gpu").counts().loads_aborted, ran(&world, "gpu").len()), (0, 0));
}

#[tokio::test]
async fn only_a_short_and_clear_wish_of_a_sidecar_takes_anything_back() {
    let world = three().await;
    let ask = async |body: String, change: fn(Call) -> Call| {
        let call = post("127.0.0.1:1".parse().unwrap(), "/mesh/v1/withdraw", body);
        let call = change(call.header("content-type", CONTENT_TYPE));
        let answer = world.across("laptop", "gpu", call).await;
        (answer.status, answer.text().to_owned())
    };
    let good = json!({"attempt": ONE}).to_string();
    let same = |call: Call| call;
    for (body, words) in [
        ("", "EOF"),
        ("{}", "attempt"),
        ("[1]", "invalid"),
        (r#"{"attempt":"no"}"#, "32 hex digits"),
        (r#"{"attempt":7}"#, "invalid type"),
        (&format!("{{\"attempt\":\"{}\"}}", "1".repeat(5000)), "length limit"),
    ] {
        let (status, text) = ask(body.to_owned(), same).await;
        assert!(status == 400 && text.contains(words), "{body:.40}: {status} {text}");
    }
    let forwarded = |call: Call| call.header("x-tailherd-hop", "1");
    assert_eq!(ask(good.clone(), forwarded).await.0, 404, "of a request that was sent on");
    let plain = |mut call: Call| {
        call.headers.remove("content-type");
        call
    };
    assert_eq!(ask(good.clone(), plain).await.0, 404);
    let page = |call: Call| call.header("origin", "http://evil.example");
    assert_eq!(ask(good.clone(), page).await.0, 403);
    let got = |call: Call| call.method(http::Method::GET);
    assert_eq!(ask(good.clone(), got).await.0, 405);
    assert_eq!(ask(good, same).await.0, 404, "no such attempt");
}
