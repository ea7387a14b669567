//! The request body: held frames that can be sent again, and the rest as it comes.
//!
//! In flows the client's body; out flow as many bodies as there are attempts. Frames are
//! reference-counted [`Bytes`], never copied. What is held is bounded twice: per request and
//! over all requests. A request over either bound gets one try and is not held further.
//! Nothing here looks into the bytes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use parking_lot::Mutex;

use crate::balance::rates::{self, Upload};
use crate::directory::Rate;
use crate::net::{Body, BoxError, full};
use crate::telemetry::Clock;
use crate::types::Moment;

/// How much of all request bodies may be held at once (`limits.replayTotal`).
#[derive(Debug)]
pub(crate) struct Memory {
    held: AtomicU64,
    limit: u64,
}

impl Memory {
    pub(crate) fn new(limit: u64) -> Arc<Memory> {
        Arc::new(Memory { held: AtomicU64::new(0), limit })
    }

    fn take(&self, bytes: u64) -> bool {
        self.held
            .fetch_update(Relaxed, Relaxed, |held| {
                held.checked_add(bytes).filter(|sum| *sum <= self.limit)
            })
            .is_ok()
    }
}

/// A share of [`Memory`], given back when dropped.
#[derive(Debug)]
struct Share {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.bytes, Relaxed);
    }
}

/// Why a body cannot be read to the point that was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// More bytes than `limits.bodyBytes`.
    #[error("the request body is larger than {0} bytes (limits.bodyBytes)")]
    TooLarge(u64),
    /// The client stopped sending.
    #[error("the client sent nothing for too long")]
    Pause,
    /// The client went away or broke the protocol.
    #[error("reading the request body: {0}")]
    Client(BoxError),
}

/// A request body of which the beginning (often all) is held.
#[derive(Clone)]
pub(crate) struct Held {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    frames: Vec<Bytes>,
    /// Bytes read from the client so far, held or not.
    read: u64,
    /// Most bytes this request may hold, and most it may have.
    replay_limit: u64,
    body_limit: u64,
    /// `None` once the client's body has ended.
    rest: Option<Body>,
    /// False once a frame was passed on without being held.
    whole: bool,
    /// Bytes that the client announced, if it did.
    announced: Option<u64>,
    share: Share,
}

impl Held {
    pub(crate) fn new(
        body: Body,
        memory: &Arc<Memory>,
        replay_limit: u64,
        body_limit: u64,
    ) -> Held {
        let announced = body.size_hint().exact();
        let ended = body.is_end_stream();
        let share = Share { memory: Arc::clone(memory), bytes: 0 };
        Held {
            shared: Arc::new(Mutex::new(Shared {
                frames: Vec::new(),
                read: 0,
                replay_limit,
                body_limit,
                rest: (!ended).then_some(body),
                whole: true,
                announced,
                share,
            })),
        }
    }

    /// Replaces the body by bytes that are already whole (a decoded one).
    pub(crate) fn of(bytes: Bytes, memory: &Arc<Memory>, limit: u64) -> Held {
        Held::new(full(bytes), memory, limit, limit)
    }

    /// The announced size, before anything is read.
    pub(crate) fn announced(&self) -> Option<u64> {
        self.shared.lock().announced
    }

    /// Reads and holds the next frame. `None` = the body has ended.
    pub(crate) async fn next(&self) -> Result<Option<Bytes>, ReadError> {
        std::future::poll_fn(|cx| self.shared.lock().poll_next(cx)).await
    }

    /// Bytes read so far.
    pub(crate) fn read(&self) -> u64 {
        self.shared.lock().read
    }

    /// Whether another attempt could send the same body from its start.
    pub(crate) fn replayable(&self) -> bool {
        self.shared.lock().whole
    }

    /// Whether all of it is here, so that another attempt can send the same body for sure.
    pub(crate) fn is_here(&self) -> bool {
        let shared = self.shared.lock();
        shared.whole && shared.rest.is_none()
    }

