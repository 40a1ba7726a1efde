//! Quantized matrices: MLX's modes, products with them, and the way to and from floats.

use std::fmt;
use std::str::FromStr;

use mlx_sys::ffi;

use crate::array::{opt, unlist};
use crate::fast::shown;
use crate::{Array, Dtype, Result};

/// How a group of weights is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantMode {
    /// q·scale + bias with floats per group.
    Affine,
    /// E2M1 values with one E8M0 scale for 32.
    Mxfp4,
    /// E4M3 values with one E8M0 scale for 32.
    Mxfp8,
    /// E2M1 values with one E4M3 scale for 16.
    Nvfp4,
}

impl QuantMode {
    /// MLX's name for the mode.
    pub fn name(self) -> &'static str {
        match self {
            QuantMode::Affine => "affine",
            QuantMode::Mxfp4 => "mxfp4",
            QuantMode::Mxfp8 => "mxfp8",
            QuantMode::Nvfp4 => "nvfp4",
        }
    }
}

impl fmt::Display for QuantMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for QuantMode {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        [QuantMode::Affine, QuantMode::Mxfp4, QuantMode::Mxfp8, QuantMode::Nvfp4]
            .into_iter()
            .find(|mode| mode.name() == name)
            .ok_or_else(|| {
                format!("quantization mode '{name}' is none of affine, mxfp4, mxfp8, nvfp4")
            })
    }
}

/// A mode with its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quantization {
    /// The coding.
    pub mode: QuantMode,
    /// Bits per weight, without scales.
    pub bits: i32,
    /// Weights that share a scale.
    pub group_size: i32,
}

impl Quantization {
    fn spec(self) -> ffi::QuantSpec {
        ffi::QuantSpec {
            group_size: self.group_size,
            bits: self.bits,
            mode: self.mode.name().to_owned(),
        }
    }
}

/// A quantized matrix `[.., out, in]`.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// Codes packed along the input, u32 `[.., out, in·bits/32]`.
    pub weight: Array,
    /// One scale per group, `[.., out, in/group]`: floats (affine) or u8.
    pub scales: Array,
    /// Affine only: one offset per group.
    pub biases: Option<Array>,
    /// The coding.
    pub quantization: Quantization,
}

/// Which matrices [`Array::gather_qmm`] multiplies.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gathered<'a> {
    /// Indices of the left matrices; absent means all in order.
    pub lhs: Option<&'a Array>,
    /// Indices of the right (quantized) matrices; absent means all in order.
    pub rhs: Option<&'a Array>,
    /// A promise that the indices ascend, for speed.
    pub sorted: bool,
}

impl Array {
    /// x·wᵀ with a quantized `[out, in]` matrix. Affine: the result's dtype is the promotion of x's
    /// and the scales'.
    pub fn quantized_matmul(&self, w: &Quantized) -> Result<Array> {
        let biases = opt(w.biases.as_ref());
        // SAFETY: the pointer is null or borrowed from an array that outlives the call.
        let result = unsafe {
            ffi::quantized_matmul(&self.0, &w.weight.0, &w.scales.0, biases, &w.quantization.spec())
        };
        Array::wrap("quantized_matmul", &[self, &w.weight, &w.scales], result)
    }

    /// x·wᵀ with quantized matrices `[E, out, in]` chosen by index: experts.
    pub fn gather_qmm(&self, w: &Quantized, which: Gathered<'_>) -> Result<Array> {
        let biases = opt(w.biases.as_ref());
        // SAFETY: the pointers are null or borrowed from arrays that outlive the call.
        let result = unsafe {
            ffi::gather_qmm(
                &self.0,
                &w.weight.0,
                &w.scales.0,
                biases,
                opt(which.lhs),
                opt(which.rhs),
                &w.quantization.spec(),
                std::ptr::null(),
                which.sorted,
            )
        };
        Array::wrap("gather_qmm", &shown(self, &[Some(&w.weight), which.lhs, which.rhs]), result)
    }

    /// Quantizes `[.., out, in]` along the last axis.
    ///
    /// # Errors
    /// The width does not divide by the group, or the mode has no such bits or group.
    pub fn quantize(&self, quantization: Quantization) -> Result<Quantized> {
        // SAFETY: the pointer is null.
        let result = unsafe { ffi::quantize(&self.0, &quantization.spec(), std::ptr::null()) };
        let mut parts = unlist("quantize", &[self], result)?.into_iter();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(weight), Some(scales), biases) => {
                Ok(Quantized { weight, scales, biases, quantization })
            }
            _ => unreachable!("MLX returns at least codes and scales"),
        }
    }
}

impl Quantized {
    /// The weights as floats.
    pub fn dequantize(&self, dtype: Dtype) -> Result<Array> {
        // SAFETY: the pointers are null or borrowed from arrays that outlive the call.
        let result = unsafe {
            ffi::dequantize(
                &self.weight.0,
                &self.scales.0,
                opt(self.biases.as_ref()),
                &self.quantization.spec(),
                std::ptr::null(),
                dtype.code(),
            )
        };
        Array::wrap("dequantize", &[&self.weight, &self.scales], result)
    }

    /// The first `n` matrices of a stack `[E, out, in]`, or rows of one matrix.
    pub fn first(&self, n: i32) -> Result<Quantized> {
        Ok(Quantized {
            weight: self.weight.slice_axis(0, 0..n)?,
            scales: self.scales.slice_axis(0, 0..n)?,
            biases: self.biases.as_ref().map(|b| b.slice_axis(0, 0..n)).transpose()?,
            quantization: self.quantization,
        })
    }

    /// The rows `indices` of a `[rows, in]` matrix, still quantized: an embedding lookup.
    pub fn take_rows(&self, indices: &Array) -> Result<Quantized> {
        Ok(Quantized {
            weight: self.weight.take(indices, 0)?,
            scales: self.scales.take(indices, 0)?,
            biases: self.biases.as_ref().map(|b| b.take(indices, 0)).transpose()?,
            quantization: self.quantization,
        })
    }
}
