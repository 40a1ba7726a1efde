//! How a checkpoint says that its tensors are quantized, and what their shapes prove.
//!
//! Shapes decide: with the true input width, bits and group follow from the packed width and the
//! number of scales, and the mode from the scales' dtype. What config.json states for a path must
//! agree, or the checkpoint is refused.

use std::collections::BTreeMap;

use mlx::{QuantMode, Quantization};
use safetensors::tensor::Dtype;
use serde_json::{Map, Value};

use crate::{Error, Result};

use super::tensors::Tensor;

/// config.json's `quantization`: what it states for single paths.
#[derive(Debug, Default)]
pub(super) struct Declared {
    paths: BTreeMap<String, Setting>,
}

#[derive(Debug, PartialEq)]
enum Setting {
    /// `false`: left in floats.
    Off,
    /// `true`, or not named: whatever the shapes prove.
    Proven,
    /// Stated in numbers.
    Stated(Quantization),
}

impl Declared {
    /// Reads `quantization`, or its copy `quantization_config`, at the root or inside
    /// `text_config`.
    ///
    /// # Errors
    /// A mode is unknown, a number is not one, or the settings are of another tool.
    pub fn read(root: &Value) -> Result<Self> {
        let places = [Some(root), root.get("text_config")];
        let found = places.into_iter().flatten().find_map(|place| {
            ["quantization", "quantization_config"]
                .iter()
                .find_map(|key| place.get(key)?.as_object())
        });
        let Some(settings) = found else { return Ok(Self::default()) };
        match settings.get("quant_method").map(|method| method.as_str().unwrap_or_default()) {
            None => {}
            // Block scales and mxfp4 blocks are brought to MLX's layout by their tensors' names.
            Some("fp8" | "mxfp4") => return Ok(Self::default()),
            Some(method) => {
                let reason = format!(
                    "quant_method '{method}' is not supported, only fp8, mxfp4 and MLX's own \
                     quantizations are; take a float checkpoint or one made by an MLX tool"
                );
                return Err(Error::config("quantization_config", reason));
            }
        }
        stated("quantization", settings)?;
        let mut paths = BTreeMap::new();
        for (path, value) in settings {
            let setting = match value {
                Value::Bool(true) => Setting::Proven,
                Value::Bool(false) => Setting::Off,
                Value::Object(numbers) => match stated(path, numbers)? {
                    Some(quantization) => Setting::Stated(quantization),
                    None => Setting::Proven,
                },
                _ => continue, // the top level's own numbers
            };
            let path = path.strip_prefix("language_model.").unwrap_or(path);
            paths.insert(path.to_owned(), setting);
        }
        Ok(Self { paths })
    }

    /// The coding of `path`, whose codes and scales are these entries and whose input is `n_in`
    /// wide.
    pub fn prove(
        &self,
        path: &str,
        weight: &Tensor,
        scales: &Tensor,
        n_in: i32,
    ) -> Result<Quantization> {
        let proven = proven(path, weight, scales, n_in)?;
        match self.paths.get(path) {
            Some(Setting::Off) => {
                Err(scales
                    .error(path, "config.json says that it is not quantized, but it has scales"))
            }
            Some(Setting::Stated(stated)) if *stated != proven => {
                let reason = format!(
                    "config.json states {stated:?}, but its shapes are those of {proven:?}"
                );
                Err(weight.error(path, reason))
            }
            _ => Ok(proven),
        }
    }
}

/// `{group_size, bits, mode?}`; affine where no mode is named, whatever stands a level above.
fn stated(path: &str, numbers: &Map<String, Value>) -> Result<Option<Quantization>> {
    let field = |key: &str| format!("quantization: {path}: {key}");
    let mode = match numbers.get("mode") {
        None => QuantMode::Affine,
        Some(mode) => {
            let name = mode.as_str().unwrap_or_default();
            name.parse().map_err(|reason: String| Error::config(field("mode"), reason))?
        }
    };
    if numbers
        .get("global_scale")
        .is_some_and(|scale| !scale.is_null() && *scale != Value::Bool(false))
    {
        return Err(Error::config(field("global_scale"), "is not supported"));
    }
    let number = |key: &str| match numbers.get(key) {
        None => Ok(None),
        Some(value) => match value.as_i64() {
            Some(n @ 1..=1024) => Ok(Some(n as i32)),
            _ => Err(Error::config(
                field(key),
                format!("must be an integer from 1 to 1024, not {value}"),
            )),
        },
    };
    Ok(match (number("bits")?, number("group_size")?) {
        (Some(bits), Some(group_size)) => Some(Quantization { mode, bits, group_size }),
        _ => None,
    })
}

fn proven(path: &str, weight: &Tensor, scales: &Tensor, n_in: i32) -> Result<Quantization> {
    if weight.dtype != Dtype::U32 {
        let reason = format!("has scales, but its codes are {:?} instead of U32", weight.dtype);
        return Err(weight.error(path, reason));
    }
    let last = |tensor: &Tensor| tensor.array.shape().last().map_or(0, |&n| i64::from(n));
    let (packed, groups, width) = (last(weight), last(scales), i64::from(n_in));
    let whole = |n: i64, d: i64| (d > 0 && n > 0 && n % d == 0).then(|| (n / d) as i32);
    let (Some(bits), Some(group_size)) = (whole(packed * 32, width), whole(width, groups)) else {
        let reason = format!(
            "{packed} words and {groups} scales per row do not fit an input width of {width}"
        );
        return Err(weight.error(path, reason));
    };
    let mode = match (scales.dtype, bits, group_size) {
        (Dtype::U8, 4, 16) => QuantMode::Nvfp4,
        (Dtype::U8, 4, 32) => QuantMode::Mxfp4,
        (Dtype::U8, 8, 32) => QuantMode::Mxfp8,
        (Dtype::F32 | Dtype::F16 | Dtype::BF16, 1..=6 | 8, 32 | 64 | 128) => QuantMode::Affine,
        (dtype, ..) => {
            let reason = format!(
                "{bits} bits in groups of {group_size} with {dtype:?} scales is no quantization \
                 that MLX knows"
            );
            return Err(weight.error(path, reason));
        }
    };
    Ok(Quantization { mode, bits, group_size })
}
