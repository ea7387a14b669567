//! Discovery against the stand-in tailscaled: who is used, who waits, how much is left.

mod lan;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tailherd::config::{self, Config, FixedEnv};
use tailherd::demo::tailscaled::{Owner, Tailnet, Tailscaled};
use tailherd::directory::{
    Directory, DirectoryConfig, Event, Identity, Listing, Look, Settings, Snapshot,
};
use tailherd::discover::{self, Discovery};
use tailherd::net::lan::{Interface, LanView};
use tailherd::net::{Sockets, TailnetView, localapi};
use tailherd::telemetry::{Clock, Events, Metrics};
use tailherd::trust::{self, Access, Bounds, Networks, Trust};
use tailherd::types::{Caller, CallerKind, Dial, NodeKind, NodeName, Rung, Timing, Verb};
use tokio::sync::watch;

/// One node's discovery and what hangs on it.
struct Node {
    discovery: Discovery,
    directory: Arc<Directory>,
    access: watch::Receiver<Arc<Access>>,
    view: watch::Receiver<Arc<TailnetView>>,
    events: Arc<Events>,
    config: watch::Sender<Arc<Config>>,
    clock: Clock,
    trust: Trust,
    lan: watch::Receiver<Arc<LanView>>,
    interfaces: Arc<Mutex<Vec<Interface>>>,
}

fn configured(daemon: &Tailscaled, rest: &str) -> Config {
    let socket = daemon.socket().display();
    let text = format!("{{ tailnet: {{ socket: \"{socket}\" }}, {rest} }}");
    config::parse(&text, None, &FixedEnv::default()).unwrap()
}

impl Node {
    fn start(daemon: &Tailscaled, state: &Path, rest: &str) -> Node {
        let clock = Clock::start();
        let name = NodeName::from_dns("here");
        let setup = DirectoryConfig {
            settings: Settings::default(),
            this: Identity::lone(name.clone()),
            state: None,
            save: Duration::from_secs(1),
        };
        let directory = Directory::start(setup, clock);
        let (config, config_rx) = watch::channel(Arc::new(configured(daemon, rest)));
        let (view_tx, view) = watch::channel(Arc::default());
        let nobody = Access::new(None, &trust::Tailnet::default());
        let (access_tx, access) = watch::channel(Arc::new(nobody));
        let events = Events::new();
        let trust = Trust::open(Some(state), Bounds::of(&config_rx.borrow()));
        let (lan_tx, lan) = watch::channel(Arc::default());
        let interfaces = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&interfaces);
        let discovery = discover::start(discover::Setup {
            config: config_rx,
            timing: Timing::shrunk(),
            clock,
            directory: directory.clone(),
            metrics: Metrics::new().unwrap(),
            events: events.clone(),
            state: Some(state.to_owned()),
            name,
            localapi: localapi::Current::default(),
            view: view_tx,
            bell: watch::channel(0).0,
            access: access_tx,
            trust: trust.clone(),
            networks: Networks::open(Some(state)).0,
            sockets: Sockets::real().with_interfaces(move || seen.lock().clone()),
            lan: lan_tx,
        });
        Node { discovery, directory, access, view, events, config, clock, trust, lan, interfaces }
    }

    /// Waits until the names of the peers that may be used are these.
    async fn uses(&self, names: &[&str]) {
        let mut peers = self.directory.peers();
        let wanted = peers.wait_for(|peers| {
            let mut got: Vec<&str> = peers.iter().map(|p| p.who.name.as_str()).collect();
            got.sort_unstable();
            got == names
        });
        if !in_time(wanted).await {
            panic!("wanted {names:?}, got {:?}", self.directory.peers().borrow());
        }
    }

    async fn sees(&self, what: &str, is_it: impl Fn(&Snapshot) -> bool) {
        let mut changed = self.directory.changed();
        let seen = in_time(async {
            while !is_it(&self.directory.load()) {
                changed.changed().await.unwrap();
            }
        });
        assert!(seen.await, "{what}: {:?}", self.directory.load());
    }

    async fn on(&self, rung: Rung, why: &str) {
        self.sees(why, |s| s.rung.rung == rung && *s.rung.why == *why).await;
    }

    /// Makes a peer's path answer, as a probe does.
    async fn answers(&self, name: &str) {
        let peer = {
            let peers = self.directory.peers();
            let peers = peers.borrow();
            peers.iter().find(|p| p.who.name.as_str() == name).cloned().unwrap()
        };
        let dial = Dial::Tailnet((peer.addrs[0], 11436).into());
        let listing = Listing {
            kind: NodeKind::Rich,
            version: None,
            dial: dial.clone(),
            prefix: "".into(),
            accepting: None,
            engines: Vec::new(),
        };
        self.directory.path(&peer.who.id, &dial).ok(self.clock.now(), None);
        self.directory.send(Event::Listed { node: peer.who.id.clone(), listing });
        self.directory.send(Event::Paths(peer.who.id));
    }

    fn notes(&self, kind: &str) -> Vec<String> {
        let notes = self.events.notes();
        notes.iter().filter(|n| n.kind == kind).map(|n| n.text.clone()).collect()
    }
}

