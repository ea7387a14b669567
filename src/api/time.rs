//! Times as Go writes them.

/// Seconds since 1970 of an RFC 3339 time (`2026-11-21T07:10:24.721024923Z`, or with an
/// offset).
pub fn seconds(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let sign = |at: usize| text.as_bytes().get(at).copied();
    if (sign(4), sign(7), sign(13), sign(16)) != (Some(b'-'), Some(b'-'), Some(b':'), Some(b':')) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let zone = text.get(19..)?.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let at = text.len() - zone.len();
    let offset = match zone.as_bytes().first()? {
        b'Z' | b'z' => 0,
        b'+' => number(at + 1..at + 3)? * 60 + number(at + 4..at + 6)?,
        b'-' => -(number(at + 1..at + 3)? * 60 + number(at + 4..at + 6)?),
        _ => return None,
    };
    // Days since 1970 in the Gregorian calendar, with years that begin in March, so that the
    // leap day is the last one.
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + day_of_year - 719_468;
    Some(((days * 24 + hour) * 60 + minute - offset) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_zones() {
        for (text, want) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2026-11-21T07:10:24.721024923Z", Some(1_795_245_024)),
            ("2026-11-21T08:10:24.7+01:00", Some(1_795_245_024)),
            ("2026-11-21T01:40:24-05:30", Some(1_795_245_024)),
            ("2024-02-29T00:00:00Z", Some(1_709_164_800)),
            ("2319-03-03T07:06:00.632884922Z", Some(11_018_617_560)),
            ("0001-01-01T00:00:00Z", Some(-62_135_596_800)),
            ("", None),
            ("yesterday", None),
            ("2026-13-01T00:00:00Z", None),
            ("2026-11-21T07:10:24", None),
            ("2026-11-21T07:10:24é", None),
        ] {
            assert_eq!(seconds(text), want, "{text}");
        }
    }
}
