//! What the choice promises.

use super::*;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

/// A node that has the model in memory and is free.
pub(in crate::balance) fn good(index: usize) -> Candidate {
    Candidate {
        index,
        alive: true,
        able: true,
        loaded_ctx: 8192,
        slots: 1,
        prefill: 1000.0,
        decode: 50.0,
        load_rate: 1e9,
        size: 5_000_000_000,
        ..Candidate::default()
    }
}

fn ask() -> Ask {
    Ask { prompt_tokens: 500, ..Ask::default() }
}

/// The share of 400 draws each candidate gets.
fn shares(candidates: &[Candidate], ask: &Ask) -> Vec<usize> {
    let mut rng = SmallRng::seed_from_u64(7);
    let mut got = vec![0; candidates.len()];
    for _ in 0..400 {
        got[choose(candidates, ask, Moment::ZERO, &mut rng).index().unwrap()] += 1;
    }
    got
}

#[track_caller]
fn wins(first: Candidate, second: Candidate, ask: &Ask) {
    let (first, second) = (Candidate { index: 0, ..first }, Candidate { index: 1, ..second });
    assert_eq!(shares(&[first, second], ask), [400, 0]);
}

#[test]
fn the_better_of_two_wins() {
    let c = good(0);
    let a = ask();
    let resting = Moment::from_millis(1);
    wins(c, Candidate { alive: false, decode: 1e4, ..c }, &a);
    wins(c, Candidate { able: false, decode: 1e4, ..c }, &a);
    wins(c, Candidate { rest_until: resting, decode: 1e4, ..c }, &a);
    wins(c, Candidate { loaded_ctx: 256, decode: 1e4, ..c }, &a);
    wins(c, Candidate { held: "half-open", decode: 1e4, ..c }, &a);
    wins(Candidate { held: "half-open", ..c }, Candidate { loaded_ctx: 256, ..c }, &a);
    // Of two that rest, the one that rests shorter; never one that takes nothing.
    let longer = Moment::from_millis(9000);
    let slow = Candidate { rest_until: resting, decode: 1.0, ..c };
    wins(slow, Candidate { rest_until: longer, ..c }, &a);
    wins(slow, Candidate { closed: true, ..c }, &a);
    // A slow node that has it beats a fast one that would load it, up to a point.
    wins(c, Candidate { loaded_ctx: 0, decode: 100.0, ..c }, &a);
    wins(Candidate { loaded_ctx: 0, ..c }, Candidate { decode: 5.0, ..c }, &a);
    wins(Candidate { loaded_ctx: 0, loading: true, ..c }, Candidate { loaded_ctx: 0, ..c }, &a);
    wins(c, Candidate { inflight: 1, ..c }, &a);
    wins(Candidate { inflight: 1, ..c }, Candidate { inflight: 1, queued: 1, ..c }, &a);
    wins(Candidate { slots: 4, inflight: 1, ..c }, Candidate { inflight: 1, ..c }, &a);
    wins(Candidate { slots: 4, inflight: 1, ..c }, Candidate { slots: 4, inflight: 3, ..c }, &a);
    wins(c, Candidate { decode: 25.0, ..c }, &a);
    wins(c, Candidate { decode: 0.0, prefill: 0.0, ..c }, &a);
    wins(c, Candidate { decode: 0.0, prefill: 0.0, on_cpu: true, ..c }, &a);
    wins(c, Candidate { rtt: 2.0, ..c }, &a);
    wins(c, Candidate { upload: 2.0, ..c }, &a);
    // What a node says of itself is believed, not guessed anew from its numbers.
    wins(
        Candidate { inflight: 1, queued: 3, wait: Some(1.0), ..c },
        Candidate { wait: Some(3.0), ..c },
        &a,
    );
    wins(c, Candidate { wait: Some(0.0), since: 1, ..c }, &a);
    wins(Candidate { wait: Some(0.0), since: 1, ..c }, Candidate { inflight: 3, ..c }, &a);
    let long = Ask { prompt_tokens: 4000, ..a };
    wins(Candidate { session: true, ..c }, c, &long);
    wins(Candidate { prefix: 0.6, ..c }, Candidate { prefix: 0.1, ..c }, &long);
    wins(Candidate { prompt: 1000, ..c }, c, &long);
    wins(c, Candidate { prompt: c.loaded_ctx + 1, decode: 1e4, ..c }, &a);
}

