//! OpenAI's API: models, responses, chat completions, completions; embeddings are refused.
//!
//! Every field of a request is implemented, or has no effect by what it says, or is refused by
//! name; `docs/server.md` lists them, and a table of tests proves it.

mod chat;
mod completions;
mod form;
mod messages;
mod models;
mod options;
mod responses;
mod wire;

use axum::Router;
use axum::routing::{get, post};
use serde_json::{Value, json};

use crate::dialect::Dialect;
use crate::failure::{Failure, Kind};
use crate::http::App;
use crate::http::body::Body;

pub(crate) use chat::conversation as chat_conversation;
pub(crate) use completions::inputs;
pub(crate) use form::schema;
pub(crate) use messages::{TOOL_NAMES, is_tool_name, tool};
pub(crate) use options::{WITHOUT_EFFECT_ON_PROMPTS, model};
pub use responses::StoredResponses;

/// This API.
pub static DIALECT: Dialect = Dialect { prefixes: &["/", "/v1/"], routes, error };

fn routes() -> Router<App> {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::one))
        .route("/v1/chat/completions", post(chat::completions))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/{id}", get(responses::retrieve).delete(responses::delete))
        .route("/v1/embeddings", post(embeddings))
}

/// No model here makes embeddings; a chat model's hidden states are none.
async fn embeddings(Body(mut fields): Body) -> Result<(), Failure> {
    let model = fields.required_string("model")?;
    let message = format!("{} makes no embeddings: no model here does", shown(&model));
    Err(Failure { field: Some("model".into()), ..Failure::new(Kind::Invalid, message) })
}

/// A caller's own words in an answer.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(128).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// OpenAI's form of an error.
pub fn error(failure: &Failure) -> Value {
    let (kind, code) = match failure.kind {
        Kind::Invalid | Kind::TimedOut | Kind::UnsupportedMedia | Kind::MethodNotAllowed => {
            ("invalid_request_error", None)
        }
        Kind::TooLarge => ("invalid_request_error", Some("request_too_large")),
        Kind::Unauthorized => ("authentication_error", Some("invalid_api_key")),
        Kind::Forbidden => ("permission_error", None),
        Kind::NotFound if failure.field.as_deref() == Some("model") => {
            ("invalid_request_error", Some("model_not_found"))
        }
        Kind::NotFound if failure.field.as_deref() == Some("previous_response_id") => {
            ("invalid_request_error", Some("previous_response_not_found"))
        }
        Kind::NotFound => ("invalid_request_error", Some("not_found")),
        Kind::TooMany => ("rate_limit_error", Some("rate_limit_exceeded")),
        Kind::Ours => ("server_error", None),
        Kind::Unavailable => ("server_error", Some("unavailable")),
    };
    json!({"error": {
        "message": failure.message,
        "type": kind,
        "param": failure.field,
        "code": code,
    }})
}
