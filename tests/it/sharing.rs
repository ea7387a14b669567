//! For whom a node works: pauses, drains, quiet hours, batteries; and what its peers see of it.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use tailherd::app::control::{Said, SharingRow, Wish};
use tailherd::demo::client::{Answer, counted};
use tailherd::demo::engine::Engine;
use tailherd::demo::node::NodeSpec;
use tailherd::demo::tailscaled::Owner;
use tailherd::net::Host;
use tailherd::types::Power;
use tokio::time::Instant;

use crate::world::{Sends as _, World, count, counting, me, ms, served_by, until};

/// A laptop without an engine, and `count` on two devices of its owner.
async fn two() -> World {
    let mut all = vec![NodeSpec::new("laptop", me(), None)];
    all.extend(["gpu", "nas"].map(|n| NodeSpec::new(n, me(), Some(counting(n, ms(10))))));
    let world = World::start(all).await;
    world.sees("laptop", "count:latest", "gpu").await;
    world.sees("laptop", "count:latest", "nas").await;
    world
}

async fn order(world: &World, at: &str, wish: Wish) -> String {
    match world.node(at).obey(wish).await.unwrap() {
        Said::Done(text) => text,
        said => panic!("{said:?}"),
    }
}

async fn row(world: &World, at: &str) -> SharingRow {
    match world.node(at).obey(Wish::Sharing).await.unwrap() {
        Said::Sharing(row) => row,
        said => panic!("{said:?}"),
    }
}

/// What `at` says of `peer`, for whom it works and why.
async fn told(world: &World, at: &str, peer: &str) -> (String, String) {
    let status = world.status(at).await;
    let peer = status["peers"].as_array().unwrap().iter().find(|p| p["name"] == peer).cloned();
    let peer = peer.unwrap_or_default();
    let word = |key: &str| peer[key].as_str().unwrap_or_default().to_owned();
    (word("accepting"), word("why"))
}

/// A request straight to a node's mesh port.
async fn across(world: &World, from: &str, to: &str, n: u64) -> Answer {
    let call = world.post(from, "/api/generate", count("count", n));
    world.across(from, to, call).await
}

#[tokio::test]
async fn a_paused_node_ends_what_runs_and_takes_nothing_new_until_it_is_resumed() {
    let world = two().await;
    let mut stream =
        world.post("laptop", "/api/generate", count("count@gpu", 150)).open().await.unwrap();
    let mut text = stream.lines(3).await;
    let before = world.engine("gpu").seen_at("/api/generate").len();

    let said = order(&world, "gpu", Wish::Pause { seconds: None }).await;
    assert!(
        said.contains("paused") && said.contains("1 request of theirs runs to its end"),
        "{said}"
    );
    for _ in 0..6 {
        let answer = world.post("laptop", "/api/generate", count("count", 2)).send().await;
        assert_eq!((answer.status, served_by(&answer)), (200, "nas"), "{}", answer.text());
    }
    let direct = across(&world, "laptop", "gpu", 2).await;
    assert_eq!((direct.status, direct.header("x-tailherd-refused")), (503, "paused"));
    assert_eq!(direct.header("retry-after"), "", "nobody knows when");
    let known = async || told(&world, "laptop", "gpu").await == ("none".into(), "paused".into());
    assert!(until(known).await, "{:#}", world.status("laptop").await);
    assert_eq!(world.engine("gpu").seen_at("/api/generate").len(), before, "nothing reached it");

    // Its own programs are never refused.
    let own = world.post("gpu", "/api/generate", count("count@gpu", 2)).open();
    text.extend_from_slice(&stream.rest().await.body);
    assert_eq!(tailherd::demo::client::said(&String::from_utf8(text).unwrap()), counted(150));
    assert_eq!(own.await.unwrap().rest().await.status, 200);
    let sharing = world.status("gpu").await["sharing"].clone();
    let expect = json!({"when": "auto", "accepting": "none", "why": "paused", "until": null,
        "notKnown": ["whether its link is metered"]});
    assert_eq!(sharing, expect);

    let said = order(&world, "gpu", Wish::Resume).await;
    assert!(said.starts_with("resumed: this node works for everybody"), "{said}");
    assert_eq!(across(&world, "laptop", "gpu", 2).await.status, 200);
    let back = async || {
        let answer = world.post("laptop", "/api/generate", count("count", 1)).send().await;
        served_by(&answer) == "gpu"
    };
    assert!(until(back).await, "it is chosen again");
}

