//! `offshoot show`: what is known about a model without loading it.

use clap::Args;
use clap::builder::BoolishValueParser;
use hub::{Hub, Model, ModelFolder};
use serde_json::{Value, json};

use crate::failure::{Failure, Result};
use crate::output::{Output, bytes};

/// Show what is known about a model without loading it
#[derive(Debug, Args)]
pub struct Show {
    /// Folder in Hugging Face layout, or a name from `offshoot list`
    model: String,
    /// Print a JSON object
    #[arg(long, env = "OFFSHOOT_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

impl Show {
    /// Runs the command.
    pub fn execute(self, out: &mut Output) -> Result<()> {
        let Model::Folder { name, folder } = Hub::of_user()?.resolve(&self.model)? else {
            return Err(Failure::usage("a shape exists only while it is benchmarked")
                .with_hint("see `offshoot bench --help`"));
        };
        let object = object(&name, &folder)?;
        if self.json {
            return out.line(&object.to_string());
        }
        for (key, value) in object.as_object().into_iter().flatten() {
            let value = match value {
                Value::Null => "-".to_owned(),
                Value::Bool(true) => "yes".to_owned(),
                Value::Bool(false) => "no".to_owned(),
                Value::String(text) => text.clone(),
                Value::Number(n) if key == "size_bytes" => bytes(n.as_u64().unwrap_or_default()),
                other => other.to_string(),
            };
            out.line(&format!("{:<17} {value}", label(key)))?;
        }
        Ok(())
    }
}

fn object(name: &str, folder: &ModelFolder) -> Result<Value> {
    let tokenizer_config = folder.read_object("tokenizer_config.json")?.unwrap_or_default();
    let has_chat_template = tokenizer_config.contains_key("chat_template")
        || folder.read_text("chat_template.jinja")?.is_some();
    Ok(json!({
        "name": name,
        "path": folder.path().to_string_lossy(),
        "family": folder.family(),
        "n_layers": folder.n_layers(),
        "context_tokens": folder.context_tokens(),
        "dtype": folder.dtype(),
        "quantization": folder.quantization(),
        "size_bytes": folder.weight_bytes(),
        "n_weight_files": folder.weight_files().len(),
        "has_tokenizer": folder.tokenizer().is_ok(),
        "has_chat_template": has_chat_template,
    }))
}

fn label(key: &str) -> String {
    let key = key.trim_start_matches("n_").trim_start_matches("has_").trim_end_matches("_bytes");
    key.replace('_', " ")
}
