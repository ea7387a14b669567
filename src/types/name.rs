//! Names of models and nodes, as Ollama and Tailscale read them.
//!
//! A model name is `host/namespace/model:tag`; host, namespace and tag have defaults
//! (`registry.ollama.ai`, `library`, `latest`), and names are compared without regard to
//! case. `@` is illegal in every part of an Ollama name, so `model@node` cannot clash with
//! one: it asks for that model on that node.

use std::fmt;
use std::sync::Arc;

/// Longest model name taken from a client or a peer.
const MAX_NAME: usize = 256;

const HOST: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";
const TAG: &str = "latest";

/// The canonical form of a model name: lower case, all four parts, `host/ns/model:tag`.
/// Two requests mean the same model exactly when their keys are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelKey(Arc<str>);

/// Why a text is not a model name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was said.
    #[error("model is required")]
    Missing,
    /// Something was said that no model can be called. The text is Ollama's own.
    #[error("invalid model name")]
    Invalid,
}

impl ModelKey {
    /// Reads a name as Ollama 0.32 does. `@` is not allowed here: see [`RequestedModel`].
    pub fn parse(text: &str) -> Result<ModelKey, NameError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(NameError::Missing);
        }
        if text.len() > MAX_NAME {
            return Err(NameError::Invalid);
        }
        let text =
            text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let (path, tag) = match text.rsplit_once(':') {
            // A colon before the last slash belongs to the host's port.
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (text, TAG),
        };
        let mut parts = path.rsplit('/');
        let model = parts.next().unwrap_or_default();
        let namespace = parts.next().unwrap_or(NAMESPACE);
        let host = parts.next().unwrap_or(HOST);
        if parts.next().is_some()
            || !is_part(host, |c| c == ':' || c == '.')
            || !is_part(namespace, |_| false)
            || !is_part(model, |c| c == '.')
            || !is_part(tag, |c| c == '.')
        {
            return Err(NameError::Invalid);
        }
        let mut key = [host, "/", namespace, "/", model, ":", tag].concat();
        key.make_ascii_lowercase();
        Ok(ModelKey(key.into()))
    }

    /// The whole canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The shortest spelling with the tag, as lists show it: defaults are left out.
    pub fn short(&self) -> &str {
        let s = self.0.strip_prefix(HOST).and_then(|s| s.strip_prefix('/')).unwrap_or(&self.0);
        if s.len() < self.0.len() {
            s.strip_prefix(NAMESPACE).and_then(|s| s.strip_prefix('/')).unwrap_or(s)
        } else {
            s
        }
    }

    /// Whether a glob of a rule or of `models.show` means this model: by its short name, its
    /// whole one, or, for `latest`, its name without a tag.
    pub fn matches(&self, pattern: &str) -> bool {
        let short = self.short();
        super::glob(pattern, short)
            || super::glob(pattern, self.as_str())
            || short.strip_suffix(":latest").is_some_and(|s| super::glob(pattern, s))
    }

    /// Host, namespace, model, tag.
    pub fn parts(&self) -> (&str, &str, &str, &str) {
        let (path, tag) = self.0.rsplit_once(':').unwrap_or((&self.0, TAG));
        let mut parts = path.splitn(3, '/');
        let host = parts.next().unwrap_or_default();
        let namespace = parts.next().unwrap_or_default();
        (host, namespace, parts.next().unwrap_or_default(), tag)
    }

    /// `model:tag` without host and namespace, as Ollama's `show` spells it in a 404.
    pub fn is_cloud(&self) -> bool {
        let (_, _, _, tag) = self.parts();
        tag == "cloud" || tag.ends_with("-cloud")
    }
}

impl fmt::Display for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

fn is_part(part: &str, also: impl Fn(char) -> bool) -> bool {
    let mut chars = part.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    first && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-' || also(c))
}

/// Where a client says its model has to come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Nothing said.
    Any,
    /// `:cloud` or `-cloud`: Ollama's hosted models, with this machine's account.
    Cloud,
}

/// A model as a request names it: the caller's spelling, its meaning, and the node it is
/// pinned to, if any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedModel {
    /// Exactly what the caller wrote; answers echo it.
    pub spelling: Arc<str>,
    /// The spelling without `@node`: what an engine is asked for.
    pub bare: Arc<str>,
    /// What it means.
    pub key: ModelKey,
    /// `model@node`: the node part. `self` is this node.
    pub node: Option<NodeName>,
    /// Whether a hosted Ollama model is meant.
    pub source: Source,
}

