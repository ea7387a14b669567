//! What a mesh costs in which nobody asks for anything: bytes, processor time and wake-ups.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::time::sleep;

use super::drive::Mesh;
use super::options::Options;

/// Until what happens once at the start has happened, and how long is measured.
const SETTLE: Duration = Duration::from_secs(60);

/// What one process has used so far.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    seconds: f64,
    wakes: f64,
}

impl Used {
    /// All of its threads.
    fn of(pid: u32) -> Result<Used> {
        let mut used = Used::default();
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file));
            let Ok((ran, status)) = read("schedstat").and_then(|s| Ok((s, read("status")?))) else {
                continue;
            };
            let nanos = ran.split_whitespace().next().and_then(|n| n.parse::<f64>().ok());
            used.seconds += nanos.context("/proc/PID/task/ID/schedstat: no number")? / 1e9;
            let wakes = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
            used.wakes += wakes.and_then(|n| n.trim().parse::<f64>().ok()).unwrap_or(0.0);
        }
        Ok(used)
    }
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let fleet = options.fleet()?;
    let mut mesh = Mesh::start(options, &fleet, options.plan().seed).await?;
    sleep(SETTLE).await;
    let span = Duration::from_secs_f64(options.plan().seconds - options.plan().warm_up);
    let before = look(&mut mesh).await?;
    sleep(span).await;
    let after = look(&mut mesh).await?;
    let mut rows: Vec<(f64, f64, f64)> = before
        .iter()
        .zip(&after)
        .map(|((bytes, used), (later, then))| {
            let rate = |n: f64| n / span.as_secs_f64();
            let cpu = 100.0 * rate(then.seconds - used.seconds);
            // What one sends another receives, and both count it.
            (rate(later - bytes) / 2.0, cpu, rate(then.wakes - used.wakes))
        })
        .collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mean = |of: fn(&(f64, f64, f64)) -> f64| {
        rows.iter().map(of).sum::<f64>() / rows.len().max(1) as f64
    };
    let most = |of: fn(&(f64, f64, f64)) -> f64| rows.iter().map(of).fold(0.0, f64::max);
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{} nodes, nobody asks for anything, {:.0} s: each node on average (and at most)",
        rows.len(),
        span.as_secs_f64(),
    )?;
    writeln!(
        out,
        "{:>8.0} ({:.0}) bytes a second sent, and as many received",
        mean(|r| r.0),
        most(|r| r.0)
    )?;
    writeln!(out, "{:>8.2} ({:.2}) % of a processor", mean(|r| r.1), most(|r| r.1))?;
    writeln!(out, "{:>8.1} ({:.1}) wake-ups a second", mean(|r| r.2), most(|r| r.2))?;
    if options.json() {
        let object = json!({
            "nodes": rows.len(), "seconds": span.as_secs_f64(),
            "sent_bytes_per_s": mean(|r| r.0), "cpu_percent": mean(|r| r.1), "wakes_per_s": mean(|r| r.2),
            "most_sent_bytes_per_s": most(|r| r.0), "most_cpu_percent": most(|r| r.1),
        });
        writeln!(out, "{object}")?;
    }
    Ok(())
}

/// Bytes that passed each sidecar's tailscaled so far, and what the sidecar used.
async fn look(mesh: &mut Mesh) -> Result<Vec<(f64, Used)>> {
    mesh.tailnet.tell("carried").await?;
    let said = mesh.tailnet.hear("carried").await?;
    let bytes = said.split(' ').map(str::parse::<f64>);
    let mut rows = Vec::new();
    for (bytes, sidecar) in bytes.zip(&mesh.sidecars) {
        if let Some(sidecar) = sidecar {
            rows.push((bytes?, Used::of(sidecar.pid()?)?));
        }
    }
    Ok(rows)
}
