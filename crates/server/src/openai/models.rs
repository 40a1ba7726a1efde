//! `/v1/models`.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::failure::{Failure, Kind};
use crate::http::App;
use crate::http::name::Name;
use crate::models::Listed;

/// All models.
pub async fn list(State(app): State<App>) -> Result<Json<Value>, Failure> {
    let data: Vec<_> = all(app).await?.iter().map(object).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

/// One of them.
pub async fn one(State(app): State<App>, Name(name): Name) -> Result<Json<Value>, Failure> {
    let all = all(app).await?;
    let found = all.iter().find(|listed| listed.name == name);
    let missing = || {
        let failure = Failure::new(Kind::NotFound, "there is no model of this name");
        Failure { field: Some("model".into()), ..failure }
    };
    found.map(|listed| Json(object(listed))).ok_or_else(missing)
}

async fn all(app: App) -> Result<Vec<Listed>, Failure> {
    let models = app.generator.models.clone();
    let listed = tokio::task::spawn_blocking(move || models.catalog().list()).await;
    let failed = || Failure::new(Kind::Ours, "the models cannot be listed");
    listed.map_err(|_| failed())?.map_err(|error| {
        eprintln!("error: {error}");
        failed()
    })
}

fn object(listed: &Listed) -> Value {
    json!({
        "id": listed.name,
        "object": "model",
        "created": listed.created_unix_s,
        "owned_by": "offshoot",
        "context_length": listed.folder.context_tokens(),
        "modalities": ["text"],
    })
}
