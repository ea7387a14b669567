//! The directory: what is known of the mesh, as the data side reads it.
//!
//! In flow [`Event`]s from discovery, probes, the ladder and the gate; out flows one immutable
//! [`Snapshot`] after another, which readers load without a lock. One task changes what is
//! known ([`writer`]); everything that changes with each request lives in [`Cell`]s that all
//! snapshots share. Nothing here dials, and nothing here decides where a request goes.

pub mod accounts;
mod bounds;
mod build;
pub mod candidates;
pub mod cell;
pub mod event;
mod heard;
mod keeper;
pub mod ledger;
mod mates;
mod own;
mod rate;
pub mod reason;
mod registry;
mod rests;
pub mod saved;
pub mod snapshot;
mod task;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod union;
pub mod weigh;
pub mod writer;

pub use candidates::Need;
pub use cell::{Cell, PathCell, Scale};
pub use event::{
    EngineListing, Event, Grant, Identity, Length, Listing, ModelListing, Peer, Rates, Remembered,
    Server, Settings, Uplink,
};
pub use heard::{Heard, NodeCell, Reported, Sent};
pub use mates::Mates;
pub use own::wire_of;
pub use rate::{Lengths, Rate};
pub use registry::Registry;
pub use rests::Rests;
pub use snapshot::{Endpoint, Lost, Model, Node, Offer, Path, Snapshot, Unions, Unused};
pub use task::{Directory, DirectoryConfig, Look};
