//! What outlives a restart, what is not believed, and what is written when.

use std::fs;

use super::super::keys::Ring;
use super::world::*;
use crate::trust::{ByHand, Networks, Trust};
use crate::types::{Verb, Wall};

const FILE: &str = "trust-home.json";

#[test]
fn a_restart_without_a_tailnet_remembers_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut w = World::kept(
        vec![
            Node { ephemeral: true, expires: Some(Wall(START.0 + DAY)), ..person("studio", 2, 1) },
            tagged("gpu", 3),
            person("old", 4, 2),
            person("new", 5, 1),
            person("last", 6, 1),
        ],
        Some(dir.path()),
    );
    w.hello_all();
    let [studio, old, new] = ["studio", "old", "new"].map(|n| w.node(n));
    w.heard(&studio).unwrap();
    w.hello(&Node { ring: Ring::new(START).unwrap(), ..new }).unwrap_err();
    let key = Ring::new(START).unwrap().current();
    let hand = ByHand {
        verbs: vec![Verb::List],
        models: vec!["*".to_owned()],
        until: Wall(START.0 + DAY),
    };
    w.trust.add("pi", key, hand, &[], w.now).unwrap();
    w.unlist(&["old"]);
    w.wait(10 * MINUTE);
    let before = w.trust.view();
    assert_eq!(w.restart(dir.path()), Vec::<String>::new());
    let after = w.trust.view();
    assert_eq!(after.pins, before.pins);
    assert_eq!(after.pins.len(), 6);
    assert_eq!((&after.own, after.people), (&before.own, before.people));
    assert_eq!((&after.control, &after.control_url), (&before.control, &before.control_url));
    assert_eq!(after.filter, before.filter);
    assert_eq!(w.key(), before.ring.as_ref().unwrap().current());
    assert_eq!(after.ring.as_ref().unwrap().chain(), before.ring.as_ref().unwrap().chain());
    assert_eq!((w.worth(&studio), w.worth(&old)), ("live", "suspended"));
    let told = w.trust.suspensions_for(&studio.id());
    assert_eq!(told.len(), 1, "what left is remembered");
    assert!(w.enter().is_empty(), "the tailnet is back");
    assert_eq!(w.trust.view().pins, before.pins);
}

#[test]
fn a_torn_file_is_not_believed_and_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    let mut w = World::kept(vec![person("studio", 2, 1)], Some(dir.path()));
    w.hello_all();
    w.trust.save().unwrap();
    let whole = fs::read(&file).unwrap();
    let studio = w.node("studio");
    for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
        for flip in [false, true] {
            let mut torn = whole.clone();
            if flip {
                torn[cut] ^= 1;
            } else {
                torn.truncate(cut);
            }
            fs::write(&file, &torn).unwrap();
            let trust = Trust::open(Some(dir.path()), bounds());
            let told = trust.recall(None, w.now);
            assert!(told[0].starts_with("pins are not known: "), "{told:?}");
            assert!(trust.view().control.is_none());
            assert!(trust.enter(&control("home"), &w.me.own(), None, URL, w.now).is_empty());
            assert_eq!(trust.view().judge(&studio.key(), w.now).label(), "not pinned");
            let aside = fs::read(dir.path().join("trust-home.json.unreadable")).unwrap();
            assert_eq!(aside, torn, "put aside whole");
        }
    }
}

#[test]
fn a_file_of_another_version_is_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    for other in [r#"{"v":2}"#, "{}", "[]"] {
        super::super::store::write(&file, other.as_bytes()).unwrap();
        let trust = Trust::open(Some(dir.path()), bounds());
        let told = trust.enter(&control("home"), &person("x", 1, 1).own(), None, URL, START);
        assert!(told[0].contains("put aside as"), "{other}: {told:?}");
        assert!(dir.path().join("trust-home.json.unreadable").exists());
        assert!(trust.view().ring.is_some(), "and one begins anew");
        trust.save().unwrap();
    }
}

