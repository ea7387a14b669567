//! A local network in one process: a switch, and what is plugged into it.
//!
//! No interface of this machine is touched. What goes in: which device is on which network
//! under which address, which cable is out. What comes out: the interfaces each program sees,
//! and relays on 127.0.0.1 that carry a connection to the program behind an address as long
//! as a packet could get there. An address that nobody has is silent, as on a real network;
//! so is a cable that is out.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use super::tailscaled::Tailscaled;
use crate::net::lan::{Gateway, Interface, Kind};
use crate::types::ListenerKind;

/// All networks here are 10.99.0.0/24, as those of many homes are alike; only their gateways
/// tell them apart.
const PREFIX: u8 = 24;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// The network everybody is plugged into at first.
const HOME: u64 = 1;

/// A switch. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Switch {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Rings on everything, for connections that wait.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    seats: BTreeMap<usize, Seat>,
    /// Where the way from one device to an address begins on 127.0.0.1.
    relays: HashMap<(usize, SocketAddr), SocketAddr>,
    /// Whose connection comes from which port of 127.0.0.1.
    sources: HashMap<SocketAddr, SocketAddr>,
    /// What each device dialled.
    dialled: Vec<(usize, SocketAddr)>,
}

/// A device on the switch.
#[derive(Debug)]
struct Seat {
    network: u64,
    addr: Ipv4Addr,
    cut: bool,
    epoch: u64,
    /// Which program listens at which address and port.
    programs: HashMap<SocketAddr, SocketAddr>,
    daemon: Arc<Tailscaled>,
}

/// What becomes of a connection to an address.
enum Way {
    /// It arrives at this program.
    Open(SocketAddr),
    /// The device is there, and nothing listens.
    Refused,
    /// Nobody answers.
    Silent,
}

impl State {
    fn way(&self, (from, at): (usize, Ipv4Addr), to: SocketAddr) -> Way {
        let Some(here) = self.seats.get(&from).filter(|s| !s.cut && s.addr == at) else {
            return Way::Silent;
        };
        let mut others = self.seats.values().filter(|s| !s.cut && s.network == here.network);
        match others.find(|s| IpAddr::V4(s.addr) == to.ip()) {
            Some(there) => there.programs.get(&to).map_or(Way::Refused, |a| Way::Open(*a)),
            None => Way::Silent,
        }
    }
}

impl Switch {
    /// Plugs a device in.
    pub fn plug(&self, addr: Ipv4Addr, daemon: Arc<Tailscaled>) -> Plug {
        let seat =
            Seat { network: HOME, addr, cut: false, epoch: 1, programs: HashMap::new(), daemon };
        let mut state = self.shared.state.lock();
        let number = state.seats.len();
        state.seats.insert(number, seat);
        drop(state);
        let plug = Plug { switch: self.clone(), number };
        plug.edit(|_| {});
        plug
    }
}

/// A device's place on the switch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Plug {
    switch: Switch,
    number: usize,
}

impl Plug {
    /// Its address.
    pub fn addr(&self) -> Ipv4Addr {
        let state = self.switch.shared.state.lock();
        state.seats.get(&self.number).map_or(Ipv4Addr::UNSPECIFIED, |s| s.addr)
    }

    /// Whether the switch loses all its packets. The device does not notice: the cable it
    /// looks at is not the one that is out.
    pub fn cut(&self, cut: bool) {
        self.edit(|s| s.cut = cut);
    }

    /// Gives it another address.
    pub fn readdress(&self, addr: Ipv4Addr) {
        self.edit(|s| (s.addr, s.epoch) = (addr, s.epoch + 2));
    }

    /// Carries it to another network (1 is where it began), with the same addresses and
    /// another gateway.
    pub fn carry_to(&self, network: u64) {
        self.edit(|s| (s.network, s.epoch) = (network, s.epoch + 2));
    }

    /// The addresses it dialled so far on the local network.
    pub fn dialled(&self) -> Vec<SocketAddr> {
        let state = self.switch.shared.state.lock();
        state.dialled.iter().filter(|(n, _)| *n == self.number).map(|(_, addr)| *addr).collect()
    }

    /// The addresses its program listens at there.
    pub fn listens(&self) -> Vec<SocketAddr> {
        let state = self.switch.shared.state.lock();
        let seat = state.seats.get(&self.number);
        seat.map_or_else(Vec::new, |s| s.programs.keys().copied().collect())
    }

    /// The interfaces its program sees.
    pub fn interfaces(&self) -> Vec<Interface> {
        let state = self.switch.shared.state.lock();
        let Some(seat) = state.seats.get(&self.number) else { return Vec::new() };
        let plain = Interface {
            name: "lo".to_owned(),
            index: None,
            addr: Ipv4Addr::LOCALHOST.into(),
            prefix: 8,
            gateway: None,
            kind: Kind::Loopback,
            epoch: 0,
        };
        let gateway = Gateway {
            addr: GATEWAY.into(),
            link: Some(format!("02:00:5e:10:00:{:02x}", seat.network % 256)),
        };
        let lan = Interface {
            name: "lan0".to_owned(),
            addr: seat.addr.into(),
            prefix: PREFIX,
            gateway: Some(gateway),
            kind: Kind::Lan,
            epoch: seat.epoch,
            ..plain.clone()
        };
        vec![plain, lan]
    }

