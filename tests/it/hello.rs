//! How keys become pins: by our own dial over the tailnet, and by nothing else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::Method;
use serde_json::Value;
use tailherd::api::hello::{Departed, HELLO, HelloSay, MEET};
use tailherd::app::control::{PinRow, Said, Which, Wish};
use tailherd::demo::client::get;
use tailherd::demo::engine::ModelSpec;
use tailherd::demo::lan::Switch;
use tailherd::demo::node::NodeSpec;
use tailherd::demo::tailscaled::Owner;
use tailherd::trust::keys::Ring;

use crate::eve::{Answering, CONTENT_TYPE, Eve, now};
use crate::world::{World, engine, me, ms, until};

/// A device without the program.
pub(crate) fn plain(name: &str, owner: Owner) -> NodeSpec {
    NodeSpec { sidecar: false, ..NodeSpec::new(name, owner, None) }
}

/// A desk that runs the program; devices that do not, of several owners; nobody answers a
/// hello yet.
async fn desk() -> World {
    World::start(vec![
        NodeSpec::new("desk", me(), Some(engine("desk", vec![ModelSpec::count("count")]))),
        plain("eve", me()),
        plain("mallory", me()),
        plain("robot", Owner::tag("tag:ollama")),
        plain("stranger", Owner::user("stranger@example.com")),
    ])
    .await
}

