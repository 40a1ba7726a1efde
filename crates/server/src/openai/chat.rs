//! `/v1/chat/completions`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::form;
use super::messages::{messages, tools};
use super::options::{self, Streaming};
use super::wire;
use crate::failure::Failure;
use crate::generation::{Answer, Calls, Finished, Form, Input, Part, Request, Tools};
use crate::http::body::Body;
use crate::http::fields::Fields;
use crate::http::keys::Caller;
use crate::http::stream::{self, Frames, SETTLE_PATIENCE, Writer, stream};
use crate::http::{App, new_id, now_unix_s};
use crate::prompter::Conversation;

/// Answers a conversation.
pub async fn completions(
    State(app): State<App>,
    caller: Caller,
    Body(mut fields): Body,
) -> Result<Response, Failure> {
    let (request, streaming) = request(&mut fields, &app, &caller)?;
    fields.end()?;
    let (n_answers, calls) = (request.n_answers, request.form.calls.clone());
    let mut answers = app.generator.start(request).await?;
    answers.settle(SETTLE_PATIENCE).await?;
    let head = Head {
        id: new_id("chatcmpl"),
        created: now_unix_s(),
        model: answers.model.clone(),
        has_usage: streaming.has_usage,
        calls,
    };
    if streaming.is_on {
        let writer = Chunks { head, n_answers, finished: Vec::new() };
        return Ok(stream(answers, writer, stream::Form::Events));
    }
    let answers = answers.collect().await?;
    Ok(Json(head.object(&answers)).into_response())
}

/// The request in no dialect.
fn request(
    fields: &mut Fields,
    app: &App,
    caller: &Caller,
) -> Result<(Request, Streaming), Failure> {
    let model = options::model(fields, app)?;
    let (conversation, form) = conversation(fields)?;
    let mut request = Request::new(model, Input::Chat(Box::new(conversation)));
    request.form = form;
    let streaming = options::streaming(fields)?;
    // The older name of the same.
    let max_tokens = fields.u32("max_tokens", 1)?;
    let newer = fields.u32("max_completion_tokens", 1)?;
    if let (Some(_), Some(_)) = (max_tokens, newer) {
        let reason = "and max_completion_tokens are the same: send one of them";
        return Err(fields.invalid("max_tokens", reason));
    }
    request.max_tokens = max_tokens.or(newer);
    let has_logprobs = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0, protocol::MAX_TOP_LOGPROBS.into())?;
    if top.is_some() && !has_logprobs {
        return Err(fields.invalid("top_logprobs", "needs logprobs to be true"));
    }
    request.top_logprobs = has_logprobs.then(|| top.unwrap_or(0) as u32);
    request.form.said = form::response_format(fields)?;
    fields.only("modalities", &[json!(["text"])])?;
    fields.only("verbosity", &[json!("medium")])?;
    fields.refuse("audio", "models here make text")?;
    fields.refuse("prediction", "there is no use of predicted outputs yet")?;
    fields.refuse("web_search_options", "nothing here opens the network")?;
    options::apply(&mut request, fields, caller)?;
    Ok((request, streaming))
}

/// What a template makes a prompt of, and how tools are called.
pub fn conversation(fields: &mut Fields) -> Result<(Conversation, Form), Failure> {
    let messages = messages(fields)?;
    let Tools { list: tools, calls, allowed, has_one_call } = tools(fields)?;
    let mut kwargs = Map::new();
    options::effort(fields, "reasoning_effort", &mut kwargs)?;
    options::kwargs(fields, &mut kwargs)?;
    let conversation = Conversation { messages, tools, kwargs, ..Conversation::default() };
    let max_reasoning_tokens = fields.u32("thinking_budget", 0)?;
    Ok((conversation, Form { said: None, calls, allowed, has_one_call, max_reasoning_tokens }))
}

/// What all objects of one answer share.
struct Head {
    id: String,
    created: u64,
    model: String,
    has_usage: bool,
    /// How tools were to be called.
    calls: Calls,
}

