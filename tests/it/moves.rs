//! Requests that wait and are better made elsewhere: they move, run once, and are answered once.
//! What ran is counted by the engines.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tailherd::app::control::Wish;
use tailherd::demo::client::{Answer, counted, get};
use tailherd::demo::engine::{EngineSpec, ModelSpec};
use tailherd::demo::node::NodeSpec;
use tailherd::types::Timing;
use tokio::task::JoinHandle;

use crate::world::{Sends as _, World, count, counting, engine, me, ms, served_by, until};

/// Node, and how long it takes for a token; `None` = it has no engine.
type Machine = (&'static str, Option<Duration>);

const QUICK: Duration = Duration::from_millis(10);
const SLOW: Duration = Duration::from_millis(30);

/// Signs of life are awaited as long as on any machine: a test's may be busy.
fn timing() -> Timing {
    let usual = Timing::default();
    Timing { vigil: usual.vigil, vigil_misses: 10, ..Timing::shrunk() }
}

/// A machine as a node.
fn spec((name, token): &Machine) -> NodeSpec {
    let engine = token.map(|token| EngineSpec { load: ms(50), ..counting(name, token) });
    NodeSpec::new(name, me(), engine)
}

/// These nodes, each knowing how fast the others are. `at` asks.
async fn world(at: &str, machines: &[Machine], timing: Timing) -> World {
    let world = World::timed(machines.iter().map(spec).collect(), timing).await;
    learned(world, at, machines).await
}

/// The same world, when `at` knows how fast these nodes are.
async fn learned(world: World, at: &str, machines: &[Machine]) -> World {
    for (name, token) in machines {
        if token.is_none() {
            continue;
        }
        world.sees(at, "count:latest", name).await;
        // Often enough to be sure of its speed, and to be trusted with more than two at a time.
        for _ in 0..3 {
            let body = count(&format!("count@{name}"), 40);
            let answer = world.post(at, "/api/generate", body).send().await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }
    tokio::time::sleep(ms(300)).await;
    machines.iter().filter(|m| m.1.is_some()).for_each(|m| world.engine(m.0).forget());
    world
}

/// A node's own programs keep its engine busy, and its queue long, until this is dropped.
struct Busy(Vec<JoinHandle<()>>);

impl Busy {
    async fn new(world: &World, at: &str, requests: usize) -> Busy {
        let ask = |_| {
            let call = world.post(at, "/api/generate", count("count@self", 10_000));
            tokio::spawn(async move {
                let mut stream = call.open_unlimited().await.unwrap();
                while let Some(Ok(_)) = stream.next().await {}
            })
        };
        let busy = Busy((0..requests).map(ask).collect());
        assert!(world.engine(at).until(ms(10_000), |c| c.running == 1).await);
        busy
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Somebody has an engine let its model go, past its node.
async fn unload(world: &World, at: &str) {
    let gone = json!({"model": "count", "keep_alive": 0}).to_string();
    let engine = world.engine(at).addr();
    assert_eq!(crate::http::post(engine, "/api/generate", gone).send().await.status, 200);
}

/// Asks for so many numbers, under a name by which the engines know the request.
fn asks(world: &World, at: &str, name: String, numbers: u64) -> JoinHandle<Answer> {
    let body = json!({"model": "count", "prompt": name, "options": {"num_predict": numbers}});
    let call = world.post(at, "/api/generate", body.to_string());
    tokio::spawn(async move { call.open_unlimited().await.unwrap().rest().await })
}

/// How often each request of that kind of name ran, wherever it did.
fn ran(world: &World, name: &str) -> BTreeMap<String, u32> {
    let mut ran = BTreeMap::new();
    for engine in world.nodes.iter().filter_map(|node| node.engine()) {
        for seen in engine.seen_at("/api/generate") {
            let body: Value = serde_json::from_slice(&seen.body).unwrap();
            let prompt = body["prompt"].as_str().unwrap_or_default();
            if prompt.starts_with(name) {
                *ran.entry(prompt.to_owned()).or_default() += 1;
            }
        }
    }
    ran
}

#[track_caller]
fn each_once(world: &World, name: &str, requests: usize) {
    let ran = ran(world, name);
    assert_eq!(ran.len(), requests, "{ran:?}");
    assert!(ran.values().all(|n| *n == 1), "{ran:?}");
}

/// How often a node's requests went on for this reason.
async fn moved(world: &World, at: &str, reason: &str) -> u32 {
    let metrics = get(world.node(at).admin(), "/metrics").send().await;
    let line = format!("tailherd_moves_total{{reason=\"{reason}\"}} ");
    let found = metrics.text().lines().find_map(|l| l.strip_prefix(&line));
    found.map_or(0, |n| n.parse().unwrap())
}

/// What is in a node's gate for others, by its own word.
async fn queued(world: &World, at: &str) -> u64 {
    let metrics = get(world.node(at).admin(), "/metrics").send().await;
    let line = "tailherd_queued_requests{model=\"count:latest\"} ";
    metrics.text().lines().find_map(|l| l.strip_prefix(line)).map_or(0, |n| n.parse().unwrap())
}

#[tokio::test]
async fn what_waits_at_a_peer_moves_to_one_that_became_free_and_runs_once() {
    let machines = [("laptop", None), ("gpu", Some(QUICK)), ("nas", Some(SLOW))];
    let world = world("laptop", &machines, timing()).await;
    let busy = Busy::new(&world, "nas", 6).await;
    tokio::time::sleep(ms(500)).await;
    let asked: Vec<_> = (0..10).map(|n| asks(&world, "laptop", format!("r{n}"), 100)).collect();
    assert!(until(async || queued(&world, "gpu").await >= 8).await, "they wait at gpu");
    drop(busy);
    let mut by = BTreeMap::<String, u32>::new();
    for call in asked {
        let answer = call.await.unwrap();
        assert_eq!(answer.said(), counted(100), "{}", answer.text());
        *by.entry(served_by(&answer).to_owned()).or_default() += 1;
    }
    each_once(&world, "r", 10);
    let count = moved(&world, "laptop", "withdrawn").await;
    assert!(by.contains_key("nas") && count > 0, "{by:?} {count}");
    let requests = world.status("laptop").await["requests"].clone();
    let moves = requests.as_array().unwrap().iter().filter_map(|r| r["moves"].as_u64());
    assert_eq!(moves.sum::<u64>(), u64::from(count), "{requests:#}");
    let faults = get(world.node("laptop").admin(), "/metrics").send().await;
    assert!(!faults.text().contains("tailherd_attempts_total{"), "nothing has failed");
}

#[tokio::test]
async fn what_waits_in_its_own_nodes_queue_moves_to_a_peer_and_runs_once() {
    let machines = [("desk", Some(SLOW)), ("gpu", Some(QUICK))];
    let world = world("desk", &machines, timing()).await;
    let busy = Busy::new(&world, "gpu", 30).await;
    tokio::time::sleep(ms(500)).await;
    let asked: Vec<_> = (0..6).map(|n| asks(&world, "desk", format!("r{n}"), 100)).collect();
    assert!(until(async || queued(&world, "desk").await >= 4).await, "they wait at home");
    drop(busy);
    let mut by = BTreeMap::<String, u32>::new();
    for call in asked {
        let answer = call.await.unwrap();
        assert_eq!(answer.said(), counted(100), "{}", answer.text());
        *by.entry(served_by(&answer).to_owned()).or_default() += 1;
    }
    each_once(&world, "r", 6);
    assert!(by.contains_key("gpu") && moved(&world, "desk", "withdrawn").await > 0, "{by:?}");
}

/// No report comes: all that is known came with answers, and soon is wrong.
fn unreported() -> Timing {
    let usual = Timing::default();
    let hour = Duration::from_secs(3600);
    Timing {
        report_spacing: hour,
        report_busy: hour,
        report_idle: hour,
        report_believed: usual.report_believed,
        probe_listed: hour,
        ..timing()
    }
}

#[tokio::test]
async fn a_node_that_turned_out_busy_refuses_and_the_other_one_answers() {
    let machines = [("laptop", None), ("gpu", Some(QUICK)), ("nas", Some(SLOW))];
    let world = world("laptop", &machines, unreported()).await;
    let _busy = Busy::new(&world, "gpu", 8).await;
    assert!(until(async || queued(&world, "gpu").await == 7).await);
    let answer = asks(&world, "laptop", "r".to_owned(), 20).await.unwrap();
    assert_eq!((answer.status, served_by(&answer)), (200, "nas"), "{}", answer.text());
    assert_eq!(answer.header("x-tailherd-attempts"), "1", "nothing has failed");
    each_once(&world, "r", 1);
    assert_eq!(moved(&world, "laptop", "wait").await, 1);
    let gpu = world.status("laptop").await;
    assert!(!gpu["requests"][0]["refusals"].is_null() && gpu["requests"][0]["refusals"] == 1);
}

#[tokio::test]
async fn who_drains_or_has_a_full_queue_says_so_and_has_not_failed() {
    let machines = [("laptop", None), ("gpu", Some(QUICK)), ("nas", Some(SLOW))];
    let short = json!({"limits": {"queue": 1}});
    let specs = machines.iter().map(|machine| match machine.0 {
        "gpu" => spec(machine).with(short.clone()),
        _ => spec(machine),
    });
    let world = World::timed(specs.collect(), unreported()).await;
    let world = learned(world, "laptop", &machines).await;
    for (n, why) in ["full", "draining"].into_iter().enumerate() {
        let mut busy = Vec::new();
        if why == "full" {
            // Nobody expects them to take that long, so it is not the wait that is refused.
            world.engine("gpu").slow(40.0);
            for _ in 0..2 {
                let call = world.post("gpu", "/api/generate", count("count@self", 40));
                let rest = async move { call.open_unlimited().await.unwrap().rest().await };
                busy.push(tokio::spawn(rest));
            }
            assert!(until(async || queued(&world, "gpu").await == 1).await);
        } else {
            world.node("gpu").obey(Wish::Drain).await.unwrap();
        }
        let answer = asks(&world, "laptop", format!("r{n}"), 20).await.unwrap();
        assert_eq!((answer.status, served_by(&answer)), (200, "nas"), "{why}: {}", answer.text());
        assert_eq!(moved(&world, "laptop", why).await, 1, "{why}");
        world.engine("gpu").slow(1.0);
        busy.iter().for_each(JoinHandle::abort);
    }
    each_once(&world, "r", 2);
    let metrics = get(world.node("laptop").admin(), "/metrics").send().await;
    for failure in ["tailherd_attempts_total{", "tailherd_breaker_open{"] {
        assert!(!metrics.text().contains(failure), "{}", metrics.text());
    }
}

#[tokio::test]
async fn what_waits_at_a_peer_on_the_local_network_moves_too() {
    let machines = [("laptop", None), ("gpu", Some(QUICK)), ("nas", Some(SLOW))];
    let world = World::at_home(machines.iter().map(spec).collect()).await;
    let world = learned(world, "laptop", &machines).await;
    world.net.coordinator(false);
    world.on_rung("laptop", "coordinator_lost", "").await;
    world.node("laptop").daemon.kill();
    world.on_rung("laptop", "tailnet_lost", "").await;
    let by_lan = async || {
        let status = world.status("laptop").await;
        let peers = status["peers"].as_array().unwrap();
        ["gpu", "nas"].iter().all(|n| peers.iter().any(|p| p["name"] == *n && p["path"] == "lan"))
    };
    assert!(until(by_lan).await, "{:#}", world.status("laptop").await["peers"]);
    let busy = Busy::new(&world, "nas", 8).await;
    tokio::time::sleep(ms(1000)).await;
    let asked: Vec<_> = (0..8).map(|n| asks(&world, "laptop", format!("r{n}"), 150)).collect();
    assert!(until(async || queued(&world, "gpu").await >= 4).await, "they wait at gpu");
    drop(busy);
    let mut by = BTreeMap::<String, u32>::new();
    for call in asked {
        let answer = call.await.unwrap();
        assert_eq!(answer.said(), counted(150), "{}", answer.text());
        *by.entry(served_by(&answer).to_owned()).or_default() += 1;
    }
    each_once(&world, "r", 8);
    let count = moved(&world, "laptop", "withdrawn").await;
    assert!(by.contains_key("nas") && count > 0, "{by:?} {count}");
    assert!(by_lan().await, "all that came on the local network");
}

#[tokio::test]
async fn a_model_that_went_meanwhile_is_asked_for_elsewhere_or_loaded_as_planned() {
    let machines = [("laptop", None), ("gpu", Some(QUICK)), ("nas", Some(SLOW))];
    let world = world("laptop", &machines, unreported()).await;
    unload(&world, "gpu").await;
    assert!(world.engine("gpu").loaded().is_empty());
    // Its own node knows it by now.
    let known = async || {
        let status = world.status("gpu").await;
        let offers = status["models"][0]["offers"].as_array().unwrap().clone();
        offers.iter().any(|o| o["peer"] == "gpu" && o["loaded"] != true)
    };
    assert!(until(known).await, "{:#}", world.status("gpu").await["models"]);
    let answer = asks(&world, "laptop", "r".to_owned(), 20).await.unwrap();
    assert_eq!((answer.status, answer.said()), (200, counted(20)), "{}", answer.text());
    each_once(&world, "r", 1);
    assert_eq!(moved(&world, "laptop", "not_loaded").await, 1);
}

#[tokio::test]
async fn a_load_where_there_is_room_is_worth_the_queue_it_spares() {
    let machines = [("laptop", None), ("gpu", Some(QUICK)), ("nas", Some(QUICK))];
    let world = world("laptop", &machines, timing()).await;
    unload(&world, "nas").await;
    let nas = async || {
        let answer = get(world.node("laptop").admin(), "/explain?model=count").send().await;
        let rows = answer.json()["candidates"].as_array().unwrap().clone();
        rows.into_iter().find(|row| row["node"] == "nas").unwrap()
    };
    let cold = async || {
        let row = nas().await;
        row["state"]["loaded"] == false && row["state"]["fits"] == true
    };
    assert!(until(cold).await, "{:#}", nas().await);
    let idle = nas().await;
    assert!(idle["seconds"]["loadCost"].as_f64() > Some(0.0), "gpu is free: {idle:#}");
    let busy = Busy::new(&world, "gpu", 5).await;
    let worth = async || nas().await["seconds"]["loadCost"].as_f64() < Some(0.0);
    assert!(until(worth).await, "{:#}", nas().await);
    let answer = asks(&world, "laptop", "q".to_owned(), 40).await.unwrap();
    assert_eq!((answer.status, answer.said()), (200, counted(40)), "{}", answer.text());
    drop(busy);
    each_once(&world, "q", 1);
    assert!(!world.engine("nas").loaded().is_empty(), "it was loaded there");
}

#[tokio::test]
async fn what_waits_at_a_peer_that_is_killed_is_answered_by_another() {
    let machines = [("laptop", None), ("gpu", Some(QUICK)), ("nas", Some(SLOW))];
    let world = world("laptop", &machines, timing()).await;
    let full = Busy::new(&world, "nas", 8).await;
    let busy = Busy::new(&world, "gpu", 1).await;
    tokio::time::sleep(ms(500)).await;
    let asked: Vec<_> = (0..4).map(|n| asks(&world, "laptop", format!("r{n}"), 20)).collect();
    assert!(until(async || queued(&world, "gpu").await >= 4).await, "they wait at gpu");
    world.node("gpu").quit();
    drop((full, busy));
    for call in asked {
        let answer = call.await.unwrap();
        assert_eq!((answer.status, served_by(&answer)), (200, "nas"), "{}", answer.text());
        assert_eq!(answer.said(), counted(20));
    }
    each_once(&world, "r", 4);
}

#[tokio::test]
async fn who_leaves_while_it_waits_is_asked_for_nowhere() {
    let machines = [("laptop", None), ("gpu", Some(QUICK)), ("nas", Some(SLOW))];
    let world = world("laptop", &machines, timing()).await;
    let full = Busy::new(&world, "nas", 6).await;
    let busy = Busy::new(&world, "gpu", 1).await;
    tokio::time::sleep(ms(500)).await;
    let asked: Vec<_> = (0..3).map(|n| asks(&world, "laptop", format!("r{n}"), 20)).collect();
    assert!(until(async || queued(&world, "gpu").await >= 3).await, "they wait at gpu");
    asked.iter().for_each(JoinHandle::abort);
    assert!(until(async || queued(&world, "gpu").await == 0).await);
    drop((full, busy));
    tokio::time::sleep(ms(1500)).await;
    assert_eq!(ran(&world, "r"), BTreeMap::new());
}

#[tokio::test]
async fn a_silent_server_is_left_for_a_node_that_is_free() {
    let slow = EngineSpec { token: QUICK, ..engine("old", vec![ModelSpec::count("count")]) };
    let specs = vec![
        NodeSpec::new("laptop", me(), None),
        NodeSpec::bare("old", me(), slow),
        NodeSpec::new("nas", me(), Some(counting("nas", SLOW))),
    ];
    let world = World::timed(specs, timing()).await;
    for name in ["old", "nas"] {
        world.sees("laptop", "count:latest", name).await;
        for _ in 0..3 {
            let body = count(&format!("count@{name}"), 40);
            assert_eq!(world.post("laptop", "/api/generate", body).send().await.status, 200);
        }
    }
    // Somebody whom no sidecar knows keeps it busy.
    let call =
        crate::http::post(world.engine("old").addr(), "/api/generate", count("count", 100_000));
    let busy = tokio::spawn(async move { call.open_unlimited().await.unwrap().rest().await });
    assert!(world.engine("old").until(ms(5000), |c| c.running == 1).await);
    let answer = asks(&world, "laptop", "r".to_owned(), 20).await.unwrap();
    assert_eq!((answer.status, served_by(&answer)), (200, "nas"), "{}", answer.text());
    assert_eq!(moved(&world, "laptop", "left").await, 1);
    busy.abort();
    let seen = |at: &str| {
        let seen = world.engine(at).seen_at("/api/generate");
        seen.iter().filter(|s| s.body.windows(3).any(|w| w == b"\"r\"")).count()
    };
    assert_eq!(
        (seen("old"), seen("nas")),
        (1, 1),
        "it stood in the one's line and ran at the other"
    );
    let counts = world.engine("old").counts();
    assert!(counts.cancelled >= 1, "{counts:?}");
}
