//! Trust: who may use this node, and to whom its prompts may go.
//!
//! In: the configuration's rules, the facts of the tailnet, a caller or a peer as LocalAPI
//! named it. Out: what it may do, with which limits, by which rule; or the words that say why
//! not. Nothing here asks the network anything, and nothing a caller or a peer says about
//! itself is ever looked at.

mod grant;
pub mod keys;
pub mod policy;
mod send;
pub mod store;
pub mod tag;
pub mod tls;
mod who;

#[cfg(test)]
mod tests;

pub use policy::{Access, Granted, Limits, Rule};
pub use send::{Refused, SendGrant, SendTo};
pub use who::{Me, Subject, Tailnet};
