//! Rules 13 to 18 of the local network: who is refused there, and why.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::Method;
use serde_json::json;
use tailherd::demo::client::Answer;
use tailherd::demo::node::NodeSpec;
use tailherd::trust::{Bounds, Netmap, PinState, Trust};

use crate::eve::now;
use crate::hand::Hand;
use crate::world::{Sends as _, World, count, counting, me, ms, until};

/// A laptop that goes on using the local network whatever happens to its login, and a GPU box.
async fn pair() -> World {
    pair_with(json!({"lan": {"whenLoggedOut": true, "whenStopped": true}})).await
}

async fn pair_with(config: serde_json::Value) -> World {
    let world = World::at_home(vec![
        NodeSpec::new("laptop", me(), None).with(config),
        NodeSpec::new("gpu", me(), Some(counting("gpu", ms(2)))),
    ])
    .await;
    world.sees("laptop", "count:latest", "gpu").await;
    world
}

async fn ask(world: &World) -> Answer {
    world.post("laptop", "/api/generate", count("count", 3)).send().await
}

/// Whether gpu comes to answer the laptop's hand on the local network like this.
async fn answers(hand: &Hand, status: u16) -> bool {
    until(async || hand.status("gpu").await == status).await
}

#[tokio::test]
async fn the_local_network_is_for_when_the_tailnet_does_not_work() {
    let world = pair().await;
    let hand = Hand::of(world.node("laptop"), "gpu").await;
    let answer = hand.ask("gpu", Method::GET, "/mesh/v1/offers").await.unwrap();
    assert_eq!(answer.status, 421, "{}", answer.text());
    assert_eq!(answer.header("x-tailherd-refused"), "use_tailnet");

    world.node("laptop").daemon.kill();
    assert!(answers(&hand, 200).await, "its tailnet is down");
    world.node("laptop").daemon.start().unwrap();
    assert!(answers(&hand, 421).await);
    world.node("gpu").daemon.kill();
    assert!(answers(&hand, 200).await, "ours is down");
    // Over the local network nobody is pinned, and nobody manages models.
    let hello = hand.ask("gpu", Method::POST, "/mesh/v1/hello").await.unwrap();
    assert_eq!(hello.status, 404, "{}", hello.text());
    let pull = hand.ask("gpu", Method::DELETE, "/api/delete").await.unwrap();
    assert_eq!(pull.status, 403, "{}", pull.text());
}

#[tokio::test]
async fn what_the_tailnets_policy_closed_the_local_network_does_not_open() {
    let world = pair().await;
    let hand = Hand::of(world.node("laptop"), "gpu").await;
    world.net.policy("laptop", "gpu", false);
    // Silent pings are no way around it.
    world.node("laptop").daemon.kill();
    assert!(answers(&hand, 403).await);
    let answer = hand.ask("gpu", Method::GET, "/mesh/v1/offers").await.unwrap();
    assert_eq!(answer.header("x-tailherd-refused"), "policy");
    world.net.coordinator(false);
    world.node("gpu").daemon.kill();
    world.on_rung("gpu", "tailnet_lost", "daemon_down").await;
    assert_eq!(hand.status("gpu").await, 403, "nor is an outage");
    world.node("gpu").quit();
    world.node("gpu").run().await.unwrap();
    assert!(answers(&hand, 403).await, "nor a restart");
    let asked = world.post("laptop", "/api/generate", count("count", 3)).answer().await;
    assert!(
        asked.is_err() || asked.is_ok_and(|a| a.status >= 400),
        "nor is a person's request answered"
    );
}

#[tokio::test]
async fn a_node_that_left_the_tailnet_is_refused_on_the_local_network() {
    let world = pair().await;
    let hand = Hand::of(world.node("laptop"), "gpu").await;
    let gpu = world.node("gpu");
    world.node("laptop").daemon.kill();
    assert!(answers(&hand, 200).await);
    let stream = hand.dial("gpu").await.unwrap();
    world.net.remove("laptop");
    // A minute of its absence, as gpu would have seen it.
    gpu.quit();
    let trust = Trust::open(Some(gpu.state()), Bounds::of(gpu.config()));
    trust.recall(None, now());
    let control = trust.view().control.clone().unwrap();
    for second in (0..=80).step_by(20) {
        let map = Netmap { control: &control, online: true, nodes: &[] };
        trust.netmap(&map, now() + Duration::from_secs(second));
    }
    assert!(matches!(trust.view().pins[0].state, PinState::Suspended { .. }));
    trust.save().unwrap();
    drop((trust, stream));
    gpu.run().await.unwrap();
    world.net.coordinator(false);
    gpu.daemon.kill();
    world.on_rung("gpu", "alone", "").await;
    assert!(!answers(&hand, 200).await, "suspended");
    assert!(ask(&world).await.status >= 400);
}

