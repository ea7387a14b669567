//! A mesh for tests: devices over the demo's stand-ins, and waiting for what has to become
//! true.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};
use tailherd::demo::client::{Answer, Call, Stream, get, post};
use tailherd::demo::engine::{Engine, EngineSpec, ModelSpec};
use tailherd::demo::lan::{Plug, Switch};
use tailherd::demo::node::{Node, NodeSpec};
use tailherd::demo::tailscaled::{Owner, Tailnet};
use tailherd::types::Timing;
use tokio::time::Instant;

pub(crate) use crate::http::Sends;

pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) const ME: &str = "me@example.com";

pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(crate) fn me() -> Owner {
    Owner::user(ME)
}

pub(crate) fn engine(name: &str, models: Vec<ModelSpec>) -> EngineSpec {
    EngineSpec::new(name, models)
}

/// `count` on an engine of its own, so fast or slow.
pub(crate) fn counting(name: &str, token: Duration) -> EngineSpec {
    EngineSpec { token, ..engine(name, vec![ModelSpec::count("count")]) }
}

pub(crate) struct World {
    pub(crate) net: Tailnet,
    pub(crate) nodes: Vec<Node>,
}

impl World {
    pub(crate) async fn start(specs: Vec<NodeSpec>) -> World {
        World::timed(specs, Timing::shrunk()).await
    }

    pub(crate) async fn timed(specs: Vec<NodeSpec>, timing: Timing) -> World {
        let net = Tailnet::default();
        let mut nodes = Vec::new();
        for spec in specs {
            nodes.push(Node::join(&net, spec, timing.clone()).await.unwrap());
        }
        for node in &nodes {
            node.run().await.unwrap();
        }
        World { net, nodes }
    }

    /// A laptop without an engine, and a GPU box (`tag:ollama`) with these models.
    pub(crate) async fn pair(models: Vec<ModelSpec>) -> World {
        World::pair_of(engine("gpu", models)).await
    }

    pub(crate) async fn pair_of(gpu: EngineSpec) -> World {
        let names: Vec<String> = gpu.models.iter().map(|m| m.name.clone()).collect();
        let world = World::start(vec![
            NodeSpec::new("laptop", me(), None),
            NodeSpec::new("gpu", Owner::tag("tag:ollama"), Some(gpu)),
        ])
        .await;
        for name in names {
            world.sees("laptop", &name, "gpu").await;
        }
        world.engine("gpu").forget();
        world
    }

    /// These devices on one local network; each knows the others there, as after a while
    /// with the tailnet.
    pub(crate) async fn at_home(specs: Vec<NodeSpec>) -> World {
        let switch = Switch::default();
        let names: Vec<String> = specs.iter().map(|s| s.name.clone()).collect();
        let on = |(i, spec): (usize, NodeSpec)| {
            spec.on(&switch, Ipv4Addr::new(10, 99, 0, 11 + u8::try_from(i).unwrap()))
        };
        let specs = specs.into_iter().enumerate().map(on).collect();
        // On a busy machine a handshake takes longer than shrunk limits allow, and what looks
        // around all the time makes it busier.
        let usual = Timing::default();
        let timing = Timing {
            vigil: usual.vigil,
            connect_lan: usual.connect_lan,
            probe: ms(400),
            probe_limit: ms(1000),
            tailnet_poll: ms(200),
            ..Timing::shrunk()
        };
        let world = World::timed(specs, timing).await;
        for at in &names {
            for peer in names.iter().filter(|n| *n != at) {
                world.met(at, peer).await;
            }
        }
        world
    }

    /// Waits until a node could reach that peer on the local network, if it had to.
    pub(crate) async fn met(&self, at: &str, peer: &str) {
        let so = async || {
            let state = self.lan_path(at, peer).await;
            matches!(state.as_deref(), Some("up" | "standby"))
        };
        // Probes, hellos and a first meeting, all of them, on a machine that may be busy.
        let so = within(SOON * 3, so).await;
        assert!(so, "{at} never meets {peer}: {:#}", self.status(at).await);
    }

    /// How a node sees its ways to a peer on the local network, the best one first; `None` if
    /// it has none.
    pub(crate) async fn lan_path(&self, at: &str, peer: &str) -> Option<String> {
        let status = self.status(at).await;
        let peer = status["peers"].as_array()?.iter().find(|p| p["name"] == peer)?.clone();
        let paths = peer["paths"].as_array()?.iter().filter(|p| p["kind"] == "lan");
        let mut states: Vec<&str> = paths.filter_map(|p| p["state"].as_str()).collect();
        states.sort_by_key(|s| ["up", "standby", "down"].iter().position(|w| w == s));
        states.first().map(|s| (*s).to_owned())
    }

