//! Answers: read in a provider's dialect, written in the caller's.
//!
//! A reader makes [`Piece`](super::piece::Piece)s of events, or of a whole body; a writer makes bytes, or a whole body,
//! of pieces. Neither knows the other.

pub(super) mod chat;
pub(super) mod messages;
pub(super) mod native;
pub(super) mod responses;
pub(super) mod to_messages;
