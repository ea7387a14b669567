//! Probes against servers that say exactly what they are told to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::ask::{Asker, Target};
use super::identify::{NoEngine, identify};
use super::peers::{Memory, Outcome, Tools, Whom, look};
use super::*;
use crate::api::wire;
use crate::config::Server as Url;
use crate::directory::testing::{id, lan, peer};
use crate::directory::{DirectoryConfig, Event, Identity, Settings, Snapshot};
use crate::net::home::{Homes, Place};
use crate::net::{Connector, TailnetView};
use crate::types::{Dial, EngineKind, ModelKey, NodeId};

/// Answers by `METHOD /path`: extra header lines and body; 404 for the rest, as Ollama says it.
type Answers = BTreeMap<&'static str, (u16, String, String)>;

struct Canned {
    addr: SocketAddr,
    answers: Arc<Mutex<Answers>>,
    seen: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Canned {
    async fn start(answers: Answers) -> Canned {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Canned::on(listener, answers)
    }

    fn on(listener: TcpListener, answers: Answers) -> Canned {
        let addr = listener.local_addr().unwrap();
        let answers = Arc::new(Mutex::new(answers));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (told, log) = (answers.clone(), seen.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, told.clone(), log.clone()));
            }
        });
        Canned { addr, answers, seen, task }
    }

    fn asked(&self, what: &str) -> usize {
        self.seen.lock().iter().filter(|line| line.starts_with(what)).count()
    }

    fn say(&self, what: &'static str, status: u16, head: &str, body: String) {
        self.answers.lock().insert(what, (status, head.to_owned(), body));
    }

    fn to(&self, node: NodeId) -> Target {
        Target { node, dial: Dial::Loopback(self.addr), prefix: "".into() }
    }
}