    /// The frames held so far.
    pub(crate) fn frames(&self) -> Vec<Bytes> {
        self.shared.lock().frames.clone()
    }

    /// A body for one attempt: `start` (the held frames, or an edited form of them), then
    /// whatever comes after the first `skip` frames.
    pub(crate) fn attempt(&self, start: Vec<Bytes>, skip: usize) -> Body {
        self.measured(start, skip, None)
    }

    /// The same; how fast it leaves is told to `uplink`.
    pub(crate) fn measured(&self, start: Vec<Bytes>, skip: usize, uplink: Option<Uplink>) -> Body {
        let shared = self.shared.lock();
        let original: u64 = shared.frames.iter().take(skip).map(|f| f.len() as u64).sum();
        let edited: u64 = start.iter().map(|f| f.len() as u64).sum();
        let total = if shared.rest.is_none() { Some(shared.read) } else { shared.announced };
        let left = total.map(|t| t.saturating_sub(original) + edited);
        drop(shared);
        let start = start.into_iter();
        let attempt = Attempt { start, at: skip, held: self.clone(), left, uplink };
        attempt.boxed_unsync()
    }
}

impl Shared {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadError>> {
        loop {
            let Some(rest) = self.rest.as_mut() else { return Poll::Ready(Ok(None)) };
            match ready!(Pin::new(rest).poll_frame(cx)) {
                None => self.rest = None,
                Some(Err(error)) => return Poll::Ready(Err(ReadError::Client(error))),
                Some(Ok(frame)) => {
                    // Trailers of a request mean nothing to any engine.
                    let Ok(data) = frame.into_data() else { continue };
                    self.read += data.len() as u64;
                    if self.read > self.body_limit {
                        return Poll::Ready(Err(ReadError::TooLarge(self.body_limit)));
                    }
                    if rest_is_done(self.rest.as_ref()) {
                        self.rest = None;
                    }
                    self.hold(&data);
                    return Poll::Ready(Ok(Some(data)));
                }
            }
        }
    }

    fn hold(&mut self, data: &Bytes) {
        let len = data.len() as u64;
        if self.whole && self.share.bytes + len <= self.replay_limit && self.share.memory.take(len)
        {
            self.share.bytes += len;
            self.frames.push(data.clone());
        } else {
            self.whole = false;
        }
    }
}

fn rest_is_done(rest: Option<&Body>) -> bool {
    rest.is_some_and(http_body::Body::is_end_stream)
}

/// Measures how fast one body leaves; what it found is told when it is dropped.
pub(crate) struct Uplink {
    rate: Arc<Rate>,
    clock: Clock,
    upload: Upload,
    tail: u64,
}

impl Uplink {
    pub(crate) fn new(rate: &Arc<Rate>, clock: Clock) -> Uplink {
        Uplink { rate: Arc::clone(rate), clock, upload: Upload::default(), tail: 0 }
    }

    fn now(&self) -> Duration {
        self.clock.now().since(Moment::ZERO)
    }

    fn asked(&mut self) {
        self.upload.asked(self.now());
    }

    /// This came of it: a frame, or nothing yet.
    fn gave(&mut self, frame: Option<&Bytes>) {
        match frame {
            Some(data) => {
                self.tail = data.len() as u64;
                self.upload.gave(self.tail);
            }
            None => self.upload.starves(self.now()),
        }
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        if let Some(sample) = self.upload.sample(self.tail) {
            self.rate.learn(sample, rates::SPEED, self.clock.now());
        }
    }
}

/// The body of one attempt.
struct Attempt {
    start: std::vec::IntoIter<Bytes>,
    /// Next frame of the held ones.
    at: usize,
    held: Held,
    /// Bytes still to come, if known.
    left: Option<u64>,
    uplink: Option<Uplink>,
}

