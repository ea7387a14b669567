//! What discovery does without a coordinator: who is remembered, where the local network may
//! be used.

use std::net::IpAddr;
use std::time::SystemTime;

use tailherd::api::hello::HelloSay;
use tailherd::net::lan::{Gateway, Kind};
use tailherd::trust::keys::Ring;
use tailherd::trust::{Hello, ListedPeer};
use tailherd::types::{ModelKey, NodeId, Wall};

use super::*;

const HOME: &str = "aa:aa:aa:aa:aa:aa";
const CAFE: &str = "cc:cc:cc:cc:cc:cc";

fn now() -> Wall {
    Wall::of(SystemTime::now())
}

impl Node {
    /// Pins a peer, as a hello over the tailnet does.
    async fn pins(&self, name: &str) {
        let mut view = self.view.clone();
        let listed = view.wait_for(|v| v.peers.iter().any(|p| p.name.as_str() == name));
        let view = tokio::time::timeout(Duration::from_secs(20), listed).await.unwrap().unwrap();
        let (me, peer) = (view.me.clone().unwrap(), view.peers.iter());
        let peer = peer.into_iter().find(|p| p.name.as_str() == name).unwrap().clone();
        let control = view.control.clone().unwrap();
        drop(view);
        let stable = |id: &NodeId| match id {
            NodeId::Tailnet { stable, .. } => stable.to_string(),
            _ => panic!("{id}"),
        };
        let ring = Ring::new(now()).unwrap();
        let said = HelloSay {
            control: control.0.to_string(),
            me: stable(&peer.id),
            you: stable(&me.id),
            my_node_key: peer.key.clone(),
            your_node_key: me.key.clone(),
            version: "0".to_owned(),
            ephemeral: false,
            chain: ring.chain(),
            holds: None,
            lan: Vec::new(),
            port: 0,
            departed: Vec::new(),
        };
        let id = stable(&peer.id);
        let node = ListedPeer {
            stable: &id,
            created: &peer.created,
            name: &peer.name,
            dns: &peer.dns,
            principal: &peer.principal,
            shared: peer.shared,
            node_key: &peer.key,
            expires: peer.expires,
            expired: peer.expired,
            addrs: &peer.addrs,
        };
        let own_key = Ring::new(now()).unwrap().current();
        let key = ring.current();
        let hello = Hello { node, said: &said, key, own_key, port: Some(11436), grants: None };
        let pinned = in_time(async {
            while self.trust.dialled(&hello, now()).is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(pinned.await, "{:?}", self.trust.dialled(&hello, now()));
    }

    /// Puts this node on the network behind a gateway.
    fn moves_to(&self, gateway: &str) {
        let gateway = Gateway { addr: ip("192.168.1.1"), link: Some(gateway.to_owned()) };
        *self.interfaces.lock() = vec![Interface {
            name: "wlan0".to_owned(),
            index: Some(2),
            addr: ip("192.168.1.10"),
            prefix: 24,
            gateway: Some(gateway),
            kind: Kind::Lan,
            epoch: 1,
        }];
    }

    async fn lan(&self, what: &str, is_it: impl Fn(&LanView) -> bool) {
        let mut lan = self.lan.clone();
        let got = in_time(lan.wait_for(|view| is_it(view))).await;
        assert!(got, "{what}: {:?}", self.lan.borrow());
    }

    async fn lan_is_used(&self) {
        self.lan("used", |view| !view.links.is_empty()).await;
    }

    async fn lan_is_off(&self, why: &str) {
        let off = |view: &LanView| {
            view.links.is_empty() && view.off.as_ref().is_some_and(|off| off.contains(why))
        };
        self.lan(why, off).await;
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_start_without_any_tailnet_knows_its_pinned_peers_and_its_rules() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let _studio = net.join("studio", Owner::user("me@example.com")).await.unwrap();
    let _desk = net.join("desk", Owner::user("dev@example.com")).await.unwrap();
    let _gpu = net.join("gpu", Owner::tag("tag:ollama")).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let node = Node::start(&laptop, state.path(), "");
    node.uses(&["gpu", "studio"]).await;
    for name in ["studio", "desk"] {
        node.pins(name).await;
    }
    node.trust.save().unwrap();
    drop(node);

    net.coordinator(false);
    for (how, why) in [("gone", "daemon_down"), ("NoState", "no_netmap")] {
        match how {
            "gone" => laptop.kill(),
            _ => laptop.restart(false).unwrap(),
        }
        let node = Node::start(&laptop, state.path(), "");
        // The one who is not pinned cannot be met; the one who is no own device may not be.
        node.uses(&["studio"]).await;
        node.on(Rung::Alone, why).await;
        let this = node.directory.load();
        let this = this.nodes.iter().find(|n| n.is_this()).unwrap();
        assert_eq!(this.name.as_str(), "laptop", "{how}");
        let access = node.access.borrow().clone();
        let model = ModelKey::parse("x").unwrap();
        for (name, may) in [("studio", true), ("desk", false)] {
            let trust = node.trust.view();
            let pin = trust.pins.iter().find(|p| p.name.as_str() == name).unwrap();
            let kind = CallerKind::Node {
                id: pin.node.clone(),
                name: pin.name.clone(),
                dns: pin.dns.as_str().into(),
                principal: pin.principal.clone().unwrap(),
                shared: false,
                grants: Arc::from([]),
            };
            let caller = Caller { kind, addr: None, lan: Some(Duration::from_secs(5)) };
            assert_eq!(access.of(&caller).may(Verb::Infer, &model).is_some(), may, "{how}: {name}");
        }
    }
}

#[tokio::test]
async fn another_tailnet_takes_the_peers_and_pins_of_this_one_away_and_brings_them_back() {
    let (home, work) =
        (Tailnet::default(), Tailnet::new("https://work.example.com", "work.example"));
    let at_home = home.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let _studio = home.join("studio", Owner::user("me@example.com")).await.unwrap();
    let at_work = work.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let _farm = work.join("farm", Owner::user("me@example.com")).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let node = Node::start(&at_home, state.path(), "");
    node.uses(&["studio"]).await;
    node.pins("studio").await;
    node.config.send_replace(Arc::new(configured(&at_work, "")));
    node.uses(&["farm"]).await;
    assert!(node.trust.view().pins.is_empty(), "the pins of home stay at home");
    let key = node.trust.view().ring.as_ref().unwrap().current();
    // At work without a word from there: nobody of home is dragged in.
    at_work.backend("NoState");
    node.sees("lost", |s| s.coordinator_up == Some(false)).await;
    node.uses(&["farm"]).await;
    node.config.send_replace(Arc::new(configured(&at_home, "")));
    node.uses(&["studio"]).await;
    let trust = node.trust.view();
    assert_eq!(trust.pins.len(), 1, "and are there again");
    assert_ne!(trust.ring.as_ref().unwrap().current(), key, "a key for each");
}

#[tokio::test]
async fn a_node_that_left_the_list_loses_its_pin_only_by_the_lists_own_word() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let _studio = net.join("studio", Owner::user("me@example.com")).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let node = Node::start(&laptop, state.path(), "");
    node.pins("studio").await;
    let gone = |node: &Node| node.trust.view().pins[0].gone;
    laptop.restart(true).unwrap();
    laptop.backend("NoState");
    node.sees("lost", |s| s.coordinator_up == Some(false)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(gone(&node), None, "no list, no word");
    laptop.backend("Running");
    net.remove("studio");
    node.uses(&[]).await;
    let counts = in_time(async {
        while gone(&node).is_none_or(|gone| gone.seen < 1) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(counts.await, "each look counts, not each change: {:?}", gone(&node));
}

#[tokio::test]
async fn what_the_policy_lets_in_is_known_at_the_start_and_after_each_change() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let studio = net.join("studio", Owner::user("me@example.com")).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let node = Node::start(&laptop, state.path(), "");
    let (theirs, ours) = (studio.addrs(), laptop.addrs());
    let lets_in = |node: &Node| {
        let trust = node.trust.view();
        trust.filter.as_ref().and_then(|f| f.filter.reaches(&theirs, &ours, &[11436]))
    };
    let becomes = async |open: bool| {
        let known = in_time(async {
            while lets_in(&node) != Some(open) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(known.await, "open: {open}, got {:?}", lets_in(&node));
    };
    becomes(true).await;
    net.policy("studio", "laptop", false);
    becomes(false).await;
    // What is frozen is not heard anew.
    let heard = node.trust.view().filter.as_ref().unwrap().heard;
    net.coordinator(false);
    node.on(Rung::Alone, "no_path").await;
    net.policy("studio", "laptop", true);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(node.trust.view().filter.as_ref().unwrap().heard, heard);
    net.coordinator(true);
    becomes(true).await;
}

#[tokio::test]
async fn a_network_is_known_once_a_pinned_peer_was_met_there_and_an_unknown_one_stays_so() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let studio = net.join("studio", Owner::user("me@example.com")).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let node = Node::start(&laptop, state.path(), "");
    node.moves_to(HOME);
    node.lan_is_off("no peer is pinned").await;
    node.pins("studio").await;
    node.lan_is_off("tailherd lan allow").await;
    laptop.link(Some((1, ip("192.168.1.10"))));
    studio.link(Some((1, ip("192.168.1.20"))));
    node.lan_is_used().await;

    // The same addresses behind another gateway. For some seconds the daemon still says that
    // the tunnel leads to the old place, but nobody answers from there.
    laptop.tunnels(false);
    node.moves_to(CAFE);
    node.lan_is_off("tailherd lan allow").await;
    let stale = node.view.borrow().peers[0].current;
    assert_eq!(stale.map(|at| at.ip()), Some(ip("192.168.1.20")));
    // Longer than the daemon waits for an answer.
    tokio::time::sleep(Duration::from_secs(6)).await;
    node.lan_is_off("tailherd lan allow").await;
    node.trust.save().unwrap();
    drop(node);

    // Known is known, also after a start without anything.
    laptop.kill();
    let node = Node::start(&laptop, state.path(), "");
    node.moves_to(CAFE);
    node.uses(&["studio"]).await;
    node.lan_is_off("tailherd lan allow").await;
    node.moves_to(HOME);
    node.lan_is_used().await;
}

#[tokio::test]
async fn the_local_network_is_left_when_the_user_leaves_the_tailnet() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let _studio = net.join("studio", Owner::user("me@example.com")).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let any = "lan: { networks: \"any\" }";
    let node = Node::start(&laptop, state.path(), any);
    node.moves_to(CAFE);
    node.pins("studio").await;
    node.lan_is_used().await;
    laptop.exit_node(Some(false));
    node.lan_is_off("exit node").await;
    laptop.exit_node(Some(true));
    node.lan_is_used().await;
    laptop.backend("Stopped");
    node.lan_is_off("lan.whenStopped").await;
    laptop.kill();
    tokio::time::sleep(Duration::from_millis(500)).await;
    node.lan_is_off("lan.whenStopped").await;
    laptop.start().unwrap();
    laptop.backend("NeedsLogin");
    node.lan_is_off("lan.whenLoggedOut").await;
    let wished = "lan: { networks: \"any\", whenLoggedOut: true }";
    node.config.send_replace(Arc::new(configured(&laptop, wished)));
    node.lan_is_used().await;
    node.config.send_replace(Arc::new(configured(&laptop, "lan: { enabled: false }")));
    node.lan_is_off("lan.enabled").await;
}

#[tokio::test]
async fn a_dead_daemon_leaves_the_local_network() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let _studio = net.join("studio", Owner::user("me@example.com")).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let node = Node::start(&laptop, state.path(), "lan: { networks: \"any\" }");
    node.moves_to(HOME);
    node.pins("studio").await;
    node.lan_is_used().await;
    laptop.kill();
    let mut view = node.view.clone();
    assert!(in_time(view.wait_for(|v| v.why == "daemon_down")).await);
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.lan_is_used().await;
}