impl Drop for Canned {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request a connection: kept connections are the pool's own matter.
async fn answer(
    mut stream: TcpStream,
    answers: Arc<Mutex<Answers>>,
    seen: Arc<Mutex<Vec<String>>>,
) {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read_buf(&mut head).await {
            Ok(n) if n > 0 => {}
            _ => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let what = head.split(" HTTP").next().unwrap_or_default().to_owned();
    let tag = head.lines().find_map(|l| l.strip_prefix("if-none-match: ")).map(str::to_owned);
    seen.lock().push(head);
    let none = (404, String::new(), "404 page not found".to_owned());
    let (mut status, more, mut body) = answers.lock().get(what.as_str()).cloned().unwrap_or(none);
    if tag.is_some_and(|tag| more.contains(&format!("etag: {tag}"))) {
        (status, body) = (304, String::new());
    }
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {length}\r\n{more}\r\n{body}"
    );
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

fn ok(body: impl ToString) -> (u16, String, String) {
    (200, String::new(), body.to_string())
}

fn ollama() -> Answers {
    let row = |name: &str, digest: &str| {
        json!({"name": name, "model": name, "digest": digest.repeat(32), "size": 7,
               "modified_at": "2026-01-01T00:00:00Z"})
    };
    let show = json!({
        "modelfile": format!("FROM /people/me/blobs/sha256-{}\n", "ab".repeat(32)),
        "capabilities": ["completion", "tools"], "template": "x",
        "model_info": {"general.architecture": "llama", "llama.context_length": 4096},
    });
    let tags = json!({"models": [row("tiny:latest", "aa"), row("twin:latest", "bb")]});
    let ps = json!({"models": [{"name": "tiny:latest", "context_length": 2048}]});
    BTreeMap::from([
        ("GET /", ok("Ollama is running")),
        ("GET /api/version", ok(json!({"version": "0.32.15"}))),
        ("GET /api/tags", ok(tags)),
        ("GET /api/ps", ok(ps)),
        ("POST /api/show", ok(show)),
    ])
}

fn offers(names: &[&str]) -> (u16, String, String) {
    let offer = |name: &&str| json!({"engine": "ollama", "name": name, "row": {"name": name}, "loadedCtx": 1});
    let body = json!({
        "v": 1, "node": {"name": "gpu", "version": "0.1.0"},
        "engines": [{"name": "ollama", "kind": "ollama", "apis": 127, "up": true}],
        "offers": names.iter().map(offer).collect::<Vec<_>>(),
    });
    let head = format!("content-type: {}\r\netag: \"{}\"\r\n", wire::CONTENT_TYPE, names.join("."));
    (200, head, body.to_string())
}

fn pool(clock: Clock, timing: &Timing) -> Pool {
    let (_, tailnet) = watch::channel(Arc::new(TailnetView::default()));
    Pool::new(Connector::new(tailnet, Arc::default(), timing.clone()), clock, timing)
}

fn directory(clock: Clock) -> Arc<Directory> {
    let config = DirectoryConfig {
        settings: Settings::default(),
        this: Identity::lone(NodeName::parse("laptop").unwrap()),
        state: None,
        save: Duration::from_secs(5),
    };
    Directory::start(config, clock)
}

pub(super) fn tools() -> Tools {
    let (clock, timing) = (Clock::start(), Timing::shrunk());
    Tools {
        ask: Asker { pool: pool(clock, &timing), clock, timing },
        directory: directory(clock),
        shows: Arc::default(),
        homes: Arc::new(Homes::load(None)),
        mesh_ports: Vec::new(),
        bare_port: 0,
    }
}

async fn seen(tools: &Tools) -> Arc<Snapshot> {
    tools.directory.settled().await;
    tools.directory.load()
}

fn key(name: &str) -> ModelKey {
    ModelKey::parse(name).unwrap()
}

/// A configured server at that address.
fn whom(server: &Canned) -> Whom {
    let name = NodeName::parse("nas").unwrap();
    Whom::Server(Server { name, dial: Dial::Loopback(server.addr), prefix: "".into() })
}

#[tokio::test]
async fn kinds_are_found_out_by_asking() {
    let models = |owner: &str| ok(json!({"data": [{"id": "tiny", "owned_by": owner}]}));
    let llama = (200, "server: llama.cpp\r\n".to_owned(), models("llamacpp").2);
    let cases: Vec<(Answers, Result<EngineKind, &str>)> = vec![
        (ollama(), Ok(EngineKind::Ollama)),
        (
            BTreeMap::from([("GET /v1/models", llama), ("GET /props", ok(r#"{"total_slots":2}"#))]),
            Ok(EngineKind::LlamaCpp),
        ),
        (BTreeMap::from([("GET /v1/models", models("vllm"))]), Ok(EngineKind::Vllm)),
        (BTreeMap::from([("GET /v1/models", models("openai"))]), Ok(EngineKind::OpenAi)),
        (BTreeMap::from([("GET /v1/models", (401, String::new(), String::new()))]), Err("key")),
        (BTreeMap::from([("GET /", ok("<html>hello</html>"))]), Err("known kind")),
        // A sidecar answers like an Ollama, and is none.
        (
            BTreeMap::from([
                ("GET /mesh/v1/ping", (204, String::new(), String::new())),
                ("GET /", ok("Ollama is running")),
            ]),
            Err("tailherd"),
        ),
        (
            BTreeMap::from([(
                "GET /",
                (200, "x-tailherd-served-by: a/b\r\n".into(), "Ollama is running".into()),
            )]),
            Err("tailherd"),
        ),
    ];
    let tools = tools();
    for (answers, want) in cases {
        let server = Canned::start(answers).await;
        let got = identify(&tools.ask, &server.to(NodeId::This)).await;
        match (got, want) {
            (Ok(identity), Ok(kind)) => {
                assert_eq!(identity.kind, kind);
                assert_eq!(identity.slots, (kind == EngineKind::LlamaCpp).then_some(2));
            }
            (Err(why), Err(part)) => assert!(why.to_string().contains(part), "{why}"),
            (got, want) => panic!("{got:?}, expected {want:?}"),
        }
    }
    let gone = Canned::start(Answers::new()).await.to(NodeId::This);
    assert!(matches!(identify(&tools.ask, &gone).await, Err(NoEngine::Silent(_))));
}

#[tokio::test]
async fn a_bare_server_is_listed_with_what_its_show_says_and_each_show_is_read_once() {
    let tools = tools();
    let server = Canned::start(ollama()).await;
    let Whom::Server(nas) = whom(&server) else { unreachable!() };
    tools.directory.send(Event::Servers(vec![nas]));
    let mut memory = Memory::default();
    for _ in 0..2 {
        assert_eq!(look(&tools, &whom(&server), &mut memory).await, Outcome::Alive);
    }
    let snapshot = seen(&tools).await;
    let offer = &snapshot.models[&key("twin")].offers[0];
    assert_eq!((offer.context, offer.capabilities.tools), (Some(4096), true));
    let show = String::from_utf8_lossy(offer.show.as_ref().unwrap()).into_owned();
    assert!(show.contains("FROM sha256-abab") && !show.contains("/people/me"), "{show}");
    // It shares its weights with the one in memory.
    assert_eq!(offer.cell.loaded_ctx.load(std::sync::atomic::Ordering::Relaxed), 2048);
    assert_eq!(server.asked("POST /api/show"), 2, "one for each digest");
    assert!(offer.node.best_path().unwrap().cell.rtt().is_some());
}

#[tokio::test]
async fn a_server_that_belongs_to_another_network_is_sent_nothing() {
    let tools = tools();
    let server = Canned::start(ollama()).await;
    // A name that is looked up, like one on a local network.
    let dial = Dial::Configured { host: "LOCALHOST".into(), port: server.addr.port(), tls: false };
    let url = dial.url();
    let nas = Server { name: NodeName::parse("nas").unwrap(), dial, prefix: "".into() };
    let whom = Whom::Server(nas);
    let mut memory = Memory::default();
    assert_eq!(look(&tools, &whom, &mut memory).await, Outcome::Alive, "nothing is known yet");
    let tools = Tools { homes: Arc::new(Homes::load(None)), ..tools };
    let cafe = Place { network: Some("bb:00:00:00:00:01".to_owned()), server: None };
    tools.homes.answered(&url, &cafe);
    let before = server.seen.lock().len();
    assert_ne!(look(&tools, &whom, &mut memory).await, Outcome::Alive);
    assert_eq!(server.seen.lock().len(), before);
}

#[tokio::test]
async fn a_server_dies_of_a_refused_connection_and_comes_back() {
    let tools = tools();
    let server = Canned::start(ollama()).await;
    let whom = whom(&server);
    let Whom::Server(nas) = whom.clone() else { unreachable!() };
    tools.directory.send(Event::Servers(vec![nas]));
    let mut memory = Memory::default();
    assert_eq!(look(&tools, &whom, &mut memory).await, Outcome::Alive);
    let addr = server.addr;
    drop(server);
    tokio::task::yield_now().await;
    assert_eq!(look(&tools, &whom, &mut memory).await, Outcome::Dead);
    assert!(seen(&tools).await.models.is_empty());
    let listener = TcpListener::bind(addr).await.unwrap();
    let _again = Canned::on(listener, ollama());
    assert_eq!(look(&tools, &whom, &mut memory).await, Outcome::Alive);
    assert_eq!(seen(&tools).await.models.len(), 2);
}

#[tokio::test]
async fn a_rich_peer_is_asked_again_only_for_what_changed() {
    let tools = tools();
    let server = Canned::start(BTreeMap::from([("GET /mesh/v1/offers", offers(&["a"]))])).await;
    let gpu = peer("gpu", 2);
    tools.directory.send(Event::Peers(vec![gpu.clone()]));
    let mut memory = Memory::default();
    let to = server.to(id("gpu"));
    peers::look_at_offers(&tools, &to, &mut memory).await.unwrap();
    assert_eq!(seen(&tools).await.models.len(), 1);
    // From here on it is known where it is.
    assert_eq!(look(&tools, &Whom::Peer(gpu.clone()), &mut memory).await, Outcome::Alive);
    assert!(server.seen.lock().last().unwrap().contains("if-none-match: \"a\""));
    assert_eq!(seen(&tools).await.models.len(), 1);

    let (status, head, body) = offers(&["a", "b"]);
    server.say("GET /mesh/v1/offers", status, &head, body);
    assert_eq!(look(&tools, &Whom::Peer(gpu.clone()), &mut memory).await, Outcome::Alive);
    assert_eq!(seen(&tools).await.models.len(), 2);

    // A refusal is no doubt: its models are gone at once.
    let refused = format!("content-type: {}\r\n", wire::CONTENT_TYPE);
    server.say("GET /mesh/v1/offers", 403, &refused, String::new());
    assert_eq!(look(&tools, &Whom::Peer(gpu), &mut memory).await, Outcome::Dead);
    assert!(seen(&tools).await.models.is_empty());
}

#[tokio::test]
async fn own_engines_are_found_listed_and_missed() {
    let (clock, timing) = (Clock::start(), Timing::shrunk());
    let directory = directory(clock);
    let server = Canned::start(ollama()).await;
    let ours = Canned::start(ollama()).await;
    let at = |server: &Canned| LocalEngine {
        server: Url {
            host: "localhost".into(),
            port: server.addr.port(),
            tls: false,
            prefix: "".into(),
        },
        slots: Some(3),
        context_length: Some(8192),
        user: None,
    };
    let (_keep, listens) = watch::channel(vec![ours.addr]);
    let config = ProbeConfig {
        local: Some(vec![at(&server), at(&ours)]),
        servers: Vec::new(),
        mesh_ports: Vec::new(),
        bare_port: 0,
        ours: listens,
        homes: Arc::new(Homes::load(None)),
        timing: timing.clone(),
    };
    let mut changed = directory.changed();
    let _probes = Probes::start(config, &directory, &pool(clock, &timing), clock);
    let mut wait = async |good: &dyn Fn(&Snapshot) -> bool| {
        let waited = tokio::time::timeout(Duration::from_secs(20), async {
            while !good(&directory.load()) {
                changed.changed().await.unwrap();
            }
        });
        waited.await.unwrap();
        directory.load()
    };
    let known =
        |s: &Snapshot| s.models.get(&key("tiny")).is_some_and(|m| m.offers[0].show.is_some());
    let snapshot = wait(&known).await;
    let endpoints = &snapshot.nodes[0].endpoints;
    assert_eq!(endpoints.len(), 1, "our own listener is no engine");
    assert_eq!((&*endpoints[0].name, endpoints[0].slots), ("ollama", Some(3)));
    let offer = &snapshot.models[&key("tiny")].offers[0];
    let show = String::from_utf8_lossy(offer.show.as_ref().unwrap()).into_owned();
    assert!(show.contains("/people/me"), "its own paths are no secret here");
    assert_eq!(ours.seen.lock().len(), 0);

    let addr = server.addr;
    drop(server);
    let snapshot = wait(&|s| s.models.is_empty()).await;
    assert!(!snapshot.nodes[0].endpoints[0].up);
    assert!(snapshot.lingering.contains_key(&key("tiny")));

    let _again = Canned::on(TcpListener::bind(addr).await.unwrap(), ollama());
    wait(&|s| s.models.contains_key(&key("tiny"))).await;
}

#[tokio::test]
async fn what_was_just_made_here_is_listed_at_once() {
    let (clock, timing) = (Clock::start(), Timing::shrunk());
    let timing = Timing { probe_local: Duration::from_secs(3600), ..timing };
    let directory = directory(clock);
    let server = Canned::start(ollama()).await;
    let url =
        Url { host: "localhost".into(), port: server.addr.port(), tls: false, prefix: "".into() };
    let config = ProbeConfig {
        local: Some(vec![LocalEngine {
            server: url,
            slots: None,
            context_length: None,
            user: None,
        }]),
        servers: Vec::new(),
        mesh_ports: Vec::new(),
        bare_port: 0,
        ours: watch::channel(Vec::new()).1,
        homes: Arc::new(Homes::load(None)),
        timing: timing.clone(),
    };
    let mut changed = directory.changed();
    let _probes = Probes::start(config, &directory, &pool(clock, &timing), clock);
    let mut listed = async |name: &str| {
        let waited = tokio::time::timeout(Duration::from_secs(20), async {
            while !directory.load().models.contains_key(&key(name)) {
                changed.changed().await.unwrap();
            }
        });
        waited.await.unwrap();
    };
    listed("tiny").await;
    let row = json!({"name": "copied:latest", "model": "copied:latest", "digest": "aa".repeat(32)});
    server.say("GET /api/tags", 200, "", json!({"models": [row]}).to_string());
    let this = directory.load().nodes[0].id.clone();
    directory.look_at(&this, crate::directory::Look::List);
    listed("copied").await;
}

#[tokio::test]
async fn a_peer_is_asked_by_the_local_network_while_no_other_way_lives() {
    let tools = tools();
    let server = Canned::start(BTreeMap::from([("GET /mesh/v1/offers", offers(&["a"]))])).await;
    let gpu = peer("gpu", 2);
    let dial = lan(7);
    tools.directory.send(Event::Peers(vec![gpu.clone()]));
    tools.directory.send(Event::Way { node: id("gpu"), dial: dial.clone(), prefix: "".into() });
    let mut memory = Memory::default();
    let to = server.to(id("gpu"));
    peers::look_at_offers(&tools, &to, &mut memory).await.unwrap();
    let way = tools.directory.path(&id("gpu"), &dial);
    way.ok(tools.ask.clock.now(), None);
    seen(&tools).await;
    // Nobody can be dialled there in this test: that it was tried shows in what it missed.
    let misses = || way.misses.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(look(&tools, &Whom::Peer(gpu.clone()), &mut memory).await, Outcome::Alive);
    assert_eq!(misses(), 0, "the tailnet lives");
    drop(server);
    tokio::task::yield_now().await;
    assert_eq!(look(&tools, &Whom::Peer(gpu.clone()), &mut memory).await, Outcome::Dead);
    assert_eq!(misses(), 0, "it was the tailnet that was tried");
    seen(&tools).await;
    for missed in [1, 2, 2] {
        look(&tools, &Whom::Peer(gpu.clone()), &mut memory).await;
        assert_eq!(misses(), missed);
    }
    assert!(!way.is_alive() && way.why().contains("192.168.1.7"), "{}", way.why());
    // What it said by the tailnet is asked for again there, and known by its tag.
    assert!(memory.knows(&to), "the local network pushed the tailnet away");
}

#[tokio::test]
async fn a_way_on_which_a_peer_calls_us_elsewhere_stands_by() {
    let tools = tools();
    let server = Canned::start(BTreeMap::from([("GET /mesh/v1/offers", offers(&["a"]))])).await;
    let gpu = peer("gpu", 2);
    tools.directory.send(Event::Peers(vec![gpu.clone()]));
    let (mut memory, to) = (Memory::default(), server.to(id("gpu")));
    peers::look_at_offers(&tools, &to, &mut memory).await.unwrap();
    server.say("GET /mesh/v1/offers", 421, "x-tailherd-refused: use_tailnet\r\n", String::new());
    look(&tools, &Whom::Peer(gpu), &mut memory).await;
    let path = tools.directory.path(&to.node, &to.dial);
    assert!(path.is_standby() && path.why().contains("over the tailnet"), "{}", path.why());
}

#[tokio::test]
async fn a_node_is_looked_at_as_soon_as_a_way_of_the_local_network_lives() {
    let (clock, timing) = (Clock::start(), Timing::shrunk());
    let timing = Timing { probe_backoff: Duration::from_secs(3600), ..timing };
    let directory = directory(clock);
    let config = ProbeConfig {
        local: Some(Vec::new()),
        servers: Vec::new(),
        mesh_ports: Vec::new(),
        bare_port: 0,
        ours: watch::channel(Vec::new()).1,
        homes: Arc::new(Homes::load(None)),
        timing: timing.clone(),
    };
    let gpu = crate::directory::Peer { addrs: Vec::new(), ..peer("gpu", 2) };
    directory.send(Event::Peers(vec![gpu]));
    directory.settled().await;
    let _probes = Probes::start(config, &directory, &pool(clock, &timing), clock);
    let waits = |snapshot: &Snapshot| snapshot.unused.iter().any(|u| u.why == "no server found");
    let mut changed = directory.changed();
    while !waits(&directory.load()) {
        tokio::time::timeout(Duration::from_secs(5), changed.changed()).await.unwrap().unwrap();
    }
    directory.send(Event::Way { node: id("gpu"), dial: lan(7), prefix: "".into() });
    let way = directory.path(&id("gpu"), &lan(7));
    way.ok(clock.now(), None);
    directory.send(Event::Paths(id("gpu")));
    let looked = tokio::time::timeout(Duration::from_secs(5), async {
        while way.misses.load(std::sync::atomic::Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    looked.await.unwrap();
}
