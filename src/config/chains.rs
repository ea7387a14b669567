//! Names and chains: what a model's name, an agent or an alias stands for.
//!
//! In flows the configuration, once; out flow, for each name that is asked for, the steps that
//! may serve it, in order. The order of names is: a model of the mesh, an agent, an alias,
//! `provider/model`. A chain counts only if the request names it (agent, header, alias) or its
//! model is the chain's first one: nothing reaches a provider by guess.
//!
//! What may not be used is not in here: with `offline` on there is no provider on the internet
//! that a name could mean.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::run::{Agent, Config, HostedModel, Place, Provider, Reach};
use crate::types::{Class, ModelKey, RequestedModel, glob};

/// The name that means this mesh where a provider's could stand (`ollama/x`).
pub const MESH: &str = "ollama";

/// All names, resolved.
#[derive(Debug, Clone, Default)]
pub struct Chains {
    named: BTreeMap<String, Chain>,
    /// The chain of `agents.defaults` first, then those of the agents by name.
    by_primary: Vec<Chain>,
    /// The most particular first.
    aliases: Vec<(String, String)>,
    providers: BTreeMap<String, Arc<Provider>>,
    /// Providers that are configured and not there now.
    away: Vec<String>,
    /// Agents that rules of `priority` name.
    ranked: Vec<String>,
}

/// What serves a name, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chain {
    /// The agent, if one was named.
    pub agent: Option<Arc<str>>,
    /// What is tried, the first one first.
    pub steps: Vec<Step>,
    /// The shortest context window that will do; 0 = any.
    pub min_context: u64,
    /// Where the answer may come from.
    pub place: Option<Place>,
    /// The class of its requests.
    pub priority: Option<Class>,
}

/// One step of a chain.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// A model of the mesh: all nodes that have it.
    Mesh {
        /// As it is spelt for an engine.
        name: Arc<str>,
        /// What it means.
        key: ModelKey,
    },
    /// A provider's model.
    Hosted {
        /// Who.
        provider: Arc<Provider>,
        /// Which model.
        model: Arc<HostedModel>,
    },
}

impl Step {
    fn mesh(name: &str) -> Option<Step> {
        // A suffix would pin it, and a chain is not pinned.
        let key = ModelKey::parse(name).ok()?;
        Some(Step::Mesh { name: name.trim().into(), key })
    }

    /// Whether this is that model of the mesh.
    pub fn is_mesh(&self, other: &ModelKey) -> bool {
        matches!(self, Step::Mesh { key, .. } if key == other)
    }

    /// As it stands in logs: `ollama/x`, `anthropic/claude-sonnet-4-5`.
    pub fn label(&self) -> String {
        match self {
            Step::Mesh { key, .. } => format!("{MESH}/{key}"),
            Step::Hosted { provider, model } => format!("{}/{}", provider.name, model.id),
        }
    }
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum Meaning {
    /// Itself: a model of the mesh, of no chain. Also what nobody knows.
    Plain,
    /// These steps.
    Chain(Chain),
    /// The header names an agent that does not exist.
    NoAgent,
}

impl Chains {
    /// Resolves all names of a configuration.
    pub fn of(config: &Config) -> Chains {
        let usable = |p: &Provider| !(config.offline && p.reach == Reach::Far);
        let all = &config.models.providers;
        let providers: BTreeMap<String, Arc<Provider>> =
            all.iter().filter(|(_, p)| usable(p)).map(|(n, p)| (n.clone(), p.clone())).collect();
        let gone = all.iter().filter(|(_, p)| !usable(p)).map(|(name, _)| name.clone());
        let away = gone.chain(config.models.off.iter().cloned()).collect();
        let mut aliases = config.aliases.clone();
        aliases.extend(config.agents.aliases.iter().cloned());
        let ranked = config.priority.iter().filter_map(|rule| rule.agent.clone()).collect();
        let mut chains = Chains { providers, away, aliases, ranked, ..Chains::default() };
        let defaults = config.agents.defaults.as_ref().map(|agent| chains.chain(None, agent));
        chains.by_primary.extend(defaults);
        for (name, agent) in &config.agents.named {
            let chain = chains.chain(Some(name), agent);
            chains.by_primary.push(chain.clone());
            chains.named.insert(name.clone(), chain);
        }
        chains
    }