#[test]
fn a_file_of_another_tailnet_is_not_believed_under_this_ones_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut w = World::kept(vec![person("studio", 2, 1)], Some(dir.path()));
    w.hello_all();
    w.trust.save().unwrap();
    let key = w.key();
    fs::copy(dir.path().join("trust-home.json"), dir.path().join("trust-work.json")).unwrap();
    w.trust.enter(&control("work"), &w.me.own(), Some(1), URL, w.now);
    assert_eq!(w.trust.view().control, Some(control("work")));
    assert!(w.trust.view().pins.is_empty() && w.key() != key);
}

#[test]
fn a_file_that_cannot_be_read_is_never_written_over() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(FILE)).unwrap();
    let trust = Trust::open(Some(dir.path()), bounds());
    let enter = || trust.enter(&control("home"), &person("x", 1, 1).own(), None, URL, START);
    assert_eq!(enter().len(), 1);
    assert!(enter().is_empty(), "said once");
    assert!(trust.view().control.is_none() && trust.view().ring.is_none());
    trust.save().unwrap();
    assert!(dir.path().join(FILE).is_dir());
}

#[test]
fn the_tailnet_used_last_under_the_named_coordinator_is_recalled() {
    let dir = tempfile::tempdir().unwrap();
    let trust = Trust::open(Some(dir.path()), bounds());
    let me = person("laptop", 1, 1).own();
    for (name, url, at) in
        [("home", "https://a", 0), ("lab", "https://a", 5), ("work", "https://b", 9)]
    {
        trust.enter(&control(name), &me, None, url, Wall(START.0 + at * HOUR));
    }
    trust.save().unwrap();
    let now = Wall(START.0 + 10 * HOUR);
    for (url, want) in [
        (None, Some("work")),
        (Some("https://a"), Some("lab")),
        (Some("https://b"), Some("work")),
        (Some("https://c"), None),
    ] {
        let trust = Trust::open(Some(dir.path()), bounds());
        trust.recall(url, now);
        assert_eq!(trust.view().control, want.map(control), "{url:?}");
    }
    // One in use stays in use while nothing speaks against it.
    trust.enter(&control("home"), &me, None, "https://a", now);
    trust.recall(None, now);
    assert_eq!(trust.view().control, Some(control("home")));
    trust.recall(Some("https://a"), now);
    assert_eq!(trust.view().control, Some(control("home")));
    trust.recall(Some("https://b"), now);
    assert_eq!(trust.view().control, Some(control("work")));
}

#[test]
fn only_what_changed_is_written_and_only_that_moves_the_count() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    let mut w = World::kept(vec![person("studio", 2, 1)], Some(dir.path()));
    w.hello_all();
    w.trust.save().unwrap();
    fs::remove_file(&file).unwrap();
    let mut changed = w.trust.changed();
    changed.mark_unchanged();
    w.wait(4 * MINUTE);
    w.trust.tick(w.now);
    let held = w.trust.view().filter.clone().unwrap().filter;
    w.trust.heard_filter(held, w.now);
    w.trust.address(&w.node("studio").id(), w.node("studio").lan[0]);
    w.trust.save().unwrap();
    assert!(!file.exists() && !changed.has_changed().unwrap(), "a quiet time is not written");
    w.wait(2 * MINUTE);
    w.trust.save().unwrap();
    assert!(file.exists() && changed.has_changed().unwrap(), "but how late it is, now and then");
    changed.mark_unchanged();
    w.trust.forget("studio").unwrap();
    assert!(changed.has_changed().unwrap());
}

#[test]
fn the_key_changes_each_week_and_the_old_one_stays_while_a_pin_may_know_no_other() {
    let mut w = World::pinned(vec![person("studio", 2, 1), person("asleep", 3, 1)]);
    let first = w.key();
    let has = |w: &World| w.trust.view().ring.as_ref().unwrap().find(&first).is_some();
    w.sleep(6 * DAY);
    w.look();
    assert!(!w.trust.rotate_if_due(w.now));
    w.sleep(2 * DAY);
    w.online = false;
    w.look();
    assert!(!w.trust.rotate_if_due(w.now), "nobody could be told");
    w.online = true;
    w.look();
    assert!(w.trust.rotate_if_due(w.now) && !w.trust.rotate_if_due(w.now));
    assert_ne!(w.key(), first);
    w.sleep(HOUR);
    w.hello(&w.node("studio")).unwrap();
    w.trust.rotate_if_due(w.now);
    assert!(has(&w), "the one asleep knows only that key");
    w.hello(&w.node("asleep")).unwrap();
    w.sleep(HOUR);
    w.look();
    w.trust.rotate_if_due(w.now);
    assert!(!has(&w), "everyone met the new one");
}

