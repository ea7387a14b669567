//! From a body to a question: which model, streamed or not, an unload or a load.
//!
//! In flow the [`Asked`] head and the client's body; the body is held and scanned as it
//! comes, to its end or, if it is large, until the model is known. On the mesh listener it is
//! always scanned to its end, and what Go would read differently from us is refused: what the
//! rule checked is what the engine gets.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};

use crate::api::peek::{At, Peeked, Problem, Scanner};
use crate::api::route::Class;
use crate::config::Config;
use crate::directory::Look;
use crate::ladder;
use crate::net::Body;
use crate::types::{Moment, NameError, Op, RequestedModel};

use super::ask::Ask;
use super::asked::{Asked, Settings};
use super::chain::{self, Question, Taken};
use super::error::Failure;
use super::plan::{Plan, Planned, plan};
use super::replay::{Held, ReadError};
use super::wishes::Where;
use super::{Proxy, Running, gather, local, serve};

/// Bodies up to this size are scanned to their end before anything is chosen.
const SMALL: u64 = 256 * 1024;
/// Most bytes a zstd body may decode to: Ollama's own limit.
const UNZSTD: u64 = 20 << 20;

/// Answers a request that is routed by its model.
pub(crate) async fn routed(
    px: &Arc<Proxy>,
    settings: &Settings,
    asked: &mut Asked,
    body: Body,
) -> Result<Response<Body>, Failure> {
    let config = &settings.config;
    let arrived = px.clock.now();
    if asked.route.class == Class::UnknownPost && asked.is_mesh() {
        return Err(Failure::not_found("404 page not found"));
    }
    let running = px.enter(config)?;
    let limits = &config.limits;
    let mut held = Held::new(body, &px.memory, limits.replay_bytes, limits.body_bytes);
    let decoded = is_zstd(&asked.head.headers) && asked.route.upstream.starts_with("/v1/");
    if decoded {
        let bytes = unzstd(&read_all(px, &held).await?)?;
        held = Held::of(bytes, &px.memory, limits.replay_bytes.max(UNZSTD));
    }
    let peeked = peek(px, &held, asked).await?;
    if asked.is_mesh() {
        plain_only(&peeked)?;
    }
    let named = match &asked.route.path_model {
        Some(name) => Some(name.as_str()),
        None => peeked.wanted().map(|at| at.value.as_str()),
    };
    let model = match named.map(RequestedModel::parse) {
        Some(Ok(model)) => model,
        Some(Err(error)) => {
            return local::no_model(px, asked, &held, decoded, error, running).await;
        }
        None => {
            return local::no_model(px, asked, &held, decoded, NameError::Missing, running).await;
        }
    };
    let unload = peeked.unloads(asked.route.api, asked.route.op);
    if unload && !asked.is_mesh() {
        local::unload_is_here(&px.directory.load(), asked, &model)?;
    }
    let chain = chain::meaning(&settings.chains, &px.directory.load(), asked, &model)?;
    if let Some(chain) = &chain {
        // What the chain says narrows what the caller said, never the other way round.
        let place = chain.place.map_or(asked.wishes.place, Where::from);
        asked.wishes.place = asked.wishes.place.min(place);
        asked.wishes.priority = asked.wishes.priority.or(chain.priority);
    }
    let (model, peeked, held) = (&model, &peeked, &held);
    let q = Question { asked, model, peeked, held, decoded, unload, arrived };
    if let Some(chain) = chain {
        return Box::pin(chain::run(px, config, &q, &chain, running)).await;
    }
    match planned(px, config, asked, model, unload).await? {
        Planned::Serve(plan) => serve(px, config, &q, &plan, Taken::default(), running).await,
        Planned::AskLocal => {
            local::ask(px, asked, held, decoded, Some((model, peeked)), running).await
        }
    }
}

/// Answers a question by one of a plan's offers.
pub(crate) async fn serve(
    px: &Arc<Proxy>,
    config: &Config,
    q: &Question<'_>,
    plan: &Plan,
    taken: Taken,
    running: Running,
) -> Result<Response<Body>, Failure> {
    let Question { asked, model, peeked, held, decoded, unload, .. } = *q;
    if let Some(answer) = gather::known(asked, plan, model) {
        return Ok(answer);
    }
    if let Some(answer) = chain::kept(q, plan)? {
        return Ok(answer);
    }
    let mut keep_alive = None;
    let (mut max_inflight, mut may_load, mut max_predict) = (None, true, None);
    if let Some(rule) = &plan.limits {
        max_inflight = rule.max_inflight;
        // A peer that takes the model to be in memory does not want it loaded.
        may_load = rule.may_load && !asked.wishes.loaded;
        keep_alive = peeked
            .keep_alive
            .as_ref()
            .and_then(|at| at.value.clamped(config.max_remote_keep_alive))
            .map(|most| format!("\"{}s\"", most.as_secs()));
        let number = |at: Option<&At<i64>>| at.and_then(|at| u64::try_from(at.value).ok());
        over_limit(asked, rule.max_num_ctx, number(peeked.num_ctx.as_ref()), "num_ctx")?;
        // Less than nothing means no end.
        let endless = |at: &At<i64>| u64::try_from(at.value).unwrap_or(u64::MAX);
        let predict = peeked.predict(asked.route.api).map(endless);
        over_limit(asked, rule.max_predict, predict, "num_predict")?;
        // What is left open, or said twice in two ways, ends there all the same.
        let writes = asked.route.op.is_inference() && asked.route.op != Op::Embed;
        max_predict = rule.max_predict.filter(|_| writes).map(|most| predict.unwrap_or(most));
    }
    if asked.is_mesh() && asked.route.op == Op::Show {
        // Asked too early; the engine's own answer would name its files.
        return Err(Failure::exhausted(format!("model '{}' is not described yet", model.bare)));
    }
    let ask = Ask {
        asked,
        model,
        peeked,
        held,
        taken,
        unload,
        decoded,
        keep_alive,
        max_inflight,
        may_load,
        max_predict,
        class: asked.class(&config.priority, &model.key),
    };
    serve::serve(px, config, &ask, plan, running).await
}

