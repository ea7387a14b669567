//! An Ollama as its scheduler works: what it runs, what it lines up, what it loads and lets go.
//!
//! A loaded model takes `slots` requests at once and lines the others up, first come first served.
//! What needs a load stands in one line, of which only the head is looked at: it waits for memory,
//! and all behind it wait for it. Idle models go first, in the order of the list; if none is idle
//! the first is marked and has to drain, but still takes new requests.

use std::collections::VecDeque;
use std::sync::Arc;

use super::fleet::Fleet;

const KEEP_ALIVE: f64 = 300.0;
const MOST_LOADED: usize = 3;
/// What is done but for rounding is done.
const NOTHING: f64 = 1e-9;

/// What an engine is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) model: usize,
    pub(crate) session: u64,
    pub(crate) prompt: f64,
    /// Of the prompt, what an engine that had the session's last turn has to read.
    pub(crate) fresh: f64,
    pub(crate) output: f64,
    /// How much faster than usual this request runs here.
    pub(crate) luck: f64,
    /// Nothing but the load is wanted.
    pub(crate) preload: bool,
}

impl Job {
    /// Nothing but the load of a model.
    pub(crate) fn preload(id: u64, model: usize) -> Job {
        Job {
            id,
            model,
            session: u64::MAX,
            prompt: 0.0,
            fresh: 0.0,
            output: 0.0,
            luck: 1.0,
            preload: true,
        }
    }
}

/// What an engine has to tell.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Said {
    FirstByte(u64),
    Done(u64, Numbers),
    /// A preload is done.
    Loaded(u64),
}

/// The final numbers of an answer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Numbers {
    pub(crate) model: usize,
    /// Tokens that were read, and in how many seconds.
    pub(crate) read: (f64, f64),
    pub(crate) written: (f64, f64),
    /// Whether a part of the prompt was in the cache.
    pub(crate) cached: bool,
    /// How many ran when it began to write, itself included.
    pub(crate) beside: usize,
}

impl Numbers {
    /// The same of as many tokens more.
    pub(crate) fn scaled(&self, by: f64) -> Numbers {
        let read = (self.read.0 * by, self.read.1);
        Numbers { read, written: (self.written.0 * by, self.written.1), ..*self }
    }
}

#[derive(Debug, Clone)]
struct Run {
    job: Job,
    slot: usize,
    to_read: f64,
    to_write: f64,
    numbers: Numbers,
    since: f64,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    session: u64,
    used: f64,
    busy: bool,
}

#[derive(Debug, Clone)]
struct Runner {
    model: usize,
    slots: Vec<Slot>,
    running: Vec<Run>,
    waiting: VecDeque<Job>,
    idle_since: f64,
    marked: bool,
}

impl Runner {
    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }
}

/// What never changes of an engine.
#[derive(Debug)]
pub(crate) struct Build {
    slots: usize,
    gb: f64,
    alpha: f64,
    /// Of each model: size, load time, prefill and decode speed, whether it only embeds.
    models: Vec<(f64, f64, f64, f64, bool)>,
}

#[derive(Debug, Clone)]
pub(crate) struct Engine {
    build: Arc<Build>,
    now: f64,
    /// Divides its speeds.
    pub(crate) slower: f64,
    runners: Vec<Runner>,
    pending: VecDeque<Job>,
    /// Model, begin and end of the load that goes on.
    loading: Option<(usize, f64, f64)>,
    pub(crate) loads: u64,
    said: Vec<(f64, Said)>,
}

impl Engine {
    pub(crate) fn new(fleet: &Fleet, node: usize) -> Engine {
        let machine = &fleet.machines[node];
        let models = (0..fleet.models.len()).map(|m| {
            let (prefill, decode) = fleet.rates(node, m);
            let embeds = fleet.models[m].lengths == super::fleet::Lengths::Embed;
            (fleet.models[m].gb, fleet.load_seconds(node, m), prefill, decode, embeds)
        });
        let build = Build {
            slots: machine.slots as usize,
            gb: machine.gb,
            alpha: machine.alpha,
            models: models.collect(),
        };
        Engine {
            build: Arc::new(build),
            now: 0.0,
            slower: 1.0,
            runners: Vec::new(),
            pending: VecDeque::new(),
            loading: None,
            loads: 0,
            said: Vec::new(),
        }
    }

    /// What happened since it was last asked, in order.
    pub(crate) fn take_said(&mut self) -> Vec<(f64, Said)> {
        std::mem::take(&mut self.said)
    }

