use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::standin::{self, golden};
use super::*;
use crate::net::LocalApi;
use crate::net::localapi::{ApiError, FindError, ServeTarget, control_id};
use crate::types::{Dial, Wall};

#[tokio::test]
async fn a_running_tailnet_is_seen_with_its_nodes() {
    let (standin, _task) = standin::start();
    let view = standin.api().await.status(true).await.unwrap();
    assert!(view.running && view.why.is_empty());
    assert_eq!((view.online, view.tun), (Some(true), Some(true)));
    let control = control_id("http://10.77.1.2:8080", "lab.test");
    assert_eq!(view.control.as_ref(), Some(&control));
    let me = view.me.as_ref().unwrap();
    assert_eq!(me.id, NodeId::Tailnet { control: control.clone(), stable: "1".into() });
    assert_eq!((me.name.as_str(), &*me.dns, me.shared), ("node-a", "node-a.lab.test", false));
    assert_eq!(
        me.addrs,
        ["100.64.0.1", "fd7a:115c:a1e0::1"].map(|a| a.parse::<std::net::IpAddr>().unwrap())
    );
    let user = Principal::User { control: control.clone(), id: 1, login: "lab".into() };
    let tags = Principal::Tags { control, set: [Arc::from("tag:ollama")].into() };
    let peers: Vec<_> = view.peers.iter().map(|p| (p.name.as_str(), &p.principal)).collect();
    assert_eq!(peers, [("node-b", &user), ("node-c", &tags)]);
    assert_eq!(me.principal, user);
    // No device here carries that address.
    assert_eq!(view.device, None);
    let alone = standin.api().await.status(false).await.unwrap();
    assert!(alone.peers.is_empty() && alone.me == view.me);
}

#[tokio::test]
async fn every_recorded_state_is_understood() {
    let (standin, _task) = standin::start();
    let api = standin.api().await;
    for (name, state, why, online, named) in [
        ("status-stopped.json", "Stopped", "stopped_by_user", false, true),
        ("status-needs-login.json", "NeedsLogin", "logged_out", false, true),
        ("status-no-state.json", "NoState", "starting", false, false),
        ("status-coordinator-away.json", "Running", "", false, true),
    ] {
        standin.answers.lock().status = golden(name);
        let view = api.status(true).await.unwrap();
        assert_eq!((&*view.state, &*view.why, view.online), (state, why, Some(online)), "{name}");
        assert_eq!(view.running, state == "Running", "{name}");
        assert_eq!(view.control.is_some(), named, "{name}");
        assert_eq!(view.me.is_some(), named, "{name}");
        assert_eq!(view.control_url, "http://10.77.1.2:8080");
    }
}

#[tokio::test]
async fn keys_their_ends_and_present_ways_are_read() {
    let (standin, _task) = standin::start();
    let api = standin.api().await;
    let view = api.status(true).await.unwrap();
    let peer = |view: &TailnetView, name: &str| {
        view.peers.iter().find(|p| p.name.as_str() == name).unwrap().clone()
    };
    let desk = peer(&view, "node-b");
    let recorded = golden("status-running.json");
    for node in [&desk, view.me.as_ref().unwrap()] {
        assert!(node.key.starts_with("nodekey:") && node.key.len() == 72, "{}", node.key);
        assert!(recorded.contains(&format!("\"PublicKey\": \"{}\"", node.key)));
        assert_eq!((node.expires, node.expired), (None, false), "no expiry is said");
    }
    assert_eq!(desk.current, Some("10.77.0.12:41641".parse().unwrap()));
    assert_eq!(&*desk.relay, "lab");
    assert_eq!(peer(&view, "node-c").current, None, "idle, or over the relay");

    standin.answers.lock().status = golden("status-needs-login.json");
    let view = api.status(true).await.unwrap();
    let me = view.me.as_ref().unwrap();
    assert_eq!((me.expires, me.expired), (Some(Wall(1_795_244_570)), false), "not said of self");
    let desk = peer(&view, "node-b");
    assert_eq!((desk.expires, desk.expired), (Some(Wall(1_795_244_573)), true));
    let tagged = peer(&view, "node-c");
    assert_eq!((tagged.expires, tagged.expired), (None, false));

    let addr: SocketAddr = "100.64.0.1:4000".parse().unwrap();
    standin.knows(addr);
    let who = api.whois(addr).await.unwrap().unwrap();
    assert_eq!(who.endpoints, ["10.77.0.11:41641".parse().unwrap()]);
    assert!(golden("whois-capabilities.json").contains(&who.node.key) && who.node.key.len() == 72);
    let expired = golden("whois-capabilities.json")
        .replace("\"Cap\": 142", "\"KeyExpiry\": \"2026-11-21T07:02:50Z\", \"Expired\": true");
    standin.answers.lock().whois.insert(addr, expired);
    let who = api.whois(addr).await.unwrap().unwrap();
    assert_eq!((who.node.expires, who.node.expired), (Some(Wall(1_795_244_570)), true));
}

