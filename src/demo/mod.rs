//! A mesh in one process: stand-ins for Ollama and tailscaled on real sockets.
//!
//! The integration tests use the same stand-ins, so what the demo shows is what is tested.

pub mod client;
pub mod engine;
#[cfg(unix)]
pub mod tailscaled;