pub(crate) async fn pins(world: &World, at: &str) -> Vec<PinRow> {
    match world.node(at).obey(Wish::TrustList).await {
        Some(Said::Pins(rows)) => rows,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn pin(world: &World, at: &str, name: &str) -> Option<PinRow> {
    pins(world, at).await.into_iter().find(|row| row.name == name)
}

pub(crate) async fn state(world: &World, at: &str, name: &str) -> String {
    pin(world, at, name).await.map_or_else(|| "none".to_owned(), |row| row.state)
}

pub(crate) async fn becomes(world: &World, at: &str, name: &str, want: &str) {
    let so = until(async || state(world, at, name).await == want).await;
    assert!(so, "{name} is never {want}: {:?}", pins(world, at).await);
}

impl Eve<'_> {
    /// Says hello to the desk until it holds a live pin of this device, whose answers go on.
    pub(crate) async fn gets_pinned(&self, world: &World, name: &str) -> Answering {
        let answering = self.answers(self.truth("desk").await).await;
        self.hello(world.node("desk"), &self.truth("desk").await).await;
        becomes(world, "desk", name, "live").await;
        answering
    }
}

/// Waits until the desk has entered its tailnet: before that it refuses whoever comes.
pub(crate) async fn ready(world: &World) {
    let eve = Eve::new(world.node("stranger"));
    let listens = async || eve.node.wire(world.node("desk"), 11436).await.is_ok();
    assert!(until(listens).await, "the desk never listens to the tailnet");
    let so = async || {
        let answer = eve.hello(world.node("desk"), &eve.truth("desk").await).await;
        answer.status == 403
    };
    assert!(until(so).await, "the desk never hears anybody");
}

#[tokio::test]
async fn two_programs_pin_each_other_without_being_told() {
    let world =
        World::start(vec![NodeSpec::new("desk", me(), None), NodeSpec::new("laptop", me(), None)])
            .await;
    becomes(&world, "desk", "laptop", "live").await;
    becomes(&world, "laptop", "desk", "live").await;
    let row = pin(&world, "desk", "laptop").await.unwrap();
    assert_eq!((row.owner.as_str(), row.why.as_str()), ("me@example.com", ""));
    assert!(row.verified.is_some_and(|s| s < 60) && row.ends.is_some_and(|s| s > 13 * 86_400));
}

#[tokio::test]
async fn a_pin_is_still_there_after_a_start_without_any_tailnet() {
    let world =
        World::start(vec![NodeSpec::new("desk", me(), None), NodeSpec::new("laptop", me(), None)])
            .await;
    becomes(&world, "desk", "laptop", "live").await;
    let key = pin(&world, "desk", "laptop").await.unwrap().key;
    tokio::time::sleep(ms(500)).await;
    let desk = world.node("desk");
    desk.quit();
    desk.daemon.kill();
    desk.run().await.unwrap();
    becomes(&world, "desk", "laptop", "live").await;
    assert_eq!(pin(&world, "desk", "laptop").await.unwrap().key, key);
}

#[tokio::test]
async fn a_hello_that_means_other_nodes_is_refused_with_its_reason() {
    let world = desk().await;
    ready(&world).await;
    let (desk, eve) = (world.node("desk"), Eve::new(world.node("eve")));
    let truth = eve.truth("desk").await;
    // Somebody else's words, as a relay, a NAT or a replay would bring them.
    let mallory = Eve::new(world.node("mallory"));
    let others = mallory.truth("desk").await;
    let to_another = eve.truth("mallory").await;
    let check = async |say: HelloSay, why: &str| {
        let answer = eve.hello(desk, &say).await;
        assert_eq!(answer.status, 403, "{why}: {}", answer.text());
        assert!(answer.text().contains(why), "{why}: {}", answer.text());
    };
    check(HelloSay { control: "0123456789abcdef".into(), ..truth.clone() }, "tailnet").await;
    check(HelloSay { me: others.me.clone(), ..truth.clone() }, "says it is").await;
    check(HelloSay { you: to_another.you.clone(), ..truth.clone() }, "means by us").await;
    let key = others.my_node_key.clone();
    check(HelloSay { my_node_key: key, ..truth.clone() }, "node key").await;
    let key = to_another.your_node_key.clone();
    check(HelloSay { your_node_key: key, ..truth.clone() }, "knows us by").await;
    check(HelloSay { chain: mallory.ring.chain(), ..truth.clone() }, "key it says").await;
    check(others, "says it is").await;
    check(to_another, "means by us").await;
    assert_eq!(pins(&world, "desk").await, [], "none of them left a trace");
    assert_eq!(eve.hello(desk, &truth).await.status, 200);
}

#[tokio::test]
async fn a_key_that_only_came_in_waits_until_its_node_answers_with_it() {
    let world = desk().await;
    ready(&world).await;
    let (desk, eve) = (world.node("desk"), Eve::new(world.node("eve")));
    let said = eve.hello(desk, &eve.truth("desk").await).await;
    assert_eq!(said.status, 200, "{}", said.text());
    assert_eq!(said.json()["holds"], Value::Null, "nothing is held yet");
    tokio::time::sleep(ms(700)).await;
    assert_eq!(state(&world, "desk", "eve").await, "waits");
    let answering = eve.gets_pinned(&world, "eve").await;
    assert!(answering.count() > 0);
    let said = eve.hello(desk, &eve.truth("desk").await).await;
    assert_eq!(said.json()["holds"], eve.ring.current().to_string());
}

#[tokio::test]
async fn a_key_that_another_node_is_pinned_by_is_refused_and_shown() {
    let world = desk().await;
    ready(&world).await;
    let (desk, eve) = (world.node("desk"), Eve::new(world.node("eve")));
    let _answering = eve.gets_pinned(&world, "eve").await;
    let mut mallory = Eve::new(world.node("mallory"));
    mallory.ring = eve.ring.clone();
    let refused = mallory.hello(desk, &mallory.truth("desk").await).await;
    assert_eq!(refused.status, 403);
    assert!(refused.text().contains("pinned by"), "{}", refused.text());
    assert_eq!(state(&world, "desk", "mallory").await, "none");
    let shown = world.status("desk").await["events"].to_string();
    assert!(shown.contains("mallory") && shown.contains("a hello was refused"), "{shown}");
}

#[tokio::test]
async fn another_key_than_the_pinned_one_does_not_take_its_place() {
    let world = desk().await;
    ready(&world).await;
    let (desk, mut eve) = (world.node("desk"), Eve::new(world.node("eve")));
    let answering = eve.gets_pinned(&world, "eve").await;
    let pinned = pin(&world, "desk", "eve").await.unwrap().key;
    drop(answering);
    eve.ring = Ring::new(now()).unwrap();
    let answering = eve.answers(eve.truth("desk").await).await;
    eve.hello(desk, &eve.truth("desk").await).await;
    let so = until(async || {
        pin(&world, "desk", "eve").await.is_some_and(|row| row.why.contains("another key"))
    });
    assert!(so.await, "{:?}", pins(&world, "desk").await);
    assert!(answering.count() > 0);
    assert_eq!(pin(&world, "desk", "eve").await.unwrap().key, pinned);
    // A person may say otherwise.
    let said = desk.obey(Wish::TrustAccept("eve".to_owned())).await;
    assert!(matches!(said, Some(Said::Done(_))), "{said:?}");
    let row = pin(&world, "desk", "eve").await.unwrap();
    assert_eq!((row.key, row.why), (eve.ring.current().short(), String::new()));
}

#[tokio::test]
async fn a_key_that_the_pinned_one_signed_takes_its_place() {
    let world = desk().await;
    ready(&world).await;
    let (desk, mut eve) = (world.node("desk"), Eve::new(world.node("eve")));
    let answering = eve.gets_pinned(&world, "eve").await;
    drop(answering);
    eve.ring.rotate(now()).unwrap();
    let said = eve.hello(desk, &eve.truth("desk").await).await;
    assert_eq!(said.json()["holds"], eve.ring.current().to_string());
    assert_eq!(pin(&world, "desk", "eve").await.unwrap().key, eve.ring.current().short());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn keys_that_lie_in_memory_are_pinned_for_a_day_only() {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(mounts.contains(" /dev/shm tmpfs "), "this machine has no folder in memory");
    let of = |name: &str, state_in: &str| NodeSpec {
        state_in: Some(state_in.into()),
        ..NodeSpec::new(name, me(), None)
    };
    let nodes = vec![of("desk", env!("CARGO_TARGET_TMPDIR")), of("runner", "/dev/shm")];
    let world = World::start(nodes).await;
    for (at, of, days) in [("desk", "runner", 1), ("runner", "desk", 14)] {
        becomes(&world, at, of, "live").await;
        let ends = pin(&world, at, of).await.unwrap().ends.unwrap();
        assert_eq!(ends.div_ceil(86_400), days, "{of} at {at} ends in {ends} s");
    }
}

#[tokio::test]
async fn who_no_rule_names_is_not_heard_and_not_called_back() {
    let world = desk().await;
    ready(&world).await;
    let (desk, stranger) = (world.node("desk"), Eve::new(world.node("stranger")));
    let answering = stranger.answers(stranger.truth("desk").await).await;
    let answer = stranger.hello(desk, &stranger.truth("desk").await).await;
    assert_eq!(answer.status, 403);
    assert!(answer.text().contains("no rule"), "{}", answer.text());
    tokio::time::sleep(ms(700)).await;
    assert_eq!((answering.count(), pins(&world, "desk").await.len()), (0, 0));
}

#[tokio::test]
async fn hello_is_spoken_inside_tls_by_sidecars_only() {
    let world = desk().await;
    ready(&world).await;
    let (desk, eve) = (world.node("desk"), Eve::new(world.node("eve")));
    let truth = eve.truth("desk").await;
    // Not in plain HTTP, and a meeting not over the tailnet.
    for path in [HELLO, MEET] {
        let call = Eve::call(path, &truth);
        assert_eq!(
            world.node("eve").across(desk, 11436, call).await.unwrap().status,
            404,
            "{path}"
        );
    }
    // Inside TLS there is nothing else.
    let nowhere = ([127, 0, 0, 1], 11436).into();
    for path in ["/api/tags", "/v1/models", "/mesh/v1/ping", "/mesh/v1/offers", "/status", MEET] {
        let call = get(nowhere, path).header("content-type", CONTENT_TYPE);
        assert_eq!(eve.send(desk, call).await.status, 404, "{path}");
    }
    let check = async |name: &'static str, value: &str, want: u16| {
        let answer = eve.send(desk, Eve::call(HELLO, &truth).header(name, value)).await;
        assert_eq!(answer.status, want, "{name}");
    };
    check("origin", "http://127.0.0.1:11436", 403).await;
    check("sec-fetch-site", "cross-site", 403).await;
    check("referer", "http://evil.example/", 403).await;
    check("x-tailherd-hop", "1", 404).await;
    let get = Eve::call(HELLO, &truth).method(Method::GET);
    assert_eq!(eve.send(desk, get).await.status, 404);
    let mut form = Eve::call(HELLO, &truth);
    form.headers.insert("content-type", "text/plain".parse().unwrap());
    assert_eq!(eve.send(desk, form).await.status, 404);
    let mut cut = Eve::call(HELLO, &truth);
    cut.body = cut.body.slice(..40);
    assert_eq!(eve.send(desk, cut).await.status, 400);
    let mut vast = Eve::call(HELLO, &truth);
    vast.body = vec![b' '; 1 << 20].into();
    assert_eq!(eve.send(desk, vast).await.status, 400);
    assert_eq!(pins(&world, "desk").await, []);
}

#[tokio::test]
async fn only_a_device_of_the_same_owner_says_who_left() {
    let world = desk().await;
    ready(&world).await;
    let desk = world.node("desk");
    let names = ["eve", "mallory", "robot"];
    let eves: Vec<Eve<'_>> = names.iter().map(|n| Eve::new(world.node(n))).collect();
    let mut answering = Vec::new();
    for (eve, name) in eves.iter().zip(names) {
        answering.push(eve.gets_pinned(&world, name).await);
    }
    let (eve, mallory, robot) = (&eves[0], &eves[1], &eves[2]);
    let truth = mallory.truth("desk").await;
    let view = eve.view().await;
    let listed = view.peers.iter().find(|p| p.name.as_str() == "mallory").unwrap();
    let created = listed.created.clone();
    let gone =
        || vec![Departed { stable: truth.me.clone(), created: created.clone(), since: now() }];
    let tell = async |by: &Eve<'_>| {
        let say = HelloSay { departed: gone(), ..by.truth("desk").await };
        assert_eq!(by.hello(desk, &say).await.status, 200);
        state(&world, "desk", "mallory").await
    };
    assert_eq!(tell(eve).await, "live", "our own list has it");
    world.net.coordinator(false);
    let away = async || world.status("desk").await["coordinator"]["up"] == false;
    assert!(until(away).await);
    assert_eq!(tell(robot).await, "live", "it is not ours");
    assert_eq!(tell(mallory).await, "live", "nobody speaks of itself");
    // What was vouched for after the word is newer than it; clocks may differ by some minutes.
    assert_eq!(tell(eve).await, "suspended");
    world.net.coordinator(true);
    becomes(&world, "desk", "mallory", "live").await;
}

