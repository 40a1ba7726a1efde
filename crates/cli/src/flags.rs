//! Flags that several commands share: each is defined once, with its variable.

use std::ffi::OsString;
use std::num::NonZeroUsize;

use clap::Args;
use clap::builder::BoolishValueParser;
use hub::ModelFolder;
use protocol::{CacheSettings, DiskSettings, InvalidField, Sampling};
use serde_json::{Map, Value};
use server::backend::Asked;

use crate::failure::{Failure, Result};

/// Where to compute.
#[derive(Debug, Clone, Args)]
pub struct BackendFlags {
    /// What computes: auto, cpu, cuda or metal
    #[arg(long, env = "OFFSHOOT_BACKEND", default_value = "auto", value_name = "NAME")]
    pub backend: String,
    /// Threads that compute on the CPU (default: one for each processor)
    #[arg(long, env = "OFFSHOOT_THREADS", value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Quantized products on the CPU in f32 throughout, instead of with 8-bit activations: slower
    #[arg(long, env = "OFFSHOOT_EXACT", value_parser = BoolishValueParser::new())]
    pub exact: bool,
}

impl BackendFlags {
    /// The variables by which a runner learns how to compute on the CPU.
    pub fn env(&self) -> Vec<(OsString, OsString)> {
        let threads = self.threads.map(|n| ("OFFSHOOT_THREADS".into(), n.to_string().into()));
        let exact = ("OFFSHOOT_EXACT".into(), if self.exact { "1" } else { "0" }.into());
        threads.into_iter().chain([exact]).collect()
    }

    /// The parsed name.
    pub fn asked(&self) -> Result<Asked> {
        self.backend
            .parse()
            .map_err(|e: server::backend::BackendError| Failure::usage(e.to_string()))
    }
}

/// What the prefix cache may hold.
#[derive(Debug, Clone, Default, Args)]
pub struct CacheFlags {
    /// Memory of the device for keys, values and states, e.g. 8GiB (default: half of what is free
    /// on the CPU, more on a GPU)
    #[arg(long, env = "OFFSHOOT_CACHE_MEMORY", value_name = "SIZE", value_parser = parse_size)]
    pub cache_memory: Option<u64>,
    /// Memory of the host for what a GPU's has no room for (default: a quarter of what is free)
    #[arg(long, env = "OFFSHOOT_CACHE_HOST_MEMORY", value_name = "SIZE", value_parser = parse_size)]
    pub cache_host_memory: Option<u64>,
    /// Files of each model that survive the program; 0: none (default: a quarter of what is free,
    /// at most 16GiB)
    #[arg(long, env = "OFFSHOOT_CACHE_DISK", value_name = "SIZE", value_parser = parse_size)]
    pub cache_disk: Option<u64>,
    /// The same answer bit for bit whatever the cache had: less of it is reused
    #[arg(long, env = "OFFSHOOT_DETERMINISTIC", value_parser = BoolishValueParser::new())]
    pub deterministic: bool,
}

impl CacheFlags {
    /// What a runner is told of a model that people call so.
    pub fn settings(&self, model: &str) -> CacheSettings {
        let folder = hub::cache_dir().ok().and_then(|folder| folder.to_str().map(str::to_owned));
        let disk = folder.filter(|_| self.cache_disk != Some(0));
        let disk = disk.map(|folder| DiskSettings {
            folder,
            label: model.to_owned(),
            bytes: self.cache_disk,
        });
        CacheSettings { device_bytes: self.cache_memory, host_bytes: self.cache_host_memory, disk }
    }
}

/// Bytes with a unit or without: 1073741824, 512MiB, 8GB, 1.5G. K, M, G and T mean powers of 1024
/// unless a B follows alone.
fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let power = |letter: char| "kmgt".find(letter).map(|i| i as i32 + 1);
    let factor = match unit.chars().collect::<Vec<_>>()[..] {
        [] | ['b'] => Some(1.0),
        [letter] | [letter, 'i', 'b'] => power(letter).map(|p| 1024f64.powi(p)),
        [letter, 'b'] => power(letter).map(|p| 1000f64.powi(p)),
        _ => None,
    };
    let number = digits.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
    match (number, factor) {
        (Some(number), Some(factor)) if number * factor < u64::MAX as f64 => {
            Ok((number * factor) as u64)
        }
        _ => Err("must be a size like 512MiB, 8GiB or 8GB".to_owned()),
    }
}

