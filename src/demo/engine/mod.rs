//! A stand-in for Ollama: real HTTP on a real socket, made-up models.
//!
//! A spec flows in; HTTP answers flow out, in every dialect Ollama speaks, shaped as the
//! recordings of Ollama 0.32.15. The handle breaks it on purpose and tells what it saw. It
//! never leaves 127.0.0.1, writes nothing to disk and never computes anything: the same
//! request always gets the same words.

mod ask;
mod embed;
mod events;
mod fault;
mod infer;
mod manage;
mod reply;
mod runner;
mod seen;
mod serve;
mod spec;
mod stamp;
mod voice;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use parking_lot::{Mutex, RwLock};
use tokio::net::TcpListener;
use tokio::sync::watch;

use self::fault::Faults;
use self::reply::{Body, Dialect};
use self::runner::Scheduler;
use self::seen::Notes;
use crate::types::{ModelKey, NameError};

pub use self::fault::{Cut, Fault};
pub use self::seen::{Counts, Seen};
pub use self::spec::{EngineSpec, ModelSpec, Script};

/// Ollama's text for a full queue, with its two spaces.
pub const BUSY: &str = "server busy, please try again.  maximum pending requests exceeded";

const NO_CLOUD: &str = "ollama cloud is disabled: remote model is unavailable";

/// A running stand-in engine. Dropped, it dies.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    addr: SocketAddr,
    stop: Mutex<watch::Sender<bool>>,
}

#[derive(Debug)]
struct Shared {
    spec: EngineSpec,
    models: RwLock<Vec<ModelSpec>>,
    blobs: Mutex<BTreeSet<String>>,
    /// The last prompt of each model.
    prompts: Mutex<BTreeMap<String, String>>,
    notes: Arc<Notes>,
    faults: Arc<Faults>,
    scheduler: Arc<Scheduler>,
}

impl Engine {
    /// Starts it; it answers when this returns.
    pub async fn start(spec: EngineSpec) -> io::Result<Engine> {
        let notes = Arc::new(Notes::new());
        let faults = Arc::new(Faults::default());
        let scheduler = Scheduler::new(&spec, notes.clone(), faults.clone());
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, spec.port));
        let models = RwLock::new(spec.models.clone());
        let blobs = Mutex::default();
        let prompts = Mutex::default();
        let shared = Arc::new(Shared { spec, models, blobs, prompts, notes, faults, scheduler });
        let (addr, stop) = open(&shared, wanted).await?;
        Ok(Engine { shared, addr, stop: Mutex::new(stop) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Dies as on SIGKILL: the port is closed, every stream is cut where it stands, and
    /// nothing is in memory any more.
    pub fn die(&self) {
        self.stop.lock().send_replace(true);
        self.shared.scheduler.clear();
    }

    /// Starts again on the same port after [`Engine::die`].
    pub async fn revive(&self) -> io::Result<()> {
        // The old listener goes when its task is next run: until then the port is taken.
        let mut tries = 100;
        let (_, stop) = loop {
            match open(&self.shared, self.addr).await {
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && tries > 0 => {
                    tries -= 1;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                done => break done?,
            }
        };
        *self.stop.lock() = stop;
        Ok(())
    }

    /// Stops everything where it stands, as SIGSTOP does: connects still succeed, nobody
    /// answers.
    pub fn hang(&self) {
        self.shared.faults.frozen.set(true);
    }

    /// Goes on after [`Engine::hang`].
    pub fn wake(&self) {
        self.shared.faults.frozen.set(false);
    }

    /// Cuts every answer that is being made now.
    pub fn cut(&self, cut: Cut) {
        self.shared.faults.cut_now(cut);
    }

    /// Cuts every answer that begins from now on after so many tokens; `None` ends that.
    pub fn cut_after(&self, at: Option<(u64, Cut)>) {
        self.shared.faults.set_cut_after(at);
    }

    /// Answers every inference request with this from now on; `None` ends that.
    pub fn fault(&self, fault: Option<Fault>) {
        self.shared.faults.set_fault(fault);
    }

    /// Makes loads, prompts and tokens take so many times as long.
    pub fn slow(&self, factor: f64) {
        self.shared.faults.set_slow(factor);
    }

    /// Every request since the start, or since [`Engine::forget`].
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.notes.seen()
    }

    /// The requests on this path.
    pub fn seen_at(&self, path: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|s| s.path == path).collect()
    }

    /// The bodies of the streams since the start, or since [`Engine::forget`], as they were
    /// given to the socket.
    pub fn sent(&self) -> Vec<Vec<u8>> {
        self.shared.notes.sent()
    }

    /// Empties the lists of requests seen and of bodies sent.
    pub fn forget(&self) {
        self.shared.notes.forget();
    }

    /// What goes on, as numbers.
    pub fn counts(&self) -> Counts {
        self.shared.notes.counts()
    }

    /// Waits until the numbers are so; false if they were not within `limit`.
    pub async fn until(&self, limit: Duration, so: impl FnMut(&Counts) -> bool) -> bool {
        let mut counts = self.shared.notes.watch();
        tokio::time::timeout(limit, counts.wait_for(so)).await.is_ok_and(|r| r.is_ok())
    }

    /// The names of the models in memory.
    pub fn loaded(&self) -> Vec<String> {
        self.shared.scheduler.loaded().into_iter().map(|l| l.model.name).collect()
    }

    /// Adds a model, or replaces the one of that name.
    pub fn add(&self, model: ModelSpec) {
        self.shared.add(model);
    }

    /// Removes a model.
    pub fn remove(&self, name: &str) {
        self.shared.remove(name);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.die();
    }
}

