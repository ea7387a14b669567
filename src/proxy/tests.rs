//! What the data side promises of the ways to a node: peers on loopback, each with several.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use super::*;
use crate::config::FixedEnv;
use crate::directory::accounts::Skip;
use crate::directory::testing::{id, lan, listing, model, peer, who};
use crate::directory::{DirectoryConfig, Event, Listing};
use crate::gate::{GatesConfig, OllamaLoader};
use crate::net::home::{Homes, Place};
use crate::net::{Connector, TailnetView, full};
use crate::trust::Tailnet;
use crate::types::{CallerKind, Dial, Moment, Rung, RungState};

const ANSWER: &str = "{\"model\":\"tiny\",\"response\":\"hi\",\"done\":true}\n";

/// How a peer's mesh port behaves on one way.
#[derive(Clone, Copy)]
enum Says {
    Answer,
    /// A status with a word of refusal.
    Refuses(u16, &'static str),
    /// Takes everything and says nothing, to probes neither.
    Nothing,
    /// Takes a request whole and closes.
    Breaks,
    /// Begins an answer, and thinks before it ends it.
    Thinks(Duration),
    /// Takes that long for a probe, and that long for an answer.
    Slow(Duration, Duration),
}

/// One way to a peer, and how many requests came by it.
struct At {
    dial: Dial,
    asked: Arc<AtomicU32>,
}

impl At {
    fn asked(&self) -> u32 {
        self.asked.load(Relaxed)
    }
}

async fn at(says: Says) -> At {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let dial = Dial::Loopback(listener.local_addr().unwrap());
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let count = Arc::clone(&count);
                async move {
                    if matches!(says, Says::Nothing) {
                        std::future::pending::<()>().await;
                    }
                    let ping = request.uri().path() == "/mesh/v1/ping";
                    request.into_body().collect().await.unwrap();
                    count.fetch_add(u32::from(!ping), Relaxed);
                    if let Says::Slow(probe, answer) = says {
                        tokio::time::sleep(if ping { probe } else { answer }).await;
                    }
                    if matches!(says, Says::Breaks) && !ping {
                        return Err(std::io::Error::other("broken off"));
                    }
                    let answer = match says {
                        Says::Refuses(status, word) if !ping => Response::builder()
                            .status(status)
                            .header("x-tailherd-refused", word)
                            .body(full("{}")),
                        Says::Thinks(time) if !ping => Response::builder()
                            .header("content-type", "application/x-ndjson")
                            .body(thinking(time)),
                        _ => Response::builder()
                            .header("content-type", "application/x-ndjson")
                            .body(full(ANSWER)),
                    };
                    Ok(answer.unwrap())
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    At { dial, asked }
}

/// The first word at once, the last one after `time`.
fn thinking(time: Duration) -> crate::net::Body {
    let words = [(Duration::ZERO, "{\"response\":\"hm\",\"done\":false}\n"), (time, ANSWER)];
    let frames = stream::iter(words).then(|(pause, word)| async move {
        tokio::time::sleep(pause).await;
        Ok::<_, crate::net::BoxError>(Frame::data(Bytes::from_static(word.as_bytes())))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// Where nobody listens.
async fn closed() -> Dial {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    Dial::Loopback(listener.local_addr().unwrap())
}

/// Where a connect takes for ever: the other side never says a word of its TLS.
async fn slow() -> Dial {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    Dial::Configured { host: "127.0.0.1".into(), port, tls: true }
}

struct World {
    px: Arc<Proxy>,
    _view: watch::Sender<Arc<TailnetView>>,
}

impl World {
    /// This node has nothing; each peer has `tiny`, by these ways, best first.
    async fn with(peers: &[(&str, &[&Dial])]) -> World {
        World::timed(peers, Timing::shrunk()).await
    }

    async fn timed(peers: &[(&str, &[&Dial])], timing: Timing) -> World {
        let clock = Clock::start();
        let config = DirectoryConfig {
            settings: crate::directory::Settings::default(),
            this: who("laptop"),
            state: None,
            save: Duration::from_secs(60),
        };
        let directory = Directory::start(config, clock);
        let listed = peers.iter().zip(2..).map(|((name, _), last)| peer(name, last));
        directory.send(Event::Peers(listed.collect()));
        for ((name, ways), last) in peers.iter().zip(2..) {
            for dial in ways.iter().rev() {
                let listing =
                    Listing { dial: (*dial).clone(), ..listing(last, vec![model("tiny")]) };
                directory.send(Event::Listed { node: id(name), listing });
                directory.path(&id(name), dial).ok(clock.now(), Some(Duration::from_millis(1)));
            }
        }
        directory.settled().await;
        let (view, tailnet) = watch::channel(Arc::new(TailnetView::absent("no_tailnet")));
        let connector = Connector::new(tailnet, Default::default(), timing.clone());
        let pool = Pool::new(connector, clock, &timing);
        let metrics = Metrics::new().unwrap();
        let loads = pool.clone();
        let gates_config = GatesConfig { queue: 8, num_parallel: None };
        let gates = Gates::new(gates_config, clock, Arc::clone(&metrics), move |endpoint| {
            Arc::new(OllamaLoader::new(loads.clone(), clock, endpoint))
        });
        let config = Arc::new(crate::config::parse("{}", None, &FixedEnv::default()).unwrap());
        let access = Access::resolve(&config, &Tailnet { me: None, people: None });
        let (_, access) = watch::channel(Arc::new(access));
        let px = Proxy::new(Parts {
            directory,
            pool,
            gates,
            metrics,
            events: Events::new(),
            clock,
            timing: Arc::new(timing),
            settings: Arc::new(ArcSwap::from_pointee(Settings::new(config))),
            access,
            accounts: Arc::default(),
            homes: Arc::new(Homes::load(None)),
            own: Arc::default(),
        });
        World { px, _view: view }
    }

    async fn ask(&self, path: &str, body: &str) -> (StatusCode, http::HeaderMap, String) {
        let door = Door { kind: ListenerKind::Apps, local: None };
        let kind = CallerKind::Local { uid: None };
        let caller = Arc::new(Caller { kind, addr: None, lan: None });
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("host", "localhost")
            .body(full(body.to_owned()))
            .unwrap();
        let answer = Arc::clone(&self.px).answer(door, caller, "id".to_owned(), request).await;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Which node answered, after how many tries.
    async fn generate(&self) -> String {
        let (status, head, body) =
            self.ask("/api/generate", r#"{"model":"tiny","prompt":"x"}"#).await;
        let word = |name: &str| head.get(name).map_or("-", |v| v.to_str().unwrap()).to_owned();
        let node = word("x-tailherd-served-by");
        match status {
            StatusCode::OK => format!("{node} {}", word("x-tailherd-attempts")),
            status => format!("{status} {body}"),
        }
    }

    /// Makes `node` the one that is chosen.
    fn prefer(&self, node: &str) {
        let tiny = ModelKey::parse("tiny").unwrap();
        for offer in &self.px.directory.load().models[&tiny].offers {
            offer.cell.decode.set(if offer.node.name.as_str() == node { 1000.0 } else { 0.5 });
        }
    }

    fn failed(&self, node: &str, reason: &str) -> bool {
        let row = format!("tailherd_attempts_total{{peer=\"{node}\",reason=\"{reason}\"}} 1\n");
        self.px.metrics.render().contains(&row)
    }
}

#[tokio::test]
async fn a_way_that_is_closed_costs_no_try_and_no_other_node() {
    let (second, other) = (at(Says::Answer).await, at(Says::Answer).await);
    let shut = closed().await;
    let world = World::with(&[("gpu", &[&shut, &second.dial]), ("nas", &[&other.dial])]).await;
    world.prefer("gpu");
    assert_eq!(world.generate().await, "gpu/ollama 1");
    assert_eq!((second.asked(), other.asked()), (1, 0));
    assert!(world.failed("gpu", "connect"), "{}", world.px.metrics.render());
    assert!(!world.px.directory.path(&id("gpu"), &shut).is_alive());
    assert_eq!(world.generate().await, "gpu/ollama 1");
    assert!(world.failed("gpu", "connect"), "a way that is known dead is not tried again");
}

#[tokio::test]
async fn a_connect_that_hangs_gives_way_to_the_nodes_next_way_within_the_race() {
    let (second, other) = (at(Says::Answer).await, at(Says::Answer).await);
    let hangs = slow().await;
    let world = World::with(&[("gpu", &[&hangs, &second.dial]), ("nas", &[&other.dial])]).await;
    world.prefer("gpu");
    let from = Instant::now();
    assert_eq!(world.generate().await, "gpu/ollama 1");
    assert!(from.elapsed() < world.px.timing.connect_tailnet * 4 / 5, "{:?}", from.elapsed());
    assert_eq!((second.asked(), other.asked()), (1, 0));
    // With one way that hangs and one that is shut, the other node is next; it is no dead end.
    let shut = closed().await;
    let world = World::with(&[("gpu", &[&hangs, &shut]), ("nas", &[&other.dial])]).await;
    world.prefer("gpu");
    assert_eq!(world.generate().await, "nas/ollama 2");
}

#[tokio::test]
async fn a_way_that_goes_silent_under_a_request_is_left_for_the_nodes_other_way() {
    let (mute, second) = (at(Says::Nothing).await, at(Says::Answer).await);
    let other = at(Says::Answer).await;
    let world = World::with(&[("gpu", &[&mute.dial, &second.dial]), ("nas", &[&other.dial])]).await;
    world.prefer("gpu");
    assert_eq!(world.generate().await, "gpu/ollama 1");
    assert_eq!((second.asked(), other.asked()), (1, 0));
    assert!(world.failed("gpu", "silent"));
    assert!(!world.px.directory.path(&id("gpu"), &mute.dial).is_alive());
}

#[tokio::test]
async fn a_node_that_is_slow_to_show_life_keeps_its_request_and_nobody_else_gets_it() {
    let ms = Duration::from_millis;
    let usual = Timing { vigil: ms(300), ..Timing::shrunk() };
    // Slower than one probe waits for the next, and steady.
    let slow = at(Says::Slow(ms(500), ms(3000))).await;
    let other = at(Says::Answer).await;
    let ways = [("gpu", &[&slow.dial][..]), ("nas", &[&other.dial])];
    let world = World::timed(&ways, usual.clone()).await;
    world.prefer("gpu");
    assert_eq!(world.generate().await, "gpu/ollama 1", "{}", world.px.metrics.render());
    assert_eq!((slow.asked(), other.asked()), (1, 0));
    assert!(world.px.directory.path(&id("gpu"), &slow.dial).is_alive());
    // One that shows none is left, and not before it had the time of three probes.
    let mute = at(Says::Slow(ms(60_000), ms(60_000))).await;
    let ways = [("gpu", &[&mute.dial][..]), ("nas", &[&other.dial])];
    let world = World::timed(&ways, usual).await;
    world.prefer("gpu");
    let from = Instant::now();
    assert_eq!(world.generate().await, "nas/ollama 2");
    assert!(from.elapsed() >= ms(900), "{:?}", from.elapsed());
    assert!(world.failed("gpu", "silent"));
}

#[tokio::test]
async fn a_way_on_which_a_node_refuses_us_stands_by_or_dies_and_the_next_one_is_taken() {
    for (status, word, standby) in [
        (421, "use_tailnet", true),
        (403, "policy", false),
        (403, "not_pinned", false),
        (403, "clock_back", false),
    ] {
        let (no, yes) = (at(Says::Refuses(status, word)).await, at(Says::Answer).await);
        let other = at(Says::Answer).await;
        let ways = [&no.dial, &yes.dial];
        let world = World::with(&[("gpu", &ways), ("nas", &[&other.dial])]).await;
        world.prefer("gpu");
        assert_eq!(world.generate().await, "gpu/ollama 1", "{word}");
        assert_eq!((no.asked(), yes.asked(), other.asked()), (1, 1, 0), "{word}");
        let cell = world.px.directory.path(&id("gpu"), &no.dial);
        assert_eq!((cell.is_alive(), cell.is_standby()), (false, standby), "{word}");
        assert!(cell.why().contains("over the tailnet only"), "{word}: {}", cell.why());
    }
}

#[tokio::test]
async fn refusals_of_ways_cost_no_budget_and_a_refused_request_is_none_of_them() {
    let no = at(Says::Refuses(403, "policy")).await;
    let other = at(Says::Answer).await;
    let world = World::with(&[("gpu", &[&no.dial]), ("nas", &[&other.dial])]).await;
    world.px.retries.lock().fifths = 0;
    world.prefer("gpu");
    assert_eq!(world.generate().await, "nas/ollama 2");
    // The rule of a node about a request is no word about the way.
    let rule = at(Says::Refuses(403, "access")).await;
    let world = World::with(&[("gpu", &[&rule.dial]), ("nas", &[&other.dial])]).await;
    world.prefer("gpu");
    assert_eq!(world.generate().await, "nas/ollama 2");
    assert!(world.px.directory.path(&id("gpu"), &rule.dial).is_alive());
}

#[tokio::test]
async fn a_request_that_belongs_to_a_node_goes_there_by_the_first_way_that_is_open() {
    let (shut, second) = (closed().await, at(Says::Answer).await);
    let world = World::with(&[("gpu", &[&shut, &second.dial])]).await;
    let (status, _, body) = world.ask("/api/pull", r#"{"model":"big@gpu"}"#).await;
    assert_eq!((status, second.asked()), (StatusCode::OK, 1), "{body}");
    // On the local network nobody may change another node: that way is not even tried.
    let world = World::with(&[("gpu", &[&shut])]).await;
    let way = Event::Way { node: id("gpu"), dial: lan(7), prefix: "".into() };
    world.px.directory.send(way);
    world.px.directory.settled().await;
    world.px.directory.path(&id("gpu"), &lan(7)).ok(world.px.clock.now(), None);
    let (status, _, body) = world.ask("/api/pull", r#"{"model":"big@gpu"}"#).await;
    assert!(status == 503 && body.contains("127.0.0.1:"), "{status} {body}");
    assert!(world.px.directory.path(&id("gpu"), &lan(7)).is_alive());
}

#[tokio::test]
async fn a_stream_is_left_alone_when_its_way_begins_to_stand_by() {
    for (dies, whole) in [(false, true), (true, false)] {
        let slow = at(Says::Thinks(Duration::from_secs(3))).await;
        let world = World::with(&[("gpu", &[&slow.dial])]).await;
        let cell = world.px.directory.path(&id("gpu"), &slow.dial);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            // The tailnet is back: new requests go there.
            cell.stand_by();
            if dies {
                cell.lost();
            }
        });
        let (_, _, body) = world.ask("/api/generate", r#"{"model":"tiny","prompt":"x"}"#).await;
        assert_eq!(body.ends_with(ANSWER), whole, "{body}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_first_byte_is_made_up_for_by_the_nodes_next_way() {
    let (breaks, second) = (at(Says::Breaks).await, at(Says::Answer).await);
    let other = at(Says::Answer).await;
    let world =
        World::with(&[("gpu", &[&breaks.dial, &second.dial]), ("nas", &[&other.dial])]).await;
    world.prefer("gpu");
    assert_eq!(world.generate().await, "gpu/ollama 1");
    assert_eq!((breaks.asked(), second.asked(), other.asked()), (1, 1, 0));
    // It may have used an engine: without budget there is no second time.
    world.px.retries.lock().fifths = 0;
    world.px.directory.path(&id("gpu"), &breaks.dial).ok(world.px.clock.now(), None);
    let (status, ..) = world.ask("/api/generate", r#"{"model":"tiny","prompt":"x"}"#).await;
    assert_eq!((status, second.asked(), other.asked()), (StatusCode::SERVICE_UNAVAILABLE, 1, 0));
}

impl World {
    /// All ways to a node are dead, as its probes would find.
    async fn loses(&self, node: &str, why: &str) {
        let snapshot = self.px.directory.load();
        for path in snapshot.ways.get(&id(node)).into_iter().flatten() {
            path.cell.lost();
            path.cell.because(why);
        }
        self.px.directory.send(Event::Paths(id(node)));
        self.px.directory.settled().await;
    }

    async fn stands_on(&self, rung: Rung, why: &str) {
        let rung = RungState { rung, why: why.into(), since: self.px.clock.now() };
        self.px.directory.send(Event::Rung(rung));
        self.px.directory.settled().await;
    }

    async fn said(&self, model: &str) -> String {
        let body = format!(r#"{{"model":"{model}","prompt":"x"}}"#);
        let (status, head, body) = self.ask("/api/generate", &body).await;
        let retry = head.get("x-should-retry").map_or("", |_| " no retry");
        // A slow machine takes a moment longer; ages are told to the second.
        let body = (1..30).fold(body, |body, n| body.replace(&format!(" {n} s"), " 0 s"));
        format!("{}{retry} {body}", status.as_u16())
    }
}

#[tokio::test]
async fn a_model_whose_nodes_are_lost_says_since_when_and_what_is_broken() {
    let there = at(Says::Answer).await;
    let world = World::with(&[("gpu", &[&there.dial])]).await;
    world.loses("gpu", "no connection").await;
    let text = world.said("tiny").await;
    assert!(text.starts_with("404 "), "{text}");
    let words = "model 'tiny' not found (last on gpu, not reachable for 0 s)";
    assert!(text.contains(words), "{text}");
    world.stands_on(Rung::CoordinatorLost, "not_in_map_poll").await;
    assert!(world.said("tiny").await.contains(words), "its tunnels could live");
    world.stands_on(Rung::TailnetLost, "daemon_down").await;
    let text = world.said("tiny").await;
    let words = "(last on gpu, not reachable for 0 s; tailscaled does not answer, for 0 s)";
    assert!(text.starts_with("404 ") && text.contains(words), "{text}");
    // Of a model nobody is known to have, the outage is all there is to say.
    let text = world.said("big").await;
    let words = "model 'big' not found (tailscaled does not answer, for 0 s)";
    assert!(text.starts_with("404 ") && text.contains(words), "{text}");
    world.stands_on(Rung::Alone, "no_tailnet").await;
    let text = world.said("big").await;
    assert!(text.contains(r"model 'big' not found") && !text.contains('('), "{text}");
}

#[tokio::test]
async fn a_named_node_that_does_not_answer_is_a_503_with_its_reason() {
    let there = at(Says::Answer).await;
    let world = World::with(&[("gpu", &[&there.dial])]).await;
    let text = world.said("big@gpu").await;
    assert!(text.starts_with("404 ") && text.contains("not found on gpu"), "{text}");
    world.loses("gpu", "no connection").await;
    let text = world.said("tiny@gpu").await;
    let words = "gpu does not answer for 0 s (no connection)";
    assert!(text.starts_with("503 no retry") && text.contains(words), "{text}");
    world.stands_on(Rung::Alone, "logged_out").await;
    let text = world.said("tiny@gpu").await;
    assert!(text.contains("logged out of its tailnet, for 0 s"), "{text}");
    assert_eq!(there.asked(), 0, "nobody was asked");
}

#[test]
fn further_tries_are_a_fifth_of_the_requests() {
    let mut budget = Budget::default();
    let burst = (0..20).filter(|_| budget.spend()).count();
    assert_eq!(burst, 10);
    for _ in 0..10 {
        budget.request();
    }
    assert_eq!((0..5).filter(|_| budget.spend()).count(), 2);
}

#[tokio::test]
async fn a_provider_of_another_network_is_passed_over() {
    let world = World::with(&[]).await;
    let text = "{ models: { providers: {
        near: { baseUrl: 'http://192.168.77.7:8000/v1' }, here: { baseUrl: 'http://127.0.0.1:8000/v1' },
    } } }";
    let config = crate::config::parse(text, None, &FixedEnv::default()).unwrap();
    let cafe = Place { network: Some("bb:00:00:00:00:01".to_owned()), server: None };
    for (name, want) in [("near", Err(Skip::Elsewhere)), ("here", Ok(()))] {
        let provider = &config.models.providers[name];
        let model = Arc::new(provider.model("m").unwrap());
        let hosted = hosted::Hosted { provider, model: &model };
        assert_eq!(hosted.open(&world.px, Moment::ZERO), Ok(()), "nothing is known yet");
        world.px.homes.answered(&hosted.url(), &cafe);
        assert_eq!(hosted.open(&world.px, Moment::ZERO), want);
    }
}
