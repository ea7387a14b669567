//! From offers to the plain numbers a choice is made of, each cell read once.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::heard::Heard;
use super::snapshot::{Offer, Path};
use crate::balance::prefix::Print;
use crate::balance::prompt::Prompt;
use crate::balance::{self, Candidate, claims};
use crate::types::{
    Accepting, Api, Capabilities, ClientKind, EngineKind, Moment, NodeKind, PathKind,
};

/// What a request needs of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// The dialect it is made in. An offer that cannot be asked in it is no candidate.
    pub api: Api,
    /// What the model has to be able to do. An offer known not to is a last resort: its
    /// engine's own words say best what is wrong.
    pub capabilities: Capabilities,
    /// Who asks: answers are as long as that kind of client has had them.
    pub client: ClientKind,
    /// Bytes of the request's body.
    pub bytes: u64,
    /// What they are, where the prompt's tokens have to be guessed at by them.
    pub prompt: Prompt,
    /// What its prompt begins with, and its session: where that was read just before, little is
    /// left to read.
    pub print: Print,
}

/// Fills `out` with a candidate for each of `offers` that speaks the dialect;
/// `Candidate::index` is the place in `offers`. `out` is cleared first, and keeps its memory.
pub fn of(offers: &[Arc<Offer>], need: &Need, now: Moment, out: &mut Vec<Candidate>) {
    out.clear();
    let usual = own_per_byte(offers);
    out.extend(
        offers
            .iter()
            .enumerate()
            .filter(|(_, offer)| offer.endpoint.apis.has(need.api))
            .map(|(index, offer)| candidate(index, offer, need, usual, now)),
    );
    balance::queues(out);
}

/// Tokens that `offer`, one of these, makes of a byte of text: as it counted, or as this node's
/// own engine counts for the same model; 0 = neither is known. What one peer says of its tokens
/// is not believed of another's.
pub fn per_byte(offers: &[Arc<Offer>], offer: &Offer) -> f64 {
    known_per_byte(offer).unwrap_or_else(|| own_per_byte(offers))
}

fn known_per_byte(offer: &Offer) -> Option<f64> {
    Some(offer.cell.per_byte.get()).filter(|known| *known > 0.0)
}

fn own_per_byte(offers: &[Arc<Offer>]) -> f64 {
    let mut own = offers.iter().filter(|offer| offer.node.is_this());
    own.find_map(|offer| known_per_byte(offer)).unwrap_or_default()
}

