//! A mesh of gates and the messages between them, in simulated time: whatever is late, lost,
//! overtaken or killed, a request runs once and is answered once.
//!
//! The gates and their queues are the product's. The origins keep to the protocol: the next
//! attempt begins only when the last has ended, and only its own answer ends it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::*;
use crate::balance::moves::{self, Tries};
use crate::telemetry::{Clock, Metrics};
use crate::types::{Class, EndpointId, EngineKind, NodeId, Outcome, Side};

/// What happens in one mesh.
#[derive(Debug, Clone, Copy)]
struct Setting {
    seed: u64,
    requests: usize,
    peers: usize,
    slots: u32,
    /// Of ten messages that take an attempt back, so many are lost.
    lost: u32,
    /// Of a hundred clients, so many leave.
    leave: u32,
    /// Peers that are killed, one after the other.
    kills: u32,
}

fn setting() -> impl Strategy<Value = Setting> {
    (any::<u64>(), 2..5_usize, 1..4_u32, 0..5_u32, 0..20_u32, 0..6_u32).prop_map(
        |(seed, peers, slots, lost, leave, kills)| Setting {
            seed,
            requests: 300,
            peers,
            slots,
            lost,
            leave,
            kills,
        },
    )
}

struct Loads(Arc<Mesh>);

impl Loader for Loads {
    fn load(&self, _: LoadRequest) -> Loading {
        let took = self.0.some(200, 3000);
        Box::pin(async move {
            sleep(took).await;
            Ok(LoadDone { took })
        })
    }
}

/// How an attempt ended, as its origin hears it. Nothing at all: the connection broke.
enum Reply {
    FirstByte,
    Refused(Reason),
}

#[derive(Default)]
struct Seen {
    /// Executions that reached the engine, and first bytes that reached the origin, by request.
    ran: HashMap<usize, u32>,
    answered: HashMap<usize, u32>,
    left: Vec<usize>,
    /// Attempts that ran, and that a node said it let go.
    began: Vec<Arc<str>>,
    let_go: Vec<Arc<str>>,
    moved: u32,
    refused: u32,
    broke: u32,
}

impl Seen {
    fn runs(&mut self, request: usize, number: Arc<str>) {
        *self.ran.entry(request).or_default() += 1;
        self.began.push(number);
    }
}

struct Mesh {
    setting: Setting,
    rng: Mutex<SmallRng>,
    clock: Clock,
    metrics: Arc<Metrics>,
    peers: Mutex<Vec<(Arc<Gate>, Vec<AbortHandle>)>>,
    seen: Mutex<Seen>,
    numbers: AtomicU64,
}

impl Mesh {
    fn new(setting: Setting) -> Arc<Mesh> {
        let mesh = Arc::new(Mesh {
            setting,
            rng: Mutex::new(SmallRng::seed_from_u64(setting.seed)),
            clock: Clock::start(),
            metrics: Metrics::new().unwrap(),
            peers: Mutex::default(),
            seen: Mutex::default(),
            numbers: AtomicU64::new(0),
        });
        let gates = (0..setting.peers).map(|_| (mesh.gate(), Vec::new())).collect();
        *mesh.peers.lock() = gates;
        mesh
    }

    fn gate(self: &Arc<Self>) -> Arc<Gate> {
        let (kind, slots) = (EngineKind::Ollama, self.setting.slots);
        let config = GateConfig { endpoint: EndpointId(1), kind, slots, queue: 64 };
        Gate::new(config, Arc::new(Loads(self.clone())), self.clock, self.metrics.clone())
    }

