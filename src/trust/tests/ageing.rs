//! What a pin is worth as time goes by: ends, clocks, the packet filter, and what rules give
//! on the local network.

use std::time::Duration;

use super::world::*;
use crate::config::{self, FixedEnv};
use crate::trust::{Access, Limits, Me, Netmap, Tailnet, Verdict};
use crate::types::{Caller, CallerKind, ModelKey, Verb, Verbs, Wall};

/// What `access: "auto"` gives a caller here.
fn rules(w: &World) -> Access {
    let me = Me { principal: w.me.principal.clone(), name: w.me.name.clone() };
    Access::new(None, &Tailnet { me: Some(me), people: w.trust.view().people })
}

fn verbs(w: &World, caller: &Caller) -> String {
    rules(w).of(caller).verbs().iter().map(Verb::label).collect::<Vec<_>>().join(" ")
}

#[test]
fn daily_contact_on_the_local_network_keeps_no_pin_beyond_its_days() {
    let mut w = World::pinned(vec![person("studio", 2, 1)]);
    let studio = w.node("studio");
    w.online = false;
    for day in 1..=15 {
        w.wait(DAY);
        // All that the local network ever tells: an address, a meeting, what left.
        w.trust.address(&studio.id(), format!("192.168.1.{}", 100 + day).parse().unwrap());
        w.trust.told_suspended(&studio.id(), &[], w.now);
        w.trust.reached(&studio.id(), w.now);
        w.trust.tick(w.now);
        let want = if day < 14 { "live" } else { "too long without the tailnet" };
        assert_eq!(w.worth(&studio), want, "day {day}");
        assert_eq!(w.trust.view().live(&studio.id(), w.now).is_some(), day < 14);
        assert_eq!(w.trust.view().live_key(&studio.key(), w.now).is_some(), day < 14);
    }
    w.online = true;
    w.look();
    assert_eq!(w.worth(&studio), "too long without the tailnet", "a list alone vouches for no key");
    w.hello(&studio).unwrap();
    assert_eq!(w.worth(&studio), "live");
}

#[test]
fn what_tags_and_grants_give_ends_after_a_day_and_an_owners_devices_stay() {
    let mut w = World::pinned(vec![person("studio", 2, 1), tagged("gpu", 3), person("desk", 4, 2)]);
    for node in w.nodes.clone() {
        w.heard(&node).unwrap();
    }
    w.online = false;
    w.wait(23 * HOUR);
    let desk = w.caller(&w.node("desk"));
    assert!(matches!(&desk.kind, CallerKind::Node { grants, .. } if grants.len() == 1));
    for (name, may) in
        [("studio", "list infer observe"), ("gpu", "list infer"), ("desk", "list infer")]
    {
        assert_eq!(verbs(&w, &w.caller(&w.node(name))), may, "{name}");
    }
    w.wait(2 * HOUR);
    for (name, worth) in [
        ("studio", "live"),
        ("gpu", "too long without the tailnet"),
        ("desk", "too long without the tailnet"),
    ] {
        assert_eq!(w.worth(&w.node(name)), worth, "{name} at 25 h");
    }
}

#[test]
fn a_rule_gives_less_on_the_local_network_and_nothing_to_a_tag_after_a_day() {
    let mut w = World::pinned(vec![person("studio", 2, 1), tagged("gpu", 3)]);
    let after = |caller: &Caller, hours: u64| Caller {
        lan: Some(Duration::from_secs(hours * HOUR)),
        ..caller.clone()
    };
    let tailnet = |caller: &Caller| Caller { lan: None, ..caller.clone() };
    let [studio, gpu] = ["studio", "gpu"].map(|n| w.caller(&w.node(n)));
    assert_eq!(verbs(&w, &tailnet(&studio)), "list infer observe load");
    assert_eq!(verbs(&w, &after(&studio, 0)), "list infer observe");
    assert_eq!(verbs(&w, &after(&studio, 300)), "list infer observe");
    assert_eq!(verbs(&w, &after(&gpu, 24)), "list infer");
    assert_eq!(verbs(&w, &after(&gpu, 25)), "");
    assert_eq!(verbs(&w, &tailnet(&gpu)), "list infer");
    let tiny = ModelKey::parse("tiny").unwrap();
    let granted = rules(&w).of(&after(&studio, 1));
    assert!(granted.may(Verb::Infer, &tiny).is_some_and(|l| l == Limits::NONE));
    for verb in [Verb::Load, Verb::Manage, Verb::Spend] {
        assert!(granted.may(verb, &tiny).is_none() && granted.may_all(verb).is_none());
        assert!(!granted.has(verb));
    }
    let why = granted.why_not(Verb::Load, None);
    assert!(
        why.ends_with("may not use `load` over the local network, where it comes from"),
        "{why}"
    );
    // The bound on tags is the configuration's.
    w.me.principal = person("x", 9, 7).principal;
    let config = config::parse("{ lan: { grantHours: 2 } }", None, &FixedEnv::default()).unwrap();
    let me = Me { principal: w.me.principal.clone(), name: w.me.name.clone() };
    let access = Access::resolve(&config, &Tailnet { me: Some(me), people: Some(1) });
    assert!(access.of(&after(&gpu, 1)).has(Verb::Infer));
    assert!(!access.of(&after(&gpu, 3)).has(Verb::Infer));
}

