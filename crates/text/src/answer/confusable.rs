//! JSON by a form beside calls that are bare JSON objects themselves,
//! `{"name": …, "parameters": {…}}`: one schema of both, and whether one could pass for the other.

use serde_json::json;

use super::schema::{may_be_object, may_be_string};
use crate::{Json, JsonMap};

/// What an object that is a call has, in this order, and nothing else.
const KEYS: [&str; 2] = ["name", "parameters"];
/// Members of a schema that hold values, no schemas.
const VALUES: [&str; 4] = ["const", "default", "enum", "examples"];
/// How far a call may be indented before its arguments.
const MAX_BLANK_BYTES: usize = 512;
/// Schemas within schemas that are looked into.
const MAX_DEPTH: usize = 16;
/// What lets an object have properties that are not listed.
const OPEN_KEYWORDS: [&str; 3] = ["patternProperties", "unevaluatedProperties", "propertyNames"];

/// A schema of JSON by `form`, and of calls of tools by name and schema of the arguments. One
/// schema, because a grammar that had calls as text and the form as JSON would take the first
/// characters of one for the other's.
pub(super) fn form_or_call(form: &Json, tools: &[(&str, &Json)]) -> Json {
    let mut definitions = JsonMap::new();
    let mut define = |name: String, schema: &Json| {
        let place = format!("#/$defs/{name}");
        definitions.insert(name, moved(schema, &place));
        json!({ "$ref": place })
    };
    let mut options = vec![define("form".to_owned(), form)];
    for (idx, (name, parameters)) in tools.iter().enumerate() {
        let mut object = (*parameters).clone();
        object["type"] = "object".into();
        let parameters = define(format!("tool_{idx}"), &object);
        let [name_key, parameters_key] = KEYS;
        let properties = json!({ name_key: { "const": name }, parameters_key: parameters });
        options.push(json!({
            "type": "object", "properties": properties, "required": KEYS,
            "additionalProperties": false,
        }));
    }
    json!({ "anyOf": options, "$defs": definitions })
}

/// A schema that lies at `place` in another one.
fn moved(schema: &Json, place: &str) -> Json {
    match schema {
        Json::Array(items) => items.iter().map(|item| moved(item, place)).collect(),
        Json::Object(members) => {
            let member = |(key, value): (&String, &Json)| {
                let value = match value {
                    Json::String(to) if key == "$ref" && to.starts_with('#') => {
                        [place, &to[1..]].concat().into()
                    }
                    value if VALUES.contains(&key.as_str()) => value.clone(),
                    value => moved(value, place),
                };
                (key.clone(), value)
            };
            // Within another schema these would change what references are relative to.
            let stays = |(key, value): &(&String, &Json)| {
                !(value.is_string() && matches!(key.as_str(), "$id" | "$schema"))
            };
            Json::Object(members.iter().filter(stays).map(member).collect())
        }
        value => value.clone(),
    }
}

/// What calls begin with, up to their arguments, where only exactly that begins one.
#[derive(Debug)]
pub(super) struct Openers {
    /// Without blanks.
    all: Vec<String>,
    has_begun: bool,
}

impl Openers {
    /// Of tools by name.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Openers {
        let [name_key, parameters_key] = KEYS;
        let opener = |name| format!("{{\"{name_key}\":\"{name}\",\"{parameters_key}\":");
        Openers { all: names.map(opener).collect(), has_begun: false }
    }

    /// Another object begins.
    pub(super) fn reset(&mut self) {
        self.has_begun = false;
    }

    /// Whether what was read of an object may become a call.
    pub(super) fn may_become(&mut self, raw: &str) -> bool {
        if self.has_begun {
            return true;
        }
        let is_blank = |c: &char| matches!(c, ' ' | '\t' | '\n' | '\r');
        let dense = raw.chars().filter(|c| !is_blank(c)).collect::<String>();
        self.has_begun = self.all.iter().any(|opener| dense.starts_with(opener.as_str()));
        let goes_on = || self.all.iter().any(|opener| opener.starts_with(&dense));
        self.has_begun || raw.len() < dense.len() + MAX_BLANK_BYTES && goes_on()
    }

    /// Whether an object is a call.
    pub(super) fn make(&self, raw: &str) -> bool {
        let members = serde_json::from_str::<JsonMap>(raw);
        members.is_ok_and(|members| members.keys().eq(KEYS) && members[KEYS[1]].is_object())
    }
}

/// Whether a value by `schema` may be an object that calls a tool of one of these names.
pub(super) fn may_be_call(schema: &Json, names: &[&str]) -> bool {
    may_be(schema, schema, names, MAX_DEPTH)
}

