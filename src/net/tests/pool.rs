use std::time::Duration;

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;
use crate::net::{Lease, Pool};
use crate::telemetry::Clock;
use crate::types::Dial;

fn pool(view: TailnetView) -> (watch::Sender<Arc<TailnetView>>, Pool) {
    let (tx, connector) = connector(view);
    let timing = Timing { pool_idle: Duration::from_millis(400), ..Timing::shrunk() };
    (tx, Pool::new(connector, Clock::start(), &timing))
}

/// Reads one request head.
async fn request(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await.unwrap();
        head.push(byte);
    }
    String::from_utf8(head).unwrap()
}

/// A server that answers every request with `answer` and counts its connections.
fn serve(listener: TcpListener, answer: &'static str) -> Arc<std::sync::atomic::AtomicUsize> {
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    head.push(byte);
                    if head.ends_with(b"\r\n\r\n") {
                        stream.write_all(answer.as_bytes()).await.unwrap();
                        head.clear();
                    }
                }
            });
        }
    });
    count
}

async fn text(lease: Lease, path: &str) -> String {
    let response = lease.send(get(path)).await.unwrap();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Waits until the pool keeps `want` connections.
async fn settled(pool: &Pool, dial: &Dial, want: usize) {
    let wait = async {
        while pool.idle(&NodeId::This, dial) != want {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(5), wait).await.expect("the pool settles");
}

const LENGTH: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
const NOTHING: &str = "HTTP/1.1 204 No Content\r\n\r\n";
const CLOSE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

#[tokio::test]
async fn a_connection_is_used_again_after_a_clean_end() {
    for (answer, connections) in [(LENGTH, 1), (CHUNKED, 1), (NOTHING, 1), (CLOSE, 4)] {
        let (listener, addr) = listener("127.0.0.1").await;
        let count = serve(listener, answer);
        let (_keep, pool) = pool(TailnetView::absent("no_tailnet"));
        let dial = Dial::Loopback(addr);
        for i in 0..4 {
            let lease = pool.acquire(&NodeId::This, &dial).await.unwrap();
            assert_eq!(lease.reused, i > 0 && connections == 1, "{answer:?}");
            text(lease, "/").await;
            settled(&pool, &dial, usize::from(connections == 1)).await;
        }
        assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), connections, "{answer:?}");
    }
}

#[tokio::test]
async fn two_nodes_never_share_a_connection() {
    let (listener, addr) = listener("127.0.0.1").await;
    serve(listener, LENGTH);
    let (_keep, pool) = pool(TailnetView::absent("no_tailnet"));
    let dial = Dial::Loopback(addr);
    text(pool.acquire(&NodeId::This, &dial).await.unwrap(), "/").await;
    settled(&pool, &dial, 1).await;
    let other = NodeId::Configured("nas".into());
    assert!(!pool.acquire(&other, &dial).await.unwrap().reused);
    assert!(pool.acquire(&NodeId::This, &dial).await.unwrap().reused);
}

#[tokio::test]
async fn an_answer_dropped_early_closes_the_socket() {
    let (listener, addr) = listener("127.0.0.1").await;
    let (_keep, pool) = pool(TailnetView::absent("no_tailnet"));
    let dial = Dial::Loopback(addr);
    let lease = pool.acquire(&NodeId::This, &dial).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    let server = tokio::spawn(async move {
        request(&mut stream).await;
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n";
        stream.write_all(head).await.unwrap();
        // Silent from here on: only a close can end this read.
        let mut buffer = [0; 16];
        stream.read(&mut buffer).await.unwrap_or(0)
    });
    let mut response = lease.send(get("/")).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    drop(response);
    let read = timeout(Duration::from_secs(2), server).await.expect("the socket closes").unwrap();
    assert_eq!(read, 0);
    assert_eq!(pool.idle(&NodeId::This, &dial), 0);
}

