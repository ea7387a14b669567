//! What the admin listener shows, to whom, and what it never does.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::sync::watch;

use super::{Admin, PAGE, POLICY, Parts, SCRIPT};
use crate::config::{self, Config, FixedEnv};
use crate::directory::testing::{dial, engine, id, lan, listing, model, peer, who};
use crate::directory::{Directory, DirectoryConfig, Event, Settings, Unused};
use crate::net::LanView;
use crate::telemetry::{Clock, Events, Metrics};
use crate::trust::{Access, Bounds, Granted, Me, Tailnet, Trust};
use crate::types::{Caller, CallerKind, NodeName, Timing};

const EVIL: &str = "x\",__address__=\"evil\u{1b}]52;c\u{202e}\r\n<img>";

fn config(text: &str) -> Config {
    config::parse(text, None, &FixedEnv::default()).unwrap()
}

/// A mesh of this node `desk` (models mine, secret), a peer `gpu`, and one that is not used.
async fn mesh() -> Arc<Admin> {
    let clock = Clock::start();
    let directory = Directory::start(
        DirectoryConfig {
            settings: Settings::default(),
            this: who("desk"),
            state: None,
            save: Duration::from_secs(60),
        },
        clock,
    );
    let mut own = engine("ollama", vec![model("mine"), model("secret")]);
    own.version = Some(EVIL.to_owned());
    own.url = "http://127.0.0.1:11435".to_owned();
    let unused = Unused {
        name: NodeName::parse("other").unwrap(),
        owner: EVIL.to_owned(),
        why: EVIL.to_owned(),
    };
    directory.send(Event::Local(vec![own]));
    directory.send(Event::Peers(vec![peer("gpu", 2)]));
    directory.send(Event::Listed { node: id("gpu"), listing: listing(2, vec![model("big")]) });
    directory.send(Event::Unused(vec![unused]));
    directory.path(&id("gpu"), &dial(2)).ok(clock.now(), Some(Duration::from_millis(4)));
    let mut changed = directory.changed();
    while directory.load().models.len() < 3 || directory.load().unused.is_empty() {
        tokio::time::timeout(Duration::from_secs(5), changed.changed()).await.unwrap().unwrap();
    }
    let (_, config) = watch::channel(Arc::new(config("{}")));
    let (metrics, events) = (Metrics::new().unwrap(), Events::new());
    let trust = Trust::open(None, Bounds::default());
    let (_, tailnet) = watch::channel(Arc::default());
    let (_, lan) = watch::channel(Arc::new(LanView {
        off: Some(format!("the network is unknown {EVIL}")),
        unknown: vec![("wlan0".to_owned(), "n1".into())],
        ..LanView::default()
    }));
    let (_, share) = watch::channel(crate::gate::Share::default());
    let (_, draining) = watch::channel(false);
    let timing = Arc::new(Timing::shrunk());
    Admin::new(Parts {
        directory,
        metrics,
        events,
        clock,
        config,
        trust,
        tailnet,
        lan,
        share,
        accounts: Arc::default(),
        draining,
        timing,
    })
}

