use super::*;
use crate::net::ConnectError;
use crate::types::Dial;

/// What a dial of `desk` at the listener's address comes to.
async fn outcome(view: TailnetView, node: &str, ip: &str) -> Result<(), ConnectError> {
    let (listener, addr) = listener(ip).await;
    let (_keep, connector) = connector(view);
    let accepted = tokio::spawn(async move { listener.accept().await.map(|(_, from)| from) });
    connector.connect(&node_id(node), &Dial::Tailnet(addr)).await?;
    let from = accepted.await.unwrap().unwrap();
    assert_eq!(from.ip().to_string(), "127.0.0.1", "the source is our own tailnet address");
    Ok(())
}

#[tokio::test]
async fn a_listed_address_is_dialled_from_our_own() {
    outcome(loopback_tailnet(), "desk", "127.0.0.2").await.unwrap();
}

#[tokio::test]
async fn the_tailnet_is_dialled_only_while_it_runs() {
    let stopped = TailnetView { running: false, ..loopback_tailnet() };
    let error = outcome(stopped, "desk", "127.0.0.2").await.unwrap_err();
    assert!(matches!(error, ConnectError::NotRunning(_)), "{error}");
    let unknown = TailnetView { tun: None, ..loopback_tailnet() };
    let error = outcome(unknown, "desk", "127.0.0.2").await.unwrap_err();
    assert!(matches!(error, ConnectError::NotRunning(_)), "{error}");
}

#[tokio::test]
async fn only_the_nodes_own_listed_addresses_are_dialled() {
    for (node, ip) in [("desk", "127.0.0.3"), ("nobody", "127.0.0.2"), ("desk", "127.0.0.9")] {
        let error = outcome(loopback_tailnet(), node, ip).await.unwrap_err();
        assert!(matches!(error, ConnectError::NotListed(_)), "{node} {ip}: {error}");
    }
}

#[tokio::test]
async fn without_a_device_there_is_no_dial() {
    let gone = TailnetView { me: Some(node("me", &["192.0.2.1"])), ..loopback_tailnet() };
    let error = outcome(gone, "desk", "127.0.0.2").await.unwrap_err();
    assert!(matches!(error, ConnectError::NoDevice { .. }), "{error}");
}

#[tokio::test]
async fn userspace_mode_asks_nobody_for_an_address_that_is_not_listed() {
    let userspace = TailnetView { tun: Some(false), ..loopback_tailnet() };
    let error = outcome(userspace.clone(), "desk", "127.0.0.9").await.unwrap_err();
    assert!(matches!(error, ConnectError::NotListed(_)), "{error}");
    // Listed, but there is no daemon to dial it: never a direct connection instead.
    let error = outcome(userspace, "desk", "127.0.0.2").await.unwrap_err();
    assert!(matches!(error, ConnectError::NotRunning(_)), "{error}");
}

#[tokio::test]
async fn configured_servers_are_reached_by_name_and_by_address() {
    let (listener, addr) = listener("127.0.0.1").await;
    let (_keep, connector) = connector(TailnetView::absent("no_tailnet"));
    let server = |host: &str, tls| Dial::Configured { host: host.into(), port: addr.port(), tls };
    let id = NodeId::Configured("nas".into());
    for host in ["127.0.0.1", "localhost"] {
        connector.connect(&id, &server(host, false)).await.unwrap();
        listener.accept().await.unwrap();
    }
    let error = connector.connect(&id, &server("no-such-name.invalid", false)).await.err().unwrap();
    assert!(matches!(error, ConnectError::Name { .. }), "{error}");
    // A server that speaks no TLS is never spoken to in the clear instead.
    let plain = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    });
    let error = connector.connect(&id, &server("localhost", true)).await.err().unwrap();
    assert!(matches!(error, ConnectError::Tls { .. }), "{error}");
    plain.await.unwrap();
}

#[tokio::test]
async fn a_configured_tailnet_address_takes_no_other_way() {
    let (_keep, connector) = connector(TailnetView::absent("daemon_down"));
    for host in ["100.64.0.9", "[fd7a:115c:a1e0::9]", "::ffff:100.64.0.9"] {
        let dial = Dial::Configured { host: host.into(), port: 11434, tls: false };
        let id = NodeId::Configured("nas".into());
        let error = connector.connect(&id, &dial).await.err().unwrap();
        assert!(matches!(error, ConnectError::NotRunning(_)), "{host}: {error}");
    }
}

#[tokio::test]
async fn a_closed_port_is_told_apart_from_silence() {
    let (listener, addr) = listener("127.0.0.1").await;
    drop(listener);
    let (_keep, connector) = connector(TailnetView::absent("no_tailnet"));
    let error = connector.connect(&NodeId::This, &Dial::Loopback(addr)).await.err().unwrap();
    assert!(error.is_refused() && !error.is_timeout(), "{error}");
}
