//! tailherd beside a bare hyper relay, nginx and HAProxy, in one run on one machine.
//!
//! ```sh
//! cargo bench                                   # about two and a half minutes
//! cargo bench -- --rounds 2 --only nginx,tailherd
//! TAILHERD_BIN=/usr/bin/tailherd cargo bench    # another binary than this tree's
//! ```
//!
//! A stand-in engine with fixed answers stands behind all of them; each runs in a process of its
//! own, and the rounds are interleaved, so that what else the machine does meets all alike.
//! Trust the ratios inside one table, not its microseconds. `hypermin` is the bound: hyper's
//! server and hyper-util's client, streaming both ways, and nothing else. nginx and HAProxy are
//! used if they are installed (`apt install nginx haproxy`) and otherwise said to be missing.
//!
//! Only loopback is used, on free ports, and only processes started here are ended.

mod contender;
mod load;
mod proc;
mod roles;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep, timeout};

use contender::{Running, Stage};

/// Small requests of one round, and over how many connections.
const SMALL: (usize, usize) = (6000, 16);
/// Requests a second, and for how long, where latency is measured.
const PACED: (u32, Duration) = (200, Duration::from_millis(1500));
/// Streams at once, and tokens in each: one every 20 ms.
const STREAMS: (usize, usize) = (200, 100);
/// Starts of each program whose first request is timed.
const STARTS: usize = 3;
/// How long a program is left alone before its memory is read.
const IDLE: Duration = Duration::from_secs(2);
/// Longest that one measurement may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The bound all others are compared with.
const BOUND: &str = "hypermin";
/// How much more than the bound tailherd may take: per request, per token.
const GATES: (f64, f64) = (1.6, 1.3);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match args.first().map(String::as_str) {
        Some("--role") => runtime.block_on(roles::run(&args[1..])),
        _ => runtime.block_on(bench(Options::read(&args)?)),
    }
}

struct Options {
    rounds: usize,
    only: Vec<String>,
}

impl Options {
    fn read(args: &[String]) -> Result<Options> {
        let mut options = Options { rounds: 4, only: Vec::new() };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--rounds" => options.rounds = value()?.parse::<usize>()?.clamp(1, 10),
                "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
                _ => bail!("usage: cargo bench -- [--rounds N] [--only nginx,haproxy,tailherd]"),
            }
        }
        Ok(options)
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || name == BOUND || self.only.iter().any(|o| o == name)
    }
}

/// What was measured of one contender, round by round.
#[derive(Default)]
struct Row {
    request_us: Vec<f64>,
    token_us: Vec<f64>,
    /// Of a provider's stream that passes, and of one that is translated.
    hosted_us: Vec<f64>,
    translated_us: Vec<f64>,
    latency_us: Vec<f64>,
    first_ms: Vec<f64>,
    idle_mb: Option<f64>,
    faults: Vec<String>,
}

async fn bench(options: Options) -> Result<()> {
    let mut out = std::io::stdout();
    let began = Instant::now();
    let load_before = proc::load_average();
    let stage = Stage::new().await?;
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    let mut runs: Vec<(&str, Running)> = Vec::new();

    let mut names = Vec::new();
    for name in contender::NAMES.into_iter().filter(|name| options.wants(name)) {
        match stage.missing(name) {
            None => names.push(name),
            Some(why) => writeln!(out, "{name}: left out: {why}")?,
        }
    }
    for start in 0..STARTS {
        for name in &names {
            match start_timed(&stage, name).await {
                Ok((running, took)) => {
                    rows.entry(name).or_default().first_ms.push(took);
                    if start + 1 == STARTS {
                        runs.push((name, running));
                    } else {
                        running.end().await;
                    }
                }
                Err(error) => writeln!(out, "{name}: start {start}: {error:#}")?,
            }
        }
    }
    sleep(IDLE).await;
    for (name, running) in &runs {
        rows.entry(name).or_default().idle_mb = proc::pss_mb(running.pid()).ok();
    }

    for round in 0..options.rounds {
        // Every other round the other way round: nobody is always the first after another.
        let mut order: Vec<(&str, SocketAddr, u32)> =
            vec![("direct", stage.engine(), stage.engine_pid())];
        order.extend(runs.iter().map(|(name, run)| (*name, run.addr(), run.pid())));
        if round % 2 == 1 {
            order.reverse();
        }
        for (name, addr, pid) in order {
            let row = rows.entry(name).or_default();
            if let Err(error) = measure(row, addr, pid).await {
                row.faults.push(format!("round {round}: {error:#}"));
            }
            if name == "tailherd"
                && let Err(error) = hosted(row, addr, pid).await
            {
                row.faults.push(format!("round {round}, hosted: {error:#}"));
            }
        }
        writeln!(out, "round {} of {} done, {:.0?}", round + 1, options.rounds, began.elapsed())?;
    }
    for (_, running) in runs {
        running.end().await;
    }

    writeln!(out, "\n{}", table(&rows))?;
    writeln!(
        out,
        "{}; load average {load_before} before, {} after; {:.0?}; each figure the median of its \
         rounds (lowest to highest).",
        proc::machine(),
        proc::load_average(),
        began.elapsed(),
    )?;
    writeln!(out, "{}", verdict(&rows))?;
    Ok(())
}

/// Starts a contender and waits until it has served a request; milliseconds from its start.
async fn start_timed(stage: &Stage, name: &str) -> Result<(Running, f64)> {
    let began = Instant::now();
    let mut running = stage.start(name).await?;
    let served = async {
        loop {
            if load::once(running.addr()).await.is_ok() {
                return Ok(());
            }
            if let Some(status) = running.exited()? {
                bail!("ended with {status}: {}", running.said());
            }
            sleep(Duration::from_millis(1)).await;
        }
    };
    match timeout(LIMIT, served).await {
        Ok(Ok(())) => Ok((running, began.elapsed().as_secs_f64() * 1e3)),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            let said = running.said();
            running.end().await;
            bail!("served nothing within {LIMIT:?}: {said}")
        }
    }
}

