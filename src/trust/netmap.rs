//! How pins are lost: what the network map, the owner's other devices and time take away.
//!
//! In: the tailnet's list of nodes, each time it is read. Out: changed pins, and the [`Step`]s
//! that a person may want to see. An absence counts only while the coordinator is there to
//! be asked, and as much of it as was looked at: a frozen list takes nothing away.

use std::net::IpAddr;
use std::time::Duration;

use super::book::Book;
use super::pins::{Gone, Own, Pin, PinState, Step, What, Why};
use crate::api::hello::{Departed, MOST_DEPARTED};
use crate::types::{ControlId, NodeId, NodeName, Principal, Wall};

/// After which absence a pin is suspended.
const SUSPEND: u64 = 60;
/// After which absence it is deleted.
const DELETE: u64 = 24 * 3600;
/// Most time that two looks at the list may stand for.
const LOOK: Duration = Duration::from_secs(60);
/// How long a key that was only heard is remembered.
const HEARD: Duration = Duration::from_secs(24 * 3600);
/// How long a pin that ended is remembered, for its key to vouch for the next one.
const ENDED: Duration = Duration::from_secs(90 * 24 * 3600);
/// How much later than a device's word our own contact must be to be worth more.
const SKEW: Duration = Duration::from_secs(600);

/// The tailnet's list of nodes.
#[derive(Debug, Clone, Copy)]
pub struct Netmap<'a> {
    /// Of which tailnet.
    pub control: &'a ControlId,
    /// Whether the coordinator is there (`Self.Online`).
    pub online: bool,
    /// The other nodes.
    pub nodes: &'a [ListedPeer<'a>],
}

/// A node as LocalAPI names it, in the list or by WhoIs.
#[derive(Debug, Clone, Copy)]
pub struct ListedPeer<'a> {
    /// Its stable id.
    pub stable: &'a str,
    /// When the coordinator made it.
    pub created: &'a str,
    /// Its name.
    pub name: &'a NodeName,
    /// Its whole MagicDNS name.
    pub dns: &'a str,
    /// Its owner or tags.
    pub principal: &'a Principal,
    /// Whether it is shared in from another tailnet.
    pub shared: bool,
    /// Its node key.
    pub node_key: &'a str,
    /// When that ends.
    pub expires: Option<Wall>,
    /// Whether it has ended.
    pub expired: bool,
    /// Its tailnet addresses.
    pub addrs: &'a [IpAddr],
}

impl ListedPeer<'_> {
    /// Why this is not the node that `pin` was made for.
    pub(super) fn differs(&self, pin: &Pin) -> Option<&'static str> {
        let whose = match (&pin.principal, self.principal) {
            (Some(Principal::User { .. }), Principal::User { .. }) => {
                pin.principal.as_ref().is_some_and(|p| p.same_owner(self.principal))
            }
            (before, now) => before.as_ref() == Some(now),
        };
        if self.created != pin.created {
            Some("another node has its number now")
        } else if !whose {
            Some("its owner or its tags changed")
        } else if self.shared != pin.shared {
            Some("it belongs to another tailnet now")
        } else {
            None
        }
    }

    /// Brings what may change in a pin up to what the list says.
    pub(super) fn refresh(&self, pin: &mut Pin) {
        pin.name = self.name.clone();
        self.dns.clone_into(&mut pin.dns);
        pin.principal = Some(self.principal.clone());
        pin.tailnet = self.addrs.to_vec();
        pin.expires = self.expires;
        pin.expired = self.expired;
    }
}

impl Book {
    /// Takes in the list of nodes. To be called at least every half minute.
    pub(super) fn netmap(&mut self, map: &Netmap<'_>, now: Wall) -> Vec<Step> {
        self.heed(now);
        if *map.control != self.control {
            return Vec::new();
        }
        self.online = map.online;
        let looked = std::mem::replace(&mut self.looked, map.online.then_some(now));
        let gap = match looked {
            Some(at) if map.online => now.since(at).min(LOOK).as_secs(),
            _ => 0,
        };
        let mut steps = Vec::new();
        let mut pins = std::mem::take(&mut self.pins);
        pins.retain_mut(|pin| {
            let Some(stable) = pin.stable() else { return true };
            let Some(listed) = map.nodes.iter().find(|n| n.stable == stable) else {
                if map.online {
                    missed(pin, gap, now);
                }
                return true;
            };
            if let Some(why) = listed.differs(pin) {
                steps.push(Step::new(&pin.name, What::Deleted(why)));
                self.remove(pin, now);
                return false;
            }
            listed.refresh(pin);
            if map.online {
                returned(pin, listed.node_key, &mut steps);
            }
            true
        });
        self.pins = pins;
        if map.online {
            self.suspend(now, &mut steps);
            self.drop_gone(now, &mut steps);
            self.removed.retain(|r| !map.nodes.iter().any(|n| is_back(n, r)));
        }
        steps
    }

