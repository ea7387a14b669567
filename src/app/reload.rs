//! A new configuration, while requests run.

use std::net::SocketAddr;
use std::sync::Arc;

use std::time::SystemTime;
use tokio::sync::watch;

use crate::config::{Config, Variants};
use crate::directory::{Directory, Event, Settings};
use crate::net::Pool;
use crate::net::home::Homes;
use crate::probe::{ProbeConfig, Probes};
use crate::proxy;
use crate::telemetry::Clock;
use crate::trust::Bounds;
use crate::types::Timing;

use super::App;

/// The part of the configuration that shapes the directory.
pub(super) fn directory_settings(config: &Config, timing: &Timing) -> Settings {
    Settings {
        merge: config.variants == Variants::Merge,
        show: config.models.show.clone(),
        hide: config.models.hide.clone(),
        offline: config.offline,
        linger: timing.linger,
    }
}

/// What looking for engines and peers needs beside the configuration.
pub(super) struct Looking {
    pub(super) ours: watch::Receiver<Vec<SocketAddr>>,
    pub(super) homes: Arc<Homes>,
    pub(super) pool: Pool,
    pub(super) clock: Clock,
}

impl Looking {
    pub(super) fn start(
        &self,
        config: &Config,
        directory: &Arc<Directory>,
        timing: &Timing,
    ) -> Probes {
        let config =
            ProbeConfig::of(config, self.ours.clone(), Arc::clone(&self.homes), timing.clone());
        Probes::start(config, directory, &self.pool, self.clock)
    }
}

/// Whether other places have to be looked at.
fn looks_elsewhere(old: &Config, new: &Config) -> bool {
    old.local != new.local
        || old.ollamas != new.ollamas
        || old.tailnet.ports != new.tailnet.ports
        || old.tailnet.bare_port != new.tailnet.bare_port
}

impl App {
    /// Takes a new configuration over. No request is dropped: those that run keep what they
    /// began with.
    pub fn reload(&self, mut config: Config) {
        config.origin.loaded_at = Some(SystemTime::now());
        self.offline.apply(&mut config);
        self.put_in_force(config);
        tracing::info!("the configuration was read again");
    }

    /// Takes a configuration over as it is.
    pub(super) fn put_in_force(&self, config: Config) {
        let old = Arc::clone(&self.config.borrow());
        if old.listen != config.listen || old.admin_listen != config.admin_listen {
            tracing::warn!("a change of `listen` or `admin.listen` needs a restart");
        }
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let config = Arc::new(config);
        let settings = proxy::Settings::new(Arc::clone(&config));
        settings.chains.said().iter().for_each(|line| tracing::info!("{line}"));
        self.settings.store(Arc::new(settings));
        self.gates.set_limit(config.limits.queue);
        self.trust.set_bounds(Bounds::of(&config));
        let settings = directory_settings(&config, &self.proxy.timing);
        self.directory.send(Event::Settings(settings));
        if looks_elsewhere(&old, &config) {
            let mut probes = self.probes.lock();
            // The old ones first: there is one taker of requests for a look.
            drop(probes.take());
            *probes = Some(self.looking.start(&config, &self.directory, &self.proxy.timing));
        }
        self.config.send_replace(config);
    }
}
