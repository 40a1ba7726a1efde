//! What is loaded, and loading and unloading it by name. Changes need the right to.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::failure::{Failure, Kind};
use crate::http::App;
use crate::http::body::Body;
use crate::http::keys::Caller;
use crate::models::{KeepAlive, MAX_KEEP_ALIVE_S, Running};

/// The models that are loaded or being loaded.
pub async fn list(State(app): State<App>) -> Json<Value> {
    let running = app.generator.models.running();
    Json(json!({"models": running.iter().map(object).collect::<Vec<_>>()}))
}

fn object(running: &Running) -> Value {
    let info = running.info.as_ref();
    json!({
        "model": running.name,
        "state": if info.is_some() { "loaded" } else { "loading" },
        "progress": running.progress.map(|(done, total)| {
            json!({"done_bytes": done, "total_bytes": total})
        }),
        "n_requests": running.n_requests,
        "expires_in_s": running.expires_in.map(|time| time.as_secs_f64()),
        "weight_bytes": info.map(|info| info.weight_bytes),
        "context_tokens": info.map(|info| info.context_tokens),
        "quantization": info.and_then(|info| info.quantization.clone()),
        "family": info.map(|info| info.family.clone()),
        "device": info.map(|info| info.device.device.clone()),
        "backend": info.map(|info| info.device.backend.clone()),
        "pid": running.pid,
    })
}

/// Loads a model, and answers when it is there.
pub async fn load(
    State(app): State<App>,
    caller: Caller,
    Body(mut fields): Body,
) -> Result<Json<Value>, Failure> {
    caller.check_admin()?;
    let model = fields.required_string("model")?;
    let keep_alive = fields.signed("keep_alive", -1, MAX_KEEP_ALIVE_S as i64)?;
    let keep_alive = keep_alive.map(|s| match s {
        -1 => KeepAlive::Forever,
        s => KeepAlive::For(Duration::from_secs(s.unsigned_abs())),
    });
    fields.end()?;
    let lease = app.generator.models.lease(&model, &mut |_, _| {}).await?;
    if let Some(keep_alive) = keep_alive {
        app.generator.models.keep(&lease, keep_alive);
    }
    Ok(Json(json!({"model": lease.name(), "state": "loaded"})))
}

/// Unloads a model as soon as nobody uses it.
pub async fn unload(
    State(app): State<App>,
    caller: Caller,
    Body(mut fields): Body,
) -> Result<Json<Value>, Failure> {
    caller.check_admin()?;
    let model = fields.required_string("model")?;
    fields.end()?;
    match app.generator.models.unload_when_idle(&model) {
        true => Ok(Json(json!({"model": model, "state": "unloading"}))),
        false => Err(not_loaded()),
    }
}

/// What was asked needs a model that is loaded.
pub(super) fn not_loaded() -> Failure {
    let failure = Failure::new(Kind::NotFound, "this model is not loaded");
    Failure { field: Some("model".into()), ..failure }
}
