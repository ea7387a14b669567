//! All users of a run, and the run itself: starts the other processes, asks what the sessions of
//! the seed ask when they ask it, and writes down when the answers came.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tailherd::demo::client::get;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, sleep_until};

use super::crew::Player;
use super::engine::Counts;
use super::figures::{self, Round};
use super::idle;
use super::options::Options;
use super::sidecar;
use super::tailnet::{Device, devices};
use crate::sim::chance;
use crate::sim::fleet::{Fleet, Lengths};
use crate::sim::node::{Speeds, self_measured};
use crate::sim::results::Sample;
use crate::sim::trace::{Session, Turn};
use crate::sim::world;

/// How long everybody may take to know everybody, of real time: that is the machine's work.
pub(crate) const MEET: Duration = Duration::from_secs(60);
/// Beyond the last arrival, whatever is not answered counts as that.
pub(crate) const AFTER: Duration = Duration::from_secs(900);
/// How long a process may take to say what it has counted.
pub(crate) const TOLD: Duration = Duration::from_secs(300);
/// A program of this library estimates four bytes to a token.
const BYTES: f64 = 4.0;

pub(crate) async fn run(options: Options) -> Result<()> {
    if options.idle {
        return idle::run(&options).await;
    }
    let fleet = options.fleet()?;
    let mut rounds = Vec::new();
    let plan = options.plan().clone();
    for seed in plan.seed..plan.seed + plan.seeds {
        rounds.push(round(&options, &fleet, seed).await.with_context(|| format!("seed {seed}"))?);
    }
    figures::print(&mut std::io::stdout().lock(), &options, &fleet, &rounds)
}

/// A mesh that runs.
pub(crate) struct Mesh {
    pub(crate) devices: Vec<Device>,
    pub(crate) tailnet: Player,
    _engines: Vec<Player>,
    engine_addrs: Vec<SocketAddr>,
    /// By device; none where no sidecar runs.
    pub(crate) sidecars: Vec<Option<Player>>,
    apps: Vec<Option<SocketAddr>>,
    pub(crate) admin: Vec<Option<SocketAddr>>,
    _state: TempDir,
}

impl Mesh {
    /// Starts all of it, and waits until everybody knows everybody.
    pub(crate) async fn start(options: &Options, fleet: &Fleet, seed: u64) -> Result<Mesh> {
        let part = |words: &[&str]| -> Vec<String> {
            words.iter().map(|w| (*w).to_owned()).chain(options.args.iter().cloned()).collect()
        };
        let devices = devices(fleet);
        let mut tailnet = Player::start(&part(&["tailnet", &seed.to_string()]))?;
        let mut mesh_sockets = Vec::new();
        for _ in &devices {
            mesh_sockets.push(tailnet.hear("socket").await?);
        }
        let (mut engines, mut engine_addrs) = (Vec::new(), Vec::new());
        for device in devices.iter().filter(|d| d.engine) {
            let (node, seed) = (device.node.to_string(), seed.to_string());
            let mut engine = Player::start(&part(&["engine", &node, &seed]))?;
            engine_addrs.push(engine.hear("at").await?.parse()?);
            engines.push(engine);
        }
        let state = tempfile::tempdir()?;
        let (mut sidecars, mut apps, mut admin) = (Vec::new(), Vec::new(), Vec::new());
        for (number, device) in devices.iter().enumerate() {
            if !device.sidecar {
                let at = engine_addrs[device.node];
                tailnet.tell(&format!("port {number} 11434 {at}")).await?;
                sidecars.push(None);
                apps.push(None);
                admin.push(None);
                continue;
            }
            let at = device.engine.then(|| engine_addrs[device.node]);
            let config = config(fleet, device, at, &mesh_sockets[number]);
            let folder = state.path().join(&device.name);
            remember(&folder, fleet, device, seed)?;
            let folder = folder.display().to_string();
            let words = ["sidecar".to_owned(), device.name.clone(), config.to_string(), folder];
            let mut player = Player::start(&words)?;
            let mut bound = BTreeMap::new();
            let all = |bound: &BTreeMap<String, SocketAddr>| {
                ["apps", "admin", "mesh"].iter().all(|k| bound.keys().any(|b| b.starts_with(k)))
            };
            while !all(&bound) {
                let said = player.hear("bound").await?;
                let [kind, wanted, actual] = said.split(' ').collect::<Vec<_>>()[..] else {
                    bail!("{said:?} is not what is said of a listener")
                };
                if kind == "mesh" {
                    tailnet.tell(&format!("port {number} {wanted} {actual}")).await?;
                }
                bound.insert(format!("{kind} {wanted}"), actual.parse::<SocketAddr>()?);
            }
            let at =
                |kind: &str| bound.iter().find(|(k, _)| k.starts_with(kind)).map(|(_, addr)| *addr);
            apps.push(at("apps"));
            admin.push(at("admin"));
            sidecars.push(Some(player));
        }
        let mesh = Mesh {
            devices,
            tailnet,
            _engines: engines,
            engine_addrs,
            sidecars,
            apps,
            admin,
            _state: state,
        };
        mesh.meet(fleet, MEET.mul_f64(options.scale())).await?;
        Ok(mesh)
    }

