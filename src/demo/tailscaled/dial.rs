//! `POST dial`: a TCP connection through the stand-in tailnet.
//!
//! There is no network between the nodes: the daemon that is asked connects to the program
//! that stands behind the target's tailnet port on 127.0.0.1, as the target's daemon would in
//! userspace mode, and the target's daemon can name the caller by the source port.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Shared;
use super::localapi::{Body, text, whole};
use super::state::{NodeNumber, Reach};

/// Pieces of a connection that may be under way, and their size: more than any window needs.
const UNDER_WAY: usize = 64;
const PIECE: usize = 16 * 1024;

pub(super) async fn dial(
    shared: Arc<Shared>,
    from: NodeNumber,
    stop: watch::Receiver<bool>,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok());
    if header("upgrade").is_none_or(|u| !u.eq_ignore_ascii_case("ts-dial")) {
        return text(400, "missing 'ts-dial' upgrade");
    }
    let (Some(ip), Some(port)) = (
        header("dial-host").and_then(|h| h.parse::<IpAddr>().ok()),
        header("dial-port").and_then(|p| p.parse::<u16>().ok()),
    ) else {
        return text(400, "missing Dial-Host or Dial-Port header");
    };
    if let Some(d) = shared.state.lock().daemons.get_mut(&from) {
        d.asked.dials += 1;
    }
    let (tcp, to) = match connect(&shared, from, ip, port).await {
        Ok(Some(made)) => made,
        Ok(None) => {
            // Not an address of this tailnet: the caller is told to dial it itself.
            let mut response = whole(String::new());
            response.headers_mut().insert("dial-self", HeaderValue::from_static("true"));
            return response;
        }
        Err(e) => return text(502, &format!("failed to dial: {e}")),
    };
    // The first packet goes there and comes back.
    let way = shared.state.lock().way(from, to);
    if !way.is_zero() {
        tokio::time::sleep(way).await;
    }
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let source = tcp.local_addr();
        if let Ok(upgraded) = upgrade.await {
            pump(&shared, (from, to), stop, TokioIo::new(upgraded), tcp).await;
        }
        if let Ok(source) = source {
            forget(&shared, to, source);
        }
    });
    let mut response = whole(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("ts-dial"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response
}

/// Waits as long as packets are lost. `None` = no node has that address.
async fn connect(
    shared: &Arc<Shared>,
    from: NodeNumber,
    ip: IpAddr,
    port: u16,
) -> io::Result<Option<(TcpStream, NodeNumber)>> {
    let mut changed = shared.changed.subscribe();
    loop {
        changed.mark_unchanged();
        let (reach, to) = {
            let mut state = shared.state.lock();
            let (reach, to) = state.reach(from, ip, port);
            if matches!(reach, Reach::Open(_) | Reach::Refused)
                && let Some(d) = state.daemons.get_mut(&to)
            {
                d.asked.arrivals += 1;
            }
            (reach, to)
        };
        match reach {
            Reach::Unknown => return Ok(None),
            Reach::Refused => return Err(io::ErrorKind::ConnectionRefused.into()),
            Reach::Open(addr) => {
                return Ok(Some((forward(shared, from, to, addr).await?, to)));
            }
            Reach::Silent => {
                if changed.changed().await.is_err() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
    }
}

/// Connects to the program behind the target's port, and lets WhoIs there know for whom.
async fn forward(
    shared: &Arc<Shared>,
    from: NodeNumber,
    to: NodeNumber,
    addr: SocketAddr,
) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // Bound first: the source port is known before the program can ask about it.
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let source = socket.local_addr()?;
    let lag = {
        let mut state = shared.state.lock();
        let daemon = state.daemons.entry(to).or_default();
        daemon.sockets.insert(source);
        if daemon.whois_lag.is_zero() {
            daemon.forwarded.insert(source, from);
        }
        daemon.whois_lag
    };
    let tcp = match socket.connect(addr).await {
        Ok(tcp) => tcp,
        Err(e) => {
            forget(shared, to, source);
            return Err(e);
        }
    };
    tcp.set_nodelay(true)?;
    if !lag.is_zero() {
        let shared = shared.clone();
        tokio::spawn(async move {
            tokio::time::sleep(lag).await;
            if let Some(d) = shared.state.lock().daemons.get_mut(&to)
                && d.sockets.contains(&source)
            {
                d.forwarded.insert(source, from);
            }
        });
    }
    Ok(tcp)
}

fn forget(shared: &Shared, to: NodeNumber, source: SocketAddr) {
    if let Some(d) = shared.state.lock().daemons.get_mut(&to) {
        d.forwarded.remove(&source);
        d.sockets.remove(&source);
    }
}

/// Carries bytes both ways, each piece as late as the way is long; stands still while packets
/// between the two are lost.
async fn pump(
    shared: &Shared,
    ends: (NodeNumber, NodeNumber),
    mut stop: watch::Receiver<bool>,
    a: impl AsyncRead + AsyncWrite + Unpin,
    b: impl AsyncRead + AsyncWrite + Unpin,
) {
    let mut changed = shared.changed.subscribe();
    let late = shared.state.lock().way(ends.0, ends.1) / 2;
    let count = |bytes: usize| shared.state.lock().carried(ends, bytes as u64);
    let ((from_a, to_a), (from_b, to_b)) = (tokio::io::split(a), tokio::io::split(b));
    let both = async {
        let there = carry(from_a, to_b, late, &count);
        tokio::try_join!(there, carry(from_b, to_a, late, &count))
    };
    let mut both = std::pin::pin!(both);
    loop {
        let open = shared.state.lock().passes(ends.0, ends.1);
        tokio::select! {
            biased;
            _ = stop.wait_for(|s| *s) => return,
            more = changed.changed() => if more.is_err() { return },
            _ = &mut both, if open => return,
        }
    }
}

/// Carries bytes one way.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    late: Duration,
    count: &impl Fn(usize),
) -> io::Result<()> {
    let (tx, mut under_way) = mpsc::channel::<(Instant, Bytes)>(UNDER_WAY);
    let send = async move {
        loop {
            let mut piece = BytesMut::with_capacity(PIECE);
            let read = from.read_buf(&mut piece).await?;
            if read == 0 || tx.send((Instant::now() + late, piece.freeze())).await.is_err() {
                return Ok(());
            }
            count(read);
        }
    };
    let receive = async {
        while let Some((due, piece)) = under_way.recv().await {
            if !late.is_zero() {
                tokio::time::sleep_until(due).await;
            }
            to.write_all(&piece).await?;
            to.flush().await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(send, receive).map(drop)
}
