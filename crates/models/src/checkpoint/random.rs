//! Random weights in memory, for benchmarks of shapes that nobody has to download.
//!
//! Codes are drawn directly, so that no float matrix is ever made: a model of any size needs only
//! its own memory.

use mlx::{Array, Dtype, Key, Quantization, Quantized};

use crate::Result;
use crate::shapes::ShapeQuantization;

use super::Stored;

/// Standard deviation of the weights, as transformers initialises them.
const SPREAD: f32 = 0.02;
/// The E8M0 code of 2⁻⁸: E2M1 values up to 6 then spread like the rest.
const E8M0_SCALE: f32 = 119.0;

/// The matrix `[.., rows, n_in]` at `path`: the same numbers for the same path.
pub(super) fn matrix(
    path: &str,
    shape: &[i32],
    quantization: ShapeQuantization,
    dtype: Dtype,
) -> Result<Stored> {
    let n_in = *shape.last().expect("a matrix has a width");
    Ok(match quantization.for_width(n_in) {
        None => Stored::Dense(floats(path, shape, dtype)?),
        Some(quantization) => Stored::Quantized(codes(path, shape, quantization, dtype)?),
    })
}

/// Floats of this shape at `path`.
pub(super) fn floats(path: &str, shape: &[i32], dtype: Dtype) -> Result<Array> {
    let centred = Key::from_seed(seed(path))?.uniform(shape, dtype)?.offset(-0.5)?;
    Ok(centred.scale(SPREAD * 12f32.sqrt())?)
}

fn codes(path: &str, shape: &[i32], q: Quantization, dtype: Dtype) -> Result<Quantized> {
    let (n_in, lead) = shape.split_last().expect("a matrix has a width");
    let with_last = |n: i32| lead.iter().copied().chain([n]).collect::<Vec<_>>();
    let weight = Key::from_seed(seed(path))?.bits(&with_last(n_in * q.bits / 32))?;
    let groups = with_last(n_in / q.group_size);
    let (scales, biases) = match q.mode {
        mlx::QuantMode::Affine => {
            let range = SPREAD * 12f32.sqrt();
            let step = range / f32::exp2(q.bits as f32);
            (Array::full(&groups, step, dtype)?, Some(Array::full(&groups, -range / 2.0, dtype)?))
        }
        _ => (Array::full(&groups, E8M0_SCALE, Dtype::U8)?, None),
    };
    Ok(Quantized { weight, scales, biases, quantization: q })
}

/// FNV-1a of the path.
fn seed(path: &str) -> u64 {
    path.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
