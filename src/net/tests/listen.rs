use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::*;
use crate::net::listen::{self, MeshListeners, MeshPort};
use crate::net::{BindError, Sockets, device_of};
use crate::telemetry::Clock;
use crate::types::ListenerKind;

fn free() -> Sockets {
    Sockets::real().placed(|_, wanted| SocketAddr::new(wanted.ip(), 0))
}

#[tokio::test]
async fn nothing_listens_on_every_network() {
    for any in ["0.0.0.0:0", "[::]:0", "[::ffff:0.0.0.0]:0"] {
        let bound = listen::bind(&Sockets::real(), ListenerKind::Apps, any.parse().unwrap(), None);
        assert!(matches!(bound, Err(BindError::Wildcard(_))), "{any}");
    }
}

#[tokio::test]
async fn a_listener_says_what_it_wanted_and_what_it_got() {
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let tell = Arc::clone(&seen);
    let sockets = free().on_bound(move |kind, wanted, got| tell.lock().push((kind, wanted, got)));
    let wanted: SocketAddr = "127.0.0.1:11434".parse().unwrap();
    let lo = device_of(wanted.ip()).unwrap();
    let listener = listen::bind(&sockets, ListenerKind::Apps, wanted, Some(&lo)).unwrap();
    assert_eq!(*seen.lock(), [(ListenerKind::Apps, wanted, listener.local)]);
    let client = TcpStream::connect(listener.local).await.unwrap();
    let (stream, local, remote) = listener.accept().await;
    assert_eq!((local, remote), (listener.local, client.local_addr().unwrap()));
    assert!(stream.nodelay().unwrap());
    let taken = listen::bind(&Sockets::real(), ListenerKind::Apps, listener.local, None);
    assert!(taken.unwrap_err().is_in_use());
}

#[tokio::test]
async fn a_unix_door_has_its_permissions_from_the_start_and_replaces_only_the_dead() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("apps.sock");
    let door = listen::unix(&path, 0o660).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
    let _client = UnixStream::connect(&path).await.unwrap();
    let uid = door.accept().await.1;
    assert_eq!(uid, Some(rustix::process::geteuid().as_raw()));
    assert!(listen::unix(&path, 0o660).unwrap_err().is_in_use());
    drop(door);
    assert!(!path.exists());
    // Left behind by a program that died.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let door = listen::unix(&path, 0o600).unwrap();
    UnixStream::connect(&path).await.unwrap();
    drop(door);
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(listen::unix(&path, 0o660), Err(BindError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

/// Waits for a state of the listeners.
async fn until(mesh: &MeshListeners, want: impl Fn(&[MeshPort]) -> bool) -> Vec<MeshPort> {
    let mut state = mesh.state();
    let found = timeout(Duration::from_secs(5), state.wait_for(|s| want(s))).await;
    found.expect("the listeners follow").unwrap().clone()
}

#[tokio::test]
async fn mesh_listeners_follow_the_tailnet() {
    let here = |ip: &str| TailnetView { me: Some(node("me", &[ip])), ..loopback_tailnet() };
    let (tailnet, rx) = watch::channel(Arc::new(TailnetView::absent("starting")));
    let mut mesh = MeshListeners::follow(rx, vec![1, 2], free(), Clock::start(), &Timing::shrunk());
    assert_eq!(until(&mesh, |_| true).await, []);
    tailnet.send_replace(Arc::new(here("127.0.0.1")));
    let ports = until(&mesh, |s| s.len() == 2).await;
    assert!(ports.iter().all(|p| p.error.is_none()), "{ports:?}");
    let mut clients = Vec::new();
    for port in &ports {
        let client = TcpStream::connect(port.addr).await.unwrap();
        let accepted = mesh.accept().await.unwrap();
        assert_eq!(accepted.local, port.addr);
        assert_eq!(accepted.remote, client.local_addr().unwrap());
        clients.push((client, accepted));
    }
    // The tailnet stops: nobody comes in any more, and who is in stays.
    tailnet.send_replace(Arc::new(TailnetView { running: false, ..here("127.0.0.1") }));
    until(&mesh, <[_]>::is_empty).await;
    timeout(Duration::from_secs(5), async {
        while TcpStream::connect(ports[0].addr).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the listener closes");
    let (client, _accepted) = &mut clients[0];
    let silent = timeout(Duration::from_millis(50), client.read_u8()).await;
    assert!(silent.is_err(), "the connection is still there");
    // An address that no device carries is a line in the state, not an open door.
    tailnet.send_replace(Arc::new(here("192.0.2.1")));
    let ports = until(&mesh, |s| s.len() == 2).await;
    assert!(ports.iter().all(|p| p.error.is_some()), "{ports:?}");
    // Userspace mode: the first port only, on loopback.
    tailnet.send_replace(Arc::new(TailnetView { tun: Some(false), ..here("192.0.2.1") }));
    let ports = until(&mesh, |s| s.len() == 1).await;
    assert!(ports[0].addr.ip().is_loopback() && ports[0].error.is_none());
    TcpStream::connect(ports[0].addr).await.unwrap();
    assert!(mesh.accept().await.unwrap().remote.ip().is_loopback());
}

#[tokio::test]
async fn a_taken_port_is_tried_again() {
    let (holder, held) = listener("127.0.0.1").await;
    let (_tailnet, rx) = watch::channel(Arc::new(loopback_tailnet()));
    let ports = vec![held.port()];
    let mesh = MeshListeners::follow(rx, ports, Sockets::real(), Clock::start(), &Timing::shrunk());
    let state = until(&mesh, |s| s.len() == 1).await;
    assert!(state[0].error.as_ref().is_some_and(|e| e.contains("in use")), "{state:?}");
    drop(holder);
    until(&mesh, |s| s.len() == 1 && s[0].error.is_none()).await;
    TcpStream::connect(held).await.unwrap();
}
