//! `tailherd explain MODEL`: who has it, by which paths it is reached, and why it is not.
//!
//! Made from the status JSON alone: what is said here is what the running node knows, and
//! nobody is asked for it.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};

use super::status::{list, many, millis, span, text};
use super::{Context, Failure, ask};
use crate::telemetry::plain;
use crate::types::RequestedModel;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model, as programs ask for it.
    model: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, context: Context<'_>) -> Result<(), Failure> {
    let named = RequestedModel::parse(&args.model);
    let named = named.with_context(|| format!("`{}` is no model's name", plain(&args.model)))?;
    let status = ask::status(&context.load()?).await?;
    let explained = explain(&status, named.key.short());
    if args.json {
        writeln!(context.out, "{explained:#}")?;
    } else {
        write!(context.out, "{}", told(&explained))?;
    }
    match list(&explained["nodes"]).any(|node| node["usable"] == true) {
        true => Ok(()),
        false => Err(anyhow!("no node can serve {} now", explained["model"]).into()),
    }
}

/// Every node that has the model, or had it, with what speaks against each.
fn explain(status: &Value, model: &str) -> Value {
    let named = |row: &&Value| row["name"] == model;
    let living = list(&status["models"]).find(named);
    let lost = list(&status["lostModels"]).find(named);
    let mut nodes: Vec<Value> = Vec::new();
    for offer in living.into_iter().flat_map(|row| list(&row["offers"])) {
        let name = text(&offer["peer"]).unwrap_or("?");
        let why = match (offer["variant"] == true, offer["restsSeconds"].as_u64()) {
            (true, _) => format!("it has other content under this name: ask for {model}@{name}"),
            (_, Some(left)) => format!("rests after failures for {left} s"),
            _ => String::new(),
        };
        let mut row = node(status, name, &why);
        for field in ["loaded", "inflight", "queued", "tokensPerSecond"] {
            row[field] = offer[field].clone();
        }
        nodes.push(row);
    }
    for name in [living, lost].into_iter().flatten().flat_map(|row| list(&row["away"])) {
        let name = text(name).unwrap_or("?");
        if nodes.iter().all(|row| row["name"] != name) {
            let why = match peer(status, name) {
                Some(peer) if !peer["path"].is_string() => text(&peer["why"]).unwrap_or_default(),
                _ => "its engine does not answer",
            };
            nodes.push(node(status, name, why));
        }
    }
    let unused = list(&status["peers"]).filter(|p| p["kind"].is_null());
    json!({
        "model": model,
        "rung": status["rung"], "why": status["why"], "since": status["since"],
        "nodes": nodes,
        "unused": unused.map(|p| json!({ "name": p["name"], "why": p["why"] })).collect::<Vec<_>>(),
    })
}

fn peer<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    list(&status["peers"]).find(|p| p["name"] == name && p["kind"].is_string())
}

fn node(status: &Value, name: &str, why: &str) -> Value {
    let peer = peer(status, name);
    let paths = peer.map_or(Value::Null, |p| p["paths"].clone());
    let id = peer.map(|p| &p["id"]);
    let pin = list(&status["pins"]).find(|pin| Some(&pin["id"]) == id);
    let unpinned = match peer {
        None => "",
        Some(p) if p["kind"] == "bare" => "no sidecar runs there",
        Some(_) => "it has not shown its key over the tailnet yet",
    };
    json!({
        "name": name, "here": status["node"]["name"] == name, "usable": why.is_empty(), "why": why,
        "paths": paths, "pin": pin, "unpinned": unpinned,
    })
}

fn told(explained: &Value) -> String {
    let mut out = String::new();
    let nodes: Vec<&Value> = list(&explained["nodes"]).collect();
    let usable = nodes.iter().filter(|node| node["usable"] == true).count();
    let model = plain(text(&explained["model"]).unwrap_or("?")).into_owned();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{model}: {} can serve it", many(usable, "node"));
    for node in &nodes {
        out.push('\n');
        about(&mut out, node);
    }
    let unused: Vec<String> = list(&explained["unused"])
        .map(|p| format!("{} ({})", word(&p["name"]), words(&p["why"])))
        .collect();
    if usable == 0 && !unused.is_empty() {
        let _ = writeln!(out, "\nseen and not used: {}", unused.join(", "));
    }
    out
}

fn about(out: &mut String, node: &Value) {
    let mut line = match node["usable"] == true {
        true => work(node),
        false => format!("not now: {}", words(&node["why"])),
    };
    if node["here"] == true {
        line.insert_str(0, "here, ");
    }
    let _ = writeln!(out, "{}   {line}", word(&node["name"]));
    for path in list(&node["paths"]) {
        let at = format!("{:<8} {}", word(&path["kind"]), word(&path["addr"]));
        let _ = writeln!(out, "   {at:<40} {}", state(path));
    }
    if node["here"] != true {
        let _ = writeln!(out, "   {:<8} {}", "pin", pin(node));
    }
}