#[tokio::test]
async fn an_exit_node_takes_the_local_network_unless_it_may_stay() {
    let (standin, _task) = standin::start();
    let api = standin.api().await;
    for (more, exit, blocks) in [
        (serde_json::json!({}), false, false),
        (serde_json::json!({"ExitNodeID": "7"}), true, true),
        (serde_json::json!({"ExitNodeIP": "100.64.0.7"}), true, true),
        (serde_json::json!({"AutoExitNode": "any"}), true, true),
        (serde_json::json!({"ExitNodeID": "7", "ExitNodeAllowLANAccess": true}), true, false),
        (serde_json::json!({"ExitNodeAllowLANAccess": true}), false, false),
    ] {
        let mut prefs: serde_json::Value = serde_json::from_str(&golden("prefs.json")).unwrap();
        prefs.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        standin.answers.lock().prefs = prefs.to_string();
        assert_eq!(api.prefs().await.unwrap().exit_node, exit, "{more}");
        let view = api.status(false).await.unwrap();
        assert_eq!(view.exit_node_blocks_lan, blocks, "{more}");
    }
}

#[tokio::test]
async fn odd_answers_hide_only_what_is_odd() {
    let (standin, _task) = standin::start();
    let api = standin.api().await;
    let peers = async |peer: serde_json::Value| {
        let mut status: serde_json::Value =
            serde_json::from_str(&golden("status-running.json")).unwrap();
        status["Peer"]["nodekey:odd"] = peer;
        standin.answers.lock().status = status.to_string();
        let view = api.status(true).await.unwrap();
        assert!(view.peers.len() >= 2, "the others are still there");
        view.peers.into_iter().find(|p| p.name.as_str() == "odd")
    };
    let odd = |more: serde_json::Value| {
        let mut node = serde_json::json!({
            "ID": "9", "DNSName": "odd.lab.test.", "UserID": 1, "TailscaleIPs": ["100.64.0.9"],
            "AllowedIPs": ["100.64.0.9/32", "192.168.0.0/16"], "OS": "iOS",
        });
        node.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        node
    };
    let plain = peers(odd(serde_json::json!({}))).await.unwrap();
    assert!(!plain.shared && plain.mobile && !plain.online);
    assert_eq!(plain.addrs.len(), 1, "a subnet behind a node is not the node");
    for shared in [
        serde_json::json!({"DNSName": "odd.other.ts.net."}),
        serde_json::json!({"DNSName": "odd.evil-lab.test."}),
        serde_json::json!({"ShareeNode": true}),
        serde_json::json!({"AltSharerUserID": 7}),
    ] {
        assert!(peers(odd(shared.clone())).await.unwrap().shared, "{shared}");
    }
    for nobody in [
        serde_json::json!({"ID": ""}),
        serde_json::json!({"TailscaleIPs": null}),
        serde_json::json!({"UserID": 0}),
        serde_json::json!({"Tags": ["not-a-tag"]}),
        serde_json::json!({"TailscaleIPs": ["nonsense"]}),
    ] {
        assert_eq!(peers(odd(nobody.clone())).await, None, "{nobody}");
    }
    // A tagged node has no owner, whatever the user field says.
    let tagged = peers(odd(serde_json::json!({"Tags": ["tag:x"]}))).await.unwrap();
    assert!(matches!(tagged.principal, Principal::Tags { .. }));
    standin.answers.lock().status = r#"{"BackendState":"Hibernating","TUN":false}"#.to_owned();
    let view = api.status(true).await.unwrap();
    assert_eq!((&*view.state, view.running, view.tun), ("Hibernating", false, Some(false)));
    standin.answers.lock().status = "<html>".to_owned();
    assert!(matches!(api.status(true).await, Err(ApiError::Shape("status", _))));
}

