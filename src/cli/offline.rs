//! `tailherd offline on|off`: whether anything on the internet may be asked.

use clap::ValueEnum;

use super::{Context, Failure, order};
use crate::app::control::Wish;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Nothing beyond this mesh and its networks, or all again that the configuration allows.
    #[arg(value_enum)]
    is: Is,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Is {
    On,
    Off,
}

pub(super) async fn run(args: Args, context: Context<'_>) -> Result<(), Failure> {
    order::must(context, &Wish::Offline { on: args.is == Is::On }).await
}
