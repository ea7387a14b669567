//! Requests and answers of each direction against files of them, and what has to hold whatever is
//! sent.
//!
//! `tests/golden/translate/DIRECTION/CASE.request.json` holds `{in, target, out}`,
//! `CASE.whole.json` `{in, out}`, `CASE.stream.txt` the provider's bytes, a line `=====`, and the
//! caller's. All were written for this project, in the shapes that the providers document.

use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

const DIRECTIONS: [(&str, Api, Op, Api); 5] = [
    ("native-chat", Api::Ollama, Op::Chat, Api::Chat),
    ("generate-chat", Api::Ollama, Op::Generate, Api::Chat),
    ("native-messages", Api::Ollama, Op::Chat, Api::Messages),
    ("messages-chat", Api::Messages, Op::Messages, Api::Chat),
    ("responses-chat", Api::Responses, Op::Responses, Api::Chat),
];

const AT: Duration = Duration::from_millis(1500);
const CUT: &str = "\n=====\n";

fn translation(direction: &str) -> Translation {
    let (_, caller, op, provider) = DIRECTIONS.into_iter().find(|d| d.0 == direction).unwrap();
    Translation::between(caller, op, provider).unwrap()
}

fn reply() -> Reply {
    Reply {
        model: "writing".to_owned(),
        at: "2026-11-21T08:43:05.000Z".to_owned(),
        unix: 1_795_250_585,
        id: "0a1b2c".to_owned(),
        asked: Map::new(),
    }
}

fn target(said: &Value) -> Target {
    Target {
        model: said["model"].as_str().unwrap_or("there-1").to_owned(),
        max_tokens: said["max_tokens"].as_u64(),
        reasoning: said["reasoning"] == true,
        sampling: said["sampling"] == true,
        completion_tokens: said["completion_tokens"] == true,
    }
}

/// The cases of a direction that are of that kind: name, path, text.
fn cases(direction: &str, kind: &str) -> Vec<(String, PathBuf, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/translate");
    let mut found = Vec::new();
    for file in std::fs::read_dir(folder.join(direction)).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(kind) {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((format!("{direction}/{name}"), path, text));
        }
    }
    found.sort();
    found
}

fn all(kind: &str) -> Vec<(Translation, String, PathBuf, String)> {
    let of = |d: &(&'static str, Api, Op, Api)| {
        let direction = translation(d.0);
        cases(d.0, kind).into_iter().map(move |(name, path, text)| (direction, name, path, text))
    };
    DIRECTIONS.iter().flat_map(of).collect()
}

/// What a caller gets for these bytes.
fn streamed(translation: Translation, chunks: &[&[u8]]) -> (String, State) {
    let mut stream = translation.stream(reply());
    let mut out = Vec::new();
    for chunk in chunks {
        stream.push(chunk, AT, &mut out);
    }
    stream.finish(AT, &mut out);
    (String::from_utf8(out).unwrap(), stream.state())
}

#[test]
fn requests_are_as_the_files_say() {
    let all = all(".request.json");
    assert!(all.len() >= 14, "{} cases", all.len());
    for (translation, name, _, text) in all {
        let case: Value = serde_json::from_str(&text).unwrap();
        let asked = translation.request(case["in"].clone(), &target(&case["target"])).unwrap();
        assert_eq!(asked.body, case["out"], "{name}: {:#}", asked.body);
        assert_eq!(asked.body["stream"] == true, asked.stream, "{name}");
    }
}

#[test]
fn whole_answers_are_as_the_files_say() {
    let all = all(".whole.json");
    assert!(all.len() >= 9, "{} cases", all.len());
    for (translation, name, _, text) in all {
        let case: Value = serde_json::from_str(&text).unwrap();
        let got = match translation.whole(&case["in"], &reply(), AT) {
            Ok(answer) => answer,
            Err(error) => json!({ "failed": error }),
        };
        assert_eq!(got, case["out"], "{name}: {got:#}");
    }
}

