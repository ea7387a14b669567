//! One machine's Ollama: the simulator's engine, on a socket.
//!
//! What a request costs is not in its body: its `seed` names a turn of the sessions that all
//! processes of a run know. Counted is what was begun and what was ended, by request.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::crew;
use super::options::Options;
use crate::sim::fleet::{Fleet, Lengths};
use crate::sim::server::{Engine, Job, Numbers, Said};
use crate::sim::trace::Session;
use crate::sim::world;

/// While an answer is written, what there is of it is sent this often: a line for each token, as
/// Ollama does, or it would be taken to have become slow.
const PIECE: Duration = Duration::from_millis(200);
const WINDOW: u64 = 131_072;

type Body = UnsyncBoxBody<Bytes, Infallible>;

struct Machine {
    fleet: Fleet,
    sessions: Vec<Session>,
    node: usize,
    seed: u64,
    began: Instant,
    desk: Mutex<Desk>,
    changed: Notify,
}

struct Desk {
    engine: Engine,
    next: u64,
    /// Who waits for news of a job, and which request it is.
    jobs: HashMap<u64, (Option<u64>, mpsc::UnboundedSender<Said>)>,
    /// How often each request got to its first byte, and to its end.
    first: BTreeMap<u64, u32>,
    ended: BTreeMap<u64, u32>,
}

/// What an engine has done, for whoever counts.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Counts {
    pub(crate) loads: u64,
    pub(crate) first: BTreeMap<u64, u32>,
    pub(crate) ended: BTreeMap<u64, u32>,
}

pub(crate) async fn run(options: &Options, node: usize, seed: u64) -> Result<()> {
    let fleet = options.fleet()?;
    let desk = Desk {
        engine: Engine::new(&fleet, node),
        next: 0,
        jobs: HashMap::new(),
        first: BTreeMap::new(),
        ended: BTreeMap::new(),
    };
    let machine = Arc::new(Machine {
        sessions: options.sessions(&fleet, seed),
        fleet,
        node,
        seed,
        began: Instant::now(),
        desk: Mutex::new(desk),
        changed: Notify::new(),
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    writeln!(std::io::stdout(), "at {}", listener.local_addr()?)?;
    tokio::spawn(Arc::clone(&machine).work());
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let _ = io.set_nodelay(true);
            let machine = Arc::clone(&machine);
            let service = service_fn(move |request| answer(Arc::clone(&machine), request));
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(http.serve_connection(TokioIo::new(io), service));
        }
    });
    crew::stay().await
}

