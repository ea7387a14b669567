//! What is counted: the way from labels to meters.
//!
//! A request resolves its labels once ([`Metrics::request`]) and then only touches atomics.
//! Label values come from the directory (known models, known nodes); for what is not known say
//! [`OTHER`]. At most [`MAX_PAIRS`] (model, peer) pairs, models and callers get labels of their
//! own; what comes after is counted under [`OTHER`], so that no peer can grow our memory or
//! anybody's Prometheus.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use prometheus::core::{Collector, MetricVec, MetricVecBuilder};

use super::families::Families;
use super::meter::{CallerMeter, ModelMeter, Pair, RequestMeter};
use super::plain;
use crate::types::{Api, ListenerKind, Op, PathKind, Rung};

/// The label value of everything that has no label of its own.
pub const OTHER: &str = "other";

/// Most (model, peer) pairs, models, or callers with labels of their own.
pub const MAX_PAIRS: usize = 256;

/// Meters by their labels.
type Labelled<K, T> = RwLock<HashMap<K, Arc<T>>>;

/// The meters of each (model, peer), by model and then by peer.
#[derive(Default)]
struct Pairs {
    meters: HashMap<Box<str>, HashMap<Box<str>, Arc<Pair>>>,
    count: usize,
}

/// Everything that is counted.
pub struct Metrics {
    families: Arc<Families>,
    pairs: RwLock<Pairs>,
    models: Labelled<Box<str>, ModelMeter>,
    callers: Labelled<Box<str>, CallerMeter>,
}

impl Metrics {
    /// All families, at zero. Fails only if two families were given one name.
    pub fn new() -> prometheus::Result<Arc<Metrics>> {
        Ok(Arc::new(Metrics {
            families: Arc::new(Families::new()?),
            pairs: RwLock::default(),
            models: RwLock::default(),
            callers: RwLock::default(),
        }))
    }

