use std::fmt;

use bytes::Bytes;
use proptest::prelude::*;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::*;

fn peek(body: &[u8]) -> Peeked {
    peek_in(body, body.len())
}

fn peek_in(body: &[u8], step: usize) -> Peeked {
    let mut scanner = Scanner::new();
    body.chunks(step.max(1)).for_each(|frame| scanner.feed(frame));
    scanner.finish()
}

fn wanted(body: &str) -> Option<String> {
    peek(body.as_bytes()).wanted().map(|at| at.value.clone())
}

#[test]
fn the_model_is_what_go_takes() {
    for (body, want) in [
        (r#"{"model":"tiny"}"#, Some("tiny")),
        (r#" { "messages" : [ {"model":"no"} ] , "model" : "tiny" } "#, Some("tiny")),
        (r#"{"mod\u0065l":"t\u0069ny"}"#, Some("tiny")),
        (r#"{"model":"","name":"tiny"}"#, Some("tiny")),
        (r#"{"name":"a","model":"b"}"#, Some("b")),
        (r#"{"model":"tiny","MODEL":"secret"}"#, Some("secret")),
        (r#"{"model":"tiny","MODEL":null}"#, Some("tiny")),
        (r#"{"model":""}"#, None),
        (r#"{"model":5}"#, None),
        (r#"{"options":{"model":"no"}}"#, None),
        (r#"["model","no"]"#, None),
        (r#"{"model":"tiny"}{"model":"no"}"#, Some("tiny")),
    ] {
        assert_eq!(wanted(body).as_deref(), want, "{body}");
    }
}

#[test]
fn bodies_that_mean_two_things_are_conflicts() {
    for (body, want) in [
        (r#"{"model":"a","MODEL":"b"}"#, Some(Conflict::Twice("model"))),
        (r#"{"model":"a","mod\u0065l":"a"}"#, Some(Conflict::Twice("model"))),
        (r#"{"keep_alive":1,"\u212aeep_alive":-1}"#, Some(Conflict::Twice("keep_alive"))),
        (r#"{"stream":true,"\u017ftream":false}"#, Some(Conflict::Twice("stream"))),
        (r#"{"source":"a","ſource":"b"}"#, Some(Conflict::Twice("source"))),
        (r#"{"options":{},"Options":{"num_ctx":1}}"#, Some(Conflict::Twice("options"))),
        (r#"{"model":"a","name":"b"}"#, Some(Conflict::ModelAndName)),
        (r#"{"model":"a"} {"model":"b"}"#, Some(Conflict::Trailing)),
        (r#"{"model":"","name":"a"}"#, None),
        (r#"{"model":"a","name":"a"}"#, None),
        (r#"{"model":"a","messages":[{"model":"b"}],"x":1,"x":2}"#, None),
    ] {
        for step in [1, 2, 3, 7, 100] {
            assert_eq!(peek_in(body.as_bytes(), step).conflict, want, "{body} in {step}s");
        }
    }
}

#[test]
fn other_letter_case_is_told() {
    assert!(peek(br#"{"Model":"a"}"#).folded);
    assert!(!peek(br#"{"mod\u0065l":"a","Other":1}"#).folded);
}

#[test]
fn images_are_told_from_text_wherever_they_stand() {
    let image = "iVBORw0KGgoAAAANSUhEUg".repeat(200);
    let text = "Four score and seven years ago our fathers brought forth. ".repeat(80);
    let chinese = "四十七年前我们的先辈在这块大陆上创建了一个新的国家".repeat(100);
    let check = |body: String, want: usize| {
        for step in [body.len(), 3000] {
            let encoded = peek_in(body.as_bytes(), step).encoded as usize;
            let near = if step == body.len() { 0 } else { 2 * 1024 };
            assert!(encoded <= want && encoded + near >= want, "{encoded} of {want}: {body}");
        }
    };
    check(format!(r#"{{"prompt":"x","images":["{image}","{image}"]}}"#), 2 * image.len());
    check(format!(r#"{{"messages":[{{"content":"x","images":["{image}"]}}]}}"#), image.len());
    let url = format!("data:image/png;base64,{image}");
    let part = format!(r#"{{"type":"image_url","image_url":{{"url":"{url}"}}}}"#);
    check(format!(r#"{{"messages":[{{"content":[{part}]}}]}}"#), url.len());
    for words in [&text, &chinese, &"short".to_owned(), &"x\n".repeat(900)] {
        check(format!(r#"{{"prompt":"{words}","system":"{words}"}}"#), 0);
    }
}

#[test]
fn loads_and_unloads_are_told_from_work() {
    let of = |body: &str, op| {
        let p = peek(body.as_bytes());
        (p.is_bare(Api::Ollama, op), p.unloads(Api::Ollama, op))
    };
    assert_eq!(of(r#"{"model":"a"}"#, Op::Generate), (true, false));
    assert_eq!(of(r#"{"model":"a","prompt":"","keep_alive":"0s"}"#, Op::Generate), (true, true));
    assert_eq!(of(r#"{"model":"a","prompt":"x","keep_alive":0}"#, Op::Generate), (false, false));
    assert_eq!(of(r#"{"messages":[ ],"keep_alive":0}"#, Op::Chat), (true, true));
    assert_eq!(of(r#"{"messages":null,"keep_alive":-1}"#, Op::Chat), (true, false));
    assert_eq!(of(r#"{"messages":[[]],"keep_alive":0}"#, Op::Chat), (false, false));
    let v1 = peek(br#"{"keep_alive":0}"#);
    assert!(!v1.unloads(Api::Chat, Op::Chat));
}

#[test]
fn what_restarts_an_engine_is_in_the_load_key() {
    let body = br#"{"options":{"num_ctx":2048.0,"num_gpu":1,"temperature":2,"use_mmap":false,
        "main_gpu":null,"stop":["num_ctx"],"NUM_CTX":9,"num_predict":-1},"shift":false}"#;
    let p = peek(body);
    let key = p.load_key(Api::Ollama);
    assert_eq!((key.num_ctx, key.shift), (Some(2048), Some(false)));
    let runner: Vec<_> = key.runner.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(runner, [("num_gpu", "1"), ("use_mmap", "false")]);
    assert_eq!(p.predict(Api::Ollama).map(|n| n.value), Some(-1));
    assert_eq!(p.load_key(Api::Chat), LoadKey::default());
    let v1 =
        peek(br#"{"max_completion_tokens":8192,"max_tokens":null,"options":{"num_predict":5}}"#);
    assert_eq!(v1.predict(Api::Chat).map(|n| n.value), Some(8192));
}

#[test]
fn broken_bodies_are_the_engines_to_refuse() {
    for (body, want) in [
        ("", Some(Problem::Empty)),
        (" ", Some(Problem::Empty)),
        (r#"{"model":"#, Some(Problem::Cut)),
        (r#"{"model":"a","x":}"#, Some(Problem::Syntax)),
        (r#"{"model":"a"}"#, None),
    ] {
        assert_eq!(peek(body.as_bytes()).problem, want, "{body}");
    }
    let deep = format!(r#"{{"a":{}{},"model":"x"}}"#, "[".repeat(128), "]".repeat(128));
    assert_eq!(peek(deep.as_bytes()).problem, Some(Problem::TooDeep));
}

#[test]
fn the_model_is_known_before_the_body_ends() {
    let mut scanner = Scanner::new();
    scanner.feed(br#"{"name":"x","model":"ti"#);
    assert_eq!(scanner.model(), None);
    scanner.feed(br#"ny","messages":[{"#);
    assert_eq!(scanner.model(), Some("tiny"));
}

#[test]
fn an_endless_value_is_not_kept() {
    let body = format!(r#"{{"model":"{}","stream":false}}"#, "a".repeat(1 << 20));
    let p = peek_in(body.as_bytes(), 1000);
    assert!(p.wanted().unwrap().value.len() <= 4096);
    assert_eq!(p.wanted().unwrap().range, 9..9 + (1 << 20) + 2);
    assert_eq!(p.stream, Some(false));
}

#[test]
fn another_spelling_is_put_in_without_touching_the_rest() {
    let body = br#"{"prompt":"x","model": "tiny@desk" ,"keep_alive":-1}"#;
    for step in 1..body.len() {
        let frames: Vec<Bytes> = body.chunks(step).map(Bytes::copy_from_slice).collect();
        let p = peek_in(body, step);
        let edits = [
            (p.model.unwrap().range, quote("tiny")),
            (p.keep_alive.unwrap().range, Bytes::from_static(b"300")),
        ];
        let new = rewrite_all(&frames, &edits).concat();
        assert_eq!(new, br#"{"prompt":"x","model": "tiny" ,"keep_alive":300}"#, "{step}");
        let one = rewrite(&frames, edits[0].0.clone(), quote("tiny")).concat();
        assert_eq!(one, br#"{"prompt":"x","model": "tiny" ,"keep_alive":-1}"#, "{step}");
    }
}

/// The members of an object in their order, as serde reads them.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Members, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut all = Vec::new();
                while let Some(member) = map.next_entry()? {
                    all.push(member);
                }
                Ok(Members(all))
            }
        }
        d.deserialize_map(V)
    }
}

/// What Go's decoder leaves in a struct with these fields: the rule, written down plainly.
fn oracle(body: &str) -> Option<Peeked> {
    let Members(all) = serde_json::from_str(body).ok()?;
    let mut p = Peeked::default();
    let mut seen = Vec::new();
    for (key, value) in all {
        let folded: String = key.to_lowercase().replace('ſ', "s");
        if folded != "options" && !KEYS.contains(&folded.as_str()) {
            continue;
        }
        if seen.contains(&folded) && p.conflict.is_none() {
            let name = KEYS.iter().find(|k| **k == folded).copied().unwrap_or("options");
            p.conflict = Some(Conflict::Twice(name));
        }
        p.folded |= folded != key;
        seen.push(folded.clone());
        let at = |v: &Value| v.as_str().map(|s| At { value: s.to_owned(), range: 0..0 });
        let content = match &value {
            Value::Null => Content::Absent,
            Value::String(s) if s.is_empty() => Content::Empty,
            Value::Array(a) if a.is_empty() => Content::Empty,
            Value::Object(o) if o.is_empty() => Content::Empty,
            _ => Content::Some,
        };
        match folded.as_str() {
            "model" if value.is_string() => p.model = at(&value),
            "name" if value.is_string() => p.name = at(&value),
            "stream" if value.is_null() || value.is_boolean() => p.stream = value.as_bool(),
            "messages" => p.messages = content,
            "prompt" if !value.is_null() => p.prompt = content,
            "options" => match value {
                Value::Null => p.num_ctx = None,
                Value::Object(o) => {
                    if let Some(n) = o.get("num_ctx") {
                        p.num_ctx = n.as_f64().map(|n| At { value: n as i64, range: 0..0 });
                    }
                }
                _ => {}
            },
            _ => {}
        }
    }
    if let (Some(m), Some(n)) = (&p.model, &p.name)
        && !m.value.is_empty()
        && !n.value.is_empty()
        && m.value != n.value
    {
        p.conflict.get_or_insert(Conflict::ModelAndName);
    }
    Some(p)
}

const KEYS: [&str; 6] = ["model", "name", "stream", "messages", "prompt", "keep_alive"];

fn spelled() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        4 => proptest::sample::select(&["model", "name", "options", "stream"][..]),
        2 => proptest::sample::select(&KEYS[..]),
        1 => proptest::sample::select(&["modell", "mode", "", "x", "num_ctx"][..]),
    ];
    (key, proptest::collection::vec(0u8..12, 12)).prop_map(|(key, how)| {
        key.chars()
            .enumerate()
            .map(|(i, c)| match how.get(i) {
                Some(0) => format!("\\u{:04x}", u32::from(c)),
                Some(1) => format!("\\u{:04X}", u32::from(c.to_ascii_uppercase())),
                Some(2) => c.to_ascii_uppercase().to_string(),
                Some(3) if c == 's' => "ſ".to_owned(),
                Some(3) if c == 'k' => "\\u212a".to_owned(),
                _ => c.to_string(),
            })
            .collect()
    })
}

fn value() -> impl Strategy<Value = String> {
    proptest::sample::select(
        &[
            r#""tiny""#,
            r#""se\u0063ret""#,
            r#""""#,
            "null",
            "true",
            "false",
            "5",
            "-1.5e3",
            "[]",
            "[ 1 ]",
            "{}",
            r#"{"model":"no","num_ctx":7}"#,
            r#"{ "num_ctx" : 4096.9 }"#,
            r#"{"num_ctx":null}"#,
            r#"{"num_ctx":[8]}"#,
            r#"[{"model":"no"},[["\\\""]]]"#,
            r#"{"num\u005fctx":1,"num_ctx":2}"#,
            r#""a\\\"b""#,
            r#""\ud83d\ude00""#,
        ][..],
    )
    .prop_map(str::to_owned)
}

fn without_places(mut p: Peeked) -> Peeked {
    for at in [&mut p.model, &mut p.name].into_iter().flatten() {
        at.range = 0..0;
    }
    if let Some(at) = &mut p.num_ctx {
        at.range = 0..0;
    }
    p.keep_alive = None;
    p
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn it_takes_what_go_takes(
        members in proptest::collection::vec((spelled(), value()), 0..6),
        gap in proptest::sample::select(&["", " ", "\n\t"][..]),
        cuts in proptest::collection::vec(1usize..9, 1..8),
    ) {
        let members: Vec<_> =
            members.iter().map(|(k, v)| format!("{gap}\"{k}\"{gap}:{gap}{v}{gap}")).collect();
        let body = format!("{gap}{{{gap}{}}}{gap}", members.join(","));
        let mut scanner = Scanner::new();
        let mut rest = body.as_bytes();
        for cut in cuts.iter().cycle() {
            let (frame, tail) = rest.split_at((*cut).min(rest.len()));
            scanner.feed(frame);
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        let got = scanner.finish();
        for at in [&got.model, &got.name].into_iter().flatten() {
            let there: String = serde_json::from_str(&body[at.range.clone()]).unwrap();
            prop_assert_eq!(&there, &at.value);
        }
        prop_assert_eq!(Some(without_places(got)), oracle(&body));
    }

    #[test]
    fn it_never_panics_and_splits_do_not_matter(
        body in proptest::collection::vec(
            proptest::sample::select(&b"{}[]\":,\\u00e9model options null 1-.eE\xff\n"[..]), 0..60),
        step in 1usize..7,
    ) {
        prop_assert_eq!(peek_in(&body, step), peek(&body));
    }
}
