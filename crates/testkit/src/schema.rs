//! JSON Schemas taken at their word: whether a value fits one, and values at its edges, which fit
//! or do not.
//!
//! A keyword that is not known here is a panic, so that no schema is checked by half.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::{Map, Value, json};

/// A document with schemas that refer to each other.
#[derive(Debug, Clone, Copy)]
pub struct Schemas<'a>(pub &'a Value);

/// Keywords that say nothing of values.
const OF_PEOPLE: [&str; 4] = ["$ref", "contentMediaType", "description", "format"];

impl<'a> Schemas<'a> {
    /// The schema of a reference; another one is itself.
    pub fn resolve(&self, schema: &'a Value) -> &'a Value {
        let Some(name) = schema.get("$ref").and_then(Value::as_str) else { return schema };
        let found = name.strip_prefix('#').and_then(|pointer| self.0.pointer(pointer));
        self.resolve(found.unwrap_or_else(|| panic!("{name} is nowhere")))
    }

    /// Whether a value fits.
    ///
    /// # Errors
    /// Where it does not, and why.
    pub fn check(&self, schema: &'a Value, value: &Value) -> Result<(), String> {
        let Value::Object(keywords) = self.resolve(schema) else {
            return match schema {
                Value::Bool(false) => Err(format!("there must be no {value}")),
                _ => Ok(()),
            };
        };
        for (keyword, of) in keywords {
            let fits = self.fits(keywords, keyword, of, value);
            if !fits.map_err(|inner| format!("{keyword} > {inner}"))? {
                return Err(format!("{keyword} {of} refuses {value}"));
            }
        }
        Ok(())
    }

    /// A keyword that has schemas in it; of others [`is_within`] knows.
    fn fits(
        &self,
        keywords: &'a Map<String, Value>,
        keyword: &str,
        of: &'a Value,
        value: &Value,
    ) -> Result<bool, String> {
        let named = |name: &String, inner: String| format!("{name}: {inner}");
        let fields = || value.as_object().into_iter().flatten();
        match keyword {
            "items" => {
                let mut items = value.as_array().into_iter().flatten();
                items.try_for_each(|item| self.check(of, item))?;
            }
            "properties" => {
                for (name, value) in fields() {
                    let schema = of.get(name).unwrap_or(&Value::Bool(true));
                    self.check(schema, value).map_err(|inner| named(name, inner))?;
                }
            }
            "propertyNames" => {
                fields().try_for_each(|(name, _)| self.check(of, &json!(name)))?;
            }
            "additionalProperties" => {
                let known = keywords.get("properties");
                let is_other = |name: &str| known.is_none_or(|known| known.get(name).is_none());
                for (name, value) in fields().filter(|(name, _)| is_other(name)) {
                    self.check(of, value).map_err(|inner| named(name, inner))?;
                }
            }
            "allOf" => {
                items(of).iter().try_for_each(|one| self.check(one, value))?;
            }
            "anyOf" => {
                let checked = items(of).iter().map(|schema| self.check(schema, value));
                let failures: Option<Vec<String>> = checked.map(Result::err).collect();
                failures.map_or(Ok(()), |failures| Err(failures.join(" | ")))?;
            }
            "contains" => {
                let is_one = |item| self.check(of, item).is_ok();
                return Ok(value.as_array().is_none_or(|items| items.iter().any(is_one)));
            }
            "contentSchema" => match value.as_str().map(serde_json::from_str::<Value>) {
                None => {}
                Some(Err(_)) => return Ok(false),
                Some(Ok(inner)) => self.check(of, &inner)?,
            },
            other => return Ok(is_within(other, of, value)),
        }
        Ok(true)
    }

    /// Paths of all fields that a value may have, as `a.b` and `a[].b`.
    pub fn fields(&self, schema: &'a Value) -> BTreeSet<String> {
        let mut fields = BTreeSet::new();
        self.add_fields(schema, "", &mut fields);
        fields
    }

    fn add_fields(&self, schema: &'a Value, path: &str, fields: &mut BTreeSet<String>) {
        let schema = self.resolve(schema);
        for form in items(&schema["anyOf"]) {
            self.add_fields(form, path, fields);
        }
        for (name, of) in schema["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            self.add_fields(of, &path, fields);
            fields.insert(path);
        }
        if let Some(of) = schema.get("items") {
            self.add_fields(of, &format!("{path}[]"), fields);
        }
    }

    /// Values inside the schema and outside, one thing at a time, and fields of objects two by two.
    pub fn values(&self, schema: &'a Value) -> Vec<Value> {
        let schema = self.resolve(schema);
        let mut values: Vec<Value> = items(&schema["enum"]).to_vec();
        values.extend(schema.get("const").cloned());
        for form in items(&schema["anyOf"]) {
            values.extend(self.values(form));
        }
        let has = |kind: &str| match &schema["type"] {
            Value::Array(kinds) => kinds.iter().any(|of| of == kind),
            of => of == kind,
        };
        if has("integer") || has("number") {
            values.extend(around(schema));
        }
        if has("array") || schema.get("items").is_some() {
            values.extend(self.lists(schema));
        }
        if has("object") {
            values.extend(self.objects(schema));
        }
        let strange = [
            json!(null),
            json!(true),
            json!(false),
            json!(7),
            json!(0.5),
            json!([]),
            json!({}),
            json!({"x": 1}),
            json!(""),
            json!("x"),
            json!("a b"),
            json!("5m"),
            json!("\u{0}"),
        ];
        for value in strange {
            if !values.contains(&value) {
                values.push(value);
            }
        }
        values
    }

    fn lists(&self, schema: &'a Value) -> Vec<Value> {
        let items = schema.get("items").unwrap_or(&Value::Null);
        let of = if items.is_null() { vec![json!(1)] } else { self.values(items) };
        let mut lists: Vec<Value> = of.iter().map(|item| json!([item])).collect();
        let good = of.iter().find(|item| self.check(schema, &json!([item])).is_ok());
        if let (Some(max), Some(good)) = (schema["maxItems"].as_u64(), good) {
            let n = max as usize;
            lists.extend([json!(vec![good; n]), json!(vec![good; n + 1])]);
        }
        lists
    }

    fn objects(&self, schema: &'a Value) -> Vec<Value> {
        let names = self.fields(schema).into_iter().filter(|name| !name.contains(['.', '[']));
        let of = |name: &str| match &schema["properties"][name] {
            Value::Null => vec![json!(1)],
            schema => self.values(schema),
        };
        let good = |name: &str| {
            let schema = &schema["properties"][name];
            of(name).into_iter().find(|value| !value.is_null() && self.check(schema, value).is_ok())
        };
        let required = items(&schema["required"]).iter().filter_map(Value::as_str);
        let base: Map<_, _> =
            required.filter_map(|name| Some((name.to_owned(), good(name)?))).collect();
        let with = |name: &str, value: Value| {
            let mut object = base.clone();
            object.insert(name.to_owned(), value);
            object
        };
        let mut objects = vec![base.clone(), with("unheard_of", json!(1))];
        let mut with_good = Vec::new();
        for name in names.collect::<Vec<_>>() {
            objects.extend(of(&name).into_iter().map(|value| with(&name, value)));
            let mut without = base.clone();
            if without.remove(&name).is_some() {
                objects.push(without);
            }
            with_good.extend(good(&name).map(|value| (name.clone(), value)));
        }
        for (idx, (name, value)) in with_good.iter().enumerate() {
            for (other, and) in with_good.iter().take(idx) {
                let mut object = with(name, value.clone());
                object.insert(other.clone(), and.clone());
                objects.push(object);
            }
        }
        for rule in items(&schema["allOf"]).iter().map(|rule| items(&rule["anyOf"])) {
            let names: BTreeSet<_> = rule
                .iter()
                .filter_map(|one| one["properties"].as_object())
                .flat_map(Map::keys)
                .collect();
            for one in rule {
                // The fields of the rule, with one more of them as the rule has it.
                let required = items(&one["required"]).iter().filter_map(Value::as_str);
                let there: Map<_, _> = required
                    .filter_map(|name| {
                        let as_ruled = |value: &Value| self.check(&one["properties"][name], value);
                        let fits = |value: &Value| {
                            self.check(&schema["properties"][name], value).is_ok()
                                && as_ruled(value).is_ok()
                        };
                        Some((name.to_owned(), of(name).into_iter().find(fits)?))
                    })
                    .collect();
                for name in names.iter().filter(|name| !there.contains_key(name.as_str())) {
                    objects.extend(of(name).into_iter().map(|value| {
                        let mut object = with(name, value);
                        object.extend(there.clone());
                        object
                    }));
                }
            }
        }
        for name in items(&schema["propertyNames"]["enum"]).iter().filter_map(Value::as_str) {
            objects.push(with(name, json!("x")));
        }
        objects.into_iter().map(Value::Object).collect()
    }
}

/// A keyword that has no schema in it.
fn is_within(keyword: &str, of: &Value, value: &Value) -> bool {
    let object = value.as_object();
    let number = || value.as_f64();
    let n_chars = || value.as_str().map(|text| text.chars().count());
    match keyword {
        "type" => match of {
            Value::Array(kinds) => kinds.iter().any(|kind| is_of(kind, value)),
            kind => is_of(kind, value),
        },
        "const" => is_equal(of, value),
        "enum" => items(of).iter().any(|one| is_equal(one, value)),
        "minimum" => number().is_none_or(|n| n >= of.as_f64().unwrap_or(n)),
        "maximum" => number().is_none_or(|n| n <= of.as_f64().unwrap_or(n)),
        "minLength" => n_chars().is_none_or(|n| n >= size(of)),
        "maxLength" => n_chars().is_none_or(|n| n <= size(of)),
        "pattern" => value.as_str().is_none_or(|text| regex(of).is_match(text)),
        "minItems" => value.as_array().is_none_or(|items| items.len() >= size(of)),
        "maxItems" => value.as_array().is_none_or(|items| items.len() <= size(of)),
        "maxProperties" => object.is_none_or(|object| object.len() <= size(of)),
        "required" => object.is_none_or(|object| {
            items(of).iter().filter_map(Value::as_str).all(|name| object.contains_key(name))
        }),
        other => {
            assert!(OF_PEOPLE.contains(&other), "the keyword {other} is not known");
            true
        }
    }
}

fn is_of(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap_or_default() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
        }
        other => panic!("the type {other:?} is not known"),
    }
}

