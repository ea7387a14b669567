//! Access: what a caller may do on this node.
//!
//! In: the `access` rules (or `auto`), the facts of the tailnet, a [`Caller`]. Out: a
//! [`Granted`], which says for each verb and model whether it is allowed and within which
//! limits. Several rules may mean one caller: what any of them gives is given, and each limit
//! is the widest among the rules that give that verb for that model.
//!
//! Rules are resolved anew when the configuration or the tailnet changes; a `Granted` is made
//! per connection (or when WhoIs is asked again) and read per request.
//!
//! On the local network nobody vouches for a caller at that moment, so less is given there:
//! a few verbs only, what tags and grants give for a day, and no more than what was said to a
//! key added by hand.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::grant;
use super::who::{Subject, Tailnet};
use crate::config::{AccessRule, Config};
use crate::types::{Caller, CallerKind, ModelKey, Principal, Verb, Verbs, Who};

/// Requests at once that a principal other than this node's owner gets where no rule says.
pub const MAX_INFLIGHT: u32 = 4;

/// All that a caller on the local network may ever do.
const ON_LAN: Verbs = Verbs::NONE.with(Verb::List).with(Verb::Infer).with(Verb::Observe);
/// All that what was said to a key added by hand may give.
const BY_HAND: Verbs = Verbs::NONE.with(Verb::List).with(Verb::Infer);
/// How long what tags and grants give holds on the local network, where nothing says.
const GRANT: Duration = Duration::from_secs(24 * 3600);

/// The `access` rules of this node, ready to be asked.
#[derive(Debug, Clone)]
pub struct Access {
    tailnet: Tailnet,
    rules: Vec<Arc<Rule>>,
    auto: bool,
    /// How long ago the tailnet may have vouched for a caller on the local network that is no
    /// device of this node's owner.
    grant: Duration,
}

/// One rule, with the name it has in explanations.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// `access: auto (own devices)`, `access[2]`, `grant`.
    pub name: String,
    /// Whom it means; empty for a grant.
    pub from: Vec<Who>,
    /// What it gives.
    pub verbs: Verbs,
    /// For which models, as globs.
    pub models: Vec<String>,
    /// Within which limits. `max_inflight` does not bind own devices.
    pub limits: Limits,
}

/// Bounds on what a verb may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most requests at once, for all connections of the principal together; `None` = no bound.
    pub max_inflight: Option<u32>,
    /// Largest `num_ctx`; `None` = no bound.
    pub max_num_ctx: Option<u64>,
    /// Largest `num_predict`; `None` = no bound.
    pub max_predict: Option<u64>,
    /// Whether a request may bring a model into memory.
    pub may_load: bool,
}

impl Limits {
    /// No bound at all: programs on this machine.
    pub const NONE: Limits =
        Limits { max_inflight: None, max_num_ctx: None, max_predict: None, may_load: true };

    /// Each bound as wide as the wider of both.
    fn or(self, other: Limits) -> Limits {
        fn widest<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
            Some(a?.max(b?))
        }
        Limits {
            max_inflight: widest(self.max_inflight, other.max_inflight),
            max_num_ctx: widest(self.max_num_ctx, other.max_num_ctx),
            max_predict: widest(self.max_predict, other.max_predict),
            may_load: self.may_load || other.may_load,
        }
    }
}

impl Access {
    /// The rules of `config` on this node of this tailnet.
    pub fn resolve(config: &Config, tailnet: &Tailnet) -> Access {
        Access { grant: config.lan.grant, ..Access::new(config.access.as_deref(), tailnet) }
    }

    /// These rules (`None` = auto) on this node of this tailnet.
    pub fn new(written: Option<&[AccessRule]>, tailnet: &Tailnet) -> Access {
        let rules = match written {
            None => auto(tailnet),
            Some(rules) => rules
                .iter()
                .enumerate()
                .map(|(i, rule)| Rule::written(format!("access[{i}]"), rule))
                .collect(),
        };
        Access {
            tailnet: tailnet.clone(),
            rules: rules.into_iter().map(Arc::new).collect(),
            auto: written.is_none(),
            grant: GRANT,
        }
    }

