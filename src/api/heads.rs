//! Request heads that every reader reads the same way.
//!
//! hyper's parser is lenient where RFC 9112 lets it be: a line may end in a bare LF, and of two
//! lengths one wins. Leniency is how a request is smuggled past whoever reads more strictly.
//! This reader follows the framing of a connection's requests as their bytes come in, and says
//! at once when a head is one of those. It changes nothing, keeps at most one short line, and
//! leaves every other judgement to the real parser: what it cannot follow it stops reading.

/// What is wrong with a request's framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// A line that ends in LF without CR.
    #[error("a line ends in a bare LF")]
    BareLf,
    /// A length and chunks, or two lengths that differ.
    #[error("the request has two lengths")]
    TwoLengths,
}

/// Most of a line that is kept: names and values of the fields that frame a body are short.
const KEPT: usize = 128;

/// Reads the bytes of one connection, request after request.
#[derive(Debug, Default)]
pub struct Heads {
    place: Place,
    /// The beginning of the current line, without its end.
    line: Vec<u8>,
    /// Whether the last byte was CR.
    cr: bool,
    /// Whether the current head has a request line.
    begun: bool,
    length: Option<u64>,
    chunked: bool,
}

/// Where the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Head,
    /// This many bytes of a body are still to come.
    Body(u64),
    /// The line that says how long a chunk is.
    Size,
    /// The rest of a chunk and the line end behind it.
    Chunk(u64),
    Trailer,
    /// Not followed any more.
    Lost,
}

