//! A small HTTP client that sees a body as it came: frames, a clean end or a cut.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// How long any single step of a test may take before the test fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(15);

/// A request to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) addr: SocketAddr,
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

pub(crate) fn get(addr: SocketAddr, target: &str) -> Call {
    Call {
        addr,
        method: Method::GET,
        target: target.to_owned(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
    }
}

pub(crate) fn post(addr: SocketAddr, target: &str, body: impl Into<Bytes>) -> Call {
    Call { method: Method::POST, body: body.into(), ..get(addr, target) }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Whether the body came to a proper end.
    pub(crate) whole: bool,
}

/// An answer whose body is still coming.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    // Dropping it closes the connection.
    _sender: SendRequest<Full<Bytes>>,
}

impl Call {
    pub(crate) fn method(mut self, method: &str) -> Self {
        self.method = method.parse().unwrap();
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, HeaderValue::from_str(value).unwrap());
        self
    }

    /// Sends it on a connection of its own and waits for the head.
    pub(crate) async fn open(self) -> std::io::Result<Stream> {
        let tcp = TcpStream::connect(self.addr).await?;
        let (mut sender, connection) =
            handshake(TokioIo::new(tcp)).await.map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        let response = self.send_on(&mut sender).await?;
        let (head, body) = response.into_parts();
        Ok(Stream { status: head.status.as_u16(), headers: head.headers, body, _sender: sender })
    }

    pub(crate) async fn send_on(
        self,
        sender: &mut SendRequest<Full<Bytes>>,
    ) -> std::io::Result<Response<Incoming>> {
        let mut request = Request::new(Full::new(self.body));
        *request.method_mut() = self.method;
        *request.uri_mut() = self.target.parse().unwrap();
        *request.headers_mut() = self.headers;
        let headers = request.headers_mut();
        headers.entry("host").or_insert(HeaderValue::from_str(&self.addr.to_string()).unwrap());
        headers.entry("content-type").or_insert(HeaderValue::from_static("application/json"));
        sender.send_request(request).await.map_err(std::io::Error::other)
    }

    /// Sends it and reads the answer to its end.
    pub(crate) async fn send(self) -> Answer {
        let what = format!("{} {}", self.method, self.target);
        tokio::time::timeout(LIMIT, async { self.open().await.unwrap().rest().await })
            .await
            .unwrap_or_else(|_| panic!("no answer to {what}"))
    }
}

impl Stream {
    /// The next piece of the body; `None` = a clean end, `Err` = cut.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        let frame = tokio::time::timeout(LIMIT, self.body.frame()).await.expect("a frame in time");
        frame.map(|f| f.map(|f| f.into_data().unwrap_or_default()))
    }

    pub(crate) async fn rest(mut self) -> Answer {
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
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// The JSON objects of a stream: one a line, or one an SSE `data:` line.
    pub(crate) fn items(&self) -> Vec<Value> {
        items(self.text())
    }

    /// All that was said in a native stream (`response` or `message.content`).
    pub(crate) fn said(&self) -> String {
        let text = |v: &Value| {
            let chat = v.pointer("/message/content").and_then(Value::as_str);
            v["response"].as_str().or(chat).unwrap_or_default().to_owned()
        };
        self.items().iter().map(text).collect()
    }
}

pub(crate) fn items(text: &str) -> Vec<Value> {
    text.lines()
        .map(|l| l.strip_prefix("data: ").unwrap_or(l))
        .filter(|l| l.starts_with('{'))
        .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}")))
        .collect()
}

/// ` 1 2 3 … n`.
pub(crate) fn counted(n: u64) -> String {
    (1..=n).map(|i| format!(" {i}")).collect()
}
