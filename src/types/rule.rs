//! Who may do what: callers, verbs, and the words rules are written in.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::{NodeId, NodeName, Principal};

/// What a caller may do.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// See models: unions, show, reports.
    List,
    /// Ask a model, with the load it needs.
    Infer,
    /// Read the reduced `/status` and `/metrics`.
    Observe,
    /// Pull, unload, preload.
    Load,
    /// Create, copy, delete, push, blobs.
    Manage,
    /// Use hosted providers.
    Spend,
}

impl Verb {
    /// All verbs.
    pub const ALL: [Verb; 6] =
        [Verb::List, Verb::Infer, Verb::Observe, Verb::Load, Verb::Manage, Verb::Spend];

    /// The word in rules and messages.
    pub const fn label(self) -> &'static str {
        match self {
            Verb::List => "list",
            Verb::Infer => "infer",
            Verb::Observe => "observe",
            Verb::Load => "load",
            Verb::Manage => "manage",
            Verb::Spend => "spend",
        }
    }
}

/// A set of verbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Verbs(u8);

impl Verbs {
    /// No verb.
    pub const NONE: Verbs = Verbs(0);
    /// Every verb: what a program on this node may do.
    pub const ALL: Verbs = Verbs(0x3f);

    /// This set and one more verb.
    #[must_use]
    pub const fn with(self, verb: Verb) -> Verbs {
        Verbs(self.0 | 1 << verb as u8)
    }

    /// Whether the set holds `verb`.
    pub const fn has(self, verb: Verb) -> bool {
        self.0 & (1 << verb as u8) != 0
    }

    /// Both sets together.
    #[must_use]
    pub const fn or(self, other: Verbs) -> Verbs {
        Verbs(self.0 | other.0)
    }

    /// The verbs in both sets.
    #[must_use]
    pub const fn and(self, other: Verbs) -> Verbs {
        Verbs(self.0 & other.0)
    }

    /// The verbs of the set, in order.
    pub fn iter(self) -> impl Iterator<Item = Verb> {
        Verb::ALL.into_iter().filter(move |v| self.has(*v))
    }
}

impl FromIterator<Verb> for Verbs {
    fn from_iter<T: IntoIterator<Item = Verb>>(iter: T) -> Self {
        iter.into_iter().fold(Verbs::NONE, Verbs::with)
    }
}

/// Whom a rule means (`from` of `access`, `to` of `sendTo`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Who {
    /// `owner:self`: nodes of this node's own owner.
    OwnerSelf,
    /// `person`: any user-owned node of this tailnet.
    Person,
    /// `user:a@b`: nodes of that person, by login name.
    User(Arc<str>),
    /// `tag:x`: nodes with that tag.
    Tag(Arc<str>),
    /// `tagged`: any tagged node.
    Tagged,
    /// `node:NAME`: one node.
    Node(Arc<str>),
    /// `pin:NAME`: a key added by hand.
    Pin(Arc<str>),
    /// `local`: programs on this machine.
    Local,
    /// `uid:N`: programs of that user on this machine.
    Uid(u32),
    /// `*`: everybody who reaches a listener.
    Anyone,
}

/// A word that names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` names nobody: expected owner:self, person, user:a@b, tag:x, tagged, node:NAME, pin:NAME, local, uid:N or *"
)]
pub struct WhoError(pub String);

impl FromStr for Who {
    type Err = WhoError;

    fn from_str(s: &str) -> Result<Self, WhoError> {
        let bad = || WhoError(s.to_owned());
        let some = |rest: &str| if rest.is_empty() { Err(bad()) } else { Ok(Arc::from(rest)) };
        Ok(match s.split_once(':') {
            None => match s {
                "person" => Who::Person,
                "tagged" => Who::Tagged,
                "local" => Who::Local,
                "*" => Who::Anyone,
                _ => return Err(bad()),
            },
            Some(("owner", "self")) => Who::OwnerSelf,
            Some(("user", rest)) => Who::User(some(rest)?),
            Some(("tag", rest)) if !rest.is_empty() => Who::Tag(Arc::from(s)),
            Some(("node", rest)) => Who::Node(some(rest)?),
            Some(("pin", rest)) => Who::Pin(some(rest)?),
            Some(("uid", rest)) => Who::Uid(rest.parse().map_err(|_| bad())?),
            Some(_) => return Err(bad()),
        })
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::OwnerSelf => f.write_str("owner:self"),
            Who::Person => f.write_str("person"),
            Who::User(u) => write!(f, "user:{u}"),
            Who::Tag(t) => f.write_str(t),
            Who::Tagged => f.write_str("tagged"),
            Who::Node(n) => write!(f, "node:{n}"),
            Who::Pin(p) => write!(f, "pin:{p}"),
            Who::Local => f.write_str("local"),
            Who::Uid(n) => write!(f, "uid:{n}"),
            Who::Anyone => f.write_str("*"),
        }
    }
}

