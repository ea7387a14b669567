//! Choosing a node, and waiting for one: pure values in, a decision out.
//!
//! What flows in: plain numbers that `directory::candidates` read once, a moment, a source of
//! chance. What flows out: a [`Choice`]. Nothing here waits, opens a socket or reads a clock,
//! so a simulator can drive the same code as the program.

mod choose;
pub mod claims;
pub mod moves;
pub mod pace;
pub mod prefix;
pub mod prompt;
pub mod queue;
pub mod rates;
mod rest;
pub mod sharing;
pub mod unsaid;
mod verdict;

pub use choose::{Ask, Candidate, Choice, Pick, Terms, choose, queues, score};
pub use queue::Queue;
pub use rest::{Breaker, RAMP};
pub use verdict::{Verdict, verdicts};
