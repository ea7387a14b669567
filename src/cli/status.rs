//! `tailherd status`: the mesh as this node sees it, on one screen.
//!
//! Made from the status JSON alone, so it shows what any other program could read too.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::table::{Column, Side, table};
use super::{Context, Failure, ask, running};
use crate::telemetry::plain;

/// How many unused nodes are shown before they are only counted.
const SHOWN: usize = 3;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the whole status as JSON.
    #[arg(long)]
    json: bool,
    /// Show every node, also those that are not used.
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(args: Args, context: Context<'_>) -> Result<(), Failure> {
    let status = ask::status(&context.load()?).await?;
    if args.json {
        writeln!(context.out, "{status:#}")?;
    } else {
        write!(context.out, "{}", screen(&status, SystemTime::now(), args.all))?;
    }
    Ok(())
}

fn screen(status: &Value, now: SystemTime, all: bool) -> String {
    let mut out = head(status, now);
    out.push('\n');
    let (used, unused): (Vec<&Value>, Vec<&Value>) =
        list(&status["peers"]).partition(|p| p["kind"].is_string());
    let mut rows = vec![this_row(status)];
    rows.extend(used.iter().map(|peer| peer_row(status, peer)));
    let shown = if all || unused.len() <= SHOWN { unused.len() } else { 0 };
    rows.extend(unused.iter().take(shown).map(|peer| unused_row(status, peer)));
    let columns = [
        Column("NODE", Side::Left),
        Column("OWNER", Side::Left),
        Column("PATH", Side::Left),
        Column("RTT", Side::Right),
        Column("NOW", Side::Left),
        Column("LOADED", Side::Left),
        Column("TOK/S", Side::Right),
    ];
    out.push_str(&table(&columns, &rows));
    out.push_str(&counted(&unused[shown..]));
    let under = running::table(&status["running"]);
    if !under.is_empty() {
        out.push('\n');
        out.push_str(&under);
    }
    let warnings: Vec<&Value> = list(&status["warnings"]).collect();
    if !warnings.is_empty() {
        out.push('\n');
    }
    for warning in warnings {
        // A sentence is longer than a name may be, its words are not.
        let words: String =
            text(warning).unwrap_or_default().split_inclusive(' ').map(plain).collect();
        line(&mut out, format_args!("!  {words}"));
    }
    out
}

fn head(status: &Value, now: SystemTime) -> String {
    let mut out = String::new();
    let name = plain(text(&status["node"]["name"]).unwrap_or("this node")).into_owned();
    let owner = text(&status["node"]["owner"])
        .map_or_else(String::new, |owner| format!(" ({})", short_owner(owner)));
    let up = age(&status["started"], now).map_or_else(String::new, |up| format!("up {}", span(up)));
    let title =
        format!("tailherd {} on {name}{owner}", plain(text(&status["version"]).unwrap_or("?")));
    line(&mut out, format_args!("{title:<78}{up}"));
    line(&mut out, format_args!("mesh     {}", mesh(status, now)));
    if let Some(more) = lost(status) {
        line(&mut out, format_args!("         {more}"));
    }
    let models: Vec<&Value> = list(&status["models"]).collect();
    let here = models
        .iter()
        .filter(|m| list(&m["offers"]).any(|o| o["peer"] == status["node"]["name"]))
        .count();
    let at: Vec<String> =
        list(&status["listen"]).filter_map(text).map(|at| plain(at).into_owned()).collect();
    let at = if at.is_empty() { String::new() } else { format!("{}   ", at.join(" ")) };
    let hosted = hosted(status);
    line(
        &mut out,
        format_args!("apps     {at}{}, {here} here{hosted}", many(models.len(), "model")),
    );
    line(&mut out, format_args!("sharing  {}", sharing(&status["sharing"])));
    out
}

/// The providers that may be asked, and for whom.
fn hosted(status: &Value) -> String {
    let named: Vec<String> = list(&status["hosted"])
        .map(|provider| {
            let chains: Vec<String> = list(&provider["chains"])
                .filter_map(text)
                .map(|chain| format!("\"{}\"", plain(chain)))
                .collect();
            let name = plain(text(&provider["name"]).unwrap_or("?"));
            match chains.as_slice() {
                [] => format!("{name} (by its name only)"),
                [one] => format!("{name} (chain {one} only)"),
                several => format!("{name} (chains {})", several.join(", ")),
            }
        })
        .collect();
    match (named.is_empty(), status["offline"] == true) {
        (true, true) => "   offline".to_owned(),
        (true, false) => String::new(),
        (false, true) => format!("   offline, hosted: {}", named.join(", ")),
        (false, false) => format!("   hosted: {}", named.join(", ")),
    }
}

