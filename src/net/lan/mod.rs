//! The local network, as far as this program may use it.
//!
//! In flow what the system says of this machine's interfaces ([`Interface`]) and what the
//! control side allows ([`LanView`]); out flow the addresses that may be dialled and listened
//! on. Whatever no [`LanLink`] covers does not exist for this folder: no packet goes there.
//!
//! It never learns an address and never decides which network is a known one.

mod changes;
mod dial;
mod interface;
mod kind;
mod leash;
pub mod tables;
mod tie;
mod view;

pub use interface::{Gateway, Interface};
pub use kind::Kind;
pub use view::{LanLink, LanView, Net};

pub(super) use changes::follow;
pub(super) use dial::Dialler;
pub(super) use interface::Machine;
pub(super) use leash::{Carrier, Leashes};
pub(super) use tie::{Reason, Tied};
