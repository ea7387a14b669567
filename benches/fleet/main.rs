//! The product's choice beside its rivals and beside one who knows everything, in a simulated mesh.
//!
//! ```sh
//! cargo bench --bench fleet                                # six nodes at a load of 0.3
//! cargo bench --bench fleet -- --nodes 12 --seeds 4 --json
//! cargo bench --bench fleet -- --scenario my-machines.json5
//! cargo bench --bench fleet -- --choose-cost               # time and bounds of one choice
//! ```
//!
//! What is simulated and what is the product's own is said in `sim/mod.rs`.

mod cost;
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
    let options = Options::read(&args)?;
    let fleet = options.fleet()?;
    let outcomes = results::run(&fleet, &options.plan, &options.policies);
    print::table(&mut std::io::stdout().lock(), &options, &fleet, &outcomes)
}
