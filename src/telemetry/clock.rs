//! The one clock of the program.
//!
//! Everything that decides is given a [`Moment`]; everything that waits uses tokio's timers.
//! Both come from the same source here, so that a test which pauses tokio's time pauses all
//! of it.

use std::time::SystemTime;

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
}

/// The time of day, which is what outlives a restart.
pub fn wall() -> Wall {
    Wall::of(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn the_clock_follows_paused_time() {
        let clock = Clock::start();
        tokio::time::sleep(Duration::from_secs(90)).await;
        assert_eq!(clock.now(), Moment::new(Duration::from_secs(90)));
    }
}
