//! A peer's public key, and the time of day that its life is counted in.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// An Ed25519 public key: what a pin holds on to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

/// What stands before the 32 bytes in a `SubjectPublicKeyInfo` (RFC 8410).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

impl PublicKey {
    /// From its 32 bytes.
    pub const fn new(bytes: [u8; 32]) -> PublicKey {
        PublicKey(bytes)
    }

    /// Its 32 bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Out of a `SubjectPublicKeyInfo`, which is what TLS calls a raw public key (RFC 7250).
    /// `None` if it is a key of another kind.
    pub fn from_spki(spki: &[u8]) -> Option<PublicKey> {
        spki.strip_prefix(&SPKI)?.try_into().ok().map(PublicKey)
    }

    /// As a `SubjectPublicKeyInfo`.
    pub fn spki(&self) -> Vec<u8> {
        [&SPKI[..], &self.0].concat()
    }

    /// Its first characters: enough to tell two apart on a screen, not to know the key by.
    pub fn short(&self) -> String {
        self.to_string().chars().take(8).collect()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    /// Short: whoever knows the whole key recognises its announcements on the local network.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}…", self.short())
    }
}

/// A text that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a public key: 43 characters of base64url, as `tailherd trust export` prints it")]
pub struct KeyError;

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PublicKey, KeyError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| KeyError)?;
        bytes.try_into().map(PublicKey).map_err(|_| KeyError)
    }
}

impl serde::Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<PublicKey, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One key of a node, with the word of the key before it: how a node's keys follow each other.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChainLink {
    /// The key.
    pub key: PublicKey,
    /// What the key before it signed for it, as base64url; empty for the oldest of a chain.
    #[serde(default)]
    pub signed: String,
}

/// A time of day: whole seconds since 1970. What has to outlive a restart is counted in it;
/// it may jump, so nothing else is.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Wall(pub u64);

impl Wall {
    /// Of a clock's time.
    pub fn of(time: SystemTime) -> Wall {
        Wall(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs())
    }

    /// How long after `earlier` it is; zero if it is before it.
    pub fn since(self, earlier: Wall) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Wall {
    type Output = Wall;

    fn add(self, time: Duration) -> Wall {
        Wall(self.0.saturating_add(time.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_from_each_of_its_forms() {
        let key = PublicKey::new(std::array::from_fn(|i| u8::try_from(i * 7).unwrap()));
        assert_eq!(PublicKey::from_spki(&key.spki()), Some(key));
        assert_eq!(key.spki().len(), 44);
        assert_eq!(key.to_string().parse(), Ok(key));
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), key);
        assert!(!format!("{key:?}").contains(&key.to_string()));
    }

    #[test]
    fn what_is_no_ed25519_key_is_none() {
        let key = PublicKey::new([1; 32]).spki();
        assert_eq!(PublicKey::from_spki(&key[..43]), None);
        assert_eq!(PublicKey::from_spki(&[&key[..], &[0]].concat()), None);
        assert_eq!(PublicKey::from_spki(&[0x30; 44]), None);
        for text in ["", "abc", "=", &"A".repeat(44)] {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError), "{text}");
        }
    }

    #[test]
    fn times_of_day_never_go_below_zero() {
        assert_eq!(Wall(5).since(Wall(9)), Duration::ZERO);
        assert_eq!(Wall(9).since(Wall(5)), Duration::from_secs(4));
        assert_eq!(Wall(u64::MAX) + Duration::from_secs(9), Wall(u64::MAX));
    }
}
