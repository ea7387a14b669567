//! Keys: what this node proves itself with on the local network.
//!
//! In: the time of day, a stored ring. Out: the key in use with the ones before it, the chain
//! that says how each followed the last, and an [`Own`] that answers a TLS handshake. A
//! private key leaves this module only as text for the state file and is never shown; each
//! copy this module holds is wiped when the key is dropped (ring's own working copy is not
//! reachable, and lives as long as the key).
//!
//! A key that was replaced stays for a while: a peer that was away learned no other, and
//! calls this node by the one it knows.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::crypto::ring::sign::any_eddsa_type;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use crate::types::{ChainLink, PublicKey, Wall};

/// How long a key is in use before the next one takes its place.
pub const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Most keys of one chain, the one in use among them.
pub const MOST: usize = 8;

/// How far ahead of the clock a key may have been made: more means that the clock was wrong
/// then or is wrong now, and waiting for it could take years.
const AHEAD: Duration = Duration::from_secs(24 * 3600);

/// What stands before the 32 bytes of a new key when the key before it signs them. What TLS
/// signs begins with 64 spaces, so neither can be taken for the other.
const SIGNED: &[u8] = b"tailherd key\0";

/// A key that could not be made or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// The system's random numbers failed.
    #[error("the system gave no random numbers for a new key")]
    Random,
    /// What is stored is no key, or not the key that stands beside it.
    #[error("what is stored is not the private part of that Ed25519 key")]
    Unreadable,
    /// What is stored holds no key, too many, or no private part of the last one.
    #[error("what is stored is not 1 to {MOST} keys with the private part of the last")]
    Ring,
}

/// This node's keys in one tailnet; the last one is in use.
#[derive(Debug, Clone)]
pub struct Ring {
    before: Vec<Key>,
    last: Key<Own>,
}

/// A key of the ring. `O` is what is left of its private part.
#[derive(Debug, Clone)]
struct Key<O = Option<Own>> {
    key: PublicKey,
    own: O,
    made: Wall,
    signed: String,
}

/// One of this node's keys with its private part: what a handshake is answered with. Clones
/// share it.
#[derive(Clone)]
pub struct Own {
    key: PublicKey,
    secret: Arc<Zeroizing<Vec<u8>>>,
    certified: Arc<CertifiedKey>,
}

impl Ring {
    /// A ring with one key, made now.
    pub fn new(now: Wall) -> Result<Ring, KeyFault> {
        Ok(Ring { before: Vec::new(), last: Key::made(Own::make()?, now, String::new()) })
    }

    /// The key in use.
    pub fn current(&self) -> PublicKey {
        self.last.key
    }

    /// The key in use, with its private part.
    pub fn own(&self) -> &Own {
        &self.last.own
    }

    /// One of our keys with its private part: the one in use, or an earlier one that is still
    /// kept.
    pub fn find(&self, key: &PublicKey) -> Option<&Own> {
        self.all().find(|own| own.key == *key)
    }

    /// The keys whose private part is here, the one in use first, then the latest before it.
    pub fn all(&self) -> impl Iterator<Item = &Own> {
        let before = self.before.iter().rev().filter_map(|k| k.own.as_ref());
        std::iter::once(&self.last.own).chain(before)
    }

    /// When the key in use was made.
    pub fn made(&self) -> Wall {
        self.last.made
    }

    /// The public keys, oldest first, each with the signature of the one before it.
    pub fn chain(&self) -> Vec<ChainLink> {
        let before = self.before.iter().map(|k| (k.key, &k.signed));
        let mut chain: Vec<_> = before
            .chain([(self.last.key, &self.last.signed)])
            .map(|(key, signed)| ChainLink { key, signed: signed.clone() })
            .collect();
        // Who signed the oldest is no longer told, so its signature says nothing.
        if let Some(oldest) = chain.first_mut() {
            oldest.signed.clear();
        }
        chain
    }

    /// Whether the key in use has served its time.
    pub fn due(&self, now: Wall) -> bool {
        now.since(self.last.made) >= LIFE || self.last.made > now + AHEAD
    }

    /// Puts a new key in use, signed by the one that was.
    pub fn rotate(&mut self, now: Wall) -> Result<(), KeyFault> {
        let own = Own::make()?;
        let signed = self.last.own.sign(&own.key)?;
        let Key { key, own: old, made, signed: by } =
            std::mem::replace(&mut self.last, Key::made(own, now, signed));
        self.before.push(Key { key, own: Some(old), made, signed: by });
        let over = (self.before.len() + 1).saturating_sub(MOST);
        self.before.drain(..over);
        Ok(())
    }

    /// Forgets the private part of each key that was replaced before `then`: nobody who could
    /// still know only that key has a pin left. Says whether anything was forgotten.
    pub fn drop_before(&mut self, then: Wall) -> bool {
        let next = self.before.iter().skip(1).map(|k| k.made).chain([self.last.made]);
        let ends: Vec<_> = next.collect();
        let mut dropped = false;
        for (key, end) in self.before.iter_mut().zip(ends) {
            dropped |= end < then && key.own.take().is_some();
        }
        dropped
    }
}

