//! What the writer promises, as tables of events.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::candidates::Need;
use super::event::{Event, Grant, Identity, ModelListing, Settings};
use super::saved::Scope;
use super::testing::{dial, engine, id, lan, listing, model, peer};
use super::writer::{State, apply};
use super::{Registry, Snapshot, build};
use crate::types::{Api, Capabilities, ClientKind, ModelKey, Moment, NodeKind, NodeName};

/// A writer without its task.
struct World {
    state: State,
    now: Moment,
}

impl World {
    fn new() -> World {
        let this = Identity::lone(NodeName::parse("laptop").unwrap());
        let state = State::new(Settings::default(), this, Arc::new(Registry::default()));
        World { state, now: Moment::from_millis(1_000_000) }
    }

    fn with(peers: &[(&str, u8)]) -> World {
        let mut world = World::new();
        world.tell(Event::Peers(peers.iter().map(|(name, last)| peer(name, *last)).collect()));
        world
    }

    fn tell(&mut self, event: Event) -> bool {
        apply(&mut self.state, event, self.now)
    }

    fn local(&mut self, models: Vec<ModelListing>) -> bool {
        self.tell(Event::Local(vec![engine("ollama", models)]))
    }

    fn lists(&mut self, name: &str, last: u8, models: Vec<ModelListing>) -> bool {
        self.tell(Event::Listed { node: id(name), listing: listing(last, models) })
    }

    fn dies(&mut self, name: &str, last: u8) -> bool {
        self.state.cells.path(&id(name), &dial(last)).lost();
        self.tell(Event::Paths(id(name)))
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
    }

    fn see(&mut self) -> Snapshot {
        build::snapshot(&mut self.state, self.now)
    }

    /// `model: node node | variant-node` for all models, in order.
    fn table(&mut self) -> Vec<String> {
        let names = |of: &[Arc<super::Offer>]| {
            of.iter().map(|o| o.node.name.to_string()).collect::<Vec<_>>().join(" ")
        };
        let row = |m: &super::Model| match m.variants.is_empty() {
            true => format!("{}: {}", m.key, names(&m.offers)),
            false => format!("{}: {} | {}", m.key, names(&m.offers), names(&m.variants)),
        };
        self.see().models.values().map(|m| row(m)).collect()
    }

    fn tags(&mut self) -> Vec<String> {
        rows(&self.see().unions.tags, "models", "name")
    }
}

fn rows(json: &[u8], list: &str, field: &str) -> Vec<String> {
    let json: Value = serde_json::from_slice(json).unwrap();
    let rows = json[list].as_array().unwrap();
    rows.iter().map(|row| row[field].as_str().unwrap().to_owned()).collect()
}

fn key(name: &str) -> ModelKey {
    ModelKey::parse(name).unwrap()
}

fn with_digest(name: &str, digest: &str) -> ModelListing {
    ModelListing { digest: Some(crate::types::Digest(digest.into())), ..model(name) }
}

#[test]
fn this_node_stands_first_and_a_name_is_one_model_with_all_its_nodes() {
    let mut w = World::with(&[("gpu", 2), ("desk", 3)]);
    w.lists("gpu", 2, vec![model("tiny"), model("big")]);
    w.lists("desk", 3, vec![model("TINY:latest")]);
    w.local(vec![model("tiny:latest")]);
    assert_eq!(w.table(), ["big:latest: gpu", "tiny:latest: laptop desk gpu"]);
    let snapshot = w.see();
    let nodes: Vec<_> = snapshot.nodes.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(nodes, ["laptop", "desk", "gpu"]);
}

