//! `tailherd requests`: who asked for what lately, which node answered, and why that one.
//!
//! Made from what the running node remembers: times, names, numbers, never a prompt. With
//! `--follow` lines come as requests end, until Ctrl-C; a node that is started anew is found
//! again.

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::running::{caller, time};
use super::status::{list, text};
use super::table::{Column, Lines, Side};
use super::{Context, Failure, ask, running};
use crate::api::query::escaped;
use crate::config::Config;
use crate::telemetry::words;

/// How long until a node that does not answer is asked again.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on, and print each request when it has ended.
    #[arg(long, short)]
    follow: bool,
    /// Print JSON: with `--follow` one object a line.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, context: Context<'_>) -> Result<(), Failure> {
    let config = context.load()?;
    let said = ask::requests(&config, "").await?;
    let mut printer = Printer { json: args.json, lines: lines(), out: context.out };
    if !args.follow {
        return printer.all(&said);
    }
    printer.some(&said)?;
    tokio::select! {
        ended = follow(&config, &mut printer, Place::of(&said)) => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// What a follower has: which lines of which run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Place {
    run: String,
    last: u64,
}

impl Place {
    fn of(said: &Value) -> Place {
        Place {
            run: text(&said["run"]).unwrap_or_default().to_owned(),
            last: said["last"].as_u64().unwrap_or(0),
        }
    }

    fn query(&self) -> String {
        format!("after={}&run={}&wait=1", self.last, escaped(&self.run))
    }

    /// What lies between it and what was said, as a remark; `None` = nothing.
    fn gap(&self, said: &Value) -> Option<String> {
        let first = list(&said["requests"]).find_map(|line| line["seq"].as_u64())?;
        let run = text(&said["run"]).unwrap_or_default();
        let missed = match run == self.run {
            true => first.saturating_sub(self.last.saturating_add(1)),
            false => first.saturating_sub(1),
        };
        (missed > 0).then(|| format!("{missed} more have ended meanwhile"))
    }
}

