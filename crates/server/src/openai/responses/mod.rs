//! `/v1/responses`: making responses, and finding, listing and forgetting those that are kept.

mod answer;
mod document;
mod events;
mod inputs;
mod items;
mod request;
mod store;

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::failure::{Failure, Kind};
use crate::generation::{Answers, Part};
use crate::http::App;
use crate::http::body::Body;
use crate::http::keys::Caller;
use crate::http::name::Name;
use crate::http::stream::{self, SETTLE_PATIENCE, stream};

use answer::Keeping;
pub(super) use document::schemas;
use events::Events;
pub(super) use inputs::{MAX_ITEMS, count, list};
use request::{Asked, asked};
pub use store::StoredResponses;

/// Answers a conversation.
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Body(mut fields): Body,
) -> Result<Response, Failure> {
    let asked = asked(&mut fields, &app, &caller)?;
    fields.end()?;
    let Asked { request, is_streamed, mut settings, is_stored, before, added } = asked;
    let (_, side) = app.generator.models.text(&request.model).await?;
    settings.sampled(&request.choices.over(&side.sampling));
    let mut answers = app.generator.start(request).await.map_err(renamed)?;
    answers.settle(SETTLE_PATIENCE).await.map_err(renamed)?;
    let caller = caller.name().to_owned();
    let keeping = is_stored.then_some(Keeping { app, caller, before, added });
    let response = answer::Response::new(answers.model.clone(), settings, keeping);
    if is_streamed {
        return Ok(stream(answers, Events::new(response), stream::Form::Events));
    }
    Ok(Json(whole(answers, response).await?).into_response())
}

async fn whole(mut answers: Answers, mut response: answer::Response) -> Result<Value, Failure> {
    let nowhere = &mut |_: &'static str, _: Value| {};
    while let Some((_, part)) = answers.next().await {
        match part {
            Part::Finished(finished) => return Ok(response.finish(&finished, nowhere)),
            Part::Failed(failure) => return Err(renamed(*failure)),
            part => response.part(part, nowhere),
        }
    }
    Err(Failure::new(Kind::Ours, "the answer has no end"))
}

/// The fields that all APIs share have other names here.
fn renamed(failure: Failure) -> Failure {
    let names = [("messages", "input"), ("prompt", "input"), ("max_tokens", "max_output_tokens")];
    let is_to_blame = |(name, _): &&(&str, &str)| failure.field.as_deref() == Some(*name);
    let Some((name, here)) = names.iter().find(is_to_blame) else { return failure };
    let message = failure.message.replacen(name, here, 1);
    Failure { message, field: Some((*here).to_owned()), ..failure }
}

/// A response that is kept.
pub async fn retrieve(
    State(app): State<App>,
    caller: Caller,
    Name(id): Name,
    uri: Uri,
) -> Result<Response, Failure> {
    check_query(uri.query().unwrap_or_default())?;
    let kept = app.responses.find(caller.name(), &id).ok_or_else(missing)?;
    let mut response = kept.object.into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    Ok(response)
}

/// Forgets a response.
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Name(id): Name,
) -> Result<Json<Value>, Failure> {
    match app.responses.remove(caller.name(), &id) {
        true => Ok(Json(json!({"id": id, "object": "response", "deleted": true}))),
        false => Err(missing()),
    }
}

/// Nothing is made in the background, and what is kept has ended.
pub async fn cancel(State(app): State<App>, caller: Caller, Name(id): Name) -> Result<(), Failure> {
    app.responses.find(caller.name(), &id).ok_or_else(missing)?;
    let message = "a response that is not made in the background cannot be cancelled, and this one \
                   has ended: close the connection of one that is still being made";
    Err(Failure::new(Kind::Invalid, message))
}

fn missing() -> Failure {
    let message = "there is no response of this id: it is still being made, or was never stored, \
                   or deleted, or dropped for newer ones, or the server was started anew";
    Failure::new(Kind::NotFound, message)
}

/// What is kept is shown as it is.
fn check_query(query: &str) -> Result<(), Failure> {
    let no = ["stream=false", "include_obfuscation=false"];
    match query.split('&').find(|field| !field.is_empty() && !no.contains(field)) {
        None => Ok(()),
        Some(field) => {
            let name = field.split(['=', '%', '[']).next().unwrap_or_default();
            let reason = "is not supported: a response is shown as it was when it ended";
            Err(Failure::invalid(crate::openai::shown(name), reason))
        }
    }
}
