//! Discovery: which nodes there are, which of them may be used, and where they are.
//!
//! In: what LocalAPI says of the tailnet, `dns.names` of the configuration, the list of nodes
//! met before. Out: events to the directory (who this node is, which peers may be used, which
//! are only seen), the rules of `access` as they hold in this tailnet, the current picture of
//! the tailnet for `net`, and the rung of the ladder.
//!
//! It never asks a peer anything: that is `probe`, and it asks only whom discovery lets it.

mod daemon;
mod dns;
mod known;
mod lan;
mod links;
mod peers;
mod rung;
mod tailnet;
mod vouch;

pub use known::{AcceptError, Known};
pub use lan::networks_here;
pub use peers::{facts, subject, waits};
pub use tailnet::{Discovery, Setup, start};
