//! How many tokens a prompt has, before anybody has counted them.
//!
//! What flows in: how much of a request's body is text and how much is images, and what engines
//! counted of earlier ones. What flows out: tokens. They are guessed at by bytes, and how many
//! tokens a byte is depends on the model and on the language, by a factor of four and more.
//! What an engine counts is a claim, so it is bounded; whoever keeps it keeps it beside the
//! engine that said so, and believes it of no other.

use std::ops::RangeInclusive;

use super::rates::Sample;

/// Tokens a byte where nothing was learned.
pub const USUAL: f64 = 0.25;
/// What tokens a byte can be: one of base64 or of long words, to one of rare scripts and the
/// words around.
pub const BOUNDS: RangeInclusive<f64> = 1.0 / 16.0..=1.5;
/// An image is read as some hundreds of tokens, more where it is larger.
const IMAGE: f64 = 1.0 / 1024.0;
/// In shorter texts the words that a model's template puts around count for too much.
const LEAST: u64 = 512;
/// Bytes of text of a sample that is trusted whole.
const PLENTY: f64 = 4096.0;
/// A larger share of the prompt that was there just before, and the count may be of the rest.
const MOST_PREFIX: f64 = 0.1;
/// A count of more than this part of the window may be of a prompt that was cut.
const CUT: f64 = 0.9;

/// The body of a request, by what it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prompt {
    /// Bytes of text, with the JSON around.
    pub text: u64,
    /// Bytes of images and the like, as base64.
    pub images: u64,
}

impl Prompt {
    /// Its tokens at so many a byte; 0 = not known.
    pub fn tokens(&self, per_byte: f64) -> f64 {
        let known = per_byte.is_finite() && per_byte > 0.0;
        let per_byte = if known { bounded(per_byte) } else { USUAL };
        self.text as f64 * per_byte + self.images as f64 * IMAGE
    }
}

/// What an engine counted of a prompt that was wholly ours.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Count {
    /// What it was given.
    pub prompt: Prompt,
    /// Tokens, as it says, and how many of them it says were cached.
    pub tokens: u64,
    /// Cached tokens, if it says; they are among the others.
    pub cached: Option<u64>,
    /// The share of the prompt that was there just before, as far as is known here.
    pub prefix: f64,
    /// The window it was loaded with; 0 = not known.
    pub window: u64,
}

/// Tokens a byte, as that count has them.
pub fn per_byte(count: &Count) -> Option<Sample> {
    let Count { prompt, tokens, cached, prefix, window } = *count;
    // Some versions leave out what was cached, and none says what an image was.
    let partly = cached.is_none() && (prefix.is_nan() || prefix > MOST_PREFIX);
    if partly || prompt.images > 0 || prompt.text < LEAST {
        return None;
    }
    let room = if window > 1 { window as f64 * CUT } else { f64::INFINITY };
    if tokens as f64 > room || prompt.tokens(0.0) > room {
        return None;
    }
    let value = tokens as f64 / prompt.text as f64;
    // Less than there can be: it was not the whole prompt that was counted.
    (value >= *BOUNDS.start())
        .then(|| Sample { value: bounded(value), trust: (prompt.text as f64 / PLENTY).min(1.0) })
}

fn bounded(per_byte: f64) -> f64 {
    per_byte.clamp(*BOUNDS.start(), *BOUNDS.end())
}

#[cfg(test)]
mod tests {
    use super::super::rates::{Estimate, SPEED};
    use super::*;
    use proptest::prelude::*;

    const WHOLE: Count = Count {
        prompt: Prompt { text: 8192, images: 0 },
        tokens: 4096,
        cached: None,
        prefix: 0.0,
        window: 32_768,
    };

    #[track_caller]
    fn check(count: Count, want: Option<(f64, f64)>) {
        let sample = per_byte(&count).map(|sample| (sample.value, sample.trust));
        assert_eq!(sample, want, "{count:?}");
    }

    #[test]
    fn a_byte_is_as_many_tokens_as_the_engine_counts() {
        let text = |text| Count { prompt: Prompt { text, images: 0 }, ..WHOLE };
        check(WHOLE, Some((0.5, 1.0)));
        check(Count { tokens: 256, ..text(1024) }, Some((0.25, 0.25)));
        // What stands around a short text is more than the text.
        check(Count { tokens: 120, ..text(511) }, None);
        // Nobody's tokens are that long or that short.
        check(Count { tokens: u64::MAX, window: 0, ..WHOLE }, Some((1.5, 1.0)));
        check(Count { tokens: 16_000, ..WHOLE }, Some((1.5, 1.0)));
        check(Count { tokens: 26, ..WHOLE }, None);
        check(Count { tokens: 0, ..WHOLE }, None);
    }

    #[test]
    fn what_may_be_half_a_count_teaches_nothing() {
        check(Count { prefix: 0.9, ..WHOLE }, None);
        check(Count { prefix: f64::NAN, ..WHOLE }, None);
        check(Count { prefix: 0.9, cached: Some(3000), ..WHOLE }, Some((0.5, 1.0)));
        check(Count { prompt: Prompt { text: 8192, images: 1 }, ..WHOLE }, None);
        // A prompt that was cut to its window, or should have been.
        check(Count { window: 4096, ..WHOLE }, None);
        check(Count { window: 2048, tokens: 1000, ..WHOLE }, None);
        check(Count { window: 1, ..WHOLE }, Some((0.5, 1.0)));
    }

    #[test]
    fn an_image_is_not_read_as_text() {
        let prompt = Prompt { text: 1000, images: 1_000_000 };
        assert_eq!(Prompt { images: 0, ..prompt }.tokens(0.0), 250.0);
        assert_eq!(Prompt { images: 0, ..prompt }.tokens(1.0), 1000.0);
        assert!(prompt.tokens(0.0) < 1500.0, "{}", prompt.tokens(0.0));
    }

    proptest! {
        #[test]
        fn no_count_makes_a_prompt_of_no_length(
            counts in proptest::collection::vec((any::<[u64; 4]>(), any::<f64>(), any::<Option<u64>>()), 0..40),
            prompt in any::<[u64; 2]>(),
            any in any::<f64>(),
        ) {
            let mut known = Estimate::default();
            let prompt = Prompt { text: prompt[0], images: prompt[1] };
            for ([text, images, tokens, window], prefix, cached) in counts {
                let prompt = Prompt { text: text >> 40, images: images % 2 };
                let count = Count { prompt, tokens: tokens >> 30, cached, prefix, window };
                if let Some(sample) = per_byte(&count) {
                    prop_assert!(BOUNDS.contains(&sample.value), "{sample:?}");
                    known = known.learn(sample, SPEED);
                }
            }
            for per_byte in [known.known().unwrap_or(0.0), any] {
                let tokens = prompt.tokens(per_byte);
                let most = prompt.text as f64 * BOUNDS.end() + prompt.images as f64;
                prop_assert!(tokens.is_finite() && (0.0..=most).contains(&tokens), "{tokens}");
                prop_assert!(tokens >= prompt.text as f64 * BOUNDS.start());
            }
        }
    }
}
