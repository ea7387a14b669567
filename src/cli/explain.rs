//! `tailherd explain MODEL`: where a request for it would go now, what each node's time is made
//! of, and why a node is not taken.
//!
//! Made from what the running node says of its own choice, and from its status: nobody else is
//! asked, and nothing is sent.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::anyhow;
use serde_json::{Value, json};

use super::status::{list, many, millis, span, text};
use super::table::{Column, Side, table};
use super::{Context, Failure, ask};
use crate::api::query::escaped;
use crate::telemetry::{plain, words as inert};

/// How many unused nodes are named where others can serve.
const UNUSED: usize = 3;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model, as programs ask for it.
    model: String,
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = 500)]
    prompt_tokens: u64,
    /// The context window that is asked for.
    #[arg(long, value_name = "N")]
    num_ctx: Option<u64>,
    /// The request has tools.
    #[arg(long)]
    tools: bool,
    /// The request has images.
    #[arg(long)]
    images: bool,
    /// The request asks for thinking.
    #[arg(long)]
    think: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    fn query(&self) -> String {
        let mut query =
            format!("model={}&promptTokens={}", escaped(&self.model), self.prompt_tokens);
        if let Some(window) = self.num_ctx {
            // Writing to a String cannot fail.
            let _ = write!(query, "&numCtx={window}");
        }
        for (is, name) in [(self.tools, "tools"), (self.images, "images"), (self.think, "think")] {
            if is {
                let _ = write!(query, "&{name}=1");
            }
        }
        query
    }
}

pub(super) async fn run(args: Args, context: Context<'_>) -> Result<(), Failure> {
    let config = context.load()?;
    let status = ask::status(&config).await?;
    let weighed = ask::explain(&config, &args.query()).await?;
    let explained = explain(&status, weighed);
    if args.json {
        writeln!(context.out, "{explained:#}")?;
    } else {
        write!(context.out, "{}", told(&explained))?;
    }
    match (explained["usable"].as_u64(), first(&explained)) {
        (Some(1..), _) | (_, Some(_)) => Ok(()),
        _ => Err(anyhow!("no node can serve {} now", word(&explained["model"])).into()),
    }
}

/// What the node says of its choice, with the paths and pins of those in it.
fn explain(status: &Value, mut weighed: Value) -> Value {
    let Some(said) = weighed.as_object_mut() else { return weighed };
    for rows in ["candidates", "others"] {
        let rows = said.get_mut(rows).and_then(Value::as_array_mut);
        for row in rows.into_iter().flatten().filter(|row| row.is_object()) {
            about_node(status, row);
        }
    }
    let unused = list(&status["peers"]).filter(|p| p["kind"].is_null());
    let unused = unused.map(|p| json!({ "name": p["name"], "why": p["why"] })).collect();
    said.insert("unused".to_owned(), unused);
    for field in ["rung", "why", "since"] {
        said.insert(field.to_owned(), status[field].clone());
    }
    weighed
}

fn peer<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    list(&status["peers"]).find(|p| p["name"] == name && p["kind"].is_string())
}

/// Adds how a row's node is reached, and by which key it is known.
fn about_node(status: &Value, row: &mut Value) {
    let name = text(&row["node"]).unwrap_or("?").to_owned();
    let peer = peer(status, &name);
    let id = peer.map(|p| &p["id"]);
    let pin = list(&status["pins"]).find(|pin| Some(&pin["id"]) == id);
    let unpinned = match peer {
        None => "",
        Some(p) if p["kind"] == "bare" => "no sidecar runs there",
        Some(_) => "it has not shown its key over the tailnet yet",
    };
    row["here"] = (status["node"]["name"] == *name).into();
    row["paths"] = peer.map_or(Value::Null, |p| p["paths"].clone());
    row["pin"] = pin.cloned().unwrap_or(Value::Null);
    row["unpinned"] = unpinned.into();
}

/// The provider's step that would be tried first, if it comes before any node.
fn first(explained: &Value) -> Option<&Value> {
    let mut steps = list(&explained["steps"]).filter(|step| step["open"] == true);
    let usable = explained["usable"].as_u64().is_some_and(|n| n > 0);
    steps.find(|step| usable || step["hosted"] == true).filter(|step| step["hosted"] == true)
}

/// Whether a load at that node counts for less than it takes, as the next ones find it there.
fn gains(explained: &Value, node: &str) -> bool {
    list(&explained["candidates"])
        .filter(|row| word(&row["node"]) == node)
        .any(|row| row["seconds"]["loadCost"].as_f64().is_some_and(|cost| cost < 0.0))
}