impl Heads {
    /// Reads the next bytes.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Flaw> {
        while !bytes.is_empty() {
            match self.place {
                Place::Lost => return Ok(()),
                Place::Body(left) | Place::Chunk(left) => {
                    let here = left.min(bytes.len() as u64);
                    bytes = &bytes[usize::try_from(here).unwrap_or(bytes.len())..];
                    self.place = match (self.place, left - here) {
                        (Place::Body(_), 0) => Place::Head,
                        (Place::Chunk(_), 0) => Place::Size,
                        (Place::Body(_), left) => Place::Body(left),
                        (_, left) => Place::Chunk(left),
                    };
                }
                Place::Head | Place::Size | Place::Trailer => {
                    let Some(end) = memchr::memchr(b'\n', bytes) else {
                        self.keep(bytes);
                        return Ok(());
                    };
                    self.keep(&bytes[..end]);
                    bytes = &bytes[end + 1..];
                    if !std::mem::take(&mut self.cr) {
                        return Err(Flaw::BareLf);
                    }
                    let mut line = std::mem::take(&mut self.line);
                    self.ended(&line)?;
                    // Its memory serves the next line.
                    line.clear();
                    self.line = line;
                }
            }
        }
        Ok(())
    }

    /// Takes a piece of a line. A CR counts as the line's end only if LF follows.
    fn keep(&mut self, piece: &[u8]) {
        let Some((last, _)) = piece.split_last() else { return };
        if self.cr && self.line.len() < KEPT {
            self.line.push(b'\r');
        }
        self.cr = *last == b'\r';
        let text = if self.cr { &piece[..piece.len() - 1] } else { piece };
        let room = KEPT.saturating_sub(self.line.len());
        self.line.extend_from_slice(&text[..text.len().min(room)]);
    }

    /// A line has ended.
    fn ended(&mut self, line: &[u8]) -> Result<(), Flaw> {
        match self.place {
            Place::Head if line.is_empty() && self.begun => self.body(),
            // Empty lines before a request line mean nothing.
            Place::Head if line.is_empty() => {}
            Place::Head if !self.begun => self.begun = true,
            Place::Head => return self.field(line),
            Place::Size => {
                let digits = line.split(|b| *b == b';').next().unwrap_or_default();
                let size = std::str::from_utf8(digits.trim_ascii()).ok();
                self.place = match size.and_then(|s| u64::from_str_radix(s, 16).ok()) {
                    Some(0) => Place::Trailer,
                    Some(size) => Place::Chunk(size.saturating_add(2)),
                    None => Place::Lost,
                };
            }
            Place::Trailer if line.is_empty() => self.next(),
            _ => {}
        }
        Ok(())
    }

    /// A field of the head, if it is one of those that frame the body.
    fn field(&mut self, line: &[u8]) -> Result<(), Flaw> {
        let Some(colon) = memchr::memchr(b':', line) else { return Ok(()) };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
            match (length, self.length) {
                // A length nobody can read is the parser's to refuse.
                (None, _) => self.place = Place::Lost,
                (Some(new), Some(old)) if new != old => return Err(Flaw::TwoLengths),
                (Some(new), _) => self.length = Some(new),
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.chunked = true;
        }
        if self.chunked && self.length.is_some() {
            return Err(Flaw::TwoLengths);
        }
        Ok(())
    }

    /// The head has ended.
    fn body(&mut self) {
        self.place = match (self.chunked, self.length) {
            (true, _) => Place::Size,
            (false, Some(length)) if length > 0 => Place::Body(length),
            (false, _) => Place::Head,
        };
        if self.place == Place::Head {
            self.next();
        }
        (self.begun, self.length, self.chunked) = (false, None, false);
    }

    fn next(&mut self) {
        self.place = Place::Head;
        self.begun = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    #[track_caller]
    fn check(text: &str, want: Result<(), Flaw>) {
        assert_eq!(Heads::default().feed(text.as_bytes()), want, "{text:?}");
        // The same, byte by byte.
        let mut heads = Heads::default();
        let got = text.bytes().try_for_each(|b| heads.feed(&[b]));
        assert_eq!(got, want, "byte by byte: {text:?}");
    }

    #[test]
    fn heads_that_two_readers_could_read_in_two_ways_are_told() {
        check("GET / HTTP/1.1\nHost: x\n\n", Err(Flaw::BareLf));
        check("GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", Err(Flaw::BareLf));
        check("GET / HTTP/1.1\r\nHost: x\r\r\n\r\n", Ok(()));
        check(
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            Err(Flaw::TwoLengths),
        );
        check(
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n",
            Err(Flaw::TwoLengths),
        );
        check(
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
            Err(Flaw::TwoLengths),
        );
        check(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
            Err(Flaw::BareLf),
        );
    }

    #[test]
    fn bodies_may_hold_what_they_like() {
        check("POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n\n\n\n\nGET / HTTP/1.1\r\n\r\n", Ok(()));
        check(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\n\n\n\n\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            Ok(()),
        );
        check("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\nGET /\n", Err(Flaw::BareLf));
        check("\r\nGET / HTTP/1.1\r\n\r\n", Ok(()));
        check("POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n\n\n", Ok(()));
    }

    proptest! {
        #[test]
        fn a_request_behind_any_body_is_found(
            body in proptest::collection::vec(any::<u8>(), 0..300),
            cuts in proptest::collection::vec(1usize..40, 1..20),
            chunked in any::<bool>(),
        ) {
            let mut bytes = Vec::new();
            if chunked {
                bytes.extend_from_slice(b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
                for piece in body.chunks(37) {
                    bytes.extend_from_slice(format!("{:X}\r\n", piece.len()).as_bytes());
                    bytes.extend_from_slice(piece);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
            } else {
                let head = format!("POST /a HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
                bytes.extend_from_slice(head.as_bytes());
                bytes.extend_from_slice(&body);
            }
            bytes.extend_from_slice(GET.as_bytes());
            let mut heads = Heads::default();
            let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let at = (*cuts.next().unwrap()).min(rest.len());
                prop_assert_eq!(heads.feed(&rest[..at]), Ok(()));
                rest = &rest[at..];
            }
            prop_assert_eq!(heads.feed(b"GET / HTTP/1.1\n"), Err(Flaw::BareLf));
        }
    }
}
