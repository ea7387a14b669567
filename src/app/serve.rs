//! `tailherd serve`: the program as a service.
//!
//! Starts the [`App`], says what it found, reloads on SIGHUP and on a changed file, and on
//! SIGTERM or SIGINT lets running requests end before it goes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep_until;

use crate::config::{self, Config, Env};
use crate::net::Sockets;
use crate::types::Timing;

use super::control::{self, Control, Order, Said, Wish};
use super::{App, Setup, StartError};

/// How often the file's time is looked at: editors rename files over each other, which
/// watchers of single files miss.
const LOOK_AT_FILE: Duration = Duration::from_secs(2);

/// Runs until a signal ends it.
pub async fn serve(
    config: Config,
    explicit: Option<PathBuf>,
    env: Arc<dyn Env>,
) -> Result<(), StartError> {
    let timing = Timing { drain: config.drain, ..Timing::default() };
    let state = config::state_dir(&*env);
    let file = config.origin.file.clone();
    let app = App::start(Setup {
        config,
        sockets: Sockets::real(),
        timing,
        state: Some(state),
        name: super::state::host_name().unwrap_or_default(),
    })
    .await?;
    for line in app.greeting() {
        tracing::info!("{line}");
    }
    // Nobody to tell is no failure: not every machine has systemd.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let mut control = commands(&*env);
    let mut hangup = signal(SignalKind::hangup()).map_err(StartError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signals)?;
    let mut written = file.as_deref().and_then(modified);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                reload(&app, explicit.as_deref(), &*env);
            }
            Some(order) = next(&mut control) => {
                let said = obey(&app, order.wish, explicit.as_deref(), &*env).await;
                // Whoever gave the order may have left.
                let _ = order.answer.send(said);
            }
            () = sleep_until(app.clock.next(LOOK_AT_FILE)) => {
                let now = file.as_deref().and_then(modified);
                if now.is_some() && now != written {
                    written = now;
                    reload(&app, explicit.as_deref(), &*env);
                }
            }
        }
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!(running = app.running(), "stopping: new requests are refused, running ones end");
    tokio::select! {
        () = app.stop() => {}
        // Asked twice is meant.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn reload(app: &App, explicit: Option<&Path>, env: &dyn Env) -> Said {
    match config::load(explicit, env) {
        Ok(config) => {
            app.reload(config);
            Said::Done("the configuration was read again".to_owned())
        }
        Err(error) => {
            tracing::error!("the configuration is kept as it was: {error}");
            Said::Failed(format!("the configuration is kept as it was: {error}"))
        }
    }
}

/// Opens the socket for commands in the first place that can be had. Without one everything
/// but the commands works.
fn commands(env: &dyn Env) -> Option<Control> {
    let mut wrong = Vec::new();
    for place in control::places(env) {
        match Control::open(&place) {
            Ok(control) => {
                tracing::info!(at = %place.display(), "commands are taken");
                return Some(control);
            }
            Err(error) => wrong.push(error.to_string()),
        }
    }
    tracing::warn!("no socket for commands could be opened: {}", wrong.join("; "));
    None
}

async fn next(control: &mut Option<Control>) -> Option<Order> {
    match control {
        Some(control) => control.next().await,
        None => std::future::pending().await,
    }
}

async fn obey(app: &App, wish: Wish, explicit: Option<&Path>, env: &dyn Env) -> Said {
    match wish {
        Wish::Reload => reload(app, explicit, env),
        wish => app.obey(wish).await,
    }
}

fn modified(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|m| m.modified()).ok()
}
