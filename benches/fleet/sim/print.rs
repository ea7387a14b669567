//! The table, and the object in the last line.

use std::io::Write;

use anyhow::Result;
use serde_json::json;

use super::fleet::Fleet;
use super::options::Options;
use super::policy::Policy;
use super::results::Outcome;

pub(crate) fn table(
    out: &mut impl Write,
    options: &Options,
    fleet: &Fleet,
    outcomes: &[Outcome],
) -> Result<()> {
    let plan = &options.plan;
    let bare = fleet.machines.iter().filter(|m| m.bare).count();
    writeln!(
        out,
        "{} nodes ({bare} bare), load {}, reports {}, seeds {}..={}, {} h{}",
        fleet.len(),
        plan.rho,
        plan.report_interval.map_or("of what changed".into(), |s| format!("every {s} s")),
        plan.seed,
        plan.seed + plan.seeds - 1,
        plan.seconds / 3600.0,
        plan.fault.map(|f| format!(", fault {f:?}").to_lowercase()).unwrap_or_default(),
    )?;
    let best = |of: fn(&Outcome) -> f64| {
        let knowing = [Policy::Omniscient, Policy::OmniscientMoves];
        let theirs = outcomes.iter().filter(|o| knowing.contains(&o.policy)).map(of);
        theirs.fold(f64::INFINITY, f64::min)
    };
    let (mean, p99) = (best(Outcome::mean), best(|o| o.first(0.99)));
    writeln!(
        out,
        "{:26} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7} {:>7} {:>6} {:>7} {:>6}",
        "seconds",
        "requests",
        "ttft p50",
        "p95",
        "p99",
        "all p99",
        "mean",
        "÷ omnis.",
        "p99 ÷",
        "slo %",
        "loads/h",
        "moves %",
        "ref. %"
    )?;
    for o in outcomes {
        let part = |n: usize| 100.0 * n as f64 / o.requests.max(1) as f64;
        writeln!(
            out,
            "{:26} {:>8} {:>8.2} {:>8.1} {:>8.1} {:>8.1} {:>8.2} {:>8.3} {:>7.3} {:>7.1} {:>6.1} {:>7.1} {:>6.1}",
            o.policy.name(),
            o.requests,
            o.first(0.5),
            o.first(0.95),
            o.first(0.99),
            o.whole(0.99),
            o.mean(),
            o.mean() / mean,
            o.first(0.99) / p99,
            100.0 * o.slo(),
            o.loads_an_hour(),
            part(o.moves),
            part(o.refusals),
        )?;
    }
    if let Some(o) = outcomes.iter().find(|o| o.unanswered > 0) {
        writeln!(out, "some requests were never answered (first: {})", o.policy.name())?;
    }
    if options.json {
        let ours = outcomes.iter().find(|o| o.policy == Policy::Ours);
        let ratio = |of: fn(&Outcome) -> f64, bound: f64| {
            ours.filter(|_| bound.is_finite()).map(|o| of(o) / bound)
        };
        let policies: Vec<_> = outcomes
            .iter()
            .map(|o| {
                json!({
                    "name": o.policy.name(), "requests": o.requests, "unanswered": o.unanswered,
                    "mean_s": o.mean(), "p50_ttft_s": o.first(0.5), "p95_ttft_s": o.first(0.95),
                    "p99_ttft_s": o.first(0.99), "p99_s": o.whole(0.99),
                    "loads_per_h": o.loads_an_hour(), "slo": o.slo(),
                    "moves": o.moves, "refusals": o.refusals,
                })
            })
            .collect();
        let object = json!({
            "nodes": fleet.len(), "bare": bare, "rho": plan.rho, "seed": plan.seed,
            "seeds": plan.seeds, "report_interval_s": plan.report_interval,
            "ratio_mean": ratio(Outcome::mean, mean),
            "ratio_p99_ttft": ratio(|o| o.first(0.99), p99),
            "policies": policies,
        });
        writeln!(out, "{object}")?;
    }
    Ok(())
}
