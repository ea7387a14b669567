//! Two nodes on one local network, whose addresses there are really found on loopback.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::*;
use crate::api::hello::HelloSay;
use crate::net::lan::{Gateway, Interface, Kind, LanLink, LanView};
use crate::net::{ConnectError, Io, LanAccepted, LanListeners, Pool, Sockets};
use crate::telemetry::{Clock, metrics::Metrics, wall};
use crate::trust::{Bounds, ByHand, Hello, ListedPeer, Netmap, Own, Trust, tag, tls};
use crate::types::{Dial, ListenerKind, PublicKey, Verb};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A node with its trust; its tailnet address ends like its address on the local network.
pub(super) struct Peer {
    pub(super) own: Own,
    pub(super) trust: Trust,
}

pub(super) fn peer(name: &str, last: u8) -> Peer {
    let own = Own {
        stable: name.to_owned(),
        created: "then".to_owned(),
        name: NodeName::from_dns(name),
        principal: Principal::User { control: control(), id: 1, login: "lab".into() },
        node_key: format!("nodekey:{name}"),
        addrs: vec![IpAddr::from([100, 64, 0, last])],
    };
    let trust = Trust::open(None, Bounds { trust: 14 * DAY, grant: DAY, ports: vec![11436] });
    trust.enter(&control(), &own, Some(1), "https://c", wall());
    Peer { own, trust }
}

impl Peer {
    pub(super) fn key(&self) -> PublicKey {
        self.trust.view().ring.as_ref().unwrap().current()
    }

    fn listed(&self) -> ListedPeer<'_> {
        ListedPeer {
            stable: &self.own.stable,
            created: &self.own.created,
            name: &self.own.name,
            dns: "",
            principal: &self.own.principal,
            shared: false,
            node_key: &self.own.node_key,
            expires: None,
            expired: false,
            addrs: &self.own.addrs,
        }
    }

    /// Pins the other, as a hello over the tailnet does.
    pub(super) fn pin(&self, other: &Peer) {
        let now = wall();
        let nodes = [other.listed()];
        self.trust.netmap(&Netmap { control: &control(), online: true, nodes: &nodes }, now);
        let said = HelloSay {
            control: control().0.to_string(),
            me: other.own.stable.clone(),
            you: self.own.stable.clone(),
            my_node_key: other.own.node_key.clone(),
            your_node_key: self.own.node_key.clone(),
            version: String::new(),
            ephemeral: false,
            chain: other.trust.view().ring.as_ref().unwrap().chain(),
            holds: Some(self.key()),
            lan: Vec::new(),
            port: 0,
            departed: Vec::new(),
        };
        let (key, own_key) = (other.key(), self.key());
        let port = Some(11436);
        let hello = Hello { node: other.listed(), said: &said, key, own_key, port, grants: None };
        self.trust.dialled(&hello, now).unwrap();
    }

    /// The network has seen the other reach this node.
    pub(super) fn reached_by(&self, other: &Peer) {
        self.trust.reached(&node_id(&other.own.stable), wall());
    }
}

fn interface(addr: &str) -> Interface {
    Interface {
        name: "lan0".to_owned(),
        index: None,
        addr: addr.parse().unwrap(),
        prefix: 24,
        gateway: Some(Gateway { addr: [10, 99, 0, 1].into(), link: Some("aa".into()) }),
        kind: Kind::Lan,
        epoch: 1,
    }
}

pub(super) fn link(addr: &str) -> LanView {
    let here = interface(addr);
    let links = vec![LanLink::new(&here, "home")];
    LanView { links, ..LanView::around(&[here]) }
}

/// `desk`, which listens, and `me`, which dials; both have pinned each other.
pub(super) struct Home {
    pub(super) desk: Peer,
    pub(super) me: Peer,
    pub(super) listeners: LanListeners,
    pub(super) connector: Connector,
    pub(super) desk_lan: watch::Sender<Arc<LanView>>,
    pub(super) me_lan: watch::Sender<Arc<LanView>>,
    /// Where desk's listener really is.
    at: SocketAddr,
    metrics: Arc<Metrics>,
}

const DESK: &str = "10.99.0.2:11436";

