//! Runs of all policies over the same arrivals, and what comes out of them.

use super::fleet::Fleet;
use super::policy::Policy;
use super::trace::{self, Lines};
use super::world::{Fault, Setting, World};

/// What users call prompt: seconds to the first token, and for each token.
const PROMPT: (f64, f64) = (10.0, 0.2);

/// What is to be simulated.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) rho: f64,
    pub(crate) seed: u64,
    pub(crate) seeds: u64,
    pub(crate) report_interval: Option<f64>,
    pub(crate) fault: Option<Fault>,
    /// Which draws among near-equals, over the same arrivals.
    pub(crate) draw: u64,
    /// Simulated seconds, and how many of them are dropped at the start.
    pub(crate) seconds: f64,
    pub(crate) warm_up: f64,
}

/// How one request went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Seconds to the first token and to the end.
    pub(crate) first: f64,
    pub(crate) whole: f64,
    /// Tokens of the answer.
    pub(crate) output: f64,
    pub(crate) answered: bool,
    /// How often it was moved, and refused.
    pub(crate) moves: u32,
    pub(crate) refusals: u32,
}

/// How one policy did.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) policy: Policy,
    pub(crate) requests: usize,
    pub(crate) unanswered: usize,
    /// Seconds, sorted.
    first: Vec<f64>,
    whole: Vec<f64>,
    prompt: usize,
    pub(crate) moves: usize,
    pub(crate) refusals: usize,
    loads: u64,
    hours: f64,
}

impl Outcome {
    pub(crate) fn mean(&self) -> f64 {
        self.whole.iter().sum::<f64>() / self.whole.len().max(1) as f64
    }

    pub(crate) fn first(&self, part: f64) -> f64 {
        quantile(&self.first, part)
    }

    pub(crate) fn whole(&self, part: f64) -> f64 {
        quantile(&self.whole, part)
    }

    pub(crate) fn loads_an_hour(&self) -> f64 {
        self.loads as f64 / self.hours
    }

    /// Part of the requests that were answered as users like it.
    pub(crate) fn slo(&self) -> f64 {
        self.prompt as f64 / self.requests.max(1) as f64
    }
}

fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = (sorted.len() as f64 * part) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// Runs these policies over the same arrivals.
pub(crate) fn run(fleet: &Fleet, plan: &Plan, policies: &[Policy]) -> Vec<Outcome> {
    let lines = Lines::new();
    let mut out: Vec<Outcome> = policies.iter().map(|p| Outcome::new(*p)).collect();
    for seed in plan.seed..plan.seed + plan.seeds {
        let sessions = trace::sessions(fleet, &lines, plan.rho, seed, plan.seconds);
        for outcome in &mut out {
            let setting = Setting {
                policy: outcome.policy,
                seed,
                seconds: plan.seconds,
                report_interval: plan.report_interval,
                fault: plan.fault,
                draw: plan.draw,
            };
            outcome.add(World::new(fleet, &sessions, setting), plan);
        }
    }
    out.iter_mut().for_each(Outcome::sort);
    out
}

impl Outcome {
    pub(crate) fn new(policy: Policy) -> Outcome {
        Outcome {
            policy,
            requests: 0,
            unanswered: 0,
            first: Vec::new(),
            whole: Vec::new(),
            prompt: 0,
            moves: 0,
            refusals: 0,
            loads: 0,
            hours: 0.0,
        }
    }

    fn add(&mut self, world: World<'_>, plan: &Plan) {
        let (requests, loads, last) = world.run();
        for r in requests.iter().filter(|r| r.arrived >= plan.warm_up) {
            // What was never answered waited to the end.
            self.note(Sample {
                first: r.first.unwrap_or(last) - r.arrived,
                whole: r.done.unwrap_or(last) - r.arrived,
                output: r.job.output,
                answered: r.done.is_some(),
                moves: r.tries.moves,
                refusals: r.tries.refusals,
            });
        }
        self.ran(loads, plan.seconds);
    }

    /// Counts one request.
    pub(crate) fn note(&mut self, sample: Sample) {
        let Sample { first, whole, output, answered, moves, refusals } = sample;
        let a_token = (whole - first) / output.max(1.0);
        self.requests += 1;
        self.unanswered += usize::from(!answered);
        self.moves += moves as usize;
        self.refusals += refusals as usize;
        self.prompt += usize::from(first <= PROMPT.0 && a_token <= PROMPT.1);
        self.first.push(first);
        self.whole.push(whole);
    }

    /// Counts the loads of so many seconds.
    pub(crate) fn ran(&mut self, loads: u64, seconds: f64) {
        self.loads += loads;
        self.hours += seconds / 3600.0;
    }

    /// Has to be called when all is counted.
    pub(crate) fn sort(&mut self) {
        self.first.sort_by(f64::total_cmp);
        self.whole.sort_by(f64::total_cmp);
    }
}
