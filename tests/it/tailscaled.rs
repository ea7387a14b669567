//! The stand-in tailscaled: its JSON against recordings of 1.102.5, and its behaviour.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tailherd::demo::tailscaled::{Owner, Tailnet, Tailscaled};
use tailherd::types::Wall;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(5);

async fn ask(
    socket: &Path,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<http::Response<Incoming>> {
    let io = TokioIo::new(UnixStream::connect(socket).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::builder().method(method).uri(format!("/localapi/v0/{target}"));
    if headers.iter().all(|(n, _)| *n != "host") {
        request = request.header("host", "local-tailscaled.sock");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    sender
        .send_request(request.body(Empty::<Bytes>::new()).unwrap())
        .await
        .map_err(std::io::Error::other)
}

async fn status(node: &Tailscaled) -> Value {
    json_of(node, "status").await.1
}

async fn json_of(node: &Tailscaled, target: &str) -> (u16, Value) {
    let method = if target.starts_with("ping") { "POST" } else { "GET" };
    let answer = timeout(SOON, ask(node.socket(), method, target, &[])).await.unwrap().unwrap();
    let code = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// Dials through a daemon; the connection, or the status it was refused with.
async fn dial(
    node: &Tailscaled,
    host: &str,
    port: u16,
) -> Result<TokioIo<hyper::upgrade::Upgraded>, u16> {
    let port = port.to_string();
    let headers = [
        ("upgrade", "ts-dial"),
        ("connection", "upgrade"),
        ("dial-host", host),
        ("dial-port", &port),
    ];
    let answer = ask(node.socket(), "POST", "dial", &headers).await.unwrap();
    match answer.status().as_u16() {
        101 => Ok(TokioIo::new(hyper::upgrade::on(answer).await.unwrap())),
        other => Err(other),
    }
}

fn recorded(name: &str) -> Value {
    let path = format!("{}/tests/golden/localapi/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(
        std::fs::read_to_string(path).unwrap().lines().collect::<String>().as_str(),
    )
    .unwrap()
}

/// Every field of `ours` has to be in the recording, and of its type.
#[track_caller]
fn fits(ours: &Value, theirs: &Value, at: &str) {
    match (ours, theirs) {
        (Value::Null, _) | (_, Value::Null) => {}
        (Value::Object(a), Value::Object(b)) => {
            let keyed_by_data = ["Peer", "User", "CapMap"].iter().any(|k| at.ends_with(k));
            for (name, value) in a {
                // Keys that are data: any of the recorded values may have the field.
                let all = || b.values().filter_map(Value::as_object).flatten();
                let merged = || Value::Object(all().map(|(k, v)| (k.clone(), v.clone())).collect());
                let other = if keyed_by_data { Some(merged()) } else { b.get(name).cloned() };
                let Some(other) = other else { panic!("{at}.{name} is not in the recording") };
                if !at.ends_with("CapMap") {
                    fits(value, &other, &format!("{at}.{name}"));
                }
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            if let (Some(a), Some(b)) = (a.first(), b.first()) {
                fits(a, b, at);
            }
        }
        (a, b) => assert_eq!(
            std::mem::discriminant(a),
            std::mem::discriminant(b),
            "{at}: {a} against {b}"
        ),
    }
}

async fn three() -> (Tailnet, Tailscaled, Tailscaled, Tailscaled) {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let gpu = net.join("gpu", Owner::tag("tag:ollama")).await.unwrap();
    let nas = net.join("nas", Owner::user("me@example.com")).await.unwrap();
    (net, laptop, gpu, nas)
}

#[tokio::test]
async fn answers_have_the_recorded_fields() {
    let (net, laptop, gpu, _nas) = three().await;
    let all = status(&laptop).await;
    let real = recorded("status-running.json");
    fits(&all, &real, "status");
    assert_eq!(all["Peer"].as_object().unwrap().len(), 2);
    assert_eq!(all["TUN"], false);
    assert_eq!(all["Self"]["DNSName"], "laptop.demo.example.");
    for name in ["BackendState", "Self", "Peer", "User", "TailscaleIPs", "CurrentTailnet", "Health"]
    {
        assert_eq!(all[name].is_null(), real[name].is_null(), "{name}");
    }
    let alone = json_of(&laptop, "status?peers=false").await.1;
    fits(&alone, &recorded("status-nopeers.json"), "status");
    assert!(alone["Peer"].is_null());

    let tagged = json_of(&laptop, &format!("whois?addr={}", gpu.addrs()[0])).await.1;
    fits(&tagged, &recorded("whois-tagged-node.json"), "whois");
    assert_eq!(tagged["Node"]["Tags"], json!(["tag:ollama"]));
    assert_eq!(tagged["UserProfile"]["LoginName"], "tagged-devices");
    assert!(tagged["CapMap"].is_null());

    net.grant("laptop", "gpu", "tailherd.dev/cap/use", vec![json!({"models": ["qwen3:*"]})]);
    let user = json_of(&gpu, &format!("whois?addr={}:4711&proto=tcp", laptop.addrs()[0])).await.1;
    fits(&user, &recorded("whois-app-capabilities.json"), "whois");
    assert_eq!(user["CapMap"]["tailherd.dev/cap/use"], json!([{"models": ["qwen3:*"]}]));
    assert_eq!(user["UserProfile"]["LoginName"], "me@example.com");
    assert_eq!(json_of(&laptop, "whois?addr=192.168.1.1:80").await.0, 404);
    assert_eq!(json_of(&laptop, "whois?addr=127.0.0.1:80").await.0, 404);

    fits(&json_of(&laptop, "prefs").await.1, &recorded("prefs.json"), "prefs");
    let pong = json_of(&laptop, "ping?ip=100.64.0.2&type=TSMP").await.1;
    fits(&pong, &recorded("ping-tsmp.json"), "ping");
    assert_eq!(pong["NodeName"], "gpu");
    gpu.serve(recorded("serve-config.json"));
    assert_eq!(json_of(&gpu, "serve-config").await.1, recorded("serve-config.json"));
    assert_eq!(json_of(&laptop, "serve-config").await.1, json!({}));
}

#[tokio::test]
async fn strangers_and_pages_are_refused() {
    let (_net, laptop, ..) = three().await;
    for header in [("host", "evil.example"), ("origin", "http://evil.example"), ("referer", "x")] {
        let answer = ask(laptop.socket(), "GET", "status", &[header]).await.unwrap();
        assert_eq!(answer.status(), 403, "{header:?}");
    }
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(laptop.folder()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

/// A program that answers each connection with its peer's address and then echoes.
async fn program() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, peer)) = listener.accept().await {
            tokio::spawn(async move {
                tcp.write_all(format!("{peer}\n").as_bytes()).await.unwrap();
                let (mut r, mut w) = tcp.split();
                let _ = tokio::io::copy(&mut r, &mut w).await;
            });
        }
    });
    addr
}

async fn line(io: &mut TokioIo<hyper::upgrade::Upgraded>) -> String {
    let mut out = Vec::new();
    loop {
        match timeout(SOON, io.read_u8()).await.unwrap() {
            Ok(b'\n') | Err(_) => return String::from_utf8(out).unwrap(),
            Ok(b) => out.push(b),
        }
    }
}

#[tokio::test]
async fn a_dial_arrives_on_loopback_and_whois_names_the_dialler() {
    let (_net, laptop, gpu, nas) = three().await;
    gpu.port(11436, Some(program().await));
    let mut io = dial(&laptop, "100.64.0.2", 11436).await.unwrap();
    let source = line(&mut io).await;
    assert!(source.starts_with("127.0.0.1:"), "{source}");
    assert!(gpu.owns(source.parse().unwrap()));
    let (code, who) = json_of(&gpu, &format!("whois?addr={source}&proto=tcp")).await;
    assert_eq!((code, &who["Node"]["ComputedName"]), (200, &json!("laptop")));
    assert_eq!(
        json_of(&nas, &format!("whois?addr={source}")).await.0,
        404,
        "only where it arrived"
    );
    io.write_all(b"ping\n").await.unwrap();
    assert_eq!(line(&mut io).await, "ping");
    drop(io);
    timeout(SOON, async {
        while gpu.owns(source.parse().unwrap()) {
            tokio::task::yield_now().await
        }
    })
    .await
    .unwrap();
    assert_eq!(json_of(&gpu, &format!("whois?addr={source}")).await.0, 404, "forgotten at the end");

    assert_eq!(dial(&laptop, "fd7a:115c:a1e0::2", 11436).await.err(), None);
    assert_eq!(dial(&laptop, "100.64.0.2", 1).await.err(), Some(502), "nobody listens");
    assert_eq!(dial(&laptop, "192.168.1.1", 80).await.err(), Some(200), "not of the tailnet");
    assert_eq!(laptop.asked().dials, 4);
}

#[tokio::test]
async fn a_way_takes_its_time_and_keeps_the_order() {
    let (net, laptop, gpu, _nas) = three().await;
    gpu.port(11436, Some(program().await));
    let way = Duration::from_millis(80);
    net.way(laptop.number(), gpu.number(), way);
    let began = tokio::time::Instant::now();
    let mut io = dial(&laptop, "100.64.0.2", 11436).await.unwrap();
    assert!(began.elapsed() >= way, "a connection is a round trip");
    line(&mut io).await;
    let sent = tokio::time::Instant::now();
    for word in ["a\n", "b\n", "c\n"] {
        io.write_all(word.as_bytes()).await.unwrap();
        io.flush().await.unwrap();
    }
    let echo = [line(&mut io).await, line(&mut io).await, line(&mut io).await];
    assert_eq!(echo, ["a", "b", "c"]);
    assert!(sent.elapsed() >= way, "and so is an answer");
    assert!(gpu.asked().bytes >= 12, "six there, six back: {}", gpu.asked().bytes);
    assert_eq!(gpu.asked().bytes, laptop.asked().bytes);
}

#[tokio::test]
async fn whois_may_lag_behind_a_connection_and_may_hang() {
    let (_net, laptop, gpu, _nas) = three().await;
    gpu.port(11436, Some(program().await));
    gpu.whois_lag(Duration::from_millis(150));
    let mut io = dial(&laptop, "100.64.0.2", 11436).await.unwrap();
    let source = line(&mut io).await;
    assert_eq!(json_of(&gpu, &format!("whois?addr={source}")).await.0, 404);
    assert!(gpu.owns(source.parse().unwrap()), "its own descriptor all the time");
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(json_of(&gpu, &format!("whois?addr={source}")).await.0, 200);
    gpu.whois_hangs(true);
    let hangs = ask(gpu.socket(), "GET", "whois?addr=100.64.0.1", &[]);
    assert!(timeout(Duration::from_millis(100), hangs).await.is_err());
}

#[tokio::test]
async fn without_the_coordinator_everything_stands_still_but_the_tunnels() {
    let (net, laptop, gpu, _nas) = three().await;
    gpu.port(11436, Some(program().await));
    net.coordinator(false);
    net.remove("nas");
    let s = status(&laptop).await;
    assert_eq!((&s["BackendState"], &s["Self"]["Online"]), (&json!("Running"), &json!(false)));
    assert_eq!(s["Peer"].as_object().unwrap().len(), 2, "the removal is not heard of");
    assert!(dial(&laptop, "100.64.0.2", 11436).await.is_ok());
    laptop.kill();
    assert!(ask(laptop.socket(), "GET", "status", &[]).await.is_err(), "refused");
    assert!(laptop.socket().exists());
    laptop.start().unwrap();
    let s = status(&laptop).await;
    fits(&s, &recorded("status-restarted-coordinator-down-no-cache.json"), "status");
    assert_eq!((&s["BackendState"], &s["Peer"]), (&json!("NoState"), &Value::Null));
    net.coordinator(true);
    laptop.backend("Running");
    let s = status(&laptop).await;
    assert_eq!(s["Self"]["Online"], true);
    assert_eq!(s["Peer"].as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn policy_and_sleep_swallow_connections_while_only_policy_lets_pings_pass() {
    let (net, laptop, gpu, _nas) = three().await;
    gpu.port(11436, Some(program().await));
    let lost = async || {
        timeout(Duration::from_millis(100), dial(&laptop, "100.64.0.2", 11436)).await.is_err()
    };
    let ping = async || {
        let call = ask(laptop.socket(), "POST", "ping?ip=100.64.0.2&type=disco", &[]);
        timeout(Duration::from_millis(100), call).await.is_ok()
    };
    net.policy("laptop", "gpu", false);
    assert!(lost().await && ping().await);
    net.policy("laptop", "gpu", true);
    let mut io = dial(&laptop, "100.64.0.2", 11436).await.unwrap();
    line(&mut io).await;
    gpu.asleep(true);
    assert!(lost().await && !ping().await);
    io.write_all(b"x\n").await.unwrap();
    assert!(timeout(Duration::from_millis(100), io.read_u8()).await.is_err(), "stands still");
    gpu.asleep(false);
    assert_eq!(line(&mut io).await, "x", "and goes on");
    laptop.kill();
    assert!(timeout(SOON, io.read_u8()).await.unwrap().is_err(), "ends with its own daemon");
}

#[tokio::test]
async fn the_bus_rings_on_changes_only() {
    let (net, laptop, ..) = three().await;
    let answer = ask(laptop.socket(), "GET", "watch-ipn-bus?mask=4226", &[]).await.unwrap();
    let mut bus = answer.into_body();
    let mut next = async || {
        let frame = timeout(Duration::from_millis(300), bus.frame()).await.ok()?;
        let bytes = frame?.ok()?.into_data().ok()?;
        serde_json::from_slice::<Value>(&bytes).ok()
    };
    let first = next().await.unwrap();
    fits(&first, &recorded("bus-initial-mask-2.jsonl"), "notify");
    assert_eq!(first["State"], 6);
    assert!(next().await.is_none());
    net.coordinator(false);
    assert!(next().await.is_none(), "a lost coordinator is not told");
    net.coordinator(true);
    assert!(next().await.is_some());
    net.remove("nas");
    assert!(next().await.unwrap()["PeersChanged"].is_array());
}

/// The first message of the bus under this mask.
async fn first(node: &Tailscaled, mask: u64) -> Value {
    let target = format!("watch-ipn-bus?mask={mask}");
    let mut bus = ask(node.socket(), "GET", &target, &[]).await.unwrap().into_body();
    let frame = timeout(SOON, bus.frame()).await.unwrap().unwrap().unwrap();
    serde_json::from_slice(&frame.into_data().unwrap()).unwrap()
}

fn peer(status: &Value, name: &str) -> Value {
    let mut peers = status["Peer"].as_object().unwrap().values();
    peers.find(|p| p["HostName"] == name).unwrap().clone()
}

#[tokio::test]
async fn the_bus_tells_the_packet_filter_once() {
    let (net, laptop, gpu, nas) = three().await;
    net.grant("laptop", "gpu", "tailherd.dev/cap/use", vec![json!({"models": ["*"]})]);
    let real = recorded("bus-initial-mask-8.jsonl");
    fits(&first(&nas, 8).await, &real, "notify");
    let told = first(&gpu, 8).await;
    assert!(told["State"].is_null() && told["SelfChange"]["StableID"] == "2");
    let open = &told["NetMap"]["PacketFilter"];
    fits(open, &real["NetMap"]["PacketFilter"], "filter");
    assert_eq!(open[0]["Srcs"][0], "100.64.0.0/10");
    let cap = &open[1]["Caps"][0];
    assert_eq!((&open[1]["Dsts"], &cap["Dst"]), (&json!([]), &json!("100.64.0.2/32")));

    net.policy("laptop", "gpu", false);
    let shut = first(&gpu, 8).await["NetMap"]["PacketFilter"].clone();
    let nas: Vec<String> = nas.addrs().iter().map(|a| a.to_string()).collect();
    assert_eq!(shut[0]["Srcs"], json!([format!("{}/32", nas[0]), format!("{}/128", nas[1])]));
    let whole = json!({"Net": "100.64.0.2/32", "Ports": {"First": 0, "Last": 65535}});
    assert_eq!(shut[0]["Dsts"][0], whole);
    let other = first(&laptop, 8).await["NetMap"]["PacketFilter"].clone();
    assert_eq!(other[0]["Srcs"][0], "100.64.0.0/10", "one way only");
    net.policy("nas", "gpu", false);
    net.grant("laptop", "gpu", "tailherd.dev/cap/use", vec![]);
    assert_eq!(first(&gpu, 8).await["NetMap"]["PacketFilter"], json!([]));

    net.coordinator(false);
    net.policy("laptop", "gpu", true);
    assert_eq!(first(&gpu, 8).await["NetMap"]["PacketFilter"], json!([]), "not heard of");
    gpu.restart(false).unwrap();
    assert!(first(&gpu, 10).await["NetMap"].is_null());
}

#[tokio::test]
async fn a_key_expires_without_a_coordinator_and_takes_the_tunnels_along() {
    let (net, laptop, gpu, _nas) = three().await;
    gpu.port(11436, Some(program().await));
    let real = recorded("status-key-expired-coordinator-down.json");
    let soon = Wall::of(std::time::SystemTime::now()) + Duration::from_secs(3600);
    net.expires("laptop", Some(soon));
    let before = status(&laptop).await;
    assert_eq!(before["BackendState"], "Running");
    fits(&before, &real, "status");
    let mut io = dial(&laptop, "100.64.0.2", 11436).await.unwrap();
    line(&mut io).await;
    net.coordinator(false);
    net.expire("laptop");
    let own = status(&laptop).await;
    fits(&own, &real, "status");
    assert_eq!(
        (&own["BackendState"], &own["Self"]["Online"]),
        (&json!("NeedsLogin"), &json!(false))
    );
    assert!(own["Self"]["Expired"].is_null() && own["Self"]["KeyExpiry"].is_string());
    let seen = peer(&status(&gpu).await, "laptop");
    assert_eq!(seen["Expired"], true);
    let who = json_of(&gpu, "whois?addr=100.64.0.1").await.1;
    assert_eq!((&who["Node"]["Expired"], &who["Node"]["Key"]), (&json!(true), &seen["PublicKey"]));
    io.write_all(b"x\n").await.unwrap();
    assert!(timeout(Duration::from_millis(100), io.read_u8()).await.is_err(), "stands still");

    net.coordinator(true);
    assert_eq!(status(&laptop).await["BackendState"], "NeedsLogin", "a person has to come");
    net.renew("laptop");
    assert_eq!(line(&mut io).await, "x");
    let renewed = peer(&status(&gpu).await, "laptop");
    assert!(renewed["Expired"].is_null() && renewed["PublicKey"] != seen["PublicKey"]);
}

#[tokio::test]
async fn a_restart_from_a_file_shows_everybody_and_reaches_nobody() {
    let (net, laptop, gpu, _nas) = three().await;
    gpu.port(11436, Some(program().await));
    let silent = async |how: &str| {
        let target = format!("ping?ip=100.64.0.2&type={how}");
        let call = ask(laptop.socket(), "POST", &target, &[]);
        timeout(Duration::from_millis(100), call).await.is_err()
    };
    net.coordinator(false);
    laptop.restart(true).unwrap();
    let s = status(&laptop).await;
    assert_eq!((&s["BackendState"], &s["Self"]["Online"]), (&json!("Running"), &json!(false)));
    assert_eq!(peer(&s, "gpu")["Online"], true);
    assert_eq!(first(&laptop, 8).await["NetMap"]["Cached"], true);
    assert!(silent("disco").await && silent("TSMP").await);
    let call = dial(&laptop, "100.64.0.2", 11436);
    assert!(timeout(Duration::from_millis(100), call).await.is_err());
    net.coordinator(true);
    assert!(!silent("disco").await && dial(&laptop, "100.64.0.2", 11436).await.is_ok());

    laptop.tunnels(false);
    let s = status(&laptop).await;
    assert_eq!((&s["BackendState"], &s["Self"]["Online"]), (&json!("Running"), &json!(true)));
    assert!(silent("disco").await);
    laptop.tunnels(true);
    assert!(!silent("disco").await);

    net.coordinator(false);
    laptop.restart(false).unwrap();
    assert_eq!(status(&laptop).await["BackendState"], "NoState");
    let pong = json_of(&laptop, "ping?ip=100.64.0.2&type=disco").await.1;
    fits(&pong, &recorded("ping-tsmp.json"), "ping");
    assert_eq!(pong["Err"], "no matching peer");
    net.coordinator(true);
    assert_eq!(status(&laptop).await["BackendState"], "Running", "by itself");
}

#[tokio::test]
async fn a_stop_keeps_the_tailnet_a_logout_forgets_it() {
    let (net, laptop, gpu, _nas) = three().await;
    laptop.backend("Stopped");
    let prefs = json_of(&laptop, "prefs").await.1;
    assert_eq!((&prefs["WantRunning"], &prefs["LoggedOut"]), (&json!(false), &json!(false)));
    assert_eq!(status(&laptop).await["CurrentTailnet"]["Name"], "demo.example");
    laptop.backend("Running");
    laptop.logout();
    let prefs = json_of(&laptop, "prefs").await.1;
    fits(&prefs, &recorded("prefs.json"), "prefs");
    assert_eq!((&prefs["ControlURL"], &prefs["LoggedOut"]), (&json!(""), &json!(true)));
    let s = status(&laptop).await;
    assert_eq!(s["BackendState"], "NeedsLogin");
    assert!(s["CurrentTailnet"].is_null() && s["Peer"].is_null());
    assert!(peer(&status(&gpu).await, "laptop")["Expired"].is_null(), "its key lives on");
    laptop.login();
    assert_eq!(status(&laptop).await["BackendState"], "Running");
    net.remove("laptop");
    assert_eq!(status(&laptop).await["BackendState"], "NeedsLogin");

    gpu.exit_node(Some(false));
    let prefs = json_of(&gpu, "prefs").await.1;
    fits(&prefs, &recorded("prefs.json"), "prefs");
    assert_eq!(
        (&prefs["ExitNodeID"], &prefs["ExitNodeAllowLANAccess"]),
        (&json!("99"), &json!(false))
    );
}

#[tokio::test]
async fn tunnels_on_one_local_network_go_straight() {
    let (net, laptop, gpu, nas) = three().await;
    let at = |node: &Tailscaled, network: u64, addr: &str| {
        node.link(Some((network, addr.parse().unwrap())));
    };
    at(&laptop, 7, "10.99.0.11");
    at(&gpu, 7, "10.99.0.12");
    at(&nas, 8, "10.99.0.13");
    let s = status(&laptop).await;
    fits(&s, &recorded("status-running.json"), "status");
    assert_eq!(peer(&s, "gpu")["CurAddr"], "10.99.0.12:41641");
    assert_eq!(peer(&s, "nas")["CurAddr"], "", "over the relay");
    let pong = json_of(&laptop, "ping?ip=100.64.0.2&type=disco").await.1;
    assert_eq!((&pong["Endpoint"], &pong["DERPRegionID"]), (&json!("10.99.0.12:41641"), &json!(0)));
    let endpoints = async || {
        let who = json_of(&laptop, "whois?addr=100.64.0.2").await.1;
        fits(&who, &recorded("whois-tagged-node.json"), "whois");
        who["Node"]["Endpoints"].clone()
    };
    assert_eq!(endpoints().await, json!(["10.99.0.12:41641"]));
    net.coordinator(false);
    at(&gpu, 7, "10.99.0.52");
    assert_eq!(peer(&status(&laptop).await, "gpu")["CurAddr"], "10.99.0.52:41641");
    assert_eq!(endpoints().await, json!(["10.99.0.12:41641"]), "nobody tells");
    gpu.kill();
    assert_eq!(peer(&status(&laptop).await, "gpu")["CurAddr"], "");
}

#[tokio::test]
async fn nodes_of_other_tailnets_are_listed_as_such() {
    let (net, laptop, ..) = three().await;
    net.share_in("theirs", Owner::user("other@example.org"), "other.example");
    net.route("gpu", "10.0.0.0/8");
    let s = status(&laptop).await;
    assert_eq!(peer(&s, "theirs")["DNSName"], "theirs.other.example.");
    assert_eq!(peer(&s, "theirs")["ShareeNode"], true);
    assert_eq!(peer(&s, "gpu")["AllowedIPs"][2], "10.0.0.0/8");
}