pub(super) async fn home() -> Home {
    let (desk, me) = (peer("desk", 2), peer("me", 3));
    desk.pin(&me);
    me.pin(&desk);
    let timing = Timing::shrunk();
    let real: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
    let note = Arc::clone(&real);
    let sockets =
        Sockets::real().placed(|_, _| ([127, 0, 0, 1], 0).into()).on_bound(move |_, wanted, at| {
            assert_eq!(wanted.to_string(), DESK);
            *note.lock() = Some(at);
        });
    let metrics = Metrics::new().unwrap();
    let (desk_lan, rx) = watch::channel(Arc::new(link("10.99.0.2")));
    let (trust, count) = (desk.trust.clone(), Arc::clone(&metrics));
    let listeners = LanListeners::follow(rx, trust, 11436, sockets, count, Clock::start(), &timing);
    let mut state = listeners.state();
    state.wait_for(|ports| ports.iter().any(|p| p.error.is_none())).await.unwrap();
    let at = real.lock().unwrap();
    let (me_lan, rx) = watch::channel(Arc::new(link("10.99.0.3")));
    let sockets = Sockets::real().with_reach(move |kind, addr| {
        assert_eq!(kind, ListenerKind::Lan);
        if addr.to_string() == DESK { at } else { addr }
    });
    let (_, tailnet) = watch::channel(Arc::new(TailnetView::absent("daemon_down")));
    let trust = me.trust.clone();
    let connector = Connector::with_lan(tailnet, Current::default(), rx, trust, sockets, timing);
    Home { desk, me, listeners, connector, desk_lan, me_lan, at, metrics }
}

pub(super) fn dial(key: PublicKey) -> Dial {
    Dial::Lan { addr: DESK.parse().unwrap(), key }
}

impl Home {
    pub(super) fn dial(&self) -> Dial {
        dial(self.desk.key())
    }

    pub(super) async fn connect(&self) -> Result<Box<dyn Io>, ConnectError> {
        self.connector.connect(&node_id("desk"), &self.dial()).await
    }

    /// Both ends of a new connection.
    pub(super) async fn pair(&mut self) -> (Box<dyn Io>, LanAccepted) {
        let ours = self.connect().await.unwrap();
        let theirs = timeout(Duration::from_secs(5), self.listeners.accept()).await;
        (ours, theirs.unwrap().unwrap())
    }

    /// Whether nothing comes out of the listener within a moment.
    async fn nobody(&mut self) -> bool {
        timeout(Duration::from_millis(200), self.listeners.accept()).await.is_err()
    }
}

/// All that the other side answers until it closes.
async fn answered(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let read = timeout(Duration::from_secs(10), stream.read_to_end(&mut all)).await.unwrap();
    // A close with our bytes unread is a reset.
    let _ = read;
    all
}

/// The first message of a client that calls `name`, with this key.
fn client_hello(of: &Peer, expect: PublicKey, name: &str) -> Vec<u8> {
    let config = tls::client(of.trust.view().ring.as_ref().unwrap().own(), expect).unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn pinned_peers_meet_and_know_each_others_key() {
    let mut home = home().await;
    let (mut ours, mut theirs) = home.pair().await;
    assert_eq!(theirs.key, home.me.key());
    ours.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    theirs.io.read_exact(&mut got).await.unwrap();
    theirs.io.write_all(b"pong").await.unwrap();
    theirs.io.flush().await.unwrap();
    ours.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"pong");
    // A clean end stays one.
    theirs.io.shutdown().await.unwrap();
    assert_eq!(ours.read(&mut got).await.unwrap(), 0);
}

