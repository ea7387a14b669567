//! The machines, the models and the ways between them: from the built-in fleet or a scenario.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::chance;

/// A machine with an Ollama.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Machine {
    pub(crate) name: String,
    /// Tokens a second of an 8B 4-bit model, one request at a time.
    pub(crate) prefill: f64,
    pub(crate) decode: f64,
    /// `OLLAMA_NUM_PARALLEL`.
    pub(crate) slots: u32,
    /// Memory for models.
    pub(crate) gb: f64,
    /// Weights loaded a second.
    pub(crate) load_gbs: f64,
    /// Decode throughput at batch b is `decode * b^alpha`.
    pub(crate) alpha: f64,
    /// Models it does not have on disk.
    #[serde(default)]
    pub(crate) lacks: Vec<String>,
    /// Whether no tailherd runs there: nothing but its Ollama.
    #[serde(default)]
    pub(crate) bare: bool,
    /// Nothing of its models is on a GPU.
    #[serde(default)]
    pub(crate) cpu: bool,
}

/// Where the lengths of a model's requests come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Lengths {
    Conv,
    Code,
    /// Prompts as in `conv`, and no answer.
    Embed,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) gb: f64,
    /// Part of the sessions.
    pub(crate) share: f64,
    pub(crate) lengths: Lengths,
}

/// Round trips in milliseconds.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct Links {
    pub(crate) inside: f64,
    pub(crate) across: f64,
    pub(crate) relayed: f64,
    /// Part of the pairs across that is relayed.
    pub(crate) relayed_share: f64,
}

