//! Two devices of different tailnets, whose keys two people exchanged: what they are to each
//! other on the local network, for how long, and what they are not.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use tailherd::app::control::{AddKey, Said, Wish};
use tailherd::demo::client::Answer;
use tailherd::demo::lan::Switch;
use tailherd::demo::node::{Node, NodeSpec};
use tailherd::demo::tailscaled::{Owner, Tailnet};
use tailherd::types::{PublicKey, Timing, Verb};

use crate::hello::{pin, state};
use crate::world::{Sends as _, World, count, counting, me, ms, served_by, until};

const LAPTOP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 11);
const DESK: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 12);

/// The rule that lets the laptop's prompts go to the desk.
fn rule() -> Value {
    json!({ "sendTo": [{ "to": ["pin:desk"] }] })
}

/// A laptop of mine with this configuration, and a friend's desk that counts: one local
/// network, two tailnets.
async fn friends(config: Value) -> World {
    let switch = Switch::default();
    let mine = Tailnet::new("https://mine.example", "mine.example");
    let theirs = Tailnet::new("https://theirs.example", "theirs.example");
    let laptop = NodeSpec::new("laptop", me(), None).on(&switch, LAPTOP).with(config);
    let models = Some(counting("desk", ms(2)));
    let desk = NodeSpec::new("desk", Owner::user("friend@example.com"), models).on(&switch, DESK);
    let laptop = Node::start(&mine, laptop, Timing::shrunk()).await.unwrap();
    let desk = Node::start(&theirs, desk, Timing::shrunk()).await.unwrap();
    World { net: mine, nodes: vec![laptop, desk] }
}

async fn done(world: &World, at: &str, wish: Wish) -> String {
    match world.node(at).obey(wish).await {
        Some(Said::Done(text)) => text,
        other => panic!("{at}: {other:?}"),
    }
}

/// A node's key, once it has one.
async fn key(world: &World, of: &str) -> PublicKey {
    let node = world.node(of);
    let has = async || matches!(node.obey(Wish::TrustExport).await, Some(Said::Done(_)));
    assert!(until(has).await, "{of} never has a key");
    let command = done(world, of, Wish::TrustExport).await;
    command.rsplit(' ').next().unwrap().parse().unwrap()
}

/// A person adds `of`'s key at a node, and lets it use the network it is on.
async fn add(world: &World, at: &str, of: &str, seconds: u64, addrs: &[Ipv4Addr]) -> String {
    // Without a key of its own a node adds none.
    let _ = key(world, at).await;
    let key = key(world, of).await;
    let (verbs, models) = (vec![Verb::List, Verb::Infer], vec!["*".to_owned()]);
    let addrs = addrs.iter().copied().map(IpAddr::V4).collect();
    let add = AddKey { name: of.to_owned(), key, verbs, models, seconds, addrs };
    let said = done(world, at, Wish::TrustAdd(add)).await;
    let waits = async || world.status(at).await["lan"]["unknown"] != json!([]);
    if world.status(at).await["lan"]["links"] == json!([]) {
        assert!(until(waits).await, "{at}: {}", world.status(at).await["lan"]);
        done(world, at, Wish::LanAllow { seconds: None }).await;
    }
    said
}

async fn exchanged(world: &World, laptops: u64, desks: u64) -> String {
    add(world, "desk", "laptop", desks, &[]).await;
    let listens = async || !world.node("desk").lan().unwrap().listens().is_empty();
    assert!(until(listens).await, "{}", world.status("desk").await["lan"]);
    add(world, "laptop", "desk", laptops, &[DESK]).await
}

async fn ask(world: &World) -> Answer {
    world.post("laptop", "/api/generate", count("count", 3)).send().await
}

fn dialled(world: &World) -> Vec<SocketAddr> {
    world.node("laptop").lan().unwrap().dialled()
}

#[tokio::test]
async fn a_rule_that_names_an_added_key_sends_prompts_to_its_holder() {
    let world = friends(rule()).await;
    let said = exchanged(&world, 3600, 3600).await;
    assert!(said.contains("prompts may go to it (sendTo[0])"), "{said}");
    world.sees("laptop", "count:latest", "desk").await;
    let answer = ask(&world).await;
    assert_eq!((answer.status, answer.said().as_str()), (200, " 1 2 3"), "{}", answer.text());
    assert_eq!(served_by(&answer), "desk");

    let status = world.status("laptop").await;
    let peer = &status["peers"][0];
    assert_eq!((&peer["id"], &peer["path"]), (&json!("pin/desk"), &json!("lan")), "{peer:#}");
    assert_eq!(peer["owner"], Value::Null, "nobody owns it");
    // The tailnet never carried it, so that the local network does says nothing about that.
    assert_eq!((&status["rung"], &status["why"]), (&json!("full"), &json!("no_peer")));
    let row = pin(&world, "laptop", "desk").await.unwrap();
    assert_eq!((row.state.as_str(), row.owner.as_str()), ("live", ""));
    assert_eq!(row.why, "added by hand, as pin:desk");
    assert!(row.ends.is_some_and(|s| (3500..=3600).contains(&s)), "{row:?}");

    // What was said of the laptop at the desk is no rule about where the desk's prompts go.
    let unused = &world.status("desk").await["peers"][0];
    assert_eq!((&unused["name"], &unused["kind"]), (&json!("laptop"), &Value::Null));
    assert_eq!(unused["why"], "not in sendTo (as pin:laptop)");
    assert!(world.node("desk").lan().unwrap().dialled().is_empty());
}

