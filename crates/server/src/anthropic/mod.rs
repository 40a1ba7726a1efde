//! Anthropic's API: messages, whole and streamed, and counting their tokens.
//!
//! Every field of a request is implemented, or has no effect by what it says, or is refused by
//! name; `docs/anthropic.md` lists them, and a table of tests proves it.

mod answer;
mod blocks;
mod conversation;
mod document;
mod messages;
mod tools;

use serde_json::{Value, json};

use crate::dialect::Dialect;
use crate::document::Route;
use crate::document::schema::{named, word};
use crate::failure::{Failure, Kind};

/// This API.
pub static DIALECT: Dialect = Dialect {
    name: "Anthropic",
    prefixes: &["/v1/messages"],
    routes,
    schemas: document::schemas,
    error,
    error_schema: "AnthropicError",
};

fn routes() -> Vec<Route> {
    let versions = || word(&messages::VERSIONS);
    vec![
        Route::post("/v1/messages", messages::create, "Answers a conversation")
            .heeds("anthropic-version", versions())
            .takes(named("MessagesRequest"))
            .answers(named("AnthropicMessage"))
            .events(named("AnthropicEvent"))
            .needs_model(),
        Route::post(
            "/v1/messages/count_tokens",
            messages::count_tokens,
            "Counts a prompt's tokens",
        )
        .heeds("anthropic-version", versions())
        .takes(named("CountTokensRequest"))
        .answers(named("InputTokens"))
        .needs_model(),
    ]
}

/// Anthropic's form of an error.
pub fn error(failure: &Failure) -> Value {
    let kind = match failure.kind {
        Kind::Invalid | Kind::UnsupportedMedia | Kind::MethodNotAllowed => "invalid_request_error",
        Kind::Unauthorized => "authentication_error",
        Kind::Forbidden => "permission_error",
        Kind::NotFound => "not_found_error",
        Kind::TimedOut => "timeout_error",
        Kind::TooLarge => "request_too_large",
        Kind::TooMany => "rate_limit_error",
        Kind::Ours => "api_error",
        Kind::Unavailable => "overloaded_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": message(failure)}})
}

/// The fields that all APIs share have other names here.
fn message(failure: &Failure) -> String {
    let (field, message) = (failure.field.as_deref(), failure.message.as_str());
    match (field, message.strip_prefix("prompt is ")) {
        (Some("stop"), _) => message.replacen("stop", "stop_sequences", 1),
        // Agents look for these words before they shorten a conversation.
        (Some("prompt"), Some(rest)) => format!("prompt is too long: {rest}"),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_the_types_and_the_words_that_clients_know() {
        let check = |failure: Failure, kind: &str, message: &str| {
            let expected = json!({"type": "error", "error": {"type": kind, "message": message}});
            assert_eq!(error(&failure), expected);
        };
        let of = |kind| Failure::new(kind, "so");
        check(of(Kind::Invalid), "invalid_request_error", "so");
        check(of(Kind::Unauthorized), "authentication_error", "so");
        check(of(Kind::Forbidden), "permission_error", "so");
        check(of(Kind::NotFound), "not_found_error", "so");
        check(of(Kind::TooLarge), "request_too_large", "so");
        check(of(Kind::TooMany), "rate_limit_error", "so");
        check(of(Kind::Ours), "api_error", "so");
        check(of(Kind::Unavailable), "overloaded_error", "so");
        let long = Failure::invalid("prompt", "is 9 tokens long");
        check(long, "invalid_request_error", "prompt is too long: 9 tokens long");
        let stop = Failure::new(Kind::Invalid, "stop[1] is empty");
        let stop = Failure { field: Some("stop".into()), ..stop };
        check(stop, "invalid_request_error", "stop_sequences[1] is empty");
    }
}
