//! `tailherd lan allow [--for 8h]`: lets this node show itself on the local network it is on.
//!
//! Without it only networks are used on which a pinned peer was once met directly. The running
//! tailherd is told: it alone knows on which networks this machine is.

use std::time::Duration;

use clap::Subcommand;

use super::{Context, Failure, order};
use crate::app::control::Wish;
use crate::config;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Use the local networks this machine is on now.
    Allow {
        /// For this long only, such as 8h; without it for good.
        #[arg(long = "for", value_name = "TIME", value_parser = config::duration)]
        time: Option<Duration>,
    },
}

pub(super) async fn run(args: Args, context: Context<'_>) -> Result<(), Failure> {
    let What::Allow { time } = args.what;
    order::must(context, &Wish::LanAllow { seconds: time.map(|t| t.as_secs()) }).await
}
