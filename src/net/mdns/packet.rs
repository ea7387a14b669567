//! The packets of mDNS, as far as peers need them to find one another: one question, one
//! answer, and what can be read off what others say.
//!
//! Pure: bytes in, bytes out. What comes in was written by anybody on the local network, so
//! every part of it is bounded, and nothing in it is believed: a tag is a text that whoever
//! holds the pins may recognise.

use std::net::Ipv4Addr;

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query};
use hickory_resolver::proto::rr::rdata::{A, PTR, SRV, TXT};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};

/// The service that is asked for and announced.
const SERVICE: &str = "_tailherd._tcp.local.";

/// What stands before a tag in a TXT record.
const KEY: &str = "t=";

/// Seconds that others may remember an answer: what RFC 6762 §10 wants for what holds a host's
/// address, and used for all of it, since a name lives for an hour only.
const TTL: u32 = 120;

/// The internet class with the bit that says that this record replaces older ones of its name.
const UNIQUE: DNSClass = DNSClass::Unknown(0x8001);

/// Most TXT records read off one packet, and most tags off one record.
const MOST: usize = 8;

/// Longest tag.
const TAG_BYTES: usize = 128;

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Say {
    /// Texts that only those who hold a pin of this node recognise, one for each of its keys.
    pub tags: Vec<String>,
    /// The port of its LAN listener.
    pub port: u16,
}

/// The names a node goes by until the hour changes. They mean nothing and come from chance, so
/// that nobody can follow a device by them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    instance: String,
    host: String,
}

impl Names {
    pub(super) fn random() -> Names {
        Names {
            instance: format!("{:016x}", rand::random::<u64>()),
            host: format!("{:016x}", rand::random::<u64>()),
        }
    }
}

/// What was read off a packet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Read {
    /// Somebody asks who is there.
    pub(super) asked: bool,
    /// Somebody said these tags.
    pub(super) tags: Vec<String>,
}

/// The packet that asks who is there.
pub(super) fn question() -> Option<Vec<u8>> {
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name(SERVICE)?, RecordType::PTR));
    message.to_vec().ok()
}

/// The packet that says who is here, at `addr`.
pub(super) fn answer(say: &Say, names: &Names, addr: Ipv4Addr) -> Option<Vec<u8>> {
    let service = name(SERVICE)?;
    let instance = name(&format!("{}.{SERVICE}", names.instance))?;
    let host = name(&format!("{}.local.", names.host))?;
    let texts = say.tags.iter().map(|tag| format!("{KEY}{tag}")).collect();
    let mut message = Message::new(0, MessageType::Response, OpCode::Query);
    message.metadata.authoritative = true;
    message.add_answer(Record::from_rdata(service, TTL, RData::PTR(PTR(instance.clone()))));
    message.add_answer(unique(instance.clone(), RData::TXT(TXT::new(texts))));
    message.add_answer(unique(instance, RData::SRV(SRV::new(0, 0, say.port, host.clone()))));
    message.add_answer(unique(host, RData::A(A(addr))));
    message.to_vec().ok()
}

/// Reads a packet. One that is no packet says nothing.
pub(super) fn read(bytes: &[u8]) -> Read {
    let (Ok(message), Some(service)) = (Message::from_vec(bytes), name(SERVICE)) else {
        return Read::default();
    };
    if message.metadata.message_type == MessageType::Query {
        let asked = message.queries.iter().any(|q| {
            matches!(q.query_type, RecordType::PTR | RecordType::ANY) && q.name == service
        });
        return Read { asked, tags: Vec::new() };
    }
    // Only one label below the service: an instance.
    let instance = |n: &Name| service.zone_of(n) && n.num_labels() == service.num_labels() + 1;
    let texts = message.all_sections().filter_map(|record| match &record.data {
        RData::TXT(txt) if record.ttl > 0 && instance(&record.name) => Some(txt),
        _ => None,
    });
    let tags = texts
        .take(MOST)
        .flat_map(|txt| txt.txt_data.iter().take(MOST))
        .filter(|text| text.len() <= KEY.len() + TAG_BYTES)
        .filter_map(|text| std::str::from_utf8(text).ok()?.strip_prefix(KEY))
        .filter(|tag| !tag.is_empty() && tag.bytes().all(|b| b.is_ascii_graphic()))
        .map(str::to_owned)
        .collect();
    Read { asked: false, tags }
}

fn unique(name: Name, data: RData) -> Record {
    let mut record = Record::from_rdata(name, TTL, data);
    record.dns_class = UNIQUE;
    record
}

