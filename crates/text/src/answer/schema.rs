//! Values that a model wrote without JSON's quotes, typed by the schemas of the tools.

use std::collections::HashMap;

use crate::Json;

/// Schemas that are looked at to find the type of one argument.
const MAX_SCHEMAS: usize = 64;

/// The parameters of the tools of one request.
#[derive(Debug, Clone, Default)]
pub(super) struct ToolTypes {
    tools: HashMap<String, Json>,
}

impl ToolTypes {
    /// Tools in OpenAI's form, or as bare functions.
    pub(super) fn new(tools: &[Json]) -> ToolTypes {
        let tools = tools.iter().filter_map(|tool| {
            let function = tool.get("function").unwrap_or(tool);
            let name = function.get("name")?.as_str()?.to_owned();
            let schema = function.get("parameters").or_else(|| function.get("input_schema"));
            Some((name, schema.cloned().unwrap_or_default()))
        });
        ToolTypes { tools: tools.collect() }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tools.keys().map(String::as_str)
    }

    pub(super) fn knows(&self, tool: &str) -> bool {
        self.tools.contains_key(tool)
    }

    /// JSON text of an argument. What the schema lets be something else than a string is that if
    /// it reads as such, and a string if not; without a type the text decides.
    pub(super) fn json(&self, tool: &str, argument: &str, text: &str) -> String {
        let schema = self.tools.get(tool);
        let property = schema.and_then(|schema| schema.get("properties")?.get(argument));
        let mut types = Vec::new();
        if let (Some(root), Some(property)) = (schema, property) {
            types_of(property, root, &mut MAX_SCHEMAS.clone(), &mut types);
        }
        let fits = |value: &Json| types.is_empty() || types.contains(&type_of(value));
        let trimmed = text.trim();
        // Templates print booleans and nothing at all the way Python does.
        let text_of_json = match trimmed {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            _ => trimmed,
        };
        match serde_json::from_str::<Json>(text_of_json) {
            Ok(value) if !value.is_string() && fits(&value) => text_of_json.to_owned(),
            _ => string(text),
        }
    }
}

/// JSON text of an object of arguments that are JSON texts already; the last of a name counts.
pub(super) fn object(arguments: &[(String, String)]) -> String {
    let last: HashMap<_, _> =
        arguments.iter().enumerate().map(|(idx, (key, _))| (key.as_str(), idx)).collect();
    let members = arguments.iter().enumerate().filter(|(idx, (key, _))| last[key.as_str()] == *idx);
    let members: Vec<_> =
        members.map(|(_, (key, value))| format!("{}: {value}", string(key))).collect();
    format!("{{{}}}", members.join(", "))
}

/// JSON text of a string.
pub(super) fn string(text: &str) -> String {
    Json::from(text).to_string()
}

/// Whether a value may be a string, by a schema that may refer to others in `root`.
pub(super) fn may_be_string(schema: &Json, root: &Json) -> bool {
    may_be(schema, root, "string")
}

/// The same of an object.
pub(super) fn may_be_object(schema: &Json, root: &Json) -> bool {
    may_be(schema, root, "object")
}

fn may_be(schema: &Json, root: &Json, wanted: &str) -> bool {
    let mut types = Vec::new();
    types_of(schema, root, &mut MAX_SCHEMAS.clone(), &mut types);
    types.is_empty() || types.contains(&wanted)
}

fn type_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Number(_) => "number",
        Json::String(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    }
}

/// The types that `schema` allows; none means that it does not say. Integers are numbers.
fn types_of(schema: &Json, root: &Json, n_left: &mut usize, types: &mut Vec<&'static str>) {
    let Some(fewer) = n_left.checked_sub(1) else { return };
    *n_left = fewer;
    let mut add = |name: &str| {
        let known = ["null", "boolean", "number", "string", "array", "object"];
        let name = if name == "integer" { "number" } else { name };
        types.extend(known.into_iter().find(|known| *known == name));
    };
    match schema.get("type") {
        Some(Json::String(name)) => return add(name),
        Some(Json::Array(names)) => return names.iter().filter_map(Json::as_str).for_each(add),
        _ => {}
    }
    if let Some(constant) = schema.get("const") {
        add(type_of(constant));
    }
    for value in schema.get("enum").and_then(Json::as_array).into_iter().flatten() {
        add(type_of(value));
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        for schema in schema.get(key).and_then(Json::as_array).into_iter().flatten() {
            types_of(schema, root, n_left, types);
        }
    }
    let reference = schema.get("$ref").and_then(Json::as_str);
    let target = reference.and_then(|path| root.pointer(path.strip_prefix('#')?));
    if let Some(target) = target {
        types_of(target, root, n_left, types);
    }
}