#[tokio::test]
async fn a_forgotten_pin_is_gone_at_once() {
    let world = desk().await;
    ready(&world).await;
    let (desk, eve) = (world.node("desk"), Eve::new(world.node("eve")));
    let answering = eve.gets_pinned(&world, "eve").await;
    drop(answering);
    let said = desk.obey(Wish::TrustForget("eve".to_owned())).await;
    assert!(matches!(said, Some(Said::Done(_))), "{said:?}");
    assert_eq!(pins(&world, "desk").await, []);
    let said = desk.obey(Wish::TrustForget("eve".to_owned())).await;
    assert!(matches!(said, Some(Said::Failed(_))), "{said:?}");
}

/// Devices of one person on one local network, of which the desk runs the program.
async fn at_home() -> (World, Switch) {
    let switch = Switch::default();
    let on = |spec: NodeSpec, last: u8| spec.on(&switch, Ipv4Addr::new(10, 99, 0, last));
    let world = World::start(vec![
        on(NodeSpec::new("desk", me(), None), 11),
        on(plain("eve", me()), 12),
        on(plain("stranger", Owner::user("stranger@example.com")), 13),
    ])
    .await;
    (world, switch)
}

#[tokio::test]
async fn of_the_addresses_a_hello_names_only_devices_on_the_link_are_dialled() {
    let (world, _switch) = at_home().await;
    ready(&world).await;
    let (desk, eve) = (world.node("desk"), Eve::new(world.node("eve")));
    // This machine, a cloud's secrets, the world, the tailnet; the gateway, ourselves,
    // everybody; off-link; and at last where it is.
    let named = ["127.0.0.1", "169.254.169.254", "8.8.8.8", "100.64.0.9", "10.99.0.1"];
    let more = ["10.99.0.11", "10.99.0.255", "10.98.0.7"];
    for (names, home) in [(&named[..], "10.99.0.12"), (&more[..], "10.99.0.12")] {
        let lan: Vec<IpAddr> = names.iter().chain([&home]).map(|ip| ip.parse().unwrap()).collect();
        let say = HelloSay { lan, ..eve.truth("desk").await };
        let _answering = eve.answers(say.clone()).await;
        eve.hello(desk, &say).await;
        becomes(&world, "desk", "eve", "live").await;
        let home = SocketAddr::new(home.parse().unwrap(), 11436);
        let plug = desk.lan().unwrap();
        assert!(until(async || plug.dialled().contains(&home)).await, "{:?}", plug.dialled());
        tokio::time::sleep(ms(700)).await;
        assert!(plug.dialled().iter().all(|to| *to == home), "{:?}", plug.dialled());
    }
}

