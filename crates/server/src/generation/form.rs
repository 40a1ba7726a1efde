//! What an answer has to look like, and the grammar that makes it so.

use std::sync::Arc;

use protocol::{Grammar, MAX_GRAMMAR_BYTES, Reasoning, Rule, Tag};
use text::{AnswerFormat, Json, Said, Wanted};

use crate::failure::{Failure, Kind};
use crate::prompter::Prompter;

/// What an answer has to look like.
#[derive(Debug, Clone, Default)]
pub struct Form {
    /// What it may say.
    pub said: Option<SaidForm>,
    /// Whether and how it calls tools.
    pub calls: Calls,
    /// The only tools that it may call; any where this is empty.
    pub allowed: Vec<String>,
    /// It calls once at most.
    pub has_one_call: bool,
    /// The reasoning ends after so many tokens.
    pub max_reasoning_tokens: Option<u32>,
}

/// The form of a text, and the field that asks for it.
#[derive(Debug, Clone)]
pub struct SaidForm {
    /// What the text has to match.
    pub said: Said,
    /// The field's path in the request.
    pub field: String,
}

/// How an answer calls tools.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Calls {
    /// As the model likes.
    #[default]
    Free,
    /// As the model likes, with arguments by the schemas of the tools.
    Strict,
    /// It has to call one of them.
    Any,
    /// It has to call this one.
    Named(String),
}

impl Calls {
    fn are_forced(&self) -> bool {
        matches!(self, Self::Any | Self::Named(_))
    }
}

/// Tools of a request, and how answers call them.
#[derive(Debug, Clone, Default)]
pub struct Tools {
    /// Those that the model is told of, in OpenAI's form.
    pub list: Vec<Json>,
    /// How they are called.
    pub calls: Calls,
    /// The only ones that may be called; any where this is empty.
    pub allowed: Vec<String>,
    /// At most once in an answer.
    pub has_one_call: bool,
}

impl Tools {
    /// All that can be called as the model likes; if one is strict, all are.
    pub fn of(tools: Vec<(Json, bool)>) -> Self {
        let is_strict = tools.iter().any(|(_, is_strict)| *is_strict);
        let calls = if is_strict { Calls::Strict } else { Calls::Free };
        let list = tools.into_iter().map(|(tool, _)| tool).collect();
        Self { list, calls, ..Self::default() }
    }

    /// Whether there is a tool of this name.
    pub fn has(&self, name: &str) -> bool {
        self.list.iter().any(|tool| tool["function"]["name"] == name)
    }
}

impl SaidForm {
    /// Any JSON object.
    pub fn object(field: String) -> Self {
        Self { said: Said::Json(serde_json::json!({"type": "object"})), field }
    }
}

impl Form {
    /// Whether an answer may call a tool of this name, as far as the request narrows that.
    pub fn allows(&self, name: &str) -> bool {
        self.allowed.is_empty() || self.allowed.iter().any(|allowed| allowed == name)
    }

    /// Whether an answer may be of the form that was asked for, instead of calling.
    pub fn may_be_said(&self) -> bool {
        self.said.is_some() && !self.calls.are_forced()
    }

    /// Those of the tools that the model is told of that it may call.
    pub fn callable(&self, tools: &[Json]) -> Arc<[Json]> {
        let name = |tool: &Json| tool["function"]["name"].as_str().unwrap_or_default().to_owned();
        tools.iter().filter(|tool| self.allows(&name(tool))).cloned().collect()
    }

    /// The field of the request that an answer's grammar comes from.
    fn field(&self) -> &str {
        match &self.said {
            Some(said) if !self.calls.are_forced() => &said.field,
            _ => "tools",
        }
    }

    /// The same failure, in the words of the request: the runner knows grammars by their kinds.
    pub fn named(&self, failure: Failure) -> Failure {
        let kinds = ["json_schema ", "regex ", "lark "];
        let reason = kinds.iter().find_map(|kind| failure.message.strip_prefix(kind));
        match reason {
            Some(reason) if failure.kind == Kind::Invalid => Failure::invalid(self.field(), reason),
            _ => failure,
        }
    }

