//! A hosted provider, or an engine that is no Ollama, for tests: it answers what it was told to,
//! and remembers what it was asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What it answers.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    pub(crate) body: String,
}

/// What it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) path: String,
    /// In lower case.
    pub(crate) head: String,
    pub(crate) body: Value,
}

impl Seen {
    /// A header's value; empty if it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        let line = self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.unwrap_or_default()
    }
}

#[derive(Debug)]
pub(crate) struct Provider {
    addr: SocketAddr,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    reply: Mutex<Reply>,
    /// By path, before that.
    at: Mutex<HashMap<String, Reply>>,
    seen: Mutex<Vec<Seen>>,
    connections: Mutex<usize>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Provider {
    pub(crate) async fn start(reply: Reply) -> Provider {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            reply: Mutex::new(reply),
            at: Mutex::default(),
            seen: Mutex::default(),
            connections: Mutex::default(),
        });
        let task = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    *shared.connections.lock() += 1;
                    tokio::spawn(serve(stream, Arc::clone(&shared)));
                }
            }
        });
        Provider { addr, shared, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn port(&self) -> u16 {
        self.addr.port()
    }

    pub(crate) fn says(&self, reply: Reply) {
        *self.shared.reply.lock() = reply;
    }

    /// What it says at one path.
    pub(crate) fn says_at(&self, path: &str, reply: Reply) {
        self.shared.at.lock().insert(path.to_owned(), reply);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().clone()
    }

    pub(crate) fn forget(&self) {
        self.shared.seen.lock().clear();
    }

    pub(crate) fn connections(&self) -> usize {
        *self.shared.connections.lock()
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
        match stream.read(&mut chunk).await {
            Ok(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
            _ => return,
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok());
    while bytes.len() < end + length.unwrap_or(0) {
        match stream.read(&mut chunk).await {
            Ok(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
            _ => return,
        }
    }
    let path = String::from_utf8_lossy(&bytes).split(' ').nth(1).unwrap_or_default().to_owned();
    let body = serde_json::from_slice(&bytes[end..]).unwrap_or_default();
    let at = shared.at.lock().get(&path).cloned();
    shared.seen.lock().push(Seen { path, head, body });
    let Reply { status, headers, body } = at.unwrap_or_else(|| shared.reply.lock().clone());
    let mut answer = format!("HTTP/1.1 {status} X\r\nconnection: close\r\n");
    for (name, value) in headers {
        answer.push_str(&format!("{name}: {value}\r\n"));
    }
    answer.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    let _ = stream.write_all(answer.as_bytes()).await;
}

/// An error as JSON.
pub(crate) fn error(status: u16, body: &str) -> Reply {
    Reply { status, headers: vec![("content-type", "application/json")], body: body.to_owned() }
}

/// The same, with when to come back.
pub(crate) fn later(status: u16, seconds: &'static str, body: &str) -> Reply {
    let mut reply = error(status, body);
    reply.headers.push(("retry-after", seconds));
    reply
}

/// A stream of events.
pub(crate) fn events(body: &str) -> Reply {
    Reply {
        status: 200,
        headers: vec![("content-type", "text/event-stream")],
        body: body.to_owned(),
    }
}

/// OpenAI's stream: one word, its usage, its end.
pub(crate) fn chat_stream() -> Reply {
    let chunk = |delta: Value, finish: Value, usage: Value| {
        let choice = json!([{ "index": 0, "delta": delta, "finish_reason": finish }]);
        let chunk = json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "gpt-9",
            "choices": choice, "usage": usage,
        });
        format!("data: {chunk}\n\n")
    };
    events(&format!(
        ": OPENROUTER PROCESSING\n\n{}{}data: [DONE]\n\n",
        chunk(json!({ "role": "assistant", "content": "hosted" }), Value::Null, Value::Null),
        chunk(
            json!({}),
            json!("stop"),
            json!({ "prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200 })
        ),
    ))
}
