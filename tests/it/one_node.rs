//! One node with one engine: what its gate and its counters promise.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tailherd::app::{App, Setup};
use tailherd::config::{self, FixedEnv};
use tailherd::demo::client::{get, post};
use tailherd::demo::engine::{Engine, EngineSpec, ModelSpec};
use tailherd::net::Sockets;
use tailherd::types::{ListenerKind, Timing};

struct Node {
    engine: Engine,
    apps: SocketAddr,
    admin: SocketAddr,
    _app: App,
}

impl Node {
    async fn start(spec: EngineSpec) -> Node {
        let engine = Engine::start(spec).await.unwrap();
        let text = format!(
            "{{ listen: ['127.0.0.1:11434'], local: [{{ baseUrl: '{}' }}],
                tailnet: {{ enabled: false }} }}",
            engine.url()
        );
        let config = config::parse(&text, None, &FixedEnv::default()).unwrap();
        let bound: Arc<Mutex<Vec<(ListenerKind, SocketAddr)>>> = Arc::default();
        let seen = Arc::clone(&bound);
        let sockets = Sockets::real()
            .placed(|_, _| (Ipv4Addr::LOCALHOST, 0).into())
            .on_bound(move |kind, _, actual| seen.lock().push((kind, actual)));
        let timing = Timing::shrunk();
        let setup = Setup { config, sockets, timing, state: None, name: "desk".into() };
        let app = App::start(setup).await.unwrap();
        let at = |kind| bound.lock().iter().find(|(k, _)| *k == kind).unwrap().1;
        let node = Node {
            apps: at(ListenerKind::Apps),
            admin: at(ListenerKind::Admin),
            engine,
            _app: app,
        };
        for _ in 0..200 {
            if get(node.apps, "/api/tags").answer().await.unwrap().body.len() > 20 {
                return node;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the engine's models never showed")
    }

    /// Waits until the metrics have this line.
    async fn counts(&self, line: &str) {
        let mut text = String::new();
        for _ in 0..100 {
            let body = get(self.admin, "/metrics").answer().await.unwrap().body;
            text = String::from_utf8(body.to_vec()).unwrap();
            if text.lines().any(|l| l == line) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no line {line} in\n{text}");
    }
}

/// The server asks for no frame after the last byte of a body of known length: that is no
/// client that went away.
#[tokio::test]
async fn an_answer_in_one_piece_counts_as_done() {
    let node = Node::start(EngineSpec::new("one", vec![ModelSpec::tiny()])).await;
    let body = r#"{"model":"tiny","prompt":"hello","stream":false}"#;
    assert_eq!(post(node.apps, "/api/generate", body).answer().await.unwrap().status, 200);
    node.counts(r#"tailherd_requests_total{api="ollama",model="tiny:latest",op="generate",outcome="done",peer="desk"} 1"#).await;
    node.counts(r#"tailherd_served_total{model="tiny:latest",outcome="done"} 1"#).await;
    node.counts(r#"tailherd_inflight_requests{model="tiny:latest"} 0"#).await;
    node.counts(r#"tailherd_model_load_seconds_count{model="tiny:latest"} 1"#).await;
}

#[tokio::test]
async fn a_client_that_leaves_during_a_load_does_not_abort_it() {
    let spec = EngineSpec {
        load: Duration::from_millis(800),
        ..EngineSpec::new("slow", vec![ModelSpec::tiny()])
    };
    let node = Node::start(spec).await;
    let body = r#"{"model":"tiny","prompt":"hello"}"#;
    let first = tokio::spawn(post(node.apps, "/api/generate", body).open());
    assert!(node.engine.until(Duration::from_secs(5), |c| c.loads_started == 1).await);
    first.abort();
    assert!(node.engine.until(Duration::from_secs(5), |c| c.loads_finished == 1).await);
    assert_eq!(post(node.apps, "/api/generate", body).answer().await.unwrap().status, 200);
    let counts = node.engine.counts();
    assert_eq!((counts.loads_started, counts.loads_aborted), (1, 0));
    assert!(node.engine.seen_at("/api/generate").len() == 2, "one load, one request");
}

#[tokio::test]
async fn the_engine_never_has_more_requests_than_slots() {
    let node = Node::start(EngineSpec::new("one", vec![ModelSpec::tiny()])).await;
    let body = r#"{"model":"tiny","prompt":"hello"}"#;
    let mut calls = Vec::new();
    for _ in 0..6 {
        calls.push(tokio::spawn(post(node.apps, "/api/generate", body).answer()));
    }
    let mut most = 0;
    while calls.iter().any(|call| !call.is_finished()) {
        let counts = node.engine.counts();
        most = most.max(counts.running + counts.waiting);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status, 200);
    }
    assert_eq!(most, 1, "what waits, waits in the gate");
}
