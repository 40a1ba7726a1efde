//! One call, from its opening markup to its last argument, whatever the syntax.

use super::gemma::Gemma;
use super::json_call::JsonCall;
use super::named::Named;
use super::schema::ToolTypes;
use super::syntax::Family;
use super::tagged::{GLM, QWEN, Tagged};

/// A call that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: Option<String>,
    pub(super) name: String,
    /// JSON text of an object.
    pub(super) arguments: String,
}

/// What one more character makes of a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    More,
    Done(Found),
    /// It is none; all that was read is text.
    Bad,
}

/// How a call began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opener {
    /// With markup behind which the call stands.
    Block,
    /// With `<function=`, where models leave out the `<tool_call>` before it; or with the markup
    /// behind which DeepSeek's name stands.
    Name,
    /// With the `{` of a bare object.
    Bare,
}

#[derive(Debug)]
enum Body {
    /// Which syntax follows is not known yet; it begins at byte `from`.
    Start {
        from: usize,
    },
    Json(JsonCall),
    Named(Named),
    Tagged(Tagged),
    Gemma(Gemma),
}

/// A call in the making.
#[derive(Debug)]
pub(super) struct CallReader {
    /// Everything since the opening markup, that included.
    pub(super) raw: String,
    /// Bytes of the opening markup at the start of `raw`; none before a bare object.
    pub(super) n_markup_bytes: usize,
    /// Behind the markup a list begins.
    pub(super) is_list: bool,
    family: Family,
    body: Body,
}

impl CallReader {
    /// `markup` is what opened the call. A bare object's `{` is not among it.
    pub(super) fn new(family: Family, opener: Opener, markup: &str) -> CallReader {
        let from = markup.len();
        let body = match opener {
            Opener::Block | Opener::Bare => Body::Start { from },
            Opener::Name if family == Family::DeepSeek => Body::Named(Named::new(from)),
            Opener::Name => Body::Tagged(Tagged::new(&QWEN, from)),
        };
        CallReader { raw: markup.to_owned(), n_markup_bytes: from, is_list: false, family, body }
    }

    pub(super) fn step(&mut self, c: char, types: &ToolTypes) -> Step {
        self.raw.push(c);
        let raw = self.raw.as_str();
        let step = match &mut self.body {
            Body::Json(call) => return call.step(raw, c),
            Body::Named(call) => return call.step(raw, c),
            Body::Tagged(call) => return call.step(raw, c, types),
            Body::Gemma(call) => return call.step(raw, types),
            Body::Start { from } if c == '[' && raw[*from..].starts_with('[') => {
                self.is_list = true;
                *from = raw.len();
                return Step::More;
            }
            Body::Start { from } => choose(self.family, raw, from),
        };
        match step {
            Choice::Undecided => Step::More,
            Choice::Nothing => Step::Bad,
            Choice::Is(body) => {
                self.body = body;
                Step::More
            }
        }
    }
}

enum Choice {
    Undecided,
    Nothing,
    Is(Body),
}

/// Which syntax the text from `from` on is.
fn choose(family: Family, raw: &str, from: &mut usize) -> Choice {
    let body = &raw[*from..];
    let Some(first) = body.chars().next() else { return Choice::Undecided };
    let literal = |literal: &str, made: fn(usize) -> Body| match body {
        _ if body == literal => Choice::Is(made(raw.len())),
        _ if literal.starts_with(body) => Choice::Undecided,
        _ => Choice::Nothing,
    };
    if body.trim_start().is_empty() {
        *from = raw.len();
        return Choice::Undecided;
    }
    match family {
        Family::Gemma => return literal("call:", |from| Body::Gemma(Gemma::new(from))),
        Family::DeepSeek => {
            return literal("<｜tool▁call▁begin｜>", |from| Body::Named(Named::new(from)));
        }
        Family::Glm if is_in_name(first) => {
            return Choice::Is(Body::Tagged(Tagged::new(&GLM, *from)));
        }
        _ => {}
    }
    match first {
        '{' => {
            let mut call = JsonCall::new(*from);
            match call.step(raw, '{') {
                Step::More => Choice::Is(Body::Json(call)),
                _ => Choice::Nothing,
            }
        }
        '<' => literal("<function=", |from| Body::Tagged(Tagged::new(&QWEN, from))),
        _ if family == Family::Mistral && is_in_name(first) => {
            Choice::Is(Body::Named(Named::new(*from)))
        }
        _ => Choice::Nothing,
    }
}

/// Whether `c` can be part of a function's name.
pub(super) fn is_in_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/')
}

/// Most bytes of a name or of an argument's key. What is longer is no call.
pub(super) const MAX_NAME_BYTES: usize = 256;