#[tokio::test]
async fn an_expired_key_ends_a_nodes_pin_and_a_logout_only_its_own_use_of_the_network() {
    let world = pair().await;
    let hand = Hand::of(world.node("laptop"), "gpu").await;
    world.net.coordinator(false);
    world.node("laptop").daemon.logout();
    world.on_rung("laptop", "tailnet_lost", "logged_out").await;
    assert!(answers(&hand, 200).await, "its key lives");
    assert!(until(async || ask(&world).await.status == 200).await, "as its configuration wants");
    world.net.expire("laptop");
    assert!(until(async || hand.status("gpu").await != 200).await, "expired");
    assert!(until(async || ask(&world).await.status >= 400).await);

    let world = pair_with(json!({})).await;
    world.net.coordinator(false);
    world.node("laptop").daemon.logout();
    world.on_rung("laptop", "alone", "").await;
    let dialled = world.plug("laptop").dialled().len();
    assert!(ask(&world).await.status >= 400);
    assert_eq!(world.plug("laptop").dialled().len(), dialled, "logged out, and not wished");
}

#[tokio::test]
async fn on_an_unknown_network_there_is_neither_a_listener_nor_a_dial() {
    let world = pair().await;
    let hand = Hand::of(world.node("laptop"), "gpu").await;
    for name in ["laptop", "gpu"] {
        world.node(name).daemon.kill();
    }
    assert!(until(async || ask(&world).await.status == 200).await, "at home");
    // Both are carried to a place with the same addresses and another gateway.
    for name in ["laptop", "gpu"] {
        world.plug(name).carry_to(2);
    }
    world.on_rung("laptop", "alone", "").await;
    assert!(answers(&hand, 0).await, "nothing listens");
    let dialled = world.plug("laptop").dialled().len();
    assert!(ask(&world).await.status >= 400);
    tokio::time::sleep(ms(1500)).await;
    assert_eq!(world.plug("laptop").dialled().len(), dialled, "nobody dials");
    for name in ["laptop", "gpu"] {
        world.plug(name).carry_to(1);
    }
    assert!(until(async || ask(&world).await.status == 200).await, "home again");
}

#[tokio::test]
async fn a_key_nobody_pinned_and_a_key_in_the_wrong_place_get_nothing() {
    let specs = || {
        let counts = |name: &str| NodeSpec::new(name, me(), Some(counting(name, ms(2))));
        vec![NodeSpec::new("laptop", me(), None), counts("gpu"), counts("nas")]
    };
    let world = World::at_home(specs()).await;
    world.sees("laptop", "count:latest", "gpu").await;
    let hand = Hand::of(world.node("laptop"), "gpu").await;
    // A device of another tailnet: the same names, numbers and addresses.
    let other = World::at_home(specs()[..2].to_vec()).await;
    let stranger = Hand::of(other.node("laptop"), "gpu").await;
    assert_ne!(stranger.pin("gpu").key, hand.pin("gpu").key);
    let plugged = Hand::copied(other.node("laptop"), world.plug("laptop"));
    for name in ["laptop", "gpu"] {
        world.node(name).daemon.kill();
    }
    assert!(answers(&hand, 200).await);
    assert_eq!(plugged.status("gpu").await, 0, "it calls for somebody who is not there");

    // Another device takes gpu's address. It is pinned itself, and still not gpu.
    let at = world.plug("gpu").addr();
    world.plug("gpu").cut(true);
    world.plug("gpu").readdress(Ipv4Addr::new(10, 99, 0, 99));
    world.plug("nas").readdress(at);
    let there = || world.plug("nas").listens().contains(&SocketAddr::from((at, 11436)));
    assert!(until(async || there()).await);
    let asked = || world.engine("nas").seen_at("/api/generate").len();
    let before = asked();
    assert!(hand.dial("gpu").await.is_err());
    let answer = world.post("laptop", "/api/generate", count("count@gpu", 3)).send().await;
    assert!(answer.status >= 400, "{}", answer.text());
    assert_eq!(asked(), before);
}
