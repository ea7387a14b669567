//! Who asks for what, when: sessions of turns, the same for every policy.
//!
//! Lengths are drawn from the slice of the Azure LLM inference trace 2023 in `../traces`.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::fleet::{Fleet, Lengths};

/// The coefficient of variation of the times between sessions.
const VARIATION: f64 = 2.0;
const MOST_TURNS: usize = 8;
/// Seconds that a user thinks, on average.
const THINK: f64 = 30.0;
/// Tokens that a user adds to a conversation, on average.
const ADDED: f64 = 150.0;
/// No conversation grows beyond this.
const LONGEST: f64 = 16_000.0;

#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) start: f64,
    pub(crate) origin: usize,
    pub(crate) model: usize,
    pub(crate) turns: Vec<Turn>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    /// Seconds after the answer to the turn before.
    pub(crate) think: f64,
    /// Tokens of the whole prompt.
    pub(crate) prompt: f64,
    /// Tokens of it that the turn before did not have.
    pub(crate) fresh: f64,
    pub(crate) output: f64,
}

/// Prompt and answer lengths, as they were.
pub(crate) struct Lines {
    conv: Vec<(f64, f64)>,
    code: Vec<(f64, f64)>,
}

impl Lines {
    pub(crate) fn new() -> Lines {
        Lines {
            conv: lines(include_str!("../traces/azure-llm-2023-conv-first4000.csv")),
            code: lines(include_str!("../traces/azure-llm-2023-code-first4000.csv")),
        }
    }

    fn draw(&self, lengths: Lengths, rng: &mut SmallRng) -> (f64, f64) {
        let table = if lengths == Lengths::Code { &self.code } else { &self.conv };
        let (prompt, output) = table[rng.random_range(0..table.len())];
        (prompt, if lengths == Lengths::Embed { 0.0 } else { output })
    }

    fn turns(&self, lengths: Lengths, rng: &mut SmallRng) -> Vec<Turn> {
        let mut turns: Vec<Turn> = Vec::new();
        for _ in 0..rng.random_range(1..=MOST_TURNS) {
            let (drawn, output) = self.draw(lengths, rng);
            let think = exponential(rng) * THINK;
            let added = 1.0 + exponential(rng) * ADDED;
            let turn = match turns.last() {
                Some(last) if lengths != Lengths::Embed => {
                    let prompt = (last.prompt + last.output + added).min(LONGEST);
                    Turn { think, prompt, fresh: added, output }
                }
                _ => Turn { think, prompt: drawn, fresh: drawn, output },
            };
            turns.push(turn);
        }
        turns
    }
}

fn lines(text: &str) -> Vec<(f64, f64)> {
    let number = |part: Option<&str>| part.and_then(|p| p.trim().parse::<f64>().ok());
    text.lines()
        .filter_map(|line| {
            let mut parts = line.split(',').skip(1);
            Some((number(parts.next())?, number(parts.next())?))
        })
        .collect()
}

/// The sessions of `seconds` at this load.
pub(crate) fn sessions(
    fleet: &Fleet,
    lines: &Lines,
    rho: f64,
    seed: u64,
    seconds: f64,
) -> Vec<Session> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let (a_request, turns) = demand(fleet, lines);
    let gap = turns / (rho * a_request);

    // Two branches with balanced means give any variation above 1.
    let square = VARIATION * VARIATION;
    let first = 0.5 * (1.0 + ((square - 1.0) / (square + 1.0)).sqrt());
    let n = fleet.len();
    let mut users: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        users.swap(i, rng.random_range(0..=i));
    }
    let zipf: Vec<f64> = (0..n).map(|rank| 1.0 / (rank + 1) as f64).collect();
    let shares: Vec<f64> = fleet.models.iter().map(|m| m.share).collect();

    let (mut now, mut out) = (0.0, Vec::new());
    loop {
        let branch = if rng.random::<f64>() < first { first } else { 1.0 - first };
        now += exponential(&mut rng) * gap / (2.0 * branch);
        if now >= seconds {
            return out;
        }
        let model = weighted(&shares, &mut rng);
        let turns = lines.turns(fleet.models[model].lengths, &mut rng);
        let origin = users[weighted(&zipf, &mut rng)];
        out.push(Session { start: now, origin, model, turns });
    }
}

/// Requests a second that the fleet could just serve, without loads, each node running what it
/// can hold in the usual mix, with all its slots in use; and turns of a session.
fn demand(fleet: &Fleet, lines: &Lines) -> (f64, f64) {
    let mut rng = SmallRng::seed_from_u64(0);
    let count = 400;
    let mut turns = 0.0;
    // Requests of a session, tokens to read and to write in it, by model.
    let usual: Vec<[f64; 3]> = fleet
        .models
        .iter()
        .map(|model| {
            let mut sum = [0.0; 3];
            for _ in 0..count {
                for turn in lines.turns(model.lengths, &mut rng) {
                    sum = [sum[0] + 1.0, sum[1] + turn.fresh, sum[2] + turn.output];
                }
            }
            sum.map(|x| x / f64::from(count) * model.share)
        })
        .collect();
    let all: f64 = fleet.models.iter().map(|m| m.share).sum();
    turns += usual.iter().map(|u| u[0]).sum::<f64>() / all;
    let capacity = (0..fleet.len()).map(|node| {
        let machine = &fleet.machines[node];
        let beside = f64::from(machine.slots).powf(machine.alpha);
        let (mut requests, mut work) = (0.0, 0.0);
        for (model, [number, read, written]) in usual.iter().enumerate() {
            if fleet.has(node, model) {
                let (prefill, decode) = fleet.rates(node, model);
                requests += number;
                work += read / prefill + written / (decode * beside);
            }
        }
        if work > 0.0 { requests / work } else { 0.0 }
    });
    (capacity.sum(), turns)
}

fn exponential(rng: &mut SmallRng) -> f64 {
    -(1.0 - rng.random::<f64>()).ln()
}

fn weighted(weights: &[f64], rng: &mut SmallRng) -> usize {
    let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
    let found = weights.iter().position(|w| {
        left -= w;
        left < 0.0
    });
    found.unwrap_or(weights.len() - 1)
}
