//! The gated delta rule: a linear attention whose state is a matrix per head.
//!
//! With S `[Dv, Dk]` the state of a value head, per step:
//! ```text
//! S = g·S      δ = (v − S k̂)·β      S = S + δ ⊗ k̂      y = S q̂
//! ```
//! Value head h reads key head h // (Hv/Hk). Normalising and scaling q and k is the caller's part.
//!
//! | form | where | how |
//! |---|---|---|
//! | [`GatedDelta::sequential`] | everywhere | the twin: step by step in MLX's operations |
//! | [`GatedDelta::chunked`] | everywhere | 64 steps at once as matrix products |
//! | [`GatedDelta::built_in`] | Metal | MLX's own operation |
//! | `cpu.rs` | CPU | step by step in Rust, a band of the state at a time |
//! | `steps.cu` | CUDA, few steps | step by step, the state in registers |
//! | `chunks.cu` | CUDA, many steps | 64 steps at once on tensor cores |
//!
//! [`Projected`] makes the rule's inputs of what a layer projects, on CUDA in one launch; its decay
//! and β are those of [`gates`], on the CPU one node.
//!
//! States and sums are f32 in every form. On CUDA, products of 16-bit inputs in `chunks.cu` round
//! what is not an input to tf32; everything else is f32 throughout. Results of the step-by-step
//! forms do not depend on where a sequence is split, those of the chunked ones do, by rounding.

mod chunked;
mod cpu;
mod cuda;
mod gates;
mod inputs;
mod twin;

use mlx::{Array, Backend, Device, Dtype, Result, concatenate};

use crate::input::{dims, expect_dtype, expect_float, expect_shape, refused};

pub use gates::{Gates, gates, gates_reference};
pub use inputs::{Inputs, Projected};

const OP: &str = "gated_delta";

/// The inputs of the rule. q and k are already l2-normalised, and q scaled.
#[derive(Clone, Copy, Debug)]
pub struct GatedDelta<'a> {
    /// Queries `[B, T, Hk, Dk]`, T ≥ 1, in the activations' dtype or f32.
    pub q: &'a Array,
    /// Keys `[B, T, Hk, Dk]`.
    pub k: &'a Array,
    /// Values `[B, T, Hv, Dv]`; Hk divides Hv.
    pub v: &'a Array,
    /// ln g `[B, T, Hv]`, f32, ≤ 0.
    pub log_decay: &'a Array,
    /// β `[B, T, Hv]`, f32.
    pub beta: &'a Array,
    /// The state before the first step `[B, Hv, Dv, Dk]`, f32; zero if absent.
    pub state: Option<&'a Array>,
    /// How many steps of each row count, `[B]`, i32: steps from there on leave the state unchanged,
    /// and what stands in their inputs is not read; their outputs are unspecified, but finite. All
    /// steps count if absent.
    pub lengths: Option<&'a Array>,
}

/// What the rule makes of its inputs.
#[derive(Debug)]
pub struct Updated {
    /// y `[B, T, Hv, Dv]` in v's dtype.
    pub out: Array,
    /// The state after each row's last step, `[B, Hv, Dv, Dk]`, f32.
    pub state: Array,
    /// The states `[B, Hv, Dv, Dk]`, f32, after the first p steps, for every p asked for.
    pub captured: Vec<Array>,
}

/// The sizes that the inputs share.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    rows: i32,
    steps: i32,
    k_heads: i32,
    v_heads: i32,
    k_dim: i32,
    v_dim: i32,
}

impl Sizes {
    fn state(&self) -> [i32; 4] {
        [self.rows, self.v_heads, self.v_dim, self.k_dim]
    }

    /// Value heads per key head.
    fn share(&self) -> i32 {
        self.v_heads / self.k_heads
    }
}

/// The inputs as the forms in MLX's operations take them: f32, and neutral in the steps that do not
/// count.
struct Prepared {
    sizes: Sizes,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    state: Array,
}

