//! How a key becomes a pin, and what does not make it one.

use super::super::keys::Ring;
use super::world::*;
use crate::api::hello::HelloSay;
use crate::trust::{ByHand, HelloRefused, PinError, Verdict};
use crate::types::{CallerKind, ChainLink, Verb, Wall};

#[test]
fn a_pin_goes_live_only_by_our_own_dial() {
    let gpu = tagged("gpu", 2);
    let mut w = World::of(vec![gpu.clone()]);
    assert_eq!(w.heard(&gpu), Ok(true), "it wants to be called back");
    assert_eq!(w.worth(&gpu), "not pinned", "that it called proves nothing");
    w.wait(HOUR);
    assert_eq!((w.heard(&gpu), w.worth(&gpu)), (Ok(true), "not pinned"));
    assert_eq!(w.hello(&gpu).unwrap(), ["gpu: pinned: it may be met on the local network"]);
    assert_eq!((w.heard(&gpu), w.worth(&gpu)), (Ok(false), "live"));
    let pin = w.pin(&gpu).unwrap();
    assert_eq!((pin.port, pin.lan, pin.knows), (11434, gpu.lan, Some(w.key())));
    assert_eq!(pin.grants, ["{}"]);
}

#[test]
fn a_node_names_the_port_it_listens_on_locally_but_only_a_mesh_port_is_one() {
    let gpu = tagged("gpu", 2);
    let mut w = World::of(vec![gpu.clone()]);
    // The hello is answered at 11434, the second of the mesh ports.
    for (said, want) in [(0, 11434), (11436, 11436), (22, 11434), (11434, 11434)] {
        w.hello_as(&gpu, &HelloSay { port: said, ..w.say(&gpu) }).unwrap();
        assert_eq!(w.pin(&gpu).unwrap().port, want, "it says {said}");
    }
}

#[test]
fn a_key_that_was_only_heard_is_forgotten_after_a_day() {
    let gpu = tagged("gpu", 2);
    let mut w = World::of(vec![gpu.clone()]);
    w.heard(&gpu).unwrap();
    w.wait(DAY - MINUTE);
    assert!(w.pin(&gpu).is_some());
    w.wait(2 * MINUTE);
    assert!(w.pin(&gpu).is_none());
}

#[test]
fn a_hello_that_means_other_nodes_makes_no_pin() {
    let gpu = tagged("gpu", 2);
    type Bend = fn(&mut HelloSay);
    let bends: [(&str, Bend); 6] = [
        ("another tailnet", |s| s.control = "work".to_owned()),
        ("said by another", |s| s.me = "n9".to_owned()),
        ("said to another", |s| s.you = "n9".to_owned()),
        ("with another's node key", |s| s.my_node_key = "nodekey:9".to_owned()),
        ("knowing us by another node key", |s| s.your_node_key = "nodekey:9".to_owned()),
        ("showing another's keys", |s| {
            let key = Ring::new(START).unwrap().current();
            s.chain = vec![ChainLink { key, signed: String::new() }];
        }),
    ];
    for (what, bend) in bends {
        let mut w = World::of(vec![gpu.clone()]);
        let mut say = w.say(&gpu);
        bend(&mut say);
        let dialled = w.hello_as(&gpu, &say);
        assert!(matches!(dialled, Err(HelloRefused::Mismatch(_))), "{what}: {dialled:?}");
        let heard = w.heard_as(&gpu, &say);
        assert!(matches!(heard, Err(HelloRefused::Mismatch(_))), "{what}: {heard:?}");
        assert_eq!(w.pin(&gpu), None, "{what}");
        // And it does not keep a pin fresh.
        w.hello(&gpu).unwrap();
        w.wait(HOUR);
        let before = w.pin(&gpu);
        w.hello_as(&gpu, &say).unwrap_err();
        w.heard_as(&gpu, &say).unwrap_err();
        assert_eq!(w.pin(&gpu), before, "{what}");
    }
}