#[test]
fn a_name_is_routed_inside_one_class() {
    let mut w = World::with(&[("gpu", 2), ("desk", 3), ("nas", 4)]);
    w.lists("gpu", 2, vec![with_digest("m", "aa")]);
    w.lists("desk", 3, vec![with_digest("m", "bb")]);
    w.lists("nas", 4, vec![with_digest("m", "bb")]);
    assert_eq!(w.table(), ["m:latest: desk nas | gpu"], "the largest class");
    w.local(vec![with_digest("m", "aa")]);
    assert_eq!(w.table(), ["m:latest: laptop gpu | desk nas"], "the local copy's class");
    w.tell(Event::Settings(Settings { merge: true, ..Settings::default() }));
    assert_eq!(w.table(), ["m:latest: laptop desk gpu nas"]);
}

#[test]
fn equal_content_is_one_class_although_digests_differ() {
    let with_content = |digest: &str| ModelListing { content: Some(7), ..with_digest("m", digest) };
    let mut w = World::with(&[("gpu", 2), ("desk", 3)]);
    w.local(vec![with_content("aa")]);
    w.lists("gpu", 2, vec![with_content("bb")]);
    // Its `show` was not read yet, but the digest is known from another copy.
    w.lists("desk", 3, vec![with_digest("m", "bb")]);
    assert_eq!(w.table(), ["m:latest: laptop desk gpu"]);
}

#[test]
fn embeddings_never_change_their_class_by_themselves() {
    let embed = |digest: &str| {
        let mut m = with_digest("e", digest);
        m.capabilities.embedding = true;
        m
    };
    let mut w = World::with(&[("desk", 2), ("gpu", 3), ("nas", 4)]);
    w.tell(Event::Settings(Settings { merge: true, ..Settings::default() }));
    w.lists("desk", 2, vec![embed("aa"), with_digest("m", "aa")]);
    w.lists("gpu", 3, vec![embed("aa"), with_digest("m", "aa")]);
    w.lists("nas", 4, vec![embed("bb"), with_digest("m", "bb")]);
    assert_eq!(w.table(), ["e:latest: desk gpu | nas", "m:latest: desk gpu nas"]);
    w.tell(Event::Settings(Settings::default()));
    w.dies("desk", 2);
    w.dies("gpu", 3);
    assert_eq!(w.table(), ["e:latest:  | nas", "m:latest: nas"]);
    assert!(w.see().lingering.contains_key(&key("e")));
}

#[test]
fn what_a_grant_does_not_name_is_absent() {
    let mut w = World::new();
    let grant = Grant { rich: vec!["qwen*".into(), "tiny".into()], bare: vec![] };
    w.tell(Event::Peers(vec![super::Peer { grant, ..peer("gpu", 2) }]));
    w.lists("gpu", 2, vec![model("qwen3:8b"), model("tiny"), model("secret")]);
    assert_eq!(w.table(), ["qwen3:8b: gpu", "tiny:latest: gpu"]);
    let text = format!("{:?}", w.see());
    assert!(!text.contains("secret"), "nowhere in the snapshot");
}

#[test]
fn a_node_that_is_no_longer_allowed_is_gone_at_once() {
    let mut w = World::with(&[("gpu", 2), ("desk", 3)]);
    w.lists("gpu", 2, vec![model("a")]);
    w.lists("desk", 3, vec![model("b")]);
    assert_eq!(w.tags().len(), 2);
    w.tell(Event::Peers(vec![peer("desk", 3)]));
    assert_eq!(w.tags(), ["b"]);
    assert!(w.see().lingering.is_empty());
    assert!(!w.lists("gpu", 2, vec![model("a")]), "a late answer counts for nothing");
    assert_eq!(w.tags(), ["b"]);
}