    /// Waits until each sidecar lists each model with all who have it.
    async fn meet(&self, fleet: &Fleet, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        for apps in self.apps.iter().flatten() {
            loop {
                let tags = get(*apps, "/api/tags").open().await?.rest().await;
                let tags: Value = serde_json::from_slice(&tags.body).unwrap_or_default();
                if knows_all(fleet, &tags) {
                    break;
                }
                ensure!(Instant::now() < end, "{apps} never lists all: {tags:#}");
                sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }

    async fn counts(&self) -> Result<Vec<Counts>> {
        let mut all = Vec::new();
        for addr in &self.engine_addrs {
            let said = told("an engine", *addr, "/counts").await?;
            all.push(serde_json::from_slice(&said)?);
        }
        Ok(all)
    }

    /// The sum of a counter over all sidecars, of the lines that have `with` in them.
    async fn metric(&self, name: &str, with: &str) -> Result<f64> {
        let mut sum = 0.0;
        for addr in self.admin.iter().flatten() {
            let said = told("a sidecar", *addr, "/metrics").await?;
            let text = String::from_utf8_lossy(&said);
            let lines = text.lines().filter(|l| l.starts_with(name) && l.contains(with));
            sum += lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>();
        }
        Ok(sum)
    }

    /// The sidecar of the user who is at this node.
    fn user(&self, node: usize) -> Result<SocketAddr> {
        let mine = self.devices.iter().zip(&self.apps);
        let found = mine.filter(|(d, _)| d.node == node).find_map(|(_, apps)| *apps);
        found.with_context(|| format!("no sidecar at node {node}"))
    }
}

/// What a process says of itself.
async fn told(who: &str, addr: SocketAddr, path: &str) -> Result<Bytes> {
    let asked = async { anyhow::Ok(get(addr, path).open().await?.rest().await) };
    let answer = tokio::time::timeout(TOLD, asked).await;
    let answer = answer.with_context(|| format!("{who} does not answer at {addr}{path}"))??;
    Ok(answer.body)
}

fn knows_all(fleet: &Fleet, tags: &Value) -> bool {
    (0..fleet.models.len()).all(|model| {
        let name = format!("{}:latest", fleet.models[model].name);
        let rows = tags.get("models").and_then(Value::as_array);
        let row = rows.and_then(|rows| rows.iter().find(|r| r["name"] == name.as_str()));
        let held = row.and_then(|r| r.pointer("/mesh/nodes")).and_then(Value::as_array);
        let wanted = (0..fleet.len()).filter(|node| fleet.has(*node, model)).count();
        held.is_some_and(|nodes| nodes.len() == wanted)
    })
}

fn config(fleet: &Fleet, device: &Device, engine: Option<SocketAddr>, socket: &str) -> Value {
    let slots = fleet.machines[device.node].slots;
    let local: Vec<Value> = engine
        .iter()
        .map(|at| json!({"baseUrl": format!("http://{at}"), "slots": slots}))
        .collect();
    json!({
        "listen": ["127.0.0.1:11434"],
        "local": local,
        "tailnet": {"socket": socket},
        "lan": {"enabled": false},
        // As in the simulator: everybody is a stranger to everybody, and all may load.
        "access": [{"from": ["*"], "verbs": ["list", "infer"], "maxInflight": 100_000}],
        "sendTo": [{"to": ["*"]}],
        "newNodes": "allow",
        "share": {"loads": "any", "selfMeasure": false},
        "limits": {"queue": 10_000, "inflight": 100_000},
        "log": {"level": std::env::var("FLEET_LOG").unwrap_or_else(|_| "error".to_owned())},
    })
}

/// Lets a sidecar remember speeds as wrong as the simulator's.
fn remember(folder: &Path, fleet: &Fleet, device: &Device, seed: u64) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    if !device.engine {
        return Ok(());
    }
    let models = (0..fleet.models.len()).filter(|m| fleet.has(device.node, *m));
    let rows: Vec<_> = models
        .map(|model| {
            let Speeds { prefill, decode } = self_measured(fleet, device.node, model, seed);
            tailherd::directory::Rates {
                engine: "ollama".to_owned(),
                model: fleet.models[model].name.clone(),
                size: (fleet.models[model].gb * 1e9) as u64,
                prefill,
                decode,
                ..tailherd::directory::Rates::default()
            }
        })
        .collect();
    sidecar::remember(folder, &rows)
}

/// What all users of a run share.
struct Users {
    seed: u64,
    began: Instant,
    seconds: f64,
    client: Client<HttpConnector, Full<Bytes>>,
    heard: Mutex<Vec<Heard>>,
}

/// How one request went.
struct Heard {
    id: u64,
    arrived: f64,
    /// How much later than it should have been: so late is this machine.
    late: f64,
    first: Option<f64>,
    done: Option<f64>,
    output: f64,
    error: Option<String>,
    /// Where and for what it was asked.
    asked: String,
}

async fn round(options: &Options, fleet: &Fleet, seed: u64) -> Result<Round> {
    let plan = options.plan();
    let mesh = Mesh::start(options, fleet, seed).await?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let users = Arc::new(Users {
        seed,
        began: Instant::now(),
        seconds: plan.seconds,
        client: Client::builder(TokioExecutor::new()).build(connector),
        heard: Mutex::default(),
    });
    let busy = Busy::now()?;
    let mut sessions = tokio::task::JoinSet::new();
    for (number, session) in options.sessions(fleet, seed).into_iter().enumerate() {
        let embeds = fleet.models[session.model].lengths == Lengths::Embed;
        let model = fleet.models[session.model].name.clone();
        let at = mesh.user(session.origin)?;
        sessions.spawn(play(Arc::clone(&users), number, session, model, embeds, at));
    }
    sleep_until(users.began + Duration::from_secs_f64(plan.seconds)).await;
    let loads = mesh.counts().await?.iter().map(|c| c.loads).sum();
    let all = async { while sessions.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(AFTER, all).await;
    let busy = busy.until(Busy::now()?, users.began.elapsed().as_secs_f64() / options.scale());
    sessions.shutdown().await;

    let last = users.began.elapsed().as_secs_f64();
    let counts = mesh.counts().await?;
    let times = |id: u64, of: fn(&Counts) -> &BTreeMap<u64, u32>| -> u32 {
        counts.iter().filter_map(|c| of(c).get(&id)).sum()
    };
    let mut round = Round { loads, busy, ..Round::default() };
    let heard = std::mem::take(&mut *users.heard.lock());
    for h in &heard {
        round.asked += 1;
        round.late.push(h.late);
        let (begun, ended) = (times(h.id, |c| &c.first), times(h.id, |c| &c.ended));
        round.twice += usize::from(begun > 1);
        round.answered += usize::from(h.done.is_some());
        round.ended += usize::from(h.done.is_some() && (begun, ended) == (1, 1));
        if let Some(error) = &h.error {
            *round.errors.entry(error.clone()).or_default() += 1;
        } else if h.done.is_none() {
            let missing = format!(
                "not answered when the run ended: {}, {:.0} s after it was asked for; engines \
                 began it {begun} times, ended it {ended} times",
                h.asked,
                last - h.arrived,
            );
            *round.errors.entry(missing).or_default() += 1;
        }
        if h.arrived >= plan.warm_up {
            round.samples.push(Sample {
                first: h.first.unwrap_or(last) - h.arrived,
                whole: h.done.unwrap_or(last) - h.arrived,
                output: h.output,
                answered: h.done.is_some(),
                // Counted by the sidecars.
                moves: 0,
                refusals: 0,
            });
        }
    }
    for reason in ["withdrawn", "left"] {
        round.moves += mesh.metric("tailherd_moves_total{", &format!("\"{reason}\"")).await?;
    }
    for reason in ["connect", "slow_connect", "silent", "reset", "busy", "engine"] {
        let label = format!("reason=\"{reason}\"");
        let tries = mesh.metric("tailherd_attempts_total{", &label).await?;
        if tries > 0.0 {
            round.failed.insert(reason, tries);
        }
    }
    let all = mesh.metric("tailherd_moves_total{", "").await?;
    round.refusals = all - round.moves;
    Ok(round)
}

/// One user's session.
async fn play(
    users: Arc<Users>,
    number: usize,
    session: Session,
    model: String,
    embeds: bool,
    at: SocketAddr,
) {
    let mut when = session.start;
    let mut talk = Talk { seed: users.seed, number, embeds, messages: Vec::new() };
    let mut before: Option<Turn> = None;
    for (turn, asks) in session.turns.iter().enumerate() {
        if turn > 0 {
            when = users.began.elapsed().as_secs_f64() + asks.think;
            if when >= users.seconds {
                return;
            }
        }
        let id = number as u64 * world::TURNS + turn as u64;
        let body = talk.body(&model, id, asks, before);
        before = Some(*asks);
        sleep_until(users.began + Duration::from_secs_f64(when)).await;
        let arrived = users.began.elapsed().as_secs_f64();
        let place = users.heard.lock().len();
        users.heard.lock().push(Heard {
            id,
            arrived,
            late: arrived - when,
            first: None,
            done: None,
            output: asks.output,
            error: None,
            asked: format!("{model} at {at}, request {id}"),
        });
        let path = if embeds { "/api/embed" } else { "/api/chat" };
        let ended = ask(&users, place, at, (path, number), body).await;
        if let Err(error) = ended {
            users.heard.lock()[place].error = Some(format!("{error:#}"));
            return;
        }
    }
}

/// Asks it of this path, as this session: the simulator's sidecars know whose turn it is, too.
async fn ask(
    users: &Users,
    place: usize,
    at: SocketAddr,
    (path, session): (&str, usize),
    body: String,
) -> Result<()> {
    let request = Request::post(format!("http://{at}{path}"))
        .header("content-type", "application/json")
        .header("x-tailherd-session", session.to_string())
        .body(Full::new(Bytes::from(body)))?;
    let response = users.client.request(request).await?;
    let status = response.status();
    let mut pieces = response.into_body().into_data_stream();
    let mut last = Bytes::new();
    while let Some(piece) = pieces.next().await {
        last = piece?;
        let heard = &mut users.heard.lock()[place];
        heard.first.get_or_insert(users.began.elapsed().as_secs_f64());
    }
    ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&last));
    let whole = path == "/api/embed" || last.ends_with(b"}\n");
    ensure!(whole, "the answer broke off");
    users.heard.lock()[place].done = Some(users.began.elapsed().as_secs_f64());
    Ok(())
}

