//! What a request's choice was made from, as a header of its answer.
//!
//! In flow what the choice was given and what it took; out flows the value of
//! `x-tailherd-explain`: a JSON array, the best offer first, in ASCII and of bounded length. Only
//! programs on this machine can ask for it. No address and nothing of a prompt is in it.

use std::fmt::Write as _;
use std::time::Duration;

use http::HeaderValue;

use crate::balance::Terms;
use crate::directory::Offer;
use crate::directory::weigh::{self, Scales};
use crate::telemetry::running::Place;

/// The header.
pub(super) const HEADER: &str = "x-tailherd-explain";
/// Longest value: clients of every kind take as much.
const MOST: usize = 8 << 10;
/// What is kept free for the word on what is left off.
const SPARE: usize = 32;

/// The request goes to that offer, with this prediction.
pub(super) fn sent(place: &Place, offer: &Offer, terms: &Terms) {
    let first = terms.rtt + terms.upload + terms.wait + terms.load + terms.prefill;
    let first = Duration::try_from_secs_f64(first).unwrap_or_default();
    place.sent(offer.node.name.as_str(), terms.load > 0.0, first);
}

/// All offers weighed, as a header's value.
pub(super) fn header(
    scales: &Scales<'_>,
    chosen: usize,
    tried: &[(usize, &'static str)],
) -> HeaderValue {
    let rows = weigh::weigh(scales, Some(chosen), tried);
    let rows: Vec<String> = rows.iter().map(|weighed| ascii(&weighed.row.to_string())).collect();
    let text = bounded(&rows, MOST);
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("[]"))
}

/// As many rows as there is room for, and how many are left off.
fn bounded(rows: &[String], most: usize) -> String {
    let mut text = "[".to_owned();
    for (at, row) in rows.iter().enumerate() {
        if text.len() + row.len() + SPARE > most {
            let comma = if at > 0 { "," } else { "" };
            // Writing to a String cannot fail.
            let _ = write!(text, "{comma}{{\"leftOff\":{}}}", rows.len() - at);
            break;
        }
        if at > 0 {
            text.push(',');
        }
        text.push_str(row);
    }
    text.push(']');
    text
}

/// JSON with nothing in it that a header may not hold. Only strings hold such a thing.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if matches!(c, ' '..='~') {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(out, "\\u{unit:04x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn any_text_becomes_a_legal_header_that_reads_as_the_same() {
        for text in ["größe", "\u{1b}]52;c\r\n", "\u{202e}x\u{7f}", "😀\"\\", "plain"] {
            let row = json!({ "why": text });
            let header = HeaderValue::from_str(&ascii(&row.to_string())).unwrap();
            assert!(header.to_str().unwrap().is_ascii());
            assert_eq!(serde_json::from_slice::<Value>(header.as_bytes()).unwrap(), row);
        }
    }

    #[test]
    fn what_is_too_long_is_left_off_and_counted() {
        let row = || json!({ "node": "x".repeat(50) }).to_string();
        for (rows, most, left) in
            [(3, 8192, None), (9, 220, Some(6)), (2, 40, Some(2)), (0, 40, None)]
        {
            let rows: Vec<String> = (0..rows).map(|_| row()).collect();
            let text = bounded(&rows, most);
            assert!(text.len() <= most, "{} > {most}", text.len());
            let read: Vec<Value> = serde_json::from_str(&text).unwrap();
            let said = read.last().and_then(|last| last["leftOff"].as_u64());
            assert_eq!(said, left, "{text}");
            assert_eq!(read.len() + left.map_or(0, |n: u64| n as usize - 1), rows.len());
        }
    }
}