async fn measure(row: &mut Row, addr: SocketAddr, pid: u32) -> Result<()> {
    let before = proc::cpu(pid)?;
    let (total, conns) = SMALL;
    timeout(LIMIT, load::small(addr, conns, total)).await.context("small requests hung")??;
    row.request_us.push(proc::cpu(pid)?.since(before) / total as f64);

    let (rate, during) = PACED;
    let mut took =
        timeout(LIMIT, load::paced(addr, rate, during)).await.context("paced requests hung")??;
    took.sort_unstable();
    let median = took.get(took.len() / 2).context("no paced request was answered")?;
    row.latency_us.push(median.as_secs_f64() * 1e6);

    let before = proc::cpu(pid)?;
    let (streams, tokens) = STREAMS;
    let got = timeout(LIMIT, load::streams(addr, roles::STREAM, streams, tokens))
        .await
        .context("streams hung")??;
    row.token_us.push(proc::cpu(pid)?.since(before) / got as f64);
    Ok(())
}

/// What a provider's token costs: as it comes, and in another dialect.
async fn hosted(row: &mut Row, addr: SocketAddr, pid: u32) -> Result<()> {
    let (streams, tokens) = STREAMS;
    for (stream, into) in
        [(roles::HOSTED, &mut row.hosted_us), (roles::TRANSLATED, &mut row.translated_us)]
    {
        let before = proc::cpu(pid)?;
        let got = timeout(LIMIT, load::streams(addr, stream, streams, tokens)).await;
        let got = got.with_context(|| format!("{} hung", stream.path))??;
        into.push(proc::cpu(pid)?.since(before) / got as f64);
    }
    Ok(())
}

fn table(rows: &BTreeMap<&str, Row>) -> String {
    let mut lines = vec![
        "| | CPU µs/request | ÷ hypermin | CPU µs/token (200 streams × 20 ms) | ÷ hypermin \
         | added p50 µs (200/s) | idle PSS MB | first request ms |"
            .to_owned(),
        "|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    let direct: &[f64] = rows.get("direct").map_or(&[], |row| &row.latency_us);
    for name in std::iter::once("direct").chain(contender::NAMES) {
        let Some(row) = rows.get(name) else { continue };
        let added: Vec<f64> = match name {
            "direct" => row.latency_us.clone(),
            _ => row.latency_us.iter().zip(direct).map(|(a, b)| a - b).collect(),
        };
        let idle = row.idle_mb.map_or("–".to_owned(), |mb| format!("{mb:.1}"));
        lines.push(format!(
            "| {name} | {} | {} | {} | {} | {} | {idle} | {} |",
            spread(&row.request_us, 1),
            ratio(rows, name, |row| &row.request_us),
            spread(&row.token_us, 1),
            ratio(rows, name, |row| &row.token_us),
            spread(&added, 0),
            spread(&row.first_ms, 0),
        ));
    }
    lines.push(String::new());
    lines.push(
        "direct: what the stand-in engine itself takes, and the latency with nothing between; not \
         an addition."
            .to_owned(),
    );
    for (name, row) in rows {
        lines.extend(row.faults.iter().map(|fault| format!("{name}: FAULT in {fault}")));
    }
    lines.join("\n")
}

/// Whether tailherd keeps its promises against the bound.
fn verdict(rows: &BTreeMap<&str, Row>) -> String {
    let Some(row) = rows.get("tailherd").filter(|row| !row.request_us.is_empty()) else {
        return "tailherd: not measured.".to_owned();
    };
    let judge = |what: &str, ratio: Option<f64>, most: f64| match ratio {
        Some(ratio) if ratio <= most => format!("{what} {ratio:.2} ≤ {most} × {BOUND}: kept"),
        Some(ratio) => format!("{what} {ratio:.2} > {most} × {BOUND}: NOT kept"),
        None => format!("{what}: not measured"),
    };
    let bound = rows.get(BOUND);
    let request = bound.and_then(|b| median(&ratios(&row.request_us, &b.request_us)));
    let token = bound.and_then(|b| median(&ratios(&row.token_us, &b.token_us)));
    let translated = median(&ratios(&row.translated_us, &row.hosted_us));
    let translated = translated.map_or("not measured".to_owned(), |ratio| format!("{ratio:.2}"));
    format!(
        "tailherd: {}; {}. A provider's token that is translated, over one that passes: {translated} \
         ({} over {} µs).",
        judge("CPU per request", request, GATES.0),
        judge("CPU per token", token, GATES.1),
        spread(&row.translated_us, 1),
        spread(&row.hosted_us, 1),
    )
}

/// Compared with the bound in the same round, since rounds differ more than programs do.
fn ratio(rows: &BTreeMap<&str, Row>, name: &str, of: impl Fn(&Row) -> &Vec<f64>) -> String {
    let (Some(row), Some(bound)) = (rows.get(name), rows.get(BOUND)) else {
        return "–".to_owned();
    };
    median(&ratios(of(row), of(bound))).map_or("–".to_owned(), |ratio| format!("{ratio:.2}"))
}

fn ratios(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a / b).collect()
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn spread(values: &[f64], digits: usize) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match (sorted.first(), median(values), sorted.last()) {
        (Some(low), Some(mid), Some(high)) => {
            format!("{mid:.digits$} ({low:.digits$}–{high:.digits$})")
        }
        _ => "–".to_owned(),
    }
}