#[tokio::test]
async fn a_request_dropped_before_its_answer_closes_the_socket() {
    let (listener, addr) = listener("127.0.0.1").await;
    let (_keep, pool) = pool(TailnetView::absent("no_tailnet"));
    let lease = pool.acquire(&NodeId::This, &Dial::Loopback(addr)).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    let sending = tokio::spawn(async move { lease.send(get("/")).await.map(|_| ()) });
    request(&mut stream).await;
    sending.abort();
    let mut buffer = [0; 16];
    let read = timeout(Duration::from_secs(2), stream.read(&mut buffer)).await;
    assert_eq!(read.expect("the socket closes").unwrap_or(0), 0);
}

#[tokio::test]
async fn a_request_that_was_not_sent_comes_back() {
    let (listener, addr) = listener("127.0.0.1").await;
    let (_keep, pool) = pool(TailnetView::absent("no_tailnet"));
    let lease = pool.acquire(&NodeId::This, &Dial::Loopback(addr)).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    // The other side closes while the connection idles.
    drop(stream);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let error = lease.send(get("/again")).await.err().unwrap();
    assert!(!error.sent, "{error}");
    assert_eq!(error.request.unwrap().uri(), "/again");
}

#[tokio::test]
async fn a_request_that_may_have_arrived_is_said_to_be_sent() {
    let (listener, addr) = listener("127.0.0.1").await;
    let (_keep, pool) = pool(TailnetView::absent("no_tailnet"));
    let lease = pool.acquire(&NodeId::This, &Dial::Loopback(addr)).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    let sending = tokio::spawn(async move { lease.send(get("/")).await.map(|_| ()) });
    request(&mut stream).await;
    drop(stream);
    let error = sending.await.unwrap().unwrap_err();
    assert!(error.sent && error.request.is_none(), "{error}");
}

#[tokio::test]
async fn a_kept_connection_that_the_other_side_closed_is_not_handed_out() {
    let (listener, addr) = listener("127.0.0.1").await;
    let (_keep, connector) = connector(TailnetView::absent("no_tailnet"));
    // Its own housekeeping is far away.
    let pool = Pool::new(connector, Clock::start(), &Timing::default());
    let dial = Dial::Loopback(addr);
    let lease = pool.acquire(&NodeId::This, &dial).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    let server = tokio::spawn(async move {
        request(&mut stream).await;
        stream.write_all(LENGTH.as_bytes()).await.unwrap();
        stream
    });
    text(lease, "/").await;
    settled(&pool, &dial, 1).await;
    drop(server.await.unwrap());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!pool.acquire(&NodeId::This, &dial).await.unwrap().reused);
}

#[tokio::test]
async fn an_idle_connection_is_closed_when_it_is_old() {
    let (listener, addr) = listener("127.0.0.1").await;
    let (_keep, pool) = pool(TailnetView::absent("no_tailnet"));
    let dial = Dial::Loopback(addr);
    let lease = pool.acquire(&NodeId::This, &dial).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    let server = tokio::spawn(async move {
        request(&mut stream).await;
        stream.write_all(LENGTH.as_bytes()).await.unwrap();
        let mut buffer = [0; 16];
        stream.read(&mut buffer).await.unwrap_or(0)
    });
    text(lease, "/").await;
    settled(&pool, &dial, 1).await;
    let read = timeout(Duration::from_secs(5), server).await.expect("the socket closes").unwrap();
    assert_eq!(read, 0);
    assert_eq!(pool.idle(&NodeId::This, &dial), 0);
}

#[tokio::test]
async fn a_kept_tailnet_connection_is_not_used_once_the_tailnet_stops() {
    let (listener, addr) = listener("127.0.0.2").await;
    serve(listener, LENGTH);
    let (tailnet, pool) = pool(loopback_tailnet());
    let (desk, dial) = (node_id("desk"), Dial::Tailnet(addr));
    let lease = pool.acquire(&desk, &dial).await.unwrap();
    text(lease, "/").await;
    while pool.idle(&desk, &dial) == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tailnet.send_replace(Arc::new(TailnetView { running: false, ..loopback_tailnet() }));
    assert!(pool.acquire(&desk, &dial).await.is_err());
    assert_eq!(pool.idle(&desk, &dial), 0);
}
