//! Answers in Ollama's form, whole and as lines.

use std::time::Instant;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::time::{now, rfc3339};
use crate::failure::{Failure, Kind};
use crate::generation::{Answer, Answers, Call, Finished, Part, Reason, TokenLogprob};
use crate::http::stream::{Form as StreamForm, Frames, Writer, stream};

/// Whose answers they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `response` is a text.
    Generate,
    /// `message` is a message.
    Chat,
}

/// What is known before the answer.
#[derive(Debug, Clone)]
pub struct Head {
    /// Whose answer it is.
    pub form: Form,
    /// The model, as the request names it.
    pub model: String,
    /// When the request came.
    pub arrived: Instant,
}

/// A piece of an answer, or all of it.
#[derive(Debug, Default)]
struct Piece {
    text: String,
    thinking: String,
    calls: Vec<Call>,
    logprobs: Vec<TokenLogprob>,
}

impl Head {
    /// Sends answers in the form that was asked for.
    pub async fn answer(self, answers: Answers, is_streamed: bool) -> Result<Response, Failure> {
        if is_streamed {
            return Ok(stream(answers, Lines(self), StreamForm::Lines));
        }
        let mut answers = answers.collect().await?;
        let answer = answers.pop().ok_or_else(|| Failure::new(Kind::Ours, "there is no answer"))?;
        Ok(Json(self.whole(answer)).into_response())
    }

    /// What is answered when there is nothing to answer: a model was loaded or unloaded.
    pub fn without_answer(&self, reason: &str) -> Value {
        let mut line = self.line(&Piece::default());
        line["done"] = true.into();
        line["done_reason"] = reason.into();
        line
    }

    fn whole(&self, answer: Answer) -> Value {
        let Answer { reasoning, text, calls, logprobs, finished } = answer;
        let piece =
            Piece { text, thinking: reasoning, calls, logprobs: logprobs.unwrap_or_default() };
        let mut object = self.line(&piece);
        self.finish(&mut object, &finished);
        object
    }

    fn line(&self, piece: &Piece) -> Value {
        let mut line = json!({"model": self.model, "created_at": rfc3339(now())});
        let calls = || piece.calls.iter().map(call).collect::<Vec<_>>();
        match self.form {
            Form::Generate => {
                line["response"] = piece.text.as_str().into();
                if !piece.thinking.is_empty() {
                    line["thinking"] = piece.thinking.as_str().into();
                }
            }
            Form::Chat => {
                let mut message = json!({"role": "assistant", "content": piece.text});
                if !piece.thinking.is_empty() {
                    message["thinking"] = piece.thinking.as_str().into();
                }
                if !piece.calls.is_empty() {
                    message["tool_calls"] = calls().into();
                }
                line["message"] = message;
            }
        }
        if !piece.logprobs.is_empty() {
            line["logprobs"] = piece.logprobs.iter().map(logprob).collect();
        }
        line["done"] = false.into();
        line
    }

    /// The counters. Times are nanoseconds.
    fn finish(&self, line: &mut Value, finished: &Finished) {
        let ns = |ms: f64| (ms * 1e6) as u64;
        let total = self.arrived.elapsed().as_nanos();
        line["done"] = true.into();
        line["done_reason"] = match finished.reason {
            Reason::Length => "length",
            Reason::Stop | Reason::StopString(_) | Reason::Calls => "stop",
        }
        .into();
        line["total_duration"] = u64::try_from(total).unwrap_or(u64::MAX).into();
        line["load_duration"] = ns(finished.load_ms).into();
        line["prompt_eval_count"] = finished.usage.prompt_tokens.into();
        line["prompt_eval_duration"] = ns(finished.timings.prefill_ms).into();
        line["prompt_cached_count"] = finished.usage.cached_tokens.into();
        line["eval_count"] = finished.usage.new_tokens.into();
        line["eval_duration"] = ns(finished.timings.decode_ms).into();
    }
}

/// A call; its arguments are the text of an object, by the promise of whoever read them.
fn call(call: &Call) -> Value {
    let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
    let function = json!({"index": call.index, "name": call.name, "arguments": arguments});
    match &call.id {
        Some(id) => json!({"id": id, "function": function}),
        None => json!({"function": function}),
    }
}

fn logprob(logprob: &TokenLogprob) -> Value {
    let one = |logprob: &TokenLogprob| {
        let TokenLogprob { bytes, logprob: value, .. } = logprob;
        json!({"token": logprob.text(), "logprob": value, "bytes": bytes})
    };
    let mut object = one(logprob);
    if !logprob.top.is_empty() {
        object["top_logprobs"] = logprob.top.iter().map(one).collect();
    }
    object
}

/// Writes the lines of a stream.
struct Lines(Head);

impl Writer for Lines {
    fn part(&mut self, _: usize, part: Part, frames: &mut Frames) -> bool {
        let piece = match part {
            Part::Reasoning(thinking) => Piece { thinking, ..Piece::default() },
            Part::Text { text, logprobs } => Piece { text, logprobs, ..Piece::default() },
            Part::Call(call) => Piece { calls: vec![call], ..Piece::default() },
            Part::Finished(finished) => {
                let mut line = self.0.line(&Piece::default());
                self.0.finish(&mut line, &finished);
                frames.line(&line);
                return true;
            }
            Part::Failed(failure) => {
                frames.line(&super::error(&failure));
                return false;
            }
            _ => return true,
        };
        frames.line(&self.0.line(&piece));
        true
    }

    /// Readers of lines know no comments: a piece without text.
    fn idle(&mut self, frames: &mut Frames) {
        frames.line(&self.0.line(&Piece::default()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_objects_in_the_message() {
        let head = Head { form: Form::Chat, model: "tiny".into(), arrived: Instant::now() };
        let call = Call { index: 1, id: None, name: "f".into(), arguments: "{\"a\": [1]}".into() };
        let mut frames = Frames::default();
        Lines(head).part(0, Part::Call(call), &mut frames);
        let line: Value = serde_json::from_str(&frames.text()).unwrap();
        let function = json!({"index": 1, "name": "f", "arguments": {"a": [1]}});
        assert_eq!(line["message"]["tool_calls"], json!([{"function": function}]));
        assert_eq!((&line["message"]["content"], &line["done"]), (&json!(""), &json!(false)));
    }
}