#[test]
fn a_key_added_by_hand_may_do_what_was_said_and_what_a_rule_names_it_for() {
    let w = World::of(Vec::new());
    let caller = |verbs: Verbs, models: &[&str]| Caller {
        kind: CallerKind::Pin {
            name: "pi".into(),
            verbs,
            models: models.iter().map(|m| (*m).to_owned()).collect(),
        },
        addr: None,
        lan: Some(Duration::from_secs(90 * DAY)),
    };
    let model = |name: &str| ModelKey::parse(name).unwrap();
    let said = rules(&w).of(&caller(Verbs::ALL, &["tiny*"]));
    assert_eq!(said.verbs(), Verbs::NONE.with(Verb::List).with(Verb::Infer), "never more");
    assert!(said.may(Verb::Infer, &model("tiny")).is_some());
    assert!(said.may(Verb::Infer, &model("secret")).is_none());
    assert!(!said.is_own());
    assert_eq!(said.may(Verb::Infer, &model("tiny")).unwrap().max_inflight, Some(4));
    let rule = |who: &str, verbs| crate::config::AccessRule {
        from: vec![who.parse().unwrap()],
        verbs,
        models: vec!["*".to_owned()],
        max_inflight: None,
        max_num_ctx: None,
        max_predict: None,
        may_load: true,
    };
    for (who, verb, may) in [
        ("pin:PI", Verb::Infer, true),
        ("pin:PI", Verb::Observe, true),
        ("pin:pi", Verb::Load, false),
        ("pin:pi", Verb::Spend, false),
        ("pin:other", Verb::Infer, false),
        ("*", Verb::Infer, false),
        ("owner:self", Verb::Infer, false),
        ("node:pi", Verb::Infer, false),
        ("local", Verb::Infer, false),
    ] {
        let me = Me { principal: w.me.principal.clone(), name: w.me.name.clone() };
        let tailnet = Tailnet { me: Some(me), people: Some(1) };
        let access = Access::new(Some(&[rule(who, Verbs::NONE.with(verb))]), &tailnet);
        let caller = caller(Verbs::NONE.with(Verb::List), &["none"]);
        // The key is what it is, whichever way its holder is said to have come.
        for caller in [Caller { lan: None, ..caller.clone() }, caller] {
            let granted = access.of(&caller);
            assert_eq!(granted.may(verb, &model("tiny")).is_some(), may, "{who} {verb:?}");
        }
    }
}

#[test]
fn a_pin_ends_with_the_nodes_own_key() {
    let ends = Wall(START.0 + 2 * DAY);
    let mut w = World::pinned(vec![Node { expires: Some(ends), ..person("studio", 2, 1) }]);
    let studio = w.node("studio");
    w.online = false;
    w.wait(2 * DAY - MINUTE);
    assert_eq!(w.worth(&studio), "live");
    w.wait(MINUTE);
    assert_eq!(w.worth(&studio), "expired");
    assert!(w.trust.view().live(&studio.id(), w.now).is_none());
    // A list that calls it expired needs no date.
    let mut w = World::pinned(vec![person("studio", 2, 1)]);
    w.change("studio", |n| n.expired = true);
    w.look();
    assert_eq!(w.worth(&w.node("studio")), "expired");
    w.change("studio", |n| n.expired = false);
    w.look();
    assert_eq!(w.worth(&w.node("studio")), "live");
}

