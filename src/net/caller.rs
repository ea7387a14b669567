//! Who stands at the other end of a connection.
//!
//! In flow a listener's kind and a connection's two addresses; out flows a [`Caller`] or the
//! reason why the connection is refused. There is no default: whoever cannot be named is
//! nobody.
//!
//! Loopback is no proof of a local program. In userspace mode the daemon forwards *every*
//! tailnet port to 127.0.0.1, and for a moment WhoIs does not know the forwarded connection
//! yet. So unless the daemon is known to have a network device of its own, a connection from
//! this machine counts as local only if WhoIs names nobody behind it after several tries
//! *and* the kernel says that its other end is not the daemon's. A daemon that hangs names
//! nobody either: while the kernel says so of the process that listens on LocalAPI's socket at
//! this moment, it is not waited for as long as others are.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::localapi::{ApiError, Current, Daemon, FindError, LocalApi, WhoIs};
use super::peerproc::{self, OtherEnd};
use super::sockets::Sockets;
use super::view::TailnetView;
use super::witness::Witness;
use crate::api::hello::Admit;
use crate::config;
use crate::telemetry::{Clock, wall};
use crate::trust::{Trust, Verdict};
use crate::types::{Caller, CallerKind, ListenerKind, Moment, PublicKey, Timing};

/// Why a connection's requests are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The tailnet knows nobody at that address.
    #[error("the tailnet knows nobody at this address")]
    Unknown,
    /// The address is not the node's own: it came through a subnet router.
    #[error("the address is not the node's own")]
    NotOwnAddress,
    /// The daemon forwarded the connection and does not say for whom.
    #[error("the connection came through tailscaled, which does not say for whom")]
    Forwarded,
    /// It cannot be told whether the connection is a local program's.
    #[error("it cannot be told whether this is a program of this machine")]
    Undecidable,
    /// The listener is for programs of this machine only.
    #[error("this is for programs of this machine only")]
    NotLocal,
    /// LocalAPI does not answer, or not in a way that can be used.
    #[error("tailscaled does not say who this is")]
    Unavailable,
    /// On the local network: no live pin has that key.
    #[error("no pin that may be used has this key")]
    NotPinned,
    /// On the local network: this node's clock was set back, so no pin has an age.
    #[error("the clock was set back: the tailnet has to be seen first")]
    ClockBack,
    /// On the local network: the tailnet's policy does not let it in either.
    #[error("the tailnet's policy does not let this node in")]
    Policy,
    /// On the local network: the tailnet reaches it, so that is the way.
    #[error("use the tailnet")]
    UseTailnet,
}

impl Refusal {
    /// The reason in `tailherd_refused_total` and in logs.
    pub const fn label(self) -> &'static str {
        match self {
            Refusal::Unknown => "unknown_caller",
            Refusal::NotOwnAddress => "not_own_address",
            Refusal::Forwarded => "forwarded",
            Refusal::Undecidable => "undecidable",
            Refusal::NotLocal => "not_local",
            Refusal::Unavailable => "whois_unavailable",
            Refusal::NotPinned => "not_pinned",
            Refusal::ClockBack => "clock_back",
            Refusal::Policy => "policy",
            Refusal::UseTailnet => "use_tailnet",
        }
    }

    /// The HTTP status: 503 where asking again later may help, 421 where another way does,
    /// else 403.
    pub const fn status(self) -> http::StatusCode {
        match self {
            Refusal::Unavailable => http::StatusCode::SERVICE_UNAVAILABLE,
            Refusal::UseTailnet => http::StatusCode::MISDIRECTED_REQUEST,
            _ => http::StatusCode::FORBIDDEN,
        }
    }
}

/// Names callers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Callers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tailnet: watch::Receiver<Arc<TailnetView>>,
    localapi: Current,
    config: config::Tailnet,
    sockets: Sockets,
    clock: Clock,
    timing: Timing,
    bell: watch::Receiver<u64>,
    /// Whether the rules name users of this machine.
    users: AtomicBool,
    /// The last daemon that was met: it may go on forwarding after its socket is gone.
    last: Mutex<Option<Daemon>>,
    witness: Witness,
}

impl Callers {
    /// Callers as this machine and this tailnet know them. What was learned of a node is asked
    /// for again when `bell` has moved.
    pub fn new(
        tailnet: watch::Receiver<Arc<TailnetView>>,
        localapi: Current,
        config: config::Tailnet,
        sockets: Sockets,
        clock: Clock,
        timing: Timing,
        bell: watch::Receiver<u64>,
    ) -> Callers {
        Callers(Arc::new(Inner {
            tailnet,
            localapi,
            config,
            sockets,
            clock,
            timing,
            bell,
            users: AtomicBool::new(false),
            last: Mutex::new(None),
            witness: Witness::default(),
        }))
    }

