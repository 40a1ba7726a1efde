//! y = x Wᵀ + b, with W `[out, in]` in floats or quantized.

use mlx::{Array, Quantized};

use crate::Result;

/// A weight matrix `[out, in]`.
#[derive(Debug)]
pub enum Matrix {
    /// In floats, stored transposed as `[in, out]`.
    Dense(Array),
    /// In one of MLX's quantized forms.
    Quantized(Quantized),
}

impl Matrix {
    /// x Wᵀ in the dtype of x: wider scales must not widen the rest of the model.
    pub fn apply(&self, x: &Array) -> Result<Array> {
        let y = match self {
            Matrix::Dense(transposed) => x.matmul(transposed)?,
            Matrix::Quantized(quantized) => x.quantized_matmul(quantized)?,
        };
        Ok(y.astype(x.dtype())?)
    }
}

/// A linear layer.
#[derive(Debug)]
pub struct Linear {
    /// The weights.
    pub weight: Matrix,
    /// `[out]`.
    pub bias: Option<Array>,
}

impl Linear {
    /// `[.., in]` → `[.., out]`.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let y = self.weight.apply(x)?;
        Ok(match &self.bias {
            Some(bias) => y.add(bias)?,
            None => y,
        })
    }
}
