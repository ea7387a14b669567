//! What two sidecars say when they make themselves known: hello over the tailnet, meet on the
//! local network.
//!
//! Pure data with its bounds. Everything in it is a claim of the one who sends it: a hello is
//! believed as far as it equals what the tailnet itself says of both ends, the rest only ever
//! takes rights away or gives an address to try. Fields that a newer version adds are ignored.

use std::net::IpAddr;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};

use crate::types::{ChainLink, PublicKey, Wall};

/// Where a node says who it is; only inside TLS, over the tailnet.
pub const HELLO: &str = "/mesh/v1/hello";

/// Where a pinned node asks whether it may come in by the local network.
pub const MEET: &str = "/mesh/v1/meet";

/// Longest of either, in bytes.
pub const MOST_BYTES: usize = 64 * 1024;

/// Most keys of a chain.
pub const MOST_KEYS: usize = 8;

/// Most addresses.
pub const MOST_ADDRESSES: usize = 8;

/// Most nodes that are said to have left.
pub const MOST_DEPARTED: usize = 256;

/// Longest id, name or node key.
const LONGEST: usize = 256;

/// What both sides of a hello say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HelloSay {
    /// The coordinator and tailnet.
    #[serde(deserialize_with = "short")]
    pub control: String,
    /// The speaker's stable id.
    #[serde(deserialize_with = "short")]
    pub me: String,
    /// The other's stable id: of the node whose address was dialled, or whom WhoIs named.
    #[serde(deserialize_with = "short")]
    pub you: String,
    /// The speaker's node key.
    #[serde(deserialize_with = "short")]
    pub my_node_key: String,
    /// The other's node key.
    #[serde(deserialize_with = "short")]
    pub your_node_key: String,
    /// The version of the speaker's sidecar.
    #[serde(default, deserialize_with = "short")]
    pub version: String,
    /// Whether the speaker is a node that comes and goes.
    #[serde(default)]
    pub ephemeral: bool,
    /// The speaker's keys, each signed by the one before it; the last one is in use, and is the
    /// one that this connection was made with.
    #[serde(deserialize_with = "few::<MOST_KEYS, _, _>")]
    pub chain: Vec<ChainLink>,
    /// The other's key that the speaker holds a live pin of, if any.
    #[serde(default)]
    pub holds: Option<PublicKey>,
    /// The speaker's addresses on local networks.
    #[serde(default, deserialize_with = "few::<MOST_ADDRESSES, _, _>")]
    pub lan: Vec<IpAddr>,
    /// The port of its mesh listener there; 0 = not said.
    #[serde(default)]
    pub port: u16,
    /// Nodes of the same owner's tailnet that left it.
    #[serde(default, deserialize_with = "few::<MOST_DEPARTED, _, _>")]
    pub departed: Vec<Departed>,
}

/// A node that left the tailnet, as one device says it to another of the same owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Departed {
    /// Its stable id.
    #[serde(deserialize_with = "short")]
    pub stable: String,
    /// When the coordinator had made it.
    #[serde(deserialize_with = "short")]
    pub created: String,
    /// Since when it is gone.
    pub since: Wall,
}

/// Why a hello was not taken, for the log of the one who said it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HelloNo {
    /// Why.
    #[serde(deserialize_with = "short")]
    pub why: String,
}

/// What is asked in a meeting on the local network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeetSay {
    /// Nodes that left the tailnet.
    #[serde(default, deserialize_with = "few::<MOST_DEPARTED, _, _>")]
    pub departed: Vec<Departed>,
    /// The speaker's addresses on local networks.
    #[serde(default, deserialize_with = "few::<MOST_ADDRESSES, _, _>")]
    pub lan: Vec<IpAddr>,
}

/// What is answered there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeetAnswer {
    /// Whether requests would be answered.
    pub admit: Admit,
    /// Nodes that left the tailnet.
    #[serde(default, deserialize_with = "few::<MOST_DEPARTED, _, _>")]
    pub departed: Vec<Departed>,
    /// The answerer's addresses on local networks.
    #[serde(default, deserialize_with = "few::<MOST_ADDRESSES, _, _>")]
    pub lan: Vec<IpAddr>,
}

/// Whether requests over the local network would be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Admit {
    /// They would.
    Yes,
    /// Not while the tailnet carries them.
    Tailnet,
    /// No: the tailnet's policy, or the pin's age.
    Policy,
}

/// Reads one of the above.
pub fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(body)
}

