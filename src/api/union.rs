//! List answers: what a plain Ollama would say if it had the whole mesh's models.
//!
//! In flow the rows as the engines wrote them; out flow the bodies. A row's own fields and
//! their order are not touched; behind them comes one more, `mesh`, which says where the
//! model is. Clients ignore fields they do not know.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::time;
use crate::types::{ModelKey, NodeName};

/// One row of a list.
#[derive(Debug, Clone, Copy)]
pub struct UnionRow<'a> {
    /// The row as an engine wrote it: of `/api/tags`, or of `/v1/models` for an engine that
    /// has nothing else.
    pub row: &'a Value,
    /// The nodes that have the model, this node first.
    pub nodes: &'a [NodeName],
}

/// One row of `/api/ps`: a model, and everybody who has it in memory.
#[derive(Debug, Clone, Copy)]
pub struct PsRow<'a> {
    /// The rows as the engines wrote them, with their nodes; the one that would be used next
    /// comes first.
    pub instances: &'a [(NodeName, &'a Value)],
}

/// Of several rows for one model the one that is shown: this node's, else the newest.
pub fn pick<'a>(rows: impl IntoIterator<Item = (&'a Value, bool)>) -> Option<&'a Value> {
    let better = |(row, local): &(&Value, bool)| (*local, modified(row));
    // `max_by_key` takes the last of equals; the first is meant.
    rows.into_iter().reduce(|a, b| if better(&b) > better(&a) { b } else { a }).map(|(row, _)| row)
}

/// A row under another name (`x@node`).
pub fn renamed(row: &Value, name: &str) -> Value {
    let mut row = row.clone();
    for field in ["name", "model", "id"] {
        if let Some(value) = row.get_mut(field) {
            *value = Value::from(name);
        }
    }
    row
}

