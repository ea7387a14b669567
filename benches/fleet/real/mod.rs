//! The simulated mesh once more in real processes: real sidecars, real sockets, stand-in engines.
//!
//! Each node has a process that runs the real [`tailherd::app::App`] with its usual timing, and
//! one that is its Ollama: the simulator's own engine behind HTTP. One process is all tailscaleds,
//! with ways as long as in the simulator; one plays all users. Sessions, lengths, luck and errors
//! of estimates are those of the same seed in the simulator, whose figures are printed beside.
//!
//! Time runs faster in all of these processes (`faster.c`), so nothing of the product is scaled:
//! a second is a second to everybody, and the machine has to keep up. What takes a real millisecond
//! takes five at the usual scale, and a node that has not shown life for 900 ms, as its peers count
//! it, has been silent for 180. Seven processes and more on a machine that is busy otherwise come to
//! that at a scale of 10 or 20: then the run says how late the machine was, and which tries failed.
//!
//! The two are compared over the same arrivals. Chance among near-equals alone moves the
//! simulator's own mean by a tenth and its p95 by a fifth in 15 minutes; so it runs with several
//! draws, whose mean is compared and whose range is shown, and `--seeds 3` says more than one seed.
//! Like the sidecars, it then reports what has changed after a quarter of a second.

mod crew;
mod drive;
mod engine;
mod figures;
mod idle;
mod options;
mod sidecar;
mod speed;
mod tailnet;

use std::io::Write;

use anyhow::{Context, Result, bail};

use self::options::Options;

/// The word that begins the command line of a process that plays a part.
pub(crate) const PART: &str = "--part";

/// Runs the bench, in processes of its own with a clock of their own.
pub(crate) fn run(args: &[String], out: &mut impl Write) -> Result<()> {
    let options = Options::read(args)?;
    let quick = speed::Speed::of(options.scale())?;
    let mut arguments = vec![PART.to_owned(), "users".to_owned()];
    arguments.extend(args.iter().cloned());
    out.flush()?;
    let mut users = std::process::Command::new(std::env::current_exe()?);
    quick.set(&mut users).args(arguments);
    let limit = options.limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // By this process's clock, which nobody lets run faster. All others end with that one.
    let status = runtime.block_on(async {
        let mut users = tokio::process::Command::from(users).kill_on_drop(true).spawn()?;
        let ended = tokio::time::timeout(limit, users.wait()).await;
        let late = || format!("the run did not come to its end within {limit:?} of real time");
        anyhow::Ok(ended.with_context(late)??)
    })?;
    if !status.success() {
        bail!("the run did not come to its end");
    }
    Ok(())
}

/// Plays one part.
pub(crate) fn part(args: &[String]) -> Result<()> {
    let (part, args) = args.split_first().context("which part?")?;
    let threads = if part == "sidecar" { 2 } else { 1 };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let ended = runtime.block_on(async {
        match (part.as_str(), args) {
            ("users", args) => drive::run(Options::read(args)?).await,
            ("tailnet", [seed, args @ ..]) => {
                tailnet::run(&Options::read(args)?, seed.parse()?).await
            }
            ("engine", [node, seed, args @ ..]) => {
                engine::run(&Options::read(args)?, node.parse()?, seed.parse()?).await
            }
            ("sidecar", [name, config, state]) => sidecar::run(name, config, state).await,
            _ => bail!("there is no part {part:?}"),
        }
    });
    // What waits to be told something would wait for ever.
    runtime.shutdown_background();
    ended
}
