//! The listeners on the local network: they follow the links that may be used.
//!
//! In flow the links, and trust; out flow streams whose other end proved a pinned key. Before
//! that nobody is known, so strangers get little: eight at once, five seconds each, and not a
//! byte unless they call this node by its tag. Where a ninth comes, the one that has waited
//! longest goes, first one of the same address: who floods takes its own places.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{sleep_until, timeout};

use super::follow::{Arrival, Follower, MeshPort, WAITING, Wanted};
use super::tls;
use crate::net::Io;
use crate::net::lan::{LanLink, LanView, Reason, Tied};
use crate::net::sockets::Sockets;
use crate::net::task::Task;
use crate::telemetry::Clock;
use crate::telemetry::metrics::Metrics;
use crate::trust::{Trust, View, tag};
use crate::types::{ListenerKind, PublicKey, Timing, Wall};

/// Most handshakes at once.
const STRANGERS: usize = 8;
/// Most connections at once.
const CONNECTIONS: usize = 256;
/// Most of them of one key.
const OF_ONE: usize = 64;
/// How many tags that were used are remembered.
const TAGS: usize = 4096;

/// A connection from a pinned peer on the local network.
pub struct LanAccepted {
    /// The stream inside TLS. It is cut when the pin dies or its link may not be used any more.
    pub io: Box<dyn Io>,
    /// The key its other end proved to hold.
    pub key: PublicKey,
    /// Our address in it.
    pub local: SocketAddr,
    /// Theirs.
    pub remote: SocketAddr,
}

impl std::fmt::Debug for LanAccepted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LanAccepted")
            .field("key", &self.key)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

/// Listeners that follow the local network, for as long as this value lives.
#[derive(Debug)]
pub struct LanListeners {
    accepted: mpsc::Receiver<LanAccepted>,
    state: watch::Receiver<Vec<MeshPort>>,
    _tasks: [Task; 2],
}

impl LanListeners {
    /// Follows `lan` with a listener on `port` of each of its links, for peers that `trust`
    /// holds a live pin of.
    pub fn follow(
        lan: watch::Receiver<Arc<LanView>>,
        trust: Trust,
        port: u16,
        sockets: Sockets,
        metrics: Arc<Metrics>,
        clock: Clock,
        timing: &Timing,
    ) -> LanListeners {
        let (follower, arrivals, state) = Follower::new(ListenerKind::Lan, sockets.clone());
        let (send, accepted) = mpsc::channel(WAITING);
        let front = Front {
            lan: lan.clone(),
            trust,
            sockets,
            metrics,
            limit: timing.handshake,
            every: timing.pin_dead / 2,
            tags: Arc::default(),
            places: Arc::default(),
        };
        let follow = Task::spawn(run(follower, lan, port, clock, timing.tailnet_poll));
        let front = Task::spawn(front.run(arrivals, send));
        LanListeners { accepted, state, _tasks: [follow, front] }
    }

    /// The next connection; `None` once the local network is not followed any more.
    pub async fn accept(&mut self) -> Option<LanAccepted> {
        self.accepted.recv().await
    }

    /// How the listeners fare.
    pub fn state(&self) -> watch::Receiver<Vec<MeshPort>> {
        self.state.clone()
    }
}

async fn run(
    mut follower: Follower,
    mut lan: watch::Receiver<Arc<LanView>>,
    port: u16,
    clock: Clock,
    every: Duration,
) {
    loop {
        let view = Arc::clone(&lan.borrow_and_update());
        let some = !view.links.is_empty();
        let wanted = view.links.iter().map(|link| Wanted {
            addr: SocketAddr::new(link.addr, port),
            device: Ok(Some(link.device())),
        });
        follower.step(wanted.collect());
        tokio::select! {
            changed = lan.changed() => if changed.is_err() { return },
            // Ports become free without a word.
            () = sleep_until(clock.next(every)), if some => {}
            () = follower.abandoned() => return,
        }
    }
}

/// What stands between an accepted connection and one that is somebody's.
struct Front {
    lan: watch::Receiver<Arc<LanView>>,
    trust: Trust,
    sockets: Sockets,
    /// Where it is counted who is turned away.
    metrics: Arc<Metrics>,
    limit: Duration,
    every: Duration,
    tags: Arc<Mutex<Tags>>,
    places: Arc<Places>,
}

/// A handshake under way.
struct Stranger {
    task: Id,
    from: IpAddr,
    stop: AbortHandle,
}