#[test]
fn what_is_told_of_the_work_at_a_silent_engine_is_its_wait() {
    let c = Candidate { inflight: 1, queued: 2, left: Some(24.0), ..good(0) };
    let terms = |c: Candidate| score(&c, &ask(), Moment::ZERO);
    for (slots, inflight, queued, wait) in
        [(1, 1, 2, 24.0), (1, 1, 0, 24.0), (4, 3, 0, 0.0), (4, 4, 0, 1.5), (4, 4, 2, 3.0)]
    {
        let t = terms(Candidate { slots, inflight, queued, ..c });
        assert_eq!(t.wait, wait, "{slots} {inflight} {queued}");
    }
    // What stands before a load, and then it costs others less than where that is not known.
    let cold = terms(Candidate { loaded_ctx: 0, inflight: 0, queued: 0, line: Some(9.0), ..c });
    assert_eq!((cold.wait, cold.load, cold.load_cost), (9.0, 5.8, 5.8 * LINED_LOAD_COST));
    let unsaid = terms(Candidate { loaded_ctx: 0, inflight: 0, queued: 0, ..c });
    assert_eq!((unsaid.wait, unsaid.load_cost), (0.0, 5.8 * UNSAID_LOAD_COST));
}

#[test]
fn near_equals_are_counted_and_drawn_by_one_over_their_time() {
    assert_eq!([2.0, 0.5, 0.0].map(weight), [0.5, 2.0, 1000.0]);
    let mut rng = SmallRng::seed_from_u64(7);
    let all = [good(0), good(1), Candidate { decode: 10.0, ..good(2) }];
    let Choice::Send(pick) = choose(&all, &ask(), Moment::ZERO, &mut rng) else { panic!("nobody") };
    assert_eq!(pick.among, 2, "the slow one is none of them");
}

#[test]
fn an_idle_machine_is_had_to_load_for_a_queue_and_not_for_an_idle_one() {
    // Of two, one of which has it and that many seconds to wait.
    let goes = |wait: f64, fits: bool| {
        let loaded = Candidate { wait: Some(wait), inflight: 1, ..good(0) };
        let cold = Candidate { loaded_ctx: 0, wait: Some(5.8), fits, ..good(1) };
        let mut both = [loaded, cold];
        queues(&mut both);
        shares(&both, &ask())[1] == 400
    };
    assert_eq!([0.0, 2.0, 4.0].map(|wait| goes(wait, true)), [false, false, true]);
    assert_eq!([4.0, 6.0, 14.0].map(|wait| goes(wait, false)), [false, false, true]);
    let queue = |others: &[Candidate]| {
        let mut all = [&[Candidate { loaded_ctx: 0, ..good(0) }], others].concat();
        queues(&mut all);
        all[0].queue
    };
    let waits = |seconds| Candidate { wait: Some(seconds), ..good(1) };
    assert_eq!(queue(&[waits(7.0), waits(3.0)]), 3.0, "the shortest");
    assert_eq!(queue(&[]), 0.0, "nobody has it");
    let (dead, closed) =
        (Candidate { alive: false, ..waits(1.0) }, Candidate { closed: true, ..waits(1.0) });
    assert_eq!(queue(&[waits(7.0), dead, closed]), 7.0);
    let bare = Candidate { inflight: 1, left: Some(4.0), ..good(1) };
    assert_eq!(queue(&[waits(7.0), bare]), 4.0);
    assert_eq!(queue(&[waits(7.0), good(1)]), 0.0, "one is free");
    assert_eq!(queue(&[waits(f64::NAN)]), MOST);
}

#[test]
fn a_load_costs_others_what_it_pushes_out_and_is_worth_something_where_it_pushes_out_nothing() {
    let cold = Candidate { loaded_ctx: 0, wait: Some(5.8), queue: 3.0, ..good(0) };
    let terms = |c: Candidate| score(&c, &ask(), Moment::ZERO);
    let (out, beside) = (terms(cold), terms(Candidate { fits: true, ..cold }));
    let work = out.prefill + out.decode;
    assert_eq!((out.load, out.load_cost), (5.8, 5.8 * LOAD_COST));
    let cost = 5.8 * ROOM_LOAD_COST - 3.0;
    assert_eq!((beside.load, beside.load_cost), (5.8, cost), "so long is the queue elsewhere");
    assert!((beside.total - work - 5.8 - cost).abs() < 1e-9, "{beside:?}");
    let crowd = terms(Candidate { fits: true, queue: 60.0, ..cold });
    assert_eq!(crowd.load_cost, 5.8 * ROOM_LOAD_COST - 5.8 * LOAD_WORTH);
    // Neither is a time: that is what is waited for.
    for t in [out, beside, crowd] {
        assert!((t.takes() - work - 5.8).abs() < 1e-9, "{t:?}");
    }
    let shy = score(&cold, &Ask { prefer_local: 3.0, ..ask() }, Moment::ZERO);
    assert!(shy.total > 2.0 * out.total && shy.takes() == out.takes(), "{shy:?}");
    // The same weights with another window are let go for that.
    let other = Candidate { loaded_ctx: 8192, fits: true, wait: Some(0.0), ..good(0) };
    let wide = Ask { num_ctx: Some(4096), ..ask() };
    assert_eq!(score(&other, &wide, Moment::ZERO).load_cost, 5.8 * LOAD_COST);
}

