//! Dialects: what a client asks, and what an answer means.
//!
//! In flow the heads and bytes of requests and answers. Out flow plain values: where a
//! request wants to go ([`route`], [`peek`]), who may not ask ([`browser`]), what may be
//! passed on ([`headers`]), how an answer ended ([`ending`]), what an engine has ([`show`]),
//! what peers tell each other ([`wire`], [`report`], [`attempt`], [`hello`]), what is asked
//! of a provider ([`hosted`]); and bytes to send:
//! lists ([`union`]), errors ([`error`]), the caller's own spelling ([`echo`]), a body or a stream
//! in another dialect ([`translate`]). Nothing here waits, opens a socket or
//! reads a clock, and nothing here panics on what a network sends.

pub mod about;
pub mod attempt;
pub mod browser;
pub mod echo;
pub mod ending;
pub mod engine_id;
pub mod error;
#[cfg(test)]
mod golden;
pub mod headers;
pub mod heads;
pub mod hello;
pub mod hosted;
mod json;
mod path;
pub mod peek;
pub mod query;
pub mod report;
pub mod route;
pub mod show;
pub mod time;
pub mod translate;
pub mod union;
pub mod wire;
