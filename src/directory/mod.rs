//! The directory: what is known of the mesh, as the data side reads it.

pub mod cell;
pub mod snapshot;

pub use cell::{Cell, PathCell};
pub use snapshot::{Endpoint, Lost, Model, Node, Offer, Path, Snapshot, Unions, Unused};
