//! Reading config.json: typed getters whose errors name the key, and the rope keys in both of
//! transformers' spellings.
//!
//! A missing field has the default that the caller states: transformers' class default, never
//! mlx-lm's.

use serde_json::{Map, Value};

use crate::layers::RopeConfig;
use crate::layers::RopeKind;
use crate::{Error, Result};

/// The largest size a config may state for one dimension: above it a number is a mistake or an
/// attack.
const MAX_SIZE: i64 = 1 << 26;
/// The most layers: each costs memory before a single tensor of it is found.
const MAX_LAYERS: i32 = 4096;

/// A config.json, or the part of it that describes the text model.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a>(&'a Map<String, Value>);

impl<'a> Config<'a> {
    /// The text model's part: `text_config` if there is one, else the root.
    ///
    /// # Errors
    /// The value is not an object.
    pub fn text(root: &'a Value) -> Result<Self> {
        let root = root.as_object().ok_or_else(|| Error::config("(root)", "not a JSON object"))?;
        match root.get("text_config") {
            None | Some(Value::Null) => Ok(Self(root)),
            Some(Value::Object(text)) => Ok(Self(text)),
            Some(_) => Err(Error::config("text_config", "not an object")),
        }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key stands in the file, be it with null.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// An integer from 1 to 2²⁶, or none if the key is absent or null.
    pub fn size_opt(&self, key: &str) -> Result<Option<i32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_i64() {
            Some(n) if (1..=MAX_SIZE).contains(&n) => Ok(Some(n as i32)),
            _ => Err(Error::config(
                key,
                format!("must be an integer from 1 to {MAX_SIZE}, not {value}"),
            )),
        }
    }

    /// A required integer from 1 to 2²⁶.
    pub fn size(&self, key: &str) -> Result<i32> {
        self.size_opt(key)?.ok_or_else(|| Error::config(key, "is missing"))
    }

    /// `num_hidden_layers`.
    pub fn n_layers(&self) -> Result<i32> {
        match self.size("num_hidden_layers")? {
            n if n > MAX_LAYERS => Err(Error::config(
                "num_hidden_layers",
                format!("must be at most {MAX_LAYERS}, not {n}"),
            )),
            n => Ok(n),
        }
    }

    /// Fails unless `n` parts of `width` are together at most 2²⁶ wide; `key` is to blame.
    pub fn fits(&self, key: &str, n: i32, width: i32) -> Result<()> {
        match i64::from(n) * i64::from(width) {
            all if all <= MAX_SIZE => Ok(()),
            all => Err(Error::config(key, format!("makes a width of {all}, above {MAX_SIZE}"))),
        }
    }

    /// An integer from 1 to 2²⁶ with a default.
    pub fn size_or(&self, key: &str, default: i32) -> Result<i32> {
        Ok(self.size_opt(key)?.unwrap_or(default))
    }

    /// A required integer from 1 to 2²⁶ that goes by several names, which must agree.
    pub fn size_of_any(&self, keys: &[&str]) -> Result<i32> {
        let mut found = None;
        for key in keys {
            match (self.size_opt(key)?, found) {
                (Some(size), Some((first, other))) if size != other => {
                    let reason = format!("is {size}, but {first}, its other name, is {other}");
                    return Err(Error::config(*key, reason));
                }
                (Some(size), None) => found = Some((*key, size)),
                _ => {}
            }
        }
        found.map(|(_, size)| size).ok_or_else(|| Error::config(keys.join(" or "), "is missing"))
    }

