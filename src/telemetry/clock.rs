//! The one clock of the program.
//!
//! Everything that decides is given a [`Moment`]; everything that waits uses tokio's timers.
//! Both come from the same source here, so that a test which pauses tokio's time pauses all
//! of it.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::types::{Moment, Wall};

/// A clock that began when the program did. Copies tell the same time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that begins now.
    pub fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    /// The time since this clock began.
    pub fn now(&self) -> Moment {
        Moment::new(self.start.elapsed())
    }

    /// When next a whole number of `every` will have passed since this clock began. What is done
    /// every so often waits for that: all of it falls due together, and a machine with nothing
    /// to do is woken once for it.
    pub fn next(&self, every: Duration) -> Instant {
        let passed = self.start.elapsed().as_nanos();
        let since = passed.checked_rem(every.as_nanos()).unwrap_or_default();
        let since = u64::try_from(since).map_or(Duration::ZERO, Duration::from_nanos);
        Instant::now() + every.saturating_sub(since)
    }
}

/// The time of day, which is what outlives a restart.
pub fn wall() -> Wall {
    Wall::of(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_follows_paused_time() {
        let clock = Clock::start();
        tokio::time::sleep(Duration::from_secs(90)).await;
        assert_eq!(clock.now(), Moment::new(Duration::from_secs(90)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_something_every_so_often_does_it_when_the_others_do() {
        let clock = Clock::start();
        let seconds = Duration::from_secs;
        for (passed, every, next) in [(0, 2, 2), (3, 2, 4), (1, 2, 6), (1, 5, 10), (5, 5, 15)] {
            tokio::time::sleep(seconds(passed)).await;
            let due = clock.next(seconds(every));
            assert_eq!(due, clock.start + seconds(next), "{passed} {every}");
        }
        assert_eq!(clock.next(Duration::ZERO), Instant::now(), "nothing to divide by");
    }
}
