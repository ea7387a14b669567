//! What may teach a speed, and how far.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// An answer of a whole engine: 200 tokens at 50, a prompt of 1000 at 2000 a second.
fn reply() -> Reply {
    Reply {
        prompt_tokens: Some(1000),
        output_tokens: Some(200),
        prompt: Some(500 * MS),
        decode: Some(4000 * MS),
        items: 200,
        first: Some(900 * MS),
        stream: Some(4000 * MS),
        ..Reply::default()
    }
}

fn at(value: f64) -> Estimate {
    Estimate { value, trust: 3.0 }
}

#[test]
fn an_engines_own_numbers_are_its_speed() {
    let whole = |value| Some(Sample { value, trust: 1.0 });
    assert_eq!(decode(&reply()), whole(50.0));
    assert_eq!(prefill(&reply(), Estimate::default()), whole(2000.0));
    assert_eq!(length(&reply(), USUAL_LENGTH), whole(200.0));
    assert_eq!(load(1_000_000_000, 1800 * MS), whole(1e9));
}

#[test]
fn a_cached_prompt_is_no_speed() {
    let hit = Reply { prompt: Some(5 * MS), ..reply() };
    let known = at(2000.0);
    assert_eq!(prefill(&Reply { prefix: 0.9, ..hit }, known), None, "it was expected");
    let surprise = prefill(&hit, known).unwrap();
    assert_eq!(surprise.value, 4000.0, "cut to twice");
    let after = known.learn(surprise, SPEED).value;
    assert!(after < 2100.0, "one hit nobody expected moves it little: {after}");
    assert_eq!(cached(1000, 5 * MS, 2000.0), 990);
    assert_eq!(cached(10, 50 * MS, 2000.0), 0);
    // A little of the prompt was there: the rest is measured.
    let part = prefill(&Reply { prefix: 0.05, ..reply() }, known).unwrap();
    assert_eq!(part.value, 1900.0);
    // As long as nothing is known, there is nothing to tell a hit by.
    assert_eq!(prefill(&hit, Estimate::default()).unwrap().value, 200_000.0);
    assert!(prefill(&hit, Estimate::default()).unwrap().trust < 0.3);
}

#[test]
fn few_tokens_and_short_times_say_little() {
    let tiny = Reply { output_tokens: Some(3), decode: Some(MS), ..reply() };
    let sample = decode(&tiny).unwrap();
    let seen = Estimate::default().learn(sample, SPEED);
    assert_eq!(seen.known(), None, "{seen:?}");
    let whole = seen.learn(decode(&reply()).unwrap(), SPEED).known().unwrap();
    assert!((whole / 50.0 - 1.0).abs() < 0.2, "{whole}");
    for tokens in [0, 1] {
        assert_eq!(decode(&Reply { output_tokens: Some(tokens), ..reply() }), None);
    }
    assert!(load(1_000_000, 20 * MS).unwrap().trust < 0.01);
}

#[test]
fn who_left_early_teaches_nothing_and_who_left_late_a_little() {
    let gone = |items| Reply {
        end: End::Cancelled,
        prompt_tokens: None,
        output_tokens: None,
        prompt: None,
        decode: None,
        items,
        ..reply()
    };
    assert_eq!(decode(&gone(20)), None);
    let late = decode(&gone(101)).unwrap();
    assert_eq!((late.value, late.trust), (25.0, GUESSED));
    assert_eq!((prefill(&gone(101), at(1.0)), length(&gone(101), 1.0)), (None, None));
}

#[test]
fn what_the_relay_saw_is_trusted_less_than_what_the_engine_says() {
    let seen = Reply { prompt: None, decode: None, ..reply() };
    let sample = decode(&seen).unwrap();
    assert_eq!((sample.value, sample.trust), (199.0 / 4.0, SEEN));
    let pieces = decode(&Reply { output_tokens: None, ..seen }).unwrap();
    assert_eq!(pieces.trust, GUESSED);
    let read = prefill(&seen, Estimate::default()).unwrap();
    assert_eq!((read.value, read.trust), (1000.0 / 0.9, GUESSED));
    // Others beside it, or a wait nobody knows: the time to the first piece is not the prompt's.
    assert_eq!(prefill(&Reply { beside: 1, ..seen }, Estimate::default()), None);
    assert_eq!(prefill(&Reply { first: None, ..seen }, Estimate::default()), None);
}

#[test]
fn a_shared_engine_is_as_fast_as_it_would_be_alone() {
    let shared = decode(&Reply { beside: 3, ..reply() }).unwrap();
    assert!((shared.value - 50.0 * 4.0_f64.powf(SHARING)).abs() < 1e-9);
    assert_eq!(shared.trust, 0.25);
}

#[test]
fn an_answer_cut_by_a_limit_is_no_short_answer() {
    let cut = |tokens| Reply { end: End::Limit, output_tokens: Some(tokens), ..reply() };
    assert_eq!(length(&cut(10), 200.0), None);
    assert_eq!(length(&cut(500), 200.0).unwrap().value, 500.0);
}

#[test]
fn a_throttling_card_is_followed_in_about_eight_answers() {
    let mut cool = at(100.0);
    for _ in 0..8 {
        cool = cool.learn(Sample { value: 50.0, trust: 1.0 }, SPEED);
    }
    assert!((cool.value - 50.0) / 50.0 < 0.11, "{}", cool.value);
    // In the long run a whole sample has the weight that is written down.
    let one = at(100.0).learn(Sample { value: 200.0, trust: 1.0 }, SPEED);
    assert_eq!(one.value, 125.0);
}