/// The body of `/api/tags`. Rows that are not of `/api/tags` are left out: their engine does
/// not speak this dialect.
pub fn tags(rows: &[UnionRow<'_>]) -> Bytes {
    let shown = newest_first(rows.iter().filter(|r| r.row.get("name").is_some()))
        .into_iter()
        .map(|row| with_mesh(row.row.clone(), json!({ "nodes": names(row.nodes) })));
    body(&json!({ "models": shown.collect::<Vec<_>>() }))
}

/// The body of `/v1/models`.
pub fn models(rows: &[UnionRow<'_>]) -> Bytes {
    let shown = newest_first(rows.iter()).into_iter().filter_map(|row| {
        let id = row.row.get("model").or_else(|| row.row.get("name")).and_then(Value::as_str);
        let model = openai_model(row.row, id.or_else(|| row.row.get("id")?.as_str())?);
        Some(with_mesh(model, json!({ "nodes": names(row.nodes) })))
    });
    line(&json!({ "object": "list", "data": shown.collect::<Vec<_>>() }))
}

/// The body of `/v1/models/:model`, under the caller's own spelling.
pub fn model(row: &Value, spelling: &str) -> Bytes {
    line(&openai_model(row, spelling))
}

/// The body of `/api/ps`: one row a model, or with `per_node` one row a model and node.
pub fn ps(rows: &[PsRow<'_>], per_node: bool) -> Bytes {
    let mut shown: Vec<Value> = Vec::new();
    for row in rows {
        let nodes: Vec<_> = row.instances.iter().map(|(node, _)| node.as_str()).collect();
        if per_node {
            shown.extend(row.instances.iter().map(|(node, ps)| {
                let name = ps.get("name").and_then(Value::as_str).unwrap_or_default();
                with_mesh(
                    renamed(ps, &format!("{name}@{node}")),
                    json!({ "nodes": [node.as_str()] }),
                )
            }));
        } else if let Some(((_, first), rest)) = row.instances.split_first() {
            let rest: Vec<_> = rest
                .iter()
                .map(|(node, ps)| {
                    let mut ps = (*ps).clone();
                    if let Value::Object(map) = &mut ps {
                        map.insert("node".to_owned(), Value::from(node.as_str()));
                    }
                    ps
                })
                .collect();
            shown.push(with_mesh((*first).clone(), json!({ "nodes": nodes, "instances": rest })));
        }
    }
    // As Ollama: what stays longest comes first.
    shown.sort_by_key(|row| std::cmp::Reverse(seconds(row, "expires_at")));
    body(&json!({ "models": shown }))
}

/// A list's body with these rows behind its own, of which those stay whose name `keep` names.
/// `list` and `name` are the members that hold the rows and a row's name.
pub fn extended(
    body: &[u8],
    list: &str,
    name: &str,
    keep: impl Fn(&str) -> bool,
    rows: Vec<Value>,
) -> Bytes {
    let Ok(mut value) = serde_json::from_slice::<Value>(body) else {
        return Bytes::copy_from_slice(body);
    };
    if let Some(Value::Array(list)) = value.get_mut(list) {
        list.retain(|row| row.get(name).and_then(Value::as_str).is_some_and(&keep));
        list.extend(rows);
    }
    let end = if body.ends_with(b"\n") { "\n" } else { "" };
    Bytes::from(format!("{value}{end}"))
}

/// A row of `/api/tags` that says where its model is.
pub fn mesh_row(row: Value, nodes: &[NodeName]) -> Value {
    with_mesh(row, json!({ "nodes": names(nodes) }))
}

/// A row of `/v1/models` made from one of `/api/tags`.
pub fn as_openai(row: &Value) -> Value {
    let id = row.get("name").and_then(Value::as_str).unwrap_or_default();
    let model = openai_model(row, id.strip_suffix(":latest").unwrap_or(id));
    match row.get("mesh") {
        Some(mesh) => with_mesh(model, mesh.clone()),
        None => model,
    }
}

/// A digest for what has no content here: the same for a name on every node and day.
pub fn digest(name: &str) -> String {
    use sha2::{Digest as _, Sha256};
    let hash = Sha256::digest(name.as_bytes());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A row of `/v1/models` made from whatever row there is.
fn openai_model(row: &Value, id: &str) -> Value {
    let created = row.get("created").and_then(Value::as_i64);
    let owner = row.get("owned_by").and_then(Value::as_str).map(str::to_owned);
    let owner = owner.or_else(|| {
        // A pinned name belongs to the owner of the name before the `@`.
        let name = id.rsplit_once('@').map_or(id, |(name, _)| name);
        ModelKey::parse(name).ok().map(|key| key.parts().1.to_owned())
    });
    json!({
        "id": id,
        "object": "model",
        "created": created.unwrap_or_else(|| seconds(row, "modified_at").unwrap_or(0)),
        "owned_by": owner.unwrap_or_else(|| "library".to_owned()),
    })
}

fn newest_first<'a, 'b: 'a>(rows: impl Iterator<Item = &'a UnionRow<'b>>) -> Vec<&'a UnionRow<'b>> {
    let mut rows: Vec<_> = rows.collect();
    // Stable, and by whole seconds as Ollama's: equal ones stay in the order they came.
    rows.sort_by_key(|row| std::cmp::Reverse(modified(row.row)));
    rows
}

fn modified(row: &Value) -> Option<i64> {
    seconds(row, "modified_at").or_else(|| row.get("created").and_then(Value::as_i64))
}

fn seconds(row: &Value, field: &str) -> Option<i64> {
    row.get(field).and_then(Value::as_str).and_then(time::seconds)
}

fn with_mesh(mut row: Value, mesh: Value) -> Value {
    match &mut row {
        Value::Object(map) => map.insert("mesh".to_owned(), mesh),
        other => {
            *other = Value::Object(Map::from_iter([("mesh".to_owned(), mesh)]));
            None
        }
    };
    row
}

fn names(nodes: &[NodeName]) -> Vec<&str> {
    nodes.iter().map(NodeName::as_str).collect()
}

fn body(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

/// Ollama ends its `/v1` bodies with a newline.
fn line(value: &Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}
