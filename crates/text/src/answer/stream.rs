//! From token ids to parts of an answer.

use super::{AnswerFormat, AnswerParser, Part};
use crate::{Detokenizer, Json, Result, Tokenizer};

/// Detokenizer and parser of one answer.
#[derive(Debug)]
pub struct AnswerStream<'a> {
    tokenizer: &'a Tokenizer,
    detokenizer: Detokenizer<'a>,
    parser: AnswerParser,
}

impl<'a> AnswerStream<'a> {
    /// See [`AnswerParser::new`].
    pub fn new(
        tokenizer: &'a Tokenizer,
        format: &AnswerFormat,
        tools: &[Json],
        prompt_tail: &str,
    ) -> Result<AnswerStream<'a>> {
        let detokenizer = tokenizer.detokenizer(false)?;
        let parser = AnswerParser::new(format, tools, prompt_tail);
        Ok(AnswerStream { tokenizer, detokenizer, parser })
    }

    /// Takes the next id. Special tokens are markup or nothing; they never show as text.
    pub fn push(&mut self, id: u32) -> Vec<Part> {
        if self.tokenizer.is_special(id) {
            let Some(literal) = self.tokenizer.id_to_token(id) else { return Vec::new() };
            if !self.parser.is_markup(&literal) {
                return Vec::new();
            }
            // A character that markup interrupts is never completed.
            let mut parts = self.parser.push(&self.detokenizer.finish());
            parts.extend(self.parser.push_special(&literal));
            return parts;
        }
        self.parser.push(&self.detokenizer.push(id))
    }

    /// The bytes that `id` would add to the text if it came next: see [`Detokenizer::bytes`].
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        self.detokenizer.bytes(id)
    }

    /// The answer has ended, or was cut off: what was held back.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = self.parser.push(&self.detokenizer.finish());
        parts.extend(self.parser.finish());
        parts
    }

    /// Whether the next token belongs to the reasoning, as far as is known.
    pub fn in_reasoning(&self) -> bool {
        self.parser.in_reasoning()
    }
}
