//! mDNS: how pinned peers find one another's address on a known local network.
//!
//! In flow the links that may be used and what this node says of itself; out flow tags that
//! somebody said, with the address they came from. Whoever holds the pins makes something of
//! a tag; here it is a text.
//!
//! Each link has a socket of its own, bound to its device and a member of the group there and
//! nowhere else, and says nothing more once its network was lost. Without a link there is no socket, so on a network that is not known nothing
//! is sent, not even that this machine would listen. (A library that joins the group on every
//! interface and then leaves the ones it is told to leave has been heard by all of them.) The
//! port is shared with Avahi, systemd-resolved and the like.
//!
//! An answer is believed in one thing only: that somebody at its source address, on the same
//! link, said this. No name, address or port in it is used.
//!
//! IPv4 only: an IPv6 host speaks here from its link-local address, which is never dialled.

mod packet;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
#[cfg(target_os = "macos")]
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::lan::Carrier;
use super::task::Task;
use packet::Names;

pub use packet::Say;

const PORT: u16 = 5353;
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);

/// When questions follow one another after a start or a wish, and at which pace they go on.
const ASK: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
];
const ASK_ON: Duration = Duration::from_secs(60);

/// An announcement is repeated once: multicast over radio is lost now and then.
const AGAIN: Duration = Duration::from_secs(1);

/// At most one answer in this time, whoever asks how often (RFC 6762 §6).
const REST: Duration = Duration::from_secs(1);

/// When a socket that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Tags that wait for whoever recognises them.
const WAITING: usize = 64;

/// A place on a local network where mDNS is spoken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The network device.
    pub device: String,
    /// Its index.
    pub index: u32,
    /// This node's address there.
    pub addr: Ipv4Addr,
    /// The length of its prefix.
    pub prefix: u8,
    /// Moves when the network was lost in between.
    pub epoch: u64,
}

/// A tag that somebody said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The tag.
    pub tag: String,
    /// The address it came from: on the link that it was heard on.
    pub addr: Ipv4Addr,
}

/// mDNS on the given links, for as long as this value lives.
#[derive(Debug)]
pub struct Mdns {
    heard: mpsc::Receiver<Heard>,
    ask: watch::Sender<u64>,
    _task: Task,
}

impl Mdns {
    /// Speaks mDNS at `places`, and on none of them while `say` is `None`. Each change of what
    /// is said gives this node new names.
    pub fn follow(
        places: watch::Receiver<Arc<Vec<Place>>>,
        say: watch::Receiver<Option<Arc<Say>>>,
    ) -> Mdns {
        let (send, heard) = mpsc::channel(WAITING);
        let (ask, asked) = watch::channel(0);
        let follower = Follower { send, say, asked, links: BTreeMap::new() };
        Mdns { heard, ask, _task: Task::spawn(follower.run(places)) }
    }

    /// The next tag that somebody said; `None` once no link is followed any more.
    pub async fn heard(&mut self) -> Option<Heard> {
        self.heard.recv().await
    }

    /// Asks again now: a peer is missed.
    pub fn ask(&self) {
        self.ask.send_modify(|n| *n = n.wrapping_add(1));
    }
}

struct Follower {
    send: mpsc::Sender<Heard>,
    say: watch::Receiver<Option<Arc<Say>>>,
    asked: watch::Receiver<u64>,
    links: BTreeMap<Place, Task>,
}

impl Follower {
    async fn run(mut self, mut places: watch::Receiver<Arc<Vec<Place>>>) {
        loop {
            let now = Arc::clone(&places.borrow_and_update());
            let speaks = self.say.borrow_and_update().is_some();
            // First the ones that went: closing their sockets is what leaves their network.
            self.links.retain(|place, _| speaks && now.contains(place));
            let mut failed = false;
            for place in now.iter().filter(|_| speaks) {
                if !self.links.contains_key(place) {
                    match self.open(place) {
                        Ok(task) => _ = self.links.insert(place.clone(), task),
                        Err(error) => {
                            failed = true;
                            tracing::debug!(device = place.device, "mdns: {error}");
                        }
                    }
                }
            }
            let again =
                async { if failed { sleep(RETRY).await } else { std::future::pending().await } };
            tokio::select! {
                changed = places.changed() => if changed.is_err() { return },
                changed = self.say.changed() => if changed.is_err() { return },
                () = again => {}
                () = self.send.closed() => return,
            }
        }
    }

    fn open(&self, place: &Place) -> io::Result<Task> {
        let link = Link {
            carrier: Carrier::new(&place.device, Some(place.index), place.epoch),
            socket: open(place)?,
            to: (GROUP, PORT).into(),
            place: place.clone(),
            names: Names::random(),
            say: self.say.clone(),
            asked: self.asked.clone(),
            send: self.send.clone(),
        };
        Ok(Task::spawn(link.run()))
    }
}