async fn answer(
    admin: &Admin,
    method: Method,
    path: &str,
    headers: &[(&'static str, &str)],
    loopback: bool,
) -> (StatusCode, HeaderMap, String) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (head, body) = admin.answer(&request.body(()).unwrap(), loopback).into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn only_reads_from_this_machine_and_from_its_own_page_are_answered() {
    let admin = mesh().await;
    let good = ("host", "127.0.0.1:11437");
    for (method, headers, status) in [
        (Method::GET, &[good][..], 200),
        (Method::HEAD, &[good], 200),
        (Method::GET, &[("host", "localhost:11437")], 200),
        (Method::GET, &[("host", "[::1]:11437")], 200),
        (Method::GET, &[good, ("origin", "http://127.0.0.1:11437")], 200),
        (Method::GET, &[good, ("origin", "http://evil.example")], 403),
        (Method::GET, &[good, ("origin", "null")], 403),
        (Method::GET, &[good, ("sec-fetch-site", "cross-site")], 403),
        (Method::GET, &[("host", "evil.example:11437")], 403),
        (Method::GET, &[("host", "evil.local")], 403),
        (Method::POST, &[good], 405),
        (Method::DELETE, &[good], 405),
        (Method::OPTIONS, &[good, ("origin", "http://evil.example")], 403),
    ] {
        for path in [
            "/status",
            "/requests",
            "/explain?model=mine",
            "/metrics",
            "/",
            "/page.js",
            "/healthz",
            "/readyz",
        ] {
            let (got, head, _) = answer(&admin, method.clone(), path, headers, true).await;
            assert_eq!(got, status, "{method} {path} {headers:?}");
            assert!(
                !head.keys().any(|name| name.as_str().starts_with("access-control-")),
                "{method} {path} {headers:?}"
            );
        }
    }
}

#[tokio::test]
async fn off_loopback_there_is_only_health_and_metrics() {
    let admin = mesh().await;
    let host = [("host", "100.64.0.1:11437")];
    for (path, status) in [
        ("/metrics", 200),
        ("/healthz", 200),
        ("/readyz", 200),
        ("/status", 404),
        ("/requests", 404),
        ("/requests?wait=1", 404),
        ("/explain?model=mine", 404),
        ("/", 404),
        ("/page.js", 404),
        ("/mesh/v1/offers", 404),
    ] {
        let (got, _, body) = answer(&admin, Method::GET, path, &host, false).await;
        assert_eq!(got, status, "{path}");
        assert!(!body.contains("desk"), "{path}: {body}");
    }
}

#[test]
fn the_page_runs_no_script_but_its_file_and_makes_no_markup_of_names() {
    assert_eq!(PAGE.matches("<script").count(), 1);
    assert!(PAGE.contains("<script src=\"/page.js\"></script>"));
    for word in ["onclick", "onload", "onerror", "javascript:", "http:", "https:"] {
        assert!(!PAGE.contains(word), "{word}");
    }
    assert!(POLICY.contains("default-src 'none'") && POLICY.contains("script-src 'self'"));
    assert!(!POLICY.contains("script-src 'self' 'unsafe") && !POLICY.contains("unsafe-eval"));
    for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
        assert!(!SCRIPT.contains(word), "{word}");
    }
}

#[tokio::test]
async fn the_status_has_its_documented_names() {
    let admin = mesh().await;
    let status = admin.status();
    for path in [
        "/version",
        "/node/name",
        "/node/id",
        "/rung",
        "/why",
        "/since",
        "/coordinator/up",
        "/coordinator/since",
        "/works",
        "/lost",
        "/lan/links",
        "/lan/off",
        "/lan/unknown/0/device",
        "/lan/unknown/0/network",
        "/sharing/when",
        "/sharing/accepting",
        "/sharing/why",
        "/peers/0/name",
        "/peers/0/id",
        "/peers/0/kind",
        "/peers/0/owner",
        "/peers/0/version",
        "/peers/0/accepting",
        "/peers/0/why",
        "/peers/0/path",
        "/peers/0/paths/0/kind",
        "/peers/0/paths/0/addr",
        "/peers/0/paths/0/state",
        "/peers/0/paths/0/why",
        "/peers/0/paths/0/rttMs",
        "/peers/0/paths/0/uplinkBytesPerSecond",
        "/peers/0/paths/0/lastOk",
        "/peers/0/paths/0/lastOkSeconds",
        "/peers/0/paths/0/via",
        "/peers/0/endpoints/0/kind",
        "/peers/0/endpoints/0/url",
        "/peers/0/endpoints/0/version",
        "/peers/0/endpoints/0/state",
        "/models/0/name",
        "/models/0/digest",
        "/models/0/offers/0/peer",
        "/models/0/offers/0/loaded",
        "/models/0/offers/0/inflight",
        "/models/0/offers/0/queued",
        "/models/0/offers/0/context",
        "/models/0/offers/0/tokensPerSecond",
        "/models/0/offers/0/promptTokensPerSecond",
        "/models/0/offers/0/loadBytesPerSecond",
        "/models/0/offers/0/ttftMs",
        "/models/0/offers/0/measuredSeconds",
        "/models/0/offers/0/variant",
        "/models/0/offers/0/restsSeconds",
        "/models/0/away",
        "/lostModels",
        "/requests",
        "/running",
        "/pins",
        "/warnings",
        "/config/file",
        "/config/loadedAt",
    ] {
        assert!(status.pointer(path).is_some(), "{path}: {status:#}");
    }
    assert_eq!(status["node"]["name"], "desk");
    assert_eq!(status["peers"][0]["paths"][0]["addr"], "100.64.0.2:11436");
    assert_eq!(status["listen"][0], "127.0.0.1:11434");
}

/// What a node of another person may do whom a rule lets list `mine`.
fn lister() -> Granted {
    let mut config =
        config("{ access: [{ from: ['person'], verbs: ['list'], models: ['mine'] }] }");
    config.offline = true;
    let me = who("desk");
    let principal = me.principal.unwrap();
    let tailnet =
        Tailnet { me: Some(Me { principal: principal.clone(), name: me.name }), people: Some(1) };
    let kind = CallerKind::Node {
        id: id("phone"),
        name: NodeName::parse("phone").unwrap(),
        dns: "phone.example.ts.net".into(),
        principal,
        shared: false,
        grants: Arc::new([]),
    };
    Access::resolve(&config, &tailnet).of(&Caller { kind, addr: None, lan: None })
}

#[tokio::test]
async fn a_peer_sees_this_node_alone_and_only_what_it_may_list() {
    let admin = mesh().await;
    let reduced = admin.reduced_status(&lister());
    let mut keys: Vec<&String> = reduced.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["engines", "models", "node", "rung", "sinceSeconds", "version"]);
    let names: Vec<&Value> =
        reduced["models"].as_array().unwrap().iter().map(|m| &m["name"]).collect();
    assert_eq!(names, ["mine:latest"]);
    let text = reduced.to_string();
    for word in ["secret", "big", "gpu", "other", "100.64", "127.0.0.1", "me@", "11435", "c0ffee"] {
        assert!(!text.contains(word), "{word}: {text}");
    }
}

