//! When what is known is read from disk, and when it is written back.
//!
//! Files are read once, when the first event speaks of their tailnet. They are written when
//! what they hold changed, at most every `save`; the ages and speeds in them change all the
//! time, so for those alone only every so often. Disk work leaves the runtime's workers alone.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::event::{Rates, Remembered};
use super::saved::{self, Scope};
use super::writer::State;
use crate::balance::claims::Kept;
use crate::telemetry::Clock;
use crate::types::Moment;

/// After so many quiet intervals ages and speeds are worth a write of their own.
const QUIET: u32 = 60;

/// Keeps the state folder in step with what is known.
#[derive(Debug)]
pub(super) struct Keeper {
    folder: Option<PathBuf>,
    clock: Clock,
    every: Duration,
    next: Instant,
    quiet: u32,
    /// Files that were read, with a hash of what was last in them.
    scopes: HashMap<Scope, u64>,
}

impl Keeper {
    pub(super) fn new(folder: Option<PathBuf>, clock: Clock, every: Duration) -> Keeper {
        let every = every.max(Duration::from_millis(10));
        let next = clock.next(every);
        Keeper { folder, clock, every, next, quiet: 0, scopes: HashMap::new() }
    }

    /// When the next look at what changed is due; never without a folder.
    pub(super) async fn due(&self) {
        match self.folder {
            Some(_) => tokio::time::sleep_until(self.next).await,
            None => std::future::pending().await,
        }
    }

    /// Those of `scopes` that were not read yet.
    pub(super) fn unread(&self, scopes: impl Iterator<Item = Scope>) -> HashSet<Scope> {
        scopes.filter(|scope| !self.scopes.contains_key(scope)).collect()
    }

    /// What an earlier run kept.
    pub(super) async fn recall(&mut self, scope: Scope) -> Vec<Remembered> {
        self.scopes.insert(scope.clone(), 0);
        let Some(folder) = self.folder.clone() else { return Vec::new() };
        let read = move || saved::load(&folder, &scope, wall());
        tokio::task::spawn_blocking(read).await.unwrap_or_default()
    }

    /// Writes the files whose content changed; with `all`, every file.
    pub(super) async fn save(&mut self, state: &State, now: Moment, all: bool) {
        self.next = self.clock.next(self.every);
        let Some(folder) = self.folder.clone() else { return };
        self.quiet += 1;
        let all = all || self.quiet >= QUIET;
        if all {
            self.quiet = 0;
        }
        let scopes: Vec<Scope> = self.scopes.keys().cloned().collect();
        for scope in scopes {
            let memory = state.memory(&scope, now);
            let print = print(&memory);
            if !all && self.scopes.get(&scope) == Some(&print) {
                continue;
            }
            let (folder, file) = (folder.clone(), scope.clone());
            let write = move || match saved::encode(&memory, wall()) {
                Ok(bytes) => saved::store(&folder, &file, &bytes),
                Err(error) => Err(error.into()),
            };
            match tokio::task::spawn_blocking(write).await {
                Ok(Ok(())) => {
                    self.scopes.insert(scope, print);
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "what is known of the mesh could not be saved");
                }
                // The runtime is ending.
                Err(_) => return,
            }
        }
    }
}

/// A hash of everything but ages and speeds: of those, which are known at all.
fn print(memory: &[Remembered]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for node in memory {
        let mut plain = Remembered { age: Duration::ZERO, ..node.clone() };
        let known = |value: f64| if value > 0.0 { 1.0 } else { 0.0 };
        for rates in &mut plain.rates {
            let Rates { prefill, decode, load_rate, ttft, per_byte, age, .. } = rates;
            for value in [prefill, decode, load_rate, ttft, per_byte] {
                *value = known(*value);
            }
            *age = Duration::ZERO;
            if let Some(kept) = &mut rates.kept {
                *kept = Kept { floor: known(kept.floor), ..Kept::default() };
            }
        }
        for length in &mut plain.lengths {
            (length.tokens, length.age) = (1.0, Duration::ZERO);
        }
        for uplink in &mut plain.uplinks {
            (uplink.bytes_per_second, uplink.age) = (1.0, Duration::ZERO);
        }
        saved::encode(&[plain], 0).unwrap_or_default().hash(&mut hasher);
    }
    // Never the mark of a file that was only read.
    hasher.finish() | 1
}

/// Seconds since 1970.
fn wall() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs())
}