async fn in_time<T>(what: impl Future<Output = T>) -> bool {
    tokio::time::timeout(Duration::from_secs(20), what).await.is_ok()
}

#[tokio::test]
async fn a_foreign_node_is_never_a_peer_and_has_no_address_here() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let _gpu = net.join("gpu", Owner::tag("tag:ollama")).await.unwrap();
    let desk = net.join("desk", Owner::user("dev@example.com")).await.unwrap();
    net.share_in("guest", Owner::user("me@example.com"), "elsewhere.example");
    // What a coordinator grants lets others in here; it sends nothing there.
    net.grant("desk", "laptop", "tailherd.dev/cap/use", vec![json!({})]);
    let state = tempfile::tempdir().unwrap();
    let node = Node::start(&laptop, state.path(), "");
    node.uses(&["gpu"]).await;
    node.sees("unused", |s| s.unused.iter().any(|u| u.name.as_str() == "desk")).await;
    let text = format!("{:?}", node.directory.load());
    for addr in desk.addrs() {
        assert!(!text.contains(&addr.to_string()), "{text}");
    }
    // Named in a rule, it is used at once.
    let rule = "sendTo: [{ to: ['user:dev@example.com'] }]";
    node.config.send_replace(Arc::new(configured(&laptop, rule)));
    node.uses(&["desk"]).await;
    assert!(node.notes("new_node").is_empty(), "the first list is no news");
}

#[tokio::test]
async fn a_node_that_comes_later_waits_for_a_person() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let _gpu = net.join("gpu", Owner::tag("tag:ollama")).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let node = Node::start(&laptop, state.path(), "");
    node.uses(&["gpu"]).await;
    let _studio = net.join("studio", Owner::user("me@example.com")).await.unwrap();
    let _odd = net.join("odd", Owner::tag("tag:ollama")).await.unwrap();
    node.uses(&["gpu", "studio"]).await;
    let waits = "waits for: tailherd trust accept odd";
    node.sees("it is shown", |s| s.unused.iter().any(|u| u.why == waits)).await;
    assert_eq!(node.notes("new_node").len(), 2);

    // A restart forgets nothing.
    drop(node);
    let node = Node::start(&laptop, state.path(), "");
    node.uses(&["gpu", "studio"]).await;
    assert!(node.discovery.accept("nobody").await.is_err());
    assert_eq!(node.discovery.accept("odd").await.unwrap().as_str(), "odd");
    node.uses(&["gpu", "odd", "studio"]).await;
    drop(node);
    let node = Node::start(&laptop, state.path(), "");
    node.uses(&["gpu", "odd", "studio"]).await;
}

#[tokio::test]
async fn a_removed_node_is_gone_and_a_silent_coordinator_removes_nobody() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let _gpu = net.join("gpu", Owner::tag("tag:ollama")).await.unwrap();
    let _nas = net.join("nas", Owner::tag("tag:ollama")).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let node = Node::start(&laptop, state.path(), "");
    node.uses(&["gpu", "nas"]).await;
    net.remove("nas");
    node.uses(&["gpu"]).await;
    laptop.backend("NoState");
    node.sees("down", |s| s.coordinator_up.is_some()).await;
    laptop.kill();
    let mut view = node.view.clone();
    assert!(in_time(view.wait_for(|v| !v.running && v.why == "daemon_down")).await);
    node.uses(&["gpu"]).await;
}

