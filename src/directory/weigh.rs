//! Why a request goes where it goes, for people: each offer with its predicted time taken apart,
//! where each number comes from, and what speaks against it.
//!
//! In flow the offers of a plan and what the choice was given; out flow rows for
//! `tailherd explain` and `x-tailherd-explain`, and the few words of `requests`. It only tells
//! of the choice: what it reads is what [`candidates::of`] reads. No address is in it, and
//! nothing of the request but its size.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Value, json};

use super::candidates::{self, Need};
use super::snapshot::Offer;
use crate::balance::{self, Candidate, Verdict, claims, verdicts};
use crate::telemetry::words;
use crate::types::{Api, Moment};

/// What a choice was made from.
#[derive(Debug, Clone, Copy)]
pub struct Scales<'a> {
    /// The offers of the plan.
    pub offers: &'a [Arc<Offer>],
    /// What the request needs of an offer.
    pub need: &'a Need,
    /// What the choice has to know of the request.
    pub ask: &'a balance::Ask,
    /// When.
    pub now: Moment,
}

/// One offer, weighed.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighed {
    /// Its place among the offers.
    pub index: usize,
    /// What became of it.
    pub verdict: Fate,
    /// The row that is shown.
    pub row: Value,
}

/// What becomes of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Taken.
    Chosen,
    /// As good as the best; chance takes one of them.
    Near,
    /// It could serve, later than the best.
    Slower,
    /// Tried, and it failed before the first byte.
    Tried,
    /// Taken only if there is nothing better.
    Behind,
    /// No candidate.
    Out,
}

impl Fate {
    /// The word in rows.
    pub const fn label(self) -> &'static str {
        match self {
            Fate::Chosen => "chosen",
            Fate::Near => "near",
            Fate::Slower => "slower",
            Fate::Tried => "tried",
            Fate::Behind => "behind",
            Fate::Out => "out",
        }
    }

    /// Whether it could be taken as things stand.
    pub const fn is_able(self) -> bool {
        matches!(self, Fate::Chosen | Fate::Near | Fate::Slower)
    }
}

