//! The parser of answers, whatever their format.

use super::Part;
use super::format::AnswerFormat;
use super::harmony::HarmonyParser;
use super::syntax::Family;
use super::tags::TagParser;
use crate::Json;

/// Parses one answer, piece by piece. Each request has its own.
#[derive(Debug)]
pub struct AnswerParser {
    special: Vec<&'static str>,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Tags(Box<TagParser>),
    Harmony(HarmonyParser),
}

impl AnswerParser {
    /// `tools` are those of the request, in OpenAI's form or as bare functions; without any, no
    /// calls are looked for. `prompt_tail` is the end of the prompt as far as the template wrote
    /// it ([`crate::Rendered::tail`]): it says whether the reasoning is open already.
    pub fn new(format: &AnswerFormat, tools: &[Json], prompt_tail: &str) -> AnswerParser {
        let inner = match format.family {
            Some(Family::Harmony) => Inner::Harmony(HarmonyParser::new(
                format.special_markup(),
                !tools.is_empty(),
                prompt_tail,
            )),
            _ => Inner::Tags(Box::new(TagParser::new(format, tools, prompt_tail))),
        };
        AnswerParser { special: format.special_markup().to_vec(), inner }
    }

    /// Takes the next text, that of ordinary tokens; what is certain of it.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        match &mut self.inner {
            Inner::Tags(parser) => parser.push(text),
            Inner::Harmony(parser) => parser.push(text),
        }
    }

    /// Takes a special token by its literal. One that is no markup of the format says nothing.
    pub fn push_special(&mut self, literal: &str) -> Vec<Part> {
        if !self.is_markup(literal) {
            return Vec::new();
        }
        match &mut self.inner {
            Inner::Tags(parser) => parser.push_special(literal),
            Inner::Harmony(parser) => parser.push_special(literal),
        }
    }

    pub(super) fn is_markup(&self, literal: &str) -> bool {
        self.special.contains(&literal)
    }

    /// The answer has ended, or was cut off: what was held back.
    pub fn finish(&mut self) -> Vec<Part> {
        match &mut self.inner {
            Inner::Tags(parser) => parser.finish(),
            Inner::Harmony(parser) => parser.finish(),
        }
    }

    /// Whether what comes next belongs to the reasoning, as far as is known.
    pub fn in_reasoning(&self) -> bool {
        match &self.inner {
            Inner::Tags(parser) => parser.in_reasoning(),
            Inner::Harmony(parser) => parser.in_reasoning(),
        }
    }
}
