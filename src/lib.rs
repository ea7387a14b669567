//! tailherd: all your Ollama models, from all your machines, at the address your apps
//! already use.

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
