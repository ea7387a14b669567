//! `sendTo`: to which peers this node's prompts may go.
//!
//! In: the `sendTo` rules (or `auto`), `tailnet.peers`, the facts of the tailnet, a peer as
//! LocalAPI names it. Out: which models may be asked of it, with a sidecar and without one;
//! or why it is not used. The answer decides whether the peer exists in the directory at all,
//! so it comes before any probe. Grants do not count here: a coordinator may let others in,
//! it cannot send this node's prompts anywhere.

use super::who::{Subject, Tailnet};
use crate::config::{Config, SendRule};
use crate::types::Who;

/// The `sendTo` rules of this node, ready to be asked.
#[derive(Debug, Clone)]
pub struct SendTo {
    tailnet: Tailnet,
    rules: Vec<(String, SendRule)>,
    looked_at: Option<Vec<Who>>,
}

/// What may be asked of a peer: globs of models. Both empty never happens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SendGrant {
    /// While it runs a sidecar.
    pub rich: Vec<String>,
    /// While it runs only an engine.
    pub bare: Vec<String>,
    /// The rules that allow it, for showing.
    pub by: Vec<String>,
}

/// Why a peer gets nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    /// No `sendTo` rule means it.
    #[error("not in sendTo")]
    NotInSendTo,
    /// `sendTo` would allow it; `tailnet.peers` does not name it.
    #[error("not in tailnet.peers")]
    NotLookedAt,
    /// Shared in from another tailnet, and named by no rule.
    #[error("shared in from another tailnet, named by no rule of sendTo")]
    Shared,
}

impl SendTo {
    /// The rules of `config` on this node of this tailnet.
    pub fn resolve(config: &Config, tailnet: &Tailnet) -> SendTo {
        SendTo::new(config.send_to.as_deref(), config.tailnet.peers.as_deref(), tailnet)
    }

    /// These rules (`None` = auto), narrowed to the peers that are looked at (`None` = all).
    pub fn new(written: Option<&[SendRule]>, peers: Option<&[Who]>, tailnet: &Tailnet) -> SendTo {
        let rules = match written {
            None => auto(tailnet),
            Some(rules) => rules
                .iter()
                .enumerate()
                .map(|(i, rule)| (format!("sendTo[{i}]"), rule.clone()))
                .collect(),
        };
        SendTo { tailnet: tailnet.clone(), rules, looked_at: peers.map(<[Who]>::to_vec) }
    }

    /// The rules with their names, for showing.
    pub fn rules(&self) -> impl Iterator<Item = (&str, &SendRule)> {
        self.rules.iter().map(|(name, rule)| (name.as_str(), rule))
    }

    /// What `peer` may be asked, if anything.
    pub fn allows(&self, peer: &Subject<'_>) -> Result<SendGrant, Refused> {
        let mut grant = SendGrant::default();
        for (name, rule) in &self.rules {
            if self.tailnet.first(&rule.to, peer).is_none() {
                continue;
            }
            if rule.rich {
                grant.rich.extend(rule.models.iter().cloned());
            }
            if rule.bare {
                grant.bare.extend(rule.models.iter().cloned());
            }
            grant.by.push(name.clone());
        }
        if grant.rich.is_empty() && grant.bare.is_empty() {
            return Err(if peer.shared { Refused::Shared } else { Refused::NotInSendTo });
        }
        if let Some(words) = &self.looked_at
            && self.tailnet.first(words, peer).is_none()
        {
            return Err(Refused::NotLookedAt);
        }
        Ok(grant)
    }

    /// What the holder of a key that a person added under `name` may be asked. Only a rule
    /// that names it by `pin:NAME` means it, never `*` or `auto`; and only its sidecar can
    /// prove that it holds the key.
    pub fn allows_pin(&self, name: &str) -> Result<SendGrant, Refused> {
        let means = |who: &Who| matches!(who, Who::Pin(pin) if pin.eq_ignore_ascii_case(name));
        let mut grant = SendGrant::default();
        for (by, rule) in &self.rules {
            if rule.rich && rule.to.iter().any(means) {
                grant.rich.extend(rule.models.iter().cloned());
                grant.by.push(by.clone());
            }
        }
        if grant.rich.is_empty() {
            return Err(Refused::NotInSendTo);
        }
        match &self.looked_at {
            Some(words) if !words.iter().any(means) => Err(Refused::NotLookedAt),
            _ => Ok(grant),
        }
    }

    /// Whether `peer` is a device of this node's owner.
    pub fn is_own(&self, peer: &Subject<'_>) -> bool {
        self.tailnet.is_own(peer)
    }
}

/// `sendTo: "auto"`, as design §3 has it.
fn auto(tailnet: &Tailnet) -> Vec<(String, SendRule)> {
    let rule = |part: &str, who: Who| {
        let rule = SendRule { to: vec![who], models: vec!["*".to_owned()], rich: true, bare: true };
        (format!("sendTo: auto ({part})"), rule)
    };
    let mut rules = vec![
        rule("own devices", Who::OwnerSelf),
        rule("tag:ollama", Who::Tag("tag:ollama".into())),
    ];
    if tailnet.is_one_person() {
        rules.push(rule("tagged, one person's tailnet", Who::Tagged));
    }
    rules
}
