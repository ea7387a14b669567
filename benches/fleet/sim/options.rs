//! The options on the command line.

use anyhow::{Context, Result, bail, ensure};

use super::fleet::{self, Fleet};
use super::policy::Policy;
use super::results::Plan;
use super::world::Fault;

const USAGE: &str = "usage: cargo bench --bench fleet -- [OPTIONS]
  --nodes N               of the built-in fleet (6)
  --scenario FILE         machines, models and links from a JSON5 file instead
  --rho LOAD              offered work by capacity (0.3)
  --seed S --seeds N      first seed (1), how many (4)
  --report-interval SECS  a node reports at this pace (as the program does: what changed,
                          at most four times a second)
  --bare FRACTION         of the nodes that run nothing but Ollama (0)
  --slots1                one request at a time on every machine
  --fault slow|blackhole  the fastest node is slow for 15 or gone for 5 minutes
  --hours H               simulated (2); the first ten minutes are dropped
  --only NAME,NAME        only these policies
  --choose-cost           alone: what one choice costs
  --json                  one JSON object in the last line";

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) plan: Plan,
    pub(crate) policies: Vec<Policy>,
    pub(crate) json: bool,
    nodes: usize,
    scenario: Option<String>,
    bare: f64,
    slots1: bool,
}

impl Options {
    pub(crate) fn read(args: &[String]) -> Result<Options> {
        let plan = Plan {
            rho: 0.3,
            seed: 1,
            seeds: 4,
            report_interval: None,
            fault: None,
            draw: 0,
            seconds: 7200.0,
            warm_up: 600.0,
        };
        let mut o = Options {
            plan,
            policies: Policy::ALL.to_vec(),
            json: false,
            nodes: 6,
            scenario: None,
            bare: 0.0,
            slots1: false,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            let number = |text: &String| {
                text.parse::<f64>().with_context(|| format!("{arg} {text}: expected a number"))
            };
            match arg.as_str() {
                "--nodes" => o.nodes = number(value()?)? as usize,
                "--rho" => o.plan.rho = number(value()?)?,
                "--seed" => o.plan.seed = number(value()?)? as u64,
                "--seeds" => o.plan.seeds = number(value()?)? as u64,
                "--report-interval" => o.plan.report_interval = Some(number(value()?)?),
                "--bare" => o.bare = number(value()?)?,
                "--hours" => o.plan.seconds = number(value()?)? * 3600.0,
                "--scenario" => o.scenario = Some(value()?.clone()),
                "--slots1" => o.slots1 = true,
                "--json" => o.json = true,
                "--fault" => {
                    o.plan.fault = Some(match value()?.as_str() {
                        "slow" => Fault::Slow,
                        "blackhole" => Fault::Blackhole,
                        other => bail!("--fault {other}: expected slow or blackhole"),
                    });
                }
                "--only" => o.policies = policies(value()?)?,
                _ => bail!("{arg} is no option\n{USAGE}"),
            }
        }
        ensure!((1..=500).contains(&o.nodes), "--nodes: expected 1 to 500");
        ensure!(o.plan.rho > 0.0 && o.plan.rho <= 2.0, "--rho: expected 0 to 2");
        ensure!(
            o.plan.report_interval.is_none_or(|s| s >= 0.1),
            "--report-interval: expected at least 0.1"
        );
        ensure!((0.0..=1.0).contains(&o.bare), "--bare: expected 0 to 1");
        ensure!((1..=1000).contains(&o.plan.seeds), "--seeds: expected 1 to 1000");
        ensure!(o.plan.seconds > o.plan.warm_up, "--hours: expected more than ten minutes");
        Ok(o)
    }

    pub(crate) fn fleet(&self) -> Result<Fleet> {
        let mut fleet = match &self.scenario {
            Some(path) => fleet::from_file(path)?,
            None => Fleet::usual(self.nodes),
        };
        fleet.bare(self.bare);
        if self.slots1 {
            fleet.slots1();
        }
        Ok(fleet)
    }
}

fn policies(text: &str) -> Result<Vec<Policy>> {
    let find = |name: &str| {
        Policy::ALL.into_iter().find(|p| p.name() == name).with_context(|| {
            let known = Policy::ALL.map(Policy::name).join(", ");
            format!("there is no policy {name:?}; there are {known}")
        })
    };
    text.split(',').map(find).collect()
}