#[tokio::test]
async fn hostile_names_are_inert_in_the_status() {
    let admin = mesh().await;
    let host = [("host", "localhost")];
    let (_, head, body) = answer(&admin, Method::GET, "/status", &host, true).await;
    assert_eq!(head[header::CONTENT_TYPE], "application/json");
    assert_eq!(head[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    let status: Value = serde_json::from_str(&body).unwrap();
    fn texts(value: &Value, out: &mut Vec<String>) {
        match value {
            Value::String(text) => out.push(text.clone()),
            Value::Array(items) => items.iter().for_each(|v| texts(v, out)),
            Value::Object(map) => map.values().for_each(|v| texts(v, out)),
            _ => {}
        }
    }
    let mut all = Vec::new();
    texts(&status, &mut all);
    texts(&admin.reduced_status(&lister()), &mut all);
    assert!(all.iter().any(|t| t.contains("evil")), "the hostile names are shown at all");
    for text in all {
        assert!(!text.contains(['\u{1b}', '\u{202e}', '\r', '\n']), "{text:?}");
    }
}

#[tokio::test]
async fn each_path_says_its_state_and_why_and_counts_once_for_its_kind() {
    let admin = mesh().await;
    let directory = &admin.parts.directory;
    for last in [7, 8] {
        directory.send(Event::Way { node: id("gpu"), dial: lan(last), prefix: "".into() });
    }
    let (tailnet, first, second) = (
        directory.path(&id("gpu"), &dial(2)),
        directory.path(&id("gpu"), &lan(7)),
        directory.path(&id("gpu"), &lan(8)),
    );
    first.stand_by();
    first.because("it answers over the tailnet only");
    directory.settled().await;
    let paths = |status: &Value| -> Vec<String> {
        let row = |p: &Value| format!("{} {} {}", p["kind"], p["state"], p["why"]).replace('"', "");
        status["peers"][0]["paths"].as_array().unwrap().iter().map(row).collect()
    };
    let status = admin.status();
    assert_eq!(
        paths(&status),
        ["tailnet up ", "lan down ", "lan standby it answers over the tailnet only"]
    );
    assert_eq!(status["peers"][0]["path"], "tailnet");
    let shows = async |row: &str| {
        let host = [("host", "localhost")];
        let (_, _, text) = answer(&admin, Method::GET, "/metrics", &host, true).await;
        text.lines().any(|line| line == row)
    };
    assert!(shows(r#"tailherd_peer_up{path="lan",peer="gpu"} 0"#).await);
    second.ok(admin.now(), Some(Duration::from_millis(1)));
    tailnet.lost();
    tailnet.because("no connection");
    directory.send(Event::Paths(id("gpu")));
    directory.settled().await;
    let status = admin.status();
    assert_eq!(status["peers"][0]["path"], "lan");
    assert_eq!(paths(&status)[0], "tailnet down no connection");
    assert!(shows(r#"tailherd_peer_up{path="tailnet",peer="gpu"} 0"#).await);
    assert!(shows(r#"tailherd_peer_up{path="lan",peer="gpu"} 1"#).await);
    assert!(shows("tailherd_pins 0").await);
    for last in [7, 8] {
        directory.send(Event::NoWay { node: id("gpu"), dial: lan(last) });
    }
    directory.settled().await;
    assert!(!shows(r#"tailherd_peer_up{path="lan",peer="gpu"} 1"#).await);
    assert!(!shows(r#"tailherd_peer_up{path="lan",peer="gpu"} 0"#).await);
    let status = admin.status();
    assert_eq!(status["lostModels"][0]["name"], "big:latest");
    assert_eq!(status["lostModels"][0]["away"][0], "gpu");
}

#[tokio::test]
async fn since_when_the_coordinator_is_away_is_told_while_the_rung_stays() {
    let admin = mesh().await;
    let directory = &admin.parts.directory;
    assert_eq!(admin.status()["coordinator"]["since"], Value::Null);
    directory.send(Event::Coordinator(Some(true)));
    directory.settled().await;
    let since = directory.load().coordinator_since;
    tokio::time::sleep(Duration::from_millis(5)).await;
    directory.send(Event::Coordinator(Some(true)));
    directory.settled().await;
    assert_eq!(directory.load().coordinator_since, since);
    directory.send(Event::Coordinator(Some(false)));
    directory.settled().await;
    assert!(directory.load().coordinator_since > since);
    assert!(admin.status()["coordinator"]["since"].is_string());
}
