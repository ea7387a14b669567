//! A point in time as the pure floors see it.

use std::time::Duration;

/// A duration since the program (or the simulation) started.
///
/// Pure code never reads a clock: whoever calls it says what time it is. That is what lets
/// a simulator drive the same queue and the same choice as the real program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(Duration);

impl Moment {
    /// The start of the program.
    pub const ZERO: Moment = Moment(Duration::ZERO);

    /// The moment `since_start` after the start.
    pub const fn new(since_start: Duration) -> Self {
        Moment(since_start)
    }

    /// Milliseconds since the start, for cells that hold a moment in an atomic.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// The inverse of [`Moment::millis`].
    pub const fn from_millis(millis: u64) -> Self {
        Moment(Duration::from_millis(millis))
    }

    /// How long ago `earlier` was; zero if it lies in the future.
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, rhs: Duration) -> Moment {
        Moment(self.0.saturating_add(rhs))
    }
}