#[tokio::test]
async fn who_waits_when_a_node_is_paused_is_sent_away_at_once() {
    let world = two().await;
    let call = world.post("gpu", "/api/generate", count("count@gpu", 10_000));
    let _busy = call.open().await.unwrap();
    let call = world.post("laptop", "/api/generate", count("count", 2));
    let wait = async { across(&world, "laptop", "gpu", 2).await };
    let order = async {
        let waits = async || row(&world, "gpu").await.waiting == 1;
        assert!(until(waits).await);
        let from = Instant::now();
        order(&world, "gpu", Wish::Pause { seconds: Some(7200) }).await;
        from
    };
    let (answer, from) = tokio::join!(wait, order);
    assert_eq!((answer.status, answer.header("x-tailherd-refused")), (503, "paused"));
    let after: u64 = answer.header("retry-after").parse().unwrap();
    assert!((7100..=7200).contains(&after), "it says when: {after}");
    assert!(from.elapsed() < ms(1000), "{:?}", from.elapsed());
    assert_eq!(row(&world, "gpu").await.waiting, 0);
    assert_eq!(served_by(&call.send().await), "nas");
}

#[tokio::test]
async fn a_drain_says_what_is_left_and_ends_with_a_resume_or_a_restart() {
    let world = two().await;
    let stream =
        world.post("laptop", "/api/generate", count("count@gpu", 60)).open().await.unwrap();
    order(&world, "gpu", Wish::Drain).await;
    let is = row(&world, "gpu").await;
    assert_eq!((is.why.as_str(), is.draining, is.running), ("draining", true, 1));
    let answer = across(&world, "laptop", "gpu", 2).await;
    assert_eq!((answer.status, answer.header("x-tailherd-refused")), (503, "draining"));
    assert_eq!(stream.rest().await.said(), counted(60));
    assert!(until(async || row(&world, "gpu").await.running == 0).await);

    order(&world, "gpu", Wish::Resume).await;
    assert_eq!(across(&world, "laptop", "gpu", 2).await.status, 200);
    order(&world, "gpu", Wish::Drain).await;
    world.node("gpu").quit();
    world.node("gpu").run().await.unwrap();
    assert_eq!(row(&world, "gpu").await.accepting, "all");
}

#[tokio::test]
async fn a_pause_outlives_a_restart_and_ends_at_its_time() {
    let world = two().await;
    let gpu = world.node("gpu");
    let said = order(&world, "gpu", Wish::Pause { seconds: Some(6 * 3600) }).await;
    assert!(said.contains("paused until 18:00"), "{said}");
    gpu.quit();
    gpu.run().await.unwrap();
    let is = row(&world, "gpu").await;
    assert_eq!(is.accepting, "none");
    assert!(is.why.starts_with("paused until 1"), "{}", is.why);
    let until_then = world.status("gpu").await["sharing"]["until"].clone();
    assert!(until_then.is_string(), "{until_then}");

    order(&world, "gpu", Wish::Pause { seconds: Some(1) }).await;
    assert_eq!(row(&world, "gpu").await.accepting, "none");
    assert!(until(async || row(&world, "gpu").await.accepting == "all").await);
    gpu.quit();
    gpu.run().await.unwrap();
    assert_eq!(row(&world, "gpu").await.accepting, "all", "what is over is not kept");
}

#[tokio::test]
async fn quiet_hours_begin_and_end_by_the_clock_on_the_wall() {
    let quiet = json!({"share": {"quiet": ["22:00-07:00"]}});
    let world = World::start(vec![
        NodeSpec::new("laptop", me(), None),
        NodeSpec::new("gpu", me(), Some(counting("gpu", ms(1)))).with(quiet),
    ])
    .await;
    world.sees("laptop", "count:latest", "gpu").await;
    assert_eq!(across(&world, "laptop", "gpu", 2).await.status, 200);
    world.node("gpu").machine().is_at(23 * 60);
    let known = async |whom: &str, why: &str| {
        told(&world, "laptop", "gpu").await == (whom.into(), why.into())
    };
    assert!(until(async || known("none", "quiet hours until 07:00").await).await);
    let answer = across(&world, "laptop", "gpu", 2).await;
    assert_eq!((answer.status, answer.header("x-tailherd-refused")), (503, "paused"));
    let after: u64 = answer.header("retry-after").parse().unwrap();
    assert!((7 * 3600..=8 * 3600).contains(&after), "{after}");
    world.node("gpu").machine().is_at(7 * 60);
    assert!(until(async || known("all", "").await).await);
    assert_eq!(across(&world, "laptop", "gpu", 2).await.status, 200);
}