    pub(crate) fn submit(&mut self, job: Job, now: f64) {
        self.advance(now);
        match self.runners.iter().position(|r| r.model == job.model) {
            Some(at) => self.admit(at, job),
            None => self.pending.push_back(job),
        }
        self.pump();
    }

    /// The caller has gone. A load that was made for it alone is given up.
    pub(crate) fn cancel(&mut self, id: u64, now: f64) {
        self.advance(now);
        if self.loading.is_some() && self.pending.front().is_some_and(|job| job.id == id) {
            self.loading = None;
        }
        self.pending.retain(|job| job.id != id);
        for at in 0..self.runners.len() {
            let runner = &mut self.runners[at];
            runner.waiting.retain(|job| job.id != id);
            if let Some(run) = runner.running.iter().position(|run| run.job.id == id) {
                let run = runner.running.swap_remove(run);
                runner.slots[run.slot].busy = false;
                self.refill(at);
            }
        }
        self.pump();
    }

    /// The models in memory.
    pub(crate) fn loaded(&self) -> impl Iterator<Item = usize> {
        self.runners.iter().map(|r| r.model)
    }

    pub(crate) fn is_loaded(&self, model: usize) -> bool {
        self.loaded().any(|m| m == model)
    }

    /// Whether a request is worked on: its prompt is read or its answer written.
    pub(crate) fn runs(&self, id: u64) -> bool {
        self.runners.iter().any(|r| r.running.iter().any(|run| run.job.id == id))
    }

    /// Tokens of its answer that a request has by now.
    pub(crate) fn written(&self, id: u64) -> f64 {
        let run = self.runners.iter().flat_map(|r| &r.running).find(|run| run.job.id == id);
        run.map_or(0.0, |run| run.job.output - run.to_write)
    }

    /// When something happens next, if nobody asks for anything.
    pub(crate) fn next(&self) -> Option<f64> {
        let mut next = self.loading.map_or(f64::INFINITY, |(_, _, end)| end);
        let (readers, writers) = self.active();
        for run in self.runners.iter().flat_map(|r| &r.running) {
            let (read, write) = self.speeds(run, readers, writers);
            let left = if run.to_read > 0.0 { run.to_read / read } else { run.to_write / write };
            next = next.min(self.now + left);
        }
        next.is_finite().then_some(next)
    }

    /// Lets time pass.
    pub(crate) fn advance(&mut self, until: f64) {
        while let Some(next) = self.next().filter(|next| *next <= until) {
            self.flow(next);
            self.happen();
        }
        self.flow(until);
        let now = self.now;
        self.runners.retain(|r| !r.is_idle() || now - r.idle_since < KEEP_ALIVE);
    }

    /// When a job ends if nothing else comes in; used on a copy.
    pub(crate) fn ends(mut self, id: u64) -> f64 {
        self.said.clear();
        while let Some(next) = self.next() {
            self.advance(next);
            for (at, said) in self.said.drain(..) {
                if matches!(said, Said::Done(done, _) if done == id) {
                    return at;
                }
            }
        }
        f64::INFINITY
    }

    /// Tokens are read and written at the present speeds.
    fn flow(&mut self, until: f64) {
        let span = (until - self.now).max(0.0);
        let (readers, writers) = self.active();
        let speeds: Vec<(f64, f64)> = self
            .runners
            .iter()
            .flat_map(|r| &r.running)
            .map(|run| self.speeds(run, readers, writers))
            .collect();
        let runs = self.runners.iter_mut().flat_map(|r| &mut r.running);
        for (run, (read, write)) in runs.zip(speeds) {
            if run.to_read > 0.0 {
                run.to_read = (run.to_read - span * read).max(0.0);
                if run.to_read < NOTHING * read {
                    run.to_read = 0.0;
                }
            } else {
                run.to_write = (run.to_write - span * write).max(0.0);
                if run.to_write < NOTHING * write {
                    run.to_write = 0.0;
                }
            }
        }
        self.now = self.now.max(until);
    }

