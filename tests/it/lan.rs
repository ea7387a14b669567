//! The demo's local network: what comes through, what is silent, and what it never touches.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tailherd::demo::lan::{Plug, Switch};
use tailherd::demo::tailscaled::{Owner, Tailnet, Tailscaled};
use tailherd::types::ListenerKind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, last)
}

fn port(last: u8) -> SocketAddr {
    SocketAddr::from((ip(last), 11436))
}

async fn joined(net: &Tailnet, switch: &Switch, name: &str, last: u8) -> (Arc<Tailscaled>, Plug) {
    let daemon = Arc::new(net.join(name, Owner::user("me@example.com")).await.unwrap());
    (Arc::clone(&daemon), switch.plug(ip(last), daemon))
}

/// Two devices; the second one has a program that says who it sees, and echoes.
async fn two() -> (Tailnet, Plug, Plug) {
    let (net, switch) = (Tailnet::default(), Switch::default());
    let (_, laptop) = joined(&net, &switch, "laptop", 11).await;
    let (_, gpu) = joined(&net, &switch, "gpu", 12).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    gpu.listening(port(12), listener.local_addr().unwrap());
    let seen_by = gpu.clone();
    tokio::spawn(async move {
        while let Ok((mut tcp, peer)) = listener.accept().await {
            let source = seen_by.source(peer);
            tokio::spawn(async move {
                let _ = tcp.write_all(format!("{}\n", source.ip()).as_bytes()).await;
                let (mut r, mut w) = tcp.split();
                let _ = tokio::io::copy(&mut r, &mut w).await;
            });
        }
    });
    (net, laptop, gpu)
}

async fn dial(from: &Plug, to: SocketAddr) -> TcpStream {
    TcpStream::connect(from.reach(ListenerKind::Lan, to)).await.unwrap()
}

/// The next line; an error = the connection ended, `None` = silence.
async fn line(tcp: &mut TcpStream, limit: Duration) -> Option<std::io::Result<String>> {
    let mut out = Vec::new();
    timeout(limit, async {
        loop {
            match tcp.read_u8().await? {
                b'\n' => return Ok(String::from_utf8_lossy(&out).into_owned()),
                byte => out.push(byte),
            }
        }
    })
    .await
    .ok()
}

#[tokio::test]
async fn a_connection_arrives_with_the_address_it_came_from() {
    let (_net, laptop, gpu) = two().await;
    let mut tcp = dial(&laptop, port(12)).await;
    assert_eq!(line(&mut tcp, SOON).await.unwrap().unwrap(), "10.99.0.11");
    tcp.write_all(b"hello\n").await.unwrap();
    assert_eq!(line(&mut tcp, SOON).await.unwrap().unwrap(), "hello");
    assert_eq!((laptop.dialled(), gpu.dialled()), (vec![port(12)], vec![]));
    assert!(laptop.reach(ListenerKind::Lan, port(12)).ip().is_loopback());
    let other = "100.64.0.2:11436".parse().unwrap();
    assert_eq!(laptop.reach(ListenerKind::Mesh, other), other, "not its business");
}

#[tokio::test]
async fn a_closed_port_ends_and_an_unused_address_is_silent() {
    let (_net, laptop, gpu) = two().await;
    let mut nobody = dial(&laptop, port(77)).await;
    assert!(line(&mut nobody, PAUSE).await.is_none());
    let mut closed = dial(&laptop, SocketAddr::from((ip(12), 1))).await;
    assert!(line(&mut closed, SOON).await.unwrap().is_err());
    gpu.quiet();
    let mut quiet = dial(&laptop, port(12)).await;
    assert!(line(&mut quiet, SOON).await.unwrap().is_err());
}

#[tokio::test]
async fn a_cable_that_is_out_stops_what_runs_and_what_begins_until_it_is_back() {
    let (_net, laptop, gpu) = two().await;
    let mut old = dial(&laptop, port(12)).await;
    line(&mut old, SOON).await.unwrap().unwrap();
    for plug in [&laptop, &gpu] {
        plug.cut(true);
        let mut new = dial(&laptop, port(12)).await;
        old.write_all(b"x\n").await.unwrap();
        assert!(line(&mut old, PAUSE).await.is_none() && line(&mut new, PAUSE).await.is_none());
        plug.cut(false);
        assert_eq!(line(&mut old, SOON).await.unwrap().unwrap(), "x");
        assert_eq!(line(&mut new, SOON).await.unwrap().unwrap(), "10.99.0.11");
    }
}

#[tokio::test]
async fn another_address_is_another_way_and_another_network_is_none() {
    let (_net, laptop, gpu) = two().await;
    let mut old = dial(&laptop, port(12)).await;
    line(&mut old, SOON).await.unwrap().unwrap();
    let before = gpu.interfaces();
    gpu.readdress(ip(52));
    old.write_all(b"x\n").await.unwrap();
    assert!(line(&mut old, PAUSE).await.is_none(), "nobody has the old address");
    let moved = gpu.interfaces();
    assert!(before[1].gateway == moved[1].gateway && before[1].epoch != moved[1].epoch);
    gpu.listening(port(52), "127.0.0.1:9".parse().unwrap());
    laptop.carry_to(2);
    assert_ne!(laptop.interfaces()[1].gateway, moved[1].gateway);
    assert_eq!(laptop.interfaces()[1].net(), moved[1].net(), "alike but for the gateway");
    let mut new = dial(&laptop, port(52)).await;
    assert!(line(&mut new, PAUSE).await.is_none());
}
