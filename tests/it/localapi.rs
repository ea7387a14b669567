//! The program's LocalAPI client and connector against the stand-in tailscaled.

use std::time::Duration;

use serde_json::json;
use tailherd::config;
use tailherd::demo::tailscaled::{Owner, Tailnet, Tailscaled};
use tailherd::net::{LocalApi, TailnetView};
use tailherd::types::{Principal, Timing};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(5);

async fn find(daemon: &Tailscaled) -> LocalApi {
    let config = config::Tailnet {
        enabled: None,
        socket: Some(daemon.socket().to_owned()),
        socket_uid: None,
        ports: vec![11436],
        peers: None,
        bare_port: 11434,
        capability: "tailherd.dev/cap/use".to_owned(),
    };
    LocalApi::find(&config, &Timing::shrunk()).await.unwrap()
}

async fn two() -> (Tailnet, Tailscaled, Tailscaled) {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let gpu = net.join("gpu", Owner::tag("tag:ollama")).await.unwrap();
    (net, laptop, gpu)
}

#[tokio::test]
async fn the_tailnet_is_seen_as_it_is() {
    let (net, laptop, _gpu) = two().await;
    net.share_in("theirs", Owner::user("other@example.org"), "other.example");
    net.route("gpu", "10.0.0.0/8");
    let api = find(&laptop).await;
    let view: TailnetView = api.status(true).await.unwrap();
    assert!(view.running);
    assert_eq!((view.tun, view.online), (Some(false), Some(true)));
    assert_eq!(view.me.as_ref().map(|m| m.name.as_str()), Some("laptop"));
    let peer = |name: &str| view.peers.iter().find(|p| p.name.as_str() == name).unwrap();
    assert!(
        matches!(&peer("gpu").principal, Principal::Tags { set, .. } if set.contains("tag:ollama"))
    );
    assert_eq!(peer("gpu").addrs.len(), 2, "the subnet behind it is not its own");
    assert!(!peer("gpu").shared && peer("theirs").shared);
    assert!(api.status(false).await.unwrap().peers.is_empty());

    net.coordinator(false);
    assert_eq!(api.status(false).await.unwrap().online, Some(false));
    net.coordinator(true);
    laptop.backend("Stopped");
    let view = api.status(true).await.unwrap();
    assert_eq!((view.running, view.why.as_str()), (false, "stopped_by_user"));
    laptop.kill();
    assert!(api.status(false).await.is_err());
}

#[tokio::test]
async fn a_dial_is_named_by_whois_where_it_arrives() {
    let (net, laptop, gpu) = two().await;
    net.grant("laptop", "gpu", "tailherd.dev/cap/use", vec![json!({"verbs": ["infer"]})]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    gpu.port(11436, Some(listener.local_addr().unwrap()));
    let (ours, theirs) = (find(&laptop).await, find(&gpu).await);
    let to = gpu.addrs()[0];
    let mut io = ours.dial(to, 11436, SOON).await.unwrap();
    let (mut tcp, source) = listener.accept().await.unwrap();
    let who = theirs.whois(source).await.unwrap().expect("a caller");
    assert_eq!(who.node.name.as_str(), "laptop");
    assert_eq!(who.caps.len(), 1);
    io.write_all(b"hello").await.unwrap();
    let mut got = [0; 5];
    tcp.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hello");
    assert!(ours.ping(to).await.is_ok());
    assert!(ours.dial("192.168.1.1".parse().unwrap(), 80, SOON).await.is_err());
    let local = "127.0.0.1:9".parse().unwrap();
    assert_eq!(theirs.whois(local).await.unwrap(), None, "not a forwarded one");
}

#[tokio::test]
async fn the_bell_rings_when_the_list_changes() {
    let (net, laptop, _gpu) = two().await;
    let api = find(&laptop).await;
    let mut bell = api.bell();
    let _ = timeout(Duration::from_millis(200), bell.recv()).await;
    net.remove("gpu");
    assert!(timeout(SOON, bell.recv()).await.unwrap().is_some());
}

#[tokio::test]
async fn the_packet_filter_says_who_reaches_this_node() {
    let (net, laptop, gpu) = two().await;
    let api = find(&gpu).await;
    let reaches = async || {
        let filter = api.packet_filter().await.unwrap()?;
        filter.reaches(&laptop.addrs(), &gpu.addrs(), &[11436])
    };
    assert_eq!(reaches().await, Some(true));
    net.policy("laptop", "gpu", false);
    assert_eq!(reaches().await, Some(false));
    net.policy("gpu", "laptop", false);
    net.policy("laptop", "gpu", true);
    assert_eq!(reaches().await, Some(true), "the other way is not this one");
    net.coordinator(false);
    gpu.restart(false).unwrap();
    assert_eq!(api.packet_filter().await.unwrap(), None, "no list, no filter");
    gpu.kill();
    assert!(api.packet_filter().await.is_err());
}
