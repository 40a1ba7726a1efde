//! Flags that several commands share: each is defined once, with its variable.

use std::ffi::OsString;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;
use hub::ModelFolder;
use protocol::{CacheSettings, DiskSettings, InvalidField, Sampling};
use server::backend::Asked;
use server::sampling::{self, Choices};

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

/// The server that a command asks.
#[derive(Debug, Clone, Args)]
pub struct ServerFlags {
    /// Address of the server
    #[arg(long, env = "OFFSHOOT_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub host: IpAddr,
    /// Port of the server
    #[arg(long, env = "OFFSHOOT_PORT", default_value_t = PORT, value_name = "N")]
    pub port: u16,
    /// File whose first line begins with the key to present
    #[arg(long, env = "OFFSHOOT_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
}

/// The port of `serve`, and of the commands that ask it.
pub const PORT: u16 = 11435;

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
pub fn parse_size(text: &str) -> std::result::Result<u64, String> {
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

/// A time with a unit or without: 300, 90s, 5m, 1h, 1.5h. Without one it is in seconds.
pub fn parse_time(text: &str) -> std::result::Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "s" => Some(1.0),
        "ms" => Some(0.001),
        "m" => Some(60.0),
        "h" => Some(3600.0),
        _ => None,
    };
    let number = digits.parse::<f64>().ok().filter(|n| (0.0..1e9).contains(n));
    match (number, factor) {
        (Some(number), Some(factor)) => Ok(Duration::from_secs_f64(number * factor)),
        _ => Err("must be a time like 90s, 5m or 1h".to_owned()),
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
        let choices = self.choices();
        choices.validate().map_err(flag_error)?;
        Ok(choices.over(&sampling::of_folder(folder)?))
    }

    fn choices(&self) -> Choices {
        Choices {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
            ..Choices::default()
        }
    }
}

fn flag_error(error: InvalidField) -> Failure {
    Failure::usage(format!("--{} {}", error.field.replace('_', "-"), error.reason))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn times_have_units_or_not() {
        for (text, ms) in
            [("0", 0), ("300", 300_000), ("250ms", 250), ("1.5m", 90_000), ("2h", 7_200_000)]
        {
            assert_eq!(parse_time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1", "1d", "1 s", "nan", "inf", "1e30"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