#[test]
fn a_model_lingers_in_the_lists_and_then_only_gives_the_words_of_a_404() {
    let mut w = World::with(&[("gpu", 2), ("desk", 3)]);
    w.lists("gpu", 2, vec![model("a"), model("both")]);
    w.lists("desk", 3, vec![model("both")]);
    w.wait(10);
    assert!(w.dies("gpu", 2));
    assert_eq!(w.table(), ["both:latest: desk"]);
    assert_eq!(w.tags(), ["both", "a"]);
    w.wait(59);
    assert_eq!(w.tags().len(), 2);
    assert_eq!(build::next_change(&w.state, w.now), Some(Duration::from_secs(1)));
    // The moment passes while something else is looked at: it is made up for at once.
    w.wait(1);
    assert_eq!(build::next_change(&w.state, w.now), Some(Duration::ZERO));
    assert_eq!(w.tags(), ["both"]);
    let snapshot = w.see();
    let lost = &snapshot.lingering[&key("a")];
    assert_eq!((lost.node.as_str(), lost.age(w.now)), ("gpu", Duration::from_secs(70)));
    assert_eq!(build::next_change(&w.state, w.now), None);

    // It comes back, and goes again: the wait begins anew.
    w.lists("gpu", 2, vec![model("a"), model("both")]);
    assert_eq!(w.table(), ["a:latest: gpu", "both:latest: desk gpu"]);
    assert!(w.see().lingering.is_empty());
    w.dies("gpu", 2);
    assert_eq!(w.tags().len(), 2);
}

#[test]
fn what_a_sleeping_node_has_lingers_for_a_quarter_of_an_hour() {
    use crate::api::report::Accepting;
    let mut w = World::with(&[("gpu", 2), ("desk", 3)]);
    let says = |whom, why: &str, last| super::Listing {
        accepting: Some((whom, why.to_owned())),
        ..listing(last, vec![model(if last == 2 { "a" } else { "b" })])
    };
    for (name, last, why) in [("gpu", 2, "going to sleep"), ("desk", 3, "paused")] {
        let listing = says(Accepting::None, why, last);
        w.tell(Event::Listed { node: id(name), listing });
        w.dies(name, last);
    }
    assert_eq!(w.tags(), ["a", "b"]);
    w.wait(60);
    assert_eq!(w.tags(), ["a"], "a pause is no sleep");
    assert!(w.see().lingering[&key("a")].asleep && !w.see().lingering[&key("b")].asleep);
    assert_eq!(build::next_change(&w.state, w.now), Some(Duration::from_secs(840)));
    w.wait(840);
    assert!(w.tags().is_empty());
    // It wakes, and says nothing of sleep any more.
    w.tell(Event::Listed { node: id("gpu"), listing: says(Accepting::All, "", 2) });
    assert_eq!(w.table(), ["a:latest: gpu"]);
    w.dies("gpu", 2);
    assert!(!w.see().lingering[&key("a")].asleep);
}

#[test]
fn a_model_that_was_removed_does_not_linger() {
    let mut w = World::with(&[("gpu", 2)]);
    w.lists("gpu", 2, vec![model("a"), model("b")]);
    w.lists("gpu", 2, vec![model("b")]);
    assert_eq!(w.tags(), ["b"]);
}

#[test]
fn an_own_engine_that_is_down_lingers_too() {
    let mut w = World::new();
    w.local(vec![model("a")]);
    assert_eq!(w.table(), ["a:latest: laptop"]);
    let mut down = engine("ollama", vec![model("a")]);
    down.up = false;
    w.tell(Event::Local(vec![down]));
    assert_eq!(w.table(), [""; 0]);
    assert_eq!(w.tags(), ["a"]);
    assert!(!w.see().nodes[0].endpoints[0].up);
    w.wait(60);
    assert_eq!(w.tags(), [""; 0]);
}

#[test]
fn a_node_that_was_rich_is_never_bare() {
    let mut w = World::with(&[("gpu", 2)]);
    w.lists("gpu", 2, vec![model("a")]);
    let mut bare = listing(2, vec![model("b")]);
    bare.kind = NodeKind::Bare;
    assert!(!w.tell(Event::Listed { node: id("gpu"), listing: bare.clone() }));
    assert_eq!(w.table(), ["a:latest: gpu"]);

    // The other way round is an installation.
    let mut w = World::with(&[("gpu", 2)]);
    w.tell(Event::Listed { node: id("gpu"), listing: bare });
    assert_eq!(w.table(), ["b:latest: gpu"]);
    w.lists("gpu", 2, vec![model("a")]);
    assert_eq!(w.table(), ["a:latest: gpu"]);
}

