//! From the ids of one answer to its parts: reasoning, text and calls, with stop strings applied to
//! the text, and the number of calls bounded.
//!
//! Invariants: no call comes out of a tool that may not be called; text of a stop string and after
//! it never comes out; what is held back for one that does not come is flushed at the end; log
//! probabilities come with the text that they belong to.

use text::{AnswerStream, StopMatcher};

use super::{Call, Chat, Form, Part, Reason, TokenLogprob};
use crate::failure::{Failure, Kind};
use crate::prompter::Prompter;

/// Reads one answer.
pub(super) struct Reader<'a> {
    prompter: &'a Prompter,
    stream: AnswerStream<'a>,
    n_calls: usize,
    stops: StopMatcher,
    form: &'a Form,
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
        form: &'a Form,
    ) -> Result<Self, Failure> {
        let stops = self::stops(stops)?;
        let stream = match chat {
            Some(chat) if form.may_be_said() => {
                prompter.parser_beside_a_form(&chat.tail, &chat.tools)?
            }
            Some(chat) => prompter.parser(&chat.tail, &chat.tools)?,
            None => prompter.plain_parser()?,
        };
        Ok(Self { prompter, stream, n_calls: 0, stops, form, ended: None, logprobs: Vec::new() })
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
                bytes: self.stream.bytes(token),
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
        self.n_calls > 0
    }

    /// Whether the last token belonged to the reasoning.
    pub fn in_reasoning(&self) -> bool {
        self.stream.in_reasoning()
    }

    /// A call that is none: the text of one. A grammar keeps models from it, but parsers read
    /// calls in more spellings than a grammar knows.
    fn written(&self, call: &text::Call) -> String {
        let arguments = serde_json::from_str(&call.arguments).unwrap_or_default();
        let syntax = self.prompter.calls();
        syntax.map(|syntax| syntax.render(&[(&call.name, &arguments)])).unwrap_or_default()
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
                text::Part::Call(call) if !self.form.allows(&call.name) => self.written(&call),
                text::Part::Call(text::Call { index: _, id, name, arguments }) => {
                    self.logprobs.clear();
                    let index = self.n_calls;
                    self.n_calls += 1;
                    let call = Part::Call(Call { index, id, name, arguments });
                    if !self.form.has_one_call {
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use hub::ModelFolder;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_call_that_is_not_allowed_is_text_and_others_are_counted_without_it() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        let prompter = Prompter::load(&ModelFolder::open(&demo).unwrap()).unwrap();
        let tools = ["f", "g"].map(|name| json!({"type": "function", "function": {"name": name}}));
        let call = |name: &str| {
            let arguments = json!({"a": 1}).as_object().unwrap().clone();
            prompter.calls().unwrap().render(&[(name, &arguments)])
        };
        let answer = ["g", "f"].map(call).join("\n");
        let read = |allowed: &[&str]| {
            let allowed = allowed.iter().map(|name| (*name).to_owned()).collect();
            let form = Form { allowed, ..Form::default() };
            let chat = Chat { tail: String::new(), tools: Arc::from(tools.as_slice()) };
            let mut reader = Reader::new(&prompter, Some(&chat), &[], &form).unwrap();
            let tokens = prompter.raw(&answer).unwrap().tokens;
            let mut parts: Vec<_> =
                tokens.into_iter().flat_map(|token| reader.push(token, None, &[], false)).collect();
            parts.extend(reader.finish());
            let shown = |part: Part| match part {
                Part::Text { text, .. } => text.trim().to_owned(),
                Part::Call(call) => format!("{} {}", call.index, call.name),
                part => panic!("{part:?}"),
            };
            (parts.into_iter().map(shown).collect::<Vec<_>>(), reader.has_called())
        };
        assert_eq!(read(&[]), (vec!["0 g".into(), "1 f".into()], true));
        assert_eq!(read(&["f"]), (vec![call("g"), "0 f".into()], true));
        assert_eq!(read(&["h"]), (vec![call("g"), call("f")], false));
    }
}
