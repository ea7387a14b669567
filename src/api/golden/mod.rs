//! What real servers said, against what we make of it.
//!
//! The recordings in `tests/golden/` are of Ollama 0.24 and 0.32 and of llama.cpp, one file a
//! route or case: the request after `>`, then the answer as received.

mod answers;
mod lists;
mod requests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::route::{self, Route};

/// One recording.
struct Sample {
    /// `0.32.15/chat-stream`.
    name: String,
    method: Method,
    path: String,
    request: String,
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Sample {
    fn route(&self) -> Route {
        route::classify(&self.method, &self.path)
    }

    fn kind(&self) -> &str {
        self.headers.get("content-type").map_or("", |v| v.to_str().unwrap())
    }

    fn is_stream(&self) -> bool {
        self.kind() == "application/x-ndjson" || self.kind() == "text/event-stream"
    }

    fn case(&self) -> &str {
        self.name.split_once('/').unwrap().1
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// All recordings of Ollama, by name.
fn samples() -> BTreeMap<String, Sample> {
    let mut all = BTreeMap::new();
    for version in ["0.24.0", "0.32.15"] {
        for file in std::fs::read_dir(folder().join("ollama").join(version)).unwrap() {
            let file = file.unwrap().path();
            let name = format!("{version}/{}", file.file_stem().unwrap().to_str().unwrap());
            let text = std::fs::read_to_string(&file).unwrap();
            if let Some(sample) = read(name.clone(), &text) {
                all.insert(name, sample);
            }
        }
    }
    assert!(all.len() > 120, "only {} recordings found", all.len());
    all
}

fn read(name: String, text: &str) -> Option<Sample> {
    let (request, answer) = text.split_once("\n\nHTTP/1.1 ")?;
    let mut request = request.lines().map(|line| line.strip_prefix("> ").unwrap());
    let mut first = request.next().unwrap().split_whitespace();
    let (method, path) = (first.next().unwrap().parse().unwrap(), first.next().unwrap().to_owned());
    let request: String = request.filter(|line| !line.starts_with('(')).collect();

    let (head, body) = answer.split_once("\n\n").unwrap_or((answer.trim_end(), ""));
    let mut head = head.lines();
    let status = head.next().unwrap()[..3].parse().unwrap();
    let mut headers = HeaderMap::new();
    for line in head {
        let (name, value) = line.split_once(':').unwrap();
        let name = HeaderName::try_from(name).unwrap();
        headers.append(name, HeaderValue::from_str(value.trim()).unwrap());
    }
    // What the recorder left out of long streams.
    let mut body = body.replace("\n...\n", "\n");
    if let Some(length) = headers.get("content-length") {
        let length: usize = length.to_str().unwrap().parse().unwrap();
        body.truncate(length);
    }
    Some(Sample { name, method, path, request, status, headers, body })
}