fn told(explained: &Value) -> String {
    let mut out = String::new();
    let goes: Vec<String> = list(&explained["goes"]).map(word).collect();
    let alias = text(&explained["alias"]);
    let alias = alias.map_or_else(String::new, |name| format!(" (for {})", plain(name)));
    let tokens = explained["ask"]["promptTokens"].as_u64().unwrap_or(0);
    let where_to = match (goes.as_slice(), list(&explained["candidates"]).count()) {
        _ if first(explained).is_some() => {
            format!("goes to {}", first(explained).map(|s| word(&s["step"])).unwrap_or_default())
        }
        ([], _) => "no node can serve it now".to_owned(),
        ([one], 1) => format!("goes to {one}"),
        ([one], _) if gains(explained, one) => format!("goes to {one}, which has room to load it"),
        ([one], _) => format!("goes to {one}, which ends it first"),
        (several, _) => format!("goes to {}, drawn among them", several.join(" or ")),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{}{alias}, a prompt of {}: {where_to}",
        word(&explained["model"]),
        many(usize::try_from(tokens).unwrap_or(usize::MAX), "token")
    );
    let rows: Vec<Vec<String>> =
        list(&explained["candidates"]).chain(list(&explained["others"])).map(cells).collect();
    if !rows.is_empty() {
        let columns = [
            Column("NODE", Side::Left),
            Column("SECONDS", Side::Right),
            Column("RTT", Side::Right),
            Column("UPLOAD", Side::Right),
            Column("QUEUE", Side::Right),
            Column("LOAD", Side::Right),
            Column("PROMPT", Side::Right),
            Column("ANSWER", Side::Right),
            Column("LOAD COST", Side::Right),
            Column("WHY", Side::Left),
        ];
        out.push('\n');
        out.push_str(&table(&columns, &rows));
    }
    for node in list(&explained["candidates"]).chain(list(&explained["others"])) {
        out.push('\n');
        about(&mut out, node);
    }
    out.push_str(&steps(explained));
    let unused: Vec<&Value> = list(&explained["unused"]).collect();
    if !unused.is_empty() {
        let shown = if goes.is_empty() { unused.len() } else { unused.len().min(UNUSED) };
        let mut named: Vec<String> = unused
            .iter()
            .take(shown)
            .map(|p| format!("{} ({})", word(&p["name"]), words(&p["why"])))
            .collect();
        if unused.len() > shown {
            named.push(format!("{} more (tailherd status --all)", unused.len() - shown));
        }
        let _ = writeln!(out, "\nseen and not used: {}", named.join(", "));
    }
    out
}

