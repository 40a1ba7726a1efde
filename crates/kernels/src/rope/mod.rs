//! Heads of queries or keys, from a projection's output to where attention takes them: norm over
//! each head, rotary position embedding, and heads before tokens, in one.
//!
//! ```text
//! angle = position · frequency of pair i
//! (a, b) → (a cos − b sin, b cos + a sin) · factor
//! ```
//! A pair is elements (i, i + r/2), or (2i, 2i + 1), of the r first ones of a head; what stands
//! behind them is not turned.
//!
//! | form | where |
//! |---|---|
//! | [`Heads::reference`] | everywhere: the twin, in MLX's operations |
//! | `cpu.rs` | CPU: one node, sine and cosine once per position for all heads |
//! | `cuda.rs` | CUDA, where rows have positions as an array: one launch, for [`turn_both`] too |
//!
//! Angles are rounded to f32 as the models' reference does; norm, sines and products are f32 in
//! `cpu.rs` and `cuda.rs`, and MLX's own in the twin.

pub(crate) mod cpu;
mod cuda;
mod twin;

use std::sync::Arc;

use mlx::{Array, Backend, Device, Dtype, Result};

use crate::Positions;
use crate::input::{dims, expect_dtype, expect_float, expect_shape, refused};

const OP: &str = "rope";

/// Which elements of a head turn together, and how fast.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// As MLX takes it.
    mlx: mlx::Rope,
    /// Radians per position, `[r/2]`.
    frequencies: Arc<[f32]>,
    /// The same as an array.
    on_device: Array,
    /// Multiplies what turned; and the same for MLX, `[D]`, 1 behind it. None: 1.
    factor: Option<(f32, Array)>,
}

impl Rotation {
    /// Pair i of the `n / 2` pairs of the first `n` elements turns by base^(−2i/n) per position.
    /// `traditional` pairs neighbours.
    ///
    /// # Errors
    /// `n` is not even, or below 2.
    pub fn powers(base: f64, n: i32, traditional: bool) -> Result<Self> {
        if n < 2 || n % 2 != 0 {
            return Err(refused(OP, &[], format!("{n} elements do not turn in pairs")));
        }
        let frequencies = (0..n / 2).map(|i| base.powf(-2.0 * f64::from(i) / f64::from(n)) as f32);
        let frequencies = frequencies.collect::<Arc<[f32]>>();
        let mlx = mlx::Rope { dims: n, traditional, base: base as f32, scale: 1.0, freqs: None };
        let on_device = Array::from_slice(&frequencies, &[n / 2])?;
        Ok(Self { mlx, frequencies, on_device, factor: None })
    }

    /// Each pair turns by its own number of radians per position.
    ///
    /// # Errors
    /// There is none, or one is 0 or not finite.
    pub fn frequencies(frequencies: &[f64], traditional: bool) -> Result<Self> {
        let is_fine = |f: &f64| f.is_finite() && *f != 0.0;
        if frequencies.is_empty() || !frequencies.iter().all(is_fine) {
            let message = "frequencies must be finite and not 0, one or more".to_owned();
            return Err(refused(OP, &[], message));
        }
        let n = frequencies.len() as i32;
        let reciprocals = frequencies.iter().map(|f| (1.0 / f) as f32).collect::<Vec<_>>();
        let freqs = Some(Array::from_slice(&reciprocals, &[n])?);
        let mlx = mlx::Rope { dims: 2 * n, traditional, base: 0.0, scale: 1.0, freqs };
        let frequencies = frequencies.iter().map(|f| *f as f32).collect::<Arc<[f32]>>();
        let on_device = Array::from_slice(&frequencies, &[n])?;
        Ok(Self { mlx, frequencies, on_device, factor: None })
    }

    /// The same, but what turned of a head of `head_dim` elements is multiplied by `factor` too.
    ///
    /// # Errors
    /// MLX refuses to make the list of factors.
    pub fn magnified(&self, factor: f32, head_dim: i32) -> Result<Self> {
        let factors = (0..head_dim).map(|i| if i < self.mlx.dims { factor } else { 1.0 });
        let factors = Array::from_slice(&factors.collect::<Vec<_>>(), &[head_dim])?;
        Ok(Self { factor: Some((factor, factors)), ..self.clone() })
    }

