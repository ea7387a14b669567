//! The scheduler of a stand-in engine: which models are in memory, who waits for what.
//!
//! It behaves as Ollama 0.32 was measured to: requests for a loaded model wait first come,
//! first served, on that model's slots and are never refused; requests that need a load wait
//! in one line in which newcomers for a loaded model overtake; a client that goes away while
//! its model loads aborts that load; a different `num_ctx` (or another runner option, or
//! `shift`) reloads; the model with the shortest `keep_alive` is thrown out first, then by
//! the name of its blob.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::fault::Faults;
use super::seen::Notes;
use super::spec::{EngineSpec, ModelSpec};

/// Options that belong to the engine process: another value means a restart of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct RunnerOptions {
    pub(super) num_ctx: u64,
    pub(super) shift: bool,
    pub(super) other: BTreeMap<String, String>,
}

/// How long a model stays after its last request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Keep {
    For(Duration),
    Forever,
}

impl Keep {
    const UNLOAD: Keep = Keep::For(Duration::ZERO);
}

/// Too many requests wait for a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Busy;

/// A model in memory, as `/api/ps` shows it.
#[derive(Debug, Clone)]
pub(super) struct Loaded {
    pub(super) model: ModelSpec,
    pub(super) num_ctx: u64,
    /// `None` = for ever.
    pub(super) expires_in: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct Scheduler {
    runners: Mutex<Vec<Runner>>,
    /// The line of requests that need a load. Tokio's mutex is first come, first served.
    line: tokio::sync::Mutex<()>,
    in_line: Mutex<usize>,
    changed: Notify,
    notes: Arc<Notes>,
    faults: Arc<Faults>,
    max_loaded: usize,
    max_queue: usize,
    num_parallel: usize,
    keep_alive: Duration,
    load: Duration,
}

#[derive(Debug)]
struct Runner {
    id: u64,
    model: ModelSpec,
    options: RunnerOptions,
    keep: Keep,
    refs: usize,
    idle_since: Instant,
    ready: bool,
    slots: Arc<Semaphore>,
}

impl Runner {
    fn fits(&self, model: &ModelSpec, options: &RunnerOptions) -> bool {
        self.ready && self.model.weights == model.weights && self.options == *options
    }

    fn expired(&self) -> bool {
        let gone = |keep: Duration| self.idle_since.elapsed() >= keep;
        self.ready && self.refs == 0 && matches!(self.keep, Keep::For(d) if gone(d))
    }
}

impl Scheduler {
    pub(super) fn new(spec: &EngineSpec, notes: Arc<Notes>, faults: Arc<Faults>) -> Arc<Self> {
        Arc::new(Scheduler {
            runners: Mutex::default(),
            line: tokio::sync::Mutex::new(()),
            in_line: Mutex::new(0),
            changed: Notify::new(),
            notes,
            faults,
            max_loaded: spec.max_loaded.max(1),
            max_queue: spec.max_queue,
            num_parallel: spec.num_parallel.max(1),
            keep_alive: spec.keep_alive,
            load: spec.load,
        })
    }

    /// Gets hold of a runner for this model, loading it if need be. Dropping the future
    /// leaves the line, or aborts the load.
    pub(super) async fn hold(
        self: &Arc<Self>,
        model: &ModelSpec,
        options: &RunnerOptions,
        keep: Option<Keep>,
    ) -> Result<Held, Busy> {
        let begun = Instant::now();
        if let Some(held) = self.take(model, options, keep, begun) {
            return Ok(held);
        }
        let _place = Place::new(self)?;
        let _front = self.line.lock().await;
        loop {
            if let Some(held) = self.take(model, options, keep, begun) {
                return Ok(held);
            }
            // Registered before the look, so that no change falls in between.
            let changed = self.changed.notified();
            if self.make_room(model) {
                break;
            }
            changed.await;
        }
        let load = Load::begin(self, model, options, keep);
        tokio::time::sleep(self.faults.pace(self.load)).await;
        self.faults.frozen.thawed().await;
        Ok(Held {
            scheduler: self.clone(),
            runner: load.id,
            slots: load.finish(),
            load: begun.elapsed(),
        })
    }

    /// Throws an idle runner of this model out; one that works goes when its work is done.
    pub(super) fn unload(&self, model: &ModelSpec) {
        for runner in self.runners.lock().iter_mut().filter(|r| r.model.weights == model.weights) {
            runner.keep = Keep::UNLOAD;
        }
        self.sweep();
    }

    /// The models in memory, the one that leaves last first.
    pub(super) fn loaded(&self) -> Vec<Loaded> {
        self.sweep();
        let mut rows: Vec<Loaded> = self
            .runners
            .lock()
            .iter()
            .filter(|r| r.ready)
            .map(|r| Loaded {
                model: r.model.clone(),
                num_ctx: r.options.num_ctx.min(r.model.context),
                expires_in: match r.keep {
                    Keep::Forever => None,
                    Keep::For(d) => Some(d.saturating_sub(if r.refs == 0 {
                        r.idle_since.elapsed()
                    } else {
                        Duration::ZERO
                    })),
                },
            })
            .collect();
        rows.sort_by_key(|r| std::cmp::Reverse(r.expires_in.unwrap_or(Duration::MAX)));
        rows
    }

