use super::*;

fn fed(api: Api, op: Op, kind: &str, body: &str, step: usize) -> Ending {
    let mut ending = Ending::new(api, op, Some(kind));
    body.as_bytes().chunks(step.max(1)).for_each(|frame| ending.feed(frame));
    ending
}

const LINES: &str = "application/x-ndjson";
const EVENTS: &str = "text/event-stream; charset=utf-8";

#[track_caller]
fn check(api: Api, kind: &str, body: &str, complete: bool, failed: bool) {
    for step in [1, 5, 64, body.len().max(1)] {
        let e = fed(api, Op::Chat, kind, body, step);
        assert_eq!((e.complete(), e.failed()), (complete, failed), "{body} in {step}s");
    }
}

#[test]
fn a_native_stream_ends_with_its_own_marker() {
    let more = r#"{"message":{"content":"x"},"done":false}"#;
    check(Api::Ollama, LINES, &format!("{more}\n"), false, false);
    check(Api::Ollama, LINES, &format!("{more}\n{{\"done\":true}}\n"), true, false);
    check(Api::Ollama, LINES, &format!("{more}\n{{\"done\": true}}"), true, false);
    check(Api::Ollama, LINES, "{\"status\":\"pulling\"}\n", false, false);
    check(Api::Ollama, LINES, "{\"status\":\"success\"}\r\n", true, false);
    check(Api::Ollama, LINES, "{\"error\":\"x\",\"status\":503}\n", true, true);
    check(Api::Ollama, LINES, "{\"error\":null,\"done\":false}\n", false, false);
    check(Api::Ollama, LINES, "", false, false);
}

#[test]
fn what_a_tool_call_says_is_no_marker() {
    for line in [
        r#"{"message":{"tool_calls":[{"function":{"arguments":{"done":true}}}]},"done":false}"#,
        r#"{"done":false,"message":{"tool_calls":[{"arguments":{"done":true,"error":"x"}}]}}"#,
        r#"{"message":{"content":"{\"done\":true}"},"done":false}"#,
        r#"{"done":false,"x":{"status":"success"}}"#,
    ] {
        check(Api::Ollama, LINES, &format!("{line}\n"), false, false);
    }
}

#[test]
fn a_chat_ends_with_done_or_every_finish_reason() {
    let chunk = |i: u8, why: &str| {
        format!(
            "data: {{\"model\":\"x\",\"choices\":[{{\"index\":{i},\"delta\":{{}},\"finish_reason\":{why}}}]}}\n\n"
        )
    };
    let stop = "\"stop\"";
    check(Api::Chat, EVENTS, &chunk(0, "null"), false, false);
    check(Api::Chat, EVENTS, &(chunk(0, "null") + &chunk(0, stop)), true, false);
    check(
        Api::Chat,
        EVENTS,
        &(chunk(0, "null") + &chunk(1, "null") + &chunk(0, stop)),
        false,
        false,
    );
    check(Api::Chat, EVENTS, &(chunk(0, "null") + "data: [DONE]"), true, false);
    check(Api::Chat, EVENTS, "data: {\"error\":{\"message\":\"x\"}}\n\n", true, true);
    check(Api::Completions, EVENTS, ": a comment\n\n", false, false);
}

#[test]
fn the_error_item_has_the_dialects_form() {
    let repair = |api, kind: &str, body: &str| {
        let e = fed(api, Op::Chat, kind, body, 7);
        String::from_utf8(e.repair("mesh: <desk> stopped").to_vec()).unwrap()
    };
    let text = r#""mesh: \u003cdesk\u003e stopped""#;
    let native = format!("{{\"error\":{text}}}\n");
    assert_eq!(repair(Api::Ollama, LINES, ""), native);
    assert_eq!(repair(Api::Ollama, LINES, "{\"done\":false}\n"), native);
    assert_eq!(repair(Api::Ollama, LINES, "{\"do"), format!("\n{native}"));

    let chat = format!(
        "data: {{\"error\":{{\"message\":{text},\"type\":\"api_error\",\"param\":null,\"code\":\"upstream_lost\"}}}}\n\n"
    );
    assert_eq!(repair(Api::Chat, EVENTS, "data: {}\n\n"), chat);
    assert_eq!(repair(Api::Chat, EVENTS, "data: {}\n"), format!("\n\n{chat}"));
    assert_eq!(repair(Api::Chat, EVENTS, "data: {"), format!("\n\n{chat}"));

    assert_eq!(
        repair(Api::Messages, EVENTS, ""),
        format!(
            "event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"api_error\",\"message\":{text}}}}}\n\n"
        )
    );
    assert_eq!(
        repair(
            Api::Responses,
            EVENTS,
            "event: x\ndata: {\"sequence_number\":41,\"type\":\"x\"}\n\n"
        ),
        format!(
            "event: error\ndata: {{\"type\":\"error\",\"code\":\"upstream_lost\",\"message\":{text},\"param\":null,\"error\":{{\"type\":\"api_error\",\"code\":\"upstream_lost\",\"message\":{text}}},\"sequence_number\":42}}\n\n"
        )
    );
}

#[test]
fn our_own_repair_is_an_end() {
    for (api, kind) in [
        (Api::Ollama, LINES),
        (Api::Chat, EVENTS),
        (Api::Completions, EVENTS),
        (Api::Messages, EVENTS),
        (Api::Responses, EVENTS),
    ] {
        let mut e = fed(api, Op::Chat, kind, "event: x\ndata: {\"a\":", 3);
        let repair = e.repair("lost");
        e.feed(&repair);
        assert!(e.complete() && e.failed() && !e.mid_item(), "{api:?}");
    }
}

#[test]
fn what_is_no_stream_of_items_is_never_repaired() {
    for (api, kind) in [(Api::Ollama, "application/json"), (Api::OpenAi, EVENTS), (Api::Ollama, "")]
    {
        let e = fed(api, Op::Chat, kind, "{\"a\":", 9);
        assert!(!e.is_tracked() && !e.mid_item() && e.repair("x").is_empty(), "{api:?} {kind}");
    }
    let mut e = Ending::new(Api::Ollama, Op::Chat, Some(LINES));
    let frame = vec![b'x'; 1 << 20];
    (0..17).for_each(|_| e.feed(&frame));
    assert!(!e.is_tracked() && e.repair("x").is_empty());
}
