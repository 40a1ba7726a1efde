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

/// The matrix `[rows, n_in]` at `path`: the same numbers for the same path.
pub(super) fn matrix(
    path: &str,
    rows: i32,
    n_in: i32,
    quantization: ShapeQuantization,
    dtype: Dtype,
) -> Result<Stored> {
    let key = Key::from_seed(seed(path))?;
    Ok(match quantization.for_width(n_in) {
        None => {
            let centred = key.uniform(&[rows, n_in], dtype)?.offset(-0.5)?;
            Stored::Dense(centred.scale(SPREAD * 12f32.sqrt())?)
        }
        Some(quantization) => Stored::Quantized(codes(&key, rows, n_in, quantization, dtype)?),
    })
}

fn codes(key: &Key, rows: i32, n_in: i32, q: Quantization, dtype: Dtype) -> Result<Quantized> {
    let weight = key.bits(&[rows, n_in * q.bits / 32])?;
    let groups = [rows, n_in / q.group_size];
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