fn candidate(index: usize, offer: &Offer, need: &Need, usual: f64, now: Moment) -> Candidate {
    let (cell, node) = (&offer.cell, &offer.node);
    let path = node.tries().next();
    let (prefill, decode) = cell.speeds();
    let on_gpu = offer.ps.as_ref().and_then(|row| row.get("size_vram")?.as_u64());
    let ours = cell.inflight.load(Relaxed);
    let said = offer.believed(now);
    let row = said.as_ref().map(|said| &*said.row);
    let (inflight, queued) = match row {
        Some(row) => (row.running, row.queued),
        // What others have at an engine without a sidecar comes on top of what is ours.
        None => {
            let there = ours.saturating_add(cell.report.others());
            (there.max(cell.running.load(Relaxed)), cell.queued.load(Relaxed))
        }
    };
    let answers = cell.report.answered();
    // What other models let expect bounds a claim, and does not rule it out.
    let speed = |measured: f64, expected: f64, claim: fn(&Heard) -> f64| {
        let (known, answers) = if measured > 0.0 { (measured, answers) } else { (expected, 0) };
        claims::speed(known, answers, row.map_or(0.0, claim))
    };
    // What has become much slower is asked for that, and no more.
    let part = cell.part(now);
    let slots = row.map_or_else(|| offer.slots(), |row| row.slots);
    let (rest_until, room, trial) = cell.rests.read(slots, now);
    let (_, room_at_node, back) = node.cell.back.read(slots, now);
    let held = match () {
        () if ours >= room => trial,
        () if node.cell.inflight() >= room_at_node => back,
        // Nobody gets many requests at a time before it has shown what it can do.
        () if !node.is_this() && node.cell.is_held() && decode <= 0.0 => "unmeasured",
        () => "",
    };
    let bare = node.kind == NodeKind::Bare;
    Candidate {
        index,
        is_local: node.is_this(),
        alive: offer.endpoint.up && node.is_alive(),
        able: able(&offer.capabilities, &need.capabilities),
        rest_until: if rest_until > now { rest_until } else { Moment::ZERO },
        closed: offer.says_no(now).is_some(),
        held,
        loaded_ctx: cell.loaded_ctx.load(Relaxed),
        default_ctx: offer.num_ctx.or(offer.endpoint.default_ctx).unwrap_or(0),
        context: offer.context.unwrap_or(0),
        loading: cell.loading.load(Relaxed),
        on_cpu: on_gpu == Some(0),
        inflight,
        queued,
        wait: said.as_ref().map(|said| said.wait),
        // Of an engine with a sidecar nobody tells anything but that.
        left: bare.then(|| cell.report.left_of_all(now).as_secs_f64()),
        line: (bare && offer.endpoint.kind == EngineKind::Ollama && !cell.is_loaded())
            .then(|| cell.mates.line(cell, slots, now)),
        fits: row.is_some_and(|row| row.fits),
        queue: 0.0,
        since: row.map_or(0, |row| cell.report.since(row, ours)),
        slots,
        prefill: speed(cell.prefill.get(), prefill, |row| row.prefill) * part,
        decode: speed(cell.decode.get(), decode, |row| row.decode) * part,
        load_rate: speed(cell.load_rate.get(), 0.0, |row| row.load_rate),
        out_tokens: cell.lengths.of(need.client),
        size: offer.size,
        rtt: path.and_then(|p| p.cell.rtt()).map_or(0.0, |rtt| rtt.as_secs_f64()),
        upload: path.map_or(0.0, |path| upload(path, need.bytes)),
        prefix: cell.keeps(&need.print, slots),
        prompt: need.prompt.tokens(known_per_byte(offer).unwrap_or(usual)).ceil() as u64,
        // That share says it in more detail.
        session: false,
    }
}

impl Offer {
    /// Why its node takes no request of ours for it now, in a sentence: none at all, or none
    /// that would need a load; `None` if it does, or never said.
    pub fn says_no(&self, now: Moment) -> Option<String> {
        let node = &self.node;
        if let Some(no) = node.says_no() {
            return Some(no);
        }
        let said = self.believed(now).filter(|_| !node.mine)?;
        (said.row.accepting != Accepting::All)
            .then(|| format!("{} does not load {} for others now", node.name, self.key))
    }

    /// How many requests run side by side: as its engine says, or as is usual.
    pub fn slots(&self) -> u32 {
        self.endpoint.slots.unwrap_or_else(|| usual_slots(self.endpoint.kind)).max(1)
    }
}

/// Seconds for a body of so many bytes on this way.
fn upload(path: &Path, bytes: u64) -> f64 {
    let known = path.cell.uplink.estimate().known();
    let usual = match path.kind {
        PathKind::Loopback => 1e9,
        PathKind::Lan => 4e7,
        // A home's way out to the internet: what a tunnel has if it is not a short one.
        PathKind::Tailnet | PathKind::Hosted => 4e6,
    };
    bytes as f64 / known.unwrap_or(usual)
}

/// Whether the model can do what is asked; one that says nothing of itself may.
fn able(has: &Capabilities, need: &Capabilities) -> bool {
    *has == Capabilities::default()
        || (has.completion || !need.completion)
            && (has.tools || !need.tools)
            && (has.vision || !need.vision)
            && (has.thinking || !need.thinking)
            && (has.embedding || !need.embedding)
            && (has.insert || !need.insert)
}

