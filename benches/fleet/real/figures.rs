//! What came of a run, beside what the simulator says of the same seeds.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use serde_json::json;

use super::options::Options;
use crate::sim::fleet::Fleet;
use crate::sim::policy::Policy;
use crate::sim::results::{self, Outcome, Sample};

/// How far the two may be apart.
const AGREE: f64 = 0.15;

/// A figure and its name.
type Column = (&'static str, fn(&Outcome) -> f64);

/// One seed's run.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// Requests, those answered, those of them that one engine began and ended once.
    pub(crate) asked: usize,
    pub(crate) answered: usize,
    pub(crate) ended: usize,
    /// Requests that engines began more than once.
    pub(crate) twice: usize,
    pub(crate) errors: BTreeMap<String, usize>,
    /// Of those after the first minutes.
    pub(crate) samples: Vec<Sample>,
    pub(crate) loads: u64,
    pub(crate) moves: f64,
    pub(crate) refusals: f64,
    /// Which part of the machine was busy.
    pub(crate) busy: f64,
}

pub(crate) fn print(
    out: &mut impl Write,
    options: &Options,
    fleet: &Fleet,
    rounds: &[Round],
) -> Result<()> {
    let plan = options.plan();
    let simulated = results::run(fleet, plan, &[Policy::Ours]).remove(0);
    let mut real = Outcome::new(Policy::Ours);
    for round in rounds {
        round.samples.iter().for_each(|sample| real.note(*sample));
        real.ran(round.loads, plan.seconds);
    }
    real.sort();
    let sum = |of: fn(&Round) -> usize| rounds.iter().map(of).sum::<usize>();
    let busy = rounds.iter().map(|r| r.busy).fold(0.0, f64::max);
    let bare = fleet.machines.iter().filter(|m| m.bare).count();
    writeln!(
        out,
        "{} nodes ({bare} bare), load {}, seeds {}..={}, {} min, {} times as fast as real time, \
         machine {:.0} % busy",
        fleet.len(),
        plan.rho,
        plan.seed,
        plan.seed + plan.seeds - 1,
        plan.seconds / 60.0,
        options.scale(),
        100.0 * busy,
    )?;
    let row: [Column; 8] = [
        ("requests", |o| o.requests as f64),
        ("mean s", Outcome::mean),
        ("ttft p50", |o| o.first(0.5)),
        ("ttft p95", |o| o.first(0.95)),
        ("ttft p99", |o| o.first(0.99)),
        ("all p99", |o| o.whole(0.99)),
        ("slo %", |o| 100.0 * o.slo()),
        ("loads/h", Outcome::loads_an_hour),
    ];
    write!(out, "{:12}", "")?;
    row.iter().try_for_each(|(name, _)| write!(out, " {name:>9}"))?;
    writeln!(out)?;
    for (name, of) in [("real", &real), ("simulated", &simulated)] {
        write!(out, "{name:12}")?;
        row.iter().try_for_each(|(_, value)| write!(out, " {:>9.2}", value(of)))?;
        writeln!(out)?;
    }
    write!(out, "{:12}", "ratio")?;
    row.iter().try_for_each(|(_, of)| write!(out, " {:>9.2}", of(&real) / of(&simulated)))?;
    writeln!(out)?;
    let part = |n: f64| 100.0 * n / sum(|r| r.asked).max(1) as f64;
    let moves = part(rounds.iter().map(|r| r.moves).sum());
    let refusals = part(rounds.iter().map(|r| r.refusals).sum());
    let simulated_part = |n: usize| 100.0 * n as f64 / simulated.requests.max(1) as f64;
    writeln!(
        out,
        "moves {moves:.1} % of requests (simulated: {:.1} % moved), refusals {refusals:.1} % \
         (simulated: {:.1} % refused)",
        simulated_part(simulated.moved),
        simulated_part(simulated.refused),
    )?;
    writeln!(
        out,
        "{} requests, {} answered once, {} of them begun and ended once by one engine, \
         {} begun twice",
        sum(|r| r.asked),
        sum(|r| r.answered),
        sum(|r| r.ended),
        sum(|r| r.twice),
    )?;
    for (error, times) in rounds.iter().flat_map(|r| &r.errors) {
        writeln!(out, "{times} failed: {error}")?;
    }
    let ratio = |of: fn(&Outcome) -> f64| of(&real) / of(&simulated);
    let (mean, p95) = (ratio(Outcome::mean), ratio(|o| o.first(0.95)));
    let near = |ratio: f64| (ratio - 1.0).abs() <= AGREE;
    let word = if near(mean) && near(p95) { "agree" } else { "DISAGREE" };
    writeln!(out, "the two {word}: mean {mean:.2}, p95 of the first token {p95:.2} (1 ± {AGREE})")?;
    if options.json() {
        let of = |o: &Outcome| {
            json!({
                "requests": o.requests, "unanswered": o.unanswered, "mean_s": o.mean(),
                "p50_ttft_s": o.first(0.5), "p95_ttft_s": o.first(0.95),
                "p99_ttft_s": o.first(0.99), "p99_s": o.whole(0.99), "slo": o.slo(),
                "loads_per_h": o.loads_an_hour(),
            })
        };
        let object = json!({
            "nodes": fleet.len(), "bare": bare, "rho": plan.rho, "seed": plan.seed,
            "seeds": plan.seeds, "minutes": plan.seconds / 60.0, "scale": options.scale(),
            "busy": busy, "real": of(&real), "simulated": of(&simulated),
            "ratio_mean": mean, "ratio_p95_ttft": p95, "moves_percent": moves,
            "refusals_percent": refusals, "asked": sum(|r| r.asked),
            "answered": sum(|r| r.answered), "begun_and_ended_once": sum(|r| r.ended),
            "begun_twice": sum(|r| r.twice),
        });
        writeln!(out, "{object}")?;
    }
    Ok(())
}