    /// Waits until a node says that it is on this rung, for this reason.
    pub(crate) async fn on_rung(&self, at: &str, rung: &str, why: &str) {
        let so = async || {
            let status = self.status(at).await;
            status["rung"] == rung && (why.is_empty() || status["why"] == why)
        };
        let so = within(SOON * 3, so).await;
        assert!(so, "{at} is never on {rung} ({why}): {:#}", self.status(at).await);
    }

    /// A device's place on the local network.
    pub(crate) fn plug(&self, name: &str) -> &Plug {
        self.node(name).lan().unwrap()
    }

    pub(crate) fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|n| n.name == name).unwrap()
    }

    pub(crate) fn engine(&self, name: &str) -> &Engine {
        self.node(name).engine().unwrap()
    }

    /// A call to the apps listener of a node.
    pub(crate) fn get(&self, at: &str, target: &str) -> Call {
        get(self.node(at).apps(), target)
    }

    pub(crate) fn post(&self, at: &str, target: &str, body: impl Into<bytes::Bytes>) -> Call {
        post(self.node(at).apps(), target, body)
    }

    /// A call from one node straight to another's mesh port, as any program on the first
    /// could make it.
    pub(crate) async fn across(&self, from: &str, to: &str, call: Call) -> Answer {
        self.across_open(from, to, call).await.rest().await
    }

    pub(crate) async fn across_open(&self, from: &str, to: &str, call: Call) -> Stream {
        self.node(from).across(self.node(to), 11436, call).await.unwrap()
    }

    /// The nodes that have this model, as a node lists it; `None` = not listed.
    pub(crate) async fn holders(&self, at: &str, model: &str) -> Option<Vec<String>> {
        let tags = self.get(at, "/api/tags").answer().await.ok()?.json();
        let row = tags["models"].as_array()?.iter().find(|r| r["name"] == model)?.clone();
        let nodes = row["mesh"]["nodes"].as_array()?;
        Some(nodes.iter().map(|n| n.as_str().unwrap().to_owned()).collect())
    }

    /// Waits until a node lists this model as held by that one.
    #[track_caller]
    pub(crate) fn sees<'a>(
        &'a self,
        at: &'a str,
        model: &'a str,
        on: &'a str,
    ) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let so =
                async || self.holders(at, model).await.is_some_and(|h| h.iter().any(|n| n == on));
            assert!(until(so).await, "{caller}: {at} never lists {model} on {on}");
        }
    }

    pub(crate) async fn status(&self, at: &str) -> Value {
        get(self.node(at).admin(), "/status").send().await.json()
    }
}

/// Waits until it is so; false if it was not within [`SOON`].
pub(crate) async fn until(so: impl AsyncFnMut() -> bool) -> bool {
    within(SOON, so).await
}

/// Waits until it is so; false if it was not within `limit`.
async fn within(limit: Duration, mut so: impl AsyncFnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if so().await {
            return true;
        }
        tokio::time::sleep(ms(20)).await;
    }
    false
}

/// A native request for so many numbers.
pub(crate) fn count(model: &str, n: u64) -> String {
    json!({"model": model, "prompt": "x", "options": {"num_predict": n}}).to_string()
}

/// A streamed chat that four routes read.
pub(crate) fn chat(model: &str, n: u64) -> String {
    json!({
        "model": model, "stream": true, "max_tokens": n, "input": "x",
        "messages": [{"role": "user", "content": "x"}], "options": {"num_predict": n},
        "max_output_tokens": n,
    })
    .to_string()
}

/// Which node answered.
pub(crate) fn served_by(answer: &Answer) -> &str {
    answer.header("x-tailherd-served-by").split('/').next().unwrap_or_default()
}

/// The prompts that the engine was given so far, loads left out, in the order in which it was.
pub(crate) fn ran(world: &World, at: &str) -> Vec<String> {
    let seen = world.engine(at).seen_at("/api/generate");
    let prompts = seen.iter().filter_map(|s| {
        let body: Value = serde_json::from_slice(&s.body).ok()?;
        Some(body["prompt"].as_str()?.to_owned())
    });
    prompts.filter(|p| !p.is_empty()).collect()
}
