//! The turnstile in front of this node's engines.
//!
//! In flow requests that were chosen to run here, with what they need in memory; out flow
//! tickets, one per request that may run, held to the end of its body. A [`Gate`] turns the words
//! of [`balance::Queue`](crate::balance::Queue) into deeds: it wakes who may start, sends away
//! who is refused, lets go who is taken back while it waits, and makes the loads. A load belongs to the gate: a caller that leaves never
//! aborts it, as Ollama would. A [`trial()`] is a generation of its own, made to learn how fast an
//! engine is. Nothing here reads a request's body or answers a client.

mod ask;
mod gates;
mod load;
mod loader;
#[cfg(test)]
mod protocol;
mod share;
#[cfg(test)]
mod tests;
mod told;
mod trial;
mod turnstile;
mod waiting;

pub use ask::{Ask, Attempt, Reason, Refusal, weights_of};
pub use gates::{Gates, GatesConfig};
pub use load::OllamaLoader;
pub use loader::{LoadDone, LoadFail, LoadRequest, Loader, Loading};
pub use share::Share;
pub use told::Told;
pub use trial::{TrialError, trial};
pub use turnstile::{Gate, GateConfig, Ticket};
pub use waiting::{Entered, Line, Waiting};
