//! What the running node knows of the mesh: the rung, pins, who would refuse whom, and what of
//! its own engines it cannot list.
//!
//! In flows its status, out flow lines. An outage is no fault of this machine and a missing
//! pin costs nothing while the tailnet lives, so none of these is bad.

use std::time::SystemTime;

use serde_json::Value;

use super::{Line, good, note};
use crate::cli::status::{age, list, span, text};
use crate::telemetry::plain;

/// What the status says of the mesh; nothing where nobody runs, or where there is none.
pub(super) fn judge(status: &Value, now: SystemTime) -> Vec<Line> {
    let mut lines: Vec<Line> = rung(status, now).into_iter().collect();
    lines.extend(list(&status["node"]["endpoints"]).filter_map(unlisted));
    lines.extend(unpinned(status));
    for pin in list(&status["pins"]) {
        lines.extend(of_pin(pin));
    }
    for peer in list(&status["peers"]) {
        lines.extend(refuses(peer));
    }
    lines.extend(lan(&status["lan"]));
    lines
}

fn rung(status: &Value, now: SystemTime) -> Option<Line> {
    let since = age(&status["since"], now);
    let since = since.map_or_else(String::new, |since| format!(" for {}", span(since)));
    let why = words(&status["why"]).replace('_', " ");
    let why = if why.is_empty() { why } else { format!(" ({why})") };
    Some(match text(&status["rung"])? {
        "full" => good(format!("the mesh is whole{since}")),
        "starting" => note("tailherd has just started", "ask again in a moment"),
        "coordinator_lost" => note(
            format!("the coordinator does not answer{since}{why}: tunnels that live go on"),
            "nothing here; look at the coordinator (Headscale's host, or status.tailscale.com)",
        ),
        "tailnet_lost" => note(
            format!("the tailnet's tunnels do not work{since}{why}"),
            "tailscale status   (tailherd explain MODEL shows each node's paths)",
        ),
        // In no tailnet: said where tailscaled is looked for.
        "alone" if status["why"] == "no_tailnet" => return None,
        "alone" => note(
            format!("no other node answers{since}{why}"),
            "tailscale status   (tailherd status --all shows who was seen)",
        ),
        _ => return None,
    })
}

/// Models of an engine that nobody can ask for.
fn unlisted(endpoint: &Value) -> Option<Line> {
    let names: Vec<String> = list(&endpoint["unlisted"]).map(words).collect();
    (!names.is_empty()).then(|| {
        note(
            format!(
                "of {} at {} not listed, because no model can be called that here or another is: {}",
                words(&endpoint["kind"]),
                words(&endpoint["url"]),
                names.join(", ")
            ),
            "give it a name of letters, digits, `.`, `-` and `_` (llama-server --alias NAME, vllm \
             --served-model-name NAME)",
        )
    })
}

/// Sidecars whose key is not known: they are gone as soon as the tailnet is.
fn unpinned(status: &Value) -> Option<Line> {
    let pinned = |id: &Value| list(&status["pins"]).any(|pin| pin["id"] == *id);
    let names: Vec<String> = list(&status["peers"])
        .filter(|peer| peer["kind"] == "rich" && !pinned(&peer["id"]))
        .map(|peer| words(&peer["name"]))
        .collect();
    (!names.is_empty()).then(|| {
        note(
            format!(
                "not pinned, so not met on the local network if the tailnet is lost: {}",
                names.join(", ")
            ),
            "a minute over the tailnet, both sides up; else tailherd doctor there, and its \
             version",
        )
    })
}

fn of_pin(pin: &Value) -> Option<Line> {
    let (name, why) = (words(&pin["name"]), words(&pin["why"]));
    if pin["state"] != "live" {
        let state = words(&pin["state"]);
        return Some(note(
            format!("the pin of {name} is {state}: {why}"),
            "tailherd trust list; it comes back by itself once the tailnet vouches for it",
        ));
    }
    if pin["admitted"] == true {
        return (!why.is_empty()).then(|| note(format!("{name}: {why}"), "tailherd trust list"));
    }
    let mend = match &*why {
        "not let in by the tailnet's policy" => {
            "nothing, if that is meant; else let the tailnet's policy open this node's mesh port \
             to it"
        }
        _ => "the tailnet has to be seen again (lan.grantHours, lan.trustDays)",
    };
    Some(note(format!("this node would refuse {name} by the local network: {why}"), mend))
}

/// A peer that does not let this node in.
fn refuses(peer: &Value) -> Option<Line> {
    let name = words(&peer["name"]);
    let ask = || {
        let owner = words(&peer["owner"]);
        let whom = if owner.is_empty() { "whoever runs it".to_owned() } else { owner };
        format!("ask {whom} for a line in its `access` (there: tailherd access)")
    };
    if peer["kind"].is_null() {
        let refused = text(&peer["why"]).is_some_and(|why| why.contains("refuses this node"));
        return refused.then(|| note(format!("{name} refuses this node"), &ask()));
    }
    let path = list(&peer["paths"]).find(|path| {
        path["kind"] == "lan"
            && path["state"] == "down"
            && text(&path["why"]).is_some_and(|why| why.contains("this node in"))
    })?;
    Some(note(
        format!("{name} refuses this node by the local network: {}", words(&path["why"])),
        "tailherd doctor there says why",
    ))
}