#[test]
fn nobody_is_told_a_key_that_is_not_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (state, away) = (dir.path().join("state"), dir.path().join("away"));
    let saved = || {
        let trust = Trust::open(Some(&state), bounds());
        trust.recall(None, Wall(START.0 + 9 * DAY));
        trust.view().ring.as_ref().map(|ring| ring.current())
    };
    let trust = Trust::open(Some(&state), bounds());
    let mut w = World { trust, ..World::of(vec![person("studio", 2, 1)]) };
    assert!(w.enter()[0].contains("could not be saved"));
    assert!(w.enter().is_empty(), "said once");
    assert!(w.trust.view().ring.is_none(), "there is no first one yet");
    fs::create_dir(&state).unwrap();
    assert!(w.enter().is_empty());
    let first = w.key();
    assert_eq!(saved(), Some(first), "at once");

    w.sleep(8 * DAY);
    w.look();
    fs::rename(&state, &away).unwrap();
    assert!(!w.trust.rotate_if_due(w.now));
    assert_eq!(w.key(), first, "nor is there a next one");
    fs::rename(&away, &state).unwrap();
    assert!(!w.trust.is_rotation_due(w.now), "not again and again");
    w.sleep(MINUTE);
    assert!(w.trust.rotate_if_due(w.now));
    assert_ne!(w.key(), first);
    assert_eq!(saved(), Some(w.key()), "at once");
}

#[test]
fn that_a_pin_is_some_minutes_younger_is_not_written_but_kept_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    let mut w = World::kept(vec![person("studio", 2, 1)], Some(dir.path()));
    let studio = w.node("studio");
    w.wait(MINUTE);
    w.hello_all();
    w.heard(&studio).unwrap();
    w.trust.save().unwrap();
    fs::remove_file(&file).unwrap();
    w.wait(4 * MINUTE);
    w.hello_all();
    w.heard(&studio).unwrap();
    let pin = w.pin(&studio).unwrap();
    assert_eq!((pin.verified, pin.reached), (w.now, Some(w.now)), "memory is exact");
    w.trust.save().unwrap();
    assert!(!file.exists());
    w.trust.save_last().unwrap();
    w.trust = Trust::open(Some(dir.path()), bounds());
    w.trust.recall(None, w.now);
    assert_eq!(w.pin(&studio), Some(pin));

    // What a pin is worth after a restart is news, however little time it took.
    w.enter();
    w.look();
    w.trust.heard_filter(by_capability(), w.now);
    w.trust.save().unwrap();
    fs::remove_file(&file).unwrap();
    w.wait(2 * MINUTE);
    w.heard(&studio).unwrap();
    w.trust.save().unwrap();
    assert!(file.exists(), "it reached this node since the policy changed");
}

#[tokio::test]
async fn a_lost_pin_is_urgent_and_a_younger_one_is_not() {
    let soon = async |w: &World| {
        tokio::time::timeout(std::time::Duration::ZERO, w.trust.urgent()).await.is_ok()
    };
    let mut w = World::pinned(vec![person("studio", 2, 1), person("desk", 3, 1)]);
    w.wait(HOUR);
    w.hello_all();
    assert!(!soon(&w).await);
    w.unlist(&["desk"]);
    w.wait(2 * MINUTE);
    assert!(soon(&w).await && !soon(&w).await, "suspended");
    w.trust.forget("studio").unwrap();
    assert!(soon(&w).await, "forgotten");
}