    /// The Prometheus text format, 0.0.4 (`text/plain; version=0.0.4`).
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        // Writing to memory fails only for a family without samples, and those are skipped.
        for family in self.families.registry.gather() {
            let _ = prometheus::TextEncoder::new().encode_utf8(&[family], &mut out);
        }
        out
    }

    /// The meter of one request of a program on this node (hop 0 only: a request that came from
    /// a peer is counted by that peer).
    pub fn request(&self, api: Api, op: Op, model: &str, peer: &str) -> RequestMeter {
        RequestMeter::new(self.pair(model, peer), api, op)
    }

    /// The meter of one model in this node's gate.
    pub fn model(&self, model: &str) -> Arc<ModelMeter> {
        let model = plain(model);
        bounded(&self.models, &model, |m| ModelMeter::new(&self.families, m))
    }

    /// The meter of one caller that this node's engines worked for: `local` or a principal.
    pub fn caller(&self, caller: &str) -> Arc<CallerMeter> {
        let caller = plain(caller);
        bounded(&self.callers, &caller, |c| CallerMeter::new(&self.families, c))
    }

    /// One try to have a request answered. `reason` says why it ended: `ok`, `connect`, …
    pub fn attempt(&self, peer: &str, reason: &'static str) {
        self.families.attempts.with_label_values(&[&*plain(peer), reason]).inc();
    }

    /// A request goes on to another attempt although nothing has failed.
    pub fn moved(&self, reason: &'static str) {
        self.families.moves.with_label_values(&[reason]).inc();
    }

    /// Money was spent at a provider. Only what the configuration names has a price.
    pub fn cost(&self, provider: &str, model: &str, usd: f64) {
        self.families.cost.with_label_values(&[provider, &plain(model)]).inc_by(usd);
    }

    /// A request or connection was refused.
    pub fn refused(&self, listener: ListenerKind, reason: &'static str) {
        self.families.refused.with_label_values(&[listener.label(), reason]).inc();
    }

    /// A request went to a context window too short for it.
    pub fn context_short(&self, model: &str) {
        self.model(model).context_short();
    }

    /// Whether a peer answers on a kind of path, and how fast.
    pub fn peer(&self, peer: &str, path: PathKind, up: bool, rtt: Option<Duration>) {
        let labels = [&*plain(peer), path.label()];
        self.families.peer_up.with_label_values(&labels).set(i64::from(up));
        if let Some(rtt) = rtt {
            self.families.peer_rtt.with_label_values(&labels).set(rtt.as_secs_f64());
        }
    }

    /// Whether a peer rests for a model.
    pub fn breaker(&self, peer: &str, model: &str, open: bool) {
        let pair = self.pair(model, peer);
        self.families.breaker.with_label_values(&[&pair.peer, &pair.model]).set(i64::from(open));
    }

    /// The present rung.
    pub fn rung(&self, rung: Rung) {
        for each in Rung::ALL {
            let gauge = self.families.rung.with_label_values(&[each.label()]);
            gauge.set(i64::from(each == rung));
        }
    }

    /// Whether tailscaled reaches its coordinator.
    pub fn coordinator_up(&self, up: bool) {
        self.families.coordinator_up.set(i64::from(up));
    }

    /// How many nodes have a key that may be used.
    pub fn pins(&self, live: usize) {
        self.families.pins.set(i64::try_from(live).unwrap_or(i64::MAX));
    }

    /// There is no path of this kind to a peer any more.
    pub fn no_path(&self, peer: &str, path: PathKind) {
        let labels = [&*plain(peer), path.label()];
        // Fails where there was none, which is as well.
        let _ = self.families.peer_up.remove_label_values(&labels);
        let _ = self.families.peer_rtt.remove_label_values(&labels);
    }

    /// Drops all series of a peer that is no longer in the directory.
    pub fn forget_peer(&self, peer: &str) {
        let peer = &*plain(peer);
        self.pairs.write().forget(peer);
        let f = &self.families;
        forget(&f.requests, "peer", peer);
        forget(&f.duration, "peer", peer);
        forget(&f.first_token, "peer", peer);
        forget(&f.per_token, "peer", peer);
        forget(&f.tokens, "peer", peer);
        forget(&f.attempts, "peer", peer);
        forget(&f.peer_up, "peer", peer);
        forget(&f.peer_rtt, "peer", peer);
        forget(&f.breaker, "peer", peer);
    }

    fn pair(&self, model: &str, peer: &str) -> Arc<Pair> {
        let (model, peer) = (&*plain(model), &*plain(peer));
        if let Some(pair) = self.pairs.read().get(model, peer) {
            return pair.clone();
        }
        self.pairs.write().get_or_make(model, peer, &self.families)
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Pairs {
    fn get(&self, model: &str, peer: &str) -> Option<&Arc<Pair>> {
        self.meters.get(model)?.get(peer)
    }

    /// The pair, or that of [`OTHER`] once there are [`MAX_PAIRS`].
    fn get_or_make(&mut self, model: &str, peer: &str, families: &Arc<Families>) -> Arc<Pair> {
        let full = self.count >= MAX_PAIRS && self.get(model, peer).is_none();
        let (model, peer) = if full { (OTHER, OTHER) } else { (model, peer) };
        let pairs = self.meters.entry(model.into()).or_default();
        let make = || Arc::new(Pair::new(families.clone(), model, peer));
        let pair = pairs.entry(peer.into()).or_insert_with(make).clone();
        self.count = self.meters.values().map(HashMap::len).sum();
        pair
    }

    fn forget(&mut self, peer: &str) {
        for pairs in self.meters.values_mut() {
            pairs.remove(peer);
        }
        self.meters.retain(|_, pairs| !pairs.is_empty());
        self.count = self.meters.values().map(HashMap::len).sum();
    }
}

/// The meter of `name`, or of [`OTHER`] once there are [`MAX_PAIRS`] names.
fn bounded<T>(map: &Labelled<Box<str>, T>, name: &str, make: impl Fn(&str) -> T) -> Arc<T> {
    if let Some(meter) = map.read().get(name) {
        return meter.clone();
    }
    let mut map = map.write();
    let name = if map.len() < MAX_PAIRS || map.contains_key(name) { name } else { OTHER };
    map.entry(name.into()).or_insert_with(|| Arc::new(make(name))).clone()
}

/// Removes every series of `family` whose `label` is `value`.
fn forget<T: MetricVecBuilder>(family: &MetricVec<T>, label: &str, value: &str)
where
    MetricVec<T>: Collector,
{
    for metric in family.collect().iter().flat_map(|f| f.get_metric()) {
        let labels: HashMap<&str, &str> =
            metric.get_label().iter().map(|pair| (pair.name(), pair.value())).collect();
        if labels.get(label) == Some(&value) {
            // It can only fail if somebody else removed the series meanwhile.
            let _ = family.remove(&labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Outcome;

    const MS: Duration = Duration::from_millis(1);

    fn metrics() -> Arc<Metrics> {
        Metrics::new().unwrap()
    }

    fn check(metrics: &Metrics, lines: &[&str]) {
        let text = metrics.render();
        for line in lines {
            assert!(text.lines().any(|l| l == *line), "no line {line} in\n{text}");
        }
    }

    #[test]
    fn a_request_is_counted_once_with_all_its_labels() {
        let m = metrics();
        let mut meter = m.request(Api::Ollama, Op::Chat, "tiny:latest", "desk");
        meter.first_byte(40 * MS);
        meter.first_byte(900 * MS);
        meter.tokens(10, 5);
        meter.wrote(4, 40 * MS);
        meter.finish(Outcome::Done, 80 * MS);
        check(
            &m,
            &[
                r#"tailherd_requests_total{api="ollama",model="tiny:latest",op="chat",outcome="done",peer="desk"} 1"#,
                r#"tailherd_request_duration_seconds_count{api="ollama",peer="desk"} 1"#,
                r#"tailherd_time_to_first_token_seconds_bucket{model="tiny:latest",peer="desk",le="0.05"} 1"#,
                r#"tailherd_time_to_first_token_seconds_count{model="tiny:latest",peer="desk"} 1"#,
                r#"tailherd_time_per_output_token_seconds_bucket{model="tiny:latest",peer="desk",le="0.01"} 1"#,
                r#"tailherd_time_per_output_token_seconds_bucket{model="tiny:latest",peer="desk",le="0.0075"} 0"#,
                r#"tailherd_tokens_total{kind="prompt",model="tiny:latest",peer="desk"} 10"#,
                r#"tailherd_tokens_total{kind="output",model="tiny:latest",peer="desk"} 5"#,
            ],
        );
    }

    #[test]
    fn a_request_that_never_got_a_byte_leaves_no_first_token() {
        let m = metrics();
        m.request(Api::Chat, Op::Chat, "a", "b").finish(Outcome::UpstreamError, MS);
        let text = m.render();
        assert!(text.contains(r#"outcome="upstream_error",peer="b"} 1"#), "{text}");
        assert!(!text.contains("first_token"), "{text}");
    }

    #[test]
    fn labels_are_bounded_and_the_rest_is_other() {
        let m = metrics();
        for i in 0..400 {
            m.request(Api::Ollama, Op::Chat, &format!("m{i}"), "desk").finish(Outcome::Done, MS);
            m.model(&format!("m{i}")).waited(MS);
            m.caller(&format!("user{i}@x")).worked(MS);
        }
        check(
            &m,
            &[
                r#"tailherd_requests_total{api="ollama",model="other",op="chat",outcome="done",peer="other"} 144"#,
                r#"tailherd_queue_wait_seconds_count{model="other"} 144"#,
            ],
        );
        let named = m.render().lines().filter(|l| l.starts_with("tailherd_requests_total")).count();
        assert_eq!(named, MAX_PAIRS + 1);
    }

    #[test]
    fn a_lost_peer_leaves_no_series() {
        let m = metrics();
        for peer in ["desk", "nas"] {
            let mut meter = m.request(Api::Messages, Op::Messages, "tiny", peer);
            meter.first_byte(MS);
            meter.tokens(3, 3);
            meter.wrote(3, MS);
            meter.finish(Outcome::Done, 2 * MS);
            m.attempt(peer, "ok");
            m.peer(peer, PathKind::Tailnet, true, Some(MS));
            m.breaker(peer, "tiny", true);
        }
        let before = m.render().matches(r#"peer="nas""#).count();
        m.forget_peer("desk");
        let text = m.render();
        assert!(!text.contains("desk"), "{text}");
        assert_eq!(text.matches(r#"peer="nas""#).count(), before);
        // And it can come back.
        m.peer("desk", PathKind::Tailnet, false, None);
        check(&m, &[r#"tailherd_peer_up{path="tailnet",peer="desk"} 0"#]);
    }

    #[test]
    fn one_rung_is_one_and_the_others_are_zero() {
        let m = metrics();
        m.rung(Rung::Full);
        m.rung(Rung::Alone);
        m.coordinator_up(true);
        check(
            &m,
            &[
                r#"tailherd_mesh_rung{rung="alone"} 1"#,
                r#"tailherd_mesh_rung{rung="full"} 0"#,
                "tailherd_coordinator_up 1",
            ],
        );
    }

    #[test]
    fn gauges_of_the_gate_fall_with_their_guards() {
        let m = metrics();
        let meter = m.model("tiny");
        let (one, two) = (meter.inflight(), meter.inflight());
        let waits = meter.queued();
        check(
            &m,
            &[
                r#"tailherd_inflight_requests{model="tiny"} 2"#,
                r#"tailherd_queued_requests{model="tiny"} 1"#,
            ],
        );
        drop((one, two, waits));
        check(
            &m,
            &[
                r#"tailherd_inflight_requests{model="tiny"} 0"#,
                r#"tailherd_queued_requests{model="tiny"} 0"#,
            ],
        );
    }

    #[test]
    fn hostile_names_stay_inside_their_label() {
        let m = metrics();
        m.attempt("x\",__address__=\"evil\n\u{1b}[2J", "connect");
        let text = m.render();
        let line = text.lines().find(|l| l.starts_with("tailherd_attempts_total")).unwrap();
        assert_eq!(
            line,
            r#"tailherd_attempts_total{peer="x\",__address__=\"evil\\u{a}\\u{1b}[2J",reason="connect"} 1"#
        );
    }

    #[test]
    fn every_family_says_what_it_is_and_in_what_unit() {
        let text = metrics().render();
        assert!(text.contains("tailherd_build_info{version="), "{text}");
        #[cfg(target_os = "linux")]
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
        for line in text.lines().filter(|l| l.starts_with("# HELP")) {
            assert!(line.ends_with('.'), "{line}");
        }
    }
}
