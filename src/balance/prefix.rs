//! Whether the beginning of a prompt was there just before, without keeping any of it.
//!
//! What flows in: the bytes of a request's body, and a keyed hash whose key never leaves the
//! process. What flows out: a [`Print`], a few numbers, and what share of one prompt
//! [`Recent`] ones began with. An engine keeps what it read last: such a prompt takes next to
//! no time and says nothing of its speed.
//!
//! It keeps of each slot what was read there last. Who knows how many requests ever began there can
//! tell when that is gone.

use std::hash::{BuildHasher, Hasher};

/// Where prints are taken, in bytes. Shorter beginnings are the request's own words.
const MARKS: [usize; 9] = [256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536];

/// The share of a prompt that is taken to be there where its session's last request ran, whatever
/// its first bytes are.
const SESSION: f64 = 0.9;

/// How many prompts are remembered: an engine has about as many slots.
const KEPT: usize = 8;

/// The print of one prompt: hashes of its beginnings, the shortest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Print {
    marks: [u64; MARKS.len()],
    whole: u64,
    bytes: usize,
    /// The session it belongs to; 0 = none is known.
    session: u64,
}

impl Print {
    /// Of a body that lies in several frames. Only its beginning is read, but its length
    /// counts.
    pub fn of<'a>(
        frames: impl IntoIterator<Item = &'a [u8]>,
        bytes: usize,
        hash: &impl BuildHasher,
    ) -> Print {
        let mut hasher = hash.build_hasher();
        let mut print = Print { bytes, ..Print::default() };
        let (mut read, mut next) = (0, 0);
        for mut frame in frames {
            while let Some(mark) = MARKS.get(next) {
                let (head, tail) = frame.split_at(frame.len().min(mark - read));
                hasher.write(head);
                read += head.len();
                frame = tail;
                if read < *mark {
                    break;
                }
                // Never the mark of a beginning that was not there.
                print.marks[next] = hasher.finish() | 1;
                next += 1;
            }
        }
        if read > 0 {
            hasher.write_usize(bytes);
            print.whole = hasher.finish() | 1;
        }
        print
    }

    /// The same, of a request of this session.
    #[must_use]
    pub fn within(self, session: Option<&str>, hash: &impl BuildHasher) -> Print {
        Print { session: session.map_or(0, |session| hash.hash_one(session) | 1), ..self }
    }

    /// Whether nothing could be like it.
    pub fn is_empty(&self) -> bool {
        self.whole == 0 && self.session == 0
    }

    /// What share of this prompt began like `other`.
    fn shared(&self, other: &Print) -> f64 {
        let began = self.began_like(other);
        match self.session != 0 && self.session == other.session {
            true => began.max(SESSION),
            false => began,
        }
    }

    fn began_like(&self, other: &Print) -> f64 {
        if self.whole != 0 && self.whole == other.whole {
            return 1.0;
        }
        let same = self.marks.iter().zip(&other.marks).take_while(|(a, b)| a == b && **a != 0);
        let bytes = same.count().checked_sub(1).and_then(|last| MARKS.get(last));
        bytes.map_or(0.0, |bytes| (*bytes as f64 / self.bytes.max(1) as f64).min(1.0))
    }
}

/// The last prompts of one model at one engine.
#[derive(Debug, Clone, Default)]
pub struct Recent {
    /// Each with how many requests had begun there by then.
    prints: Vec<(Print, u32)>,
    next: usize,
}

/// Whether what was read at an engine when `noted` requests had begun there is gone, now that
/// `begun` have: each is read over what was used longest ago, so as many as there are slots leave
/// nothing. 0 = nobody says; a count that was begun anew is none that goes on.
pub fn is_read_over(noted: u32, begun: u32, slots: u32) -> bool {
    noted > 0 && begun > 0 && begun.wrapping_sub(noted) >= slots.max(1)
}

impl Recent {
    /// The largest share of `print` that one of them began with, gone or not.
    pub fn share(&self, print: &Print) -> f64 {
        self.prints.iter().map(|(old, _)| print.shared(old)).fold(0.0, f64::max)
    }

    /// The largest share of it that is still there, now that so many requests have begun on so
    /// many slots.
    pub fn kept(&self, print: &Print, begun: u32, slots: u32) -> f64 {
        let there = self.prints.iter().filter(|(_, noted)| !is_read_over(*noted, begun, slots));
        there.map(|(old, _)| print.shared(old)).fold(0.0, f64::max)
    }

    /// Forgets all of them: the model was let go.
    pub fn clear(&mut self) {
        *self = Recent::default();
    }

