//! Streams on the local network, and what ends them.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::lan::{Home, home, link, peer};
use super::*;
use crate::net::Io;
use crate::telemetry::wall;
use crate::trust::{Bounds, ByHand};
use crate::types::Verb;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Reads what runs until it breaks, and says after how long that was.
async fn until_cut(io: &mut Box<dyn Io>) -> (Duration, std::io::Result<usize>) {
    let begin = Instant::now();
    let mut buffer = vec![0; 64 * 1024];
    while begin.elapsed() < Duration::from_secs(3) {
        match timeout(Duration::from_secs(3), io.read(&mut buffer)).await.unwrap() {
            Ok(n) if n > 0 => {}
            ended => return (begin.elapsed(), ended),
        }
    }
    panic!("it runs on");
}

#[tokio::test]
async fn a_stream_is_cut_within_a_second_of_its_pins_death() {
    type End = fn(&Home);
    let desk_forgets: End = |home| drop(home.desk.trust.forget("me").unwrap());
    let i_forget: End = |home| drop(home.me.trust.forget("desk").unwrap());
    let desk_leaves: End = |home| drop(home.desk_lan.send_replace(Arc::default()));
    let i_leave: End = |home| drop(home.me_lan.send_replace(Arc::default()));
    let other_network: End = |home| {
        let mut view = link("10.99.0.3");
        view.links[0].network = "cafe".into();
        home.me_lan.send_replace(Arc::new(view));
    };
    let bounds: End = |home| {
        let none = Bounds { trust: Duration::ZERO, grant: DAY, ports: vec![11436] };
        home.desk.trust.set_bounds(none);
    };
    for (what, end) in [
        ("desk forgets me", desk_forgets),
        ("I forget desk", i_forget),
        ("desk's network goes", desk_leaves),
        ("mine goes", i_leave),
        ("mine is another", other_network),
        ("the pin is too old", bounds),
    ] {
        for busy in [true, false] {
            let mut home = home().await;
            let (mut ours, theirs) = home.pair().await;
            let mut theirs = theirs.io;
            let write = tokio::spawn(async move {
                if busy {
                    // A body that runs.
                    while theirs.write_all(&[7; 8192]).await.is_ok() {
                        tokio::task::yield_now().await;
                    }
                    Ok(0)
                } else {
                    theirs.read(&mut [0; 8]).await
                }
            });
            if busy {
                ours.read_exact(&mut [0; 100_000]).await.unwrap();
            }
            end(&home);
            let (took, ended) = until_cut(&mut ours).await;
            assert!(ended.is_err(), "{what}, busy {busy}: never a clean end");
            assert!(took < Duration::from_secs(1), "{what}, busy {busy}: {took:?}");
            let other = timeout(Duration::from_secs(1), write).await.unwrap().unwrap();
            assert!(busy || other.is_err(), "{what}: idle end of desk: {other:?}");
        }
    }
}

#[tokio::test]
async fn a_stream_is_cut_when_its_pin_ends_by_the_time_of_day_alone() {
    for desk_is_it in [true, false] {
        let mut home = home().await;
        let until = wall() + Duration::from_secs(2);
        let hand = ByHand { verbs: vec![Verb::List], models: vec!["*".to_owned()], until };
        let (here, name, there, id) = if desk_is_it {
            (&home.desk, "me", &home.me, node_id("desk"))
        } else {
            (&home.me, "desk", &home.desk, NodeId::Pin("box".into()))
        };
        here.trust.forget(name).unwrap();
        here.trust.add("box", there.key(), hand, &[], wall()).unwrap();
        let mut ours = home.connector.connect(&id, &home.dial()).await.unwrap();
        let theirs = timeout(Duration::from_secs(1), home.listeners.accept()).await.unwrap();
        let (_, ended) = until_cut(&mut ours).await;
        assert!(ended.is_err() && wall() >= until, "{desk_is_it}: {ended:?}");
        drop(theirs);
    }
}

#[tokio::test]
async fn a_stream_to_a_key_that_another_took_the_place_of_is_cut() {
    let mut home = home().await;
    let (mut ours, theirs) = home.pair().await;
    let next = peer("desk", 2);
    home.me.trust.forget("desk").unwrap();
    home.me.pin(&next);
    let (took, ended) = until_cut(&mut ours).await;
    assert!(ended.is_err() && took < Duration::from_secs(1), "{took:?} {ended:?}");
    drop(theirs);
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_cut_too() {
    let mut home = home().await;
    let (mut ours, theirs) = home.pair().await;
    home.desk.trust.forget("me").unwrap();
    // Held, and never polled.
    let (took, ended) = until_cut(&mut ours).await;
    assert!(ended.is_err() && took < Duration::from_secs(1), "{took:?} {ended:?}");
    drop(theirs);
}

#[tokio::test]
async fn a_stream_that_is_dropped_closes_at_once() {
    let mut home = home().await;
    let (ours, mut theirs) = home.pair().await;
    drop(ours);
    let read = timeout(Duration::from_secs(1), theirs.io.read(&mut [0; 8])).await;
    assert!(read.is_ok(), "the second handle on the socket kept it open");
}
