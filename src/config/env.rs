//! The environment as a value.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// What the surroundings of the program say: variables, and small files (the configuration,
/// credentials).
pub trait Env: Send + Sync {
    /// A variable. Empty counts as not set.
    fn var(&self, name: &str) -> Option<String>;

    /// The text of a file.
    fn read(&self, file: &Path) -> io::Result<String>;
}

/// The environment of this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessEnv;

impl Env for ProcessEnv {
    fn var(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|v| !v.is_empty())
    }

    fn read(&self, file: &Path) -> io::Result<String> {
        std::fs::read_to_string(file)
    }
}

/// An environment that was written down: for the demo and for tests. The default one is empty.
#[derive(Debug, Clone, Default)]
pub struct FixedEnv {
    /// The variables.
    pub vars: BTreeMap<String, String>,
    /// The files.
    pub files: BTreeMap<PathBuf, String>,
}

impl FixedEnv {
    /// This environment and one more variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> FixedEnv {
        self.vars.insert(name.to_owned(), value.to_owned());
        self
    }

    /// This environment and one more file.
    #[must_use]
    pub fn with_file(mut self, path: &str, text: &str) -> FixedEnv {
        self.files.insert(path.into(), text.to_owned());
        self
    }
}

impl Env for FixedEnv {
    fn var(&self, name: &str) -> Option<String> {
        self.vars.get(name).filter(|v| !v.is_empty()).cloned()
    }

    fn read(&self, file: &Path) -> io::Result<String> {
        self.files.get(file).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
