use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::ask::is_zero;
use super::*;
use crate::directory::{Cell, Endpoint};
use crate::telemetry::{Clock, Metrics};
use crate::types::{
    ApiSet, Capabilities, Class, Dial, Digest, EndpointId, EngineKind, LoadKey, ModelKey, Outcome,
    Side,
};

const SEC: Duration = Duration::from_secs(1);

/// An engine that takes ten seconds for each load and says what it was asked.
#[derive(Default)]
struct Slow {
    began: Mutex<Vec<LoadRequest>>,
    ended: Mutex<u32>,
    fails: Mutex<Option<LoadFail>>,
}

struct Fake(Arc<Slow>);

impl Loader for Fake {
    fn load(&self, request: LoadRequest) -> Loading {
        let slow = self.0.clone();
        Box::pin(async move {
            let panics = &*request.name == "panics";
            slow.began.lock().push(request);
            sleep(10 * SEC).await;
            assert!(!panics, "as asked");
            *slow.ended.lock() += 1;
            match slow.fails.lock().clone() {
                Some(fail) => Err(fail),
                None => Ok(LoadDone { took: 10 * SEC }),
            }
        })
    }
}

struct Desk {
    gate: Arc<Gate>,
    slow: Arc<Slow>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl Desk {
    fn new(slots: u32) -> Desk {
        Desk::of(EngineKind::Ollama, slots)
    }

    fn of(kind: EngineKind, slots: u32) -> Desk {
        let slow = Arc::new(Slow::default());
        let (metrics, clock) = (Metrics::new().unwrap(), Clock::start());
        let config = GateConfig { endpoint: EndpointId(1), kind, slots, queue: 8 };
        let gate = Gate::new(config, Arc::new(Fake(slow.clone())), clock, metrics.clone());
        Desk { gate, slow, metrics, clock }
    }

    /// Asks in a task of its own, and lets it get as far as it can.
    async fn ask(&self, ask: Ask) -> JoinHandle<Result<Ticket, Refusal>> {
        let gate = self.gate.clone();
        let task = tokio::spawn(async move { gate.enter(ask).await });
        settle().await;
        task
    }

    fn counts(&self, line: &str) -> bool {
        self.metrics.render().lines().any(|l| l == line)
    }
}

/// Lets every task run that can, without time going on.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

async fn got(task: JoinHandle<Result<Ticket, Refusal>>) -> Result<Ticket, Refusal> {
    task.await.unwrap()
}

pub(super) fn ask(model: &str) -> Ask {
    Ask {
        model: ModelKey::parse(model).unwrap(),
        name: model.into(),
        weights: None,
        load_key: LoadKey::default(),
        capabilities: Capabilities { completion: true, ..Capabilities::default() },
        size: 4_600_000_000,
        cell: Arc::new(Cell::default()),
        class: Class::Own,
        side: Side::Here,
        principal: "local".into(),
        keep_alive: None,
        predicted: SEC,
        reads: Duration::ZERO,
        wait_budget: None,
        may_load: true,
        max_inflight: None,
        attempt: None,
    }
}

#[tokio::test(start_paused = true)]
async fn the_model_is_loaded_before_the_ticket_is_given() {
    let desk = Desk::new(1);
    let one = Ask { keep_alive: Some("\"30m\"".into()), ..ask("tiny") };
    let cell = one.cell.clone();
    let began = desk.clock.now();
    let task = desk.ask(one).await;
    assert!(cell.loading.load(std::sync::atomic::Ordering::Relaxed));
    assert!(desk.counts(r#"tailherd_queued_requests{model="tiny:latest"} 1"#));

    let mut ticket = got(task).await.unwrap();
    assert_eq!(desk.clock.now().since(began), 10 * SEC);
    assert_eq!(ticket.waited(), 10 * SEC);
    assert_eq!(
        *desk.slow.began.lock(),
        [LoadRequest {
            name: "tiny".into(),
            key: LoadKey::default(),
            keep_alive: Some("\"30m\"".into()),
            embeds: false,
        }]
    );
    assert!(cell.is_loaded() && !cell.loading.load(std::sync::atomic::Ordering::Relaxed));
    // 4.6 GB in the 9.2 s that are not the engine's start.
    assert!((cell.load_rate.get() - 5e8).abs() < 1.0, "{}", cell.load_rate.get());
    assert!(desk.counts(r#"tailherd_model_load_seconds_sum{model="tiny:latest"} 10"#));
    assert!(desk.counts(r#"tailherd_inflight_requests{model="tiny:latest"} 1"#));

    sleep(3 * SEC).await;
    ticket.ended(Outcome::Done);
    ticket.tokens(7, 20);
    drop(ticket);
    for line in [
        r#"tailherd_inflight_requests{model="tiny:latest"} 0"#,
        r#"tailherd_queued_requests{model="tiny:latest"} 0"#,
        r#"tailherd_queue_wait_seconds_sum{model="tiny:latest"} 10"#,
        r#"tailherd_served_total{model="tiny:latest",outcome="done"} 1"#,
        r#"tailherd_served_seconds_total{caller="local"} 3"#,
        r#"tailherd_served_tokens_total{caller="local",kind="output"} 20"#,
    ] {
        assert!(desk.counts(line), "{line}\n{}", desk.metrics.render());
    }
    assert_eq!(desk.gate.depth(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_does_not_abort_the_load() {
    let desk = Desk::new(1);
    let task = desk.ask(ask("tiny")).await;
    task.abort();
    sleep(11 * SEC).await;
    assert_eq!((desk.slow.began.lock().len(), *desk.slow.ended.lock()), (1, 1));
    // And the next one needs none.
    let ticket = desk.gate.enter(ask("tiny")).await.unwrap();
    assert_eq!(ticket.waited(), Duration::ZERO);
    assert_eq!(desk.slow.began.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_the_queue_frees_their_place() {
    let desk = Desk::of(EngineKind::LlamaCpp, 1);
    let first = desk.gate.enter(ask("m")).await.unwrap();
    let second = desk.ask(ask("m")).await;
    let third_ask = ask("m");
    let cell = third_ask.cell.clone();
    let third = desk.ask(third_ask).await;
    assert_eq!(cell.queued.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(desk.gate.depth(), (2, 1));
    second.abort();
    settle().await;
    assert_eq!(desk.gate.depth(), (1, 1));
    drop(first);
    let third = got(third).await.unwrap();
    assert_eq!(desk.gate.depth(), (0, 1));
    assert_eq!(cell.queued.load(std::sync::atomic::Ordering::Relaxed), 0);
    drop(third);
    assert_eq!(desk.gate.depth(), (0, 0));
    assert!(desk.slow.began.lock().is_empty(), "llama.cpp loads by itself");
    assert!(desk.counts(r#"tailherd_served_total{model="m:latest",outcome="client_cancel"} 2"#));
}

#[tokio::test(start_paused = true)]
async fn a_ticket_nobody_took_is_given_back() {
    let desk = Desk::of(EngineKind::LlamaCpp, 1);
    let first = desk.gate.enter(ask("m")).await.unwrap();
    // Started, but dropped before it was looked at again.
    let mut second = Box::pin(desk.gate.enter(ask("m")));
    std::future::poll_fn(|cx| {
        assert!(second.as_mut().poll(cx).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
    drop(first);
    assert_eq!(desk.gate.depth(), (0, 1));
    drop(second);
    assert_eq!(desk.gate.depth(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failed_load_is_the_engines_own_error() {
    let desk = Desk::new(1);
    let fail = LoadFail { status: Some(500), text: "model requires more system memory".into() };
    *desk.slow.fails.lock() = Some(fail.clone());
    let (one, two) = (desk.ask(ask("big")).await, desk.ask(ask("big")).await);
    for task in [one, two] {
        assert_eq!(got(task).await.unwrap_err().why, Reason::Load(fail.clone()));
    }
    assert_eq!(desk.slow.began.lock().len(), 1);
    assert_eq!(desk.gate.depth(), (0, 0));
    assert!(desk.counts(r#"tailherd_model_load_seconds_count{model="big:latest"} 0"#));
}

#[tokio::test(start_paused = true)]
async fn a_load_that_breaks_off_is_a_failed_load() {
    let desk = Desk::new(1);
    let task = desk.ask(ask("panics")).await;
    let refusal = got(task).await.unwrap_err();
    assert!(matches!(refusal.why, Reason::Load(LoadFail { status: None, .. })), "{refusal:?}");
    // The gate is none the worse for it.
    assert!(desk.gate.enter(ask("tiny")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn refusals_say_why_and_when_to_come_again() {
    let desk = Desk::new(1);
    let guest = Ask { may_load: false, class: Class::Interactive, ..ask("tiny") };
    assert_eq!(desk.gate.enter(guest).await.unwrap_err().why, Reason::NotLoaded);

    let hurried = Ask { wait_budget: Some(3 * SEC), ..ask("tiny") };
    let refusal = desk.gate.enter(hurried).await.unwrap_err();
    // 4.6 GB at the rate taken where none is known, and the engine's start.
    let load = Duration::from_secs_f64(4.6 / 1.5 + 0.8);
    assert_eq!(refusal, Refusal { why: Reason::Wait, retry_after: load });
    assert_eq!(desk.gate.waits(&ask("tiny")), load);

    let mut tasks = Vec::new();
    for _ in 0..8 {
        tasks.push(desk.ask(ask("tiny")).await);
    }
    assert_eq!(desk.gate.enter(ask("tiny")).await.unwrap_err().why, Reason::Full);
    assert_eq!(desk.gate.depth(), (8, 0));
}

#[tokio::test(start_paused = true)]
async fn an_embedding_model_is_loaded_by_embedding() {
    let desk = Desk::new(4);
    let embeds = Capabilities { embedding: true, ..Capabilities::default() };
    let embed = || Ask { capabilities: embeds, ..ask("embed") };
    let first = desk.gate.enter(embed()).await.unwrap();
    assert!(desk.slow.began.lock()[0].embeds);
    let _second = desk.ask(embed()).await;
    assert_eq!(desk.gate.depth(), (1, 1));
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn a_keep_alive_of_nothing_is_never_part_of_a_load_and_unloads_at_the_end() {
    let desk = Desk::new(1);
    let brief = || Ask { keep_alive: Some("0".into()), ..ask("tiny") };
    drop(desk.gate.enter(brief()).await.unwrap());
    assert_eq!(desk.slow.began.lock()[0].keep_alive, None);
    drop(desk.gate.enter(brief()).await.unwrap());
    assert_eq!(desk.slow.began.lock().len(), 2);

    for (text, zero) in [
        ("0", true),
        ("\"0\"", true),
        ("\"0s\"", true),
        ("\"0m0s\"", true),
        ("0.0", true),
        ("0.5", false),
        ("-1", false),
        ("\"10m\"", false),
        ("\"\"", false),
        ("null", false),
        ("\"ms\"", false),
    ] {
        assert_eq!(is_zero(text), zero, "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn names_with_the_same_weights_share_one_place_in_memory() {
    let desk = Desk::new(2);
    let weights = Some(Digest("abc".into()));
    let named = |name: &str| Ask { weights: weights.clone(), ..ask(name) };
    let _one = desk.gate.enter(named("tools")).await.unwrap();
    let two = desk.gate.enter(named("think")).await.unwrap();
    assert_eq!(two.waited(), Duration::ZERO);
    desk.gate.note_unloaded(weights.as_ref(), &ModelKey::parse("tools").unwrap());
    drop(two);
    let task = desk.ask(named("think")).await;
    assert!(got(task).await.is_ok(), "still there while it is in use");
    assert_eq!(desk.slow.began.lock().len(), 1);
}

fn endpoint(kind: EngineKind, slots: Option<u32>) -> Endpoint {
    Endpoint {
        id: EndpointId(7),
        name: "ollama".into(),
        kind,
        apis: ApiSet::ALL,
        native: ApiSet::ALL,
        version: None,
        dial: Dial::Loopback(([127, 0, 0, 1], 1).into()),
        prefix: "".into(),
        slots,
        default_ctx: None,
        up: true,
        url: String::new(),
        unlisted: Vec::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_gate_outlives_snapshots_and_learns_its_slots() {
    let config = GatesConfig { queue: 8, num_parallel: None };
    let metrics = Metrics::new().unwrap();
    let gates =
        Gates::new(config, Clock::start(), metrics, |_| Arc::new(Fake(Arc::new(Slow::default()))));
    let gate = gates.of(&endpoint(EngineKind::Ollama, None));
    let _first = gate.enter(ask("tiny")).await.unwrap();
    let task = {
        let gate = gate.clone();
        tokio::spawn(async move { gate.enter(ask("tiny")).await })
    };
    settle().await;
    assert_eq!(gate.depth(), (1, 1));
    let same = gates.of(&endpoint(EngineKind::Ollama, Some(2)));
    assert!(Arc::ptr_eq(&gate, &same));
    assert!(got(task).await.is_ok());

    gates.keep(|_| false);
    assert!(!Arc::ptr_eq(&gate, &gates.of(&endpoint(EngineKind::Ollama, None))));
}

#[tokio::test(start_paused = true)]
async fn slots_come_from_what_is_known_of_the_engine() {
    for (kind, said, parallel, slots) in [
        (EngineKind::Ollama, None, None, 1),
        (EngineKind::Ollama, None, Some(4), 4),
        (EngineKind::Ollama, Some(2), Some(4), 2),
        (EngineKind::LlamaCpp, Some(3), Some(4), 3),
        (EngineKind::LlamaCpp, None, Some(4), 1),
    ] {
        let config = GatesConfig { queue: 8, num_parallel: parallel };
        let gates = Gates::new(config, Clock::start(), Metrics::new().unwrap(), |_| {
            Arc::new(Fake(Arc::new(Slow::default())))
        });
        let gate = gates.of(&endpoint(kind, said));
        let mut tasks = Vec::new();
        for _ in 0..6 {
            let gate = gate.clone();
            tasks.push(tokio::spawn(async move { gate.enter(ask("m")).await }));
        }
        sleep(11 * SEC).await;
        assert_eq!(gate.depth(), (6 - slots, slots), "{kind:?} {said:?} {parallel:?}");
    }
}
