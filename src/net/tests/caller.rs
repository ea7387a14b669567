use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::standin::{self, StandIn, golden};
use super::*;
use crate::api::hello::Admit;
use crate::config;
use crate::net::localapi::LocalApi;
use crate::net::{Callers, OtherEnd, Refusal, Sockets};
use crate::telemetry::{Clock, wall};
use crate::types::ListenerKind::{Admin, Apps, Lan, Mesh};
use crate::types::{Caller, CallerKind};

const AGE: Duration = Duration::from_millis(200);

struct Setup {
    standin: Arc<StandIn>,
    _daemon: Option<crate::net::task::Task>,
    tailnet: watch::Sender<Arc<TailnetView>>,
    current: Current,
    bell: watch::Sender<u64>,
    callers: Callers,
}

/// `tun` as the status says, and whose the other ends of connections are.
async fn setup(tun: Option<bool>, end: OtherEnd) -> Setup {
    let (standin, daemon) = standin::start();
    let current = Current::default();
    current.store(Some(Arc::new(standin.api().await)));
    let (tailnet, rx) = watch::channel(Arc::new(TailnetView { tun, ..loopback_tailnet() }));
    let bell = watch::Sender::new(0);
    let callers = Callers::new(
        rx,
        Arc::clone(&current),
        standin.config(),
        Sockets::real().with_other_end(move |_, _, _| end),
        Clock::start(),
        timing(),
        bell.subscribe(),
    );
    Setup { standin, _daemon: Some(daemon), tailnet, current, bell, callers }
}

