//! `/api/generate`, and loading and unloading a model with nothing to answer.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use text::{Message, Role};

use super::answer::{Form, Head};
use super::options::Shared;
use crate::failure::Failure;
use crate::generation::Input;
use crate::http::App;
use crate::http::body::Body;
use crate::http::keys::Caller;
use crate::http::stream::SETTLE_PATIENCE;
use crate::models::KeepAlive;
use crate::prompter::Conversation;

/// Answers a prompt.
pub async fn generate(
    State(app): State<App>,
    caller: Caller,
    Body(mut fields): Body,
) -> Result<Response, Failure> {
    let arrived = Instant::now();
    let mut shared = Shared::take(&mut fields, &app, &caller)?;
    let prompt = fields.string("prompt")?.unwrap_or_default();
    let system = fields.string("system")?.filter(|system| !system.is_empty());
    let is_raw = fields.bool("raw")?.unwrap_or(false);
    if is_raw && (system.is_some() || !shared.kwargs.is_empty()) {
        return Err(fields.invalid("raw", "cannot be true beside system or think"));
    }
    let suffix = fields.string("suffix")?;
    if suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(fields.invalid("suffix", "cannot be served: models here fill no gaps"));
    }
    fields.refuse("template", "the model's own is used")?;
    fields.refuse("context", "send the conversation to /api/chat")?;
    fields.refuse("images", "models here read text only")?;
    fields.end()?;
    let head = Head { form: Form::Generate, model: shared.request.model.clone(), arrived };
    if prompt.is_empty() {
        return hold(&app, &caller, &shared, &head).await;
    }
    let (_, side) = app.generator.models.text(&shared.request.model).await?;
    shared.fits(&side)?;
    let input = match is_raw {
        true => Input::Text(prompt),
        false if !side.prompter.has_template() => {
            return Err(Failure::invalid("raw", "must be true: the model has no chat template"));
        }
        false => {
            let system = system.map(|system| Message::new(Role::System, system));
            let user = Message::new(Role::User, prompt);
            let conversation = Conversation {
                kwargs: std::mem::take(&mut shared.kwargs),
                ..Conversation::of(system.into_iter().chain([user]).collect())
            };
            Input::Chat(Box::new(conversation))
        }
    };
    answer(&app, &caller, shared, input, head).await
}

/// Answers an input.
pub async fn answer(
    app: &App,
    caller: &Caller,
    shared: Shared,
    input: Input,
    head: Head,
) -> Result<Response, Failure> {
    let mut request = shared.request;
    request.inputs = vec![input];
    request.permit = Some(caller.permit()?);
    let mut answers = app.generator.start(request).await?;
    answers.settle(SETTLE_PATIENCE).await?;
    head.answer(answers, shared.is_streamed).await
}

/// Nothing to answer: loads the model, or with a `keep_alive` of 0 unloads it.
pub async fn hold(
    app: &App,
    caller: &Caller,
    shared: &Shared,
    head: &Head,
) -> Result<Response, Failure> {
    let models = &app.generator.models;
    let (name, side) = models.text(&shared.request.model).await?;
    shared.fits(&side)?;
    let reason = match shared.keep_alive {
        Some(KeepAlive::For(Duration::ZERO)) => {
            caller.check_admin()?;
            models.unload_when_idle(&name);
            "unload"
        }
        keep_alive => {
            let _permit = caller.permit()?;
            let lease = models.lease(&name, &mut |_, _| {}).await?;
            if let Some(keep_alive) = keep_alive {
                models.keep(&lease, keep_alive);
            }
            "load"
        }
    };
    Ok(Json(head.without_answer(reason)).into_response())
}
