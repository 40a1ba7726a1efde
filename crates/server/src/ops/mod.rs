//! Routes of our own: the document of all routes, health, readiness, version, metrics, tokens,
//! templates, the cache, and what is loaded.

mod cache;
mod document;
mod manage;
mod tokens;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::dialect::Dialect;
use crate::document::Route;
use crate::document::schema::{named, text, word};
use crate::failure::{Failure, Kind};
use crate::http::App;
use crate::openai;

/// These routes.
pub static DIALECT: Dialect = Dialect {
    name: "Offshoot",
    prefixes: &["/health", "/ready", "/version", "/metrics", "/models", "/tokenize", "/cache"],
    routes,
    schemas: document::schemas,
    error: openai::error,
    error_schema: "OpenAiError",
};

/// The type of metrics.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn routes() -> Vec<Route> {
    vec![
        Route::get("/openapi.json", crate::document::serve, "This document")
            .answers(named("Document")),
        Route::get("/health", health, "Whether the server is alive").answers(named("Health")),
        Route::get("/ready", ready, "Whether it takes requests")
            .answers(named("Ready"))
            .fails(&[Kind::Unavailable]),
        Route::get("/version", version, "The server's version").answers(named("Version")),
        Route::get("/metrics", metrics, "What Prometheus reads").answers_as(OPENMETRICS, text()),
        Route::post("/tokenize", tokens::tokenize, "Token ids of a text or a conversation")
            .takes(named("TokenizeRequest"))
            .answers(named("Tokens"))
            .needs_model(),
        Route::post("/detokenize", tokens::detokenize, "The text of token ids")
            .takes(named("DetokenizeRequest"))
            .answers(named("Detokenized"))
            .needs_model(),
        Route::post("/apply_template", tokens::apply_template, "A conversation as it is read")
            .takes(named("TemplateRequest"))
            .answers(named("Rendered"))
            .needs_model(),
        Route::post("/cache/explain", cache::explain, "What the cache has of a prompt")
            .takes(named("ExplainRequest"))
            .answers(named("Explained"))
            .needs_model(),
        Route::get("/cache/tree", cache::tree, "All that is cached of a loaded model; admin")
            .asks("model", text())
            .asks("max_nodes", document::max_nodes())
            .asks("text", word(&["true", "false"]))
            .answers(named("Tree"))
            .needs_model(),
        Route::get("/models", manage::list, "The models that are loaded").answers(named("Running")),
        Route::post("/models/load", manage::load, "Loads a model; admin")
            .takes(named("LoadRequest"))
            .answers(named("LoadedModel"))
            .needs_model(),
        Route::post("/models/unload", manage::unload, "Unloads a model when it is idle; admin")
            .takes(named("UnloadRequest"))
            .answers(named("UnloadingModel"))
            .needs_model(),
    ]
}

/// The server is alive.
async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// The server takes requests; a load that is under way is shown, and is no reason to wait.
async fn ready(State(app): State<App>) -> Result<Json<Value>, Failure> {
    let models = &app.generator.models;
    if models.is_draining() {
        return Err(Failure::new(Kind::Unavailable, "the server is shutting down"));
    }
    let running = models.running();
    let loading: Vec<_> = running
        .iter()
        .filter_map(|model| {
            let (done_bytes, total_bytes) = model.progress?;
            let (name, done, total) = (&model.name, done_bytes, total_bytes);
            Some(json!({"model": name, "done_bytes": done, "total_bytes": total}))
        })
        .collect();
    let loaded: Vec<_> =
        running.iter().filter(|model| model.info.is_some()).map(|model| &model.name).collect();
    Ok(Json(json!({"status": "ready", "loaded": loaded, "loading": loading})))
}

async fn version(State(app): State<App>) -> Json<Value> {
    Json(json!({"version": app.build, "protocol": protocol::VERSION}))
}

async fn metrics(State(app): State<App>) -> Response {
    let mut response = app.generator.metrics.text().into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS));
    response
}
