//! `tailherd demo`: a mesh of three devices in one process, an outage and a failover.

use tokio::signal::unix::{SignalKind, signal};

use super::{Context, Failure};
use crate::demo::{self, tour::Mesh};

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Walk through the tour, check each step, and end: 0 if every promise was kept, else 1.
    #[arg(long)]
    check: bool,
}

pub(super) async fn run(args: Args, context: Context<'_>) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    // Ended by a signal, the mesh is still taken down in order: its folders go with it.
    tokio::select! {
        shown = show(&args, context) => shown.map_err(|error| match error {
            // The reader of our output may leave; that is for the caller to judge.
            demo::Error::Io(error) => Failure::from(error),
            error => Failure::Failed(error.into()),
        }),
        _ = tokio::signal::ctrl_c() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

async fn show(args: &Args, context: Context<'_>) -> Result<(), demo::Error> {
    let out = context.out;
    writeln!(out, "Three devices in this process: laptop, gpu, nas. Nothing leaves it.\n")?;
    let mesh = Mesh::start().await?;
    mesh.tour(out).await?;
    if args.check {
        writeln!(out, "All steps kept their promise.")?;
        return Ok(());
    }
    mesh.urls(out)?;
    out.flush()?;
    std::future::pending().await
}
