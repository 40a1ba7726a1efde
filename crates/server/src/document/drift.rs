//! The document against the parsers: each is asked with values at the edges of its schema, inside
//! and outside. The models that are named do not exist, so what a parser takes ends with 404.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response};
use hub::Hub;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use protocol::CacheSettings;
use serde_json::{Value, json};
use testkit::schema::Schemas;

use super::document;
use crate::dialect;
use crate::failure::{Failure, Kind};
use crate::generation::Generator;
use crate::http::fields::asked;
use crate::http::keys::Keys;
use crate::http::origin::Allowed;
use crate::http::{App, Limits, Server, router};
use crate::metrics::Metrics;
use crate::models::{Catalog, KeepAlive, Models, Settings};
use crate::openai::StoredResponses;
use crate::supervisor::RunnerProgram;

/// What a schema cannot say, in the words of the parser that refuses it.
const BEYOND_SCHEMAS: [&str; 12] = [
    "model is missing",
    // Names and ids refer to other places of the request.
    "is none of tools",
    "is no id of a tool_use block before it",
    "is that of no function_call before it",
    "is that of no response that is kept",
    "is not that of the function_call",
    "key is the name of no API key",
    // Order and sums over a whole conversation, and over numbers of two fields.
    "must not end with the assistant",
    "at most 4 are allowed",
    "must be less than max_tokens",
    "answers over all prompts",
    // Texts that hold another language.
    "is not JSON",
];

fn app() -> App {
    let nowhere = std::env::temp_dir().join("offshoot-has-no-models-here");
    let metrics = Arc::new(Metrics::default());
    let settings = Settings {
        program: RunnerProgram { path: nowhere.clone(), env: Vec::new() },
        build: "test".into(),
        cache: Box::new(|_| CacheSettings::default()),
        is_deterministic: false,
        max_rows: None,
        keep_alive: KeepAlive::Forever,
        memory_bytes: None,
        max_models: 1,
        max_requests: 64,
    };
    let catalog = Catalog::new(Hub::new(&nowhere, Vec::<std::path::PathBuf>::new()), None);
    let models = Models::new(settings, catalog, Arc::clone(&metrics));
    Arc::new(Server {
        generator: Generator { models, metrics, deadline: Duration::from_secs(60) },
        keys: Keys::none(),
        responses: StoredResponses::default(),
        allowed: Allowed::default(),
        limits: Limits::default(),
        logs_requests: false,
        build: "test".into(),
    })
}

/// A server without a socket.
struct Asked {
    service: TowerToHyperService<axum::Router>,
    run_time: tokio::runtime::Runtime,
}

impl Asked {
    fn new() -> Self {
        let run_time = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let service = run_time.block_on(async { TowerToHyperService::new(router(app())) });
        Self { service, run_time }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let request = Request::builder()
            .method(Method::from_bytes(method.to_uppercase().as_bytes()).unwrap())
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json");
        let response: Response<Body> = self
            .run_time
            .block_on(self.service.call(request.body(Body::from(body.to_owned())).unwrap()))
            .unwrap();
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX);
        let bytes = self.run_time.block_on(bytes).unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }
}

/// What a value of a schema lacks to be understood: a model's name, where that depends on how the
/// server was started, and the call before the result of a call.
fn complete(path: &str, value: &mut Value) {
    let Some(body) = value.as_object_mut() else { return };
    if !path.starts_with("/models/") && !body.contains_key("name") {
        body.entry("model").or_insert_with(|| json!("nowhere"));
    }
    let tool_use = json!({"type": "tool_use", "id": "", "name": "", "input": {}});
    let (field, call) = match path {
        "/v1/messages" | "/v1/messages/count_tokens" => {
            ("messages", json!({"role": "assistant", "content": [tool_use]}))
        }
        "/v1/responses" | "/v1/responses/input_tokens" => {
            let call = json!({"type": "function_call", "call_id": "", "name": "", "arguments": ""});
            ("input", call)
        }
        _ => return,
    };
    if let Some(Value::Array(items)) = body.get_mut(field)
        && !items.is_empty()
    {
        items.insert(0, call);
    }
}

/// Each operation: path, method, and what is said of it.
fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let paths = document["paths"].as_object().unwrap().iter();
    paths
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap().iter();
            methods.map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
        })
        .collect()
}

