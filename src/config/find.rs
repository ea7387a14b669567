//! Where the configuration and the state lie.

use std::io;
use std::path::{Path, PathBuf};

use super::env::Env;
use super::run::Config;
use super::{ConfigError, parse};

/// Finds the configuration and reads it: `explicit`, `$TAILHERD_CONFIG`,
/// `~/.config/tailherd/config.json5`, `/etc/tailherd/config.json5`, else the defaults. A file
/// that was named has to be there.
pub fn load(explicit: Option<&Path>, env: &dyn Env) -> Result<Config, ConfigError> {
    let named = explicit.map(Path::to_owned).or_else(|| env.var("TAILHERD_CONFIG").map(Into::into));
    if let Some(file) = named {
        let text = env.read(&file).map_err(|error| unreadable(&file, &error))?;
        return parse(&text, Some(&file), env);
    }
    for file in usual(env) {
        match env.read(&file) {
            Ok(text) => return parse(&text, Some(&file), env),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(unreadable(&file, &error)),
        }
    }
    parse("{}", None, env)
}

/// The folder of what has to outlast a restart: `$TAILHERD_STATE`, `$STATE_DIRECTORY`,
/// `~/.local/state/tailherd`; where there is no home either, the one a system service has.
pub fn state_dir(env: &dyn Env) -> PathBuf {
    named(env).unwrap_or_else(|| "/var/lib/tailherd".into())
}

fn named(env: &dyn Env) -> Option<PathBuf> {
    if let Some(folder) = env.var("TAILHERD_STATE") {
        return Some(folder.into());
    }
    if let Some(folders) = env.var("STATE_DIRECTORY") {
        // systemd joins several with colons; ours is the first.
        return folders.split(':').find(|f| !f.is_empty()).map(PathBuf::from);
    }
    base(env, "XDG_STATE_HOME", ".local/state").map(|base| base.join("tailherd"))
}

fn usual(env: &dyn Env) -> Vec<PathBuf> {
    let mut files = Vec::with_capacity(2);
    files.extend(base(env, "XDG_CONFIG_HOME", ".config").map(|b| b.join("tailherd/config.json5")));
    files.push("/etc/tailherd/config.json5".into());
    files
}

/// An XDG folder. A relative one does not count, says the standard.
fn base(env: &dyn Env, name: &str, in_home: &str) -> Option<PathBuf> {
    let absolute = |name| env.var(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute(name).or_else(|| absolute("HOME").map(|home| home.join(in_home)))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn unreadable(file: &Path, error: &io::Error) -> ConfigError {
    ConfigError::Unreadable { file: file.to_owned(), why: error.to_string() }
}