    fn chain(&self, name: Option<&String>, agent: &Agent) -> Chain {
        Chain {
            agent: name.map(|name| name.as_str().into()),
            steps: agent.models.iter().filter_map(|text| self.step(text)).collect(),
            min_context: agent.min_context,
            place: agent.place,
            priority: agent.priority,
        }
    }

    /// What stands in a chain or behind an alias: `ollama/x`, `provider/x`, or a bare name,
    /// which means the mesh. `None` for what a provider would serve that is not there.
    fn step(&self, text: &str) -> Option<Step> {
        let text = text.trim();
        match text.split_once('/') {
            Some((MESH, model)) => Step::mesh(model),
            Some((provider, model)) if self.providers.contains_key(provider) => {
                self.hosted(provider, model)
            }
            Some((provider, _)) if self.away.iter().any(|away| away == provider) => None,
            _ => Step::mesh(text),
        }
    }

    fn hosted(&self, provider: &str, model: &str) -> Option<Step> {
        let provider = self.providers.get(provider)?;
        let model = Arc::new(provider.model(model)?);
        Some(Step::Hosted { provider: Arc::clone(provider), model })
    }

    /// What a request means: by its model, and by the agent that a header names. `has` says
    /// whether the mesh has a model.
    pub fn resolve(
        &self,
        model: &RequestedModel,
        agent: Option<&str>,
        has: impl Fn(&ModelKey) -> bool,
    ) -> Meaning {
        // One that only a rule of `priority` names has no chain, and asks for the model itself.
        let ranked = |agent: &&str| self.ranked.iter().any(|name| name.eq_ignore_ascii_case(agent));
        if let Some(agent) = agent
            && (self.named.contains_key(&agent.to_ascii_lowercase()) || !ranked(&agent))
        {
            let named = self.named.get(&agent.to_ascii_lowercase());
            return named.map_or(Meaning::NoAgent, |chain| Meaning::Chain(chain.clone()));
        }
        let key = &model.key;
        if has(key) {
            return self.primary(|step| step.is_mesh(key)).map_or(Meaning::Plain, Meaning::Chain);
        }
        // Lists show an agent as Ollama shows a model.
        let plain = model.bare.strip_suffix(":latest").unwrap_or(&model.bare);
        if let Some(chain) = self.named.get(&plain.to_ascii_lowercase()) {
            return Meaning::Chain(chain.clone());
        }
        let short = key.short();
        let mut aliases = self.aliases.iter();
        let meant = aliases.find_map(|(pattern, target)| {
            let means = [short, plain, &model.bare].iter().any(|name| glob(pattern, name));
            means.then(|| self.target(target, &has)).flatten()
        });
        let meant = meant.or_else(|| match model.bare.split_once('/') {
            Some((MESH, _)) => self.step(&model.bare).map(|step| self.from(step)),
            Some((provider, model)) => self.hosted(provider, model).map(|step| self.from(step)),
            None => None,
        });
        // A chain's first model that the mesh has lost is still that chain's.
        let meant = meant.or_else(|| self.primary(|step| step.is_mesh(key)));
        meant.map_or(Meaning::Plain, Meaning::Chain)
    }

    /// What an alias means, if that is there.
    fn target(&self, target: &str, has: &impl Fn(&ModelKey) -> bool) -> Option<Chain> {
        if let Some(chain) = self.named.get(&target.to_ascii_lowercase()) {
            return Some(chain.clone());
        }
        let chain = self.from(self.step(target)?);
        let there = chain.steps.iter().any(|step| match step {
            Step::Mesh { key, .. } => has(key),
            Step::Hosted { .. } => true,
        });
        there.then_some(chain)
    }

    /// The chain whose first step this is, or a chain of it alone.
    fn from(&self, step: Step) -> Chain {
        let chain = self.primary(|first| *first == step);
        chain.unwrap_or_else(|| Chain { steps: vec![step], ..Chain::default() })
    }

