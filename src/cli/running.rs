//! The requests that run now, as `status` and `requests` show them.

use serde_json::Value;

use super::status::{list, text};
use crate::telemetry::plain;

/// Who asked: a kind of program on this machine, or whose node.
pub(super) fn caller(row: &Value) -> String {
    let named = |field: &str| text(&row[field]).filter(|t| !t.is_empty());
    let who = named("caller").unwrap_or("-");
    match named("from") {
        None if who == "local" => {
            named("client").filter(|c| *c != "other").unwrap_or("local").to_owned()
        }
        None => who.to_owned(),
        Some(node) => {
            // `dev@example.com` is `dev@`, as Tailscale shows people.
            let short = who.split_once('@').map_or(who.to_owned(), |(name, _)| format!("{name}@"));
            format!("{short} ({node})")
        }
    }
}

/// Milliseconds as people read them; `-` if there are none.
pub(super) fn time(ms: &Value) -> String {
    match ms.as_f64().map(|ms| ms / 1e3) {
        None => "-".to_owned(),
        Some(s) if s < 0.995 => format!("{s:.2} s"),
        Some(s) if s < 9.95 => format!("{s:.1} s"),
        Some(s) if s < 119.5 => format!("{s:.0} s"),
        Some(s) => format!("{:.0} min", s / 60.0),
    }
}

/// A line for each request that runs; empty if none does.
pub(super) fn table(rows: &Value) -> String {
    let shown = |row: &Value| {
        let node = text(&row["node"]).filter(|n| !n.is_empty()).unwrap_or("?");
        [
            format!("{} > {node}", caller(row)),
            text(&row["model"]).unwrap_or("?").to_owned(),
            doing(row),
        ]
        .map(|cell| plain(&cell).into_owned())
    };
    let rows: Vec<[String; 3]> = list(rows).map(shown).collect();
    let width = |at: usize| rows.iter().map(|r| r[at].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    rows.iter()
        .map(|[who, model, doing]| format!("{who:<first$}  {model:<second$}  {doing}\n"))
        .collect()
}

fn doing(row: &Value) -> String {
    let left = match row["leftMs"].as_u64() {
        None => String::new(),
        Some(0) => ", longer than expected".to_owned(),
        Some(_) => format!(", about {}", time(&row["leftMs"])),
    };
    let runs = time(&row["runsMs"]);
    match (text(&row["state"]).unwrap_or_default(), row["pieces"].as_u64()) {
        ("streaming", Some(1..)) => format!("streaming {runs}, {} tokens", row["pieces"]),
        ("streaming", _) => format!("answering {runs}"),
        ("loading", _) => format!("waiting {runs} for load{left}"),
        _ => format!("waiting {runs}{left}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_runs_is_said_in_one_line_each() {
        let row = |caller: &str, from: &str, client: &str, node: &str, state: &str, left: Value| {
            json!({ "caller": caller, "from": from, "client": client, "node": node, "model": "m:1b",
                    "state": state, "runsMs": 12_000, "leftMs": left, "pieces": 410 })
        };
        let rows = json!([
            row("local", "", "openclaw", "gpu", "streaming", json!(null)),
            row("local", "", "other", "a100", "loading", json!(25_100)),
            row("dev@example.com", "desk", "sdk", "gpu", "waiting", json!(0)),
            { "caller": "\u{202e}", "state": "waiting" },
        ]);
        let want = "\
openclaw > gpu     m:1b  streaming 12 s, 410 tokens
local > a100       m:1b  waiting 12 s for load, about 25 s
dev@ (desk) > gpu  m:1b  waiting 12 s, longer than expected
\\u{202e} > ?       ?     waiting -
";
        assert_eq!(table(&rows), want);
        assert_eq!(table(&json!([])), "");
    }
}
