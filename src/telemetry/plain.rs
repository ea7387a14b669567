//! Names made safe to show.

use std::borrow::Cow;
use std::fmt::Write;

/// Longest text shown of one name, in characters.
const MAX_SHOWN: usize = 128;

/// A name as it may stand in a terminal, a log line, a label or a page: control characters
/// and those that turn the direction of writing are spelled out as `\u{…}`, and what is longer
/// than 128 characters is cut and ends in `…`. Names come from peers, who may be hostile.
pub fn plain(text: &str) -> Cow<'_, str> {
    // Nearly every name is of this kind, and many are looked at for each request.
    if text.len() <= MAX_SHOWN && text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return Cow::Borrowed(text);
    }
    // One byte is at most one character, so a short text needs no counting.
    if !text.contains(is_odd) && (text.len() <= MAX_SHOWN || text.chars().count() <= MAX_SHOWN) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len().min(4 * MAX_SHOWN));
    for (at, c) in text.chars().enumerate() {
        if at + 1 == MAX_SHOWN && text.chars().count() > MAX_SHOWN {
            out.push('…');
            break;
        }
        if is_odd(c) {
            // Writing to a String cannot fail.
            let _ = write!(out, "{}", c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// A sentence, each of its words made inert: as a whole it may be longer than a name, though not
/// without end.
pub fn words(text: &str) -> String {
    text.split_inclusive(' ').take(MAX_SHOWN).map(plain).collect()
}

/// Control characters (C0, C1, DEL), line and paragraph separators, direction marks, and the
/// invisible ones that make two names look alike.
pub(super) fn is_odd(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061C}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
            | '\u{2060}'..='\u{2069}' | '\u{FEFF}' | '\u{E0000}'..='\u{E007F}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_peers_are_inert() {
        for (name, shown) in [
            ("qwen3:8b", "qwen3:8b"),
            ("größe", "größe"),
            ("\u{1b}]52;c;x\u{7}", "\\u{1b}]52;c;x\\u{7}"),
            ("a\r\nb", "a\\u{d}\\u{a}b"),
            ("x\u{202e}y", "x\\u{202e}y"),
        ] {
            assert_eq!(plain(name), shown);
        }
        let shown = plain(&"é".repeat(500)).into_owned();
        assert_eq!(shown.chars().count(), MAX_SHOWN);
        assert!(shown.ends_with('…'));
        assert_eq!(plain(&"é".repeat(128)).chars().count(), 128);
    }
}
