//! What the program says about itself: time, metrics, logs, the last events.
//!
//! In flow numbers, ids and enum words from every floor above the pure ones; out flow the
//! Prometheus text, log lines on stderr and the rows of `/status`. Nothing here ever holds a
//! prompt, an answer, an upstream body, a query value or a key.

mod clock;
pub mod events;
mod families;
pub mod log;
mod meter;
pub mod metrics;
mod plain;
pub mod running;

pub use clock::{Clock, wall};
pub use events::Events;
pub use meter::{CallerMeter, Counted, ModelMeter, RequestMeter};
pub use metrics::Metrics;
pub use plain::{plain, words};