    fn some(&self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.rng.lock().random_range(least..most))
    }

    fn chance(&self, of: u32, among: u32) -> bool {
        self.rng.lock().random_range(0..among) < of
    }

    /// A message's way. Each takes its own time, so that they overtake each other.
    async fn way(&self) {
        sleep(self.some(0, 400)).await;
    }

    /// A peer gets a request, and answers to it.
    async fn serve(
        self: Arc<Self>,
        gate: Arc<Gate>,
        request: usize,
        ask: Ask,
        mut reply: oneshot::Sender<Reply>,
    ) {
        self.way().await;
        let number = ask.attempt.as_ref().map(|attempt| attempt.id.clone()).unwrap();
        let entered = tokio::select! {
            entered = gate.enter(ask) => entered,
            // Its origin has gone, which is heard here somewhat later.
            () = async { reply.closed().await; self.way().await } => return,
        };
        let answer = match entered {
            Err(refusal) => Reply::Refused(refusal.why),
            Ok(mut ticket) => {
                self.seen.lock().runs(request, number);
                sleep(self.some(10, 500)).await;
                ticket.ended(Outcome::Done);
                Reply::FirstByte
            }
        };
        self.way().await;
        let _ = reply.send(answer);
    }

    async fn take_back(self: Arc<Self>, gate: Arc<Gate>, attempt: Attempt) {
        self.way().await;
        if self.chance(self.setting.lost, 10) {
            return;
        }
        // What is said back is heard by nobody: only the request's own answer counts.
        if gate.withdraw(&attempt) == Some(true) {
            self.seen.lock().let_go.push(attempt.id);
        }
    }

    /// One request at its origin, from the first attempt to its end.
    async fn request(self: Arc<Self>, request: usize) {
        sleep(self.some(0, 20_000)).await;
        let leaves = self.chance(self.setting.leave, 100);
        let patience = if leaves { self.some(0, 5000) } else { Duration::from_secs(100_000) };
        tokio::select! {
            () = self.clone().attempts(request) => {}
            () = sleep(patience) => self.seen.lock().left.push(request),
        }
    }

    async fn attempts(self: Arc<Self>, request: usize) {
        let (mut tries, mut cold) = (Tries::default(), 0);
        let from = NodeId::Pin(format!("n{}", request % 3).into());
        loop {
            let number = self.numbers.fetch_add(1, Relaxed);
            let attempt = Attempt { id: format!("{number:032x}").into(), from: from.clone() };
            let (reply, answer) = oneshot::channel();
            let score = self.some(0, 8000).as_secs_f64();
            let ask = Ask {
                predicted: self.some(50, 1500),
                wait_budget: moves::wait_budget(score, tries),
                may_load: cold >= 2 || self.chance(1, 2),
                attempt: Some(attempt.clone()),
                ..ask(request)
            };
            let may_load = ask.may_load;
            let gate = {
                let mut peers = self.peers.lock();
                let at = self.rng.lock().random_range(0..peers.len());
                let (gate, tasks) = &mut peers[at];
                let task = self.clone().serve(gate.clone(), request, ask, reply);
                tasks.push(tokio::spawn(task).abort_handle());
                gate.clone()
            };
            let mut answer = std::pin::pin!(answer);
            let ended = loop {
                tokio::select! {
                    ended = &mut answer => break ended,
                    () = sleep(self.some(300, 1500)), if tries.moves < 3 => {
                        tokio::spawn(self.clone().take_back(gate.clone(), attempt.clone()));
                    }
                }
            };
            let mut seen = self.seen.lock();
            match ended {
                Ok(Reply::FirstByte) => {
                    *seen.answered.entry(request).or_default() += 1;
                    return;
                }
                Ok(Reply::Refused(Reason::Withdrawn)) => {
                    seen.moved += 1;
                    tries.moves += 1;
                }
                Ok(Reply::Refused(Reason::NotLoaded)) => {
                    assert!(!may_load, "it may be loaded for it");
                    seen.refused += 1;
                    cold += 1;
                }
                Ok(Reply::Refused(Reason::Wait)) => {
                    seen.refused += 1;
                    tries.refusals += 1;
                    assert!(tries.refusals <= 2, "without a budget nobody waits too long");
                }
                Ok(Reply::Refused(_)) => seen.refused += 1,
                Err(_) => seen.broke += 1,
            }
        }
    }

    /// A peer's program dies with all it holds, and comes back with nothing.
    fn kill(self: &Arc<Self>, at: usize) {
        let new = (self.gate(), Vec::new());
        let (_, tasks) = std::mem::replace(&mut self.peers.lock()[at], new);
        tasks.iter().for_each(AbortHandle::abort);
    }
}

fn ask(request: usize) -> Ask {
    let model = ["tiny", "big", "coder"][request % 3];
    Ask {
        class: if request.is_multiple_of(5) { Class::Batch } else { Class::Interactive },
        principal: format!("p{}", request % 4).into(),
        side: Side::Mine,
        ..super::tests::ask(model)
    }
}

async fn run(setting: Setting) {
    let mesh = Mesh::new(setting);
    let mut requests = JoinSet::new();
    for request in 0..setting.requests {
        requests.spawn(mesh.clone().request(request));
    }
    for _ in 0..setting.kills {
        sleep(mesh.some(1000, 4000)).await;
        let at = mesh.rng.lock().random_range(0..setting.peers);
        mesh.kill(at);
    }
    while let Some(ended) = requests.join_next().await {
        ended.unwrap();
    }
    // Whatever is still on its way arrives.
    sleep(Duration::from_secs(3600)).await;
    let seen = mesh.seen.lock();
    for request in 0..setting.requests {
        let answered = seen.answered.get(&request).copied().unwrap_or(0);
        let left = u32::from(seen.left.contains(&request));
        assert_eq!(answered + left, 1, "{request} is answered once: {setting:?}");
        let ran = seen.ran.get(&request).copied().unwrap_or(0);
        // What ran where nobody is any more did not get as far as its first byte.
        assert!(ran <= 1 || setting.kills > 0, "{request} ran {ran} times: {setting:?}");
    }
    let again: u32 = seen.ran.values().map(|ran| ran - 1).sum();
    assert!(again <= seen.broke, "only what broke ran again: {again} {setting:?}");
    for number in &seen.let_go {
        assert!(!seen.began.contains(number), "{number} was let go and ran: {setting:?}");
    }
    for (gate, _) in mesh.peers.lock().iter() {
        assert_eq!(gate.depth(), (0, 0), "nobody is left behind: {setting:?}");
    }
    assert!(seen.moved > 0 && seen.refused > 0, "it was about something: {setting:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_request_runs_once_and_is_answered_once_whatever_is_late_lost_or_killed(
        setting in setting(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(run(setting));
    }
}
