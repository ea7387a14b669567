//! What a pinned device may do on the local network, and what nobody may.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::json;
use tailherd::api::hello::{Departed, HELLO, MEET};
use tailherd::app::control::{Said, Wish};
use tailherd::demo::client::{Answer, Call, get, post};
use tailherd::demo::engine::ModelSpec;
use tailherd::demo::lan::Switch;
use tailherd::demo::node::NodeSpec;
use tailherd::trust::keys::Ring;
use tailherd::types::PublicKey;
use tokio::io::AsyncReadExt as _;

use crate::eve::{Answering, CONTENT_TYPE, Eve, now};
use crate::hello::{plain, ready, state};
use crate::world::{World, count, engine, me, ms, until};

/// A desk that runs the program, and two devices that do not, of one person on one network.
async fn home() -> World {
    let switch = Switch::default();
    let on = |spec: NodeSpec, last: u8| spec.on(&switch, Ipv4Addr::new(10, 99, 0, last));
    let models = engine("desk", vec![ModelSpec::count("count")]);
    let world = World::start(vec![
        on(NodeSpec::new("desk", me(), Some(models)), 11),
        on(plain("eve", me()), 12),
        on(plain("mallory", me()), 13),
        plain("stranger", tailherd::demo::tailscaled::Owner::user("stranger@example.com")),
    ])
    .await;
    ready(&world).await;
    world
}

/// Eve with a live pin, and the desk's key.
async fn pinned<'a>(world: &'a World, name: &str) -> (Eve<'a>, PublicKey, Answering) {
    let (desk, eve) = (world.node("desk"), Eve::new(world.node(name)));
    let answering = eve.gets_pinned(world, name).await;
    let listens = until(async || !desk.lan().unwrap().listens().is_empty()).await;
    assert!(listens, "the desk never listens on the local network");
    (eve.clone(), eve.key_of(desk).await, answering)
}

async fn on_lan(eve: &Eve<'_>, world: &World, key: PublicKey, call: Call) -> Answer {
    let io = eve.call_on_lan(world.node("desk"), key).await.unwrap();
    call.open_on(io).await.unwrap().rest().await
}

fn meet(body: serde_json::Value) -> Call {
    let nowhere = ([127, 0, 0, 1], 11436).into();
    post(nowhere, MEET, body.to_string()).header("content-type", CONTENT_TYPE)
}

fn ask() -> Call {
    post(([127, 0, 0, 1], 11436).into(), "/api/generate", count("count", 3))
}

#[tokio::test]
async fn a_device_without_a_live_pin_gets_no_further_than_its_key() {
    let world = home().await;
    let (eve, key, _answering) = pinned(&world, "eve").await;
    let desk = world.node("desk");
    assert!(eve.call_on_lan(desk, key).await.is_ok());
    let mallory = Eve::new(world.node("mallory"));
    assert!(mallory.call_on_lan(desk, key).await.is_err(), "never said hello");
    let said = mallory.hello(desk, &mallory.truth("desk").await).await;
    assert_eq!((said.status, state(&world, "desk", "mallory").await.as_str()), (200, "waits"));
    assert!(mallory.call_on_lan(desk, key).await.is_err(), "nobody has dialled it yet");
    let other = Eve { ring: Ring::new(now()).unwrap(), ..eve.clone() };
    assert!(other.call_on_lan(desk, key).await.is_err(), "eve's address, another key");
}

#[tokio::test]
async fn the_local_network_answers_only_while_the_tailnet_cannot() {
    let world = home().await;
    let (eve, key, _answering) = pinned(&world, "eve").await;
    let met = on_lan(&eve, &world, key, meet(json!({}))).await;
    assert_eq!((met.status, met.json()["admit"].as_str()), (200, Some("tailnet")));
    assert_eq!(met.json()["lan"], json!(["10.99.0.11"]));
    assert_eq!(on_lan(&eve, &world, key, ask()).await.status, 421);
    world.node("eve").daemon.kill();
    let admitted =
        async || on_lan(&eve, &world, key, meet(json!({}))).await.json()["admit"] == "yes";
    assert!(until(admitted).await, "never admitted");
    let answer = on_lan(&eve, &world, key, ask()).await;
    assert_eq!((answer.status, answer.said().as_str()), (200, " 1 2 3"));
}