#[test]
fn an_ephemeral_nodes_pin_ends_after_a_day() {
    let mut w = World::pinned(vec![Node { ephemeral: true, ..person("job", 2, 1) }]);
    let job = w.node("job");
    w.online = false;
    w.wait(DAY - MINUTE);
    assert_eq!(w.worth(&job), "live");
    w.wait(MINUTE);
    assert_eq!(w.worth(&job), "too long without the tailnet");
}

#[test]
fn a_clock_set_back_makes_no_pin_younger() {
    for (back, ok) in [(9 * MINUTE, true), (20 * MINUTE, false), (365 * DAY, false)] {
        for restart in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let mut w =
                World::kept(vec![person("studio", 2, 1), person("desk", 3, 1)], Some(dir.path()));
            w.hello_all();
            w.online = false;
            w.wait(15 * DAY);
            w.hello(&w.node("desk")).unwrap();
            w.now.0 -= back;
            if restart {
                w.restart(dir.path());
            } else {
                w.trust.tick(w.now);
            }
            let studio = w.node("studio");
            let want = if ok { "too long without the tailnet" } else { "clock set back" };
            assert_eq!(w.worth(&studio), want, "{back} s back");
            assert_eq!(w.trust.view().clock_ok, ok);
            w.look();
            w.wait(HOUR);
            w.hello(&w.node("desk")).unwrap();
            w.heard(&w.node("desk")).unwrap();
            assert_eq!(w.trust.view().clock_ok, ok, "without the coordinator nothing is cleared");
            assert_eq!(w.worth(&studio), want, "nor by the clock coming round");
            w.online = true;
            w.look();
            assert_eq!(w.trust.view().clock_ok, ok, "nor by a list");
            w.hello(&w.node("desk")).unwrap();
            assert!(w.trust.view().clock_ok);
            assert_eq!(w.worth(&w.node("desk")), "live");
            // A year back, the other's last contact lies ahead: it has no age.
            assert_eq!(w.worth(&studio), "too long without the tailnet");
            w.hello(&studio).unwrap();
            assert_eq!(w.worth(&studio), "live");
        }
    }
}

