//! The ready-made answers to list requests, made once per snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::snapshot::{Lost, Model, Offer, Unions};
use crate::types::{Api, ApiSet, EngineKind, ModelKey};

/// OpenAI's dialects: a model is in `/v1/models` if it can be asked in one of them.
const OPENAI: [Api; 4] = [Api::Chat, Api::Completions, Api::Responses, Api::Embeddings];

/// Makes the lists: one row per canonical name, this node's row first, else the newest;
/// newest models first. A row of Ollama's is passed on as it is, plus `mesh`.
pub(super) fn of(
    models: &BTreeMap<ModelKey, Arc<Model>>,
    lingering: &BTreeMap<ModelKey, Lost>,
) -> Unions {
    let mut tags = Vec::new();
    let mut list = Vec::new();
    for model in models.values().filter(|m| m.listed) {
        let mesh = json!({"nodes": names(&model.offers)});
        if let Some(row) = best(&model.offers, |apis| apis.has(Api::Ollama)) {
            tags.push(with_mesh(row, &mesh));
        }
        if let Some(row) = best(&model.offers, |apis| OPENAI.iter().any(|api| apis.has(*api))) {
            list.push((openai(&model.key, row), mesh));
        }
    }
    for (key, lost) in lingering.iter().filter(|(_, lost)| lost.listed) {
        let mesh = json!({"nodes": [], "last": lost.node.as_str()});
        if is_ollama(&lost.row) {
            tags.push(with_mesh(&lost.row, &mesh));
        }
        list.push((openai(key, &lost.row), mesh));
    }
    tags.sort_by_cached_key(|row| std::cmp::Reverse(modified(row)));
    list.sort_by_key(|(row, _)| std::cmp::Reverse(row.get("created").and_then(Value::as_i64)));
    let list: Vec<Value> = list.into_iter().map(|(row, mesh)| with_mesh(&row, &mesh)).collect();
    Unions {
        tags: json!({"models": tags}).to_string().into(),
        models: json!({"object": "list", "data": list}).to_string().into(),
    }
}

/// The row made for a model of an engine that has no `/api/tags`.
pub fn row(name: &str, created: i64, owned_by: &str) -> Value {
    json!({"name": name, "model": name, "modified_at": stamp(created), "size": 0, "digest": "",
           "details": {}, "owned_by": owned_by})
}

fn is_ollama(row: &Value) -> bool {
    row.get("owned_by").is_none()
}

fn names(offers: &[Arc<Offer>]) -> Vec<&str> {
    let mut names: Vec<&str> = offers.iter().map(|o| o.node.name.as_str()).collect();
    names.dedup();
    names
}

fn best(offers: &[Arc<Offer>], speaks: impl Fn(ApiSet) -> bool) -> Option<&Value> {
    let mut able = offers.iter().filter(|o| speaks(o.endpoint.apis));
    let row = match able.clone().find(|o| o.node.is_this()) {
        Some(local) => Some(local),
        None => {
            able.clone().max_by_key(|o| (o.endpoint.kind == EngineKind::Ollama, modified(&o.row)))
        }
    };
    row.or_else(|| able.next()).map(|o| &*o.row)
}

fn with_mesh(row: &Value, mesh: &Value) -> Value {
    let mut row = row.clone();
    if let Value::Object(fields) = &mut row {
        fields.insert("mesh".to_owned(), mesh.clone());
    }
    row
}

/// A row of `/v1/models` as Ollama makes it.
fn openai(key: &ModelKey, row: &Value) -> Value {
    let text = |field: &str| row.get(field).and_then(Value::as_str);
    json!({
        "id": text("name").unwrap_or(key.short()),
        "object": "model",
        "created": modified(row).0,
        "owned_by": text("owned_by").unwrap_or(key.parts().1),
    })
}

/// When a row's model changed last: seconds since 1970 and nanoseconds. What cannot be read
/// counts as oldest.
fn modified(row: &Value) -> (i64, u32) {
    row.get("modified_at").and_then(Value::as_str).and_then(instant).unwrap_or_default()
}

/// RFC 3339, as Go writes it: any fraction, `Z` or an offset.
fn instant(text: &str) -> Option<(i64, u32)> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let rest = text.get(19..)?;
    let zone_at = rest.find(['Z', 'z', '+', '-'])?;
    let (fraction, zone) = rest.split_at(zone_at);
    let nanos = match fraction.strip_prefix('.') {
        Some(digits) => format!("{digits:0<9}").get(..9)?.parse().ok()?,
        None => 0,
    };
    let offset = match zone.as_bytes().first()? {
        sign @ (b'+' | b'-') => {
            let (h, m) = zone.get(1..)?.split_once(':')?;
            let seconds = h.parse::<i64>().ok()? * 3600 + m.parse::<i64>().ok()? * 60;
            if *sign == b'-' { -seconds } else { seconds }
        }
        _ => 0,
    };
    // Days since 1970 by Howard Hinnant's civil calendar: years begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (y.div_euclid(400), y.rem_euclid(400));
    let of_year = (153 * m + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some((days * 86_400 + hour * 3600 + minute * 60 + second - offset, nanos))
}

/// Seconds since 1970 as RFC 3339.
fn stamp(seconds: i64) -> String {
    let seconds = seconds.clamp(0, 253_402_300_799);
    let (days, time) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let m = (5 * of_year + 2) / 153;
    let day = of_year - (153 * m + 2) / 5 + 1;
    let month = if m < 10 { m + 3 } else { m - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    let (h, min, s) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{min:02}:{s:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_writes_them() {
        for (text, want) in [
            ("1970-01-01T00:00:00Z", Some((0, 0))),
            ("2026-11-21T07:10:24.721024923Z", Some((1_795_245_024, 721_024_923))),
            ("2026-11-21T09:10:24.7+02:00", Some((1_795_245_024, 700_000_000))),
            ("2024-02-29T23:59:59-00:30", Some((1_709_252_999, 0))),
            ("", None),
            ("yesterday", None),
            ("2026-13-01T00:00:00Z", None),
        ] {
            assert_eq!(instant(text), want, "{text}");
        }
        for seconds in [0, 1_709_164_800, 1_795_245_024, 4_102_444_799] {
            assert_eq!(instant(&stamp(seconds)), Some((seconds, 0)));
        }
    }
}
