//! Behaviour of the folder over real sockets of this machine.

mod caller;
mod connect;
mod ends;
mod lan;
mod listen;
mod localapi;
mod pool;
mod standin;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::localapi::Current;
use super::view::{TailnetNode, TailnetView};
use super::{Body, Connector};
use crate::types::{ControlId, NodeId, NodeName, Principal, Timing};

fn control() -> ControlId {
    ControlId("0123456789abcdef".into())
}

fn node_id(stable: &str) -> NodeId {
    NodeId::Tailnet { control: control(), stable: stable.into() }
}

fn node(stable: &str, addrs: &[&str]) -> TailnetNode {
    let lab = Principal::User { control: control(), id: 1, login: "lab".into() };
    TailnetNode {
        dns: format!("{stable}.lab.test"),
        addrs: addrs.iter().map(|a| a.parse().unwrap()).collect(),
        os: "linux".to_owned(),
        online: true,
        ..TailnetNode::new(node_id(stable), NodeName::from_dns(stable), lab)
    }
}

/// A tailnet on the loopback device: this node is 127.0.0.1, `desk` is 127.0.0.2.
fn loopback_tailnet() -> TailnetView {
    TailnetView {
        state: "Running".to_owned(),
        running: true,
        online: Some(true),
        tun: Some(true),
        me: Some(node("me", &["127.0.0.1"])),
        peers: vec![node("desk", &["127.0.0.2"]), node("gpu", &["127.0.0.3"])],
        control: Some(control()),
        ..TailnetView::default()
    }
}

fn connector(view: TailnetView) -> (watch::Sender<Arc<TailnetView>>, Connector) {
    let (tx, rx) = watch::channel(Arc::new(view));
    (tx, Connector::new(rx, Current::default(), Timing::shrunk()))
}

async fn listener(ip: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

fn empty() -> Body {
    Body::new(Empty::<Bytes>::new().map_err(|never| match never {}))
}

fn get(path: &str) -> Request<Body> {
    Request::builder().uri(path).header("host", "test").body(empty()).unwrap()
}

/// How many connections were turned away on the local network, by reason.
fn refused_on_lan(metrics: &crate::telemetry::metrics::Metrics) -> String {
    let text = metrics.render();
    let counted = text.lines().filter_map(|line| {
        let rest = line.strip_prefix("tailherd_refused_total{listener=\"lan\",reason=\"")?;
        Some(rest.replace("\"}", ""))
    });
    counted.collect::<Vec<_>>().join(", ")
}
