//! What a model is called that its engine calls by a file, or as no model can be called here.
//!
//! llama.cpp's server names a model after its file where nobody gave it a name: today's by the
//! file's own name, older ones by the whole path, as vLLM does with a folder. LM Studio tells two
//! of one name apart by `@`, which means a node here. In flows what the engine says, out flows the
//! name that is listed; the engine itself is asked by its own.

use std::borrow::Cow;

use crate::types::ModelKey;

/// The name under which an engine's model is listed; `None` = no model can be called that.
/// Nothing of a path is in it but its last part: where this machine keeps its files is nobody's
/// business.
pub fn listed(id: &str) -> Option<Cow<'_, str>> {
    let file = last(id);
    let whole = (!is_file(id)).then_some(id);
    let names = whole.into_iter().chain([file]);
    names.map(tagged).find(|name| ModelKey::parse(name).is_ok())
}

/// The last part of a path.
pub fn last(id: &str) -> &str {
    let slash = ['/', '\\'];
    id.trim_end_matches(slash).rsplit(slash).next().unwrap_or(id)
}

/// Whether it names a place on a disk.
fn is_file(id: &str) -> bool {
    let drive = id.get(1..3).is_some_and(|s| s == ":\\" || s == ":/");
    let gguf = id.get(id.len().saturating_sub(5)..);
    let gguf = gguf.is_some_and(|end| end.eq_ignore_ascii_case(".gguf"));
    drive || id.starts_with(['/', '\\', '.', '~']) || (gguf && id.contains(['/', '\\']))
}

/// `x@q4` as `x:q4`.
fn tagged(name: &str) -> Cow<'_, str> {
    match name.split_once('@') {
        Some((model, tag)) if !tag.contains(['/', ':']) && !model.contains(':') => {
            Cow::Owned(format!("{model}:{tag}"))
        }
        _ => Cow::Borrowed(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_listed_under_its_files_name_and_by_no_path() {
        for (id, want) in [
            ("/models/qwen2.gguf", "qwen2.gguf"),
            ("models/Qwen2.GGUF", "Qwen2.GGUF"),
            ("./qwen2.gguf", "qwen2.gguf"),
            ("../m/qwen2.gguf", "qwen2.gguf"),
            ("~/qwen2.gguf", "qwen2.gguf"),
            ("C:\\models\\qwen2.gguf", "qwen2.gguf"),
            ("C:/models/qwen2", "qwen2"),
            ("/data/Qwen2-7B-Instruct/", "Qwen2-7B-Instruct"),
            // What can be called so is called so.
            ("qwen2.gguf", "qwen2.gguf"),
            ("Qwen/Qwen2-7B-Instruct", "Qwen/Qwen2-7B-Instruct"),
            ("hf.co/user/model:Q4_K_M", "hf.co/user/model:Q4_K_M"),
            ("ggml-org/gemma-3-1b-it-GGUF:Q4_K_M", "ggml-org/gemma-3-1b-it-GGUF:Q4_K_M"),
            ("a/b/c/d", "d"),
            ("qwen2@q4_k_m", "qwen2:q4_k_m"),
            ("me/qwen2@q4_k_m", "me/qwen2:q4_k_m"),
        ] {
            assert_eq!(listed(id).as_deref(), Some(want), "{id}");
        }
        for id in ["/models/my model.gguf", "/", "", "a@b@c", "/models/größe.gguf", "x:1@y"] {
            assert_eq!(listed(id), None, "{id}");
        }
    }
}