    /// The grammar of answers to a prompt that ends in `tail`; none where anything may come.
    /// `tools` are those that may be called; without a list it is the continuation of a text, and
    /// no conversation.
    ///
    /// # Errors
    /// A form, tool or bound is of no use with this model.
    pub fn grammar(
        &self,
        prompter: &Prompter,
        tail: &str,
        tools: Option<&[Json]>,
    ) -> Result<Option<Grammar>, Failure> {
        let is_strict = self.calls != Calls::Free && tools.is_some_and(|tools| !tools.is_empty());
        if self.said.is_none() && !is_strict {
            return self.bounded(prompter, tail, tools.is_some());
        }
        let has_channels = prompter.format().has_channels();
        let is_plain = tools.is_none_or(|tools| tools.is_empty() && !has_channels);
        let rule = match self.said.as_ref().filter(|_| is_plain).map(|form| &form.said) {
            Some(Said::Json(schema)) => Rule::JsonSchema(schema.to_string()),
            Some(Said::Regex(regex)) => Rule::Regex(regex.clone()),
            Some(Said::Lark(lark)) => Rule::Lark(lark.clone()),
            Some(Said::Anything) => return Ok(None),
            None => Rule::Lark(self.lark(prompter, tools.unwrap_or_default())?),
        };
        let reasoning = tools.and_then(|_| self.reasoning(prompter, tail));
        Ok(Some(Grammar { rule, reasoning }))
    }

    /// Only the reasoning is bounded, if there is any.
    fn bounded(
        &self,
        prompter: &Prompter,
        tail: &str,
        is_chat: bool,
    ) -> Result<Option<Grammar>, Failure> {
        if self.max_reasoning_tokens.is_none() || !is_chat {
            return Ok(None);
        }
        let reasoning = match prompter.format().has_channels() {
            true => Some(self.channel(prompter)?),
            false => self.reasoning(prompter, tail),
        };
        Ok(reasoning.map(|reasoning| Grammar { rule: Rule::Anything, reasoning: Some(reasoning) }))
    }

    fn lark(&self, prompter: &Prompter, tools: &[Json]) -> Result<String, Failure> {
        let said = match &self.said {
            _ if self.calls.are_forced() => None,
            None => Some(&Said::Anything),
            Some(form) => Some(&form.said),
        };
        let named = match &self.calls {
            Calls::Named(name) => Some(name.as_str()),
            _ => None,
        };
        let is_strict = self.calls == Calls::Strict;
        let max_reasoning_tokens = self.max_reasoning_tokens;
        let wanted = Wanted { tools, named, said, is_strict, max_reasoning_tokens };
        let lark = prompter.format().grammar(&wanted, &prompter.special_markup());
        let lark =
            lark.map_err(|e| Failure::invalid(self.field(), format!("cannot be used: {e}")))?;
        if lark.len() > MAX_GRAMMAR_BYTES {
            let reason = "cannot be forced: their schemas are too large together";
            return Err(Failure::invalid(self.field(), reason));
        }
        Ok(lark)
    }

    /// How reasoning begins and ends in an answer, unless the prompt has closed it already.
    fn reasoning(&self, prompter: &Prompter, tail: &str) -> Option<Reasoning> {
        let (open, close) = prompter.format().reasoning_tags()?;
        let tail = tail.trim_end();
        if tail.ends_with(close) {
            return None;
        }
        let special = prompter.special_markup();
        let tag = |literal: &str| match special.iter().find(|(known, _)| *known == literal) {
            Some((_, id)) => Tag::Tokens(vec![*id]),
            None => Tag::Text(literal.to_owned()),
        };
        let is_open = prompter.parser(tail, &[]).is_ok_and(|parser| parser.in_reasoning());
        let opens = (!is_open).then(|| tag(open));
        Some(Reasoning { opens, closes: tag(close), max_tokens: self.max_reasoning_tokens })
    }

    /// The same of a model that has a channel for it.
    fn channel(&self, prompter: &Prompter) -> Result<Reasoning, Failure> {
        let [open, close] = AnswerFormat::REASONING_CHANNEL;
        let ids = |text: &str| Ok::<_, Failure>(prompter.raw(text)?.tokens);
        let (opens, closes) = (Some(Tag::Tokens(ids(open)?)), Tag::Tokens(ids(close)?));
        Ok(Reasoning { opens, closes, max_tokens: self.max_reasoning_tokens })
    }
}
