//! Requests, and what they took.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::roles::Stream;

/// A prompt as a chat of a few words has it.
const SMALL: &str = r#"{"model":"bench","stream":false,"prompt":"Why is the sky blue, and why does it turn red in the evening? Answer in one sentence that a child of six understands, please."}"#;

/// The end marker is within this many bytes of a stream's end.
const TAIL: usize = 512;

struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Client {
    async fn connect(addr: SocketAddr) -> Result<Client> {
        let io = TcpStream::connect(addr).await?;
        io.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await?;
        // It ends when the client is dropped; what goes wrong shows at the request.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Client { sender, host: format!("localhost:{}", addr.port()) })
    }

    async fn post(&mut self, path: &str, body: &'static str) -> Result<Response<Incoming>> {
        let request = Request::post(path)
            .header(HOST, &self.host)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from_static(body.as_bytes())))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        ensure!(response.status() == 200, "answered {}", response.status());
        Ok(response)
    }

    async fn small(&mut self) -> Result<()> {
        let body = self.post("/api/generate", SMALL).await?.into_body().collect().await?.to_bytes();
        ensure!(body.ends_with(b"}"), "an answer of {} bytes is not whole", body.len());
        Ok(())
    }
}

/// One small request on a connection of its own.
pub(crate) async fn once(addr: SocketAddr) -> Result<()> {
    Client::connect(addr).await?.small().await
}

/// `total` small requests over `conns` connections, each as fast as it goes.
pub(crate) async fn small(addr: SocketAddr, conns: usize, total: usize) -> Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..conns {
        tasks.spawn(async move {
            let mut client = Client::connect(addr).await?;
            for _ in 0..total / conns {
                client.small().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Small requests at a fixed rate over eight connections; what each took. A request that had to
/// wait for the one before it is counted from when it was due.
pub(crate) async fn paced(addr: SocketAddr, rate: u32, during: Duration) -> Result<Vec<Duration>> {
    const CONNS: u32 = 8;
    let every = Duration::from_secs(1) / rate;
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for conn in 0..CONNS {
        tasks.spawn(async move {
            let mut client = Client::connect(addr).await?;
            // The first pays for the connection behind the relay.
            client.small().await?;
            let mut took = Vec::new();
            let mut due = began + Duration::from_millis(100) + every * conn;
            while due < began + during {
                let late = Instant::now() > due;
                sleep_until(due).await;
                // The timer has a step of a millisecond: its lateness is not the relay's.
                let start = if late { due } else { Instant::now() };
                client.small().await?;
                took.push(start.elapsed());
                due += every * CONNS;
            }
            anyhow::Ok(took)
        });
    }
    let mut all = Vec::new();
    while let Some(took) = tasks.join_next().await {
        all.extend(took??);
    }
    Ok(all)
}

/// `count` streams at once; how many tokens came in all, after checking that none was lost.
pub(crate) async fn streams(
    addr: SocketAddr,
    stream: Stream,
    count: usize,
    tokens: usize,
) -> Result<usize> {
    let Stream { path, body, end: marker, lines: each } = stream;
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        tasks.spawn(async move {
            let mut client = Client::connect(addr).await?;
            let mut answer = client.post(path, body).await?.into_body();
            // A frame may hold a part of a line: what the stream ends with is gathered.
            let (mut lines, mut end) = (0, Vec::new());
            while let Some(frame) = answer.frame().await {
                if let Ok(data) = frame?.into_data() {
                    lines += data.iter().filter(|b| **b == b'\n').count();
                    end.drain(..end.len().saturating_sub(TAIL));
                    end.extend_from_slice(&data);
                }
            }
            let whole = memchr::memmem::find(&end, marker.as_bytes());
            whole.context("a stream ended before its end marker")?;
            anyhow::Ok(lines)
        });
    }
    let mut all = 0;
    while let Some(lines) = tasks.join_next().await {
        all += lines??;
    }
    ensure!(all == count * each, "{all} lines came of {}", count * each);
    Ok(count * tokens)
}
