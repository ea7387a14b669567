//! Server-sent events out of bytes, wherever those are cut.
//!
//! Comments and unknown fields are passed over. Text that is no event at all is kept, up to a
//! bound: a provider that fails may say so in plain JSON.

/// Longest event, and longest text that is none.
const MOST: usize = 16 << 20;
const MOST_ODD: usize = 64 << 10;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Event {
    /// Its name; empty for most of OpenAI's.
    pub(super) name: String,
    /// Its data; several lines are joined.
    pub(super) data: String,
}

/// Something was longer than anything is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLong;

/// What came so far of the event that is being read.
#[derive(Debug, Default)]
pub(super) struct Events {
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    /// The last byte was a carriage return: a line feed after it ends no further line.
    returned: bool,
    odd: Vec<u8>,
}

impl Events {
    /// Takes bytes; each event that is whole by them goes to `each`.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Event),
    ) -> Result<(), TooLong> {
        for byte in bytes {
            let after_return = std::mem::take(&mut self.returned);
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => {
                    self.returned = *byte == b'\r';
                    self.line_over(&mut each);
                }
                byte => {
                    if self.line.len() + self.event.data.len() >= MOST {
                        return Err(TooLong);
                    }
                    self.line.push(*byte);
                }
            }
        }
        Ok(())
    }

    /// The bytes are over: an event that lacks its blank line is whole by that.
    pub(super) fn finish(&mut self, mut each: impl FnMut(Event)) {
        if !self.line.is_empty() {
            self.line_over(&mut each);
        }
        self.event_over(&mut each);
    }

    /// What came that is no event.
    pub(super) fn odd(&self) -> &[u8] {
        &self.odd
    }

    fn line_over(&mut self, each: &mut impl FnMut(Event)) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return self.event_over(each);
        }
        let colon = line.iter().position(|b| *b == b':');
        let (field, value) = line.split_at(colon.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = String::from_utf8_lossy(value.strip_prefix(b" ").unwrap_or(value));
        match field {
            b"event" => self.event.name = value.into_owned(),
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(&value);
            }
            b"" | b"id" | b"retry" => {}
            _ if self.odd.len() + line.len() < MOST_ODD => {
                self.odd.extend_from_slice(&line);
                self.odd.push(b'\n');
            }
            _ => {}
        }
    }

    fn event_over(&mut self, each: &mut impl FnMut(Event)) {
        let event = std::mem::take(&mut self.event);
        if std::mem::take(&mut self.has_data) {
            each(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(chunks: &[&[u8]]) -> (Vec<(String, String)>, String) {
        let (mut events, mut out) = (Events::default(), Vec::new());
        for chunk in chunks {
            events.feed(chunk, |event| out.push((event.name, event.data))).unwrap();
        }
        events.finish(|event| out.push((event.name, event.data)));
        (out, String::from_utf8_lossy(events.odd()).into_owned())
    }

    #[test]
    fn events_are_read_as_the_standard_says() {
        let text = b": PROCESSING\r\n\r\nevent: a\r\ndata: one\r\ndata:two\r\n\r\nid: 7\ndata\n\ndata:  x\r\revent: lost\n\ndata: last";
        let pair = |name: &str, data: &str| (name.to_owned(), data.to_owned());
        let want = vec![pair("a", "one\ntwo"), pair("", ""), pair("", " x"), pair("", "last")];
        assert_eq!(read(&[text]).0, want);
        for cut in 0..text.len() {
            assert_eq!(read(&[&text[..cut], &text[cut..]]).0, want, "{cut}");
        }
    }

    #[test]
    fn text_that_is_no_event_is_kept_within_a_bound() {
        assert_eq!(read(&[b"{\"error\":\n\"no\"}"]).1, "{\"error\":\n\"no\"}\n");
        let long = [b'x'; 4 * MOST_ODD];
        assert!(read(&[&long, b"\n"]).1.is_empty());
        let mut events = Events::default();
        let most = vec![b'x'; MOST];
        assert_eq!(events.feed(&most, |_| {}), Ok(()));
        assert_eq!(events.feed(b"x", |_| {}), Err(TooLong));
    }
}
