//! What is believed of a node's word.

use super::super::testing::{engine, id, listing, model, peer, picture};
use super::super::{Event, Identity, Registry, Settings, Snapshot, build, candidates, writer};
use super::*;
use crate::balance::Candidate;
use crate::balance::prefix::Print;
use crate::balance::rates::Sample;
use crate::types::{Api, Capabilities, ClientKind, ModelKey, NodeName};

const HOLDS: Duration = Duration::from_secs(10);

fn at(millis: u64) -> Moment {
    Moment::from_millis(millis)
}

/// `tiny` here, and on a peer that says something of itself.
fn world() -> Snapshot {
    let this = Identity::lone(NodeName::parse("laptop").unwrap());
    let events = vec![
        Event::Local(vec![engine("ollama", vec![model("tiny")])]),
        Event::Peers(vec![peer("gpu", 2)]),
        Event::Listed { node: id("gpu"), listing: listing(2, vec![model("tiny")]) },
    ];
    picture(this, events)
}

fn theirs(snapshot: &Snapshot) -> &Arc<Offer> {
    snapshot.offer(&id("gpu"), "ollama", &ModelKey::parse("tiny").unwrap()).unwrap()
}

fn need() -> candidates::Need {
    candidates::Need {
        api: Api::Chat,
        capabilities: Capabilities::default(),
        client: ClientKind::Other,
        bytes: 0,
        prompt: Default::default(),
        print: Default::default(),
    }
}

fn candidates_of(snapshot: &Snapshot, now: Moment) -> Vec<Candidate> {
    let model = &snapshot.models[&ModelKey::parse("tiny").unwrap()];
    let mut out = Vec::new();
    candidates::of(&model.offers, &need(), now, &mut out);
    out
}

fn row() -> Row {
    Row {
        engine: "ollama".into(),
        name: "tiny".into(),
        state: State::Loaded,
        num_ctx: 4096,
        slots: 4,
        running: 3,
        queued: 1,
        wait_ms: 5000,
        decode: 80.0,
        ..Row::default()
    }
}

#[test]
fn what_a_node_says_reaches_the_choice_runs_down_and_is_forgotten() {
    let snapshot = world();
    let offer = theirs(&snapshot);
    let there = |now| candidates_of(&snapshot, now)[1];
    assert_eq!((there(at(0)).wait, there(at(0)).slots), (None, 1));
    offer.node.cell.hear(at(1000), HOLDS);
    offer.hear(&row(), Duration::from_secs(5), at(1000));
    let c = there(at(1000));
    assert_eq!((c.wait, c.inflight, c.queued, c.slots), (Some(5.0), 3, 1, 4));
    assert_eq!((c.loaded_ctx, c.decode, c.since), (4096, 80.0, 0));
    assert_eq!(there(at(4000)).wait, Some(2.0));
    assert_eq!(there(at(9000)).wait, Some(0.0));
    assert_eq!(there(at(11_000)).wait, Some(0.0));
    assert_eq!(there(at(11_001)).wait, None, "ten seconds, and no more");
    // No news is news while it is heard.
    offer.node.cell.hear(at(11_000), HOLDS);
    assert!(there(at(21_000)).wait.is_some() && there(at(21_001)).wait.is_none());
    let cold = Row { load_ms: 4000, state: State::Cold, ..row() };
    offer.hear(&cold, Duration::from_secs(5), at(30_000));
    let (soon, late) = (there(at(30_500)), there(at(39_000)));
    assert_eq!((soon.wait, late.wait, late.loaded_ctx), (Some(4.5), Some(4.0), 0));
    // Its list says that somebody else has had it loaded since.
    offer.cell.set_loaded(4096);
    assert_eq!(there(at(30_500)).wait, Some(0.5), "nobody waits for that load");
}

