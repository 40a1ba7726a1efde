//! From the ids of one answer to its parts: reasoning, text and calls, with stop strings applied to
//! the text, and the number of calls bounded.
//!
//! Invariants: text of a stop string and after it never comes out; what is held back for one that
//! does not come is flushed at the end; log probabilities come with the text that they belong to.

use text::{AnswerStream, StopMatcher};

use super::{Call, Chat, Form, Part, Reason, TokenLogprob};
use crate::failure::{Failure, Kind};
use crate::prompter::Prompter;

/// Reads one answer.
pub(super) struct Reader<'a> {
    prompter: &'a Prompter,
    stream: AnswerStream<'a>,
    has_called: bool,
    stops: StopMatcher,
    has_one_call: bool,
    /// Why nothing more comes of it.
    ended: Option<Reason>,
    /// Of tokens whose text has not come out.
    logprobs: Vec<TokenLogprob>,
}

/// What looks for stop strings.
pub(super) fn stops(stops: &[String]) -> Result<StopMatcher, Failure> {
    StopMatcher::new(stops).map_err(|e| {
        let failure = Failure::new(Kind::Invalid, e.to_string());
        Failure { field: Some("stop".into()), ..failure }
    })
}

impl<'a> Reader<'a> {
    /// Without a `chat` everything is text.
    pub fn new(
        prompter: &'a Prompter,
        chat: Option<&Chat>,
        stops: &[String],
        form: &Form,
    ) -> Result<Self, Failure> {
        let stops = self::stops(stops)?;
        let stream = match chat {
            Some(chat) => prompter.parser(&chat.tail, &chat.tools)?,
            None => prompter.plain_parser()?,
        };
        Ok(Self {
            prompter,
            stream,
            has_called: false,
            stops,
            has_one_call: form.has_one_call,
            ended: None,
            logprobs: Vec::new(),
        })
    }

    /// Takes the next token; `logprob` where they were asked for.
    pub fn push(
        &mut self,
        token: u32,
        logprob: Option<f32>,
        top: &[(u32, f32)],
        is_stop_token: bool,
    ) -> Vec<Part> {
        if self.ended.is_some() || is_stop_token {
            return Vec::new();
        }
        if let Some(logprob) = logprob {
            let described = |token, logprob| TokenLogprob {
                token,
                text: self.prompter.piece(token),
                logprob,
                top: Vec::new(),
            };
            let top = top.iter().map(|(token, logprob)| described(*token, *logprob)).collect();
            self.logprobs.push(TokenLogprob { top, ..described(token, logprob) });
        }
        let said = self.stream.push(token);
        self.parts(said)
    }

    /// The answer has ended: what was held back.
    pub fn finish(&mut self) -> Vec<Part> {
        if self.ended.is_some() {
            return Vec::new();
        }
        let said = self.stream.finish();
        let mut parts = self.parts(said);
        if self.ended.is_none() {
            let text = self.stops.finish();
            let logprobs = std::mem::take(&mut self.logprobs);
            if !text.is_empty() || !logprobs.is_empty() {
                parts.push(Part::Text { text, logprobs });
            }
        }
        parts
    }

    /// What has ended the answer, if it was not the model.
    pub fn ended(&self) -> Option<Reason> {
        self.ended
    }

    /// Whether a tool was called.
    pub fn has_called(&self) -> bool {
        self.has_called
    }

    /// Whether the last token belonged to the reasoning.
    pub fn in_reasoning(&self) -> bool {
        self.stream.in_reasoning()
    }

    fn parts(&mut self, said: Vec<text::Part>) -> Vec<Part> {
        let mut parts = Vec::new();
        for part in said {
            let text = match part {
                text::Part::Text(text) => text,
                text::Part::Reasoning(text) => {
                    // Only those of the answer are shown.
                    self.logprobs.clear();
                    parts.push(Part::Reasoning(text));
                    continue;
                }
                text::Part::Call(text::Call { index, id, name, arguments }) => {
                    self.logprobs.clear();
                    self.has_called = true;
                    let call = Part::Call(Call { index, id, name, arguments });
                    if !self.has_one_call {
                        parts.push(call);
                        continue;
                    }
                    let text = self.stops.finish();
                    if !text.is_empty() {
                        parts.push(Part::Text { text, logprobs: Vec::new() });
                    }
                    parts.push(call);
                    self.ended = Some(Reason::Calls);
                    break;
                }
            };
            let passed = self.stops.push(&text);
            if !passed.text.is_empty() {
                let logprobs = std::mem::take(&mut self.logprobs);
                parts.push(Part::Text { text: passed.text, logprobs });
            }
            if let Some(idx) = passed.stopped {
                self.ended = Some(Reason::StopString(idx));
                break;
            }
        }
        parts
    }
}
