//! The metric families: their names, labels, units and buckets, and nothing else.
//!
//! Every name of the program's metrics stands in this file (and only here), so that it can be
//! compared with the documentation in one look, and so that another metrics library would cost
//! one file.

use prometheus::core::Collector;
use prometheus::{CounterVec, GaugeVec, Result};
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Whole requests: from a list answered from memory to a long agent turn.
const DURATION: &[f64] = &[
    0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
    1800.0,
];
/// First token: from a cached prefix on a fast card to a cold load of a large model.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
    600.0,
];
/// One token: from 1000 to 1 a second.
const TOKEN: &[f64] =
    &[0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0];
/// Waiting in the gate.
const WAIT: &[f64] =
    &[0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// Bringing a model into memory.
const LOAD: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// All families, registered.
#[derive(Debug)]
pub(super) struct Families {
    pub(super) registry: Registry,
    pub(super) requests: IntCounterVec,
    pub(super) duration: HistogramVec,
    pub(super) first_token: HistogramVec,
    pub(super) per_token: HistogramVec,
    pub(super) tokens: IntCounterVec,
    pub(super) attempts: IntCounterVec,
    pub(super) moves: IntCounterVec,
    pub(super) queue_wait: HistogramVec,
    pub(super) model_load: HistogramVec,
    pub(super) queued: IntGaugeVec,
    pub(super) inflight: IntGaugeVec,
    pub(super) served: IntCounterVec,
    pub(super) served_seconds: CounterVec,
    pub(super) served_tokens: IntCounterVec,
    pub(super) avoidable_reloads: IntCounterVec,
    pub(super) context_short: IntCounterVec,
    pub(super) peer_up: IntGaugeVec,
    pub(super) peer_rtt: GaugeVec,
    pub(super) breaker: IntGaugeVec,
    pub(super) rung: IntGaugeVec,
    pub(super) coordinator_up: IntGauge,
    pub(super) pins: IntGauge,
    pub(super) refused: IntCounterVec,
    pub(super) cost: CounterVec,
}

impl Families {
    pub(super) fn new() -> Result<Families> {
        let reg = Registry::new();
        let build = IntGaugeVec::new(
            Opts::new("tailherd_build_info", "Always 1; the version that runs is its label."),
            &["version"],
        )?;
        reg.register(Box::new(build.clone()))?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        #[cfg(target_os = "linux")]
        reg.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;

        Ok(Families {
            requests: counter(
                &reg,
                "tailherd_requests_total",
                "Requests of programs on this node, by dialect, operation, model, the node that \
                 answered and how they ended. Counted where a request enters the mesh, so that \
                 sums over nodes are true.",
                &["api", "op", "model", "peer", "outcome"],
            )?,
            duration: histogram(
                &reg,
                "tailherd_request_duration_seconds",
                "Seconds from a request's head to the end of its answer.",
                &["api", "peer"],
                DURATION,
            )?,
            first_token: histogram(
                &reg,
                "tailherd_time_to_first_token_seconds",
                "Seconds from a request's head to the first byte of its answer's body; queue, \
                 load and prefill included.",
                &["model", "peer"],
                FIRST_TOKEN,
            )?,
            per_token: histogram(
                &reg,
                "tailherd_time_per_output_token_seconds",
                "Seconds per answer token, averaged over one answer: as the engine says, else as \
                 the pieces of a stream came.",
                &["model", "peer"],
                TOKEN,
            )?,
            tokens: counter(
                &reg,
                "tailherd_tokens_total",
                "Tokens of requests of programs on this node, as the engines counted them; kind \
                 is prompt or output.",
                &["model", "peer", "kind"],
            )?,
            attempts: counter(
                &reg,
                "tailherd_attempts_total",
                "Tries to have a request answered, by node and why the try was made or ended.",
                &["peer", "reason"],
            )?,
            moves: counter(
                &reg,
                "tailherd_moves_total",
                "Requests of programs on this node that went on to another attempt although \
                 nothing had failed: a node refused them (wait, not_loaded, full, paused, \
                 draining), or they were taken back from a queue for a better place (withdrawn, \
                 left).",
                &["reason"],
            )?,
            queue_wait: histogram(
                &reg,
                "tailherd_queue_wait_seconds",
                "Seconds a request waited in this node's gate before it was given to the engine; \
                 a load it needed included.",
                &["model"],
                WAIT,
            )?,
            model_load: histogram(
                &reg,
                "tailherd_model_load_seconds",
                "Seconds this node's engine took to bring a model into memory.",
                &["model"],
                LOAD,
            )?,
            queued: gauge(
                &reg,
                "tailherd_queued_requests",
                "Requests waiting in this node's gate now.",
                &["model"],
            )?,
            inflight: gauge(
                &reg,
                "tailherd_inflight_requests",
                "Requests this node's engines work on now.",
                &["model"],
            )?,
            served: counter(
                &reg,
                "tailherd_served_total",
                "Requests this node's engines were given, and how they ended.",
                &["model", "outcome"],
            )?,
            served_seconds: CounterVec::new(
                Opts::new(
                    "tailherd_served_seconds_total",
                    "Seconds this node's engines worked, by who asked.",
                ),
                &["caller"],
            )
            .and_then(|f| registered(&reg, f))?,
            served_tokens: counter(
                &reg,
                "tailherd_served_tokens_total",
                "Tokens this node's engines read (prompt) and wrote (output), by who asked.",
                &["caller", "kind"],
            )?,
            avoidable_reloads: counter(
                &reg,
                "tailherd_avoidable_reloads_total",
                "Loads of a model that was in memory with other options (num_ctx and the like): \
                 clients that agreed on them would save these.",
                &["model"],
            )?,
            context_short: counter(
                &reg,
                "tailherd_context_short_total",
                "Requests sent to a context window too short for their prompt, because none was \
                 long enough: the engine cuts such prompts without saying so.",
                &["model"],
            )?,
            peer_up: gauge(
                &reg,
                "tailherd_peer_up",
                "1 if the peer answers on this kind of path, else 0.",
                &["peer", "path"],
            )?,
            peer_rtt: GaugeVec::new(
                Opts::new(
                    "tailherd_peer_rtt_seconds",
                    "Smoothed round trip of the probes to the peer, in seconds.",
                ),
                &["peer", "path"],
            )
            .and_then(|f| registered(&reg, f))?,
            breaker: gauge(
                &reg,
                "tailherd_breaker_open",
                "1 while the peer rests for this model after failures, else 0.",
                &["peer", "model"],
            )?,
            rung: gauge(
                &reg,
                "tailherd_mesh_rung",
                "How much of the mesh is left: 1 for the present rung, 0 for the others.",
                &["rung"],
            )?,
            coordinator_up: IntGauge::new(
                "tailherd_coordinator_up",
                "1 if tailscaled is connected to its coordinator, else 0.",
            )
            .and_then(|f| registered(&reg, f))?,
            pins: IntGauge::new(
                "tailherd_pins",
                "Nodes whose key is known and may be used: with whom this node goes on by the \
                 local network if the tailnet is lost.",
            )
            .and_then(|f| registered(&reg, f))?,
            refused: counter(
                &reg,
                "tailherd_refused_total",
                "Requests and connections refused by a rule or a limit, by listener and reason.",
                &["listener", "reason"],
            )?,
            cost: CounterVec::new(
                Opts::new(
                    "tailherd_cost_usd_total",
                    "US dollars spent at hosted providers, as the configured prices and the \
                     counted tokens say.",
                ),
                &["provider", "model"],
            )
            .and_then(|f| registered(&reg, f))?,
            registry: reg,
        })
    }
}

fn counter(reg: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
    registered(reg, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn gauge(reg: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
    registered(reg, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn histogram(
    reg: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
    buckets: &[f64],
) -> Result<HistogramVec> {
    let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    registered(reg, HistogramVec::new(opts, labels)?)
}

fn registered<C: Collector + Clone + 'static>(reg: &Registry, family: C) -> Result<C> {
    reg.register(Box::new(family.clone()))?;
    Ok(family)
}
