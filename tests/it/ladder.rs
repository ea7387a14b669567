//! Step by step down and up again: what goes away, and who still answers.

use std::net::Ipv4Addr;
use std::time::Duration;

use tailherd::demo::client::Answer;
use tailherd::demo::engine::ModelSpec;
use tailherd::demo::node::NodeSpec;
use tokio::time::Instant;

use crate::world::{Sends as _, World, count, counting, engine, me, ms, served_by, until};

/// A laptop without an engine, a GPU box that counts, and a NAS with another model, all of
/// one person, on one local network and one tailnet.
async fn home() -> World {
    let world = World::at_home(vec![
        NodeSpec::new("laptop", me(), None),
        NodeSpec::new("gpu", me(), Some(counting("gpu", ms(2)))),
        NodeSpec::new(
            "nas",
            me(),
            Some(engine("nas", vec![ModelSpec::words("letter", "Dear you")])),
        ),
    ])
    .await;
    world.sees("laptop", "count:latest", "gpu").await;
    world.sees("laptop", "letter:latest", "nas").await;
    world
}

async fn ask(world: &World) -> Answer {
    world.post("laptop", "/api/generate", count("count", 3)).send().await
}

/// By which kind of way a node would send its next request to that peer.
async fn way(world: &World, at: &str, peer: &str) -> String {
    let status = world.status(at).await;
    let peers = status["peers"].as_array().unwrap();
    let found = peers.iter().find(|p| p["name"] == peer).unwrap();
    found["path"].as_str().unwrap_or("none").to_owned()
}

/// Asks five times a second until the local network carries the laptop's requests to gpu and
/// has done so for a while. Not one of them may fail before its first byte.
async fn steadily(world: &World, until_by: &str) {
    let end = Instant::now() + Duration::from_secs(30);
    let mut well = 0;
    let mut asked = 0;
    while well < 5 {
        assert!(Instant::now() < end, "never by {until_by}: {:#}", world.status("laptop").await);
        let next = tokio::time::sleep(ms(200));
        let answer = ask(world).await;
        asked += 1;
        if answer.status != 200 {
            let (here, there) = (world.status("laptop").await, world.status("gpu").await);
            panic!("{asked}: {}\n{here:#}\n{there:#}", answer.text());
        }
        assert_eq!(served_by(&answer), "gpu", "{asked}");
        well = if way(world, "laptop", "gpu").await == until_by { well + 1 } else { 0 };
        next.await;
    }
}

#[tokio::test]
async fn each_of_two_nodes_pins_the_other_while_the_tailnet_works() {
    let world = home().await;
    for (at, peer) in [("laptop", "gpu"), ("gpu", "laptop"), ("nas", "gpu"), ("gpu", "nas")] {
        let tailnet = async || way(&world, at, peer).await == "tailnet";
        assert!(until(tailnet).await, "{at} -> {peer}: {:#}", world.status(at).await);
        assert_eq!(world.lan_path(at, peer).await.as_deref(), Some("standby"), "{at} -> {peer}");
    }
    let before = world.node("gpu").daemon.asked().arrivals;
    assert_eq!(ask(&world).await.status, 200);
    assert!(world.node("gpu").daemon.asked().arrivals >= before);
    assert_eq!(world.status("laptop").await["rung"], "full");
}

#[tokio::test]
async fn without_the_coordinator_nothing_changes() {
    let world = home().await;
    world.net.coordinator(false);
    world.on_rung("laptop", "coordinator_lost", "").await;
    steadily(&world, "tailnet").await;
    world.net.coordinator(true);
    world.on_rung("laptop", "full", "").await;
}

