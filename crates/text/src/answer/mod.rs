//! From the text of an answer to its parts: reasoning, text, tool calls.
//!
//! One parser belongs to one answer and keeps what it needs of it, nothing else. Invariants:
//! 1. Parts do not depend on how the text was cut into pieces.
//! 2. Work is linear in the text: every character is looked at a bounded number of times.
//! 3. Nothing is lost: what is no markup comes out, in order. Only tags and the blanks beside
//!    them go, and the markup of calls that came out as calls. A call that is malformed or cut
//!    off comes out as text, markup included.
//! 4. A call comes out whole, when it is complete, and its arguments are the JSON of an object.
//!    Half of one never does: what a client runs must be what the model meant.
//! 5. Markup that is a special token of the tokenizer counts as that token alone. Ordinary text
//!    that spells it is text.

mod call;
mod confusable;
mod format;
mod gemma;
mod grammar;
mod harmony;
mod json_call;
mod json_scanner;
mod markers;
mod named;
mod parser;
mod schema;
mod stream;
mod syntax;
mod tagged;
mod tags;

pub use format::AnswerFormat;
pub use grammar::{Said, Wanted};
pub use parser::AnswerParser;
pub use stream::AnswerStream;
pub use syntax::{ArgumentSyntax, CallSyntax};

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The next text of the reasoning, never empty.
    Reasoning(String),
    /// The next text of the answer itself, never empty.
    Text(String),
    /// A complete call.
    Call(Call),
}

/// A call of a tool as the model wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which of the answer's calls it is, from 0.
    pub index: usize,
    /// Its id, in the few formats in which the model makes one up.
    pub id: Option<String>,
    /// Name of the function; not necessarily one that exists.
    pub name: String,
    /// JSON text of an object, in the model's own spelling where that is JSON.
    pub arguments: String,
}

/// Parts in the making: neighbours of one kind become one part.
#[derive(Debug, Default)]
struct Parts {
    parts: Vec<Part>,
    n_calls: usize,
}

/// What a character belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Text,
}

impl Parts {
    fn push(&mut self, kind: Kind, text: &str) {
        match (kind, self.parts.last_mut()) {
            _ if text.is_empty() => {}
            (Kind::Reasoning, Some(Part::Reasoning(last)))
            | (Kind::Text, Some(Part::Text(last))) => last.push_str(text),
            (Kind::Reasoning, _) => self.parts.push(Part::Reasoning(text.to_owned())),
            (Kind::Text, _) => self.parts.push(Part::Text(text.to_owned())),
        }
    }

    fn call(&mut self, found: call::Found) {
        let call::Found { id, name, arguments } = found;
        self.parts.push(Part::Call(Call { index: self.n_calls, id, name, arguments }));
        self.n_calls += 1;
    }

    fn take(&mut self) -> Vec<Part> {
        std::mem::take(&mut self.parts)
    }
}
