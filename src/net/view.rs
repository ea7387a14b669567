//! What LocalAPI says of the tailnet, as plain values.
//!
//! A [`TailnetView`] is one answer, tidied: nodes without an id, an address or a principal
//! are left out, and only a node's own addresses count. Its `online` flags are hints: they
//! are frozen while the coordinator is away, so nothing may take them for liveness.

use std::net::{IpAddr, SocketAddr};

use crate::trust::ListedPeer;
use crate::types::{ControlId, NodeId, NodeName, Principal, Wall};

/// One picture of the tailnet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TailnetView {
    /// `BackendState` as the daemon spells it; empty if nothing is known.
    pub state: String,
    /// Whether the state is `Running`. Only then is a tailnet address dialled.
    pub running: bool,
    /// `Self.Online`: whether the daemon has an open map poll, which is the sign of a living
    /// coordinator.
    pub online: Option<bool>,
    /// Whether the daemon has a network device (`Some(false)` = userspace mode).
    pub tun: Option<bool>,
    /// This node, if the daemon has a node.
    pub me: Option<TailnetNode>,
    /// The network device that carries this node's tailnet address.
    pub device: Option<String>,
    /// The other nodes.
    pub peers: Vec<TailnetNode>,
    /// Why the tailnet does not work, in one word (`stopped_by_user`, `logged_out`,
    /// `starting`, `daemon_down`, `no_tailnet`); empty if it does.
    pub why: String,
    /// Which coordinator and tailnet this is; `None` while the daemon names no tailnet.
    pub control: Option<ControlId>,
    /// The coordinator's URL, known even while the daemon names no tailnet.
    pub control_url: String,
    /// Whether all traffic goes through an exit node, that to the local network too. Then
    /// nothing is left of the local network.
    pub exit_node_blocks_lan: bool,
    /// The daemon's own warnings, for showing.
    pub health: Vec<String>,
}

impl TailnetView {
    /// The picture while there is nobody to ask.
    pub fn absent(why: &str) -> TailnetView {
        TailnetView { why: why.to_owned(), ..TailnetView::default() }
    }

    /// The peer whose own address this is.
    pub fn peer_at(&self, address: IpAddr) -> Option<&TailnetNode> {
        self.peers.iter().find(|n| n.addrs.contains(&address))
    }

    /// This node's tailnet address of the same family as `other`.
    pub fn own_address_like(&self, other: IpAddr) -> Option<IpAddr> {
        self.me.as_ref()?.addrs.iter().copied().find(|a| a.is_ipv4() == other.is_ipv4())
    }
}

/// A node of the tailnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TailnetNode {
    /// Its identity.
    pub id: NodeId,
    /// The first label of its MagicDNS name, or its host name.
    pub name: NodeName,
    /// Its MagicDNS name without the final dot; may be empty.
    pub dns: String,
    /// Its owner or its tags.
    pub principal: Principal,
    /// Whether it belongs to another tailnet and is shared in.
    pub shared: bool,
    /// Its own addresses: the `/32` and `/128` ones. Subnets behind it never count.
    pub addrs: Vec<IpAddr>,
    /// Its operating system as the daemon spells it.
    pub os: String,
    /// Whether the coordinator believed it to be online. A hint.
    pub online: bool,
    /// Whether it is a phone, a tablet or a television: not worth a probe.
    pub mobile: bool,
    /// When the coordinator made it, as the coordinator writes it. Headscale counts its nodes
    /// 1, 2, 3, and again from 1 after its database was wiped: an id means the same node only
    /// together with this.
    pub created: String,
    /// Its node key as the coordinator lists it (`nodekey:…`); empty if it is not said.
    pub key: String,
    /// When that key expires; `None` = it does not (tagged nodes), or it is not said.
    pub expires: Option<Wall>,
    /// Whether it has expired already.
    pub expired: bool,
    /// Where the tunnel to it really goes now; `None` = nowhere, or through a relay. On the
    /// local network this is its address there.
    pub current: Option<SocketAddr>,
    /// Its home relay's region code; empty if it is not said.
    pub relay: String,
}

impl TailnetNode {
    /// A node of which nothing else is known: it has no address, and nobody says it is online.
    pub fn new(id: NodeId, name: NodeName, principal: Principal) -> TailnetNode {
        TailnetNode {
            id,
            name,
            dns: String::new(),
            principal,
            shared: false,
            addrs: Vec::new(),
            os: String::new(),
            online: false,
            mobile: false,
            created: String::new(),
            key: String::new(),
            expires: None,
            expired: false,
            current: None,
            relay: String::new(),
        }
    }

    /// The same as pins are made from; `None` of what is no node of a tailnet.
    pub fn listed(&self) -> Option<ListedPeer<'_>> {
        let NodeId::Tailnet { stable, .. } = &self.id else { return None };
        Some(ListedPeer {
            stable,
            created: &self.created,
            name: &self.name,
            dns: &self.dns,
            principal: &self.principal,
            shared: self.shared,
            node_key: &self.key,
            expires: self.expires,
            expired: self.expired,
            addrs: &self.addrs,
        })
    }
}

/// Whether an address lies in the ranges tailnets take theirs from: `100.64.0.0/10` and
/// `fd7a:115c:a1e0::/48`. Carriers use the first one too, so a packet to such an address that
/// leaves by the default route reaches a stranger.
pub fn is_tailnet_range(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(a) => a.octets()[0] == 100 && a.octets()[1] & 0xc0 == 64,
        IpAddr::V6(a) => a.segments()[..3] == [0xfd7a, 0x115c, 0xa1e0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tailnet_ranges_are_known() {
        for (text, want) in [
            ("100.64.0.0", true),
            ("100.127.255.255", true),
            ("::ffff:100.64.0.1", true),
            ("fd7a:115c:a1e0::1", true),
            ("100.63.255.255", false),
            ("100.128.0.0", false),
            ("10.64.0.1", false),
            ("fd7a:115c:a1e1::1", false),
        ] {
            assert_eq!(is_tailnet_range(text.parse().unwrap()), want, "{text}");
        }
    }
}
