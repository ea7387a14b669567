//! `tailherd pause`, `resume` and `drain`: what a person orders of the node that runs here.

use std::time::Duration;

use anyhow::anyhow;

use super::status::many;
use super::{Context, Failure, order};
use crate::app::control::{Said, SharingRow, Wish};
use crate::config;

/// How often it is asked how far a drain has come.
const LOOK: Duration = Duration::from_millis(300);

#[derive(Debug, clap::Args)]
pub(super) struct Pause {
    /// For this long, such as 2h; without it until `tailherd resume`.
    #[arg(value_name = "TIME", value_parser = time)]
    time: Option<Duration>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Drain {
    /// Do not wait until the last request of another node has ended.
    #[arg(long)]
    no_wait: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    match config::duration(text)? {
        time if time < Duration::from_secs(1) => Err("a pause takes at least a second".to_owned()),
        time => Ok(time),
    }
}

pub(super) async fn pause(args: Pause, context: Context<'_>) -> Result<(), Failure> {
    let seconds = args.time.map(|time| time.as_secs());
    order::must(context, &Wish::Pause { seconds }).await
}

pub(super) async fn resume(context: Context<'_>) -> Result<(), Failure> {
    order::must(context, &Wish::Resume).await
}

pub(super) async fn drain(args: Drain, context: Context<'_>) -> Result<(), Failure> {
    let Context { config, env, out } = context;
    order::must(Context { config, env: env.clone(), out: &mut *out }, &Wish::Drain).await?;
    if args.no_wait {
        return Ok(());
    }
    out.flush()?;
    let mut said = 0;
    loop {
        let row = match order::give(&*env, &Wish::Sharing).await? {
            Some(Said::Sharing(row)) => row,
            Some(Said::Failed(why)) => return Err(anyhow!(why).into()),
            Some(_) => return Err(order::another()),
            None => return Err(anyhow!("tailherd was stopped while it drained").into()),
        };
        match row {
            SharingRow { draining: false, .. } => {
                return Err(anyhow!("the drain was taken back (tailherd resume)").into());
            }
            SharingRow { running: 0, .. } => {
                return Ok(writeln!(out, "idle: no request of another node runs here")?);
            }
            SharingRow { running, .. } if running != said => {
                said = running;
                writeln!(out, "{} of other nodes still to end", many(running, "request"))?;
                out.flush()?;
            }
            _ => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_has_a_length_or_none() {
        assert_eq!(time("2h"), Ok(Duration::from_secs(7200)));
        for (bad, expect) in
            [("soon", "is not a duration"), ("0s", "a second"), ("-2h", "negative")]
        {
            assert!(time(bad).is_err_and(|e| e.contains(expect)), "{bad}");
        }
    }
}