impl http_body::Body for Attempt {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(uplink) = self.uplink.as_mut() {
            uplink.asked();
        }
        let data = if let Some(data) = self.start.next() {
            Some(data)
        } else {
            let mut shared = self.held.shared.lock();
            if let Some(data) = shared.frames.get(self.at).cloned() {
                drop(shared);
                self.at += 1;
                Some(data)
            } else {
                let Poll::Ready(next) = shared.poll_next(cx) else {
                    drop(shared);
                    if let Some(uplink) = self.uplink.as_mut() {
                        uplink.gave(None);
                    }
                    return Poll::Pending;
                };
                let held = shared.frames.len();
                drop(shared);
                self.at = self.at.max(held);
                match next {
                    Ok(data) => data,
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                }
            }
        };
        match data {
            None => Poll::Ready(None),
            Some(data) => {
                if let Some(left) = self.left.as_mut() {
                    *left = left.saturating_sub(data.len() as u64);
                }
                if let Some(uplink) = self.uplink.as_mut() {
                    uplink.gave(Some(&data));
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(frames: &[&'static str]) -> Body {
        let frames: Vec<Result<Frame<Bytes>, BoxError>> =
            frames.iter().map(|f| Ok(Frame::data(Bytes::from_static(f.as_bytes())))).collect();
        http_body_util::StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
    }

    async fn text(body: Body) -> String {
        String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn every_attempt_sends_the_same_bytes() {
        let memory = Memory::new(1000);
        let held = Held::new(body(&["ab", "cd", "ef"]), &memory, 100, 100);
        assert_eq!(held.next().await.unwrap().as_deref(), Some(&b"ab"[..]));
        let first = held.attempt(held.frames(), held.frames().len());
        assert_eq!(text(first).await, "abcdef");
        assert!(held.replayable());
        let again = held.attempt(Vec::new(), 0);
        assert_eq!(text(again).await, "abcdef");
        let edited = held.attempt(vec![Bytes::from_static(b"X")], 1);
        assert_eq!(edited.size_hint().exact(), Some(5));
        assert_eq!(text(edited).await, "Xcdef");
    }

    #[tokio::test(start_paused = true)]
    async fn how_fast_a_large_body_leaves_is_told() {
        const FRAME: &str = match std::str::from_utf8(&[b'x'; 65_536]) {
            Ok(text) => text,
            Err(_) => "",
        };
        let rate = Arc::new(Rate::default());
        for frames in [4, 40] {
            let held =
                Held::new(body(&vec![FRAME; frames]), &Memory::new(1 << 30), 1 << 30, 1 << 30);
            let uplink = Uplink::new(&rate, Clock::start());
            let mut body = held.measured(Vec::new(), 0, Some(uplink));
            while body.frame().await.is_some() {
                // 64 KiB each 32 ms.
                tokio::time::sleep(Duration::from_millis(32)).await;
            }
            drop(body);
            let seen = rate.estimate().known().unwrap_or_default();
            let expect = if frames == 4 { 0.0 } else { 2_048_000.0 };
            assert!((seen - expect).abs() <= 0.05 * expect, "{frames}: {seen}");
        }
    }

    #[tokio::test]
    async fn over_its_share_a_request_gets_one_try() {
        let memory = Memory::new(3);
        let held = Held::new(body(&["ab", "cd"]), &memory, 100, 100);
        assert_eq!(text(held.attempt(Vec::new(), 0)).await, "abcd");
        assert!(!held.replayable());
        drop(held);
        assert_eq!(memory.held.load(Relaxed), 0, "its share is given back");
    }

    #[tokio::test]
    async fn a_body_over_its_limit_says_the_limit() {
        let held = Held::new(body(&["ab", "cd"]), &Memory::new(100), 100, 3);
        held.next().await.unwrap();
        assert!(matches!(held.next().await, Err(ReadError::TooLarge(3))));
    }
}
