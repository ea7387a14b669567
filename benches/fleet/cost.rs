//! What one choice costs: time, instructions, allocations.
//!
//! Time is the machine's; instructions are the same on each run. valgrind counts them, and
//! allocations, in two runs of this program that differ by so many choices and nothing else.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tailherd::balance::{Ask, Candidate, choose};
use tailherd::types::Moment;
use tokio::time::Instant;

/// Models on each peer: a choice is made among the peers that have one of them.
const MODELS: usize = 30;
/// Peers, and the microseconds that a choice among them may take.
const BOUNDS: [(usize, f64); 3] = [(2, 5.0), (10, 5.0), (50, 25.0)];
/// Choices of one round, and rounds; the best round counts, as nothing makes code faster.
const CHOICES: u32 = 3000;
const ROUNDS: u32 = 20;

/// The word that begins the command line of a run that valgrind counts.
pub(crate) const COUNTED: &str = "--choices";
/// Choices that the two counted runs differ by.
const DIFFER: u32 = 1000;

/// Measures, and says whether all is within its bound.
pub(crate) fn run(out: &mut impl Write) -> Result<bool> {
    let mut all = true;
    for (peers, bound) in BOUNDS {
        let took = measure(peers).as_secs_f64() * 1e6;
        let counted = counted(peers);
        let allocates = counted.as_ref().is_ok_and(|(_, allocations)| *allocations > 0);
        let ok = took <= bound && !allocates;
        let word = if ok { "ok" } else { "MISSED" };
        write!(out, "{peers:>3} peers x {MODELS} models: {took:.2} µs a choice (≤ {bound})")?;
        match counted {
            Ok((instructions, allocations)) => write!(
                out,
                ", {instructions} instructions, {allocations} allocations in {DIFFER} (0)"
            )?,
            Err(error) => write!(out, ", not counted: {error:#}")?,
        }
        writeln!(out, " {word}")?;
        all &= ok;
    }
    Ok(all)
}

/// Makes so many choices among so many peers, for whoever counts.
pub(crate) fn choices(args: &[String]) -> Result<()> {
    let [peers, count] = args else { anyhow::bail!("how many peers, how many choices?") };
    make(&models(peers.parse()?), count.parse()?);
    Ok(())
}

/// Instructions of one choice, and allocations of [`DIFFER`] choices.
fn counted(peers: usize) -> Result<(u64, u64)> {
    let differ = |tool: &[&str], of: &str| -> Result<u64> {
        let many = valgrind(tool, of, peers, 2 * DIFFER)?;
        Ok(many.saturating_sub(valgrind(tool, of, peers, DIFFER)?))
    };
    let cache = ["--tool=cachegrind", "--cachegrind-out-file=/dev/null"];
    let instructions = differ(&cache, "refs:")?;
    let allocations = differ(&["--tool=memcheck"], "total heap usage:")?;
    Ok((instructions / u64::from(DIFFER), allocations))
}

/// What valgrind says: the number after these words.
fn valgrind(tool: &[&str], of: &str, peers: usize, choices: u32) -> Result<u64> {
    let run = Command::new("valgrind")
        .args(tool)
        .arg(std::env::current_exe()?)
        .args([COUNTED, &peers.to_string(), &choices.to_string()])
        .output()
        .context("no valgrind")?;
    let text = String::from_utf8_lossy(&run.stderr).into_owned();
    ensure!(run.status.success(), "valgrind failed: {text}");
    let number = text.lines().find_map(|l| l.split_once(of)?.1.split_whitespace().next());
    let number = number.with_context(|| format!("valgrind says nothing of {of:?}"))?;
    Ok(number.replace(',', "").parse()?)
}

fn models(peers: usize) -> Vec<Vec<Candidate>> {
    (0..MODELS).map(|m| (0..peers).map(|p| candidate(m, p)).collect()).collect()
}

fn make(models: &[Vec<Candidate>], count: u32) {
    let ask = Ask { prompt_tokens: 1500, ..Ask::default() };
    let mut rng = SmallRng::seed_from_u64(1);
    for i in 0..count as usize {
        let among = std::hint::black_box(&models[i % MODELS]);
        std::hint::black_box(choose(among, &ask, Moment::from_millis(i as u64), &mut rng));
    }
}

fn measure(peers: usize) -> Duration {
    let models = models(peers);
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        make(&models, CHOICES);
        best = best.min(began.elapsed() / CHOICES);
    }
    best
}

fn candidate(model: usize, peer: usize) -> Candidate {
    let n = (model * 7 + peer * 3) as u32;
    Candidate {
        index: peer,
        is_local: peer == 0,
        alive: true,
        able: true,
        loaded_ctx: if n.is_multiple_of(3) { 0 } else { 8192 },
        default_ctx: 8192,
        inflight: n % 4,
        queued: n % 2,
        wait: (!n.is_multiple_of(5)).then_some(f64::from(n % 9)),
        since: n % 2,
        slots: 1 + n % 4,
        prefill: 300.0 + f64::from(n % 7) * 400.0,
        decode: 10.0 + f64::from(n % 11) * 10.0,
        load_rate: 1e9,
        out_tokens: 250.0,
        size: 5_000_000_000,
        rtt: f64::from(n % 40) / 1e3,
        ..Candidate::default()
    }
}
