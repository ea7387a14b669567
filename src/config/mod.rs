//! Configuration: what was written (low), what the program needs (high).

mod run;

pub use run::*;
