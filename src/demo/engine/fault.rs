//! What may go wrong with an engine, at the word of a test.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// How a stream is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The connection is reset.
    Reset,
    /// The connection is closed in the middle of the body.
    Close,
    /// The body ends properly, without the dialect's end marker.
    Clean,
    /// The engine process dies under Ollama: `/api/*` says so in one more line, `/v1/*` ends
    /// without a word, an answer that has not begun is a 500.
    Crash,
}

/// What every inference request is answered with instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// 500 with the text of a crashed runner.
    Broken,
    /// 503 with Ollama's busy text.
    Busy,
    /// 404 as JSON, as for a model that was removed a moment ago.
    Gone,
    /// Any status, content type and body, for engines that misbehave in other ways.
    Raw(u16, String, String),
    /// The connection is reset before any answer.
    Reset,
}

/// The faults of one engine.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) frozen: Freeze,
    state: Mutex<State>,
    cut: watch::Sender<Option<Cut>>,
}

#[derive(Debug)]
struct State {
    fault: Option<Fault>,
    cut_after: Option<(u64, Cut)>,
    slow: f64,
}

impl Default for State {
    fn default() -> Self {
        State { fault: None, cut_after: None, slow: 1.0 }
    }
}

impl Faults {
    pub(super) fn set_fault(&self, fault: Option<Fault>) {
        self.state.lock().fault = fault;
    }

    pub(super) fn fault(&self) -> Option<Fault> {
        self.state.lock().fault.clone()
    }

    pub(super) fn set_cut_after(&self, at: Option<(u64, Cut)>) {
        self.state.lock().cut_after = at;
    }

    pub(super) fn cut_after(&self) -> Option<(u64, Cut)> {
        self.state.lock().cut_after
    }

    pub(super) fn set_slow(&self, factor: f64) {
        self.state.lock().slow = factor;
    }

    pub(super) fn pace(&self, d: Duration) -> Duration {
        d.mul_f64(self.state.lock().slow.clamp(0.0, 1e6))
    }

    /// Cuts what runs now.
    pub(super) fn cut_now(&self, cut: Cut) {
        self.cut.send_replace(Some(cut));
    }

    /// Tells of cuts from now on.
    pub(super) fn cuts(&self) -> watch::Receiver<Option<Cut>> {
        let mut rx = self.cut.subscribe();
        rx.mark_unchanged();
        rx
    }
}

/// A switch that stops everything where it stands, as SIGSTOP does: sockets stay open, the
/// kernel still takes connections, nobody reads or writes.
#[derive(Debug, Default)]
pub(super) struct Freeze {
    on: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl Freeze {
    pub(super) fn set(&self, on: bool) {
        self.on.store(on, SeqCst);
        if !on {
            for waker in self.wakers.lock().drain(..) {
                waker.wake();
            }
        }
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.on.load(SeqCst) {
            return Poll::Ready(());
        }
        self.wakers.lock().push(cx.waker().clone());
        // Thawed between the look and the note: nobody would wake us.
        if self.on.load(SeqCst) { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Waits while the switch is on.
    pub(super) async fn thawed(&self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }
}

/// An accepted connection that can freeze and can end in a reset.
#[derive(Debug)]
pub(super) struct Wire {
    tcp: TcpStream,
    faults: Arc<Faults>,
    reset: Arc<AtomicBool>,
}

impl Wire {
    pub(super) fn new(tcp: TcpStream, faults: Arc<Faults>, reset: Arc<AtomicBool>) -> Self {
        Wire { tcp, faults, reset }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.reset.load(SeqCst) {
            // A linger time of zero makes close() send RST instead of FIN.
            let _ = socket2::SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::task::ready!(self.faults.frozen.poll(cx));
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.faults.frozen.poll(cx));
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.faults.frozen.poll(cx));
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