    /// Forgets everything: the process has died.
    pub(super) fn clear(&self) {
        self.runners.lock().clear();
        self.changed.notify_waiters();
    }

    fn sweep(&self) {
        self.runners.lock().retain(|r| !r.expired());
    }

    fn take(
        self: &Arc<Self>,
        model: &ModelSpec,
        options: &RunnerOptions,
        keep: Option<Keep>,
        begun: Instant,
    ) -> Option<Held> {
        self.sweep();
        let mut runners = self.runners.lock();
        let runner = runners.iter_mut().find(|r| r.fits(model, options))?;
        runner.refs += 1;
        if let Some(keep) = keep {
            // Sticks to the runner until another request says otherwise.
            runner.keep = keep;
        }
        Some(Held {
            scheduler: self.clone(),
            runner: runner.id,
            slots: runner.slots.clone(),
            load: begun.elapsed(),
        })
    }

    /// Whether this model may be loaded now; throws out one idle runner that is in its way.
    fn make_room(&self, model: &ModelSpec) -> bool {
        self.sweep();
        let mut runners = self.runners.lock();
        if let Some(at) = runners.iter().position(|r| r.model.weights == model.weights) {
            // Same weights, other options: wait for its work, then restart it.
            if runners[at].refs > 0 || !runners[at].ready {
                return false;
            }
            runners.remove(at);
            self.notes.count(|c| c.evicted += 1);
            return true;
        }
        if runners.len() < self.max_loaded {
            return true;
        }
        let victim = runners
            .iter()
            .enumerate()
            .filter(|(_, r)| r.refs == 0 && r.ready)
            .min_by(|(_, a), (_, b)| (a.keep, &a.model.weights).cmp(&(b.keep, &b.model.weights)))
            .map(|(at, _)| at);
        if let Some(at) = victim {
            runners.remove(at);
            self.notes.count(|c| c.evicted += 1);
        }
        victim.is_some()
    }

    fn release(&self, id: u64) {
        if let Some(runner) = self.runners.lock().iter_mut().find(|r| r.id == id) {
            runner.refs = runner.refs.saturating_sub(1);
            runner.idle_since = Instant::now();
        }
        self.sweep();
        self.changed.notify_waiters();
    }
}

/// A place in the line of requests that need a load.
struct Place<'a>(&'a Scheduler);

impl<'a> Place<'a> {
    fn new(scheduler: &'a Scheduler) -> Result<Self, Busy> {
        let mut n = scheduler.in_line.lock();
        // The one at the front has left the queue's channel and does not count.
        if *n > scheduler.max_queue {
            return Err(Busy);
        }
        *n += 1;
        Ok(Place(scheduler))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.in_line.lock() -= 1;
    }
}

/// A load under way. Dropped before its end, it is aborted.
struct Load<'a> {
    scheduler: &'a Scheduler,
    id: u64,
    done: bool,
}

impl<'a> Load<'a> {
    fn begin(
        scheduler: &'a Scheduler,
        model: &ModelSpec,
        options: &RunnerOptions,
        keep: Option<Keep>,
    ) -> Self {
        let id = scheduler.notes.serial();
        // Embedding models run one request at a time, whatever the setting.
        let slots = if model.can("completion") { scheduler.num_parallel } else { 1 };
        scheduler.runners.lock().push(Runner {
            id,
            model: model.clone(),
            options: options.clone(),
            keep: keep.unwrap_or(Keep::For(scheduler.keep_alive)),
            refs: 0,
            idle_since: Instant::now(),
            ready: false,
            slots: Arc::new(Semaphore::new(slots)),
        });
        scheduler.notes.count(|c| c.loads_started += 1);
        Load { scheduler, id, done: false }
    }

    /// Ends the load; the runner belongs to the one who loaded it, who has to release it.
    fn finish(mut self) -> Arc<Semaphore> {
        self.done = true;
        let mut runners = self.scheduler.runners.lock();
        // Gone only if the process died under the load: then nobody will be served.
        let slots = runners.iter_mut().find(|r| r.id == self.id).map(|r| {
            r.ready = true;
            r.refs = 1;
            r.slots.clone()
        });
        drop(runners);
        self.scheduler.notes.count(|c| c.loads_finished += 1);
        slots.unwrap_or_else(|| Arc::new(Semaphore::new(1)))
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.scheduler.runners.lock().retain(|r| r.id != self.id);
            self.scheduler.notes.count(|c| c.loads_aborted += 1);
        }
        self.scheduler.changed.notify_waiters();
    }
}

/// A hold on a loaded model.
#[derive(Debug)]
pub(super) struct Held {
    scheduler: Arc<Scheduler>,
    runner: u64,
    slots: Arc<Semaphore>,
    /// How long it took to get hold of it.
    pub(super) load: Duration,
}

impl Held {
    /// Waits for a free slot. Dropping the future leaves the queue.
    pub(super) async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        self.slots.clone().acquire_owned().await.ok()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.scheduler.release(self.runner);
    }
}