fn timing() -> Timing {
    let ms = Duration::from_millis;
    let whois_retries = [ms(5), ms(10), ms(20)];
    Timing { whois_age: AGE, localapi_read: ms(300), whois_retries, ..Timing::shrunk() }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const HERE: &str = "127.0.0.1:11434";
const CLIENT: &str = "127.0.0.1:50001";
const PROGRAM: OtherEnd = OtherEnd::Program { uid: 1000 };

#[tokio::test]
async fn a_mesh_caller_is_whom_whois_names_at_its_own_address() {
    let s = setup(Some(true), PROGRAM).await;
    let identify =
        async |remote: &str| s.callers.identify(Mesh, addr("100.64.0.7:11436"), addr(remote)).await;
    for own in ["100.64.0.1:4000", "[fd7a:115c:a1e0::1]:4000"] {
        s.standin.knows(addr(own));
        let caller = identify(own).await.unwrap();
        assert_eq!(caller.label(), "lab", "{own}");
        assert!(!caller.is_local());
    }
    assert_eq!(identify("100.64.0.1:4001").await, Err(Refusal::Unknown));
    // WhoIs names the subnet router for what came through it: that is not the router.
    s.standin.knows(addr("192.168.7.7:4000"));
    assert_eq!(identify("192.168.7.7:4000").await, Err(Refusal::NotOwnAddress));
    s.standin.answers.lock().whois.insert(addr("100.64.0.1:4002"), "{}".to_owned());
    assert_eq!(identify("100.64.0.1:4002").await, Err(Refusal::Unavailable));
}

#[tokio::test]
async fn a_whois_that_hangs_or_is_away_refuses() {
    let mut s = setup(Some(true), PROGRAM).await;
    let remote = addr("100.64.0.1:4000");
    s.standin.knows(remote);
    s.standin.answers.lock().hang = true;
    let refused = s.callers.identify(Mesh, addr("100.64.0.7:11436"), remote).await;
    assert_eq!(refused, Err(Refusal::Unavailable));
    assert_eq!(Refusal::Unavailable.status(), 503);
    s.standin.answers.lock().hang = false;
    s._daemon = None;
    let refused = s.callers.identify(Mesh, addr("100.64.0.7:11436"), remote).await;
    assert_eq!(refused, Err(Refusal::Unavailable));
    s.current.store(None);
    let refused = s.callers.identify(Mesh, addr("100.64.0.7:11436"), remote).await;
    assert_eq!(refused, Err(Refusal::Unavailable));
    let refused = s.callers.identify(Lan, addr("192.168.1.5:11436"), remote).await;
    assert_eq!(refused, Err(Refusal::Unknown));
}

#[tokio::test]
async fn with_a_network_device_loopback_is_local_at_once() {
    let s = setup(Some(true), OtherEnd::Unknown).await;
    for kind in [Apps, Admin] {
        let caller = s.callers.identify(kind, addr(HERE), addr(CLIENT)).await.unwrap();
        assert!(caller.is_local());
    }
    assert_eq!(s.standin.asked_whois.load(Relaxed), 0);
}

#[tokio::test]
async fn without_one_the_kernel_has_to_confirm_that_a_caller_is_local() {
    for (end, want) in [
        (PROGRAM, Ok(Some(1000))),
        (OtherEnd::Daemon, Err(Refusal::Forwarded)),
        (OtherEnd::Gone, Err(Refusal::Undecidable)),
        (OtherEnd::Unknown, Err(Refusal::Undecidable)),
    ] {
        for tun in [Some(false), None] {
            let s = setup(tun, end).await;
            for kind in [Apps, Admin] {
                let found = s.callers.identify(kind, addr(HERE), addr(CLIENT)).await;
                let want = want.map(|uid| Caller::local(uid, Some(addr(CLIENT))));
                assert_eq!(found, want, "{end:?} {tun:?} {kind:?}");
            }
            let asked = s.standin.asked_whois.load(Relaxed);
            assert!((4..=8).contains(&asked), "up to four tries each: {asked}");
        }
    }
}

#[tokio::test]
async fn a_forwarded_connection_is_the_remote_callers_and_may_not_administer() {
    let s = setup(Some(false), PROGRAM).await;
    s.standin.knows(addr(CLIENT));
    for kind in [Apps, Mesh] {
        let caller = s.callers.identify(kind, addr(HERE), addr(CLIENT)).await.unwrap();
        assert!(!caller.is_local(), "{kind:?}");
    }
    let refused = s.callers.identify(Admin, addr(HERE), addr(CLIENT)).await;
    assert_eq!(refused, Err(Refusal::NotLocal));
}

#[tokio::test]
async fn a_whois_that_is_late_never_yields_a_local_caller() {
    for (late, end) in [(100, OtherEnd::Daemon), (100, PROGRAM), (30, PROGRAM)] {
        let s = setup(Some(false), end).await;
        let callers = Callers::new(
            s.tailnet.subscribe(),
            Arc::clone(&s.current),
            s.standin.config(),
            Sockets::real().with_other_end(move |_, _, _| end),
            Clock::start(),
            Timing { localapi_read: Duration::from_secs(3), ..Timing::default() },
            s.bell.subscribe(),
        );
        let standin = Arc::clone(&s.standin);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(late)).await;
            standin.knows(addr(CLIENT));
        });
        let caller = callers.identify(Apps, addr(HERE), addr(CLIENT)).await.unwrap();
        assert!(!caller.is_local(), "{late} ms, {end:?}");
    }
}

#[tokio::test]
async fn a_daemon_that_hangs_delays_nobody_who_is_known_not_to_come_from_it() {
    let read = Duration::from_millis(1500);
    for (end, want) in [
        (PROGRAM, Ok(Caller::local(Some(1000), Some(addr(CLIENT))))),
        (OtherEnd::Daemon, Err(Refusal::Unavailable)),
        (OtherEnd::Unknown, Err(Refusal::Undecidable)),
    ] {
        // In use, and lost again since it does not answer.
        for found in [true, false] {
            let s = setup(Some(false), end).await;
            let limits = Timing { localapi_read: read, ..Timing::default() };
            let api = LocalApi::find(&s.standin.config(), &limits).await.unwrap();
            s.current.store(found.then(|| Arc::new(api)));
            let callers = Callers::new(
                s.tailnet.subscribe(),
                Arc::clone(&s.current),
                s.standin.config(),
                // Nothing is known of a connection unless the daemon of this moment is.
                Sockets::real().with_other_end(move |_, _, daemon| match daemon {
                    Some(_) => end,
                    None => OtherEnd::Unknown,
                }),
                Clock::start(),
                limits,
                s.bell.subscribe(),
            );
            s.standin.answers.lock().frozen = true;
            let begun = tokio::time::Instant::now();
            let caller = callers.identify(Apps, addr(HERE), addr(CLIENT)).await;
            let took = begun.elapsed();
            assert_eq!(caller, want, "{end:?} {found}");
            assert_eq!(
                took < Duration::from_millis(600),
                caller.is_ok(),
                "{end:?} {found} {took:?}"
            );
        }
    }
}

