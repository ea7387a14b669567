//! How a request ended, and whose fault it was.

/// How a request ended (the metric label `outcome`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Answered to its end; also an engine's own 4xx passed on.
    Done,
    /// The client went away.
    ClientCancel,
    /// The upstream stopped before its end marker.
    Truncated,
    /// The upstream fell silent for too long after its first byte.
    IdleTimeout,
    /// We said no: a rule, a limit, a bad request.
    Refused,
    /// Everything that was tried failed before the first byte.
    UpstreamError,
}

impl Outcome {
    /// The label in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::ClientCancel => "client_cancel",
            Outcome::Truncated => "truncated",
            Outcome::IdleTimeout => "idle_timeout",
            Outcome::Refused => "refused",
            Outcome::UpstreamError => "upstream_error",
        }
    }
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The one who asked.
    Caller,
    /// The engine or the node that was asked.
    Upstream,
    /// This program.
    Us,
}

/// The class of a request in a node's queue, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// From a program on the node that owns the engine.
    Own,
    /// From a peer, somebody waits for it.
    Interactive,
    /// From a peer, nobody waits for it.
    Batch,
}
