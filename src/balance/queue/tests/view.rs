//! What a queue says of itself.

use super::*;

fn standing(desk: &Desk, text: &str) -> Standing {
    desk.queue.standing(target(text), 5 * SEC, desk.now)
}

#[test]
fn weights_stand_as_whoever_comes_would_find_them() {
    let mut desk = Desk::with(1, "tiny");
    for id in 1..=3 {
        desk.enter(waiter(id, "tiny"));
    }
    desk.wait(4);
    let tiny = standing(&desk, "tiny");
    assert_eq!((tiny.loaded, tiny.loading, tiny.running, tiny.queued), (true, false, 1, 2));
    assert_eq!((tiny.interactive, tiny.own), (26 * SEC, 6 * SEC), "own requests go first");
    let cold = standing(&desk, "big");
    assert_eq!((cold.loaded, cold.running, cold.interactive), (false, 0, 5 * SEC));
    desk.enter(waiter(9, "big"));
    let coming = standing(&desk, "big");
    assert_eq!((coming.loaded, coming.loading, coming.queued), (false, true, 1));
    assert_eq!(coming.interactive, 15 * SEC, "the load, and who waits for it");
}

#[test]
fn what_is_in_memory_counts_with_the_options_it_has() {
    let desk = Desk::with(1, "tiny/8192");
    let tiny = standing(&desk, "tiny");
    assert_eq!(
        (tiny.loaded, tiny.key.num_ctx, tiny.interactive),
        (true, Some(8192), Duration::ZERO)
    );
    let mut desk = Desk::new(1);
    desk.observed(&[seen("tiny", Some(4096))]);
    let foreign = standing(&desk, "tiny");
    assert_eq!((foreign.loaded, foreign.key.num_ctx), (true, None), "as the engine likes it");
    let mut other = Queue::new(false, 4, 100);
    assert_eq!(other.enter(waiter(1, "tiny"), at(0)), Entry::Start);
    let vllm = other.standing(target("tiny"), 5 * SEC, at(0));
    assert_eq!((vllm.loaded, vllm.running, vllm.interactive), (true, 1, Duration::ZERO));
}

#[test]
fn what_was_never_let_go_for_a_load_is_taken_to_stay_beside_it() {
    let mut desk = Desk::with(1, "tiny");
    let fits = |desk: &Desk, text: &str| standing(desk, text).fits;
    assert!(fits(&desk, "big"), "nobody has seen otherwise");
    assert!(fits(&desk, "tiny"), "it is there");
    desk.enter(waiter(1, "big"));
    desk.loaded(true).wait(1).observed(&[seen("big", None)]);
    assert!(!fits(&desk, "tiny"), "it had to go for the other");
    desk.end(1).wait(1).observed(&[]);
    assert!(fits(&desk, "tiny") && fits(&desk, "big"), "nothing is there any more");
    desk.observed(&[seen("big", None)]);
    assert!(!fits(&desk, "tiny"), "somebody else had it loaded");
}

#[test]
fn who_waits_can_be_told_for_how_long() {
    let mut desk = Desk::with(1, "tiny");
    desk.enter(waiter(1, "tiny"));
    desk.enter(Waiter { class: Class::Batch, ..waiter(2, "tiny") });
    desk.enter(waiter(3, "tiny"));
    desk.enter(waiter(4, "tiny"));
    let left = |id| desk.queue.left(WaiterId(id), desk.now);
    assert_eq!([left(1), left(3), left(4)], [None, Some(10 * SEC), Some(20 * SEC)]);
    assert_eq!((left(2), left(77)), (Some(30 * SEC), None), "batch goes last");
    let mut cold = Desk::new(1);
    cold.enter(waiter(1, "big"));
    cold.wait(2);
    assert_eq!(cold.queue.left(WaiterId(1), cold.now), Some(3 * SEC));
}

#[test]
fn an_answer_that_goes_on_and_on_is_not_expected_to_end_any_moment() {
    let mut desk = Desk::with(1, "tiny");
    desk.enter(waiter(1, "tiny")).enter(waiter(2, "tiny"));
    let mut left = Vec::new();
    for seconds in [4, 5, 3, 8, 60, 320] {
        desk.wait(seconds);
        left.push(desk.queue.left(WaiterId(2), desk.now).unwrap().as_secs_f64());
    }
    // After 4, 9, 12, 20, 80 and 400 seconds of an answer that was to take ten.
    assert_eq!(left, [6.0, 2.5, 3.0, 5.0, 20.0, 100.0]);
}
