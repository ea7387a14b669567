//! Forms a value may be written in: a word or something else, a size as number or text.
//!
//! Each reads its value in one pass: serde's own untagged enums read it twice, from a copy
//! that has forgotten where in the file it stood.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{BoolDeserializer, SeqAccessDeserializer, StrDeserializer};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A word, or a value of another shape (a list, or true and false).
#[derive(Debug, Clone, PartialEq)]
pub(super) enum WordOr<W, T> {
    Word(W),
    Value(T),
}

/// `"auto"`, or a value.
pub(super) type Auto<T> = WordOr<AutoWord, T>;

/// The word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum AutoWord {
    Auto,
}

impl<T> Default for Auto<T> {
    fn default() -> Self {
        WordOr::Word(AutoWord::Auto)
    }
}

impl<T> Auto<T> {
    /// The value, unless it says `auto`.
    pub(super) fn set(&self) -> Option<&T> {
        match self {
            WordOr::Word(_) => None,
            WordOr::Value(value) => Some(value),
        }
    }
}

impl<W: Serialize, T: Serialize> Serialize for WordOr<W, T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            WordOr::Word(word) => word.serialize(s),
            WordOr::Value(value) => value.serialize(s),
        }
    }
}

impl<'de, W: Deserialize<'de>, T: Deserialize<'de>> Deserialize<'de> for WordOr<W, T> {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        struct Forms<W, T>(PhantomData<(W, T)>);

        impl<'de, W: Deserialize<'de>, T: Deserialize<'de>> Visitor<'de> for Forms<W, T> {
            type Value = WordOr<W, T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word in quotes or a value of the other form (see `tailherd schema`)")
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Self::Value, E> {
                W::deserialize(StrDeserializer::new(word)).map(WordOr::Word)
            }

            fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Self::Value, E> {
                T::deserialize(BoolDeserializer::new(value)).map(WordOr::Value)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                T::deserialize(SeqAccessDeserializer::new(seq)).map(WordOr::Value)
            }
        }
        de.deserialize_any(Forms(PhantomData))
    }
}

impl<W: JsonSchema, T: JsonSchema> JsonSchema for WordOr<W, T> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}Or{}", W::schema_name(), T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(g: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [g.subschema_for::<W>(), g.subschema_for::<T>()] })
    }
}

/// A number of bytes, as a number or as `"128MiB"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Size {
    Bytes(u64),
    Text(String),
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Size::Bytes(n) => s.serialize_u64(*n),
            Size::Text(text) => s.serialize_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        struct Forms;

        impl Visitor<'_> for Forms {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"128MiB\", or a number of bytes")
            }

            fn visit_u64<E>(self, n: u64) -> Result<Size, E> {
                Ok(Size::Bytes(n))
            }

            fn visit_str<E>(self, text: &str) -> Result<Size, E> {
                Ok(Size::Text(text.to_owned()))
            }
        }
        de.deserialize_any(Forms)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"], "minimum": 1 })
    }
}
