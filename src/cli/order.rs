//! Orders for the tailherd that runs on this machine, by its socket.

use std::io;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;

use super::{Context, Failure};
use crate::app::control::{self, Said, Wish};
use crate::config::Env;
use crate::net::listen;

/// Longest answer.
const MAX: usize = 4 << 20;

/// Gives an order; `None` if no tailherd runs here.
pub(super) async fn give(env: &dyn Env, wish: &Wish) -> anyhow::Result<Option<Said>> {
    for place in control::places(env) {
        match tell(&place, wish).await {
            Ok(said) => return Ok(Some(said)),
            Err(error) if is_nobody(&error) => {}
            Err(error) => {
                return Err(error.context(format!("asking the tailherd at {}", place.display())));
            }
        }
    }
    Ok(None)
}

/// Gives an order that only a running tailherd can follow, and says what it said.
pub(super) async fn must(context: Context<'_>, wish: &Wish) -> Result<(), Failure> {
    match give(&*context.env, wish).await? {
        Some(Said::Done(what)) => Ok(writeln!(context.out, "{what}")?),
        Some(Said::Failed(why)) => Err(anyhow!(why).into()),
        Some(Said::Pins(_) | Said::Networks(_) | Said::Sharing(_)) => Err(another()),
        None => Err(nobody()),
    }
}

/// There is nobody who could do it.
pub(super) fn nobody() -> Failure {
    let start = "start it (`tailherd serve`, or `systemctl start tailherd`) and say it again";
    anyhow!("no tailherd runs here: {start}").into()
}

/// What was said answers nothing that was asked.
pub(super) fn another() -> Failure {
    anyhow!("the answer is one to another question").into()
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
