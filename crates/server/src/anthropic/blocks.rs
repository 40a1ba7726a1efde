//! From blocks of content to the messages of a template.
//!
//! Turns of one speaker in a row are one message, as Anthropic has it; results of tools are
//! messages of their own. Marks of a cache become places in the conversation.

use std::collections::HashMap;

use serde_json::{Value, json};
use text::{Content, Message, Role, ToolCall};

use crate::failure::Failure;
use crate::http::fields::Fields;
use crate::prompter::Mark;

/// As Anthropic allows.
const MAX_MARKS: usize = 4;
/// How Claude Code's line on billing begins.
const BILLING: &str = "x-anthropic-billing-header:";

/// The conversation so far.
#[derive(Debug, Default)]
pub struct Turns {
    messages: Vec<Message>,
    marks: Vec<Mark>,
    n_marks: usize,
    /// The names of calls by their ids.
    calls: HashMap<String, String>,
}

impl Turns {
    /// `system`: a text or blocks of text.
    pub fn system(&mut self, fields: &mut Fields) -> Result<(), Failure> {
        let path = fields.path("system");
        match fields.take("system") {
            None => Ok(()),
            Some(Value::String(text)) => {
                if let Some(text) = without_billing(text) {
                    self.text(Role::System, text);
                }
                Ok(())
            }
            Some(Value::Array(blocks)) => {
                for (idx, block) in blocks.into_iter().enumerate() {
                    let mut block = Fields::of(format!("{path}[{idx}]"), block)?;
                    let text = only_text(&mut block)?;
                    let text = if idx == 0 { without_billing(text) } else { Some(text) };
                    if let Some(text) = text {
                        self.text(Role::System, text);
                    }
                    self.mark(&mut block)?;
                    block.end()?;
                }
                Ok(())
            }
            Some(_) => Err(fields.invalid("system", "must be a string or a list of blocks")),
        }
    }

    /// One of `messages`.
    pub fn message(&mut self, mut fields: Fields) -> Result<(), Failure> {
        let word = fields.word("role", &["user", "assistant", "system"])?;
        let role = match word.ok_or_else(|| fields.invalid("role", "is missing"))? {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => Role::System,
        };
        let path = fields.path("content");
        match fields.take("content") {
            Some(Value::String(text)) => self.text(role, text),
            Some(Value::Array(blocks)) if !blocks.is_empty() || role == Role::Assistant => {
                if blocks.is_empty() {
                    self.turn(role);
                }
                for (idx, block) in blocks.into_iter().enumerate() {
                    self.block(role, Fields::of(format!("{path}[{idx}]"), block)?)?;
                }
            }
            Some(Value::Array(_)) => return Err(fields.invalid("content", "must not be empty")),
            Some(_) => {
                return Err(fields.invalid("content", "must be a string or a list of blocks"));
            }
            None => return Err(fields.invalid("content", "is missing")),
        }
        fields.end()
    }

    fn block(&mut self, role: Role, mut block: Fields) -> Result<(), Failure> {
        let kind = block.required_string("type")?;
        match (role, kind.as_str()) {
            (_, "text") => {
                let text = text_of(&mut block)?;
                self.text(role, text);
            }
            (Role::Assistant, "thinking") => self.thinking(&mut block)?,
            (Role::Assistant, "tool_use") => self.call(&mut block)?,
            (Role::User, "tool_result") => self.result(&mut block)?,
            (_, "redacted_thinking") => {
                let reason = "cannot be redacted_thinking: only the server that made it reads it";
                return Err(block.invalid("type", reason));
            }
            (_, "image" | "document" | "search_result" | "container_upload") => {
                let reason = format!("cannot be {kind}: models here read text only");
                return Err(block.invalid("type", reason));
            }
            _ => return Err(block.invalid("type", allowed(role))),
        }
        self.mark(&mut block)?;
        block.end()
    }

    fn thinking(&mut self, block: &mut Fields) -> Result<(), Failure> {
        let thinking = block.required_string("thinking")?;
        // It proves a thought's origin elsewhere; nothing here depends on that.
        block.without_effect("signature");
        let message = self.turn(Role::Assistant);
        match &mut message.reasoning_content {
            Some(before) => {
                before.push('\n');
                before.push_str(&thinking);
            }
            none => *none = Some(thinking),
        }
        Ok(())
    }

    fn call(&mut self, block: &mut Fields) -> Result<(), Failure> {
        let (id, name) = (block.required_string("id")?, block.required_string("name")?);
        let arguments = match block.take("input") {
            Some(arguments @ Value::Object(_)) => arguments,
            Some(_) => return Err(block.invalid("input", "must be an object")),
            None => return Err(block.invalid("input", "is missing")),
        };
        block.only("caller", &[json!({"type": "direct"})])?;
        self.calls.insert(id.clone(), name.clone());
        self.turn(Role::Assistant).tool_calls.push(ToolCall { id: Some(id), name, arguments });
        Ok(())
    }

