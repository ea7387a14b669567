//! Another spelling in place of one value, without copying the rest.

use std::ops::Range;

use bytes::Bytes;

/// The JSON string of `text`, quotes included: what stands in for a name.
pub fn quote(text: &str) -> Bytes {
    Bytes::from(super::super::json::quote(text))
}

/// The frames with the bytes of `range` (counted over all frames) replaced by `new`. All
/// other bytes are shared with the old frames.
pub fn rewrite(frames: &[Bytes], range: Range<usize>, new: Bytes) -> Vec<Bytes> {
    rewrite_all(frames, &[(range, new)])
}

/// The same for several places, which must be in order and must not overlap; one that breaks
/// this is left out.
pub fn rewrite_all(frames: &[Bytes], edits: &[(Range<usize>, Bytes)]) -> Vec<Bytes> {
    let mut out = Vec::with_capacity(frames.len() + 2 * edits.len());
    let mut at = 0;
    for (range, new) in edits {
        if range.start < at || range.end < range.start {
            continue;
        }
        copy(frames, at..range.start, &mut out);
        if !new.is_empty() {
            out.push(new.clone());
        }
        at = range.end;
    }
    copy(frames, at..usize::MAX, &mut out);
    out
}

/// The edit that makes `field` (`"name":value`) the last one of a body's object, which has one
/// already and nothing behind it.
pub fn ends_with(frames: &[Bytes], field: &str) -> (Range<usize>, Bytes) {
    let mut end: usize = frames.iter().map(Bytes::len).sum();
    for byte in frames.iter().rev().flat_map(|frame| frame.iter().rev()) {
        end -= 1;
        if *byte == b'}' {
            break;
        }
    }
    (end..end, Bytes::from(format!(",{field}")))
}

/// Appends the bytes of `range` to `out`, shared.
fn copy(frames: &[Bytes], range: Range<usize>, out: &mut Vec<Bytes>) {
    let mut offset = 0;
    for frame in frames {
        let from = range.start.saturating_sub(offset).min(frame.len());
        let to = range.end.saturating_sub(offset).min(frame.len());
        if from < to {
            out.push(frame.slice(from..to));
        }
        offset += frame.len();
    }
}
