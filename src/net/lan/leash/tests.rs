//! A network that is lost: what ends, what is kept, and what the other side hears of it.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;
use crate::net::lan::{Gateway, Interface, Kind};

const SOON: Duration = Duration::from_secs(5);

/// Devices of which one, `lan0`, counts as the test says.
struct Devices(tempfile::TempDir);

impl Devices {
    fn new() -> Devices {
        let devices = Devices(tempfile::tempdir().unwrap());
        fs::create_dir_all(devices.0.path().join("lan0")).unwrap();
        fs::write(devices.0.path().join("lan0/ifindex"), "7\n").unwrap();
        devices.count("4\n");
        devices
    }

    fn count(&self, text: &str) {
        fs::write(self.0.path().join("lan0/carrier_changes"), text).unwrap();
    }

    fn carrier(&self, device: &str, index: u32, epoch: u64) -> Carrier {
        Carrier::read(self.0.path(), device, Some(index), epoch)
    }
}

#[test]
fn a_network_holds_until_the_count_of_its_losses_moves() {
    let devices = Devices::new();
    let here = devices.carrier("lan0", 7, 4);
    assert!(here.holds());
    for (what, device, index, epoch, want) in [
        ("the same", "lan0", 7, 4, true),
        ("lost since", "lan0", 7, 2, false),
        ("made anew under the name", "lan0", 8, 4, false),
        ("gone", "lan1", 7, 4, false),
        ("one that never counts", "lan1", 7, 0, true),
    ] {
        assert_eq!(devices.carrier(device, index, epoch).holds(), want, "{what}");
    }
    devices.count("5\n");
    assert!(!here.holds(), "lost");
    devices.count("6\n");
    assert!(!here.holds(), "and there again, wherever that is");
    devices.count("");
    assert!(!here.holds(), "the device went");
}

fn link(network: &str) -> LanLink {
    let gateway = Gateway { addr: [10, 99, 0, 1].into(), link: Some("aa".into()) };
    let here = Interface {
        name: "lan0".to_owned(),
        index: Some(7),
        addr: [127, 0, 0, 1].into(),
        prefix: 24,
        gateway: Some(gateway),
        kind: Kind::Lan,
        epoch: 4,
    };
    LanLink::new(&here, network)
}

/// A connection of ours over `lan0`, and its other end.
async fn connection(leashes: &Leashes, devices: &Devices) -> (Leashed, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (other, _) = listener.accept().await.unwrap();
    let carrier = Arc::new(devices.carrier("lan0", 7, 4));
    (leashes.tie(stream, link("home"), Some(carrier)).unwrap(), other)
}

/// Whether the other side is told that the connection ended.
async fn hears_an_end(other: &mut TcpStream) -> bool {
    timeout(Duration::from_millis(200), other.read(&mut [0; 8])).await.is_ok()
}

#[tokio::test]
async fn an_idle_connection_whose_network_is_lost_ends_and_the_other_side_hears_nothing() {
    let (devices, leashes) = (Devices::new(), Leashes::default());
    let (mut stream, mut other) = connection(&leashes, &devices).await;
    stream.write_all(b"hi").await.unwrap();
    other.read_exact(&mut [0; 2]).await.unwrap();
    let reading = tokio::spawn(async move { stream.read(&mut [0; 8]).await });
    assert_eq!(leashes.look(), 0, "nothing is lost yet");
    tokio::task::yield_now().await;
    devices.count("5\n");
    assert_eq!((leashes.any(), leashes.look()), (true, 1));
    let read = timeout(SOON, reading).await.unwrap().unwrap();
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    assert!(!hears_an_end(&mut other).await);
    assert_eq!((leashes.any(), leashes.look(), leashes.kept()), (false, 0, 1));

    // On another network it stays so, at home it is closed.
    let now = |network| LanView { links: vec![link(network)], ..LanView::default() };
    for elsewhere in [LanView::default(), now("cafe")] {
        leashes.settle(&elsewhere);
        assert_eq!(leashes.kept(), 1);
    }
    assert!(!hears_an_end(&mut other).await);
    leashes.settle(&now("home"));
    assert_eq!(leashes.kept(), 0);
    assert!(hears_an_end(&mut other).await);
}

#[tokio::test]
async fn nothing_is_written_nor_ended_by_word_once_the_network_is_lost() {
    type End = fn(Leashed);
    let (dropped, leashes): (End, _) = (drop, Leashes::default());
    let devices = Devices::new();
    let (mut stream, mut other) = connection(&leashes, &devices).await;
    devices.count("6\n");
    // Nobody has said so yet: the write itself looks.
    let wrote = stream.write_all(b"secret").await;
    assert_eq!(wrote.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    assert!(stream.shutdown().await.is_err());
    dropped(stream);
    assert!(!hears_an_end(&mut other).await);

    devices.count("4\n");
    let (stream, mut other) = connection(&leashes, &devices).await;
    devices.count("5\n");
    dropped(stream);
    assert!(!hears_an_end(&mut other).await, "dropped before anybody looked");
    assert_eq!(leashes.kept(), 2);

    devices.count("4\n");
    let (stream, mut other) = connection(&leashes, &devices).await;
    dropped(stream);
    assert!(hears_an_end(&mut other).await, "while the network is there, closing is closing");
}

#[tokio::test]
async fn what_was_not_acknowledged_is_not_sent_again() {
    let (devices, leashes) = (Devices::new(), Leashes::default());
    let (mut stream, mut other) = connection(&leashes, &devices).await;
    // More than the other side takes without reading: some of it waits.
    let block = vec![0; 1 << 20];
    while timeout(Duration::from_millis(200), stream.write_all(&block)).await.is_ok() {}
    devices.count("5\n");
    assert_eq!(leashes.look(), 1);
    assert_eq!(leashes.kept(), 0, "the kernel would go on with it");
    let mut rest = Vec::new();
    let end = timeout(SOON, other.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_dial_ends_when_the_network_is_lost() {
    let (devices, leashes) = (Devices::new(), Leashes::default());
    let carrier = devices.carrier("lan0", 7, 4);
    let done = leashes.while_held(Some(&carrier), async { 1 }).await;
    assert_eq!(done, Some(1));
    let other = leashes.clone();
    let dial = tokio::spawn(async move {
        other.while_held(Some(&carrier), std::future::pending::<()>()).await
    });
    tokio::task::yield_now().await;
    devices.count("5\n");
    leashes.ring();
    assert_eq!(timeout(SOON, dial).await.unwrap().unwrap(), None);
    let lost = devices.carrier("lan0", 7, 4);
    assert_eq!(leashes.while_held(Some(&lost), async { 1 }).await, None, "not even begun");
}