#[test]
fn another_tailnet_does_not_wipe_what_was_known_of_the_first() {
    let mut w = World::with(&[("gpu", 2)]);
    w.lists("gpu", 2, vec![model("a")]);
    w.state.cells.offer(&id("gpu"), &"ollama".into(), &key("a")).decode.set(9.0);
    let home = Scope::of(&id("gpu"));
    w.tell(Event::Peers(vec![]));
    assert!(w.tags().is_empty(), "home and work do not mix");
    let memory = w.state.memory(&home, w.now);
    assert_eq!((memory.len(), memory[0].rates[0].decode), (1, 9.0));

    w.tell(Event::Peers(vec![peer("gpu", 2)]));
    let mut bare = listing(2, vec![model("b")]);
    bare.kind = NodeKind::Bare;
    assert!(!w.tell(Event::Listed { node: id("gpu"), listing: bare }), "it was rich");
    w.lists("gpu", 2, vec![model("a")]);
    assert_eq!(w.see().models[&key("a")].offers[0].cell.decode.get(), 9.0);
}

#[test]
fn stubs_of_hosted_models_stay_with_their_owner() {
    let stub = || ModelListing { remote: true, ..model("glm:cloud") };
    let mut w = World::with(&[("nas", 2)]);
    let mut bare = listing(2, vec![stub(), model("a")]);
    bare.kind = NodeKind::Bare;
    w.tell(Event::Listed { node: id("nas"), listing: bare });
    assert_eq!(w.table(), ["a:latest: nas"]);
    w.local(vec![stub()]);
    assert_eq!(w.table(), ["a:latest: nas", "glm:cloud: laptop"]);
    w.tell(Event::Settings(Settings { offline: true, ..Settings::default() }));
    assert_eq!(w.table(), ["a:latest: nas"]);
    assert_eq!(w.tags(), ["a"]);
}

#[test]
fn hidden_models_answer_to_their_name_and_stand_in_no_list() {
    let mut w = World::new();
    w.local(vec![model("a"), model("b"), model("c:1b")]);
    let settings = Settings {
        show: vec!["a".into(), "c*".into()],
        hide: vec!["*:1b".into()],
        ..Settings::default()
    };
    w.tell(Event::Settings(settings));
    assert_eq!(w.tags(), ["a"]);
    assert_eq!(w.table().len(), 3);
}

#[test]
fn numbers_change_cells_and_no_snapshot() {
    let mut w = World::with(&[("gpu", 2)]);
    let busy =
        |n| ModelListing { queued: n, running: 1, loaded_ctx: 4096, loading: true, ..model("a") };
    w.lists("gpu", 2, vec![busy(0)]);
    let before = w.see();
    assert!(!w.lists("gpu", 2, vec![busy(3)]), "no new snapshot");
    let cell = &before.models[&key("a")].offers[0].cell;
    use std::sync::atomic::Ordering::Relaxed;
    assert_eq!((cell.queued.load(Relaxed), cell.loaded_ctx.load(Relaxed)), (3, 4096));
    w.local(vec![model("a")]);
    let after = w.see();
    assert!(Arc::ptr_eq(cell, &after.models[&key("a")].offers[1].cell), "cells survive rebuilds");
    assert_eq!(before.nodes[1].endpoints[0].id, after.nodes[1].endpoints[0].id);
}

#[test]
fn an_address_that_moved_to_another_node_is_not_dialled() {
    let mut w = World::with(&[("gpu", 2)]);
    w.lists("gpu", 2, vec![model("a")]);
    assert_eq!(w.see().nodes[1].paths.len(), 1);
    w.tell(Event::Peers(vec![peer("gpu", 9)]));
    assert_eq!(w.see().nodes[1].paths.len(), 0);
    assert_eq!(w.table(), [""; 0]);
}

