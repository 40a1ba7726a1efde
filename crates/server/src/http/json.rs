//! JSON of callers, with bounds: depth, number of values, no key twice.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};
use text::JsonMap;

use crate::failure::{Failure, Kind};

/// Values of all kinds in one body. A prompt of token ids has one for each token.
const MAX_VALUES: usize = 2_000_000;

/// Reads a body. Deeper than 128 levels, more than 2,000,000 values, a key that is there twice,
/// bytes that are no UTF-8 and halves of surrogate pairs are errors.
///
/// # Errors
/// The body is not JSON within these bounds.
pub fn parse(bytes: &[u8]) -> Result<Value, Failure> {
    let mut n_values = 0;
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Bounded(&mut n_values).deserialize(&mut deserializer);
    value.and_then(|value| deserializer.end().map(|()| value)).map_err(|error| {
        Failure::new(Kind::Invalid, format!("the body is not JSON that can be used: {error}"))
    })
}

struct Bounded<'a>(&'a mut usize);

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        *self.0 += 1;
        if *self.0 > MAX_VALUES {
            return Err(D::Error::custom(format!("it holds more than {MAX_VALUES} values")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number is too large"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Bounded(self.0))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = JsonMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {key:?} is there twice")));
            }
            let value = map.next_value_seed(Bounded(self.0))?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let deep = |n| format!("{}{}", "[".repeat(n), "]".repeat(n));
        let many = format!("[{}1]", "1,".repeat(MAX_VALUES));
        for (text, says) in [
            (b"".as_slice(), "EOF"),
            (b"{} x", "trailing"),
            (b"{\"a\": 1, \"b\": {\"a\": 1, \"a\": 2}}", "the key \"a\" is there twice"),
            (b"\"\xff\"", "unicode"),
            (b"\"\\ud800\"", "hex escape"),
            (b"\"\\ud800\\u0041\"", "surrogate"),
            (b"1e999", "out of range"),
            (b"NaN", "expected"),
            (deep(129).as_bytes(), "recursion limit"),
            (deep(100_000).as_bytes(), "recursion limit"),
            (many.as_bytes(), "more than 2000000 values"),
        ] {
            let failure = parse(text).unwrap_err();
            assert_eq!(failure.kind, Kind::Invalid);
            assert!(failure.message.contains(says), "{}", failure.message);
        }
        assert!(parse(deep(127).as_bytes()).is_ok());
        let text = r#"{"b":[1,-2,0.5,true,null,"ä😀"],"a":{}}"#;
        assert_eq!(parse(text.as_bytes()).unwrap().to_string(), text);
    }
}