#[test]
fn our_own_key_in_anothers_hand_and_an_expired_node_make_no_pin() {
    let gpu = tagged("gpu", 2);
    let mut w = World::of(vec![gpu.clone()]);
    let ring = w.trust.view().ring.clone().unwrap();
    let copy = Node { ring: Ring::clone(&ring), ..gpu.clone() };
    assert_eq!(w.hello(&copy), Err(HelloRefused::OwnKey));
    assert_eq!(w.heard(&copy), Err(HelloRefused::OwnKey));
    let over = Node { expired: true, ..gpu.clone() };
    assert_eq!(w.hello(&over), Err(HelloRefused::Expired));
    assert_eq!(w.heard(&over), Err(HelloRefused::Expired));
    let mirror = Node { stable: w.me.stable.clone(), node_key: w.me.node_key.clone(), ..gpu };
    assert!(matches!(w.hello(&mirror), Err(HelloRefused::Mismatch(_))), "not with itself");
    assert!(w.trust.view().pins.is_empty());
}

#[test]
fn one_key_is_one_node_and_a_second_claim_is_shown() {
    let desk = person("desk", 2, 1);
    let copy = Node { ring: desk.ring.clone(), ..person("copy", 3, 1) };
    let mut w = World::pinned(vec![desk.clone()]);
    w.nodes.push(copy.clone());
    for refused in [w.hello(&copy).unwrap_err(), w.heard(&copy).unwrap_err()] {
        assert_eq!(
            refused.to_string(),
            "copy shows the key that desk is pinned by: one of them is a copy of the other"
        );
    }
    assert_eq!(w.pin(&copy), None);
    assert!(matches!(w.caller(&desk).kind, CallerKind::Node { id, .. } if id == desk.id()));
}

#[test]
fn a_new_key_is_taken_at_once_if_the_pinned_one_signed_it() {
    let mut desk = person("desk", 2, 1);
    let mut w = World::pinned(vec![desk.clone()]);
    let first = desk.key();
    desk.ring.rotate(w.now).unwrap();
    assert_eq!(w.hello(&desk).unwrap(), ["desk: has a new key, signed with its old one"]);
    assert_eq!((w.worth(&desk), w.verdict(&first)), ("live", Verdict::Unknown));
    // Two steps at once, while this node was away; and by a hello of its own.
    desk.ring.rotate(w.now).unwrap();
    desk.ring.rotate(w.now).unwrap();
    assert_eq!((w.heard(&desk), w.worth(&desk)), (Ok(false), "live"));
}

#[test]
fn a_new_key_that_nothing_vouches_for_changes_nothing() {
    let desk = person("desk", 2, 1);
    let mut w = World::pinned(vec![desk.clone()]);
    let new = Node { ring: Ring::new(w.now).unwrap(), ..desk.clone() };
    // Someone else's signature, and the pinned key merely named.
    let mut forged = w.say(&new);
    let mut other = Ring::new(w.now).unwrap();
    other.rotate(w.now).unwrap();
    forged.chain = vec![
        ChainLink { key: desk.key(), signed: String::new() },
        ChainLink { key: new.key(), signed: other.chain()[1].signed.clone() },
    ];
    for say in [w.say(&new), forged] {
        let refused = w.hello_as(&new, &say).unwrap_err();
        assert!(matches!(refused, HelloRefused::Changed { .. }), "{refused:?}");
        assert_eq!(w.heard_as(&new, &say), Ok(true), "our own dial decides");
        assert_eq!((w.worth(&desk), w.worth(&new)), ("live", "not pinned"));
    }
}

/// Dials `node` each ten minutes.
fn call_for(w: &mut World, node: &Node, seconds: u64) -> Result<Vec<String>, HelloRefused> {
    let mut last = w.hello(node);
    for _ in 0..seconds / (10 * MINUTE) {
        w.wait(10 * MINUTE);
        last = w.hello(node);
        if last.is_ok() {
            break;
        }
    }
    last
}

