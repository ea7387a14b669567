//! `tailherd lan`: the local networks on which this node shows itself and looks for peers.
//!
//! By itself it does so only where a pinned peer was once met directly. A person may allow the
//! network this machine is on, see which are known, and take any of them back. Changes go
//! through the running tailherd; what is only looked at is read from the state folder when
//! none runs.

use std::time::Duration;

use anyhow::anyhow;
use clap::Subcommand;

use super::status::span;
use super::table::{Column, Side, table};
use super::{Context, Failure, order};
use crate::app::control::{NetworkRow, Said, Which, Wish};
use crate::app::network_rows;
use crate::config;
use crate::net::Sockets;
use crate::telemetry::wall;
use crate::trust::Networks;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Use the local networks this machine is on now.
    Allow {
        /// For this long only, such as 8h; without it for good.
        #[arg(long = "for", value_name = "TIME", value_parser = config::duration)]
        time: Option<Duration>,
    },
    /// List the local networks that are known: how, since when, until when.
    List {
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Forget a local network: nothing is heard or said there until it is known anew. Without
    /// a name, those this machine is on now.
    Forget {
        /// Its id, or the beginning of it, or the device that leads to it.
        #[arg(value_name = "NETWORK")]
        network: Option<String>,
        /// All of them.
        #[arg(long, conflicts_with = "network")]
        all: bool,
    },
}

pub(super) async fn run(args: Args, context: Context<'_>) -> Result<(), Failure> {
    match args.what {
        What::Allow { time } => {
            let seconds = time.map(|t| t.as_secs());
            order::must(context, &Wish::LanAllow { seconds }).await
        }
        What::List { json } => list(json, context).await,
        What::Forget { network, all } => {
            let which = match (network, all) {
                (Some(network), _) => Which::Named(network),
                (None, true) => Which::All,
                (None, false) => Which::Here,
            };
            order::must(context, &Wish::LanForget(which)).await
        }
    }
}

async fn list(json: bool, context: Context<'_>) -> Result<(), Failure> {
    let rows = match order::give(&*context.env, &Wish::LanList).await? {
        Some(Said::Networks(rows)) => rows,
        Some(Said::Done(text) | Said::Failed(text)) => return Err(anyhow!(text).into()),
        Some(Said::Pins(_) | Said::Sharing(_)) => return Err(order::another()),
        None => {
            let (known, told) = Networks::open(Some(&config::state_dir(&*context.env)));
            if let Some(told) = told {
                return Err(anyhow!(told).into());
            }
            network_rows(&known, &Sockets::real().interfaces(), wall())
        }
    };
    if json {
        let text = serde_json::to_string_pretty(&rows).map_err(anyhow::Error::from)?;
        return Ok(writeln!(context.out, "{text}")?);
    }
    if rows.is_empty() {
        let text = "no local network is known, and this machine is on none with a gateway";
        return Ok(writeln!(context.out, "{text}")?);
    }
    let columns = ["NETWORK", "HERE", "KNOWN", "SINCE", "SEEN", "ENDS"];
    let columns = columns.map(|name| Column(name, Side::Left));
    let rows: Vec<Vec<String>> = rows.into_iter().map(cells).collect();
    Ok(write!(context.out, "{}", table(&columns, &rows))?)
}

fn cells(row: NetworkRow) -> Vec<String> {
    let ago = |seconds: Option<u64>| {
        seconds.map_or_else(|| "-".to_owned(), |s| span(Duration::from_secs(s)) + " ago")
    };
    let ends = match (row.ends, row.since) {
        (Some(0), _) => "over".to_owned(),
        (Some(left), _) => format!("in {}", span(Duration::from_secs(left))),
        (None, Some(_)) => "never".to_owned(),
        (None, None) => "-".to_owned(),
    };
    let here = if row.here.is_empty() { "-".to_owned() } else { row.here.join(", ") };
    vec![row.network, here, row.how, ago(row.since), ago(row.seen), ends]
}
