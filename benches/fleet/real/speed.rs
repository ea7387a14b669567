//! A clock that runs faster, for processes.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

const SOURCE: &str = include_str!("faster.c");

/// How fast time runs in the processes it is set for.
pub(crate) struct Speed {
    made: Option<(TempDir, PathBuf, String)>,
}

impl Speed {
    /// Builds what it needs with the C compiler that Rust links with; nothing for real time.
    pub(crate) fn of(scale: f64) -> Result<Speed> {
        if (scale - 1.0).abs() < 1e-9 {
            return Ok(Speed { made: None });
        }
        let folder = tempfile::tempdir()?;
        let (source, made) = (folder.path().join("faster.c"), folder.path().join("faster.so"));
        std::fs::write(&source, SOURCE)?;
        let built = Command::new("cc")
            .args(["-O2", "-shared", "-fPIC", "-o"])
            .args([&made, &source])
            .arg("-ldl")
            .status()
            .context("no `cc` to build faster.c with: use --scale 1")?;
        ensure!(built.success(), "faster.c could not be built: use --scale 1");
        // Now, about: all that counts is that all processes are told the same.
        let uptime = std::fs::read_to_string("/proc/uptime").context("needs Linux")?;
        let seconds: f64 = uptime.split(' ').next().unwrap_or_default().parse()?;
        Ok(Speed { made: Some((folder, made, format!("{scale} {:.0}", seconds * 1e9))) })
    }

    /// Sets it for a process that is to be started, and for those it starts.
    pub(crate) fn set<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if let Some((_, made, said)) = &self.made {
            command.env("LD_PRELOAD", made).env("FASTER", said);
        }
        command
    }
}
