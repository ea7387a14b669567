//! TCP on the local network that does not outlive the network it was made on.
//!
//! Where the cable or the Wi-Fi was lost, what comes back may be another network with the same
//! addresses, and nothing of ours may appear there. The kernel counts these losses for each
//! device ([`Carrier`]); the count is looked at right before each write, and whenever
//! something says that links changed (`changes.rs`), which in life is while there is no
//! network at all. A connection whose count has moved ends without a word:
//!
//! - one with nothing under way is kept open and never touched again. An idle connection sends
//!   nothing, while closing it would (FIN or RST). It is closed where it can harm nobody: back
//!   on its own network, or when its address is gone and nothing finds a way out any more;
//! - one with bytes that were not acknowledged would send them again and again. It is reset at
//!   once, while the reset still goes nowhere.
//!
//! Where the system counts no losses (macOS and others), nothing is noticed here.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use socket2::{SockRef, Socket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::view::{LanLink, LanView};
use crate::net::peerproc;

const DEVICES: &str = "/sys/class/net";

/// How often the count is looked at while there are connections, though nothing said anything:
/// the kernel may keep a loss to itself for up to a second after another one.
pub(super) const LOOK: Duration = Duration::from_millis(200);

/// Most connections that are kept and not touched.
const KEPT: usize = 512;

/// How often a device had lost or found its network when something was made on it.
#[derive(Debug)]
pub(in crate::net) struct Carrier {
    device: String,
    index: Option<u32>,
    epoch: u64,
    count: Option<File>,
}

impl Carrier {
    /// That of a device, as it was at `epoch`.
    pub(in crate::net) fn new(device: &str, index: Option<u32>, epoch: u64) -> Carrier {
        Carrier::read(Path::new(DEVICES), device, index, epoch)
    }

    fn read(devices: &Path, device: &str, index: Option<u32>, epoch: u64) -> Carrier {
        let at = devices.join(device);
        let is_it = |index: u32| {
            let now = fs::read_to_string(at.join("ifindex")).ok();
            now.and_then(|text| text.trim().parse().ok()).is_none_or(|now: u32| now == index)
        };
        // (One that was made anew under this name begins to count anew.)
        let same = index.is_none_or(is_it);
        let count = same.then(|| File::open(at.join("carrier_changes")).ok()).flatten();
        Carrier { device: device.to_owned(), index, epoch, count }
    }

    /// Whether the network has not been lost since. One read of a few bytes of the kernel's.
    pub(in crate::net) fn holds(&self) -> bool {
        let now = self.count.as_ref().and_then(|count| {
            let mut text = [0; 24];
            let length = count.read_at(&mut text, 0).ok()?;
            std::str::from_utf8(text.get(..length)?).ok()?.trim().parse().ok()
        });
        // A device that does not count is one that never lost anything (see `Interface`).
        now.unwrap_or(0) == self.epoch
    }
}

/// All connections on the local network. Cheap to clone.
#[derive(Clone)]
pub(in crate::net) struct Leashes(Arc<All>);

struct All {
    carriers: Mutex<Vec<Weak<Carrier>>>,
    open: Mutex<Vec<Weak<Leash>>>,
    kept: Mutex<Vec<Kept>>,
    bell: watch::Sender<u64>,
    /// Told when a connection is opened.
    opened: Notify,
}

/// A connection that is not touched any more.
struct Kept {
    socket: Socket,
    link: LanLink,
}

impl Default for Leashes {
    fn default() -> Leashes {
        let (bell, _) = watch::channel(0);
        let (carriers, open, kept) = Default::default();
        Leashes(Arc::new(All { carriers, open, kept, bell, opened: Notify::new() }))
    }
}

impl fmt::Debug for Leashes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Leashes")
    }
}

impl Leashes {
    /// What the network at the other end of `link` is known by; connections share it.
    pub(in crate::net) fn carrier(&self, link: &LanLink) -> Arc<Carrier> {
        let mut carriers = self.0.carriers.lock();
        carriers.retain(|one| one.strong_count() > 0);
        let same = |c: &Arc<Carrier>| {
            c.device == link.device && c.index == link.index && c.epoch == link.epoch
        };
        if let Some(found) = carriers.iter().filter_map(Weak::upgrade).find(same) {
            return found;
        }
        let carrier = Arc::new(Carrier::new(&link.device, link.index, link.epoch));
        carriers.push(Arc::downgrade(&carrier));
        carrier
    }

    /// `work`, or `None` as soon as the network is lost; what was begun is then dropped.
    pub(in crate::net) async fn while_held<T>(
        &self,
        carrier: Option<&Carrier>,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let Some(carrier) = carrier else { return Some(work.await) };
        let mut bell = self.0.bell.subscribe();
        let mut work = pin!(work);
        while carrier.holds() {
            tokio::select! {
                biased;
                Ok(()) = bell.changed() => {}
                () = sleep(LOOK) => {}
                done = &mut work => return Some(done),
            }
        }
        None
    }

    /// Ties a connection over `link` to what `carrier` says; to nothing on a machine whose
    /// local network is none (`None`).
    pub(in crate::net) fn tie(
        &self,
        io: TcpStream,
        link: LanLink,
        carrier: Option<Arc<Carrier>>,
    ) -> io::Result<Leashed> {
        let ends = (io.local_addr()?, io.peer_addr()?);
        let socket = Mutex::new(Some(SockRef::from(&io).try_clone()?));
        let all = self.clone();
        let leash = Leash {
            carrier,
            link,
            ends,
            socket,
            cut: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            all,
        };
        let leash = Arc::new(leash);
        let mut open = self.0.open.lock();
        open.retain(|one| one.strong_count() > 0);
        open.push(Arc::downgrade(&leash));
        self.0.opened.notify_one();
        Ok(Leashed { leash, io })
    }

