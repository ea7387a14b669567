//! Grants: rules that the tailnet's own policy hands to a caller.
//!
//! A grant's `app` part may hold any JSON under our capability's name. Each value is one
//! `access` rule without `from`: the grant's `src` already says whom. What does not read as
//! exactly that grants nothing, so a misspelt limit never becomes no limit.

use serde::Deserialize;

use crate::config::AccessRule;
use crate::types::{Verb, Verbs};

/// Longest value that is looked at.
const MAX: usize = 16 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    #[serde(default = "list_and_infer")]
    verbs: Vec<Verb>,
    #[serde(default = "all")]
    models: Vec<String>,
    #[serde(default)]
    max_inflight: Option<u32>,
    #[serde(default)]
    max_num_ctx: Option<u64>,
    #[serde(default)]
    max_predict: Option<u64>,
    #[serde(default = "yes")]
    may_load: bool,
}

fn list_and_infer() -> Vec<Verb> {
    vec![Verb::List, Verb::Infer]
}

fn all() -> Vec<String> {
    vec!["*".to_owned()]
}

const fn yes() -> bool {
    true
}

/// The rule a grant's value holds.
pub(super) fn read(json: &str) -> Option<AccessRule> {
    // serde would read a struct out of an array too: `[]` would be a rule full of defaults.
    if json.len() > MAX || !json.trim_start().starts_with('{') {
        return None;
    }
    let w: Written = serde_json::from_str(json).ok()?;
    Some(AccessRule {
        from: Vec::new(),
        verbs: w.verbs.into_iter().collect::<Verbs>(),
        models: w.models,
        max_inflight: w.max_inflight,
        max_num_ctx: w.max_num_ctx,
        max_predict: w.max_predict,
        may_load: w.may_load,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_that_does_not_parse_grants_nothing() {
        for bad in [
            "",
            "null",
            "[]",
            "\"infer\"",
            r#"{"role":"client"}"#,
            r#"{"from":["*"]}"#,
            r#"{"verbs":["everything"]}"#,
            r#"{"verbs":"infer"}"#,
            r#"{"maxinflight":1}"#,
            r#"{"maxInflight":-1}"#,
            r#"{"maxInflight":1.5}"#,
            r#"{"mayLoad":"no"}"#,
            r#"{"verbs":["infer"],"verbs":["manage"]}"#,
            r#"{} {}"#,
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(read(&format!(r#"{{"models":["{}"]}}"#, "x".repeat(MAX))), None);
    }

    #[test]
    fn a_grant_says_what_it_says_and_no_more() {
        let rule =
            read(r#"{"verbs":["infer"],"models":["qwen3:*"],"maxInflight":2,"mayLoad":false}"#);
        let rule = rule.unwrap();
        assert_eq!(rule.verbs, Verbs::NONE.with(Verb::Infer));
        assert_eq!(
            (rule.models.as_slice(), rule.max_inflight),
            (&["qwen3:*".to_owned()][..], Some(2))
        );
        assert!(!rule.may_load);
        let plain = read("{}").unwrap();
        assert_eq!(plain.verbs, Verbs::NONE.with(Verb::List).with(Verb::Infer));
    }
}
