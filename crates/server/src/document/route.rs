//! A route: what answers it, and what `/openapi.json` says of it. Neither can be there alone.

use axum::handler::Handler;
use axum::routing::{MethodRouter, delete, get, head, post};
use serde_json::{Map, Value, json};

use super::schema;
use crate::dialect::Dialect;
use crate::failure::Kind;
use crate::http::stream::{EVENTS, LINES};
use crate::http::{App, OPEN};

const JSON: &str = "application/json";
/// How bodies fail.
const OF_BODIES: [Kind; 4] =
    [Kind::Invalid, Kind::TimedOut, Kind::TooLarge, Kind::UnsupportedMedia];
/// How models fail.
const OF_MODELS: [Kind; 3] = [Kind::NotFound, Kind::TooMany, Kind::Unavailable];

/// A route of one method.
pub struct Route {
    /// As the router has it.
    pub path: &'static str,
    /// What answers.
    pub handler: MethodRouter<App>,
    method: &'static str,
    summary: &'static str,
    parameters: Vec<Value>,
    body: Option<Value>,
    /// Forms of good answers, by their types.
    answers: Vec<(&'static str, Value)>,
    /// Operations that take the id of an answer in their path.
    links: Vec<&'static str>,
    fails: Vec<Kind>,
}

/// Makes a route of one method, with a sentence about it.
macro_rules! method {
    ($($name:ident),*) => {$(
        #[doc = concat!("Answers ", stringify!($name), ".")]
        pub fn $name<T: 'static>(
            path: &'static str,
            handler: impl Handler<T, App>,
            summary: &'static str,
        ) -> Self {
            Self::new(stringify!($name), path, $name(handler), summary)
        }
    )*};
}

impl Route {
    method!(get, post, delete, head);

    fn new(
        method: &'static str,
        path: &'static str,
        handler: MethodRouter<App>,
        summary: &'static str,
    ) -> Self {
        let fails = vec![Kind::Forbidden, Kind::Ours];
        let (parameters, answers, links) = (Vec::new(), Vec::new(), Vec::new());
        Self { path, handler, method, summary, parameters, body: None, answers, links, fails }
    }

    /// It reads a body of this form.
    pub fn takes(mut self, schema: Value) -> Self {
        self.body = Some(schema);
        self.fails(&OF_BODIES)
    }

    /// It reads a field of the address.
    pub fn asks(self, name: &str, schema: Value) -> Self {
        self.parameter("query", name, schema).fails(&[Kind::Invalid])
    }

    /// It reads a header.
    pub fn heeds(self, name: &str, schema: Value) -> Self {
        self.parameter("header", name, schema)
    }

    fn parameter(mut self, place: &str, name: &str, schema: Value) -> Self {
        let is_required = place == "path";
        self.parameters
            .push(json!({"name": name, "in": place, "required": is_required, "schema": schema}));
        self
    }

    /// It answers with JSON of this form.
    pub fn answers(self, schema: Value) -> Self {
        self.answers_as(JSON, schema)
    }

    /// It answers with another type.
    pub fn answers_as(mut self, form: &'static str, schema: Value) -> Self {
        self.answers.push((form, json!({"schema": schema})));
        self
    }

    /// It can answer with server-sent events. OpenAPI 3.1 has no word for the form of a stream;
    /// what the schema says, readers of 3.1 hold against each event, as 3.2 has `itemSchema`.
    pub fn events(self, data: Value) -> Self {
        self.stream_of(schema::json_text(data))
    }

    /// The same, with a last event that says `[DONE]`.
    pub fn events_until_done(self, data: Value) -> Self {
        self.stream_of(schema::one_of([schema::only("[DONE]"), schema::json_text(data)]))
    }

    fn stream_of(self, data: Value) -> Self {
        let event = json!({"type": "object", "properties": {"data": data}, "required": ["data"]});
        self.answers_as(EVENTS, event)
    }

    /// It can answer with lines of JSON; the extension has the form of one.
    pub fn lines(mut self, line: Value) -> Self {
        self.answers.push((LINES, json!({"schema": schema::text(), "x-itemSchema": line})));
        self
    }

    /// Its answer has the `id` that these operations take in their path.
    pub fn names(mut self, operations: &[&'static str]) -> Self {
        self.links.extend(operations);
        self
    }

    /// It needs a model.
    pub fn needs_model(self) -> Self {
        self.fails(&OF_MODELS)
    }

    /// It can fail so.
    pub fn fails(mut self, kinds: &[Kind]) -> Self {
        self.fails.extend(kinds);
        self
    }

    /// The path as the document has it, the method, and what the document says of them.
    pub fn operation(mut self, dialect: &Dialect, needs_key: bool) -> (String, String, Value) {
        let path = self.path.replace("{*", "{");
        let names = path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
        for name in names {
            self = self.parameter("path", name, json!({"type": "string", "minLength": 1}));
        }
        let is_open = OPEN.contains(&path.as_str());
        if needs_key && !is_open {
            self.fails.push(Kind::Unauthorized);
        }
        let words =
            path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let id = [self.method].into_iter().chain(words).collect::<Vec<_>>().join("_");
        let mut operation = json!({
            "operationId": id,
            "summary": self.summary,
            "tags": [dialect.name],
            "responses": self.responses(dialect),
        });
        if is_open {
            operation["security"] = json!([]);
        }
        if !self.parameters.is_empty() {
            operation["parameters"] = self.parameters.into();
        }
        if let Some(schema) = self.body {
            let content = json!({JSON: {"schema": schema}});
            operation["requestBody"] = json!({"required": true, "content": content});
        }
        (path, self.method.to_owned(), operation)
    }

    fn responses(&self, dialect: &Dialect) -> Map<String, Value> {
        let mut responses = Map::new();
        if !self.answers.is_empty() {
            let essence = |form: &str| form.split(';').next().unwrap_or_default().to_owned();
            let forms = self.answers.iter().map(|(form, of)| (essence(form), of.clone()));
            let content: Map<_, _> = forms.collect();
            let mut response = json!({
                "description": "The answer", "headers": headers(None), "content": content,
            });
            for operation in &self.links {
                let parameters = json!({"id": "$response.body#/id"});
                response["links"][operation] =
                    json!({"operationId": operation, "parameters": parameters});
            }
            responses.insert("200".into(), response);
        }
        let mut fails = self.fails.clone();
        fails.sort_by_key(|kind| kind.status());
        fails.dedup();
        for kind in fails {
            let mut response = json!({
                "description": kind.words(), "headers": headers(Some(kind)),
            });
            if self.method != "head" {
                let schema = schema::named(dialect.error_schema);
                response["content"] = json!({JSON: {"schema": schema}});
            }
            responses.insert(kind.status().to_string(), response);
        }
        responses
    }
}

fn headers(kind: Option<Kind>) -> Value {
    let header = |schema: Value| json!({"required": true, "schema": schema});
    let mut headers = json!({
        "X-Request-Id": header(schema::text()),
        // Where the request has a traceparent.
        "traceresponse": {"schema": schema::pattern("^00-[0-9a-f]{32}-[0-9a-f]{16}-00$")},
    });
    match kind {
        Some(Kind::Unauthorized) => {
            headers["WWW-Authenticate"] = header(schema::text());
        }
        Some(Kind::TooMany | Kind::Unavailable) => {
            headers["Retry-After"] = header(schema::count());
        }
        _ => {}
    }
    headers
}
