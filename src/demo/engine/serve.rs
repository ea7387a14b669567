//! Accepts connections, checks where they come from, and finds the route.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, CONTENT_ENCODING, HOST, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::ask::Fields;
use super::fault::Wire;
use super::infer::{Kind, infer};
use super::reply::{self, Body, Dialect, JSON};
use super::seen::Seen;
use super::{Shared, embed, manage};

/// The connection a request came on.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) number: u64,
    /// Whether its end is a reset.
    pub(super) reset: Arc<AtomicBool>,
}

/// Accepts until told to stop; then every connection is dropped where it stands.
pub(super) async fn accept(
    shared: Arc<Shared>,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let tcp = tokio::select! {
            _ = stop.wait_for(|s| *s) => return,
            tcp = listener.accept() => tcp,
        };
        if let Ok((tcp, _)) = tcp {
            let (shared, mut stop) = (shared.clone(), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    _ = stop.wait_for(|s| *s) => {}
                    () = serve(shared, tcp) => {}
                }
            });
        }
    }
}

async fn serve(shared: Arc<Shared>, tcp: TcpStream) {
    let _ = tcp.set_nodelay(true);
    let line = Line { number: shared.notes.serial(), reset: Arc::default() };
    shared.notes.count(|c| c.connections += 1);
    let wire = Wire::new(tcp, shared.faults.clone(), line.reset.clone());
    let service = service_fn(move |request| {
        let (shared, line) = (shared.clone(), line.clone());
        async move { answer(shared, line, request).await }
    });
    // An error here is a client that went away or a cut that a test asked for.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(wire), service)
        .await;
}

async fn answer(
    shared: Arc<Shared>,
    line: Line,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    shared.faults.frozen.thawed().await;
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let seen = |model: Option<String>, body: Bytes| Seen {
        method: head.method.clone(),
        path: path.clone(),
        query: head.uri.query().map(str::to_owned),
        model,
        headers: head.headers.clone(),
        body,
        connection: line.number,
    };
    let origin = head.headers.get(ORIGIN).cloned();
    if !host_allowed(&head.headers) || origin.as_ref().is_some_and(|o| !origin_allowed(o)) {
        shared.notes.saw(seen(None, Bytes::new()));
        return Ok(reply::bare(403));
    }
    let mut response = if let (Some(origin), Method::OPTIONS) = (&origin, head.method.clone()) {
        shared.notes.saw(seen(None, Bytes::new()));
        preflight(origin)
    } else if let Some(digest) = path.strip_prefix("/api/blobs/") {
        shared.notes.saw(seen(None, Bytes::new()));
        match head.method {
            Method::HEAD => manage::has_blob(&shared, digest),
            Method::POST => manage::put_blob(&shared, digest, body).await,
            _ => reply::no_method("HEAD, POST"),
        }
    } else {
        let Ok(body) = body.collect().await else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let body = body.to_bytes();
        let plain = unpack(&path, &head.headers, &body);
        let fields = plain.and_then(|b| Fields::read(&b));
        let model = fields.as_ref().ok().map(|f| f.model().to_owned()).filter(|m| !m.is_empty());
        shared.notes.saw(seen(model, body));
        route(&shared, &line, &head.method, &path, fields).await?
    };
    if let Some(origin) = origin {
        response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        response.headers_mut().append(VARY, HeaderValue::from_static("Origin"));
    }
    Ok(response)
}

