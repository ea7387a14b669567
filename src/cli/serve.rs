//! `tailherd serve`, or `tailherd` alone: be the mesh's door on this machine.

use std::sync::Arc;

use super::{Context, Failure};
use crate::app;
use crate::telemetry::log;

pub(super) async fn run(context: Context<'_>) -> Result<(), Failure> {
    let config = context.load()?;
    log::init(&config.log).map_err(anyhow::Error::from)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    app::serve(config, context.config, Arc::clone(&context.env))
        .await
        .map_err(anyhow::Error::from)?;
    Ok(())
}
