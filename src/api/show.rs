//! What an engine says of its models: `/api/show`, and the rows of its lists.
//!
//! Bytes in, plain values out, and tolerant: versions differ, and a field that is missing or
//! of another type is only not known. Nothing here believes more than it reads.

use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::types::{Capabilities, Digest};

/// Longest path of a blob that is looked for.
const MAX_PATH: usize = 4096;

/// Longest name of a model.
const MAX_NAME: usize = 256;

/// What `/api/show` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shown {
    /// Digest of the weights, from the `FROM` line.
    pub weights: Option<Digest>,
    /// What the model can do.
    pub capabilities: Capabilities,
    /// Its largest context window.
    pub context: Option<u64>,
    /// `num_ctx` in its parameters: the window it is loaded with unless a request says
    /// otherwise.
    pub num_ctx: Option<u64>,
    /// A hash over weights, adapters, template, system text and parameters: equal where the
    /// content is, on whatever node. 0 if the weights are not known.
    pub class: u64,
}

impl Shown {
    /// Reads the body of `/api/show`; `None` if it is no JSON object.
    pub fn read(body: &[u8]) -> Option<Shown> {
        let show: Value = serde_json::from_slice(body).ok()?;
        show.as_object()?;
        let text = |name: &str| show.get(name).and_then(Value::as_str).unwrap_or_default();
        let words = show.get("capabilities").and_then(Value::as_array);
        let words = words.into_iter().flatten().filter_map(Value::as_str);
        let digests = digests(text("modelfile"));
        let parameters = parameters(text("parameters"));
        let class = class(&digests, text("template"), text("system"), &parameters);
        Some(Shown {
            weights: digests.first().map(|d| Digest((*d).into())),
            capabilities: Capabilities::from_words(words),
            context: context(show.get("model_info")),
            num_ctx: parameters
                .iter()
                .find_map(|(name, value)| (name == "num_ctx").then(|| value.parse().ok())?),
            class,
        })
    }
}

/// The body with the folders of this peer's blobs taken out; the files' names, which are
/// digests, stay, and so do all other bytes. They stand in the Modelfile, and in older
/// versions in `details.parent_model`.
pub fn blank_blob_path(body: &Bytes) -> Bytes {
    let mut out = Vec::new();
    let mut copied = 0;
    for file in memchr::memmem::find_iter(body, b"sha256-") {
        let from = copied.max(file.saturating_sub(MAX_PATH));
        let before = &body[from..file];
        // The path begins behind a word of the Modelfile, or is the whole string.
        let start = [&b"FROM "[..], b"ADAPTER ", b"\""]
            .iter()
            .filter_map(|mark| memchr::memmem::rfind(before, mark).map(|at| at + mark.len()))
            .max();
        let Some(start) = start.map(|at| from + at) else { continue };
        if is_absolute(&String::from_utf8_lossy(&body[start..file])) {
            out.extend_from_slice(&body[copied..start]);
            copied = file;
        }
    }
    if copied == 0 {
        return body.clone();
    }
    out.extend_from_slice(&body[copied..]);
    Bytes::from(out)
}

/// The same for a row of a list.
pub fn blank_row(row: &mut Value) {
    match row {
        Value::String(text) if is_absolute(text) => {
            if let Some(file) = text.rsplit(['/', '\\']).next().filter(|f| f.starts_with("sha256-"))
            {
                *text = file.to_owned();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(blank_row),
        Value::Object(members) => members.values_mut().for_each(blank_row),
        _ => {}
    }
}

/// A row of `/api/tags`.
#[derive(Debug, Clone, PartialEq)]
pub struct TagRow {
    /// The name as that engine spells it.
    pub name: String,
    /// The manifest's digest.
    pub digest: Option<Digest>,
    /// Bytes.
    pub size: u64,
    /// Whether it is a stub of a hosted model.
    pub remote: bool,
    /// What it can do; all false where the version does not say.
    pub capabilities: Capabilities,
    /// The largest context window, where the version says.
    pub context: Option<u64>,
    /// The row itself.
    pub row: Value,
}

/// A row of `/api/ps`: a model in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedRow {
    /// The name under which it was loaded. Models that share their weights share the row.
    pub name: String,
    /// The manifest's digest.
    pub digest: Option<Digest>,
    /// The context window it is loaded with; `None` = the version does not say.
    pub context: Option<u64>,
    /// Bytes in memory.
    pub size: u64,
    /// The row itself.
    pub row: Value,
}

/// A row of `/v1/models`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelRow {
    /// The name as that engine spells it, or a path.
    pub name: String,
    /// The context window, where the server says (vLLM, llama.cpp, LM Studio).
    pub context: Option<u64>,
    /// Who the server says owns it: tells kinds of servers apart.
    pub owner: String,
    /// The row itself.
    pub row: Value,
}