#[tokio::test]
async fn on_a_network_where_no_pinned_device_was_met_nothing_is_dialled_until_a_person_allows_it() {
    let (world, _switch) = at_home().await;
    ready(&world).await;
    let (desk, eve) = (world.node("desk"), Eve::new(world.node("eve")));
    // The tunnel between the two leads elsewhere.
    for node in &world.nodes {
        node.daemon.link(None);
    }
    let say = HelloSay { lan: vec!["10.99.0.12".parse().unwrap()], ..eve.truth("desk").await };
    let _answering = eve.answers(say.clone()).await;
    eve.hello(desk, &say).await;
    becomes(&world, "desk", "eve", "live").await;
    tokio::time::sleep(ms(1000)).await;
    let plug = desk.lan().unwrap();
    assert_eq!((plug.dialled(), plug.listens()), (vec![], vec![]));
    let said = desk.obey(Wish::LanAllow { seconds: Some(3600) }).await;
    assert!(matches!(&said, Some(Said::Done(text)) if text.contains("lan0")), "{said:?}");
    let home = SocketAddr::from(([10, 99, 0, 12], 11436));
    assert!(until(async || plug.dialled().contains(&home)).await, "never dialled");
    let said = desk.obey(Wish::LanAllow { seconds: None }).await;
    assert!(matches!(said, Some(Said::Failed(_))), "there is none left to allow: {said:?}");
    // It is listed, and taken back: nobody listens there any more.
    assert!(until(async || !plug.listens().is_empty()).await);
    let rows = match desk.obey(Wish::LanList).await {
        Some(Said::Networks(rows)) => rows,
        other => panic!("{other:?}"),
    };
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!(
        (row.how.as_str(), row.here.as_slice()),
        ("allowed", &["lan0 10.99.0.0/24".to_owned()][..])
    );
    assert!(row.ends.is_some_and(|ends| ends <= 3600), "{row:?}");
    let said = desk.obey(Wish::LanForget(Which::Here)).await;
    assert!(matches!(said, Some(Said::Done(_))), "{said:?}");
    let forgotten = desk.obey(Wish::LanForget(Which::All)).await;
    assert!(matches!(forgotten, Some(Said::Failed(_))), "there is none left: {forgotten:?}");
    let again =
        async || matches!(desk.obey(Wish::LanAllow { seconds: None }).await, Some(Said::Done(_)));
    assert!(until(again).await, "it is used all the same");
}
