use super::*;
use crate::types::LoadKey;

mod beside;
mod fair;
mod owner;
mod steps;
mod view;

const SEC: Duration = Duration::from_secs(1);

fn at(secs: u64) -> Moment {
    Moment::new(Duration::from_secs(secs))
}

/// A target by its spelling: `tiny`, or `tiny/8192` for a window of its own.
fn target(text: &str) -> Target {
    let (weights, num_ctx) = match text.split_once('/') {
        Some((weights, ctx)) => (weights, ctx.parse().ok()),
        None => (text, None),
    };
    Target { weights: weights.into(), key: LoadKey { num_ctx, ..LoadKey::default() } }
}

fn waiter(id: u64, model: &str) -> Waiter {
    Waiter {
        id: WaiterId(id),
        target: target(model),
        class: Class::Interactive,
        principal: "ann".into(),
        reads: Duration::ZERO,
        cost: 10 * SEC,
        load: 5 * SEC,
        size: 0,
        budget: None,
        may_load: true,
        own: true,
        guest: false,
        evicts: true,
        max_inflight: None,
        solo: false,
    }
}

fn seen(model: &str, num_ctx: Option<u64>) -> Seen {
    Seen { weights: model.into(), size: 0, num_ctx, expires: None }
}

/// A queue and what it said, as short words: `+1` starts, `load tiny` (`reload`, `confirm`), `-1
/// full`, `!1` its load failed, `1 waits`.
struct Desk {
    queue: Queue,
    now: Moment,
    load: Option<LoadId>,
    said: Vec<String>,
}

impl Desk {
    fn new(slots: u32) -> Desk {
        Desk { queue: Queue::new(true, slots, 100), now: at(0), load: None, said: Vec::new() }
    }

    /// A desk with this model in memory and nobody there.
    fn with(slots: u32, model: &str) -> Desk {
        let mut desk = Desk::new(slots);
        desk.enter(waiter(900, model));
        desk.loaded(true);
        desk.end(900);
        desk.said.clear();
        desk
    }

    fn wait(&mut self, secs: u64) -> &mut Desk {
        self.now = self.now + Duration::from_secs(secs);
        self
    }

    fn enter(&mut self, waiter: Waiter) -> &mut Desk {
        let id = waiter.id;
        match self.queue.enter(waiter, self.now) {
            Entry::Start => self.act(vec![Action::Start(id)]),
            Entry::Wait => self.said.push(format!("{} waits", id.0)),
            Entry::Load(plan) => self.act(vec![Action::Load(plan)]),
            Entry::Refuse(refusal) => self.act(vec![Action::Refuse(id, refusal)]),
        }
        self
    }

    fn end(&mut self, id: u64) -> &mut Desk {
        let actions = self.queue.ended(WaiterId(id), self.now);
        self.act(actions);
        self
    }

    fn began(&mut self, id: u64) -> &mut Desk {
        let actions = self.queue.began(WaiterId(id), self.now);
        self.act(actions);
        self
    }

    fn withdraw(&mut self, id: u64) -> &mut Desk {
        let actions = self.queue.withdraw(WaiterId(id), self.now);
        self.act(actions);
        self
    }

    fn loaded(&mut self, ok: bool) -> &mut Desk {
        let id = self.load.take().expect("no load is going on");
        let actions = self.queue.loaded(id, ok, self.now);
        self.act(actions);
        self
    }

    fn observed(&mut self, rows: &[Seen]) -> &mut Desk {
        let actions = self.queue.observed(rows, self.now, self.now);
        self.act(actions);
        self
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            self.said.push(match action {
                Action::Start(id) => format!("+{}", id.0),
                Action::Refuse(id, refusal) => format!("-{} {}", id.0, refusal.why.label()),
                Action::Failed(id) => format!("!{}", id.0),
                Action::Load(plan) => {
                    assert!(self.load.is_none(), "two loads at a time");
                    self.load = Some(plan.id);
                    let word = match plan.why {
                        LoadWhy::Cold => "load",
                        LoadWhy::Reload => "reload",
                        LoadWhy::Confirm => "confirm",
                    };
                    let ctx = plan.target.key.num_ctx.map_or(String::new(), |n| format!("/{n}"));
                    format!("{word} {}{ctx}", plan.target.weights)
                }
            });
        }
    }

    #[track_caller]
    fn check(&mut self, said: &[&str]) -> &mut Desk {
        assert_eq!(std::mem::take(&mut self.said), said);
        self
    }
}

