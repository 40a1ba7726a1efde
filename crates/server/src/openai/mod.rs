//! OpenAI's API: models, responses, chat completions, completions; embeddings are refused.
//!
//! Every field of a request is implemented, or has no effect by what it says, or is refused by
//! name; `docs/server.md` lists them, and a table of tests proves it.

mod chat;
mod completions;
mod document;
mod document_answers;
mod form;
mod messages;
mod models;
mod options;
mod responses;
mod wire;

use serde_json::{Value, json};

use crate::dialect::Dialect;
use crate::document::Route;
use crate::document::schema::{integer, named, only, text, word};
use crate::failure::{Failure, Kind};
use crate::http::body::Body;

pub(crate) use chat::conversation as chat_conversation;
pub(crate) use completions::inputs;
pub(crate) use document::{
    cache_salt, choosing_of_tools, conversation, needs_logprobs, prompt, seed, stops, tool_name,
    u32_from,
};
pub(crate) use document_answers::{bytes, logprob, miss, tier};
pub(crate) use form::schema;
pub(crate) use messages::{TOOL_NAMES, is_tool_name, tool};
pub(crate) use options::{WITHOUT_EFFECT_ON_PROMPTS, model};
pub use responses::StoredResponses;

/// This API.
pub static DIALECT: Dialect = Dialect {
    name: "OpenAI",
    prefixes: &["/", "/v1/"],
    routes,
    schemas: document::schemas,
    error,
    error_schema: "OpenAiError",
};

fn routes() -> Vec<Route> {
    vec![
        Route::get("/v1/models", models::list, "All models").answers(named("ModelList")),
        Route::get("/v1/models/{*model}", models::one, "One model")
            .answers(named("Model"))
            .fails(&[Kind::Invalid, Kind::NotFound]),
        Route::post("/v1/chat/completions", chat::completions, "Answers a conversation")
            .takes(named("ChatRequest"))
            .answers(named("ChatCompletion"))
            .events_until_done(named("ChatCompletionEvent"))
            .needs_model(),
        Route::post("/v1/completions", completions::completions, "Continues texts")
            .takes(named("CompletionRequest"))
            .answers(named("Completion"))
            .events_until_done(named("CompletionEvent"))
            .needs_model(),
        Route::post("/v1/responses", responses::create, "Answers a conversation, and keeps it")
            .takes(named("ResponseRequest"))
            .answers(named("Response"))
            .events(named("ResponseEvent"))
            .needs_model()
            .names(&[
                "get_v1_responses_id",
                "delete_v1_responses_id",
                "get_v1_responses_id_input_items",
                "post_v1_responses_id_cancel",
            ]),
        Route::get("/v1/responses/{id}", responses::retrieve, "A response that is kept")
            .asks("stream", only("false"))
            .asks("include_obfuscation", only("false"))
            .answers(named("Response"))
            .fails(&[Kind::NotFound]),
        Route::delete("/v1/responses/{id}", responses::delete, "Forgets a response")
            .answers(named("DeletedResponse"))
            .fails(&[Kind::Invalid, Kind::NotFound]),
        Route::get("/v1/responses/{id}/input_items", responses::list, "What it was made of")
            .asks("limit", integer(1, responses::MAX_ITEMS as u64))
            .asks("order", word(&["asc", "desc"]))
            .asks("after", text())
            .answers(named("ResponseInputItems"))
            .fails(&[Kind::NotFound]),
        Route::post("/v1/responses/{id}/cancel", responses::cancel, "Refused: it has ended")
            .fails(&[Kind::Invalid, Kind::NotFound]),
        Route::post("/v1/responses/input_tokens", responses::count, "Counts its tokens")
            .takes(named("ResponseInput"))
            .answers(named("ResponseInputTokens"))
            .needs_model(),
        Route::post("/v1/embeddings", embeddings, "Refused: no model here makes them")
            .takes(named("EmbeddingsRequest")),
    ]
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