/// What a rule checked has to be what the engine gets: a peer's body that readers could take
/// in two ways is refused.
pub(crate) fn plain_only(peeked: &Peeked) -> Result<(), Failure> {
    let why = match (&peeked.conflict, &peeked.problem) {
        (Some(conflict), _) => conflict.to_string(),
        (None, Some(problem @ Problem::TooDeep)) => problem.to_string(),
        (None, _) => return Ok(()),
    };
    Err(Failure::caller(StatusCode::BAD_REQUEST, why))
}

/// Plans with the present picture. Right after a start the models of peers are remembered, and
/// listed, before their nodes have answered: then it waits for the next pictures a moment
/// instead of saying that there is no such model. The same, more shortly, for a model that is
/// still listed although its last node was just lost: that node may be back (its program was
/// started anew, say), and is looked at again at once. Not where this device's own tailnet is what is gone.
pub(crate) async fn planned(
    px: &Proxy,
    config: &Config,
    asked: &Asked,
    model: &RequestedModel,
    unload: bool,
) -> Result<Planned, Failure> {
    let mut pictures = px.directory.changed();
    let began = Instant::now();
    let mut looked = false;
    loop {
        let (snapshot, now) = (px.directory.load(), px.clock.now());
        let plan = plan(&snapshot, config, asked, model, unload, now);
        let (true, false, Some(lost)) =
            (plan.is_err(), asked.is_mesh(), snapshot.lingering.get(&model.key))
        else {
            return plan;
        };
        let patience = match lost.listed && ladder::may_be_back(&snapshot.rung) {
            _ if now < Moment::new(px.timing.starting) => px.timing.connect_tailnet,
            true => px.timing.second_look,
            false => return plan,
        };
        if !looked && let Some(node) = snapshot.nodes.iter().find(|n| n.name == lost.node) {
            px.directory.look_at(&node.id, Look::Failed);
        }
        looked = true;
        if !matches!(timeout_at(began + patience, pictures.changed()).await, Ok(Ok(()))) {
            return plan;
        }
    }
}

fn over_limit(
    asked: &Asked,
    most: Option<u64>,
    got: Option<u64>,
    what: &str,
) -> Result<(), Failure> {
    match (most, got) {
        (Some(most), Some(got)) if got > most => Err(Failure::refused(
            "limit",
            format!(
                "{what} {got} is over {most}, the limit of this node's rule for {}",
                asked.caller.label()
            ),
        )),
        _ => Ok(()),
    }
}

/// Reads until enough is known: to the end, or for a large body until the model is.
async fn peek(px: &Proxy, held: &Held, asked: &Asked) -> Result<Peeked, Failure> {
    let mut scanner = Scanner::new();
    let whole = asked.is_mesh() || held.announced().is_some_and(|n| n <= SMALL);
    while let Some(data) = next(px, held).await? {
        scanner.feed(&data);
        if !whole && held.read() > SMALL && scanner.model().is_some() {
            break;
        }
    }
    Ok(scanner.finish())
}

async fn next(px: &Proxy, held: &Held) -> Result<Option<Bytes>, ReadError> {
    match timeout(px.timing.body_pause, held.next()).await {
        Ok(next) => next,
        Err(_) => Err(ReadError::Pause),
    }
}

pub(crate) async fn read_all(px: &Proxy, held: &Held) -> Result<Bytes, Failure> {
    let mut all = Vec::new();
    while let Some(data) = next(px, held).await? {
        all.extend_from_slice(&data);
    }
    Ok(all.into())
}

fn is_zstd(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_ENCODING)
        .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"zstd"))
}

/// Decodes all frames of a zstd body, within Ollama's limit.
fn unzstd(bytes: &Bytes) -> Result<Bytes, Failure> {
    use std::io::Read;
    let bad = |text: String| Failure::caller(StatusCode::BAD_REQUEST, text);
    let mut rest: &[u8] = bytes;
    let mut out = Vec::new();
    while !rest.is_empty() {
        let decoder = ruzstd::decoding::StreamingDecoder::new(&mut rest)
            .map_err(|e| bad(format!("the zstd body cannot be decoded: {e}")))?;
        let left = UNZSTD.saturating_sub(out.len() as u64);
        decoder
            .take(left + 1)
            .read_to_end(&mut out)
            .map_err(|e| bad(format!("the zstd body cannot be decoded: {e}")))?;
        if out.len() as u64 > UNZSTD {
            return Err(Failure::caller(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is larger than {UNZSTD} bytes once decoded"),
            ));
        }
    }
    Ok(out.into())
}
