//! Answers in Anthropic's form, whole and as named events.

use protocol::Usage;
use serde_json::{Value, json};

use crate::generation::{Answer, Call, Finished, Part, Reason};
use crate::http::new_id;
use crate::http::stream::{Frames, Writer};

/// What is known before the answer.
#[derive(Debug)]
pub struct Head {
    /// The message's id.
    pub id: String,
    /// The model's own name.
    pub model: String,
    /// As they were asked for.
    pub stops: Vec<String>,
    /// As it was asked for.
    pub max_tokens: Option<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Those of them before the last mark.
    pub marked_tokens: u32,
}

impl Head {
    /// The answer whole.
    pub fn object(&self, answer: &Answer) -> Value {
        let mut content = Vec::new();
        if !answer.reasoning.is_empty() {
            let signature = new_id("sig");
            content.push(json!({
                "type": "thinking", "thinking": answer.reasoning, "signature": signature,
            }));
        }
        if !answer.text.is_empty() {
            content.push(json!({"type": "text", "text": answer.text}));
        }
        for call in &answer.calls {
            // Arguments are the text of an object, by the promise of whoever read them.
            let input = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
            content.push(tool_use(call, input));
        }
        let (reason, stop) = self.ending(&answer.finished);
        let mut message = self.message(content, self.usage(&answer.finished));
        message["stop_reason"] = reason.into();
        message["stop_sequence"] = stop.into();
        message
    }

    fn message(&self, content: Vec<Value>, usage: Value) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": null,
            "stop_sequence": null,
            "usage": usage,
        })
    }

    /// Why it ended, and with which stop sequence.
    fn ending(&self, finished: &Finished) -> (&'static str, Option<&str>) {
        match finished.reason {
            Reason::Stop => ("end_turn", None),
            Reason::StopString(idx) => ("stop_sequence", self.stops.get(idx).map(String::as_str)),
            Reason::Calls => ("tool_use", None),
            Reason::Length if self.max_tokens.is_some_and(|n| finished.usage.new_tokens < n) => {
                ("model_context_window_exceeded", None)
            }
            Reason::Length => ("max_tokens", None),
        }
    }

    /// Tokens in and out, as far as they are known. What is computed up to the last mark is what
    /// goes into the cache for the client's sake.
    fn tokens(&self, usage: Usage) -> Value {
        let read = usage.cached_tokens;
        let created = self.marked_tokens.saturating_sub(read);
        json!({
            "input_tokens": usage.prompt_tokens.saturating_sub(read + created),
            "cache_creation_input_tokens": created,
            "cache_read_input_tokens": read,
            "output_tokens": usage.new_tokens,
        })
    }

    fn usage(&self, finished: &Finished) -> Value {
        let mut usage = self.tokens(finished.usage);
        usage["output_tokens_details"] = json!({"thinking_tokens": finished.reasoning_tokens});
        usage["service_tier"] = "standard".into();
        usage
    }
}

fn tool_use(call: &Call, input: Value) -> Value {
    let id = call.id.clone().unwrap_or_else(|| new_id("toolu"));
    json!({"type": "tool_use", "id": id, "name": call.name, "input": input})
}

/// A block that is not closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Text,
    Thinking,
}

/// Writes the events of a stream.
pub struct Events {
    head: Head,
    has_begun: bool,
    /// Blocks that were opened.
    n_blocks: usize,
    open: Option<Open>,
}

impl Events {
    /// The writer of one answer.
    pub fn new(head: Head) -> Self {
        Self { head, has_begun: false, n_blocks: 0, open: None }
    }

    fn event(&self, name: &str, data: Value, frames: &mut Frames) {
        let mut event = json!({"type": name});
        if let (Some(event), Value::Object(data)) = (event.as_object_mut(), data) {
            event.extend(data);
        }
        frames.event(Some(name), &event);
    }

    /// The first event, with what the cache has, as soon as that is known.
    fn begin(&mut self, cached_tokens: u32, frames: &mut Frames) {
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        let prompt_tokens = self.head.prompt_tokens;
        let usage = self.head.tokens(Usage { prompt_tokens, cached_tokens, new_tokens: 0 });
        let message = self.head.message(Vec::new(), usage);
        self.event("message_start", json!({"message": message}), frames);
    }

    fn start(&mut self, block: &Value, frames: &mut Frames) {
        let data = json!({"index": self.n_blocks, "content_block": block});
        self.event("content_block_start", data, frames);
        self.n_blocks += 1;
    }

    fn delta(&self, delta: &Value, frames: &mut Frames) {
        let data = json!({"index": self.n_blocks.saturating_sub(1), "delta": delta});
        self.event("content_block_delta", data, frames);
    }

    fn stop(&self, frames: &mut Frames) {
        let data = json!({"index": self.n_blocks.saturating_sub(1)});
        self.event("content_block_stop", data, frames);
    }

    /// The block that the next delta is of; none: all are closed.
    fn turn_to(&mut self, block: Option<Open>, frames: &mut Frames) {
        if self.open == block {
            return;
        }
        if let Some(open) = self.open {
            if open == Open::Thinking {
                let signature = json!({"type": "signature_delta", "signature": new_id("sig")});
                self.delta(&signature, frames);
            }
            self.stop(frames);
        }
        self.open = block;
        match block {
            None => {}
            Some(Open::Text) => self.start(&json!({"type": "text", "text": ""}), frames),
            Some(Open::Thinking) => {
                let block = json!({"type": "thinking", "thinking": "", "signature": ""});
                self.start(&block, frames);
            }
        }
    }
}