    /// How many of a head's elements turn.
    pub fn n_turned(&self) -> i32 {
        self.mlx.dims
    }
}

/// A norm over each head.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorm<'a> {
    /// `[D]`, any float.
    pub weight: &'a Array,
    /// ε.
    pub eps: f32,
}

/// Heads to be turned.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// `[B, L, n·G]`: each head lies in a group of G elements, G ≥ begin + D.
    pub x: &'a Array,
    /// n.
    pub n_heads: i32,
    /// Where in its group a head begins.
    pub begin: i32,
    /// D.
    pub head_dim: i32,
    /// Before the turn; none if absent.
    pub norm: Option<HeadNorm<'a>>,
    /// Of the first elements of a head.
    pub rotation: &'a Rotation,
    /// Where tokens stand.
    pub positions: Positions<'a>,
}

/// The sizes that the inputs share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) rows: i32,
    pub(crate) tokens: i32,
    group: i32,
}

/// Heads of two arrays at the same positions, those of `a`, each as [`Heads::turn`] has it.
///
/// # Errors
/// Those of [`Heads::turn`], or the two have other numbers of rows.
pub fn turn_both(a: &Heads<'_>, b: &Heads<'_>) -> Result<[Array; 2]> {
    let b = &Heads { positions: a.positions, ..*b };
    match (Device::current_backend(), a.positions) {
        (Backend::Cuda, Positions::Rows { positions, .. }) => {
            let made = cuda::run(&[(a, a.check()?), (b, b.check()?)], positions)?;
            Ok(made.try_into().expect("one output for each of the two"))
        }
        _ => Ok([a.turn()?, b.turn()?]),
    }
}

impl Heads<'_> {
    /// The turned heads `[B, n, L, D]` in x's dtype, in the fastest form that this backend has.
    ///
    /// # Errors
    /// Shapes or dtypes do not fit each other.
    pub fn turn(&self) -> Result<Array> {
        let sizes = self.check()?;
        match Device::current_backend() {
            Backend::Cpu => cpu::run(self, sizes),
            Backend::Cuda => match self.positions {
                Positions::Rows { positions, .. } => {
                    Ok(cuda::run(&[(self, sizes)], positions)?.remove(0))
                }
                Positions::Same(_) => twin::run(self, sizes),
            },
            Backend::Metal => twin::run(self, sizes),
        }
    }

    /// The same in MLX's operations: what the other form is held against.
    ///
    /// # Errors
    /// Those of [`Heads::turn`].
    pub fn reference(&self) -> Result<Array> {
        twin::run(self, self.check()?)
    }

    pub(crate) fn check(&self) -> Result<Sizes> {
        let [rows, tokens, width] = dims(OP, "x", self.x)?;
        expect_float(OP, "x", self.x)?;
        let refuse = |message| Err(refused(OP, &[self.x], message));
        if [rows, tokens, width].contains(&0) {
            return refuse("no dimension of x may be 0".to_owned());
        }
        let (n, begin, head) = (self.n_heads, self.begin, self.head_dim);
        if n < 1 || width % n != 0 {
            return refuse(format!("{n} heads do not divide {width} elements"));
        }
        let group = width / n;
        if begin < 0 || head < 1 || head > group || begin > group - head {
            return refuse(format!("{head} elements from {begin} on do not fit {group}"));
        }
        let turned = self.rotation.n_turned();
        if turned > head {
            return refuse(format!("{turned} elements of a head of {head} cannot turn"));
        }
        if let Some((_, factors)) = &self.rotation.factor
            && factors.dim(0) != head
        {
            return refuse(format!("factors for {} elements do not fit {head}", factors.dim(0)));
        }
        if let Some(norm) = &self.norm {
            expect_float(OP, "weight", norm.weight)?;
            expect_shape(OP, "weight", norm.weight, &[head])?;
        }
        if let Positions::Rows { positions, .. } = self.positions {
            expect_dtype(OP, "positions", positions, Dtype::I32)?;
            expect_shape(OP, "positions", positions, &[rows])?;
        }
        Ok(Sizes { rows, tokens, group })
    }
}
