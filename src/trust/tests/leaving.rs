//! How a pin is lost: by the coordinator's list, by another device's word, by a change of
//! owner; and what takes nothing away.

use super::world::*;
use crate::trust::{HelloRefused, Netmap, Trust};
use crate::types::{NodeName, Principal, Wall};

/// Ten nodes, `a` to `j`.
fn ten() -> Vec<Node> {
    (0..10)
        .map(|n| person(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"][n], 2 + n as u8, 1))
        .collect()
}

#[test]
fn a_node_off_the_list_for_a_minute_is_suspended_and_after_a_day_deleted() {
    let mut w = World::pinned(ten());
    let [a] = &w.unlist(&["a"])[..] else { panic!() };
    assert!(w.look().is_empty());
    assert!(w.wait(30).is_empty());
    assert_eq!(w.worth(a), "live", "half a minute is a hiccup");
    assert_eq!(w.wait(30), ["a: pin suspended: not in the tailnet's list any more"]);
    assert_eq!(w.worth(a), "suspended");
    assert!(w.wait(DAY - 2 * MINUTE).is_empty());
    assert_eq!(w.worth(a), "suspended");
    assert_eq!(w.wait(MINUTE), ["a: pin deleted: not listed for 24 h"]);
    assert_eq!((w.worth(a), w.pin(a)), ("not pinned", None));
}

#[test]
fn a_node_listed_again_is_restored_and_with_another_node_key_only_once_it_answers() {
    let mut w = World::pinned(ten());
    let [a, b] = &w.unlist(&["a", "b"])[..] else { panic!() };
    w.wait(HOUR);
    assert_eq!((w.worth(a), w.worth(b)), ("suspended", "suspended"));
    let b = Node { node_key: "nodekey:new".to_owned(), ..b.clone() };
    w.nodes.extend([a.clone(), b.clone()]);
    assert_eq!(
        w.look(),
        [
            "a: pin restored: the tailnet lists it again",
            "b: is listed again with another node key: its pin waits until it answers over the \
             tailnet"
        ]
    );
    assert_eq!((w.worth(a), w.worth(&b)), ("live", "not pinned"));
    assert_eq!((w.heard(&b), w.worth(&b)), (Ok(true), "not pinned"));
    w.hello(&b).unwrap();
    assert_eq!(w.worth(&b), "live");
    // The day of absence starts anew.
    w.unlist(&["a"]);
    w.wait(DAY - HOUR);
    assert!(w.pin(a).is_some());
}

#[test]
fn an_absence_counts_only_while_the_coordinator_is_there_and_someone_looks() {
    type Story = fn(&mut World);
    let stories: [(&str, Story); 3] = [
        ("offline all the time", |w| {
            w.online = false;
            w.wait(3 * DAY);
        }),
        ("asleep between two looks", |w| {
            w.look();
            w.sleep(3 * DAY);
        }),
        ("another tailnet's list", |w| {
            let map = Netmap { control: &control("work"), online: true, nodes: &[] };
            for _ in 0..100 {
                w.sleep(30);
                assert!(w.trust.netmap(&map, w.now).is_empty());
            }
        }),
    ];
    for (what, story) in stories {
        let mut w = World::pinned(ten());
        let [a] = &w.unlist(&["a"])[..] else { panic!() };
        story(&mut w);
        assert_eq!(w.worth(a), "live", "{what}");
    }
    let mut w = World::pinned(ten());
    let [a] = &w.unlist(&["a"])[..] else { panic!() };
    w.wait(10 * MINUTE);
    for _ in 0..30 {
        w.online = false;
        w.wait(HOUR);
        w.online = true;
        w.look();
        w.sleep(HOUR);
        w.look();
    }
    assert_eq!(w.worth(a), "suspended", "deleted only after a day that was seen");
}

#[test]
fn when_more_than_half_go_at_once_all_are_suspended_none_deleted_and_it_is_said_once() {
    let mut w = World::pinned(ten());
    let gone = w.unlist(&["a", "b", "c", "d", "e", "f"]);
    w.look();
    let many = ": 6 of 10 pinned nodes left the tailnet's list at once: suspended, nothing deleted";
    assert_eq!(w.wait(MINUTE), [many]);
    assert!(w.wait(3 * DAY).is_empty(), "half a list deletes nothing");
    w.online = false;
    w.wait(DAY);
    for node in &gone {
        assert_eq!(w.worth(node), "suspended", "an outage after it gives nothing back");
    }
    let rest = w.node("j");
    assert!(w.trust.suspensions_for(&rest.id()).is_empty(), "nor is it passed on");
    w.nodes.extend(gone.clone());
    w.look();
    assert_eq!(w.worth(&gone[0]), "suspended", "a list without its coordinator restores nothing");
    w.online = true;
    assert_eq!(w.look().len(), 6);
    for node in &gone {
        assert_eq!(w.worth(node), "live");
    }
}

#[test]
fn more_than_half_that_go_one_by_one_within_a_minute_go_at_once() {
    let mut w = World::pinned(ten());
    let mut gone = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f"] {
        gone.extend(w.unlist(&[name]));
        w.now.0 += 8;
        w.look();
    }
    let many = ": 6 of 10 pinned nodes left the tailnet's list at once: suspended, nothing deleted";
    assert_eq!(w.wait(2 * MINUTE), [many]);
    w.wait(2 * DAY);
    assert!(gone.iter().all(|n| w.pin(n).is_some()));
    // Half of them is not more than half.
    let mut w = World::pinned(ten());
    let gone = w.unlist(&["a", "b", "c", "d", "e"]);
    w.look();
    assert_eq!(w.wait(MINUTE).len(), 5);
    w.wait(DAY);
    assert!(gone.iter().all(|n| w.pin(n).is_none()));
}

#[test]
fn another_owner_other_tags_or_another_creation_delete_a_pin_at_once() {
    type Change = fn(&mut Node);
    let changes: [(&str, &str, Change); 6] = [
        ("desk", "its owner or its tags changed", |n| {
            n.principal = person("x", 9, 2).principal;
        }),
        ("desk", "its owner or its tags changed", |n| n.principal = tagged("x", 9).principal),
        ("gpu", "its owner or its tags changed", |n| n.principal = person("x", 9, 1).principal),
        ("gpu", "its owner or its tags changed", |n| {
            let set = ["tag:ollama".into(), "tag:public".into()].into();
            n.principal = Principal::Tags { control: control("home"), set };
        }),
        ("desk", "another node has its number now", |n| n.created = "2026-06-01".to_owned()),
        ("desk", "it belongs to another tailnet now", |n| n.shared = true),
    ];
    for (name, why, change) in changes {
        for online in [true, false] {
            let mut w = World::pinned(vec![person("desk", 2, 1), tagged("gpu", 3)]);
            w.online = online;
            w.change(name, change);
            assert_eq!(w.look(), [format!("{name}: pin deleted: {why}")]);
            assert_eq!(w.worth(&w.node(name)), "not pinned");
            assert_eq!(w.trust.view().pins.len(), 1);
        }
        // A hello finds it out as well as the list does.
        let mut w = World::pinned(vec![person("desk", 2, 1), tagged("gpu", 3)]);
        w.change(name, change);
        let now = w.node(name);
        assert_eq!((w.heard(&now), w.worth(&now)), (Ok(true), "not pinned"), "{name}: {why}");
    }
}

#[test]
fn a_new_name_or_login_keeps_the_pin() {
    let mut w = World::pinned(vec![person("desk", 2, 1)]);
    w.change("desk", |n| {
        n.name = NodeName::from_dns("tower");
        let id = 1;
        n.principal = Principal::User { control: control("home"), id, login: "me@y".into() };
        n.addrs = vec!["100.64.0.77".parse().unwrap()];
        n.node_key = "nodekey:renewed".to_owned();
    });
    assert!(w.look().is_empty());
    let tower = w.node("tower");
    assert_eq!(w.worth(&tower), "live");
    let pin = w.pin(&tower).unwrap();
    assert_eq!(
        (pin.name, pin.principal, pin.tailnet),
        (tower.name, Some(tower.principal), tower.addrs)
    );
}

#[test]
fn two_coordinators_with_the_same_numbers_share_no_pin() {
    let dir = tempfile::tempdir().unwrap();
    let mut w = World::kept(vec![person("desk", 2, 1)], Some(dir.path()));
    w.hello_all();
    let desk = w.node("desk");
    let home = w.key();
    // The other one counts its nodes and its people from 1 as well.
    let me = w.me.own();
    assert!(
        w.trust.enter(&control("work"), &me, Some(1), "https://work.example", w.now).is_empty()
    );
    assert_eq!((w.worth(&desk), w.trust.view().pins.len()), ("not pinned", 0));
    assert!(w.trust.view().filter.is_none());
    assert_ne!(w.key(), home, "nor does this node show itself by the same key");
    let stranger = w.hello(&desk).unwrap_err();
    assert!(matches!(stranger, HelloRefused::Mismatch(_)));
    assert!(w.enter().is_empty());
    assert_eq!((w.worth(&desk), w.key()), ("live", home));
}

#[test]
fn a_copied_state_makes_a_new_key_and_no_pins() {
    let changes: [fn(&mut Node); 2] =
        [|n| n.stable = "n77".to_owned(), |n| n.created = "2026-09-09T00:00:00Z".to_owned()];
    for change in changes {
        let dir = tempfile::tempdir().unwrap();
        let mut w = World::kept(vec![person("desk", 2, 1)], Some(dir.path()));
        w.hello_all();
        let (desk, key) = (w.node("desk"), w.key());
        w.restart(dir.path());
        assert_eq!(w.worth(&desk), "live");
        change(&mut w.me);
        let told = w.enter();
        assert!(told[0].starts_with("laptop is not the node that this state folder belongs to"));
        assert_eq!((w.worth(&desk), w.trust.view().pins.len()), ("not pinned", 0));
        assert_ne!(w.key(), key);
        assert!(w.enter().is_empty(), "said once");
        w.restart(dir.path());
        assert!(w.trust.view().pins.is_empty(), "and for good");
    }
}

/// A tailnet without its coordinator, after `hours` without it.
fn outage(nodes: Vec<Node>) -> World {
    let mut w = World::pinned(nodes);
    w.online = false;
    w.wait(2 * HOUR);
    w
}

fn fleet() -> Vec<Node> {
    vec![
        person("studio", 2, 1),
        tagged("gpu", 3),
        person("desk", 4, 2),
        Node { shared: true, ..person("guest", 5, 1) },
        person("old", 6, 1),
    ]
}

#[test]
fn only_a_live_device_of_the_same_owner_may_suspend() {
    for (from, may) in
        [("studio", true), ("gpu", false), ("desk", false), ("guest", false), ("old", false)]
    {
        let w = outage(fleet());
        // One whose own pin is suspended has no say.
        let [old, studio, target] = [w.node("old"), w.node("studio"), w.node("desk")];
        let since = w.now;
        w.trust.told_suspended(&studio.id(), &[old.departed(since)], w.now);
        assert_eq!(w.worth(&old), "suspended");
        let again = w.trust.told_suspended(&studio.id(), &[old.departed(since)], w.now);
        assert!(again.is_empty(), "it is already");
        let target = if from == "desk" { w.node("gpu") } else { target };
        let told = w.trust.told_suspended(&w.node(from).id(), &[target.departed(since)], w.now);
        assert_eq!((!told.is_empty(), w.worth(&target) == "suspended"), (may, may), "{from}");
        if may {
            let said = "desk: pin suspended: studio saw it leave the tailnet";
            assert_eq!(super::world::said(told), [said]);
        }
        assert_eq!(w.trust.view().pins.len(), 5, "nothing is ever deleted by it");
    }
    // Without an owner of its own, nobody is of the same.
    let mut w = outage(vec![tagged("gpu", 3), tagged("nas", 4)]);
    w.me.principal = tagged("x", 9).principal;
    w.enter();
    let [gpu, nas] = [w.node("gpu"), w.node("nas")];
    assert!(w.trust.told_suspended(&gpu.id(), &[nas.departed(w.now)], w.now).is_empty());
    // Nor has one a say whose own key has ended, or its pin.
    let mut w = outage(fleet());
    let [studio, desk, old] = [w.node("studio"), w.node("desk"), w.node("old")];
    w.change("studio", |n| n.expired = true);
    w.change("old", |n| n.expires = Some(START));
    w.look();
    for teller in [studio, old] {
        let said = desk.departed(w.now);
        assert!(w.trust.told_suspended(&teller.id(), &[said], w.now).is_empty(), "{}", teller.name);
    }
    // Nor is one that was only heard.
    let mut w = World::of(fleet());
    let [studio, desk] = [w.node("studio"), w.node("desk")];
    w.hello(&desk).unwrap();
    w.heard(&studio).unwrap();
    w.online = false;
    w.look();
    assert!(w.trust.told_suspended(&studio.id(), &[desk.departed(w.now)], w.now).is_empty());
}

#[test]
fn a_word_about_another_node_or_about_old_times_suspends_nothing() {
    let w = outage(fleet());
    let [studio, desk] = [w.node("studio"), w.node("desk")];
    let mut reborn = desk.departed(w.now);
    reborn.created = "2020-01-01".to_owned();
    let cases = [
        ("another creation", reborn),
        ("before our own contact", desk.departed(Wall(START.0 - HOUR))),
        ("the teller itself", studio.departed(w.now)),
    ];
    for (what, said) in cases {
        assert!(w.trust.told_suspended(&studio.id(), &[said], w.now).is_empty(), "{what}");
    }
}

#[test]
fn our_own_list_is_worth_more_than_a_word() {
    let mut w = World::pinned(fleet());
    w.wait(HOUR);
    let [studio, desk] = [w.node("studio"), w.node("desk")];
    assert!(w.trust.told_suspended(&studio.id(), &[desk.departed(w.now)], w.now).is_empty());
    assert_eq!(w.worth(&desk), "live", "it is listed here and now");
    w.online = false;
    w.look();
    w.trust.told_suspended(&studio.id(), &[desk.departed(w.now)], w.now);
    w.look();
    assert_eq!(w.worth(&desk), "suspended", "a frozen list is no list");
    w.online = true;
    assert_eq!(w.look(), ["desk: pin restored: the tailnet lists it again"]);
    assert_eq!(w.worth(&desk), "live");
}

#[test]
fn the_owners_devices_are_told_what_left_as_it_was_seen_here_and_nobody_else_is() {
    let mut w = World::pinned(fleet());
    w.look();
    let gone = w.now;
    w.unlist(&["desk"]);
    w.wait(10 * MINUTE);
    w.trust.told_suspended(&w.node("studio").id(), &[], w.now);
    let told = |w: &World, to: &str| w.trust.suspensions_for(&w.node(to).id());
    let [said] = &told(&w, "studio")[..] else { panic!() };
    assert_eq!((said.stable.as_str(), said.since.since(gone).as_secs()), ("n4", 30));
    for other in ["gpu", "guest"] {
        assert!(told(&w, other).is_empty(), "{other}");
    }
    w.wait(2 * DAY);
    assert_eq!(w.trust.view().pins.len(), 4);
    assert_eq!(told(&w, "studio").len(), 1, "deleted here, perhaps not there");
    // What it was told itself it does not repeat.
    w.online = false;
    w.look();
    let [old, studio] = [w.node("old"), w.node("studio")];
    w.trust.told_suspended(&studio.id(), &[old.departed(w.now)], w.now);
    assert_eq!((w.worth(&old), told(&w, "studio").len()), ("suspended", 1));
    // Listed again, it is no longer gone.
    w.online = true;
    w.nodes.push(person("desk", 4, 2));
    w.look();
    assert!(told(&w, "studio").is_empty());
}

#[test]
fn without_a_tailnet_nothing_is_known_and_nothing_learned() {
    let trust = Trust::open(None, bounds());
    assert!(trust.view().control.is_none() && trust.view().clock_ok);
    let map = Netmap { control: &control("home"), online: true, nodes: &[] };
    assert!(trust.netmap(&map, START).is_empty());
    assert!(trust.recall(None, START).is_empty());
    assert_eq!(trust.export(), None);
    assert!(!trust.rotate_if_due(START));
}
