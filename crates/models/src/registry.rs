//! The table of families, and loading through it.

use std::path::{Path, PathBuf};

use mlx::Dtype;
use serde_json::Value;

use crate::checkpoint::{MatrixFact, Progress, Tensors, Weights, open_tensors};
use crate::config::Config;
use crate::model::{Loaded, Model, ModelInfo};
use crate::shapes::{self, ShapeQuantization};
use crate::{
    Error, Result, gemma3_text, glm4_moe_lite, gpt_oss, llama, mistral, qwen2, qwen3, qwen3_5,
    qwen3_5_moe, qwen3_moe, qwen3_next,
};

/// What there is to say of a family.
#[derive(Clone, Copy, Debug)]
pub struct FamilyFacts {
    /// `model_type` in config.json, and the name of its file here and of its goldens.
    pub model_type: &'static str,
    /// Other values of `model_type`: of the wrapper around the text model, or of the text model
    /// alone.
    pub also: &'static [&'static str],
    /// Published models.
    pub published: &'static str,
    /// What a sequence remembers.
    pub state: &'static str,
    /// Where it does not do what its reference does.
    pub deviations: &'static [&'static str],
}

/// One family.
pub(crate) struct Family {
    pub facts: FamilyFacts,
    /// Brings the layout of a published checkpoint to that of MLX's converters.
    pub to_mlx: fn(&mut Tensors, &Config<'_>) -> Result<()>,
    /// Reads the config and loads the model.
    pub build: fn(&Config<'_>, &Weights<'_>, RopeTokens) -> Result<Box<dyn Model>>,
}

/// The length for which length-dependent rope kinds choose their frequencies.
pub(crate) type RopeTokens = i32;

/// For `to_mlx` where HF's layout is MLX's.
pub(crate) fn same_layout(_: &mut Tensors, _: &Config<'_>) -> Result<()> {
    Ok(())
}

const FAMILIES: &[&Family] = &[
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &qwen3_moe::FAMILY,
    &qwen3_next::FAMILY,
    &qwen3_5::FAMILY,
    &qwen3_5_moe::FAMILY,
    &glm4_moe_lite::FAMILY,
    &gpt_oss::FAMILY,
    &gemma3_text::FAMILY,
];

/// The families that can be loaded.
pub fn families() -> impl Iterator<Item = &'static FamilyFacts> {
    FAMILIES.iter().map(|family| &family.facts)
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
            let Opened { family, root, tensors } = open(folder)?;
            let weights = Weights::of(folder, tensors, &root, options, progress)?;
            build(family, &root, weights, options)
        }
        Source::Shape { name, quantization, n_layers } => {
            let wrong = |reason: String| Error::Shape { name: name.clone(), reason };
            let mut root = serde_json::from_str::<Value>(shapes::config(name)?)
                .map_err(|e| wrong(e.to_string()))?;
            let family = family(&root)?;
            let most = Config::text(&root)?.n_layers()?;
            if n_layers.is_some_and(|n| n > most) {
                return Err(wrong(format!("has only {most} layers to shorten")));
            }
            if let Some(n) = n_layers {
                shorten(&mut root, *n);
            }
            build(family, &root, Weights::random(*quantization, options, progress), options)
        }
    }
}

/// A folder whose headers are read: its tensors are lazy.
pub(crate) struct Opened {
    pub family: &'static Family,
    /// config.json.
    pub root: Value,
    /// As MLX's converters lay them out.
    pub tensors: Tensors,
}

/// Reads config.json and the headers of a folder.
pub(crate) fn open(folder: &Path) -> Result<Opened> {
    let path = folder.join("config.json");
    let size_bytes = std::fs::metadata(&path).map_err(|e| Error::file(&path, e))?.len();
    if size_bytes > MAX_CONFIG_BYTES {
        return Err(Error::file(path, format!("is larger than {MAX_CONFIG_BYTES} bytes")));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| Error::file(&path, e))?;
    let root = serde_json::from_str(&text).map_err(|e| Error::file(&path, e))?;
    let family = family(&root)?;
    let mut tensors = open_tensors(folder, &root)?;
    tensors.widen_fp8()?;
    (family.to_mlx)(&mut tensors, &Config::text(&root)?)?;
    Ok(Opened { family, root, tensors })
}

/// What building a model asked of its files, without a byte of them being read.
pub(crate) struct Examined {
    /// Every matrix that a model may hold in codes, in the order of the model.
    pub matrices: Vec<MatrixFact>,
    /// The dtype of activations.
    pub dtype: Dtype,
}

/// Builds the model of a folder without reading tensors: what is missing, superfluous or of a wrong
/// shape is an error, as it is of [`load`].
pub(crate) fn examine(folder: &Path, opened: &Opened) -> Result<Examined> {
    let options = LoadOptions::default();
    let mut progress = |_, _| std::ops::ControlFlow::Continue(());
    let tensors = opened.tensors.to_be_asked();
    let weights = Weights::of(folder, tensors, &opened.root, &options, &mut progress)?.unread();
    let config = Config::text(&opened.root)?;
    let context_tokens = config.size_or("max_position_embeddings", 2048)?;
    (opened.family.build)(&config, &weights, context_tokens)?;
    let (dtype, matrices) = (weights.dtype(), weights.take_matrices());
    weights.finish(opened.family.facts.model_type)?;
    Ok(Examined { matrices, dtype })
}

/// Keeps the first `n` layers of a config, and the first entries of the lists that have one for
/// each layer.
fn shorten(root: &mut Value, n: i32) {
    let text = if root.get("text_config").is_some() { &mut root["text_config"] } else { root };
    text["num_hidden_layers"] = n.into();
    for key in ["layer_types", "mlp_layer_types"] {
        if let Some(list) = text.get_mut(key).and_then(Value::as_array_mut) {
            list.truncate(usize::try_from(n).unwrap_or(0));
        }
    }
}

fn family(root: &Value) -> Result<&'static Family> {
    let name = root.get("model_type").and_then(Value::as_str);
    let name =
        name.ok_or_else(|| Error::config("model_type", "is missing: this is no model's config"))?;
    let is_it = |f: &&&Family| f.facts.model_type == name || f.facts.also.contains(&name);
    FAMILIES.iter().find(is_it).copied().ok_or_else(|| {
        let known = families().map(|f| f.model_type).collect::<Vec<_>>().join(", ");
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
    let (tally, notes) = weights.finish(family.facts.model_type)?;
    let memory = model.memory();
    let row_only_bytes = if tally.head_is_tied { 0 } else { tally.embedding_bytes };
    let info = ModelInfo {
        family: family.facts.model_type.to_owned(),
        n_layers: config.n_layers()?,
        vocab_size: model.vocab_size(),
        context_tokens,
        n_parameters: tally.n_parameters,
        weight_bytes: tally.weight_bytes,
        weight_bytes_per_token: tally.weight_bytes - row_only_bytes - tally.idle_expert_bytes,
        expert_bytes: tally.expert_bytes,
        idle_expert_share: tally.idle_expert_bytes as f64 / tally.expert_bytes.max(1) as f64,
        kv_bytes_per_token: memory.iter().map(|m| m.bytes_per_token(dtype.size_bytes())).sum(),
        fixed_state_bytes: memory.iter().map(|m| m.fixed_bytes(dtype.size_bytes())).sum(),
        dtype,
        quantization: tally
            .quantization
            .map(|q| format!("{}-bit {}, group {}", q.bits, q.mode, q.group_size)),
    };
    Ok(Loaded { model, info, notes })
}
