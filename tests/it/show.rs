//! What a person is shown of requests: who asked, which node answered and why, and where the next
//! one would go.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tailherd::demo::client::{Answer, get, post};
use tailherd::demo::engine::{EngineSpec, ModelSpec};
use tailherd::demo::node::NodeSpec;
use tailherd::demo::tailscaled::Owner;
use tokio::net::{TcpListener, TcpStream};

use crate::world::{ME, SOON, Sends as _, World, count, counting, engine, me, ms, until};

/// A laptop that asks, and two nodes that count: `gpu`, and `desk` which is slower.
async fn three() -> World {
    let world = World::start(vec![
        NodeSpec::new("laptop", me(), None),
        NodeSpec::new("gpu", Owner::tag("tag:ollama"), Some(counting("gpu", ms(5)))),
        NodeSpec::new("desk", me(), Some(counting("desk", ms(20)))),
    ])
    .await;
    world.sees("laptop", "count:latest", "gpu").await;
    world.sees("laptop", "count:latest", "desk").await;
    world
}

async fn requests(world: &World, at: &str) -> Vec<Value> {
    let said = get(world.node(at).admin(), "/requests").send().await.json();
    said["requests"].as_array().unwrap().clone()
}

async fn explain(world: &World, at: &str, query: &str) -> Value {
    get(world.node(at).admin(), &format!("/explain?{query}")).send().await.json()
}

