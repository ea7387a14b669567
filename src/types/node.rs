//! Devices and who owns them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// Which coordinator and tailnet an identity belongs to: a keyed-less hash of the control URL
/// and the tailnet's domain, as 16 hex digits.
///
/// Headscale numbers users and nodes 1, 2, 3, so an id alone means nothing: two Headscales
/// have the same ids for different people.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct ControlId(pub Arc<str>);

/// The identity of a node: never an address.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum NodeId {
    /// This node, before (or without) a tailnet that names it.
    This,
    /// A node of a tailnet: its stable id inside one control id.
    Tailnet {
        /// The coordinator and tailnet.
        control: ControlId,
        /// Tailscale's stable node id.
        stable: Arc<str>,
    },
    /// A server from `ollamas` in the configuration, by its name there.
    Configured(Arc<str>),
    /// A device whose key a person added by hand, by the name given to it then.
    Pin(Arc<str>),
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeId::This => f.write_str("self"),
            NodeId::Tailnet { control, stable } => write!(f, "{}/{stable}", control.0),
            NodeId::Configured(name) => write!(f, "config/{name}"),
            NodeId::Pin(name) => write!(f, "pin/{name}"),
        }
    }
}

/// What runs on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// The device this program runs on.
    This,
    /// A peer with a sidecar.
    Rich,
    /// A peer with an engine and no sidecar.
    Bare,
}

impl NodeKind {
    /// The word in status and logs.
    pub const fn label(self) -> &'static str {
        match self {
            NodeKind::This => "this",
            NodeKind::Rich => "rich",
            NodeKind::Bare => "bare",
        }
    }
}

/// On whose behalf a node acts: its owner or its tags, never both.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum Principal {
    /// A node that belongs to a person.
    User {
        /// The coordinator and tailnet.
        control: ControlId,
        /// The person's numeric id there. Login names are for showing only.
        id: i64,
        /// The login name, for showing and for rules that name a person (`user:a@b`).
        login: Arc<str>,
    },
    /// A tagged node: it has no owner.
    Tags {
        /// The coordinator and tailnet.
        control: ControlId,
        /// The tags, each with its `tag:` prefix. Never empty.
        set: BTreeSet<Arc<str>>,
    },
}

impl Principal {
    /// Whether both act for one person. Two tagged nodes never do: having no owner is not
    /// having the same owner.
    pub fn same_owner(&self, other: &Principal) -> bool {
        match (self, other) {
            (
                Principal::User { control: a, id: x, .. },
                Principal::User { control: b, id: y, .. },
            ) => a == b && x == y,
            _ => false,
        }
    }

    /// The coordinator this principal belongs to.
    pub fn control(&self) -> &ControlId {
        match self {
            Principal::User { control, .. } | Principal::Tags { control, .. } => control,
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Principal::User { login, .. } => f.write_str(login),
            Principal::Tags { set, .. } => {
                for (i, tag) in set.iter().enumerate() {
                    if i > 0 {
                        f.write_str(",")?;
                    }
                    f.write_str(tag)?;
                }
                Ok(())
            }
        }
    }
}