/// Who asks, once a connection's other end is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// What kind of caller.
    pub kind: CallerKind,
    /// The other end's address, for logs and for asking again.
    pub addr: Option<SocketAddr>,
    /// Of a caller on the local network: how long ago the tailnet last vouched for it.
    pub lan: Option<Duration>,
}

/// The kinds of callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallerKind {
    /// A program on this machine; its uid if it could be told.
    Local {
        /// The program's user id, where the platform says.
        uid: Option<u32>,
    },
    /// A node of the tailnet, as WhoIs named it.
    Node {
        /// The node.
        id: NodeId,
        /// Its name, for showing.
        name: NodeName,
        /// Its whole MagicDNS name; empty if not known. A node shared in from another tailnet
        /// is named in a rule only by this or its stable id: its short name may be that of a
        /// device of ours.
        dns: Arc<str>,
        /// Its owner or tags.
        principal: Principal,
        /// Whether it is shared in from another tailnet (such nodes are only what a rule
        /// names by `user:` or `node:`).
        shared: bool,
        /// The raw values of our capability that the tailnet policy grants this node here,
        /// each the JSON text of one `access` rule without `from`.
        grants: Arc<[String]>,
    },
    /// A device whose key a person added by hand; it is on the local network.
    Pin {
        /// The name given to it then.
        name: Arc<str>,
        /// What it may do, as was said then.
        verbs: Verbs,
        /// With which models, as globs.
        models: Arc<[String]>,
    },
}

impl Caller {
    /// A program on this machine.
    pub const fn local(uid: Option<u32>, addr: Option<SocketAddr>) -> Self {
        Caller { kind: CallerKind::Local { uid }, addr, lan: None }
    }

    /// Whether the caller is a program on this machine.
    pub const fn is_local(&self) -> bool {
        matches!(self.kind, CallerKind::Local { .. })
    }

    /// Which node it is; `None` for a program on this machine.
    pub fn node_id(&self) -> Option<NodeId> {
        match &self.kind {
            CallerKind::Local { .. } => None,
            CallerKind::Node { id, .. } => Some(id.clone()),
            CallerKind::Pin { name, .. } => Some(NodeId::Pin(Arc::clone(name))),
        }
    }

    /// The node it came from, for showing; empty for a program on this machine.
    pub fn node_name(&self) -> &str {
        match &self.kind {
            CallerKind::Local { .. } => "",
            CallerKind::Node { name, .. } => name.as_str(),
            CallerKind::Pin { name, .. } => name,
        }
    }

    /// A name for logs, metrics and fairness: `local` or the principal's.
    pub fn label(&self) -> String {
        match &self.kind {
            CallerKind::Local { .. } => "local".to_owned(),
            CallerKind::Node { principal, .. } => principal.to_string(),
            CallerKind::Pin { name, .. } => format!("pin:{name}"),
        }
    }
}

/// Whether `text` matches `pattern`, in which `*` stands for any run of characters and case
/// does not count. There is no other wildcard.
pub fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if c.eq_ignore_ascii_case(&text[t]) => {
                p += 1;
                t += 1;
            }
            // Let the last star take one more character, and try again from there.
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_know_only_the_star() {
        for (pattern, text) in
            [("*", ""), ("*", "x"), ("qwen*", "QWEN3:8b"), ("*:8b", "a:8b"), ("a*b*c", "axxbyyc")]
        {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("", "x"), ("qwen", "qwen3"), ("a*b", "abc"), ("a?c", "abc")] {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn every_who_survives_its_own_spelling() {
        for text in [
            "owner:self",
            "person",
            "user:a@b",
            "tag:x",
            "tagged",
            "node:desk",
            "pin:x",
            "local",
            "uid:1000",
            "*",
        ] {
            assert_eq!(text.parse::<Who>().map(|w| w.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "owner", "owner:other", "tag:", "uid:x", "everyone"] {
            assert!(text.parse::<Who>().is_err(), "{text}");
        }
    }
}
