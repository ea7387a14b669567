//! Callers that crowd each other, over simulated hours: who waits for whom, and who gets how much
//! of the engine.

use std::collections::{BTreeSet, HashMap};

use super::*;

/// A caller who asks again and again: so many requests at a time, each of so many milliseconds,
/// and a pause after each.
#[derive(Clone, Copy)]
struct Caller {
    name: &'static str,
    class: Class,
    at_once: usize,
    work: u64,
    pause: u64,
    most: Option<u32>,
}

fn caller(name: &'static str, class: Class, at_once: usize, work: u64) -> Caller {
    Caller { name, class, at_once, work, pause: 0, most: None }
}

/// One person who reads an answer of three seconds for a while before the next question.
fn chat(class: Class) -> Caller {
    Caller { pause: 17_300, ..caller("chat", class, 1, 3000) }
}

/// What one caller got: waits of each request, and milliseconds of the engine.
#[derive(Default)]
struct Got {
    waits: Vec<u64>,
    served: u64,
}

impl Got {
    /// The wait that 95 of 100 requests do not exceed.
    fn p95(&self) -> u64 {
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        waits[waits.len() * 95 / 100]
    }
}

/// Two hours of these callers at an engine with so many slots.
fn run(slots: u32, callers: &[Caller]) -> HashMap<&'static str, Got> {
    let end = 2 * 3600 * 1000;
    let mut queue = Queue::new(false, slots, 1000);
    let mut got: HashMap<&'static str, Got> = HashMap::new();
    // When what happens: a caller asks (even numbers), a request ends (odd ones).
    let mut events: BTreeSet<(u64, u64)> = BTreeSet::new();
    let mut asked: HashMap<u64, (usize, u64)> = HashMap::new();
    for (i, caller) in callers.iter().enumerate() {
        // Not all at the same moment.
        events.extend(
            (0..caller.at_once).map(|n| (n as u64 * 997 % 5000, 2 * i as u64 + 1000 * n as u64)),
        );
    }
    let mut next = 0;
    while let Some((time, event)) = events.pop_first() {
        if time > end {
            break;
        }
        let now = Moment::from_millis(time);
        let mut started = Vec::new();
        if event % 2 == 0 {
            let who = event as usize % 1000 / 2;
            let caller = callers[who];
            next += 1;
            asked.insert(next, (who, time));
            let waiter = Waiter {
                id: WaiterId(next),
                class: caller.class,
                principal: caller.name.into(),
                cost: Duration::from_millis(caller.work),
                max_inflight: caller.most,
                ..waiter(next, "tiny")
            };
            match queue.enter(waiter, now) {
                Entry::Start => started.push(next),
                Entry::Wait => {}
                other => panic!("{other:?}"),
            }
        } else {
            let id = event / 2;
            let (who, _) = asked.remove(&id).unwrap();
            events.insert((time + callers[who].pause, 2 * who as u64 + 1000 * (id % 1000)));
            for action in queue.ended(WaiterId(id), now) {
                match action {
                    Action::Start(id) => started.push(id.0),
                    other => panic!("{other:?}"),
                }
            }
        }
        for id in started {
            let (who, at) = asked[&id];
            let got = got.entry(callers[who].name).or_default();
            got.waits.push(time - at);
            got.served += callers[who].work;
            events.insert((time + callers[who].work, 2 * id + 1));
        }
    }
    got
}

#[test]
fn a_chat_waits_for_one_long_job_at_most_however_many_there_are() {
    const JOB: u64 = 40_000;
    for (slots, class) in
        [(1, Class::Batch), (4, Class::Batch), (1, Class::Interactive), (4, Class::Interactive)]
    {
        let got = run(slots, &[caller("jobs", class, 20, JOB), chat(Class::Interactive)]);
        let chat = &got["chat"];
        assert!(chat.waits.len() > 100, "{slots} {class:?}: {}", chat.waits.len());
        assert!(chat.p95() <= JOB, "{slots} {class:?}: {}", chat.p95());
        assert!(got["jobs"].served > u64::from(slots) * 6_000_000, "the engine never idles");
    }
}

#[test]
fn a_limit_on_one_caller_keeps_room_for_the_chat_of_another() {
    let jobs = Caller { most: Some(4), ..caller("jobs", Class::Interactive, 20, 40_000) };
    let got = run(8, &[jobs, chat(Class::Interactive)]);
    // Alone it never waits; twice its own time to the first token is nothing more.
    assert_eq!(got["chat"].p95(), 0);
    assert_eq!(got["jobs"].served / 7_200_000, 4, "it has what it may have, and no more");
}

#[test]
fn callers_who_want_all_of_it_get_the_same_seconds() {
    for slots in [1, 2, 4] {
        let long = caller("long", Class::Interactive, 20, 40_000);
        let short = caller("short", Class::Interactive, 20, 2000);
        let got = run(slots, &[long, short]);
        let (long, short) = (got["long"].served as f64, got["short"].served as f64);
        assert!((long / (long + short) - 0.5).abs() < 0.05, "{slots}: {long} {short}");
    }
}

#[test]
fn five_guests_cost_the_owner_one_residual_service() {
    const JOB: u64 = 8000;
    let mut callers: Vec<Caller> =
        ["a", "b", "c", "d", "e"].map(|name| caller(name, Class::Interactive, 4, JOB)).into();
    callers.push(chat(Class::Own));
    for slots in [1, 2, 4] {
        let got = run(slots, &callers);
        assert!(got["chat"].p95() <= JOB, "{slots}: {}", got["chat"].p95());
        let shares: Vec<u64> = ["a", "b", "c", "d", "e"].map(|name| got[name].served).into();
        let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
        assert!(*most as f64 <= *least as f64 * 1.1, "{slots}: {shares:?}");
    }
}
