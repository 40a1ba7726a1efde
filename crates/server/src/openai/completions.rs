//! `/v1/completions`: texts that are continued as they are.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::options;
use super::wire;
use crate::failure::Failure;
use crate::generation::{Answer, Calls, Finished, Input, Part, Request, TokenLogprob};
use crate::http::body::Body;
use crate::http::fields::{Fields, token_ids};
use crate::http::keys::Caller;
use crate::http::stream::{Form, Frames, SETTLE_PATIENCE, Writer, stream};
use crate::http::{App, new_id, now_unix_s};

/// As OpenAI has it.
const DEFAULT_MAX_TOKENS: u32 = 16;
pub const MAX_LOGPROBS: u64 = 20;

/// Continues texts.
pub async fn completions(
    State(app): State<App>,
    caller: Caller,
    Body(mut fields): Body,
) -> Result<Response, Failure> {
    let model = options::model(&mut fields, &app)?;
    let mut request = Request::new(model, Input::Tokens(Vec::new()));
    request.inputs = inputs(&mut fields)?;
    let streaming = options::streaming(&mut fields)?;
    request.max_tokens = Some(fields.u32("max_tokens", 1)?.unwrap_or(DEFAULT_MAX_TOKENS));
    let logprobs = fields.integer("logprobs", 0, MAX_LOGPROBS)?;
    request.top_logprobs = logprobs.map(|n| n as u32);
    fields.only("echo", &[json!(false)])?;
    fields.only("best_of", &[json!(1)])?;
    fields.refuse("suffix", "models here continue texts, and fill no gaps")?;
    options::apply(&mut request, &mut fields, &caller)?;
    fields.end()?;
    let n_answers = request.n_answers;
    let mut answers = app.generator.start(request).await?;
    answers.settle(SETTLE_PATIENCE).await?;
    let head = Head {
        id: new_id("cmpl"),
        created: now_unix_s(),
        model: answers.model.clone(),
        n_answers,
        has_usage: streaming.has_usage,
    };
    if streaming.is_on {
        let n_choices = answers.n_answers;
        let offsets = vec![0; n_choices];
        let writer = Chunks { head, n_choices, offsets, finished: Vec::new() };
        return Ok(stream(answers, writer, Form::Events));
    }
    let answers = answers.collect().await?;
    Ok(Json(head.object(&answers)).into_response())
}

/// A text, texts, ids, or lists of ids.
pub fn inputs(fields: &mut Fields) -> Result<Vec<Input>, Failure> {
    let bad = "must be a string, a list of strings, a list of token ids, or a list of those";
    let Some(prompt) = fields.take("prompt") else {
        return Err(fields.invalid("prompt", "is missing"));
    };
    let inputs = match prompt {
        Value::String(text) => Some(vec![Input::Text(text)]),
        Value::Array(values) => match values.first() {
            Some(Value::Number(_)) => token_ids(&values).map(|ids| vec![Input::Tokens(ids)]),
            _ => values
                .into_iter()
                .map(|value| match value {
                    Value::String(text) => Some(Input::Text(text)),
                    Value::Array(values) => token_ids(&values).map(Input::Tokens),
                    _ => None,
                })
                .collect(),
        },
        _ => None,
    };
    let is_empty = |input: &Input| matches!(input, Input::Tokens(ids) if ids.is_empty());
    let inputs = inputs.filter(|inputs| !inputs.is_empty() && !inputs.iter().any(is_empty));
    inputs.ok_or_else(|| fields.invalid("prompt", bad))
}

struct Head {
    id: String,
    created: u64,
    model: String,
    /// Answers to each prompt.
    n_answers: usize,
    has_usage: bool,
}

impl Head {
    fn with(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    fn object(&self, answers: &[Answer]) -> Value {
        let finished: Vec<_> = answers.iter().map(|answer| answer.finished.clone()).collect();
        let choice = |(idx, answer): (usize, &Answer)| {
            json!({
                "index": idx,
                "text": answer.text,
                "logprobs": answer.logprobs.as_deref().map(|l| logprobs(l, &mut 0)),
                "finish_reason": wire::finish_reason(answer.finished.reason, &Calls::Free),
            })
        };
        let mut object = self.with(answers.iter().enumerate().map(choice).collect());
        object["usage"] = wire::usage(&finished, self.n_answers);
        extras(&mut object, finished.first());
        object
    }
}

fn extras(object: &mut Value, first: Option<&Finished>) {
    if let Some(first) = first {
        object["timings"] = wire::timings(first);
        object["cache"] = wire::cache(first.found.as_ref());
    }
}

/// The older form: lists side by side. `offset` counts the characters of the text before.
fn logprobs(logprobs: &[TokenLogprob], offset: &mut usize) -> Value {
    let mut offsets = Vec::with_capacity(logprobs.len());
    for logprob in logprobs {
        offsets.push(*offset);
        *offset += logprob.text().chars().count();
    }
    let top = |logprob: &TokenLogprob| -> Value {
        let pairs = logprob.top.iter().map(|top| (top.text().into_owned(), json!(top.logprob)));
        Value::Object(pairs.collect())
    };
    json!({
        "tokens": logprobs.iter().map(TokenLogprob::text).collect::<Vec<_>>(),
        "token_logprobs": logprobs.iter().map(|logprob| logprob.logprob).collect::<Vec<_>>(),
        "top_logprobs": logprobs.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

struct Chunks {
    head: Head,
    n_choices: usize,
    /// Characters that each answer has so far, where log probabilities tell them.
    offsets: Vec<usize>,
    finished: Vec<(usize, Finished)>,
}

impl Chunks {
    fn chunk(&self, idx: usize, text: &str, logprobs: Value, reason: Option<&str>) -> Value {
        let mut chunk = self.head.with(json!([
            {"index": idx, "text": text, "logprobs": logprobs, "finish_reason": reason}
        ]));
        if self.head.has_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

impl Writer for Chunks {
    fn part(&mut self, idx: usize, part: Part, frames: &mut Frames) -> bool {
        match part {
            Part::Text { text, logprobs: of_tokens } => {
                let logprobs = match (of_tokens.as_slice(), self.offsets.get_mut(idx)) {
                    ([], _) | (_, None) => Value::Null,
                    (of_tokens, Some(offset)) => logprobs(of_tokens, offset),
                };
                frames.event(None, &self.chunk(idx, &text, logprobs, None));
            }
            Part::Finished(finished) => {
                let reason = wire::finish_reason(finished.reason, &Calls::Free);
                let mut chunk = self.chunk(idx, "", Value::Null, Some(reason));
                self.finished.push((idx, *finished));
                if self.finished.len() == self.n_choices {
                    self.finished.sort_by_key(|(idx, _)| *idx);
                    extras(&mut chunk, self.finished.first().map(|(_, finished)| finished));
                }
                frames.event(None, &chunk);
            }
            Part::Failed(failure) => {
                frames.event(None, &super::error(&failure));
                return false;
            }
            // Nothing but text is told apart in completions.
            Part::Reasoning(_) | Part::Call(_) => {}
            progress => {
                frames.progress(&progress);
            }
        }
        true
    }

    fn end(&mut self, frames: &mut Frames) {
        if self.head.has_usage {
            let finished: Vec<_> = self.finished.iter().map(|(_, f)| f.clone()).collect();
            let mut chunk = self.head.with(json!([]));
            chunk["usage"] = wire::usage(&finished, self.head.n_answers);
            frames.event(None, &chunk);
        }
        frames.data("[DONE]");
    }
}
