//! Reading Anthropic messages.

use serde_json::Value;

use super::super::piece::{Call, Piece, Stop, Usage, error_text, text};

/// What came so far of a stream.
#[derive(Debug, Default)]
pub(in super::super) struct Reader {
    /// The tool call that is being written.
    call: Option<Begun>,
    stopped: bool,
    done: bool,
}

/// A tool call as it comes.
#[derive(Debug)]
struct Begun {
    /// The number of its block.
    index: u64,
    id: String,
    name: String,
    arguments: String,
    /// What its beginning gave for arguments: all, where no pieces follow.
    given: String,
}

impl Reader {
    /// Whether all came that had to.
    pub(in super::super) fn is_whole(&self) -> bool {
        self.done || self.stopped
    }

    /// Whether nothing comes after this.
    pub(in super::super) fn is_done(&self) -> bool {
        self.done
    }

    /// The data of one event; its type says what its name says.
    pub(in super::super) fn event(&mut self, data: &str, out: &mut Vec<Piece>) {
        let Ok(event) = serde_json::from_str::<Value>(data) else {
            return out
                .push(Piece::Error("the provider sent something that is no JSON".to_owned()));
        };
        match event["type"].as_str().unwrap_or_default() {
            "message_start" => out.extend(usage(&event["message"]).map(Piece::Usage)),
            "content_block_start" => {
                let block = &event["content_block"];
                match block["type"].as_str().unwrap_or_default() {
                    "tool_use" => {
                        let own = |name| text(block, name).unwrap_or_default().to_owned();
                        self.call_over(out);
                        self.call = Some(Begun {
                            index: event["index"].as_u64().unwrap_or(0),
                            id: own("id"),
                            name: own("name"),
                            arguments: String::new(),
                            given: block["input"]
                                .as_object()
                                .map_or_else(String::new, |_| block["input"].to_string()),
                        });
                    }
                    _ => said(block, out),
                }
            }
            "content_block_delta" => {
                let delta = &event["delta"];
                match (text(delta, "partial_json"), &mut self.call) {
                    (Some(more), Some(call))
                        if event["index"].as_u64().unwrap_or(0) == call.index =>
                    {
                        call.arguments.push_str(more);
                    }
                    _ => said(delta, out),
                }
            }
            "content_block_stop" => self.call_over(out),
            "message_delta" => {
                out.extend(usage(&event).map(Piece::Usage));
                let delta = &event["delta"];
                if let Some(reason) = text(delta, "stop_reason") {
                    self.call_over(out);
                    self.stopped = true;
                    out.push(Piece::Stop(stop(reason, text(delta, "stop_sequence"))));
                }
            }
            "message_stop" => self.done = true,
            "error" => out.push(Piece::Error(error_text(&event["error"]))),
            // `ping`, and what is newer than this.
            _ => {}
        }
    }

    fn call_over(&mut self, out: &mut Vec<Piece>) {
        if let Some(Begun { id, name, arguments, given, .. }) = self.call.take() {
            let arguments = if arguments.is_empty() { given } else { arguments };
            out.push(Call::read(id, name, &arguments).map_or_else(Piece::Error, Piece::Call));
        }
    }
}

/// What a block, or a piece of one, says or thinks.
fn said(block: &Value, out: &mut Vec<Piece>) {
    out.extend(text(block, "thinking").map(|text| Piece::Thinking(text.to_owned())));
    out.extend(text(block, "text").map(|text| Piece::Text(text.to_owned())));
}

/// A whole answer; `Err` = it is a failure after all.
pub(in super::super) fn whole(body: &Value) -> Result<Vec<Piece>, String> {
    if let Some(error) = body.get("error").filter(|error| !error.is_null()) {
        return Err(error_text(error));
    }
    let Some(blocks) = body["content"].as_array() else {
        return Err("the provider's answer holds no content".to_owned());
    };
    let mut out = Vec::new();
    for block in blocks {
        if block["type"] == "tool_use" {
            let own = |name| text(block, name).unwrap_or_default().to_owned();
            let arguments = block["input"].as_object().cloned().unwrap_or_default();
            out.push(Piece::Call(Call { id: own("id"), name: own("name"), arguments }));
        } else {
            said(block, &mut out);
        }
    }
    out.extend(usage(body).map(Piece::Usage));
    let reason = text(body, "stop_reason").unwrap_or("end_turn");
    out.push(Piece::Stop(stop(reason, text(body, "stop_sequence"))));
    Ok(out)
}

fn stop(reason: &str, word: Option<&str>) -> Stop {
    match reason {
        "max_tokens" | "model_context_window_exceeded" => Stop::Length,
        "tool_use" => Stop::Tools,
        "stop_sequence" => Stop::Word(word.map(str::to_owned)),
        "refusal" => Stop::Refusal,
        _ => Stop::End,
    }
}

/// The prompt's tokens are told in three parts.
fn usage(holder: &Value) -> Option<Usage> {
    let counts = holder.get("usage").filter(|usage| usage.is_object())?;
    let number = |name: &str| counts[name].as_u64();
    let cached = number("cache_read_input_tokens");
    let written = number("cache_creation_input_tokens");
    Some(Usage {
        prompt: number("input_tokens").map(|new| {
            new.saturating_add(cached.unwrap_or(0)).saturating_add(written.unwrap_or(0))
        }),
        cached,
        output: number("output_tokens"),
        reasoning: None,
    })
}
