//! `tailherd check [FILE]`: is this configuration good?

use std::path::PathBuf;

use super::{Context, Failure};
use crate::telemetry::{log, plain};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file; without it the one that would be used.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(super) fn run(args: Args, mut context: Context<'_>) -> Result<(), Failure> {
    context.config = args.file.or(context.config);
    let config = context.load()?;
    log::check(&config.log).map_err(anyhow::Error::from)?;
    let out = context.out;
    match &config.origin.file {
        Some(file) => writeln!(out, "{}: good", file.display())?,
        None => writeln!(out, "no file was found: the defaults are good")?,
    }
    for warning in &config.warnings {
        writeln!(out, "!  {}", plain_long(warning))?;
    }
    Ok(())
}

/// A warning quotes keys of the file and is longer than a name may be.
fn plain_long(text: &str) -> String {
    text.split_inclusive(' ').map(plain).collect()
}
