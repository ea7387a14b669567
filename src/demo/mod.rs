//! A mesh in one process: stand-ins for Ollama and tailscaled on real sockets, and the real
//! program between them.
//!
//! The integration tests use the same stand-ins, so what the demo shows is what is tested. It
//! needs no free fixed port, no privilege, no network beyond 127.0.0.1, and leaves nothing
//! behind.

pub mod client;
pub mod engine;
pub mod lan;
pub mod machine;
pub mod node;
mod outage;
pub mod tailscaled;
pub mod tour;

/// Why the demo did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket, a file, or the output.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The demo's own configuration was refused.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The stand-in tailscaled could not be used.
    #[error(transparent)]
    LocalApi(#[from] crate::net::localapi::FindError),
    /// A call to it failed.
    #[error(transparent)]
    Call(#[from] crate::net::localapi::ApiError),
    /// The program did not start.
    #[error(transparent)]
    Start(#[from] crate::app::StartError),
    /// A step of the tour did not keep its promise.
    #[error("step `{step}`: {what}")]
    Step {
        /// Which step.
        step: &'static str,
        /// What came instead.
        what: String,
    },
}

impl Error {
    fn step(step: &'static str, what: impl Into<String>) -> Self {
        Error::Step { step, what: what.into() }
    }
}
