//! Configuration: what was written (low), what the program needs (high).
//!
//! In flow the text of a JSON5 file and the environment, both as values; out flows a
//! [`Config`] with every default filled in and every text parsed, or one [`ConfigError`] that
//! says where, what was expected and what was probably meant. The written form, its defaults
//! and its doc comments stand in `written` alone: the JSON Schema and the example file are
//! made from it. Nothing here opens a socket or asks the time, and a file is read only through
//! [`Env`].

pub mod chains;
mod depth;
mod env;
mod error;
mod example;
mod expand;
mod find;
mod forms;
mod hosted;
mod later;
mod openclaw;
mod overrides;
mod read;
mod resolve;
mod run;
mod written;

#[cfg(test)]
mod tests;

pub use env::{Env, FixedEnv, ProcessEnv};
pub use error::ConfigError;
pub use example::{example, schema};
pub use find::{load, state_dir};
pub use run::*;

use std::path::Path;
use std::time::Duration;

/// A duration as a person writes it: `30s`, `8h`, `14d`. The error says what was expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    read::duration(text)
}

/// Reads the text of a configuration file. `file` is only for messages and
/// [`Config::origin`]; without one the text counts as no file at all.
pub fn parse(text: &str, file: Option<&Path>, env: &dyn Env) -> Result<Config, ConfigError> {
    let source = error::SourceText { file, text };
    let written = written::Config::read(&source)?;
    let mut config = resolve::resolve(&written, env).map_err(|wrong| source.place(wrong))?;
    overrides::apply(&mut config, env)?;
    config.origin.file = file.map(Path::to_owned);
    Ok(config)
}