impl Head {
    fn object(&self, answers: &[Answer]) -> Value {
        let finished: Vec<_> = answers.iter().map(|answer| answer.finished.clone()).collect();
        let choices: Vec<_> =
            answers.iter().enumerate().map(|(idx, answer)| self.choice(idx, answer)).collect();
        let mut object = json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": wire::usage(&finished, answers.len()),
        });
        extras(&mut object, &finished);
        object
    }

    fn choice(&self, idx: usize, answer: &Answer) -> Value {
        let calls: Vec<_> = answer.calls.iter().map(wire::call).collect();
        let content = match answer.text.is_empty() && !calls.is_empty() {
            true => Value::Null,
            false => answer.text.as_str().into(),
        };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !answer.reasoning.is_empty() {
            message["reasoning_content"] = answer.reasoning.as_str().into();
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        let logprobs = match &answer.logprobs {
            Some(logprobs) => wire::logprobs(logprobs),
            None => Value::Null,
        };
        json!({
            "index": idx,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": wire::finish_reason(answer.finished.reason, &self.calls),
        })
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        // Announced chunks have the field from the first one on.
        if self.has_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

/// Fields of our own: where the time went, and what the cache had.
fn extras(object: &mut Value, finished: &[Finished]) {
    if let Some(first) = finished.first() {
        object["timings"] = wire::timings(first);
        object["cache"] = wire::cache(first.found.as_ref());
    }
}

/// Writes the chunks of a stream.
struct Chunks {
    head: Head,
    n_answers: usize,
    finished: Vec<(usize, Finished)>,
}

impl Chunks {
    fn delta(&self, frames: &mut Frames, idx: usize, delta: Value, logprobs: Value) {
        let choices = json!([
            {"index": idx, "delta": delta, "logprobs": logprobs, "finish_reason": null}
        ]);
        frames.event(None, &self.head.chunk(choices));
    }
}

impl Writer for Chunks {
    fn begin(&mut self, frames: &mut Frames) {
        for idx in 0..self.n_answers {
            let delta = json!({"role": "assistant", "content": ""});
            self.delta(frames, idx, delta, Value::Null);
        }
    }

    fn part(&mut self, idx: usize, part: Part, frames: &mut Frames) -> bool {
        match part {
            Part::Reasoning(text) => {
                self.delta(frames, idx, json!({"reasoning_content": text}), Value::Null);
            }
            Part::Text { text, logprobs } => {
                let logprobs = match logprobs.as_slice() {
                    [] => Value::Null,
                    logprobs => wire::logprobs(logprobs),
                };
                self.delta(frames, idx, json!({"content": text}), logprobs);
            }
            Part::Call(call) => {
                let mut object = wire::call(&call);
                object["index"] = call.index.into();
                self.delta(frames, idx, json!({"tool_calls": [object]}), Value::Null);
            }
            Part::Finished(finished) => {
                let reason = wire::finish_reason(finished.reason, &self.head.calls);
                let choices = json!([
                    {"index": idx, "delta": {}, "logprobs": null, "finish_reason": reason}
                ]);
                self.finished.push((idx, *finished));
                let mut chunk = self.head.chunk(choices);
                if self.finished.len() == self.n_answers {
                    self.finished.sort_by_key(|(idx, _)| *idx);
                    extras(&mut chunk, &[self.finished[0].1.clone()]);
                }
                frames.event(None, &chunk);
            }
            Part::Failed(failure) => {
                frames.event(None, &super::error(&failure));
                return false;
            }
            progress => {
                frames.progress(&progress);
            }
        }
        true
    }

    fn end(&mut self, frames: &mut Frames) {
        if self.head.has_usage {
            let finished: Vec<_> = self.finished.iter().map(|(_, f)| f.clone()).collect();
            let mut chunk = self.head.chunk(json!([]));
            chunk["usage"] = wire::usage(&finished, self.n_answers);
            frames.event(None, &chunk);
        }
        frames.data("[DONE]");
    }
}