#[tokio::test]
async fn the_daemons_own_connection_is_seen_through_the_real_kernel() {
    // Here the stand-in daemon and the client are one process: exactly what a forwarding
    // daemon looks like.
    let s = setup(Some(false), PROGRAM).await;
    let real = Callers::new(
        s.tailnet.subscribe(),
        Arc::clone(&s.current),
        s.standin.config(),
        Sockets::real(),
        Clock::start(),
        timing(),
        watch::channel(0).1,
    );
    let (listener, here) = listener("127.0.0.1").await;
    let client = tokio::net::TcpStream::connect(here).await.unwrap();
    let (_server, remote) = listener.accept().await.unwrap();
    let found = real.identify(Apps, here, remote).await;
    let want = if cfg!(target_os = "linux") { Refusal::Forwarded } else { Refusal::Undecidable };
    assert_eq!(found, Err(want));
    drop(client);
}

#[tokio::test]
async fn without_any_daemon_every_caller_here_is_local() {
    let s = setup(None, OtherEnd::Unknown).await;
    s.current.store(None);
    let config =
        config::Tailnet { socket: Some("/nonexistent/s.sock".into()), ..s.standin.config() };
    let callers = Callers::new(
        s.tailnet.subscribe(),
        Arc::clone(&s.current),
        config,
        Sockets::real().with_other_end(|_, _, _| OtherEnd::Unknown),
        Clock::start(),
        timing(),
        watch::channel(0).1,
    );
    let caller = callers.identify(Apps, addr(HERE), addr(CLIENT)).await.unwrap();
    assert!(caller.is_local());
    // One that started a moment ago, and that nobody else has noticed yet, is asked: it says
    // that it has a network device, or whose connection this is.
    let caller = s.callers.identify(Apps, addr(HERE), addr(CLIENT)).await.unwrap();
    assert!(caller.is_local());
    assert_eq!(s.standin.asked_whois.load(Relaxed), 0);
    let userspace = golden("status-running.json").replace("\"TUN\": true", "\"TUN\": false");
    s.standin.answers.lock().status = userspace;
    s.standin.knows(addr(CLIENT));
    let caller = s.callers.identify(Apps, addr(HERE), addr(CLIENT)).await.unwrap();
    assert!(!caller.is_local());
}

#[tokio::test]
async fn a_daemon_that_died_forwards_no_more_but_one_that_only_hides_may() {
    for (end, local) in [
        (OtherEnd::Gone, true),
        (PROGRAM, true),
        (OtherEnd::Daemon, false),
        (OtherEnd::Unknown, false),
    ] {
        let mut s = setup(None, end).await;
        s.callers.identify(Apps, addr(HERE), addr(CLIENT)).await.ok();
        s._daemon = None;
        tokio::time::sleep(Duration::from_millis(20)).await;
        for found in [true, false] {
            if !found {
                s.current.store(None);
                std::fs::remove_file(s.standin.socket()).unwrap();
            }
            let caller = s.callers.identify(Apps, addr(HERE), addr(CLIENT)).await;
            assert_eq!(caller.is_ok_and(|c| c.is_local()), local, "{end:?} {found}");
        }
    }
}

#[tokio::test]
async fn a_container_on_a_bridge_is_a_local_caller() {
    let s = setup(Some(false), OtherEnd::Unknown).await;
    let caller = s.callers.identify(Apps, addr("192.0.2.1:11434"), addr("192.0.2.77:9")).await;
    assert!(caller.unwrap().is_local());
}

