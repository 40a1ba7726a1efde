//! Ollama's API: generate, chat, and what there is, is known and is loaded.
//!
//! Every field of a request is implemented, or refused by name; `docs/ollama.md` lists them, and a
//! table of tests proves it. Nothing here creates, fetches, copies or deletes models.

mod answer;
mod chat;
mod generate;
mod keep_alive;
mod models;
mod options;
mod time;

use axum::Router;
use axum::routing::{delete, get, post};
use serde_json::{Value, json};

use crate::dialect::Dialect;
use crate::failure::{Failure, Kind};
use crate::http::App;
use crate::http::body::{self, Body};

/// This API.
pub static DIALECT: Dialect = Dialect { prefixes: &["/api/"], routes, error };

fn routes() -> Router<App> {
    let refused = |message| body::refused(Kind::Forbidden, message);
    let pull = "models are fetched on the server's machine: offshoot pull ORG/NAME";
    let create = "models are made on the server's machine: offshoot quantize SOURCE TARGET";
    let copy = "models are copied on the server's machine, as folders of its store";
    let remove = "models are taken away on the server's machine: offshoot rm MODEL";
    let push = "models are not uploaded; nothing here opens the network";
    let blob = "files are not uploaded: put a model's folder into the server's store";
    Router::new()
        .route("/api/generate", post(generate::generate))
        .route("/api/chat", post(chat::chat))
        .route("/api/tags", get(models::tags))
        .route("/api/ps", get(models::ps))
        .route("/api/show", post(models::show))
        .route("/api/version", get(models::version))
        .route("/api/create", post(refused(create)))
        .route("/api/pull", post(refused(pull)))
        .route("/api/push", post(refused(push)))
        .route("/api/copy", post(refused(copy)))
        .route("/api/delete", delete(refused(remove)))
        .route("/api/blobs/{digest}", post(refused(blob)).head(refused(blob)))
        .route("/api/embed", post(embeddings))
        .route("/api/embeddings", post(embeddings))
}

async fn embeddings(_: Body) -> Failure {
    Failure::new(Kind::Invalid, "no model here makes embeddings: ask a server with one that does")
}

/// Ollama's form of an error.
pub fn error(failure: &Failure) -> Value {
    let (field, message) = (failure.field.as_deref(), failure.message.as_str());
    match field {
        // The name that all APIs share, and the one that it has here.
        Some("stop") => json!({"error": format!("options.{message}")}),
        _ => json!({"error": message}),
    }
}
