//! `/openapi.json`: what can be asked and what is answered, made of the routes that are served.
//!
//! Invariants, which tests of this folder and the validator in `bench/clients` hold:
//! - A route of the server is a [`Route`], so it is in the document, and nothing else is.
//! - A field is in the schema of a request if and only if its parser takes it; one that is refused
//!   by name is not. Values within a schema are taken and others refused, up to what a schema
//!   cannot say (`drift.rs` lists that).
//! - It tells nothing of this server but its version and whether callers need keys.

mod route;
pub mod schema;

#[cfg(test)]
mod drift;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

pub use self::route::Route;
use crate::dialect;
use crate::http::App;

/// The document.
pub async fn serve(State(app): State<App>) -> Json<Value> {
    Json(document(&app.build, app.keys.are_needed()))
}

fn document(version: &str, needs_key: bool) -> Value {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for dialect in dialect::ALL {
        for route in (dialect.routes)() {
            let (path, method, operation) = route.operation(dialect, needs_key);
            paths.entry(path).or_insert_with(|| json!({}))[method] = operation;
        }
        if let Value::Object(of_dialect) = (dialect.schemas)() {
            schemas.extend(of_dialect);
        }
    }
    let security = match needs_key {
        true => json!([{"bearer": []}, {"header": []}]),
        false => json!([]),
    };
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Offshoot",
            "version": version,
            "license": {"name": "MIT OR Apache-2.0"},
            "description": "null is the same as absent in requests. A field that is not here is \
                            refused by name.",
        },
        "servers": [{"url": "/"}],
        "security": security,
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "schemas": schemas,
        },
    })
}
