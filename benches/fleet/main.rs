//! The product's choice beside its rivals and beside one who knows everything, in a simulated mesh.
//!
//! ```sh
//! cargo bench --bench fleet                                # six nodes at a load of 0.3
//! cargo bench --bench fleet -- --nodes 12 --seeds 4 --json
//! cargo bench --bench fleet -- --scenario my-machines.json5
//! cargo bench --bench fleet -- --choose-cost               # time and bounds of one choice
//! cargo bench --bench fleet -- --real                      # six real sidecars, real sockets
//! cargo bench --bench fleet -- --real --idle --nodes 20    # what a quiet mesh costs
//! ```
//!
//! What is simulated and what is the product's own is said in `sim/mod.rs`, how the same runs in
//! real processes in `real/mod.rs`.

mod cost;
mod real;
mod sim;

use anyhow::Result;
use sim::options::Options;
use sim::{print, results};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if args == ["--choose-cost"] {
        anyhow::ensure!(cost::run(&mut std::io::stdout().lock())?, "a choice costs too much");
        return Ok(());
    }
    if args.first().is_some_and(|arg| arg == cost::COUNTED) {
        return cost::choices(&args[1..]);
    }
    if args.first().is_some_and(|arg| arg == real::PART) {
        return real::part(&args[1..]);
    }
    if args.iter().any(|arg| arg == "--real") {
        let rest: Vec<String> = args.into_iter().filter(|arg| arg != "--real").collect();
        return real::run(&rest, &mut std::io::stdout().lock());
    }
    let options = Options::read(&args)?;
    let fleet = options.fleet()?;
    let outcomes = results::run(&fleet, &options.plan, &options.policies);
    print::table(&mut std::io::stdout().lock(), &options, &fleet, &outcomes)
}