#[test]
fn a_new_key_is_taken_after_a_day_in_which_it_alone_answered() {
    let desk = person("desk", 2, 1);
    let new = Node { ring: Ring::new(START).unwrap(), ..desk.clone() };
    let mut w = World::pinned(vec![desk.clone()]);
    let refused = call_for(&mut w, &new, 23 * HOUR).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "desk answers with another key than before, for 23 h of 24 h: `tailherd trust accept \
         desk` takes it now"
    );
    let taken = call_for(&mut w, &new, HOUR).unwrap();
    assert_eq!(taken, ["desk: answered with its new key for 24 h, which is now its pin"]);
    assert_eq!((w.worth(&new), w.worth(&desk)), ("live", "not pinned"));
}

#[test]
fn a_day_of_a_new_key_counts_only_while_it_was_asked_and_alone_and_vouched_for() {
    let desk = person("desk", 2, 1);
    let new = Node { ring: Ring::new(START).unwrap(), ..desk.clone() };
    let third = Node { ring: Ring::new(START).unwrap(), ..desk.clone() };
    type Between = fn(&mut World, &Node, &Node);
    // What is not asked counts for an hour; what another answers begins the day anew.
    let cases: [(&str, Between, u64); 4] = [
        ("this machine slept", |w, _, _| w.sleep(3 * DAY), 10),
        (
            "the pinned key answered",
            |w, desk, _| {
                w.hello(desk).unwrap();
            },
            20,
        ),
        (
            "a third key answered",
            |w, _, third| {
                w.hello(third).unwrap_err();
            },
            20,
        ),
        (
            "the coordinator was away",
            |w, _, _| {
                w.online = false;
                w.wait(2 * DAY);
                w.online = true;
                w.look();
            },
            10,
        ),
    ];
    for (what, between, then) in cases {
        let mut w = World::pinned(vec![desk.clone()]);
        call_for(&mut w, &new, 12 * HOUR).unwrap_err();
        between(&mut w, &desk, &third);
        call_for(&mut w, &new, then * HOUR).unwrap_err();
        assert_eq!(w.worth(&new), "not pinned", "{what}");
    }
}

#[test]
fn a_person_may_take_a_changed_key_at_once() {
    let desk = person("desk", 2, 1);
    let new = Node { ring: Ring::new(START).unwrap(), ..desk.clone() };
    let mut w = World::pinned(vec![desk.clone()]);
    assert!(matches!(w.trust.accept("desk"), Err(PinError::Nothing(_))));
    assert!(matches!(w.trust.accept("nobody"), Err(PinError::Unknown(_))));
    w.hello(&new).unwrap_err();
    assert_eq!(w.trust.accept("DESK").unwrap(), desk.name);
    assert_eq!((w.worth(&new), w.worth(&desk)), ("live", "not pinned"));
    // Not one by which another node was pinned meanwhile.
    let copy = Node { ring: desk.ring.clone(), ..person("copy", 3, 1) };
    w.hello(&desk).unwrap_err();
    w.nodes.push(copy.clone());
    w.hello(&copy).unwrap();
    assert!(matches!(w.trust.accept("desk"), Err(PinError::Taken(name)) if name == copy.name));
    assert_eq!(w.worth(&new), "live");
}

#[test]
fn without_the_coordinator_nothing_is_pinned_renewed_or_kept_fresh() {
    let desk = person("desk", 2, 1);
    let late = person("late", 3, 1);
    let waits = person("waits", 4, 1);
    let mut w = World::pinned(vec![desk.clone()]);
    assert_eq!(w.heard(&waits), Ok(true));
    w.nodes.push(waits.clone());
    w.online = false;
    w.wait(HOUR);
    let before = w.pin(&desk).unwrap().verified;
    assert_eq!(w.hello(&late), Err(HelloRefused::Offline));
    assert_eq!(w.heard(&late), Ok(false));
    assert_eq!(w.pin(&late), None);
    assert_eq!(w.hello(&waits), Ok(Vec::new()));
    assert_eq!(w.worth(&waits), "not pinned", "that it answers counts once it is vouched for");
    let mut renewed = desk.clone();
    renewed.ring.rotate(w.now).unwrap();
    assert_eq!(w.hello(&renewed), Err(HelloRefused::Offline));
    assert_eq!(w.heard(&renewed), Ok(false));
    assert_eq!(w.worth(&renewed), "not pinned");
    w.hello(&desk).unwrap();
    w.heard(&desk).unwrap();
    w.trust.reached(&desk.id(), w.now);
    let pin = w.pin(&desk).unwrap();
    assert_eq!((pin.verified, pin.reached), (before, None));
    w.online = true;
    w.look();
    w.heard(&desk).unwrap();
    assert_eq!(w.pin(&desk).unwrap().verified, w.now, "a hello from there keeps a pin fresh");
}