#[test]
fn a_prompt_is_taken_for_read_until_its_node_has_begun_others_on_all_slots() {
    let snapshot = world();
    let offer = theirs(&snapshot);
    let hash = std::hash::RandomState::new();
    let print = Print::of([&[7_u8; 900][..]], 900, &hash);
    offer.node.cell.hear(at(0), HOLDS);
    let begun = |begun| offer.hear(&Row { begun, ..row() }, Duration::ZERO, at(0));
    let kept = || {
        let offers = &snapshot.models[&ModelKey::parse("tiny").unwrap()].offers;
        let mut out = Vec::new();
        candidates::of(offers, &candidates::Need { print, ..need() }, at(0), &mut out);
        out[1].prefix
    };
    begun(50);
    offer.cell.read_before(print);
    for (now, share) in [(50, 1.0), (53, 1.0), (54, 0.0), (9, 0.0)] {
        begun(now);
        assert_eq!(kept(), share, "{now} have begun, on 4 slots");
    }
    // An older node does not count.
    begun(0);
    assert_eq!(kept(), 1.0);
}

#[test]
fn what_was_sent_since_is_counted_until_the_next_row() {
    let snapshot = world();
    let offer = theirs(&snapshot);
    let since = |now| candidates_of(&snapshot, now)[1].since;
    let send = |now| Sent::new(offer, HOLDS, Duration::ZERO, None, now);
    let known = send(at(0));
    known.answered();
    known.answered();
    drop(known);
    offer.node.cell.hear(at(1), HOLDS);
    offer.hear(&row(), Duration::ZERO, at(1));
    let one = send(at(10));
    let _two = send(at(20));
    assert_eq!(since(at(20)), 2);
    drop(one);
    assert_eq!(since(at(30)), 1, "what has ended is not there");
    offer.hear(&row(), Duration::ZERO, at(40));
    assert_eq!(since(at(40)), 0);
    // One that is on its way while the row comes the other way is not in it.
    snapshot.nodes[1].paths[0].cell.ok(at(40), Some(Duration::from_millis(8)));
    let _three = send(at(50));
    offer.hear(&row(), Duration::ZERO, at(55));
    assert_eq!(since(at(55)), 1);
    offer.hear(&row(), Duration::ZERO, at(60));
    assert_eq!(since(at(60)), 0);
    // Nobody can say that what is there is not.
    offer.hear(&Row { running: 0, queued: 0, ..row() }, Duration::ZERO, at(90));
    assert_eq!(since(at(90)), 2);
}

#[test]
fn a_node_nobody_has_measured_gets_two_requests_at_a_time() {
    let snapshot = world();
    let offer = theirs(&snapshot);
    let there = || candidates_of(&snapshot, at(0))[1].held;
    snapshot.nodes[1].paths[0].cell.ok(at(0), None);
    let send = || Sent::new(offer, HOLDS, Duration::ZERO, None, at(0));
    let one = send();
    assert_eq!(there(), "");
    let two = send();
    assert_eq!(there(), "unmeasured", "somebody else can take it");
    one.answered();
    two.answered();
    drop((one, two));
    let _many = [send(), send(), send()];
    assert_eq!(there(), "", "it has shown what it can do");
}

#[test]
fn who_takes_nothing_of_ours_is_closed_and_says_why() {
    let snapshot = world();
    let gpu = theirs(&snapshot).node.clone();
    let closed = || (candidates_of(&snapshot, at(0))[1].closed, gpu.says_no());
    assert!(!gpu.mine, "nobody said whose it is");
    for (whom, why, says) in [
        (Accepting::All, "", None),
        (Accepting::None, "paused until 18:00", Some("gpu is paused until 18:00")),
        (Accepting::None, "", Some("gpu takes no requests of others now")),
        (
            Accepting::None,
            "quiet hours until 06:00",
            Some("gpu takes no requests of others now (quiet hours until 06:00)"),
        ),
        (
            Accepting::Mine,
            "on battery",
            Some("gpu works only for devices of its owner now (on battery)"),
        ),
    ] {
        gpu.cell.accepts(whom, why);
        assert_eq!(closed(), (says.is_some(), says.map(str::to_owned)), "{why}");
    }
}

