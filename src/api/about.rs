//! A model of which no Ollama tells, told as Ollama does: its row of `/api/tags`, its `show`.
//!
//! In flows what is known of it (from the configuration, or from the list of an engine of another
//! kind); out flow the two bodies that Ollama's clients read. What nobody knows is empty, never
//! made up.

use bytes::Bytes;
use serde_json::{Value, json};

use super::union;
use crate::types::Capabilities;

/// What is known of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct About<'a> {
    /// Its name, as it is listed.
    pub name: &'a str,
    /// What its weights are written in (`gguf`), if known.
    pub format: &'a str,
    /// What runs it: a word.
    pub family: &'a str,
    /// Its context window.
    pub context: Option<u64>,
    /// Bytes.
    pub size: u64,
    /// What it can do; nothing = not known, and then it is taken to answer and to call tools.
    pub can: Capabilities,
}

impl About<'_> {
    /// Its row in `/api/tags`.
    pub fn row(&self) -> Value {
        json!({
            "name": self.name,
            "model": self.name,
            // Nobody says when it was made: it stands behind what was.
            "modified_at": "1970-01-01T00:00:00Z",
            "size": self.size,
            "digest": union::digest(self.name),
            "details": self.details(),
            "capabilities": self.words(),
        })
    }

    /// The body of `/api/show`.
    pub fn show(&self) -> Value {
        let mut info = json!({ "general.architecture": self.family });
        if let Some(context) = self.context {
            info[format!("{}.context_length", self.family)] = Value::from(context);
        }
        json!({
            "modelfile": "", "parameters": "", "template": "",
            "details": self.details(),
            "model_info": info,
            "capabilities": self.words(),
            "modified_at": "1970-01-01T00:00:00Z",
        })
    }

    /// The same as bytes.
    pub fn show_bytes(&self) -> Bytes {
        Bytes::from(self.show().to_string())
    }

    fn details(&self) -> Value {
        json!({
            "parent_model": "", "format": self.format, "family": "", "families": null,
            "parameter_size": "", "quantization_level": "",
            "context_length": self.context.unwrap_or(0),
        })
    }

    fn words(&self) -> Vec<&'static str> {
        let usual = Capabilities::from_words(["completion", "tools"]);
        let can = if self.can == Capabilities::default() { usual } else { self.can };
        can.lacking_in(&Capabilities::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::show::{Shown, tags_rows};

    #[test]
    fn what_is_told_reads_as_what_ollama_tells() {
        let about = About {
            name: "qwen2.gguf",
            family: "llama.cpp",
            context: Some(4096),
            size: 7,
            ..About::default()
        };
        let body = json!({ "models": [about.row()] }).to_string();
        let rows = tags_rows(body.as_bytes()).unwrap();
        assert_eq!((&*rows[0].name, rows[0].size, rows[0].context), ("qwen2.gguf", 7, Some(4096)));
        let can = Capabilities::from_words(["completion", "tools"]);
        assert_eq!(rows[0].capabilities, can);
        let shown = Shown::read(&about.show_bytes()).unwrap();
        assert_eq!((shown.context, shown.capabilities), (Some(4096), can));
        let embeds = About { can: Capabilities::from_words(["embedding"]), ..about };
        assert_eq!(embeds.row()["capabilities"], json!(["embedding"]));
    }
}
