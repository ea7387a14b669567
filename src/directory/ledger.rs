//! Who else uses a server that says nothing of itself.
//!
//! An engine without a sidecar does not tell how many requests wait at it. So each sidecar
//! tells of its own, and the sum is the queue. A server is named by a digest which only those
//! recognise who list it themselves, and only servers of the tailnet are named: where else this
//! node asks is nobody's business. What is believed can only make such a server look busier.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use sha2::{Digest as _, Sha256};

use super::cell::Cell;
use super::snapshot::{Offer, Snapshot};
use crate::api::report::{Bare, MOST_BARE};
use crate::types::{Moment, NodeId, NodeKind};

/// This node's own requests at such servers.
pub fn told(snapshot: &Snapshot, now: Moment) -> Vec<Bare> {
    let mut all: Vec<Bare> = named(snapshot)
        .filter_map(|(offer, stable)| {
            let inflight = offer.cell.inflight.load(Relaxed);
            let left = offer.cell.report.left(now).as_millis();
            let left_ms = u64::try_from(left).unwrap_or(u64::MAX);
            (inflight > 0).then(|| Bare { at: mark(offer, stable), inflight, left_ms })
        })
        .collect();
    all.sort_by_key(|bare| std::cmp::Reverse(bare.left_ms));
    all.truncate(MOST_BARE);
    all
}

/// Whether this node has requests at such servers.
pub fn is_busy(snapshot: &Snapshot) -> bool {
    named(snapshot).any(|(offer, _)| offer.cell.inflight.load(Relaxed) > 0)
}

/// What one peer says of servers that are used here, too. Taken back when dropped.
#[derive(Debug, Default)]
pub struct Claimed(Vec<(Arc<Cell>, u32, u64)>);

impl Claimed {
    /// Takes in what it says now, in place of what it said before.
    pub fn replace(&mut self, told: &[Bare], snapshot: &Snapshot) {
        self.clear();
        if told.is_empty() {
            return;
        }
        let used: HashMap<String, &Arc<Cell>> =
            named(snapshot).map(|(offer, stable)| (mark(offer, stable), &offer.cell)).collect();
        for bare in told.iter().take(MOST_BARE) {
            // Each server once, however often it is named.
            if let Some(cell) = used.get(&bare.at)
                && !self.0.iter().any(|(had, ..)| Arc::ptr_eq(had, cell))
            {
                cell.report.more(bare.inflight, bare.left_ms);
                self.0.push((Arc::clone(cell), bare.inflight, bare.left_ms));
            }
        }
    }

    /// Nothing is claimed any more.
    pub fn clear(&mut self) {
        for (cell, requests, left) in self.0.drain(..) {
            cell.report.fewer(requests, left);
        }
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The offers of servers without a sidecar that can be named, each with its stable id.
fn named(snapshot: &Snapshot) -> impl Iterator<Item = (&Arc<Offer>, String)> {
    let offers = snapshot.models.values().flat_map(|m| m.offers.iter().chain(&m.variants));
    let is_named = |o: &&Arc<Offer>| {
        o.node.kind == NodeKind::Bare && matches!(o.node.id, NodeId::Tailnet { .. })
    };
    offers.filter(is_named).map(|offer| (offer, offer.node.id.to_string()))
}

fn mark(offer: &Offer, stable: String) -> String {
    let mut hash = Sha256::new();
    for part in ["tailherd bare", &stable, &offer.endpoint.name, offer.key.as_str()] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let hash = hash.finalize();
    hash.iter().take(12).fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{engine, id, listing, model, need, peer, picture};
    use super::super::{Event, Identity, Sent, candidates};
    use super::*;
    use crate::types::{ModelKey, NodeName};
    use std::time::Duration;

    /// What a node knows that uses `nas`, which has no sidecar, and `gpu`, which has one.
    fn node(name: &str) -> Snapshot {
        let this = Identity::lone(NodeName::parse(name).unwrap());
        let bare = super::super::Listing {
            kind: NodeKind::Bare,
            engines: vec![engine("ollama", vec![model("tiny"), model("big")])],
            ..listing(3, vec![])
        };
        let events = vec![
            Event::Peers(vec![peer("gpu", 2), peer("nas", 3)]),
            Event::Listed { node: id("gpu"), listing: listing(2, vec![model("tiny")]) },
            Event::Listed { node: id("nas"), listing: bare },
        ];
        picture(this, events)
    }

    fn at<'a>(snapshot: &'a Snapshot, node: &str, name: &str) -> &'a Arc<Offer> {
        snapshot.offer(&id(node), "ollama", &ModelKey::parse(name).unwrap()).unwrap()
    }