#[test]
fn parsers_take_what_the_document_says_and_nothing_else() {
    let document = document("test", false);
    let schemas = Schemas(&document);
    let server = Asked::new();
    let mut wrong = Vec::new();
    for (path, method, operation) in operations(&document) {
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        // Of a route that is refused whole nothing is taken.
        if schema.is_null() || operation["responses"]["200"].is_null() {
            continue;
        }
        asked::names();
        let mut n_good = 0;
        for mut value in schemas.values(schema) {
            complete(path, &mut value);
            let body = value.to_string();
            let (status, answer) = server.ask(method, path, &body);
            match schemas.check(schema, &value) {
                _ if BEYOND_SCHEMAS.iter().any(|words| answer.contains(words)) => {}
                Ok(()) if status == 404 => n_good += 1,
                Ok(()) => wrong.push(format!("{path} should take {body}: {answer}")),
                Err(_) if status == 400 => {}
                Err(why) => wrong.push(format!("{path} should refuse {body}, as {why}: {answer}")),
            }
        }
        assert!(n_good > 0, "{path} took nothing");
        let (said, taken) = (schemas.fields(schema), asked::names());
        let only =
            |a: &BTreeSet<String>, b| a.difference(b).cloned().collect::<Vec<_>>().into_iter();
        wrong.extend(only(&said, &taken).map(|name| format!("{path}: nobody takes {name}")));
        wrong.extend(only(&taken, &said).map(|name| format!("{path}: nothing tells of {name}")));
    }
    let first: Vec<_> = wrong.iter().take(20).map(String::as_str).collect();
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), first.join("\n"));
}

#[test]
fn the_document_is_whole_and_its_operations_have_names_of_their_own() {
    for needs_key in [false, true] {
        let document = document("test", needs_key);
        let mut ids = BTreeSet::new();
        for (path, method, operation) in operations(&document) {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id), "{id} is there twice");
            let responses = operation["responses"].as_object().unwrap();
            let is_open = operation["security"] == json!([]);
            assert_eq!(responses.contains_key("401"), needs_key && !is_open, "{path}");
            let named = operation["parameters"].as_array().into_iter().flatten();
            let named = named.filter(|parameter| parameter["in"] == "path").count();
            assert_eq!(named, path.matches('{').count(), "{method} {path}");
        }
        for (path, _, operation) in operations(&document) {
            for link in operation["responses"]["200"]["links"].as_object().into_iter().flatten() {
                let to = link.1["operationId"].as_str().unwrap();
                assert!(ids.contains(to), "{path} leads to {to}, which is not there");
            }
        }
        let mut used = BTreeSet::new();
        check_references(&document, &document, &mut used);
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let of_dialects = dialect::ALL.iter().map(|dialect| (dialect.schemas)());
        let n_schemas = of_dialects.map(|of| of.as_object().unwrap().len()).sum::<usize>();
        assert_eq!(schemas.len(), n_schemas, "two schemas have one name");
        let unused: Vec<_> = schemas.keys().filter(|name| !used.contains(*name)).collect();
        assert!(unused.is_empty(), "nothing refers to {unused:?}");
    }
}

fn check_references(document: &Value, part: &Value, used: &mut BTreeSet<String>) {
    if let Some(name) = part.get("$ref") {
        let name = name.as_str().unwrap().strip_prefix("#/components/schemas/").unwrap();
        assert!(document["components"]["schemas"].get(name).is_some(), "{name} is not there");
        used.insert(name.to_owned());
    }
    match part {
        Value::Array(parts) => parts.iter().for_each(|part| check_references(document, part, used)),
        Value::Object(parts) => {
            parts.values().for_each(|part| check_references(document, part, used));
        }
        _ => {}
    }
}

#[test]
fn every_route_is_in_the_document_and_answers_at_its_path() {
    let document = document("test", false);
    let server = Asked::new();
    let n_routes = dialect::ALL.iter().map(|dialect| (dialect.routes)().len()).sum::<usize>();
    let operations = operations(&document);
    assert_eq!(operations.len(), n_routes, "two routes have one path and method");
    for (path, method, operation) in operations {
        let at = path.replace(['{', '}'], "");
        let body = if operation["requestBody"].is_null() { "" } else { "[]" };
        let (status, answer) = server.ask(method, &at, body);
        assert!(!answer.contains("there is no such route") && status != 405, "{method} {path}");
        let said = operation["responses"].get(status.to_string());
        assert!(said.is_some(), "{method} {path} answers {status}: {answer}");
        let (status, _) = server.ask("put", &at, "");
        assert_eq!(status, 405, "{path}");
    }
}

#[test]
fn every_failure_has_the_form_that_the_document_has_for_it() {
    let document = document("test", true);
    let schemas = Schemas(&document);
    let kinds = [
        Kind::Invalid,
        Kind::Unauthorized,
        Kind::Forbidden,
        Kind::NotFound,
        Kind::MethodNotAllowed,
        Kind::TimedOut,
        Kind::TooLarge,
        Kind::UnsupportedMedia,
        Kind::TooMany,
        Kind::Ours,
        Kind::Unavailable,
    ];
    for dialect in dialect::ALL {
        let schema = super::schema::named(dialect.error_schema);
        for kind in kinds {
            for failure in [
                Failure::new(kind, "so"),
                Failure { field: Some("model".into()), ..Failure::new(kind, "so") },
            ] {
                let body = dialect.error(&failure);
                assert_eq!(schemas.check(&schema, &body), Ok(()), "{}: {body}", dialect.name);
            }
        }
    }
}
