//! Which nodes of the tailnet may be used, and why the others are not: a pure function of one
//! picture of the tailnet, the `sendTo` rules and the list of nodes met before.

use std::collections::HashMap;

use super::dns::{self, Place};
use super::known::{Known, Listed};
use crate::config::NewNodes;
use crate::directory::Unused;
use crate::directory::event::{Grant, Identity, Peer};
use crate::net::{TailnetNode, TailnetView};
use crate::trust::{Me, Pin, SendTo, Subject, Tailnet, View};
use crate::types::{NodeId, Wall};

/// The nodes of a tailnet, sorted out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sorted {
    /// To whom prompts may go.
    pub(super) peers: Vec<Peer>,
    /// Who is only seen.
    pub(super) unused: Vec<Unused>,
}

/// A node as rules see it.
pub fn subject(node: &TailnetNode) -> Subject<'_> {
    Subject {
        id: &node.id,
        name: &node.name,
        dns: &node.dns,
        principal: &node.principal,
        shared: node.shared,
    }
}

/// A node as the directory knows it.
pub(super) fn identity(node: &TailnetNode) -> Identity {
    Identity {
        id: node.id.clone(),
        name: node.name.clone(),
        principal: Some(node.principal.clone()),
    }
}

/// What rules need to know, out of a whole picture of a running tailnet.
pub fn facts(view: &TailnetView) -> Tailnet {
    let me = view.me.as_ref();
    let me = me.map(|me| Me { principal: me.principal.clone(), name: me.name.clone() });
    Tailnet::new(me, Some(view.peers.iter().map(subject)))
}

