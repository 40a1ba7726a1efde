//! Which markup a model's answers have, by what its chat template and its tokenizer say.
//!
//! Only declared facts count: literals in the template's source, tokens of the tokenizer. No
//! model's name does.

use super::syntax::{self, CallSyntax, Family};
use crate::{TemplateSource, Tokenizer};

/// What a model's answers look like: the tags of its reasoning, how it writes calls, and which of
/// that are special tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnswerFormat {
    pub(super) reasoning: Option<ReasoningTags>,
    pub(super) family: Option<Family>,
    syntax: Option<CallSyntax>,
    /// Only what has the members of a call, in order, is one where calls are bare JSON.
    calls_are_exact: bool,
    special: Vec<&'static str>,
}

/// Around the reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReasoningTags {
    pub(super) open: &'static str,
    /// A word that follows the opening tag and belongs to it.
    pub(super) label: &'static str,
    pub(super) close: &'static str,
}

const THINK: ReasoningTags = ReasoningTags { open: "<think>", label: "", close: "</think>" };

/// The literal that gives the tags away, and the tags.
const REASONINGS: [(&str, ReasoningTags); 5] = [
    ("<think>", THINK),
    ("</think>", THINK),
    ("[THINK]", ReasoningTags { open: "[THINK]", label: "", close: "[/THINK]" }),
    (
        "<|channel>thought",
        ReasoningTags { open: "<|channel>", label: "thought", close: "<channel|>" },
    ),
    ("<seed:think>", ReasoningTags { open: "<seed:think>", label: "", close: "</seed:think>" }),
];

/// The literals that a template with the syntax has, all of them. The first that fits counts.
const SYNTAXES: [(&[&str], Family, CallSyntax); 12] = [
    (&["<|channel|>", "<|message|>"], Family::Harmony, syntax::HARMONY),
    (&["<arg_key>", "</arg_key><arg_value>"], Family::Glm, syntax::GLM_COMPACT),
    (&["<arg_key>", "<tool_call>"], Family::Glm, syntax::GLM),
    (&["<tool_call>", "<function=", "<parameter="], Family::Qwen, syntax::QWEN),
    (&["[TOOL_CALLS]", "[ARGS]"], Family::Mistral, syntax::MISTRAL),
    (&["[TOOL_CALLS]"], Family::Mistral, syntax::MISTRAL_LIST),
    (&["<|tool_call>call:"], Family::Gemma, syntax::GEMMA),
    (&["<start_function_call>"], Family::Gemma, syntax::FUNCTION_GEMMA),
    (&["<｜tool▁calls▁begin｜>", "```json"], Family::DeepSeek, syntax::DEEPSEEK_FENCED),
    (&["<｜tool▁calls▁begin｜>"], Family::DeepSeek, syntax::DEEPSEEK),
    (&["<tool_call>"], Family::Hermes, syntax::HERMES),
    (&["<|start_header_id|>", "\"parameters\": "], Family::Llama, syntax::LLAMA),
];

/// All markup that may be special tokens.
const MARKUP: [&str; 30] = [
    "<think>",
    "</think>",
    "[THINK]",
    "[/THINK]",
    "<|channel>",
    "<channel|>",
    "<seed:think>",
    "</seed:think>",
    "<tool_call>",
    "</tool_call>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "[TOOL_CALLS]",
    "[CALL_ID]",
    "[ARGS]",
    "<|python_tag|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|\"|>",
    "<start_function_call>",
    "<end_function_call>",
    "<escape>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
    "```",
];

impl AnswerFormat {
    /// What opens and closes the reasoning where it has a channel of its own.
    pub const REASONING_CHANNEL: [&str; 2] = ["<|channel|>analysis", "<|end|>"];

    /// Looks at the sources of the model's chat template, if it has one, and at its tokens.
    pub fn detect(source: Option<&TemplateSource>, tokenizer: &Tokenizer) -> AnswerFormat {
        let is_token = |literal: &str| tokenizer.token_to_id(literal).is_some();
        let is_special = |literal: &str| {
            tokenizer.token_to_id(literal).is_some_and(|id| tokenizer.is_special(id))
        };
        AnswerFormat::of(source, is_token, is_special)
    }

    /// For a model of which nothing is known: all is text.
    pub fn plain() -> AnswerFormat {
        AnswerFormat::default()
    }

    pub(super) fn of(
        source: Option<&TemplateSource>,
        is_token: impl Fn(&str) -> bool,
        is_special: impl Fn(&str) -> bool,
    ) -> AnswerFormat {
        let has = |literal: &str| {
            let in_source = |source: &TemplateSource| {
                let tool_use = source.tool_use.as_deref().unwrap_or_default();
                source.default.contains(literal) || tool_use.contains(literal)
            };
            source.is_some_and(in_source)
        };
        let found = SYNTAXES.into_iter().find(|(literals, ..)| literals.iter().all(|l| has(l)));
        let reasoning = REASONINGS.into_iter().find(|(literal, _)| has(literal));
        // Models learn to think from templates that do not mention it.
        let by_token = || [THINK.open, THINK.close].into_iter().all(&is_token).then_some(THINK);
        let reasoning = reasoning.map(|(_, tags)| tags).or_else(by_token);
        let is_harmony = matches!(found, Some((_, Family::Harmony, _)));
        let family = found.map(|(_, family, _)| family);
        let syntax = found.map(|(.., syntax)| syntax);
        let markup = MARKUP.into_iter().chain(super::harmony::MARKUP);
        let counts = |literal: &&str| {
            let is_tag = reasoning.is_some_and(|tags| [tags.open, tags.close].contains(literal));
            let marks_calls = |family| super::tags::marks_calls(family, literal);
            is_tag
                || family.is_some_and(marks_calls)
                || syntax.is_some_and(|syntax| syntax.contains(literal))
        };
        AnswerFormat {
            reasoning: reasoning.filter(|_| !is_harmony),
            family,
            syntax,
            calls_are_exact: false,
            special: markup.filter(|literal| is_special(literal)).filter(counts).collect(),
        }
    }

    /// The same, of answers that may have a form instead of calling. Where calls are bare JSON,
    /// only an object with their two members in order is one: all else is the form's.
    pub fn beside_a_form(&self) -> AnswerFormat {
        AnswerFormat { calls_are_exact: true, ..self.clone() }
    }

    pub(super) fn has_exact_calls(&self) -> bool {
        self.calls_are_exact && self.syntax.is_some_and(|syntax| syntax.is_json())
    }

    /// Whether answers may have a reasoning part.
    pub fn has_reasoning(&self) -> bool {
        self.reasoning.is_some() || self.family == Some(Family::Harmony)
    }

    /// How calls are written; `None` if the model's template knows no tools.
    pub fn calls(&self) -> Option<&CallSyntax> {
        self.syntax.as_ref()
    }

    /// The tags around the reasoning; `None` without any, and for harmony, where it is a channel.
    pub fn reasoning_tags(&self) -> Option<(&'static str, &'static str)> {
        self.reasoning.map(|tags| (tags.open, tags.close))
    }

    /// Markup that is special tokens of the tokenizer: in a grammar these are tokens, not text,
    /// and [`crate::AnswerParser::push_special`] takes them.
    pub fn special_markup(&self) -> &[&'static str] {
        &self.special
    }
}
