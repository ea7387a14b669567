//! `tailherd trust accept NAME`: lets prompts go to a node that waits for it.
//!
//! The running tailherd is told through its socket; if none runs, the list of known nodes in
//! the state folder is changed, and the next one starts with it.

use std::io;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use clap::Subcommand;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;

use super::{Context, Failure};
use crate::app::control::{self, Said, Wish};
use crate::config;
use crate::discover::Known;
use crate::net::listen;

/// Longest answer.
const MAX: usize = 64 * 1024;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Let prompts go to a node that was seen for the first time and waits.
    Accept {
        /// The node's name, or its stable id if several have the name.
        #[arg(value_name = "NAME")]
        name: String,
    },
}

pub(super) async fn run(args: Args, context: Context<'_>) -> Result<(), Failure> {
    let What::Accept { name } = args.what;
    for place in control::places(&*context.env) {
        match tell(&place, &Wish::TrustAccept(name.clone())).await {
            Ok(Said::Done(what)) => return Ok(writeln!(context.out, "{what}")?),
            Ok(Said::Failed(why)) => return Err(anyhow!(why).into()),
            Err(error) if is_nobody(&error) => {}
            Err(error) => {
                let at = place.display();
                return Err(error.context(format!("asking the tailherd at {at}")).into());
            }
        }
    }
    let state = config::state_dir(&*context.env);
    let node = in_state(&state, &name)?;
    writeln!(context.out, "{node} is accepted (no tailherd runs; the next one will know)")?;
    Ok(())
}

async fn tell(place: &Path, wish: &Wish) -> anyhow::Result<Said> {
    let io = listen::call(place).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::post("/")
        .header(header::HOST, "tailherd")
        .body(Full::new(Bytes::from(serde_json::to_vec(wish)?)))?;
    let response = sender.send_request(request).await?;
    let body = Limited::new(response.into_body(), MAX).collect().await;
    driver.abort();
    let body = body.map_err(|e| anyhow!("the answer broke off: {e}"))?.to_bytes();
    serde_json::from_slice(&body).context("the answer is not one of a tailherd")
}

/// Whether there is no tailherd behind a socket's place, rather than one that fails.
fn is_nobody(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| {
        matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
    })
}

fn in_state(state: &Path, name: &str) -> anyhow::Result<String> {
    let mut lists = Known::open_all(state);
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