#[test]
fn a_cold_model_is_loaded_before_it_serves() {
    Desk::new(2)
        .enter(waiter(1, "tiny"))
        .enter(waiter(2, "tiny"))
        .enter(waiter(3, "tiny"))
        .check(&["load tiny", "2 waits", "3 waits"])
        .loaded(true)
        .check(&["+1", "+2"])
        .end(2)
        .check(&["+3"]);
}

#[test]
fn one_load_at_a_time_and_loaded_models_serve_meanwhile() {
    Desk::with(1, "tiny")
        .enter(waiter(1, "big"))
        .enter(waiter(2, "huge"))
        .enter(waiter(3, "tiny"))
        .check(&["load big", "2 waits", "+3"])
        .loaded(true)
        .check(&["+1", "load huge"])
        .loaded(true)
        .check(&["+2"]);
}

#[test]
fn a_load_goes_on_although_its_caller_left() {
    Desk::new(1)
        .enter(waiter(1, "tiny"))
        .withdraw(1)
        .enter(waiter(2, "tiny"))
        .check(&["load tiny", "2 waits"])
        .loaded(true)
        .check(&["+2"]);
}

#[test]
fn a_failed_load_is_told_to_all_who_waited_for_it_and_nobody_else() {
    Desk::new(1)
        .enter(waiter(1, "tiny"))
        .enter(waiter(2, "tiny"))
        .enter(waiter(3, "other"))
        .check(&["load tiny", "2 waits", "3 waits"])
        .loaded(false)
        .check(&["!1", "!2", "load other"])
        .enter(waiter(4, "tiny"))
        .loaded(true)
        .check(&["4 waits", "+3", "load tiny"]);
}

#[test]
fn an_engine_that_loads_by_itself_is_never_told_to() {
    let mut desk = Desk::new(1);
    desk.queue = Queue::new(false, 1, 100);
    desk.enter(Waiter { may_load: false, ..waiter(1, "a") })
        .enter(waiter(2, "a"))
        .enter(waiter(3, "b"))
        .check(&["+1", "2 waits", "+3"])
        .end(1)
        .check(&["+2"]);
}

#[test]
fn an_embedding_model_runs_one_at_a_time() {
    Desk::with(4, "embed")
        .enter(Waiter { solo: true, ..waiter(1, "embed") })
        .enter(Waiter { solo: true, ..waiter(2, "embed") })
        .check(&["+1", "2 waits"]);
}

#[test]
fn classes_come_in_their_order() {
    let class = |id, class| Waiter { class, ..waiter(id, "tiny") };
    Desk::with(1, "tiny")
        .enter(class(1, Class::Batch))
        .enter(class(2, Class::Batch))
        .enter(class(3, Class::Interactive))
        .enter(class(4, Class::Own))
        .end(1)
        .end(4)
        .end(3)
        .check(&["+1", "2 waits", "3 waits", "4 waits", "+4", "+3", "+2"]);
}

#[test]
fn principals_share_by_seconds_not_by_requests() {
    let of = |id, who: &str, secs| Waiter {
        principal: who.into(),
        reads: Duration::ZERO,
        cost: Duration::from_secs(secs),
        ..waiter(id, "tiny")
    };
    let mut desk = Desk::with(1, "tiny");
    desk.enter(of(1, "ann", 1));
    for id in 2..5 {
        desk.enter(of(id, "ann", 30));
    }
    for id in 5..9 {
        desk.enter(of(id, "bob", 10));
    }
    desk.said.clear();
    for id in [1, 5, 2, 6, 7, 8, 3] {
        desk.end(id);
    }
    // Ann's 30 seconds count as much as three of Bob's ten.
    desk.check(&["+5", "+2", "+6", "+7", "+8", "+3", "+4"]);
}

