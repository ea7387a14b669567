//! The product's choice beside its rivals and beside one who knows everything, in a simulated mesh.
//!
//! ```sh
//! cargo bench --bench fleet                                # six nodes at a load of 0.3
//! cargo bench --bench fleet -- --nodes 12 --seeds 4 --json
//! cargo bench --bench fleet -- --scenario my-machines.json5
//! ```
//!
//! What is simulated and what is the product's own is said in `sim/mod.rs`.

mod sim;

use anyhow::Result;
use sim::options::Options;
use sim::{print, results};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let options = Options::read(&args)?;
    let fleet = options.fleet()?;
    let outcomes = results::run(&fleet, &options.plan, &options.policies);
    print::table(&mut std::io::stdout().lock(), &options, &fleet, &outcomes)
}
