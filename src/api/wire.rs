//! What sidecars say to each other: `GET /mesh/v1/offers`.
//!
//! One node's own engines and models, as far as the reader may use them. Everything here is a
//! claim of the one who sends it; the reader cuts it down before it believes it. Fields that a
//! newer version adds are ignored, fields that it leaves out have a default, so that versions
//! mix.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::report::{Accepting, words};
use crate::types::{ApiSet, Capabilities, EngineKind};

/// The content type of everything under `/mesh/`.
pub const CONTENT_TYPE: &str = "application/vnd.tailherd+json";

/// Where the list is.
pub const OFFERS: &str = "/mesh/v1/offers";

/// Answers 204: the quickest sign of life, and the mark of a sidecar.
pub const PING: &str = "/mesh/v1/ping";

/// The answer header by which a node recognises itself: a number drawn at its start.
pub const INSTANCE: &str = "x-tailherd-instance";

/// The version of this protocol.
pub const VERSION: u32 = 1;

/// Longest list that is read.
pub const MOST_BYTES: usize = 8 << 20;

/// One node's list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offers {
    /// [`VERSION`].
    pub v: u32,
    /// Who says this.
    pub node: NodeInfo,
    /// For whom it works now: `all`, `mine`, `none`.
    #[serde(default = "all")]
    pub accepting: String,
    /// Why not for all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Its engines.
    #[serde(default)]
    pub engines: Vec<Engine>,
    /// What they have.
    #[serde(default)]
    pub offers: Vec<Offer>,
}

/// Who says this. The reader knows the node by the address it dialled; this is for showing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// Its identity, as it names itself.
    #[serde(default)]
    pub id: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// The version of its sidecar.
    #[serde(default)]
    pub version: String,
}

/// One engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Engine {
    /// Its name on its node; offers refer to it.
    pub name: String,
    /// The word of its kind. Unknown words count as `openai`.
    #[serde(default)]
    pub kind: String,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The bits of the dialects it speaks.
    #[serde(default)]
    pub apis: u8,
    /// How many requests it runs at once per model, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// The window it loads models with when nothing is asked for, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_ctx: Option<u64>,
    /// Whether it answers.
    #[serde(default)]
    pub up: bool,
}

impl Engine {
    /// What it is.
    pub fn engine_kind(&self) -> EngineKind {
        [EngineKind::Ollama, EngineKind::LlamaCpp, EngineKind::Vllm, EngineKind::LmStudio]
            .into_iter()
            .find(|kind| kind.label() == self.kind)
            .unwrap_or(EngineKind::OpenAi)
    }

    /// The dialects it speaks.
    pub fn api_set(&self) -> ApiSet {
        ApiSet::from_bits(self.apis)
    }
}

/// One model at one engine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Offer {
    /// The engine's name.
    pub engine: String,
    /// The model's name as that engine lists it.
    pub name: String,
    /// Manifest digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Digest of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Hash of weights, template and parameters, as 16 hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Its largest context window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<u64>,
    /// The window its parameters say it is loaded with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_ctx: Option<u64>,
    /// Bytes.
    pub size: u64,
    /// Whether it is a stub of a hosted model.
    pub remote: bool,
    /// Window it is loaded with; 0 = not loaded, 1 = loaded with an unknown one.
    pub loaded_ctx: u64,
    /// Whether it is being loaded.
    pub loading: bool,
    /// Requests running there.
    pub inflight: u32,
    /// Requests waiting there.
    pub queued: u32,
    /// Its row in `/api/tags`.
    pub row: Value,
    /// Its row in `/api/ps` while loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ps: Option<Value>,
}

impl Offers {
    /// The body to send and its entity tag, for `ETag` and `If-None-Match`.
    pub fn encode(&self) -> Result<(Vec<u8>, String), serde_json::Error> {
        let body = serde_json::to_vec(self)?;
        let hash = Sha256::digest(&body);
        let tag = hash[..12].iter().fold(String::from("\""), |tag, b| tag + &format!("{b:02x}"));
        Ok((body, tag + "\""))
    }

    /// Reads a list; any other version than ours is refused.
    pub fn decode(body: &[u8]) -> Result<Offers, DecodeError> {
        let offers: Offers = serde_json::from_slice(body)?;
        if offers.v != VERSION {
            return Err(DecodeError::Version(offers.v));
        }
        Ok(offers)
    }

    /// For whom it works, and why not for all, as far as it may be believed and shown. A word
    /// of a newer version means that something is held back.
    pub fn accepts(&self) -> (Accepting, String) {
        let whom = match self.accepting.as_str() {
            "all" => Accepting::All,
            "mine" => Accepting::Mine,
            _ => Accepting::None,
        };
        (whom, words(&self.why))
    }
}

/// Why a list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It is no such list.
    #[error("not a list of offers: {0}")]
    Json(#[from] serde_json::Error),
    /// It is of another time.
    #[error("speaks version {0} of the mesh protocol, this node speaks {VERSION}")]
    Version(u32),
}

fn all() -> String {
    "all".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_list_survives_the_way() {
        let offers = Offers {
            v: VERSION,
            node: NodeInfo { id: "n1".into(), name: "gpu".into(), version: "0.1.0".into() },
            accepting: all(),
            why: String::new(),
            engines: vec![Engine {
                name: "vllm".into(),
                kind: EngineKind::Vllm.label().into(),
                version: None,
                apis: ApiSet::ALL.bits(),
                slots: Some(4),
                default_ctx: None,
                up: true,
            }],
            offers: vec![Offer {
                engine: "vllm".into(),
                name: "tiny".into(),
                row: json!({"name": "tiny"}),
                ..Offer::default()
            }],
        };
        let (body, tag) = offers.encode().unwrap();
        let read = Offers::decode(&body).unwrap();
        assert_eq!(read, offers);
        assert_eq!(read.engines[0].engine_kind(), EngineKind::Vllm);
        assert_eq!(read.encode().unwrap().1, tag);
        let other = Offers { accepting: "none".into(), why: "asleep\u{202e}".into(), ..offers };
        assert_ne!(other.encode().unwrap().1, tag);
        assert_eq!(other.accepts(), (Accepting::None, "asleep".to_owned()));
        assert_eq!(read.accepts(), (Accepting::All, String::new()));
    }

    #[test]
    fn versions_mix() {
        let newer = json!({"v": 1, "node": {"name": "gpu", "mood": 7}, "reports": true,
            "engines": [{"name": "x", "kind": "sglang", "apis": 255, "up": true}],
            "offers": [{"engine": "x", "name": "tiny", "row": {}, "cost": [1]}]});
        let read = Offers::decode(newer.to_string().as_bytes()).unwrap();
        assert_eq!(read.engines[0].engine_kind(), EngineKind::OpenAi);
        assert_eq!(read.engines[0].api_set(), ApiSet::ALL);
        assert_eq!((read.accepting.as_str(), read.offers[0].loaded_ctx), ("all", 0));
        let far = br#"{"v": 2, "node": {}}"#;
        assert!(matches!(Offers::decode(far), Err(DecodeError::Version(2))));
        for odd in ["", "[]", r#"{"v":1}"#, r#"{"v":1,"node":{},"offers":[{"size":-1}]}"#] {
            assert!(Offers::decode(odd.as_bytes()).is_err(), "{odd}");
        }
    }
}
