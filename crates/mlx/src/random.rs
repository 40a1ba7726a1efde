//! Random numbers, always from an explicit key: the same key gives the same numbers, whatever else
//! runs.

use mlx_sys::ffi;

use crate::{Array, Dtype, Result};

/// A key of MLX's counter-based generator (Threefry): u32 `[2]`.
#[derive(Clone, Debug)]
pub struct Key(Array);

impl Key {
    /// The key of a seed.
    pub fn from_seed(seed: u64) -> Result<Self> {
        Array::wrap("random_key", &[], ffi::random_key(seed)).map(Self)
    }

    /// Two independent keys.
    pub fn split(&self) -> Result<(Key, Key)> {
        let pair = Array::wrap("random_split", &[&self.0], ffi::random_split(&self.0.0, 2))?;
        let row = |i: i32| pair.slice(&[i, 0], &[i + 1, 2])?.reshape(&[2]).map(Key);
        Ok((row(0)?, row(1)?))
    }

    /// Uniform in [0, 1).
    pub fn uniform(&self, shape: &[i32], dtype: Dtype) -> Result<Array> {
        let result = ffi::random_uniform(shape, dtype.code(), &self.0.0);
        Array::wrap("random_uniform", &[], result)
    }

    /// Normal with mean 0 and variance 1.
    pub fn normal(&self, shape: &[i32], dtype: Dtype) -> Result<Array> {
        let result = ffi::random_normal(shape, dtype.code(), &self.0.0);
        Array::wrap("random_normal", &[], result)
    }

    /// Standard Gumbel: adding it to logits and taking the argmax draws from their softmax.
    pub fn gumbel(&self, shape: &[i32], dtype: Dtype) -> Result<Array> {
        let result = ffi::random_gumbel(shape, dtype.code(), &self.0.0);
        Array::wrap("random_gumbel", &[], result)
    }

    /// Random bits as u32.
    pub fn bits(&self, shape: &[i32]) -> Result<Array> {
        Array::wrap("random_bits", &[], ffi::random_bits(shape, 4, &self.0.0))
    }

    /// Integers in `low..high`.
    pub fn integers(&self, low: i32, high: i32, shape: &[i32]) -> Result<Array> {
        let (low, high) = (Array::from_slice(&[low], &[])?, Array::from_slice(&[high], &[])?);
        let result = ffi::random_int(&low.0, &high.0, shape, Dtype::I32.code(), &self.0.0);
        Array::wrap("random_int", &[], result)
    }

    /// One index (u32) per row, drawn from the softmax of `logits` over the last axis.
    pub fn categorical(&self, logits: &Array) -> Result<Array> {
        let result = ffi::random_categorical(&logits.0, -1, &self.0.0);
        Array::wrap("random_categorical", &[logits], result)
    }
}
