//! What Linux says, on the system bus: logind of use and sleep, NetworkManager of the link.
//!
//! Before the machine sleeps logind waits for those who asked it to, a few seconds at most: as
//! long as it takes to tell peers. Where there is no such bus, nobody says anything.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::{interval, sleep, timeout};
use zbus::zvariant::{OwnedFd, OwnedValue};
use zbus::{Connection, MatchRule, MessageStream};

use super::Host;
use crate::telemetry::wall;
use crate::types::Wall;

/// How often it is asked for use and link.
const LOOK: Duration = Duration::from_secs(5);
/// How long without a bus until it is looked for again.
const AGAIN: Duration = Duration::from_secs(60);
/// Longest answer.
const LIMIT: Duration = Duration::from_secs(2);
/// How long sleep is held up: reports leave within a quarter of a second.
const SAYING: Duration = Duration::from_secs(1);
/// A sleep that has not come by then, does not.
const AWAKE: u32 = 6;

const LOGIND: [&str; 3] =
    ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"];
const NETWORK: [&str; 3] = [
    "org.freedesktop.NetworkManager",
    "/org/freedesktop/NetworkManager",
    "org.freedesktop.NetworkManager",
];

/// Tells `out` what the machine says, for as long as somebody listens.
pub(super) async fn follow(out: watch::Sender<Host>) {
    while !out.is_closed() {
        if let Ok(Ok(bus)) = timeout(LIMIT, Connection::system()).await {
            listen(&bus, &out).await;
            out.send_replace(Host::default());
        }
        sleep(AGAIN).await;
    }
}

/// The same, on this bus, until it ends.
async fn listen(bus: &Connection, out: &watch::Sender<Host>) -> Option<()> {
    let [name, path, interface] = LOGIND;
    let rule = MatchRule::builder().msg_type(zbus::message::Type::Signal);
    let rule = rule.sender(name).ok()?.path(path).ok()?.interface(interface).ok()?;
    let rule = rule.member("PrepareForSleep").ok()?.build();
    let mut sleeps = MessageStream::for_match_rule(rule, bus, None).await.ok()?;
    let mut held = inhibit(bus).await;
    let mut looks = interval(LOOK);
    let mut waited = 0;
    loop {
        tokio::select! {
            sleeps = sleeps.next() => {
                let going: bool = sleeps?.ok()?.body().deserialize().ok()?;
                out.send_modify(|host| host.sleeping = going);
                if going {
                    waited = 0;
                    sleep(SAYING).await;
                    held = None;
                } else if held.is_none() {
                    held = inhibit(bus).await;
                }
            }
            _ = looks.tick() => {
                let idle = idle(bus, wall()).await;
                let metered = property(bus, NETWORK, "Metered").await.and_then(metered);
                waited += 1;
                out.send_if_modified(|host| {
                    let sleeping = host.sleeping && waited < AWAKE;
                    let now = Host { idle, metered, sleeping, ..Host::default() };
                    std::mem::replace(host, now) != now
                });
            }
        }
    }
}

/// Asks logind to wait before it sleeps, until what is returned is dropped.
async fn inhibit(bus: &Connection) -> Option<OwnedFd> {
    let [name, path, interface] = LOGIND;
    let why = ("sleep", "tailherd", "Tells other nodes that this one goes to sleep", "delay");
    let call = bus.call_method(Some(name), path, Some(interface), "Inhibit", &why);
    timeout(LIMIT, call).await.ok()?.ok()?.body().deserialize().ok()
}

/// For how long nobody has used the machine.
async fn idle(bus: &Connection, now: Wall) -> Option<Duration> {
    if !property::<bool>(bus, LOGIND, "IdleHint").await? {
        return Some(Duration::ZERO);
    }
    let since: u64 = property(bus, LOGIND, "IdleSinceHint").await?;
    Some(now.since(Wall(since / 1_000_000)))
}

/// `NMMetered`: yes, no, and two guesses.
fn metered(said: u32) -> Option<bool> {
    match said {
        1 | 3 => Some(true),
        2 | 4 => Some(false),
        _ => None,
    }
}

