//! A small HTTP client that sees a body as it comes: pieces, a proper end or a cut.
//!
//! Every call has a connection of its own, so that leaving in mid-answer is closing it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long a head, or one piece of a body, may take.
pub const LIMIT: Duration = Duration::from_secs(15);

/// A request to be sent.
#[derive(Debug, Clone)]
pub struct Call {
    /// To whom.
    pub addr: SocketAddr,
    /// Method.
    pub method: Method,
    /// Path and query, sent as they are.
    pub target: String,
    /// Headers; `Host` and `Content-Type` are added where missing.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// A GET.
pub fn get(addr: SocketAddr, target: &str) -> Call {
    Call {
        addr,
        method: Method::GET,
        target: target.to_owned(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
    }
}

/// A POST.
pub fn post(addr: SocketAddr, target: &str, body: impl Into<Bytes>) -> Call {
    Call { method: Method::POST, body: body.into(), ..get(addr, target) }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// What came of the body.
    pub body: Bytes,
    /// Whether the body came to a proper end.
    pub whole: bool,
}

/// An answer whose body is still coming. Dropped, the connection is closed.
#[derive(Debug)]
pub struct Stream {
    /// Status code.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    body: Incoming,
    _sender: SendRequest<Full<Bytes>>,
}

impl Call {
    /// With one more header; one that no HTTP message may carry is left out.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            self.headers.append(name, value);
        }
        self
    }

    /// With another method.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// Sends it and waits for the head.
    pub async fn open(self) -> io::Result<Stream> {
        let limit = |_| io::Error::from(io::ErrorKind::TimedOut);
        tokio::time::timeout(LIMIT, self.open_unlimited()).await.map_err(limit)?
    }

    /// Sends it and waits for the head as long as it takes.
    pub async fn open_unlimited(self) -> io::Result<Stream> {
        let tcp = TcpStream::connect(self.addr).await?;
        self.open_on(tcp).await
    }

    /// Sends it on this connection and waits for the head.
    pub async fn open_on(
        self,
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> io::Result<Stream> {
        let (mut sender, connection) =
            handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        let request = self.request()?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let (head, body) = response.into_parts();
        Ok(Stream { status: head.status.as_u16(), headers: head.headers, body, _sender: sender })
    }

    fn request(self) -> io::Result<Request<Full<Bytes>>> {
        let host = HeaderValue::from_str(&self.addr.to_string()).map_err(io::Error::other)?;
        let mut request = Request::new(Full::new(self.body));
        *request.method_mut() = self.method;
        *request.uri_mut() = self.target.parse().map_err(io::Error::other)?;
        *request.headers_mut() = self.headers;
        request.headers_mut().entry(HOST).or_insert(host);
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().entry(CONTENT_TYPE).or_insert(json);
        Ok(request)
    }

    /// Sends it and reads the answer to its end.
    pub async fn answer(self) -> io::Result<Answer> {
        Ok(self.open().await?.rest().await)
    }
}

/// A connection that is kept for several calls, as a program has that asks more than once.
#[derive(Debug)]
pub struct Kept {
    addr: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Kept {
    /// Connects.
    pub async fn open(addr: SocketAddr) -> io::Result<Kept> {
        let tcp = TcpStream::connect(addr).await?;
        let (sender, connection) = handshake(TokioIo::new(tcp)).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(Kept { addr, sender })
    }

    /// GETs, and returns the status.
    pub async fn get(&mut self, target: &str) -> io::Result<u16> {
        self.sender.ready().await.map_err(io::Error::other)?;
        let request = get(self.addr, target).request()?;
        let response = self.sender.send_request(request).await.map_err(io::Error::other)?;
        let status = response.status().as_u16();
        response.into_body().collect().await.map_err(io::Error::other)?;
        Ok(status)
    }
}

impl Stream {
    /// The next piece of the body; `None` = a proper end, an error = cut, or silent for
    /// longer than [`LIMIT`].
    pub async fn next(&mut self) -> Option<io::Result<Bytes>> {
        match tokio::time::timeout(LIMIT, self.body.frame()).await {
            Err(_) => Some(Err(io::ErrorKind::TimedOut.into())),
            Ok(None) => None,
            Ok(Some(Err(e))) => Some(Err(io::Error::other(e))),
            Ok(Some(Ok(frame))) => Some(Ok(frame.into_data().unwrap_or_default())),
        }
    }

    /// Reads the body up to its end or its cut.
    pub async fn rest(mut self) -> Answer {
        let mut body = Vec::new();
        let mut whole = true;
        while let Some(piece) = self.next().await {
            match piece {
                Ok(piece) => body.extend_from_slice(&piece),
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
        Answer { status: self.status, headers: self.headers, body: body.into(), whole }
    }

    /// Reads until so many lines have come; what came.
    pub async fn lines(&mut self, n: usize) -> Vec<u8> {
        let mut body = Vec::new();
        while body.iter().filter(|b| **b == b'\n').count() < n {
            match self.next().await {
                Some(Ok(piece)) => body.extend_from_slice(&piece),
                _ => break,
            }
        }
        body
    }
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or("(not text)")
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A header, or an empty text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// The JSON objects of a stream: one a line, or one an SSE `data:` line.
    pub fn items(&self) -> Vec<Value> {
        items(self.text())
    }

    /// All that was said in a native stream (`response`, or `message.content`).
    pub fn said(&self) -> String {
        said(self.text())
    }
}

/// Sends these bytes as they are and returns all that comes back until the other side closes
/// or says nothing more for a while.
pub async fn raw(addr: SocketAddr, bytes: &[u8]) -> io::Result<String> {
    let mut tcp = TcpStream::connect(addr).await?;
    tcp.write_all(bytes).await?;
    let mut out = Vec::new();
    let pause = Duration::from_millis(300);
    let mut chunk = [0; 4096];
    while let Ok(Ok(n)) = tokio::time::timeout(pause, tcp.read(&mut chunk)).await {
        if n == 0 {
            break;
        }
        out.extend_from_slice(chunk.get(..n).unwrap_or_default());
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// The JSON objects of a stream's text. A line that is no JSON is null.
pub fn items(text: &str) -> Vec<Value> {
    text.lines()
        .map(|l| l.strip_prefix("data: ").unwrap_or(l))
        .filter(|l| l.starts_with('{'))
        .map(|l| serde_json::from_str(l).unwrap_or_default())
        .collect()
}

/// All that was said in a native stream's text.
pub fn said(text: &str) -> String {
    let word = |v: &Value| {
        let chat = v.pointer("/message/content").and_then(Value::as_str);
        v["response"].as_str().or(chat).unwrap_or_default().to_owned()
    };
    items(text).iter().map(word).collect()
}

/// ` 1 2 3 … n`: what a counting model says.
pub fn counted(n: u64) -> String {
    (1..=n).map(|i| format!(" {i}")).collect()
}