    /// The rules in order, for showing.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(|r| &**r)
    }

    /// What `caller` may do here.
    pub fn of(&self, caller: &Caller) -> Granted {
        let mut only = if caller.lan.is_some() { ON_LAN } else { Verbs::ALL };
        let (rules, own, free) = match &caller.kind {
            CallerKind::Local { uid } => {
                let (rules, free) = self.local(*uid);
                (rules, true, free)
            }
            CallerKind::Pin { name, verbs, models } => {
                only = ON_LAN;
                let means = |who: &Who| matches!(who, Who::Pin(n) if n.eq_ignore_ascii_case(name));
                let named = self.rules.iter().filter(|r| r.from.iter().any(means)).cloned();
                let said = Rule::of_pin(name, *verbs, models);
                ([Arc::new(said)].into_iter().chain(named).collect(), false, Verbs::NONE)
            }
            CallerKind::Node { grants, .. } => {
                let Some(subject) = Subject::of(caller) else {
                    return self.nothing(caller);
                };
                let own = self.tailnet.is_own(&subject);
                if !own && caller.lan.is_some_and(|age| age > self.grant) {
                    return self.nothing(caller);
                }
                let mut rules: Vec<Arc<Rule>> = self
                    .rules
                    .iter()
                    .filter(|r| self.tailnet.first(&r.from, &subject).is_some())
                    .cloned()
                    .collect();
                // A grant's `src: *` means nodes shared in as well; they are only ever what a
                // rule here names.
                if !subject.shared && self.tailnet.means(&Who::Anyone, &subject) {
                    rules.extend(
                        grants
                            .iter()
                            .filter_map(|json| grant::read(json))
                            .map(|rule| Arc::new(Rule::written("grant".to_owned(), &rule))),
                    );
                }
                (rules, own, Verbs::NONE)
            }
        };
        Granted { rules, own, free, only, who: shown(caller), denial: self.denial() }
    }

    /// A program on this machine may do everything, except that a verb which some rule gives
    /// to `local` or to a `uid:` belongs to whom those rules name. A program whose user cannot
    /// be told is no `uid:`.
    fn local(&self, uid: Option<u32>) -> (Vec<Arc<Rule>>, Verbs) {
        let mut rules = Vec::new();
        let mut named = Verbs::NONE;
        for rule in &self.rules {
            let mut means = false;
            for who in &rule.from {
                match who {
                    Who::Local => means = true,
                    Who::Uid(n) => means |= uid == Some(*n),
                    _ => continue,
                }
                named = named.or(rule.verbs);
            }
            if means {
                rules.push(rule.clone());
            }
        }
        (rules, Verb::ALL.into_iter().filter(|v| !named.has(*v)).collect())
    }

    fn nothing(&self, caller: &Caller) -> Granted {
        Granted {
            rules: Vec::new(),
            own: false,
            free: Verbs::NONE,
            only: Verbs::NONE,
            who: shown(caller),
            denial: self.denial(),
        }
    }

    /// The end of a refusal: which rules refused, and whom to ask.
    fn denial(&self) -> Arc<str> {
        let words = || {
            let mut words: Vec<String> = Vec::new();
            for who in self.rules.iter().flat_map(|r| &r.from) {
                let word = who.to_string();
                if !words.contains(&word) {
                    words.push(word);
                }
            }
            if words.is_empty() { "nobody".to_owned() } else { words.join(", ") }
        };
        let rules = if self.auto { "access: \"auto\"" } else { "access" };
        match &self.tailnet.me {
            None => format!("`{rules}` here admits no node while the tailnet is not known").into(),
            Some(me) => format!(
                "`{rules}` on {} admits {}; ask {}",
                me.name,
                words(),
                match &me.principal {
                    p @ Principal::User { .. } => p.to_string(),
                    Principal::Tags { .. } => format!("whoever runs {}", me.name),
                }
            )
            .into(),
        }
    }
}

/// `access: "auto"`, as design §3 has it.
fn auto(tailnet: &Tailnet) -> Vec<Rule> {
    let rule = |part: &str, from: Vec<Who>, verbs: &[Verb]| Rule {
        name: format!("access: auto ({part})"),
        from,
        verbs: verbs.iter().copied().collect(),
        models: vec!["*".to_owned()],
        limits: Limits { max_inflight: Some(MAX_INFLIGHT), ..Limits::NONE },
    };
    let use_it = [Verb::List, Verb::Infer];
    let own = [Verb::List, Verb::Infer, Verb::Observe, Verb::Load];
    let mut rules = vec![
        Rule { limits: Limits::NONE, ..rule("own devices", vec![Who::OwnerSelf], &own) },
        rule("tag:ollama", vec![Who::Tag("tag:ollama".into())], &use_it),
    ];
    if tailnet.is_one_person() {
        rules.push(rule("tagged, one person's tailnet", vec![Who::Tagged], &use_it));
    }
    let tagged =
        tailnet.me.as_ref().is_some_and(|me| matches!(me.principal, Principal::Tags { .. }));
    if tagged {
        rules.push(rule("person, this node is tagged", vec![Who::Person], &use_it));
    }
    rules
}

