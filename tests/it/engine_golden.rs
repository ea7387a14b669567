//! The stand-in engine against recordings of Ollama 0.32.15: same status, same content type,
//! same shape, same words.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tailherd::demo::engine::{Engine, EngineSpec, ModelSpec};

use crate::http::{Call, Sends as _, get, items, post};

/// What differs from machine to machine and from moment to moment: only its type is compared.
const VOLATILE: [&str; 21] = [
    "id",
    "item_id",
    "request_id",
    "created",
    "created_at",
    "completed_at",
    "modified_at",
    "expires_at",
    "digest",
    "modelfile",
    "template",
    "size",
    "size_vram",
    "total_duration",
    "load_duration",
    "prompt_eval_duration",
    "eval_duration",
    "eval_count",
    "embedding",
    "embeddings",
    "context",
];

/// Recordings that need another set-up, or whose difference is intended and named here.
const SKIPPED: [(&str, &str); 13] = [
    ("tags", "compared row by row below"),
    ("ps", "compared row by row below"),
    ("ps-after", "depends on what ran before"),
    ("ps-empty", "depends on what ran before"),
    ("ps-keepalive-forever", "compared row by row below"),
    ("v1-models", "compared row by row below"),
    ("show", "model_info and tensors are shortened: compared key by key below"),
    ("show-name-field", "as show"),
    ("experimental-recommendations", "a list of the vendor's, empty here"),
    ("create-from-404", "names a registry that is never asked here"),
    ("create-from", "lists one layer, not three"),
    ("cors-preflight", "the list of SDK headers is shortened"),
    ("busy-503", "needs a full queue: see engine_faults"),
];

struct Golden {
    name: String,
    method: String,
    path: String,
    body: String,
    status: u16,
    kind: String,
    answer: String,
}

fn golden(name: &str, text: &str) -> Golden {
    let (request, response) = text.split_once("\n\n").unwrap();
    let mut lines = request.lines().map(|l| l.trim_start_matches("> "));
    let (method, path) = lines.next().unwrap().split_once(' ').unwrap();
    let (head, answer) = response.split_once("\n\n").unwrap_or((response, ""));
    let header = |name: &str| {
        let found = head.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
        found.unwrap_or_default().to_owned()
    };
    Golden {
        name: name.to_owned(),
        method: method.to_owned(),
        path: path.split_whitespace().next().unwrap().to_owned(),
        body: lines.next().unwrap_or_default().to_owned(),
        status: head.split_whitespace().nth(1).unwrap().parse().unwrap(),
        kind: header("Content-Type"),
        answer: answer.trim_end().to_owned(),
    }
}

fn goldens() -> Vec<Golden> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/ollama");
    let mut all: Vec<Golden> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_file() && !p.to_string_lossy().contains("kill-"))
        .map(|p| {
            let name = p.file_stem().unwrap().to_string_lossy().into_owned();
            (std::fs::read_to_string(&p).unwrap(), name)
        })
        .filter(|(_, name)| SKIPPED.iter().all(|(n, _)| n != name))
        .map(|(text, name)| golden(&name, &text))
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

async fn engine() -> Engine {
    let mut derived = ModelSpec::tiny();
    derived.name = "derived:latest".to_owned();
    let models = vec![
        derived,
        ModelSpec::tiny(),
        ModelSpec::count("count"),
        ModelSpec::tools("tools"),
        ModelSpec::think("think"),
        ModelSpec::words("second", "one two three"),
        ModelSpec::count("third"),
        ModelSpec::embed("embed"),
    ];
    Engine::start(EngineSpec::new("golden", models)).await.unwrap()
}

/// The shape of a value: volatile leaves and vectors become their types.
fn shape(key: &str, value: &Value) -> Value {
    if VOLATILE.contains(&key) {
        return match value {
            Value::Number(_) => json!("number"),
            Value::Array(_) => json!("list"),
            Value::String(_) => json!("text"),
            other => other.clone(),
        };
    }
    match value {
        Value::Array(list) => list.iter().map(|v| shape("", v)).collect(),
        Value::Object(map) => {
            Value::Object(map.iter().map(|(k, v)| (k.clone(), shape(k, v))).collect())
        }
        other => other.clone(),
    }
}

fn shapes(text: &str) -> Vec<Value> {
    items(text).iter().map(|v| shape("", v)).collect()
}

/// The order of a text's keys, which Ollama's clients see and Go keeps.
fn keys(text: &str) -> Vec<&str> {
    text.split('"').skip(1).step_by(2).filter(|k| VOLATILE.contains(k)).collect()
}

