//! Answers: ends of streams, repairs, usage, errors, echoes.

use bytes::Bytes;
use http::Method;
use serde_json::Value;

use super::{Sample, folder, samples};
use crate::api::echo::Echo;
use crate::api::ending::{DoneReason, Ending, Usage};
use crate::api::error;
use crate::types::{Api, Op};

fn watched(s: &Sample, step: usize) -> Ending {
    let route = s.route();
    let mut ending = Ending::new(route.api, route.op, Some(s.kind()));
    s.body.as_bytes().chunks(step).for_each(|frame| ending.feed(frame));
    ending
}

#[test]
fn every_whole_stream_is_complete_and_every_cut_one_is_not() {
    let mut streams = 0;
    for s in samples().values().filter(|s| s.is_stream()) {
        streams += 1;
        for step in [1, 7, 64, 1 << 20] {
            let ending = watched(s, step);
            assert!(ending.is_tracked(), "{}", s.name);
            // Ollama tells a native client of its engine's death, and no other.
            let cut = s.case().starts_with("midstream-kill-v1");
            assert_eq!(ending.complete(), !cut, "{} in {step}s", s.name);
            let said =
                s.case().starts_with("midstream-kill") && !cut || s.case() == "create-from-404";
            assert_eq!(ending.failed(), said, "{} in {step}s", s.name);
            assert!(cut || !ending.mid_item(), "{} in {step}s", s.name);
        }
    }
    assert!(streams > 30, "{streams}");
}

#[test]
fn no_stream_is_complete_before_its_last_piece() {
    for s in samples().values().filter(|s| s.is_stream()) {
        // The last item that is no decoration: a line, an event, or the finish before
        // `[DONE]`.
        let body = s.body.trim_end();
        let marker = ["\"finish_reason\":\"", "event: message_stop", "event: response.completed"]
            .iter()
            .find_map(|m| body.find(m));
        let end = marker.unwrap_or_else(|| body.rfind('\n').map_or(0, |n| n + 1));
        let mut ending = Ending::new(s.route().api, s.route().op, Some(s.kind()));
        ending.feed(&body.as_bytes()[..end]);
        assert!(!ending.complete(), "{}", s.name);
    }
}

#[test]
fn a_repaired_stream_raises_an_error_in_every_client() {
    for s in samples().values().filter(|s| s.is_stream()) {
        for cut in [s.body.len(), s.body.len() * 2 / 3, s.body.len() / 2, 1] {
            let mut ending = Ending::new(s.route().api, s.route().op, Some(s.kind()));
            ending.feed(&s.body.as_bytes()[..cut]);
            if ending.complete() {
                continue;
            }
            let repair = ending.repair("mesh: desk stopped answering in mid-reply");
            let text = std::str::from_utf8(&repair).unwrap();
            let item = text.trim_start();
            let item: Value = match item.find("data: ") {
                Some(at) => serde_json::from_str(item[at + 6..].trim_end()).unwrap(),
                None => serde_json::from_str(item).unwrap(),
            };
            let error = &item["error"];
            assert_eq!(error.is_object(), s.route().api != Api::Ollama, "{}", s.name);
            assert!(item.to_string().contains("desk stopped answering"), "{}", s.name);
            // It stands alone: at the start of a line, behind a blank one in events.
            let whole = format!("{}{text}", &s.body[..cut]);
            let gap = if s.route().api == Api::Ollama { "\n" } else { "\n\n" };
            let start = whole.rfind(text.trim_start()).unwrap();
            assert!(start == 0 || whole[..start].ends_with(gap), "{}", s.name);
            assert!(!whole.contains("[DONE]"), "{}", s.name);
            ending.feed(&repair);
            assert!(ending.complete() && ending.failed() && !ending.mid_item(), "{}", s.name);
            if s.route().api == Api::Responses {
                let before = s.body[..cut].matches("\"sequence_number\":").count();
                let next = item["sequence_number"].as_u64().unwrap();
                assert!(next >= before.saturating_sub(1) as u64, "{}: {next}", s.name);
            }
        }
    }
}