#[test]
fn a_said_wait_has_the_load_in_it_and_ours_sent_since_come_on_top() {
    let c = Candidate { wait: Some(7.0), ..good(0) };
    let terms = |c: Candidate| score(&c, &ask(), Moment::ZERO);
    let work = terms(c).prefill + terms(c).decode;
    assert_eq!((terms(c).wait, terms(c).load), (7.0, 0.0));
    let cold = terms(Candidate { loaded_ctx: 0, ..c });
    assert!((cold.wait - 1.2).abs() < 1e-9, "{cold:?}");

    assert_eq!((cold.load, cold.load_cost), (5.8, 5.8 * LOAD_COST));
    let soon = terms(Candidate { loaded_ctx: 0, loading: true, wait: Some(2.0), ..c });
    assert_eq!((soon.wait, soon.load, soon.load_cost), (0.0, 2.0, 0.0));
    for (slots, inflight, since, requests) in [
        (1, 0, 1, 0.5),
        (1, 1, 1, 1.0),
        (1, 1, 3, 3.0),
        (4, 1, 2, 0.0),
        (4, 1, 3, 0.5),
        (4, 4, 2, 0.5),
    ] {
        let t = terms(Candidate { slots, inflight, since, wait: Some(0.0), ..c });
        let work = if slots == 1 { work } else { t.prefill + t.decode };
        assert!((t.wait - requests * work).abs() < 1e-9, "{slots} {inflight} {since}: {t:?}");
    }
    let other = Ask { num_ctx: Some(4096), ..ask() };
    assert_eq!(score(&c, &other, Moment::ZERO).load, 5.8);
}

#[test]
fn a_session_is_worth_at_most_the_reading_it_saves() {
    let c = good(0);
    let a = Ask { prompt_tokens: 4000, ..ask() };
    let terms = |c: Candidate| score(&c, &a, Moment::ZERO);
    let (with, without) = (terms(Candidate { session: true, ..c }), terms(c));
    assert!(with.prefill < 0.11 * without.prefill);
    assert!(without.total - with.total <= without.prefill);
    let share = |prefix| terms(Candidate { prefix, ..c }).prefill;
    assert_eq!((share(0.5), share(1.0)), (without.prefill / 2.0, with.prefill));
    // Once it was let go, nothing is left of it.
    let gone = Candidate { loaded_ctx: 0, ..c };
    assert_eq!(terms(Candidate { session: true, ..gone }), terms(gone));
    assert_eq!(terms(Candidate { prefix: 0.9, ..gone }), terms(gone));
}

#[test]
fn another_window_is_another_load() {
    let a = Ask { num_ctx: Some(4096), ..ask() };
    let c = good(0);
    wins(Candidate { loaded_ctx: 4096, ..c }, c, &a);
    // A model that cannot have more is loaded with what it can have.
    wins(Candidate { loaded_ctx: 2048, context: 2048, ..c }, c, &a);
    let a = Ask { min_context: 65536, ..ask() };
    wins(Candidate { loaded_ctx: 65536, decode: 10.0, ..c }, c, &a);
    wins(
        Candidate { loaded_ctx: 0, default_ctx: 65536, ..c },
        Candidate { loaded_ctx: 0, default_ctx: 4096, load_rate: 1e12, ..c },
        &a,
    );
}

