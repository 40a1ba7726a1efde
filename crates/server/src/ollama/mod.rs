//! Ollama's API: generate, chat, and what there is, is known and is loaded.
//!
//! Every field of a request is implemented, or refused by name; `docs/ollama.md` lists them, and a
//! table of tests proves it. Nothing here creates, fetches, copies or deletes models.

mod answer;
mod chat;
mod document;
mod generate;
mod keep_alive;
mod models;
mod options;
mod time;

use serde_json::{Value, json};

use crate::dialect::Dialect;
use crate::document::Route;
use crate::document::schema::named;
use crate::failure::{Failure, Kind};
use crate::http::body::{self, Body};

/// This API.
pub static DIALECT: Dialect = Dialect {
    name: "Ollama",
    prefixes: &["/api/"],
    routes,
    schemas: document::schemas,
    error,
    error_schema: "OllamaError",
};

fn routes() -> Vec<Route> {
    let mut routes = vec![
        Route::post("/api/generate", generate::generate, "Answers a prompt")
            .takes(named("GenerateRequest"))
            .answers(named("Generated"))
            .lines(named("GeneratedLine"))
            .needs_model(),
        Route::post("/api/chat", chat::chat, "Answers a conversation")
            .takes(named("OllamaChatRequest"))
            .answers(named("Said"))
            .lines(named("SaidLine"))
            .needs_model(),
        Route::get("/api/tags", models::tags, "All models").answers(named("Tags")),
        Route::get("/api/ps", models::ps, "The models that are loaded").answers(named("Loaded")),
        Route::post("/api/show", models::show, "What is known of a model")
            .takes(named("ShowRequest"))
            .answers(named("Shown"))
            .needs_model(),
        Route::get("/api/version", models::version, "The server's version")
            .answers(named("OllamaVersion")),
    ];
    routes.extend(refusals());
    routes
}

/// What is done on the server's machine, or by no model here.
fn refusals() -> Vec<Route> {
    let refused = |message| body::refused(Kind::Forbidden, message);
    let make = "models are made on the server's machine: offshoot quantize SOURCE TARGET";
    let pull = "models are fetched on the server's machine: offshoot pull ORG/NAME";
    let push = "models are not uploaded; nothing here opens the network";
    let copy = "models are copied on the server's machine, as folders of its store";
    let remove = "models are taken away on the server's machine: offshoot rm MODEL";
    let blob = "files are not uploaded: put a model's folder into the server's store";
    let managed = "Refused: models are managed on the server's machine";
    let embed = "Refused: no model here makes embeddings";
    vec![
        Route::post("/api/create", refused(make), managed),
        Route::post("/api/pull", refused(pull), managed),
        Route::post("/api/push", refused(push), managed),
        Route::post("/api/copy", refused(copy), managed),
        Route::delete("/api/delete", refused(remove), managed),
        Route::post("/api/blobs/{digest}", refused(blob), managed),
        Route::head("/api/blobs/{digest}", refused(blob), managed),
        Route::post("/api/embed", embeddings, embed).takes(named("Unread")),
        Route::post("/api/embeddings", embeddings, embed).takes(named("Unread")),
    ]
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