    /// Its program listens at `wanted`, which is really `actual`.
    pub fn listening(&self, wanted: SocketAddr, actual: SocketAddr) {
        self.edit(|s| {
            s.programs.insert(wanted, actual);
        });
    }

    /// Its program has ended.
    pub fn quiet(&self) {
        self.edit(|s| s.programs.clear());
    }

    /// Where the way to an address of a peer's LAN listener begins. Other addresses stay as
    /// they are.
    pub fn reach(&self, kind: ListenerKind, addr: SocketAddr) -> SocketAddr {
        if kind != ListenerKind::Lan {
            return addr;
        }
        self.switch.shared.state.lock().dialled.push((self.number, addr));
        // Whoever finds no way is refused, not misled.
        self.relay(addr).unwrap_or_else(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// The address on the local network that a connection on 127.0.0.1 really comes from.
    pub fn source(&self, remote: SocketAddr) -> SocketAddr {
        let state = self.switch.shared.state.lock();
        state.sources.get(&remote).copied().unwrap_or(remote)
    }

    fn relay(&self, to: SocketAddr) -> io::Result<SocketAddr> {
        let shared = &self.switch.shared;
        if let Some(at) = shared.state.lock().relays.get(&(self.number, to)) {
            return Ok(*at);
        }
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let at = listener.local_addr()?;
        let listener = TcpListener::from_std(listener)?;
        shared.state.lock().relays.insert((self.number, to), at);
        let (weak, gone) = (Arc::downgrade(shared), shared.changed.subscribe());
        tokio::spawn(relay(weak, gone, self.number, to, listener));
        Ok(at)
    }

    fn edit(&self, change: impl FnOnce(&mut Seat)) {
        let shared = &self.switch.shared;
        let mut state = shared.state.lock();
        let told = state.seats.get_mut(&self.number).map(|seat| {
            change(seat);
            // Behind a cable that is out, a device is alone.
            let alone = u64::MAX - u64::try_from(self.number).unwrap_or_default();
            let network = if seat.cut { alone } else { seat.network };
            (Arc::clone(&seat.daemon), network, seat.addr)
        });
        drop(state);
        if let Some((daemon, network, addr)) = told {
            daemon.link(Some((network, addr.into())));
        }
        shared.changed.send_modify(|n| *n += 1);
    }
}

/// Takes connections from one device to one address, until the switch is gone.
async fn relay(
    shared: Weak<Shared>,
    mut gone: watch::Receiver<u64>,
    from: usize,
    to: SocketAddr,
    listener: TcpListener,
) {
    loop {
        tokio::select! {
            more = gone.changed() => if more.is_err() { return },
            tcp = listener.accept() => if let Ok((tcp, _)) = tcp {
                tokio::spawn(carry(shared.clone(), gone.clone(), from, to, tcp));
            }
        }
    }
}

/// Carries one connection; stands still while no packet comes through.
async fn carry(
    shared: Weak<Shared>,
    mut changed: watch::Receiver<u64>,
    from: usize,
    to: SocketAddr,
    mut here: TcpStream,
) {
    let at = |shared: &Shared| shared.state.lock().seats.get(&from).map(|s| s.addr);
    let Some(at) = shared.upgrade().and_then(|s| at(&s)) else { return };
    let way = || shared.upgrade().map(|s| s.state.lock().way((from, at), to));
    let program = loop {
        match way() {
            Some(Way::Open(program)) => break program,
            Some(Way::Silent) => {
                if changed.changed().await.is_err() {
                    return;
                }
            }
            Some(Way::Refused) | None => return,
        }
    };
    let Ok((mut there, source)) = connect(&shared, at, program).await else { return };
    {
        let mut copy = std::pin::pin!(tokio::io::copy_bidirectional(&mut here, &mut there));
        loop {
            // The connection stays with the program it found, and with both addresses.
            let open = matches!(way(), Some(Way::Open(now)) if now == program);
            tokio::select! {
                biased;
                more = changed.changed() => if more.is_err() { break },
                _ = &mut copy, if open => break,
            }
        }
    }
    if let Some(shared) = shared.upgrade() {
        shared.state.lock().sources.remove(&source);
    }
}

async fn connect(
    shared: &Weak<Shared>,
    from: Ipv4Addr,
    program: SocketAddr,
) -> io::Result<(TcpStream, SocketAddr)> {
    let socket = TcpSocket::new_v4()?;
    // Bound first: whose it is has to be known before the program can ask.
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let source = socket.local_addr()?;
    if let Some(shared) = shared.upgrade() {
        shared.state.lock().sources.insert(source, SocketAddr::from((from, source.port())));
    }
    let tcp = socket.connect(program).await?;
    tcp.set_nodelay(true)?;
    Ok((tcp, source))
}
