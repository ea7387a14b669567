//! `${VAR}` and `${credential:NAME}` in strings that were parsed.
//!
//! Expansion comes after parsing, so a value can never add a key or end a string. `$${` stands
//! for `${`; any other `$` is itself.

use std::path::Path;

use super::env::Env;

/// The text with every variable filled in, or what is missing.
pub(super) fn expand(text: &str, env: &dyn Env) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = after;
            continue;
        }
        out.push_str(before);
        let Some((name, tail)) = after.split_once('}') else {
            return Err(
                "`${` is not closed by `}` (write `$${` for the characters themselves)".to_owned()
            );
        };
        out.push_str(&value(name, env)?);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

fn value(name: &str, env: &dyn Env) -> Result<String, String> {
    let Some(credential) = name.strip_prefix("credential:") else {
        return env
            .var(name)
            .ok_or_else(|| format!("the environment variable `{name}` is not set"));
    };
    // A credential is a file right inside the folder, never a way out of it.
    if credential.is_empty() || credential.contains('/') || credential.starts_with('.') {
        return Err(format!("`{credential}` cannot be the name of a credential"));
    }
    let folder = env.var("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        format!("credential `{credential}`: $CREDENTIALS_DIRECTORY is not set (systemd sets it)")
    })?;
    match env.read(&Path::new(&folder).join(credential)) {
        Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Err(error) => Err(format!("credential `{credential}` cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FixedEnv;

    #[test]
    fn variables_and_credentials_are_filled_in() {
        let env = FixedEnv::default()
            .with("A", "one")
            .with("CREDENTIALS_DIRECTORY", "/run/c")
            .with("SLY", "${A}")
            .with_file("/run/c/key", "s3cret\n");
        for (text, want) in [
            ("plain $5", "plain $5"),
            ("${A}-${A}", "one-one"),
            ("$${A}", "${A}"),
            ("${credential:key}", "s3cret"),
            ("${SLY}", "${A}"),
        ] {
            assert_eq!(expand(text, &env).as_deref(), Ok(want), "{text}");
        }
        for bad in
            ["${B}", "${A", "${}", "${credential:}", "${credential:../key}", "${credential:x}"]
        {
            assert!(expand(bad, &env).is_err(), "{bad}");
        }
    }
}
