//! The APIs. One is a folder with a `DIALECT`, and a line in [`ALL`].

use serde_json::Value;

use crate::document::Route;
use crate::failure::Failure;
use crate::{anthropic, ollama, openai, ops};

/// An API: its routes, their description, and the form of its errors.
pub struct Dialect {
    /// For people.
    pub name: &'static str,
    /// Where its routes begin; the longest that fits decides.
    pub prefixes: &'static [&'static str],
    /// Its routes. The router and `/openapi.json` are made of them.
    pub routes: fn() -> Vec<Route>,
    /// Schemas by the names that routes and other schemas have for them.
    pub schemas: fn() -> Value,
    /// A failure as a body.
    pub error: fn(&Failure) -> Value,
    /// The name of its schema.
    pub error_schema: &'static str,
}

/// All of them. The first one's errors are those of unknown routes.
pub static ALL: [&Dialect; 4] =
    [&openai::DIALECT, &anthropic::DIALECT, &ollama::DIALECT, &ops::DIALECT];

/// The API of a path.
pub fn of(path: &str) -> &'static Dialect {
    let fits = |dialect: &&'static Dialect| {
        let prefixes = dialect.prefixes.iter().filter(|prefix| path.starts_with(**prefix));
        prefixes.map(|prefix| prefix.len()).max()
    };
    let found = ALL.iter().copied().filter_map(|dialect| Some((fits(&dialect)?, dialect)));
    found.max_by_key(|(length, _)| *length).map_or(ALL[0], |(_, dialect)| dialect)
}

impl Dialect {
    /// A failure as a body.
    pub fn error(&self, failure: &Failure) -> Value {
        (self.error)(failure)
    }
}
