//! The stand-in engine under load and faults, as Ollama was measured to behave.

use std::time::Duration;

use tailherd::demo::engine::{BUSY, Cut, Engine, EngineSpec, Fault, ModelSpec};
use tokio::time::Instant;

use crate::http::{Sends as _, counted, get, post};

const SOON: Duration = Duration::from_secs(5);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn start(change: impl FnOnce(&mut EngineSpec)) -> Engine {
    let models = vec![
        ModelSpec::tiny(),
        ModelSpec::count("count"),
        ModelSpec::count("other"),
        ModelSpec::count("third"),
        ModelSpec::embed("embed"),
    ];
    let mut spec = EngineSpec::new("faults", models);
    change(&mut spec);
    Engine::start(spec).await.unwrap()
}

fn count(model: &str, n: u64) -> String {
    format!(r#"{{"model":"{model}","prompt":"x","options":{{"num_predict":{n}}}}}"#)
}

#[tokio::test]
async fn counts_exactly() {
    let e = start(|s| s.token = ms(0)).await;
    let answer = post(e.addr(), "/api/generate", count("count", 400)).send().await;
    assert_eq!(answer.said(), counted(400));
    assert_eq!(answer.items().len(), 401);
    assert_eq!(e.counts().tokens, 400);
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_slot() {
    let e = start(|s| s.token = ms(5)).await;
    for stream in [true, false] {
        let body = format!(r#"{{"model":"count","prompt":"x","stream":{stream}}}"#);
        let call = tokio::spawn(post(e.addr(), "/api/generate", body).send());
        assert!(e.until(SOON, |c| c.running == 1 && c.tokens > 3).await);
        call.abort();
        assert!(e.until(SOON, |c| c.running == 0 && c.cancelled == 1 + u64::from(!stream)).await);
        let from = Instant::now();
        let next = post(e.addr(), "/api/generate", count("count", 2)).send().await;
        assert_eq!(next.said(), " 1 2");
        assert!(from.elapsed() < ms(500));
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_loading_aborts_the_load() {
    let e = start(|s| s.load = ms(300)).await;
    let call = tokio::spawn(post(e.addr(), "/api/generate", count("count", 1)).send());
    assert!(e.until(SOON, |c| c.loads_started == 1).await);
    call.abort();
    assert!(e.until(SOON, |c| c.loads_aborted == 1 && c.waiting == 0).await);
    assert!(e.loaded().is_empty());
    let from = Instant::now();
    post(e.addr(), "/api/generate", count("count", 1)).send().await;
    assert!(from.elapsed() >= ms(300), "the next one starts from zero");
    assert_eq!(e.counts().loads_started, 2);
}

#[tokio::test]
async fn a_loaded_model_queues_first_come_first_served_and_never_refuses() {
    let e = start(|s| (s.token, s.max_queue) = (ms(5), 1)).await;
    let mut calls = Vec::new();
    for i in 0..6_u64 {
        let call = post(e.addr(), "/api/generate", count("count", 4));
        calls.push(tokio::spawn(async move { (call.send().await.status, Instant::now()) }));
        assert!(e.until(SOON, |c| c.running + c.waiting + c.finished > i).await);
        if i == 0 {
            assert!(e.until(SOON, |c| c.running == 1).await);
        }
    }
    let mut ends = Vec::new();
    for call in calls {
        let (status, end) = call.await.unwrap();
        assert_eq!(status, 200);
        ends.push(end);
    }
    assert!(ends.is_sorted(), "served in the order they came");
}

#[tokio::test]
async fn a_full_line_for_loads_answers_busy_and_a_loaded_model_overtakes_it() {
    let e = start(|s| (s.token, s.max_queue, s.max_loaded) = (ms(5), 2, 1)).await;
    let long = tokio::spawn(post(e.addr(), "/api/generate", count("count", 100)).send());
    assert!(e.until(SOON, |c| c.running == 1).await);
    let waiting: Vec<_> = (0..3)
        .map(|_| tokio::spawn(post(e.addr(), "/api/generate", count("other", 1)).send()))
        .collect();
    assert!(e.until(SOON, |c| c.waiting == 3).await);
    let refused = post(e.addr(), "/api/generate", count("other", 1)).send().await;
    assert_eq!((refused.status, refused.json()["error"].as_str()), (503, Some(BUSY)));
    let ahead = tokio::spawn(post(e.addr(), "/api/generate", count("count", 1)).send());
    assert!(e.until(SOON, |c| c.waiting == 4).await);
    assert_eq!(long.await.unwrap().said(), counted(100));
    assert_eq!(ahead.await.unwrap().said(), " 1");
    for w in waiting {
        assert_eq!(w.await.unwrap().status, 200);
    }
    assert_eq!(e.loaded(), ["other:latest"]);
}

#[tokio::test]
async fn other_runner_options_reload_and_sampling_does_not() {
    let e = start(|_| {}).await;
    let loads = async |more: &str| {
        let body = format!(r#"{{"model":"count","prompt":"x"{more}}}"#);
        assert_eq!(post(e.addr(), "/api/generate", body).send().await.status, 200);
        e.counts().loads_started
    };
    assert_eq!(loads(r#","options":{"num_predict":1}"#).await, 1);
    assert_eq!(loads(r#","options":{"num_predict":1,"temperature":0.1}"#).await, 1);
    assert_eq!(loads(r#","options":{"num_predict":1,"num_ctx":2048}"#).await, 2);
    assert_eq!(loads(r#","shift":false,"options":{"num_predict":1,"num_ctx":2048}"#).await, 3);
    assert_eq!(loads(r#","options":{"num_predict":1}"#).await, 4);
}

#[tokio::test]
async fn keep_alive_sticks_and_zero_unloads() {
    let e = start(|_| {}).await;
    let ask = async |more: &str| {
        let body = format!(r#"{{"model":"count"{more}}}"#);
        post(e.addr(), "/api/generate", body).send().await.json()["done_reason"].clone()
    };
    assert_eq!(ask(r#","keep_alive":0.1"#).await, "load");
    assert_eq!(ask("").await, "load");
    tokio::time::sleep(ms(150)).await;
    assert!(e.loaded().is_empty(), "the last explicit value counts");
    assert_eq!(ask("").await, "load");
    assert_eq!(e.loaded(), ["count:latest"]);
    assert_eq!(ask(r#","keep_alive":0"#).await, "unload");
    assert!(e.loaded().is_empty());
}

#[tokio::test]
async fn the_shortest_keep_alive_goes_first() {
    let e = start(|s| s.max_loaded = 2).await;
    for (model, keep) in [("count", 600), ("other", 60), ("third", 60)] {
        let body = format!(r#"{{"model":"{model}","keep_alive":{keep}}}"#);
        post(e.addr(), "/api/generate", body).send().await;
    }
    assert_eq!(e.loaded(), ["count:latest", "third:latest"]);
}

#[tokio::test]
async fn a_hung_engine_takes_connections_and_says_nothing() {
    let e = start(|_| {}).await;
    e.hang();
    let call = tokio::spawn(get(e.addr(), "/api/version").send());
    tokio::time::sleep(ms(200)).await;
    assert!(!call.is_finished());
    e.wake();
    assert_eq!(call.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_dead_engine_refuses_and_comes_back_on_the_same_port() {
    let e = start(|s| s.token = ms(5)).await;
    let mut stream = post(e.addr(), "/api/generate", count("count", 1000)).open().await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    e.die();
    let end = stream.rest().await;
    assert!(!end.whole, "cut without an end");
    tokio::time::sleep(ms(20)).await;
    assert!(get(e.addr(), "/").open().await.is_err());
    e.revive().await.unwrap();
    assert_eq!(get(e.addr(), "/").send().await.text(), "Ollama is running");
    assert!(e.loaded().is_empty());
}

#[tokio::test]
async fn every_cut_looks_as_recorded() {
    let e = start(|_| {}).await;
    let native = count("count", 100);
    let openai = r#"{"model":"count","messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":100}"#;
    for cut in [Cut::Reset, Cut::Close, Cut::Clean, Cut::Crash] {
        e.cut_after(Some((3, cut)));
        let n = post(e.addr(), "/api/generate", native.clone()).send().await;
        let o = post(e.addr(), "/v1/chat/completions", openai).send().await;
        let m = post(e.addr(), "/v1/messages", openai).send().await;
        let r = post(e.addr(), "/v1/responses", r#"{"model":"count","input":"x","stream":true}"#)
            .send()
            .await;
        let clean = matches!(cut, Cut::Clean | Cut::Crash);
        for a in [&n, &o, &m, &r] {
            assert_eq!((a.status, a.whole), (200, clean), "{cut:?}");
        }
        if clean {
            assert_eq!(n.said(), " 1 2 3");
            assert!(!o.text().contains("[DONE]") && !m.text().contains("message_stop"));
            assert!(!r.text().contains("response.completed"));
            let last = n.items().pop().unwrap();
            assert_eq!(last["error"].is_string(), cut == Cut::Crash, "{last}");
            let last = o.items().pop().unwrap();
            assert_eq!(last["model"] == "", cut == Cut::Crash, "{last}");
        }
        assert!(e.until(SOON, |c| c.running == 0).await);
    }
    let whole = format!(r#"{{"model":"count","stream":false,"prompt":"x"{}"#, "}");
    assert_eq!(post(e.addr(), "/api/generate", whole).send().await.status, 500);
}

#[tokio::test]
async fn faults_answer_in_the_dialect_asked() {
    let e = start(|_| {}).await;
    let body = r#"{"model":"count","messages":[{"role":"user","content":"x"}],"max_tokens":1}"#;
    for (fault, status) in [(Fault::Broken, 500), (Fault::Busy, 503), (Fault::Gone, 404)] {
        e.fault(Some(fault));
        let n = post(e.addr(), "/api/chat", body).send().await;
        let o = post(e.addr(), "/v1/chat/completions", body).send().await;
        let m = post(e.addr(), "/v1/messages", body).send().await;
        assert_eq!([n.status, o.status, m.status], [status; 3]);
        assert!(n.json()["error"].is_string());
        assert!(o.json()["error"]["message"].is_string());
        assert_eq!(m.json()["type"], "error");
    }
    e.fault(Some(Fault::Reset));
    assert!(post(e.addr(), "/api/chat", body).open().await.is_err());
    e.fault(None);
    assert_eq!(post(e.addr(), "/api/chat", body).send().await.status, 200);
}

#[tokio::test]
async fn what_came_in_is_noted() {
    let e = start(|_| {}).await;
    post(e.addr(), "/api/show?x=1", r#"{"model":"tiny","MODEL":"secret"}"#)
        .header("authorization", "Bearer key")
        .send()
        .await;
    let seen = e.seen_at("/api/show");
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].model.as_deref(), Some("secret"));
    assert_eq!(seen[0].query.as_deref(), Some("x=1"));
    assert_eq!(seen[0].headers["authorization"], "Bearer key");
    e.forget();
    assert!(e.seen().is_empty());
}
