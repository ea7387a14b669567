//! Loads of a real Ollama: an empty request with the options of the one that waits.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::{Map, Value};

use super::{LoadDone, LoadFail, LoadRequest, Loader, Loading};
use crate::directory::Endpoint;
use crate::net::{Body, Pool, PooledBody};
use crate::telemetry::Clock;
use crate::types::{Dial, LoadKey, NodeId};

/// Longest answer to a load that is read: the real one has about a hundred bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// Longest message of an engine that is passed on.
const MAX_MESSAGE: usize = 4 * 1024;
/// How long the end of an answer may take once its head is there.
const ANSWER_TAIL: Duration = Duration::from_secs(30);

/// Loads the models of one Ollama of this node. There is no limit in time: Ollama itself gives a
/// load up that makes no progress (`OLLAMA_LOAD_TIMEOUT`, five minutes).
#[derive(Debug, Clone)]
pub struct OllamaLoader {
    pool: Pool,
    clock: Clock,
    dial: Dial,
    prefix: String,
}

impl OllamaLoader {
    /// A loader for this engine.
    pub fn new(pool: Pool, clock: Clock, endpoint: &Endpoint) -> OllamaLoader {
        let (dial, prefix) = (endpoint.dial.clone(), endpoint.prefix.to_string());
        OllamaLoader { pool, clock, dial, prefix }
    }

    async fn run(self, load: LoadRequest) -> Result<LoadDone, LoadFail> {
        let began = self.clock.now();
        let response = self.send(&load).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect();
        let body = match tokio::time::timeout(ANSWER_TAIL, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return Err(broke("its answer to a load broke off", &*error)),
            Err(_) => {
                let text = "the engine began to answer a load and did not end".to_owned();
                return Err(LoadFail { status: None, text });
            }
        };
        let said = message(&body);
        if status.is_success() && said.is_none() {
            return Ok(LoadDone { took: self.clock.now().since(began) });
        }
        // An error in a 200 is what a stream that had begun turns into.
        let status = if status.is_success() { 500 } else { status.as_u16() };
        let text = said.unwrap_or_else(|| clip(&String::from_utf8_lossy(&body)));
        Err(LoadFail { status: Some(status), text })
    }

    /// Sends the load. A kept connection may have been closed by the engine: that is no failure,
    /// and asking twice for a load is harmless.
    async fn send(&self, load: &LoadRequest) -> Result<Response<PooledBody>, LoadFail> {
        let node = NodeId::This;
        let reach = |error: &dyn std::error::Error| broke("the engine could not be reached", error);
        let lease = self.pool.acquire(&node, &self.dial).await.map_err(|e| reach(&e))?;
        let reused = lease.reused;
        let error = match lease.send(self.request(load)?).await {
            Ok(response) => return Ok(response),
            Err(error) if reused => error,
            Err(error) => return Err(broke("the engine broke off a load", &error)),
        };
        tracing::debug!(%error, "a kept connection to the engine was closed");
        let lease = self.pool.fresh(&node, &self.dial).await.map_err(|e| reach(&e))?;
        let sent = lease.send(self.request(load)?).await;
        sent.map_err(|error| broke("the engine broke off a load", &error))
    }

    fn request(&self, load: &LoadRequest) -> Result<Request<Body>, LoadFail> {
        let route = if load.embeds { "/api/embed" } else { "/api/generate" };
        let body = Full::new(Bytes::from(body(load).to_string()));
        Request::builder()
            .method(Method::POST)
            .uri(format!("{}{route}", self.prefix))
            .header(HOST, self.dial.host())
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json")
            .body(Body::new(body.map_err(|never| match never {})))
            .map_err(|error| broke("the load could not be asked for", &error))
    }
}

impl Loader for OllamaLoader {
    fn load(&self, request: LoadRequest) -> Loading {
        Box::pin(self.clone().run(request))
    }
}

/// An empty generate, or an embedding of nothing, with what makes Ollama choose its runner.
fn body(load: &LoadRequest) -> Value {
    let mut body = Map::new();
    body.insert("model".into(), Value::from(&*load.name));
    if load.embeds {
        body.insert("input".into(), Value::from(""));
    } else {
        body.insert("stream".into(), Value::from(false));
    }
    let options = options(&load.key);
    if !options.is_empty() {
        body.insert("options".into(), Value::Object(options));
    }
    if let Some(shift) = load.key.shift {
        body.insert("shift".into(), Value::from(shift));
    }
    if let Some(Ok(keep_alive)) = load.keep_alive.as_deref().map(serde_json::from_str) {
        body.insert("keep_alive".into(), keep_alive);
    }
    Value::Object(body)
}

/// The options that belong to the runner.
pub(super) fn options(key: &LoadKey) -> Map<String, Value> {
    let mut options = Map::new();
    if let Some(num_ctx) = key.num_ctx {
        options.insert("num_ctx".into(), Value::from(num_ctx));
    }
    for (name, json) in &key.runner {
        // What is no JSON never came from a request.
        if let Ok(value) = serde_json::from_str(json) {
            options.insert(name.clone(), value);
        }
    }
    options
}

/// The engine's message in an error body.
fn message(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let error = body.get("error")?;
    let text = error.as_str().or_else(|| error.get("message").and_then(Value::as_str));
    Some(text.map_or_else(|| clip(&error.to_string()), clip))
}

fn clip(text: &str) -> String {
    let end = (0..=text.len().min(MAX_MESSAGE)).rev().find(|i| text.is_char_boundary(*i));
    text[..end.unwrap_or(0)].trim().to_owned()
}