impl Machine {
    /// Lets the engine work as time passes.
    async fn work(self: Arc<Self>) {
        loop {
            let next = self.touch(|_| {});
            let next = next.map(|at| self.began + Duration::from_secs_f64(at.max(0.0)));
            let far = Instant::now() + Duration::from_secs(60);
            tokio::select! {
                () = tokio::time::sleep_until(next.unwrap_or(far)) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Does something at the present moment and passes on what came of it; when something
    /// happens next by itself.
    fn touch(&self, change: impl FnOnce(&mut Desk)) -> Option<f64> {
        let mut desk = self.desk.lock();
        desk.engine.advance(self.began.elapsed().as_secs_f64());
        change(&mut desk);
        for (_, said) in desk.engine.take_said() {
            let (Said::FirstByte(id) | Said::Done(id, _) | Said::Loaded(id)) = said;
            let Some((request, news)) = desk.jobs.get(&id).cloned() else { continue };
            if let Some(request) = request {
                match said {
                    Said::FirstByte(_) => *desk.first.entry(request).or_default() += 1,
                    Said::Done(..) => *desk.ended.entry(request).or_default() += 1,
                    Said::Loaded(_) => {}
                }
            }
            // Who does not want to know has gone, and cancels.
            let _ = news.send(said);
        }
        desk.engine.next()
    }

    fn submit(self: &Arc<Self>, request: Option<u64>, job: Job) -> Ticket {
        let (news, hears) = mpsc::unbounded_channel();
        let began = Instant::now();
        let mut id = 0;
        self.touch(|desk| {
            desk.next += 1;
            id = desk.next;
            desk.jobs.insert(id, (request, news));
            let now = self.began.elapsed().as_secs_f64();
            desk.engine.submit(Job { id, ..job }, now);
        });
        self.touch(|_| {});
        self.changed.notify_one();
        Ticket { machine: Arc::clone(self), id, began, hears }
    }

    fn model(&self, name: &str) -> Option<usize> {
        let bare = name.strip_suffix(":latest").unwrap_or(name);
        let held = |m: &usize| self.fleet.has(self.node, *m);
        self.fleet.models.iter().position(|m| m.name == bare).filter(held)
    }

    fn embeds(&self, model: usize) -> bool {
        self.fleet.models[model].lengths == Lengths::Embed
    }

    /// The work that a body asks for; `None` of a request = nothing but the load.
    fn job(&self, model: usize, body: &Value) -> (Option<u64>, Job) {
        let load = Job::preload(0, model);
        let request = body.pointer("/options/seed").and_then(Value::as_u64);
        let turn = request.and_then(|id| {
            let session = self.sessions.get((id / world::TURNS) as usize)?;
            session.turns.get((id % world::TURNS) as usize)
        });
        let (Some(id), Some(turn)) = (request, turn) else { return (None, load) };
        let job = Job {
            session: id / world::TURNS,
            prompt: turn.prompt,
            fresh: turn.fresh,
            output: turn.output,
            luck: world::luck(self.seed, id, self.node),
            preload: false,
            ..load
        };
        (Some(id), job)
    }

    fn row(&self, model: usize) -> Value {
        let of = &self.fleet.models[model];
        json!({
            "name": format!("{}:latest", of.name), "model": format!("{}:latest", of.name),
            "size": (of.gb * 1e9) as u64, "digest": digest(model),
            "details": {"format": "gguf", "family": "llama"},
        })
    }

    fn rows(&self, models: impl Iterator<Item = usize>, more: &Value) -> String {
        let rows = models.map(|m| {
            let mut row = self.row(m);
            if let (Some(row), Some(more)) = (row.as_object_mut(), more.as_object()) {
                row.extend(more.clone());
            }
            row
        });
        json!({"models": rows.collect::<Vec<_>>()}).to_string()
    }

    fn tags(&self) -> String {
        let all = (0..self.fleet.models.len()).filter(|m| self.fleet.has(self.node, *m));
        self.rows(all, &json!({"modified_at": "2026-11-21T07:00:00Z"}))
    }

    fn ps(&self) -> String {
        self.touch(|_| {});
        let loaded: Vec<usize> = self.desk.lock().engine.loaded().collect();
        let vram = if self.fleet.machines[self.node].cpu { 0 } else { 1_000_000_000_u64 };
        let more = json!({
            "expires_at": "2319-01-01T00:00:00Z", "size_vram": vram, "context_length": WINDOW,
        });
        self.rows(loaded.into_iter(), &more)
    }

    fn show(&self, model: usize) -> String {
        let can = if self.embeds(model) { "embedding" } else { "completion" };
        json!({
            "modelfile": format!("# Modelfile\nFROM /models/blobs/sha256-{}\n", digest(model)),
            "template": "{{ .Prompt }}",
            "details": {"format": "gguf", "family": "llama"},
            "model_info": {"general.architecture": "llama", "llama.context_length": WINDOW},
            "capabilities": [can],
        })
        .to_string()
    }

    fn counts(&self) -> Result<String, serde_json::Error> {
        self.touch(|_| {});
        let desk = self.desk.lock();
        let (first, ended) = (desk.first.clone(), desk.ended.clone());
        serde_json::to_string(&Counts { loads: desk.engine.loads, first, ended })
    }
}

fn digest(model: usize) -> String {
    format!("{:064x}", 0xd16e57_u64 + model as u64)
}

/// A job at the engine. Dropped before its end, it is cancelled.
struct Ticket {
    machine: Arc<Machine>,
    id: u64,
    began: Instant,
    hears: mpsc::UnboundedReceiver<Said>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.machine.touch(|desk| {
            if desk.jobs.remove(&self.id).is_some() {
                desk.engine.cancel(self.id, self.machine.began.elapsed().as_secs_f64());
            }
        });
        self.machine.changed.notify_one();
    }
}

impl Ticket {
    /// Tokens of its answer that there are by now.
    fn written(&self) -> f64 {
        self.machine.touch(|_| {});
        self.machine.desk.lock().engine.written(self.id)
    }

    async fn news(&mut self) -> Option<Said> {
        let said = self.hears.recv().await?;
        if !matches!(said, Said::FirstByte(_)) {
            self.machine.desk.lock().jobs.remove(&self.id);
        }
        Some(said)
    }
}

async fn answer(
    machine: Arc<Machine>,
    request: Request<Incoming>,
) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    let text = match path.as_str() {
        "/" => {
            return Ok(reply("text/plain; charset=utf-8", full("Ollama is running".to_owned())));
        }
        "/api/version" => r#"{"version":"0.32.15"}"#.to_owned(),
        "/api/tags" => machine.tags(),
        "/api/ps" => machine.ps(),
        "/counts" => machine.counts().unwrap_or_default(),
        _ => return Ok(asked(machine, &path, &body).await),
    };
    Ok(reply("application/json; charset=utf-8", full(text)))
}

/// Answers what names a model.
async fn asked(machine: Arc<Machine>, path: &str, body: &Bytes) -> Response<Body> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(name) = body.get("model").and_then(Value::as_str).map(str::to_owned) else {
        return failed(StatusCode::NOT_FOUND, "404 page not found");
    };
    let Some(model) = machine.model(&name) else {
        return failed(StatusCode::NOT_FOUND, &format!("model '{name}' not found"));
    };
    if path == "/api/show" {
        return reply("application/json; charset=utf-8", full(machine.show(model)));
    }
    if !matches!(path, "/api/chat" | "/api/generate" | "/api/embed") {
        return failed(StatusCode::NOT_FOUND, "404 page not found");
    }
    let (request, job) = machine.job(model, &body);
    let mut ticket = machine.submit(request, job);
    let first = ticket.news().await;
    let whole = "application/json; charset=utf-8";
    match first {
        Some(Said::Loaded(_)) if path == "/api/embed" => {
            reply(whole, full(json!({"model": name, "embeddings": []}).to_string()))
        }
        Some(Said::Loaded(_)) => {
            let said = json!({"model": name, "response": "", "done": true, "done_reason": "load"});
            reply(whole, full(said.to_string()))
        }
        Some(Said::FirstByte(_)) if path == "/api/embed" => match ticket.news().await {
            Some(Said::Done(_, numbers)) => {
                let said = json!({
                    "model": name, "embeddings": [[0.6, 0.8]], "load_duration": 0,
                    "total_duration": ticket.began.elapsed().as_nanos() as u64,
                    "prompt_eval_count": numbers.read.0 as u64,
                });
                reply(whole, full(said.to_string()))
            }
            _ => failed(StatusCode::INTERNAL_SERVER_ERROR, "the engine forgot it"),
        },
        Some(Said::FirstByte(_)) => reply("application/x-ndjson", written(ticket, name, job)),
        _ => failed(StatusCode::INTERNAL_SERVER_ERROR, "the engine forgot it"),
    }
}

