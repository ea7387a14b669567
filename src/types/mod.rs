//! The words of the program: plain values, one word per idea.
//!
//! Everything here is data. Nothing in this folder waits, opens a socket, reads a clock or
//! draws a random number; time comes in as a [`Moment`]. Every other folder may use these
//! words, and this folder uses none of theirs.

mod api;
mod client;
mod compat;
mod engine;
mod key;
mod moment;
mod name;
mod node;
mod outcome;
mod path;
mod rule;
mod rung;
mod secret;
mod share;
mod timing;

pub use api::{Api, ApiSet, Op, ProviderApi};
pub use client::ClientKind;
pub use compat::Compat;
pub use engine::{Capabilities, Digest, EndpointId, EngineKind, LoadKey, LoadedState, Power};
pub use key::{ChainLink, KeyError, PublicKey, Wall};
pub use moment::Moment;
pub use name::{ModelKey, NameError, NodeName, RequestedModel, Source};
pub use node::{ControlId, NodeId, NodeKind, Principal};
pub use outcome::{Blame, Class, Outcome};
pub use path::{Dial, ListenerKind, PathKind, Via};
pub use rule::{Caller, CallerKind, Verb, Verbs, Who, WhoError, glob};
pub use rung::{Rung, RungState};
pub use secret::Secret;
pub use share::{Accepting, LocalTime, ShareWhen, Side};
pub use timing::Timing;
