//! Quantizing as the protocol asks for it.

use std::ops::ControlFlow;
use std::path::Path;

use mlx::{Dtype, QuantMode, Quantization};
use models::quantize::{
    Pattern, QuantizeLimits, Recipe, SHARD_BYTES, Settings, Target, quantize as write_quantized,
};
use protocol::{
    Coding, CodingMode, FloatType, InvalidField, QuantizeProgress, QuantizeReport, QuantizeRequest,
    QuantizeTarget, RoleReport,
};

use crate::engine::{Outcome, open};
use crate::{Error, Result};

/// Told after each piece of a quantization; `Break` stops it.
pub type OnProgress<'p> = &'p mut dyn FnMut(QuantizeProgress) -> ControlFlow<()>;

/// Writes a model anew. Needs no engine: no model is loaded.
///
/// # Errors
/// The caller's if the choices cannot be met or the source is broken, the world's if the disk is
/// full or the device is missing.
pub fn quantize(
    request: &QuantizeRequest,
    backend: Option<&str>,
    on_progress: OnProgress<'_>,
) -> Result<Outcome<QuantizeReport>> {
    let settings = settings(request)?;
    open(backend)?;
    let id = request.id;
    let limits = QuantizeLimits {
        free_bytes: |folder: &Path| fs4::available_space(folder).ok(),
        shard_bytes: SHARD_BYTES,
    };
    let (source, target) = (Path::new(&request.source), Path::new(&request.target));
    let written = write_quantized(source, target, &settings, limits, &mut |progress| {
        on_progress(QuantizeProgress {
            id,
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
            done_shards: progress.done_shards as u32,
            n_shards: progress.n_shards as u32,
        })
    });
    match written {
        Ok(report) => Ok(Outcome::Done(told(request, report))),
        Err(models::Error::Cancelled) => Ok(Outcome::Stopped),
        Err(error) => Err(error.into()),
    }
}

fn settings(request: &QuantizeRequest) -> Result<Settings> {
    request.validate().map_err(|e: InvalidField| Error::caller(e.to_string()))?;
    let pattern = |text: &String| Ok::<_, Error>(Pattern::new(text)?);
    let own = |(text, coding): &(String, Coding)| Ok((pattern(text)?, quantization(*coding)));
    Ok(Settings {
        target: match request.coding {
            QuantizeTarget::Codes(coding) => Target::Codes(quantization(coding)),
            QuantizeTarget::Floats(dtype) => Target::Floats(float(dtype)),
        },
        recipe: match request.high_bits {
            Some(bits) => Recipe::Mixed { high_bits: bits as i32 },
            None => Recipe::Default,
        },
        keep: request.keep.iter().map(pattern).collect::<Result<_>>()?,
        at: request.at.iter().map(own).collect::<Result<_>>()?,
        dtype: request.dtype.map(float),
        overwrites: request.overwrites,
    })
}

fn quantization(coding: Coding) -> Quantization {
    let mode = match coding.mode {
        CodingMode::Affine => QuantMode::Affine,
        CodingMode::Mxfp4 => QuantMode::Mxfp4,
        CodingMode::Mxfp8 => QuantMode::Mxfp8,
        CodingMode::Nvfp4 => QuantMode::Nvfp4,
    };
    Quantization { mode, bits: coding.bits as i32, group_size: coding.group_size as i32 }
}

fn float(dtype: FloatType) -> Dtype {
    match dtype {
        FloatType::Bf16 => Dtype::Bf16,
        FloatType::F16 => Dtype::F16,
        FloatType::F32 => Dtype::F32,
    }
}

fn told(request: &QuantizeRequest, report: models::quantize::QuantizeReport) -> QuantizeReport {
    let role = |role: &models::quantize::RoleReport| RoleReport {
        role: role.role.name().to_owned(),
        n_tensors: role.n_tensors,
        n_weights: role.n_weights,
        n_bytes: role.n_bytes,
        bits_per_weight: role.bits_per_weight(),
        relative_rms_error: role.relative_rms_error,
    };
    QuantizeReport {
        id: request.id,
        roles: report.roles.iter().map(role).collect(),
        family: report.family,
        coding: report.coding,
        n_weights: report.n_weights,
        bits_per_weight: report.bits_per_weight,
        source_bytes: report.source_bytes,
        target_bytes: report.target_bytes,
        n_shards: report.n_shards as u32,
        n_resumed_shards: report.n_resumed_shards as u32,
        floats: report.floats,
        notes: report.notes,
    }
}