#[tokio::test]
async fn strangers_get_no_byte() {
    let mut home = home().await;
    let (desk, me) = (home.desk.key(), &home.me);
    let another = peer("another", 9);
    let here = DESK.parse().unwrap();
    let other_tag = tag::sni(&another.key(), here, wall(), [1; 8]);
    let mine = tag::sni(&me.key(), here, wall(), [1; 8]);
    let said_to = |at: &str| tag::sni(&desk, at.parse().unwrap(), wall(), [2; 8]);
    for (what, bytes) in [
        ("plain HTTP", b"GET /mesh/v1/ping HTTP/1.1\r\nHost: desk\r\n\r\n".to_vec()),
        ("nonsense", vec![0x16; 40]),
        ("a name of DNS", client_hello(me, desk, "desk.example.com")),
        ("another node's tag", client_hello(me, desk, &other_tag)),
        ("the caller's own tag", client_hello(me, desk, &mine)),
        ("said to another device", client_hello(me, desk, &said_to("10.99.0.9:11436"))),
        ("said to another port", client_hello(me, desk, &said_to("10.99.0.2:11437"))),
        ("said to where it really is", client_hello(me, desk, &said_to(&home.at.to_string()))),
    ] {
        let mut stream = TcpStream::connect(home.at).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        assert_eq!(answered(&mut stream).await, b"", "{what}");
    }
    // No name at all.
    let config = tls::client_hello(me.trust.view().ring.as_ref().unwrap().own()).unwrap();
    let mut connection =
        rustls::ClientConnection::new(config, ServerName::try_from("x").unwrap()).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    let mut stream = TcpStream::connect(home.at).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    assert_eq!(answered(&mut stream).await, b"");
    // Of the right tag the first use is answered, and a recording of it is not.
    let right = client_hello(me, desk, &tag::sni(&desk, here, wall(), [7; 8]));
    for (what, silent) in [("first", false), ("recorded", true)] {
        let mut stream = TcpStream::connect(home.at).await.unwrap();
        stream.write_all(&right).await.unwrap();
        assert_eq!(answered(&mut stream).await.is_empty(), silent, "{what}");
    }
    assert!(home.nobody().await);
    assert_eq!(refused_on_lan(&home.metrics), "handshake 3, not_called 7, tag_used 1");
}

#[tokio::test]
async fn a_key_without_a_live_pin_is_refused() {
    let mut home = home().await;
    let stranger = peer("stranger", 9);
    stranger.pin(&home.desk);
    let own = stranger.trust.view().ring.as_ref().unwrap().own().clone();
    for who in [own, home.me.trust.view().ring.as_ref().unwrap().own().clone()] {
        let tag = tag::sni(&home.desk.key(), DESK.parse().unwrap(), wall(), rand::random());
        let stream = TcpStream::connect(home.at).await.unwrap();
        let config = tls::client(&who, home.desk.key()).unwrap();
        let name = ServerName::try_from(tag).unwrap();
        let shaken = TlsConnector::from(config).connect(name, stream).await;
        let mut shaken = shaken.unwrap();
        if who.key() == home.me.key() {
            assert_eq!(home.listeners.accept().await.unwrap().key, who.key());
            break;
        }
        let read = shaken.read(&mut [0; 8]).await;
        assert!(read.is_err() && home.nobody().await, "{read:?}");
        assert_eq!(refused_on_lan(&home.metrics), "not_pinned 1");
    }
    home.desk.trust.forget("me").unwrap();
    let refused = match home.connect().await {
        Ok(mut io) => io.read(&mut [0; 8]).await.is_err(),
        Err(_) => true,
    };
    assert!(refused && home.nobody().await, "a pin that was forgotten");
}

#[tokio::test]
async fn a_node_that_holds_another_key_is_told_apart() {
    let home = home().await;
    // The right tag for the key we expect, and another key behind it.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let wrong = peer("wrong", 9);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let own = wrong.trust.view().ring.as_ref().unwrap().own().clone();
        let config = tls::server(&own, Arc::new(|_| true)).unwrap();
        let _ = tokio_rustls::TlsAcceptor::from(config).accept(stream).await;
    });
    let connector = elsewhere(&home, move |_| at);
    let error = connector.connect(&node_id("desk"), &home.dial()).await.err().unwrap();
    assert!(error.is_other_key(), "{error}");
}

/// As `home`'s connector, on a machine where addresses are found elsewhere.
fn elsewhere(
    home: &Home,
    reach: impl Fn(SocketAddr) -> SocketAddr + Send + Sync + 'static,
) -> Connector {
    let (_, tailnet) = watch::channel(Arc::new(TailnetView::absent("daemon_down")));
    let sockets = Sockets::real().with_reach(move |_, addr| reach(addr));
    let (lan, trust) = (home.me_lan.subscribe(), home.me.trust.clone());
    Connector::with_lan(tailnet, Current::default(), lan, trust, sockets, Timing::shrunk())
}

