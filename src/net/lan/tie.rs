//! Streams that live only as long as the reason for them.
//!
//! A connection on the local network exists because of a live pin and a link that may be
//! used. Either can go while a body is running, or while nobody reads or writes: then the
//! connection is ended from beside, and whoever holds the stream gets an error, never a clean
//! end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::sleep;

use super::leash::Leash;
use super::view::{LanLink, LanView};
use crate::net::task::Task;
use crate::telemetry::wall;
use crate::trust::{Trust, View};
use crate::types::Wall;

/// What a stream is tied to.
pub(in crate::net) struct Reason<A> {
    pub(in crate::net) lan: watch::Receiver<Arc<LanView>>,
    pub(in crate::net) link: LanLink,
    pub(in crate::net) trust: Trust,
    /// Whether the pin still lives.
    pub(in crate::net) alive: A,
    /// How often that is looked at where nothing says that it changed: a pin may end by the
    /// time of day alone.
    pub(in crate::net) every: Duration,
}

/// How a reason went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gone {
    /// The other side may hear of it.
    Ended,
    /// This machine is on a network that nobody knows.
    Away,
}

impl<A: Fn(&View, Wall) -> bool> Reason<A> {
    /// Waits until the reason is gone.
    async fn gone(mut self) -> Gone {
        let mut trust = self.trust.changed();
        loop {
            trust.mark_unchanged();
            let view = Arc::clone(&self.lan.borrow_and_update());
            if view.unknown.iter().any(|(device, _)| *device == self.link.device) {
                return Gone::Away;
            }
            if !view.still_has(&self.link) || !(self.alive)(&self.trust.view(), wall()) {
                return Gone::Ended;
            }
            tokio::select! {
                // Whoever said where the local network may be used is gone, and so is the word.
                changed = self.lan.changed() => if changed.is_err() { return Gone::Ended },
                _ = trust.changed() => {}
                () = sleep(self.every) => {}
            }
        }
    }
}

/// A stream that is cut when its reason goes.
#[derive(Debug)]
pub(in crate::net) struct Tied<S> {
    io: S,
    knot: Arc<Knot>,
    _task: Task,
}

#[derive(Debug)]
struct Knot {
    cut: AtomicBool,
    leash: Arc<Leash>,
}

impl<S> Tied<S> {
    /// Ties `io`, whose connection hangs on `leash`, to `reason`. `held` is let go with the stream.
    pub(in crate::net) fn new<A>(
        io: S,
        leash: Arc<Leash>,
        reason: Reason<A>,
        held: impl Send + 'static,
    ) -> Tied<S>
    where
        A: Fn(&View, Wall) -> bool + Send + Sync + 'static,
    {
        let knot = Arc::new(Knot { cut: AtomicBool::new(false), leash });
        let other = Arc::clone(&knot);
        let task = Task::spawn(async move {
            let _held = held;
            other.cut(reason.gone().await);
        });
        Tied { io, knot, _task: task }
    }

    fn whole(&self) -> io::Result<()> {
        if self.knot.cut.load(Relaxed) { Err(cut()) } else { Ok(()) }
    }
}

impl Knot {
    fn cut(&self, how: Gone) {
        self.cut.store(true, Relaxed);
        if how == Gone::Away || !self.leash.holds() {
            self.leash.lose();
        } else {
            self.leash.shut();
        }
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the peer is not trusted here any more")
}

impl<S: AsyncRead + Unpin> AsyncRead for Tied<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.whole()?;
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        // The end that the cut makes must not look like the other side's.
        if polled.is_ready() && buf.filled().len() == before {
            self.whole()?;
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tied<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.whole()?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.whole()?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.whole()?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.whole()?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
