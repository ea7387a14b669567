//! The answering side of hello and meet.
//!
//! In: a request whose sender is known, by WhoIs or by its pinned key, and the key it proved to
//! hold. Out: this node's own statement, or why there is none. A hello is served only over the
//! tailnet, a meeting only on the local network; which of the two a connection is was fixed
//! when it was accepted.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};

use super::{Mesh, call, empty, is_ours, say};
use crate::api::hello::{
    Departed, HELLO, HelloNo, HelloSay, MEET, MOST_BYTES, MeetAnswer, MeetSay,
};
use crate::net::{Body, BoxError, Identity, TailnetNode};
use crate::telemetry::wall;
use crate::trust::{Granted, Hello, PinState, tell};
use crate::types::{Caller, CallerKind, NodeId, PublicKey, Verbs};

/// How often it is noted that a node still reaches this one.
const REACHED: Duration = Duration::from_secs(300);

impl Mesh {
    /// Answers what came inside TLS over the tailnet: a hello, and nothing else. `key` is what
    /// the other end proved to hold.
    pub async fn hello<B>(
        &self,
        request: Request<B>,
        caller: &Caller,
        granted: &Granted,
        key: PublicKey,
    ) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let (head, body) = request.into_parts();
        if !is_ours(&head.headers) || head.method != Method::POST || head.uri.path() != HELLO {
            return empty(StatusCode::NOT_FOUND);
        }
        let CallerKind::Node { id, grants, .. } = &caller.kind else {
            return no(StatusCode::FORBIDDEN, "only nodes of the tailnet say hello");
        };
        // Whoever may neither ask anything here nor is asked anything needs no pin.
        if granted.verbs() == Verbs::NONE && !self.is_peer(id) {
            return no(StatusCode::FORBIDDEN, "no rule here lets this node in");
        }
        let said: HelloSay = match call::said(body, MOST_BYTES, self.parts.timing.hello_limit).await
        {
            Ok(said) => said,
            Err(why) => return no(StatusCode::BAD_REQUEST, &why),
        };
        self.greet(id, &said, grants, key)
    }

    fn greet(
        &self,
        id: &NodeId,
        said: &HelloSay,
        grants: &[String],
        key: PublicKey,
    ) -> Response<Body> {
        let parts = &self.parts;
        let tailnet = parts.tailnet.borrow().clone();
        let peer = tailnet.peers.iter().find(|p| p.id == *id);
        let Some((peer, node)) = peer.and_then(|p| Some((p, TailnetNode::listed(p)?))) else {
            return no(StatusCode::SERVICE_UNAVAILABLE, "the tailnet does not list this node yet");
        };
        let own_key = parts.trust.view().ring.as_ref().map(|ring| ring.current());
        let Some(own_key) = own_key else {
            return no(StatusCode::SERVICE_UNAVAILABLE, "no tailnet is named here");
        };
        let now = wall();
        let hello = Hello { node, said, key, own_key, port: None, grants: Some(grants) };
        match parts.trust.heard(&hello, now) {
            Ok(heard) => {
                tell(&parts.events, heard.steps);
                // A full queue loses nothing: it says hello again.
                if heard.callback {
                    let _ = self.callbacks.try_send(id.clone());
                }
            }
            Err(refused) => {
                let text = format!("{}: a hello was refused: {refused}", peer.name);
                if self.is_news(id, &text) {
                    tracing::warn!("{text}");
                    parts.events.note("pin", text);
                }
                return no(StatusCode::FORBIDDEN, &refused.to_string());
            }
        }
        self.told(id, &said.departed);
        let lan = parts.lan.borrow().clone();
        match say::statement(
            &tailnet,
            &parts.trust,
            &parts.trust.view(),
            &lan,
            peer,
            parts.ephemeral,
        ) {
            Some(say) => call::answer(StatusCode::OK, &say),
            None => no(StatusCode::SERVICE_UNAVAILABLE, "the tailnet does not name both of us"),
        }
    }

    /// Whether this request is a meeting: served only on the local network, and there before
    /// it is known whether anything else would be.
    pub fn is_meeting<B>(request: &Request<B>) -> bool {
        request.method() == Method::POST && request.uri().path() == MEET
    }

    /// Answers a pinned peer on the local network that asks whether it may come in this way.
    /// `may` says whether the rules let a caller do anything.
    pub async fn meet<B>(
        &self,
        request: Request<B>,
        identity: &Identity,
        key: &PublicKey,
        may: impl Fn(&Caller) -> bool,
    ) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let (head, body) = request.into_parts();
        if !is_ours(&head.headers) {
            return empty(StatusCode::NOT_FOUND);
        }
        let said: MeetSay = match call::said(body, MOST_BYTES, self.parts.timing.hello_limit).await
        {
            Ok(said) => said,
            Err(why) => return no(StatusCode::BAD_REQUEST, &why),
        };
        let admit = identity.admission(may).await;
        let parts = &self.parts;
        let known = parts.trust.view();
        // Asked after all that waits: the pin may have died meanwhile.
        let Some(pin) = known.live_key(key, wall()) else {
            return no(StatusCode::FORBIDDEN, "no pin that may be used has this key");
        };
        let node = pin.node.clone();
        parts.trust.told_addresses(&node, &said.lan, wall());
        self.told(&node, &said.departed);
        let departed = parts.trust.suspensions_for(&node);
        let lan = say::addresses(&parts.lan.borrow());
        call::answer(StatusCode::OK, &MeetAnswer { admit, departed, lan })
    }

    /// A pinned peer came in from this address on the local network.
    pub fn came_from(&self, key: &PublicKey, from: IpAddr) {
        let known = self.parts.trust.view();
        if let Some(pin) = known.live_key(key, wall())
            && pin.lan.first() != Some(&from)
        {
            self.parts.trust.address(&pin.node, from);
        }
    }

    /// A caller came in over the tailnet. Where the packet filter cannot say who may, this
    /// counts for a day.
    pub fn reached(&self, caller: &Caller) {
        let CallerKind::Node { id, .. } = &caller.kind else { return };
        let (known, now) = (self.parts.trust.view(), wall());
        let Some(pin) = known.pin(id).filter(|pin| pin.state == PinState::Live) else { return };
        if pin.reached.is_none_or(|at| now.since(at) >= REACHED) {
            self.parts.trust.reached(id, now);
        }
    }

    fn told(&self, by: &NodeId, departed: &[Departed]) {
        if !departed.is_empty() {
            let steps = self.parts.trust.told_suspended(by, departed, wall());
            tell(&self.parts.events, steps);
        }
    }

    fn is_peer(&self, id: &NodeId) -> bool {
        self.parts.directory.peers().borrow().iter().any(|peer| peer.who.id == *id)
    }

    /// Whether this was not just said of that node: whoever is refused comes again.
    fn is_news(&self, id: &NodeId, text: &str) -> bool {
        let mut said = self.said.lock();
        if said.get(id).is_some_and(|before| before == text) {
            return false;
        }
        // (Callers are nodes of the tailnet, so there are not many.)
        said.insert(id.clone(), text.to_owned());
        true
    }
}

fn no(status: StatusCode, why: &str) -> Response<Body> {
    call::answer(status, &HelloNo { why: why.to_owned() })
}
