//! `/v1/messages` and `/v1/messages/count_tokens`.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::answer::{Events, Head};
use super::conversation::conversation;
use crate::failure::{Failure, Kind};
use crate::generation::{Input, Request};
use crate::http::body::Body;
use crate::http::fields::Fields;
use crate::http::keys::Caller;
use crate::http::stream::{Form, SETTLE_PATIENCE, stream};
use crate::http::{App, new_id};
use crate::openai::model;
use crate::sampling::{self, Choices};

/// What clients send: all since the named events came, and the newest client.
pub const VERSIONS: [&str; 2] = ["2023-06-01", "2026-10-21"];

/// Answers a conversation.
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Body(mut fields): Body,
) -> Result<Response, Failure> {
    check_version(&headers)?;
    let is_streamed = fields.bool("stream")?.unwrap_or(false);
    let request = request(&mut fields, &app, &caller)?;
    fields.end()?;
    let stops = request.stops.clone();
    let max_tokens = request.max_tokens;
    let mut answers = app.generator.start(request).await?;
    answers.settle(SETTLE_PATIENCE).await?;
    let head = Head {
        id: new_id("msg"),
        model: answers.model.clone(),
        stops,
        max_tokens,
        prompt_tokens: answers.prompt_tokens,
        marked_tokens: answers.marked_tokens,
    };
    if is_streamed {
        return Ok(stream(answers, Events::new(head), Form::Events));
    }
    let mut answers = answers.collect().await?;
    let answer = answers.pop().ok_or_else(|| Failure::new(Kind::Ours, "there is no answer"))?;
    Ok(Json(head.object(&answer)).into_response())
}

/// Counts the tokens of a conversation, as its prompt will have them.
pub async fn count_tokens(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Body(mut fields): Body,
) -> Result<Json<Value>, Failure> {
    check_version(&headers)?;
    let model = model(&mut fields, &app)?;
    let (mut conversation, _) = conversation(&mut fields, None)?;
    fields.end()?;
    conversation.marks.clear();
    let (permit, namespace) = (caller.permit()?, caller.namespace(None)?);
    let input = Input::Chat(Box::new(conversation));
    let (_, _, tokens) = app.generator.tokens(&model, input, namespace, permit).await?;
    Ok(Json(json!({"input_tokens": tokens.len()})))
}

fn check_version(headers: &HeaderMap) -> Result<(), Failure> {
    match headers.get("anthropic-version") {
        None => Ok(()),
        Some(version) if VERSIONS.iter().any(|known| version == known) => Ok(()),
        Some(_) => {
            let reason = format!("must be {}", VERSIONS.join(" or "));
            Err(Failure::invalid("anthropic-version", reason))
        }
    }
}

/// The request in no dialect.
fn request(fields: &mut Fields, app: &App, caller: &Caller) -> Result<Request, Failure> {
    let model = model(fields, app)?;
    let max_tokens = fields.u32("max_tokens", 1)?;
    let max_tokens = max_tokens.ok_or_else(|| fields.invalid("max_tokens", "is missing"))?;
    let (conversation, form) = conversation(fields, Some(max_tokens))?;
    let mut request = Request::new(model, Input::Chat(Box::new(conversation)));
    request.form = form;
    request.max_tokens = Some(max_tokens);
    request.stops = fields.strings("stop_sequences")?;
    request.choices = choices(fields)?;
    let salt = fields.string("cache_salt")?;
    request.namespace = caller.namespace(salt.as_deref())?;
    if let Some(mut metadata) = fields.object("metadata")? {
        // Nothing is kept of users.
        metadata.without_effect("user_id");
        metadata.end()?;
    }
    fields.only("service_tier", &[json!("auto"), json!("standard_only")])?;
    fields.refuse("container", "there are no containers here")?;
    fields.refuse("mcp_servers", "nothing here opens the network")?;
    fields.refuse("inference_geo", "models run on this server alone")?;
    fields.refuse("diagnostics", "ask without it")?;
    request.permit = Some(caller.permit()?);
    Ok(request)
}

fn choices(fields: &mut Fields) -> Result<Choices, Failure> {
    Ok(Choices {
        temperature: fields.number("temperature", &sampling::TEMPERATURES)?,
        top_p: fields.number("top_p", &sampling::TOP_PS)?,
        top_k: fields.u32("top_k", 0)?,
        ..Choices::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_the_sampler_has_its_own_place() {
        let body = json!({"temperature": 0.25, "top_p": 0.5, "top_k": 7});
        let expected = Choices {
            temperature: Some(0.25),
            top_p: Some(0.5),
            top_k: Some(7),
            ..Choices::default()
        };
        assert_eq!(choices(&mut Fields::of("", body).unwrap()), Ok(expected));
    }
}
