use proptest::prelude::*;
use serde_json::{Value, json};
use zeroize::ZeroizeOnDrop;

use super::*;

const DAY: u64 = 24 * 3600;

/// A ring of so many keys, one made each week.
fn ring(keys: u64) -> Ring {
    let mut ring = Ring::new(Wall(0)).unwrap();
    for week in 1..keys {
        ring.rotate(Wall(week * 7 * DAY)).unwrap();
    }
    ring
}

fn again(ring: &Ring) -> Ring {
    serde_json::from_slice(&serde_json::to_vec(ring).unwrap()).unwrap()
}

#[test]
fn a_key_serves_seven_days() {
    #[track_caller]
    fn check(made: u64, now: u64, due: bool) {
        assert_eq!(Ring::new(Wall(made)).unwrap().due(Wall(now)), due, "{made} at {now}");
    }
    check(0, 0, false);
    check(0, 7 * DAY - 1, false);
    check(0, 7 * DAY, true);
    check(0, 900 * DAY, true);
    // A clock that was set back a little waits; one that was years ahead does not wait years.
    check(DAY, 0, false);
    check(DAY + 1, 0, true);
    check(u64::MAX, 5, true);
}

#[test]
fn a_new_key_is_signed_by_the_one_before() {
    let mut ring = Ring::new(Wall(0)).unwrap();
    let first = ring.current();
    assert_eq!(ring.chain(), [ChainLink { key: first, signed: String::new() }]);
    ring.rotate(Wall(9)).unwrap();
    let second = ring.current();
    ring.rotate(Wall(20)).unwrap();
    assert_eq!(ring.made(), Wall(20));
    let chain = ring.chain();
    assert_eq!(chain.iter().map(|l| l.key).collect::<Vec<_>>(), [first, second, ring.current()]);
    for known in [first, second, ring.current()] {
        assert!(verify_chain(&known, &chain));
    }
    assert!(!verify_chain(&Ring::new(Wall(0)).unwrap().current(), &chain), "a key not in it");
}

#[test]
fn a_chain_that_does_not_lead_from_the_known_key_is_refused() {
    let mine = ring(4);
    let (chain, known) = (mine.chain(), mine.chain()[1].key);
    let theirs = ring(4).chain();
    #[track_caller]
    fn refused(known: PublicKey, chain: &[ChainLink], how: &str) {
        assert!(!verify_chain(&known, chain), "{how}");
    }
    let with = |i: usize, link: ChainLink| {
        let mut chain = chain.clone();
        chain[i] = link;
        chain
    };
    let link = |key, signed: &str| ChainLink { key, signed: signed.to_owned() };
    refused(known, &[], "empty");
    refused(known, &theirs, "another node's");
    refused(known, &with(3, theirs[3].clone()), "a stranger's key at the end");
    refused(known, &with(3, link(theirs[3].key, &chain[3].signed)), "another's signature");
    refused(known, &with(3, link(chain[3].key, "")), "no signature");
    refused(known, &with(3, link(chain[3].key, "not base64!")), "a text");
    refused(known, &with(2, theirs[2].clone()), "a gap in the middle");
    refused(known, &[&chain[..2], &chain[3..]].concat(), "one left out");
    refused(known, &[&chain[..3], &chain[2..]].concat(), "one twice");
    refused(known, &[&chain[..], &theirs[..1]].concat(), "one more");
    let reversed: Vec<_> = chain.iter().rev().cloned().collect();
    refused(known, &reversed, "backwards");
    let long: Vec<_> = std::iter::repeat_n(chain[0].clone(), MOST + 1).collect();
    refused(chain[0].key, &long, "longer than any of ours");
    // What stands before the known key was checked when that key was learned.
    assert!(verify_chain(&known, &chain[1..]));
    assert!(verify_chain(&known, &with(0, theirs[0].clone())));
    assert!(verify_chain(&known, &chain[..2]), "the known key is the last");
}

#[test]
fn a_key_signs_nothing_that_tls_would_have_it_sign() {
    // Of a handshake, TLS 1.3 has a key sign 64 spaces and more (RFC 8446, 4.4.3).
    let (ring, next) = (ring(2), Own::make().unwrap());
    let tls = [&[b' '; 64][..], next.key.bytes()].concat();
    assert!(!said(&next.key).starts_with(&tls[..1]));
    let bare = Ed25519KeyPair::from_pkcs8(&ring.own().secret).unwrap();
    let signed = URL_SAFE_NO_PAD.encode(bare.sign(next.key.bytes()));
    assert!(!follows(&ring.current(), &ChainLink { key: next.key, signed }), "the key alone");
}

#[test]
fn the_oldest_keys_go_when_there_are_too_many() {
    let mut ring = ring(MOST as u64);
    let chain = ring.chain();
    assert_eq!(chain.len(), MOST);
    ring.rotate(Wall(400 * DAY)).unwrap();
    let after = ring.chain();
    assert_eq!(after.len(), MOST);
    assert_eq!(after[0], ChainLink { key: chain[1].key, signed: String::new() });
    assert_eq!(after[1..MOST - 1], chain[2..]);
    assert!(!verify_chain(&chain[0].key, &after), "who knows only that key cannot follow");
    assert!(verify_chain(&chain[1].key, &after));
    assert!(ring.find(&chain[0].key).is_none());
    assert_eq!(again(&ring).chain(), after);
}