#[test]
fn who_was_idle_has_saved_nothing_up() {
    let of = |id, who: &str| Waiter { principal: who.into(), ..waiter(id, "tiny") };
    let mut desk = Desk::with(1, "tiny");
    for id in 1..=20 {
        desk.enter(of(id, "ann")).end(id);
    }
    desk.enter(of(30, "ann"));
    for id in [31, 32] {
        desk.enter(of(id, "bob")).enter(of(id + 10, "ann"));
    }
    desk.said.clear();
    for id in [30, 31, 41, 32] {
        desk.end(id);
    }
    desk.check(&["+31", "+41", "+32", "+42"]);
}

#[test]
fn a_principal_over_its_limit_waits_and_holds_nobody_up() {
    let guest =
        |id| Waiter { max_inflight: Some(1), principal: "guest".into(), ..waiter(id, "tiny") };
    Desk::with(3, "tiny")
        .enter(guest(1))
        .enter(guest(2))
        .enter(waiter(3, "tiny"))
        .check(&["+1", "2 waits", "+3"])
        .end(3)
        .check(&[])
        .end(1)
        .check(&["+2"]);
    // Nor does it cause a load that it could not use.
    let mut desk = Desk::with(3, "tiny");
    desk.enter(guest(1)).enter(Waiter { target: target("big"), ..guest(2) });
    desk.check(&["+1", "2 waits"]).end(1).check(&["load big"]);
}

#[test]
fn who_may_not_load_is_served_from_memory_only() {
    let guest = |id, model: &str| Waiter { may_load: false, ..waiter(id, model) };
    Desk::with(1, "tiny")
        .enter(guest(1, "tiny"))
        .enter(guest(2, "big"))
        .enter(guest(3, "tiny/8192"))
        .check(&["+1", "-2 not_loaded", "-3 not_loaded"])
        // A load that somebody else wants is good for it, too …
        .enter(waiter(4, "big"))
        .enter(guest(5, "big"))
        .check(&["load big", "5 waits"])
        .loaded(true)
        .end(4)
        .check(&["+4", "+5"])
        // … but not one that nobody wants any more.
        .enter(waiter(6, "huge"))
        .enter(waiter(7, "vast"))
        .enter(guest(8, "vast"))
        .withdraw(7)
        .check(&["load huge", "7 waits", "8 waits", "-8 not_loaded"]);
}

#[test]
fn other_options_on_the_same_weights_reload_once_the_last_request_ended() {
    Desk::with(2, "tiny")
        .enter(waiter(1, "tiny"))
        .enter(waiter(2, "tiny/8192"))
        .check(&["+1", "2 waits"])
        .end(1)
        .check(&["reload tiny/8192"])
        .loaded(true)
        .enter(waiter(3, "tiny/8192"))
        .enter(waiter(4, "tiny"))
        .check(&["+2", "+3", "4 waits"]);
}

#[test]
fn a_reload_for_the_owner_lets_no_guest_in_before_it() {
    let own = |id, model: &str| Waiter { class: Class::Own, ..waiter(id, model) };
    Desk::with(2, "tiny")
        .enter(waiter(1, "tiny"))
        .enter(own(2, "tiny/8192"))
        .enter(waiter(3, "tiny"))
        .enter(own(4, "tiny"))
        .check(&["+1", "2 waits", "3 waits", "+4"])
        .end(1)
        .end(4)
        .check(&["reload tiny/8192"]);
}

