//! Token embeddings, which may serve as the output head too.

use kernels::embedding;
use mlx::{Array, Dtype, Quantized};

use crate::Result;
use crate::layers::{Matrix, Product};

/// A table `[V, E]`.
#[derive(Debug)]
pub enum Embedding {
    /// In floats.
    Dense(Array),
    /// Quantized; rows are expanded to this dtype as they are looked up.
    Quantized(Quantized, Product, Dtype),
}

impl Embedding {
    /// Token ids `[B, L]` → `[B, L, E]`.
    pub fn forward(&self, tokens: &Array) -> Result<Array> {
        Ok(match self {
            Embedding::Dense(table) => table.take(tokens, 0)?,
            Embedding::Quantized(table, _, dtype) => embedding::rows(table, tokens, *dtype)?,
        })
    }

    /// The same table as the matrix of an output head.
    pub fn as_head(&self) -> Result<Matrix> {
        Ok(match self {
            Embedding::Dense(table) => Matrix::Dense(table.clone()),
            Embedding::Quantized(table, product, _) => Matrix::Quantized(table.clone(), *product),
        })
    }
}
