//! The fields of one JSON object of a request: each is taken, or refused by name.
//!
//! Invariants: what nobody took is an error at [`Fields::end`]; `null` is the same as absent; an
//! error names the field with its whole path.

use std::ops::RangeInclusive;

use serde_json::Value;
use text::JsonMap;

use crate::failure::Failure;

/// The fields that have not been taken.
#[derive(Debug)]
pub struct Fields {
    path: String,
    map: JsonMap,
}

type Result<T> = std::result::Result<T, Failure>;

impl Fields {
    /// The fields of an object; `path` is empty for the whole body.
    ///
    /// # Errors
    /// The value is no object.
    pub fn of(path: impl Into<String>, value: Value) -> Result<Self> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            _ if path.is_empty() => Err(Failure::invalid("body", "must be a JSON object")),
            _ => Err(Failure::invalid(path, "must be an object")),
        }
    }

    /// The fields of an address, all of them texts.
    ///
    /// # Errors
    /// One is there twice.
    pub fn of_query(query: Vec<(String, String)>) -> Result<Self> {
        let mut map = JsonMap::new();
        for (name, value) in query {
            let name = crate::openai::shown(&name);
            if map.insert(name.clone(), value.into()).is_some() {
                return Err(Failure::invalid(name, "is there twice"));
            }
        }
        Ok(Self { path: String::new(), map })
    }

    /// The whole path of a field.
    pub fn path(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    /// An error about a field.
    pub fn invalid(&self, name: &str, reason: impl std::fmt::Display) -> Failure {
        Failure::invalid(self.path(name), reason)
    }

    /// Takes a field as it is.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.asked(name);
        self.shift(name)
    }

    fn shift(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Looks at a field without taking it.
    pub fn peek(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Whether a field is there.
    pub fn has(&self, name: &str) -> bool {
        self.peek(name).is_some()
    }

    fn typed<T>(
        &mut self,
        name: &str,
        what: &str,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(self.invalid(name, format!("must be {what}"))),
            },
        }
    }

    /// A text.
    pub fn string(&mut self, name: &str) -> Result<Option<String>> {
        self.typed(name, "a string", |value| match value {
            Value::String(text) => Some(text),
            _ => None,
        })
    }

    /// A text that has to be there.
    pub fn required_string(&mut self, name: &str) -> Result<String> {
        self.string(name)?.ok_or_else(|| self.invalid(name, "is missing"))
    }

    /// One of some words.
    pub fn word(&mut self, name: &str, words: &[&'static str]) -> Result<Option<&'static str>> {
        let what = format!("one of {}", words.join(", "));
        self.typed(name, &what, |value| {
            let text = value.as_str()?;
            words.iter().find(|word| **word == text).copied()
        })
    }

    /// True or false.
    pub fn bool(&mut self, name: &str) -> Result<Option<bool>> {
        self.typed(name, "true or false", |value| value.as_bool())
    }

    /// A whole number within bounds.
    pub fn integer(&mut self, name: &str, min: u64, max: u64) -> Result<Option<u64>> {
        let what = format!("a whole number from {min} to {max}");
        self.typed(name, &what, |value| {
            whole(&value).and_then(|n| u64::try_from(n).ok()).filter(|n| (min..=max).contains(n))
        })
    }

    /// A whole number within bounds, of which the lower may be below 0.
    pub fn signed(&mut self, name: &str, min: i64, max: i64) -> Result<Option<i64>> {
        let what = format!("a whole number from {min} to {max}");
        self.typed(name, &what, |value| {
            whole(&value).and_then(|n| i64::try_from(n).ok()).filter(|n| (min..=max).contains(n))
        })
    }

    /// A whole number from `min` to what 32 bits hold.
    pub fn u32(&mut self, name: &str, min: u32) -> Result<Option<u32>> {
        Ok(self.integer(name, min.into(), u32::MAX.into())?.map(|n| n as u32))
    }

    /// A seed: any whole number; negative ones count from the other end.
    pub fn seed(&mut self, name: &str) -> Result<Option<u64>> {
        self.typed(name, "a whole number of 64 bits", |value| {
            let n = whole(&value)?;
            u64::try_from(n).ok().or_else(|| i64::try_from(n).ok().map(i64::cast_unsigned))
        })
    }

    /// A number within bounds.
    pub fn number(&mut self, name: &str, range: &RangeInclusive<f64>) -> Result<Option<f32>> {
        let what = format!("a number from {:?} to {:?}", range.start(), range.end());
        self.typed(name, &what, |value| {
            value.as_f64().filter(|number| range.contains(number)).map(|number| number as f32)
        })
    }

    /// A text or a list of texts.
    pub fn strings(&mut self, name: &str) -> Result<Vec<String>> {
        let texts = self.typed(name, "a string or a list of strings", |value| match value {
            Value::String(text) => Some(vec![text]),
            Value::Array(values) => {
                values.into_iter().map(|v| v.as_str().map(str::to_owned)).collect()
            }
            _ => None,
        })?;
        Ok(texts.unwrap_or_default())
    }

    /// A list; empty if it is not there.
    pub fn list(&mut self, name: &str) -> Result<Vec<Value>> {
        let list = self.typed(name, "a list", |value| match value {
            Value::Array(values) => Some(values),
            _ => None,
        })?;
        Ok(list.unwrap_or_default())
    }

    /// A list of objects; empty if it is not there.
    pub fn objects(&mut self, name: &str) -> Result<Vec<Fields>> {
        let path = self.path(name);
        let list = self.list(name)?.into_iter().enumerate();
        list.map(|(idx, value)| Fields::of(format!("{path}[{idx}]"), value)).collect()
    }

    /// An object.
    pub fn object(&mut self, name: &str) -> Result<Option<Fields>> {
        let path = self.path(name);
        self.take(name).map(|value| Fields::of(path, value)).transpose()
    }

    /// Everything that is left, unchecked.
    pub fn rest(self) -> JsonMap {
        self.map
    }

    /// A field that has no effect here, whatever it says.
    pub fn without_effect(&mut self, name: &str) {
        self.asked(name);
        self.map.shift_remove(name);
    }

    /// A field of which one value changes nothing; any other is refused.
    pub fn only(&mut self, name: &str, values: &[Value]) -> Result<()> {
        match self.take(name) {
            Some(value) if !values.contains(&value) => {
                let allowed: Vec<_> = values.iter().map(Value::to_string).collect();
                let allowed = allowed.join(" or ");
                Err(self.invalid(name, format!("can only be {allowed} here")))
            }
            _ => Ok(()),
        }
    }

    /// A field that cannot be served.
    pub fn refuse(&mut self, name: &str, why: &str) -> Result<()> {
        match self.shift(name) {
            None => Ok(()),
            Some(_) => Err(self.invalid(name, format!("is not supported: {why}"))),
        }
    }

    /// Tests learn which fields there are, those that are refused by name left out.
    fn asked(&self, name: &str) {
        #[cfg(test)]
        asked::note(&self.path(name));
        #[cfg(not(test))]
        let _ = name;
    }

    /// All fields that mean something have been taken.
    ///
    /// # Errors
    /// One is left.
    pub fn end(self) -> Result<()> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => Err(self.invalid(&shown(name), "is not known")),
        }
    }
}