    /// A list of integers from 0 on; empty if the key is absent.
    pub fn counts(&self, key: &str) -> Result<Vec<i32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let number = |v: &Value| v.as_i64().filter(|n| (0..=MAX_SIZE).contains(n));
        let list =
            value.as_array().and_then(|list| list.iter().map(number).collect::<Option<Vec<_>>>());
        let list = list.ok_or_else(|| Error::config(key, "must be a list of integers"))?;
        Ok(list.into_iter().map(|n| n as i32).collect())
    }

    /// An integer from 0 to 2²⁶ with a default.
    pub fn count_or(&self, key: &str, default: i32) -> Result<i32> {
        if self.get(key).and_then(Value::as_i64) == Some(0) {
            Ok(0)
        } else {
            self.size_or(key, default)
        }
    }

    /// A finite number, or none. Understands transformers' tagged form of non-finite numbers, and
    /// refuses those.
    pub fn number_opt(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(Error::config(key, format!("must be a finite number, not {value}"))),
        }
    }

    /// A finite number with a default.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.number_opt(key)?.unwrap_or(default))
    }

    /// A required finite number above 0.
    fn positive(&self, key: &str) -> Result<f64> {
        let number = self.number_opt(key)?.ok_or_else(|| Error::config(key, "is missing"))?;
        if number > 0.0 {
            Ok(number)
        } else {
            Err(Error::config(key, format!("must be above 0, not {number}")))
        }
    }

    /// A finite number above 0, or none.
    fn positive_opt(&self, key: &str) -> Result<Option<f64>> {
        self.number_opt(key)?.map(|_| self.positive(key)).transpose()
    }

    /// A boolean with a default.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| Error::config(key, format!("must be true or false, not {value}"))),
        }
    }

    /// A string, or none.
    pub fn text_opt(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value
                .as_str()
                .map(Some)
                .ok_or_else(|| Error::config(key, format!("must be a string, not {value}"))),
        }
    }

    /// Fails unless the key is absent or has this value: for options whose other values are not
    /// implemented.
    pub fn only(&self, key: &str, value: &str) -> Result<()> {
        match self.text_opt(key)? {
            None => Ok(()),
            Some(found) if found == value => Ok(()),
            Some(found) => {
                Err(Error::config(key, format!("'{found}' is not supported, only '{value}' is")))
            }
        }
    }

    /// Fails unless the key is absent, null or false: for options that are not implemented.
    pub fn absent(&self, key: &str, reason: &str) -> Result<()> {
        match self.get(key) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(_) => Err(Error::config(key, reason)),
        }
    }

    /// `layer_types`, if present: one known name per layer.
    pub fn layer_types(&self, n_layers: i32, known: &[&str]) -> Result<Option<Vec<&'a str>>> {
        self.kinds("layer_types", n_layers, known)
    }

    /// One known name per layer under `key`, if it is present.
    pub fn kinds(&self, key: &str, n_layers: i32, known: &[&str]) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let names =
            value.as_array().map(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        let Some(Some(names)) = names else {
            return Err(Error::config(key, "must be a list of names"));
        };
        if names.len() != n_layers as usize {
            let reason =
                format!("names {} layers, but num_hidden_layers is {n_layers}", names.len());
            return Err(Error::config(key, reason));
        }
        match names.iter().find(|name| !known.contains(name)) {
            Some(name) => {
                let reason = format!("'{name}' is not supported, only {} are", known.join(", "));
                Err(Error::config(key, reason))
            }
            None => Ok(Some(names)),
        }
    }

    fn object(&self, key: &str) -> Result<Option<Config<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Config(map))),
            Some(_) => Err(Error::config(key, "must be an object")),
        }
    }

    fn numbers(&self, key: &str) -> Result<Vec<f64>> {
        let list = self.get(key).and_then(Value::as_array);
        list.and_then(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>())
            .filter(|list| list.iter().all(|n| n.is_finite() && *n > 0.0))
            .ok_or_else(|| Error::config(key, "must be a list of numbers above 0"))
    }

    /// The rotary embedding's keys: nested `rope_parameters` (transformers 5), or `rope_theta`,
    /// `rope_scaling` and `partial_rotary_factor` beside the sizes (transformers 4).
    ///
    /// # Errors
    /// A key is missing for the kind, or the kind is unknown.
    pub fn rope(&self, default_theta: f64, default_partial: f64) -> Result<RopeConfig> {
        let nested = match self.object("rope_parameters")? {
            Some(rope) => Some(rope),
            None => self.object("rope_scaling")?,
        };
        if let Some(kind) = nested.and_then(|rope| rope.some_layer_type()) {
            let reason = format!("settings for single layer types ({kind}) are not supported");
            return Err(Error::config("rope_parameters", reason));
        }
        self.rope_from(nested, "rope_theta", default_theta, default_partial)
    }

    /// The same for the layers of one type, where a model has several: `rope_parameters.{kind}`
    /// (transformers 5); else for the scaled type as [`Config::rope`], and for others only
    /// `theta_key`.
    ///
    /// # Errors
    /// As of [`Config::rope`].
    pub fn rope_of(
        &self,
        kind: &str,
        is_scaled: bool,
        theta_key: &str,
        default_theta: f64,
    ) -> Result<RopeConfig> {
        let nested = match self.object("rope_parameters")? {
            Some(rope) if rope.some_layer_type().is_some() || rope.0.is_empty() => {
                rope.object(kind)?
            }
            Some(rope) => Some(rope).filter(|_| is_scaled),
            None if is_scaled => self.object("rope_scaling")?,
            None => None,
        };
        self.rope_from(nested, theta_key, default_theta, 1.0)
    }

    /// The first key whose value is an object, as where there is one for each layer type.
    /// transformers' tagged numbers are objects too.
    fn some_layer_type(&self) -> Option<&'a str> {
        let is_kind = |value: &Value| value.is_object() && value.get("__float__").is_none();
        self.0.iter().find(|(_, value)| is_kind(value)).map(|(key, _)| key.as_str())
    }

    /// Whether any rotary settings are there, in either spelling.
    pub fn has_rope(&self) -> bool {
        ["rope_parameters", "rope_scaling"].iter().any(|key| self.get(key).is_some())
    }

    fn rope_from(
        &self,
        nested: Option<Config<'a>>,
        theta_key: &str,
        default_theta: f64,
        default_partial: f64,
    ) -> Result<RopeConfig> {
        let max_tokens = self.size_or("max_position_embeddings", 2048)?;
        let inside = |key: &str| match nested {
            Some(rope) => rope.number_opt(key),
            None => Ok(None),
        };
        let theta = match inside("rope_theta")? {
            Some(theta) => theta,
            None => self.number_or(theta_key, default_theta)?,
        };
        if !(theta > 1.0 && theta < 1e30) {
            return Err(Error::config(
                "rope_theta",
                format!("must be between 1 and 1e30, not {theta}"),
            ));
        }
        let partial = match inside("partial_rotary_factor")? {
            Some(partial) => partial,
            None => self.number_or("partial_rotary_factor", default_partial)?,
        };
        if !(partial > 0.0 && partial <= 1.0) {
            return Err(Error::config(
                "partial_rotary_factor",
                format!("must be in (0, 1], not {partial}"),
            ));
        }
        let kind = match nested {
            None => RopeKind::Default,
            Some(rope) => self.rope_kind(rope, max_tokens)?,
        };
        Ok(RopeConfig { theta, partial, max_tokens, kind })
    }

    fn rope_kind(&self, rope: Config<'a>, max_tokens: i32) -> Result<RopeKind> {
        let name = match rope.text_opt("rope_type")? {
            Some(name) => name,
            None => rope.text_opt("type")?.unwrap_or("default"),
        };
        // Phi-3 and its kin keep the trained length beside the sizes; there it wins.
        let original = || -> Result<f64> {
            let own = self.size_opt("original_max_position_embeddings")?;
            let n =
                own.or(rope.size_opt("original_max_position_embeddings")?).unwrap_or(max_tokens);
            Ok(f64::from(n))
        };
        let ratio = |original: f64| -> Result<f64> {
            match rope.get("factor") {
                Some(_) => rope.positive("factor"),
                None => Ok(f64::from(max_tokens) / original),
            }
        };
        Ok(match name {
            "default" | "mrope" => RopeKind::Default,
            "linear" => RopeKind::Linear { factor: rope.positive("factor")? },
            "dynamic" => RopeKind::Dynamic { factor: rope.positive("factor")? },
            "llama3" => RopeKind::Llama3 {
                factor: rope.positive("factor")?,
                low: rope.positive("low_freq_factor")?,
                high: rope.positive("high_freq_factor")?,
                original_tokens: original()?,
            },
            "yarn" => RopeKind::Yarn {
                factor: ratio(original()?)?,
                original_tokens: original()?,
                beta_fast: rope.number_opt("beta_fast")?.filter(|b| *b != 0.0).unwrap_or(32.0),
                beta_slow: rope.number_opt("beta_slow")?.filter(|b| *b != 0.0).unwrap_or(1.0),
                truncate: rope.flag_or("truncate", true)?,
                attention_factor: rope.positive_opt("attention_factor")?,
                mscale: rope.number_opt("mscale")?,
                mscale_all_dim: rope.number_opt("mscale_all_dim")?,
            },
            "longrope" => RopeKind::LongRope {
                short: rope.numbers("short_factor")?,
                long: rope.numbers("long_factor")?,
                original_tokens: original()?,
                factor: ratio(original()?)?,
                attention_factor: rope.positive_opt("attention_factor")?,
            },
            other => {
                let reason = format!(
                    "'{other}' is not supported; known are default, linear, dynamic, \
                     llama3, yarn, longrope"
                );
                return Err(Error::config("rope_type", reason));
            }
        })
    }
}