    fn primary(&self, is_it: impl Fn(&Step) -> bool) -> Option<Chain> {
        let chain = self.by_primary.iter().find(|c| c.steps.first().is_some_and(&is_it))?;
        Some(chain.clone())
    }

    /// The agents, by name.
    pub fn agents(&self) -> impl Iterator<Item = (&str, &Chain)> {
        self.named.iter().map(|(name, chain)| (name.as_str(), chain))
    }

    /// Every chain: that of the defaults first.
    pub fn all(&self) -> impl Iterator<Item = &Chain> {
        self.by_primary.iter()
    }

    /// The providers that a name could mean.
    pub fn providers(&self) -> impl Iterator<Item = &Arc<Provider>> {
        self.providers.values()
    }

    /// The providers' listed models.
    pub fn hosted_models(&self) -> impl Iterator<Item = (&Arc<Provider>, &HostedModel)> {
        self.providers.values().flat_map(|p| p.models.iter().map(move |m| (p, m)))
    }

    /// What a person should know before a prompt goes there: which chains may leave the mesh.
    pub fn said(&self) -> Vec<String> {
        let mut said = Vec::new();
        for chain in &self.by_primary {
            let hosted = chain.steps.iter().filter(|s| matches!(s, Step::Hosted { .. }));
            let hosted: Vec<String> = hosted.map(Step::label).collect();
            if hosted.is_empty() || chain.place.is_some() {
                continue;
            }
            let agent = chain.agent.as_deref().unwrap_or("defaults");
            said.push(format!(
                "requests of agents.{agent} may leave the mesh: {}",
                hosted.join(", ")
            ));
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FixedEnv, parse};

    const TEXT: &str = r#"{
        agents: {
            defaults: {
                model: { primary: "ollama/gpt-oss:20b", fallbacks: ["llama3.3", "anthropic/claude-sonnet-4-5"] },
                models: { "anthropic/claude-sonnet-4-5": { alias: "Sonnet" }, "ollama/gpt-oss:20b": {} },
            },
            entries: { main: {}, writing: { model: "anthropic/claude-sonnet-4-5" } },
            coding: { model: { primary: "ollama/qwen3-coder", fallbacks: ["off/x", "near/m"] },
                      minContext: 65536, where: "mesh", priority: "batch" },
            here: { model: { primary: "tiny", fallbacks: ["hf.co/me/big"] } },
        },
        aliases: { "claude-*": "ollama/gpt-oss:20b", "claude-haiku-*": "tiny", "code": "coding",
                   "gone-*": "ollama/gone", "quick": "near/m" },
        priority: [{ match: { agent: "indexer" }, class: "batch" }],
        models: { providers: {
            ollama: { baseUrl: "http://127.0.0.1:11434/v1", models: [] },
            anthropic: { baseUrl: "https://api.anthropic.com", api: "anthropic-messages",
                         models: [{ id: "claude-sonnet-4-5" }] },
            near: { baseUrl: "http://127.0.0.1:1234/v1" },
            off: { baseUrl: "https://x.example", apiKey: "${NO_KEY}" },
        } },
    }"#;

    /// The steps of a name, as labels; `-` for what is no chain.
    #[track_caller]
    fn check(offline: bool, has: &[&str], name: &str, agent: Option<&str>, want: &str) -> Chain {
        let mut config = parse(TEXT, None, &FixedEnv::default()).unwrap();
        config.offline = offline;
        let chains = Chains::of(&config);
        let has: Vec<ModelKey> = has.iter().map(|m| ModelKey::parse(m).unwrap()).collect();
        let model = RequestedModel::parse(name).unwrap();
        let meaning = chains.resolve(&model, agent, |key| has.contains(key));
        let (shown, chain) = match meaning {
            Meaning::Plain => ("-".to_owned(), Chain::default()),
            Meaning::NoAgent => ("no agent".to_owned(), Chain::default()),
            Meaning::Chain(chain) => {
                let steps: Vec<String> = chain.steps.iter().map(Step::label).collect();
                (steps.join(" "), chain)
            }
        };
        assert_eq!(shown, want, "{name} {agent:?}");
        chain
    }

