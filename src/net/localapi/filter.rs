//! The packet filter: who may reach which of our ports, as the coordinator last said.
//!
//! Only the bus tells it, in the first message of a listener that asks for the network map
//! (mask 8). On some systems the daemon does not tell it at all; then nothing is known, which
//! is not the same as nobody being let in.

use http::Method;
use http_body_util::BodyExt;
use memchr::memchr;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::LocalApi;
use super::transport::{ApiError, MAX_ANSWER};
use crate::trust::filter::{Filter, FilterDst, FilterRule, Prefix};

/// The first message is to hold the network map.
const MASK: u32 = 8;

/// TCP's protocol number.
const TCP: i64 = 6;

impl LocalApi {
    /// The packet filter of this node; `None` if the daemon has no network map, or does not
    /// show it.
    pub async fn packet_filter(&self) -> Result<Option<Filter>, ApiError> {
        let limit = self.transport.read_limit;
        let message = timeout(limit, self.first_message()).await;
        let message = message.map_err(|_| ApiError::Slow(limit))??;
        filter(&message).map_err(|text| ApiError::Shape("the packet filter", text))
    }

    /// The bus's first message; then the bus is left.
    async fn first_message(&self) -> Result<Vec<u8>, ApiError> {
        let path = format!("/localapi/v0/watch-ipn-bus?mask={MASK}");
        let limit = self.transport.read_limit;
        let (response, _task) = self.transport.open(Method::GET, &path, &[], limit).await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut line = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(ApiError::broken)?;
            let Some(data) = frame.data_ref() else { continue };
            let end = memchr(b'\n', data);
            line.extend_from_slice(&data[..end.unwrap_or(data.len())]);
            if line.len() > MAX_ANSWER {
                return Err(ApiError::broken("the answer is too long"));
            }
            if end.is_some() {
                break;
            }
        }
        if status.is_success() {
            Ok(line)
        } else {
            Err(ApiError::Refused(status, "watch-ipn-bus", super::transport::shorten(&line)))
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Message<'a> {
    #[serde(borrow, default)]
    net_map: Option<NetMap<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetMap<'a> {
    /// `null` is a filter that lets nobody in; a field that is missing is no filter.
    #[serde(borrow, default, deserialize_with = "said")]
    packet_filter: Option<&'a RawValue>,
}

fn said<'a, D: serde::Deserializer<'a>>(from: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Match {
    #[serde(rename = "IPProto")]
    protocols: Option<Vec<i64>>,
    srcs: Option<Vec<String>>,
    src_caps: Option<Vec<serde_json::Value>>,
    dsts: Option<Vec<Dst>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Dst {
    net: String,
    ports: Ports,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ports {
    first: u16,
    last: u16,
}

/// Reads a message of the bus. A rule that cannot be read opens nothing, and makes nothing
/// of the others.
fn filter(message: &[u8]) -> Result<Option<Filter>, String> {
    let message: Message<'_> = serde_json::from_slice(message).map_err(|e| e.to_string())?;
    let Some(raw) = message.net_map.and_then(|map| map.packet_filter) else { return Ok(None) };
    let rules: Option<Vec<&RawValue>> =
        serde_json::from_str(raw.get()).map_err(|e| e.to_string())?;
    let rules = rules.unwrap_or_default();
    Ok(Some(Filter { rules: rules.into_iter().filter_map(rule).collect() }))
}

/// A rule that opens ports. Those without destinations only give capabilities.
fn rule(raw: &RawValue) -> Option<FilterRule> {
    let found: Match = serde_json::from_str(raw.get()).ok()?;
    let prefix = |text: &str| text.parse::<Prefix>().ok();
    let dsts: Vec<FilterDst> = found
        .dsts
        .unwrap_or_default()
        .iter()
        .filter_map(|d| {
            Some(FilterDst { net: prefix(&d.net)?, first: d.ports.first, last: d.ports.last })
        })
        .collect();
    let srcs = found.srcs.unwrap_or_default();
    (!dsts.is_empty()).then(|| FilterRule {
        srcs: srcs.iter().filter_map(|text| prefix(text)).collect(),
        by_capability: found.src_caps.is_some_and(|caps| !caps.is_empty()),
        dsts,
        // A rule without protocols speaks of the usual ones.
        tcp: found.protocols.is_none_or(|all| all.is_empty() || all.contains(&TCP)),
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use serde_json::{Value, json};

    use super::*;

    fn recorded() -> Value {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/localapi/bus-initial-mask-8.jsonl");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn with(rules: Value) -> Option<Filter> {
        let mut message = recorded();
        message["NetMap"]["PacketFilter"] = rules;
        filter(message.to_string().as_bytes()).unwrap()
    }

    fn reaches(filter: &Filter, from: &str) -> Option<bool> {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        filter.reaches(&[ip(from)], &[ip("100.64.0.1")], &[11434])
    }

    #[test]
    fn the_recorded_filter_lets_the_whole_tailnet_in_and_nobody_else() {
        let filter = filter(recorded().to_string().as_bytes()).unwrap().unwrap();
        assert_eq!(filter.rules.len(), 1, "a rule that only grants opens no port");
        assert_eq!(filter.rules[0].srcs.len(), 14);
        for (from, want) in
            [("100.64.0.2", true), ("100.127.255.254", true), ("192.168.1.9", false)]
        {
            assert_eq!(reaches(&filter, from), Some(want), "{from}");
        }
    }

    #[test]
    fn what_a_rule_does_not_say_it_does_not_open() {
        let dsts = json!([{"Net": "100.64.0.1/32", "Ports": {"First": 11434, "Last": 11436}}]);
        let rule = |more: Value| {
            let mut rule = json!({"IPProto": [6, 17], "Srcs": ["100.64.0.2/32"], "Dsts": dsts});
            rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            rule
        };
        for (more, want) in [
            (json!({}), Some(true)),
            (json!({"IPProto": null}), Some(true)),
            (json!({"IPProto": []}), Some(true)),
            (json!({"IPProto": [17, 1]}), Some(false)),
            (json!({"Srcs": ["100.64.0.3/32"]}), Some(false)),
            (json!({"Srcs": null}), Some(false)),
            (json!({"Srcs": ["nonsense", "100.64.0.2/31"]}), Some(true)),
            (json!({"Srcs": null, "SrcCaps": ["some/cap"]}), None),
            (json!({"Dsts": []}), Some(false)),
            (
                json!({"Dsts": [{"Net": "100.64.0.1/32", "Ports": {"First": 22, "Last": 22}}]}),
                Some(false),
            ),
            (json!({"Dsts": [{"Net": "100.64.0.1/32"}]}), Some(false)),
            (json!({"Srcs": "odd"}), Some(false)),
        ] {
            let filter = with(json!([rule(more.clone()), "odd", 7])).unwrap();
            assert_eq!(reaches(&filter, "100.64.0.2"), want, "{more}");
        }
    }

    #[test]
    fn no_filter_is_not_an_empty_one() {
        assert_eq!(with(json!([])), Some(Filter::default()));
        assert_eq!(with(Value::Null), Some(Filter::default()));
        let mut message = recorded();
        message["NetMap"].as_object_mut().unwrap().remove("PacketFilter");
        assert_eq!(filter(message.to_string().as_bytes()), Ok(None));
        assert_eq!(filter(br#"{"Version":"1","NetMap":null}"#), Ok(None));
        assert_eq!(filter(b"{}"), Ok(None));
        assert!(filter(b"").is_err() && filter(b"<html>").is_err());
        assert!(filter(br#"{"NetMap":{"PacketFilter":{"a":1}}}"#).is_err());
    }
}
