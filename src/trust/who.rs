//! Whom a word of a rule means.
//!
//! A rule is a list of words (`owner:self`, `tag:gpu` …). Here each word is held against a
//! node as LocalAPI names it. Three things make that safe:
//!
//! - Everything is compared inside one control id. Headscale counts its users 1, 2, 3, so an
//!   id of another coordinator means another person.
//! - Owners are compared by number, never by login name; only the word `user:a@b`, which is
//!   written by hand, reads the login name.
//! - A node shared in from another tailnet is nobody until a rule names it: `user:a@b`, or
//!   `node:` with its whole MagicDNS name or its stable id. Its short name is chosen by a
//!   stranger and may well be that of a device of ours.

use crate::types::{Caller, CallerKind, NodeId, NodeName, Principal, Who};

/// What rules need to know of this node and its tailnet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tailnet {
    /// This node as the coordinator knows it; `None` without a tailnet, and then no rule
    /// matches any node.
    pub me: Option<Me>,
    /// How many people own nodes of this tailnet, as far as this node sees (nodes shared in
    /// are not counted); `None` while the list of peers is not known.
    pub people: Option<usize>,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    /// Its owner or its tags.
    pub principal: Principal,
    /// Its name, for texts.
    pub name: NodeName,
}

impl Tailnet {
    /// A tailnet of which `me` is a node, and in which these others are seen.
    pub fn new<'a>(me: Option<Me>, others: Option<impl Iterator<Item = Subject<'a>>>) -> Tailnet {
        let people = others.map(|others| {
            let mut owners: Vec<_> = others
                .filter(|o| !o.shared)
                .filter_map(|o| owner(o.principal))
                .chain(me.iter().filter_map(|m| owner(&m.principal)))
                .collect();
            owners.sort_unstable();
            owners.dedup();
            owners.len()
        });
        Tailnet { me, people }
    }

    /// Whether all nodes that belong to people belong to one person. Not knowing is no.
    pub fn is_one_person(&self) -> bool {
        self.people.is_some_and(|n| n <= 1)
    }

    /// Whether `subject` belongs to this node's own owner. A tagged node has no owner.
    pub fn is_own(&self, subject: &Subject<'_>) -> bool {
        !subject.shared
            && self.me.as_ref().is_some_and(|m| m.principal.same_owner(subject.principal))
    }

    /// Whether `who` means `subject`.
    pub fn means(&self, who: &Who, subject: &Subject<'_>) -> bool {
        let Some(me) = &self.me else { return false };
        if subject.principal.control() != me.principal.control() {
            return false;
        }
        match who {
            Who::User(login) => matches!(
                subject.principal,
                Principal::User { login: l, .. } if l.eq_ignore_ascii_case(login)
            ),
            Who::Node(name) => subject.is_named(name),
            _ if subject.shared => false,
            Who::OwnerSelf => self.is_own(subject),
            Who::Person => matches!(subject.principal, Principal::User { .. }),
            Who::Tag(tag) => {
                matches!(subject.principal, Principal::Tags { set, .. } if set.contains(tag))
            }
            Who::Tagged => matches!(subject.principal, Principal::Tags { .. }),
            Who::Anyone => true,
            Who::Pin(_) | Who::Local | Who::Uid(_) => false,
        }
    }

    /// The first of `words` that means `subject`.
    pub fn first<'w>(&self, words: &'w [Who], subject: &Subject<'_>) -> Option<&'w Who> {
        words.iter().find(|who| self.means(who, subject))
    }
}

fn owner(principal: &Principal) -> Option<(&str, i64)> {
    match principal {
        Principal::User { control, id, .. } => Some((&control.0, *id)),
        Principal::Tags { .. } => None,
    }
}

/// A node of the tailnet, as LocalAPI names it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its identity.
    pub id: &'a NodeId,
    /// Its short name.
    pub name: &'a NodeName,
    /// Its whole MagicDNS name; empty if not known.
    pub dns: &'a str,
    /// Its owner or tags.
    pub principal: &'a Principal,
    /// Whether it is shared in from another tailnet.
    pub shared: bool,
}

impl<'a> Subject<'a> {
    /// The node behind a caller; `None` for a program on this machine.
    pub fn of(caller: &'a Caller) -> Option<Subject<'a>> {
        match &caller.kind {
            CallerKind::Local { .. } | CallerKind::Pin { .. } => None,
            CallerKind::Node { id, name, dns, principal, shared, .. } => {
                Some(Subject { id, name, dns, principal, shared: *shared })
            }
        }
    }

    fn is_named(&self, name: &str) -> bool {
        let whole = |text: &str| text.trim_end_matches('.').to_ascii_lowercase();
        let by_id = matches!(self.id, NodeId::Tailnet { stable, .. } if **stable == *name);
        let by_dns = !self.dns.is_empty() && whole(self.dns) == whole(name);
        let by_name = !self.shared && self.name.as_str().eq_ignore_ascii_case(name);
        by_id || by_dns || by_name
    }
}