#[test]
fn a_hello_gives_at_most_eight_addresses_and_none_that_is_not_local() {
    let bad = [
        "127.0.0.1",
        "169.254.169.254",
        "8.8.8.8",
        "100.64.0.9",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fd7a:115c:a1e0::9",
        "2001:db8::1",
        "::ffff:8.8.8.8",
        "255.255.255.255",
    ];
    let at = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    for bad in bad {
        let desk = Node { lan: vec![at(bad), at("192.168.1.2")], ..person("desk", 2, 1) };
        let mut w = World::pinned(vec![desk.clone()]);
        w.heard(&desk).unwrap();
        w.trust.address(&desk.id(), at(bad));
        assert_eq!(w.pin(&desk).unwrap().lan, [at("192.168.1.2")], "{bad}");
    }
    let many = (10..30).map(|n| at(&format!("10.0.0.{n}"))).collect();
    let desk = Node { lan: many, ..person("desk", 2, 1) };
    let mut w = World::pinned(vec![desk.clone()]);
    assert_eq!(w.pin(&desk).unwrap().lan, desk.lan[..8]);
    w.trust.address(&desk.id(), at("fd00::5"));
    let kept = w.pin(&desk).unwrap().lan;
    assert_eq!((kept.len(), kept[0]), (8, at("fd00::5")), "the newest first");
    w.hello(&Node { lan: vec![at("10.0.0.12")], ..desk.clone() }).unwrap();
    assert_eq!(w.pin(&desk).unwrap().lan[0], at("10.0.0.12"));
}

#[test]
fn a_key_added_by_hand_is_never_an_owner_and_ends_when_it_was_said_to() {
    let mut w = World::pinned(vec![person("desk", 2, 1)]);
    let key = Ring::new(START).unwrap().current();
    let hand = |verbs: &[Verb], until: u64| ByHand {
        verbs: verbs.to_vec(),
        models: vec!["tiny*".to_owned()],
        until: Wall(START.0 + until),
    };
    let use_it = [Verb::List, Verb::Infer];
    let add = |w: &World, name: &str, key, hand| w.trust.add(name, key, hand, &[], w.now);
    for (verb, word) in [(Verb::Load, "load"), (Verb::Spend, "spend"), (Verb::Observe, "observe")] {
        let refused = add(&w, "pi", key, hand(&[Verb::List, verb], DAY));
        assert_eq!(refused, Err(PinError::Verb(word)));
    }
    assert_eq!(add(&w, "pi", key, hand(&use_it, 0)), Err(PinError::Over));
    assert_eq!(add(&w, "pi", key, hand(&use_it, 49 * DAY + 1)), Err(PinError::TooLong));
    assert_eq!(add(&w, "p i", key, hand(&use_it, DAY)), Err(PinError::Name("p i".to_owned())));
    assert_eq!(add(&w, "self", key, hand(&use_it, DAY)), Err(PinError::Name("self".to_owned())));
    assert_eq!(add(&w, "pi", w.key(), hand(&use_it, DAY)), Err(PinError::OwnKey));
    let at = |n: u8| std::net::IpAddr::from([8, 8, 8, n]);
    let met = |lan: &[_]| w.trust.add("pi", key, hand(&use_it, DAY), lan, w.now);
    assert_eq!(met(&[at(8)]), Err(PinError::Address(at(8))));
    let many: Vec<_> = (1..10).map(|n| std::net::IpAddr::from([10, 0, 0, n])).collect();
    assert_eq!(met(&many), Err(PinError::Addresses));
    let desk = w.node("desk");
    assert_eq!(
        add(&w, "pi", desk.key(), hand(&use_it, DAY)),
        Err(PinError::Taken(desk.name.clone()))
    );
    add(&w, "pi", key, hand(&use_it, DAY)).unwrap();
    let Verdict::Admit(caller, ping) = w.verdict(&key) else { panic!() };
    assert!(ping.is_empty() && caller.lan.is_some());
    assert!(matches!(&caller.kind, CallerKind::Pin { name, .. } if &**name == "pi"));
    let pin = w.trust.view().by_key(&key).cloned().unwrap();
    assert!(!pin.is_own(w.trust.view().own.as_ref()) && pin.principal.is_none());
    // A node of the tailnet that turns up with that key is not it.
    let claim = Node { ring: w.node("desk").ring, ..person("late", 3, 1) };
    assert!(matches!(w.hello(&claim), Err(HelloRefused::Taken { .. })));
    w.wait(DAY - MINUTE);
    assert_eq!(w.verdict(&key).label(), "live", "no list and no filter speaks of it");
    w.wait(MINUTE);
    assert_eq!(w.verdict(&key), Verdict::Expired);
}

