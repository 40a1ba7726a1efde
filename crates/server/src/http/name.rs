//! Names in paths: of models, of what is kept.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use super::App;
use crate::failure::{Failure, Kind};

/// The one name in a path, as an argument of a handler. The library's own extractor refuses bytes
/// that are no UTF-8 in a form that is no API's.
pub struct Name(pub String);

impl FromRequestParts<App> for Name {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Failure> {
        match Path::from_request_parts(parts, app).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(_) => Err(Failure::new(Kind::Invalid, "the name in the path is not UTF-8")),
        }
    }
}