fn mesh(status: &Value, now: SystemTime) -> String {
    let since = age(&status["since"], now)
        .map_or_else(String::new, |since| format!(" for {}", span(since)));
    let why = text(&status["why"]).filter(|why| !why.is_empty());
    let because = why.map_or_else(String::new, |w| format!(" ({})", plain(&w.replace('_', " "))));
    match (text(&status["rung"]).unwrap_or_default(), why) {
        ("full", _) => format!("whole{since}"),
        ("starting", _) => "starting: looking for nodes".to_owned(),
        ("coordinator_lost", _) => format!("WITHOUT COORDINATOR{since}{because}"),
        ("tailnet_lost", _) => format!("WITHOUT TAILNET{since}{because}"),
        ("alone", Some("no_tailnet")) => "alone: this machine is in no tailnet".to_owned(),
        ("alone", _) => format!("ALONE{since}{because}"),
        (other, _) => plain(other).into_owned(),
    }
}

fn lost(status: &Value) -> Option<String> {
    let live = || list(&status["pins"]).filter(|pin| pin["state"] == "live").count();
    let off = text(&status["lan"]["off"]).filter(|off| !off.is_empty());
    let off = off.map(|off| off.split_inclusive(' ').map(plain).collect::<String>());
    Some(match text(&status["rung"]).unwrap_or_default() {
        "coordinator_lost" => {
            let next = match (off, live()) {
                (Some(off), _) => format!("alone (LAN: {off})"),
                (None, 0) => "alone (nobody pinned)".to_owned(),
                (None, pinned) => format!("LAN ({pinned} pinned)"),
            };
            format!(
                "works: all nodes below   lost: new devices, changed permissions   next: {next}"
            )
        }
        "tailnet_lost" => {
            let by_lan = list(&status["peers"]).filter(|p| p["path"] == "lan").count();
            let by_lan = many(by_lan, "node");
            format!("works: this node, {by_lan} by LAN   lost: the tailnet's tunnels   next: alone")
        }
        "alone" => {
            let lan = off.map_or_else(String::new, |off| format!("   LAN: {off}"));
            format!("works: this node   lost: every other{lan}")
        }
        _ => return None,
    })
}

fn sharing(sharing: &Value) -> String {
    let what = match text(&sharing["accepting"]) {
        Some("all") => "with everybody `access` names",
        Some("mine") => "own devices only",
        Some("none") => "with nobody",
        _ => "not known",
    };
    let unknown: Vec<&str> = list(&sharing["notKnown"]).filter_map(text).collect();
    match text(&sharing["why"]).filter(|why| !why.is_empty()) {
        Some(why) => format!("{what}: {}", plain(why)),
        // Who asks for nothing special does not want to hear what could not be looked at.
        None if sharing["when"] == "idle" && !unknown.is_empty() => {
            let unknown: String = unknown.join(", ").split_inclusive(' ').map(plain).collect();
            format!("{what} (not known here: {unknown})")
        }
        None => what.to_owned(),
    }
}

fn this_row(status: &Value) -> Vec<String> {
    let name = text(&status["node"]["name"]).unwrap_or("-");
    let owner = if status["node"]["owner"].is_string() { "you" } else { "-" };
    let work = Work::of(status, name);
    row([name, owner, "here", "-", &work.now(), &work.loaded(), &work.speed()])
}

fn peer_row(status: &Value, peer: &Value) -> Vec<String> {
    let name = text(&peer["name"]).unwrap_or("?");
    let kind = text(&peer["path"]);
    let used = list(&peer["paths"]).find(|p| p["kind"] == peer["path"] && p["state"] == "up");
    let path = match (kind, peer["kind"] == "bare", used.and_then(|p| text(&p["via"]))) {
        (None, ..) => "-".to_owned(),
        (Some(kind), true, _) => format!("{kind}, plain Ollama"),
        // Of a sidecar: there is no other way to one on the local network.
        (Some("lan"), false, _) => "lan, pinned".to_owned(),
        (Some(kind), false, Some(via)) => format!("{kind}, {via}"),
        (Some(kind), false, None) => kind.to_owned(),
    };
    let rtt = used.and_then(|p| p["rttMs"].as_f64()).map_or_else(|| "-".to_owned(), millis);
    let work = Work::of(status, name);
    let why = text(&peer["why"]).filter(|why| !why.is_empty());
    let now = match (kind, why) {
        (None, why) => why.unwrap_or("does not answer").to_owned(),
        (Some(_), Some(why)) if work.is_idle() => why.to_owned(),
        (Some(_), Some(why)) => format!("{}; {why}", work.now()),
        (Some(_), None) => work.now(),
    };
    row([name, &owner(status, peer), &path, &rtt, &now, &work.loaded(), &work.speed()])
}