#[test]
fn what_an_earlier_run_knew_gives_way_sooner() {
    let day = Duration::from_secs(24 * 3600);
    let fresh = Sample { value: 50.0, trust: 1.0 };
    let young = at(100.0).learn(fresh, SPEED).value;
    let old = at(100.0).aged(day).learn(fresh, SPEED).value;
    assert!(old < young, "{old} {young}");
    assert_eq!(at(100.0).aged(1000 * day).known(), Some(100.0));
    let nothing = Estimate { value: 9.0, trust: 0.01 };
    assert_eq!(nothing.aged(Duration::ZERO).known(), None);
}

/// A body of so many frames of 64 KiB over a way of so many bytes a second.
fn upload(frames: u64, rate: f64, client: Option<Duration>) -> Option<Sample> {
    const FRAME: u64 = 65_536;
    let mut upload = Upload::default();
    let mut now = Duration::from_secs(100);
    for _ in 0..frames {
        upload.asked(now);
        if let Some(pause) = client {
            upload.starves(now);
            now += pause;
            upload.asked(now);
        }
        upload.gave(FRAME);
        now += Duration::from_secs_f64(FRAME as f64 / rate);
    }
    upload.sample(FRAME)
}

#[test]
fn a_way_is_known_by_large_bodies_and_not_by_slow_clients() {
    let near = |sample: Option<Sample>| (sample.unwrap().value / 2e6 - 1.0).abs() < 0.05;
    assert!(near(upload(64, 2e6, None)));
    assert!(near(upload(64, 2e6, Some(50 * MS))), "{:?}", upload(64, 2e6, Some(50 * MS)));
    assert_eq!(upload(8, 2e6, None), None);
    assert!(upload(16, 2e6, None).unwrap().trust < 0.2);
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![any::<f64>(), Just(f64::NAN), Just(f64::INFINITY), Just(0.0), 0.001..1e6]
}

fn any_time() -> impl Strategy<Value = Option<Duration>> {
    proptest::option::of((any::<u64>(), 0..1_000_000_000_u32).prop_map(|(secs, nanos)| {
        Duration::new(if nanos % 2 == 0 { secs } else { secs % 3 }, nanos)
    }))
}

prop_compose! {
    fn any_reply()(
        end in 0..4_u8,
        n in any::<[Option<u64>; 2]>(),
        times in [any_time(), any_time(), any_time(), any_time()],
        items in any::<u64>(),
        beside in any::<u32>(),
        prefix in any_number(),
    ) -> Reply {
        Reply {
            end: [End::Whole, End::Limit, End::Cancelled, End::Broken][usize::from(end)],
            prompt_tokens: n[0], output_tokens: n[1], prompt: times[0], decode: times[1],
            items, first: times[2], stream: times[3], beside, prefix,
        }
    }
}

proptest! {
    #[test]
    fn samples_are_finite_and_bounded(
        reply in any_reply(), value in any_number(), trust in any_number(),
        bytes in any::<u64>(), took in any_time(),
    ) {
        let known = Estimate { value, trust };
        let samples = [
            decode(&reply), prefill(&reply, known), length(&reply, value),
            load(bytes, took.unwrap_or_default()),
        ];
        for sample in samples.into_iter().flatten() {
            prop_assert!(sample.value > 0.0 && sample.value <= 1e13, "{sample:?}");
            prop_assert!(sample.trust > 0.0 && sample.trust <= 1.0, "{sample:?}");
        }
        if let (Some(known), Some(sample)) = (known.known(), prefill(&reply, known)) {
            prop_assert!(sample.value <= SURPLUS * known);
        }
        prop_assert!(cached(bytes, took.unwrap_or_default(), value) <= bytes);
    }

    #[test]
    fn an_estimate_stays_between_what_was_said(
        samples in proptest::collection::vec((0.001..1e6_f64, 0.001..1.0_f64), 1..40),
        weight in 0.05..0.9_f64,
    ) {
        let mut estimate = Estimate::default();
        for (value, trust) in &samples {
            let before = estimate;
            estimate = estimate.learn(Sample { value: *value, trust: *trust }, weight);
            // It moves towards the sample, never past it.
            let (low, high) = match before.value > 0.0 {
                true => (before.value.min(*value), before.value.max(*value)),
                false => (*value, *value),
            };
            prop_assert!((low..=high).contains(&estimate.value), "{before:?} {estimate:?}");
        }
        let least = samples.iter().map(|s| s.0).fold(f64::INFINITY, f64::min);
        let most = samples.iter().map(|s| s.0).fold(0.0, f64::max);
        prop_assert!((least..=most).contains(&estimate.value));
    }

    #[test]
    fn nonsense_changes_nothing(value in any_number(), trust in any_number(), had in 1.0..1e6_f64) {
        let good = value.is_finite() && value > 0.0 && trust.is_finite() && trust > 0.0;
        let after = at(had).learn(Sample { value, trust }, SPEED);
        prop_assert!(after.value.is_finite() && after.value > 0.0);
        if !good {
            prop_assert_eq!(after, at(had));
        }
    }

    #[test]
    fn more_trust_moves_it_further(had in 1.0..1e6_f64, value in 1.0..1e6_f64, trust in 0.01..0.5_f64) {
        let to = |trust| (at(had).learn(Sample { value, trust }, SPEED).value - had).abs();
        prop_assert!(to(trust) <= to(trust * 2.0) + 1e-9);
    }

    #[test]
    fn uploads_are_finite(steps in proptest::collection::vec((any_time(), any::<u64>(), any::<bool>()), 0..20)) {
        let mut upload = Upload::default();
        for (now, bytes, starves) in steps {
            let now = now.unwrap_or_default();
            upload.asked(now);
            if starves { upload.starves(now); }
            upload.gave(bytes);
            if let Some(sample) = upload.sample(bytes) {
                prop_assert!(sample.value.is_finite() && sample.value > 0.0 && sample.trust <= 1.0);
            }
        }
    }
}
