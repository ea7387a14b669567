//! The names that are looked for.

/// A top-level field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Field {
    Model,
    Name,
    From,
    Source,
    Destination,
    Stream,
    KeepAlive,
    Prompt,
    Messages,
    Input,
    Tools,
    Images,
    Suffix,
    Shift,
    Think,
    MaxTokens,
    MaxCompletionTokens,
    MaxOutputTokens,
    Options,
}

const FIELDS: [(&str, Field); 19] = [
    ("model", Field::Model),
    ("name", Field::Name),
    ("from", Field::From),
    ("source", Field::Source),
    ("destination", Field::Destination),
    ("stream", Field::Stream),
    ("keep_alive", Field::KeepAlive),
    ("prompt", Field::Prompt),
    ("messages", Field::Messages),
    ("input", Field::Input),
    ("tools", Field::Tools),
    ("images", Field::Images),
    ("suffix", Field::Suffix),
    ("shift", Field::Shift),
    ("think", Field::Think),
    ("max_tokens", Field::MaxTokens),
    ("max_completion_tokens", Field::MaxCompletionTokens),
    ("max_output_tokens", Field::MaxOutputTokens),
    ("options", Field::Options),
];

/// Longest key, as written, that can still be one of ours: every letter escaped.
pub(super) const MAX_KEY: usize = "max_completion_tokens".len() * 6;

impl Field {
    /// The field a key counts as in Go, and whether it is spelled just so.
    pub(super) fn of(key: &str) -> Option<(Field, bool)> {
        FIELDS.iter().find(|(name, _)| folds(key, name)).map(|(name, field)| (*field, *name == key))
    }

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        FIELDS.iter().find(|(_, f)| *f == self).map_or("", |(name, _)| name)
    }

    /// Its bit in a set.
    pub(super) const fn bit(self) -> u32 {
        1 << self as u8
    }
}

/// Whether `key` is `name` under Go's case folding. Two letters outside ASCII fold into it:
/// U+017F (`s`) and U+212A (`k`).
fn folds(key: &str, name: &str) -> bool {
    if key.is_ascii() {
        return key.eq_ignore_ascii_case(name);
    }
    key.chars()
        .map(|c| match c {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            c => c.to_ascii_lowercase(),
        })
        .eq(name.chars())
}

/// A member of `options`. Their keys are matched letter by letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opt {
    NumCtx,
    NumPredict,
    /// Belongs to the runner: another value restarts the engine.
    Runner(&'static str),
}

impl Opt {
    pub(super) fn of(key: &str) -> Option<Opt> {
        Some(match key {
            "num_ctx" => Opt::NumCtx,
            "num_predict" => Opt::NumPredict,
            "num_batch" => Opt::Runner("num_batch"),
            "num_gpu" => Opt::Runner("num_gpu"),
            "main_gpu" => Opt::Runner("main_gpu"),
            "use_mmap" => Opt::Runner("use_mmap"),
            "num_thread" => Opt::Runner("num_thread"),
            "draft_num_predict" => Opt::Runner("draft_num_predict"),
            _ => return None,
        })
    }
}
