//! Keys that are read and kept although nothing acts on them yet.
//!
//! One table: who makes a key work takes its line out, and the warning is gone.

use serde_json::Value;

use super::written::Config;

/// The path of each such key, and what will act on it.
const LATER: &[(&str, &str)] = &[("admin.prometheusFile", "the file for Prometheus")];

/// Keys of `local[]` of the same sort.
const LATER_LOCAL: &[(&str, &str)] = &[("user", "checking who owns a model server's socket")];

/// A warning for each key that says something else than its default.
pub(super) fn warnings(written: &Config) -> Vec<String> {
    // What was read from text can be written again; if not, there is nothing to warn of.
    let of = |config: &Config| serde_json::to_value(config).unwrap_or(Value::Null);
    let (is, default) = (of(written), of(&Config::default()));
    let mut warnings: Vec<String> = LATER
        .iter()
        .filter(|(path, _)| at(&is, path) != at(&default, path))
        .map(|(path, what)| warning(path, what))
        .collect();
    for (i, engine) in is["local"].as_array().into_iter().flatten().enumerate() {
        for (key, what) in LATER_LOCAL {
            if !engine[key].is_null() {
                warnings.push(warning(&format!("local[{i}].{key}"), what));
            }
        }
    }
    warnings
}

fn warning(path: &str, what: &str) -> String {
    format!("{path} has no effect in this version (for later: {what})")
}

fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, key| value.get(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_names_a_key_that_exists() {
        let default = serde_json::to_value(Config::default()).unwrap();
        for (path, _) in LATER {
            assert!(at(&default, path).is_some(), "{path}");
        }
    }
}
