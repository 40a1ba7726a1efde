//! A response: its items as the parts of an answer make them, whole and as events.
//!
//! Invariants: at most the last item is open; what the events say adds up to the object; a response
//! that is to be kept is kept before anybody reads that it has ended.

use std::sync::Arc;

use serde_json::{Value, json};
use text::Content;

use super::items::Turns;
use super::request::Settings;
use super::store::{Added, Turn};
use crate::failure::{Failure, Kind};
use crate::generation::{Call, Finished, Part, Reason, TokenLogprob};
use crate::http::{App, now_unix_s, random_hex};
use crate::openai::wire;

/// Takes events, by their names.
pub type Emit<'a> = &'a mut dyn FnMut(&'static str, Value);

/// A response.
pub struct Response {
    id: String,
    model: String,
    created_at: u64,
    settings: Settings,
    items: Vec<Item>,
    is_open: bool,
    keeping: Option<Keeping>,
}

/// Where a response is kept when it has ended.
pub struct Keeping {
    /// Whose responses they are.
    pub app: App,
    /// By name.
    pub caller: String,
    /// The conversation before it.
    pub before: Option<Arc<Turn>>,
    /// Its input.
    pub added: Added,
}

struct Item {
    id: String,
    status: &'static str,
    said: Said,
}

enum Said {
    Reasoning(String),
    Text { text: String, logprobs: Vec<TokenLogprob> },
    Call { call_id: String, call: Call },
}

impl Item {
    fn new(said: Said) -> Self {
        // Clients tell items by these beginnings.
        let kind = match said {
            Said::Reasoning(_) => "rs",
            Said::Text { .. } => "msg",
            Said::Call { .. } => "fc",
        };
        Self { id: format!("{kind}_{}", random_hex()), status: "in_progress", said }
    }

    /// Its one part of content; a call has none.
    fn part(&self) -> Option<Value> {
        match &self.said {
            Said::Reasoning(text) => Some(json!({"type": "reasoning_text", "text": text})),
            Said::Text { text, logprobs } => Some(json!({
                "type": "output_text",
                "text": text,
                "annotations": [],
                "logprobs": wire::token_logprobs(logprobs),
            })),
            Said::Call { .. } => None,
        }
    }

    fn object(&self, content: &[Value], arguments: &str) -> Value {
        let Self { id, status, .. } = self;
        match &self.said {
            Said::Reasoning(_) => json!({
                "type": "reasoning", "id": id, "summary": [], "content": content, "status": status,
            }),
            Said::Text { .. } => json!({
                "type": "message", "id": id, "role": "assistant", "content": content,
                "status": status,
            }),
            Said::Call { call_id, call } => json!({
                "type": "function_call", "id": id, "call_id": call_id, "name": call.name,
                "arguments": arguments, "status": status,
            }),
        }
    }

    /// Without what is still to come.
    fn begun(&self) -> Value {
        self.object(&[], "")
    }

    fn whole(&self) -> Value {
        let arguments = match &self.said {
            Said::Call { call, .. } => call.arguments.as_str(),
            _ => "",
        };
        self.object(self.part().as_slice(), arguments)
    }
}

impl Response {
    /// One that begins.
    pub fn new(model: String, settings: Settings, keeping: Option<Keeping>) -> Self {
        Self {
            // Clients tell ids of responses by this beginning.
            id: format!("resp_{}", random_hex()),
            model,
            created_at: now_unix_s(),
            settings,
            items: Vec::new(),
            is_open: false,
            keeping,
        }
    }

    /// As it is before its end.
    pub fn object(&self) -> Value {
        let mut object = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": "in_progress",
            "completed_at": null,
            "error": null,
            "incomplete_details": null,
            "model": self.model,
            "output": self.items.iter().map(Item::whole).collect::<Vec<_>>(),
            "usage": null,
        });
        for (name, value) in &self.settings.0 {
            object[name] = value.clone();
        }
        object
    }

    /// Takes a part of the answer but its end.
    pub fn part(&mut self, part: Part, emit: Emit) {
        match part {
            Part::Reasoning(delta) => {
                let (idx, item) = self.open(
                    |said| matches!(said, Said::Reasoning(_)),
                    emit,
                    || Said::Reasoning(String::new()),
                );
                let data = delta_of(idx, &item.id, &delta);
                if let Said::Reasoning(text) = &mut item.said {
                    text.push_str(&delta);
                }
                emit("response.reasoning_text.delta", data);
            }
            // Log probabilities alone are of tokens that have no text in any item.
            Part::Text { text, .. } if text.is_empty() && !self.is_in_text() => {}
            Part::Text { text: delta, logprobs: new } => {
                let (idx, item) = self.open(
                    |said| matches!(said, Said::Text { .. }),
                    emit,
                    || Said::Text { text: String::new(), logprobs: Vec::new() },
                );
                let mut data = delta_of(idx, &item.id, &delta);
                data["logprobs"] = wire::token_logprobs(&new).into();
                if let Said::Text { text, logprobs } = &mut item.said {
                    text.push_str(&delta);
                    logprobs.extend(new);
                }
                emit("response.output_text.delta", data);
            }
            Part::Call(call) => self.call(call, emit),
            _ => {}
        }
    }

    fn is_in_text(&self) -> bool {
        let last = self.items.last().filter(|_| self.is_open);
        last.is_some_and(|item| matches!(item.said, Said::Text { .. }))
    }

    /// The item that a delta is of, and its index.
    fn open(
        &mut self,
        fits: impl Fn(&Said) -> bool,
        emit: Emit,
        new: impl FnOnce() -> Said,
    ) -> (usize, &mut Item) {
        if !(self.is_open && self.items.last().is_some_and(|item| fits(&item.said))) {
            self.close("completed", emit);
            let (idx, item) = (self.items.len(), Item::new(new()));
            emit("response.output_item.added", json!({"output_index": idx, "item": item.begun()}));
            let part = part_of(idx, &item.id, item.part());
            emit("response.content_part.added", part);
            self.items.push(item);
            self.is_open = true;
        }
        let idx = self.items.len() - 1;
        (idx, self.items.last_mut().expect("one was added if there was none"))
    }

    /// A call is complete when it comes.
    fn call(&mut self, call: Call, emit: Emit) {
        self.close("completed", emit);
        let call_id = call.id.clone().unwrap_or_else(|| format!("call_{}", random_hex()));
        let arguments = call.arguments.clone();
        let idx = self.items.len();
        let mut item = Item::new(Said::Call { call_id, call });
        emit("response.output_item.added", json!({"output_index": idx, "item": item.begun()}));
        let delta = json!({"item_id": item.id, "output_index": idx, "delta": arguments});
        emit("response.function_call_arguments.delta", delta);
        let done = json!({"item_id": item.id, "output_index": idx, "arguments": arguments});
        emit("response.function_call_arguments.done", done);
        item.status = "completed";
        emit("response.output_item.done", json!({"output_index": idx, "item": item.whole()}));
        self.items.push(item);
    }

    /// No more comes of the last item.
    fn close(&mut self, status: &'static str, emit: Emit) {
        let Some(idx) = self.items.len().checked_sub(1).filter(|_| self.is_open) else { return };
        self.is_open = false;
        let item = &mut self.items[idx];
        item.status = status;
        let mut data = json!({"item_id": item.id, "output_index": idx, "content_index": 0});
        let name = match &item.said {
            Said::Reasoning(text) => {
                data["text"] = text.as_str().into();
                "response.reasoning_text.done"
            }
            Said::Text { text, logprobs } => {
                data["text"] = text.as_str().into();
                data["logprobs"] = wire::token_logprobs(logprobs).into();
                "response.output_text.done"
            }
            Said::Call { .. } => return,
        };
        emit(name, data);
        emit("response.content_part.done", part_of(idx, &item.id, item.part()));
        emit("response.output_item.done", json!({"output_index": idx, "item": item.whole()}));
    }

    /// The answer has ended: the object, which is kept if it is to be.
    pub fn finish(&mut self, finished: &Finished, emit: Emit) -> Value {
        let is_cut = finished.reason == Reason::Length;
        let status = if is_cut { "incomplete" } else { "completed" };
        self.close(status, emit);
        let mut object = self.object();
        object["status"] = status.into();
        match is_cut {
            true => object["incomplete_details"] = json!({"reason": "max_output_tokens"}),
            false => object["completed_at"] = now_unix_s().into(),
        }
        object["usage"] = usage(finished);
        object["timings"] = wire::timings(finished);
        object["cache"] = wire::cache(finished.found.as_ref());
        self.keep(&object);
        object
    }

    fn keep(&mut self, object: &Value) {
        let Some(Keeping { app, caller, before, mut added }) = self.keeping.take() else { return };
        let mut turns = Turns::default();
        for item in &self.items {
            match &item.said {
                Said::Reasoning(text) => turns.reasoning(text),
                Said::Text { text, .. } => turns.answer(Content::Text(text.clone())),
                Said::Call { call_id, call } => {
                    turns.call(call_id.clone(), call.name.clone(), call.arguments.clone());
                }
            }
        }
        added.messages.extend(turns.finish());
        added.outputs = self.items.iter().map(Item::whole).collect();
        app.responses.keep(&caller, &self.id, object, before, added, &app.limits);
    }

    /// The answer has failed: the object, with what there is of it.
    pub fn fail(&mut self, failure: &Failure, emit: Emit) -> Value {
        self.close("incomplete", emit);
        let code = match failure.kind {
            Kind::TooMany => "rate_limit_exceeded",
            Kind::Invalid | Kind::TooLarge => "invalid_prompt",
            _ => "server_error",
        };
        let mut object = self.object();
        object["status"] = "failed".into();
        object["error"] = json!({"code": code, "message": failure.message});
        object
    }
}