/// Never ends by itself but for an output that takes no more.
async fn follow(
    config: &Config,
    printer: &mut Printer<'_>,
    mut place: Place,
) -> Result<(), Failure> {
    let mut lost = false;
    loop {
        let said = match ask::requests(config, &place.query()).await {
            Ok(said) => said,
            Err(error) => {
                if !std::mem::replace(&mut lost, true) {
                    printer.remark(&format!("{error:#}; waiting for it"))?;
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let after = Place::of(&said);
        let lost = std::mem::take(&mut lost);
        if after.run != place.run {
            printer.remark("tailherd was started anew")?;
        } else if lost {
            printer.remark("tailherd answers again")?;
        }
        if let Some(gap) = place.gap(&said) {
            printer.remark(&gap)?;
        }
        printer.some(&said)?;
        place = after;
    }
}

struct Printer<'a> {
    json: bool,
    lines: Lines,
    out: &'a mut dyn Write,
}

impl Printer<'_> {
    /// All there is, and the end.
    fn all(&mut self, said: &Value) -> Result<(), Failure> {
        if self.json {
            return Ok(writeln!(self.out, "{said:#}")?);
        }
        let under = running::table(&said["running"]);
        let rows: Vec<Vec<String>> = list(&said["requests"]).map(row).collect();
        if rows.is_empty() && under.is_empty() {
            return Ok(writeln!(self.out, "no request has ended since tailherd was started")?);
        }
        if !rows.is_empty() {
            self.out.write_all(self.lines.write(&rows).as_bytes())?;
        }
        if !under.is_empty() {
            let gap = if rows.is_empty() { "" } else { "\n" };
            write!(self.out, "{gap}{under}")?;
        }
        Ok(())
    }

    /// What is new; more follows.
    fn some(&mut self, said: &Value) -> Result<(), Failure> {
        if self.json {
            for line in list(&said["requests"]) {
                writeln!(self.out, "{line}")?;
            }
        } else {
            let rows: Vec<Vec<String>> = list(&said["requests"]).map(row).collect();
            self.out.write_all(self.lines.write(&rows).as_bytes())?;
        }
        Ok(self.out.flush()?)
    }

    /// What is no request.
    fn remark(&mut self, what: &str) -> Result<(), Failure> {
        match self.json {
            true => writeln!(self.out, "{}", json!({ "remark": what }))?,
            false => writeln!(self.out, "-- {}", words(what))?,
        }
        Ok(self.out.flush()?)
    }
}

/// The columns; lines that come later fit under those that came first.
fn lines() -> Lines {
    Lines::new(vec![
        (Column("TIME (UTC)", Side::Left), 0),
        (Column("CALLER", Side::Left), 14),
        (Column("MODEL", Side::Left), 14),
        (Column("NODE", Side::Left), 8),
        (Column("WAIT", Side::Right), 6),
        (Column("FIRST", Side::Right), 6),
        (Column("TOOK", Side::Right), 6),
        (Column("TOKENS", Side::Right), 6),
        (Column("TOK/S", Side::Right), 5),
        (Column("END", Side::Left), 6),
        (Column("WHY", Side::Left), 0),
    ])
}

fn row(line: &Value) -> Vec<String> {
    let number =
        |field: &str| line[field].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
    let named =
        |field: &str| text(&line[field]).filter(|t| !t.is_empty()).unwrap_or("-").to_owned();
    let speed = line["tokensPerSecond"].as_f64();
    vec![
        // `2026-11-21T08:43:05.123Z`: the last 200 are of today.
        text(&line["at"]).and_then(|at| at.get(11..19)).unwrap_or("-").to_owned(),
        caller(line),
        named("model"),
        named("node"),
        time(&line["waitMs"]),
        time(&line["ttftMs"]),
        time(&line["tookMs"]),
        number("tokens"),
        speed.map_or_else(|| "-".to_owned(), |s| format!("{s:.0}")),
        named("outcome").replace('_', " "),
        why(line),
    ]
}

/// Why that node, after what it took to get there.
fn why(line: &Value) -> String {
    let mut said = Vec::new();
    for (field, one, many) in
        [("moves", "moved once", "moves"), ("refusals", "refused once", "refusals")]
    {
        match line[field].as_u64() {
            None | Some(0) => {}
            Some(1) => said.push(one.to_owned()),
            Some(n) => said.push(format!("{n} {many}")),
        }
    }
    said.extend(line["attempts"].as_u64().filter(|n| *n > 1).map(|n| format!("{n} tries")));
    said.extend(text(&line["why"]).filter(|w| !w.is_empty()).map(words));
    said.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seq: u64, model: &str) -> Value {
        json!({
            "seq": seq, "at": "2026-11-21T08:43:05.123Z", "caller": "local", "from": "",
            "client": "openclaw", "api": "ollama", "op": "chat", "model": model, "node": "gpu",
            "waitMs": null, "ttftMs": 412, "tookMs": 8_213, "promptTokens": 300, "tokens": 620,
            "tokensPerSecond": 120.6, "attempts": 1, "moves": 0, "refusals": 0,
            "why": "loaded, 0.40 s; desk would wait 12 s", "outcome": "done",
        })
    }

    fn printed(json: bool, what: impl FnOnce(&mut Printer<'_>) -> Result<(), Failure>) -> String {
        let mut out = Vec::new();
        what(&mut Printer { json, lines: lines(), out: &mut out }).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_request_is_a_line_that_says_who_where_how_long_and_why() {
        let mut theirs = line(2, "llama3.3:70b");
        for (field, value) in [
            ("caller", json!("me@example.com")),
            ("from", json!("macbook")),
            ("node", json!("desk")),
            ("waitMs", json!(1_240)),
            ("tokens", json!(null)),
            ("tokensPerSecond", json!(null)),
            ("outcome", json!("client_cancel")),
            ("attempts", json!(3)),
            ("moves", json!(1)),
            ("refusals", json!(2)),
            ("why", json!("")),
        ] {
            theirs[field] = value;
        }
        let said = json!({ "requests": [line(1, "gpt-oss:20b"), theirs], "running": [] });
        let want = "\
TIME (UTC)  CALLER          MODEL           NODE        WAIT   FIRST    TOOK  TOKENS  TOK/S  END            WHY
08:43:05    openclaw        gpt-oss:20b     gpu            -  0.41 s   8.2 s     620    121  done           loaded, 0.40 s; desk would wait 12 s
08:43:05    me@ (macbook)   llama3.3:70b    desk       1.2 s  0.41 s   8.2 s       -      -  client cancel  moved once; 2 refusals; 3 tries
";
        let text = printed(false, |p| p.all(&said));
        assert_eq!(text, want);
    }

    #[test]
    fn a_follower_prints_the_heading_once_and_later_lines_under_it() {
        let text = printed(false, |p| {
            p.some(&json!({ "requests": [line(1, "a")] }))?;
            p.some(&json!({ "requests": [] }))?;
            p.remark("tailherd \u{1b}[2J answers again")?;
            p.some(&json!({ "requests": [line(2, "b")] }))
        });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), text.matches("TIME").count()), (4, 1), "{text}");
        assert_eq!(lines[1].find("gpu"), lines[3].find("gpu"), "{text}");
        assert_eq!(lines[2], "-- tailherd \\u{1b}[2J answers again");
        let text = printed(true, |p| p.some(&json!({ "requests": [line(1, "a"), line(2, "b")] })));
        let read = |line: &str| serde_json::from_str::<Value>(line).unwrap()["model"].clone();
        assert_eq!(text.lines().map(read).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn what_was_missed_is_said() {
        let place = Place { run: "r1".into(), last: 10 };
        let said = |run: &str, first: u64| json!({ "run": run, "requests": [{ "seq": first }] });
        for (run, first, gap) in [
            ("r1", 11, None),
            ("r1", 15, Some("4 more have ended meanwhile")),
            ("r2", 1, None),
            ("r2", 3, Some("2 more have ended meanwhile")),
        ] {
            assert_eq!(place.gap(&said(run, first)).as_deref(), gap, "{run} {first}");
        }
        assert_eq!(place.gap(&json!({ "requests": [] })), None);
        assert_eq!(place.query(), "after=10&run=r1&wait=1");
    }

    #[test]
    fn nothing_yet_and_gaps_are_no_failure() {
        assert!(printed(false, |p| p.all(&json!({}))).contains("no request"));
        let evil =
            json!({ "requests": [{ "model": "\u{202e}x\u{1b}]", "why": "a \r\n b" }, 7, null] });
        let text = printed(false, |p| p.all(&evil));
        assert!(
            !text.contains(['\u{1b}', '\r', '\u{202e}']) && text.lines().count() == 4,
            "{text:?}"
        );
    }
}
