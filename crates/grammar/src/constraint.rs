//! What one answer may go on with.

use std::sync::Arc;

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use crate::compile::told;
use crate::marker::{Found, Marker};
use crate::vocabulary::{Vocabulary, is_blank};

/// Blanks that may come between reasoning and answer, in bytes.
const MAX_BLANK_BYTES: usize = 16;

/// The tokens that may come next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    tokens: SimpleVob,
}

/// Follows one answer.
pub struct Constraint {
    /// None where anything may follow the reasoning.
    matcher: Option<Matcher>,
    vocabulary: Arc<Vocabulary>,
    stop_tokens: Vec<u32>,
    preamble: Option<Preamble>,
    phase: Phase,
    /// Tokens of the reasoning, its closing tag included.
    n_reasoned: u32,
}

/// The reasoning before the grammar begins.
#[derive(Clone)]
pub(crate) struct Preamble {
    pub opens: Option<Arc<Marker>>,
    pub closes: Arc<Marker>,
    pub max_tokens: Option<u32>,
}

/// Tokens that may have been drawn and are not known here yet.
const MAX_UNKNOWN_TOKENS: u32 = 2;

/// Where an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing but a part of this length of the opening tag.
    Opening(usize),
    /// In the reasoning, with a part of the closing tag at its end.
    Reasoning(usize),
    /// Reasoning and so many bytes of blanks.
    Blanks(usize),
    /// In the grammar.
    Inside,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").field("phase", &self.phase).finish_non_exhaustive()
    }
}

impl Mask {
    /// Whether a token may come.
    pub fn allows(&self, token: u32) -> bool {
        (token as usize) < self.tokens.len() && self.tokens.is_allowed(token)
    }

    /// The same of the first tokens, one for each element.
    pub fn fill(&self, allowed: &mut [bool]) {
        let (words, bits) = (self.tokens.as_slice(), 32);
        for (word, allowed) in words.iter().zip(allowed.chunks_mut(bits)) {
            for (bit, allowed) in allowed.iter_mut().enumerate() {
                *allowed = word >> bit & 1 == 1;
            }
        }
    }
}

impl Constraint {
    pub(crate) fn new(
        matcher: Option<Matcher>,
        vocabulary: Arc<Vocabulary>,
        stop_tokens: Vec<u32>,
        preamble: Option<Preamble>,
    ) -> Self {
        let phase = match &preamble {
            None => Phase::Inside,
            Some(Preamble { opens: None, .. }) => Phase::Reasoning(0),
            Some(Preamble { opens: Some(_), .. }) => Phase::Opening(0),
        };
        Self { matcher, vocabulary, stop_tokens, preamble, phase, n_reasoned: 0 }
    }

    /// Whether what may come next has to be known before it is drawn, and all before it to be
    /// accepted. Otherwise anything may come, also after a token that is not known yet.
    pub fn needs_mask(&self) -> bool {
        self.matcher.is_some() || self.is_bounded_after(MAX_UNKNOWN_TOKENS)
    }

    /// Whether the reasoning has to end, were it so many tokens longer.
    fn is_bounded_after(&self, n_more: u32) -> bool {
        let max = self.preamble.as_ref().and_then(|preamble| preamble.max_tokens);
        let is_reasoning = matches!(self.phase, Phase::Reasoning(_));
        is_reasoning && max.is_some_and(|max| self.n_reasoned.saturating_add(n_more) >= max)
    }