    /// Ends all connections whose network was lost: how many.
    pub(super) fn look(&self) -> usize {
        let open: Vec<Arc<Leash>> = self.0.open.lock().iter().filter_map(Weak::upgrade).collect();
        open.iter().filter(|leash| !leash.is_cut() && !leash.holds()).map(|l| l.lose()).count()
    }

    /// Whether there is a connection that may be lost.
    pub(super) fn any(&self) -> bool {
        let open = self.0.open.lock();
        open.iter().filter_map(Weak::upgrade).any(|leash| !leash.is_cut())
    }

    /// Waits until a connection is opened, or was since this was waited for last.
    pub(super) async fn opened(&self) {
        self.0.opened.notified().await;
    }

    /// Tells everybody who waits that links changed.
    pub(super) fn ring(&self) {
        self.0.bell.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Rings whenever links changed.
    pub(in crate::net) fn bell(&self) -> watch::Receiver<u64> {
        self.0.bell.subscribe()
    }

    /// Closes what was kept and may be closed where this machine is now.
    pub(in crate::net) fn settle(&self, now: &LanView) {
        let mut kept = self.0.kept.lock();
        if kept.is_empty() {
            return;
        }
        let Ok(own) = if_addrs::get_if_addrs() else { return };
        let home = |link: &LanLink| {
            let same = |l: &&LanLink| l.device == link.device && l.addr == link.addr;
            now.links.iter().find(same).is_some_and(|l| l.network == link.network)
        };
        kept.retain(|kept| {
            // Without its address nothing leaves any more: the kernel finds no route for it.
            let over = home(&kept.link) || own.iter().all(|i| i.ip() != kept.link.addr);
            if over {
                reset(&kept.socket);
            }
            !over
        });
    }

    fn keep(&self, socket: Socket, link: LanLink) {
        let mut kept = self.0.kept.lock();
        if kept.len() >= KEPT {
            reset(&kept.remove(0).socket);
        }
        kept.push(Kept { socket, link });
    }

    #[cfg(test)]
    fn kept(&self) -> usize {
        self.0.kept.lock().len()
    }
}

/// Ends a connection at once: one reset is sent, nothing is sent again.
fn reset(socket: &Socket) {
    // (The first is for systems where the second is not for TCP.) A socket that is gone already
    // needs none of this.
    let _ = socket.set_linger(Some(Duration::ZERO));
    let _ = rustix::net::connect_unspec(socket);
}

/// What a connection hangs on.
pub(in crate::net) struct Leash {
    carrier: Option<Arc<Carrier>>,
    link: LanLink,
    ends: (SocketAddr, SocketAddr),
    /// The connection's socket, once more; gone with the connection.
    socket: Mutex<Option<Socket>>,
    cut: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
    all: Leashes,
}

impl fmt::Debug for Leash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leash").field("ends", &self.ends).finish_non_exhaustive()
    }
}

impl Leash {
    fn is_cut(&self) -> bool {
        self.cut.load(Relaxed)
    }

    /// Whether the network is still the one the connection was made on.
    pub(super) fn holds(&self) -> bool {
        self.carrier.as_ref().is_none_or(|carrier| carrier.holds())
    }

    /// Ends the connection without a word: its network is gone.
    pub(super) fn lose(&self) {
        self.cut.store(true, Relaxed);
        if let Some(socket) = self.socket.lock().take() {
            let (local, remote) = self.ends;
            match peerproc::unacknowledged(local, remote) {
                Some(0) => self.all.keep(socket, self.link.clone()),
                _ => reset(&socket),
            }
        }
        self.reader.wake();
        self.writer.wake();
    }

    /// Ends the connection where its network is still there: the other side is told, and what
    /// still waits to be sent is not sent any more.
    pub(super) fn shut(&self) {
        if let Some(socket) = &*self.socket.lock() {
            let _ = socket.set_linger(Some(Duration::ZERO));
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    fn whole(&self) -> io::Result<()> {
        if self.is_cut() { Err(lost()) } else { Ok(()) }
    }

    /// Asked right before something is sent.
    fn may_send(&self) -> io::Result<()> {
        self.whole()?;
        if self.holds() {
            return Ok(());
        }
        self.lose();
        Err(lost())
    }
}

fn lost() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the local network was lost")
}

/// A connection on the local network, below TLS.
#[derive(Debug)]
pub(in crate::net) struct Leashed {
    leash: Arc<Leash>,
    io: TcpStream,
}

impl Leashed {
    /// What it hangs on.
    pub(in crate::net) fn leash(&self) -> Arc<Leash> {
        Arc::clone(&self.leash)
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        if !self.leash.is_cut() && !self.leash.holds() {
            self.leash.lose();
        }
        // A second handle would keep the connection open.
        self.leash.socket.lock().take();
        self.leash.cut.store(true, Relaxed);
    }
}

impl AsyncRead for Leashed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.leash.reader.register(cx.waker());
        self.leash.whole()?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Leashed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.leash.writer.register(cx.waker());
        self.leash.may_send()?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.leash.writer.register(cx.waker());
        self.leash.may_send()?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.leash.writer.register(cx.waker());
        self.leash.whole()?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.leash.may_send()?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;
