//! `tailherd schema`: the JSON Schema of the configuration, or an example file.

use super::{Context, Failure};
use crate::config;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print a configuration file with every key at its default instead.
    #[arg(long)]
    example: bool,
}

pub(super) fn run(args: Args, context: Context<'_>) -> Result<(), Failure> {
    let text = if args.example { config::example() } else { config::schema() };
    write!(context.out, "{text}")?;
    Ok(())
}
