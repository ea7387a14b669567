//! What one choice costs.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;
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

/// Measures, and says whether all is within its bound.
pub(crate) fn run(out: &mut impl Write) -> Result<bool> {
    let mut all = true;
    for (peers, bound) in BOUNDS {
        let took = measure(peers).as_secs_f64() * 1e6;
        let word = if took <= bound { "ok" } else { "MISSED" };
        writeln!(
            out,
            "{peers:>3} peers x {MODELS} models: {took:.2} µs a choice (≤ {bound}) {word}"
        )?;
        all &= took <= bound;
    }
    Ok(all)
}

fn measure(peers: usize) -> Duration {
    let models: Vec<Vec<Candidate>> =
        (0..MODELS).map(|m| (0..peers).map(|p| candidate(m, p)).collect()).collect();
    let ask = Ask { prompt_tokens: 1500, ..Ask::default() };
    let mut rng = SmallRng::seed_from_u64(1);
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for i in 0..CHOICES as usize {
            let among = std::hint::black_box(&models[i % MODELS]);
            std::hint::black_box(choose(among, &ask, Moment::from_millis(i as u64), &mut rng));
        }
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