    const DEFAULTS: &str = "ollama/gpt-oss:20b ollama/llama3.3:latest anthropic/claude-sonnet-4-5";

    #[test]
    fn a_model_of_the_mesh_comes_before_an_agent_an_alias_and_a_provider() {
        check(false, &["coding"], "coding", None, "-");
        check(false, &["claude-opus"], "claude-opus", None, "-");
        check(false, &["anthropic/claude-sonnet-4-5"], "anthropic/claude-sonnet-4-5", None, "-");
        check(false, &[], "coding", None, "ollama/qwen3-coder:latest near/m");
        check(false, &["gpt-oss:20b"], "claude-opus-4", None, DEFAULTS);
        check(false, &[], "near/any-model", None, "near/any-model");
        check(false, &[], "nobody/has-it", None, "-");
        check(false, &[], "unheard-of", None, "-");
    }

    #[test]
    fn a_chain_counts_only_if_it_is_named_or_its_first_model_is() {
        check(false, &["gpt-oss:20b"], "gpt-oss:20b", None, DEFAULTS);
        check(false, &[], "gpt-oss:20b", None, DEFAULTS);
        check(false, &["llama3.3"], "llama3.3", None, "-");
        check(false, &["llama3.3"], "LLAMA3.3:latest", Some("main"), DEFAULTS);
        check(false, &[], "ollama/gpt-oss:20b", None, DEFAULTS);
        check(false, &[], "tiny", None, "ollama/tiny:latest ollama/hf.co/me/big:latest");
    }

    #[test]
    fn an_agent_is_named_by_model_by_header_and_by_alias() {
        let coding = "ollama/qwen3-coder:latest near/m";
        for (name, header) in
            [("Coding", None), ("coding:latest", None), ("code", None), ("x", Some("CODING"))]
        {
            let chain = check(false, &[], name, header, coding);
            assert_eq!(chain.agent.as_deref(), Some("coding"), "{name}");
            assert_eq!((chain.min_context, chain.place), (65536, Some(Place::Mesh)));
            assert_eq!(chain.priority, Some(Class::Batch));
        }
        check(false, &[], "x", Some("nobody"), "no agent");
        check(false, &["x"], "x", Some("Indexer"), "-");
        check(false, &[], "main", None, DEFAULTS);
        check(false, &[], "writing", None, "anthropic/claude-sonnet-4-5");
    }

    #[test]
    fn an_alias_means_the_most_particular_target_that_is_there() {
        let has = ["tiny", "gpt-oss:20b"];
        let tiny = "ollama/tiny:latest ollama/hf.co/me/big:latest";
        check(false, &has, "claude-haiku-4", None, tiny);
        check(false, &["gpt-oss:20b"], "claude-haiku-4", None, DEFAULTS);
        check(false, &[], "gone-away", None, "-");
        check(false, &["gone"], "gone-away", None, "ollama/gone:latest");
        check(false, &[], "quick", None, "near/m");
        check(false, &[], "sonnet", None, "anthropic/claude-sonnet-4-5");
    }

    #[test]
    fn offline_there_is_no_provider_that_a_name_could_mean() {
        check(true, &[], "anthropic/claude-sonnet-4-5", None, "-");
        check(true, &[], "sonnet", None, "-");
        check(true, &[], "gpt-oss:20b", None, "ollama/gpt-oss:20b ollama/llama3.3:latest");
        check(true, &[], "writing", None, "");
        check(true, &[], "near/m", None, "near/m");
    }

    #[test]
    fn which_chains_may_leave_the_mesh_is_said() {
        let config = parse(TEXT, None, &FixedEnv::default()).unwrap();
        let said = Chains::of(&config).said();
        assert!(
            said[0].contains("agents.defaults") && said[0].contains("claude-sonnet"),
            "{said:?}"
        );
        assert!(!said.iter().any(|line| line.contains("coding")), "it stays in the mesh: {said:?}");
    }
}
