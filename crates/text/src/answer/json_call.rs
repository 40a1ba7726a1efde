//! Calls as JSON objects: `{"name": …, "arguments": …}` and the spellings around it.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::call::{Found, Step};
use super::json_scanner::{JsonScanner, Scan, with_controls_escaped};
use crate::JsonMap;

/// Keys with which an object that is a call may begin.
const FIRST_KEYS: [&str; 6] = ["name", "arguments", "parameters", "type", "id", "function"];

/// Reads one call written as an object.
#[derive(Debug)]
pub(super) struct JsonCall {
    from: usize,
    scanner: JsonScanner,
    saw_key: bool,
}

impl JsonCall {
    /// The object begins at byte `from`.
    pub(super) fn new(from: usize) -> JsonCall {
        JsonCall { from, scanner: JsonScanner::new(), saw_key: false }
    }

    pub(super) fn step(&mut self, raw: &str, c: char) -> Step {
        let scan = self.scanner.step(c);
        let text = &raw[self.from..];
        if !self.saw_key && scan == Scan::More && self.scanner.is_after_outer_colon() {
            self.saw_key = true;
            let key = text.trim_start_matches('{').trim_end_matches(':').trim().trim_matches('"');
            if !FIRST_KEYS.contains(&key) {
                return Step::Bad;
            }
        }
        match scan {
            Scan::More => Step::More,
            Scan::Bad => Step::Bad,
            Scan::Done => read(text, self.scanner.has_controls, envelope),
        }
    }
}

/// Reads the arguments alone, where the name stands before them.
#[derive(Debug)]
pub(super) struct JsonArguments {
    from: usize,
    scanner: JsonScanner,
}

impl JsonArguments {
    pub(super) fn new(from: usize) -> JsonArguments {
        JsonArguments { from, scanner: JsonScanner::new() }
    }

    pub(super) fn step(&mut self, raw: &str, c: char, name: &str, id: Option<&str>) -> Step {
        match self.scanner.step(c) {
            Scan::More => Step::More,
            Scan::Bad => Step::Bad,
            Scan::Done => read(&raw[self.from..], self.scanner.has_controls, |json| {
                let arguments = object(json)?;
                Some(Found { id: id.map(str::to_owned), name: name.to_owned(), arguments })
            }),
        }
    }
}

/// The arguments in the body of a message that is a call.
pub(super) fn arguments_of(body: &str) -> Option<String> {
    match body.trim() {
        "" => Some("{}".to_owned()),
        body => object(body).or_else(|| object(&with_controls_escaped(body))),
    }
}

fn read(text: &str, has_controls: bool, reader: impl Fn(&str) -> Option<Found>) -> Step {
    let found = match has_controls {
        true => reader(&with_controls_escaped(text)),
        false => reader(text),
    };
    found.map_or(Step::Bad, Step::Done)
}

fn envelope(json: &str) -> Option<Found> {
    type Members = BTreeMap<String, Box<RawValue>>;
    let mut members: Members = serde_json::from_str(json).ok()?;
    if let Some(function) = members.get("function") {
        members = serde_json::from_str(function.get()).ok()?;
    }
    let text = |key: &str| serde_json::from_str::<String>(members.get(key)?.get()).ok();
    let name = text("name")?;
    let arguments = match members.get("arguments").or_else(|| members.get("parameters")) {
        None => "{}".to_owned(),
        Some(value) => lenient_object(value.get())?,
    };
    (!name.is_empty()).then(|| Found { id: text("id"), name, arguments })
}

/// An object, or what models write in its place: nothing, or a string that holds its JSON.
fn lenient_object(json: &str) -> Option<String> {
    match json.chars().next()? {
        '"' => arguments_of(&serde_json::from_str::<String>(json).ok()?),
        'n' => Some("{}".to_owned()),
        _ => object(json),
    }
}

fn object(json: &str) -> Option<String> {
    serde_json::from_str::<JsonMap>(json).ok().map(|_| json.to_owned())
}
