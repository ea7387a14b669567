//! The time on the wall where this machine stands.

use crate::types::{LocalTime, Wall};

/// That time, by the zone the system names (`TZ`, `/etc/localtime`), with its summer time. A
/// system that names none keeps UTC.
pub(super) fn local(at: Wall) -> LocalTime {
    let at = i64::try_from(at.0).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    let zone = jiff::tz::TimeZone::system();
    let at = zone.to_datetime(at.unwrap_or_default());
    let minute = u16::try_from(i32::from(at.hour()) * 60 + i32::from(at.minute()));
    LocalTime {
        year: at.year(),
        month: at.month(),
        day: at.day(),
        minute: minute.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::wall;

    #[test]
    fn the_clock_on_the_wall_goes_with_the_other_one() {
        let now = wall();
        let (is, later) = (local(now), local(Wall(now.0 + 600)));
        assert!(is.year >= 2024 && (1..=12).contains(&is.month) && (1..=31).contains(&is.day));
        assert!(is.minute < 1440);
        // No zone is off by a part of ten minutes, and none leaps by one.
        assert_eq!((is.minute + 10) % 10, later.minute % 10);
        assert_eq!(u64::from(is.minute % 5), now.0 / 60 % 5);
    }
}