/// The steps of the chain, if it has more than the model itself.
fn steps(explained: &Value) -> String {
    let steps: Vec<&Value> = list(&explained["steps"]).collect();
    if steps.iter().all(|step| step["hosted"] != true) && steps.len() < 2 {
        return String::new();
    }
    let of = text(&explained["agent"]);
    let of = of.map_or_else(String::new, |agent| format!(" of agents.{}", plain(agent)));
    let mut out = format!("\nsteps{of}, in order\n");
    for step in steps {
        let mut said = Vec::new();
        said.extend(text(&step["why"]).map(|why| format!("passed over: {}", inert(why))));
        said.extend(text(&step["only"]).map(|only| format!("{} only", inert(only))));
        if let Some(usd) = step["usdToday"].as_f64().filter(|usd| *usd > 0.0) {
            let most = step["usdBudget"].as_f64();
            let most = most.map_or_else(String::new, |most| format!(" of {most:.2}"));
            said.push(format!("{usd:.2}{most} dollars today"));
        }
        // Writing to a String cannot fail.
        let _ = writeln!(out, "   {:<32} {}", word(&step["step"]), said.join("; "));
    }
    // A line without a remark ends with its name.
    out.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// One row of the table: the terms of the score, all in seconds.
fn cells(row: &Value) -> Vec<String> {
    let seconds = &row["seconds"];
    let term = |name: &str| match seconds[name].as_f64() {
        None => "-".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(s) if s.abs() < 0.0995 => format!("{s:.3}"),
        Some(s) if s.abs() < 9.95 => format!("{s:.2}"),
        Some(s) => format!("{s:.1}"),
    };
    let mut cells = vec![word(&row["node"])];
    cells.extend(
        ["total", "rtt", "upload", "queue", "load", "prefill", "decode", "loadCost"].map(term),
    );
    let mut why = words(&row["why"]);
    if let Some(saved) = seconds["prefixSaves"].as_f64().filter(|s| *s > 0.0) {
        let _ = write!(why, " (saves {saved:.1} s)");
    }
    cells.push(why);
    cells
}

fn about(out: &mut String, node: &Value) {
    let here = if node["here"] == true { ", here" } else { "" };
    let line = match node["state"].is_object() {
        true => work(&node["state"]),
        false => format!("not asked: {}", words(&node["why"])),
    };
    let _ = writeln!(out, "{}{here}   {line}", word(&node["node"]));
    if node["from"].is_object() {
        let _ = writeln!(out, "   {}", sources(&node["from"], &node["state"]));
    }
    for path in list(&node["paths"]) {
        let at = format!("{:<8} {}", word(&path["kind"]), word(&path["addr"]));
        let _ = writeln!(out, "   {at:<40} {}", state(path));
    }
    if node["here"] != true {
        let _ = writeln!(out, "   {:<8} {}", "pin", pin(node));
    }
}

fn work(state: &Value) -> String {
    let loaded = match (state["loaded"] == true, state["loading"] == true) {
        (true, _) => "loaded",
        (false, true) => "loading",
        (false, false) if state["fits"] == true => "not loaded, fits beside what is",
        (false, false) => "not loaded",
    };
    let mut said = vec![loaded.to_owned()];
    said.extend(state["window"].as_u64().map(|w| format!("window {w}")));
    for (field, what) in
        [("running", "running"), ("queued", "waiting"), ("since", "sent there since")]
    {
        said.extend(state[field].as_u64().filter(|n| *n > 0).map(|n| format!("{n} {what}")));
    }
    said.extend(state["slots"].as_u64().map(|n| format!("{n} at a time")));
    if state["onCpu"] == true {
        said.push("no part of it on a GPU".to_owned());
    }
    said.join(", ")
}

/// Where the numbers come from: what was measured here, what the node claims, what is usual.
fn sources(from: &Value, state: &Value) -> String {
    let age = |field: &str| {
        let seconds = state[field].as_f64()?;
        Some(span(Duration::try_from_secs_f64(seconds).ok()?))
    };
    let of = |term: &str| match text(&from[term]).unwrap_or("?") {
        "prior" => "a guess".to_owned(),
        "expected" => "expected by its other models".to_owned(),
        "counted" => "counted from here".to_owned(),
        "claimed" => "claimed".to_owned(),
        "unknown" => "not known".to_owned(),
        other => plain(other).into_owned(),
    };
    let mut said = Vec::new();
    let wait = of("wait");
    said.push(match age("reportSeconds") {
        Some(age) => format!("queue {wait} {age} ago"),
        None => format!("queue {wait}"),
    });
    let measured = age("measuredSeconds").map_or_else(String::new, |age| format!(" {age} ago"));
    let speed = |term: &str| match text(&from[term]) {
        Some("measured") => format!("measured{measured}"),
        _ => of(term),
    };
    let (prompt, answer) = (speed("prefill"), speed("decode"));
    said.push(match prompt == answer {
        true => format!("speeds {prompt}"),
        false => format!("speed of prompts {prompt}, of answers {answer}"),
    });
    for (term, what) in [
        ("load", "of loads"),
        ("length", "length of answers"),
        ("rtt", "way"),
        ("upload", "uplink"),
    ] {
        if text(&from[term]) != Some("here") {
            said.push(format!("{what} {}", of(term)));
        }
    }
    said.join("; ")
}

fn state(path: &Value) -> String {
    let mut said = vec![word(&path["state"])];
    said.extend(text(&path["via"]).map(|via| plain(via).into_owned()));
    if path["state"] == "up" {
        said.extend(path["rttMs"].as_f64().map(millis));
    }
    let mut said = said.join(", ");
    if let Some(why) = text(&path["why"]).filter(|why| !why.is_empty()) {
        let _ = write!(said, ": {}", words(&why.into()));
    }
    match path["lastOkSeconds"].as_u64() {
        Some(age) => said + &format!(" (answered {} ago)", span(Duration::from_secs(age))),
        None => said + " (never answered)",
    }
}

fn pin(node: &Value) -> String {
    let pin = &node["pin"];
    if pin.is_null() {
        return format!("none: {}", words(&node["unpinned"]));
    }
    let confirmed = pin["verifiedSeconds"].as_u64().map_or_else(
        || "never confirmed".to_owned(),
        |age| format!("confirmed {} ago", span(Duration::from_secs(age))),
    );
    let why = text(&pin["why"]).filter(|why| !why.is_empty());
    let why = why.map_or_else(String::new, |why| match pin["state"] == "live" {
        true => format!("; refused here by the local network: {}", words(&why.into())),
        false => format!(": {}", words(&why.into())),
    });
    format!("{}, {confirmed}{why}", word(&pin["state"]))
}

fn word(value: &Value) -> String {
    plain(text(value).unwrap_or("?")).into_owned()
}

/// A sentence, each of its words made inert.
fn words(value: &Value) -> String {
    inert(text(value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Value {
        let path = |kind: &str, addr: &str, state: &str, why: &str, age: Option<u64>| {
            json!({ "kind": kind, "addr": addr, "state": state, "why": why, "rttMs": 4.2,
                    "lastOkSeconds": age, "via": null })
        };
        let peer = |name: &str, why: &str, paths: Vec<Value>| {
            json!({ "name": name, "id": format!("c/{name}"), "kind": "rich", "path": "tailnet",
                    "why": why, "paths": paths })
        };
        json!({
            "node": { "name": "desk" }, "rung": "full", "why": "", "since": "x",
            "peers": [
                peer("gpu", "", vec![
                    path("tailnet", "100.64.0.2:11436", "up", "", Some(1)),
                    path("lan", "192.168.1.7:11436", "standby", "use the tailnet", Some(9)),
                ]),
                peer("nas", "does not answer", vec![
                    path("tailnet", "100.64.0.3:11436", "down", "no connection", Some(720)),
                ]),
                peer("mini", "", vec![]),
                { "name": "ops", "kind": null, "why": "not in sendTo" },
            ],
            "pins": [
                { "id": "c/gpu", "state": "live", "why": "", "verifiedSeconds": 180 },
                { "id": "c/nas", "state": "suspended", "why": "not in the list",
                  "verifiedSeconds": 90_000 },
            ],
        })
    }

    fn row(node: &str, verdict: &str, why: &str, seconds: [f64; 8]) -> Value {
        let [total, rtt, upload, queue, load, prefill, decode, cost] = seconds;
        json!({
            "node": node, "engine": "ollama", "verdict": verdict, "why": why, "chance": 1.0,
            "seconds": { "total": total, "rtt": rtt, "upload": upload, "wait": queue + load,
                "queue": queue, "load": load, "prefill": prefill, "decode": decode,
                "loadCost": cost, "prefixSaves": 0.0 },
            "from": { "rtt": "measured", "upload": "prior", "wait": "claimed",
                "load": "prior", "prefill": "measured", "decode": "measured", "length": "prior" },
            "state": { "loaded": load == 0.0, "loading": false, "onCpu": false, "window": 8192,
                "running": 1, "queued": 0, "since": 0, "slots": 4, "reportSeconds": 1.2,
                "measuredSeconds": 40 },
        })
    }

    fn weighed() -> Value {
        let mut here = row(
            "desk",
            "slower",
            "7.1 s more than gpu",
            [12.4, 0.0, 0.0, 2.0, 5.8, 1.2, 1.4, 2.03],
        );
        here["from"] = json!({ "rtt": "here", "upload": "here", "wait": "here", "load": "measured",
            "prefill": "measured", "decode": "expected", "length": "measured" });
        json!({
            "model": "big:latest", "alias": null, "pinned": null, "usable": 2, "goes": ["gpu"],
            "ask": { "api": "ollama", "promptTokens": 500, "numCtx": null, "preferLocal": 1.0 },
            "candidates": [
                row("gpu", "near", "least time", [5.3, 0.004, 0.01, 0.0, 0.0, 1.25, 4.0, 0.0]),
                here,
            ],
            "others": [{ "node": "nas", "why": "does not answer" }],
        })
    }

    #[test]
    fn each_node_has_its_terms_their_sources_its_paths_and_what_speaks_against_it() {
        let want = "\
big:latest, a prompt of 500 tokens: goes to gpu, which ends it first

NODE  SECONDS    RTT  UPLOAD  QUEUE  LOAD  PROMPT  ANSWER  LOAD COST  WHY
gpu      5.30  0.004   0.010      0     0    1.25    4.00          0  least time
desk     12.4      0       0   2.00  5.80    1.20    1.40       2.03  7.1 s more than gpu
nas         -      -       -      -     -       -       -          -  does not answer

gpu   loaded, window 8192, 1 running, 4 at a time
   queue claimed 1 s ago; speeds measured 40 s ago; of loads a guess; length of answers a guess; way measured; uplink a guess
   tailnet  100.64.0.2:11436                up, 4.2 ms (answered 1 s ago)
   lan      192.168.1.7:11436               standby: use the tailnet (answered 9 s ago)
   pin      live, confirmed 3 min ago

desk, here   not loaded, window 8192, 1 running, 4 at a time
   queue here 1 s ago; speed of prompts measured 40 s ago, of answers expected by its other models; of loads measured; length of answers measured

nas   not asked: does not answer
   tailnet  100.64.0.3:11436                down: no connection (answered 12 min ago)
   pin      suspended, confirmed 1d 1h ago: not in the list

seen and not used: ops (not in sendTo)
";
        assert_eq!(told(&explain(&status(), weighed())), want);
    }

    #[test]
    fn who_goes_where_there_is_room_is_told_so() {
        let mut room = weighed();
        room["goes"] = json!(["desk"]);
        room["candidates"][1]["seconds"]["loadCost"] = json!(-2.9);
        room["candidates"][1]["state"]["fits"] = true.into();
        let text = told(&explain(&status(), room));
        for part in [
            "goes to desk, which has room to load it\n",
            "      -2.90  ",
            "not loaded, fits beside what is, ",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn several_that_are_equal_and_none_at_all_are_said() {
        let mut some = weighed();
        some["goes"] = json!(["gpu", "desk"]);
        some["alias"] = "claude-x:latest".into();
        let text = told(&explain(&status(), some));
        let first = "big:latest (for claude-x:latest), a prompt of 500 tokens: goes to gpu or desk, drawn among them\n";
        assert!(text.starts_with(first), "{text}");
        let none = json!({ "model": "gone:latest", "ask": { "promptTokens": 1 }, "usable": 0 });
        let text = told(&explain(&status(), none));
        let want = "gone:latest, a prompt of 1 token: no node can serve it now\n\nseen and not used: ops (not in sendTo)\n";
        assert_eq!(text, want);
    }

    #[test]
    fn the_steps_of_a_chain_are_told_in_order_with_why_one_is_passed_over() {
        let steps = |first: bool| {
            json!([
                { "step": "anthropic/x", "hosted": true, "open": first, "usdToday": 1.5,
                  "usdBudget": 1.5, "why": (!first).then_some("its budget for today is spent") },
                { "step": "ollama/big:latest", "hosted": false, "open": true, "why": null },
            ])
        };
        let mut some = weighed();
        some["agent"] = "writing".into();
        some["steps"] = steps(false);
        let text = told(&explain(&status(), some.clone()));
        assert!(text.starts_with("big:latest, a prompt of 500 tokens: goes to gpu,"), "{text}");
        let want = "
steps of agents.writing, in order
   anthropic/x                      passed over: its budget for today is spent; 1.50 of 1.50 dollars today
   ollama/big:latest
";
        assert!(text.contains(want), "{text}");
        some["steps"] = steps(true);
        some["steps"][0]["only"] = "it can be asked at /v1/messages".into();
        let text = told(&explain(&status(), some.clone()));
        assert!(text.contains("tokens: goes to anthropic/x\n"), "{text}");
        assert!(text.contains(" it can be asked at /v1/messages only; 1.50 of"), "{text}");
        // A provider behind the mesh is not where it goes, unless no node can.
        let hosted = some["steps"][0].take();
        some["steps"] = json!([some["steps"][1], hosted]);
        assert_eq!(first(&some), None);
        some["usable"] = 0.into();
        assert_eq!(first(&some).map(|step| word(&step["step"])).as_deref(), Some("anthropic/x"));
    }

    #[test]
    fn gaps_are_no_failure_and_names_are_inert() {
        let evil = "\u{1b}]52;c\r\n\u{202e}x";
        let mut odd = weighed();
        odd["others"][0]["why"] = evil.into();
        odd["candidates"][0]["node"] = evil.into();
        odd["goes"][0] = evil.into();
        for (status, weighed) in
            [(json!(null), json!(null)), (status(), odd), (json!([]), weighed())]
        {
            let text = told(&explain(&status, weighed));
            assert!(!text.contains(['\u{1b}', '\r', '\u{202e}']), "{text:?}");
        }
    }

    #[test]
    fn what_is_asked_goes_into_the_query() {
        let args = Args {
            model: "a/b:x@gpu".into(),
            prompt_tokens: 9,
            num_ctx: Some(4096),
            tools: true,
            images: false,
            think: true,
            json: false,
        };
        assert_eq!(
            args.query(),
            "model=a%2Fb%3Ax%40gpu&promptTokens=9&numCtx=4096&tools=1&think=1"
        );
    }
}