#[cfg(unix)]
#[test]
fn a_slow_disk_keeps_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("trust-work.json");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let w = World::kept(vec![person("studio", 2, 1)], Some(dir.path()));
    let (trust, own) = (w.trust.clone(), w.me.own());
    // Opening a pipe waits until somebody writes there.
    let reader = std::thread::spawn(move || trust.enter(&control("work"), &own, None, URL, START));
    let (trust, done) = (w.trust.clone(), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        std::thread::park_timeout(std::time::Duration::from_millis(200));
        trust.tick(START);
        trust.suspensions_for(&w.node("studio").id());
        done.0.send(()).unwrap();
    });
    let waited = done.1.recv_timeout(std::time::Duration::from_secs(20));
    let before = reader.is_finished();
    drop(fs::OpenOptions::new().write(true).open(&pipe).unwrap());
    reader.join().unwrap();
    assert!(waited.is_ok() && !before);
}

#[test]
fn a_pin_that_is_over_does_not_hold_an_old_key() {
    let mut w = World::pinned(vec![person("studio", 2, 1), person("lost", 3, 1)]);
    let first = w.key();
    w.sleep(8 * DAY);
    w.look();
    assert!(w.trust.rotate_if_due(w.now));
    w.sleep(7 * DAY);
    w.look();
    w.hello(&w.node("studio")).unwrap();
    w.trust.rotate_if_due(w.now);
    assert!(w.trust.view().ring.as_ref().unwrap().find(&first).is_none());
}

#[test]
fn networks_are_known_by_a_keyed_hash_and_only_as_long_as_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let (known, told) = Networks::open(Some(dir.path()));
    assert_eq!(told, None);
    let id = known.id_of("AA:bb:cc:00:11:22", "192.168.1.0/24");
    assert_eq!(id, known.id_of("aa:BB:cc:00:11:22", "192.168.1.0/24"));
    let other = [
        known.id_of("aa:bb:cc:00:11:23", "192.168.1.0/24"),
        known.id_of("aa:bb:cc:00:11:22", "192.168.2.0/24"),
        Networks::open(None).0.id_of("aa:bb:cc:00:11:22", "192.168.1.0/24"),
    ];
    assert!(!other.contains(&id), "another gateway, another prefix, another device's salt");
    assert!(!known.is_known(&id, START), "nothing is known at first");
    let at = |t: u64| Wall(START.0 + t);
    known.allow(&id, Some(at(8 * HOUR)), START).unwrap();
    let held =
        |known: &Networks| [0, HOUR, 8 * HOUR - 1, 8 * HOUR].map(|t| known.is_known(&id, at(t)));
    assert_eq!(held(&known), [true, true, true, false]);
    assert!(!known.is_known(&id, Wall(START.0 - HOUR)), "a clock set back makes it no longer");
    let (again, _) = Networks::open(Some(dir.path()));
    assert_eq!(
        (held(&again), again.id_of("aa:bb:cc:00:11:22", "192.168.1.0/24")),
        ([true, true, true, false], id.clone())
    );
    again.learn(&id, at(HOUR)).unwrap();
    again.allow(&id, Some(at(2 * HOUR)), at(HOUR)).unwrap();
    assert!(again.is_known(&id, at(900 * DAY)), "where a pin was met stays known");
    again.forget(std::slice::from_ref(&id)).unwrap();
    assert!(!again.is_known(&id, at(HOUR)));
    assert!(!Networks::open(Some(dir.path())).0.is_known(&id, at(HOUR)));
    let text = fs::read_to_string(dir.path().join("networks-lan.json")).unwrap();
    assert!(!text.contains("192.168") && !text.to_lowercase().contains("aa:bb"), "{text}");
}

#[test]
fn networks_that_cannot_be_read_are_not_known() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("networks-lan.json");
    for bad in ["", "{", "{\"v\":1}"] {
        fs::write(&file, bad).unwrap();
        let (known, told) = Networks::open(Some(dir.path()));
        assert!(told.is_some() && known.list().is_empty(), "{bad}");
        known.learn("x", START).unwrap();
    }
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let (known, told) = Networks::open(Some(dir.path()));
    assert!(told.is_some());
    known.learn("x", START).unwrap();
    assert!(known.is_known("x", START) && file.is_dir(), "for this run only");
}