/// One socket on one link.
struct Link {
    carrier: Carrier,
    socket: UdpSocket,
    /// Where everybody hears it.
    to: SocketAddr,
    place: Place,
    names: Names,
    say: watch::Receiver<Option<Arc<Say>>>,
    asked: watch::Receiver<u64>,
    send: mpsc::Sender<Heard>,
}

impl Link {
    async fn run(mut self) {
        let mut bytes = vec![0; 9000];
        let mut asks = 0;
        let mut ask = Instant::now() + ASK[0];
        let mut answer = Some(Instant::now());
        let mut again = true;
        let mut answered: Option<Instant> = None;
        self.asked.mark_unchanged();
        self.say.mark_unchanged();
        loop {
            let next = answer;
            let answering = async move {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                got = self.socket.recv_from(&mut bytes) => match got {
                    Ok((length, from)) => {
                        let packet = bytes.get(..length).unwrap_or_default();
                        if self.take(packet, from) && answer.is_none() {
                            // Several may be asked at once: not all answer at the same time.
                            let wait = Duration::from_millis(rand::rng().random_range(20..120));
                            let rested = answered.map(|at| at + REST);
                            answer = rested.max(Some(Instant::now() + wait));
                        }
                    }
                    // The device is down for a moment, or gone: the links are looked at soon.
                    Err(_) => sleep(AGAIN).await,
                },
                () = sleep_until(ask) => {
                    self.tell(packet::question()).await;
                    asks += 1;
                    ask = Instant::now() + ASK.get(asks).copied().unwrap_or(ASK_ON);
                }
                () = answering => {
                    let say = self.say.borrow().clone();
                    let packet =
                        say.and_then(|say| packet::answer(&say, &self.names, self.place.addr));
                    self.tell(packet).await;
                    answered = Some(Instant::now());
                    answer = std::mem::take(&mut again).then(|| Instant::now() + AGAIN);
                }
                changed = self.say.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.names = Names::random();
                    (answer, again) = (Some(Instant::now()), true);
                }
                Ok(()) = self.asked.changed() => {
                    asks = 0;
                    ask = Instant::now() + ASK[0];
                }
            }
        }
    }

    /// Takes in a packet: whether it asks who is here.
    fn take(&self, bytes: &[u8], from: SocketAddr) -> bool {
        let here = self.place.addr;
        // A question from another port wants an answer for itself alone: nobody of ours asks
        // so. An answer from another port was not sent by who holds this one.
        let (IpAddr::V4(addr), PORT) = (from.ip(), from.port()) else { return false };
        if addr == here || !on_link(addr, here, self.place.prefix) {
            return false;
        }
        let read = packet::read(bytes);
        for tag in read.tags {
            // Whoever floods fills this and is then not heard; what counts is said again.
            let _ = self.send.try_send(Heard { tag, addr });
        }
        read.asked
    }

    async fn tell(&self, packet: Option<Vec<u8>>) {
        let Some(packet) = packet else { return };
        // Whoever lost the network may be on another one: this link is about to go.
        if !self.carrier.holds() {
            return;
        }
        if let Err(error) = self.socket.send_to(&packet, self.to).await {
            tracing::debug!(device = self.place.device, "mdns: {error}");
        }
    }
}

/// Whether `addr` lies in the network of `prefix` bits around `here`.
fn on_link(addr: Ipv4Addr, here: Ipv4Addr, prefix: u8) -> bool {
    let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0);
    (addr.to_bits() ^ here.to_bits()) & mask == 0
}

/// The socket of one link.
fn open(place: &Place) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    // On Linux the line above shares the port; this one would share it out among processes of
    // one user.
    #[cfg(not(target_os = "linux"))]
    socket.set_reuse_port(true)?;
    bind_device(&socket, place)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into())?;
    socket.join_multicast_v4_n(&GROUP, &InterfaceIndexOrAddress::Index(place.index))?;
    socket.set_multicast_if_v4(&place.addr)?;
    // What RFC 6762 §11 wants; no router passes this group on.
    socket.set_multicast_ttl_v4(255)?;
    socket.set_multicast_loop_v4(false)?;
    UdpSocket::from_std(socket.into())
}

#[cfg(target_os = "linux")]
fn bind_device(socket: &Socket, place: &Place) -> io::Result<()> {
    socket.bind_device(Some(place.device.as_bytes()))
}

