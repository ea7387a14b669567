//! A mesh for tests: devices over the demo's stand-ins, and waiting for what has to become
//! true.

use std::time::Duration;

use serde_json::{Value, json};
use tailherd::demo::client::{Answer, Call, Stream, get, post};
use tailherd::demo::engine::{Engine, EngineSpec, ModelSpec};
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
pub(crate) async fn until(mut so: impl AsyncFnMut() -> bool) -> bool {
    let end = Instant::now() + SOON;
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