#[tokio::test]
async fn a_grant_taken_away_ends_with_the_next_look() {
    let s = setup(Some(true), PROGRAM).await;
    let remote = addr("100.64.0.1:4000");
    s.standin.knows(remote);
    let identity = s.callers.connection(Mesh, addr("100.64.0.7:11436"), remote);
    let grants = async || match &identity.caller().await?.kind {
        CallerKind::Node { grants, .. } => Ok(grants.len()),
        CallerKind::Local { .. } | CallerKind::Pin { .. } => panic!("a node never becomes local"),
    };
    let asked = || s.standin.asked_whois.load(Relaxed);
    assert_eq!((grants().await, asked()), (Ok(2), 1));
    assert_eq!((grants().await, asked()), (Ok(2), 1), "remembered");
    let without = golden("whois-capabilities.json").replace("example.com/cap", "example.com/x");
    s.standin.answers.lock().whois.insert(remote, without);
    tokio::time::sleep(AGE).await;
    assert_eq!((grants().await, asked()), (Ok(0), 2), "asked again with age");
    s.standin.answers.lock().whois.clear();
    s.bell.send_modify(|n| *n += 1);
    assert_eq!((grants().await, asked()), (Err(Refusal::Unknown), 3), "asked again after a bell");
    assert_eq!(grants().await, Err(Refusal::Unknown));
}

#[tokio::test]
async fn a_remote_caller_never_turns_into_a_local_one() {
    let s = setup(Some(false), PROGRAM).await;
    s.standin.knows(addr(CLIENT));
    let identity = s.callers.connection(Apps, addr(HERE), addr(CLIENT));
    assert!(!identity.caller().await.unwrap().is_local());
    s.standin.answers.lock().whois.clear();
    s.bell.send_modify(|n| *n += 1);
    assert_eq!(identity.caller().await.err(), Some(Refusal::Undecidable));
    // And a local one stays local, without being asked about again.
    let local = s.callers.connection(Apps, addr(HERE), addr("127.0.0.1:50002"));
    assert!(local.caller().await.unwrap().is_local());
    let asked = s.standin.asked_whois.load(Relaxed);
    s.bell.send_modify(|n| *n += 1);
    assert!(local.caller().await.unwrap().is_local());
    assert_eq!(s.standin.asked_whois.load(Relaxed), asked);
}

#[tokio::test]
async fn a_daemon_of_another_user_names_nobody() {
    let s = setup(Some(false), OtherEnd::Daemon).await;
    s.standin.knows(addr(CLIENT));
    s.current.store(None);
    let folder = s.standin.socket().parent().unwrap().to_owned();
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    assert!(LocalApi::find(&s.standin.config(), &timing()).await.is_err());
    let refused = s.callers.identify(Apps, addr(HERE), addr(CLIENT)).await;
    assert_eq!(refused, Err(Refusal::Unavailable));
}

#[tokio::test]
async fn the_user_of_a_program_is_looked_up_only_for_rules_that_name_one() {
    let s = setup(Some(true), PROGRAM).await;
    let (listener, here) = listener("127.0.0.1").await;
    let _client = tokio::net::TcpStream::connect(here).await.unwrap();
    let (_server, remote) = listener.accept().await.unwrap();
    let uid = rustix::process::geteuid().as_raw();
    for (on, want) in [(false, None), (true, cfg!(target_os = "linux").then_some(uid))] {
        s.callers.look_up_users(on);
        let caller = s.callers.identify(Apps, here, remote).await.unwrap();
        assert_eq!(caller, Caller::local(want, Some(remote)));
    }
}

/// The identity of `peer` on a connection to `desk` over the local network.
fn on_lan(s: &Setup, desk: &super::lan::Peer, peer: &super::lan::Peer) -> crate::net::Identity {
    let (local, remote) = (addr("10.99.0.2:11436"), addr("10.99.0.3:50000"));
    s.callers.pinned(&desk.trust, peer.key(), local, remote)
}