/// How tokens are chosen. What is not given comes from the model's generation_config.json.
#[derive(Debug, Clone, Default, Args)]
pub struct SamplingFlags {
    /// Randomness: 0 takes the most likely token
    #[arg(long, env = "OFFSHOOT_TEMPERATURE", value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Keep the smallest set of tokens whose probabilities reach P
    #[arg(long, env = "OFFSHOOT_TOP_P", value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Keep only the K most likely tokens (0: all)
    #[arg(long, env = "OFFSHOOT_TOP_K", allow_negative_numbers = true, value_name = "K")]
    pub top_k: Option<u32>,
    /// Drop tokens below this share of the most likely one's probability
    #[arg(long, env = "OFFSHOOT_MIN_P", value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Make tokens seen before less likely by this factor (1: off)
    #[arg(
        long,
        env = "OFFSHOOT_REPETITION_PENALTY",
        value_name = "X",
        allow_negative_numbers = true
    )]
    pub repetition_penalty: Option<f32>,
    /// Subtract this once from the logit of tokens seen before (0: off)
    #[arg(
        long,
        env = "OFFSHOOT_PRESENCE_PENALTY",
        value_name = "X",
        allow_negative_numbers = true
    )]
    pub presence_penalty: Option<f32>,
    /// Subtract this per occurrence from the logit of tokens seen before (0: off)
    #[arg(
        long,
        env = "OFFSHOOT_FREQUENCY_PENALTY",
        value_name = "X",
        allow_negative_numbers = true
    )]
    pub frequency_penalty: Option<f32>,
    /// Seed of the random choices: same seed, same answer (without it: a new one each time)
    #[arg(long, env = "OFFSHOOT_SEED", allow_negative_numbers = true, value_name = "N")]
    pub seed: Option<u64>,
}

impl SamplingFlags {
    /// The flags over the model's own settings over "off". Bad flags are usage errors.
    pub fn resolve(&self, folder: &ModelFolder) -> Result<Sampling> {
        self.over(Sampling::greedy()).validate().map_err(flag_error)?;
        let config = folder.read_object(GENERATION_CONFIG)?.unwrap_or_default();
        let mut sampling = self.over(of_generation_config(&config)?);
        sampling.seed = self.seed.unwrap_or_else(random_seed);
        Ok(sampling)
    }

    fn over(&self, base: Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            ..base
        }
    }
}

/// The file with a model's own sampling settings and stop tokens.
pub const GENERATION_CONFIG: &str = "generation_config.json";

fn flag_error(error: InvalidField) -> Failure {
    Failure::usage(format!("--{} {}", error.field.replace('_', "-"), error.reason))
}

/// The model's settings. As in transformers, `do_sample: false` is greedy; so is a file that says
/// neither that nor a temperature.
fn of_generation_config(config: &Map<String, Value>) -> Result<Sampling> {
    let off = Sampling::greedy();
    let number = |key: &str, off: f32| match config.get(key) {
        None | Some(Value::Null) => Ok(off),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(number as f32),
            None => Err(Failure::new(format!("{GENERATION_CONFIG}: {key} is {value}, no number"))),
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
    valid.map_err(|e| Failure::new(format!("{GENERATION_CONFIG}: {e}")))?;
    Ok(sampling)
}

/// A new seed for each call: the standard library's hash keys are random. Below 2^53, so that a
/// reader of the JSON who keeps numbers as doubles can give the very seed back.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id()) >> 11
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str) -> Result<Sampling> {
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
            match settings(json) {
                Err(Failure::Failed(message)) => {
                    assert!(message.error.contains(GENERATION_CONFIG), "{}", message.error);
                    assert!(message.error.contains(field), "{}", message.error);
                }
                other => panic!("{json}: {other:?}"),
            }
        }
    }

    #[test]
    fn sizes_have_units_or_not() {
        for (text, bytes) in [
            ("0", 0),
            ("123", 123),
            ("7B", 7),
            ("2k", 2048),
            ("512MiB", 512 << 20),
            ("8GB", 8_000_000_000),
            ("1.5G", 3 << 29),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1 2", "5X", "5Gi", "nan", "inf", "1e30", "99999999T"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_new_seed_is_exact_as_a_double_and_new_each_time() {
        let seeds: std::collections::BTreeSet<u64> = (0..64).map(|_| random_seed()).collect();
        assert!(seeds.len() > 1);
        assert!(seeds.iter().all(|&seed| seed < 1 << 53), "{seeds:?}");
    }

    #[test]
    fn flags_win_over_the_models_settings() {
        let model = settings(r#"{"temperature": 0.6, "top_k": 20}"#).unwrap();
        let flags = SamplingFlags { temperature: Some(0.0), ..SamplingFlags::default() };
        let sampling = flags.over(model);
        assert_eq!((sampling.temperature, sampling.top_k), (0.0, 20));
    }
}
