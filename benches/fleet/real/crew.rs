//! Processes that play a part, and what they say.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::PART;

/// How long a process may take to say something.
const LIMIT: Duration = Duration::from_secs(600);

/// A process of this program. Dropped, it ends; it also ends when this one does.
pub(crate) struct Player {
    child: Child,
    says: Lines<BufReader<ChildStdout>>,
    hears: ChildStdin,
}

impl Player {
    pub(crate) fn start(args: &[String]) -> Result<Player> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(PART)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let says = child.stdout.take().context("no output")?;
        let hears = child.stdin.take().context("no input")?;
        Ok(Player { child, says: BufReader::new(says).lines(), hears })
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        self.child.id().context("it has ended")
    }

    /// The next line that begins with this word, without it.
    pub(crate) async fn hear(&mut self, word: &str) -> Result<String> {
        let line = tokio::time::timeout(LIMIT, self.says.next_line()).await;
        let line = line.with_context(|| format!("no {word:?} was said"))??;
        match line.as_deref().and_then(|l| l.strip_prefix(word)) {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => bail!("expected {word:?}, got {line:?}"),
        }
    }

    pub(crate) async fn tell(&mut self, line: &str) -> Result<()> {
        self.hears.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(self.hears.flush().await?)
    }
}

/// What a part is told, line by line; the end of it is the end of the process.
pub(crate) fn told() -> Lines<BufReader<tokio::io::Stdin>> {
    BufReader::new(tokio::io::stdin()).lines()
}

/// Stays until whoever started this process is gone.
pub(crate) async fn stay() -> Result<()> {
    let mut told = told();
    while told.next_line().await?.is_some() {}
    Ok(())
}
