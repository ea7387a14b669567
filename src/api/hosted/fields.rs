//! The members of a request's body, in their order, each as it was written.
//!
//! A provider gets what the caller said, byte for byte, but for the members that are set or
//! left out here. A member that stands twice is sent once, the last one, which is the one every
//! reader takes.

use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::api::json::quote;

/// A JSON object's members.
#[derive(Debug, Clone, Default)]
pub struct Fields(Vec<(String, Box<RawValue>)>);

impl Fields {
    /// Reads a body; `None` if it is no JSON object.
    pub fn read(body: &[u8]) -> Option<Fields> {
        serde_json::from_slice(body).ok()
    }

    /// Sets a member, in its place if it is there.
    pub fn set(&mut self, name: &str, value: &Value) {
        // A value always has a text.
        if let Ok(raw) = serde_json::value::to_raw_value(value) {
            self.put(name.to_owned(), raw);
        }
    }

    /// Leaves a member out.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(key, _)| key != name);
    }

    /// The body.
    pub fn write(&self) -> Bytes {
        let mut out = String::from("{");
        for (i, (name, value)) in self.0.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            out.push_str(&quote(name));
            out.push(':');
            out.push_str(value.get());
        }
        out.push('}');
        Bytes::from(out)
    }

    fn put(&mut self, name: String, raw: Box<RawValue>) {
        match self.0.iter_mut().find(|(key, _)| *key == name) {
            Some((_, value)) => *value = raw,
            None => self.0.push((name, raw)),
        }
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Fields, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::default();
                while let Some((name, raw)) = map.next_entry()? {
                    fields.put(name, raw);
                }
                Ok(fields)
            }
        }
        from.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_touched_stays_as_it_was_written() {
        let body = br#"{ "model":"a", "temperature": 0.70000000000000000001, "x":{"b":1,"a":[ 2 ]}, "options":{}, "model":"b" }"#;
        let mut fields = Fields::read(body).unwrap();
        fields.set("model", &json!("gpt-4o"));
        fields.set("plus", &json!({"k": true}));
        fields.remove("options");
        let want = r#"{"model":"gpt-4o","temperature":0.70000000000000000001,"x":{"b":1,"a":[ 2 ]},"plus":{"k":true}}"#;
        assert_eq!(fields.write(), want);
        assert!(Fields::read(b"[]").is_none() && Fields::read(b"{\"a\":").is_none());
    }
}
