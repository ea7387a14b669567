//! The LocalAPI of one stand-in daemon: HTTP/1.1 on a unix socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{CONTENT_TYPE, HOST, ORIGIN, REFERER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::state::NodeNumber;
use super::{Shared, dial, json};

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Answers until told to stop; then every connection is dropped where it stands.
pub(super) async fn accept(
    shared: Arc<Shared>,
    number: NodeNumber,
    listener: UnixListener,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let io = tokio::select! {
            _ = stop.wait_for(|s| *s) => return,
            io = listener.accept() => io,
        };
        if let Ok((io, _)) = io {
            let (shared, mut stop) = (shared.clone(), stop.clone());
            tokio::spawn(async move {
                let stopped = stop.clone();
                tokio::select! {
                    _ = stop.wait_for(|s| *s) => {}
                    () = serve(shared, number, io, stopped) => {}
                }
            });
        }
    }
}

async fn serve(
    shared: Arc<Shared>,
    number: NodeNumber,
    io: UnixStream,
    stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| {
        let (shared, stop) = (shared.clone(), stop.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(shared, number, stop, request).await) }
    });
    // An error here is a client that went away.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades()
        .await;
}

async fn answer(
    shared: Arc<Shared>,
    number: NodeNumber,
    stop: watch::Receiver<bool>,
    request: Request<Incoming>,
) -> Response<Body> {
    let headers = request.headers();
    let host = headers.get(HOST).map_or("", |h| h.to_str().unwrap_or("?"));
    if !matches!(host, "" | "local-tailscaled.sock")
        || headers.contains_key(ORIGIN)
        || headers.contains_key(REFERER)
    {
        return text(403, "invalid localapi request");
    }
    let query: Vec<(String, String)> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(k, v)| (k.to_owned(), unescape(v)))
        .collect();
    let asked = |name: &str| query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
    let path = request.uri().path().strip_prefix("/localapi/v0/").unwrap_or_default().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::GET, "status") => {
            let peers = asked("peers") != Some("false");
            let mut state = shared.state.lock();
            if let Some(d) = state.daemons.get_mut(&number) {
                d.asked.status += 1;
            }
            reply(&json::status(&state, number, peers))
        }
        (&Method::GET, "whois") => whois(&shared, number, asked("addr").unwrap_or_default()).await,
        (&Method::GET, "prefs") => reply(&json::prefs(&shared.state.lock(), number)),
        (&Method::GET, "serve-config") => {
            let serve = shared.state.lock().daemons.get(&number).map(|d| d.serve.clone());
            reply(&serve.unwrap_or_default())
        }
        (&Method::GET, "watch-ipn-bus") => {
            let mask = asked("mask").and_then(|m| m.parse().ok()).unwrap_or(0);
            bus(&shared, number, mask)
        }
        (&Method::POST, "ping") => ping(&shared, number, asked("ip").unwrap_or_default()).await,
        (&Method::POST, "dial") => dial::dial(shared, number, stop, request).await,
        (_, "status" | "whois" | "prefs" | "watch-ipn-bus" | "ping" | "dial") => {
            text(405, "method not allowed")
        }
        _ => text(404, "404 page not found"),
    }
}

/// Names the node behind an address; a loopback source that this daemon forwarded names the
/// peer it came from, as tailscaled's own table does in userspace mode.
async fn whois(shared: &Shared, number: NodeNumber, addr: &str) -> Response<Body> {
    let hangs = {
        let mut state = shared.state.lock();
        state.daemons.get_mut(&number).is_none_or(|d| {
            d.asked.whois += 1;
            d.whois_hangs
        })
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    let socket = addr.parse::<SocketAddr>();
    let Ok(ip) = socket.as_ref().map(SocketAddr::ip).or_else(|_| addr.parse::<IpAddr>()) else {
        return text(400, "invalid 'addr' parameter");
    };
    let state = shared.state.lock();
    let netmap = state.netmap();
    let daemon = state.daemons.get(&number);
    let forwarded = socket.ok().and_then(|s| daemon?.forwarded.get(&s)).copied();
    let of = match forwarded {
        Some(peer) => netmap.nodes.get(&peer),
        None => netmap.by_ip(ip),
    };
    match of.filter(|_| state.running(number)) {
        Some(of) => reply(&json::whois(&state, of, number)),
        None => text(404, "no match for IP:port"),
    }
}

/// Answers as soon as the peer does, whatever the policy says of ports: pings pass it.
async fn ping(shared: &Shared, number: NodeNumber, ip: &str) -> Response<Body> {
    if let Some(d) = shared.state.lock().daemons.get_mut(&number) {
        d.asked.pings += 1;
    }
    let mut changed = shared.changed.subscribe();
    loop {
        {
            let state = shared.state.lock();
            let node = ip.parse().ok().and_then(|ip| state.netmap().by_ip(ip));
            let Some(node) = node.filter(|_| state.seen_by(number).is_some()) else {
                return reply(&json::nobody(ip));
            };
            if state.answers(number, node.number) {
                return reply(&json::pong(&state, node, number, ip));
            }
        }
        if changed.changed().await.is_err() {
            return text(500, "gone");
        }
    }
}

/// Held open; says something whenever the coordinator's list changes.
fn bus(shared: &Shared, number: NodeNumber, mask: u64) -> Response<Body> {
    let first = (mask & 10 != 0).then(|| json::first_notice(&shared.state.lock(), number, mask));
    let rings = futures_util::stream::unfold(
        (shared.bell.subscribe(), shared.state.clone()),
        |(mut bell, state)| async move {
            bell.changed().await.ok()?;
            let notice = json::peers_changed(&state.lock());
            Some((notice, (bell, state)))
        },
    );
    let lines = futures_util::stream::iter(first)
        .chain(rings)
        .map(|notice| Ok(Frame::data(Bytes::from(format!("{notice}\n")))));
    kind(Response::new(StreamBody::new(lines).boxed_unsync()), "application/json")
}

pub(super) fn text(status: u16, text: &str) -> Response<Body> {
    let mut response = kind(whole(format!("{text}\n")), "text/plain; charset=utf-8");
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    response
}

fn reply(value: &serde_json::Value) -> Response<Body> {
    kind(whole(format!("{value:#}\n")), "application/json")
}

pub(super) fn whole(body: String) -> Response<Body> {
    Response::new(Full::new(Bytes::from(body)).map_err(|e| match e {}).boxed_unsync())
}

fn kind(mut response: Response<Body>, kind: &'static str) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert("tailscale-version", HeaderValue::from_static(json::VERSION));
    headers.insert("tailscale-cap", HeaderValue::from_static("142"));
    response
}

/// Percent-decoding of a query value.
fn unescape(value: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = value.bytes();
    while let Some(b) = bytes.next() {
        let hex = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        match b {
            b'%' => match (hex(bytes.next()), hex(bytes.next())) {
                (Some(h), Some(l)) => out.push(u8::try_from(h * 16 + l).unwrap_or(b'?')),
                _ => out.push(b'?'),
            },
            b => out.push(b),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