#[test]
fn a_pin_that_a_person_forgets_is_gone_at_once() {
    let mut w = World::pinned(vec![person("desk", 2, 1), tagged("gpu", 3)]);
    let [desk, gpu] = [w.node("desk"), w.node("gpu")];
    w.trust.forget("desk").unwrap();
    assert_eq!((w.worth(&desk), w.worth(&gpu)), ("not pinned", "live"));
    assert_eq!(w.trust.forget("desk"), Err(PinError::Unknown("desk".to_owned())));
    w.change("gpu", |n| n.name = desk.name.clone());
    w.look();
    w.hello(&desk).unwrap();
    let told = w.trust.forget("desk").unwrap_err().to_string();
    assert_eq!(told, "`desk` names 2 pins: say which by id, one of n3, n2");
    w.trust.forget("n3").unwrap();
    assert_eq!((w.worth(&desk), w.worth(&gpu)), ("live", "not pinned"));
}

#[test]
fn what_is_only_said_of_an_address_costs_no_proven_one_its_place_and_is_not_written() {
    let at = |n: u8| std::net::IpAddr::from([10, 0, 0, n]);
    let desk = Node { lan: (1..=8).map(at).collect(), ..person("desk", 2, 1) };
    let dir = tempfile::tempdir().unwrap();
    let mut w = World::kept(vec![desk.clone()], Some(dir.path()));
    w.hello_all();
    w.trust.save().unwrap();
    let file = dir.path().join("trust-home.json");
    std::fs::remove_file(&file).unwrap();
    let any = |w: &World| w.pin(&desk).unwrap().addresses(|_| true);
    for n in 100..200 {
        w.trust.announced(&desk.id(), at(n));
    }
    w.trust.announced(&desk.id(), "8.8.8.8".parse().unwrap());
    w.trust.announced(&desk.id(), at(1));
    let pin = w.pin(&desk).unwrap();
    assert_eq!(pin.lan, desk.lan, "all of them, in their order");
    assert_eq!(any(&w)[..6], desk.lan[..6]);
    let mut said = any(&w)[6..].to_vec();
    said.sort();
    assert_eq!(said, [at(198), at(199)], "the newest two");
    // Named by the node itself: all that fit, and others only after a while.
    let wall = w.now;
    let elsewhere = |a: std::net::IpAddr| !desk.lan.contains(&a);
    w.trust.told_addresses(&desk.id(), &[at(50), at(51), at(52)], wall);
    w.trust.told_addresses(&desk.id(), &[at(60)], wall);
    let found = w.pin(&desk).unwrap().addresses(elsewhere);
    assert!(found.contains(&at(51)) && !found.contains(&at(60)), "{found:?}");
    assert_eq!(w.pin(&desk).unwrap().lan, desk.lan);
    w.trust.save().unwrap();
    assert!(!file.exists(), "no reason to write");
    // Where it is met, it is.
    w.trust.address(&desk.id(), at(199));
    assert_eq!(w.pin(&desk).unwrap().lan[..2], [at(199), at(1)]);
    assert!(!any(&w)[1..].contains(&at(199)));
    w.trust.save().unwrap();
    assert!(file.exists());
}