/// Weighs all offers: what was taken first, then by order of preference, those that are no
/// candidates last. `chosen` is a pick's index if one was made, `tried` what failed before it,
/// with a word each.
pub fn weigh(
    scales: &Scales<'_>,
    chosen: Option<usize>,
    tried: &[(usize, &'static str)],
) -> Vec<Weighed> {
    let Scales { offers, need, ask, now } = *scales;
    let mut numbers = Vec::new();
    candidates::of(offers, need, now, &mut numbers);
    let word = |index: usize| tried.iter().find(|(at, _)| *at == index).map(|(_, word)| *word);
    let open: Vec<Candidate> =
        numbers.iter().filter(|c| word(c.index).is_none()).copied().collect();
    let mut order = verdicts(&open, ask, now);
    if let Some(at) = order.iter().position(|v| Some(v.index) == chosen) {
        order[..=at].rotate_right(1);
    }
    let best = order.iter().min_by(|a, b| {
        (a.rank, a.terms.total)
            .partial_cmp(&(b.rank, b.terms.total))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    let best = best.copied();
    let near = order.iter().filter(|v| v.chance > 0.0).count();
    let mut rows = Vec::with_capacity(offers.len());
    for v in &order {
        let (Some(offer), Some(c)) =
            (offers.get(v.index), numbers.iter().find(|c| c.index == v.index))
        else {
            continue;
        };
        let fate = match (chosen, v) {
            (Some(index), v) if index == v.index => Fate::Chosen,
            (_, v) if v.terms.behind == "closed" => Fate::Out,
            (_, Verdict { rank: 1.., .. }) => Fate::Behind,
            (_, v) if v.chance > 0.0 => Fate::Near,
            _ => Fate::Slower,
        };
        let why = match fate {
            Fate::Chosen | Fate::Near if v.rank > 0 => speaks_against(offer, c, scales, v),
            Fate::Chosen | Fate::Near => for_it(v, near),
            Fate::Slower => {
                let best = best.filter(|best| best.index != v.index);
                let name = best.and_then(|b| offers.get(b.index)).map(|o| o.node.name.as_str());
                let more = best.map_or(0.0, |b| v.terms.total - b.terms.total);
                name.map_or_else(String::new, |name| format!("{} more than {name}", span(more)))
            }
            _ => speaks_against(offer, c, scales, v),
        };
        rows.push(Weighed {
            index: v.index,
            verdict: fate,
            row: row(offer, fate, &why, Some((c, v)), scales),
        });
    }
    for (index, offer) in offers.iter().enumerate() {
        if rows.iter().any(|row| row.index == index) {
            continue;
        }
        let (fate, why) = match word(index) {
            Some(word) => (Fate::Tried, format!("tried: {}", word.replace('_', " "))),
            None => (Fate::Out, no_candidate(offer, need.api)),
        };
        rows.push(Weighed { index, verdict: fate, row: row(offer, fate, &why, None, scales) });
    }
    rows
}

/// A candidate's word for what puts it behind, as part of a sentence.
pub(super) fn behind(word: &'static str) -> &'static str {
    match word {
        "dead" => "does not answer",
        "unable" => "cannot do it",
        "rests" => "rests after failures",
        "window" => "has too small a window",
        "closed" => "takes no requests of ours",
        "half-open" => "is tried after a failure",
        "slow start" => "has just come back",
        "unmeasured" => "is not known yet",
        other => other,
    }
}

fn for_it(v: &Verdict, near: usize) -> String {
    let mut why = match near {
        _ if v.chance >= 1.0 => "least time".to_owned(),
        near => format!("drawn among {near} near-equals, {:.0} %", v.chance * 100.0),
    };
    if v.chance <= 0.0 {
        "near-equal, and this node has it too".clone_into(&mut why);
    }
    if v.saved > 0.0 {
        let _ = write!(why, "; part of the prompt was read there before");
    }
    why
}

/// What speaks against a candidate, with its numbers.
fn speaks_against(offer: &Offer, c: &Candidate, scales: &Scales<'_>, v: &Verdict) -> String {
    match v.terms.behind {
        "dead" if !offer.endpoint.up => "its engine does not answer".to_owned(),
        "dead" => match &offer.node.why {
            Some(why) => format!("does not answer: {}", words(why)),
            None => "does not answer".to_owned(),
        },
        "unable" => {
            let lacking = scales.need.capabilities.lacking_in(&offer.capabilities);
            format!("cannot do: {}", lacking.join(", "))
        }
        "rests" => {
            let left = c.rest_until.since(scales.now).as_secs_f64();
            match offer.cell.rests.faults() {
                0 => format!("rests for {}", span(left)),
                1 => format!("rests for {} after a failure", span(left)),
                n => format!("rests for {} after {n} failures", span(left)),
            }
        }
        "window" => {
            let window = window(c, scales.ask);
            let wanted = c.reads(scales.ask).max(scales.ask.min_context);
            format!("its window of {window} tokens does not hold {wanted}")
        }
        "closed" => offer.says_no(scales.now).unwrap_or_default(),
        "half-open" => "is tried with one request after a failure or an absence".to_owned(),
        "slow start" => "has just come back, and gets more requests by and by".to_owned(),
        "unmeasured" => format!(
            "unproven: it has as many requests as it gets ({}) before it has answered {}",
            claims::UNMEASURED,
            claims::MEASURED
        ),
        other => other.to_owned(),
    }
}

/// Why an offer of the plan is not even a candidate.
fn no_candidate(offer: &Offer, api: Api) -> String {
    match offer.endpoint.apis.has(api) {
        false => format!("its engine does not speak the dialect `{}`", api.label()),
        true => String::new(),
    }
}

fn row(
    offer: &Offer,
    fate: Fate,
    why: &str,
    judged: Option<(&Candidate, &Verdict)>,
    scales: &Scales<'_>,
) -> Value {
    let mut row = json!({
        "node": offer.node.name.as_str(), "engine": &*offer.endpoint.name,
        "here": offer.node.is_this(), "verdict": fate.label(), "why": why,
    });
    let Some((c, v)) = judged else { return row };
    let t = &v.terms;
    row["seconds"] = json!({
        "total": short(t.total), "rtt": short(t.rtt), "upload": short(t.upload),
        "wait": short(t.wait + t.load), "queue": short(t.wait), "load": short(t.load),
        "loadCost": short(t.load_cost), "prefill": short(t.prefill), "decode": short(t.decode),
        "prefixSaves": short(v.saved),
    });
    row["chance"] = short(v.chance);
    let said = offer.believed(scales.now);
    row["from"] = sources(offer, c, scales, said.is_some());
    row["state"] = json!({
        "loaded": c.loaded_ctx > 0, "loading": c.loading, "fits": c.fits, "onCpu": c.on_cpu,
        "window": Some(window(c, scales.ask)).filter(|w| *w > 1),
        "running": c.inflight, "queued": c.queued, "since": c.since, "slots": c.slots,
        "reportSeconds": said.map(|said| short(said.row.age(scales.now).as_secs_f64())),
        "measuredSeconds": offer.cell.measured(scales.now).map(|age| age.as_secs()),
    });
    row
}

/// Where a candidate's numbers come from.
fn sources(offer: &Offer, c: &Candidate, scales: &Scales<'_>, said: bool) -> Value {
    let cell = &offer.cell;
    let answers = cell.report.answered();
    let (expected_prefill, expected_decode) = cell.speeds();
    let speed = |used: f64, measured: f64, expected: f64| match () {
        () if used <= 0.0 => "prior",
        // What this node says of itself is what it has measured.
        () if c.is_local && measured > 0.0 => "measured",
        () if measured > 0.0 && (answers >= claims::MEASURED || used == measured) => "measured",
        () if said && used != expected => "claimed",
        () if expected > 0.0 => "expected",
        () => "claimed",
    };
    let path = offer.node.tries().next();
    json!({
        "rtt": match (c.is_local, c.rtt > 0.0) {
            (true, _) => "here",
            (false, true) => "measured",
            (false, false) => "unknown",
        },
        "upload": match path.and_then(|p| p.cell.uplink.estimate().known()) {
            _ if c.is_local => "here",
            Some(_) => "measured",
            None => "prior",
        },
        "wait": match (c.wait.is_some(), c.is_local) {
            (true, true) => "here",
            (true, false) => "claimed",
            (false, _) => "counted",
        },
        "load": speed(c.load_rate, cell.load_rate.get(), 0.0),
        "prefill": speed(c.prefill, cell.prefill.get(), expected_prefill),
        "decode": speed(c.decode, cell.decode.get(), expected_decode),
        "length": match cell.lengths.rate(scales.need.client).get() > 0.0 {
            true => "measured",
            false => "prior",
        },
    })
}

/// The window a candidate has or would be loaded with; 0 = not known.
fn window(c: &Candidate, ask: &balance::Ask) -> u64 {
    let capped = |wanted: u64| if c.context > 0 { wanted.min(c.context) } else { wanted };
    match ask.num_ctx {
        Some(wanted) => capped(wanted),
        None if c.loaded_ctx > 1 => c.loaded_ctx,
        None => capped(c.default_ctx),
    }
}

/// Milliseconds are as exact as anybody reads.
fn short(seconds: f64) -> Value {
    ((seconds * 1e3).round() / 1e3).into()
}

/// `0.35 s`, `2.4 s`, `12 s`, `3 min`.
pub(super) fn span(seconds: f64) -> String {
    match seconds {
        s if s < 0.995 => format!("{s:.2} s"),
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s => format!("{:.0} min", s / 60.0),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::reason::Reason;
    use super::super::testing::{engine, id, listing, model, need, peer, picture, who};
    use super::super::{Event, ModelListing, Sent, Snapshot};
    use super::*;
    use crate::api::report::{Row, State};
    use crate::balance::Pick;
    use crate::types::{ApiSet, Capabilities, ModelKey};

    fn at(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    fn listed(change: impl FnOnce(&mut ModelListing)) -> ModelListing {
        let mut listed = model("tiny");
        listed.size = 5_000_000_000;
        listed.loaded_ctx = 4096;
        listed.capabilities = Capabilities::from_words(["completion", "tools"]);
        change(&mut listed);
        listed
    }

    /// `laptop` asks; `tiny` is on these peers, each 4 ms away.
    fn world(peers: Vec<(&str, ModelListing)>) -> Snapshot {
        let mut events = vec![Event::Local(Vec::new())];
        let numbered = || peers.iter().zip(2_u8..);
        events.push(Event::Peers(numbered().map(|((name, _), n)| peer(name, n)).collect()));
        events.extend(numbered().map(|((name, model), n)| Event::Listed {
            node: id(name),
            listing: listing(n, vec![model.clone()]),
        }));
        let snapshot = picture(who("laptop"), events);
        for node in snapshot.nodes.iter().filter(|n| !n.is_this()) {
            node.paths[0].cell.ok(Moment::ZERO, Some(Duration::from_millis(4)));
        }
        snapshot
    }

    fn offers(snapshot: &Snapshot) -> &[Arc<Offer>] {
        &snapshot.models[&ModelKey::parse("tiny").unwrap()].offers
    }

    fn ask() -> balance::Ask {
        balance::Ask { prompt_tokens: 600, max_output: Some(0), ..balance::Ask::default() }
    }

    /// Node, fate and why of each offer.
    fn told(
        offers: &[Arc<Offer>],
        need: &Need,
        chosen: Option<usize>,
    ) -> Vec<(String, Fate, String)> {
        let scales = Scales { offers, need, ask: &ask(), now: at(100) };
        let rows = weigh(&scales, chosen, &[]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        rows.iter().map(|w| (text(&w.row["node"]), w.verdict, text(&w.row["why"]))).collect()
    }

    #[track_caller]
    fn check(rows: &[(String, Fate, String)], want: &[(&str, Fate, &str)]) {
        let rows: Vec<_> = rows.iter().map(|(n, f, w)| (n.as_str(), *f, w.as_str())).collect();
        assert_eq!(rows, want);
    }

    #[test]
    fn each_offer_says_what_speaks_for_it_or_against_it() {
        let snapshot = world(vec![
            ("asleep", listed(|_| {})),
            ("blind", listed(|m| m.capabilities = Capabilities::from_words(["completion"]))),
            ("cold", listed(|m| m.loaded_ctx = 0)),
            ("gpu", listed(|_| {})),
            ("narrow", listed(|m| m.loaded_ctx = 512)),
            ("sick", listed(|_| {})),
        ]);
        let offers = offers(&snapshot);
        snapshot.nodes.iter().find(|n| n.name.as_str() == "asleep").unwrap().paths[0].cell.lost();
        let sick = offers.iter().find(|o| o.node.name.as_str() == "sick").unwrap();
        sick.cell.rests.fault(Moment::ZERO, Moment::ZERO, &[Duration::from_secs(30)]);
        let rows = told(offers, &need(&["completion", "tools"]), None);
        check(
            &rows,
            &[
                ("gpu", Fate::Near, "least time"),
                ("cold", Fate::Slower, "17 s more than gpu"),
                ("narrow", Fate::Behind, "its window of 512 tokens does not hold 600"),
                ("sick", Fate::Behind, "rests for 30 s after a failure"),
                ("blind", Fate::Behind, "cannot do: tools"),
                ("asleep", Fate::Behind, "does not answer"),
            ],
        );
        let scales = Scales { offers, need: &need(&[]), ask: &ask(), now: at(100) };
        let rows = weigh(&scales, None, &[]);
        let cold = rows.iter().find(|w| w.row["node"] == "cold").unwrap();
        let seconds = |term: &str| cold.row["seconds"][term].as_f64().unwrap();
        let terms = ["rtt", "upload", "queue", "load", "loadCost", "prefill", "decode"];
        let sum: f64 = terms.iter().map(|term| seconds(term)).sum();
        assert!((sum - seconds("total")).abs() < 0.005 && seconds("load") > 5.0, "{sum}");
    }

    #[test]
    fn near_equals_share_the_draw_and_the_chosen_one_is_first() {
        let snapshot = world(vec![("desk", listed(|_| {})), ("gpu", listed(|_| {}))]);
        let offers = offers(&snapshot);
        let why = "drawn among 2 near-equals, 50 %";
        check(
            &told(offers, &need(&[]), None),
            &[("desk", Fate::Near, why), ("gpu", Fate::Near, why)],
        );
        check(
            &told(offers, &need(&[]), Some(1)),
            &[("gpu", Fate::Chosen, why), ("desk", Fate::Near, why)],
        );
    }

    #[test]
    fn what_is_no_candidate_says_why() {
        let mut mute = engine("odd", vec![listed(|_| {})]);
        mute.apis = ApiSet::NONE.with(Api::Embeddings);
        let mut snapshot = world(vec![("gpu", listed(|_| {}))]);
        let events = vec![
            Event::Local(vec![mute]),
            Event::Peers(vec![peer("gpu", 2)]),
            Event::Listed { node: id("gpu"), listing: listing(2, vec![listed(|_| {})]) },
        ];
        snapshot = picture(who(snapshot.nodes[0].name.as_str()), events);
        snapshot.nodes[1].paths[0].cell.ok(Moment::ZERO, None);
        check(
            &told(offers(&snapshot), &need(&[]), None),
            &[
                ("gpu", Fate::Near, "least time"),
                ("laptop", Fate::Out, "its engine does not speak the dialect `chat`"),
            ],
        );
        let scales =
            Scales { offers: offers(&snapshot), need: &need(&[]), ask: &ask(), now: at(1) };
        let tried = weigh(&scales, None, &[(1, "slow_connect")]);
        let row = tried.iter().find(|w| w.index == 1).unwrap();
        assert_eq!((row.verdict, &row.row["why"]), (Fate::Tried, &json!("tried: slow connect")));
    }

    #[test]
    fn each_number_says_where_it_comes_from() {
        let snapshot = world(vec![("gpu", listed(|_| {}))]);
        let offer = &offers(&snapshot)[0];
        let from = |now| {
            let scales = Scales { offers: offers(&snapshot), need: &need(&[]), ask: &ask(), now };
            let row = weigh(&scales, None, &[]).remove(0).row;
            let word = |term: &str| row["from"][term].as_str().unwrap().to_owned();
            ([word("rtt"), word("wait"), word("decode")], row["state"]["reportSeconds"].clone())
        };
        let words = |a: &str, b: &str, c: &str| [a.to_owned(), b.to_owned(), c.to_owned()];
        assert_eq!(from(at(1)), (words("measured", "counted", "prior"), Value::Null));
        let row =
            Row { state: State::Loaded, num_ctx: 4096, decode: 80.0, slots: 1, ..Row::default() };
        offer.node.cell.hear(at(1000), Duration::from_secs(10));
        offer.hear(&row, Duration::from_secs(2), at(1000));
        assert_eq!(from(at(2500)), (words("measured", "claimed", "claimed"), json!(1.5)));
        offer.cell.decode.set(20.0);
        for _ in 0..claims::MEASURED {
            Sent::new(offer, Duration::ZERO, Duration::ZERO, None, at(2000)).answered();
        }
        assert_eq!(from(at(2500)).0, words("measured", "claimed", "measured"));
    }

    #[test]
    fn a_few_words_tell_why_that_node() {
        #[track_caller]
        fn check(peers: Vec<(&str, ModelListing)>, chosen: &str, pinned: bool, want: &str) {
            let snapshot = world(peers);
            let (need, ask) = (need(&[]), ask());
            let scales = Scales { offers: offers(&snapshot), need: &need, ask: &ask, now: at(1) };
            let mut numbers = Vec::new();
            candidates::of(scales.offers, &need, at(1), &mut numbers);
            let index = scales.offers.iter().position(|o| o.node.name.as_str() == chosen).unwrap();
            let c = numbers.iter().find(|c| c.index == index).unwrap();
            let all = verdicts(&numbers, &ask, at(1));
            let among = all.iter().filter(|v| v.chance > 0.0).count();
            let pick = Pick { index, terms: balance::score(c, &ask, at(1)), among };
            let reason = Reason::of(&scales, &numbers, &pick, pinned);
            assert_eq!(reason.to_string(), want);
        }
        let busy = || listed(|m| (m.running, m.queued) = (1, 5));
        check(vec![("gpu", listed(|_| {}))], "gpu", false, "only node, loaded, 2.0 s");
        check(vec![("gpu", listed(|_| {}))], "gpu", true, "pinned, loaded, 2.0 s");
        check(
            vec![("gpu", listed(|_| {})), ("desk", busy())],
            "gpu",
            false,
            "loaded, 2.0 s; desk would wait 11 s",
        );
        check(
            vec![("gpu", listed(|_| {})), ("desk", listed(|m| m.loaded_ctx = 0))],
            "gpu",
            false,
            "loaded, 2.0 s; desk would load for 5.8 s",
        );
        check(
            vec![("gpu", listed(|m| m.loaded_ctx = 0)), ("desk", listed(|m| m.loaded_ctx = 0))],
            "gpu",
            false,
            "loads, 19 s; drawn among 2",
        );
    }

    #[test]
    fn times_are_as_people_say_them() {
        for (seconds, text) in
            [(0.004, "0.00 s"), (0.4, "0.40 s"), (2.44, "2.4 s"), (12.4, "12 s"), (600.0, "10 min")]
        {
            assert_eq!(span(seconds), text);
        }
    }
}