/// 1 and 1.0 are equal.
fn is_equal(one: &Value, other: &Value) -> bool {
    one == other || one.as_f64().is_some_and(|n| other.as_f64() == Some(n))
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

fn size(of: &Value) -> usize {
    of.as_u64().expect("it is a number of things") as usize
}

fn regex(of: &Value) -> Regex {
    Regex::new(of.as_str().expect("it is a pattern")).expect("it is an expression")
}

/// Numbers at the bounds, and beyond them.
fn around(schema: &Value) -> Vec<Value> {
    let mut numbers = vec![json!(1)];
    for bound in ["minimum", "maximum"] {
        let step = if bound == "minimum" { -1 } else { 1 };
        match &schema[bound] {
            Value::Null => {}
            Value::Number(n) if n.is_f64() => {
                let bound = n.as_f64().unwrap_or_default();
                // Not the very next one: a reader of JSON may err by that.
                let near = if bound == 0.0 { 1e-9 } else { bound.abs() * 1e-9 };
                let beyond = bound + f64::from(step) * near;
                numbers.extend([json!(bound), json!(beyond), json!(bound + f64::from(step))]);
            }
            bound => {
                numbers.push(bound.clone());
                let wide = bound.as_i64().map(i128::from).or(bound.as_u64().map(i128::from));
                let beyond = wide.map(|n| n + i128::from(step));
                let signed = beyond.and_then(|n| i64::try_from(n).ok()).map(Value::from);
                let unsigned = beyond.and_then(|n| u64::try_from(n).ok()).map(Value::from);
                numbers.extend(signed.or(unsigned));
            }
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_on_both_sides_of_each_keyword() {
        let check = |schema: Value| {
            let document = json!({"s": schema});
            let (schemas, schema) = (Schemas(&document), json!({"$ref": "#/s"}));
            let (good, bad): (Vec<_>, Vec<_>) = schemas
                .values(&schema)
                .into_iter()
                .partition(|v| schemas.check(&schema, v).is_ok());
            assert!(!good.is_empty() && !bad.is_empty(), "{schema}: {good:?} {bad:?}");
            (good, bad)
        };
        let (good, bad) = check(json!({"type": "integer", "minimum": -1, "maximum": 3}));
        assert!(good.contains(&json!(-1)) && good.contains(&json!(3)), "{good:?}");
        assert!(bad.contains(&json!(-2)) && bad.contains(&json!(4)), "{bad:?}");
        let (_, bad) = check(json!({"type": "number", "minimum": 0.0, "maximum": 1.0}));
        assert!(bad.contains(&json!(1.0 + 1e-9)), "{bad:?}");
        let (good, bad) = check(json!({"type": "array", "items": {"const": "a"}, "maxItems": 2}));
        assert!(good.contains(&json!(["a", "a"])) && bad.contains(&json!(["a", "a", "a"])));
        let (good, bad) = check(json!({
            "type": "object", "required": ["a"], "additionalProperties": false,
            "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", null]}},
            "allOf": [{"anyOf": [{"properties": {"a": {"const": true}}},
                                 {"properties": {"b": {"type": "null"}}}]}],
        }));
        assert!(good.contains(&json!({"a": true, "b": "x"})), "{good:?}");
        assert!(bad.contains(&json!({"a": true, "unheard_of": 1})) && bad.contains(&json!({})));
        check(json!({"type": "string", "pattern": "^[a-z ]+$", "minLength": 1}));
        let names = json!({"enum": ["n", "o"]});
        let (good, _) = check(json!({"type": "object", "propertyNames": names}));
        assert!(good.contains(&json!({"n": "x"})), "{good:?}");
    }

    #[test]
    fn fields_are_those_of_all_forms_and_of_lists() {
        let inner = json!({"anyOf": [{"type": "null"}, {"$ref": "#/s"}]});
        let document = json!({"s": {"properties": {"b": {"type": "string"}}}});
        let schema = json!({"properties": {"a": {"items": inner}, "c": inner}});
        let fields: Vec<_> = Schemas(&document).fields(&schema).into_iter().collect();
        assert_eq!(fields, ["a", "a[].b", "c", "c.b"]);
    }
}