/// What stands in the header.
fn explained(answer: &Answer) -> Vec<Value> {
    let text = answer.header("x-tailherd-explain");
    assert!(text.len() <= 8192 && text.is_ascii(), "{text}");
    serde_json::from_str(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_say_who_asked_which_node_answered_and_why_and_never_what() {
    let world = World::pair(vec![ModelSpec::count("count")]).await;
    let body = json!({ "model": "count", "prompt": "the-canary", "options": { "num_predict": 5 } });
    let answer = world.post("laptop", "/api/generate", body.to_string());
    let answer = answer.header("user-agent", "openclaw/2026").send().await;
    assert_eq!(answer.status, 200);
    let ended = async || {
        let both = (requests(&world, "laptop").await, requests(&world, "gpu").await);
        both.0.len() == 1 && both.1.len() == 1
    };
    assert!(until(ended).await);
    let here = requests(&world, "laptop").await.remove(0);
    for (field, want) in [
        ("caller", json!("local")),
        ("from", json!("")),
        ("client", json!("openclaw")),
        ("model", json!("count:latest")),
        ("node", json!("gpu")),
        ("tokens", json!(5)),
        ("attempts", json!(1)),
        ("moves", json!(0)),
        ("refusals", json!(0)),
        ("outcome", json!("done")),
    ] {
        assert_eq!(here[field], want, "{field}: {here:#}");
    }
    let why = here["why"].as_str().unwrap();
    assert!(why.starts_with("only node, "), "{why}");
    assert!(here["tookMs"].is_u64() && here["ttftMs"].is_u64(), "{here:#}");
    assert!(here["tokensPerSecond"].as_f64().is_some_and(|n| n > 1.0), "{here:#}");
    let there = requests(&world, "gpu").await.remove(0);
    assert_eq!((&there["caller"], &there["from"]), (&json!(ME), &json!("laptop")), "{there:#}");
    assert_eq!((&there["node"], &there["tokens"]), (&json!("gpu"), &json!(5)));
    assert!(there["waitMs"].is_u64(), "{there:#}");
    for at in ["laptop", "gpu"] {
        let all = get(world.node(at).admin(), "/requests").send().await;
        assert!(!all.text().contains("canary"), "{}", all.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_shown_until_it_ends() {
    let slow = EngineSpec { token: ms(40), ..engine("gpu", vec![ModelSpec::count("count")]) };
    let world = World::pair_of(slow).await;
    let mut stream =
        world.post("laptop", "/api/generate", count("count", 10_000)).open().await.unwrap();
    stream.lines(3).await;
    let running = async |at: &str| world.status(at).await["running"].clone();
    let streams = async || running("laptop").await[0]["pieces"].as_u64().is_some_and(|n| n > 2);
    assert!(until(streams).await, "{}", running("laptop").await);
    let row = running("laptop").await[0].clone();
    assert_eq!((&row["state"], &row["node"]), (&json!("streaming"), &json!("gpu")), "{row}");
    assert_eq!(running("gpu").await[0]["from"], "laptop");
    drop(stream);
    let over = async || running("laptop").await == json!([]) && running("gpu").await == json!([]);
    assert!(until(over).await, "{}", running("gpu").await);
    assert_eq!(requests(&world, "laptop").await[0]["outcome"], "client_cancel");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_explains_the_choice_it_came_from_to_programs_here_alone() {
    let world = three().await;
    let ask = || {
        let call = world.post("laptop", "/api/generate", count("count", 3));
        call.header("x-tailherd-explain", "1")
    };
    // On a busy machine a node may be away for a moment.
    let mut answer = ask().send().await;
    let both = async || {
        answer = ask().send().await;
        explained(&answer).len() == 2
    };
    assert!(until(both).await, "{}", answer.header("x-tailherd-explain"));
    let rows = explained(&answer);
    assert_eq!(rows[0]["verdict"], "chosen");
    let chosen = rows[0]["node"].as_str().unwrap();
    assert!(answer.header("x-tailherd-served-by").starts_with(&format!("{chosen}/")));
    for row in &rows {
        let seconds = &row["seconds"];
        let terms = ["rtt", "upload", "queue", "load", "loadCost", "prefill", "decode"];
        let sum: f64 = terms.iter().map(|term| seconds[term].as_f64().unwrap()).sum();
        assert!((sum - seconds["total"].as_f64().unwrap()).abs() < 0.01, "{row:#}");
        assert!(row["from"]["prefill"].is_string() && !row["why"].as_str().unwrap().is_empty());
    }
    let text = answer.header("x-tailherd-explain");
    for secret in ["100.64", "127.0.0.1", "11434", "11436"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }

    let plain = world.post("laptop", "/api/generate", count("count", 3)).send().await;
    assert_eq!(plain.header("x-tailherd-explain"), "");
    let call = post(world.node("gpu").apps(), "/api/generate", count("count", 3));
    let across = world.across("laptop", "gpu", call.header("x-tailherd-explain", "1")).await;
    assert_eq!((across.status, across.header("x-tailherd-explain")), (200, ""));

    // The first choice fails before its first byte: the header says so.
    world.engine(chosen).die();
    let other = if chosen == "gpu" { "desk" } else { "gpu" };
    let answer = ask().send().await;
    assert!(answer.header("x-tailherd-served-by").starts_with(other));
    let rows = explained(&answer);
    // What was learnt meanwhile may have made the other one first.
    let tried = answer.header("x-tailherd-attempts") != "1";
    if let Some(failed) = rows.iter().find(|row| row["node"] == chosen && tried) {
        assert!(matches!(failed["verdict"].as_str(), Some("tried" | "behind")), "{failed:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_where_a_request_would_go_and_what_keeps_the_others_out() {
    let world = three().await;
    let all = explain(&world, "laptop", "model=count&promptTokens=100").await;
    assert_eq!((&all["usable"], &all["model"]), (&json!(2), &json!("count:latest")), "{all:#}");
    assert!(!all["goes"].as_array().unwrap().is_empty());
    // A window nobody loads it with is another load, which the terms say.
    let wide = explain(&world, "laptop", "model=count&numCtx=2048").await;
    assert!(wide["candidates"][0]["seconds"]["load"].as_f64().unwrap() > 0.0, "{wide:#}");
    let blind = explain(&world, "laptop", "model=count&images=1").await;
    assert_eq!((&blind["usable"], &blind["goes"]), (&json!(0), &json!([])), "{blind:#}");
    assert_eq!(blind["candidates"][0]["why"], "cannot do: vision");
    let pinned = explain(&world, "laptop", "model=count%40desk").await;
    assert_eq!((&pinned["goes"], &pinned["pinned"]), (&json!(["desk"]), &json!("desk")));
    assert_eq!(pinned["others"], json!([{ "node": "gpu", "why": "another node is named" }]));

    world.node("desk").asleep(true);
    let gone = async || {
        let said = explain(&world, "laptop", "model=count").await;
        let rows = [&said["candidates"], &said["others"]].map(|r| r.as_array().unwrap().clone());
        let why = rows.concat().iter().find(|r| r["node"] == "desk")?["why"].clone();
        why.as_str()?.starts_with("does not answer").then_some(said["goes"].clone())
    };
    let so = async || gone().await == Some(json!(["gpu"]));
    assert!(until(so).await, "{:#}", explain(&world, "laptop", "model=count").await);
    for (query, status) in [("model=nobody", 200), ("model=%40", 400), ("", 400)] {
        let call = get(world.node("laptop").admin(), &format!("/explain?{query}"));
        assert_eq!(call.send().await.status, status, "{query}");
    }
    assert!(world.engine("gpu").seen_at("/api/generate").is_empty(), "nobody is asked");
}

/// The program, asking the tailherd whose admin listener is there.
fn tailherd(folder: &Path, admin: SocketAddr, args: &[&str]) -> Command {
    let file = folder.join("config.json5");
    std::fs::write(&file, format!("{{ admin: {{ listen: '{admin}' }} }}")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailherd"));
    command.arg("--config").arg(file).args(args).env("TAILHERD_STATE", folder);
    command
}

/// Exit code and what was said.
async fn run(mut command: Command) -> (Option<i32>, String) {
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_show_it_as_tables() {
    let world = three().await;
    let folder = tempfile::tempdir().unwrap();
    let admin = world.node("laptop").admin();
    let say = async |args: &[&str]| run(tailherd(folder.path(), admin, args)).await;
    let (code, text) = say(&["requests"]).await;
    assert_eq!(
        (code, text.as_str()),
        (Some(0), "no request has ended since tailherd was started\n")
    );
    world.post("laptop", "/api/generate", count("count", 3)).send().await;
    // The last byte is here a moment before its request has ended.
    let listed = async || say(&["requests"]).await.1.lines().count() == 2;
    assert!(until(listed).await);
    let (code, text) = say(&["requests"]).await;
    assert_eq!(code, Some(0), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    for heading in ["CALLER", "MODEL", "NODE", "FIRST", "END", "WHY"] {
        assert!(lines[0].contains(heading), "{text}");
    }
    assert_eq!(lines[0].find("END"), lines[1].find("done"), "{text}");
    let (code, text) = say(&["explain", "count", "--prompt-tokens", "900"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("count:latest, a prompt of 900 tokens: goes to "), "{text}");
    for word in ["NODE", "SECONDS", "LOAD COST", "gpu ", "desk ", "speeds ", "pin "] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let (code, text) = say(&["explain", "count", "--json", "--num-ctx", "2048"]).await;
    let said: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &said["ask"]["numCtx"]), (Some(0), &json!(2048)));
    assert!(said["candidates"][0]["paths"].is_array(), "{said:#}");
    for args in [&["explain", "unheard"][..], &["explain", "count", "--images"]] {
        let (code, text) = say(args).await;
        assert!(code == Some(1) && text.contains("no node can serve"), "{args:?}: {text}");
    }
    let (code, text) = say(&["explain", "a b\u{1b}"]).await;
    assert!(code == Some(1) && !text.contains('\u{1b}'), "{text}");
}

/// Passes connections on to wherever a node's admin listener is at the time.
async fn relay(to: Arc<Mutex<SocketAddr>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let to = *to.lock();
            tokio::spawn(async move {
                if let Ok(mut there) = TcpStream::connect(to).await {
                    let _ = tokio::io::copy_bidirectional(&mut from, &mut there).await;
                }
            });
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_gets_each_request_as_it_ends_and_goes_on_when_the_node_is_started_anew() {
    let world = World::pair(vec![ModelSpec::count("count")]).await;
    let laptop = world.node("laptop");
    let admin = Arc::new(Mutex::new(laptop.admin()));
    let folder = tempfile::tempdir().unwrap();
    let place = relay(Arc::clone(&admin)).await;
    let ask = async |n: u64| {
        let answer = world.post("laptop", "/api/generate", count("count", n)).send().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    ask(1).await;
    let mut command = tailherd(folder.path(), place, &["requests", "--follow", "--json"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let out = BufReader::new(child.stdout.take().unwrap());
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let reader = std::thread::spawn(move || {
        for line in out.lines() {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            let _ = sender.send(line);
        }
    });
    let mut next = async || tokio::time::timeout(SOON * 2, lines.recv()).await.unwrap().unwrap();
    assert_eq!(next().await["tokens"], 1, "what had ended before");
    ask(2).await;
    assert_eq!(next().await["tokens"], 2);

    laptop.quit();
    let remark = next().await["remark"].as_str().unwrap().to_owned();
    assert!(remark.contains("waiting for it"), "{remark}");
    laptop.run().await.unwrap();
    world.sees("laptop", "count:latest", "gpu").await;
    *admin.lock() = laptop.admin();
    ask(3).await;
    assert_eq!(next().await["remark"], "tailherd was started anew");
    assert_eq!(next().await["tokens"], 3);

    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0), "Ctrl-C is how it ends");
    reader.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_does_not_wait_for_its_followers() {
    let world = World::pair(vec![ModelSpec::count("count")]).await;
    let laptop = world.node("laptop");
    let call = get(laptop.admin(), "/requests?wait=1");
    let follower = tokio::spawn(async move { call.answer().await });
    tokio::time::sleep(ms(300)).await;
    assert!(!follower.is_finished(), "there is no news");
    laptop.stop().await;
    let answer = tokio::time::timeout(SOON, follower).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.status, 200, "answered, not cut");
}
