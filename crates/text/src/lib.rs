//! Text in and out of a model: tokenizer, chat template, streaming detokenizer, stop strings,
//! and the parts of an answer: reasoning, text, tool calls.
//!
//! The crate is pure: it takes strings and bytes, never paths, and the time is an argument.
//! Its one security promise: text that comes from a caller never becomes a special token
//! (see [`Guard`]), so nobody can forge a role by writing `<|im_start|>` into a message.

mod answer;
mod chat;
mod detokenizer;
mod error;
mod guard;
mod json;
mod message;
mod segments;
mod stop;
mod strftime;
mod template;
mod tokenizer;

pub use answer::{
    AnswerFormat, AnswerParser, AnswerStream, ArgumentSyntax, Call, CallSyntax, Part, Said, Wanted,
};
pub use chat::{ChatTemplate, KWARGS, MAX_OUTPUT_BYTES, MAX_TEMPLATE_BYTES, TEMPLATE_FUEL};
pub use detokenizer::Detokenizer;
pub use error::{Error, Result};
pub use guard::{Guard, Rendered};
pub use message::{ChatInput, Content, Message, Role, ToolCall};
pub use segments::Segments;
pub use stop::{MAX_STOPS, StopMatcher, StopOutput};
pub use template::TemplateSource;
pub use tokenizer::{MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES, Tokenizer};

/// Arbitrary JSON, with object keys in the order in which they were written.
pub type Json = serde_json::Value;
/// A JSON object, with keys in the order in which they were written.
pub type JsonMap = serde_json::Map<String, Json>;
