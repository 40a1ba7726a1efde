//! The short convolution in front of a gated delta rule: depthwise, causal, with silu.
//!
//! ```text
//! c_t = silu( Σ_j w[:, j] · u_{t − Kc + 1 + j} )
//! ```
//! Before the first step stands the tail: the last Kc − 1 rows of what came before, as they were
//! before the convolution.
//!
//! | form | where |
//! |---|---|
//! | [`CausalConv::reference`] | everywhere: the twin, in MLX's operations |
//! | `cpu.rs` | CPU: all channels of a band side by side |
//! | `conv.cu` | CUDA: one launch |
//!
//! Sums and silu are f32 in every form.

mod cpu;
mod cuda;
mod twin;

use mlx::{Array, Backend, Device, Dtype, Result};

use crate::input::{dims, expect_dtype, expect_float, expect_shape, refused};

const OP: &str = "causal_conv";

/// The inputs of the convolution.
#[derive(Clone, Copy, Debug)]
pub struct CausalConv<'a> {
    /// Rows `[B, L, C]`, L ≥ 1.
    pub u: &'a Array,
    /// The Kc − 1 rows before them `[B, Kc − 1, C]`, in u's dtype; zero if absent.
    pub tail: Option<&'a Array>,
    /// `[C, Kc]`, 2 ≤ Kc ≤ 8.
    pub weight: &'a Array,
    /// How many of the L steps of each sequence count, `[B]`, i32: what stands behind them is not
    /// read, and what comes out there is unspecified, but finite. All count if absent.
    pub lengths: Option<&'a Array>,
}

/// What the convolution makes of its inputs.
#[derive(Debug)]
pub struct Convolved {
    /// `[B, L, C]` in u's dtype.
    pub out: Array,
    /// The Kc − 1 rows before each sequence's end, `[B, Kc − 1, C]`, in u's dtype: the next tail.
    pub tail: Array,
}

/// The sizes that the inputs share.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    rows: i32,
    steps: i32,
    channels: i32,
    width: i32,
}

impl CausalConv<'_> {
    /// The convolution, in the fastest form that this backend has.
    ///
    /// # Errors
    /// Shapes or dtypes do not fit each other.
    pub fn run(&self) -> Result<Convolved> {
        let sizes = self.check()?;
        match Device::current_backend() {
            Backend::Cpu => cpu::run(self, sizes),
            Backend::Cuda => cuda::run(self, sizes),
            Backend::Metal => twin::run(self, sizes),
        }
    }

    /// The convolution in MLX's operations: what every other form is held against.
    ///
    /// # Errors
    /// Those of [`CausalConv::run`].
    pub fn reference(&self) -> Result<Convolved> {
        twin::run(self, self.check()?)
    }

    fn check(&self) -> Result<Sizes> {
        let [rows, steps, channels] = dims(OP, "u", self.u)?;
        let [_, width] = dims(OP, "weight", self.weight)?;
        expect_float(OP, "u", self.u)?;
        expect_float(OP, "weight", self.weight)?;
        expect_shape(OP, "weight", self.weight, &[channels, width])?;
        if [rows, steps, channels].contains(&0) {
            return Err(refused(OP, &[self.u], "no dimension of u may be 0".to_owned()));
        }
        if !(2..=8).contains(&width) {
            let message = format!("a kernel of {width} steps is not among 2..=8");
            return Err(refused(OP, &[self.weight], message));
        }
        if let Some(tail) = self.tail {
            expect_dtype(OP, "tail", tail, self.u.dtype())?;
            expect_shape(OP, "tail", tail, &[rows, width - 1, channels])?;
        }
        if let Some(lengths) = self.lengths {
            expect_dtype(OP, "lengths", lengths, Dtype::I32)?;
            expect_shape(OP, "lengths", lengths, &[rows])?;
        }
        Ok(Sizes { rows, steps, channels, width })
    }
}