impl Key<Own> {
    fn made(own: Own, made: Wall, signed: String) -> Key<Own> {
        Key { key: own.key, own, made, signed }
    }
}

/// Whether `chain` leads from the key we know to its last one, each signed by the one before.
/// A chain that ends in the key we know does so without any signature.
pub fn verify_chain(known: &PublicKey, chain: &[ChainLink]) -> bool {
    if chain.len() > MOST {
        return false;
    }
    let Some(at) = chain.iter().rposition(|link| link.key == *known) else { return false };
    chain[at..].windows(2).all(|pair| follows(&pair[0].key, &pair[1]))
}

/// Whether `by` signed the key of `link`.
fn follows(by: &PublicKey, link: &ChainLink) -> bool {
    let Ok(signature) = URL_SAFE_NO_PAD.decode(&link.signed) else { return false };
    UnparsedPublicKey::new(&ED25519, by.bytes()).verify(&said(&link.key), &signature).is_ok()
}

fn said(key: &PublicKey) -> Vec<u8> {
    [SIGNED, key.bytes()].concat()
}

impl Own {
    fn make() -> Result<Own, KeyFault> {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
        let made = made.map_err(|_| KeyFault::Random)?;
        Own::open(Zeroizing::new(made.as_ref().to_vec()))
    }

    fn open(secret: Zeroizing<Vec<u8>>) -> Result<Own, KeyFault> {
        let pair = Ed25519KeyPair::from_pkcs8(&secret).map_err(|_| KeyFault::Unreadable)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| KeyFault::Unreadable)?;
        let key = PublicKey::new(public);
        let der = PrivatePkcs8KeyDer::from(secret.as_slice());
        let signer = any_eddsa_type(&der).map_err(|_| KeyFault::Unreadable)?;
        let certified = CertifiedKey::new(vec![CertificateDer::from(key.spki())], signer);
        Ok(Own { key, secret: Arc::new(secret), certified: Arc::new(certified) })
    }

    /// Its public part.
    pub fn key(&self) -> PublicKey {
        self.key
    }

    /// As rustls wants it.
    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    /// The word of this key for the next one.
    fn sign(&self, next: &PublicKey) -> Result<String, KeyFault> {
        let pair = Ed25519KeyPair::from_pkcs8(&self.secret).map_err(|_| KeyFault::Unreadable)?;
        Ok(URL_SAFE_NO_PAD.encode(pair.sign(&said(next))))
    }
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "own {:?}", self.key)
    }
}

/// How a ring is kept: its keys, oldest first.
#[derive(Serialize, Deserialize)]
struct Kept<'a> {
    key: PublicKey,
    made: Wall,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    signed: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Text>,
}

/// A private key as the file's text.
struct Text(Zeroizing<Vec<u8>>);

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&Zeroizing::new(URL_SAFE_NO_PAD.encode(self.0.as_slice())))
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Text, D::Error> {
        struct Read;
        impl de::Visitor<'_> for Read {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a private key as base64url")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                // The text is not repeated: an error is logged.
                let bytes =
                    URL_SAFE_NO_PAD.decode(text).map_err(|_| E::custom(KeyFault::Unreadable))?;
                Ok(Text(Zeroizing::new(bytes)))
            }
        }
        from.deserialize_str(Read)
    }
}

impl Serialize for Ring {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        fn kept<'a>(key: PublicKey, made: Wall, signed: &'a str, own: Option<&Own>) -> Kept<'a> {
            let secret = own.map(|own| Text(Zeroizing::new(own.secret.to_vec())));
            Kept { key, made, signed: Cow::Borrowed(signed), secret }
        }
        let before = self.before.iter().map(|k| kept(k.key, k.made, &k.signed, k.own.as_ref()));
        let last = &self.last;
        to.collect_seq(before.chain([kept(last.key, last.made, &last.signed, Some(&last.own))]))
    }
}

impl<'de> Deserialize<'de> for Ring {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Ring, D::Error> {
        let kept = <Vec<Kept<'de>>>::deserialize(from)?;
        Ring::from_kept(kept).map_err(de::Error::custom)
    }
}

impl Ring {
    fn from_kept(kept: Vec<Kept<'_>>) -> Result<Ring, KeyFault> {
        if kept.len() > MOST {
            return Err(KeyFault::Ring);
        }
        let mut keys = Vec::with_capacity(kept.len());
        for Kept { key, made, signed, secret } in kept {
            let own = secret.map(|Text(bytes)| Own::open(bytes)).transpose()?;
            if own.as_ref().is_some_and(|own| own.key != key) {
                return Err(KeyFault::Unreadable);
            }
            keys.push(Key { key, own, made, signed: signed.into_owned() });
        }
        let Some(Key { own: Some(own), made, signed, .. }) = keys.pop() else {
            return Err(KeyFault::Ring);
        };
        Ok(Ring { before: keys, last: Key::made(own, made, signed) })
    }
}

#[cfg(test)]
mod tests;
