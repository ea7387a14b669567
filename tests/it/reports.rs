//! Reports between sidecars: how soon a queue is known, who may read what, and what a peer can
//! do to us with its words.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tailherd::api::report::{HEADER, Line};
use tailherd::demo::client::{Stream, get};
use tailherd::demo::engine::{EngineSpec, ModelSpec};
use tailherd::demo::node::{Node, NodeSpec};
use tailherd::demo::tailscaled::{Owner, Tailnet};
use tailherd::types::Timing;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::eve::CONTENT_TYPE;
use crate::world::{Sends as _, World, count, counting, engine, me, ms, until};

/// Nothing is polled: what is known came in reports.
fn reports_only() -> Timing {
    let usual = Timing::default();
    Timing {
        probe_listed: Duration::from_secs(600),
        report_spacing: usual.report_spacing,
        report_busy: usual.report_busy,
        report_idle: usual.report_idle,
        report_believed: usual.report_believed,
        ..Timing::shrunk()
    }
}

/// A requester, and a node that counts slowly, each knowing the other.
async fn pair(timing: Timing) -> World {
    let gpu = EngineSpec { token: ms(40), ..engine("gpu", vec![ModelSpec::count("count")]) };
    let world = World::timed(
        vec![
            NodeSpec::new("laptop", me(), None),
            NodeSpec::new("gpu", Owner::tag("tag:ollama"), Some(gpu)),
        ],
        timing,
    )
    .await;
    world.sees("laptop", "count:latest", "gpu").await;
    world
}

/// What a node knows of a model at a peer.
async fn offer(world: &World, at: &str, model: &str, peer: &str) -> Value {
    let status = world.status(at).await;
    let models = status["models"].as_array().unwrap();
    let offers = models.iter().filter(|m| m["name"] == model).flat_map(|m| m["offers"].as_array());
    offers.flatten().find(|o| o["peer"] == peer).cloned().unwrap_or_default()
}

/// So many requests of a node's own programs, which keep its engine busy until dropped.
struct Busy(Vec<JoinHandle<()>>);

