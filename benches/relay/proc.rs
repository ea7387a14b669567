//! What the kernel says of a process and those it started.

use std::fs;

use anyhow::{Context, Result};

/// CPU time, in microseconds.
#[derive(Clone, Copy)]
pub(crate) struct Cpu(f64);

impl Cpu {
    pub(crate) fn since(self, before: Cpu) -> f64 {
        self.0 - before.0
    }
}

/// CPU time of a process, its threads and its children, as the scheduler counts it
/// (nanoseconds; the usual counters have a step of 10 ms). Threads that ended are not in it.
pub(crate) fn cpu(pid: u32) -> Result<Cpu> {
    let mut nanos = 0.0;
    for pid in family(pid) {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let ran = text.split_whitespace().next().and_then(|n| n.parse::<f64>().ok());
            nanos += ran.context("/proc/PID/schedstat has another shape than expected")?;
        }
    }
    Ok(Cpu(nanos / 1e3))
}

/// Memory of a process and its children, shared pages counted by share, in MB.
pub(crate) fn pss_mb(pid: u32) -> Result<f64> {
    let mut kib = 0.0;
    for pid in family(pid) {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).context("no Pss line")?;
        kib += line.trim().trim_end_matches("kB").trim().parse::<f64>()?;
    }
    Ok(kib / 1024.0)
}

pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("?").to_owned()
}

pub(crate) fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|l| l.starts_with("model name"));
    let model = model.and_then(|l| l.split(": ").nth(1)).unwrap_or("unknown processor");
    format!("{cpus} CPUs, {model}")
}

/// A process and all its descendants.
fn family(root: u32) -> Vec<u32> {
    let pairs: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name is in parentheses and may hold anything; the parent is two fields on.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut family = vec![root];
    let mut at = 0;
    while at < family.len() {
        let parent = family[at];
        family.extend(pairs.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    family
}