fn unused_row(status: &Value, peer: &Value) -> Vec<String> {
    let now = format!("not used: {}", text(&peer["why"]).unwrap_or("not known"));
    row([text(&peer["name"]).unwrap_or("?"), &owner(status, peer), "-", "-", &now, "-", "-"])
}

fn counted(unused: &[&Value]) -> String {
    if unused.is_empty() {
        return String::new();
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for peer in unused {
        let why = text(&peer["why"]).unwrap_or("not known");
        // A command in a reason names the node, which would make every reason another one.
        let name = text(&peer["name"]).filter(|name| name.len() > 1).unwrap_or("\0");
        *reasons.entry(why.replace(&format!(" {name}"), " NAME")).or_default() += 1;
    }
    let reasons: Vec<String> =
        reasons.into_iter().map(|(why, n)| format!("{n} {}", plain(&why))).collect();
    format!("{} more: {}   (tailherd status --all)\n", unused.len(), reasons.join(", "))
}

/// What a node does, summed over its models.
#[derive(Default)]
struct Work {
    running: u64,
    waiting: u64,
    loaded: Vec<String>,
    speed: Option<f64>,
}

impl Work {
    fn of(status: &Value, node: &str) -> Work {
        let mut work = Work::default();
        for model in list(&status["models"]) {
            for offer in list(&model["offers"]).filter(|o| o["peer"] == node) {
                work.running += offer["inflight"].as_u64().unwrap_or(0);
                work.waiting += offer["queued"].as_u64().unwrap_or(0);
                if offer["loaded"] == true {
                    work.loaded.extend(text(&model["name"]).map(str::to_owned));
                    let speed = offer["tokensPerSecond"].as_f64();
                    work.speed = [work.speed, speed].into_iter().flatten().reduce(f64::max);
                }
            }
        }
        work
    }

    fn is_idle(&self) -> bool {
        (self.running, self.waiting) == (0, 0)
    }

    fn now(&self) -> String {
        match (self.running, self.waiting) {
            (0, 0) => "idle".to_owned(),
            (running, 0) => format!("{running} running"),
            (running, waiting) => format!("{running} running, {waiting} waiting"),
        }
    }

    fn loaded(&self) -> String {
        match self.loaded.as_slice() {
            [] => "-".to_owned(),
            [one] => one.clone(),
            [first, more @ ..] => format!("{first} +{}", more.len()),
        }
    }

    fn speed(&self) -> String {
        self.speed.map_or_else(|| "-".to_owned(), |s| format!("{s:.0}"))
    }
}

fn owner(status: &Value, peer: &Value) -> String {
    match text(&peer["owner"]) {
        Some(owner) if peer["owner"] == status["node"]["owner"] && !owner.starts_with("tag:") => {
            "you".to_owned()
        }
        Some(owner) if !owner.is_empty() => short_owner(owner),
        _ => "-".to_owned(),
    }
}

/// `dev@example.com` is `dev@`, as Tailscale shows people.
fn short_owner(owner: &str) -> String {
    let short =
        owner.split_once('@').map_or_else(|| owner.to_owned(), |(who, _)| format!("{who}@"));
    plain(&short).into_owned()
}

pub(super) fn millis(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

pub(super) fn many(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

pub(super) fn span(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min", s / 60),
        3600..86_400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// How long ago an RFC 3339 time in UTC was.
pub(super) fn age(at: &Value, now: SystemTime) -> Option<Duration> {
    let at = text(at)?;
    let digits = |from: usize, to: usize| at.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (digits(0, 4)?, digits(5, 7)?, digits(8, 10)?);
    let (hour, minute, second) = (digits(11, 13)?, digits(14, 16)?, digits(17, 19)?);
    // Days since 1970, by the civil calendar: years begin in March, so that the leap day is last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let seconds = u64::try_from(days * 86_400 + hour * 3600 + minute * 60 + second).ok()?;
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
    Some(now.duration_since(at).unwrap_or_default())
}

fn row(cells: [&str; 7]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(super) fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    let from = out.len();
    // Writing to a String cannot fail.
    let _ = write!(out, "{text}");
    out.truncate(from + out[from..].trim_end().len());
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::events::timestamp;
    use serde_json::json;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_252_000)
    }

    fn ago(seconds: u64) -> String {
        timestamp(now() - Duration::from_secs(seconds))
    }

    fn offer(peer: &str, loaded: bool, inflight: u32, queued: u32, speed: f64) -> Value {
        json!({ "peer": peer, "loaded": loaded, "inflight": inflight, "queued": queued,
                "context": 4096, "tokensPerSecond": speed, "ttftMs": null })
    }

    fn fleet() -> Value {
        json!({
            "version": "0.1.0", "started": ago(3 * 86_400 + 4 * 3600),
            "node": { "name": "macbook", "id": "x", "owner": "me@example.com" },
            "rung": "coordinator_lost", "why": "connection_refused", "since": ago(725),
            "listen": ["127.0.0.1:11434"],
            "hosted": [{ "name": "anthropic", "chains": ["writing"] }],
            "sharing": { "when": "auto", "accepting": "mine", "why": "on battery" },
            "peers": [
                { "name": "gpu", "kind": "rich", "owner": "tag:gpu", "path": "tailnet", "why": "",
                  "paths": [{ "kind": "tailnet", "state": "up", "rttMs": 4.2, "via": "direct" }] },
                { "name": "mini", "kind": "rich", "owner": "tag:nas", "path": "lan",
                  "why": "paused until 18:00",
                  "paths": [{ "kind": "tailnet", "state": "down", "rttMs": 9.0 },
                            { "kind": "lan", "state": "up", "rttMs": 1.04 }] },
                { "name": "nas", "kind": "bare", "owner": "me@example.com", "path": null,
                  "why": "does not answer", "paths": [] },
                { "name": "ops-mac", "kind": null, "owner": "ops@example.com", "path": null,
                  "why": "not in sendTo", "paths": [] },
            ],
            "models": [
                { "name": "gpt-oss:20b", "offers": [offer("gpu", true, 2, 1, 121.3)] },
                { "name": "llama3.3:70b", "offers": [offer("gpu", true, 0, 0, 9.0)] },
                { "name": "qwen3:8b", "offers": [offer("macbook", true, 0, 0, 38.0)] },
            ],
            "pins": [{ "state": "live" }, { "state": "live" }, { "state": "suspended" }],
            "warnings": ["admin.prometheusFile has no effect in this version: the file for Prometheus comes later"],
        })
    }

    #[test]
    fn the_screen_shows_the_fleet() {
        let want = "\
tailherd 0.1.0 on macbook (me@)                                               up 3d 4h
mesh     WITHOUT COORDINATOR for 12 min (connection refused)
         works: all nodes below   lost: new devices, changed permissions   next: LAN (2 pinned)
apps     127.0.0.1:11434   3 models, 1 here   hosted: anthropic (chain \"writing\" only)
sharing  own devices only: on battery

NODE     OWNER    PATH                RTT  NOW                      LOADED          TOK/S
macbook  you      here                  -  idle                     qwen3:8b           38
gpu      tag:gpu  tailnet, direct  4.2 ms  2 running, 1 waiting     gpt-oss:20b +1    121
mini     tag:nas  lan, pinned      1.0 ms  paused until 18:00       -                   -
nas      you      -                     -  does not answer          -                   -
ops-mac  ops@     -                     -  not used: not in sendTo  -                   -

!  admin.prometheusFile has no effect in this version: the file for Prometheus comes later
";
        assert_eq!(screen(&fleet(), now(), false), want);
    }

    #[test]
    fn many_unused_nodes_are_counted_and_all_shows_them() {
        let mut status = fleet();
        status["peers"] = (0..5)
            .map(|i| {
                let why = format!("waits for: tailherd trust accept spare{i}");
                let why = if i == 4 { "not in sendTo" } else { &why };
                json!({ "name": format!("spare{i}"), "kind": null, "owner": "tag:x", "why": why })
            })
            .collect();
        let text = screen(&status, now(), false);
        assert!(
            text.contains(
                "5 more: 1 not in sendTo, 4 waits for: tailherd trust accept NAME   (tailherd"
            ),
            "{text}"
        );
        assert!(!text.contains("spare3"), "{text}");
        let text = screen(&status, now(), true);
        assert!(text.contains("trust accept spare3") && !text.contains("more:"));
    }

    #[test]
    fn who_may_be_asked_outside_the_mesh_is_said() {
        let near = json!({ "name": "near", "chains": [] });
        let far = json!({ "name": "far", "chains": ["defaults", "x"] });
        for (offline, providers, want) in [
            (false, json!([]), ""),
            (true, json!([]), "   offline"),
            (false, json!([far]), "   hosted: far (chains \"defaults\", \"x\")"),
            (true, json!([near]), "   offline, hosted: near (by its name only)"),
        ] {
            assert_eq!(hosted(&json!({ "offline": offline, "hosted": providers })), want);
        }
    }

    #[test]
    fn what_is_shared_is_said_in_words() {
        let idle = |unknown: &[&str]| json!({ "when": "idle", "accepting": "all", "why": "", "notKnown": unknown });
        let paused = json!({ "when": "auto", "accepting": "none", "why": "paused until 18:00" });
        let auto = json!({ "when": "auto", "accepting": "all", "why": "", "notKnown": ["a link"] });
        for (said, expect) in [
            (paused, "with nobody: paused until 18:00"),
            (auto, "with everybody `access` names"),
            (idle(&[]), "with everybody `access` names"),
            (
                idle(&["whether anybody uses it"]),
                "with everybody `access` names (not known here: whether anybody uses it)",
            ),
        ] {
            assert_eq!(sharing(&said), expect);
        }
    }

    #[test]
    fn the_rung_is_said_in_words() {
        for (rung, why, says) in [
            ("full", "", "mesh     whole for 12 min"),
            ("starting", "", "starting"),
            ("tailnet_lost", "daemon_down", "WITHOUT TAILNET for 12 min (daemon down)"),
            ("alone", "no_tailnet", "alone: this machine is in no tailnet"),
            ("alone", "", "ALONE for 12 min"),
        ] {
            let mut status = fleet();
            status["rung"] = rung.into();
            status["why"] = why.into();
            let text = screen(&status, now(), false);
            assert!(text.contains(says), "{says}: {text}");
        }
    }

    #[test]
    fn each_rung_says_what_works_and_what_comes_next() {
        #[track_caller]
        fn check(rung: &str, off: Option<&str>, pins: usize, says: &str) {
            let mut status = fleet();
            status["rung"] = rung.into();
            status["lan"] = json!({ "off": off });
            status["pins"] = vec![json!({ "state": "live" }); pins].into();
            let text = screen(&status, now(), false);
            assert!(text.contains(says), "{says}: {text}");
        }
        check("coordinator_lost", None, 7, "next: LAN (7 pinned)\n");
        check("coordinator_lost", None, 0, "next: alone (nobody pinned)\n");
        check("coordinator_lost", Some("unknown network"), 7, "next: alone (LAN: unknown network)");
        check("tailnet_lost", None, 7, "works: this node, 1 node by LAN   lost: the tailnet's");
        check("alone", Some("unknown network"), 7, "lost: every other   LAN: unknown network\n");
        check("alone", None, 7, "works: this node   lost: every other\n");
        check("full", None, 7, "mesh     whole for 12 min\napps");
    }

    #[test]
    fn names_from_peers_are_inert_and_gaps_are_no_failure() {
        let evil = "x\",__address__=\"evil\u{1b}]52;c\u{202e}\r\n<img>";
        let mut status = fleet();
        for at in
            ["/node/name", "/peers/0/name", "/peers/3/why", "/models/0/name", "/warnings/0", "/why"]
        {
            *status.pointer_mut(at).unwrap() = evil.into();
        }
        status["models"][0]["offers"][0]["peer"] = evil.into();
        let text = screen(&status, now(), true);
        assert!(!text.contains(['\u{1b}', '\u{202e}', '\r']), "{text:?}");
        assert_eq!(text.lines().count(), screen(&fleet(), now(), true).lines().count());
        for status in
            [json!({}), json!(null), json!({ "peers": [{}], "models": [{ "offers": 3 }] })]
        {
            assert!(screen(&status, now(), false).contains("NODE"));
        }
    }

    #[test]
    fn ages() {
        for (seconds, says) in
            [(0, "0 s"), (59, "59 s"), (61, "1 min"), (3660, "1h 1m"), (90_000, "1d 1h")]
        {
            assert_eq!(age(&ago(seconds).into(), now()).map(span).as_deref(), Some(says));
        }
        for odd in
            ["", "2026", "not a time at all, no", "9999-99-99T99:99:99Z", "2026-11-21é08:43:05"]
        {
            let _ = age(&odd.into(), now());
        }
    }
}
