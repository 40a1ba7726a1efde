//! How tokens are chosen where a request leaves it open: by the model's own settings.

use std::ops::RangeInclusive;

use hub::{HubError, ModelFolder};
use protocol::{InvalidField, Sampling};
use serde_json::{Map, Value};

/// The file with a model's own sampling settings and stop tokens.
pub const GENERATION_CONFIG: &str = "generation_config.json";

/// What requests may say, in whichever dialect.
pub const TEMPERATURES: RangeInclusive<f64> = 0.0..=100.0;
/// The least is the least normal number above 0.
pub const TOP_PS: RangeInclusive<f64> = f32::MIN_POSITIVE as f64..=1.0;
/// Likewise.
pub const MIN_PS: RangeInclusive<f64> = 0.0..=1.0;
/// Likewise.
pub const REPETITION_PENALTIES: RangeInclusive<f64> = 0.01..=100.0;
/// Of presence and of frequency.
pub const PENALTIES: RangeInclusive<f64> = -2.0..=2.0;

/// A model's own settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// It holds something that makes no sense.
    #[error("{GENERATION_CONFIG}: {0}")]
    Bad(String),
}

/// What a request says about sampling; what it leaves open is the model's.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs, reason = "the fields are those of `Sampling`")]
pub struct Choices {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub penalty_window_tokens: Option<u32>,
    pub logit_bias: Vec<(u32, f32)>,
    /// None: a new one.
    pub seed: Option<u64>,
}

impl Choices {
    /// Checks the ranges of what is said.
    pub fn validate(&self) -> Result<(), InvalidField> {
        self.over(&Sampling::greedy()).validate()
    }

    /// The choices, and for the rest those of a base.
    pub fn over(&self, base: &Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            penalty_window_tokens: self.penalty_window_tokens.unwrap_or(base.penalty_window_tokens),
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.unwrap_or_else(random_seed),
        }
    }
}

/// The settings that a model comes with; "off" where it has none.
pub fn of_folder(folder: &ModelFolder) -> Result<Sampling, SettingsError> {
    let config = folder.read_object(GENERATION_CONFIG)?.unwrap_or_default();
    of_generation_config(&config)
}

/// The model's settings. As in transformers, `do_sample: false` is greedy; so is a file that says
/// neither that nor a temperature.
fn of_generation_config(config: &Map<String, Value>) -> Result<Sampling, SettingsError> {
    let off = Sampling::greedy();
    let number = |key: &str, off: f32| match config.get(key) {
        None | Some(Value::Null) => Ok(off),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(number as f32),
            None => Err(SettingsError::Bad(format!("{key} is {value}, no number"))),
        },
    };
    let sampled = match config.get("do_sample").and_then(Value::as_bool) {
        Some(do_sample) => do_sample,
        None => config.contains_key("temperature"),
    };
    let sampling = Sampling {
        temperature: if sampled { number("temperature", 1.0)? } else { 0.0 },
        top_k: number("top_k", 0.0)? as u32,
        top_p: number("top_p", off.top_p)?,
        min_p: number("min_p", off.min_p)?,
        repetition_penalty: number("repetition_penalty", off.repetition_penalty)?,
        presence_penalty: number("presence_penalty", off.presence_penalty)?,
        frequency_penalty: number("frequency_penalty", off.frequency_penalty)?,
        ..off
    };
    let valid = sampling.validate();
    valid.map_err(|e| SettingsError::Bad(e.to_string()))?;
    Ok(sampling)
}

/// A new seed for each call: the standard library's hash keys are random. Below 2^53, so that a
/// reader of the JSON who keeps numbers as doubles can give the very seed back.
pub fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id()) >> 11
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str) -> Result<Sampling, SettingsError> {
        of_generation_config(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_models_settings_are_read_as_transformers_reads_them() {
        let check = |json: &str, temperature: f32, top_k: u32, top_p: f32| {
            let s = settings(json).unwrap();
            assert_eq!((s.temperature, s.top_k, s.top_p), (temperature, top_k, top_p), "{json}");
        };
        check("{}", 0.0, 0, 1.0);
        check(r#"{"temperature": 0.6, "top_k": 20, "top_p": 0.95}"#, 0.6, 20, 0.95);
        check(r#"{"do_sample": false, "temperature": 0.6}"#, 0.0, 0, 1.0);
        check(r#"{"do_sample": true, "top_k": null}"#, 1.0, 0, 1.0);
    }

    #[test]
    fn bad_settings_name_the_file_and_the_field() {
        for (json, field) in [(r#"{"top_p": "high"}"#, "top_p"), (r#"{"min_p": 7}"#, "min_p")] {
            let error = settings(json).unwrap_err().to_string();
            assert!(error.contains(GENERATION_CONFIG) && error.contains(field), "{error}");
        }
    }

    #[test]
    fn a_new_seed_is_exact_as_a_double_and_new_each_time() {
        let seeds: std::collections::BTreeSet<u64> = (0..64).map(|_| random_seed()).collect();
        assert!(seeds.len() > 1);
        assert!(seeds.iter().all(|&seed| seed < 1 << 53), "{seeds:?}");
    }

    #[test]
    fn choices_win_over_the_models_settings() {
        let model = settings(r#"{"temperature": 0.6, "top_k": 20}"#).unwrap();
        let choices = Choices { temperature: Some(0.0), ..Choices::default() };
        let sampling = choices.over(&model);
        assert_eq!((sampling.temperature, sampling.top_k), (0.0, 20));
    }
}