#[test]
fn after_a_minute_a_reload_makes_its_weights_drain() {
    let mut desk = Desk::with(2, "tiny");
    desk.enter(waiter(1, "tiny")).enter(waiter(2, "tiny/8192"));
    // For a minute those who use what is there go first.
    desk.wait(59).enter(waiter(3, "tiny")).end(1).enter(waiter(4, "tiny"));
    desk.check(&["+1", "2 waits", "+3", "+4"]);
    desk.wait(1).enter(Waiter { class: Class::Own, ..waiter(5, "tiny") }).end(3);
    desk.check(&["5 waits"]).end(4).check(&["reload tiny/8192"]);
    // And what was loaded serves the one who waited, whoever else is impatient by then.
    desk.wait(70).loaded(true).check(&["+2"]).end(2).check(&["reload tiny"]);
}

#[test]
fn a_load_that_takes_too_long_makes_all_others_drain_once() {
    let mut desk = Desk::with(2, "tiny");
    desk.enter(waiter(1, "tiny")).enter(waiter(2, "big")).check(&["+1", "load big"]);
    desk.wait(69).enter(waiter(3, "tiny")).check(&["+3"]);
    // 60 s and twice the 5 s it was to take are over: Ollama waits for tiny to go.
    desk.wait(1).end(3).enter(waiter(4, "tiny")).check(&["4 waits"]);
    // When all have been idle and it still takes time, it was just slow.
    desk.end(1).check(&["+4"]).enter(waiter(5, "tiny")).check(&["+5"]);
    desk.loaded(true).check(&["+2"]);
}

#[test]
fn a_full_queue_refuses_and_keeps_a_quarter_for_the_owner() {
    let own = |id| Waiter { class: Class::Own, ..waiter(id, "tiny") };
    let mut desk = Desk::with(1, "tiny");
    desk.queue.set_limit(4);
    desk.enter(waiter(1, "tiny"));
    for id in 2..6 {
        desk.enter(waiter(id, "tiny"));
    }
    desk.enter(own(6)).enter(own(7));
    desk.check(&["+1", "2 waits", "3 waits", "4 waits", "-5 full", "6 waits", "-7 full"]);
    // A place at the engine is no place in the queue.
    desk.enter(waiter(8, "other")).check(&["-8 full"]);
}

#[test]
fn a_refusal_says_how_long_it_would_have_taken() {
    let mut desk = Desk::with(1, "tiny");
    desk.enter(waiter(1, "tiny")).enter(waiter(2, "tiny")).wait(4);
    let hurried = Waiter { budget: Some(15 * SEC), ..waiter(3, "tiny") };
    let refusal = Refusal { why: Why::Wait, retry_after: 16 * SEC };
    assert_eq!(desk.queue.enter(hurried.clone(), desk.now), Entry::Refuse(refusal));
    let patient = Waiter { budget: Some(16 * SEC), ..hurried };
    assert_eq!(desk.queue.enter(patient, desk.now), Entry::Wait);
}

#[test]
fn waits_are_predicted_in_seconds() {
    let waits = |desk: &Desk, model: &str, class| {
        desk.queue.waits(&target(model), class, 5 * SEC, desk.now).as_secs()
    };
    let mut desk = Desk::with(2, "tiny");
    assert_eq!(waits(&desk, "tiny", Class::Own), 0);
    assert_eq!(waits(&desk, "big", Class::Own), 5, "its load");
    desk.enter(waiter(1, "tiny")).wait(3);
    assert_eq!(waits(&desk, "tiny", Class::Own), 0, "the second slot");
    assert_eq!(waits(&desk, "tiny/8192", Class::Own), 7 + 5, "drain and reload");
    desk.enter(waiter(2, "tiny"));
    // Two side by side are slower than one: 10 s become 11.9.
    assert_eq!(waits(&desk, "tiny", Class::Own), 8, "the first to end");
    desk.enter(waiter(3, "tiny"));
    assert_eq!(waits(&desk, "tiny", Class::Interactive), 11, "behind the one that waits");
    assert_eq!(waits(&desk, "tiny", Class::Own), 8, "before it");
    desk.enter(waiter(4, "big")).enter(waiter(5, "big")).wait(2);
    assert_eq!(waits(&desk, "huge", Class::Own), 3 + 5, "after the load that goes on");
    assert_eq!(waits(&desk, "big", Class::Batch), 3 + 11, "the load, then the first of two");
}