    /// Suspends what has been missing for a minute. What goes together with most of the others
    /// is suspended together with them, and that is said once.
    fn suspend(&mut self, now: Wall, steps: &mut Vec<Step>) {
        let here = |p: &Pin| p.stable().is_some() && !is_away(p);
        let of = self.pins.iter().filter(|p| here(p)).count();
        let going = || self.pins.iter().filter(|p| here(p)).filter_map(|p| p.gone);
        let most = going().count() * 2 > of;
        let mut many_now = false;
        for gone in self.pins.iter_mut().filter(|p| !is_away(p)).filter_map(|p| p.gone.as_mut()) {
            gone.many |= most;
            many_now |= gone.many && gone.seen >= SUSPEND;
        }
        let mut many = 0;
        for pin in self.pins.iter_mut().filter(|p| !is_away(p)) {
            let why = match pin.gone {
                Some(gone) if gone.many && many_now => Why::ManyGone,
                Some(gone) if !gone.many && gone.seen >= SUSPEND => Why::Gone,
                _ => continue,
            };
            if why == Why::Gone {
                steps.push(Step::new(&pin.name, What::Suspended(why.clone())));
            } else {
                many += 1;
            }
            pin.state = PinState::Suspended { since: now, why };
        }
        if many > 0 {
            let what = What::ManyGone { gone: many, of };
            steps.push(Step { name: String::new(), what });
        }
    }

    /// Deletes what has been missing for a day, and what is long over.
    fn drop_gone(&mut self, now: Wall, steps: &mut Vec<Step>) {
        let mut pins = std::mem::take(&mut self.pins);
        let bounds = self.bounds.clone();
        pins.retain(|pin| {
            if pin.by_hand.is_some() {
                return true;
            }
            let gone = matches!(pin.state, PinState::Suspended { why: Why::Gone, .. });
            if gone && pin.gone.is_some_and(|g| g.seen >= DELETE) {
                steps.push(Step::new(&pin.name, What::Deleted("not listed for 24 h")));
                self.remove(pin, now);
                return false;
            }
            if !pin.was_live() {
                return now.since(pin.learned) < HEARD;
            }
            now.since(pin.ends(&bounds)) < ENDED
        });
        self.pins = pins;
    }

    /// Remembers a node whose pin was taken away, for the owner's other devices.
    fn remove(&mut self, pin: &Pin, now: Wall) {
        let Some(stable) = pin.stable() else { return };
        let life = self.bounds.trust;
        self.removed.retain(|r| r.stable != stable && now.since(r.since) < life);
        self.removed.truncate(MOST_DEPARTED - 1);
        let since = pin.gone.map_or(now, |g| g.since);
        let (stable, created) = (stable.to_owned(), pin.created.clone());
        self.removed.push(Departed { stable, created, since });
    }

    /// What the device behind `to` is to be told: which nodes left the tailnet, as this node
    /// saw itself. Only a device of the same owner is told anything.
    pub(super) fn suspensions_for(&self, to: &Pin) -> Vec<Departed> {
        if !to.is_own(Some(&self.own)) {
            return Vec::new();
        }
        let gone = self.pins.iter().filter_map(|pin| match (&pin.state, pin.gone) {
            (PinState::Suspended { why: Why::Gone, .. }, Some(gone)) => Some(Departed {
                stable: pin.stable()?.to_owned(),
                created: pin.created.clone(),
                since: gone.since,
            }),
            _ => None,
        });
        gone.chain(self.removed.iter().cloned()).take(MOST_DEPARTED).collect()
    }

    /// Takes in what a device says of nodes that left. It is heard only if it belongs to this
    /// node's owner, and not about nodes that our own list, here and now, still has.
    pub(super) fn told_suspended(
        &mut self,
        from: &NodeId,
        told: &[Departed],
        now: Wall,
    ) -> Vec<Step> {
        let teller = self.pins.iter().find(|p| p.node == *from);
        let Some(teller) = teller.filter(|p| p.state == PinState::Live) else {
            return Vec::new();
        };
        if !teller.is_own(Some(&self.own)) || teller.expired || now >= teller.ends(&self.bounds) {
            return Vec::new();
        }
        let by = teller.name.clone();
        let online = self.online;
        let mut steps = Vec::new();
        for pin in &mut self.pins {
            let said = told.iter().find(|d| {
                pin.stable() == Some(d.stable.as_str())
                    && pin.created == d.created
                    && pin.node != *from
            });
            let Some(said) = said else { continue };
            if matches!(pin.state, PinState::Suspended { .. })
                || (online && pin.gone.is_none())
                || pin.verified > said.since + SKEW
            {
                continue;
            }
            let why = Why::Told(by.clone());
            steps.push(Step::new(&pin.name, What::Suspended(why.clone())));
            pin.state = PinState::Suspended { since: now, why };
        }
        steps
    }
}

/// Whether our own list already took it away.
fn is_away(pin: &Pin) -> bool {
    matches!(pin.state, PinState::Suspended { why: Why::Gone | Why::ManyGone, .. })
}

fn missed(pin: &mut Pin, gap: u64, now: Wall) {
    match &mut pin.gone {
        Some(gone) => gone.seen = gone.seen.saturating_add(gap),
        gone => *gone = Some(Gone { since: now, seen: 0, many: false }),
    }
}

fn returned(pin: &mut Pin, node_key: &str, steps: &mut Vec<Step>) {
    pin.gone = None;
    if matches!(pin.state, PinState::Suspended { .. }) {
        let same = pin.node_key == node_key;
        let what = if same { What::Restored } else { What::AskAgain };
        pin.state = if same && pin.was_live() { PinState::Live } else { PinState::Pending };
        steps.push(Step::new(&pin.name, what));
    }
    if pin.node_key != node_key {
        node_key.clone_into(&mut pin.node_key);
    }
}

fn is_back(node: &ListedPeer<'_>, gone: &Departed) -> bool {
    node.stable == gone.stable && node.created == gone.created
}

/// This node's own entry, as far as it tells whether the state is another machine's.
pub(super) fn is_same_machine(before: &Own, now: &Own) -> bool {
    before.stable == now.stable && before.created == now.created
}
