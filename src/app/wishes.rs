//! What a person asks of the running program, done.
//!
//! In: a [`Wish`] that came by the socket only this user opens. Out: what is said back. Each
//! change is an event too, so that nobody changes what is trusted without a trace.

use std::time::Duration;

use super::control::{AddKey, Said, Wish};
use super::{App, pins};
use crate::telemetry::wall;
use crate::trust::{ByHand, PinError, Refused, SendTo, Tailnet};
use crate::types::NodeName;

impl App {
    /// Does what a person wants. Reading the configuration again needs to know where it is,
    /// which only [`super::serve()`] does.
    pub async fn obey(&self, wish: Wish) -> Said {
        match wish {
            Wish::TrustAccept(name) => self.trust_accept(&name).await,
            Wish::TrustForget(name) => self.trust_forget(&name).await,
            Wish::TrustAdd(add) => self.trust_add(add).await,
            Wish::TrustList => Said::Pins(pins::rows(&self.trust.view(), wall())),
            Wish::TrustExport => export(&self.trust),
            Wish::LanAllow { seconds } => self.lan_allow(seconds).await,
            Wish::LanList => self.lan_list(),
            Wish::LanForget(which) => self.lan_forget(&which).await,
            Wish::Offline { on } => self.offline(on).await,
            Wish::Pause { seconds } => self.sharing.pause(seconds.map(Duration::from_secs)).await,
            Wish::Drain => self.sharing.drain().await,
            Wish::Resume => self.sharing.resume().await,
            Wish::Sharing => Said::Sharing(self.sharing.row()),
            Wish::Reload => Said::Failed("the configuration is read again by SIGHUP".to_owned()),
        }
    }

    /// A node that waits, or a key that changed: whichever of the two the name means, or both.
    async fn trust_accept(&self, name: &str) -> Said {
        let node = self.discovery.accept(name).await;
        let key = self.trust.accept(name);
        if let Some(text) = accepted(node.as_ref().ok(), key.as_ref().ok()) {
            return if key.is_ok() { self.kept(text).await } else { Said::Done(text) };
        }
        match (node, key) {
            (_, Err(error @ (PinError::Taken(_) | PinError::Nothing(_)))) => failed(&error),
            (Err(error), _) => failed(&error),
            (Ok(node), _) => Said::Done(node.to_string()),
        }
    }

    async fn trust_forget(&self, name: &str) -> Said {
        match self.trust.forget(name) {
            Ok(name) => {
                let text = format!(
                    "{name}'s key is forgotten; it is pinned anew when it says hello over the \
                     tailnet"
                );
                self.kept(text).await
            }
            Err(error) => failed(&error),
        }
    }

    async fn trust_add(&self, add: AddKey) -> Said {
        let AddKey { name, key, verbs, models, seconds, addrs } = add;
        let until = wall() + Duration::from_secs(seconds);
        match self.trust.add(&name, key, ByHand { verbs, models, until }, &addrs, wall()) {
            Ok(name) => self.kept(self.added(&name)).await,
            Err(error) => failed(&error),
        }
    }

    /// What a person should know of a key just added: who asks whom, and what it waits for.
    fn added(&self, name: &NodeName) -> String {
        let config = self.config.borrow();
        let send_to = SendTo::resolve(&config, &Tailnet::default());
        let sends = match send_to.allows_pin(name.as_str()) {
            Ok(grant) => format!("prompts may go to it ({})", grant.by.join(", ")),
            Err(Refused::NotLookedAt) => "no prompt goes to it: not in tailnet.peers".to_owned(),
            Err(_) => format!("no prompt goes to it before sendTo names pin:{name}"),
        };
        let waits = match self.lan.borrow().unknown.is_empty() {
            true => "",
            false => "; the network this machine is on waits for `tailherd lan allow`",
        };
        format!("{name} is pinned by hand; rules call it pin:{name}; {sends}{waits}")
    }

    /// Done, and on the disk before it is said, so that no crash undoes it.
    async fn kept(&self, text: String) -> Said {
        match pins::save(&self.trust).await {
            None => self.done(text),
            Some(error) => self
                .done(format!("{text}; that could not be saved yet, and is tried again: {error}")),
        }
    }

    pub(super) fn done(&self, text: String) -> Said {
        tracing::info!("by a person: {text}");
        self.events.note("trust", text.clone());
        Said::Done(text)
    }
}

/// This node's name and key, as the command that adds them on another device.
pub fn export(trust: &crate::trust::Trust) -> Said {
    match trust.export() {
        Some((name, key)) => Said::Done(format!("tailherd trust add {name} {key}")),
        None => Said::Failed("no tailnet was seen here yet, so there is no key".to_owned()),
    }
}

/// What was accepted: a node that waited, a changed key.
fn accepted(node: Option<&NodeName>, key: Option<&NodeName>) -> Option<String> {
    let node = node.map(|node| format!("{node} is accepted"));
    let key = key.map(|key| format!("{key}'s new key is taken for its own"));
    match (node, key) {
        (Some(node), Some(key)) => Some(format!("{node}, and {key}")),
        (node, key) => node.or(key),
    }
}

fn failed(error: &impl std::fmt::Display) -> Said {
    Said::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_a_name_accepted_is_said() {
        let name = NodeName::from_dns("gpu");
        for (node, key, expect) in [
            (false, false, None),
            (true, false, Some("gpu is accepted")),
            (false, true, Some("gpu's new key is taken for its own")),
            (true, true, Some("gpu is accepted, and gpu's new key is taken for its own")),
        ] {
            let said = accepted(node.then_some(&name), key.then_some(&name));
            assert_eq!(said.as_deref(), expect);
        }
    }
}
