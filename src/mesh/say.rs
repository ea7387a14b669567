//! What this node says of itself, and what is made of what others say.
//!
//! In: what the tailnet says of both ends, the keys, the links of the local network. Out: a
//! statement to send.

use std::net::IpAddr;

use crate::api::hello::{HelloSay, MOST_ADDRESSES};
use crate::net::{LanView, TailnetNode, TailnetView};
use crate::telemetry::wall;
use crate::trust::{Trust, View};
use crate::types::NodeId;

/// The stable id of a node of the tailnet.
pub(super) fn stable(node: &NodeId) -> Option<&str> {
    match node {
        NodeId::Tailnet { stable, .. } => Some(stable),
        _ => None,
    }
}

/// This node's addresses on the local networks that may be used.
pub(super) fn addresses(lan: &LanView) -> Vec<IpAddr> {
    lan.links.iter().map(|link| link.addr).take(MOST_ADDRESSES).collect()
}

/// What is said to `peer`: who this node is, and for whom it takes the other. `None` while the
/// tailnet does not name both, or while the keys are those of another tailnet.
pub(super) fn statement(
    tailnet: &TailnetView,
    trust: &Trust,
    known: &View,
    lan: &LanView,
    peer: &TailnetNode,
    ephemeral: bool,
) -> Option<HelloSay> {
    let (control, me) = (tailnet.control.as_ref()?, tailnet.me.as_ref()?);
    if known.control.as_ref() != Some(control) {
        return None;
    }
    let live = known.live(&peer.id, wall());
    Some(HelloSay {
        control: control.0.to_string(),
        me: stable(&me.id)?.to_owned(),
        you: stable(&peer.id)?.to_owned(),
        my_node_key: me.key.clone(),
        your_node_key: peer.key.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        // LocalAPI does not say it of the node; but keys that do not outlive the machine's
        // stop are one's that is not meant to.
        ephemeral,
        chain: known.ring.as_ref()?.chain(),
        holds: live.map(|pin| pin.key),
        lan: addresses(lan),
        port: known.bounds.ports.first().copied().unwrap_or_default(),
        departed: trust.suspensions_for(&peer.id),
    })
}
