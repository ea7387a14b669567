//! Dialects: what a client asks, and what an answer means.
//!
//! In flow the bytes and heads of requests and answers; out flow plain values ([`route`],
//! [`peek`], [`ending`]) and bytes to send ([`error`]). Nothing here waits, opens a socket or
//! reads a clock, and nothing here panics on what a network sends.

pub mod ending;
pub mod error;
mod json;
mod path;
pub mod peek;
pub mod route;
pub mod wire;