#[tokio::test]
async fn the_ladder_goes_down_at_once_and_up_when_it_holds() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let _gpu = net.join("gpu", Owner::tag("tag:ollama")).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let node = Node::start(&laptop, state.path(), "");
    node.uses(&["gpu"]).await;
    node.on(Rung::Alone, "no_peer").await;
    node.answers("gpu").await;
    node.on(Rung::Full, "").await;
    net.coordinator(false);
    node.on(Rung::CoordinatorLost, "not_in_map_poll").await;
    node.sees("the coordinator", |s| s.coordinator_up == Some(false)).await;
    net.coordinator(true);
    node.on(Rung::Full, "").await;
    laptop.backend("Stopped");
    node.on(Rung::TailnetLost, "stopped_by_user").await;
    laptop.kill();
    node.on(Rung::TailnetLost, "daemon_down").await;
    laptop.start().unwrap();
    laptop.backend("Running");
    node.on(Rung::Full, "").await;
    assert!(node.notes("rung").len() >= 6, "{:?}", node.notes("rung"));
}

#[tokio::test]
async fn a_tailscaled_that_starts_later_is_found() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let _gpu = net.join("gpu", Owner::tag("tag:ollama")).await.unwrap();
    laptop.kill();
    let state = tempfile::tempdir().unwrap();
    let node = Node::start(&laptop, state.path(), "");
    node.on(Rung::Alone, "no_tailnet").await;
    assert!(node.directory.peers().borrow().is_empty());
    laptop.start().unwrap();
    node.uses(&["gpu"]).await;
    node.sees("our own name", |s| s.nodes[0].name.as_str() == "laptop").await;
}

#[tokio::test]
async fn peers_are_looked_at_at_once_when_the_tailnet_is_back() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let _gpu = net.join("gpu", Owner::tag("tag:ollama")).await.unwrap();
    let _foreign = net.join("dev", Owner::user("dev@example.com")).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let node = Node::start(&laptop, state.path(), "");
    node.uses(&["gpu"]).await;
    let gpu = node.directory.peers().borrow()[0].who.id.clone();
    laptop.kill();
    assert!(in_time(node.view.clone().wait_for(|view| !view.running)).await);
    let mut looks = node.directory.looks();
    laptop.start().unwrap();
    let look = tokio::time::timeout(Duration::from_secs(20), looks.recv()).await.unwrap();
    assert_eq!(look, Some((gpu, Look::Back)));
    assert!(looks.try_recv().is_err(), "a node outside sendTo is not looked at");
}

#[tokio::test]
async fn rules_follow_the_tailnet() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let _lab = net.join("lab", Owner::tag("tag:lab")).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let node = Node::start(&laptop, state.path(), "newNodes: 'allow'");
    // One person's tailnet: every tagged node is theirs.
    node.uses(&["lab"]).await;
    let may = |access: &Access, node: &Node| {
        let view = node.view.borrow();
        let lab = view.peers.iter().find(|p| p.name.as_str() == "lab").unwrap();
        let kind = CallerKind::Node {
            id: lab.id.clone(),
            name: lab.name.clone(),
            dns: lab.dns.as_str().into(),
            principal: lab.principal.clone(),
            shared: false,
            grants: Arc::from([]),
        };
        access.of(&Caller { kind, addr: None, lan: None }).has(Verb::Infer)
    };
    assert!(may(&node.access.borrow(), &node));
    let _desk = net.join("desk", Owner::user("dev@example.com")).await.unwrap();
    node.uses(&[]).await;
    assert!(!may(&node.access.borrow(), &node));
}

#[tokio::test]
async fn a_tailnet_switched_off_is_not_used() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let _gpu = net.join("gpu", Owner::tag("tag:ollama")).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let node = Node::start(&laptop, state.path(), "");
    node.uses(&["gpu"]).await;
    let mut off = configured(&laptop, "");
    off.tailnet.enabled = Some(false);
    node.config.send_replace(Arc::new(off));
    node.uses(&[]).await;
    assert!(in_time(node.view.clone().wait_for(|v| v.why == "switched_off")).await);
    let asked = laptop.asked();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(laptop.asked(), asked, "it is left alone");
}