impl Busy {
    fn new(world: &World, at: &str, model: &str, requests: usize) -> Busy {
        let call = || world.post(at, "/api/generate", count(model, 10_000));
        let ask = |_| {
            let call = call();
            tokio::spawn(async move {
                let mut stream = call.open_unlimited().await.unwrap();
                while let Some(Ok(_)) = stream.next().await {}
            })
        };
        Busy((0..requests).map(ask).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// A stream of reports of `to`, as a program on `from` reads it.
async fn read(from: &Node, to: &Node) -> Stream {
    let call = get("127.0.0.1:1".parse().unwrap(), "/mesh/v1/reports");
    from.across(to, 11436, call.header("content-type", CONTENT_TYPE)).await.unwrap()
}

/// The lines that come within that time.
async fn lines(stream: &mut Stream, within: Duration) -> Vec<Value> {
    let end = Instant::now() + within;
    let mut text = Vec::new();
    while let Ok(Some(Ok(piece))) = tokio::time::timeout_at(end, stream.next()).await {
        text.extend_from_slice(&piece);
    }
    let text = String::from_utf8(text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(lines: &[Value]) -> Vec<&str> {
    let rows = lines.iter().filter_map(|l| l["rows"].as_array()).flatten();
    rows.map(|r| r["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn what_an_engine_let_go_for_a_load_is_known_as_soon_as_that_has_ended() {
    // Asked by the clock, the engine would say so too late for this test.
    let timing = Timing { probe_local: Duration::from_secs(600), ..reports_only() };
    let gpu = EngineSpec {
        max_loaded: 1,
        ..engine("gpu", ["count", "other"].map(ModelSpec::count).to_vec())
    };
    let world = World::timed(
        vec![
            NodeSpec::new("laptop", me(), None),
            NodeSpec::new("gpu", Owner::tag("tag:ollama"), Some(gpu)),
        ],
        timing,
    )
    .await;
    for (model, gone) in [("count", "other"), ("other", "count"), ("count", "other")] {
        world.sees("laptop", &format!("{model}:latest"), "gpu").await;
        assert_eq!(world.post("laptop", "/api/generate", count(model, 1)).send().await.status, 200);
        let known = async || {
            let loaded = async |name: &str| {
                offer(&world, "laptop", &format!("{name}:latest"), "gpu").await["loaded"] == true
            };
            loaded(model).await && !loaded(gone).await
        };
        assert!(until(known).await, "{gone}: {:#}", world.status("laptop").await["models"]);
    }
}

#[tokio::test]
async fn a_queue_at_a_peer_is_known_within_half_a_second() {
    let world = pair(reports_only()).await;
    let known = async |running: u64, queued: u64| {
        let offer = offer(&world, "laptop", "count:latest", "gpu").await;
        offer["inflight"] == running && offer["queued"] == queued && offer["waitMs"].is_number()
    };
    assert!(until(async || known(0, 0).await).await, "{:#}", world.status("laptop").await);
    // On a busy machine one of these may be late; the promise is the program's.
    let mut best = Duration::MAX;
    for _ in 0..4 {
        let busy = Busy::new(&world, "gpu", "count", 3);
        let queue = async || offer(&world, "gpu", "count:latest", "gpu").await["queued"] == 2;
        assert!(until(queue).await, "{:#}", world.status("gpu").await);
        let began = Instant::now();
        assert!(until(async || known(1, 2).await).await, "{:#}", world.status("laptop").await);
        best = best.min(began.elapsed());
        let wait = offer(&world, "laptop", "count:latest", "gpu").await["waitMs"].as_f64().unwrap();
        assert!(wait > 1000.0, "a new request would wait: {wait}");
        drop(busy);
        assert!(until(async || known(0, 0).await).await, "{:#}", world.status("laptop").await);
    }
    assert!(best < ms(500), "{best:?}");
}

#[tokio::test]
async fn a_stream_that_ends_is_opened_again() {
    let world = pair(Timing { probe_listed: Duration::from_secs(600), ..Timing::shrunk() }).await;
    let fresh = async |is: bool| {
        offer(&world, "laptop", "count:latest", "gpu").await["waitMs"].is_number() == is
    };
    assert!(until(async || fresh(true).await).await);
    let gpu = world.node("gpu");
    gpu.quit();
    assert!(until(async || fresh(false).await).await, "what it said is not believed for ever");
    gpu.run().await.unwrap();
    assert!(until(async || fresh(true).await).await, "{:#}", world.status("laptop").await);
    let _busy = Busy::new(&world, "gpu", "count", 2);
    let queued = async || offer(&world, "laptop", "count:latest", "gpu").await["queued"] == 1;
    assert!(until(queued).await, "{:#}", world.status("laptop").await);
}

#[tokio::test]
async fn a_reader_never_sees_what_it_may_not_use_and_less_when_its_rule_shrinks() {
    let models = ["count", "tiny", "secret"].map(ModelSpec::count).to_vec();
    let rule = |models: &[&str]| json!({"access": [{"from": ["user:ops@example.com"], "verbs": ["list", "infer"], "models": models}]});
    let world = World::start(vec![
        NodeSpec::new("other", Owner::user("ops@example.com"), None),
        NodeSpec::new("stranger", Owner::user("eve@example.com"), None),
        NodeSpec::new("gpu", me(), Some(EngineSpec { token: ms(20), ..engine("gpu", models) }))
            .with(rule(&["count", "tiny"])),
    ])
    .await;
    world.sees("gpu", "secret:latest", "gpu").await;
    let (other, gpu) = (world.node("other"), world.node("gpu"));
    assert_eq!(read(world.node("stranger"), gpu).await.status, 403);

    let mut stream = read(other, gpu).await;
    assert_eq!(
        (stream.status, &stream.headers["content-type"]),
        (200, &CONTENT_TYPE.parse().unwrap())
    );
    let first = lines(&mut stream, ms(300)).await;
    assert_eq!((&first[0]["v"], &first[0]["full"]), (&json!(1), &json!(true)));
    assert_eq!(names(&first[..1]), ["count:latest", "tiny:latest"]);
    let busy = Busy::new(&world, "gpu", "secret", 2);
    let meanwhile = lines(&mut stream, ms(800)).await;
    drop(busy);
    assert!(!meanwhile.is_empty(), "it lives");
    let text = format!("{first:?}{meanwhile:?}");
    assert!(!text.contains("secret"), "{text}");

    gpu.configure(rule(&["tiny"])).unwrap();
    let mut after = Vec::new();
    let shrunk = async || {
        after.extend(lines(&mut stream, ms(200)).await);
        after.iter().any(|l: &Value| l["full"] == true)
    };
    assert!(until(shrunk).await);
    let full = after.iter().find(|l| l["full"] == true).unwrap();
    assert_eq!(names(std::slice::from_ref(full)), ["tiny:latest"]);

    gpu.configure(json!({"access": []})).unwrap();
    let ended = async || stream.next().await.is_none();
    assert!(until(ended).await, "who may list nothing any more hears nothing");
}

#[tokio::test]
async fn a_quiet_node_says_so_rarely_and_a_busy_one_often() {
    let world = pair(Timing { report_idle: ms(600), ..Timing::shrunk() }).await;
    // (The laptop's own stream ends for this one and comes again: one is enough.)
    world.node("laptop").quit();
    let mut stream = read(world.node("laptop"), world.node("gpu")).await;
    lines(&mut stream, ms(700)).await;
    let quiet = lines(&mut stream, ms(2400)).await;
    assert!((2..=6).contains(&quiet.len()), "one each 600 ms: {quiet:?}");
    assert!(
        quiet.iter().all(|l| l.as_object().unwrap().len() == 1),
        "and nothing in it: {quiet:?}"
    );
    let _busy = Busy::new(&world, "gpu", "count", 1);
    lines(&mut stream, ms(500)).await;
    let busy = lines(&mut stream, ms(2500)).await;
    assert!(busy.len() >= 6, "one each 250 ms: {busy:?}");
    let last = busy.iter().filter_map(|l| l["nextMs"].as_u64()).chain([250]).next_back();
    assert_eq!(last, Some(250));
}

#[tokio::test]
async fn twenty_quiet_nodes_cost_each_less_than_two_hundred_bytes_a_second() {
    let timing = Timing { report_idle: ms(750), ..Timing::shrunk() };
    let net = Tailnet::default();
    let spec = NodeSpec::new("gpu", me(), Some(engine("gpu", vec![ModelSpec::tiny()])));
    let gpu = Node::start(&net, spec, timing.clone()).await.unwrap();
    let mut readers = Vec::new();
    for n in 0..19 {
        readers.push(
            Node::join(&net, NodeSpec::new(&format!("n{n}"), me(), None), timing.clone())
                .await
                .unwrap(),
        );
    }
    let mut streams = Vec::new();
    for reader in &readers {
        let open = async || {
            let call = get("127.0.0.1:1".parse().unwrap(), "/mesh/v1/ping");
            reader.across(&gpu, 11436, call).await.is_ok()
        };
        assert!(until(open).await);
        let mut stream = read(reader, &gpu).await;
        assert_eq!(stream.status, 200);
        lines(&mut stream, ms(20)).await;
        streams.push(stream);
    }
    tokio::time::sleep(ms(500)).await;
    for stream in &mut streams {
        lines(stream, ms(1)).await;
    }
    let began = Instant::now();
    tokio::time::sleep(ms(3000)).await;
    let mut bytes = 0;
    for stream in &mut streams {
        for line in lines(stream, ms(5)).await {
            // With its end and the frame of its chunk.
            bytes += line.to_string().len() + 1 + 6;
        }
    }
    // All of it twenty times as fast as it is.
    let faster = Timing::default().report_idle.as_secs_f64() / timing.report_idle.as_secs_f64();
    let rate = bytes as f64 / began.elapsed().as_secs_f64() / faster;
    assert!(bytes > 0 && rate < 60.0, "{rate} bytes a second, without the packets' heads");
    // Each line is a packet and its acknowledgement: twice 52 bytes of heads.
    let packets = 19.0 / Timing::default().report_idle.as_secs_f64() * 2.0 * 52.0;
    assert!(rate + packets < 200.0, "{rate} + {packets}");
}

#[tokio::test]
async fn each_reply_between_sidecars_says_how_it_stands_there_and_no_client_sees_it() {
    // No stream at all: what is known came with replies.
    let hour = Duration::from_secs(3600);
    let timing = Timing { report_spacing: hour, probe: hour, ..reports_only() };
    let world = World::timed(
        vec![
            NodeSpec::new("laptop", me(), None),
            NodeSpec::new("gpu", Owner::tag("tag:ollama"), Some(counting("gpu", ms(1)))),
        ],
        Timing { probe: ms(200), ..timing },
    )
    .await;
    world.sees("laptop", "count:latest", "gpu").await;
    let answer = world.post("laptop", "/api/generate", count("count", 3)).send().await;
    assert_eq!((answer.status, answer.header(HEADER)), (200, ""));
    let call = world.post("laptop", "/api/generate", count("count", 3));
    let direct = world.across("laptop", "gpu", call).await;
    let row: Value = serde_json::from_str(direct.header(HEADER)).unwrap();
    assert_eq!((&row["name"], &row["state"]), (&json!("count:latest"), &json!("loaded")));
    assert_eq!((&row["running"], &row["engine"]), (&json!(1), &json!("ollama")));
    let own = world.post("gpu", "/api/generate", count("count", 3)).send().await;
    assert_eq!((own.status, own.header(HEADER)), (200, ""));
    let told = offer(&world, "laptop", "count:latest", "gpu").await;
    assert!(told["waitMs"].is_number(), "{told}");
}

#[tokio::test]
async fn what_others_send_to_a_server_without_a_sidecar_is_known() {
    let nas = EngineSpec { token: ms(40), ..engine("nas", vec![ModelSpec::count("count")]) };
    let world = World::start(vec![
        NodeSpec::new("laptop", me(), None),
        NodeSpec::new("desk", me(), Some(engine("desk", vec![ModelSpec::tiny()]))),
        NodeSpec::bare("nas", me(), nas),
    ])
    .await;
    world.sees("laptop", "count:latest", "nas").await;
    world.sees("laptop", "tiny:latest", "desk").await;
    world.sees("desk", "count:latest", "nas").await;
    let busy = Busy::new(&world, "desk", "count", 2);
    let known =
        async |n: u64| offer(&world, "laptop", "count:latest", "nas").await["inflight"] == n;
    assert!(until(async || known(2).await).await, "{:#}", world.status("laptop").await);
    drop(busy);
    assert!(until(async || known(0).await).await, "{:#}", world.status("laptop").await);
    // Who says nothing any more claims nothing.
    let _busy = Busy::new(&world, "desk", "count", 1);
    assert!(until(async || known(1).await).await);
    world.node("desk").quit();
    assert!(until(async || known(0).await).await, "{:#}", world.status("laptop").await);
}

/// A sidecar that lists one model and says in its reports whatever it likes.
async fn liar(says: Arc<dyn Fn(u32) -> Vec<u8> + Send + Sync>) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let asked = Asked::default();
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let (says, count) = (says.clone(), count.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let (says, count) = (says.clone(), count.clone());
                async move { Ok::<_, Infallible>(lie(request.uri().path(), &*says, &count)) }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(io), service),
            );
        }
    });
    (addr, asked)
}

type Asked = Arc<std::sync::atomic::AtomicU32>;
type Answer = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>;

fn lie(path: &str, says: &dyn Fn(u32) -> Vec<u8>, asked: &Asked) -> Answer {
    let list = json!({
        "v": 1, "node": {"name": "liar", "version": "9"},
        "engines": [{"name": "ollama", "kind": "ollama", "apis": 255, "up": true}],
        "offers": [{"engine": "ollama", "name": "count:latest", "size": 1000,
            "row": {"name": "count:latest", "model": "count:latest"}}],
    });
    let whole = |text: String| Full::new(Bytes::from(text)).boxed_unsync();
    let (status, body) = match path {
        "/mesh/v1/offers" => (200, whole(list.to_string())),
        "/mesh/v1/ping" => (204, whole(String::new())),
        "/mesh/v1/reports" => {
            let n = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let said = Ok::<_, Infallible>(Frame::data(Bytes::from(says(n))));
            let open = futures_util::stream::pending();
            let stream = futures_util::StreamExt::chain(futures_util::stream::iter([said]), open);
            (200, StreamBody::new(stream).boxed_unsync())
        }
        _ => (404, whole(String::new())),
    };
    Response::builder().status(status).header("content-type", CONTENT_TYPE).body(body).unwrap()
}

#[tokio::test]
async fn no_line_of_a_hostile_peer_does_harm() {
    let row = |name: &str, more: Value| {
        let mut row = json!({"engine": "ollama", "name": name, "slots": 4, "state": "loaded"});
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row
    };
    let full = |rows: Vec<Value>| json!({"v": 1, "seq": 1, "full": true, "rows": rows}).to_string();
    let many: Vec<Value> = (0..400).map(|n| row(&format!("m{n}"), json!({}))).collect();
    let lies: Vec<Vec<u8>> = vec![
        b"\x00\xff\xfe\n".to_vec(),
        vec![b'['; 100_000],
        vec![b'x'; 3 << 20],
        b"{\"seq\":18446744073709551616}\n".to_vec(),
        b"{\"v\":2,\"seq\":1,\"full\":true}\n".to_vec(),
        b"{\"v\":1,\"seq\":1,\"full\":true}\n{\"seq\":3}\n".to_vec(),
        format!("{}\n", full(many)).into_bytes(),
        format!(
            "{}\n",
            full(vec![
                row("count:latest", json!({"waitMs": u64::MAX, "running": u32::MAX, "queued": 7})),
                row("never-listed", json!({"waitMs": 0})),
                row("\u{1b}]52;c;x\u{7}", json!({"waitMs": 0})),
            ])
        )
        .into_bytes(),
    ];
    let told = lies.len() as u32;
    let last = lies.clone();
    let says = move |n: u32| last.get(n as usize).or(last.last()).unwrap().clone();
    let (addr, asked) = liar(Arc::new(says)).await;
    let world = World::start(vec![
        NodeSpec::new("laptop", me(), None),
        NodeSpec { sidecar: false, ..NodeSpec::new("liar", me(), None) },
    ])
    .await;
    world.node("liar").daemon.port(11436, Some(addr));
    world.sees("laptop", "count:latest", "liar").await;
    // Each lie ends its stream, and each next one is opened later.
    let heard = async || {
        let offer = offer(&world, "laptop", "count:latest", "liar").await;
        // A day, and no more.
        offer["waitMs"].as_f64().is_some_and(|ms| (8.0e7..=8.64e7).contains(&ms))
    };
    for _ in 0..6 {
        if until(async || heard().await).await {
            break;
        }
    }
    assert!(heard().await, "{:#}", world.status("laptop").await);
    assert!(asked.load(std::sync::atomic::Ordering::Relaxed) >= told);
    let status = world.status("laptop").await.to_string();
    for absent in ["never-listed", "m399", "\\u001b", "52;c"] {
        assert!(!status.contains(absent), "{absent}");
    }
    assert_eq!(world.get("laptop", "/").send().await.status, 200, "and it is well");
}

#[tokio::test]
async fn a_node_that_stops_says_so_before() {
    let world = pair(Timing::shrunk()).await;
    world.node("laptop").quit();
    let mut stream = read(world.node("laptop"), world.node("gpu")).await;
    lines(&mut stream, ms(300)).await;
    let began = Instant::now();
    let stopping = world.node("gpu").stop();
    let heard = async {
        let mut text = Vec::new();
        while let Some(Ok(piece)) = stream.next().await {
            text.extend_from_slice(&piece);
        }
        text
    };
    let ((), text) = tokio::join!(stopping, heard);
    let last = text.split(|b| *b == b'\n').rfind(|line| !line.is_empty()).unwrap();
    let last = Line::read(last).unwrap();
    assert_eq!((last.accepting.map(|a| a.label()), &*last.why), (Some("none"), "stopping"));
    assert!(began.elapsed() < ms(1500), "and no reader holds it up: {:?}", began.elapsed());
}