#[tokio::test]
async fn a_dead_daemon_on_either_side_costs_no_request() {
    for dead in ["laptop", "gpu"] {
        let world = home().await;
        world.net.coordinator(false);
        steadily(&world, "tailnet").await;
        let dials = world.node("laptop").daemon.asked().dials;
        world.node(dead).daemon.kill();
        steadily(&world, "lan").await;
        if dead == "laptop" {
            world.on_rung("laptop", "tailnet_lost", "daemon_down").await;
            assert_eq!(world.node("laptop").daemon.asked().dials, dials, "not one more dial");
        }
        world.node(dead).daemon.start().unwrap();
        world.net.coordinator(true);
        steadily(&world, "tailnet").await;
        world.on_rung("laptop", "full", "").await;
        let status = world.status("laptop").await;
        let names: Vec<&str> =
            status["peers"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
        assert_eq!(names, ["gpu", "nas"], "nobody twice");
    }
}

#[tokio::test]
async fn a_daemon_that_comes_back_without_its_tailnet_is_no_obstacle() {
    for cached in [false, true] {
        let world = home().await;
        world.net.coordinator(false);
        world.node("laptop").daemon.restart(cached).unwrap();
        world.on_rung("laptop", "tailnet_lost", "").await;
        steadily(&world, "lan").await;
        // And the program starts anew meanwhile.
        world.node("laptop").quit();
        world.node("laptop").run().await.unwrap();
        world.sees("laptop", "count:latest", "gpu").await;
        world.met("laptop", "gpu").await;
        steadily(&world, "lan").await;
        // It never knew a way over the tailnet, and is called there at once.
        world.net.coordinator(true);
        steadily(&world, "tailnet").await;
        world.on_rung("laptop", "full", "").await;
    }
}

#[tokio::test]
async fn alone_a_node_has_its_own_models_and_says_why_not_more() {
    let world = home().await;
    world.net.coordinator(false);
    world.node("gpu").daemon.kill();
    world.plug("gpu").cut(true);
    world.on_rung("gpu", "alone", "").await;
    let own = world.post("gpu", "/api/generate", count("count", 3)).send().await;
    assert_eq!((own.status, own.said().as_str()), (200, " 1 2 3"));
    let body = r#"{"model":"letter","prompt":"x"}"#;
    let answer = world.post("gpu", "/api/generate", body).send().await;
    assert!([404, 503].contains(&answer.status), "{}", answer.text());
    for word in ["nas", "tailscaled does not answer"] {
        assert!(answer.text().contains(word), "{word}: {}", answer.text());
    }

    world.plug("gpu").cut(false);
    world.on_rung("gpu", "tailnet_lost", "daemon_down").await;
    let answer = world.post("gpu", "/api/generate", body).send().await;
    assert_eq!((answer.status, served_by(&answer)), (200, "nas"), "{}", answer.text());
    world.node("gpu").daemon.start().unwrap();
    world.net.coordinator(true);
    world.on_rung("gpu", "full", "").await;
}

#[tokio::test]
async fn a_node_that_moves_is_found_again_without_a_coordinator() {
    let world = home().await;
    world.net.coordinator(false);
    world.node("laptop").daemon.kill();
    steadily(&world, "lan").await;
    world.plug("gpu").readdress(Ipv4Addr::new(10, 99, 0, 77));
    let there = async || {
        let answer = ask(&world).await;
        answer.status == 200
            && world.plug("laptop").dialled().iter().any(|a| a.ip() == Ipv4Addr::new(10, 99, 0, 77))
    };
    assert!(until(there).await, "{:#}", world.status("laptop").await);
    steadily(&world, "lan").await;
}

#[tokio::test]
async fn a_lan_that_breaks_does_not_touch_what_the_tailnet_carries() {
    let world = home().await;
    let mut stream =
        world.post("laptop", "/api/generate", count("count", 400)).open().await.unwrap();
    stream.lines(5).await;
    world.plug("laptop").cut(true);
    let gone = async || world.lan_path("laptop", "gpu").await.as_deref() == Some("down");
    assert!(until(gone).await);
    let answer = stream.rest().await;
    assert!(answer.whole && answer.text().contains("\"done\":true"));
    steadily(&world, "tailnet").await;
    world.plug("laptop").cut(false);
    world.met("laptop", "gpu").await;
}