fn name(text: &str) -> Option<Name> {
    Name::from_ascii(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const HERE: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 9);

    fn say(tags: &[&str]) -> Say {
        Say { tags: tags.iter().map(|t| (*t).to_owned()).collect(), port: 11436 }
    }

    #[test]
    fn a_question_is_heard_and_an_answer_gives_its_tags() {
        assert_eq!(read(&question().unwrap()), Read { asked: true, tags: vec![] });
        let answer = answer(&say(&["new", "old"]), &Names::random(), HERE).unwrap();
        let tags = vec!["new".to_owned(), "old".to_owned()];
        assert_eq!(read(&answer), Read { asked: false, tags });
    }

    #[test]
    fn what_is_no_announcement_of_ours_says_nothing() {
        let (other, names) = ("_ipp._tcp.local.", Names::random());
        let mut query = Message::new(0, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(name(other).unwrap(), RecordType::PTR));
        assert_eq!(read(&query.to_vec().unwrap()), Read::default());
        let tag = |owner: String, text: String, ttl| {
            let mut message = Message::new(0, MessageType::Response, OpCode::Query);
            let data = RData::TXT(TXT::new(vec![text]));
            message.add_answer(Record::from_rdata(name(&owner).unwrap(), ttl, data));
            read(&message.to_vec().unwrap()).tags
        };
        let ours = format!("{}.{SERVICE}", names.instance);
        assert_eq!(tag(ours.clone(), "t=x".into(), 9), ["x"]);
        assert!(tag(format!("a.{other}"), "t=x".into(), 9).is_empty(), "another service");
        assert!(tag(format!("a.{ours}"), "t=x".into(), 9).is_empty(), "below an instance");
        assert!(tag(SERVICE.into(), "t=x".into(), 9).is_empty(), "no instance");
        assert!(tag(ours.clone(), "t=x".into(), 0).is_empty(), "a farewell");
        assert!(tag(ours.clone(), "u=x".into(), 9).is_empty(), "another key");
        assert!(tag(ours.clone(), "t=".into(), 9).is_empty(), "nothing");
        assert!(tag(ours.clone(), "t=a\u{1b}]52".into(), 9).is_empty(), "no plain text");
        assert!(tag(ours, format!("t={}", "x".repeat(TAG_BYTES + 1)), 9).is_empty(), "too long");
    }

    #[test]
    fn one_packet_gives_a_bounded_number_of_tags() {
        let many: Vec<String> = (0..200).map(|i| format!("tag{i}")).collect();
        let say = Say { tags: many, port: 1 };
        let packet = answer(&say, &Names::random(), HERE).unwrap();
        assert_eq!(read(&packet).tags.len(), MOST);
    }

    #[test]
    fn a_torn_packet_is_no_packet_and_harms_nobody() {
        let whole = answer(&say(&["tag"]), &Names::random(), HERE).unwrap();
        for cut in 0..whole.len() {
            read(&whole[..cut]);
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[cut] ^= 1 << bit;
                read(&flipped);
            }
        }
        assert_eq!(read(b""), Read::default());
        // A name that points at itself.
        let mut loops = question().unwrap();
        loops.truncate(12);
        loops.extend([0xc0, 12, 0, 12, 0, 1]);
        assert_eq!(read(&loops), Read::default());
    }

    #[test]
    fn two_hours_of_one_node_share_nothing_that_two_nodes_do_not_share() {
        let packet = |tag: &str| answer(&say(&[tag]), &Names::random(), HERE).unwrap();
        let (now, later) = (packet("aaaaaaaaaaaaaaaa"), packet("bbbbbbbbbbbbbbbb"));
        // What all nodes say alike says nothing of one. (So many that no letter that chance
        // wrote is the same in all of them.)
        let strangers: Vec<_> = (0..64).map(|n| packet(&format!("{n:016x}"))).collect();
        let alike = |at: usize| strangers.iter().all(|other| other[at] == strangers[0][at]);
        let own: Vec<bool> = (0..now.len()).map(|at| !alike(at)).collect();
        // All strings of eight bytes of its own.
        let strings = |packet: &[u8]| -> HashSet<Vec<u8>> {
            let at = (0..=packet.len() - 8).filter(|at| own[*at..at + 8].iter().all(|own| *own));
            at.map(|at| packet[at..at + 8].to_vec()).collect()
        };
        let (now, later) = (strings(&now), strings(&later));
        assert!(now.len() > 9, "two names of chance");
        assert!(now.is_disjoint(&later));
        let (one, two) = (Names::random(), Names::random());
        assert!(one.instance != two.instance && one.host != two.host);
    }
}
