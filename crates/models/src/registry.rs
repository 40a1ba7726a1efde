//! The table of families, and loading through it.

use std::path::PathBuf;

use mlx::Dtype;
use serde_json::Value;

use crate::checkpoint::{Progress, Weights};
use crate::config::Config;
use crate::model::{Loaded, Model, ModelInfo};
use crate::shapes::{self, ShapeQuantization};
use crate::{Error, Result, llama, mistral, qwen2, qwen3};

/// One family: the `model_type` that names it, and how it is built.
struct Family {
    model_type: &'static str,
    build: fn(&Config<'_>, &Weights<'_>, RopeTokens) -> Result<Box<dyn Model>>,
}

/// The length for which length-dependent rope kinds choose their frequencies.
pub(crate) type RopeTokens = i32;

const FAMILIES: &[Family] = &[
    Family { model_type: "llama", build: llama::build },
    Family { model_type: "mistral", build: mistral::build },
    Family { model_type: "qwen2", build: qwen2::build },
    Family { model_type: "qwen3", build: qwen3::build },
];

/// Names of the families that can be loaded.
pub fn families() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.model_type)
}

/// What to load.
#[derive(Clone, Debug)]
pub enum Source {
    /// A folder in Hugging Face layout.
    Folder(PathBuf),
    /// Random weights in a known shape.
    Shape {
        /// One of [`crate::SHAPE_NAMES`].
        name: String,
        /// How its matrices are coded.
        quantization: ShapeQuantization,
        /// Only the first layers.
        n_layers: Option<i32>,
    },
}

/// Choices of the one who loads.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Computes in this dtype instead of the checkpoint's own.
    pub dtype: Option<Dtype>,
    /// The length for which length-dependent rope kinds choose their frequencies; else the model's
    /// longest.
    pub rope_tokens: Option<i32>,
    /// Compares the device's quantized products with plain ones, and avoids those that are wrong.
    pub proves_products: bool,
    /// Fails before the weights take more than this much memory.
    pub memory_bytes: Option<u64>,
}

/// A config.json larger than this is none.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Loads a model. `progress` hears of every layer and may call it off.
///
/// # Errors
/// The config or a tensor is not usable (the error names file, field or tensor), or `progress`
/// returned `Break`.
pub fn load(source: &Source, options: &LoadOptions, progress: Progress<'_>) -> Result<Loaded> {
    match source {
        Source::Folder(folder) => {
            let path = folder.join("config.json");
            let size_bytes = std::fs::metadata(&path).map_err(|e| Error::file(&path, e))?.len();
            if size_bytes > MAX_CONFIG_BYTES {
                return Err(Error::file(path, format!("is larger than {MAX_CONFIG_BYTES} bytes")));
            }
            let text = std::fs::read_to_string(&path).map_err(|e| Error::file(&path, e))?;
            let root = serde_json::from_str(&text).map_err(|e| Error::file(&path, e))?;
            let family = family(&root)?;
            let weights = Weights::open(folder, &root, options, progress)?;
            build(family, &root, weights, options)
        }
        Source::Shape { name, quantization, n_layers } => {
            let wrong = |reason: String| Error::Shape { name: name.clone(), reason };
            let mut root = serde_json::from_str::<Value>(shapes::config(name)?)
                .map_err(|e| wrong(e.to_string()))?;
            let family = family(&root).map_err(|_| {
                let family = &root["model_type"];
                wrong(format!("its family {family} cannot be built yet; {} can", buildable()))
            })?;
            let most = Config::text(&root)?.n_layers()?;
            if n_layers.is_some_and(|n| n > most) {
                return Err(wrong(format!("has only {most} layers to shorten")));
            }
            if let (Some(n), Some(config)) = (n_layers, root.as_object_mut()) {
                config.insert("num_hidden_layers".to_owned(), (*n).into());
                config.remove("layer_types");
            }
            build(family, &root, Weights::random(*quantization, options, progress), options)
        }
    }
}

/// The shapes whose families exist.
fn buildable() -> String {
    let can = |name: &&&str| {
        let root = shapes::config(name).ok().and_then(|text| serde_json::from_str(text).ok());
        root.is_some_and(|root: Value| family(&root).is_ok())
    };
    crate::SHAPE_NAMES.iter().filter(can).copied().collect::<Vec<_>>().join(", ")
}

fn family(root: &Value) -> Result<&'static Family> {
    let name = root.get("model_type").and_then(Value::as_str);
    let name =
        name.ok_or_else(|| Error::config("model_type", "is missing: this is no model's config"))?;
    FAMILIES.iter().find(|family| family.model_type == name).ok_or_else(|| {
        let known = families().collect::<Vec<_>>().join(", ");
        Error::config("model_type", format!("'{name}' is not supported; known are {known}"))
    })
}

fn build(
    family: &Family,
    root: &Value,
    weights: Weights<'_>,
    options: &LoadOptions,
) -> Result<Loaded> {
    let config = Config::text(root)?;
    let context_tokens = config.size_or("max_position_embeddings", 2048)?;
    let model = (family.build)(&config, &weights, options.rope_tokens.unwrap_or(context_tokens))?;
    let dtype = weights.dtype();
    let (tally, notes) = weights.finish(family.model_type)?;
    let row_only_bytes = if tally.head_is_tied { 0 } else { tally.embedding_bytes };
    let info = ModelInfo {
        family: family.model_type.to_owned(),
        n_layers: config.n_layers()?,
        vocab_size: config.size("vocab_size")?,
        context_tokens,
        n_parameters: tally.n_parameters,
        weight_bytes: tally.weight_bytes,
        weight_bytes_per_token: tally.weight_bytes - row_only_bytes,
        kv_bytes_per_token: model.kv_bytes_per_token(dtype.size_bytes()),
        dtype,
        quantization: tally
            .quantization
            .map(|q| format!("{}-bit {}, group {}", q.bits, q.mode, q.group_size)),
    };
    Ok(Loaded { model, info, notes })
}