#[tokio::test]
async fn whois_names_a_node_and_what_it_is_granted() {
    let (standin, _task) = standin::start();
    let api = standin.api().await;
    let addr: SocketAddr = "100.64.0.1:4000".parse().unwrap();
    assert_eq!(api.whois(addr).await.unwrap(), None);
    standin.knows(addr);
    let who = api.whois(addr).await.unwrap().unwrap();
    assert_eq!(who.node.name.as_str(), "node-a");
    let caps: Vec<serde_json::Value> =
        who.caps.iter().map(|raw| serde_json::from_str(raw).unwrap()).collect();
    let want = serde_json::json!([
        {"role": "client", "models": ["qwen3:*"]}, {"role": "admin"}]);
    assert_eq!(serde_json::Value::from(caps), want);
    standin.answers.lock().whois.insert(addr, golden("whois-tagged.json"));
    let who = api.whois(addr).await.unwrap().unwrap();
    assert!(matches!(who.node.principal, Principal::Tags { .. }));
    let odd = golden("whois-capabilities.json")
        .replace("\"example.com/cap/ollama-mesh\": [", "\"x\": [")
        .replace("\"example.org/cap/other\": []", "\"example.com/cap/ollama-mesh\": {\"a\": 1}");
    standin.answers.lock().whois.insert(addr, odd);
    assert_eq!(api.whois(addr).await.unwrap().unwrap().caps, Vec::<String>::new());
    for shape in ["{}", "{\"Node\":{}}", "null", "[]", ""] {
        standin.answers.lock().whois.insert(addr, shape.to_owned());
        assert!(matches!(api.whois(addr).await, Err(ApiError::Shape("whois", _))), "{shape}");
    }
}

#[tokio::test]
async fn two_coordinators_with_the_same_numbers_are_two() {
    let (standin, _task) = standin::start();
    let api = standin.api().await;
    let addr: SocketAddr = "100.64.0.1:4000".parse().unwrap();
    standin.knows(addr);
    let here = api.whois(addr).await.unwrap().unwrap().node;
    standin.answers.lock().prefs = r#"{"ControlURL":"http://10.77.9.9:8080"}"#.to_owned();
    let there = api.whois(addr).await.unwrap().unwrap().node;
    assert_ne!(here.id, there.id);
    assert!(!here.principal.same_owner(&there.principal));
}

#[tokio::test]
async fn a_peer_is_dialled_through_the_daemon_in_userspace_mode() {
    let (standin, _task) = standin::start();
    let (listener, addr) = listener("127.0.0.2").await;
    let (view, connector) = connector(TailnetView { tun: Some(false), ..loopback_tailnet() });
    drop(connector);
    let api = Current::default();
    api.store(Some(Arc::new(standin.api().await)));
    let connector = Connector::new(view.subscribe(), api, Timing::shrunk());
    let echo = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4];
        stream.read_exact(&mut buffer).await.unwrap();
        stream.write_all(&buffer).await.unwrap();
    });
    let mut io = connector.connect(&node_id("desk"), &Dial::Tailnet(addr)).await.unwrap();
    io.write_all(b"ping").await.unwrap();
    let mut buffer = [0; 4];
    io.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"ping");
    echo.await.unwrap();
    assert_eq!(*standin.dialled.lock(), [addr.to_string()]);
    // A port that is closed over there, and an address that is nobody's.
    let error = connector.connect(&node_id("desk"), &Dial::Tailnet(addr)).await.err().unwrap();
    assert!(error.is_refused(), "{error}");
    let stranger = Dial::Tailnet("127.0.0.9:80".parse().unwrap());
    assert!(connector.connect(&node_id("desk"), &stranger).await.is_err());
    assert_eq!(standin.dialled.lock().len(), 2, "a stranger's address is never asked for");
}