fn short<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    if text.len() > LONGEST || text.chars().any(char::is_control) {
        return Err(D::Error::custom("longer than 256 bytes, or not plain text"));
    }
    Ok(text)
}

fn few<'de, const MOST: usize, T, D>(from: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let all = Vec::<T>::deserialize(from)?;
    if all.len() > MOST {
        return Err(D::Error::custom(format_args!("more than {MOST} of them")));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn say() -> HelloSay {
        let link = |n| ChainLink { key: PublicKey::new([n; 32]), signed: String::new() };
        HelloSay {
            control: "c".into(),
            me: "n1".into(),
            you: "n2".into(),
            my_node_key: "nodekey:1".into(),
            your_node_key: "nodekey:2".into(),
            version: "0.1.0".into(),
            ephemeral: false,
            chain: vec![link(1), link(2)],
            holds: Some(PublicKey::new([9; 32])),
            lan: vec!["192.168.1.7".parse().unwrap()],
            port: 0,
            departed: vec![Departed { stable: "n3".into(), created: "t".into(), since: Wall(7) }],
        }
    }

    #[test]
    fn what_is_said_survives_the_way() {
        let body = serde_json::to_vec(&say()).unwrap();
        assert!(body.len() < MOST_BYTES);
        assert_eq!(read::<HelloSay>(&body).unwrap(), say());
        let answer = MeetAnswer { admit: Admit::Tailnet, departed: Vec::new(), lan: Vec::new() };
        let body = serde_json::to_string(&answer).unwrap();
        assert_eq!(body, r#"{"admit":"tailnet","departed":[],"lan":[]}"#);
        assert_eq!(read::<MeetAnswer>(body.as_bytes()).unwrap(), answer);
        assert_eq!(read::<MeetSay>(b"{}").unwrap(), MeetSay::default());
    }

    #[test]
    fn versions_mix() {
        let mut newer = serde_json::to_value(say()).unwrap();
        newer["mood"] = json!(7);
        for optional in ["version", "ephemeral", "holds", "lan", "departed"] {
            newer.as_object_mut().unwrap().remove(optional);
        }
        let read: HelloSay = read(newer.to_string().as_bytes()).unwrap();
        assert_eq!((read.me.as_str(), read.holds, read.lan.len()), ("n1", None, 0));
    }

    #[test]
    fn what_is_too_long_too_many_or_no_text_is_refused() {
        let check = |field: &str, value: Value| {
            let mut odd = serde_json::to_value(say()).unwrap();
            assert!(read::<HelloSay>(odd.to_string().as_bytes()).is_ok());
            odd[field] = value;
            assert!(read::<HelloSay>(odd.to_string().as_bytes()).is_err(), "{field}");
        };
        for text in ["control", "me", "you", "myNodeKey", "yourNodeKey", "version"] {
            check(text, json!("x".repeat(257)));
            check(text, json!("a\nb"));
            check(text, json!("a\u{1b}]52;"));
            check(text, Value::Null);
        }
        let link = json!({"key": PublicKey::new([1; 32]), "signed": ""});
        check("chain", json!(vec![link; MOST_KEYS + 1]));
        check("chain", json!([{"key": "short"}]));
        check("lan", json!(vec!["10.0.0.1"; MOST_ADDRESSES + 1]));
        check("lan", json!(["10.0.0.1:22"]));
        let gone = json!({"stable": "n", "created": "t", "since": 1});
        check("departed", json!(vec![gone; MOST_DEPARTED + 1]));
        check("departed", json!([{"stable": "x".repeat(257), "created": "", "since": 1}]));
        check("holds", json!("no key"));
        for odd in ["", "[]", "{}", "null", r#"{"admit":"perhaps"}"#] {
            assert!(read::<MeetAnswer>(odd.as_bytes()).is_err(), "{odd}");
        }
    }

    #[test]
    fn the_largest_that_is_allowed_fits() {
        let mut say = say();
        let text = || "x".repeat(LONGEST);
        (say.control, say.me, say.you) = (text(), text(), text());
        let link = ChainLink { key: PublicKey::new([1; 32]), signed: "s".repeat(86) };
        say.chain = vec![link; MOST_KEYS];
        // An id of Tailscale's has 17 characters, a date 20.
        let gone = Departed { stable: "n".repeat(20), created: "t".repeat(30), since: Wall(9) };
        say.departed = vec![gone; MOST_DEPARTED];
        assert!(serde_json::to_vec(&say).unwrap().len() < MOST_BYTES);
    }
}