fn lan(lan: &Value) -> Vec<Line> {
    let mut lines: Vec<Line> = list(&lan["unknown"])
        .map(|link| {
            note(
                format!(
                    "the network at {} is not known: nothing is said on it",
                    words(&link["device"])
                ),
                "tailherd lan allow, if it is yours; or meet a pinned node there once over the \
                 tailnet",
            )
        })
        .collect();
    if let (Some(off), true) = (text(&lan["off"]), lines.is_empty()) {
        lines.push(note(
            format!("the local network is not used: {}", words(&off.into())),
            "nothing, if that is meant (`lan` in the configuration)",
        ));
    }
    lines
}

/// A sentence, each of its words made inert.
fn words(value: &Value) -> String {
    text(value).unwrap_or_default().split_inclusive(' ').map(plain).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Level;
    use super::*;

    fn lines(status: &Value) -> Vec<String> {
        let lines = judge(status, SystemTime::UNIX_EPOCH);
        assert!(lines.iter().all(|line| line.level != Level::Bad), "an outage is no fault here");
        lines.into_iter().map(|l| format!("{} -> {}", l.text, l.mend.unwrap_or_default())).collect()
    }

    #[track_caller]
    fn says(status: &Value, words: &[&str]) {
        let lines = lines(status);
        let [one] = lines.as_slice() else { panic!("{lines:?}") };
        for word in words {
            assert!(one.contains(word), "{word}: {one}");
        }
    }

    #[test]
    fn the_rung_is_named_with_its_reason_and_its_age() {
        for (rung, why, words) in [
            ("full", "", &["is whole for 0 s"][..]),
            ("coordinator_lost", "not_in_map_poll", &["for 0 s (not in map poll)", "Headscale"]),
            ("tailnet_lost", "daemon_down", &["(daemon down)", "tailherd explain"]),
            ("alone", "no_peer", &["no other node answers", "status --all"]),
        ] {
            says(&json!({ "rung": rung, "why": why, "since": "1970-01-01T00:00:00Z" }), words);
        }
        assert!(lines(&json!({ "rung": "alone", "why": "no_tailnet" })).is_empty());
        assert!(lines(&Value::Null).is_empty());
    }

    #[test]
    fn peers_without_a_pin_and_pins_without_effect_are_named_with_the_reason() {
        says(
            &json!({ "peers": [
                { "name": "gpu", "id": "c/gpu", "kind": "rich" },
                { "name": "nas", "id": "c/nas", "kind": "rich" },
                { "name": "old", "id": "c/old", "kind": "bare" },
            ], "pins": [{ "id": "c/gpu", "state": "live", "admitted": true, "why": "" }] }),
            &["not pinned", ": nas ->", "both sides up"],
        );
        let pin = |state: &str, admitted: bool, why: &str| {
            json!({ "pins": [
                { "name": "gpu", "id": "c/gpu", "state": state, "admitted": admitted, "why": why },
            ] })
        };
        says(&pin("suspended", false, "not in the list"), &["gpu is suspended: not in the list"]);
        says(
            &pin("live", false, "not let in by the tailnet's policy"),
            &["would refuse gpu", "policy open this node's mesh port"],
        );
        says(&pin("live", true, "another key: tailherd trust accept gpu"), &["another key"]);
        assert!(lines(&pin("live", true, "")).is_empty());
    }

    #[test]
    fn what_an_engine_has_and_nobody_can_ask_for_is_named_with_what_names_it() {
        let endpoint = |unlisted: Value| {
            let url = "http://127.0.0.1:8080";
            let odd = json!({ "kind": "llama.cpp", "url": url, "unlisted": unlisted });
            json!({ "node": { "endpoints": [odd, { "kind": "ollama", "url": "", "unlisted": [] }] } })
        };
        says(
            &endpoint(json!(["my model.gguf"])),
            &["llama.cpp at http://127.0.0.1:8080", ": my model.gguf ->", "--alias NAME"],
        );
        assert!(lines(&endpoint(json!([]))).is_empty());
    }

    #[test]
    fn who_refuses_this_node_is_named_with_whom_to_ask() {
        says(
            &json!({ "peers": [
                { "name": "ops", "kind": null, "owner": "ops@x", "why": "it refuses this node" },
                { "name": "tv", "kind": null, "owner": "me@x", "why": "not in sendTo" },
            ] }),
            &["ops refuses this node", "ask ops@x"],
        );
        let why = "policy: it does not let this node in";
        says(
            &json!({ "peers": [{ "name": "nas", "id": "c/nas", "kind": "bare", "paths": [
                { "kind": "lan", "state": "down", "why": why },
            ] }] }),
            &["nas refuses this node by the local network", "tailherd doctor there"],
        );
    }

    #[test]
    fn a_network_that_is_not_known_is_named_with_the_command() {
        says(
            &json!({ "lan": { "unknown": [{ "device": "wlan0" }], "off": "unknown network" } }),
            &["wlan0", "tailherd lan allow"],
        );
        says(&json!({ "lan": { "off": "an exit node is used" } }), &["an exit node is used"]);
        assert!(lines(&json!({ "lan": { "off": null, "links": [{}] } })).is_empty());
    }
}
