//! A new configuration, while requests run.

use std::sync::Arc;
use std::time::SystemTime;

use crate::config::{Config, Variants};
use crate::directory::{Event, Settings};
use crate::proxy;
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

impl App {
    /// Takes a new configuration over. No request is dropped: those that run keep what they
    /// began with.
    pub fn reload(&self, mut config: Config) {
        config.origin.loaded_at = Some(SystemTime::now());
        let old = Arc::clone(&self.config.borrow());
        if old.listen != config.listen || old.admin_listen != config.admin_listen {
            tracing::warn!("a change of `listen` or `admin.listen` needs a restart");
        }
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let config = Arc::new(config);
        self.settings.store(Arc::new(proxy::Settings::new(Arc::clone(&config))));
        self.gates.set_limit(config.limits.queue);
        let settings = directory_settings(&config, &self.proxy.timing);
        self.directory.send(Event::Settings(settings));
        self.config.send_replace(config);
        tracing::info!("the configuration was read again");
    }
}
