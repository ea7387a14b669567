//! What two sidecars say about one attempt: a request of the one, waiting at the other.
//!
//! With the request go the attempt's number, the longest wait it is sent for, and whether the
//! model was taken to be in memory. Back comes the engine's answer, or 503 with one word why there
//! is none ([`Refused`]). Meanwhile the origin may take it back ([`WITHDRAW`]), as long as it has
//! not begun. All of it is for the one hop there is.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde::{Deserialize, Serialize};

/// The attempt's number: 128 bits as hex digits, never used twice.
pub const ATTEMPT: &str = "x-tailherd-attempt";
/// The longest wait the request is sent for, in milliseconds. Without it: however long.
pub const BUDGET: &str = "x-tailherd-wait-budget";
/// Whether the model was taken to be in memory (`loaded`), or may have to be brought there
/// (`load`).
pub const PLAN: &str = "x-tailherd-plan";
/// Why a request was not taken.
pub const REFUSED: HeaderName = HeaderName::from_static("x-tailherd-refused");

/// Where an attempt is taken back.
pub const WITHDRAW: &str = "/mesh/v1/withdraw";
/// Longest body there.
pub const MOST_BYTES: usize = 1024;

/// Longest wait that means anything: a week is as good as for ever.
const MOST_BUDGET: Duration = Duration::from_secs(7 * 24 * 3600);
/// Digits of a number.
const DIGITS: usize = 32;

/// The number, if it is one.
pub fn number(text: &str) -> Option<Arc<str>> {
    let is = text.len() == DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit());
    is.then(|| Arc::from(text))
}

/// The wait in a [`BUDGET`].
pub fn budget(text: &str) -> Option<Duration> {
    text.parse().ok().map(|ms| Duration::from_millis(ms).min(MOST_BUDGET))
}

/// The word of a [`PLAN`].
pub const fn plan(loads: bool) -> &'static str {
    if loads { "load" } else { "loaded" }
}

/// Asks for an attempt to be let go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdraw {
    /// Its number.
    pub attempt: String,
}

/// Answers that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawn {
    /// Whether it was still waiting. Then it is not any more, and its request ends as
    /// [`Refused::Withdrawn`]; otherwise it had begun, and nothing has changed.
    pub waiting: bool,
}

/// Says why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct No {
    /// Why.
    pub error: String,
}

/// Why a node did not take a request, although nothing failed: another may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It would wait longer than it was sent for.
    Wait,
    /// It was sent for a model in memory that is not there.
    NotLoaded,
    /// Who sent it took it back.
    Withdrawn,
    /// The queue is full.
    Full,
    /// The node works for nobody else now.
    Paused,
    /// The node is about to stop.
    Draining,
}

impl Refused {
    const ALL: [Refused; 6] = [
        Refused::Wait,
        Refused::NotLoaded,
        Refused::Withdrawn,
        Refused::Full,
        Refused::Paused,
        Refused::Draining,
    ];

    /// The word in [`REFUSED`], metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Refused::Wait => "wait",
            Refused::NotLoaded => "not_loaded",
            Refused::Withdrawn => "withdrawn",
            Refused::Full => "full",
            Refused::Paused => "paused",
            Refused::Draining => "draining",
        }
    }

    /// The refusal of that word.
    pub fn of(word: &[u8]) -> Option<Refused> {
        Refused::ALL.into_iter().find(|refused| refused.label().as_bytes() == word)
    }

    /// The same for people.
    pub const fn text(self) -> &'static str {
        match self {
            Refused::Wait => "it would wait too long there",
            Refused::NotLoaded => "the model is not in memory there",
            Refused::Withdrawn => "it was taken back",
            Refused::Full => "its queue is full",
            Refused::Paused => "it works for nobody else now",
            Refused::Draining => "it is about to stop",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_thirty_two_hex_digits_are_a_number() {
        let whole = "0123456789abcdefABCDEF0123456789";
        assert_eq!(number(whole).as_deref(), Some(whole));
        for wrong in ["", &whole[1..], &format!("{whole}0"), &whole.replace('a', "g"), "ä"] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_budget_is_milliseconds_and_never_more_than_a_week() {
        assert_eq!(budget("1500"), Some(Duration::from_millis(1500)));
        assert_eq!(budget("0"), Some(Duration::ZERO));
        assert_eq!(budget(&u64::MAX.to_string()), Some(MOST_BUDGET));
        for wrong in ["", "-1", "1.5", "soon", "99999999999999999999999"] {
            assert_eq!(budget(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn each_word_means_one_refusal() {
        for refused in Refused::ALL {
            assert_eq!(Refused::of(refused.label().as_bytes()), Some(refused));
        }
        assert_eq!(Refused::of(b"access"), None);
    }
}