#[tokio::test]
async fn without_the_rule_nothing_is_sent_to_the_holder_of_an_added_key() {
    for none in [json!({}), json!({ "sendTo": [{ "to": ["*", "pin:other"] }] })] {
        let world = friends(none).await;
        let said = exchanged(&world, 3600, 3600).await;
        assert!(said.contains("before sendTo names pin:desk"), "{said}");
        tokio::time::sleep(ms(1000)).await;
        assert!(ask(&world).await.status >= 400);
        assert_eq!(dialled(&world), [], "not even to meet it");
    }
    let world = friends(rule()).await;
    exchanged(&world, 3600, 3600).await;
    world.sees("laptop", "count:latest", "desk").await;
    world.node("laptop").configure(json!({})).unwrap();
    let gone = async || world.status("laptop").await["peers"][0]["kind"].is_null();
    assert!(until(gone).await, "{:#}", world.status("laptop").await["peers"]);
    world.engine("desk").forget();
    let before = dialled(&world).len();
    tokio::time::sleep(ms(1000)).await;
    assert!(ask(&world).await.status >= 400);
    assert_eq!(
        (dialled(&world).len(), world.engine("desk").seen_at("/api/generate").len()),
        (before, 0)
    );
    world.node("laptop").configure(rule()).unwrap();
    world.sees("laptop", "count:latest", "desk").await;
}

#[tokio::test]
async fn an_added_key_ends_at_its_time_on_either_side() {
    for (laptops, desks, ends, other) in [(5, 3600, "laptop", "desk"), (3600, 5, "desk", "laptop")]
    {
        let world = friends(rule()).await;
        exchanged(&world, laptops, desks).await;
        world.sees("laptop", "count:latest", "desk").await;
        assert_eq!(ask(&world).await.status, 200);
        let over = async || state(&world, ends, other).await == "expired";
        assert!(until(over).await, "{}", state(&world, ends, other).await);
        world.engine("desk").forget();
        let dead = async || ask(&world).await.status >= 400;
        assert!(until(dead).await, "{ends}: still answered");
        assert!(ask(&world).await.status >= 400);
        assert_eq!(world.engine("desk").seen_at("/api/generate").len(), 0, "{ends}");
        let listed = world.status("laptop").await["peers"].as_array().unwrap().len();
        assert_eq!(listed, usize::from(ends == "desk"), "only its own end takes a peer away");
    }
}

#[tokio::test]
async fn what_cannot_be_added_is_refused_with_what_to_do() {
    let world = friends(json!({})).await;
    let key = key(&world, "desk").await;
    let add = |addrs: Vec<IpAddr>| {
        let (verbs, models) = (vec![Verb::List], vec!["*".to_owned()]);
        Wish::TrustAdd(AddKey { name: "desk".into(), key, verbs, models, seconds: 60, addrs })
    };
    for (addrs, why) in [
        (vec![Ipv4Addr::LOCALHOST], "127.0.0.1 is no address of a device on a local network"),
        (vec![DESK, Ipv4Addr::new(100, 64, 0, 2)], "100.64.0.2 is no address"),
        (vec![DESK; 9], "at most 8 addresses"),
    ] {
        let said =
            world.node("laptop").obey(add(addrs.into_iter().map(IpAddr::V4).collect())).await;
        assert!(matches!(&said, Some(Said::Failed(text)) if text.starts_with(why)), "{said:?}");
    }
    assert!(pin(&world, "laptop", "desk").await.is_none());
    let lone = Tailnet::new("https://none.example", "none.example");
    let lone =
        Node::join(&lone, NodeSpec::new("lone", me(), None), Timing::shrunk()).await.unwrap();
    lone.daemon.kill();
    lone.run().await.unwrap();
    let said = lone.obey(add(Vec::new())).await;
    assert!(
        matches!(&said, Some(Said::Failed(text)) if text.contains("start tailherd once")),
        "{said:?}"
    );
}
