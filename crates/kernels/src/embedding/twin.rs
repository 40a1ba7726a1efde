//! Rows of a quantized table in MLX's operations.

use mlx::{Array, Dtype, Quantized, Result};

pub(super) fn run(table: &Quantized, tokens: &Array, dtype: Dtype) -> Result<Array> {
    table.take_rows(tokens)?.dequantize(dtype)
}