#[tokio::test]
async fn on_the_local_network_a_pin_is_a_caller_only_while_the_tailnet_does_not_reach_it() {
    let s = setup(Some(true), PROGRAM).await;
    let (desk, me) = (super::lan::peer("desk", 2), super::lan::peer("me", 3));
    desk.pin(&me);
    desk.reached_by(&me);
    let identity = on_lan(&s, &desk, &me);
    let kept = timing().lan_ping_kept;
    // The daemon's ping is answered.
    assert_eq!(identity.caller().await, Err(Refusal::UseTailnet));
    assert_eq!(Refusal::UseTailnet.status(), 421);
    assert_eq!(identity.admission(|_| true).await, Admit::Tailnet);
    assert_eq!(s.standin.asked_ping.load(Relaxed), 2, "asked each time: it may have just died");
    assert_eq!(identity.is_pinned(), Ok(()));
    assert_eq!(s.standin.asked_ping.load(Relaxed), 2, "a sign of life asks nobody");
    // It is not, in words or by silence. (The daemons still hear each other, by disco: for some
    // seconds after a daemon's start no tunnel carries anything for all that.)
    let disco = s.standin.api().await.ping(addr("100.64.0.3:1").ip()).await;
    assert!(disco.is_ok());
    for silence in [Some("{\"Err\":\"no matching peer\"}".to_owned()), None] {
        s.standin.answers.lock().ping = silence;
        tokio::time::sleep(kept + Duration::from_millis(20)).await;
        assert_eq!(identity.is_pinned(), Ok(()));
        let caller = identity.caller().await.unwrap();
        assert_eq!(caller.label(), "lab");
        assert_eq!(caller.addr, Some(addr("10.99.0.3:50000")));
        assert!(caller.lan.is_some_and(|age| age < Duration::from_secs(60)));
        let asked = s.standin.asked_ping.load(Relaxed);
        assert_eq!(identity.admission(|_| true).await, Admit::Yes);
        assert_eq!(s.standin.asked_ping.load(Relaxed), asked, "silence holds for a while");
    }
    s.standin.answers.lock().ping = Some(golden("ping.json"));
    tokio::time::sleep(kept + Duration::from_millis(20)).await;
    assert_eq!(identity.caller().await, Err(Refusal::UseTailnet));
    // No tailnet, no ping.
    let down = TailnetView { running: false, ..loopback_tailnet() };
    s.tailnet.send_replace(Arc::new(down));
    let asked = s.standin.asked_ping.load(Relaxed);
    assert_eq!(identity.admission(|_| true).await, Admit::Yes);
    assert_eq!(s.standin.asked_ping.load(Relaxed), asked);
    // Nothing is allowed to it.
    assert_eq!(identity.admission(|_| false).await, Admit::Policy);
    // The pin dies between two requests.
    desk.trust.forget("me").unwrap();
    assert_eq!(identity.caller().await, Err(Refusal::NotPinned));
    assert_eq!(identity.is_pinned(), Err(Refusal::NotPinned));
    assert_eq!(identity.admission(|_| true).await, Admit::Policy);
}

#[tokio::test]
async fn what_the_tailnets_policy_closed_the_local_network_does_not_open() {
    let s = setup(Some(true), PROGRAM).await;
    s.tailnet.send_replace(Arc::new(TailnetView::absent("daemon_down")));
    let (desk, me) = (super::lan::peer("desk", 2), super::lan::peer("me", 3));
    desk.pin(&me);
    let identity = on_lan(&s, &desk, &me);
    // Never seen to reach us, and no filter says it may.
    assert_eq!(identity.caller().await, Err(Refusal::Policy));
    desk.reached_by(&me);
    assert!(identity.caller().await.is_ok());
    desk.trust.heard_filter(crate::trust::Filter::default(), wall());
    assert_eq!(identity.caller().await, Err(Refusal::Policy), "a filter without rules");
    assert_eq!(Refusal::Policy.status(), 403);
    let stranger = super::lan::peer("stranger", 9);
    assert_eq!(on_lan(&s, &desk, &stranger).caller().await, Err(Refusal::NotPinned));
}
