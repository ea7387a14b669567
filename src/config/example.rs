//! The JSON Schema and the example file, made from the written form.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::written;

/// The JSON Schema (2020-12) of the configuration.
pub fn schema() -> String {
    let mut text = serde_json::to_string_pretty(&tree()).unwrap_or_default();
    text.push('\n');
    text
}

/// A configuration file with every key at its default, each with what it means.
pub fn example() -> String {
    let mut out = String::from(
        "// Every key of tailherd's configuration at its default. All of them may be left out.\n\
         // Made from the program (`tailherd schema` prints the same as JSON Schema).\n",
    );
    // Objects keep the order of their keys (serde_json's `preserve_order`): the order in which
    // the written form declares them.
    let default = serde_json::to_value(written::Config::default()).unwrap_or_default();
    object(&default, &tree(), 0, &mut out);
    out.push('\n');
    out
}

fn tree() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<written::Config>().to_value()
}

fn object(value: &Value, schema: &Value, depth: usize, out: &mut String) {
    let pad = "  ".repeat(depth + 1);
    let Some(keys) = value.as_object().filter(|keys| !keys.is_empty()) else {
        return out.push_str(&inline(value));
    };
    out.push_str("{\n");
    for (at, (key, value)) in keys.iter().enumerate() {
        let schema = &schema["properties"][key];
        if depth == 0 && at > 0 {
            out.push('\n');
        }
        for line in wrapped(schema["description"].as_str().unwrap_or_default(), 92 - pad.len()) {
            out.push_str(&format!("{pad}// {line}\n"));
        }
        for example in schema["examples"].as_array().into_iter().flatten() {
            out.push_str(&format!("{pad}// For example: {key}: {}\n", inline(example)));
        }
        out.push_str(&format!("{pad}{key}: "));
        object(value, schema, depth + 1, out);
        out.push_str(",\n");
    }
    out.push_str(&format!("{}}}", "  ".repeat(depth)));
}

/// A value on one line, as a person would write it.
fn inline(value: &Value) -> String {
    let joined = |items: Vec<String>| items.join(", ");
    match value {
        Value::Array(items) => format!("[{}]", joined(items.iter().map(inline).collect())),
        Value::Object(map) if map.is_empty() => "{}".to_owned(),
        Value::Object(map) => {
            let pair = |(key, value): (&String, &Value)| {
                let bare = key.chars().all(|c| c.is_ascii_alphanumeric());
                let key = if bare { key.clone() } else { Value::from(key.as_str()).to_string() };
                format!("{key}: {}", inline(value))
            };
            format!("{{ {} }}", joined(map.iter().map(pair).collect()))
        }
        scalar => scalar.to_string(),
    }
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