#[test]
fn a_node_that_was_away_gets_one_request_until_one_was_answered() {
    let (mut state, snapshot) = asleep_and_back();
    let offer = theirs(&snapshot);
    let there = |now| candidates_of(&snapshot, now)[1].held;
    let send = |now| Sent::new(offer, HOLDS, Duration::ZERO, None, now);
    offer.cell.decode.set(50.0);
    assert_eq!(there(at(2000)), "", "the first one may go");
    let one = send(at(2000));
    assert_eq!(there(at(2000)), "half-open");
    offer.node.cell.is_back(at(900), at(2500));
    assert_eq!(there(at(2500)), "half-open", "that was sent before it was away");
    offer.node.cell.is_back(at(2000), at(3000));
    assert_eq!(there(at(3000)), "slow start");
    drop(one);
    assert_eq!(there(at(3000)), "");
    let _many = [send(at(3000)), send(at(3000))];
    assert_eq!((there(at(3000)), there(at(13_000))), ("slow start", ""));
    // It is seen again and again, and was away once.
    build::snapshot(&mut state, at(13_000));
    assert_eq!(there(at(13_000)), "");
}

/// A mesh whose peer answered, was lost and has just answered again.
fn asleep_and_back() -> (writer::State, Snapshot) {
    let this = Identity::lone(NodeName::parse("laptop").unwrap());
    let mut state = writer::State::new(Settings::default(), this, Default::default());
    for event in [
        Event::Local(vec![engine("ollama", vec![model("tiny")])]),
        Event::Peers(vec![peer("gpu", 2)]),
        Event::Listed { node: id("gpu"), listing: listing(2, vec![model("tiny")]) },
    ] {
        writer::apply(&mut state, event, at(0));
    }
    let first = build::snapshot(&mut state, at(0));
    assert_eq!(candidates_of(&first, at(0))[1].held, "");
    let path = &first.nodes[1].paths[0].cell;
    path.lost();
    build::snapshot(&mut state, at(1000));
    path.ok(at(1900), None);
    let back = build::snapshot(&mut state, at(1900));
    (state, back)
}

#[test]
fn who_comes_late_again_and_again_is_not_believed_to_be_free() {
    let snapshot = world();
    let offer = theirs(&snapshot);
    offer.node.cell.hear(at(0), HOLDS * 10);
    let free = Row { running: 0, queued: 0, wait_ms: 0, prefill: 1e6, ..row() };
    for n in 0..3 {
        let now = at(n * 10_000);
        offer.hear(&free, Duration::ZERO, now);
        assert_eq!(candidates_of(&snapshot, now)[1].wait, Some(0.0));
        let mut sent = Sent::new(offer, HOLDS, Duration::ZERO, Some(100.0), now);
        sent.began(now + Duration::from_secs(9));
    }
    offer.hear(&free, Duration::ZERO, at(30_000));
    assert_eq!(candidates_of(&snapshot, at(30_000))[1].wait, Some(9.0));
}

#[test]
fn who_was_late_before_a_restart_is_not_believed_after_it() {
    let (node, key) = (id("gpu"), ModelKey::parse("tiny").unwrap());
    let cell = |cells: &Registry| cells.offer(&node, &"ollama".into(), &key);
    let before = Registry::default();
    for n in 0..3 {
        cell(&before).report.kept.lock().came(0.0, 9.0, at(n));
    }
    cell(&before).decode.learn(Sample { value: 50.0, trust: 1.0 }, 0.25, at(2));
    let mut row = before.rates(&node, at(100_002)).remove(0);
    assert_eq!(row.age, Duration::from_secs(100));
    // Ten minutes of it began 100 s before it was saved, and 60 s before the next start.
    row.age += Duration::from_secs(60);
    let after = Registry::default();
    after.seed(&node, &row);
    let floor = |millis| cell(&after).report.kept.lock().floor(at(millis));
    assert_eq!((floor(0), floor(439_999), floor(440_000)), (9.0, 9.0, 0.0));
}

#[test]
fn a_request_that_is_not_named_any_more_has_started() {
    let node = NodeCell::default();
    let yours = |wait_ms| Yours { attempt: "0f".into(), wait_ms };
    node.waits(vec![yours(900)], at(5));
    assert_eq!(node.waiting("0f"), (Some(Duration::from_millis(900)), at(5)));
    node.waits(Vec::new(), at(7));
    assert_eq!(node.waiting("0f"), (None, at(7)));
}
