//! A simulated mesh that runs the product's own choice, queue and moves.
//!
//! What is simulated: machines, Ollama's scheduler, the network, users. What is not: everything
//! in `tailherd::balance`, which is the same code as in the program, on a simulated clock. Each
//! sidecar knows only what a real one would: reports as old as they are, its own requests, speeds
//! that it has learned from noisy answers.
//!
//! `tests/it/fleet.rs` runs a short piece of it with every `cargo test`.

pub(crate) mod chance;
pub(crate) mod fleet;
pub(crate) mod node;
pub(crate) mod options;
mod origin;
mod ours;
pub(crate) mod policy;
pub(crate) mod print;
pub(crate) mod results;
pub(crate) mod server;
pub(crate) mod trace;
pub(crate) mod world;
