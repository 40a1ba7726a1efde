//! What the rule takes, of what a layer projects: heads of length 1, decay and β.

use mlx::{Array, Backend, Device, Dtype, Launch, Result};

use super::{Gates, OP, gates, gates_reference};
use crate::cuda::{Kernel, literal};
use crate::input::{dims, expect_dtype, expect_float, expect_shape, refused};
use crate::norm;

const THREADS: i32 = 128;

/// The outputs of a layer's projections, the first of them convolved.
#[derive(Clone, Copy, Debug)]
pub struct Projected<'a> {
    /// Heads of queries, of keys and of values, one after another `[B, T, 2·Hk·Dk + Hv·Dv]`.
    pub qkv: &'a Array,
    /// As [`gates`] takes it, `[B, T, Hv]`.
    pub a: &'a Array,
    /// The same.
    pub b: &'a Array,
    /// `[Hv]`, f32.
    pub dt_bias: &'a Array,
    /// `[Hv]`, f32.
    pub decay: &'a Array,
    /// Hk.
    pub k_heads: i32,
    /// Dk.
    pub k_dim: i32,
    /// What is added to the squares of a head.
    pub eps: f32,
}

/// What [`GatedDelta`](super::GatedDelta) takes beside a state.
#[derive(Debug)]
pub struct Inputs {
    /// `[B, T, Hk, Dk]`, each head of length Dk^−½, up to ε.
    pub q: Array,
    /// `[B, T, Hk, Dk]`, each head of length 1, up to ε.
    pub k: Array,
    /// `[B, T, Hv, Dv]`.
    pub v: Array,
    /// Decay and β.
    pub gates: Gates,
}

#[derive(Clone, Copy)]
struct Sizes {
    rows: i32,
    steps: i32,
    v_heads: i32,
    v_dim: i32,
}

impl Projected<'_> {
    /// The rule's inputs, in the fastest form that this backend has: on CUDA one launch.
    ///
    /// # Errors
    /// Shapes or dtypes do not fit each other.
    pub fn inputs(&self) -> Result<Inputs> {
        let sizes = self.check()?;
        match Device::current_backend() {
            Backend::Cuda => self.on_cuda(sizes),
            Backend::Cpu | Backend::Metal => self.by(sizes, norm::unit, gates),
        }
    }

    /// The same in MLX's operations: what the other forms are held against.
    ///
    /// # Errors
    /// Those of [`Projected::inputs`].
    pub fn reference(&self) -> Result<Inputs> {
        self.by(self.check()?, norm::reference::unit, gates_reference)
    }

    fn check(&self) -> Result<Sizes> {
        let [rows, steps, width] = dims(OP, "qkv", self.qkv)?;
        let [_, _, v_heads] = dims(OP, "a", self.a)?;
        expect_float(OP, "qkv", self.qkv)?;
        for (name, gate) in [("a", self.a), ("b", self.b)] {
            expect_dtype(OP, name, gate, self.qkv.dtype())?;
            expect_shape(OP, name, gate, &[rows, steps, v_heads])?;
        }
        for (name, list) in [("dt_bias", self.dt_bias), ("decay", self.decay)] {
            expect_dtype(OP, name, list, Dtype::F32)?;
            expect_shape(OP, name, list, &[v_heads])?;
        }
        if [rows, steps, v_heads, self.k_heads, self.k_dim].iter().any(|&n| n < 1) {
            return Err(refused(OP, &[self.qkv], "no dimension may be 0".to_owned()));
        }
        let values = width - 2 * self.k_heads * self.k_dim;
        if values < v_heads || values % v_heads != 0 {
            let (n, dim) = (self.k_heads, self.k_dim);
            let message = format!("{n} heads of {dim} twice and {v_heads} more do not fit {width}");
            return Err(refused(OP, &[self.qkv, self.a], message));
        }
        Ok(Sizes { rows, steps, v_heads, v_dim: values / v_heads })
    }

    fn by(
        &self,
        s: Sizes,
        unit: fn(&Array, f32, f32) -> Result<Array>,
        gates: fn(&Array, &Array, &Array, &Array) -> Result<Gates>,
    ) -> Result<Inputs> {
        let keys = self.k_heads * self.k_dim;
        let parts = self.qkv.split_at(&[keys, 2 * keys], -1)?;
        // The norm is by the mean of the squares.
        let (dim, root) = (self.k_dim as f32, (self.k_dim as f32).sqrt());
        let heads = |i: usize| parts[i].reshape(&[s.rows, s.steps, self.k_heads, self.k_dim]);
        Ok(Inputs {
            q: unit(&heads(0)?, self.eps / dim, 1.0 / dim)?,
            k: unit(&heads(1)?, self.eps / dim, 1.0 / root)?,
            v: parts[2].reshape(&[s.rows, s.steps, s.v_heads, s.v_dim])?,
            gates: gates(self.a, self.b, self.dt_bias, self.decay)?,
        })
    }

    fn on_cuda(&self, s: Sizes) -> Result<Inputs> {
        let eps = literal(self.eps);
        let kernel = Kernel {
            name: format!("offshoot_delta_inputs_{:x}", self.eps.to_bits()),
            source: include_str!("inputs.cu"),
            inputs: vec![
                ("u", Some(self.qkv)),
                ("a", Some(self.a)),
                ("b", Some(self.b)),
                ("dt_bias", Some(self.dt_bias)),
                ("decay", Some(self.decay)),
            ],
            outputs: vec!["q", "k", "v", "log_decay", "beta"],
            call: &|| {
                format!(
                    "offshoot::delta_inputs<HK, DK, HV, DV>(u, a, b, dt_bias, decay, q, k, v, \
                     log_decay, beta, static_cast<long>(u_shape[0]) * u_shape[1], {eps});"
                )
            },
            shared_bytes: 0,
        };
        let keys = [s.rows, s.steps, self.k_heads, self.k_dim];
        let (values, heads) = ([s.rows, s.steps, s.v_heads, s.v_dim], [s.rows, s.steps, s.v_heads]);
        let dtype = self.qkv.dtype();
        let n_warps = s.rows * s.steps * (2 * self.k_heads + s.v_heads + 1);
        let n_groups = (n_warps + THREADS / 32 - 1) / (THREADS / 32);
        let made = kernel.launch(&Launch {
            outputs: &[
                (&keys, dtype),
                (&keys, dtype),
                (&values, dtype),
                (&heads, Dtype::F32),
                (&heads, Dtype::F32),
            ],
            grid: [n_groups * THREADS, 1, 1],
            group: [THREADS, 1, 1],
            ints: &[("HK", self.k_heads), ("DK", self.k_dim), ("HV", s.v_heads), ("DV", s.v_dim)],
            dtypes: &[],
        })?;
        let Ok([q, k, v, log_decay, beta]) = <[Array; 5]>::try_from(made) else {
            unreachable!("as many outputs as were asked for")
        };
        Ok(Inputs { q, k, v, gates: Gates { log_decay, beta } })
    }
}
