//! Trust: who may use this node, and to whom its prompts may go.
//!
//! In: the configuration's rules, the facts of the tailnet, a caller or a peer as LocalAPI
//! named it. Out: what it may do, with which limits, by which rule; or the words that say why
//! not. Nothing here asks the network anything, and nothing a caller or a peer says about
//! itself gives it a right.
//!
//! And pins: which key is which node's, learned from hellos over the tailnet and kept for the
//! time without one. [`Trust`] holds them; what a key is worth at a moment is
//! [`View::judge`]'s answer.

mod book;
pub mod filter;
mod grant;
mod handle;
mod hello;
mod judge;
pub mod keys;
mod netmap;
pub mod networks;
mod person;
mod pins;
pub mod policy;
mod send;
pub mod store;
pub mod tag;
pub mod tls;
mod view;
mod who;

#[cfg(test)]
mod tests;

pub use book::HeldFilter;
pub use filter::Filter;
pub use handle::Trust;
pub use hello::{Heard, Hello, HelloRefused};
pub use judge::Verdict;
pub use netmap::{ListedPeer, Netmap};
pub use networks::Networks;
pub use person::PinError;
pub use pins::{Bounds, ByHand, Changed, Gone, Own, Pin, PinState, Step, What, Why, tell};
pub use policy::{Access, Granted, Limits, Rule};
pub use send::{Refused, SendGrant, SendTo};
pub use view::View;
pub use who::{Me, Subject, Tailnet};