/// The rows of `/api/tags`; `None` if it is no such list. Rows without a usable name are
/// left out.
pub fn tags_rows(body: &[u8]) -> Option<Vec<TagRow>> {
    let rows = rows(body, "models")?.into_iter().filter_map(|row| {
        let words = row.get("capabilities").and_then(Value::as_array);
        Some(TagRow {
            name: name(&row, &["name", "model"])?,
            digest: digest(&row),
            size: row.get("size").and_then(Value::as_u64).unwrap_or(0),
            remote: ["remote_host", "remote_model"]
                .iter()
                .any(|f| row.get(f).and_then(Value::as_str).is_some_and(|s| !s.is_empty())),
            capabilities: Capabilities::from_words(
                words.into_iter().flatten().filter_map(Value::as_str),
            ),
            context: positive(row.get("details").and_then(|d| d.get("context_length"))),
            row,
        })
    });
    Some(rows.collect())
}

/// The rows of `/api/ps`.
pub fn ps_rows(body: &[u8]) -> Option<Vec<LoadedRow>> {
    let rows = rows(body, "models")?.into_iter().filter_map(|row| {
        Some(LoadedRow {
            name: name(&row, &["name", "model"])?,
            digest: digest(&row),
            context: positive(row.get("context_length")),
            size: row.get("size").and_then(Value::as_u64).unwrap_or(0),
            row,
        })
    });
    Some(rows.collect())
}

/// The rows of `/v1/models`.
pub fn model_rows(body: &[u8]) -> Option<Vec<ModelRow>> {
    let rows = rows(body, "data")?.into_iter().filter_map(|row| {
        let meta = row.get("meta");
        let context = positive(row.get("max_model_len"))
            .or_else(|| positive(meta.and_then(|m| m.get("n_ctx"))))
            .or_else(|| positive(row.get("loaded_context_length")))
            .or_else(|| positive(row.get("max_context_length")))
            .or_else(|| positive(meta.and_then(|m| m.get("n_ctx_train"))));
        Some(ModelRow {
            name: text(&row, &["id"], MAX_PATH)?,
            context,
            owner: row.get("owned_by").and_then(Value::as_str).unwrap_or_default().to_owned(),
            row,
        })
    });
    Some(rows.collect())
}

fn rows(body: &[u8], field: &str) -> Option<Vec<Value>> {
    match serde_json::from_slice::<Value>(body).ok()?.get_mut(field)?.take() {
        Value::Array(rows) => Some(rows),
        // Ollama writes an empty `/v1/models` as `null`.
        Value::Null => Some(Vec::new()),
        _ => None,
    }
}

fn name(row: &Value, fields: &[&str]) -> Option<String> {
    text(row, fields, MAX_NAME)
}

fn text(row: &Value, fields: &[&str], most: usize) -> Option<String> {
    let name = fields.iter().find_map(|f| row.get(f).and_then(Value::as_str))?;
    let usable = !name.is_empty() && name.len() <= most && !name.contains(char::is_control);
    usable.then(|| name.to_owned())
}

fn digest(row: &Value) -> Option<Digest> {
    let text = row.get("digest")?.as_str()?;
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    is_digest(hex).then(|| Digest(hex.into()))
}

fn is_digest(hex: &str) -> bool {
    hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

fn positive(value: Option<&Value>) -> Option<u64> {
    value.and_then(Value::as_u64).filter(|n| *n > 0)
}

/// The digests of the blobs a Modelfile is made from, the weights' first.
fn digests(modelfile: &str) -> Vec<&str> {
    let blob = |line| -> Option<&str> {
        let path = str::strip_prefix(line, "FROM ").or_else(|| line.strip_prefix("ADAPTER "))?;
        let file = path.trim_end().rsplit(['/', '\\']).next()?;
        let hex = file.strip_prefix("sha256-").or_else(|| file.strip_prefix("sha256:"))?;
        is_digest(hex).then_some(hex)
    };
    modelfile.lines().filter_map(blob).collect()
}

/// Name and value of each parameter, in order of their names.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut all: Vec<_> = text
        .lines()
        .filter_map(|line| line.trim().split_once(char::is_whitespace))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    all.sort();
    all
}

fn context(info: Option<&Value>) -> Option<u64> {
    let info = info?.as_object()?;
    let arch = info.get("general.architecture").and_then(Value::as_str).unwrap_or_default();
    let own = info.get(&format!("{arch}.context_length"));
    let any = info.iter().find(|(name, _)| name.ends_with(".context_length")).map(|(_, n)| n);
    positive(own.or(any))
}