impl RequestedModel {
    /// Reads what stands in `model` (or `name`, or a path) of a request.
    pub fn parse(spelling: &str) -> Result<RequestedModel, NameError> {
        let (bare, node) = match spelling.rsplit_once('@') {
            Some((bare, node)) => (bare, Some(NodeName::parse(node).ok_or(NameError::Invalid)?)),
            None => (spelling, None),
        };
        // `:local` is Ollama's mark for "not the hosted one"; it is no tag.
        let named = bare.trim().strip_suffix(":local").unwrap_or(bare);
        let key = ModelKey::parse(named)?;
        let source = if key.is_cloud() { Source::Cloud } else { Source::Any };
        Ok(RequestedModel { spelling: spelling.into(), bare: bare.into(), key, node, source })
    }
}

/// The name of a node: the first label of its MagicDNS name, lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// The word that always means this node.
    pub const SELF: &'static str = "self";

    /// Reads a name: letters, digits, `-`, `_` and `.`, at most 63 bytes, folded to lower case.
    pub fn parse(text: &str) -> Option<NodeName> {
        let ok = !text.is_empty()
            && text.len() <= 63
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && !text.starts_with('.')
            && !text.contains("..");
        ok.then(|| NodeName(text.to_ascii_lowercase().into()))
    }

    /// The first label of a DNS name; characters a name may not hold become `-`.
    pub fn from_dns(dns: &str) -> NodeName {
        let label = dns.split('.').next().unwrap_or_default();
        let clean: String = label
            .chars()
            .take(63)
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' })
            .collect();
        NodeName::parse(&clean).unwrap_or_else(|| NodeName(Arc::from("node")))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name is `self`.
    pub fn is_self(&self) -> bool {
        &*self.0 == Self::SELF
    }
}

impl<'de> serde::Deserialize<'de> for NodeName {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<NodeName, D::Error> {
        let text = String::deserialize(from)?;
        NodeName::parse(&text).ok_or_else(|| serde::de::Error::custom("not a name of a node"))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn key(text: &str, want: &str) {
        assert_eq!(ModelKey::parse(text).map(|k| k.as_str().to_owned()).as_deref(), Ok(want));
    }

    #[test]
    fn names_mean_what_ollama_means() {
        key("tiny", "registry.ollama.ai/library/tiny:latest");
        key(" TINY ", "registry.ollama.ai/library/tiny:latest");
        key("registry.ollama.ai/library/tiny:latest", "registry.ollama.ai/library/tiny:latest");
        key("hf.co/user/Model-GGUF:Q4_K_M", "hf.co/user/model-gguf:q4_k_m");
        key("localhost:5000/me/m", "localhost:5000/me/m:latest");
        key("https://hf.co/u/m", "hf.co/u/m:latest");
        assert_eq!(ModelKey::parse(""), Err(NameError::Missing));
        for bad in ["tiny@desk", "a/b/c/d", "ti ny", ":x", "x:", "/x", "x/", "\u{212a}im"] {
            assert_eq!(ModelKey::parse(bad), Err(NameError::Invalid), "{bad}");
        }
    }

    #[test]
    fn the_short_form_leaves_defaults_out() {
        let short = |t: &str| ModelKey::parse(t).map(|k| k.short().to_owned()).unwrap_or_default();
        assert_eq!(short("tiny"), "tiny:latest");
        assert_eq!(short("me/tiny:1b"), "me/tiny:1b");
        assert_eq!(short("hf.co/library/tiny"), "hf.co/library/tiny:latest");
    }

    #[test]
    fn globs_mean_a_model_by_any_of_its_spellings() {
        let tiny = ModelKey::parse("tiny").unwrap();
        for pattern in ["*", "tiny", "TINY:latest", "tin*", "registry.ollama.ai/library/*"] {
            assert!(tiny.matches(pattern), "{pattern}");
        }
        let tagged = ModelKey::parse("tiny:1b").unwrap();
        for pattern in ["tiny", "library/tiny:1b", "t"] {
            assert!(!tagged.matches(pattern), "{pattern}");
        }
    }

    #[test]
    fn a_suffix_names_a_node() {
        let r = RequestedModel::parse("tiny:latest@Desk").unwrap();
        assert_eq!(
            (&*r.bare, r.node.as_ref().map(NodeName::as_str)),
            ("tiny:latest", Some("desk"))
        );
        assert_eq!(RequestedModel::parse("tiny@"), Err(NameError::Invalid));
        assert_eq!(RequestedModel::parse("tiny:local").unwrap().key.short(), "tiny:latest");
        assert_eq!(RequestedModel::parse("gpt-oss:120b-cloud").unwrap().source, Source::Cloud);
    }
}