async fn property<T: TryFrom<OwnedValue>>(
    bus: &Connection,
    [name, path, interface]: [&str; 3],
    property: &str,
) -> Option<T> {
    let properties = Some("org.freedesktop.DBus.Properties");
    let which = (interface, property);
    let call = bus.call_method(Some(name), path, properties, "Get", &which);
    let value: OwnedValue = timeout(LIMIT, call).await.ok()?.ok()?.body().deserialize().ok()?;
    T::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream as Pair;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use parking_lot::Mutex;
    use tokio::net::UnixStream;
    use tokio::time::Instant;
    use zbus::connection::Builder;
    use zbus::object_server::SignalEmitter;

    use super::*;

    /// A logind that says since when nobody is there, and keeps the other ends of what holds
    /// its sleep up.
    #[derive(Default, Clone)]
    struct Logind {
        since: Arc<AtomicU64>,
        held: Arc<Mutex<Vec<Pair>>>,
    }

    #[zbus::interface(name = "org.freedesktop.login1.Manager")]
    impl Logind {
        #[zbus(property)]
        fn idle_hint(&self) -> bool {
            self.since.load(Relaxed) > 0
        }

        #[zbus(property)]
        fn idle_since_hint(&self) -> u64 {
            self.since.load(Relaxed)
        }

        fn inhibit(&self, what: &str, who: &str, _why: &str, mode: &str) -> OwnedFd {
            assert_eq!((what, who, mode), ("sleep", "tailherd", "delay"));
            let (ours, theirs) = Pair::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            self.held.lock().push(ours);
            OwnedFd::from(std::os::fd::OwnedFd::from(theirs))
        }

        #[zbus(signal)]
        async fn prepare_for_sleep(from: &SignalEmitter<'_>, going: bool) -> zbus::Result<()>;
    }

    struct Network(u32);

    #[zbus::interface(name = "org.freedesktop.NetworkManager")]
    impl Network {
        #[zbus(property)]
        fn metered(&self) -> u32 {
            self.0
        }
    }

    /// Whether the last inhibitor is still held.
    fn is_held(logind: &Logind) -> bool {
        let mut held = logind.held.lock();
        let end = held.last_mut().map(|end| end.read(&mut [0]));
        matches!(end, Some(Err(error)) if error.kind() == std::io::ErrorKind::WouldBlock)
    }

    async fn bus(logind: &Logind, network: Option<u32>) -> (Connection, Connection) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let guid = zbus::Guid::generate();
        let mut server = Builder::unix_stream(theirs).server(guid).unwrap().p2p();
        server = server.serve_at(LOGIND[1], logind.clone()).unwrap();
        if let Some(said) = network {
            server = server.serve_at(NETWORK[1], Network(said)).unwrap();
        }
        let client = Builder::unix_stream(ours).p2p();
        let (server, client) = tokio::join!(server.build(), client.build());
        (server.unwrap(), client.unwrap())
    }

    #[tokio::test]
    async fn use_and_link_are_what_the_bus_says_and_nothing_where_it_does_not() {
        let logind = Logind::default();
        let (_server, client) = bus(&logind, Some(3)).await;
        let now = wall();
        assert_eq!(idle(&client, now).await, Some(Duration::ZERO));
        logind.since.store((now.0 - 700) * 1_000_000, Relaxed);
        assert_eq!(idle(&client, now).await, Some(Duration::from_secs(700)));
        assert_eq!(property(&client, NETWORK, "Metered").await.and_then(metered), Some(true));
        let (_server, without) = bus(&logind, None).await;
        assert_eq!(property::<u32>(&without, NETWORK, "Metered").await, None);
        for (said, expect) in [(0, None), (1, Some(true)), (2, Some(false)), (4, Some(false))] {
            assert_eq!(metered(said), expect, "{said}");
        }
    }

    #[tokio::test]
    async fn sleep_is_held_up_until_it_was_said_and_again_after_it() {
        let logind = Logind::default();
        let (server, client) = bus(&logind, Some(2)).await;
        let (out, mut said) = watch::channel(Host::default());
        let listening = tokio::spawn(async move { listen(&client, &out).await });
        said.wait_for(|host| host.metered == Some(false)).await.unwrap();
        assert!(is_held(&logind));
        let from = SignalEmitter::new(&server, LOGIND[1]).unwrap();
        Logind::prepare_for_sleep(&from, true).await.unwrap();
        said.wait_for(|host| host.sleeping).await.unwrap();
        let began = Instant::now();
        assert!(is_held(&logind), "it is said first");
        while is_held(&logind) {
            sleep(Duration::from_millis(20)).await;
        }
        let took = began.elapsed();
        assert!(took > SAYING / 2 && took < 4 * SAYING, "{took:?}");
        Logind::prepare_for_sleep(&from, false).await.unwrap();
        said.wait_for(|host| !host.sleeping).await.unwrap();
        while !is_held(&logind) {
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(logind.held.lock().len(), 2, "the next sleep waits, too");
        drop(from);
        server.close().await.unwrap();
        assert_eq!(listening.await.unwrap(), None, "a bus that is gone is looked for again");
    }
}