#[tokio::test]
async fn ping_and_serve_config_are_read() {
    let (standin, _task) = standin::start();
    let api = standin.api().await;
    let ping = api.ping("100.64.0.2".parse().unwrap()).await.unwrap();
    assert!(ping.rtt > Duration::ZERO && ping.rtt < Duration::from_millis(1));
    let to = "http://127.0.0.1:9000".to_owned();
    let want = [ServeTarget { port: 8081, to, funnel: false }];
    assert_eq!(api.serve_config().await.unwrap(), want);
}

#[tokio::test]
async fn the_bell_rings_when_something_changes_and_when_the_daemon_comes_back() {
    let (standin, task) = standin::start();
    let mut bell = standin.api().await.bell();
    let mut rings = async |want: bool| {
        let limit = Duration::from_millis(if want { 5000 } else { 150 });
        assert_eq!(timeout(limit, bell.recv()).await.is_ok(), want);
    };
    rings(true).await;
    rings(false).await;
    standin.bus.send(r#"{"Version":"1","State":null}"#.to_owned()).unwrap();
    rings(false).await;
    standin.bus.send(r#"{"PeersRemoved":[3]}"#.to_owned()).unwrap();
    rings(true).await;
    drop(task);
    rings(true).await;
    drop(bell);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(standin.bus.receiver_count(), 0, "nobody listens once the bell is dropped");
}

#[tokio::test]
async fn a_daemon_is_found_only_where_it_is_believed() {
    let (standin, task) = standin::start();
    let find = async |config: &crate::config::Tailnet, folder: &str| {
        let path = folder.to_owned() + "/s.sock";
        crate::net::localapi::find_in(config, &Timing::shrunk(), &[&path], None, 0)
            .await
            .map(|_| ())
    };
    let named = standin.config();
    let auto = crate::config::Tailnet { socket: None, ..standin.config() };
    let folder = standin.socket().parent().unwrap().to_str().unwrap().to_owned();
    find(&named, &folder).await.unwrap();
    let error = find(&auto, &folder).await.unwrap_err();
    let open_above = std::fs::metadata("/tmp").unwrap().permissions().mode() & 0o002 != 0;
    if folder.starts_with("/tmp/") && open_above {
        assert!(matches!(error, FindError::Distrust { daemon: Some(_), .. }), "{error}");
    }
    assert!(find(&auto, "/nonexistent").await.unwrap_err().is_none());
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).unwrap();
    let error = find(&named, &folder).await.unwrap_err();
    assert!(matches!(error, FindError::Distrust { .. }), "{error}");
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o700)).unwrap();
    // The socket file of a daemon that died stays where it was.
    drop(task);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let error = find(&named, &folder).await.unwrap_err();
    assert!(matches!(&error, FindError::Silent(e) if e.is_away()), "{error}");
}

#[tokio::test]
async fn the_tcp_form_shows_the_token_and_wants_it_roots() {
    let folder = tempfile::tempdir().unwrap();
    let (listener, addr) = listener("127.0.0.1").await;
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 1024];
            let n = stream.read(&mut head).await.unwrap();
            if n > 0 {
                let answer =
                    b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"ControlURL\":\"x\"}  ";
                stream.write_all(answer).await.unwrap();
                return String::from_utf8_lossy(&head[..n]).into_owned();
            }
        }
    });
    symlink(addr.port().to_string(), folder.path().join("ipnport")).unwrap();
    let proof = folder.path().join(format!("sameuserproof-{}", addr.port()));
    std::fs::write(&proof, "secret\n").unwrap();
    let (standin, _task) = standin::start();
    let config = crate::config::Tailnet { socket: None, ..standin.config() };
    let uid = rustix::process::geteuid().as_raw();
    let find = async |owner| {
        crate::net::localapi::find_in(&config, &Timing::shrunk(), &[], Some(folder.path()), owner)
            .await
    };
    let error = find(uid + 1).await.unwrap_err();
    assert!(matches!(error, FindError::Distrust { .. }), "{error}");
    let api: LocalApi = find(uid).await.unwrap();
    assert_eq!(api.prefs().await.unwrap().control_url, "x");
    let head = server.await.unwrap().to_lowercase();
    // `:secret` in base64.
    assert!(head.contains(&"authorization: basic OnNlY3JldA==".to_lowercase()), "{head}");
    assert!(!format!("{api:?}").contains("secret"));
}