#[test]
fn every_node_has_a_name_of_its_own() {
    let mut w = World::new();
    let mut other = peer("x", 3);
    other.who.name = NodeName::parse("laptop").unwrap();
    let mut me = peer("y", 4);
    me.who.name = NodeName::parse("self").unwrap();
    w.tell(Event::Peers(vec![other, me]));
    w.lists("x", 3, vec![model("a")]);
    w.lists("y", 4, vec![model("a")]);
    let snapshot = w.see();
    let names: Vec<_> = snapshot.nodes.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["laptop", "laptop-2", "self-2"]);
    assert!(snapshot.node(&NodeName::parse("self").unwrap()).unwrap().is_this());
}

#[test]
fn nodes_with_nothing_to_offer_are_only_shown() {
    let mut w = World::with(&[("gpu", 2)]);
    assert_eq!(w.see().unused[0].why, "no server found yet");
    w.tell(Event::NoServer { node: id("gpu"), why: "refuses this node".into() });
    let snapshot = w.see();
    assert_eq!((snapshot.nodes.len(), &*snapshot.unused[0].why), (1, "refuses this node"));
}

#[test]
fn nothing_new_is_no_new_snapshot() {
    let mut w = World::with(&[("gpu", 2)]);
    w.lists("gpu", 2, vec![model("a")]);
    w.local(vec![model("b")]);
    assert!(!w.lists("gpu", 2, vec![model("a")]));
    assert!(!w.local(vec![model("b")]));
    assert!(!w.tell(Event::Peers(vec![peer("gpu", 2)])));
    assert!(!w.tell(Event::Coordinator(None)));
    assert!(w.tell(Event::Coordinator(Some(true))));
}

/// The ways to `gpu` in the picture: `t2` its tailnet address, `l2` one on the local network,
/// `+` alive, `~` standing by.
fn ways(world: &mut World) -> String {
    let seen = world.see();
    let way = |path: &Arc<super::Path>| {
        let text = match &path.dial {
            crate::types::Dial::Tailnet(addr) => format!("t{addr}"),
            crate::types::Dial::Lan { addr, .. } => format!("l{addr}"),
            other => format!("{other:?}"),
        };
        let last = text.split(':').next().and_then(|ip| ip.rsplit('.').next()).unwrap();
        let mark = match (path.cell.is_alive(), path.cell.is_standby()) {
            (true, _) => "+",
            (_, true) => "~",
            _ => "",
        };
        format!("{}{last}{mark}", &text[..1])
    };
    let paths = &seen.nodes[1].paths;
    assert_eq!(paths.len(), seen.ways[&id("gpu")].len());
    let tries = seen.nodes[1].tries().map(way).collect::<Vec<_>>().join(" ");
    format!("{} > {tries}", paths.iter().map(way).collect::<Vec<_>>().join(" "))
}

fn way_of(last: u8) -> Event {
    Event::Way { node: id("gpu"), dial: lan(last), prefix: "".into() }
}

