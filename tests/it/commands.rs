//! The commands that ask this machine's tailscaled, as a person types them.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;
use tailherd::demo::node::NodeSpec;
use tailherd::demo::tailscaled::{Owner, Tailnet, Tailscaled};

use crate::hello::becomes;
use crate::world::{World, me};

/// Runs the program; the stand-in goes on meanwhile.
async fn tailherd(daemon: &Tailscaled, state: &Path, args: &[&str]) -> (Option<i32>, String) {
    let file = state.join("config.json5");
    let text = format!(
        "{{ tailnet: {{ socket: '{}' }}, listen: ['127.0.0.1:1'], admin: {{ listen: null }},
           local: [{{ baseUrl: 'http://127.0.0.1:2' }}] }}",
        daemon.socket().display()
    );
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailherd"));
    command.arg("--config").arg(file).args(args).env("TAILHERD_STATE", state);
    command.env_remove("XDG_RUNTIME_DIR").env_remove("RUNTIME_DIRECTORY");
    let run = tokio::task::spawn_blocking(move || command.output());
    let Output { status, stdout, stderr } = run.await.unwrap().unwrap();
    let text = [stdout, stderr].concat();
    (status.code(), String::from_utf8(text).unwrap())
}

#[track_caller]
fn holds(text: &str, lines: &[&str]) {
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let found = text.lines().any(|l| {
            l.split_whitespace().collect::<Vec<_>>().windows(words.len()).any(|w| w == words)
        });
        assert!(found, "{line}\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn access_says_who_may_what_and_where_prompts_go() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let _gpu = net.join("gpu", Owner::tag("tag:ollama")).await.unwrap();
    let _desk = net.join("desk", Owner::user("dev@example.com")).await.unwrap();
    let _help = net.join("help", Owner::user("ops@example.com")).await.unwrap();
    net.grant("help", "laptop", "tailherd.dev/cap/use", vec![json!({"verbs": ["observe"]})]);
    let state = tempfile::tempdir().unwrap();
    let (code, text) = tailherd(&laptop, state.path(), &["access"]).await;
    assert_eq!(code, Some(0), "{text}");
    holds(
        &text,
        &[
            "Who may use laptop",
            "gpu tag:ollama list infer access: auto (tag:ollama)",
            "desk dev@example.com - -",
            "help ops@example.com observe grant",
            "gpu tag:ollama yes: sendTo: auto (tag:ollama)",
            "help ops@example.com no: not in sendTo",
        ],
    );
    let (_, text) = tailherd(&laptop, state.path(), &["access", "--as", "desk"]).await;
    holds(
        &text,
        &[
            "infer no no rule lets desk (dev@example.com) in:",
            "admits owner:self, tag:ollama; ask me@example.com",
        ],
    );
    let (_, text) = tailherd(&laptop, state.path(), &["access", "--as", "tag:ollama"]).await;
    holds(&text, &["infer yes access: auto (tag:ollama):", "may list, infer here, not `manage`:"]);
    let (code, text) = tailherd(&laptop, state.path(), &["access", "--as", "nobody"]).await;
    assert_eq!(code, Some(1), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_fails_loudly_where_somebody_gets_past_the_rules() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    laptop.tun(Some(true));
    let state = tempfile::tempdir().unwrap();
    let (_, text) = tailherd(&laptop, state.path(), &["doctor"]).await;
    assert!(!text.contains("tailscale serve reset"), "{text}");
    laptop.serve(json!({ "TCP": { "443": { "TCPForward": "127.0.0.1:1" } } }));
    let (code, text) = tailherd(&laptop, state.path(), &["doctor"]).await;
    assert_eq!(code, Some(1), "{text}");
    holds(&text, &["BAD `tailscale serve` opens to the tailnet, on port 443:"]);
    laptop.serve(json!({}));
    laptop.backend("Stopped");
    let (code, text) = tailherd(&laptop, state.path(), &["doctor"]).await;
    assert_eq!(code, Some(1), "{text}");
    holds(&text, &["BAD the tailnet does not run:", "tailscale up"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn trust_accept_names_what_it_did_not_find() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let (code, text) = tailherd(&laptop, state.path(), &["trust", "accept", "gpu"]).await;
    assert_eq!(code, Some(1), "{text}");
    holds(&text, &["knows no node yet"]);
    let known = r#"{"v":1,"nodes":{"7":{"name":"gpu","created":"x","owner":"tags",
        "met":"later","lastListed":20000}}}"#;
    let file = state.path().join("nodes-0123456789abcdef.json");
    std::fs::write(&file, known).unwrap();
    let (code, text) = tailherd(&laptop, state.path(), &["trust", "accept", "gpu"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(std::fs::read_to_string(&file).unwrap().contains("\"accepted\""));
    let (code, text) = tailherd(&laptop, state.path(), &["trust", "accept", "nas"]).await;
    assert_eq!(code, Some(1), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn trust_shows_what_the_state_remembers_and_changes_only_a_running_program() {
    let net = Tailnet::default();
    let laptop = net.join("laptop", Owner::user("me@example.com")).await.unwrap();
    let empty = tempfile::tempdir().unwrap();
    let run = async |args: &[&str]| tailherd(&laptop, empty.path(), args).await;
    let (code, text) = run(&["trust", "list"]).await;
    assert_eq!(code, Some(0), "{text}");
    holds(&text, &["no key is pinned yet:"]);
    assert_eq!(run(&["trust", "list", "--json"]).await, (Some(0), "[]\n".to_owned()));
    let (code, text) = run(&["trust", "export"]).await;
    assert_eq!(code, Some(1), "{text}");
    holds(&text, &["no tailnet was seen here yet,"]);
    let key = "A".repeat(43);
    for (args, want, says) in [
        (&["trust", "forget", "gpu"][..], 1, "no tailherd runs here"),
        (&["trust", "add", "nas", &key], 1, "no tailherd runs here"),
        (&["lan", "allow", "--for", "8h"], 1, "no tailherd runs here"),
        (&["trust", "add", "nas", "short"], 2, "43 characters of base64url"),
        (&["trust", "add", "nas", &key, "--verbs", "list,root"], 2, "is no verb"),
        (&["lan", "allow", "--for", "soon"], 2, "is not a duration"),
        (&["lan", "forget", "--all"], 1, "no tailherd runs here"),
        (&["lan", "forget", "--all", "wlan0"], 2, "cannot be used with"),
    ] {
        let (code, text) = run(args).await;
        assert_eq!(code, Some(want), "{args:?}: {text}");
        assert!(text.contains(says), "{args:?}: {text}");
    }

    // Without one, what the state folder knows is shown all the same.
    let (known, _) = tailherd::trust::Networks::open(Some(empty.path()));
    let id = known.id_of("aa:bb", "192.168.77.0/24");
    known.learn(&id, tailherd::telemetry::wall()).unwrap();
    let (code, text) = run(&["lan", "list"]).await;
    assert_eq!(code, Some(0), "{text}");
    holds(&text, &["NETWORK HERE KNOWN SINCE SEEN ENDS", &format!("{id} - met")]);

    let world = World::start(vec![
        NodeSpec::new("desk", me(), None),
        NodeSpec::new("gpu", Owner::tag("tag:ollama"), None),
    ])
    .await;
    becomes(&world, "desk", "gpu", "live").await;
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    let desk = world.node("desk");
    desk.quit();
    let (code, text) = tailherd(&desk.daemon, desk.state(), &["trust", "list"]).await;
    assert_eq!(code, Some(0), "{text}");
    holds(&text, &["NODE OWNER KEY STATE SEEN ENDS", "gpu tag:ollama"]);
    assert!(text.contains("live"), "{text}");
    let (code, text) = tailherd(&desk.daemon, desk.state(), &["trust", "export"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("tailherd trust add desk "), "{text}");
}