impl Writer for Events {
    fn part(&mut self, _: usize, part: Part, frames: &mut Frames) -> bool {
        if let Part::Matched(found) = &part {
            self.begin(found.usable_tokens, frames);
            return true;
        }
        if frames.progress(&part) {
            return true;
        }
        if !matches!(part, Part::Failed(_)) {
            self.begin(0, frames);
        }
        match part {
            Part::Reasoning(text) => {
                self.turn_to(Some(Open::Thinking), frames);
                self.delta(&json!({"type": "thinking_delta", "thinking": text}), frames);
            }
            Part::Text { text, .. } if !text.is_empty() => {
                self.turn_to(Some(Open::Text), frames);
                self.delta(&json!({"type": "text_delta", "text": text}), frames);
            }
            Part::Call(call) => {
                self.turn_to(None, frames);
                self.start(&tool_use(&call, json!({})), frames);
                let arguments = &call.arguments;
                let delta = json!({"type": "input_json_delta", "partial_json": arguments});
                self.delta(&delta, frames);
                self.stop(frames);
            }
            Part::Finished(finished) => {
                self.turn_to(None, frames);
                let (reason, stop) = self.head.ending(&finished);
                let delta = json!({"stop_reason": reason, "stop_sequence": stop});
                let data = json!({"delta": delta, "usage": self.head.usage(&finished)});
                self.event("message_delta", data, frames);
                self.event("message_stop", json!({}), frames);
            }
            Part::Failed(failure) => {
                frames.event(Some("error"), &super::error(&failure));
                return false;
            }
            _ => {}
        }
        true
    }

    fn idle(&mut self, frames: &mut Frames) {
        match self.has_begun {
            true => self.event("ping", json!({}), frames),
            // Nothing comes before the first event.
            false => frames.comment("ping"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            id: "msg-1".into(),
            model: "tiny".into(),
            stops: vec!["x".into(), "y".into()],
            max_tokens: Some(4),
            prompt_tokens: 100,
            marked_tokens: 60,
        }
    }

    fn finished(reason: Reason, cached_tokens: u32, new_tokens: u32) -> Finished {
        Finished {
            reason,
            usage: Usage { prompt_tokens: 100, cached_tokens, new_tokens },
            reasoning_tokens: 0,
            timings: protocol::Timings::default(),
            load_ms: 0.0,
            found: None,
            seed: 0,
        }
    }

    #[test]
    fn the_parts_of_a_prompt_add_up_to_it() {
        for (cached, expected) in [(0, [40, 60, 0]), (50, [40, 10, 50]), (80, [20, 0, 80])] {
            let usage = head().usage(&finished(Reason::Stop, cached, 1));
            let of = |name: &str| usage[name].as_u64().unwrap();
            let parts = ["input", "cache_creation_input", "cache_read_input"];
            let parts = parts.map(|name| of(&format!("{name}_tokens")));
            assert_eq!((parts, parts.iter().sum::<u64>()), (expected, 100), "{cached} cached");
        }
    }

    #[test]
    fn every_end_has_its_reason() {
        let check = |reason, n, expected: (&str, Option<&str>)| {
            assert_eq!(head().ending(&finished(reason, 0, n)), expected);
        };
        check(Reason::Stop, 1, ("end_turn", None));
        check(Reason::StopString(1), 1, ("stop_sequence", Some("y")));
        check(Reason::Calls, 1, ("tool_use", None));
        check(Reason::Length, 4, ("max_tokens", None));
        check(Reason::Length, 3, ("model_context_window_exceeded", None));
    }

    #[test]
    fn calls_are_blocks_of_their_own_between_others() {
        let mut events = Events::new(head());
        let mut frames = Frames::default();
        let call = Call {
            index: 0,
            id: Some("c1".into()),
            name: "f".into(),
            arguments: "{\"a\":1}".into(),
        };
        let text = |text: &str| Part::Text { text: text.into(), logprobs: Vec::new() };
        let end = Part::Finished(Box::new(finished(Reason::Calls, 0, 3)));
        let parts =
            [Part::Reasoning("hm".into()), text("so"), text(""), Part::Call(call.clone()), end];
        for part in parts {
            assert!(events.part(0, part, &mut frames));
        }
        let written = frames.text();
        let lines = written.lines().filter_map(|line| line.strip_prefix("data: "));
        let shown = |line| {
            let event: Value = serde_json::from_str(line).unwrap();
            let what = event["content_block"]["type"].as_str().or(event["delta"]["type"].as_str());
            let idx = event["index"].as_u64().map(|idx| idx.to_string());
            let words = [event["type"].as_str(), idx.as_deref(), what];
            words.into_iter().flatten().collect::<Vec<_>>().join(" ")
        };
        let shown: Vec<_> = lines.map(shown).collect();
        assert_eq!(
            shown,
            [
                "message_start",
                "content_block_start 0 thinking",
                "content_block_delta 0 thinking_delta",
                "content_block_delta 0 signature_delta",
                "content_block_stop 0",
                "content_block_start 1 text",
                "content_block_delta 1 text_delta",
                "content_block_stop 1",
                "content_block_start 2 tool_use",
                "content_block_delta 2 input_json_delta",
                "content_block_stop 2",
                "message_delta",
                "message_stop",
            ]
        );
        assert!(written.contains("\"stop_reason\":\"tool_use\""), "{written}");
        let answer = Answer {
            reasoning: "hm".into(),
            text: "so".into(),
            calls: vec![call],
            logprobs: None,
            finished: finished(Reason::Calls, 0, 3),
        };
        let block = &head().object(&answer)["content"][2];
        assert_eq!(block, &json!({"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}));
    }
}
