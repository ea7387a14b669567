//! A translated request as one server takes it, where somebody wrote down what it takes
//! (`compat` in openclaw.json).

use serde_json::Value;

use crate::types::Compat;

/// Makes a body of OpenAI's chat such that a server of this kind takes it.
pub fn suit(body: &mut Value, compat: &Compat) {
    let Some(fields) = body.as_object_mut() else { return };
    for (takes, names) in [
        (compat.store, &["store"][..]),
        (compat.effort, &["reasoning_effort"]),
        (compat.temperature, &["temperature"]),
        (compat.tools, &["tools", "tool_choice", "parallel_tool_calls"]),
        (compat.usage, &["stream_options"]),
    ] {
        for name in names.iter().filter(|_| takes == Some(false)) {
            fields.shift_remove(*name);
        }
    }
    let messages = fields.get_mut("messages").and_then(Value::as_array_mut);
    for message in messages.into_iter().flatten() {
        if compat.developer == Some(false) && message["role"] == "developer" {
            message["role"] = "system".into();
        }
        if compat.strings == Some(true)
            && let Some(text) = all_text(&message["content"])
        {
            message["content"] = text.into();
        }
    }
}

/// The text of content that is a list of nothing but texts. An image stays: without it the
/// question would be another one.
fn all_text(content: &Value) -> Option<String> {
    let parts = content.as_array()?.iter();
    let texts: Option<Vec<&str>> = parts.map(|part| part["text"].as_str()).collect();
    Some(texts?.concat())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_server_gets_what_it_takes_and_no_more() {
        let body = || {
            let parts = json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }]);
            let image = json!([{ "type": "image_url", "image_url": { "url": "data:" } }]);
            json!({
                "model": "m", "store": false, "temperature": 0.5, "reasoning_effort": "low",
                "tools": [{}], "tool_choice": "auto", "stream_options": {},
                "messages": [
                    { "role": "developer", "content": parts }, { "role": "user", "content": image },
                ],
            })
        };
        let mut same = body();
        suit(&mut same, &Compat::default());
        assert_eq!(same, body());
        let (no, yes) = (Some(false), Some(true));
        let mut plain = body();
        let compat = Compat {
            store: no,
            effort: no,
            temperature: no,
            tools: no,
            usage: no,
            developer: no,
            strings: yes,
            ..Compat::default()
        };
        suit(&mut plain, &compat);
        let want = json!({
            "model": "m", "messages": [
                { "role": "system", "content": "ab" }, body()["messages"][1],
            ],
        });
        assert_eq!(plain, want);
    }
}
