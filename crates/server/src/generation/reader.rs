//! From the ids of one answer to its parts: reasoning, text and calls, with stop strings applied to
//! the text.
//!
//! Invariants: text of a stop string and after it never comes out; what is held back for one that
//! does not come is flushed at the end; log probabilities come with the text that they belong to.

use text::{Detokenizer, StopMatcher};

use super::{Part, TokenLogprob};
use crate::failure::{Failure, Kind};
use crate::prompter::Prompter;
use crate::thinking::{Kind as Said, ThinkingSplitter};

/// Reads one answer.
pub(super) struct Reader<'a> {
    prompter: &'a Prompter,
    detokenizer: Detokenizer<'a>,
    /// None: everything is text.
    splitter: Option<ThinkingSplitter>,
    stops: StopMatcher,
    stopped: Option<usize>,
    /// Of tokens whose text has not come out.
    logprobs: Vec<TokenLogprob>,
}

impl<'a> Reader<'a> {
    /// `splits_after`: the prompt's text, if reasoning is told from the answer.
    pub fn new(
        prompter: &'a Prompter,
        splits_after: Option<&str>,
        stops: &[String],
    ) -> Result<Self, Failure> {
        let stops = StopMatcher::new(stops).map_err(|e| {
            let failure = Failure::new(Kind::Invalid, e.to_string());
            Failure { field: Some("stop".into()), ..failure }
        })?;
        Ok(Self {
            prompter,
            detokenizer: prompter.decoder()?,
            splitter: splits_after.map(ThinkingSplitter::after_prompt),
            stops,
            stopped: None,
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
        if self.stopped.is_some() || is_stop_token {
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
        let text = self.detokenizer.push(token);
        let said = self.split(&text);
        self.parts(said)
    }

    /// The answer has ended: what was held back.
    pub fn finish(&mut self) -> Vec<Part> {
        if self.stopped.is_some() {
            return Vec::new();
        }
        let text = self.detokenizer.finish();
        let mut said = self.split(&text);
        if let Some(splitter) = &mut self.splitter {
            said.extend(splitter.finish());
        }
        let mut parts = self.parts(said);
        if self.stopped.is_none() {
            let text = self.stops.finish();
            let logprobs = std::mem::take(&mut self.logprobs);
            if !text.is_empty() || !logprobs.is_empty() {
                parts.push(Part::Text { text, logprobs });
            }
        }
        parts
    }

    /// Which stop string has ended the answer.
    pub fn stopped(&self) -> Option<usize> {
        self.stopped
    }

    fn split(&mut self, text: &str) -> Vec<(Said, String)> {
        match &mut self.splitter {
            Some(splitter) => splitter.push(text),
            None if text.is_empty() => Vec::new(),
            None => vec![(Said::Answer, text.to_owned())],
        }
    }

    fn parts(&mut self, said: Vec<(Said, String)>) -> Vec<Part> {
        let mut parts = Vec::new();
        for (kind, text) in said {
            if kind == Said::Thinking {
                // Only those of the answer are shown.
                self.logprobs.clear();
                parts.push(Part::Reasoning(text));
                continue;
            }
            let passed = self.stops.push(&text);
            if !passed.text.is_empty() {
                let logprobs = std::mem::take(&mut self.logprobs);
                parts.push(Part::Text { text: passed.text, logprobs });
            }
            if passed.stopped.is_some() {
                self.stopped = passed.stopped;
                break;
            }
        }
        parts
    }
}