/// A conversation as it grows, in as many bytes as its origin takes it for.
struct Talk {
    seed: u64,
    number: usize,
    embeds: bool,
    messages: Vec<Value>,
}

impl Talk {
    fn body(&mut self, model: &str, id: u64, asks: &Turn, before: Option<Turn>) -> String {
        // One error for all of it, so that a turn begins with all of the one before.
        let first = self.number as u64 * world::TURNS;
        let error = world::estimate(self.seed, if self.embeds { id } else { first });
        let bytes = |tokens: f64| (tokens.max(1.0) * BYTES * error) as usize;
        if self.embeds {
            let input = text(self.seed, id, bytes(asks.prompt));
            return json!({"model": model, "input": input, "options": {"seed": id}}).to_string();
        }
        match before {
            None => self.say("user", id, bytes(asks.prompt)),
            // No conversation grows beyond a certain length.
            Some(before) if before.prompt < asks.prompt => {
                let said = before.output.min(asks.prompt - before.prompt);
                self.say("assistant", id + (1 << 32), bytes(said));
                self.say("user", id, bytes(asks.prompt - before.prompt - said));
            }
            Some(_) => {}
        }
        json!({"model": model, "messages": self.messages, "options": {"seed": id}}).to_string()
    }

    fn say(&mut self, role: &str, place: u64, bytes: usize) {
        // The frame of a message takes some bytes too.
        let text = text(self.seed, place, bytes.saturating_sub(30));
        self.messages.push(json!({"role": role, "content": text}));
    }
}

/// So many bytes that are like no others.
fn text(seed: u64, place: u64, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 16);
    let mut word = 0;
    while text.len() < bytes {
        let number = chance::part(seed, place, 1_000 + word) * 1e15;
        text.push_str(&format!("{number:015.0} "));
        word += 1;
    }
    text.truncate(bytes);
    text
}

/// Processor time of the whole machine, in seconds of all its processors.
struct Busy(f64);

impl Busy {
    fn now() -> Result<Busy> {
        let text = std::fs::read_to_string("/proc/stat").context("needs Linux")?;
        let numbers: Vec<f64> = text
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|w| w.parse().ok())
            .collect();
        // All but idle and waiting for a disk; a hundredth of a second each.
        let all: f64 = numbers.iter().take(8).sum();
        let idle: f64 = numbers.iter().skip(3).take(2).sum();
        Ok(Busy((all - idle) / 100.0))
    }

    /// Which part of the machine was busy.
    fn until(&self, later: Busy, seconds: f64) -> f64 {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        (later.0 - self.0) / (seconds * cpus as f64)
    }
}
