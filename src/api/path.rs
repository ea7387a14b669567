//! Paths of requests, as Go's server reads them.

/// The path with its percent escapes read; `None` if one is broken or hides no text.
pub(super) fn decode(raw: &str) -> Option<String> {
    if !raw.contains('%') {
        return Some(raw.to_owned());
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        if *byte != b'%' {
            out.push(*byte);
            continue;
        }
        let digit = |i: usize| rest.get(i).and_then(|b| char::from(*b).to_digit(16));
        let byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
        out.push(byte);
        rest = rest.get(2..)?;
    }
    String::from_utf8(out).ok()
}

/// The path with everything escaped that Go would escape.
pub(super) fn encode(path: &str) -> String {
    escape(path, b"-_.~$&+,/:;=@")
}

/// The text with percent escapes for all but letters, digits and what is `plain`.
pub(super) fn escape(text: &str, plain: &[u8]) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// The path without empty, `.` and `..` segments, as Go's multiplexer makes it: it starts
/// with `/`, and a slash at the end stays.
pub(super) fn clean(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            name => kept.push(name),
        }
    }
    let mut out = String::with_capacity(path.len() + 1);
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if out.is_empty() || path.ends_with('/') {
        out.push('/');
    }
    out
}

/// Whether all readers agree what the path means: no `..`, `//`, `\`, and none of them (or a
/// slash) behind an escape.
pub(super) fn is_unambiguous(raw: &str) -> bool {
    let lower = raw.to_ascii_lowercase();
    !["..", "//", "\\", "%2e", "%2f", "%5c"].iter().any(|bad| lower.contains(bad))
}

/// Whether the path holds only letters, digits and the signs that mean themselves.
pub(super) fn is_plain(raw: &str) -> bool {
    raw.starts_with('/')
        && is_unambiguous(raw)
        && raw.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~/:@+=,".contains(&b))
}
