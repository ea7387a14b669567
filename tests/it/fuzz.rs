//! Everything that reads bytes from elsewhere, against recordings with bytes changed, cut out,
//! doubled and put in from others: nothing panics, and how the bytes are cut changes nothing.
//!
//! `cargo test` takes a second of it from a fixed seed; `TAILHERD_FUZZ=SECONDS` as long as that,
//! from a seed of its own, which is said when something fails.

use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Method;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tailherd::api::ending::Ending;
use tailherd::api::hosted::{Fields, opening, verdict};
use tailherd::api::peek::Scanner;
use tailherd::api::report::{Line, Row};
use tailherd::api::route::classify;
use tailherd::api::translate::{self, Reply, Target, Translation};
use tailherd::api::{echo::Echo, show, wire};
use tailherd::config::{FixedEnv, parse};
use tailherd::types::{Api, Op, RequestedModel};
use tokio::time::Instant;

const DIALECTS: [(Api, Op); 6] = [
    (Api::Ollama, Op::Chat),
    (Api::Ollama, Op::Generate),
    (Api::Ollama, Op::Embed),
    (Api::Chat, Op::Chat),
    (Api::Messages, Op::Messages),
    (Api::Responses, Op::Responses),
];
const KINDS: [&str; 3] = ["application/x-ndjson", "text/event-stream", "application/json"];

/// All recordings below a folder.
fn read(folder: &Path, out: &mut Vec<Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, out);
        } else {
            out.push(std::fs::read(&path).unwrap());
        }
    }
}

/// One of the recordings, changed in a few places.
fn changed(corpus: &[Vec<u8>], rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes = corpus.choose(rng).unwrap().clone();
    // The recordings of HTTP begin with a head.
    if rng.random_bool(0.5)
        && let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n")
    {
        bytes.drain(..at + 4);
    }
    bytes.truncate(32 * 1024);
    for _ in 0..rng.random_range(0..8) {
        if bytes.is_empty() {
            break;
        }
        let at = rng.random_range(0..bytes.len());
        let end = (at + rng.random_range(0..64)).min(bytes.len());
        match rng.random_range(0..6) {
            0 => bytes[at] = rng.random(),
            1 => bytes[at] = *b"{}[]\",:\\\n\0".choose(rng).unwrap(),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            4 => bytes.truncate(at),
            _ => {
                let other = corpus.choose(rng).unwrap();
                let from = rng.random_range(0..=other.len());
                let to = (from + rng.random_range(0..256)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
        }
    }
    bytes
}

/// The bytes in pieces, as a network might bring them.
fn pieces<'a>(bytes: &'a [u8], rng: &mut SmallRng) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let most = if rng.random_bool(0.3) { 4 } else { 4096 };
        let (piece, more) = rest.split_at(rng.random_range(1..=most.min(rest.len())));
        pieces.push(piece);
        rest = more;
    }
    pieces
}

/// Feeds every reader; panics where one does, or where the cuts change what is read.
fn feed(bytes: &[u8], rng: &mut SmallRng) {
    let cut = pieces(bytes, rng);
    let peeked = |pieces: &[&[u8]]| {
        let mut scanner = Scanner::new();
        pieces.iter().for_each(|piece| scanner.feed(piece));
        scanner.finish()
    };
    assert_eq!(peeked(&cut), peeked(&[bytes]), "the scanner reads cuts");

    let kind = *KINDS.choose(rng).unwrap();
    let (api, op) = *DIALECTS.choose(rng).unwrap();
    let ended = |pieces: &[&[u8]]| {
        let mut ending = Ending::new(api, op, Some(kind));
        pieces.iter().for_each(|piece| ending.feed(piece));
        (ending.complete(), ending.usage(), ending.repair("x"))
    };
    assert_eq!(ended(&cut), ended(&[bytes]), "{api:?} {kind}: the ending reads cuts");
    let echoed = |pieces: &[&[u8]]| {
        let mut echo = Echo::new(api, "tiny:latest", "me\"");
        let mut out: Vec<u8> = Vec::new();
        for piece in pieces {
            out.extend_from_slice(&echo.feed(Bytes::copy_from_slice(piece)));
        }
        out.extend_from_slice(&echo.finish());
        out
    };
    assert_eq!(echoed(&cut), echoed(&[bytes]), "{api:?}: the echo reads cuts");

    let to = if rng.random_bool(0.5) { Api::Chat } else { Api::Messages };
    if let Some(translation) = Translation::between(api, op, to) {
        let at = Duration::from_millis(7);
        let said = |pieces: &[&[u8]]| {
            let mut stream = translation.stream(Reply::default());
            let mut out = Vec::new();
            pieces.iter().for_each(|piece| stream.push(piece, at, &mut out));
            stream.finish(at, &mut out);
            out
        };
        assert_eq!(said(&cut), said(&[bytes]), "{translation:?}: the stream reads cuts");
        if let Ok(body) = serde_json::from_slice::<serde_json::Value>(bytes) {
            let _ = translation.request(body.clone(), &Target::default());
            let _ = translation.whole(&body, &Reply::default(), at);
        }
    }
    let _ = (opening(kind, bytes), verdict(500, None, bytes), translate::error_of(bytes));
    if let Some(fields) = Fields::read(bytes) {
        let written = fields.write();
        assert!(serde_json::from_slice::<serde_json::Value>(&written).is_ok(), "{written:?}");
    }
    for line in bytes.split(|b| *b == b'\n') {
        let _ = (Line::read(line), Row::read(line));
    }
    let _ = (wire::Offers::decode(bytes), show::Shown::read(bytes));
    let text = String::from_utf8_lossy(bytes);
    let start: String = text.chars().take(200).collect();
    let _ = classify(&Method::POST, &start);
    let _ = RequestedModel::parse(&start);
    let _ = parse(&text, None, &FixedEnv::default());
}

#[test]
fn no_bytes_break_a_reader_and_no_cut_changes_what_is_read() {
    let seconds = std::env::var("TAILHERD_FUZZ").ok().and_then(|text| text.parse().ok());
    let seed = match seconds {
        None => 7,
        Some(_) => SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs(),
    };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut corpus = Vec::new();
    read(&golden.join("tests/golden"), &mut corpus);
    read(&golden.join("config"), &mut corpus);
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(1));
    let mut tried = 0_u64;
    while Instant::now() < until || tried < 50 {
        // Each input from a seed of its own, so that one can be looked at alone.
        let mut rng = SmallRng::seed_from_u64(seed.wrapping_add(tried));
        let bytes = changed(&corpus, &mut rng);
        let fed = std::panic::catch_unwind(move || feed(&bytes, &mut rng));
        assert!(fed.is_ok(), "input {tried} of the seed {seed} broke a reader");
        tried += 1;
    }
    println!("fuzz: {tried} inputs from the seed {seed}, nothing broke");
}
