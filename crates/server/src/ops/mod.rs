//! Routes of our own: health, readiness, version, metrics, tokens, templates, the cache, and what
//! is loaded.

mod cache;
mod manage;
mod tokens;

use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::dialect::Dialect;
use crate::failure::{Failure, Kind};
use crate::http::App;
use crate::openai;

/// These routes.
pub static DIALECT: Dialect = Dialect {
    prefixes: &["/health", "/ready", "/version", "/metrics", "/models", "/tokenize", "/cache"],
    routes,
    error: openai::error,
};

fn routes() -> Router<App> {
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/apply_template", post(tokens::apply_template))
        .route("/cache/explain", post(cache::explain))
        .route("/cache/tree", get(cache::tree))
        .route("/models", get(manage::list))
        .route("/models/load", post(manage::load))
        .route("/models/unload", post(manage::unload))
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
    let form = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(form));
    response
}
