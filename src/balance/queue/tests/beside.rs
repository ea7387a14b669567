//! Prompts are read one after the other; answers that are written side by side slow each other.

use super::*;

/// One whose prompt is read in so many seconds.
fn reads(id: u64, model: &str, secs: u32) -> Waiter {
    Waiter { reads: secs * SEC, cost: (secs + 10) * SEC, ..waiter(id, model) }
}

#[test]
fn a_prompt_waits_while_shorter_ones_are_read() {
    Desk::with(3, "tiny")
        .enter(reads(1, "tiny", 4))
        .enter(reads(2, "tiny", 8))
        .enter(reads(3, "tiny", 1))
        .check(&["+1", "2 waits", "+3"])
        .began(3)
        .check(&[])
        .began(1)
        .check(&["+2"]);
}

#[test]
fn an_answer_that_shows_its_first_byte_at_its_end_holds_nobody_up() {
    Desk::with(2, "tiny")
        .enter(reads(1, "tiny", 4))
        .enter(reads(2, "tiny", 8))
        .wait(7)
        .observed(&[seen("tiny", None)])
        .check(&["+1", "2 waits"])
        .wait(1)
        .observed(&[seen("tiny", None)])
        .check(&["+2"]);
}

#[test]
fn nobody_waits_for_prompts_longer_than_a_minute() {
    Desk::with(2, "tiny")
        .enter(reads(1, "tiny", 50))
        .enter(reads(2, "tiny", 55))
        .wait(59)
        .observed(&[seen("tiny", None)])
        .check(&["+1", "2 waits"])
        .wait(1)
        .observed(&[seen("tiny", None)])
        .check(&["+2"]);
}

#[test]
fn a_worse_class_does_not_take_the_slot_of_one_that_waits_for_a_prompt() {
    let own = Waiter { class: Class::Own, ..reads(2, "tiny", 8) };
    Desk::with(3, "tiny")
        .enter(reads(1, "tiny", 4))
        .enter(own)
        .enter(reads(3, "tiny", 1))
        .check(&["+1", "2 waits", "3 waits"])
        .began(1)
        .check(&["+2", "+3"]);
}

#[test]
fn what_runs_on_other_models_makes_a_wait_longer() {
    let wait = |beside: bool| {
        let mut desk = Desk::with(1, "tiny");
        desk.enter(waiter(1, "other")).loaded(true);
        desk.enter(waiter(2, "tiny"));
        if !beside {
            desk.end(1);
        }
        desk.queue.waits(&target("tiny"), Class::Interactive, Duration::ZERO, desk.now)
    };
    assert_eq!(wait(false), 10 * SEC);
    assert!(wait(true) > 11 * SEC, "{:?}", wait(true));
}

#[test]
fn a_new_request_waits_for_the_prompts_that_are_read() {
    let mut desk = Desk::with(4, "tiny");
    let wait =
        |desk: &Desk| desk.queue.waits(&target("tiny"), Class::Own, Duration::ZERO, desk.now);
    desk.enter(reads(1, "tiny", 6)).wait(2).enter(reads(2, "tiny", 3));
    assert_eq!(wait(&desk), 7 * SEC);
    desk.began(1);
    assert_eq!(wait(&desk), 3 * SEC);
    desk.began(2);
    assert_eq!(wait(&desk), Duration::ZERO);
}

#[test]
fn what_ever_began_is_counted_for_each_model_and_a_load_counts_for_all_slots() {
    let mut desk = Desk::new(2);
    let begun = |desk: &Desk| {
        let of = |name| desk.queue.standing(target(name), SEC, desk.now).begun;
        (of("tiny"), of("big"))
    };
    assert_eq!(begun(&desk), (0, 0));
    desk.enter(waiter(1, "tiny"));
    assert_eq!(begun(&desk), (0, 0), "it waits for the load");
    desk.loaded(true);
    assert_eq!(begun(&desk), (3, 0));
    desk.enter(waiter(2, "tiny")).enter(waiter(3, "tiny"));
    assert_eq!(begun(&desk), (4, 0), "the third waits for a slot");
    desk.end(1).end(2).end(3);
    assert_eq!(begun(&desk), (5, 0), "what has ended counts on");
    desk.wait(1).observed(&[]).enter(waiter(4, "big")).loaded(false);
    assert_eq!(begun(&desk), (5, 0), "a load that failed leaves what is there");
    desk.enter(waiter(5, "tiny")).loaded(true);
    assert_eq!(begun(&desk), (8, 0), "it was let go, and loaded again");
}