    fn happen(&mut self) {
        let now = self.now;
        let (_, writers) = self.active();
        for at in 0..self.runners.len() {
            let mut ended = false;
            let runner = &mut self.runners[at];
            let mut i = 0;
            while i < runner.running.len() {
                let run = &mut runner.running[i];
                if run.to_read <= 0.0 && run.numbers.read.1 <= 0.0 {
                    run.numbers.read.1 = (now - run.since).max(1e-6);
                    run.numbers.beside = writers;
                    self.said.push((now, Said::FirstByte(run.job.id)));
                }
                if run.to_read > 0.0 || run.to_write > 0.0 {
                    i += 1;
                    continue;
                }
                let mut run = runner.running.swap_remove(i);
                run.numbers.written.1 = now - run.since - run.numbers.read.1;
                let slot = &mut runner.slots[run.slot];
                *slot = Slot { session: run.job.session, used: now, busy: false };
                runner.idle_since = now;
                self.said.push((now, Said::Done(run.job.id, run.numbers)));
                ended = true;
            }
            if ended {
                self.refill(at);
            }
        }
        if let Some((model, _, _)) = self.loading.filter(|(_, _, end)| *end <= now) {
            self.loading = None;
            let slots = if self.build.models[model].4 { 1 } else { self.build.slots };
            let empty = Slot { session: u64::MAX, used: 0.0, busy: false };
            self.runners.push(Runner {
                model,
                slots: vec![empty; slots],
                running: Vec::new(),
                waiting: VecDeque::new(),
                idle_since: now,
                marked: false,
            });
        }
        self.pump();
    }

    fn admit(&mut self, at: usize, job: Job) {
        self.runners[at].idle_since = self.now;
        if job.preload {
            self.said.push((self.now, Said::Loaded(job.id)));
            return;
        }
        self.runners[at].waiting.push_back(job);
        self.refill(at);
    }

    fn refill(&mut self, at: usize) {
        let (now, runner) = (self.now, &mut self.runners[at]);
        while runner.running.len() < runner.slots.len() {
            let Some(job) = runner.waiting.pop_front() else { return };
            let free = runner.slots.iter().enumerate().filter(|(_, s)| !s.busy);
            let first = |s: &Slot| if s.session == job.session { -1.0 } else { s.used };
            let slot = free.min_by(|a, b| first(a.1).total_cmp(&first(b.1))).map_or(0, |s| s.0);
            let cached = runner.slots[slot].session == job.session;
            runner.slots[slot].busy = true;
            let to_read = if cached { job.fresh } else { job.prompt }.max(1.0);
            let numbers = Numbers {
                model: job.model,
                read: (to_read, 0.0),
                written: (job.output, 0.0),
                cached: cached && job.fresh < job.prompt,
                beside: 1,
            };
            let to_write = job.output;
            runner.running.push(Run { job, slot, to_read, to_write, numbers, since: now });
        }
    }

    /// Works off the line of those who need a load.
    fn pump(&mut self) {
        while self.loading.is_none() {
            let Some(&job) = self.pending.front() else { return };
            if let Some(at) = self.runners.iter().position(|r| r.model == job.model) {
                self.pending.pop_front();
                self.admit(at, job);
                continue;
            }
            let (size, load, ..) = self.build.models[job.model];
            let used: f64 = self.runners.iter().map(|r| self.build.models[r.model].0).sum();
            if used + size <= self.build.gb + NOTHING && self.runners.len() < MOST_LOADED {
                self.loads += 1;
                self.loading = Some((job.model, self.now, self.now + load * self.slower));
                return;
            }
            // The order of the list is that of the models' names.
            let order = |r: &Runner| (!r.marked, r.model);
            let idle = self.runners.iter().filter(|r| r.is_idle()).min_by_key(|r| order(r));
            match idle.map(|r| r.model) {
                Some(model) if !self.waits_for_marked() => {
                    self.runners.retain(|r| r.model != model);
                }
                _ => {
                    let marked = self.runners.iter().position(|r| r.marked && r.is_idle());
                    if let Some(at) = marked {
                        self.runners.remove(at);
                        continue;
                    }
                    if !self.waits_for_marked()
                        && let Some(first) = self.runners.iter_mut().min_by_key(|r| r.model)
                    {
                        first.marked = true;
                    }
                    return;
                }
            }
        }
    }

    fn waits_for_marked(&self) -> bool {
        self.runners.iter().any(|r| r.marked)
    }

    /// How many read, and how many write.
    fn active(&self) -> (usize, usize) {
        let runs = || self.runners.iter().flat_map(|r| &r.running);
        let readers = runs().filter(|run| run.to_read > 0.0).count();
        (readers, runs().count() - readers)
    }

    fn speeds(&self, run: &Run, readers: usize, writers: usize) -> (f64, f64) {
        let (_, _, prefill, decode, _) = self.build.models[run.job.model];
        let luck = run.job.luck / self.slower;
        let batch = (writers.max(1) as f64).powf(self.build.alpha - 1.0);
        (prefill * luck / readers.max(1) as f64, decode * luck * batch)
    }
}