    /// Whether the user behind each local connection is looked up where nothing else asks for
    /// it: needed only while rules name users (`uid:N`).
    pub fn look_up_users(&self, on: bool) {
        self.0.users.store(on, Relaxed);
    }

    /// The identity of one connection, to be asked before each of its requests.
    pub fn connection(
        &self,
        kind: ListenerKind,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Identity {
        let known = Mutex::new(None);
        Identity { callers: self.clone(), kind, local, remote, pin: None, known }
    }

    /// The identity of a connection on the local network whose other end proved to hold `key`,
    /// to be asked before each of its requests.
    pub fn pinned(
        &self,
        trust: &Trust,
        key: PublicKey,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Identity {
        let pin = Some((trust.clone(), key));
        let (callers, known) = (self.clone(), Mutex::new(None));
        Identity { callers, kind: ListenerKind::Lan, local, remote, pin, known }
    }

    /// Who stands at the other end of the connection that a listener of this kind sees as
    /// `local` ← `remote`.
    pub async fn identify(
        &self,
        kind: ListenerKind,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<Caller, Refusal> {
        match kind {
            ListenerKind::Mesh => self.0.mesh(remote).await,
            ListenerKind::Apps => self.0.here(local, remote).await,
            ListenerKind::Admin => {
                let caller = self.0.here(local, remote).await?;
                if caller.is_local() { Ok(caller) } else { Err(Refusal::NotLocal) }
            }
            // Nothing but a pinned key names a caller there.
            ListenerKind::Lan => Err(Refusal::Unknown),
        }
    }
}

/// How asking WhoIs about a connection from this machine ended.
enum Asked {
    /// It names a node.
    Node(Caller),
    /// It names nobody.
    Nobody,
    /// No daemon listens.
    Away,
    /// It did not answer, or not in a way that can be used.
    Failed,
}

impl Inner {
    /// A caller of a mesh listener.
    async fn mesh(&self, remote: SocketAddr) -> Result<Caller, Refusal> {
        let api = self.localapi.load_full().ok_or(Refusal::Unavailable)?;
        let asked = if remote.ip().to_canonical().is_loopback() {
            // Userspace mode: forwarded by the daemon.
            self.patiently(&api, remote, self.timing.localapi_read).await
        } else {
            api.whois(remote).await
        };
        match asked {
            Ok(Some(who)) => node(who, remote),
            Ok(None) => Err(Refusal::Unknown),
            Err(_) => Err(Refusal::Unavailable),
        }
    }

    /// A caller on the local network, by the key it proved to hold. It may come in by this way
    /// only while the tailnet does not carry it, as far as *we* can tell: what it says of its
    /// own tailnet does not count.
    async fn holder(
        &self,
        trust: &Trust,
        key: &PublicKey,
        remote: SocketAddr,
    ) -> Result<Caller, Refusal> {
        let (mut caller, addrs) = judged(trust, key)?;
        let running = self.tailnet.borrow().running;
        if running
            && !addrs.is_empty()
            && let Some(api) = self.localapi.load_full()
            && self.witness.answers(key, &addrs, api, self.clock, &self.timing).await
        {
            return Err(Refusal::UseTailnet);
        }
        caller.addr = Some(remote);
        Ok(caller)
    }

    /// A caller of a listener for programs of this machine.
    async fn here(&self, local: SocketAddr, remote: SocketAddr) -> Result<Caller, Refusal> {
        let ip = remote.ip().to_canonical();
        let tun = self.tailnet.borrow().tun;
        // What comes from elsewhere (a container on a bridge) did not come through the daemon
        // of this machine; and a daemon with a network device forwards nothing to loopback.
        if tun == Some(true) || !is_own_address(ip) {
            return Ok(self.program(local, remote).await);
        }
        let asked = match self.localapi.load_full() {
            Some(api) => {
                let limit = self.patience(&api, local, remote).await;
                self.ask(&api, remote, limit).await
            }
            // Not in use: it may have started a moment ago, or the configuration wants none. It
            // forwards all the same.
            None => match LocalApi::find(&self.config, &self.timing).await {
                Ok(api) => {
                    let limit = self.patience(&api, local, remote).await;
                    match timeout(limit, api.status(false)).await {
                        Ok(Ok(view)) if view.tun == Some(true) => {
                            return Ok(self.program(local, remote).await);
                        }
                        // It would not say more to the next question.
                        Err(_) => self.met(&api, Asked::Failed),
                        Ok(_) => self.ask(&api, remote, limit).await,
                    }
                }
                Err(FindError::None(_)) if self.last.lock().is_none() => {
                    return Ok(self.program(local, remote).await);
                }
                Err(FindError::None(_)) => Asked::Away,
                Err(FindError::Silent(error)) if error.is_away() => Asked::Away,
                Err(FindError::Silent(_)) => Asked::Failed,
                Err(FindError::Distrust { daemon, .. }) => {
                    // It names nobody we would believe, but its process is known.
                    *self.last.lock() = daemon;
                    Asked::Failed
                }
            },
        };
        let daemon = *self.last.lock();
        let end = match asked {
            Asked::Node(caller) => return Ok(caller),
            // A socket file without a daemon, and none was ever met.
            Asked::Away if daemon.is_none() => return Ok(self.program(local, remote).await),
            _ => self.other_end(local, remote, daemon).await,
        };
        match (end, asked) {
            (OtherEnd::Program { uid }, _) => Ok(Caller::local(Some(uid), Some(remote))),
            // The only daemon we knew has died, and nobody has taken its place.
            (OtherEnd::Gone, Asked::Away) => Ok(Caller::local(None, Some(remote))),
            (OtherEnd::Daemon, Asked::Failed) => Err(Refusal::Unavailable),
            (OtherEnd::Daemon, _) => Err(Refusal::Forwarded),
            (OtherEnd::Gone | OtherEnd::Unknown, _) => Err(Refusal::Undecidable),
        }
    }

    /// A program of this machine, with its user if the rules ask for that.
    async fn program(&self, local: SocketAddr, remote: SocketAddr) -> Caller {
        let uid = if self.users.load(Relaxed) {
            let look = tokio::task::spawn_blocking(move || peerproc::uid_of(local, remote));
            look.await.ok().flatten()
        } else {
            None
        };
        Caller::local(uid, Some(remote))
    }

    /// How long the daemon may be silent about a connection from this machine. What another
    /// process than its own holds it did not forward, so a daemon that hangs need not be waited
    /// for; one that answers is asked as often as any.
    async fn patience(&self, api: &LocalApi, local: SocketAddr, remote: SocketAddr) -> Duration {
        // Of whoever listens now: the one met before may have died since.
        let Some(daemon) = api.meet().await else { return self.timing.localapi_read };
        match self.other_end(local, remote, Some(daemon)).await {
            OtherEnd::Program { .. } => self.timing.whois_silence,
            OtherEnd::Daemon | OtherEnd::Gone | OtherEnd::Unknown => self.timing.localapi_read,
        }
    }

    /// Asks WhoIs about a connection from this machine, and notes whom it asked.
    async fn ask(&self, api: &LocalApi, remote: SocketAddr, limit: Duration) -> Asked {
        let asked = match self.patiently(api, remote, limit).await {
            Ok(Some(who)) => node(who, remote).map_or(Asked::Failed, Asked::Node),
            Ok(None) => Asked::Nobody,
            Err(error) if error.is_away() => Asked::Away,
            Err(_) => Asked::Failed,
        };
        self.met(api, asked)
    }

    /// Notes whom that was asked.
    fn met(&self, api: &LocalApi, asked: Asked) -> Asked {
        if let Some(daemon) = api.daemon() {
            *self.last.lock() = Some(daemon);
        }
        asked
    }

    /// WhoIs, asked again while it knows nobody: the daemon registers a forwarded connection
    /// only after it has dialled us. `limit` bounds each try.
    async fn patiently(
        &self,
        api: &LocalApi,
        remote: SocketAddr,
        limit: Duration,
    ) -> Result<Option<WhoIs>, ApiError> {
        let first = Instant::now();
        let mut left = &self.timing.whois_retries[..];
        loop {
            let answer = timeout(limit, api.whois(remote)).await;
            let answer = answer.map_err(|_| ApiError::Slow(limit))??;
            // tailscaled itself takes about 0.2 s to say 404. Of the tries that are due by then
            // one is enough, as long as the last one does not begin too early.
            let due = left.iter().filter(|after| first.elapsed() >= **after).count();
            left = &left[due.saturating_sub(1)..];
            match (answer, left) {
                (None, [next, rest @ ..]) => {
                    left = rest;
                    sleep_until(first + *next).await;
                }
                (answer, _) => return Ok(answer),
            }
        }
    }

    async fn other_end(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        daemon: Option<Daemon>,
    ) -> OtherEnd {
        let sockets = self.sockets.clone();
        let look = tokio::task::spawn_blocking(move || sockets.other_end(local, remote, daemon));
        look.await.unwrap_or(OtherEnd::Unknown)
    }
}

/// The caller that WhoIs names. A source that is not the node's own address is nobody.
fn node(who: WhoIs, remote: SocketAddr) -> Result<Caller, Refusal> {
    let ip = remote.ip().to_canonical();
    if !ip.is_loopback() && !who.node.addrs.contains(&ip) {
        return Err(Refusal::NotOwnAddress);
    }
    let node = who.node;
    let kind = CallerKind::Node {
        id: node.id,
        name: node.name,
        dns: node.dns.into(),
        principal: node.principal,
        shared: node.shared,
        grants: who.caps.into(),
    };
    Ok(Caller { kind, addr: Some(remote), lan: None })
}

/// Whether an address is this machine's. If the devices cannot be listed, it may be.
fn is_own_address(ip: IpAddr) -> bool {
    ip.is_loopback()
        || if_addrs::get_if_addrs().map_or(true, |all| all.iter().any(|i| i.ip() == ip))
}

/// Who stands at the other end of one connection, remembered for its next requests.
///
/// Who holds a pinned key, and the tailnet addresses to ask whether it should come that way.
fn judged(trust: &Trust, key: &PublicKey) -> Result<(Caller, Vec<IpAddr>), Refusal> {
    match trust.view().judge(key, wall()) {
        Verdict::Admit(caller, addrs) => Ok((*caller, addrs)),
        Verdict::Policy => Err(Refusal::Policy),
        Verdict::ClockBack => Err(Refusal::ClockBack),
        Verdict::Unknown | Verdict::Suspended | Verdict::Expired | Verdict::Stale => {
            Err(Refusal::NotPinned)
        }
    }
}

/// A local program stays what it is. A node of the tailnet is asked for again when the answer
/// is older than [`Timing::whois_age`] or the bell rang since; and it never turns into a
/// local program. A caller on the local network is judged anew each time.
#[derive(Debug)]
pub struct Identity {
    callers: Callers,
    kind: ListenerKind,
    local: SocketAddr,
    remote: SocketAddr,
    /// The key, on the local network.
    pin: Option<(Trust, PublicKey)>,
    known: Mutex<Option<Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    caller: Arc<Caller>,
    at: Moment,
    rings: u64,
}

impl Identity {
    /// Who it is now. Costs nothing while the last answer holds.
    pub async fn caller(&self) -> Result<Arc<Caller>, Refusal> {
        let inner = &self.callers.0;
        // A pin may die between two requests.
        if let Some((trust, key)) = &self.pin {
            return Box::pin(inner.holder(trust, key, self.remote)).await.map(Arc::new);
        }
        let rings = *inner.bell.borrow();
        let now = inner.clock.now();
        let known = self.known.lock().clone();
        if let Some(known) = &known {
            let fresh = known.rings == rings && now.since(known.at) < inner.timing.whois_age;
            if known.caller.is_local() || fresh {
                return Ok(Arc::clone(&known.caller));
            }
        }
        // Rare, and large: no request should have to carry it along.
        let identify = Box::pin(self.callers.identify(self.kind, self.local, self.remote));
        let caller = identify.await?;
        // (A local one that was known was given back above.)
        if known.is_some() && caller.is_local() {
            return Err(Refusal::Undecidable);
        }
        let caller = Arc::new(caller);
        *self.known.lock() = Some(Known { caller: Arc::clone(&caller), at: now, rings });
        Ok(caller)
    }

    /// Whether whoever holds the pinned key is somebody here at all, whichever way they should
    /// come. Says it at once, and nothing of the tailnet.
    pub fn is_pinned(&self) -> Result<(), Refusal> {
        match &self.pin {
            Some((trust, key)) => judged(trust, key).map(drop),
            None => Err(Refusal::NotPinned),
        }
    }

    /// Whether requests over this connection would be answered: what a peer on the local
    /// network is told when it asks. `may` says whether the rules let a caller do anything.
    pub async fn admission(&self, may: impl Fn(&Caller) -> bool) -> Admit {
        match self.caller().await {
            Ok(caller) if may(&caller) => Admit::Yes,
            Ok(_) => Admit::Policy,
            Err(Refusal::UseTailnet) => Admit::Tailnet,
            Err(_) => Admit::Policy,
        }
    }
}