async fn open(
    shared: &Arc<Shared>,
    wanted: SocketAddr,
) -> io::Result<(SocketAddr, watch::Sender<bool>)> {
    let listener = TcpListener::bind(wanted).await?;
    let addr = listener.local_addr()?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(serve::accept(shared.clone(), listener, stopped));
    Ok((addr, stop))
}

/// Why a name leads to no model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NotFound {
    Invalid,
    Missing,
    Cloud,
}

impl NotFound {
    fn answer(self, dialect: Dialect, said: &str) -> Response<Body> {
        match self {
            NotFound::Invalid => dialect.error(400, "invalid model name"),
            NotFound::Missing => dialect.error(404, &format!("model '{said}' not found")),
            // In every dialect: Ollama says this before it looks at the route.
            NotFound::Cloud => Dialect::Native.error(403, NO_CLOUD),
        }
    }
}

impl Shared {
    /// How many tokens of this prompt need not be read, since the last one began with them.
    fn cached(&self, model: &ModelSpec, prompt: &str) -> u64 {
        if !self.spec.prefix_cache {
            return 0;
        }
        let last = self.prompts.lock().insert(model.name.clone(), prompt.to_owned());
        let same = last
            .map_or(0, |last| last.bytes().zip(prompt.bytes()).take_while(|(a, b)| a == b).count());
        same as u64
    }

    fn find(&self, said: &str) -> Result<ModelSpec, NotFound> {
        let named = said.trim().strip_suffix(":local").unwrap_or(said);
        let key = match ModelKey::parse(named) {
            Ok(key) => key,
            Err(NameError::Missing) => return Err(NotFound::Missing),
            Err(NameError::Invalid) => return Err(NotFound::Invalid),
        };
        let found = self.models.read().iter().find(|m| m.is(&key)).cloned();
        let hosted = key.is_cloud() || found.as_ref().is_some_and(manage::is_hosted);
        match found {
            _ if hosted && !self.spec.cloud => Err(NotFound::Cloud),
            None if hosted => Ok(manage::hosted(&key)),
            Some(model) => Ok(model),
            None => Err(NotFound::Missing),
        }
    }

    fn models(&self) -> Vec<ModelSpec> {
        let mut models = self.models.read().clone();
        models.sort_by_key(|m| std::cmp::Reverse(m.modified));
        models
    }

    fn add(&self, model: ModelSpec) {
        self.remove(&model.name);
        self.models.write().push(model);
    }

    fn remove(&self, name: &str) {
        self.models.write().retain(|m| m.name != name);
    }
}
