//! Times as Ollama writes them: RFC 3339 in UTC with nanoseconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970, now.
pub(super) fn seconds() -> u64 {
    since_epoch(SystemTime::now()).as_secs()
}

/// Now.
pub(super) fn now() -> String {
    rfc3339(since_epoch(SystemTime::now()))
}

/// So long from now; `None` = Ollama's "for ever".
pub(super) fn after(wait: Option<Duration>) -> String {
    match wait {
        Some(wait) => rfc3339(since_epoch(SystemTime::now()) + wait),
        // What Go makes of the largest duration added to a day in November 2026.
        None => "2319-03-03T07:06:00.632884922Z".to_owned(),
    }
}

/// A moment given in seconds since 1970.
pub(super) fn at(seconds: u64) -> String {
    rfc3339(Duration::new(seconds, 204_211_000))
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Days to a civil date: Howard Hinnant's `civil_from_days`.
fn rfc3339(t: Duration) -> String {
    let (days, rest) = (t.as_secs() / 86_400, t.as_secs() % 86_400);
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (h, m, s) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:09}Z", t.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_civil_dates() {
        // The recordings' `tiny`: modified 2026-11-21T07:09:20 and created 1795244960.
        assert_eq!(at(1_795_244_960), "2026-11-21T07:09:20.204211000Z");
        assert_eq!(rfc3339(Duration::ZERO), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(Duration::new(951_782_399, 5)), "2000-02-28T23:59:59.000000005Z");
    }
}