impl Default for Links {
    fn default() -> Links {
        Links { inside: 3.0, across: 35.0, relayed: 120.0, relayed_share: 0.2 }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Scenario {
    machines: Vec<Machine>,
    models: Option<Vec<Model>>,
    #[serde(default)]
    links: Links,
}

#[derive(Debug, Clone)]
pub(crate) struct Fleet {
    pub(crate) machines: Vec<Machine>,
    pub(crate) models: Vec<Model>,
    links: Links,
}

impl Fleet {
    /// The first `n` of: 4090, Mac, laptop, 3060, Mac, laptop, and again.
    pub(crate) fn usual(n: usize) -> Fleet {
        let kinds = [
            machine("4090", [4000.0, 120.0, 22.0, 1.5, 0.75], 4),
            machine("mac", [350.0, 40.0, 24.0, 2.0, 0.6], 1),
            laptop(),
            machine("3060", [1200.0, 45.0, 11.0, 1.0, 0.7], 2),
            machine("mac", [350.0, 40.0, 24.0, 2.0, 0.6], 1),
            laptop(),
        ];
        let machines = (0..n).map(|i| {
            let kind = &kinds[i % kinds.len()];
            Machine { name: format!("{}-{i}", kind.name), ..kind.clone() }
        });
        Fleet { machines: machines.collect(), models: usual_models(), links: Links::default() }
    }

    /// What a JSON5 text says; an error tells where.
    pub(crate) fn read(text: &str) -> Result<Fleet> {
        let scenario: Scenario = {
            let mut reader = json5::Deserializer::from_str(text);
            serde_path_to_error::deserialize(&mut reader)
                .map_err(|e| anyhow::anyhow!("at {}: {}", e.path(), e.inner()))?
        };
        let Scenario { machines, models, links } = scenario;
        let fleet = Fleet { machines, models: models.unwrap_or_else(usual_models), links };
        fleet.check()?;
        Ok(fleet)
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.machines.is_empty(), "at machines: at least one is needed");
        for (i, m) in self.machines.iter().enumerate() {
            let numbers = [m.prefill, m.decode, m.gb, m.load_gbs];
            let positive = numbers.iter().all(|n| n.is_finite() && *n > 0.0);
            ensure!(positive, "at machines[{i}]: speeds and memory have to be above 0");
            ensure!((1..=64).contains(&m.slots), "at machines[{i}].slots: expected 1 to 64");
            ensure!((0.0..=1.0).contains(&m.alpha), "at machines[{i}].alpha: expected 0 to 1");
            for lack in &m.lacks {
                let known = self.models.iter().any(|model| model.name == *lack);
                ensure!(known, "at machines[{i}].lacks: there is no model {lack:?}");
            }
        }
        for (i, m) in self.models.iter().enumerate() {
            ensure!(m.gb > 0.0 && m.share > 0.0, "at models[{i}]: gb and share have to be above 0");
            let held = (0..self.machines.len()).any(|node| self.has(node, i));
            ensure!(held, "at models[{i}]: no machine can hold it");
        }
        Ok(())
    }

    pub(crate) fn slots1(&mut self) {
        self.machines.iter_mut().for_each(|m| m.slots = 1);
    }

    /// Makes this part of the nodes bare, spread evenly, the first one last.
    pub(crate) fn bare(&mut self, part: f64) {
        let upto = |i: usize| (i as f64 * part + 1e-9).floor();
        for (i, machine) in self.machines.iter_mut().enumerate() {
            machine.bare |= upto(i + 1) > upto(i);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.machines.len()
    }

    pub(crate) fn has(&self, node: usize, model: usize) -> bool {
        let (machine, model) = (&self.machines[node], &self.models[model]);
        model.gb <= machine.gb && !machine.lacks.contains(&model.name)
    }

    /// Prompt and answer tokens a second of a lone request.
    pub(crate) fn rates(&self, node: usize, model: usize) -> (f64, f64) {
        let scale = 5.0 / self.models[model].gb;
        (self.machines[node].prefill * scale, self.machines[node].decode * scale)
    }

    pub(crate) fn load_seconds(&self, node: usize, model: usize) -> f64 {
        0.8 + self.models[model].gb / self.machines[node].load_gbs
    }

    /// Round trips in seconds between all pairs. Every second node is on the other site.
    pub(crate) fn round_trips(&self, seed: u64) -> Vec<Vec<f64>> {
        let way = |a: usize, b: usize| {
            let pair = (a.min(b) * 1000 + a.max(b)) as u64;
            match () {
                () if a == b => 0.0,
                () if a % 2 == b % 2 => self.links.inside,
                () if chance::part(seed, pair, 1) < self.links.relayed_share => self.links.relayed,
                () => self.links.across,
            }
        };
        let all = 0..self.len();
        all.clone().map(|a| all.clone().map(|b| way(a, b) / 1e3).collect()).collect()
    }
}

fn machine(name: &str, numbers: [f64; 5], slots: u32) -> Machine {
    let [prefill, decode, gb, load_gbs, alpha] = numbers;
    let name = name.to_owned();
    let (lacks, bare, cpu) = (Vec::new(), false, false);
    Machine { name, prefill, decode, slots, gb, load_gbs, alpha, lacks, bare, cpu }
}

fn laptop() -> Machine {
    let laptop = machine("laptop", [40.0, 6.0, 10.0, 0.5, 0.3], 1);
    Machine { lacks: vec!["coder-14b".to_owned()], cpu: true, ..laptop }
}

fn usual_models() -> Vec<Model> {
    [
        ("chat-8b", 5.0, 0.45, Lengths::Conv),
        ("coder-14b", 9.0, 0.20, Lengths::Code),
        ("small-3b", 2.0, 0.15, Lengths::Conv),
        ("embed", 0.3, 0.10, Lengths::Embed),
        ("big-32b", 20.0, 0.10, Lengths::Conv),
    ]
    .map(|(name, gb, share, lengths)| Model { name: name.to_owned(), gb, share, lengths })
    .to_vec()
}

/// Reads a scenario's file.
pub(crate) fn from_file(path: &str) -> Result<Fleet> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Fleet::read(&text).with_context(|| format!("in {path}"))
}