impl Rule {
    fn written(name: String, rule: &AccessRule) -> Rule {
        Rule {
            name,
            from: rule.from.clone(),
            verbs: rule.verbs,
            models: rule.models.clone(),
            limits: Limits {
                max_inflight: Some(rule.max_inflight.unwrap_or(MAX_INFLIGHT)),
                max_num_ctx: rule.max_num_ctx,
                max_predict: rule.max_predict,
                may_load: rule.may_load,
            },
        }
    }

    /// What was said of a key when a person added it.
    fn of_pin(name: &str, verbs: Verbs, models: &[String]) -> Rule {
        Rule {
            name: format!("trust add {name}"),
            from: vec![Who::Pin(name.into())],
            verbs: verbs.and(BY_HAND),
            models: models.to_vec(),
            limits: Limits { max_inflight: Some(MAX_INFLIGHT), ..Limits::NONE },
        }
    }

    /// Whether the rule speaks of `model`.
    pub fn covers(&self, model: &ModelKey) -> bool {
        self.models.iter().any(|pattern| model.matches(pattern))
    }
}

/// What one caller may do.
#[derive(Debug, Clone)]
pub struct Granted {
    rules: Vec<Arc<Rule>>,
    /// A device of this node's owner, or a program on it: no bound on requests at once.
    own: bool,
    /// Verbs given whole, by no rule: those of programs on this machine.
    free: Verbs,
    /// What may be given at all by the way the caller came.
    only: Verbs,
    who: Arc<str>,
    denial: Arc<str>,
}

impl Granted {
    /// Whether `verb` is allowed on `model`, and within which limits.
    pub fn may(&self, verb: Verb, model: &ModelKey) -> Option<Limits> {
        self.within(verb, |rule| rule.covers(model))
    }

    /// Whether `verb` is allowed at all: for what names no model (`observe`, lists, `spend`),
    /// or before the model is known.
    pub fn has(&self, verb: Verb) -> bool {
        self.verbs().has(verb)
    }

    /// Whether `verb` is allowed whatever the model is: for routes whose subject no rule can
    /// name (blobs, account).
    pub fn may_all(&self, verb: Verb) -> Option<Limits> {
        self.within(verb, |rule| rule.models.iter().any(|m| m == "*"))
    }

    /// Every verb that some rule gives for some model.
    pub fn verbs(&self) -> Verbs {
        self.rules.iter().fold(self.free, |verbs, rule| verbs.or(rule.verbs)).and(self.only)
    }

    /// The rules that mean this caller, for showing.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(|r| &**r)
    }

    /// Whether the caller is a program here or a device of this node's owner.
    pub fn is_own(&self) -> bool {
        self.own
    }

    /// Why `verb` (on `model`, if one is meant) is refused, and whom to ask.
    pub fn why_not(&self, verb: Verb, model: Option<&ModelKey>) -> String {
        let verb = verb.label();
        let who = &self.who;
        let given: Vec<&str> = self.verbs().iter().map(Verb::label).collect();
        let ruled = self.rules.iter().any(|r| r.verbs.iter().any(|v| v.label() == verb));
        match model {
            _ if given.is_empty() => format!("no rule lets {who} in: {}", self.denial),
            _ if ruled && !given.contains(&verb) => {
                format!("{who} may not use `{verb}` over the local network, where it comes from")
            }
            Some(model) if given.contains(&verb) => {
                format!("{who} may not use `{verb}` on {model}: {}", self.models(verb))
            }
            _ => format!("{who} may {} here, not `{verb}`: {}", given.join(", "), self.denial),
        }
    }

    fn models(&self, verb: &str) -> String {
        let mut parts = Vec::new();
        for rule in self.rules.iter().filter(|r| r.verbs.iter().any(|v| v.label() == verb)) {
            parts.push(format!("`{}` covers {}", rule.name, rule.models.join(", ")));
        }
        parts.join("; ")
    }

    fn within(&self, verb: Verb, covers: impl Fn(&Rule) -> bool) -> Option<Limits> {
        if !self.only.has(verb) {
            return None;
        }
        if self.free.has(verb) {
            return Some(Limits::NONE);
        }
        let limits = self
            .rules
            .iter()
            .filter(|rule| rule.verbs.has(verb) && covers(rule))
            .map(|rule| rule.limits)
            .reduce(Limits::or)?;
        let max_inflight = if self.own { None } else { limits.max_inflight };
        Some(Limits { max_inflight, ..limits })
    }
}

fn shown(caller: &Caller) -> Arc<str> {
    match &caller.kind {
        CallerKind::Local { uid: Some(uid) } => format!("uid:{uid} on this machine").into(),
        CallerKind::Local { uid: None } => "a program on this machine".into(),
        CallerKind::Pin { name, .. } => format!("pin:{name}").into(),
        CallerKind::Node { name, principal, shared, .. } => {
            let shared = if *shared { ", shared in from another tailnet" } else { "" };
            format!("{name} ({principal}{shared})").into()
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