#[tokio::test]
async fn answers_are_shaped_as_recorded() {
    let engine = engine().await;
    let all = goldens();
    assert!(all.len() >= 45, "only {} recordings", all.len());
    for g in all {
        let call = Call { body: g.body.clone().into(), ..get(engine.addr(), &g.path) };
        let call = match g.name.as_str() {
            "host-cgnat" => call.header("host", "100.64.0.7:11434"),
            "host-tailnet" => call.header("host", "desk.tail1234.ts.net"),
            "host-local" => call.header("host", "desk.local:11434"),
            "host-private" => call.header("host", "192.168.1.7"),
            "cors-evil" => call.header("origin", "http://evil.example"),
            "cors-local" => call.header("origin", "http://localhost:3000"),
            "delete" => {
                engine.add({
                    let mut copied = ModelSpec::tiny();
                    copied.name = "copied:latest".to_owned();
                    copied
                });
                call
            }
            _ => call,
        };
        let answer = call.method(g.method.parse().unwrap()).send().await;
        assert_eq!(answer.status, g.status, "{}: {}", g.name, answer.text());
        assert_eq!(answer.header("content-type"), g.kind, "{}", g.name);
        assert!(answer.whole, "{}", g.name);
        assert_eq!(shapes(answer.text()), shapes(&g.answer), "{}", g.name);
        let (ours, theirs) = (answer.text(), g.answer.as_str());
        // The one answer that Ollama writes in its own order; no client reads that.
        if g.name != "v1-responses" {
            assert_eq!(keys(ours), keys(theirs), "{}", g.name);
        }
        if !theirs.contains('{') {
            assert_eq!(ours, theirs, "{}", g.name);
        }
        // Event names and end markers stand between the JSON.
        let marks = |t: &str| -> Vec<String> {
            let plain = |l: &&str| l.starts_with("event: ") || *l == "data: [DONE]";
            t.lines().filter(plain).map(str::to_owned).collect()
        };
        assert_eq!(marks(ours), marks(theirs), "{}", g.name);
    }
}

fn read(name: &str) -> Value {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/ollama");
    let text = std::fs::read_to_string(format!("{dir}/{name}.txt")).unwrap();
    let body = text.lines().find(|l| l.starts_with('{')).unwrap().to_owned();
    serde_json::from_str(&body).unwrap()
}

fn names(value: &Value) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    if let Value::Object(map) = value {
        for (k, v) in map {
            out.extend(names(v).iter().map(|n| format!("{k}.{n}")));
            out.insert(k.clone());
        }
    }
    out
}

#[tokio::test]
async fn rows_have_the_recorded_fields() {
    let engine = engine().await;
    let tags = get(engine.addr(), "/api/tags").send().await.json();
    let recorded = read("tags");
    for row in recorded["models"].as_array().unwrap() {
        let ours = tags["models"].as_array().unwrap().iter().find(|r| r["name"] == row["name"]);
        let ours = ours.unwrap_or_else(|| panic!("no row {}", row["name"]));
        assert_eq!(names(ours), names(row));
        assert_eq!(ours["capabilities"], row["capabilities"]);
    }
    for (body, file) in [
        (r#"{"model":"tiny"}"#, "ps"),
        (r#"{"model":"tiny","keep_alive":-1}"#, "ps-keepalive-forever"),
    ] {
        post(engine.addr(), "/api/generate", body).send().await;
        let ps = get(engine.addr(), "/api/ps").send().await.json();
        let recorded = read(file);
        assert_eq!(names(&ps["models"][0]), names(&recorded["models"][0]), "{file}");
        assert_eq!(ps["models"][0]["context_length"], 4096);
    }
    let ps = get(engine.addr(), "/api/ps").send().await.json();
    assert_eq!(&ps["models"][0]["expires_at"].as_str().unwrap()[..4], "2319");
    let models = get(engine.addr(), "/v1/models").send().await.json();
    assert_eq!(names(&models["data"][0]), names(&read("v1-models")["data"][0]));
    let show = post(engine.addr(), "/api/show", r#"{"model":"tools"}"#).send().await.json();
    let recorded = read("show");
    let top = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(top(&show), top(&recorded));
    assert_eq!(show["capabilities"], recorded["capabilities"]);
    assert_eq!(names(&show["details"]), names(&recorded["details"]));
    assert!(
        show["modelfile"]
            .as_str()
            .unwrap()
            .contains("\nFROM /usr/share/ollama/.ollama/models/blobs/sha256-")
    );
}