fn delta_of(idx: usize, id: &str, delta: &str) -> Value {
    json!({"item_id": id, "output_index": idx, "content_index": 0, "delta": delta})
}

fn part_of(idx: usize, id: &str, part: Option<Value>) -> Value {
    json!({"item_id": id, "output_index": idx, "content_index": 0, "part": part})
}

/// Everything that is computed of a prompt goes into the cache.
fn usage(finished: &Finished) -> Value {
    let usage = finished.usage;
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.prompt_tokens.saturating_sub(usage.cached_tokens),
        },
        "output_tokens": usage.new_tokens,
        "output_tokens_details": {"reasoning_tokens": finished.reasoning_tokens},
        "total_tokens": u64::from(usage.prompt_tokens) + u64::from(usage.new_tokens),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(reason: Reason) -> Finished {
        Finished {
            reason,
            usage: protocol::Usage { prompt_tokens: 9, cached_tokens: 4, new_tokens: 3 },
            reasoning_tokens: 1,
            timings: protocol::Timings::default(),
            load_ms: 0.0,
            found: None,
            seed: 0,
        }
    }

    fn text(text: &str) -> Part {
        Part::Text { text: text.into(), logprobs: Vec::new() }
    }

    fn call(id: Option<&str>) -> Part {
        let (id, arguments) = (id.map(str::to_owned), "{\"a\":1}".to_owned());
        Part::Call(Call { index: 0, id, name: "f".into(), arguments })
    }

    /// The names of the events, each with the index of its item, and the object.
    fn made(parts: Vec<Part>, reason: Reason) -> (Vec<String>, Value) {
        let mut response = Response::new("tiny".into(), Settings::default(), None);
        let mut names = Vec::new();
        let mut emit =
            |name: &str, data: Value| names.push(format!("{name} {}", data["output_index"]));
        for part in parts {
            response.part(part, &mut emit);
        }
        let object = response.finish(&finished(reason), &mut emit);
        (names, object)
    }

    #[test]
    fn calls_are_items_of_their_own_between_others() {
        let parts = vec![text("so"), call(Some("c1")), call(None), text("on")];
        let (names, object) = made(parts, Reason::Calls);
        let message = |idx: usize| {
            [
                "output_item.added",
                "content_part.added",
                "output_text.delta",
                "output_text.done",
                "content_part.done",
                "output_item.done",
            ]
            .map(|name| format!("response.{name} {idx}"))
        };
        let call = |idx: usize| {
            [
                "output_item.added",
                "function_call_arguments.delta",
                "function_call_arguments.done",
                "output_item.done",
            ]
            .map(|name| format!("response.{name} {idx}"))
        };
        let expected = [message(0).as_slice(), &call(1), &call(2), &message(3)].concat();
        assert_eq!(names, expected);
        assert_eq!(object["status"], "completed");
        let [_, first, second, last] = &object["output"].as_array().unwrap()[..] else {
            panic!("{object}")
        };
        let id = first["id"].as_str().filter(|id| id.starts_with("fc_"));
        assert_eq!(
            first,
            &json!({"type": "function_call", "id": id, "call_id": "c1", "name": "f",
                    "arguments": "{\"a\":1}", "status": "completed"})
        );
        assert!(second["call_id"].as_str().unwrap().starts_with("call_"), "{second}");
        assert_eq!(last["content"][0]["text"], "on");
    }

    #[test]
    fn only_what_is_cut_off_is_incomplete() {
        let statuses = |parts: Vec<Part>| {
            let (_, object) = made(parts, Reason::Length);
            assert_eq!(object["status"], "incomplete");
            let items = object["output"].as_array().unwrap().clone();
            items.iter().map(|item| item["status"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(
            statuses(vec![Part::Reasoning("a".into()), text("b")]),
            ["completed", "incomplete"]
        );
        assert_eq!(statuses(vec![text("a"), call(None)]), ["completed", "completed"]);
        assert_eq!(statuses(vec![Part::Reasoning("a".into())]), ["incomplete"]);
    }

    #[test]
    fn nothing_said_is_no_item_and_tokens_are_counted() {
        let (names, object) = made(vec![text("")], Reason::Stop);
        assert_eq!((names.len(), &object["output"]), (0, &json!([])));
        let expected = json!({
            "input_tokens": 9,
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5},
            "output_tokens": 3,
            "output_tokens_details": {"reasoning_tokens": 1},
            "total_tokens": 12,
        });
        assert_eq!(object["usage"], expected);
    }
}
