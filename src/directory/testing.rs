//! Listings and nodes for tests.

use std::sync::Arc;

use serde_json::json;

use super::event::{EngineListing, Event, Grant, Identity, Listing, ModelListing, Peer, Settings};
use super::writer::{State, apply};
use super::{Need, Snapshot, build};
use crate::types::{
    Api, ApiSet, Capabilities, ClientKind, ControlId, Dial, Digest, EngineKind, Moment, NodeId,
    NodeKind, NodeName, Principal,
};

/// A node's stable identity in a made-up tailnet.
pub(crate) fn id(name: &str) -> NodeId {
    NodeId::Tailnet { control: ControlId("c0ffee".into()), stable: name.into() }
}

/// A node of one person.
pub(crate) fn who(name: &str) -> Identity {
    let control = ControlId("c0ffee".into());
    Identity {
        id: id(name),
        name: NodeName::parse(name).unwrap(),
        principal: Some(Principal::User { control, id: 1, login: "me@".into() }),
    }
}

/// The one address of a peer: its last number tells it from others.
pub(crate) fn dial(last: u8) -> Dial {
    Dial::Tailnet(([100, 64, 0, last], 11436).into())
}

/// A way to it on the local network, held by a key of that number.
pub(crate) fn lan(last: u8) -> Dial {
    let addr = ([192, 168, 1, last], 11436).into();
    Dial::Lan { addr, key: crate::types::PublicKey::new([last; 32]) }
}

/// A peer of which everything may be used.
pub(crate) fn peer(name: &str, last: u8) -> Peer {
    let addrs = vec![[100, 64, 0, last].into()];
    Peer { who: who(name), addrs, also: Vec::new(), grant: Grant::all() }
}

/// A model whose digest is its name.
pub(crate) fn model(name: &str) -> ModelListing {
    ModelListing {
        name: name.into(),
        id: None,
        digest: Some(Digest("d1".into())),
        weights: None,
        content: None,
        capabilities: Capabilities::default(),
        context: None,
        num_ctx: None,
        size: 1000,
        remote: false,
        row: Arc::new(json!({"name": name, "model": name, "modified_at": "2026-01-01T00:00:00Z"})),
        show: None,
        ps: None,
        loaded_ctx: 0,
        loading: false,
        running: 0,
        queued: 0,
    }
}

/// An Ollama with these models.
pub(crate) fn engine(name: &str, models: Vec<ModelListing>) -> EngineListing {
    EngineListing {
        name: name.into(),
        kind: EngineKind::Ollama,
        apis: ApiSet::ALL,
        version: Some("0.32.15".to_owned()),
        dial: Dial::Loopback(([127, 0, 0, 1], 11435).into()),
        prefix: "".into(),
        slots: None,
        default_ctx: None,
        up: true,
        url: String::new(),
        models,
        unlisted: Vec::new(),
    }
}

/// A rich peer's list with one Ollama.
pub(crate) fn listing(last: u8, models: Vec<ModelListing>) -> Listing {
    Listing {
        kind: NodeKind::Rich,
        version: Some("0.1.0".to_owned()),
        dial: dial(last),
        prefix: "".into(),
        accepting: None,
        engines: vec![engine("ollama", models)],
    }
}

/// The picture that these events make.
pub(crate) fn picture(this: Identity, events: Vec<Event>) -> Snapshot {
    let mut state = State::new(Settings::default(), this, Arc::default());
    for event in events {
        apply(&mut state, event, Moment::ZERO);
    }
    build::snapshot(&mut state, Moment::ZERO)
}

/// What a chat asks of a model that can do this.
pub(crate) fn need(words: &[&str]) -> Need {
    Need {
        api: Api::Chat,
        capabilities: Capabilities::from_words(words.iter().copied()),
        client: ClientKind::Sdk,
        bytes: 0,
        prompt: Default::default(),
        print: Default::default(),
    }
}
