//! The parts that this program plays in processes of their own: the engine behind everybody, and
//! the bare relay that is the bound.

use std::convert::Infallible;
use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until};

/// A request for [`crate::STREAMS`]`.1` tokens, one every [`EVERY`], and the end of its answer.
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    pub(crate) path: &'static str,
    pub(crate) body: &'static str,
    pub(crate) end: &'static str,
    /// How many lines it has, empty ones too.
    pub(crate) lines: usize,
}

/// Of the engine, in its own dialect.
pub(crate) const STREAM: Stream = Stream {
    path: "/api/generate",
    body: r#"{"model":"bench","prompt":"count","options":{"temperature":0}}"#,
    end: r#""done":true"#,
    lines: crate::STREAMS.1,
};
/// Of a provider that speaks the client's dialect.
pub(crate) const HOSTED: Stream = Stream {
    path: "/v1/chat/completions",
    body: r#"{"model":"hosted/bench","messages":[{"role":"user","content":"count"}],"stream":true,"stream_options":{"include_usage":true}}"#,
    end: "data: [DONE]",
    lines: 2 * (crate::STREAMS.1 + 1),
};
/// Of the same provider, in a dialect that it does not speak.
pub(crate) const TRANSLATED: Stream = Stream {
    path: "/api/chat",
    body: r#"{"model":"hosted/bench","messages":[{"role":"user","content":"count"}]}"#,
    end: r#""done":true"#,
    lines: crate::STREAMS.1,
};

const EVERY: Duration = Duration::from_millis(20);
const WEIGHTS: &str = "7d9c5b6e0f3a41c2a8e4d1b09f6c3e5a7b8d2f4c6e0a1b3d5f7092846c8eab01";

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Plays a part until the other end of standard input goes away.
pub(crate) async fn run(args: &[String]) -> Result<()> {
    std::thread::spawn(|| {
        // Nothing is ever written: this ends when whoever started us does.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    match args {
        [role, port] if role == "engine" => engine(port.parse()?).await,
        [role, port, upstream] if role == "hypermin" => {
            hypermin(port.parse()?, upstream.parse()?).await
        }
        _ => bail!("no such part: {args:?}"),
    }
}

async fn engine(port: u16) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (io, _) = listener.accept().await?;
        io.set_nodelay(true)?;
        let http = hyper::server::conn::http1::Builder::new();
        tokio::spawn(http.serve_connection(TokioIo::new(io), service_fn(answer)));
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let asked = request.into_body().collect().await?.to_bytes();
    let has = |text: &str| memchr::memmem::find(&asked, text.as_bytes()).is_some();
    let row = format!(
        r#""name":"bench:latest","model":"bench:latest","size":1000,"digest":"{WEIGHTS}","details":{{"format":"gguf","family":"llama"}}"#
    );
    let text = match path.as_str() {
        "/" => "Ollama is running".to_owned(),
        "/api/version" => r#"{"version":"0.32.15"}"#.to_owned(),
        "/api/tags" => {
            format!(r#"{{"models":[{{{row},"modified_at":"2026-11-21T07:00:00Z"}}]}}"#)
        }
        "/api/ps" => format!(
            r#"{{"models":[{{{row},"expires_at":"2319-01-01T00:00:00Z","size_vram":1000,"context_length":4096}}]}}"#
        ),
        "/api/show" => format!(
            r##"{{"modelfile":"# Modelfile\nFROM /models/blobs/sha256-{WEIGHTS}\n","template":"{{{{ .Prompt }}}}","details":{{"format":"gguf","family":"llama"}},"model_info":{{"general.architecture":"llama","llama.context_length":4096}},"capabilities":["completion"]}}"##
        ),
        "/api/generate" if !has(r#""prompt":""#) => {
            r#"{"model":"bench","response":"","done":true,"done_reason":"load"}"#.to_owned()
        }
        "/api/generate" if has(r#""stream":false"#) => r#"{"model":"bench","created_at":"2026-11-21T07:10:53.140641318Z","response":"Light of short waves is scattered most.","done":true,"done_reason":"stop","total_duration":3000000,"load_duration":1000000,"prompt_eval_count":30,"prompt_eval_duration":1000000,"eval_count":9,"eval_duration":1000000}"#.to_owned(),
        "/api/generate" => return Ok(reply("application/x-ndjson", tokens(NATIVE))),
        "/v1/chat/completions" => return Ok(reply("text/event-stream", tokens(CHAT))),
        _ => {
            let mut missing = reply("text/plain", full("404 page not found".to_owned()));
            *missing.status_mut() = hyper::StatusCode::NOT_FOUND;
            return Ok(missing);
        }
    };
    let kind =
        if path == "/" { "text/plain; charset=utf-8" } else { "application/json; charset=utf-8" };
    Ok(reply(kind, full(text)))
}

fn reply(kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text)).boxed_unsync()
}

/// A token and the last one, in two dialects.
const NATIVE: [&str; 2] = [
    "{\"model\":\"bench\",\"created_at\":\"2026-11-21T07:10:53.140641318Z\",\"response\":\" word\",\"done\":false}\n",
    "{\"model\":\"bench\",\"created_at\":\"2026-11-21T07:10:53.140641318Z\",\"response\":\"\",\"done\":true,\"done_reason\":\"stop\",\"eval_count\":99,\"eval_duration\":1980000000}\n",
];
const CHAT: [&str; 2] = [
    "data: {\"id\":\"chatcmpl-7\",\"object\":\"chat.completion.chunk\",\"created\":1795250585,\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"finish_reason\":null}]}\n\n",
    "data: {\"id\":\"chatcmpl-7\",\"object\":\"chat.completion.chunk\",\"created\":1795250585,\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":99}}\n\ndata: [DONE]\n\n",
];

/// A stream of tokens at a steady pace.
fn tokens([token, last]: [&'static str; 2]) -> Body {
    let began = Instant::now();
    let lines = stream::unfold(0, move |sent| async move {
        let (_, total) = crate::STREAMS;
        if sent == total {
            return None;
        }
        sleep_until(began + EVERY * (sent as u32 + 1)).await;
        let line = if sent + 1 == total { last } else { token };
        let frame = Frame::data(Bytes::from_static(line.as_bytes()));
        Some((Ok::<_, Infallible>(frame), sent + 1))
    });
    StreamBody::new(lines).boxed_unsync()
}

/// hyper's server and hyper-util's client, and nothing between them.
async fn hypermin(port: u16, upstream: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build::<_, Incoming>(connector);
    loop {
        let (io, _) = listener.accept().await?;
        io.set_nodelay(true)?;
        let client = client.clone();
        let relay = service_fn(move |mut request: Request<Incoming>| {
            let client = client.clone();
            async move {
                let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
                let uri = Uri::builder().scheme("http").authority(upstream.to_string());
                *request.uri_mut() =
                    uri.path_and_query(path).build().context("no such upstream")?;
                request.headers_mut().remove(hyper::header::HOST);
                anyhow::Ok(client.request(request).await?)
            }
        });
        let http = hyper::server::conn::http1::Builder::new();
        tokio::spawn(http.serve_connection(TokioIo::new(io), relay));
    }
}