fn work(node: &Value) -> String {
    let mut said = vec![if node["loaded"] == true { "loaded" } else { "not loaded" }.to_owned()];
    for (field, what) in [("inflight", "running"), ("queued", "waiting")] {
        said.extend(node[field].as_u64().filter(|n| *n > 0).map(|n| format!("{n} {what}")));
    }
    said.extend(node["tokensPerSecond"].as_f64().map(|speed| format!("{speed:.0} tokens/s")));
    said.join(", ")
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
    text(value).unwrap_or_default().split_inclusive(' ').map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Value {
        let path = |kind: &str, addr: &str, state: &str, why: &str, age: Option<u64>| {
            json!({ "kind": kind, "addr": addr, "state": state, "why": why, "rttMs": 4.2,
                    "lastOkSeconds": age, "via": null })
        };
        let offer = |peer: &str, variant: bool, rests: Option<u64>| {
            json!({ "peer": peer, "loaded": true, "inflight": 2, "queued": 1, "variant": variant,
                    "restsSeconds": rests, "tokensPerSecond": 121.3 })
        };
        let peer = |name: &str, path: Option<&str>, why: &str, paths: Vec<Value>| {
            json!({ "name": name, "id": format!("c/{name}"), "kind": "rich", "path": path,
                    "why": why, "paths": paths })
        };
        json!({
            "node": { "name": "desk" }, "rung": "full", "why": "", "since": "x",
            "peers": [
                peer("gpu", Some("tailnet"), "", vec![
                    path("tailnet", "100.64.0.2:11436", "up", "", Some(1)),
                    path("lan", "192.168.1.7:11436", "standby", "use the tailnet", Some(9)),
                ]),
                peer("nas", None, "does not answer", vec![
                    path("tailnet", "100.64.0.3:11436", "down", "no connection", Some(720)),
                ]),
                peer("mini", Some("lan"), "", vec![
                    path("lan", "192.168.1.8:11436", "up", "", Some(2)),
                ]),
                peer("old", Some("tailnet"), "", vec![]),
                { "name": "ops", "kind": null, "why": "not in sendTo" },
            ],
            "models": [
                { "name": "big:latest", "away": ["nas", "old"], "offers": [
                    offer("gpu", false, None), offer("mini", true, None),
                    offer("desk", false, Some(12)),
                ] },
            ],
            "lostModels": [{ "name": "gone:latest", "away": ["nas"], "node": "nas" }],
            "pins": [
                { "id": "c/gpu", "state": "live", "why": "", "verifiedSeconds": 180 },
                { "id": "c/nas", "state": "suspended", "why": "not in the list",
                  "verifiedSeconds": 90_000 },
                { "id": "c/mini", "state": "live", "why": "not let in by policy",
                  "verifiedSeconds": null },
            ],
        })
    }

    #[test]
    fn each_candidate_is_shown_with_its_paths_its_pin_and_what_speaks_against_it() {
        let want = "\
big:latest: 1 node can serve it

gpu   loaded, 2 running, 1 waiting, 121 tokens/s
   tailnet  100.64.0.2:11436                up, 4.2 ms (answered 1 s ago)
   lan      192.168.1.7:11436               standby: use the tailnet (answered 9 s ago)
   pin      live, confirmed 3 min ago

mini   not now: it has other content under this name: ask for big:latest@mini
   lan      192.168.1.8:11436               up, 4.2 ms (answered 2 s ago)
   pin      live, never confirmed; refused here by the local network: not let in by policy

desk   here, not now: rests after failures for 12 s

nas   not now: does not answer
   tailnet  100.64.0.3:11436                down: no connection (answered 12 min ago)
   pin      suspended, confirmed 1d 1h ago: not in the list

old   not now: its engine does not answer
   pin      none: it has not shown its key over the tailnet yet
";
        assert_eq!(told(&explain(&status(), "big:latest")), want);
    }

    #[test]
    fn a_model_nobody_serves_names_who_had_it_and_who_is_not_used() {
        let text = told(&explain(&status(), "gone:latest"));
        assert!(text.starts_with("gone:latest: 0 nodes can serve it\n\nnas   not now"), "{text}");
        assert!(text.ends_with("seen and not used: ops (not in sendTo)\n"), "{text}");
        let nobody = explain(&status(), "unheard:latest");
        assert_eq!(list(&nobody["nodes"]).count(), 0);
    }

    #[test]
    fn gaps_are_no_failure_and_names_are_inert() {
        let mut odd = status();
        odd["peers"][1]["why"] = "\u{1b}]52;c\r\n".into();
        for status in [json!(null), json!({ "models": [{ "name": "big:latest" }] }), odd] {
            for model in ["big:latest", "gone:latest"] {
                let text = told(&explain(&status, model));
                assert!(!text.contains(['\u{1b}', '\r']), "{text:?}");
            }
        }
    }
}
