//! What guests may have loaded beside what the owner uses.

use super::*;

/// A guest of this node, whose load may push out nothing of the owner's.
fn guest(id: u64, model: &str, size: u64) -> Waiter {
    let principal = "eve".into();
    Waiter { own: false, guest: true, evicts: false, principal, ..sized(id, model, size) }
}

fn held(model: &str, size: u64) -> Seen {
    Seen { size, ..seen(model, None) }
}

/// A desk whose owner has used `tiny` (5) just now; the engine has it in memory.
fn used() -> Desk {
    let mut desk = Desk::new(2);
    desk.enter(sized(900, "tiny", 5)).loaded(true).end(900);
    desk.wait(1).observed(&[held("tiny", 5)]).said.clear();
    desk
}

#[test]
fn a_guest_who_loops_twenty_cold_models_never_pushes_out_the_owners() {
    let mut desk = used();
    for round in 0..3 {
        for n in 0..20 {
            desk.enter(guest(round * 20 + n, &format!("cold{n}"), 1));
            desk.check(&[&format!("-{} not_loaded", round * 20 + n)]);
        }
        desk.enter(sized(901 + round, "tiny", 5)).check(&[&format!("+{}", 901 + round)]);
        desk.end(901 + round).wait(600);
    }
    // What is in memory serves guests, too, and does not become theirs by it.
    desk.enter(guest(70, "tiny", 5)).check(&["+70"]).end(70);
    desk.enter(guest(71, "cold", 1)).check(&["-71 not_loaded"]);
    // An owner who said "any" lends all of it.
    desk.enter(Waiter { evicts: true, ..guest(72, "cold", 1) }).check(&["load cold"]);
}

#[test]
fn a_guest_has_loaded_what_surely_fits_beside_the_owners() {
    let mut desk = used();
    desk.enter(sized(1, "big", 20)).loaded(true).end(1).wait(1);
    desk.observed(&[held("tiny", 5), held("big", 20)]).said.clear();
    // 25 were there together, and two of them; now the big one is gone.
    desk.wait(1).observed(&[held("tiny", 5)]);
    desk.enter(guest(2, "other", 20)).check(&["load other"]).loaded(true).check(&["+2"]).end(2);
    desk.enter(guest(3, "third", 1)).check(&["-3 not_loaded"]);
    desk.wait(1).observed(&[held("tiny", 5)]);
    desk.enter(guest(4, "vast", 21)).check(&["-4 not_loaded"]);
    desk.enter(guest(5, "unknown", 0)).check(&["-5 not_loaded"]);
    // A window of one's own choice may make it larger than any was.
    desk.enter(guest(6, "other/131072", 20)).check(&["-6 not_loaded"]);
    // Nor are the owner's options taken from his model.
    desk.enter(guest(7, "tiny/8192", 5)).check(&["-7 not_loaded"]);
}

#[test]
fn what_nobody_uses_any_more_makes_room() {
    let mut desk = used();
    desk.wait(29 * 60).enter(guest(1, "cold", 1)).check(&["-1 not_loaded"]);
    desk.wait(2 * 60).enter(guest(2, "cold", 1)).check(&["load cold"]).loaded(true).end(2);
    desk.check(&["+2"]);
    // What was loaded for guests makes room for guests, also once the engine's list names it.
    desk.wait(1).observed(&[held("cold", 1)]);
    desk.enter(guest(3, "next", 9)).check(&["load next"]).loaded(true).check(&["+3"]).end(3);
    // What is kept for longer was asked for by its owner.
    let mut desk = used();
    let forever = Seen { expires: Some(at(1_000_000)), ..held("tiny", 5) };
    desk.wait(3600).observed(&[forever]).enter(guest(1, "cold", 1)).check(&["-1 not_loaded"]);
}

#[test]
fn what_was_loaded_past_the_queue_is_the_owners() {
    let mut desk = Desk::new(2);
    desk.observed(&[held("tiny", 5)]).enter(guest(1, "cold", 1)).check(&["-1 not_loaded"]);
    desk.enter(guest(2, "tiny", 5)).check(&["confirm tiny"]).loaded(true).end(2);
    desk.check(&["+2"]).enter(guest(3, "cold", 1)).check(&["-3 not_loaded"]);
}

#[test]
fn who_waits_for_a_load_is_sent_on_when_the_owner_comes_first() {
    let mut desk = Desk::new(1);
    desk.enter(guest(1, "first", 1)).enter(guest(2, "second", 1));
    desk.enter(Waiter { class: Class::Own, ..sized(3, "tiny", 5) });
    desk.check(&["load first", "2 waits", "3 waits"]).loaded(true);
    desk.check(&["+1", "load tiny", "-2 not_loaded"]);
}

#[test]
fn guests_together_run_at_most_as_many_as_they_may() {
    let mut desk = used();
    desk.queue.set_slots(8, desk.now);
    desk.queue.set_guests(Some(2), desk.now);
    for id in 1..=3 {
        let principal = format!("guest{id}").into();
        desk.enter(Waiter { principal, ..guest(id, "tiny", 5) });
    }
    desk.check(&["+1", "+2", "3 waits"]);
    assert!(desk.queue.left(WaiterId(3), desk.now) > Some(5 * SEC), "it says how long");
    let hurried = Waiter { budget: Some(SEC), ..guest(4, "tiny", 5) };
    desk.enter(hurried).check(&["-4 wait"]).enter(waiter(5, "tiny")).check(&["+5"]);
    desk.end(1).check(&["+3"]);
    let actions = desk.queue.set_guests(None, desk.now);
    assert_eq!(actions, []);
}

#[test]
fn a_row_says_when_a_guest_would_be_sent_away() {
    let desk = used();
    let spares = |text: &str| desk.queue.standing(target(text), 5 * SEC, desk.now).spares;
    assert!(spares("tiny") && !spares("cold"));
    let empty = Desk::new(1);
    assert!(empty.queue.standing(target("cold"), 5 * SEC, empty.now).spares);
}
