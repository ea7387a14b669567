//! What status says of pins and of the local network: never a key, never another's address.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::net::LanView;
use crate::telemetry::events::timestamp;
use crate::telemetry::{plain, words};
use crate::trust::{Pin, PinState, Verdict, View};
use crate::types::Wall;

/// How many nodes could be met on the local network.
pub(super) fn live(trust: &View, now: Wall) -> usize {
    trust.pins.iter().filter(|pin| trust.standing(pin, now).is_ok()).count()
}

/// All pins, each with what it is worth now.
pub(super) fn list(trust: &View, now: Wall) -> Vec<Value> {
    trust.pins.iter().map(|pin| row(trust, pin, now)).collect()
}

fn row(trust: &View, pin: &Pin, now: Wall) -> Value {
    let state = match &pin.state {
        PinState::Pending => "pending",
        PinState::Suspended { .. } => "suspended",
        PinState::Live if trust.standing(pin, now).is_err() => "ended",
        PinState::Live => "live",
    };
    // Whether we would let it in by the local network, were the tailnet gone now.
    let verdict = trust.judge(&pin.key, now);
    let admitted = matches!(verdict, Verdict::Admit(..));
    let why = match (&pin.state, &pin.changed) {
        (_, Some(_)) => format!(
            "another key answers in its place: tailherd trust accept {}, if you know why",
            pin.name
        ),
        (PinState::Pending, _) => "its key has not answered a call of ours yet".to_owned(),
        (PinState::Suspended { why, .. }, _) => why.to_string(),
        (PinState::Live, _) if admitted => String::new(),
        (PinState::Live, _) => verdict.label().to_owned(),
    };
    let verified = (pin.verified > Wall::default()).then(|| at(pin.verified));
    json!({
        "name": plain(pin.name.as_str()),
        "id": pin.node.to_string(),
        "state": state,
        "why": words(&why),
        "admitted": admitted,
        "verified": verified,
        "verifiedSeconds": verified.is_some().then(|| now.since(pin.verified).as_secs()),
        "ends": at(pin.ends(&trust.bounds)),
    })
}

/// Where the local network may be used, or why nowhere.
pub(super) fn lan(view: &LanView) -> Value {
    let link = |link: &crate::net::LanLink| json!({ "device": plain(&link.device), "net": link.net().to_string(), "network": &*link.network });
    let unknown = |(device, network): &(String, std::sync::Arc<str>)| json!({ "device": plain(device), "network": &**network });
    json!({
        "links": view.links.iter().map(link).collect::<Vec<_>>(),
        "off": view.off.as_deref().map(words),
        "unknown": view.unknown.iter().map(unknown).collect::<Vec<_>>(),
    })
}

fn at(wall: Wall) -> String {
    timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(wall.0.min(MOST)))
}

/// The last second of the year 9999: what a file says is not believed to be later.
const MOST: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::testing::{id, who};
    use crate::trust::{Bounds, Changed, Own, Why};
    use crate::types::PublicKey;

    const NOW: Wall = Wall(1_800_000_000);
    const DAY: u64 = 86_400;

    /// A pin of a device of ours that the tailnet vouched for an hour ago.
    fn pin(name: &str) -> Pin {
        let who = who(name);
        Pin {
            node: id(name),
            created: "2026-01-01".to_owned(),
            name: who.name,
            dns: String::new(),
            principal: who.principal,
            shared: false,
            key: PublicKey::new([name.len() as u8; 32]),
            node_key: String::new(),
            state: PinState::Live,
            verified: Wall(NOW.0 - 3600),
            learned: Wall(NOW.0 - 3600),
            expires: None,
            expired: false,
            ephemeral: false,
            port: 11436,
            hints: Default::default(),
            lan: vec!["192.168.1.9".parse().unwrap()],
            tailnet: Vec::new(),
            grants: Vec::new(),
            reached: Some(NOW),
            changed: None,
            knows: None,
            gone: None,
            by_hand: None,
        }
    }

    fn view(pins: Vec<Pin>) -> View {
        let me = who("desk");
        let mut view = View::default();
        view.clock_ok = true;
        view.bounds = Bounds {
            trust: Duration::from_secs(14 * DAY),
            grant: Duration::from_secs(DAY),
            ports: vec![11436],
        };
        view.own = me.principal.map(|principal| Own {
            stable: "desk".into(),
            created: String::new(),
            name: me.name,
            principal,
            node_key: String::new(),
            addrs: Vec::new(),
        });
        view.pins = pins;
        view
    }

    #[test]
    fn a_pin_says_what_it_is_worth_and_why_not_more() {
        #[track_caller]
        fn check(
            change: impl Fn(&mut Pin),
            state: &str,
            admitted: bool,
            words: &str,
            count: usize,
        ) {
            let mut one = pin("gpu");
            change(&mut one);
            let view = view(vec![one]);
            let row = list(&view, NOW).remove(0);
            assert_eq!((&row["state"], &row["admitted"]), (&json!(state), &json!(admitted)));
            let why = row["why"].as_str().unwrap();
            assert!(if words.is_empty() { why.is_empty() } else { why.contains(words) }, "{why}");
            assert_eq!(live(&view, NOW), count);
        }
        check(|_| {}, "live", true, "", 1);
        check(|p| p.state = PinState::Pending, "pending", false, "call of ours", 0);
        let suspended = PinState::Suspended { since: NOW, why: Why::Gone };
        check(|p| p.state = suspended.clone(), "suspended", false, "not in the tailnet's list", 0);
        check(|p| p.verified = Wall(NOW.0 - 15 * DAY), "ended", false, "too long", 0);
        check(|p| p.reached = None, "live", false, "policy", 1);
        let other = Changed { key: PublicKey::new([9; 32]), first: NOW, last: NOW, seen: 0 };
        check(|p| p.changed = Some(other), "live", true, "tailherd trust accept gpu", 1);
    }

    #[test]
    fn no_key_and_no_address_of_a_pin_is_shown() {
        let view = view(vec![pin("gpu")]);
        let text = json!(list(&view, NOW)).to_string();
        let key = view.pins[0].key;
        for absent in ["192.168", &key.to_string(), &key.short()] {
            assert!(!text.contains(absent), "{absent}: {text}");
        }
        assert!(text.contains("\"verifiedSeconds\":3600"), "{text}");
    }
}