    /// Remembers one more, by which so many requests had begun, and forgets the oldest.
    pub fn note(&mut self, print: Print, begun: u32) {
        if self.prints.len() < KEPT {
            self.prints.push((print, begun));
        } else if let Some(oldest) = self.prints.get_mut(self.next) {
            *oldest = (print, begun);
        }
        self.next = (self.next + 1) % KEPT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::RandomState;

    fn text(seed: u8, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| seed.wrapping_mul(31).wrapping_add((i % 251) as u8)).collect()
    }

    fn print(bytes: &[u8], hash: &RandomState) -> Print {
        Print::of([bytes], bytes.len(), hash)
    }

    #[test]
    fn a_prompt_that_goes_on_began_like_the_one_before() {
        let hash = RandomState::new();
        let first = text(1, 3000);
        let mut longer = first.clone();
        longer.extend(text(9, 1000));
        let mut recent = Recent::default();
        assert_eq!(recent.share(&print(&first, &hash)), 0.0);
        recent.note(print(&first, &hash), 0);
        assert_eq!(recent.share(&print(&first, &hash)), 1.0);
        assert_eq!(recent.share(&print(&longer, &hash)), 2048.0 / 4000.0);
        assert_eq!(recent.share(&print(&text(2, 3000), &hash)), 0.0);
        for seed in 10..10 + KEPT as u8 {
            recent.note(print(&text(seed, 600), &hash), 0);
        }
        assert_eq!(recent.share(&print(&first, &hash)), 0.0, "it was forgotten");
    }

    #[test]
    fn a_session_is_known_whatever_its_bytes_are_until_the_model_goes() {
        let hash = RandomState::new();
        let of = |text: &[u8], session| print(text, &hash).within(session, &hash);
        let mut recent = Recent::default();
        recent.note(of(b"one", Some("chat-1")), 0);
        assert_eq!(recent.share(&of(b"two", Some("chat-1"))), SESSION);
        assert_eq!(recent.share(&of(b"two", Some("chat-2"))), 0.0);
        assert_eq!(recent.share(&of(b"two", None)), 0.0);
        recent.note(of(b"three", None), 0);
        assert_eq!(recent.share(&of(b"four", None)), 0.0, "no session is no session");
        assert!(of(b"", None).is_empty() && !of(b"", Some("chat-1")).is_empty());
        recent.clear();
        assert_eq!(recent.share(&of(b"one", Some("chat-1"))), 0.0);
    }

    #[test]
    fn what_was_read_is_there_until_as_many_have_begun_as_there_are_slots() {
        let (hash, text) = (RandomState::new(), text(1, 3000));
        for (noted, begun, slots, kept) in [
            (7, 7, 1, 1.0),
            (7, 8, 1, 0.0),
            (7, 10, 4, 1.0),
            (7, 11, 4, 0.0),
            (7, 90, 256, 1.0),
            (7, 8, 0, 0.0),
            // Counted from the beginning again, or round the end of numbers.
            (7, 1, 4, 0.0),
            (u32::MAX, 2, 4, 1.0),
            (u32::MAX, 3, 4, 0.0),
            // Older nodes do not count.
            (0, 900, 1, 1.0),
            (7, 0, 1, 1.0),
        ] {
            let mut recent = Recent::default();
            recent.note(print(&text, &hash), noted);
            assert_eq!(recent.kept(&print(&text, &hash), begun, slots), kept, "{noted} {begun}");
            assert_eq!(recent.share(&print(&text, &hash)), 1.0, "it teaches no speed");
            recent.note(print(&text, &hash), begun);
            assert_eq!(recent.kept(&print(&text, &hash), begun, slots), 1.0, "read again");
        }
    }

    #[test]
    fn short_prompts_are_the_same_only_as_a_whole() {
        let hash = RandomState::new();
        let mut recent = Recent::default();
        recent.note(print(b"{\"prompt\":\"a\"}", &hash), 0);
        assert_eq!(recent.share(&print(b"{\"prompt\":\"a\"}", &hash)), 1.0);
        assert_eq!(recent.share(&print(b"{\"prompt\":\"b\"}", &hash)), 0.0);
        recent.note(print(b"", &hash), 0);
        assert_eq!(recent.share(&print(b"", &hash)), 0.0);
    }

    #[test]
    fn frames_do_not_matter_and_the_key_does() {
        let hash = RandomState::new();
        let whole = text(3, 5000);
        let (a, b) = whole.split_at(700);
        let (b, c) = b.split_at(1);
        assert_eq!(Print::of([a, b, c], 5000, &hash), print(&whole, &hash));
        assert_ne!(print(&whole, &RandomState::new()), print(&whole, &hash));
    }
}