#[tokio::test]
async fn nothing_is_dialled_but_a_pinned_peer_at_an_address_on_the_link() {
    let home = home().await;
    let reached = Arc::new(AtomicUsize::new(0));
    let (count, at) = (Arc::clone(&reached), home.at);
    let connector = elsewhere(&home, move |_| {
        count.fetch_add(1, Relaxed);
        at
    });
    let key = home.desk.key();
    let other = home.me.key();
    for (node, addr, key) in [
        ("desk", "10.99.0.1:11436", key),           // the gateway
        ("desk", "10.99.0.3:11436", key),           // our own
        ("desk", "10.99.0.0:11436", key),           // nobody
        ("desk", "10.99.0.255:11436", key),         // everybody
        ("desk", "10.98.0.2:11436", key),           // off-link
        ("desk", "127.0.0.1:22", key),              // loopback
        ("desk", "127.0.0.1:11436", key),           // loopback
        ("desk", "169.254.169.254:11436", key),     // link-local
        ("desk", "8.8.8.8:11436", key),             // the world
        ("desk", "224.0.0.251:11436", key),         // multicast
        ("desk", "100.64.0.2:11436", key),          // the tailnet
        ("desk", "[fd7a:115c:a1e0::2]:11436", key), // the tailnet
        ("desk", "10.99.0.2:22", key),              // not the mesh port
        ("desk", DESK, other),                      // not the pinned key
        ("nobody", DESK, key),                      // not the pinned node
    ] {
        let dial = Dial::Lan { addr: addr.parse().unwrap(), key };
        let error = connector.connect(&node_id(node), &dial).await.err().unwrap();
        assert!(matches!(error, ConnectError::Lan { .. }), "{node} {addr}: {error}");
        assert!(!connector.permits(&node_id(node), &dial), "{node} {addr}");
    }
    assert_eq!(reached.load(Relaxed), 0);
    assert!(connector.permits(&node_id("desk"), &dial(key)));
    connector.connect(&node_id("desk"), &dial(key)).await.unwrap();
    assert_eq!(reached.load(Relaxed), 1);
    // One that was pinned, and whose pin has ended.
    let over = Bounds { trust: Duration::ZERO, grant: DAY, ports: vec![11436] };
    home.me.trust.set_bounds(over);
    let error = connector.connect(&node_id("desk"), &dial(key)).await.err().unwrap();
    assert!(matches!(error, ConnectError::Lan { .. }), "{error}");
    assert_eq!(reached.load(Relaxed), 1);
    // A connector that was told nothing of the local network never uses it.
    let (_keep, lone) = connector_alone();
    let error = lone.connect(&node_id("desk"), &dial(key)).await.err().unwrap();
    assert!(matches!(error, ConnectError::Lan { .. }), "{error}");
}

fn connector_alone() -> (watch::Sender<Arc<TailnetView>>, Connector) {
    super::connector(loopback_tailnet())
}

#[tokio::test]
async fn without_the_device_of_the_link_there_is_no_dial() {
    let home = home().await;
    let connector = elsewhere(&home, |addr| addr);
    let error = connector.connect(&node_id("desk"), &home.dial()).await.err().unwrap();
    assert!(matches!(error, ConnectError::NoDevice { .. }), "{error}");
}

#[tokio::test]
async fn a_key_added_by_hand_is_dialled_at_the_usual_port() {
    let home = home().await;
    home.me.trust.forget("desk").unwrap();
    let hand =
        ByHand { verbs: vec![Verb::List], models: vec!["*".to_owned()], until: wall() + DAY };
    home.me.trust.add("box", home.desk.key(), hand, &[], wall()).unwrap();
    let id = NodeId::Pin("box".into());
    home.connector.connect(&id, &home.dial()).await.unwrap();
    let odd = Dial::Lan { addr: "10.99.0.2:22".parse().unwrap(), key: home.desk.key() };
    assert!(!home.connector.permits(&id, &odd));
}

#[tokio::test]
async fn listeners_go_with_their_links() {
    let home = home().await;
    home.desk_lan.send_replace(Arc::default());
    let mut state = home.listeners.state();
    state.wait_for(Vec::is_empty).await.unwrap();
    assert!(TcpStream::connect(home.at).await.is_err());
}

#[tokio::test]
async fn strangers_share_eight_places_and_never_keep_a_peer_out() {
    let mut home = home().await;
    let begin = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(home.at).await.unwrap();
        // Half a message.
        stream.write_all(&[0x16, 3, 1, 0, 200, 1]).await.unwrap();
        silent.push(stream);
    }
    let (_ours, theirs) = home.pair().await;
    assert_eq!(theirs.key, home.me.key());
    let mut open = 0;
    for stream in &mut silent {
        let read = timeout(Duration::from_millis(20), stream.read(&mut [0; 8])).await;
        open += usize::from(read.is_err());
    }
    assert!(open <= 8, "{open} are open");
    assert_eq!(refused_on_lan(&home.metrics), "too_many 33", "all but eight of forty and a peer");
    assert!(begin.elapsed() < Timing::shrunk().handshake, "this machine is too slow to tell");
    tokio::time::sleep(Timing::shrunk().handshake).await;
    for stream in &mut silent {
        let read = timeout(Duration::from_millis(200), stream.read(&mut [0; 8])).await;
        assert!(
            !matches!(read, Err(_) | Ok(Ok(1..))),
            "open after its time, or answered: {read:?}"
        );
    }
}