#[cfg(target_os = "macos")]
fn bind_device(socket: &Socket, place: &Place) -> io::Result<()> {
    socket.bind_device_by_index_v4(NonZeroU32::new(place.index))
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn bind_device(_: &Socket, _: &Place) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hickory_resolver::proto::op::Message;
    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    fn place() -> Place {
        Place { device: "lan0".to_owned(), index: 1, addr: ip("192.168.7.9"), prefix: 24, epoch: 0 }
    }

    fn saying(tag: &str) -> Option<Arc<Say>> {
        Some(Arc::new(Say { tags: vec![tag.to_owned()], port: 11436 }))
    }

    /// A link whose group is one socket of this machine.
    async fn link() -> (Link, UdpSocket, watch::Sender<Option<Arc<Say>>>, mpsc::Receiver<Heard>) {
        let group = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (say, said) = watch::channel(saying("one"));
        let (send, heard) = mpsc::channel(WAITING);
        let link = Link {
            carrier: Carrier::new("lan0", Some(1), 0),
            socket: UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            to: group.local_addr().unwrap(),
            place: place(),
            names: Names::random(),
            say: said,
            asked: watch::channel(0).1,
            send,
        };
        (link, group, say, heard)
    }

    /// The names under which `tag` is said.
    async fn names(group: &UdpSocket, tag: &str) -> BTreeSet<String> {
        let mut bytes = vec![0; 9000];
        loop {
            let read = timeout(Duration::from_secs(5), group.recv(&mut bytes)).await;
            let packet = &bytes[..read.unwrap().unwrap()];
            if packet::read(packet).tags == [tag] {
                let message = Message::from_vec(packet).unwrap();
                let names = message.all_sections().map(|record| record.name.to_string());
                return names.filter(|name| !name.starts_with('_')).collect();
            }
        }
    }

    #[tokio::test]
    async fn what_is_said_anew_is_said_under_new_names() {
        let (link, group, say, _heard) = link().await;
        let _task = Task::spawn(link.run());
        let before = names(&group, "one").await;
        assert_eq!(names(&group, "one").await, before, "said again");
        say.send_replace(saying("two"));
        let after = names(&group, "two").await;
        assert_eq!((before.len(), after.len()), (2, 2), "an instance and a host");
        assert!(before.is_disjoint(&after), "{before:?} {after:?}");
    }

    #[tokio::test]
    async fn only_who_speaks_from_the_port_on_the_own_link_is_heard() {
        let (link, _group, _say, mut heard) = link().await;
        let question = packet::question().unwrap();
        let say = saying("tag").unwrap();
        let answer = packet::answer(&say, &Names::random(), ip("8.8.8.8")).unwrap();
        for (from, want) in [
            ("192.168.7.20:5353", true),
            ("192.168.7.20:40000", false),
            ("192.168.8.20:5353", false),
            ("8.8.8.8:5353", false),
            ("192.168.7.9:5353", false),
            ("[fd12::20]:5353", false),
        ] {
            let at = from.parse().unwrap();
            assert_eq!(link.take(&question, at), want, "{from}");
            assert!(!link.take(&answer, at));
            let tag = Heard { tag: "tag".to_owned(), addr: ip("192.168.7.20") };
            assert_eq!(heard.try_recv().ok(), want.then_some(tag), "{from}");
        }
    }

    #[tokio::test]
    async fn a_link_that_may_not_be_used_any_more_is_left() {
        for silent in [true, false] {
            let (held, mut left) = oneshot::channel::<()>();
            let task = Task::spawn(async move {
                let _held = held;
                std::future::pending::<()>().await;
            });
            let (places, at) = watch::channel(Arc::new(vec![place()]));
            let (say, said) = watch::channel(saying("tag"));
            let (send, _heard) = mpsc::channel(WAITING);
            let asked = watch::channel(0).1;
            let links = BTreeMap::from([(place(), task)]);
            let follower = Follower { send, say: said, asked, links };
            let _follower = Task::spawn(follower.run(at));
            tokio::task::yield_now().await;
            assert_eq!(left.try_recv(), Err(oneshot::error::TryRecvError::Empty));
            if silent {
                say.send_replace(None);
            } else {
                places.send_replace(Arc::default());
            }
            assert!(timeout(Duration::from_secs(5), left).await.is_ok_and(|left| left.is_err()));
        }
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn only_the_own_link_is_heard() {
        let here = ip("192.168.7.9");
        for (addr, prefix, want) in [
            ("192.168.7.250", 24, true),
            ("192.168.8.1", 24, false),
            ("192.168.8.1", 16, true),
            ("8.8.8.8", 24, false),
            ("8.8.8.8", 0, true),
            ("192.168.7.9", 32, true),
            ("192.168.7.8", 32, false),
        ] {
            assert_eq!(on_link(ip(addr), here, prefix), want, "{addr}/{prefix}");
        }
    }
}
