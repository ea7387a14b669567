//! `tailherd trust`: which nodes prompts may go to, and by which keys they are known.
//!
//! Changes go through the running tailherd's socket. What is only looked at is read from the
//! state folder when none runs; and a node that waits is accepted there, so that the next one
//! starts with it.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Subcommand;

use super::status::span;
use super::table::{Column, Side, table};
use super::{Context, Failure, order};
use crate::app::control::{AddKey, PinRow, Said, Wish};
use crate::app::{export, pin_rows};
use crate::config::{self, Env};
use crate::discover::Known;
use crate::telemetry::wall;
use crate::trust::{Bounds, Trust};
use crate::types::{PublicKey, Verb};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the pinned keys: whose, since when, until when.
    List {
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Let prompts go to a node that was seen for the first time and waits, or take a key that
    /// changed for the node's own.
    Accept {
        /// The node's name, or its stable id if several have the name.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Forget a node's key at once. It is pinned anew only by a hello over the tailnet.
    Forget {
        /// The node's name, or its stable id if several have the name.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Print this node's key, as the command that adds it on another device.
    Export,
    /// Take a key for that of a device on the local network that is not in the tailnet.
    Add {
        /// What the device is called; rules say `pin:NAME`.
        #[arg(value_name = "NAME")]
        name: String,
        /// Its key, as `tailherd trust export` prints it there.
        #[arg(value_name = "KEY")]
        key: PublicKey,
        /// What it may do here: list, infer.
        #[arg(long, value_name = "VERBS", value_delimiter = ',', default_value = "list,infer",
              value_parser = verb)]
        verbs: Vec<Verb>,
        /// With which models, as names with `*`.
        #[arg(long, value_name = "MODELS", value_delimiter = ',', default_value = "*")]
        models: Vec<String>,
        /// For how long.
        #[arg(long = "for", value_name = "TIME", default_value = "30d",
              value_parser = config::duration)]
        time: Duration,
        /// Its address on the local network, where mDNS is not heard; may be repeated.
        #[arg(long = "addr", value_name = "IP")]
        addrs: Vec<IpAddr>,
    },
}

pub(super) async fn run(args: Args, context: Context<'_>) -> Result<(), Failure> {
    match args.what {
        What::List { json } => list(json, context).await,
        What::Accept { name } => accept(&name, context).await,
        What::Forget { name } => order::must(context, &Wish::TrustForget(name)).await,
        What::Export => match order::give(&*context.env, &Wish::TrustExport).await? {
            Some(said) => print(said, context),
            None => print(export(&saved(&context)?), context),
        },
        What::Add { name, key, verbs, models, time, addrs } => {
            let add = AddKey { name, key, verbs, models, seconds: time.as_secs(), addrs };
            order::must(context, &Wish::TrustAdd(add)).await
        }
    }
}

fn verb(text: &str) -> Result<Verb, String> {
    let found = Verb::ALL.into_iter().find(|verb| verb.label() == text);
    found.ok_or_else(|| format!("`{text}` is no verb: expected list or infer"))
}

async fn list(json: bool, context: Context<'_>) -> Result<(), Failure> {
    let rows = match order::give(&*context.env, &Wish::TrustList).await? {
        Some(Said::Pins(rows)) => rows,
        Some(Said::Done(text) | Said::Failed(text)) => return Err(anyhow!(text).into()),
        Some(Said::Networks(_) | Said::Sharing(_)) => return Err(order::another()),
        None => pin_rows(&saved(&context)?.view(), wall()),
    };
    if json {
        let text = serde_json::to_string_pretty(&rows).map_err(anyhow::Error::from)?;
        return Ok(writeln!(context.out, "{text}")?);
    }
    if rows.is_empty() {
        return Ok(writeln!(context.out, "no key is pinned yet: peers say hello by themselves")?);
    }
    let columns = ["NODE", "OWNER", "KEY", "STATE", "SEEN", "ENDS", ""];
    let columns = columns.map(|name| Column(name, Side::Left));
    let rows: Vec<Vec<String>> = rows.into_iter().map(cells).collect();
    Ok(write!(context.out, "{}", table(&columns, &rows))?)
}

fn cells(row: PinRow) -> Vec<String> {
    let time = |seconds: Option<u64>| seconds.map(|s| span(Duration::from_secs(s)));
    let seen = time(row.verified).map_or_else(|| "never".to_owned(), |age| age + " ago");
    let ends = time(row.ends).map_or_else(|| "-".to_owned(), |left| format!("in {left}"));
    let owner = if row.owner.is_empty() { "-".to_owned() } else { row.owner };
    vec![row.name, owner, row.key, row.state, seen, ends, row.why]
}

/// What the state folder remembers of the tailnet used last.
fn saved(context: &Context<'_>) -> Result<Trust, Failure> {
    let config = context.load()?;
    let trust = Trust::open(Some(&config::state_dir(&*context.env)), Bounds::of(&config));
    if let Some(told) = trust.recall(None, wall()).into_iter().next() {
        return Err(anyhow!(told).into());
    }
    Ok(trust)
}

fn print(said: Said, context: Context<'_>) -> Result<(), Failure> {
    match said {
        Said::Done(text) => Ok(writeln!(context.out, "{text}")?),
        Said::Failed(why) => Err(anyhow!(why).into()),
        Said::Pins(_) | Said::Networks(_) | Said::Sharing(_) => Err(order::another()),
    }
}

async fn accept(name: &str, context: Context<'_>) -> Result<(), Failure> {
    if let Some(said) = order::give(&*context.env, &Wish::TrustAccept(name.to_owned())).await? {
        return print(said, context);
    }
    let node = in_state(&*context.env, name)?;
    writeln!(context.out, "{node} is accepted (no tailherd runs; the next one will know)")?;
    Ok(())
}

fn in_state(env: &dyn Env, name: &str) -> anyhow::Result<String> {
    let state = config::state_dir(env);
    let mut lists = Known::open_all(Path::new(&state));
    if lists.is_empty() {
        bail!("no tailherd runs here, and {} knows no node yet", state.display());
    }
    lists.retain(|list| list.knows(name));
    match lists.as_mut_slice() {
        [] => bail!("no node `{name}` was seen"),
        [list] => Ok(list.accept(name)?.to_string()),
        // Which tailnet is meant only the running one can tell.
        _ => bail!("several tailnets have a node `{name}`: start tailherd and say it again"),
    }
}
