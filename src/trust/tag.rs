//! Tags: words on the local network that only who knows a node's key recognises.
//!
//! In: a node's public key, the time of day, random bytes. Out: a DNS label for a TLS server
//! name, a text for an mDNS announcement; or, of such a word, whose it is. To everybody else
//! a tag is random: it holds nothing of a node, and none is like another, of another hour or
//! of the same. A tag proves nothing (who heard one may repeat it); it only says whom to ask.

use ring::hmac;

use crate::types::{PublicKey, Wall};

/// Random bytes of a tag.
pub type Nonce = [u8; 8];

/// Bytes of the code after the nonce.
const CODE: usize = 16;

const HOUR: u64 = 3600;

/// What a tag is for: one for the one purpose never reads as one for the other.
#[derive(Clone, Copy)]
enum Use {
    Sni,
    Announce,
}

/// The server name to call the holder of `server` by: one DNS label of 48 letters.
pub fn sni(server: &PublicKey, now: Wall, nonce: Nonce) -> String {
    write(Use::Sni, server, hour(now), nonce)
}

/// Which of our own keys a server name calls, in this hour or the one before or after.
pub fn of_sni(name: &str, own: &[PublicKey], now: Wall) -> Option<(PublicKey, Nonce)> {
    let tag = read(name)?;
    own.iter().find(|key| is(Use::Sni, &tag, key, now)).map(|key| (*key, tag.0))
}

/// What the holder of `own` announces itself by in this hour.
pub fn announce(own: &PublicKey, now: Wall, nonce: Nonce) -> String {
    write(Use::Announce, own, hour(now), nonce)
}

/// Which of these nodes announced itself so, in this hour or the one before or after.
pub fn recognise<T>(text: &str, known: &[(T, PublicKey)], now: Wall) -> Option<usize> {
    let tag = read(text)?;
    known.iter().position(|(_, key)| is(Use::Announce, &tag, key, now))
}

fn hour(now: Wall) -> u64 {
    now.0 / HOUR
}

fn code(usage: Use, key: &PublicKey, hour: u64, nonce: Nonce) -> [u8; CODE] {
    let mut by = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key.bytes()));
    by.update(match usage {
        Use::Sni => b"tailherd server name\0",
        Use::Announce => b"tailherd announcement\0",
    });
    by.update(&hour.to_be_bytes());
    by.update(&nonce);
    let whole = by.sign();
    let mut code = [0; CODE];
    code.iter_mut().zip(whole.as_ref()).for_each(|(to, from)| *to = *from);
    code
}

fn is(usage: Use, (nonce, said): &(Nonce, [u8; CODE]), key: &PublicKey, now: Wall) -> bool {
    let now = hour(now);
    (now.saturating_sub(1)..=now.saturating_add(1)).any(|hour| {
        // Each byte is looked at, so that the time it takes says nothing about the code.
        let code = code(usage, key, hour, *nonce);
        code.iter().zip(said).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    })
}

/// Letters only, `a` to `p` for each half byte: a name whose last label is digits is no DNS
/// name, and DNS does not tell case apart.
fn write(usage: Use, key: &PublicKey, hour: u64, nonce: Nonce) -> String {
    let code = code(usage, key, hour, nonce);
    let halves = nonce.iter().chain(&code).flat_map(|byte| [byte >> 4, byte & 15]);
    halves.map(|half| char::from(b'a' + half)).collect()
}

fn read(text: &str) -> Option<(Nonce, [u8; CODE])> {
    let mut bytes = [0; size_of::<Nonce>() + CODE];
    if text.len() != bytes.len() * 2 {
        return None;
    }
    for (to, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        for letter in pair {
            let letter = letter.to_ascii_lowercase();
            *to = *to << 4 | letter.checked_sub(b'a').filter(|half| *half < 16)?;
        }
    }
    let (nonce, code) = bytes.split_first_chunk()?;
    Some((*nonce, code.try_into().ok()?))
}