fn class(digests: &[&str], template: &str, system: &str, parameters: &[(String, String)]) -> u64 {
    if digests.is_empty() {
        return 0;
    }
    let mut hash = Sha256::new();
    // Each part with its length, so that no two lists of parts read the same.
    let mut part = |text: &str| {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    };
    part(&digests.len().to_string());
    digests.iter().for_each(|d| part(d));
    part(template);
    part(system);
    for (name, value) in parameters {
        part(name);
        part(value);
    }
    let first = hash.finalize().iter().take(8).fold(0, |n: u64, b| n << 8 | u64::from(*b));
    // 0 says "not known".
    first.max(1)
}

fn is_absolute(path: &str) -> bool {
    path.starts_with(['/', '\\']) || path.get(1..3).is_some_and(|s| s == ":\\" || s == ":/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::json;

    const HEX: &str = "e3066d72083ce7a10ef1d823cdb2dfad852aca35e7f61340ca6cada5f8769bf6";

    fn body(path: &str, more: &str) -> Bytes {
        let modelfile = format!("# FROM tiny:latest\n\nFROM {path}sha256-{HEX}\nTEMPLATE <x>\n");
        Bytes::from(format!(
            r#"{{"a":0.00001,"modelfile":{},"template":"\u003cx\u003e"{more}}}"#,
            json::quote(&modelfile)
        ))
    }

    #[test]
    fn a_peers_folders_are_not_told() {
        for path in ["/people/alice/.ollama/models/blobs/", r"C:\Users\alice\.ollama\models\blobs\"]
        {
            let old = body(path, "");
            let new = blank_blob_path(&old);
            assert!(!String::from_utf8_lossy(&new).contains("alice"), "{path}");
            assert_eq!(new, body("", ""), "only the folder is gone");
            assert_eq!(Shown::read(&new), Shown::read(&old));
        }
        for other in ["{}", "sha256-", r#"{"modelfile":"FROM x/y"}"#, r#""x/sha256-1""#] {
            assert_eq!(blank_blob_path(&Bytes::from(other)), other);
        }
    }

    #[test]
    fn a_row_tells_no_folder_either() {
        let mut row: Value = serde_json::from_str(
            r#"{"name":"/x","details":{"parent_model":"/people/alice/blobs/sha256-1","n":[1]}}"#,
        )
        .unwrap();
        blank_row(&mut row);
        assert_eq!(
            row.to_string(),
            r#"{"name":"/x","details":{"parent_model":"sha256-1","n":[1]}}"#
        );
    }

    #[test]
    fn equal_content_is_one_class_and_other_content_another() {
        let class = |path: &str, more: &str| Shown::read(&body(path, more)).unwrap().class;
        let one = class("/a/", r#","parameters":"stop  \"x\"\nnum_ctx 4096""#);
        assert_eq!(one, class("/b/", r#","parameters":"num_ctx        4096\nstop \"x\"\n""#));
        assert_ne!(one, class("/a/", r#","parameters":"num_ctx 2048""#));
        assert_ne!(class("/a/", ""), class("/a/", r#","system":"be brief""#));
        assert_eq!(Shown::read(b"{}").unwrap().class, 0);
    }

    #[test]
    fn what_show_says_is_read() {
        let shown = Shown::read(&body("/a/", r#","capabilities":["completion","tools","odd"],
            "model_info":{"x.context_length":1,"general.architecture":"llama","llama.context_length":4096},
            "parameters":"num_ctx 2048""#))
        .unwrap();
        assert_eq!(shown.weights, Some(Digest(HEX.into())));
        assert!(shown.capabilities.tools && !shown.capabilities.embedding);
        assert_eq!((shown.context, shown.num_ctx), (Some(4096), Some(2048)));
        let odd = Shown::read(br#"{"capabilities":"x","model_info":[],"modelfile":{}}"#).unwrap();
        assert_eq!(odd, Shown::default());
        assert_eq!(Shown::read(b"[]"), None);
    }

    #[test]
    fn odd_lists_are_read_as_far_as_they_go() {
        let rows = tags_rows(
            br#"{"models":[{"name":"a","size":-1,"digest":5},{"model":"b"},{"name":""},7,
            {"name":"c\u001b]52"},{"name":"x:cloud","remote_host":"https://ollama.com"}]}"#,
        )
        .unwrap();
        let names: Vec<_> = rows.iter().map(|r| (r.name.as_str(), r.remote)).collect();
        assert_eq!(names, [("a", false), ("b", false), ("x:cloud", true)]);
        assert_eq!(tags_rows(b"{}"), None);
        assert_eq!(tags_rows(b"<html>"), None);
        assert_eq!(model_rows(br#"{"data":null}"#), Some(Vec::new()));
        let vllm = model_rows(br#"{"data":[{"id":"m","owned_by":"vllm","max_model_len":8192}]}"#);
        let vllm = vllm.unwrap().remove(0);
        assert_eq!((vllm.context, vllm.owner.as_str()), (Some(8192), "vllm"));
    }
}