/// Whole numbers also where they are written as `1.0`.
fn whole(value: &Value) -> Option<i128> {
    /// Doubles beyond have no ones.
    const MAX: f64 = 9_007_199_254_740_992.0;
    let number = value.as_number()?;
    match number.as_i128() {
        Some(n) => Some(n),
        None => {
            let float = number.as_f64()?;
            (float.fract() == 0.0 && float.abs() <= MAX).then_some(float as i128)
        }
    }
}

/// A list of token ids.
pub fn token_ids(values: &[Value]) -> Option<Vec<u32>> {
    values.iter().map(|value| u32::try_from(whole(value)?).ok()).collect()
}

/// A caller's own words in an answer: short, and no control characters.
fn shown(name: &str) -> String {
    name.chars().take(64).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The fields that this thread has asked for.
#[cfg(test)]
pub mod asked {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    thread_local!(static NAMES: RefCell<BTreeSet<String>> = RefCell::default());

    /// One was asked for. Indexes of lists do not count.
    pub(super) fn note(path: &str) {
        let mut names = path.split(['[', ']']).step_by(2).collect::<Vec<_>>().join("[]");
        names.retain(|c| !c.is_control());
        NAMES.with_borrow_mut(|all| all.insert(names));
    }

    /// Those since the last call.
    pub fn names() -> BTreeSet<String> {
        NAMES.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::of("", value).unwrap()
    }

    #[test]
    fn what_is_not_taken_is_named_with_its_path() {
        let mut body = fields(json!({"a": null, "list": [{}, {"b": 1}], "c": 2}));
        let mut objects = body.objects("list").unwrap();
        let error = objects.remove(1).end().unwrap_err();
        assert_eq!(error.field.as_deref(), Some("list[1].b"));
        let error = body.end().unwrap_err();
        assert_eq!((error.field.as_deref(), error.message.as_str()), (Some("c"), "c is not known"));
    }

    #[test]
    fn numbers_have_bounds() {
        let check = |value: Value, expected: Option<u64>| {
            let read = fields(json!({"n": value})).integer("n", 1, 1000);
            assert_eq!(read.ok().flatten(), expected, "{value}");
        };
        check(json!(1), Some(1));
        check(json!(7.0), Some(7));
        for bad in [json!(0), json!(-1), json!(1001), json!(7.5), json!(1e300), json!("7")] {
            assert!(fields(json!({"n": bad})).integer("n", 1, 1000).is_err(), "{bad}");
        }
        for (value, seed) in
            [(json!(-1), u64::MAX), (json!(-1.0), u64::MAX), (json!(u64::MAX), u64::MAX)]
        {
            assert_eq!(fields(json!({"s": value})).seed("s").unwrap(), Some(seed));
        }
        let last = |value: Value| fields(json!({"n": value})).signed("n", -1, 9).ok().flatten();
        assert_eq!([json!(-1.0), json!(9), json!(-2)].map(last), [Some(-1), Some(9), None]);
        assert_eq!(token_ids(&[json!(7), json!(7.0)]), Some(vec![7, 7]));
        assert_eq!(token_ids(&[json!(7), json!(-1)]), None);
        assert!(fields(json!({"t": 2.1})).number("t", &(0.0..=2.0)).is_err());
        assert!(fields(json!({"t": 2.000_000_01})).number("t", &(0.0..=2.0)).is_err());
    }
}