#[test]
fn a_clock_that_was_late_counts_again_once_it_is_put_right_and_not_by_going_on() {
    // (Where it stands, seen again and again; where it then is told to stand.)
    for (behind, put_right, worth) in [
        (400 * DAY, 0, "live"),
        (400 * DAY, 3 * DAY, "live"),
        (400 * DAY, 20 * DAY, "too long without the tailnet"),
        (3 * HOUR, 0, "live"),
        // It has been wrong by an hour all along, however often it is looked at.
        (HOUR, 0, "clock set back"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut w = World::kept(vec![person("studio", 2, 1)], Some(dir.path()));
        w.hello_all();
        w.online = false;
        w.wait(DAY);
        let stopped = w.now;
        w.now.0 -= behind;
        w.restart(dir.path());
        let studio = w.node("studio");
        let mut look = |now: Wall| {
            w.now = now;
            w.trust.tick(now);
            w.worth(&studio)
        };
        // It runs on for two hours.
        let begun = Wall(stopped.0 - behind);
        for minute in 0..120 {
            assert_eq!(look(Wall(begun.0 + minute * MINUTE)), "clock set back", "{minute}");
        }
        let then = Wall((begun.0 + 120 * MINUTE).max(stopped.0 + put_right));
        assert_eq!(look(then), worth, "{behind} s behind, put right to {put_right} s later");
        assert_eq!(look(Wall(then.0 + DAY)) == "clock set back", worth == "clock set back");
    }
}

#[test]
fn what_was_seen_at_a_time_that_has_not_come_yet_counts_for_nothing() {
    let mut w = World::pinned(vec![person("studio", 2, 1), person("desk", 3, 1)]);
    let studio = w.node("studio");
    w.trust.heard_filter(by_capability(), w.now);
    w.wait(MINUTE);
    w.trust.reached(&studio.id(), w.now);
    assert_eq!(w.worth(&studio), "live", "it reached us within a day");
    w.now.0 -= 365 * DAY;
    w.look();
    assert!(!w.trust.is_rotation_due(w.now), "nor does a key made then have an age");
    w.hello(&w.node("desk")).unwrap();
    assert!(w.trust.is_rotation_due(w.now));
    w.hello(&studio).unwrap();
    assert_eq!(w.worth(&studio), "not let in by the tailnet's policy");
}

#[test]
fn a_clock_set_back_counts_before_anyone_took_note_of_it() {
    let mut w = World::pinned(vec![person("studio", 2, 1)]);
    w.online = false;
    w.wait(13 * DAY);
    w.now.0 -= 12 * DAY;
    assert_eq!(w.worth(&w.node("studio")), "clock set back");
}

#[test]
fn whom_the_policy_removed_is_not_let_in_by_the_local_network() {
    let mut w = World::pinned(vec![person("studio", 2, 1), person("desk", 3, 1)]);
    for node in w.nodes.clone() {
        w.trust.reached(&node.id(), w.now);
    }
    let [studio, desk] = [w.node("studio"), w.node("desk")];
    w.trust.heard_filter(open_to("100.64.0.2/32"), w.now);
    w.online = false;
    w.wait(HOUR);
    let worth = [w.worth(&studio), w.worth(&desk)];
    assert_eq!(worth, ["live", "not let in by the tailnet's policy"], "although it reached us");
    let Verdict::Admit(_, ping) = w.verdict(&studio.key()) else { panic!() };
    assert_eq!(ping, studio.addrs, "where its tailnet path is tried first");
}

#[test]
fn where_the_filter_does_not_say_a_contact_within_a_day_and_since_its_change_does() {
    enum Then {
        Nothing,
        Reached,
        Changed,
    }
    type Case = (&'static str, &'static [(Then, u64)], bool);
    let cases: [Case; 6] = [
        ("never reached us", &[(Then::Nothing, MINUTE)], false),
        ("an hour ago", &[(Then::Reached, HOUR)], true),
        ("23 h ago", &[(Then::Reached, 23 * HOUR)], true),
        ("25 h ago", &[(Then::Reached, 25 * HOUR)], false),
        ("before the filter changed", &[(Then::Reached, HOUR), (Then::Changed, HOUR)], false),
        (
            "before it and again",
            &[(Then::Reached, HOUR), (Then::Changed, HOUR), (Then::Reached, HOUR)],
            true,
        ),
    ];
    for (what, story, may) in cases {
        let mut w = World::pinned(vec![person("studio", 2, 1)]);
        let studio = w.node("studio");
        w.trust.heard_filter(by_capability(), w.now);
        w.sleep(1);
        for (then, wait) in story {
            match then {
                Then::Nothing => {}
                Then::Reached => w.trust.reached(&studio.id(), w.now),
                Then::Changed => {
                    let mut other = by_capability();
                    other.rules.extend(open_to("100.64.0.99/32").rules);
                    w.trust.heard_filter(other, w.now);
                }
            }
            w.wait(*wait);
            let held = w.trust.view().filter.clone().unwrap().filter;
            w.trust.heard_filter(held, w.now);
        }
        let want = if may { "live" } else { "not let in by the tailnet's policy" };
        assert_eq!(w.worth(&studio), want, "{what}");
    }
}

#[test]
fn with_no_filter_at_all_only_a_contact_lets_in() {
    let mut w = World::pinned(vec![person("studio", 2, 1)]);
    let own = w.me.own();
    // Another tailnet, whose filter was never shown.
    w.trust.enter(&control("work"), &own, Some(1), "", w.now);
    let work = |n: &Node| crate::types::NodeId::Tailnet {
        control: control("work"),
        stable: n.stable.as_str().into(),
    };
    let studio = w.node("studio");
    let map = Netmap { control: &control("work"), online: true, nodes: &[] };
    w.trust.netmap(&map, w.now);
    let mut say = w.say(&studio);
    say.control = "work".to_owned();
    w.hello_as(&studio, &say).unwrap();
    assert_eq!(w.worth(&studio), "not let in by the tailnet's policy");
    w.trust.reached(&work(&studio), w.now);
    assert_eq!(w.worth(&studio), "live");
}