impl GatedDelta<'_> {
    /// The rule, in the fastest form that this backend has. `capture` asks for the states after
    /// the first p steps of every row (or after all of a shorter row), 0 ≤ p ≤ T, ascending.
    ///
    /// # Errors
    /// Shapes or dtypes do not fit each other, or `capture` does not ascend within the steps.
    pub fn update(&self, capture: &[i32]) -> Result<Updated> {
        let sizes = self.check(capture)?;
        match Device::current_backend() {
            Backend::Cpu => cpu::run(self, sizes, capture),
            Backend::Cuda if cuda::fits(&sizes) => {
                let updated = cuda::run(self, sizes, capture)?;
                Ok(Updated { out: updated.out.astype(self.v.dtype())?, ..updated })
            }
            Backend::Metal => self.built_in(capture),
            Backend::Cuda => self.chunked(capture),
        }
    }

    /// The rule step by step in MLX's operations: what every other form is held against.
    ///
    /// # Errors
    /// Those of [`GatedDelta::update`].
    pub fn sequential(&self, capture: &[i32]) -> Result<Updated> {
        let sizes = self.check(capture)?;
        let (out, state, captured) = twin::run(&self.prepared(sizes)?, capture)?;
        Ok(Updated { out: out.astype(self.v.dtype())?, state, captured })
    }

    /// The rule in chunks of 64 steps: matrix products of MLX, some hundred graph nodes for
    /// thousands of steps. Right on every backend.
    ///
    /// # Errors
    /// Those of [`GatedDelta::update`].
    pub fn chunked(&self, capture: &[i32]) -> Result<Updated> {
        let sizes = self.check(capture)?;
        let (out, state, captured) = chunked::run(&self.prepared(sizes)?, capture)?;
        Ok(Updated { out: out.astype(self.v.dtype())?, state, captured })
    }

    /// The rule by MLX's own operation, once per stretch between captures: on Metal it is a kernel,
    /// elsewhere it goes step by step.
    ///
    /// # Errors
    /// Those of [`GatedDelta::update`].
    pub fn built_in(&self, capture: &[i32]) -> Result<Updated> {
        // In f32: with 16-bit inputs MLX's operation also rounds what it forms between, and is some
        // percent off where keys are alike and β is near 1.
        let p = self.prepared(self.check(capture)?)?;
        let gates = p.log_decay.exp()?;
        let inputs = [&p.q, &p.k, &p.v, &gates, &p.beta];
        let (mut state, mut outputs) = (p.state, Vec::new());
        let (mut captured, mut done) = (Vec::new(), 0);
        for &until in capture.iter().chain(Some(&p.sizes.steps)) {
            if until > done {
                let [q, k, v, gates, beta] = inputs.map(|x| x.slice_axis(1, done..until));
                let (out, after) =
                    q?.gated_delta_update(&k?, &v?, &gates?, &beta?, Some(&state))?;
                outputs.push(out);
                (state, done) = (after, until);
            }
            captured.push(state.clone());
        }
        captured.truncate(capture.len());
        let out = concatenate(&outputs.iter().collect::<Vec<_>>(), 1)?;
        Ok(Updated { out: out.astype(self.v.dtype())?, state, captured })
    }

    fn check(&self, capture: &[i32]) -> Result<Sizes> {
        let [rows, steps, k_heads, k_dim] = dims(OP, "q", self.q)?;
        let [_, _, v_heads, v_dim] = dims(OP, "v", self.v)?;
        let sizes = Sizes { rows, steps, k_heads, v_heads, k_dim, v_dim };
        for (name, array) in [("q", self.q), ("k", self.k), ("v", self.v)] {
            expect_float(OP, name, array)?;
        }
        expect_shape(OP, "k", self.k, self.q.shape())?;
        expect_shape(OP, "v", self.v, &[rows, steps, v_heads, v_dim])?;
        for (name, array) in [("log_decay", self.log_decay), ("beta", self.beta)] {
            expect_dtype(OP, name, array, Dtype::F32)?;
            expect_shape(OP, name, array, &[rows, steps, v_heads])?;
        }
        if let Some(state) = self.state {
            expect_dtype(OP, "state", state, Dtype::F32)?;
            expect_shape(OP, "state", state, &sizes.state())?;
        }
        if let Some(lengths) = self.lengths {
            expect_dtype(OP, "lengths", lengths, Dtype::I32)?;
            expect_shape(OP, "lengths", lengths, &[rows])?;
        }
        let refuse = |message| Err(refused(OP, &[self.q, self.v], message));
        if [rows, steps, k_heads, v_heads, k_dim, v_dim].contains(&0) {
            return refuse("no dimension may be 0".to_owned());
        }
        if v_heads % k_heads != 0 {
            return refuse(format!(
                "{v_heads} value heads do not share {k_heads} key heads evenly"
            ));
        }
        let within = capture.iter().all(|p| (0..=steps).contains(p));
        if !within || !capture.is_sorted_by(|a, b| a < b) {
            return refuse(format!("capture must ascend within 0..={steps}, and is {capture:?}"));
        }
        Ok(sizes)
    }

    /// The dtype of q, k and v if it is one, else f32, which holds them all.
    fn common_dtype(&self) -> Dtype {
        let dtype = self.q.dtype();
        let same = [self.k, self.v].iter().all(|x| x.dtype() == dtype);
        if same { dtype } else { Dtype::F32 }
    }

    fn prepared(&self, sizes: Sizes) -> Result<Prepared> {
        let counts = self.lengths.map(|lengths| counts(lengths, sizes.steps)).transpose()?;
        let neutral = |x: &Array| -> Result<Array> {
            let x = x.astype(Dtype::F32)?;
            let Some(counts) = &counts else { return Ok(x) };
            let mut shape = vec![sizes.rows, sizes.steps];
            shape.resize(x.n_dims(), 1);
            counts.reshape(&shape)?.select(&x, &Array::scalar(0.0, Dtype::F32)?)
        };
        Ok(Prepared {
            sizes,
            q: neutral(self.q)?,
            k: neutral(self.k)?,
            v: neutral(self.v)?,
            log_decay: neutral(self.log_decay)?,
            beta: neutral(self.beta)?,
            state: match self.state {
                Some(state) => state.clone(),
                None => Array::zeros(&sizes.state(), Dtype::F32)?,
            },
        })
    }
}

/// Which steps of each row count, `[B, T]`, bool.
fn counts(lengths: &Array, steps: i32) -> Result<Array> {
    let step = Array::arange(0.0, f64::from(steps), 1.0, Dtype::I32)?;
    step.reshape(&[1, steps])?.lt(&lengths.reshape(&[-1, 1])?)
}
