//! One real sidecar: the program as it is, on ports that are free.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Result;
use tailherd::app::{App, Setup};
use tailherd::config::{self, FixedEnv};
use tailherd::net::Sockets;
use tailherd::types::{ListenerKind, Power, Timing};

use super::crew;

/// Runs until whoever started it is gone.
pub(crate) async fn run(name: &str, config: &str, state: &str) -> Result<()> {
    let config = config::parse(config, None, &FixedEnv::default())?;
    tailherd::telemetry::log::init(&config.log)?;
    let sockets = Sockets::real()
        .placed(|_, _| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .on_bound(|kind, wanted, actual| {
            let kind = match kind {
                ListenerKind::Apps => "apps",
                ListenerKind::Admin => "admin",
                _ => "mesh",
            };
            // Whoever does not read this has gone, and so does this process.
            let _ = writeln!(std::io::stdout(), "bound {kind} {} {actual}", wanted.port());
        })
        .with_interfaces(Vec::new)
        .with_power(|| Power::Mains);
    let state = PathBuf::from(state);
    let setup = Setup {
        config,
        sockets,
        timing: Timing::default(),
        state: Some(state.clone()),
        name: name.to_owned(),
    };
    let _app = App::start(setup).await?;
    crew::stay().await
}

/// Writes what a sidecar remembers of its own engine from before.
pub(crate) fn remember(folder: &Path, rows: &[tailherd::directory::Rates]) -> Result<()> {
    use tailherd::directory::{Remembered, saved};
    use tailherd::types::{NodeId, NodeKind};
    let own = Remembered {
        node: NodeId::This,
        kind: NodeKind::Rich,
        was_rich: true,
        version: None,
        age: std::time::Duration::ZERO,
        engines: Vec::new(),
        rates: rows.to_vec(),
        lengths: Vec::new(),
        uplinks: Vec::new(),
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let bytes = saved::encode(&[own], now)?;
    Ok(saved::store(folder, &saved::Scope::Here, &bytes)?)
}
