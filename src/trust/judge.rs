//! What a key on the local network is worth right now.
//!
//! In: the pins, the clock's standing, the last packet filter, a key, the time. Out: a
//! [`Verdict`]. Pure: it is asked again for each request, because a pin may die between two.
//!
//! On the local network nobody can be asked about a caller, so what the tailnet last said
//! holds, and only for a while: a pin ends with the node's own key, some days after the
//! tailnet last vouched for it, and at once where the clock cannot be believed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::pins::{Pin, PinState};
use super::view::View;
use crate::types::{Caller, CallerKind, NodeId, PublicKey, Wall};

/// How lately a node must have reached us over the tailnet where the filter does not say
/// whether it may.
const REACHED: Duration = Duration::from_secs(24 * 3600);

/// What a key is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// No pin has it, or none that was ever confirmed.
    Unknown,
    /// Its pin is suspended.
    Suspended,
    /// The node's own key, or what was said for a key added by hand, has ended.
    Expired,
    /// The tailnet has not vouched for it for too long.
    Stale,
    /// The clock was set back: ages mean nothing until the tailnet was seen.
    ClockBack,
    /// The tailnet's policy does not let it reach this node.
    Policy,
    /// It may ask. The addresses are those it has on the tailnet; while one of them still
    /// answers, it is to use that.
    Admit(Box<Caller>, Vec<IpAddr>),
}

impl Verdict {
    /// The word in status and logs.
    pub const fn label(&self) -> &'static str {
        match self {
            Verdict::Unknown => "not pinned",
            Verdict::Suspended => "suspended",
            Verdict::Expired => "expired",
            Verdict::Stale => "too long without the tailnet",
            Verdict::ClockBack => "clock set back",
            Verdict::Policy => "not let in by the tailnet's policy",
            Verdict::Admit(..) => "live",
        }
    }
}

impl View {
    /// What `key` may do here by way of the local network.
    pub fn judge(&self, key: &PublicKey, now: Wall) -> Verdict {
        let Some(pin) = self.by_key(key) else { return Verdict::Unknown };
        if let Err(why) = self.standing(pin, now) {
            return why;
        }
        let age = now.since(pin.verified);
        if let Some(hand) = &pin.by_hand {
            let kind = CallerKind::Pin {
                name: pin.name.as_str().into(),
                verbs: hand.verbs.iter().copied().collect(),
                models: hand.models.as_slice().into(),
            };
            let caller = Caller { kind, addr: None, lan: Some(now.since(pin.learned)) };
            return Verdict::Admit(Box::new(caller), Vec::new());
        }
        // What tags and grants give ends sooner than what an owner's own devices have.
        if !pin.is_own(self.own.as_ref()) && age > self.bounds.grant {
            return Verdict::Stale;
        }
        if !self.lets_in(pin, now) {
            return Verdict::Policy;
        }
        let Some(principal) = pin.principal.clone() else { return Verdict::Unknown };
        let kind = CallerKind::Node {
            id: pin.node.clone(),
            name: pin.name.clone(),
            dns: pin.dns.as_str().into(),
            principal,
            shared: pin.shared,
            grants: Arc::from(pin.grants.as_slice()),
        };
        Verdict::Admit(Box::new(Caller { kind, addr: None, lan: Some(age) }), pin.tailnet.clone())
    }

    /// The pin of a node, if it may be used at `now`: dialled, announced to, believed.
    pub fn live(&self, node: &NodeId, now: Wall) -> Option<&Pin> {
        self.pin(node).filter(|pin| self.standing(pin, now).is_ok())
    }

    /// The live pin that has this key.
    pub fn live_key(&self, key: &PublicKey, now: Wall) -> Option<&Pin> {
        self.by_key(key).filter(|pin| self.standing(pin, now).is_ok())
    }

    /// Whether a pin may be used at all at `now`, whatever rules say; or why not.
    pub fn standing(&self, pin: &Pin, now: Wall) -> Result<(), Verdict> {
        match pin.state {
            PinState::Pending => return Err(Verdict::Unknown),
            PinState::Suspended { .. } => return Err(Verdict::Suspended),
            PinState::Live => {}
        }
        if !self.clock_ok || self.is_set_back(now) {
            return Err(Verdict::ClockBack);
        }
        let over = |end: Wall| now >= end;
        if pin.expired
            || pin.expires.is_some_and(over)
            || pin.by_hand.as_ref().is_some_and(|h| over(h.until))
        {
            return Err(Verdict::Expired);
        }
        if over(pin.ends(&self.bounds)) { Err(Verdict::Stale) } else { Ok(()) }
    }

    /// Whether the tailnet's policy lets a node reach our mesh port: as the last packet filter
    /// says; where it cannot say, by whether the node did so within a day, and since the
    /// filter last changed.
    fn lets_in(&self, pin: &Pin, now: Wall) -> bool {
        let own = self.own.as_ref().map(|o| o.addrs.as_slice()).unwrap_or_default();
        let said = self
            .filter
            .as_ref()
            .and_then(|f| f.filter.reaches(&pin.tailnet, own, &self.bounds.ports));
        said.unwrap_or_else(|| {
            pin.reached.is_some_and(|at| {
                now.since(at) < REACHED && self.filter.as_ref().is_none_or(|f| at > f.changed)
            })
        })
    }
}
