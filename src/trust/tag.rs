//! Tags: words on the local network that only who knows a node's key recognises.
//!
//! In: a node's public key, the time of day, random bytes. Out: a DNS label for a TLS server
//! name, a text for an mDNS announcement; or, of such a word, whose it is. To everybody else
//! a tag is random: it holds nothing of a node, and none is like another, of another hour or
//! of the same. A tag proves nothing (who heard one may repeat it); it only says whom to ask.
//!
//! A server name also holds the address that is called: a node shows its key before it knows
//! who calls, and whoever was called at another address (after a false announcement, or as the
//! next holder of an address) must not be shown that key by repeating the name to the node.
//! What remains is who sits on the way to the right address itself (a false ARP answer): it may
//! use a name before its owner's call arrives, and is shown the public key. It can do nothing
//! with it but recognise that node's tags.

use std::net::{IpAddr, SocketAddr};

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
    /// Calling the node at this address.
    Sni(SocketAddr),
    Announce,
}

/// The server name to call the holder of `server` by at `to`: one DNS label of 48 letters.
pub fn sni(server: &PublicKey, to: SocketAddr, now: Wall, nonce: Nonce) -> String {
    write(Use::Sni(to), server, hour(now), nonce)
}

/// Which of our own keys a server name calls at our address `at`, in this hour or the one
/// before or after.
pub fn of_sni(
    name: &str,
    own: &[PublicKey],
    at: SocketAddr,
    now: Wall,
) -> Option<(PublicKey, Nonce)> {
    let tag = read(name)?;
    own.iter().find(|key| is(Use::Sni(at), &tag, key, now)).map(|key| (*key, tag.0))
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
    match usage {
        Use::Sni(to) => {
            by.update(b"tailherd server name\0");
            let ip = match to.ip().to_canonical() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            by.update(&ip.octets());
            by.update(&to.port().to_be_bytes());
        }
        Use::Announce => by.update(b"tailherd announcement\0"),
    }
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use rustls::pki_types::ServerName;
    use sha2::{Digest as _, Sha256};

    use super::*;

    const NOW: Wall = Wall(1_795_262_400);
    const NONCE: Nonce = [9; 8];
    const HERE: SocketAddr =
        SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 1, 20)), 11436);

    fn key(n: u8) -> PublicKey {
        PublicKey::new([n; 32])
    }

    fn at(hours: i64) -> Wall {
        Wall(NOW.0.saturating_add_signed(hours * 3600))
    }

    #[test]
    fn a_tag_calls_one_key_in_its_hour_and_the_ones_beside_it() {
        #[track_caller]
        fn check(hours: i64, ours: bool) {
            let own = [key(1), key(2)];
            let found = of_sni(&sni(&key(2), HERE, NOW, NONCE), &own, HERE, at(hours));
            assert_eq!(found, ours.then_some((key(2), NONCE)), "name, {hours} h");
            let known = [("a", key(1)), ("b", key(2))];
            let found = recognise(&announce(&key(2), NOW, NONCE), &known, at(hours));
            assert_eq!(found, ours.then_some(1), "announcement, {hours} h");
        }
        check(0, true);
        check(1, true);
        check(-1, true);
        check(2, false);
        check(-2, false);
        check(24, false);
    }

    #[test]
    fn a_tag_of_another_key_or_purpose_is_not_ours() {
        assert_eq!(of_sni(&sni(&key(3), HERE, NOW, NONCE), &[key(1), key(2)], HERE, NOW), None);
        assert_eq!(of_sni(&sni(&key(1), HERE, NOW, NONCE), &[], HERE, NOW), None);
        assert_eq!(of_sni(&announce(&key(1), NOW, NONCE), &[key(1)], HERE, NOW), None);
        assert_eq!(recognise(&sni(&key(1), HERE, NOW, NONCE), &[((), key(1))], NOW), None);
    }

    #[test]
    fn a_server_name_calls_at_one_address_and_cannot_be_repeated_at_another() {
        let own = [key(1)];
        let name = sni(&key(1), HERE, NOW, NONCE);
        for (at, ours) in [
            ("192.168.1.20:11436", true),
            ("[::ffff:192.168.1.20]:11436", true),
            ("192.168.1.21:11436", false),
            ("192.168.1.20:11437", false),
            ("[fd12::20]:11436", false),
        ] {
            let found = of_sni(&name, &own, at.parse().unwrap(), NOW);
            assert_eq!(found, ours.then_some((key(1), NONCE)), "{at}");
        }
    }

    #[test]
    fn a_name_that_is_no_tag_calls_nobody() {
        let tag = sni(&key(1), HERE, NOW, NONCE);
        let own = [key(1)];
        assert!(
            of_sni(&tag.to_uppercase(), &own, HERE, NOW).is_some(),
            "DNS does not tell case apart"
        );
        for name in [
            "",
            "localhost",
            "desk.tail1234.ts.net",
            &tag[1..],
            &format!("{tag}a"),
            &format!("{tag}."),
            &tag.replace('a', "q"),
            &format!("é{}", &tag[2..]),
            &"\u{430}".repeat(24),
        ] {
            assert_eq!(of_sni(name, &own, HERE, NOW), None, "{name}");
        }
    }

    #[test]
    fn a_tag_is_a_name_that_tls_sends() {
        for nonce in 0..=255 {
            let name = sni(&key(1), HERE, NOW, [nonce; 8]);
            assert!(name.len() == 48 && name.bytes().all(|b| b.is_ascii_lowercase()), "{name}");
            assert!(matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_))));
        }
    }

    #[test]
    fn no_two_tags_have_a_string_in_common() {
        let nonce = |bytes: &[u8]| Nonce::try_from(bytes).unwrap();
        let mut seen = HashSet::new();
        let mut look = |text: String| {
            for window in text.as_bytes().windows(12) {
                assert!(seen.insert(window.to_vec()), "{}", String::from_utf8_lossy(window));
            }
        };
        // A node that is called twice and announces itself each hour for three days.
        for hour in 0..72_u8 {
            let random = Sha256::digest([hour]);
            let [called, again, said] = [0, 8, 16].map(|at| nonce(&random[at..at + 8]));
            look(sni(&key(1), HERE, at(hour.into()), called));
            look(sni(&key(1), HERE, at(hour.into()), again));
            look(announce(&key(1), at(hour.into()), said));
        }
    }

    #[test]
    fn one_nonce_gives_another_code_each_hour_and_for_each_key() {
        let code = |text: String| text[16..].to_owned();
        let codes: HashSet<_> = (0..48)
            .flat_map(|hour| {
                [1, 2]
                    .map(|k| code(sni(&key(k), HERE, at(hour), NONCE)))
                    .into_iter()
                    .chain([1, 2].map(|k| code(announce(&key(k), at(hour), NONCE))))
            })
            .collect();
        assert_eq!(codes.len(), 48 * 4);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_breaks_the_reader(text in "\\PC{0,60}", letters in "[a-p]{48}") {
            prop_assert_eq!(of_sni(&text, &[key(1)], HERE, NOW), None);
            prop_assert_eq!(recognise(&text, &[((), key(1))], NOW), None);
            prop_assert_eq!(of_sni(&letters, &[key(1)], HERE, NOW), None);
        }

        #[test]
        fn who_is_called_knows_it(
            bytes: [u8; 32], other: [u8; 32], nonce: Nonce, time: u64, late in 0..3600_u64,
        ) {
            let (own, now) = (PublicKey::new(bytes), Wall(time));
            let name = sni(&own, HERE, now, nonce);
            prop_assert_eq!(of_sni(&name, &[own], HERE, Wall(time.saturating_add(late))), Some((own, nonce)));
            prop_assert_eq!(of_sni(&name, &[own], HERE, Wall(time.saturating_sub(late))), Some((own, nonce)));
            prop_assume!(bytes != other);
            prop_assert_eq!(of_sni(&name, &[PublicKey::new(other)], HERE, now), None);
        }
    }
}