#[test]
fn what_the_engine_lost_is_loaded_again() {
    Desk::with(1, "tiny")
        .wait(1)
        .observed(&[seen("tiny", None)])
        .enter(waiter(1, "tiny"))
        // As old as the request: it says nothing.
        .observed(&[])
        .enter(waiter(2, "tiny"))
        .end(1)
        .end(2)
        .check(&["+1", "2 waits", "+2"])
        .wait(1)
        .observed(&[])
        .enter(waiter(3, "tiny"))
        .check(&["load tiny"]);
    // What was started on it meanwhile waits inside the engine; more of them would, too.
    Desk::with(2, "tiny")
        .enter(waiter(1, "tiny"))
        .wait(1)
        .observed(&[seen("big", None)])
        .enter(waiter(2, "tiny"))
        .check(&["+1", "load tiny"])
        .loaded(true)
        .check(&["+2"]);
}

fn sized(id: u64, model: &str, size: u64) -> Waiter {
    Waiter { size, ..waiter(id, model) }
}

/// A desk that has seen that 20 do not fit beside 5, with the 20 in memory and nobody there.
fn crowded() -> Desk {
    let mut desk = Desk::new(2);
    desk.enter(sized(1, "tiny", 5)).loaded(true).end(1);
    desk.enter(sized(2, "big", 20)).loaded(true).end(2);
    desk.check(&["load tiny", "+1", "load big", "+2"]);
    desk.wait(1).observed(&[seen("big", None)]);
    desk
}

#[test]
fn a_load_that_does_not_fit_waits_outside_the_engine_for_who_is_busy() {
    let mut desk = crowded();
    desk.enter(sized(3, "big", 20)).enter(sized(4, "tiny", 5)).check(&["+3", "4 waits"]);
    let tiny = desk.queue.waits(&target("tiny"), Class::Interactive, 5 * SEC, desk.now);
    assert_eq!(tiny, 20 * SEC + 5 * SEC, "the big one and who comes for it, the load; a free slot");
    let left = desk.queue.left(WaiterId(4), desk.now);
    assert_eq!(left, Some(20 * SEC + 5 * SEC));
    // What does fit is loaded meanwhile, and the big one serves on.
    desk.enter(sized(5, "mini", 1)).enter(sized(6, "big", 20)).check(&["load mini", "+6"]);
    desk.loaded(true).end(5).end(3).end(6).check(&["+5", "load tiny"]);
}

#[test]
fn whoever_waits_for_memory_gets_it_after_a_minute_and_then_has_a_turn() {
    let mut desk = crowded();
    desk.enter(sized(3, "big", 20)).enter(sized(4, "tiny", 5)).wait(59);
    desk.enter(sized(5, "big", 20)).end(3).check(&["+3", "4 waits", "+5"]);
    desk.wait(1).enter(Waiter { class: Class::Own, ..sized(6, "big", 20) }).check(&["6 waits"]);
    desk.wait(60).end(5).check(&["load tiny"]).loaded(true).check(&["+4"]);
    // The other is overdue by now, but this one was only just loaded.
    desk.wait(59).enter(sized(7, "tiny", 5)).end(4).enter(sized(8, "tiny", 5)).end(7);
    desk.check(&["+7", "+8"]).wait(1).enter(sized(9, "tiny", 5)).check(&["9 waits"]);
    desk.end(8).check(&["load big"]);
}

#[test]
fn what_a_load_may_have_pushed_out_is_not_taken_to_be_there() {
    let mut desk = crowded();
    // Nothing is in use, so the engine makes room at once.
    desk.enter(sized(3, "tiny", 5)).check(&["load tiny"]);
    desk.enter(sized(4, "big", 20)).check(&["4 waits"]).loaded(true).check(&["+3"]);
    // It was wrong to think so: both are there after all.
    desk.wait(1).observed(&[seen("tiny", None), seen("big", None)]).check(&["confirm big"]);
}

