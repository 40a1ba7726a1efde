//! The conversation that a chat template renders.
//!
//! These types are the crate's own; wire formats (OpenAI, Anthropic, Ollama) map onto them.
//! Every string in them is untrusted, except the role, which is a closed enum: templates splice
//! it between the delimiters of special tokens.

use crate::{Json, JsonMap};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions of the operator.
    System,
    /// Instructions of the developer (gpt-oss); other templates may reject it.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// The name that templates compare with.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// What is said. A template that knows only one of the two forms gets that form: parts are
/// joined by newlines, a text becomes one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// One text.
    Text(String),
    /// Text parts, rendered as `[{"type": "text", "text": ...}]`.
    Parts(Vec<String>),
}

/// One call of a tool by the model.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Id that the tool's result refers to.
    pub id: Option<String>,
    /// Name of the function.
    pub name: String,
    /// An object, or a string that holds JSON; a string that parses to an object is rendered
    /// as the object, because most templates walk the arguments.
    pub arguments: Json,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; empty beside tool calls.
    pub content: Content,
    /// The model's reasoning; templates see it as `reasoning_content` and as `thinking`.
    pub reasoning_content: Option<String>,
    /// Calls that the model made in this message.
    pub tool_calls: Vec<ToolCall>,
    /// For a tool's result: the call that it answers.
    pub tool_call_id: Option<String>,
    /// Name of the speaker or of the tool.
    pub name: Option<String>,
}

impl Message {
    /// A plain message without calls, reasoning or name.
    pub fn new(role: Role, text: impl Into<String>) -> Message {
        Message {
            role,
            content: Content::Text(text.into()),
            reasoning_content: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
        }
    }
}

/// Everything that one rendering of a chat template depends on.
#[derive(Debug, Clone, Default)]
pub struct ChatInput {
    /// The conversation, oldest message first.
    pub messages: Vec<Message>,
    /// Tool definitions in OpenAI's form; empty means that the template sees none.
    pub tools: Vec<Json>,
    /// Documents for grounded answers, objects with `title` and `text`; empty means none.
    pub documents: Vec<Json>,
    /// Whether the text ends with the opening of the model's turn.
    pub add_generation_prompt: bool,
    /// Extra template variables; only the names in [`crate::KWARGS`] are allowed.
    pub kwargs: JsonMap,
    /// Seconds since 1970-01-01 00:00 on the clock that `strftime_now` shows.
    pub now_unix_s: i64,
}
