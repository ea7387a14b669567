//! The answer on its way: upstream frames out to the client, unchanged.
//!
//! In flows one upstream body; out flows the body that the client reads. On the way it is
//! watched for its dialect's end marker and its usage numbers. A stream that stops before its
//! end marker is never passed off as whole: it gets its dialect's error item and a clean end,
//! and anything else that breaks is cut, so that the client can tell. The relay owns the
//! upstream body: dropping the relay is what cancels the engine.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep};

use crate::api::echo::Echo;
use crate::api::ending::Ending;
use crate::net::{BoxError, PooledBody};
use crate::types::Outcome;

use super::finish::Finish;

/// Silence after the first byte is looked at this often.
const LOOK: Duration = Duration::from_secs(2);

/// How silence is judged after the first byte.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Idle {
    /// Longest silence while the node shows life.
    pub(crate) limit: Duration,
    /// Longest silence once the node's probes fail.
    pub(crate) dead: Duration,
}

/// The body a client reads.
pub(crate) struct Relay {
    upstream: Option<PooledBody>,
    /// The frame that was awaited before the answer was accepted.
    first: Option<Bytes>,
    /// Watches for the dialect's end marker, and counts.
    ending: Ending,
    echo: Option<Echo>,
    /// Who answers, for the error item.
    node: String,
    idle: Idle,
    timer: Option<Pin<Box<Sleep>>>,
    finish: Option<Finish>,
}

impl Relay {
    pub(crate) fn new(
        upstream: PooledBody,
        first: Option<Bytes>,
        ending: Ending,
        echo: Option<Echo>,
        node: String,
        idle: Idle,
        finish: Finish,
    ) -> Relay {
        Relay {
            upstream: Some(upstream),
            first,
            ending,
            echo,
            node,
            idle,
            timer: None,
            finish: Some(finish),
        }
    }

    /// Passes one frame on.
    fn pass(&mut self, data: Bytes) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.ending.feed(&data);
        if let Some(finish) = self.finish.as_mut() {
            finish.items = self.ending.items();
            finish.byte();
        }
        let data = match self.echo.as_mut() {
            Some(echo) => echo.feed(data),
            None => data,
        };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    /// The upstream is gone; `error` says how, if it did not end by itself.
    fn end(
        &mut self,
        lost: Option<(Outcome, String)>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.upstream = None;
        let tracked = self.ending.is_tracked();
        let complete = !tracked || self.ending.complete();
        let (outcome, why) = match lost {
            // What breaks after the end marker took nothing from the client.
            Some(_) if tracked && complete => (Outcome::Done, None),
            Some((outcome, why)) => (outcome, Some(why)),
            // The upstream itself said that it failed, in an item of the caller's dialect.
            None if self.ending.failed() => (Outcome::UpstreamError, None),
            None if complete => (Outcome::Done, None),
            None => (Outcome::Truncated, Some(self.lost("stopped answering"))),
        };
        let rest = self.echo.take().map(Echo::finish).filter(|rest| !rest.is_empty());
        let repair = why.as_ref().filter(|_| tracked).map(|why| self.ending.repair(why));
        self.count();
        if let Some(mut finish) = self.finish.take() {
            finish.outcome = Some(outcome);
        }
        match (repair, why, rest) {
            (Some(repair), _, Some(rest)) => {
                let mut both = rest.to_vec();
                both.extend_from_slice(&repair);
                Poll::Ready(Some(Ok(Frame::data(both.into()))))
            }
            (Some(repair), ..) => Poll::Ready(Some(Ok(Frame::data(repair)))),
            // Not a stream whose end could be repaired: cut it, so that the client can tell.
            (None, Some(why), _) => Poll::Ready(Some(Err(why.into()))),
            (None, None, Some(rest)) => Poll::Ready(Some(Ok(Frame::data(rest)))),
            (None, None, None) => Poll::Ready(None),
        }
    }

    /// Whoever reads it took an error out of it, and wants no more.
    pub(crate) fn failed(mut self) {
        self.count();
        if let Some(mut finish) = self.finish.take() {
            finish.outcome = Some(Outcome::UpstreamError);
        }
    }

    fn lost(&self, how: &str) -> String {
        format!("mesh: {} {how} in mid-reply", self.node)
    }

    fn count(&mut self) {
        if let Some(finish) = self.finish.as_mut() {
            finish.usage = self.ending.usage();
            finish.items = self.ending.items();
            finish.failed = self.ending.failed();
        }
    }

    /// Whether the silence has lasted too long. Registers for a later look otherwise.
    fn silent(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(finish) = self.finish.as_mut() else { return false };
        loop {
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(LOOK)));
            if timer.as_mut().poll(cx).is_pending() {
                return false;
            }
            timer.as_mut().reset(Instant::now() + LOOK);
            finish.look(finish.clock.now());
            // A way that stands by answers: it is only not the one for new requests.
            let alive =
                finish.path.as_ref().is_none_or(|path| path.is_alive() || path.is_standby());
            let silence = finish.silence();
            if silence >= self.idle.limit || (!alive && silence >= self.idle.dead) {
                return true;
            }
        }
    }
}

impl http_body::Body for Relay {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(first) = self.first.take() {
            return self.pass(first);
        }
        if let Some(finish) = self.finish.as_mut() {
            finish.asked();
        }
        loop {
            let Some(upstream) = self.upstream.as_mut() else { return Poll::Ready(None) };
            return match Pin::new(upstream).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.pass(data),
                    Err(_) => continue,
                },
                Poll::Ready(None) => self.end(None),
                Poll::Ready(Some(Err(_))) => {
                    let why = self.lost("stopped answering");
                    self.end(Some((Outcome::Truncated, why)))
                }
                Poll::Pending if self.silent(cx) => {
                    let why = self.lost("fell silent");
                    self.end(Some((Outcome::IdleTimeout, why)))
                }
                Poll::Pending => Poll::Pending,
            };
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        // With an echo or a repair the length may differ from what upstream said.
        match (&self.upstream, &self.first, &self.echo) {
            (Some(upstream), first, None) => {
                let mut hint = upstream.size_hint();
                if let (Some(exact), Some(first)) = (hint.exact(), first) {
                    hint = http_body::SizeHint::with_exact(exact + first.len() as u64);
                }
                hint
            }
            _ => http_body::SizeHint::default(),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // What was seen so far counts, also when the client went away.
        self.count();
        // The server asks for no frame after the last byte of a body of known length: nobody
        // went away then.
        let ended = self.first.is_none()
            && self.upstream.as_ref().is_some_and(http_body::Body::is_end_stream);
        let whole = !self.ending.is_tracked() || self.ending.complete();
        if let Some(finish) = self.finish.as_mut().filter(|_| ended && whole) {
            finish.outcome = Some(Outcome::Done);
        }
    }
}
