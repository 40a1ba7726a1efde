//! `offshoot show`: what is known about a model without loading it, and whether it fits.

use std::collections::BTreeSet;

use clap::Args;
use clap::builder::BoolishValueParser;
use hub::{Hub, Model, ModelFolder, SequenceMemory};
use serde_json::{Map, Value, json};

use crate::commands::pull::place;
use crate::failure::{Failure, Result};
use crate::flags::BackendFlags;
use crate::interrupts::Interrupts;
use crate::model::resolve;
use crate::output::{Output, bytes, say};
use crate::session::device_memory;

/// Lengths of text, in tokens, that memory is shown for, beside the longest.
const CONTEXTS: [u64; 2] = [8192, 32768];

/// Show what is known about a model without loading it
#[derive(Debug, Args)]
pub struct Show {
    /// Folder in Hugging Face layout, or a name from `offshoot list`
    model: String,
    /// Print a JSON object
    #[arg(long, env = "OFFSHOOT_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
    #[command(flatten)]
    backend: BackendFlags,
}

impl Show {
    /// Runs the command.
    pub fn execute(self, out: &mut Output, interrupts: &Interrupts) -> Result<()> {
        self.backend.asked()?;
        let Model::Folder { name, folder } = resolve(&self.model, interrupts)? else {
            return Err(Failure::usage("a shape exists only while it is benchmarked")
                .with_hint("see `offshoot bench --help`"));
        };
        let mut object = facts(&name, &folder)?;
        let device_bytes = match device_memory(&self.backend) {
            Ok(bytes) => bytes,
            Err(failure) => {
                say(&format!("warning: the device's memory is not known: {}", failure.message()));
                None
            }
        };
        object.extend(memory(&folder, device_bytes));
        if self.json {
            return out.line(&Value::Object(object).to_string());
        }
        for (key, value) in &object {
            for line in lines(key, value) {
                out.line(&line)?;
            }
        }
        Ok(())
    }
}

fn facts(name: &str, folder: &ModelFolder) -> Result<Map<String, Value>> {
    let weights = folder.weights()?;
    let tokenizer_config = folder.read_object("tokenizer_config.json")?.unwrap_or_default();
    let has_chat_template = tokenizer_config.contains_key("chat_template")
        || folder.read_text("chat_template.jinja")?.is_some();
    let origin = folder.origin();
    let object = json!({
        "name": name,
        "path": folder.path().to_string_lossy(),
        "place": place(Hub::of_user()?.place(folder)),
        "repo": origin.as_ref().map(|origin| &origin.repo),
        "revision": origin.as_ref().map(|origin| &origin.revision),
        "commit": origin.as_ref().map(|origin| &origin.commit),
        "family": folder.family(),
        "n_layers": folder.n_layers(),
        "context_tokens": folder.context_tokens(),
        "dtype": folder.dtype(),
        "quantization": folder.quantization(),
        "n_params": weights.n_params,
        "bits_per_weight": weights.bits_per_weight(),
        "size_bytes": folder.weight_bytes(),
        "disk_bytes": folder.disk_bytes()?,
        "n_weight_files": folder.weight_files().len(),
        "has_tokenizer": folder.tokenizer().is_ok(),
        "has_chat_template": has_chat_template,
    });
    match object {
        Value::Object(object) => Ok(object),
        _ => Ok(Map::new()),
    }
}

/// What the model takes of memory at some lengths of text, and whether the device has as much.
fn memory(folder: &ModelFolder, device_bytes: Option<u64>) -> Map<String, Value> {
    let sequence = folder.sequence_memory();
    let longest = folder.context_tokens();
    let contexts: BTreeSet<u64> = CONTEXTS
        .into_iter()
        .filter(|n_tokens| longest.is_none_or(|longest| *n_tokens < longest))
        .chain(longest)
        .collect();
    let at = |sequence: &SequenceMemory, n_tokens: u64| {
        let needed = folder.weight_bytes().saturating_add(sequence.bytes(n_tokens));
        json!({
            "context_tokens": n_tokens,
            "bytes": needed,
            "fits": device_bytes.map(|device| needed <= device),
        })
    };
    let needed: Option<Vec<_>> = sequence
        .as_ref()
        .map(|sequence| contexts.into_iter().map(|n_tokens| at(sequence, n_tokens)).collect());
    let entries = [
        ("kv_bytes_per_token", json!(sequence.as_ref().map(|s| s.kv_bytes_per_token))),
        ("window_tokens", json!(sequence.as_ref().and_then(|s| s.window).map(|(n, _)| n))),
        ("state_bytes", json!(sequence.as_ref().map(|s| s.state_bytes))),
        ("device_memory_bytes", json!(device_bytes)),
        ("memory", json!(needed)),
    ];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// A value as people read it.
fn lines(key: &str, value: &Value) -> Vec<String> {
    let line = |label: &str, text: &str| format!("{label:<19} {text}");
    if let Value::Array(needed) = value {
        let lines = needed.iter().map(|at| {
            let fits = match at["fits"].as_bool() {
                Some(true) => ", fits",
                Some(false) => ", does not fit",
                None => "",
            };
            let needed = bytes(at["bytes"].as_u64().unwrap_or_default());
            line(&format!("memory at {}", at["context_tokens"]), &format!("{needed}{fits}"))
        });
        return lines.collect();
    }
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(n) if key.contains("_bytes") => bytes(n.as_u64().unwrap_or_default()),
        Value::Number(n) if key == "n_params" => count(n.as_u64().unwrap_or_default()),
        Value::Number(n) if n.is_f64() => format!("{:.2}", n.as_f64().unwrap_or_default()),
        other => other.to_string(),
    };
    vec![line(&label(key), &text)]
}

fn label(key: &str) -> String {
    match key {
        "n_params" => return "parameters".to_owned(),
        "kv_bytes_per_token" => return "KV per token".to_owned(),
        "disk_bytes" => return "size on disk".to_owned(),
        _ => {}
    }
    let key = key.trim_start_matches("n_").trim_start_matches("has_").trim_end_matches("_bytes");
    key.replace('_', " ")
}

/// A number of parameters, e.g. `30.5 B`.
fn count(n: u64) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.1} B", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_as_people_read_them() {
        for (key, value, text) in [
            ("n_params", json!(596_049_920), "parameters          596.0 M"),
            ("n_params", json!(30_532_122_624u64), "parameters          30.5 B"),
            ("bits_per_weight", json!(4.503), "bits per weight     4.50"),
            ("kv_bytes_per_token", json!(114_688), "KV per token        114.7 kB"),
            ("has_tokenizer", json!(true), "tokenizer           yes"),
            ("commit", Value::Null, "commit              -"),
        ] {
            assert_eq!(lines(key, &value), [text]);
        }
        let memory = json!([{"context_tokens": 8192, "bytes": 5_000_000_000u64, "fits": false}]);
        assert_eq!(lines("memory", &memory), ["memory at 8192      5.0 GB, does not fit"]);
    }
}