#[tokio::test]
async fn one_peer_has_at_most_64_connections() {
    let mut home = home().await;
    let mut pairs = Vec::new();
    for _ in 0..64 {
        pairs.push(home.pair().await);
    }
    let more = home.connect().await;
    let closed = match more {
        Ok(mut io) => timeout(Duration::from_secs(2), io.read(&mut [0; 8])).await.is_ok(),
        Err(_) => true,
    };
    assert!(closed && home.nobody().await);
    assert_eq!(refused_on_lan(&home.metrics), "too_many 1");
    // A place is free again when its connection is gone.
    pairs.truncate(60);
    tokio::time::sleep(Duration::from_millis(50)).await;
    pairs.push(home.pair().await);
}

#[tokio::test]
async fn a_kept_connection_serves_one_key_only_and_ends_with_its_pin() {
    let mut home = home().await;
    let pool = Pool::new(home.connector.clone(), Clock::start(), &Timing::default());
    let serve = tokio::spawn(async move {
        let mut kept = Vec::new();
        for _ in 0..2 {
            let mut io = home.listeners.accept().await.unwrap().io;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(io.read_u8().await.unwrap());
            }
            io.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            io.flush().await.unwrap();
            kept.push(io);
        }
        (kept, home.listeners)
    });
    let (id, desk) = (node_id("desk"), dial(home.desk.key()));
    let lease = pool.acquire(&id, &desk).await.unwrap();
    drop(lease.send(get("/")).await.unwrap());
    assert_eq!(pool.idle(&id, &desk), 1);
    let other = dial(home.me.key());
    assert_eq!(pool.idle(&id, &other), 0);
    let error = pool.acquire(&id, &other).await.unwrap_err();
    assert!(matches!(error, ConnectError::Lan { .. }), "{error}");
    assert!(pool.acquire(&id, &desk).await.unwrap().reused);
    let lease = pool.acquire(&id, &desk).await.unwrap();
    drop(lease.send(get("/")).await.unwrap());
    // The view goes away: what is idle is used no more.
    home.me_lan.send_replace(Arc::default());
    assert!(!home.connector.permits(&id, &desk));
    let error = pool.acquire(&id, &desk).await.unwrap_err();
    assert!(matches!(error, ConnectError::Lan { .. }), "{error}");
    assert_eq!(pool.idle(&id, &desk), 0);
    serve.await.unwrap();
}

#[tokio::test]
async fn a_hello_runs_over_the_tailnet_and_shows_both_keys() {
    let (desk, me) = (peer("desk", 2), peer("me", 3));
    let (listener, addr) = listener("127.0.0.2").await;
    let (_tailnet, rx) = watch::channel(Arc::new(loopback_tailnet()));
    let (_lan, lan) = watch::channel(Arc::default());
    let trust = me.trust.clone();
    let connector =
        Connector::with_lan(rx, Current::default(), lan, trust, Sockets::real(), Timing::shrunk());
    let answer = async {
        let (stream, _) = listener.accept().await.unwrap();
        assert!(crate::net::listen::is_tls(&stream).await);
        crate::net::listen::tls_hello(stream, &desk.trust, Duration::from_secs(5)).await.unwrap()
    };
    let id = node_id("desk");
    let (ours, theirs) = tokio::join!(connector.hello(&id, addr), answer);
    assert_eq!(ours.unwrap().1, desk.key());
    assert_eq!(theirs.1, me.key());
    // Never to an address the tailnet does not list, and never to plain HTTP.
    let error = connector.hello(&id, "127.0.0.9:1".parse().unwrap()).await.err().unwrap();
    assert!(matches!(error, ConnectError::NotListed(_)), "{error}");
    let mut plain = TcpStream::connect(addr).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    assert!(!crate::net::listen::is_tls(&stream).await);
    let mut first = [0; 3];
    let mut stream = stream;
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"GET", "what was looked at is still there");
}