#[test]
fn what_streams_count_is_read() {
    let all = samples();
    let usage = |case: &str| watched(&all[case], 50).usage();
    let tokens = |prompt, output, why| Usage {
        prompt_tokens: prompt,
        output_tokens: output,
        done_reason: Some(why),
        ..Usage::default()
    };
    assert_eq!(
        usage("0.32.15/generate-stream"),
        Usage {
            prompt_tokens: Some(5),
            cache_writes: None,
            cached_tokens: None,
            output_tokens: Some(3),
            prompt_ns: Some(158_050_000),
            eval_ns: Some(258_619_000),
            load_ns: Some(506_603_395),
            total_ns: Some(926_015_520),
            done_reason: Some(DoneReason::Length),
        }
    );
    assert_eq!(usage("0.32.15/generate-stream").queue_ns(), Some(2_743_125));
    for version in ["0.24.0", "0.32.15"] {
        let of = |case: &str| usage(&format!("{version}/{case}"));
        assert_eq!(of("v1-chat-stream"), tokens(None, None, DoneReason::Length));
        assert_eq!(of("v1-chat-stream-usage"), tokens(Some(5), Some(3), DoneReason::Length));
        assert_eq!(of("v1-chat-tools-stream").done_reason, Some(DoneReason::Tools));
        assert_eq!(of("v1-messages-stream"), tokens(Some(5), Some(3), DoneReason::Length));
        assert_eq!(of("v1-responses-stream").output_tokens, Some(3));
        // Answers that are one document.
        assert_eq!(of("v1-chat"), tokens(Some(5), Some(3), DoneReason::Length));
        assert_eq!(of("v1-messages"), tokens(Some(5), Some(3), DoneReason::Length));
        assert_eq!(of("v1-responses"), tokens(Some(5), Some(3), DoneReason::Stop));
        assert_eq!(of("generate").output_tokens, Some(3));
        assert_eq!(of("embed").prompt_tokens, Some(12));
        assert_eq!(of("v1-embeddings").prompt_tokens, Some(6));
        assert_eq!(of("generate-preload").done_reason, Some(DoneReason::Load));
        assert_eq!(of("chat-unload").done_reason, Some(DoneReason::Unload));
    }
}

#[test]
fn pieces_of_output_are_counted() {
    let all = samples();
    for (case, want) in [
        ("0.32.15/generate-stream", 3),
        ("0.32.15/chat-think-stream", 8),
        ("0.32.15/v1-chat-stream-usage", 3),
        ("0.32.15/v1-completions-stream", 3),
        ("0.32.15/v1-messages-stream", 3),
        ("0.32.15/v1-responses-stream", 3),
    ] {
        assert_eq!(watched(&all[case], 40).items(), want, "{case}");
    }
}

#[test]
fn another_server_of_the_same_dialect_is_read_too() {
    let body = std::fs::read(folder().join("llamacpp/v1_chat_completions.sse")).unwrap();
    let mut ending = Ending::new(Api::Chat, Op::Chat, Some("text/event-stream"));
    body.chunks(33).for_each(|frame| ending.feed(frame));
    assert!(ending.complete() && !ending.failed());
    assert_eq!((ending.usage().prompt_tokens, ending.usage().output_tokens), (Some(5), Some(3)));
}

#[test]
fn errors_are_ollamas_byte_for_byte() {
    let mut errors = 0;
    let all = samples();
    let refused = all.values().filter(|s| s.status.as_u16() >= 400 && s.method != Method::HEAD);
    for s in refused.filter(|s| s.kind().contains("json")) {
        errors += 1;
        let text = error::text_of(s.body.as_bytes()).unwrap();
        // A refused cloud model is told in Ollama's own form whatever the dialect.
        let api = if s.case() == "v1-cloud-disabled" { Api::Ollama } else { s.route().api };
        let id = serde_json::from_str::<Value>(&s.body).unwrap()["request_id"].clone();
        let (kind, body) = error::body(api, s.status, &text, id.as_str().unwrap_or_default());
        assert_eq!(kind, s.kind(), "{}", s.name);
        assert_eq!(String::from_utf8_lossy(&body), s.body, "{}", s.name);
    }
    assert!(errors > 25, "{errors}");
}

#[test]
fn an_echo_is_put_right_in_every_stream() {
    for s in samples().values().filter(|s| s.kind().contains("json") || s.is_stream()) {
        for step in [1, 13, 1 << 20] {
            let mut echo = Echo::new(s.route().api, "tiny", "tiny@desk");
            let frames = s.body.as_bytes().chunks(step).map(Bytes::copy_from_slice);
            let mut out: Vec<u8> = frames.flat_map(|frame| echo.feed(frame)).collect();
            out.extend_from_slice(&echo.finish());
            let want = s.body.replace("\"model\":\"tiny\"", "\"model\":\"tiny@desk\"");
            assert_eq!(String::from_utf8_lossy(&out), want, "{} in {step}s", s.name);
        }
    }
}
