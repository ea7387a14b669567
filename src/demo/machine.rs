//! What a device of the demo says of itself: its battery, its clock, its use, its link.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::net::{Host, Sockets};
use crate::telemetry::wall;
use crate::types::{LocalTime, Power, Wall};

/// A machine that says what it is told to say. Clones are the same machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// What it runs on; minutes after midnight, and since when it says so.
    says: Arc<Mutex<(Power, u16, Wall)>>,
    host: watch::Sender<Host>,
}

impl Default for Machine {
    /// Plugged in, at noon.
    fn default() -> Machine {
        let says = Arc::new(Mutex::new((Power::Mains, 12 * 60, wall())));
        Machine { says, host: watch::Sender::default() }
    }
}

impl Machine {
    /// It runs on this from now on.
    pub fn runs_on(&self, power: Power) {
        self.says.lock().0 = power;
    }

    /// The clock on its wall says now that it is so many minutes after midnight.
    pub fn is_at(&self, minute: u16) {
        let mut says = self.says.lock();
        let Wall(now) = wall();
        (says.1, says.2) = (minute, Wall(now - now % 60));
    }

    /// It says this of its use, its link and its sleep from now on.
    pub fn says(&self, host: Host) {
        self.host.send_replace(host);
    }

    /// The same ports on this machine.
    pub(super) fn lend(&self, sockets: Sockets) -> Sockets {
        let (power, clock) = (self.says.clone(), self.says.clone());
        sockets
            .with_power(move || power.lock().0)
            .with_local(move |at: Wall| {
                let (_, minute, since) = *clock.lock();
                let minutes = u64::from(minute) + at.since(since).as_secs() / 60;
                let minute = u16::try_from(minutes % 1440).unwrap_or(0);
                LocalTime { year: 2026, month: 11, day: 21, minute }
            })
            .with_host(self.host.subscribe())
    }
}
