//! A hand on the local network that does not keep the program's manners: it holds what a
//! copied state folder holds, dials whom it wants, and never looks whether it should.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use http::Method;
use tailherd::demo::client::{Answer, get};
use tailherd::demo::lan::Plug;
use tailherd::demo::node::Node;
use tailherd::net::lan::Kind;
use tailherd::net::localapi::Current;
use tailherd::net::{ConnectError, Connector, Io, LanLink, LanView, Sockets, TailnetView};
use tailherd::trust::{Bounds, Pin, PinState, Trust};
use tailherd::types::{Dial, Timing};
use tokio::sync::watch;

use crate::eve::{CONTENT_TYPE, now};
use crate::world::until;

pub(crate) struct Hand {
    connector: Connector,
    trust: Trust,
    /// Dropped, they would end what follows them.
    _follows: (watch::Sender<Arc<TailnetView>>, watch::Sender<Arc<LanView>>),
    _folder: tempfile::TempDir,
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

impl Hand {
    /// With what this device's state folder holds, once that knows where `to` is.
    pub(crate) async fn of(node: &Node, to: &str) -> Hand {
        let mut hand = Hand::copied(node, node.lan().unwrap());
        let knows = async || {
            hand = Hand::copied(node, node.lan().unwrap());
            hand.find(to).is_some_and(|p| p.state == PinState::Live && !p.lan.is_empty())
        };
        assert!(until(knows).await, "{} never saves a pin of {to}", node.name);
        hand
    }

    /// With what this device's state folder holds now, plugged in elsewhere.
    pub(crate) fn copied(node: &Node, plug: &Plug) -> Hand {
        let folder = tempfile::tempdir().unwrap();
        copy(node.state(), folder.path());
        let trust = Trust::open(Some(folder.path()), Bounds::of(node.config()));
        trust.recall(None, now());
        let interfaces = plug.interfaces();
        let lan = interfaces.iter().find(|i| i.kind == Kind::Lan).unwrap();
        let links = vec![LanLink::new(lan, "wherever")];
        let (tailnet_tx, tailnet) = watch::channel(Arc::new(TailnetView::default()));
        let (lan_tx, lan) =
            watch::channel(Arc::new(LanView { links, ..LanView::around(&interfaces) }));
        let plug = plug.clone();
        let sockets = Sockets::real()
            .with_interfaces(Vec::new)
            .with_reach(move |kind, addr| plug.reach(kind, addr));
        let api = Current::default();
        let timing = Timing::shrunk();
        let connector = Connector::with_lan(tailnet, api, lan, trust.clone(), sockets, timing);
        Hand { connector, trust, _follows: (tailnet_tx, lan_tx), _folder: folder }
    }

    fn find(&self, name: &str) -> Option<Pin> {
        self.trust.view().pins.iter().find(|p| p.name.as_str() == name).cloned()
    }

    /// What it knows of a node.
    pub(crate) fn pin(&self, name: &str) -> Pin {
        self.find(name).unwrap()
    }

    /// A stream to that node's address on the local network.
    pub(crate) async fn dial(&self, to: &str) -> Result<Box<dyn Io>, ConnectError> {
        let pin = self.pin(to);
        let addr = SocketAddr::new(*pin.lan.first().unwrap(), pin.port);
        self.connector.connect(&pin.node, &Dial::Lan { addr, key: pin.key }).await
    }

    /// Its answer to a request there, or why there is none.
    pub(crate) async fn ask(&self, to: &str, method: Method, path: &str) -> Result<Answer, String> {
        let io = self.dial(to).await.map_err(|e| e.to_string())?;
        let nowhere = "127.0.0.1:1".parse().unwrap();
        let call = get(nowhere, path).method(method).header("content-type", CONTENT_TYPE);
        let limit = std::time::Duration::from_secs(5);
        let stream = tokio::time::timeout(limit, call.open_on(io)).await;
        let stream = stream.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        Ok(stream.rest().await)
    }

    /// The status of its answer to a harmless question there; 0 if it gets none.
    pub(crate) async fn status(&self, to: &str) -> u16 {
        self.ask(to, Method::GET, "/mesh/v1/offers").await.map_or(0, |a| a.status)
    }
}