/// Requests side by side where nobody says: Ollama's and llama.cpp's default is one, servers
/// that batch take many.
fn usual_slots(kind: EngineKind) -> u32 {
    match kind {
        EngineKind::Ollama | EngineKind::LlamaCpp => 1,
        EngineKind::LmStudio | EngineKind::OpenAi => 4,
        EngineKind::Vllm => 32,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{self, engine, id, listing, model, need, peer};
    use super::super::{
        Event, Identity, Rates, Registry, Settings, Snapshot, bounds, build, writer,
    };
    use super::*;
    use crate::balance::prompt::Count;
    use crate::balance::rates::Sample;
    use crate::types::{ApiSet, ModelKey, NodeName};

    /// `tiny` on an own engine that speaks chat alone, and on a peer.
    fn world() -> (Arc<Registry>, Snapshot) {
        let cells = Arc::new(Registry::default());
        let this = Identity::lone(NodeName::parse("laptop").unwrap());
        let mut state = writer::State::new(Settings::default(), this, cells.clone());
        let mut vllm = engine("vllm", vec![model("tiny")]);
        vllm.kind = EngineKind::Vllm;
        vllm.apis = ApiSet::NONE.with(Api::Chat);
        let mut theirs = model("tiny");
        theirs.capabilities = Capabilities::from_words(["completion", "tools"]);
        theirs.loaded_ctx = 4096;
        theirs.running = 2;
        theirs.queued = 1;
        for event in [
            Event::Local(vec![vllm]),
            Event::Peers(vec![peer("gpu", 2)]),
            Event::Listed { node: id("gpu"), listing: listing(2, vec![theirs]) },
        ] {
            writer::apply(&mut state, event, Moment::ZERO);
        }
        (cells, build::snapshot(&mut state, Moment::ZERO))
    }

    #[test]
    fn candidates_are_the_cells_read_once() {
        let (cells, snapshot) = world();
        let model = &snapshot.models[&ModelKey::parse("tiny").unwrap()];
        let path = cells.path(&id("gpu"), &testing::dial(2));
        path.ok(Moment::ZERO, Some(Duration::from_millis(4)));
        let cell = &model.offers[1].cell;
        cell.decode.set(50.0);
        cell.inflight.store(1, Relaxed);
        let now = Moment::from_millis(400);
        cell.slowed(0.1, Moment::ZERO);
        let print = Print::of([&[7_u8; 900][..]], 900, &std::hash::RandomState::new());
        cell.read_before(print);
        cell.rests.fault(now, now, &[Duration::from_millis(100)]);
        let mut out = vec![Candidate::default(); 9];
        let tools = Need { print, ..need(&["tools"]) };
        of(&model.offers, &tools, Moment::from_millis(100), &mut out);
        assert_eq!(out.len(), 2);
        assert_eq!((out[0].is_local, out[0].alive, out[0].slots), (true, true, 32));
        let there = Candidate {
            index: 1,
            alive: true,
            able: true,
            rest_until: Moment::from_millis(500),
            held: "half-open",
            prefix: 1.0,
            loaded_ctx: 4096,
            inflight: 2,
            queued: 1,
            slots: 1,
            decode: 5.0,
            left: None,
            out_tokens: 200.0,
            size: 1000,
            rtt: 0.004,
            ..Candidate::default()
        };
        assert_eq!(out[1], there);

        path.lost();
        of(&model.offers, &need(&[]), Moment::from_millis(500), &mut out);
        assert_eq!((out[1].alive, out[1].rest_until), (false, Moment::ZERO));
    }

    #[test]
    fn an_offer_is_a_candidate_in_what_it_can_be_asked_in_and_in_nothing_else() {
        let (_, snapshot) = world();
        let model = &snapshot.models[&ModelKey::parse("tiny").unwrap()];
        let mut out = Vec::new();
        for (api, want) in [
            (Api::Chat, &[0, 1][..]),
            // What it does not speak is put into chat for it; this cannot be.
            (Api::Ollama, &[0, 1]),
            (Api::Completions, &[1]),
        ] {
            of(&model.offers, &Need { api, ..need(&[]) }, Moment::ZERO, &mut out);
            assert_eq!(out.iter().map(|c| c.index).collect::<Vec<_>>(), want, "{api:?}");
        }
    }

    #[test]
    fn what_says_nothing_of_itself_may_be_asked_anything() {
        let (_, snapshot) = world();
        let model = &snapshot.models[&ModelKey::parse("tiny").unwrap()];
        let mut out = Vec::new();
        let mut able = |words: &[&str]| {
            of(&model.offers, &need(words), Moment::ZERO, &mut out);
            out.iter().map(|c| c.able).collect::<Vec<_>>()
        };
        assert_eq!(able(&["tools"]), [true, true]);
        assert_eq!(able(&["vision"]), [true, false]);
    }

    #[test]
    fn how_long_a_prompt_is_is_believed_of_each_engine_alone() {
        let (cells, mut snapshot) = world();
        let key = ModelKey::parse("tiny").unwrap();
        cells.path(&id("gpu"), &testing::dial(2)).ok(Moment::ZERO, None);
        let mut out = Vec::new();
        let mut see = |snapshot: &Snapshot| {
            let prompt = Prompt { text: 4000, images: 0 };
            let offers = &snapshot.models[&key].offers;
            of(offers, &Need { prompt, ..need(&[]) }, Moment::ZERO, &mut out);
            for c in &out {
                let alike = prompt.tokens(per_byte(offers, &offers[c.index])).ceil() as u64;
                assert_eq!(c.prompt, alike);
            }
            out.iter().map(|c| c.prompt).collect::<Vec<_>>()
        };
        let count =
            |tokens| Count { prompt: Prompt { text: 8192, images: 0 }, tokens, ..Count::default() };
        assert_eq!(see(&snapshot), [1000, 1000]);
        let peers = |snapshot: &Snapshot| Arc::clone(&snapshot.models[&key].offers[1].cell);
        // Whatever a peer says, it is of its own tokens, and no more than can be.
        peers(&snapshot).counted(&count(u64::MAX), Moment::ZERO);
        assert_eq!(see(&snapshot), [1000, 6000]);
        // Of one that was never heard our own engine's count holds.
        peers(&snapshot).per_byte.reset();
        snapshot.models[&key].offers[0].cell.counted(&count(4096), Moment::ZERO);
        assert_eq!(see(&snapshot), [2000, 2000]);
        peers(&snapshot).counted(&count(8192), Moment::ZERO);
        assert_eq!(see(&snapshot), [2000, 4000]);
        // An earlier run's word is taken over, within the same bounds.
        for (was, want) in [(0.5, 2000), (f64::NAN, 1000), (50.0, 1000)] {
            let (cells, new) = world();
            let rates = Rates { per_byte: was, ..cells_of(&snapshot) };
            cells.seed(&id("gpu"), &bounds::rates(rates));
            snapshot = new;
            assert_eq!(see(&snapshot), [1000, want], "{was}");
        }
    }

    /// A row of what is saved of gpu's model.
    fn cells_of(snapshot: &Snapshot) -> Rates {
        let offer = &snapshot.models[&ModelKey::parse("tiny").unwrap()].offers[1];
        let engine = offer.endpoint.name.to_string();
        Rates { engine, model: offer.key.as_str().to_owned(), ..Rates::default() }
    }

    #[test]
    fn a_large_body_and_who_asks_count() {
        let (cells, snapshot) = world();
        let key = ModelKey::parse("tiny").unwrap();
        cells.path(&id("gpu"), &testing::dial(2)).ok(Moment::ZERO, None);
        let mut out = Vec::new();
        let mut see = |client| {
            let need = Need { bytes: 4_000_000, client, ..need(&[]) };
            of(&snapshot.models[&key].offers, &need, Moment::ZERO, &mut out);
            (out[0].upload, out[1].upload, out[0].out_tokens, out[1].out_tokens)
        };
        // Nothing leaves this machine for its own engine.
        assert_eq!(see(ClientKind::Sdk), (0.0, 1.0, 200.0, 200.0));
        cells.uplink(&id("gpu"), PathKind::Tailnet).set(1e6);
        for (client, tokens) in [(ClientKind::Openclaw, 1200.0), (ClientKind::Sdk, 100.0)] {
            let sample = Sample::whole(tokens).unwrap();
            cells.lengths(&key).learn(client, sample, Moment::ZERO);
        }
        assert_eq!(see(ClientKind::Openclaw), (0.0, 4.0, 700.0, 700.0));
        assert_eq!(see(ClientKind::Sdk), (0.0, 4.0, 150.0, 150.0));
    }
}