async fn route(
    shared: &Arc<Shared>,
    line: &Line,
    method: &Method,
    path: &str,
    fields: Result<Fields, String>,
) -> io::Result<Response<Body>> {
    let get = matches!(*method, Method::GET | Method::HEAD);
    let dialect = Dialect::of(path);
    let read = match path {
        "/" => Some(reply::whole(200, "text/plain; charset=utf-8", "Ollama is running")),
        "/api/version" => {
            Some(reply::whole(200, JSON, format!(r#"{{"version":"{}"}}"#, shared.spec.version)))
        }
        "/api/tags" => Some(manage::tags(shared)),
        "/api/ps" => Some(manage::ps(shared)),
        "/api/status" => {
            let (off, source) = if shared.spec.cloud { (false, "none") } else { (true, "env") };
            let body = format!(r#"{{"cloud":{{"disabled":{off},"source":"{source}"}}}}"#);
            Some(reply::whole(200, JSON, body))
        }
        "/api/experimental/model-recommendations" => {
            Some(reply::whole(200, JSON, r#"{"recommendations":[]}"#))
        }
        "/v1/models" => Some(manage::openai_models(shared)),
        _ => path.strip_prefix("/v1/models/").map(|name| manage::openai_model(shared, name)),
    };
    if let Some(answer) = read {
        return Ok(if get { answer } else { reply::no_method("HEAD, GET") });
    }
    if path == "/api/delete" {
        return Ok(match (method, fields) {
            (&Method::DELETE, Ok(fields)) => manage::delete(shared, &fields),
            (&Method::DELETE, Err(text)) => dialect.error(400, &text),
            _ => reply::no_method("DELETE"),
        });
    }
    let known = matches!(
        path,
        "/api/show"
            | "/api/generate"
            | "/api/chat"
            | "/api/embed"
            | "/api/embeddings"
            | "/api/pull"
            | "/api/push"
            | "/api/create"
            | "/api/copy"
            | "/api/me"
            | "/api/signout"
            | "/v1/chat/completions"
            | "/v1/completions"
            | "/v1/responses"
            | "/v1/messages"
            | "/v1/embeddings"
    );
    if !known {
        return Ok(reply::no_page());
    }
    if method != Method::POST {
        return Ok(reply::no_method("POST"));
    }
    if matches!(path, "/api/me" | "/api/signout") {
        return Ok(dialect.error(503, "account unavailable"));
    }
    let fields = match fields {
        Ok(fields) => fields,
        Err(text) => return Ok(dialect.error(400, &text)),
    };
    let fields = &fields;
    match path {
        "/api/show" => Ok(manage::show(shared, fields)),
        "/api/pull" => Ok(manage::pull(shared, fields)),
        "/api/push" => Ok(manage::push(shared, fields)),
        "/api/create" => Ok(manage::create(shared, fields)),
        "/api/copy" => Ok(manage::copy(shared, fields)),
        "/api/embed" => embed::embed(shared, line, embed::Kind::Embed, dialect, fields).await,
        "/api/embeddings" => embed::embed(shared, line, embed::Kind::Old, dialect, fields).await,
        "/v1/embeddings" => embed::embed(shared, line, embed::Kind::OpenAi, dialect, fields).await,
        "/api/generate" => infer(shared, line, Kind::Generate, dialect, fields).await,
        "/api/chat" => infer(shared, line, Kind::Chat, dialect, fields).await,
        "/v1/chat/completions" => infer(shared, line, Kind::OpenAiChat, dialect, fields).await,
        "/v1/completions" => infer(shared, line, Kind::Completions, dialect, fields).await,
        "/v1/responses" => infer(shared, line, Kind::Responses, dialect, fields).await,
        _ => infer(shared, line, Kind::Messages, dialect, fields).await,
    }
}

/// `/v1/*` takes zstd; `/api/*` reads it as the garbage it is there.
fn unpack(path: &str, headers: &HeaderMap, body: &Bytes) -> Result<Bytes, String> {
    let zstd = headers.get(CONTENT_ENCODING).is_some_and(|v| v == "zstd");
    if !zstd || !path.starts_with("/v1/") {
        return Ok(body.clone());
    }
    let mut out = Vec::new();
    let mut rest: &[u8] = body;
    while !rest.is_empty() {
        let mut frame = ruzstd::decoding::StreamingDecoder::new(&mut rest)
            .map_err(|_| "invalid zstd".to_owned())?;
        io::Read::read_to_end(&mut frame, &mut out).map_err(|_| "invalid zstd".to_owned())?;
    }
    Ok(out.into())
}

/// Ollama's guard against DNS rebinding while it is bound to loopback.
fn host_allowed(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST).and_then(|h| h.to_str().ok()) else { return true };
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    if let Ok(ip) = name.parse::<IpAddr>() {
        return ip.is_loopback()
            || ip.is_unspecified()
            || matches!(ip, IpAddr::V4(v4) if v4.is_private());
    }
    let name = name.to_ascii_lowercase();
    name.is_empty()
        || name == "localhost"
        || [".localhost", ".local", ".internal"].iter().any(|end| name.ends_with(end))
}

fn origin_allowed(origin: &HeaderValue) -> bool {
    let Ok(origin) = origin.to_str() else { return false };
    let (scheme, rest) = origin.split_once("://").unwrap_or((origin, ""));
    let host = rest.rsplit_once(':').map_or(rest, |(host, _)| host);
    match scheme {
        "http" | "https" => matches!(host, "localhost" | "127.0.0.1" | "0.0.0.0"),
        other => matches!(other, "app" | "file" | "tauri" | "vscode-webview" | "vscode-file"),
    }
}

fn preflight(origin: &HeaderValue) -> Response<Body> {
    let mut response = reply::bare(204);
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(
            "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta",
        ),
    );
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
    );
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("43200"));
    response
}
