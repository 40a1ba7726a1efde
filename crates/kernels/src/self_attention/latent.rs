//! Self-attention over one latent per token, which all heads share: keys are whole latents, values
//! their first elements (DeepSeek-V2, 2024, in its absorbed form).
//!
//! | form | where |
//! |---|---|
//! | [`Latent::reference`] | everywhere: the twin |
//! | `latent_cuda.rs` | CUDA, one new token per row in 16 bits: writes it and attends |
//! | [`extend`], then [`Attention`]'s fastest form | otherwise |

use mlx::{Array, Backend, Device, Dtype, Result};

use super::latent_cuda::One;
use super::{Extended, Layout, OP, extend, extend_reference};
use crate::Positions;
use crate::attention::{Attention, Kv, Masks};
use crate::input::{dims, expect_dtype, expect_shape, refused};

/// The inputs beside the pool.
#[derive(Clone, Copy, Debug)]
pub struct Latent<'a> {
    /// Queries in the latent's space, `[B, H, L, D]`.
    pub q: &'a Array,
    /// Latents of the new tokens, `[B, L, D]`.
    pub new: &'a Array,
    /// Dv, at most D.
    pub value_dim: i32,
    /// What multiplies the logits.
    pub scale: f32,
    /// Where the queries stand.
    pub positions: Positions<'a>,
    /// Masks that the calls of one step share where a form needs them.
    pub masks: &'a Masks,
    /// Of blocks.
    pub layout: Layout<'a>,
}

impl Latent<'_> {
    /// Sums of values `[B, L, H·Dv]`, and the pool `[N, 1, n, D]` with the new tokens. In place as
    /// [`extend`] says.
    ///
    /// # Errors
    /// Shapes or dtypes do not fit each other.
    ///
    /// # Panics
    /// The layout is one of rows.
    pub fn run(&self, pool: Array) -> Result<(Array, Array)> {
        self.check(&pool)?;
        if Device::current_backend() == Backend::Cuda {
            let one = One::over(self.q, &pool, self.value_dim);
            if one.fits() {
                let out = one.attend(self.q, self.new, &pool, self.layout, self.scale)?;
                return Ok((out, pool));
            }
        }
        let Extended { pool, rows } = extend(pool, self.new, self.layout)?;
        let out = self.attend(&pool, rows.as_ref(), |a| a.run())?;
        Ok((out, pool))
    }

    /// The same in MLX's operations.
    ///
    /// # Errors
    /// Those of [`Latent::run`].
    ///
    /// # Panics
    /// The layout is one of rows.
    pub fn reference(&self, pool: Array) -> Result<(Array, Array)> {
        self.check(&pool)?;
        let pool = extend_reference(&pool, self.new, self.layout)?;
        let out = self.attend(&pool, None, |a| a.reference())?;
        Ok((out, pool))
    }

    /// Over the pool, or over `rows` of it that are laid out already.
    fn attend(
        &self,
        pool: &Array,
        rows: Option<&Array>,
        run: fn(&Attention<'_>) -> Result<Array>,
    ) -> Result<Array> {
        let Layout::Blocks { table, .. } = self.layout else {
            unreachable!("rows were refused before")
        };
        let keys = rows.unwrap_or(pool);
        let values = keys.slice_axis(3, 0..self.value_dim)?;
        let kv = match rows {
            Some(_) => Kv::Rows { keys, values: &values, first_key: 0 },
            None => Kv::Blocks { keys, values: &values, table },
        };
        run(&Attention {
            q: self.q,
            kv,
            scale: self.scale,
            positions: self.positions,
            window: None,
            sinks: None,
            masks: self.masks,
        })
    }

    fn check(&self, pool: &Array) -> Result<()> {
        let [rows, _, n_tokens, dim] = dims(OP, "q", self.q)?;
        let [n_blocks, n_heads, n, _] = dims(OP, "pool", pool)?;
        expect_shape(OP, "new", self.new, &[rows, n_tokens, dim])?;
        expect_shape(OP, "pool", pool, &[n_blocks, 1, n, dim])?;
        expect_dtype(OP, "q", self.q, pool.dtype())?;
        expect_dtype(OP, "new", self.new, pool.dtype())?;
        if n_heads != 1 || !(1..=dim).contains(&self.value_dim) {
            let text = format!("latents of {dim} have no {} values", self.value_dim);
            return Err(refused(OP, &[pool], text));
        }
        if let Layout::Blocks { begins, .. } = self.layout {
            expect_dtype(OP, "begins", begins, Dtype::I32)?;
            expect_shape(OP, "begins", begins, &[rows])?;
        }
        Ok(())
    }
}
