//! `/api/chat`.

use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};
use text::{Message, Role, ToolCall};

use super::answer::{Form, Head};
use super::generate::{answer, hold};
use super::options::Shared;
use crate::failure::Failure;
use crate::generation::{Input, Tools};
use crate::http::App;
use crate::http::body::Body;
use crate::http::fields::Fields;
use crate::http::keys::Caller;
use crate::openai::tool;
use crate::prompter::Conversation;

/// Answers a conversation.
pub async fn chat(
    State(app): State<App>,
    caller: Caller,
    Body(mut fields): Body,
) -> Result<Response, Failure> {
    let arrived = Instant::now();
    let mut shared = Shared::take(&mut fields, &app, &caller)?;
    let messages = fields.objects("messages")?;
    let messages = messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
    if messages.last().is_some_and(|last| last.role == Role::Assistant) {
        let reason = "must not end with the assistant: answers cannot be begun for the model";
        return Err(fields.invalid("messages", reason));
    }
    let tools = fields.objects("tools")?;
    let tools = Tools::of(tools.into_iter().map(tool).collect::<Result<Vec<_>, _>>()?);
    shared.request.form.calls = tools.calls;
    let tools = tools.list;
    fields.refuse("template", "the model's own is used")?;
    fields.end()?;
    let head = Head { form: Form::Chat, model: shared.request.model.clone(), arrived };
    if messages.is_empty() {
        return hold(&app, &caller, &shared, &head).await;
    }
    let (_, side) = app.generator.models.text(&shared.request.model).await?;
    shared.fits(&side)?;
    let kwargs = std::mem::take(&mut shared.kwargs);
    let conversation = Conversation { messages, tools, kwargs, ..Conversation::default() };
    answer(&app, &caller, shared, Input::Chat(Box::new(conversation)), head).await
}

fn message(mut fields: Fields) -> Result<Message, Failure> {
    let word = fields.word("role", &["system", "user", "assistant", "tool"])?;
    let role = match word.ok_or_else(|| fields.invalid("role", "is missing"))? {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => Role::Tool,
    };
    let mut message = Message::new(role, fields.string("content")?.unwrap_or_default());
    match role {
        Role::Assistant => {
            message.reasoning_content = fields.string("thinking")?;
            let calls = fields.objects("tool_calls")?;
            message.tool_calls = calls.into_iter().map(call).collect::<Result<_, _>>()?;
        }
        Role::Tool => {
            message.name = fields.string("tool_name")?;
            message.tool_call_id = fields.string("tool_call_id")?;
        }
        _ => {}
    }
    fields.refuse("images", "models here read text only")?;
    fields.end()?;
    Ok(message)
}

fn call(mut fields: Fields) -> Result<ToolCall, Failure> {
    let id = fields.string("id")?;
    fields.only("type", &[json!("function")])?;
    let mut function =
        fields.object("function")?.ok_or_else(|| fields.invalid("function", "is missing"))?;
    let name = function.required_string("name")?;
    // Calls come in their order.
    function.without_effect("index");
    let arguments = match function.take("arguments") {
        None => json!({}),
        Some(arguments @ Value::Object(_)) => arguments,
        Some(_) => return Err(function.invalid("arguments", "must be an object")),
    };
    function.end()?;
    fields.end()?;
    Ok(ToolCall { id, name, arguments })
}
