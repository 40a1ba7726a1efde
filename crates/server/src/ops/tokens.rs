//! `/tokenize`, `/detokenize`, `/apply_template`: for debugging, and for clients that count.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::blocking::blocking;
use crate::failure::Failure;
use crate::http::App;
use crate::http::body::Body;
use crate::http::fields::token_ids;
use crate::http::keys::Caller;
use crate::openai::{chat_conversation, model};
use crate::prompter::PromptError;

/// Ids of a text, or of a conversation.
pub async fn tokenize(
    State(app): State<App>,
    caller: Caller,
    Body(mut fields): Body,
) -> Result<Json<Value>, Failure> {
    let namespace = caller.namespace(None)?;
    let model = model(&mut fields, &app)?;
    let conversation = match fields.has("messages") {
        true => Some(chat_conversation(&mut fields)?.0),
        false => None,
    };
    // vLLM calls it prompt, llama.cpp content.
    let text = match (fields.string("prompt")?, fields.string("content")?) {
        (Some(_), Some(_)) => {
            return Err(fields.invalid("content", "and prompt are the same: send one of them"));
        }
        (prompt, content) => prompt.or(content),
    };
    let counts_special = fields.bool("parse_special")?.unwrap_or(true);
    let has_pieces = fields.bool("with_pieces")?.unwrap_or(false);
    if conversation.is_some() == text.is_some() {
        return Err(fields.invalid("prompt", "or messages must be there, and not both"));
    }
    fields.end()?;
    let (name, side) = app.generator.models.text(&model).await?;
    let context_tokens = side.context_tokens;
    let object = blocking(move || {
        let prompter = &side.prompter;
        let tokens = match (conversation, text.unwrap_or_default()) {
            (Some(conversation), _) => prompter.chat(conversation, namespace)?.tokens,
            (None, text) if counts_special => prompter.raw(&text)?.tokens,
            (None, text) => prompter.plain(&text)?,
        };
        let mut object = json!({"model": name, "count": tokens.len(), "tokens": tokens});
        if has_pieces {
            object["pieces"] = tokens.iter().map(|token| prompter.piece(*token)).collect();
        }
        Ok::<_, PromptError>(object)
    });
    let mut object = object.await?;
    object["max_model_len"] = context_tokens.into();
    Ok(Json(object))
}

/// The text of ids.
pub async fn detokenize(
    State(app): State<App>,
    Body(mut fields): Body,
) -> Result<Json<Value>, Failure> {
    let model = model(&mut fields, &app)?;
    let has_special = fields.bool("with_special_tokens")?.unwrap_or(true);
    let ids = token_ids(&fields.list("tokens")?);
    let ids = ids.ok_or_else(|| fields.invalid("tokens", "must be a list of token ids"))?;
    fields.end()?;
    let (name, side) = app.generator.models.text(&model).await?;
    let text = blocking(move || side.prompter.decode(&ids, has_special)).await?;
    // llama.cpp calls it content.
    Ok(Json(json!({"model": name, "prompt": text, "content": text})))
}

/// A conversation as the model reads it.
pub async fn apply_template(
    State(app): State<App>,
    caller: Caller,
    Body(mut fields): Body,
) -> Result<Json<Value>, Failure> {
    let namespace = caller.namespace(None)?;
    let model = model(&mut fields, &app)?;
    let (mut conversation, _) = chat_conversation(&mut fields)?;
    let opens = fields.bool("add_generation_prompt")?.unwrap_or(true);
    conversation.without_opening = !opens;
    fields.end()?;
    let (name, side) = app.generator.models.text(&model).await?;
    let prompt = blocking(move || side.prompter.chat(conversation, namespace)).await?;
    Ok(Json(json!({"model": name, "prompt": prompt.text, "n_tokens": prompt.tokens.len()})))
}
