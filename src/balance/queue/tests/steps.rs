//! Any steps in any order: what must hold after each.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Enter { model: usize, class: usize, who: usize, cap: Option<u32>, may_load: bool },
    End(usize),
    Withdraw(usize),
    Loaded(bool),
    Observed(u8),
    Unloaded(usize),
    Slots(u32),
    Wait(u64),
}

const MODELS: [&str; 5] = ["a", "a/1", "b", "b/2", "c"];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..5usize, 0..3usize, 0..3usize, any::<bool>(), 0..8u32).prop_map(
            |(model, class, who, capped, load)| Step::Enter {
                model,
                class,
                who,
                cap: capped.then_some(1),
                may_load: load > 0,
            }
        ),
        4 => (0..8usize).prop_map(Step::End),
        2 => (0..8usize).prop_map(Step::Withdraw),
        3 => (0..6u32).prop_map(|n| Step::Loaded(n > 0)),
        1 => any::<u8>().prop_map(Step::Observed),
        1 => (0..5usize).prop_map(Step::Unloaded),
        1 => (1..4u32).prop_map(Step::Slots),
        2 => (0..40u64).prop_map(Step::Wait),
    ]
}

/// What a bystander knows, to hold the queue to its word.
#[derive(Default)]
struct Witness {
    waiting: BTreeMap<u64, Waiter>,
    running: BTreeMap<u64, Waiter>,
    resolved: BTreeSet<u64>,
    loading: Option<LoadId>,
    slots: u32,
}

impl Witness {
    fn saw(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Start(id) => self.started(id.0),
                Action::Refuse(id, _) | Action::Failed(id) => {
                    assert!(self.waiting.remove(&id.0).is_some(), "{id:?} did not wait");
                    assert!(self.resolved.insert(id.0), "{id:?} twice");
                }
                Action::Load(plan) => {
                    assert!(self.loading.is_none(), "two loads at a time");
                    assert!(self.waiting.contains_key(&plan.by.0), "{plan:?} is for nobody");
                    let held = self.running.values().any(|r| {
                        r.target.weights == plan.target.weights && r.target != plan.target
                    });
                    assert!(!held, "{plan:?} while its weights are in use");
                    self.loading = Some(plan.id);
                }
            }
        }
    }

    fn started(&mut self, id: u64) {
        let waiter = self.waiting.remove(&id).unwrap_or_else(|| panic!("{id} did not wait"));
        assert!(self.resolved.insert(id), "{id} twice");
        let same = |r: &&Waiter| r.target == waiter.target;
        let slots = if waiter.solo { 1 } else { self.slots as usize };
        assert!(self.running.values().filter(same).count() < slots, "too many run");
        if let Some(most) = waiter.max_inflight {
            let of = |r: &&Waiter| r.principal == waiter.principal;
            assert!((self.running.values().filter(of).count() as u32) < most, "over its limit");
        }
        let other =
            |r: &Waiter| r.target.weights == waiter.target.weights && r.target != waiter.target;
        assert!(!self.running.values().any(other), "two runners on one blob");
        self.running.insert(id, waiter);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: never more than the slots, one load at a time, and
    /// everybody who waits is started or sent away exactly once, unless withdrawn.
    #[test]
    fn everybody_is_answered_exactly_once(steps in prop::collection::vec(step(), 1..120)) {
        let mut queue = Queue::new(true, 2, 12);
        let mut w = Witness { slots: 2, ..Witness::default() };
        let mut now = at(1);
        for (id, step) in steps.into_iter().enumerate() {
            let id = id as u64;
            let actions = match step {
                Step::Enter { model, class, who, cap, may_load } => {
                    let one = Waiter {
                        class: [Class::Own, Class::Interactive, Class::Batch][class],
                        principal: ["ann", "bob", "eve"][who].into(),
                        max_inflight: cap,
                        may_load,
                        solo: model == 4,
                        ..waiter(id, MODELS[model])
                    };
                    w.waiting.insert(id, one.clone());
                    match queue.enter(one, now) {
                        Entry::Start => vec![Action::Start(WaiterId(id))],
                        Entry::Wait => vec![],
                        Entry::Load(plan) => vec![Action::Load(plan)],
                        Entry::Refuse(refusal) => vec![Action::Refuse(WaiterId(id), refusal)],
                    }
                }
                Step::End(n) => match w.running.keys().nth(n).copied() {
                    Some(id) => { w.running.remove(&id); queue.ended(WaiterId(id), now) }
                    None => vec![],
                },
                Step::Withdraw(n) => match w.waiting.keys().nth(n).copied() {
                    Some(id) => {
                        w.waiting.remove(&id);
                        w.resolved.insert(id);
                        queue.withdraw(WaiterId(id), now)
                    }
                    None => vec![],
                },
                Step::Loaded(ok) => match w.loading.take() {
                    Some(id) => queue.loaded(id, ok, now),
                    None => vec![],
                },
                Step::Observed(bits) => {
                    let rows: Vec<Seen> = ["a", "b", "c"].iter().enumerate()
                        .filter(|(i, _)| bits >> i & 1 == 1)
                        .map(|(i, m)| seen(m, (bits >> (i + 3) & 1 == 1).then_some(1)))
                        .collect();
                    queue.observed(&rows, now, now)
                }
                Step::Unloaded(n) => queue.unloaded(&target(MODELS[n]).weights, now),
                Step::Slots(n) => { w.slots = n; queue.set_slots(n, now) }
                Step::Wait(secs) => { now = now + Duration::from_secs(secs); vec![] }
            };
            w.saw(&actions);
            prop_assert_eq!(queue.waiting(), w.waiting.len());
            prop_assert_eq!(queue.running(), w.running.len());
            // Nothing that could happen is left over.
            // Now and then a start or a load, or time alone, lets somebody in who is not told at
            // once. Then something is going on, at whose end it is.
            let busy = !w.running.is_empty() || w.loading.is_some();
            if !w.waiting.is_empty() {
                prop_assert!(busy, "{} wait, and nothing goes on", w.waiting.len());
            }
        }
        // Let it all come to an end.
        for _ in 0..1000 {
            if w.waiting.is_empty() && w.running.is_empty() && w.loading.is_none() {
                break;
            }
            now = now + SEC;
            let actions = if let Some(id) = w.loading.take() {
                queue.loaded(id, true, now)
            } else if let Some(id) = w.running.keys().next().copied() {
                w.running.remove(&id);
                queue.ended(WaiterId(id), now)
            } else {
                panic!("{} wait, and nothing goes on", w.waiting.len());
            };
            w.saw(&actions);
        }
        prop_assert!(w.waiting.is_empty() && w.running.is_empty());
    }
}