#[tokio::test]
async fn on_battery_only_devices_of_the_owner_are_served() {
    let access = json!({"access": [{"from": ["owner:self", "user:dev@example.com"]}]});
    let world = World::start(vec![
        NodeSpec::new("laptop", me(), None),
        NodeSpec::new("colleague", Owner::user("dev@example.com"), None),
        NodeSpec::new("desk", me(), Some(counting("desk", ms(1)))).with(access),
    ])
    .await;
    world.sees("laptop", "count:latest", "desk").await;
    for from in ["laptop", "colleague"] {
        assert_eq!(across(&world, from, "desk", 2).await.status, 200, "{from}");
    }
    world.node("desk").machine().runs_on(Power::Battery);
    assert!(until(async || row(&world, "desk").await.why == "on battery").await);
    let answer = across(&world, "colleague", "desk", 2).await;
    assert_eq!((answer.status, answer.header("x-tailherd-refused")), (503, "paused"));
    assert_eq!(across(&world, "laptop", "desk", 2).await.status, 200);
    assert_eq!(world.post("desk", "/api/generate", count("count", 2)).send().await.status, 200);
    let sharing = world.status("desk").await["sharing"].clone();
    assert_eq!((&sharing["accepting"], &sharing["why"]), (&json!("mine"), &json!("on battery")));
    world.node("desk").machine().runs_on(Power::Mains);
    assert!(until(async || row(&world, "desk").await.accepting == "all").await);
    assert_eq!(across(&world, "colleague", "desk", 2).await.status, 200);
}

#[tokio::test]
async fn a_machine_that_goes_to_sleep_or_is_used_says_so_before() {
    let idle = json!({"share": {"when": "idle", "idleAfter": "10m"}});
    let world = World::start(vec![
        NodeSpec::new("laptop", me(), None),
        NodeSpec::new("gpu", me(), Some(counting("gpu", ms(1)))).with(idle),
    ])
    .await;
    let gpu = world.node("gpu").machine();
    let known = async |whom: &str, why: &str| {
        until(async || told(&world, "laptop", "gpu").await == (whom.into(), why.into())).await
    };
    assert!(known("all", "").await, "nobody says that it is used");
    gpu.says(Host { idle: Some(ms(0)), ..Host::default() });
    assert!(known("none", "in use").await);
    gpu.says(Host { idle: Some(ms(601_000)), metered: Some(true), ..Host::default() });
    assert!(known("mine", "metered link").await);
    gpu.says(Host { idle: Some(ms(601_000)), sleeping: true, ..Host::default() });
    assert!(known("none", "going to sleep").await);
    assert_eq!(across(&world, "laptop", "gpu", 2).await.header("x-tailherd-refused"), "paused");
    gpu.says(Host { idle: Some(ms(700_000)), ..Host::default() });
    assert!(known("all", "").await);
    // A program here that asks its engines uses the machine, too.
    assert_eq!(world.post("gpu", "/api/generate", count("count", 2)).send().await.status, 200);
    assert!(known("none", "in use").await);
}

/// The program itself, as a service.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(state: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailherd"));
    command.arg("--config").arg(state.join("config.json5")).args(args);
    command.env("TAILHERD_STATE", state).env_remove("XDG_RUNTIME_DIR");
    command.env_remove("RUNTIME_DIRECTORY").env("TZ", "UTC");
    command
}

async fn says(state: &Path, args: &[&str]) -> (Option<i32>, String) {
    let mut command = program(state, args);
    let run = tokio::task::spawn_blocking(move || command.output());
    let Output { status, stdout, stderr } = run.await.unwrap().unwrap();
    (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_pauses_drains_and_resumes_the_program_that_runs_here() {
    let engine = Engine::start(counting("here", ms(1))).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let config: Value = json!({"listen": ["127.0.0.1:0"], "admin": {"listen": null},
        "tailnet": {"enabled": false}, "lan": {"enabled": false},
        "local": [{"baseUrl": engine.url()}]});
    std::fs::write(state.path().join("config.json5"), config.to_string()).unwrap();
    let serve =
        program(state.path(), &["serve"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let _serving = Serving(serve.unwrap());
    let runs = async || says(state.path(), &["resume"]).await.0 == Some(0);
    assert!(until(runs).await, "{:?}", says(state.path(), &["resume"]).await);

    let (code, text) = says(state.path(), &["pause", "2h"]).await;
    assert!(code == Some(0) && text.starts_with("paused until "), "{text}");
    assert!(text.contains("nothing is taken from other nodes; `tailherd resume`"), "{text}");
    let (code, text) = says(state.path(), &["resume"]).await;
    assert!(
        code == Some(0) && text.starts_with("resumed: this node works for everybody"),
        "{text}"
    );
    let (code, text) = says(state.path(), &["resume"]).await;
    assert!(code == Some(0) && text.starts_with("nothing was paused"), "{text}");
    let (code, text) = says(state.path(), &["drain"]).await;
    assert!(
        code == Some(0) && text.ends_with("idle: no request of another node runs here\n"),
        "{text}"
    );
    let (code, text) = says(state.path(), &["pause", "0s"]).await;
    assert!(code == Some(2) && text.contains("at least a second"), "{text}");
}
