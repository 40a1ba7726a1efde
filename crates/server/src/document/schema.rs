//! JSON Schemas, said as the parsers say them.
//!
//! In objects a `?` behind a name means that the field may be absent.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

/// An object of a request, as [`Fields`](crate::http::fields::Fields) reads it: `null` is the same
/// as absent, for names that nobody knows too.
pub fn request(fields: Value) -> Value {
    object(fields, nullable, json!({"type": "null"}))
}

/// An object of which nothing may be null and no other name be there.
pub fn answer(fields: Value) -> Value {
    object(fields, |schema| schema, json!(false))
}

fn object(fields: Value, optional: fn(Value) -> Value, other: Value) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for (name, schema) in entries(fields) {
        match name.strip_suffix('?') {
            Some(name) => properties.insert(name.to_owned(), optional(schema)),
            None => {
                required.push(name.clone());
                properties.insert(name, schema)
            }
        };
    }
    let mut object = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        object["required"] = required.into();
    }
    object["additionalProperties"] = other;
    object
}

/// The entries of some objects together.
pub fn all<const N: usize>(objects: [Value; N]) -> Value {
    Value::Object(objects.into_iter().flat_map(entries).collect())
}

fn entries(object: Value) -> Map<String, Value> {
    match object {
        Value::Object(entries) => entries,
        other => unreachable!("these are fields: {other}"),
    }
}

/// The same, or null.
pub fn nullable(mut schema: Value) -> Value {
    let is_plain = schema.get("enum").is_none() && schema.get("const").is_none();
    match schema.get("type") {
        Some(Value::String(kind)) if is_plain => {
            schema["type"] = json!([kind, "null"]);
            schema
        }
        None if schema == any() => schema,
        _ => one_of([schema, json!({"type": "null"})]),
    }
}

/// Whatever it is.
pub fn any() -> Value {
    json!({})
}

/// A text.
pub fn text() -> Value {
    json!({"type": "string"})
}

/// A text that looks so.
pub fn pattern(pattern: &str) -> Value {
    json!({"type": "string", "pattern": pattern})
}

/// A text that is JSON of this form.
pub fn json_text(schema: Value) -> Value {
    json!({
        "type": "string", "contentMediaType": "application/json", "contentSchema": schema,
    })
}

/// True or false.
pub fn boolean() -> Value {
    json!({"type": "boolean"})
}

/// A whole number within bounds.
pub fn integer(min: i64, max: u64) -> Value {
    json!({"type": "integer", "minimum": min, "maximum": max})
}

/// A count.
pub fn count() -> Value {
    json!({"type": "integer", "minimum": 0})
}

/// A number within bounds.
pub fn number(range: &RangeInclusive<f64>) -> Value {
    json!({"type": "number", "minimum": range.start(), "maximum": range.end()})
}

/// A number that is not below 0.
pub fn amount() -> Value {
    json!({"type": "number", "minimum": 0})
}

/// An object of which the parsers of requests look at nothing: schemas, arguments.
pub fn open() -> Value {
    json!({"type": "object"})
}

/// A list.
pub fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

/// A list of a length within bounds.
pub fn list_of(items: Value, min: usize, max: Option<usize>) -> Value {
    let mut list = list(items);
    list["minItems"] = min.into();
    if let Some(max) = max {
        list["maxItems"] = max.into();
    }
    list
}

/// One of some words.
pub fn word(words: &[&str]) -> Value {
    json!({"type": "string", "enum": words})
}

/// This value and no other.
pub fn only(value: impl Into<Value>) -> Value {
    json!({"const": value.into()})
}

/// One of some forms.
pub fn one_of<const N: usize>(forms: [Value; N]) -> Value {
    json!({"anyOf": forms.to_vec()})
}

/// A text, or a list of so many texts at most.
pub fn texts(text: Value, max: Option<usize>) -> Value {
    let mut list = list(text.clone());
    if let Some(max) = max {
        list["maxItems"] = max.into();
    }
    one_of([text, list])
}

/// A schema of the document by its name.
pub fn named(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// An object for which one more of these holds: see [`absent`] and [`present`].
pub fn where_one<const N: usize>(mut object: Value, rule: [Value; N]) -> Value {
    let rule = one_of(rule);
    match object.get_mut("allOf").and_then(Value::as_array_mut) {
        Some(rules) => rules.push(rule),
        None => object["allOf"] = json!([rule]),
    }
    object
}

/// The fields are not there.
pub fn absent(names: &[&str]) -> Value {
    let null = |name: &&str| ((*name).to_owned(), json!({"type": "null"}));
    json!({"properties": names.iter().map(null).collect::<Map<_, _>>()})
}

/// The field is there, and so.
pub fn present(name: &str, schema: Value) -> Value {
    json!({"properties": {name: schema}, "required": [name]})
}