#[test]
fn what_was_in_memory_together_fits() {
    let mut desk = crowded();
    desk.observed(&[seen("big", None), seen("tiny", None)]);
    desk.enter(sized(3, "big", 20)).enter(sized(4, "tiny", 5)).check(&["+3", "confirm tiny"]);
}

#[test]
fn a_list_that_was_asked_for_before_a_load_ended_takes_nothing_away() {
    let mut desk = Desk::new(1);
    desk.enter(waiter(1, "tiny"));
    let asked = desk.now;
    desk.wait(5).loaded(true).end(1).wait(1);
    let actions = desk.queue.observed(&[], asked, desk.now);
    desk.act(actions);
    desk.enter(waiter(2, "tiny")).check(&["load tiny", "+1", "+2"]);
}

#[test]
fn a_keep_alive_that_ran_out_means_a_load() {
    let mut desk = Desk::with(1, "tiny");
    desk.wait(1).observed(&[Seen { expires: Some(at(20)), ..seen("tiny", None) }]);
    desk.wait(18).enter(waiter(1, "tiny")).end(1).check(&["+1"]);
    // The engine counts anew after each request; it says so with its next list.
    desk.wait(5).enter(waiter(2, "tiny")).end(2).check(&["+2"]);
    desk.wait(1).observed(&[Seen { expires: Some(at(30)), ..seen("tiny", None) }]);
    desk.wait(10).enter(waiter(3, "tiny")).check(&["load tiny"]);
}

#[test]
fn what_somebody_else_loaded_is_confirmed_before_use() {
    let guest = |id, model: &str| Waiter { may_load: false, ..waiter(id, model) };
    Desk::new(1)
        .observed(&[seen("tiny", Some(4096)), seen("big", Some(4096))])
        .enter(waiter(1, "tiny/8192"))
        .enter(guest(2, "big/8192"))
        .enter(guest(3, "big"))
        .check(&["reload tiny/8192", "-2 not_loaded", "3 waits"])
        .loaded(true)
        .check(&["+1", "confirm big"])
        .loaded(true)
        .check(&["+3"]);
}

#[test]
fn another_window_in_the_engines_list_means_that_somebody_reloaded_it() {
    Desk::with(1, "tiny")
        .wait(1)
        .observed(&[seen("tiny", Some(4096))])
        .enter(waiter(1, "tiny"))
        .end(1)
        .wait(1)
        .observed(&[seen("tiny", Some(8192))])
        .enter(waiter(2, "tiny"))
        .check(&["+1", "confirm tiny"]);
}

#[test]
fn an_unload_waits_for_the_last_request() {
    let mut desk = Desk::with(1, "tiny");
    desk.enter(waiter(1, "tiny")).enter(waiter(2, "tiny"));
    let actions = desk.queue.unloaded("tiny", desk.now);
    desk.act(actions);
    desk.end(1).check(&["+1", "2 waits", "load tiny"]);
}

#[test]
fn more_slots_start_more_and_fewer_stop_nobody() {
    let mut desk = Desk::with(1, "tiny");
    for id in 1..=3 {
        desk.enter(waiter(id, "tiny"));
    }
    let actions = desk.queue.set_slots(3, desk.now);
    desk.act(actions);
    desk.check(&["+1", "2 waits", "3 waits", "+2", "+3"]);
    let actions = desk.queue.set_slots(1, desk.now);
    desk.act(actions);
    desk.enter(waiter(4, "tiny")).end(1).end(2).check(&["4 waits"]).end(3).check(&["+4"]);
}

#[test]
fn an_empty_queue_remembers_nothing_of_who_left() {
    let mut desk = Desk::new(1);
    for id in 0..1000 {
        let who = Waiter { principal: format!("p{id}").into(), ..waiter(id, "tiny") };
        desk.enter(who).withdraw(id);
    }
    desk.loaded(true);
    assert_eq!((desk.queue.waiting(), desk.queue.running()), (0, 0));
    assert!(desk.queue.accounts.len() <= 65 && desk.queue.lanes.len() == 1);
}
