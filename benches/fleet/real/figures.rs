//! What came of a run, beside what the simulator says of the same seeds.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use serde_json::json;

use super::options::Options;
use crate::sim::fleet::Fleet;
use crate::sim::policy::Policy;
use crate::sim::results::{self, Outcome, Plan, Sample};

/// How far the two may be apart.
const AGREE: f64 = 0.15;
/// So often the simulator runs over the same arrivals with other draws among near-equals: one
/// draw alone may be as far from the next as the real run is.
const DRAWS: u64 = 8;

/// A figure and its name.
type Column = (&'static str, fn(&Outcome) -> f64);
/// What stands in a line under such a name.
type Line<'a> = &'a dyn Fn(fn(&Outcome) -> f64) -> f64;

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
    /// Tries that failed, by reason. Nothing ever fails in the simulator.
    pub(crate) failed: BTreeMap<&'static str, f64>,
    /// Which part of the machine was busy, and how many seconds late it was with each request
    /// when it only had to be asked.
    pub(crate) busy: f64,
    pub(crate) late: Vec<f64>,
}

/// A machine that is busier than this is late with everything.
const BUSY: f64 = 0.9;
/// One that is so many seconds late at the p99 stood still now and then.
const LATE: f64 = 0.1;

/// The simulator's figures: of all its draws on average.
struct Mean<'a>(&'a [Outcome]);

impl Mean<'_> {
    fn of(&self, value: impl Fn(&Outcome) -> f64) -> f64 {
        self.0.iter().map(value).sum::<f64>() / self.0.len().max(1) as f64
    }
}

pub(crate) fn print(
    out: &mut impl Write,
    options: &Options,
    fleet: &Fleet,
    rounds: &[Round],
) -> Result<()> {
    let plan = options.plan();
    let draws: Vec<Outcome> = (0..DRAWS)
        .map(|draw| results::run(fleet, &Plan { draw, ..plan.clone() }, &[Policy::Ours]).remove(0))
        .collect();
    let simulated = Mean(&draws);
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
    let lines: [(&str, Line<'_>); 5] = [
        ("real", &|of| of(&real)),
        ("simulated", &|of| simulated.of(of)),
        ("  least", &|of| draws.iter().map(of).fold(f64::INFINITY, f64::min)),
        ("  most", &|of| draws.iter().map(of).fold(0.0, f64::max)),
        ("ratio", &|of| of(&real) / simulated.of(of)),
    ];
    for (name, value) in lines {
        write!(out, "{name:12}")?;
        row.iter().try_for_each(|(_, of)| write!(out, " {:>9.2}", value(*of)))?;
        writeln!(out)?;
    }
    let part = |n: f64| 100.0 * n / sum(|r| r.asked).max(1) as f64;
    let moves = part(rounds.iter().map(|r| r.moves).sum());
    let refusals = part(rounds.iter().map(|r| r.refusals).sum());
    let simulated_part = |of: fn(&Outcome) -> f64| 100.0 * simulated.of(of);
    writeln!(
        out,
        "moves {moves:.1} % of requests (simulated: {:.1} %), refusals {refusals:.1} % \
         (simulated: {:.1} %)",
        simulated_part(|o| o.moves as f64 / o.requests.max(1) as f64),
        simulated_part(|o| o.refusals as f64 / o.requests.max(1) as f64),
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
    for (reason, tries) in rounds.iter().flat_map(|r| &r.failed) {
        writeln!(out, "{tries} tries failed: {reason}")?;
    }
    let mut late: Vec<f64> = rounds.iter().flat_map(|r| r.late.iter().copied()).collect();
    late.sort_by(f64::total_cmp);
    let most_late = late.get(late.len() * 99 / 100).copied().unwrap_or(0.0);
    writeln!(
        out,
        "one step of a request's way, that of its user, was {:.3} s late on average, {most_late:.3} s \
         at the p99: the machine's share in the figures",
        late.iter().sum::<f64>() / late.len().max(1) as f64,
    )?;
    if busy > BUSY || most_late > LATE {
        writeln!(
            out,
            "the machine did not keep up: use a lower --scale, or one that has nothing else to do",
        )?;
    }
    for (error, times) in rounds.iter().flat_map(|r| &r.errors) {
        writeln!(out, "{times} failed: {error}")?;
    }
    let ratio = |of: fn(&Outcome) -> f64| of(&real) / simulated.of(of);
    let (mean, p95) = (ratio(Outcome::mean), ratio(|o| o.first(0.95)));
    let loads = ratio(Outcome::loads_an_hour);
    let near = |ratio: f64| (ratio - 1.0).abs() <= AGREE;
    let word = if near(mean) && near(p95) { "agree" } else { "DISAGREE" };
    writeln!(
        out,
        "the two {word}: mean {mean:.2}, p95 of the first token {p95:.2} (1 ± {AGREE}); loads {loads:.2}",
    )?;
    if options.json() {
        let of = |value: Line<'_>| {
            json!({
                "requests": value(|o| o.requests as f64),
                "unanswered": value(|o| o.unanswered as f64), "mean_s": value(Outcome::mean),
                "p50_ttft_s": value(|o| o.first(0.5)), "p95_ttft_s": value(|o| o.first(0.95)),
                "p99_ttft_s": value(|o| o.first(0.99)), "p99_s": value(|o| o.whole(0.99)),
                "slo": value(Outcome::slo), "loads_per_h": value(Outcome::loads_an_hour),
            })
        };
        let object = json!({
            "nodes": fleet.len(), "bare": bare, "rho": plan.rho, "seed": plan.seed,
            "seeds": plan.seeds, "minutes": plan.seconds / 60.0, "scale": options.scale(),
            "busy": busy, "real": of(&|of| of(&real)), "simulated": of(&|of| simulated.of(of)),
            "ratio_mean": mean, "ratio_p95_ttft": p95, "ratio_loads": loads, "moves_percent": moves,
            "refusals_percent": refusals, "asked": sum(|r| r.asked),
            "answered": sum(|r| r.answered), "begun_and_ended_once": sum(|r| r.ended),
            "begun_twice": sum(|r| r.twice),
        });
        writeln!(out, "{object}")?;
    }
    Ok(())
}