fn broke(what: &str, error: &dyn std::error::Error) -> LoadFail {
    LoadFail { status: None, text: format!("{what}: {error}") }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use parking_lot::Mutex;
    use tokio::net::TcpListener;
    use tokio::sync::watch;

    use super::*;
    use crate::net::{Connector, TailnetView, localapi};
    use crate::types::{ApiSet, EndpointId, EngineKind, Timing};

    type Asked = Arc<Mutex<Vec<(String, String, Value)>>>;

    /// An engine that answers every load like this, and a loader for it.
    async fn engine(status: u16, answer: &'static str) -> (OllamaLoader, Asked) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let asked = Asked::default();
        let log = asked.clone();
        tokio::spawn(async move {
            loop {
                let (io, _) = listener.accept().await.unwrap();
                let log = log.clone();
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let log = log.clone();
                    async move {
                        let host = request.headers()[HOST].to_str().unwrap().to_owned();
                        let path = request.uri().path().to_owned();
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        log.lock().push((path, host, serde_json::from_slice(&body).unwrap()));
                        Response::builder().status(status).body(Full::new(Bytes::from(answer)))
                    }
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(io), service));
            }
        });
        let dial = Dial::Loopback(addr);
        (loader(dial), asked)
    }

    fn loader(dial: Dial) -> OllamaLoader {
        let (_, view) = watch::channel(Arc::new(TailnetView::default()));
        let connector = Connector::new(view, localapi::Current::default(), Timing::shrunk());
        let clock = Clock::start();
        let endpoint = Endpoint {
            id: EndpointId(1),
            name: "ollama".into(),
            kind: EngineKind::Ollama,
            apis: ApiSet::ALL,
            native: ApiSet::ALL,
            version: None,
            dial,
            prefix: "/base".into(),
            slots: None,
            default_ctx: None,
            up: true,
            url: String::new(),
            unlisted: Vec::new(),
        };
        OllamaLoader::new(Pool::new(connector, clock, &Timing::shrunk()), clock, &endpoint)
    }

    fn load() -> LoadRequest {
        LoadRequest {
            name: "tiny:latest".into(),
            key: LoadKey::default(),
            keep_alive: None,
            embeds: false,
        }
    }

    const LOADED: &str = r#"{"model":"tiny","response":"","done":true,"done_reason":"load"}"#;

    #[tokio::test]
    async fn a_load_is_an_empty_generate_with_the_options_of_who_waits() {
        let (loader, asked) = engine(200, LOADED).await;
        let key = LoadKey {
            num_ctx: Some(8192),
            shift: Some(false),
            runner: [("num_batch".to_owned(), "64".to_owned())].into(),
        };
        let full = LoadRequest { key, keep_alive: Some("\"30m\"".into()), ..load() };
        assert!(loader.load(full).await.is_ok());
        assert!(loader.load(load()).await.is_ok());
        let (path, host, body) = asked.lock()[0].clone();
        assert_eq!(path, "/base/api/generate");
        assert!(host.starts_with("localhost:"), "{host}");
        assert_eq!(
            body,
            serde_json::json!({
                "model": "tiny:latest",
                "stream": false,
                "options": {"num_ctx": 8192, "num_batch": 64},
                "shift": false,
                "keep_alive": "30m",
            })
        );
        assert_eq!(asked.lock()[1].2, serde_json::json!({"model": "tiny:latest", "stream": false}));
    }

    #[tokio::test]
    async fn a_model_that_only_embeds_is_loaded_by_embedding_nothing() {
        let (loader, asked) = engine(200, r#"{"model":"embed","embeddings":[]}"#).await;
        assert!(loader.load(LoadRequest { embeds: true, ..load() }).await.is_ok());
        let (path, _, body) = asked.lock()[0].clone();
        assert_eq!(path, "/base/api/embed");
        assert_eq!(body, serde_json::json!({"model": "tiny:latest", "input": ""}));
    }

    #[tokio::test]
    async fn a_failure_is_told_in_the_engines_words() {
        for (status, answer, expect) in [
            (
                500,
                r#"{"error":"model requires more system memory"}"#,
                (500, "model requires more system memory"),
            ),
            (404, r#"{"error":{"message":"no such model","type":"x"}}"#, (404, "no such model")),
            (503, "busy\n", (503, "busy")),
            (200, r#"{"error":"runner stopped"}"#, (500, "runner stopped")),
        ] {
            let (loader, _) = engine(status, answer).await;
            let fail = loader.load(load()).await.unwrap_err();
            assert_eq!(fail, LoadFail { status: Some(expect.0), text: expect.1.to_owned() });
        }
    }

    #[tokio::test]
    async fn a_kept_connection_that_was_closed_is_no_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let loader = loader(Dial::Loopback(listener.local_addr().unwrap()));
        let engine = tokio::spawn(async move {
            for close_after_next in [true, false] {
                let (mut io, _) = listener.accept().await.unwrap();
                let mut seen = 0;
                loop {
                    use tokio::io::{AsyncReadExt, AsyncWriteExt};
                    let mut buffer = [0; 4096];
                    let n = io.read(&mut buffer).await.unwrap();
                    seen += 1;
                    if n == 0 || (close_after_next && seen == 2) {
                        break;
                    }
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{LOADED}",
                        LOADED.len()
                    );
                    io.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        assert!(loader.load(load()).await.is_ok());
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(loader.load(load()).await.is_ok());
        engine.abort();
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there_is_said_so() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let fail = loader(Dial::Loopback(addr)).load(load()).await.unwrap_err();
        assert_eq!(fail.status, None);
        assert!(fail.text.contains("could not be reached"), "{}", fail.text);
    }
}