#[test]
fn the_local_network_stands_behind_the_tailnet_and_never_pushes_it_away() {
    let mut world = World::with(&[("gpu", 2)]);
    assert!(world.tell(way_of(7)));
    assert!(world.see().nodes.len() == 1 && world.see().ways[&id("gpu")].len() == 1);
    world.lists("gpu", 2, vec![model("tiny")]);
    assert_eq!(ways(&mut world), "t2+ l7 > t2+");
    assert!(!world.tell(way_of(7)), "known");
    let lan_only = |world: &mut World| world.see().lan_only(&id("gpu")).map(|p| p.dial.clone());
    world.state.cells.path(&id("gpu"), &lan(7)).ok(world.now, None);
    assert_eq!(lan_only(&mut world), None, "the tailnet lives");
    world.dies("gpu", 2);
    assert_eq!(lan_only(&mut world), Some(lan(7)));
    world.state.cells.path(&id("gpu"), &lan(7)).lost();
    assert_eq!(lan_only(&mut world), None);
    world.lists("gpu", 2, vec![model("tiny")]);
    // Its list comes by the local network from now on.
    let by_lan = |last| super::Listing { dial: lan(last), ..listing(2, vec![model("tiny")]) };
    let dead = world.dies("gpu", 2);
    assert!(dead && world.see().models.is_empty());
    assert!(world.tell(Event::Listed { node: id("gpu"), listing: by_lan(7) }));
    assert_eq!(ways(&mut world), "t2 l7+ > l7+");
    assert_eq!(world.table(), ["tiny:latest: gpu"]);
    // Many addresses, and the tailnet's is still the first.
    for last in 10..20 {
        world.tell(way_of(last));
    }
    assert_eq!(ways(&mut world), "t2 l19 l18 l17 l16 l15 l14 l13 l12 > ");
    world.tell(way_of(7));
    world.tell(Event::Listed { node: id("gpu"), listing: by_lan(7) });
    world.lists("gpu", 2, vec![model("tiny")]);
    assert_eq!(ways(&mut world), "t2+ l7+ l19 l18 l17 l16 l15 l14 l13 > t2+ l7+");
}

#[test]
fn a_way_that_stands_by_is_the_last_try_and_keeps_the_models() {
    let mut world = World::with(&[("gpu", 2)]);
    world.lists("gpu", 2, vec![model("tiny")]);
    world.tell(way_of(7));
    world.state.cells.path(&id("gpu"), &lan(7)).stand_by();
    assert!(world.tell(Event::Paths(id("gpu"))));
    assert_eq!(ways(&mut world), "t2+ l7~ > t2+ l7~");
    world.dies("gpu", 2);
    assert_eq!(ways(&mut world), "t2 l7~ > l7~");
    assert_eq!(world.table(), ["tiny:latest: gpu"]);
    let snapshot = world.see();
    let offers = &snapshot.models[&key("tiny")].offers;
    let need = Need {
        api: Api::Chat,
        capabilities: Capabilities::default(),
        client: ClientKind::default(),
        bytes: 0,
        prompt: Default::default(),
        print: Default::default(),
    };
    let mut found = Vec::new();
    super::candidates::of(offers, &need, world.now, &mut found);
    assert!(!found[0].alive, "any living node comes first");
    world.state.cells.path(&id("gpu"), &lan(7)).lost();
    world.tell(Event::Paths(id("gpu")));
    assert!(world.table().is_empty());
}

#[test]
fn a_way_that_is_gone_is_forgotten_and_no_late_list_brings_it_back() {
    let mut world = World::with(&[("gpu", 2)]);
    world.lists("gpu", 2, vec![model("tiny")]);
    world.tell(way_of(7));
    world.state.cells.path(&id("gpu"), &lan(7)).ok(world.now, None);
    let gone = Event::NoWay { node: id("gpu"), dial: lan(7) };
    assert!(world.tell(gone.clone()) && !world.tell(gone));
    let late = super::Listing { dial: lan(7), ..listing(2, vec![model("big")]) };
    assert!(!world.tell(Event::Listed { node: id("gpu"), listing: late }));
    assert_eq!(ways(&mut world), "t2+ > t2+");
    world.tell(way_of(7));
    assert_eq!(ways(&mut world), "t2+ l7 > t2+", "it begins anew");
    // Only the local network's ways are made by hand, and only for nodes that may be used.
    assert!(!world.tell(Event::Way { node: id("gpu"), dial: dial(9), prefix: "".into() }));
    assert!(!world.tell(Event::Way { node: id("evil"), dial: lan(9), prefix: "".into() }));
    // A node that may no longer be used takes its ways along.
    world.tell(Event::Peers(vec![]));
    assert!(world.see().ways.is_empty());
}
