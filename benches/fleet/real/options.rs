//! The options of a run in real processes: those of the simulator, and a few more.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::drive;
use crate::sim::fleet::Fleet;
use crate::sim::options as simulator;
use crate::sim::results::Plan;
use crate::sim::trace::{self, Lines, Session};

const USAGE: &str = "usage: cargo bench --bench fleet -- --real [OPTIONS]
  --nodes N --scenario FILE --rho LOAD --seed S --seeds N --bare FRACTION --slots1 --json
                          as in the simulator; one seed if not said otherwise
  --minutes M             of the mesh's time (15); the first two are dropped
  --scale N               how many times as fast as real time (5); what a machine can keep up with
  --idle                  instead: what a quiet mesh costs, at real time";

/// What is dropped at the start of a run, in seconds.
const WARM_UP: f64 = 120.0;

/// Real time in which a busy machine has started the processes of a run.
const STARTS: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Options {
    inner: simulator::Options,
    scale: f64,
    pub(crate) idle: bool,
    /// As they were given.
    pub(crate) args: Vec<String>,
}

impl Options {
    pub(crate) fn read(args: &[String]) -> Result<Options> {
        let (mut scale, mut minutes, mut idle) = (5.0, 15.0, false);
        let mut theirs: Vec<String> = Vec::new();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let mut number = || {
                let text = rest.next().with_context(|| format!("{arg} needs a value"))?;
                text.parse::<f64>().with_context(|| format!("{arg} {text}: expected a number"))
            };
            match arg.as_str() {
                "--scale" => scale = number()?,
                "--minutes" => minutes = number()?,
                "--idle" => idle = true,
                "--fault" | "--only" | "--hours" | "--report-interval" => {
                    bail!("{arg} is for the simulator alone\n{USAGE}")
                }
                _ => theirs.push(arg.clone()),
            }
        }
        ensure!((1.0..=100.0).contains(&scale), "--scale: expected 1 to 100");
        if !theirs.iter().any(|arg| arg == "--seeds") {
            theirs.extend(["--seeds".to_owned(), "1".to_owned()]);
        }
        theirs.extend(["--hours".to_owned(), (minutes / 60.0).to_string()]);
        let mut inner = simulator::Options::read(&theirs).context(USAGE)?;
        if !idle {
            // Both begin with nothing in memory: it is not a state to wait for that is compared.
            inner.plan.warm_up = WARM_UP;
        }
        Ok(Options { inner, scale, idle, args: args.to_vec() })
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.inner.plan
    }

    pub(crate) fn json(&self) -> bool {
        self.inner.json
    }

    /// What a quiet mesh costs is measured as it is.
    pub(crate) fn scale(&self) -> f64 {
        if self.idle { 1.0 } else { self.scale }
    }

    /// How long a run may take at most, of real time: all of its seeds, the time for what is not
    /// answered at the end, and that of a busy machine to start its processes.
    pub(crate) fn limit(&self) -> Duration {
        let plan = self.plan();
        let round = plan.seconds + (drive::AFTER + 2 * drive::TOLD).as_secs_f64();
        let real = drive::MEET + STARTS;
        let seeds = plan.seeds as f64;
        Duration::from_secs_f64(seeds * (round / self.scale() + real.as_secs_f64()))
    }

    pub(crate) fn fleet(&self) -> Result<Fleet> {
        self.inner.fleet()
    }

    pub(crate) fn sessions(&self, fleet: &Fleet, seed: u64) -> Vec<Session> {
        let plan = self.plan();
        trace::sessions(fleet, &Lines::new(), plan.rho, seed, plan.seconds)
    }
}