    #[test]
    fn what_two_nodes_send_to_a_server_without_a_sidecar_adds_up() {
        let (laptop, desk) = (node("laptop"), node("desk"));
        let now = Moment::from_millis(1000);
        let (work, reads) = (Duration::from_secs(8), Duration::from_secs(2));
        let send = |node, now| Sent::new(at(&laptop, node, "tiny"), work, reads, Some(9.0), now);
        let mut one = send("nas", now);
        let _two = send("nas", now);
        let _elsewhere = send("gpu", now);
        one.began(now + Duration::from_secs(3));
        let said = told(&laptop, now + Duration::from_secs(7));
        assert_eq!(said.len(), 1, "what has a sidecar tells itself: {said:?}");
        // Of the first two seconds are left to write, and the second waits as it did.
        assert_eq!((said[0].inflight, said[0].left_ms), (2, 10_000));
        assert!(!said[0].at.contains("nas") && is_busy(&laptop));

        let mut claimed = Claimed::default();
        claimed.replace(&said, &desk);
        let there = &at(&desk, "nas", "tiny").cell.report;
        assert_eq!((there.others(), at(&desk, "nas", "big").cell.report.others()), (2, 0));
        assert_eq!(there.left_of_all(now), Duration::from_secs(10));
        let mut out = Vec::new();
        let mut see = |name: &str| {
            let model = &desk.models[&ModelKey::parse(name).unwrap()];
            candidates::of(&model.offers, &need(&[]), now, &mut out);
            let nas = out.iter().find(|c| model.offers[c.index].node.name.as_str() == "nas");
            nas.map(|c| (c.left, c.line)).unwrap()
        };
        // The load that the two wait for comes first.
        let load = 1e-6 + crate::balance::rates::LOAD_START;
        let cold = ((Some(10.0), Some(0.0)), (Some(0.0), Some(load)));
        assert_eq!((see("tiny"), see("big")), cold);
        at(&desk, "nas", "tiny").cell.set_loaded(4096);
        // The one in memory has to fall idle before the other is loaded, and stays busy for
        // twice as long as it seems.
        assert_eq!((see("tiny"), see("big")), ((Some(10.0), None), (Some(0.0), Some(20.0))));
        drop(one);
        claimed.replace(&told(&laptop, now), &desk);
        assert_eq!(there.others(), 1);
        drop(claimed);
        assert_eq!(there.others(), 0, "who says nothing any more claims nothing");
    }

    #[test]
    fn a_claim_about_what_is_not_used_here_or_said_twice_counts_for_nothing() {
        let desk = node("desk");
        let nas = mark(at(&desk, "nas", "tiny"), id("nas").to_string());
        let gpu = mark(at(&desk, "gpu", "tiny"), id("gpu").to_string());
        let bare = |at: &str| Bare { at: at.to_owned(), inflight: 60, left_ms: 1 };
        let mut claimed = Claimed::default();
        claimed.replace(&[bare("abcd"), bare(&gpu), bare(&nas), bare(&nas)], &desk);
        assert_eq!(at(&desk, "gpu", "tiny").cell.report.others(), 0);
        assert_eq!(at(&desk, "nas", "tiny").cell.report.others(), 60);
    }
}