#[tokio::test]
async fn no_hello_and_no_page_comes_in_by_the_local_network() {
    let world = home().await;
    let (eve, key, _answering) = pinned(&world, "eve").await;
    let truth = eve.truth("desk").await;
    world.node("eve").daemon.kill();
    let admitted =
        async || on_lan(&eve, &world, key, meet(json!({}))).await.json()["admit"] == "yes";
    assert!(until(admitted).await, "never admitted");
    assert_eq!(on_lan(&eve, &world, key, Eve::call(HELLO, &truth)).await.status, 404);
    for (name, value, want) in [
        ("origin", "http://10.99.0.11:11436", 403),
        ("sec-fetch-site", "same-origin", 403),
        ("x-tailherd-hop", "1", 404),
    ] {
        let met = on_lan(&eve, &world, key, meet(json!({})).header(name, value)).await;
        assert_eq!(met.status, want, "{name}");
    }
    let mut form = meet(json!({}));
    form.headers.insert("content-type", "text/plain".parse().unwrap());
    assert_eq!(on_lan(&eve, &world, key, form).await.status, 404);
    let long = vec!["10.0.0.1"; 9];
    assert_eq!(on_lan(&eve, &world, key, meet(json!({ "lan": long }))).await.status, 400);
    let nowhere: SocketAddr = ([127, 0, 0, 1], 11436).into();
    let ping = get(nowhere, "/mesh/v1/ping").header("content-type", CONTENT_TYPE);
    assert_eq!(on_lan(&eve, &world, key, ping).await.status, 204);
}

#[tokio::test]
async fn a_connection_ends_with_the_pin_it_stands_on() {
    let world = home().await;
    let (eve, key, answering) = pinned(&world, "eve").await;
    let desk = world.node("desk");
    let mut io = eve.call_on_lan(desk, key).await.unwrap();
    drop(answering);
    let said = desk.obey(Wish::TrustForget("eve".to_owned())).await;
    assert!(matches!(said, Some(Said::Done(_))), "{said:?}");
    let ended = tokio::time::timeout(ms(1000), io.read_u8()).await;
    assert!(matches!(ended, Ok(Err(_))), "{ended:?}");
    assert!(eve.call_on_lan(desk, key).await.is_err());
}

#[tokio::test]
async fn a_device_that_moved_is_found_where_it_came_from() {
    let world = home().await;
    let (eve, key, _answering) = pinned(&world, "eve").await;
    let (desk, moved) = (world.node("desk"), Ipv4Addr::new(10, 99, 0, 77));
    world.net.coordinator(false);
    world.node("eve").lan().unwrap().readdress(moved);
    eve.call_on_lan(desk, key).await.unwrap();
    let there = SocketAddr::from((moved, 11436));
    let dialled = async || desk.lan().unwrap().dialled().contains(&there);
    assert!(until(dialled).await, "{:?}", desk.lan().unwrap().dialled());
}

#[tokio::test]
async fn who_left_is_heard_of_by_the_local_network_too() {
    let world = home().await;
    let (eve, key, _eves) = pinned(&world, "eve").await;
    let (mallory, _, _mallorys) = pinned(&world, "mallory").await;
    let stable = mallory.truth("desk").await.me;
    let view = eve.view().await;
    let listed = view.peers.iter().find(|p| p.name.as_str() == "mallory").unwrap();
    let created = listed.created.clone();
    let gone = Departed { stable, created, since: now() + std::time::Duration::from_secs(1) };
    world.net.coordinator(false);
    let away = async || world.status("desk").await["coordinator"]["up"] == false;
    assert!(until(away).await);
    let say = json!({ "departed": [gone] });
    assert_eq!(on_lan(&eve, &world, key, meet(say)).await.status, 200);
    assert_eq!(state(&world, "desk", "mallory").await, "suspended");
    assert!(mallory.call_on_lan(world.node("desk"), key).await.is_err());
}
