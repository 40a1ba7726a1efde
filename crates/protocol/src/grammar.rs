//! What an answer must look like: a grammar travels as a grammar, and the runner, which has the
//! model's vocabulary, makes of it which tokens may come next.

use serde::{Deserialize, Serialize};

use crate::message::ModelInfo;
use crate::request::known_tokens;
use crate::sampling::InvalidField;

/// The largest grammar, in bytes of its text.
pub const MAX_GRAMMAR_BYTES: usize = 512 << 10;
/// The longest tag, in bytes or tokens.
pub const MAX_TAG_LENGTH: usize = 64;

/// The answer matches a rule from its first token on, or from the end of the reasoning on. It may
/// stop only where the rule may end, and ends by itself where the rule lets nothing follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Grammar {
    /// What it must match.
    pub rule: Rule,
    /// What comes before; `None`: nothing.
    pub reasoning: Option<Reasoning>,
}

/// What an answer must match, from its beginning to its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum Rule {
    /// Nothing: only the reasoning before it is bounded.
    Anything,
    /// A JSON text by this JSON Schema (itself a JSON text).
    JsonSchema(String),
    /// A regular expression in the syntax of Rust's `regex`, without look-around.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark. It alone can ask for special tokens, by name
    /// (`<|call|>`) or by id (`<[7]>`).
    Lark(String),
}

/// Reasoning before the part that a grammar describes. Every token may come there but, if a rule
/// follows, stop tokens; after it blanks may come first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Reasoning {
    /// What begins it; where an answer begins otherwise, the grammar begins there. `None`: the
    /// prompt has begun it already.
    pub opens: Option<Tag>,
    /// What ends it.
    pub closes: Tag,
    /// After so many tokens of it, it ends: nothing but the closing tag may follow.
    pub max_tokens: Option<u32>,
}

/// What stands between reasoning and answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum Tag {
    /// These tokens: for tags of special tokens, which text that spells them does not forge.
    Tokens(Vec<u32>),
    /// Ordinary tokens that spell this, however it is cut into tokens.
    Text(String),
}

impl Rule {
    /// The text of the rule, and what errors call it.
    pub fn text(&self) -> (&'static str, &str) {
        match self {
            Self::Anything => ("anything", ""),
            Self::JsonSchema(text) => ("json_schema", text),
            Self::Regex(text) => ("regex", text),
            Self::Lark(text) => ("lark", text),
        }
    }
}

impl Grammar {
    /// Checks what can be known without a model.
    pub(crate) fn validate(&self) -> Result<(), InvalidField> {
        let (field, text) = self.rule.text();
        if text.len() > MAX_GRAMMAR_BYTES {
            let n = text.len();
            let reason = format!("has {n} bytes, at most {MAX_GRAMMAR_BYTES} are allowed");
            return Err(InvalidField::new(field, reason));
        }
        for tag in self.tags() {
            let n = match tag {
                Tag::Tokens(tokens) => tokens.len(),
                Tag::Text(text) => text.len(),
            };
            if !(1..=MAX_TAG_LENGTH).contains(&n) {
                let reason = format!("has a tag of length {n}, not of 1 to {MAX_TAG_LENGTH}");
                return Err(InvalidField::new("reasoning", reason));
            }
        }
        Ok(())
    }

    /// Checks what depends on the model: token ids.
    pub(crate) fn fits(&self, model: &ModelInfo) -> Result<(), InvalidField> {
        self.tags().try_for_each(|tag| match tag {
            Tag::Tokens(tokens) => known_tokens("reasoning", tokens.iter(), model),
            Tag::Text(_) => Ok(()),
        })
    }

    fn tags(&self) -> impl Iterator<Item = &Tag> {
        self.reasoning.iter().flat_map(|r| r.opens.iter().chain([&r.closes]))
    }
}
