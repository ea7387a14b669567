//! tailherd: all your Ollama models, from all your machines, at the address your apps
//! already use.
//!
//! The story of a request. A program on this machine connects to `127.0.0.1:11434`
//! ([`app`] opened that door, [`net`] says who is at the other end). [`api`] reads what is asked
//! from the path and from the first bytes of the body, which are held so that they can be sent
//! again. [`proxy`] looks at the current picture of the mesh ([`directory`]), and
//! [`balance::choose`] picks the offer that will have finished first. If that is one of this
//! node's own engines, the request waits its turn in the [`gate`], which brings the model into
//! memory first; if it is a peer's, it goes over the tailnet to the peer's tailherd, where
//! [`trust`] says what it may do and the peer's gate lets it in. The answer's bytes pass
//! unchanged; when the last one has left, [`telemetry`] counts it once and the cell of that
//! engine and model learns from it.
//!
//! Beside it, [`discover`] follows the tailnet, [`probe`] looks at engines and peers, [`mesh`]
//! tells peers what this node has, and the directory's one writer makes the next picture.

// Modules in floor order: each may use those above it, never those below or beside it.
pub mod types;

pub mod api;
pub mod balance;
pub mod config;
pub mod ladder;

pub mod telemetry;

pub mod directory;
pub mod trust;

pub mod net;

pub mod gate;

pub mod discover;
pub mod mesh;
pub mod probe;

pub mod proxy;

pub mod admin;

pub mod app;

pub mod demo;

pub mod cli;
