//! Which nodes of the tailnet may be used, and why the others are not: a pure function of one
//! picture of the tailnet, the `sendTo` rules and the list of nodes met before.

use super::known::{Known, Listed};
use crate::config::NewNodes;
use crate::directory::Unused;
use crate::directory::event::{Grant, Identity, Peer};
use crate::net::TailnetNode;
use crate::trust::{SendTo, Subject};
use crate::types::NodeId;

/// The nodes of a tailnet, sorted out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sorted {
    /// To whom prompts may go.
    pub(super) peers: Vec<Peer>,
    /// Who is only seen.
    pub(super) unused: Vec<Unused>,
}

/// A node as rules see it.
pub(super) fn subject(node: &TailnetNode) -> Subject<'_> {
    Subject {
        id: &node.id,
        name: &node.name,
        dns: &node.dns,
        principal: &node.principal,
        shared: node.shared,
    }
}

/// A node as the list of nodes met before has it; `None` for what is no tailnet node.
pub(super) fn listed<'a>(node: &'a TailnetNode, send_to: &SendTo) -> Option<Listed<'a>> {
    let NodeId::Tailnet { stable, .. } = &node.id else { return None };
    Some(Listed {
        stable,
        created: &node.created,
        name: &node.name,
        principal: &node.principal,
        own: send_to.is_own(&subject(node)),
    })
}

/// Sorts `nodes` out.
pub(super) fn sort(
    nodes: &[TailnetNode],
    send_to: &SendTo,
    known: &Known,
    new_nodes: NewNodes,
) -> Sorted {
    let mut sorted = Sorted::default();
    for node in nodes {
        let refused = match (send_to.allows(&subject(node)), listed(node, send_to)) {
            (Err(refused), _) => refused.to_string(),
            (_, None) => continue,
            (Ok(_), Some(listed)) if !known.allows(&listed, new_nodes) => {
                format!("waits for: tailherd trust accept {}", node.name)
            }
            // Phones sleep with their radio off and run no engine: a probe only wakes them.
            (Ok(_), _) if node.mobile => format!("{} is not looked at", node.os),
            (Ok(grant), _) => {
                sorted.peers.push(Peer {
                    who: Identity {
                        id: node.id.clone(),
                        name: node.name.clone(),
                        principal: Some(node.principal.clone()),
                    },
                    addrs: node.addrs.clone(),
                    grant: Grant { rich: grant.rich, bare: grant.bare },
                });
                continue;
            }
        };
        sorted.unused.push(Unused {
            name: node.name.clone(),
            owner: node.principal.to_string(),
            why: refused,
        });
    }
    sorted
}