#[test]
fn a_replaced_key_answers_until_it_is_dropped() {
    let mut ring = ring(3);
    let keys: Vec<_> = ring.chain().iter().map(|l| l.key).collect();
    let kept = |ring: &Ring| ring.all().map(Own::key).collect::<Vec<_>>();
    assert_eq!(kept(&ring), [keys[2], keys[1], keys[0]], "the one in use first");
    // The first was replaced on day 7, the second on day 14.
    assert!(!ring.drop_before(Wall(7 * DAY)));
    assert!(ring.drop_before(Wall(7 * DAY + 1)));
    assert_eq!(kept(&ring), [keys[2], keys[1]]);
    assert!(!ring.drop_before(Wall(7 * DAY + 1)), "nothing more to forget");
    let mut ring = again(&ring);
    assert_eq!(kept(&ring), [keys[2], keys[1]]);
    ring.drop_before(Wall(u64::MAX));
    assert_eq!(kept(&ring), [keys[2]], "the key in use never goes");
    assert!(verify_chain(&keys[0], &ring.chain()), "its public part still leads to the last");
}

#[test]
fn a_stored_ring_is_the_same_ring() {
    let ring = ring(3);
    let mut again = again(&ring);
    assert_eq!(again.chain(), ring.chain());
    assert_eq!(again.made(), ring.made());
    assert_eq!(again.due(Wall(21 * DAY)), ring.due(Wall(21 * DAY)));
    again.rotate(Wall(21 * DAY)).unwrap();
    assert!(verify_chain(&ring.current(), &again.chain()), "it can still sign");
}

#[test]
fn a_ring_that_is_not_what_it_says_is_not_read() {
    let whole: Value = serde_json::to_value(ring(3)).unwrap();
    let stranger: Value = serde_json::to_value(ring(1)).unwrap();
    #[track_caller]
    fn check(whole: &Value, how: &str, change: impl FnOnce(&mut Vec<Value>)) {
        let mut value = whole.clone();
        change(value.as_array_mut().unwrap());
        let text = value.to_string();
        let said = serde_json::from_str::<Ring>(&text).map(|_| ()).unwrap_err().to_string();
        for key in value.as_array().unwrap() {
            let Some(secret) = key["secret"].as_str().filter(|s| s.len() > 8) else { continue };
            assert!(!said.contains(secret), "{how}: {said}");
        }
    }
    check(&whole, "no key", Vec::clear);
    check(&whole, "too many", |keys| {
        *keys = std::iter::repeat_n(keys[2].clone(), MOST + 1).collect();
    });
    check(&whole, "no private part of the last", |keys| {
        keys[2].as_object_mut().unwrap().remove("secret");
    });
    check(&whole, "another's private part", |keys| {
        keys[1]["secret"] = stranger[0]["secret"].clone();
    });
    check(&whole, "another's public key", |keys| keys[2]["key"] = stranger[0]["key"].clone());
    check(&whole, "half a private part", |keys| {
        let half = keys[2]["secret"].as_str().unwrap()[..40].to_owned();
        keys[2]["secret"] = half.into();
    });
    check(&whole, "a private part that is no base64", |keys| {
        keys[2]["secret"] = "a private key, or so they said".into();
    });
    check(&whole, "a number", |keys| keys[2]["secret"] = json!(5));
    check(&whole, "no time", |keys| {
        keys[0].as_object_mut().unwrap().remove("made");
    });
    assert!(serde_json::from_str::<Ring>("{}").is_err());
}

#[test]
fn a_private_key_is_never_shown_and_is_wiped() {
    fn wiped(_: &impl ZeroizeOnDrop) {}
    let ring = ring(2);
    for own in ring.all() {
        wiped(&*own.secret);
        // The seed lies at a fixed place of the PKCS #8 that ring writes (RFC 8410).
        let seed = &own.secret[16..48];
        let secrets = [
            URL_SAFE_NO_PAD.encode(own.secret.as_slice()),
            URL_SAFE_NO_PAD.encode(seed),
            format!("{:?}", own.secret.as_slice()),
            format!("{seed:?}"),
            seed.iter().map(|b| format!("{b:02x}")).collect(),
        ];
        for text in [format!("{ring:?}"), format!("{ring:#?}"), format!("{own:?}")] {
            for secret in &secrets {
                assert!(!text.contains(secret.trim_matches(['[', ']'])), "{text}");
            }
            assert!(!text.contains(&own.key().to_string()), "not even the public key whole");
        }
    }
    wiped(&Text(Zeroizing::new(Vec::new())).0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_breaks_the_reader(text in "\\PC{0,200}") {
        let _ = serde_json::from_str::<Ring>(&text);
        let link = ChainLink { key: PublicKey::new([1; 32]), signed: text };
        prop_assert!(!verify_chain(&PublicKey::new([2; 32]), std::slice::from_ref(&link)));
        prop_assert!(!follows(&PublicKey::new([2; 32]), &link));
    }

    #[test]
    fn a_signature_changed_anywhere_signs_nothing(at in 0_usize..64, bit in 0_u8..8) {
        let mut chain = ring(2).chain();
        let mut bytes = URL_SAFE_NO_PAD.decode(&chain[1].signed).unwrap();
        bytes[at] ^= 1 << bit;
        chain[1].signed = URL_SAFE_NO_PAD.encode(bytes);
        prop_assert!(!verify_chain(&chain[0].key, &chain));
    }
}