    fn result(&mut self, block: &mut Fields) -> Result<(), Failure> {
        let id = block.required_string("tool_use_id")?;
        let Some(name) = self.calls.get(&id).cloned() else {
            return Err(block.invalid("tool_use_id", "is no id of a tool_use block before it"));
        };
        let (mut texts, mut is_marked) = (Vec::new(), false);
        let path = block.path("content");
        match block.take("content") {
            None => {}
            Some(Value::String(text)) => texts.push(text),
            Some(Value::Array(parts)) => {
                for (idx, part) in parts.into_iter().enumerate() {
                    let mut part = Fields::of(format!("{path}[{idx}]"), part)?;
                    texts.push(only_text(&mut part)?);
                    is_marked |= self.is_marked(&mut part)?;
                    part.end()?;
                }
            }
            Some(_) => {
                return Err(block.invalid("content", "must be a string or a list of blocks"));
            }
        }
        if block.bool("is_error")? == Some(true) {
            // Templates have no field for it.
            texts.insert(0, "Error:".into());
        }
        let mut message = Message::new(Role::Tool, texts.join("\n"));
        message.tool_call_id = Some(id);
        message.name = Some(name);
        self.messages.push(message);
        if is_marked {
            self.marks.push(self.end());
        }
        Ok(())
    }

    fn text(&mut self, role: Role, text: String) {
        if let Content::Parts(parts) = &mut self.turn(role).content {
            parts.push(text);
        }
    }

    /// The message that a speaker goes on with.
    fn turn(&mut self, role: Role) -> &mut Message {
        if self.messages.last().is_none_or(|last| last.role != role) {
            let message = Message::new(role, "");
            self.messages.push(Message { content: Content::Parts(Vec::new()), ..message });
        }
        self.messages.last_mut().expect("one was added if there was none")
    }

    /// A block's `cache_control` marks the place behind it.
    pub fn mark(&mut self, block: &mut Fields) -> Result<(), Failure> {
        if self.is_marked(block)? {
            self.marks.push(self.end());
        }
        Ok(())
    }

    fn is_marked(&mut self, block: &mut Fields) -> Result<bool, Failure> {
        let Some(mut control) = block.object("cache_control")? else { return Ok(false) };
        let kind = control.required_string("type")?;
        if kind != "ephemeral" {
            return Err(control.invalid("type", "must be ephemeral"));
        }
        // What is cached stays as long as there is room.
        control.word("ttl", &["5m", "1h"])?;
        // Whoever may share it elsewhere: here nobody with another key does.
        control.word("scope", &["global", "org"])?;
        control.end()?;
        self.n_marks += 1;
        if self.n_marks > MAX_MARKS {
            let reason = format!("is one too many: at most {MAX_MARKS} are allowed");
            return Err(block.invalid("cache_control", reason));
        }
        Ok(true)
    }

    /// Behind everything so far.
    fn end(&self) -> Mark {
        let n_messages = self.messages.len();
        match self.messages.last().map(|last| (&last.content, last.tool_calls.is_empty())) {
            Some((Content::Parts(parts), true)) if !parts.is_empty() => {
                Mark { n_messages: n_messages - 1, n_parts: parts.len() }
            }
            _ => Mark { n_messages, n_parts: 0 },
        }
    }

    /// The messages and the marks.
    pub fn finish(self) -> (Vec<Message>, Vec<Mark>) {
        let Self { mut messages, mut marks, .. } = self;
        for mark in &mut marks {
            let parts = messages.get(mark.n_messages).map(|message| &message.content);
            // Behind all parts is behind the message.
            if matches!(parts, Some(Content::Parts(parts)) if parts.len() == mark.n_parts) {
                *mark = Mark { n_messages: mark.n_messages + 1, n_parts: 0 };
            }
        }
        for message in &mut messages {
            if let Content::Parts(parts) = &mut message.content
                && parts.len() < 2
            {
                message.content = Content::Text(parts.pop().unwrap_or_default());
            }
        }
        (messages, marks)
    }
}

fn allowed(role: Role) -> &'static str {
    match role {
        Role::User => "must be text or tool_result in a message of the user",
        Role::Assistant => "must be text, thinking or tool_use in a message of the assistant",
        _ => "must be text",
    }
}

/// The text of a block where nothing else can be.
fn only_text(block: &mut Fields) -> Result<String, Failure> {
    match block.required_string("type")?.as_str() {
        "text" => text_of(block),
        "image" | "document" | "search_result" | "tool_reference" => {
            Err(block.invalid("type", "must be text: models here read text only"))
        }
        _ => Err(block.invalid("type", "must be text")),
    }
}

fn text_of(block: &mut Fields) -> Result<String, Failure> {
    let text = block.required_string("text")?;
    block.only("citations", &[json!([])])?;
    Ok(text)
}

/// Claude Code begins its system text with a line on billing that is another in each request, so
/// that no two prompts would share anything. The text without it, if something is left.
fn without_billing(text: String) -> Option<String> {
    if !text.trim_start().starts_with(BILLING) {
        return Some(text);
    }
    let (_, rest) = text.trim_start().split_once('\n')?;
    let rest = rest.trim_start();
    (!rest.is_empty()).then(|| rest.to_owned())
}