/// Whether a node waits for `trust accept`.
pub fn waits(node: &TailnetNode, send_to: &SendTo, known: &Known, new_nodes: NewNodes) -> bool {
    listed(node, send_to).is_none_or(|listed| !known.allows(&listed, new_nodes))
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

/// Sorts `nodes` out; `places` is what `dns.names` say.
pub(super) fn sort(
    nodes: &[TailnetNode],
    send_to: &SendTo,
    known: &Known,
    new_nodes: NewNodes,
    places: &[Place],
) -> Sorted {
    let mut sorted = Sorted::default();
    for node in nodes {
        let refused = match send_to.allows(&subject(node)) {
            Err(refused) => refused.to_string(),
            Ok(_) if waits(node, send_to, known, new_nodes) => {
                format!("waits for: tailherd trust accept {}", node.name)
            }
            // Phones sleep with their radio off and run no engine: a probe only wakes them.
            Ok(_) if node.mobile => format!("{} is not looked at", node.os),
            Ok(grant) => {
                let (addrs, also) = dns::told(places, &node.addrs);
                sorted.peers.push(Peer {
                    who: identity(node),
                    addrs,
                    also,
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

/// The peers of `new` whose silence until `old` says nothing any more: those that came to the
/// list, came back or were given another key; and all of them if this node was.
pub(super) fn returned<'a>(
    old: &TailnetView,
    new: &'a TailnetView,
) -> impl Iterator<Item = &'a NodeId> {
    let key = |node: &TailnetNode| (node.id.clone(), node.created.clone(), node.key.clone());
    let all = new.running
        && (!old.running
            || new.online == Some(true) && old.online != Some(true)
            || new.me.as_ref().map(key) != old.me.as_ref().map(key));
    let before: HashMap<_, _> = old.peers.iter().map(|node| (key(node), node)).collect();
    let is_back = move |node: &&TailnetNode| {
        all || new.running
            && before
                .get(&key(node))
                .is_none_or(|old| (node.online && !old.online) || (old.expired && !node.expired))
    };
    new.peers.iter().filter(is_back).map(|node| &node.id).collect::<Vec<_>>().into_iter()
}

/// Sorts out those whose keys a person added, as long as their time is not over: no tailnet
/// has them, so they have no address in one, and no principal.
pub(super) fn sort_pins(sorted: &mut Sorted, trust: &View, send_to: &SendTo, now: Wall) {
    let by_hand = |pin: &&Pin| pin.by_hand.is_some() && trust.standing(pin, now).is_ok();
    for pin in trust.pins.iter().filter(by_hand) {
        match send_to.allows_pin(pin.name.as_str()) {
            Ok(grant) => sorted.peers.push(Peer {
                who: Identity { id: pin.node.clone(), name: pin.name.clone(), principal: None },
                addrs: Vec::new(),
                also: Vec::new(),
                grant: Grant { rich: grant.rich, bare: Vec::new() },
            }),
            Err(refused) => sorted.unused.push(Unused {
                name: pin.name.clone(),
                owner: String::new(),
                why: format!("{refused} (as pin:{})", pin.name),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ControlId, NodeName, Principal};

    fn control() -> ControlId {
        ControlId("home".into())
    }

    fn owned(user: i64) -> Principal {
        Principal::User { control: control(), id: user, login: format!("u{user}@x").into() }
    }

    fn node(name: &str, principal: Principal, os: &str) -> TailnetNode {
        let id = NodeId::Tailnet { control: control(), stable: format!("n-{name}").into() };
        TailnetNode {
            dns: format!("{name}.x.ts.net"),
            addrs: vec!["100.64.0.9".parse().unwrap()],
            os: os.to_owned(),
            online: true,
            mobile: os == "iOS",
            created: "2026-01-01".to_owned(),
            ..TailnetNode::new(id, NodeName::from_dns(name), principal)
        }
    }

    #[test]
    fn who_came_back_is_looked_at_anew() {
        let peers = vec![node("desk", owned(1), "linux"), node("gpu", owned(1), "linux")];
        let me = Some(node("me", owned(1), "linux"));
        let before =
            TailnetView { running: true, online: Some(true), me, peers, ..TailnetView::default() };
        type Change = fn(&mut TailnetView);
        let cases: [(&str, Change, Change, &[&str]); 9] = [
            ("nothing", |_| {}, |_| {}, &[]),
            ("listed again", |v| v.peers.truncate(1), |_| {}, &["gpu"]),
            ("came online", |v| v.peers[1].online = false, |_| {}, &["gpu"]),
            ("went offline", |_| {}, |v| v.peers[1].online = false, &[]),
            ("joined anew", |_| {}, |v| v.peers[0].key = "other".to_owned(), &["desk"]),
            ("let in again", |v| v.peers[0].expired = true, |_| {}, &["desk"]),
            ("this node is online again", |v| v.online = Some(false), |_| {}, &["desk", "gpu"]),
            (
                "this node joined anew",
                |_| {},
                |v| v.me.as_mut().unwrap().key = "other".to_owned(),
                &["desk", "gpu"],
            ),
            ("no tailnet runs", |v| v.peers.clear(), |v| v.running = false, &[]),
        ];
        for (what, change_old, change_new, want) in cases {
            let (mut old, mut new) = (before.clone(), before.clone());
            change_old(&mut old);
            change_new(&mut new);
            let back: Vec<_> = returned(&old, &new).map(|id| id.to_string()).collect();
            let names: Vec<String> = want.iter().map(|name| format!("home/n-{name}")).collect();
            assert_eq!(back, names, "{what}");
        }
    }

    #[test]
    fn a_peer_is_told_only_if_every_rule_lets_it() {
        let tags = Principal::Tags { control: control(), set: ["tag:ollama".into()].into() };
        let mut nodes = vec![
            node("studio", owned(1), "macOS"),
            node("phone", owned(1), "iOS"),
            node("gpu", tags.clone(), "linux"),
            node("dev", owned(2), "linux"),
        ];
        let me = Me { principal: owned(1), name: NodeName::from_dns("macbook") };
        let tailnet = Tailnet::new(Some(me), Some(nodes.iter().map(subject)));
        let send_to = SendTo::new(None, None, &tailnet);
        let mut known = Known::forgetful();
        known.list(nodes.iter().filter_map(|n| listed(n, &send_to)), 1);
        nodes.push(node("late", tags, "linux"));
        nodes.push(node("laptop", owned(1), "linux"));
        let guest = TailnetNode { shared: true, ..node("guest", owned(1), "linux") };
        nodes.push(guest);
        known.list(nodes.iter().filter_map(|n| listed(n, &send_to)), 1);

        let sorted = sort(&nodes, &send_to, &known, NewNodes::Auto, &[]);
        let names: Vec<&str> = sorted.peers.iter().map(|p| p.who.name.as_str()).collect();
        assert_eq!(names, ["studio", "gpu", "laptop"]);
        assert!(sorted.peers.iter().all(|p| p.grant == Grant::all() && p.addrs.len() == 1));
        let why: Vec<String> =
            sorted.unused.iter().map(|u| format!("{}: {}", u.name, u.why)).collect();
        assert_eq!(
            why,
            [
                "phone: iOS is not looked at",
                "dev: not in sendTo",
                "late: waits for: tailherd trust accept late",
                "guest: shared in from another tailnet, named by no rule of sendTo",
            ]
        );
        let held = sort(&nodes, &send_to, &known, NewNodes::Hold, &[]);
        assert!(held.peers.is_empty());
    }
}
