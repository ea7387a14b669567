//! What a caller says in `x-tailherd-*` headers, and in the one header that names a session.
//!
//! Read once from the head as it came; the headers themselves are stripped before anything
//! is sent on. From a peer only what one sidecar may say to another counts.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;

use crate::api::attempt;
use crate::config::Place;
use crate::types::{Class, NodeName};

/// Longest session key.
const MOST_SESSION: usize = 128;

/// Where the answer may come from, the nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Where {
    /// Only this node.
    This,
    /// Only nodes of this node's owner.
    Mine,
    /// Only the mesh, no hosted step.
    Mesh,
    /// Nothing said.
    #[default]
    Anywhere,
}

impl From<Place> for Where {
    fn from(place: Place) -> Where {
        match place {
            Place::This => Where::This,
            Place::Mine => Where::Mine,
            Place::Mesh => Where::Mesh,
        }
    }
}

/// What the caller asked for beside the request itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Wishes {
    /// The node that is to answer.
    pub(crate) peer: Option<String>,
    /// What belongs together.
    pub(crate) session: Option<String>,
    pub(crate) priority: Option<Class>,
    pub(crate) place: Where,
    /// The agent that asks: its chain is meant, and its rules of `priority`.
    pub(crate) agent: Option<String>,
    pub(crate) explain: bool,
    /// The longest wait a peer's request accepts here.
    pub(crate) wait_budget: Option<Duration>,
    /// Whether that peer takes the model to be in memory here.
    pub(crate) loaded: bool,
    /// What the sidecar that sent it calls it.
    pub(crate) attempt: Option<Arc<str>>,
}

impl Wishes {
    pub(crate) fn read(headers: &HeaderMap, from_peer: bool) -> Wishes {
        // Most programs know nothing of us: one look instead of one for each wish.
        if !headers.keys().any(|name| name.as_str().starts_with("x-")) {
            return Wishes::default();
        }
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
        let session = text("x-tailherd-session")
            .or_else(|| text("x-openwebui-chat-id"))
            .filter(|s| !s.is_empty() && s.len() <= MOST_SESSION)
            .map(str::to_owned);
        let priority = match text("x-tailherd-priority") {
            Some("interactive") => Some(Class::Interactive),
            Some("batch") => Some(Class::Batch),
            _ => None,
        };
        if from_peer {
            return Wishes {
                session,
                priority,
                wait_budget: text(attempt::BUDGET).and_then(attempt::budget),
                loaded: text(attempt::PLAN) == Some(attempt::plan(false)),
                attempt: text(attempt::ATTEMPT).and_then(attempt::number),
                ..Wishes::default()
            };
        }
        // A name in bytes that are no text is a wrong name, not none.
        let named = |name: &str| {
            let value = headers.get(name)?.as_bytes();
            Some(String::from_utf8_lossy(value).trim().to_owned()).filter(|s| !s.is_empty())
        };
        Wishes {
            peer: named("x-tailherd-peer"),
            session,
            priority,
            place: match text("x-tailherd-where") {
                Some("self") => Where::This,
                Some("mine") => Where::Mine,
                Some("mesh") => Where::Mesh,
                _ => Where::Anywhere,
            },
            agent: named("x-tailherd-agent"),
            explain: headers.contains_key("x-tailherd-explain"),
            wait_budget: None,
            loaded: false,
            attempt: None,
        }
    }

    /// The node that is to answer, if what was said can be a name at all.
    pub(crate) fn node(&self) -> Option<NodeName> {
        NodeName::parse(self.peer.as_deref()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&'static str, &'static str)], from_peer: bool) -> Wishes {
        let headers = pairs
            .iter()
            .map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap()))
            .collect::<HeaderMap>();
        Wishes::read(&headers, from_peer)
    }

    #[test]
    fn a_peer_may_not_say_what_an_app_may() {
        let said = [
            ("x-tailherd-peer", "desk"),
            ("x-tailherd-where", "self"),
            ("x-tailherd-explain", "1"),
            ("x-tailherd-wait-budget", "1500"),
            ("x-tailherd-plan", "loaded"),
            ("x-tailherd-attempt", "0123456789abcdef0123456789abcdef"),
            ("x-tailherd-priority", "own"),
        ];
        let peer = read(&said, true);
        assert_eq!((peer.wait_budget, peer.loaded), (Some(Duration::from_millis(1500)), true));
        assert!(peer.attempt.is_some());
        let rest = Wishes { wait_budget: None, loaded: false, attempt: None, ..peer };
        assert_eq!(rest, Wishes::default());
        assert!(!read(&[("x-tailherd-plan", "load")], true).loaded);
        let app = read(&said, false);
        assert_eq!(app.node().unwrap().as_str(), "desk");
        assert_eq!((app.place, app.explain, app.wait_budget), (Where::This, true, None));
        assert_eq!((app.loaded, app.attempt), (false, None));
        assert_eq!(app.priority, None, "nobody says `own`");
    }

    #[test]
    fn a_wrong_name_is_not_no_name() {
        let mut headers = HeaderMap::new();
        headers.insert("x-tailherd-peer", http::HeaderValue::from_bytes(b"\xff").unwrap());
        let wishes = Wishes::read(&headers, false);
        assert!(wishes.peer.is_some() && wishes.node().is_none());
    }
}