fn may_be(schema: &Json, root: &Json, names: &[&str], depth: usize) -> bool {
    let Some(members) = schema.as_object() else { return *schema != Json::Bool(false) };
    let Some(depth) = depth.checked_sub(1) else { return true };
    let may_be = |schema: &Json| may_be(schema, root, names, depth);
    let listed = |key: &str| schema.get(key).and_then(Json::as_array);
    if let Some(reference) = schema.get("$ref").and_then(Json::as_str) {
        let target = reference.strip_prefix('#').and_then(|path| root.pointer(path));
        if target.is_some_and(|target| !may_be(target)) {
            return false;
        }
    }
    let mut any_of = ["anyOf", "oneOf"].into_iter().filter_map(listed);
    let mut all_of = listed("allOf").into_iter().flatten();
    if !any_of.all(|options| options.iter().any(may_be))
        || !all_of.all(may_be)
        || !may_be_object(schema, root)
        || listed("required").into_iter().flatten().any(|key| KEYS.iter().all(|known| key != known))
    {
        return false;
    }
    let is_closed = schema.get("additionalProperties") == Some(&Json::Bool(false))
        && !OPEN_KEYWORDS.iter().any(|keyword| members.contains_key(*keyword));
    let property = |key: &str| schema.get("properties").and_then(|all| all.get(key));
    let names_a_tool = |value: &Json| value.as_str().is_some_and(|name| names.contains(&name));
    let may_name = |value: &Json| {
        let constant = value.get("const").is_none_or(names_a_tool);
        let choices = value.get("enum").and_then(Json::as_array);
        constant
            && choices.is_none_or(|choices| choices.iter().any(names_a_tool))
            && may_be_string(value, root)
    };
    property("name").map_or(!is_closed, may_name)
        && property("parameters").map_or(!is_closed, |value| may_be_object(value, root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_follow_their_schema_and_values_stay() {
        let schema = json!({"$id": "http://a/b", "properties": {"$id": {"$ref": "#"},
            "x": {"$ref": "#/$defs/x"}, "y": {"enum": [{"$ref": "#"}]}}, "$defs": {"x": true}});
        let expected = json!({"properties": {"$id": {"$ref": "#/a"}, "x": {"$ref": "#/a/$defs/x"},
            "y": {"enum": [{"$ref": "#"}]}}, "$defs": {"x": true}});
        assert_eq!(moved(&schema, "#/a"), expected);
    }

    #[test]
    fn what_cannot_be_a_call_is_known_by_its_keys_and_values() {
        let check = |schema: &str, may: bool| {
            let schema = serde_json::from_str::<Json>(schema).unwrap();
            assert_eq!(may_be_call(&schema, &["weather", "now"]), may, "{schema}");
        };
        let name = r#""name": {"type": "string"}"#;
        let both = format!(r#"{name}, "parameters": {{"type": "object"}}"#);
        let closed = |properties: &str, more: &str| {
            format!(
                r#"{{"type": "object", "additionalProperties": false,
                "properties": {{{properties}}}{more}}}"#
            )
        };
        check("{}", true);
        check("true", true);
        check("false", false);
        check(r#"{"type": "object"}"#, true);
        check(r#"{"type": ["array", "number"]}"#, false);
        check(r#"{"type": ["array", "object"]}"#, true);
        check(r#"{"properties": {"age": {}}, "required": ["age"]}"#, false);
        check(r#"{"properties": {"name": {}}, "required": ["name"]}"#, true);
        check(&closed(r#""age": {}"#, ""), false);
        check(&closed(name, ""), false);
        check(&closed(&both, ""), true);
        check(&closed(&both, r#", "required": ["name", "parameters"]"#), true);
        check(&closed(name, r#", "patternProperties": {"^p": {}}"#), true);
        for (value, may) in [
            (r#"{"enum": ["Ada", "Bob"]}"#, false),
            (r#"{"enum": ["Ada", "now"]}"#, true),
            (r#"{"const": "then"}"#, false),
            (r#"{"const": "now"}"#, true),
            (r#"{"type": "integer"}"#, false),
            (r##"{"$ref": "#/$defs/n"}"##, true),
        ] {
            check(&closed(&format!(r#""name": {value}, "parameters": {{}}"#), ""), may);
        }
        check(&closed(&format!(r#"{name}, "parameters": {{"type": "array"}}"#), ""), false);
        let option = |name: &str| closed(&format!(r#""{name}": {{}}"#), "");
        check(&format!(r#"{{"anyOf": [{}, {}]}}"#, option("a"), option("b")), false);
        check(&format!(r#"{{"oneOf": [{}, {}]}}"#, option("a"), closed(&both, "")), true);
        check(&format!(r#"{{"allOf": [{}, {{}}]}}"#, option("a")), false);
        let defined = |to: &str| {
            format!(r##"{{"$ref": "#/$defs/{to}", "$defs": {{"a": {}}}}}"##, option("a"))
        };
        check(&defined("a"), false);
        check(&defined("nothing"), true);
        check(r##"{"$ref": "#"}"##, true);
    }
}