/// An answer that is being written, from its first token on.
fn written(ticket: Ticket, name: String, job: Job) -> Body {
    let line = format!("{}\n", said(&name, " word", None, &job, Duration::ZERO));
    let first = Frame::data(Bytes::from(line.clone()));
    let pieces = futures_util::stream::unfold(Some((ticket, 1)), move |state| {
        let (line, name) = (line.clone(), name.clone());
        async move {
            let (mut ticket, mut sent) = state?;
            loop {
                let news = tokio::time::timeout(PIECE, ticket.news()).await;
                let (upto, last) = match news {
                    Err(_) => (ticket.written(), None),
                    Ok(Some(Said::Done(_, numbers))) => (job.output, Some(numbers)),
                    Ok(_) => return None,
                };
                let tokens = (upto as usize).saturating_sub(sent);
                sent += tokens;
                let mut text = line.repeat(tokens);
                if let Some(numbers) = last {
                    let total = ticket.began.elapsed();
                    text.push_str(&format!("{}\n", said(&name, "", Some(&numbers), &job, total)));
                    return Some((Frame::data(text.into()), None));
                }
                if tokens > 0 {
                    return Some((Frame::data(text.into()), Some((ticket, sent))));
                }
            }
        }
    });
    let all = futures_util::stream::iter([first]).chain(pieces);
    StreamBody::new(all.map(Ok::<_, Infallible>)).boxed_unsync()
}

/// A line of an answer; the last one with its numbers, as Ollama counts them: all of the prompt,
/// and the time for what was not in its cache.
fn said(name: &str, text: &str, end: Option<&Numbers>, job: &Job, total: Duration) -> Value {
    let mut line = json!({
        "model": name, "created_at": "2026-11-21T07:10:53.140641318Z",
        "message": {"role": "assistant", "content": text}, "done": end.is_some(),
    });
    if let (Some(numbers), Some(line)) = (end, line.as_object_mut()) {
        let nanos = |seconds: f64| json!((seconds * 1e9) as u64);
        line.insert("done_reason".into(), json!("stop"));
        line.insert("total_duration".into(), json!(total.as_nanos() as u64));
        line.insert("load_duration".into(), json!(0));
        line.insert("prompt_eval_count".into(), json!(job.prompt as u64));
        line.insert("prompt_eval_duration".into(), nanos(numbers.read.1));
        line.insert("eval_count".into(), json!(numbers.written.0 as u64));
        line.insert("eval_duration".into(), nanos(numbers.written.1));
    }
    line
}

fn failed(status: StatusCode, text: &str) -> Response<Body> {
    let body = full(json!({ "error": text }).to_string());
    let mut response = reply("application/json; charset=utf-8", body);
    *response.status_mut() = status;
    response
}

fn reply(kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text)).boxed_unsync()
}
