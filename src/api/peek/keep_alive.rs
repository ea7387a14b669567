//! `keep_alive`, as Ollama reads it.

use std::time::Duration;

/// How long a model is to stay in memory after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// A negative value: for ever.
    Forever,
    /// This long; zero = unload after the answer.
    For(Duration),
    /// Something Ollama answers with 400 (`"10"` without a unit).
    Invalid,
}

impl KeepAlive {
    /// Reads the raw JSON of the value; `None` for `null`.
    pub(super) fn read(raw: &[u8]) -> Option<KeepAlive> {
        let text = std::str::from_utf8(raw).unwrap_or_default();
        if text == "null" {
            return None;
        }
        if let Some(inner) = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
            let inner = super::super::json::unescape(inner.as_bytes());
            return Some(duration(&inner).map_or(KeepAlive::Invalid, KeepAlive::of_seconds));
        }
        Some(text.parse().map_or(KeepAlive::Invalid, KeepAlive::of_seconds))
    }

    fn of_seconds(seconds: f64) -> KeepAlive {
        if seconds < 0.0 {
            return KeepAlive::Forever;
        }
        Duration::try_from_secs_f64(seconds).map_or(KeepAlive::Forever, KeepAlive::For)
    }

    /// The whole seconds of a finite value.
    pub const fn whole_seconds(self) -> Option<u64> {
        match self {
            KeepAlive::For(d) => Some(d.as_secs()),
            KeepAlive::Forever | KeepAlive::Invalid => None,
        }
    }

    /// The value, or `most` if it asks for more. `None` = it may stay as it is.
    pub fn clamped(self, most: Duration) -> Option<Duration> {
        match self {
            KeepAlive::Forever => Some(most),
            KeepAlive::For(d) if d > most => Some(most),
            KeepAlive::For(_) | KeepAlive::Invalid => None,
        }
    }
}

/// Seconds of a Go duration (`1h30m`, `-1.5s`, `0`).
fn duration(text: &str) -> Option<f64> {
    let (sign, mut rest) = match text.as_bytes().first()? {
        b'-' => (-1.0, &text[1..]),
        b'+' => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if rest == "0" {
        return Some(0.0);
    }
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * scale;
        rest = tail;
    }
    Some(sign * seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(raw: &str, want: Option<KeepAlive>) {
        assert_eq!(KeepAlive::read(raw.as_bytes()), want, "{raw}");
    }

    #[test]
    fn it_means_what_ollama_means() {
        let s = |n| Some(KeepAlive::For(Duration::from_secs(n)));
        check("0", s(0));
        check("300", s(300));
        check("0.5", Some(KeepAlive::For(Duration::from_millis(500))));
        check("-1", Some(KeepAlive::Forever));
        check("-1.0", Some(KeepAlive::Forever));
        check(r#""0s""#, s(0));
        check(r#""0""#, s(0));
        check(r#""1h30m""#, s(5400));
        check(r#""-1m""#, Some(KeepAlive::Forever));
        check(r#""10""#, Some(KeepAlive::Invalid));
        check(r#""""#, Some(KeepAlive::Invalid));
        check(r#""-""#, Some(KeepAlive::Invalid));
        check(r#""5 m""#, Some(KeepAlive::Invalid));
        check("true", Some(KeepAlive::Invalid));
        check("1e300", Some(KeepAlive::Forever));
        check("null", None);
    }

    #[test]
    fn only_more_than_allowed_is_clamped() {
        let most = Duration::from_secs(300);
        assert_eq!(KeepAlive::Forever.clamped(most), Some(most));
        assert_eq!(KeepAlive::For(most * 2).clamped(most), Some(most));
        assert_eq!(KeepAlive::For(most).clamped(most), None);
    }
}