impl Front {
    async fn run(self, mut arrivals: mpsc::Receiver<Arrival>, send: mpsc::Sender<LanAccepted>) {
        let mut tasks = JoinSet::new();
        let mut strangers: VecDeque<Stranger> = VecDeque::new();
        loop {
            tokio::select! {
                arrival = arrivals.recv() => {
                    let Some(arrival) = arrival else { return };
                    let Some(link) = self.link(arrival.wanted) else { continue };
                    let remote = self.sockets.source(arrival.remote);
                    let arrival = Arrival { remote, ..arrival };
                    let from = remote.ip();
                    for _ in 0..make_room(&mut strangers, from) {
                        self.metrics.refused(ListenerKind::Lan, tls::TOO_MANY);
                    }
                    let stop = tasks.spawn(self.shake(arrival, link));
                    strangers.push_back(Stranger { task: stop.id(), from, stop });
                }
                Some(done) = tasks.join_next_with_id() => {
                    let id = done.as_ref().map_or_else(|e| e.id(), |(id, _)| *id);
                    strangers.retain(|s| s.task != id);
                    // If the program does not take what it has, more does not help it.
                    if let Ok((_, Some(accepted))) = done && send.try_send(accepted).is_err() {
                        self.metrics.refused(ListenerKind::Lan, tls::TOO_MANY);
                        tracing::warn!("a connection on the local network was closed: too many wait");
                    }
                }
            }
        }
    }

    fn link(&self, wanted: SocketAddr) -> Option<LanLink> {
        self.lan.borrow().links.iter().find(|link| link.addr == wanted.ip()).cloned()
    }

    fn shake(
        &self,
        arrival: Arrival,
        link: LanLink,
    ) -> impl Future<Output = Option<LanAccepted>> + Send + 'static {
        let Arrival { stream, local, remote, wanted } = arrival;
        let (lan, trust) = (self.lan.clone(), self.trust.clone());
        let (limit, every) = (self.limit, self.every);
        let (tags, places) = (Arc::clone(&self.tags), Arc::clone(&self.places));
        let leashes = self.sockets.leashes().clone();
        let metrics = Arc::clone(&self.metrics);
        async move {
            let refused = |reason| metrics.refused(ListenerKind::Lan, reason);
            // (A demo's listener is on no network that could be lost.)
            let carrier = (local.ip() == wanted.ip()).then(|| leashes.carrier(&link));
            let stream = leashes.tie(stream, link.clone(), carrier).ok()?;
            let leash = stream.leash();
            // The listener is bound to that one address, so that is what was called (`local` is
            // where a demo's listener really is).
            let shaken = tls::pinned(stream, wanted, &trust, |nonce| tags.lock().is_fresh(nonce));
            let (stream, key) = match timeout(limit, shaken).await {
                Ok(Ok(shaken)) => shaken,
                Err(_) => {
                    refused(tls::HANDSHAKE_FAILED);
                    return None;
                }
                Ok(Err(error)) => {
                    refused(error.label());
                    tracing::debug!(%remote, %error, "refused on the local network");
                    return None;
                }
            };
            let Some(place) = Place::take(places, key) else {
                refused(tls::TOO_MANY);
                tracing::warn!(%remote, "a connection on the local network was closed: too many");
                return None;
            };
            let alive = move |view: &View, now: Wall| view.live_key(&key, now).is_some();
            let reason = Reason { lan, link, trust, alive, every };
            let io = Tied::new(stream, leash, reason, place);
            Some(LanAccepted { io: Box::new(io), key, local, remote })
        }
    }
}

/// Makes room for one more handshake. Says how many had to go for it.
fn make_room(strangers: &mut VecDeque<Stranger>, from: IpAddr) -> usize {
    let before = strangers.len();
    while strangers.len() >= STRANGERS {
        let oldest = strangers.iter().position(|s| s.from == from).unwrap_or(0);
        if let Some(stranger) = strangers.remove(oldest) {
            stranger.stop.abort();
        }
    }
    before - strangers.len()
}

/// The random parts of the last tags that were used.
#[derive(Default)]
struct Tags {
    used: HashSet<tag::Nonce>,
    order: VecDeque<tag::Nonce>,
}

impl Tags {
    fn is_fresh(&mut self, nonce: tag::Nonce) -> bool {
        if !self.used.insert(nonce) {
            return false;
        }
        self.order.push_back(nonce);
        if self.order.len() > TAGS
            && let Some(oldest) = self.order.pop_front()
        {
            self.used.remove(&oldest);
        }
        true
    }
}

/// How many connections each key has.
#[derive(Default)]
struct Places(Mutex<HashMap<PublicKey, usize>>);

/// One connection's place.
struct Place {
    places: Arc<Places>,
    key: PublicKey,
}

impl Place {
    fn take(places: Arc<Places>, key: PublicKey) -> Option<Place> {
        let mut taken = places.0.lock();
        let of_one = taken.get(&key).copied().unwrap_or(0);
        if of_one >= OF_ONE || taken.values().sum::<usize>() >= CONNECTIONS {
            return None;
        }
        *taken.entry(key).or_default() += 1;
        drop(taken);
        Some(Place { places, key })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock();
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}