    /// The tokens that may come next: at least one.
    ///
    /// # Errors
    /// The grammar is too complex, or lets nothing follow here. There is no way on.
    pub fn mask(&mut self) -> Result<Mask, String> {
        let mut tokens = match (self.phase, &self.preamble) {
            (Phase::Reasoning(at), Some(preamble)) if self.is_bounded_after(0) => {
                let mut tokens = SimpleVob::alloc(self.vocabulary.n_rows() + 1);
                let closing = preamble.closes.continuing(at, &self.vocabulary);
                closing.iter().for_each(|token| tokens.allow_token(*token));
                tokens
            }
            (Phase::Reasoning(at), Some(preamble)) if self.matcher.is_some() => {
                let mut tokens = self.vocabulary.known().clone();
                let crossing = preamble.closes.crossing(at, &self.vocabulary);
                let refused = crossing.iter().chain(&self.stop_tokens);
                refused.for_each(|token| tokens.disallow_token(*token));
                tokens
            }
            (Phase::Opening(at @ 1..), Some(Preamble { opens: Some(opens), .. })) => {
                let mut tokens = SimpleVob::alloc(self.vocabulary.n_rows() + 1);
                let continuing = opens.continuing(at, &self.vocabulary);
                continuing.iter().for_each(|token| tokens.allow_token(*token));
                tokens
            }
            _ => self.mask_of_grammar()?,
        };
        match (self.phase, &self.preamble) {
            (Phase::Opening(0), Some(Preamble { opens: Some(opens), .. })) => {
                let opening = opens.continuing(0, &self.vocabulary);
                opening.iter().for_each(|token| tokens.allow_token(*token));
            }
            (Phase::Blanks(n), _) if n < MAX_BLANK_BYTES => tokens.or(self.vocabulary.blank()),
            _ => {}
        }
        if tokens.is_zero() {
            return Err("allows no token of this model after what was said".to_owned());
        }
        Ok(Mask { tokens })
    }

    fn mask_of_grammar(&mut self) -> Result<SimpleVob, String> {
        let Some(matcher) = &mut self.matcher else { return Ok(self.vocabulary.known().clone()) };
        let mut tokens = matcher.compute_mask().map_err(|e| told(&e.to_string()))?;
        let end = self.vocabulary.end();
        let may_end = tokens.is_allowed(end);
        tokens.disallow_token(end);
        for &token in &self.stop_tokens {
            if may_end {
                tokens.allow_token(token);
            } else if !self.vocabulary.is_special(token) {
                // A stop token that is text, too: a part of the answer must not end it.
                tokens.disallow_token(token);
            }
        }
        Ok(tokens)
    }

    /// Goes on with a token that the last mask allowed.
    ///
    /// # Errors
    /// The grammar is too complex, or does not allow the token. There is no way on.
    pub fn accept(&mut self, token: u32) -> Result<(), String> {
        if self.stop_tokens.contains(&token) {
            return Ok(());
        }
        self.n_reasoned += u32::from(matches!(self.phase, Phase::Reasoning(_)));
        let Some(preamble) = self.preamble.clone() else { return self.consume(token) };
        let vocabulary = &self.vocabulary;
        match (self.phase, &preamble.opens) {
            (Phase::Reasoning(at), _) => {
                self.phase = match preamble.closes.step(at, token, vocabulary) {
                    Found::Part(at) => Phase::Reasoning(at),
                    Found::Whole { .. } => Phase::Blanks(0),
                };
                Ok(())
            }
            (Phase::Opening(at), Some(opens)) if opens.continues(at, token, vocabulary) => {
                match opens.step(at, token, vocabulary) {
                    Found::Whole { .. } => self.phase = Phase::Reasoning(0),
                    Found::Part(_)
                        if at == 0 && self.matcher.is_some() && self.grammar_allows(token)? =>
                    {
                        return self.consume(token);
                    }
                    Found::Part(at) => self.phase = Phase::Opening(at),
                }
                Ok(())
            }
            (Phase::Blanks(n), _) if !self.grammar_allows(token)? => {
                let text = self.vocabulary.text(token);
                if text.is_empty() || !is_blank(text) {
                    return Err(format!("does not allow token {token}"));
                }
                self.phase = Phase::Blanks(n + text.len());
                Ok(())
            }
            _ => self.consume(token),
        }
    }

    fn grammar_allows(&mut self, token: u32) -> Result<bool, String> {
        let Some(matcher) = &mut self.matcher else { return Ok(true) };
        let n = matcher.validate_tokens(&[token]).map_err(|e| told(&e.to_string()))?;
        Ok(n == 1)
    }

    fn consume(&mut self, token: u32) -> Result<(), String> {
        self.phase = Phase::Inside;
        match &mut self.matcher {
            None => Ok(()),
            Some(matcher) => matcher.consume_token(token).map_err(|e| told(&e.to_string())),
        }
    }

    /// Whether the grammar has come to its end, and nothing may follow but the end of the answer.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Inside && self.matcher.as_ref().is_some_and(Matcher::is_stopped)
    }
}