#[test]
fn equals_share_and_this_node_wins_a_tie() {
    let near = Candidate { rtt: 0.01, ..good(1) };
    let got = shares(&[good(0), near], &ask());
    assert!(got.iter().all(|n| *n > 100), "{got:?}");

    let local = Candidate { is_local: true, ..good(0) };
    wins(local, near, &ask());
    wins(near, Candidate { inflight: 1, ..local }, &ask());
    wins(near, local, &Ask { prefer_local: 0.5, ..ask() });
    let faster = Candidate { decode: 90.0, ..near };
    wins(faster, local, &ask());
    wins(local, faster, &Ask { prefer_local: 3.0, ..ask() });
}

#[test]
fn a_short_answer_does_not_pay_for_a_long_one() {
    // Reads fast, writes slowly: the one for embeddings.
    let reader = Candidate { prefill: 4000.0, decode: 5.0, ..good(0) };
    let a = Ask { prompt_tokens: 4000, max_output: Some(0), ..ask() };
    wins(reader, good(1), &a);
    wins(good(1), reader, &Ask { max_output: None, ..a });
}

#[test]
fn nobody_is_chosen_from_nobody() {
    let mut rng = SmallRng::seed_from_u64(0);
    for nobody in [&[][..], &[Candidate { closed: true, ..good(0) }]] {
        assert_eq!(choose(nobody, &ask(), Moment::ZERO, &mut rng), Choice::Nobody);
    }
}

#[test]
fn terms_add_up_and_say_why_one_is_behind() {
    let c = Candidate { rtt: 0.5, upload: 0.25, inflight: 1, loaded_ctx: 0, ..good(0) };
    let t = score(&c, &ask(), Moment::ZERO);
    let sum = t.rtt + t.upload + t.wait + t.load + t.load_cost + t.prefill + t.decode;
    assert!((t.total - sum).abs() < 1e-9 && t.behind.is_empty(), "{t:?}");
    // Nobody says how long its line of loads is.
    assert_eq!((t.load, t.load_cost), (5.8, 5.8 * UNSAID_LOAD_COST));
    let rests = Candidate { rest_until: Moment::from_millis(5), ..c };
    assert_eq!(score(&rests, &ask(), Moment::ZERO).behind, "rests");
    assert_eq!(score(&rests, &ask(), Moment::from_millis(5)).behind, "");
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>(),
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(0.0),
        0.001..1e6,
    ]
}

prop_compose! {
    fn any_candidate()(
        flags in any::<[bool; 9]>(),
        n in any::<[u64; 5]>(),
        small in any::<[u32; 4]>(),
        f in proptest::array::uniform7(any_number()),
        wait in proptest::option::of(any_number()),
        left in proptest::option::of(any_number()),
    ) -> Candidate {
        Candidate {
            index: 0,
            is_local: flags[0], alive: flags[1], able: flags[2], loading: flags[3],
            on_cpu: flags[4],
            rest_until: Moment::from_millis(if flags[5] { n[0] } else { 0 }),
            loaded_ctx: n[1], default_ctx: n[2], context: n[3], size: n[4],
            inflight: small[0], queued: small[1], slots: small[2],
            since: small[3], wait, left, line: left, session: flags[6], prefix: f[0], closed: false,
            held: if flags[7] { "slow start" } else { "" },
            prefill: f[0], decode: f[1], load_rate: f[2], out_tokens: f[3], rtt: f[4],
            fits: flags[8], queue: f[6], upload: f[5], prompt: if flags[2] { n[4] } else { 0 },
        }
    }
}

proptest! {
    #[test]
    fn the_dead_are_never_chosen_while_one_lives(
        mut all in proptest::collection::vec(any_candidate(), 1..12),
        numbers in any::<[u64; 3]>(),
        wanted in any::<Option<u64>>(),
        most in any::<Option<u64>>(),
        prefer in any_number(),
        seed in any::<u64>(),
    ) {
        for (i, c) in all.iter_mut().enumerate() {
            c.index = i;
        }
        let ask = Ask {
            prompt_tokens: numbers[0], min_context: numbers[1], num_ctx: wanted,
            max_output: most, prefer_local: prefer,
        };
        let now = Moment::from_millis(numbers[2]);
        let mut rng = SmallRng::seed_from_u64(seed);
        let Choice::Send(pick) = choose(&all, &ask, now, &mut rng) else {
            return Err(TestCaseError::fail("nobody was chosen"));
        };
        prop_assert!(all[pick.index].alive || all.iter().all(|c| !c.alive));
        for c in &all {
            let t = score(c, &ask, now);
            prop_assert!(t.total.is_finite() && t.total >= 0.0, "{t:?}");
        }
    }
}
