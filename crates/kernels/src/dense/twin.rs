//! The product by MLX, in f32.

use mlx::{Array, Dtype, Result};

pub(super) fn run(x: &Array, w: &Array) -> Result<Array> {
    let w = w.astype(Dtype::F32)?.swap_axes(-1, -2)?;
    x.astype(Dtype::F32)?.matmul(&w)?.astype(x.dtype())
}
