//! Images: base64 with or without saying what it is.

use serde_json::{Value, json};

/// The kind of an image, by the first bytes of its base64.
pub(super) fn kind(base64: &str) -> &'static str {
    // What the first bytes of each format look like as base64.
    const BEGINNINGS: [(&str, &str); 6] = [
        ("iVBORw0KGgo", "image/png"),
        ("/9j/", "image/jpeg"),
        ("R0lGOD", "image/gif"),
        ("UklGR", "image/webp"),
        ("Qk0", "image/bmp"),
        ("Qk1", "image/bmp"),
    ];
    let found = BEGINNINGS.iter().find(|(beginning, _)| base64.starts_with(beginning));
    found.map_or("image/jpeg", |(_, kind)| kind)
}

/// As a URL: data of its own if it is none.
pub(super) fn url(image: &str) -> String {
    match is_url(image) {
        true => image.to_owned(),
        false => format!("data:{};base64,{image}", kind(image)),
    }
}

fn is_url(image: &str) -> bool {
    ["data:", "http://", "https://"].iter().any(|scheme| image.starts_with(scheme))
}

/// A part of an OpenAI message.
pub(super) fn part(image: &str) -> Value {
    json!({ "type": "image_url", "image_url": { "url": url(image) } })
}

/// A block of an Anthropic message.
pub(super) fn block(image: &str) -> Value {
    let data = image.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,"));
    let source = match data {
        Some((kind, data)) => json!({ "type": "base64", "media_type": kind, "data": data }),
        None if is_url(image) => json!({ "type": "url", "url": image }),
        None => json!({ "type": "base64", "media_type": kind(image), "data": image }),
    };
    json!({ "type": "image", "source": source })
}

/// The image in an Anthropic block.
pub(super) fn of_block(block: &Value) -> Option<String> {
    let source = &block["source"];
    match source["type"].as_str()? {
        "base64" => {
            let kind = source["media_type"].as_str().unwrap_or("image/jpeg");
            Some(format!("data:{kind};base64,{}", source["data"].as_str()?))
        }
        "url" => source["url"].as_str().map(str::to_owned),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_says_what_it_is_by_its_first_bytes() {
        for (image, want) in [
            ("iVBORw0KGgoAAA", "data:image/png;base64,iVBORw0KGgoAAA"),
            ("/9j/4AAQ", "data:image/jpeg;base64,/9j/4AAQ"),
            ("R0lGODdh", "data:image/gif;base64,R0lGODdh"),
            ("UklGRiQA", "data:image/webp;base64,UklGRiQA"),
            ("????", "data:image/jpeg;base64,????"),
            ("https://example.com/a.png", "https://example.com/a.png"),
            ("data:image/png;base64,AA", "data:image/png;base64,AA"),
        ] {
            assert_eq!(url(image), want);
            let there = block(image);
            assert_eq!(of_block(&there).unwrap(), want, "{there}");
        }
        assert_eq!(of_block(&json!({ "source": { "type": "file", "file_id": "f" } })), None);
    }
}