#[test]
fn streams_are_as_the_files_say_wherever_they_are_cut() {
    let all = all(".stream.txt");
    assert!(all.len() >= 14, "{} cases", all.len());
    for (translation, name, _, text) in all {
        let (given, want) = text.split_once(CUT).unwrap();
        let (got, state) = streamed(translation, &[given.as_bytes()]);
        assert_eq!(got, want, "{name}\n{got}");
        let failed = name.contains("error") || name.contains("cut");
        assert_eq!(state == State::Failed, failed, "{name}");
        let bytes = given.as_bytes();
        for cut in (0..bytes.len()).step_by(3) {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(streamed(translation, &[a, b]).0, got, "{name} cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(streamed(translation, &single).0, got, "{name} byte by byte");
    }
}

#[test]
fn a_direction_that_is_not_needed_does_not_exist() {
    for (caller, op, provider) in [
        (Api::Chat, Op::Chat, Api::Chat),
        (Api::Chat, Op::Chat, Api::Messages),
        (Api::Messages, Op::Messages, Api::Messages),
        (Api::Responses, Op::Responses, Api::Messages),
        (Api::Ollama, Op::Embed, Api::Messages),
        (Api::Ollama, Op::Chat, Api::Responses),
    ] {
        assert_eq!(
            Translation::between(caller, op, provider),
            None,
            "{caller:?} {op:?} {provider:?}"
        );
    }
}

#[test]
fn what_the_provider_has_not_is_said_and_not_left_out() {
    #[track_caller]
    fn check(direction: &str, body: Value, want: &str) {
        let refused = translation(direction).request(body, &Target::default()).unwrap_err();
        let said = match refused {
            Unfit::Wrong(said) => format!("wrong: {said}"),
            Unfit::Cannot(said) => format!("cannot: {said}"),
            Unfit::Nothing => "nothing".to_owned(),
        };
        assert!(said.starts_with(want), "{said}");
    }
    let tool = json!([{ "role": "tool", "content": "x", "tool_name": "f" }]);
    check("native-chat", json!([]), "wrong: the body is no JSON object");
    check("native-chat", json!({ "messages": [] }), "nothing");
    check("native-chat", json!({ "messages": 7 }), "wrong: messages is no list");
    check("native-chat", json!({ "messages": tool }), "wrong: a tool's answer belongs to no call");
    check("native-messages", json!({ "messages": [7] }), "wrong: messages holds what is no object");
    check(
        "native-messages",
        json!({ "messages": [{ "role": "system", "content": "x" }] }),
        "nothing",
    );
    check("generate-chat", json!({ "prompt": "" }), "nothing");
    check("generate-chat", json!({ "prompt": "a", "suffix": "b" }), "cannot: `suffix`");
    check("generate-chat", json!({ "prompt": "a", "raw": true }), "cannot: `raw`");
    check("messages-chat", json!({ "system": "x" }), "wrong: messages is empty");
    check("responses-chat", json!({}), "wrong: input is missing");
    check("responses-chat", json!({ "input": "x", "previous_response_id": "r" }), "cannot: `prev");
    check(
        "responses-chat",
        json!({ "input": [{ "type": "item_reference" }] }),
        "cannot: an input item",
    );
}

#[test]
fn a_conversation_with_tools_goes_on_in_each_direction() {
    let call = json!({ "id": "call_7", "type": "function",
        "function": { "name": "weather", "arguments": "{\"city\":\"Paris\"}" } });
    let chat = json!({ "choices": [{ "index": 0, "finish_reason": "tool_calls", "message":
        { "role": "assistant", "content": null, "reasoning": "hm", "tool_calls": [call] } }] });
    let blocks = json!({ "content": [
        { "type": "thinking", "thinking": "hm", "signature": "s" },
        { "type": "tool_use", "id": "call_7", "name": "weather", "input": { "city": "Paris" } },
    ], "stop_reason": "tool_use" });
    let user = json!({ "role": "user", "content": "Weather?" });
    for (direction, ..) in DIRECTIONS.into_iter().filter(|d| d.0 != "generate-chat") {
        let translation = translation(direction);
        let said = if translation.to == To::Chat { &chat } else { &blocks };
        let answer = translation.whole(said, &reply(), AT).unwrap();
        let next = match translation.from {
            From::Chat | From::Generate => json!({ "messages": [
                user, answer["message"], { "role": "tool", "tool_name": "weather", "content": "sun" },
            ] }),
            From::Embed => unreachable!("vectors have tests of their own"),
            From::Messages => json!({ "messages": [
                user,
                { "role": "assistant", "content": answer["content"] },
                { "role": "user", "content": [
                    { "type": "tool_result", "tool_use_id": "call_7", "content": "sun" }] },
            ] }),
            From::Responses => {
                let mut input = vec![user.clone()];
                input.extend(answer["output"].as_array().unwrap().iter().cloned());
                input.push(
                    json!({ "type": "function_call_output", "call_id": "call_7", "output": "sun" }),
                );
                json!({ "input": input })
            }
        };
        let asked = translation.request(next, &Target::default()).unwrap().body;
        let messages = asked["messages"].as_array().unwrap();
        assert_eq!(messages.len(), 3, "{direction}: {asked:#}");
        if translation.to == To::Chat {
            assert_eq!(messages[1]["tool_calls"], json!([call]), "{direction}: {asked:#}");
            let want = json!({ "role": "tool", "tool_call_id": "call_7", "content": "sun" });
            assert_eq!(messages[2], want, "{direction}");
        } else {
            assert_eq!(messages[1]["content"], json!([blocks["content"][1]]), "{asked:#}");
            let want =
                json!([{ "type": "tool_result", "tool_use_id": "call_7", "content": "sun" }]);
            assert_eq!(messages[2]["content"], want);
        }
        assert!(!asked.to_string().contains("hm\""), "{direction}: what was thought stays here");
    }
}

#[test]
fn a_stream_that_breaks_off_fails_once_and_one_that_was_whole_does_not() {
    for (translation, name, _, text) in all(".stream.txt") {
        let given = text.split_once(CUT).unwrap().0;
        let mut stream = translation.stream(reply());
        let mut out = Vec::new();
        stream.push(b"data: {}\n\n", AT, &mut out);
        stream.broke("the network is gone", AT, &mut out);
        assert_eq!(stream.state(), State::Failed, "{name}");
        let told = String::from_utf8(out.clone()).unwrap();
        assert_eq!(told.matches("error").count().min(1), 1, "{told}");
        assert!(told.contains("the network is gone"), "{told}");
        let length = out.len();
        stream.push(given.as_bytes(), AT, &mut out);
        stream.broke("again", AT, &mut out);
        stream.finish(AT, &mut out);
        assert_eq!(out.len(), length, "{name}: nothing comes after an error");
    }
}

/// Everything in an answer is JSON in the caller's shape, and it ends once.
fn check_shape(translation: Translation, out: &str, state: State) {
    assert_ne!(state, State::Runs);
    let items: Vec<Value> = match translation.from {
        From::Chat | From::Generate => {
            out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
        From::Embed => unreachable!("vectors have tests of their own"),
        From::Messages | From::Responses => {
            assert!(out.is_empty() || out.ends_with("\n\n"));
            let events = out.split("\n\n").filter(|event| !event.is_empty());
            events
                .map(|event| {
                    let (name, data) = event.split_once('\n').unwrap();
                    let data: Value =
                        serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
                    assert_eq!(name.strip_prefix("event: ").unwrap(), data["type"]);
                    data
                })
                .collect()
        }
    };
    let last = |item: &Value| match translation.from {
        From::Chat | From::Generate => item["done"] == true || item["error"].is_string(),
        From::Embed => unreachable!("vectors have tests of their own"),
        From::Messages => item["type"] == "message_stop" || item["type"] == "error",
        From::Responses => {
            let kind = item["type"].as_str().unwrap();
            matches!(kind, "response.completed" | "response.incomplete" | "error")
        }
    };
    assert_eq!(items.iter().filter(|item| last(item)).count(), 1, "{out}");
    assert!(last(items.last().unwrap()), "{out}");
    if translation.from == From::Responses {
        for (at, item) in items.iter().enumerate() {
            assert_eq!(item["sequence_number"], at, "{out}");
        }
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    const WORDS: [&str; 40] = [
        "model",
        "messages",
        "role",
        "content",
        "type",
        "text",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "id",
        "input",
        "system",
        "user",
        "assistant",
        "tool",
        "tool_use",
        "tool_result",
        "image",
        "images",
        "source",
        "data",
        "options",
        "num_predict",
        "stop",
        "format",
        "think",
        "tools",
        "parameters",
        "choices",
        "delta",
        "index",
        "finish_reason",
        "usage",
        "error",
        "message",
        "content_block_start",
        "content_block",
        "message_delta",
        "function_call",
    ];
    let word = || proptest::sample::select(&WORDS[..]).prop_map(str::to_owned);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        word().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::vec((word(), inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_request_is_translated_or_refused(
        which in 0..DIRECTIONS.len(),
        body in any_json(),
        fields in proptest::collection::vec(any_json(), 3),
        flags in any::<[bool; 3]>(),
    ) {
        let translation = translation(DIRECTIONS[which].0);
        let mut body = body;
        if let Value::Object(body) = &mut body {
            for (name, field) in ["messages", "input", "options"].into_iter().zip(fields) {
                body.insert(name.to_owned(), field);
            }
            body.insert("prompt".to_owned(), "x".into());
            body.insert("nobody_knows".to_owned(), 7.into());
        }
        let [reasoning, sampling, completion_tokens] = flags;
        let target = Target { model: "there-1".into(), max_tokens: Some(99), reasoning, sampling, completion_tokens };
        if let Ok(asked) = translation.request(body, &target) {
            prop_assert_eq!(&asked.body["model"], "there-1");
            prop_assert_eq!(&asked.body["nobody_knows"], 7);
            prop_assert!(asked.body["messages"].is_array());
            let own: &[&str] = match translation.from {
                From::Chat => &["options", "keep_alive", "think", "format"],
                From::Generate => &["options", "think", "format", "prompt", "system", "images"],
                From::Messages => &["system", "stop_sequences", "thinking"],
                From::Responses => &["input", "instructions", "text", "reasoning"],
                From::Embed => unreachable!("vectors have tests of their own"),
            };
            for own in own {
                prop_assert!(asked.body.get(*own).is_none(), "{}: {}", own, asked.body);
            }
        }
    }

    #[test]
    fn any_whole_answer_is_translated_or_a_failure(which in 0..DIRECTIONS.len(), body in any_json(), message in any_json()) {
        let translation = translation(DIRECTIONS[which].0);
        let _ = translation.whole(&body, &reply(), AT);
        let choice = json!({ "choices": [{ "message": message, "finish_reason": "stop" }], "content": [message] });
        if let Ok(answer) = translation.whole(&choice, &reply(), AT) {
            prop_assert_eq!(&answer["model"], "writing");
        }
    }

    #[test]
    fn any_events_make_one_legal_answer_wherever_they_are_cut(
        which in 0..DIRECTIONS.len(),
        events in proptest::collection::vec((any_json(), any_json(), any::<u8>()), 0..8),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
    ) {
        let translation = translation(DIRECTIONS[which].0);
        let mut bytes = Vec::new();
        for (event, part, kind) in events {
            let event = match kind % 8 {
                0 => event.to_string(),
                1 => "[DONE]".to_owned(),
                2 => json!({ "type": "content_block_start", "index": 0, "content_block": part }).to_string(),
                3 => json!({ "type": "content_block_delta", "index": 0, "delta": part }).to_string(),
                4 => json!({ "type": "message_delta", "delta": part, "usage": event }).to_string(),
                5 => json!({ "choices": [{ "delta": { "tool_calls": [part] } }], "usage": event }).to_string(),
                6 => json!({ "choices": [{ "delta": { "content": "x" }, "finish_reason": part }] }).to_string(),
                _ => json!({ "choices": [{ "delta": part }] }).to_string(),
            };
            bytes.extend_from_slice(format!("data: {event}\n\n").as_bytes());
        }
        let (whole, state) = streamed(translation, &[&bytes]);
        check_shape(translation, &whole, state);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let mut chunks = Vec::new();
        let mut from = 0;
        for cut in cuts {
            chunks.push(&bytes[from..cut]);
            from = cut;
        }
        chunks.push(&bytes[from..]);
        prop_assert_eq!(streamed(translation, &chunks).0, whole);
    }

    #[test]
    fn rubbish_makes_one_legal_answer(which in 0..DIRECTIONS.len(), bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let translation = translation(DIRECTIONS[which].0);
        let (out, state) = streamed(translation, &[&bytes]);
        check_shape(translation, &out, state);
    }
}
