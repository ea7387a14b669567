//! A device of the tailnet that says hello in its own words: honest, mistaken or worse.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tailherd::api::hello::{HELLO, HelloSay};
use tailherd::demo::client::{Answer, Call, post};
use tailherd::demo::node::Node;
use tailherd::net::{LocalApi, TailnetNode, TailnetView};
use tailherd::trust::keys::Ring;
use tailherd::trust::{tag, tls};
use tailherd::types::{ListenerKind, NodeId, PublicKey, Timing, Wall};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub(crate) const CONTENT_TYPE: &str = "application/vnd.tailherd+json";

/// The other device's own words for the hello protocol, and its key.
#[derive(Clone)]
pub(crate) struct Eve<'a> {
    pub(crate) node: &'a Node,
    pub(crate) ring: Ring,
}

pub(crate) fn now() -> Wall {
    Wall::of(SystemTime::now())
}

pub(crate) fn stable(node: &TailnetNode) -> String {
    match &node.id {
        NodeId::Tailnet { stable, .. } => stable.to_string(),
        other => panic!("{other}"),
    }
}

impl<'a> Eve<'a> {
    pub(crate) fn new(node: &'a Node) -> Eve<'a> {
        Eve { node, ring: Ring::new(now()).unwrap() }
    }

    pub(crate) async fn view(&self) -> TailnetView {
        let limits = Timing::shrunk();
        let api = LocalApi::find(&self.node.config().tailnet, &limits).await.unwrap();
        api.status(true).await.unwrap()
    }

    /// What an honest sidecar on this device would say to that peer.
    pub(crate) async fn truth(&self, to: &str) -> HelloSay {
        let view = self.view().await;
        let me = view.me.as_ref().unwrap();
        let peer = view.peers.iter().find(|p| p.name.as_str() == to).unwrap();
        HelloSay {
            control: view.control.as_ref().unwrap().0.to_string(),
            me: stable(me),
            you: stable(peer),
            my_node_key: me.key.clone(),
            your_node_key: peer.key.clone(),
            version: "0.0.0".to_owned(),
            ephemeral: false,
            chain: self.ring.chain(),
            holds: None,
            lan: Vec::new(),
            port: 0,
            departed: Vec::new(),
        }
    }

    /// A call to that path, in the words of sidecars.
    pub(crate) fn call(path: &str, say: &HelloSay) -> Call {
        let nowhere = ([127, 0, 0, 1], 11436).into();
        let body = serde_json::to_vec(say).unwrap();
        post(nowhere, path, body).header("content-type", CONTENT_TYPE)
    }

    /// Sends a call inside TLS to the mesh port of `to`, with this device's key.
    pub(crate) async fn send(&self, to: &Node, call: Call) -> Answer {
        let io = self.node.wire(to, 11436).await.unwrap();
        let config = tls::client_hello(self.ring.own()).unwrap();
        let name = ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into());
        let io = TlsConnector::from(config).connect(name, io).await.unwrap();
        call.open_on(io).await.unwrap().rest().await
    }

    /// Says hello.
    pub(crate) async fn hello(&self, to: &Node, say: &HelloSay) -> Answer {
        self.send(to, Eve::call(HELLO, say)).await
    }

    /// The key of that program, as it says in its answer to a hello.
    pub(crate) async fn key_of(&self, to: &Node) -> PublicKey {
        let answer = self.hello(to, &self.truth(&to.name).await).await;
        let said: HelloSay = serde_json::from_slice(&answer.body).unwrap();
        said.chain.last().unwrap().key
    }

    /// Calls that program on the local network, as one whose key is `key`; an error if it does
    /// not take ours.
    pub(crate) async fn call_on_lan(
        &self,
        to: &Node,
        key: PublicKey,
    ) -> io::Result<TlsStream<TcpStream>> {
        let called = SocketAddr::new(to.lan().unwrap().addr().into(), 11436);
        let at = self.node.lan().unwrap().reach(ListenerKind::Lan, called);
        let tcp = TcpStream::connect(at).await?;
        let config = tls::client(self.ring.own(), key).unwrap();
        let name = ServerName::try_from(tag::sni(&key, called, now(), rand::random())).unwrap();
        let mut io = TlsConnector::from(config).connect(name, tcp).await?;
        // A server that refuses our key says so only after our part of the handshake.
        let first = tokio::time::timeout(Duration::from_millis(100), io.read_u8()).await;
        match first {
            Err(_) => Ok(io),
            Ok(ended) => Err(ended.err().unwrap_or_else(|| io::ErrorKind::InvalidData.into())),
        }
    }

    /// From now on this device answers hellos on its mesh port with `say`, as the holder of its
    /// key; the answer is how many it answered.
    pub(crate) async fn answers(&self, say: HelloSay) -> Answering {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.node.daemon.port(11436, Some(listener.local_addr().unwrap()));
        let config = tls::server_hello(self.ring.own()).unwrap();
        let body = Bytes::from(serde_json::to_vec(&say).unwrap());
        let (count, counted) = tokio::sync::watch::channel(0);
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let acceptor = TlsAcceptor::from(Arc::clone(&config));
                let (body, count) = (body.clone(), count.clone());
                tokio::spawn(async move {
                    let Ok(io) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |_| {
                        count.send_modify(|n| *n += 1);
                        let mut response = Response::new(Full::new(body.clone()));
                        *response.status_mut() = StatusCode::OK;
                        async move { Ok::<_, Infallible>(response) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(io), service).await;
                });
            }
        });
        Answering { task, counted }
    }
}

/// A device that answers hellos, until dropped.
pub(crate) struct Answering {
    task: JoinHandle<()>,
    counted: tokio::sync::watch::Receiver<u32>,
}

impl Answering {
    pub(crate) fn count(&self) -> u32 {
        *self.counted.borrow()
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.task.abort();
    }
}
