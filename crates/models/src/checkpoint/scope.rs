//! A place in the tree of names, and what a model takes from there: linear layers, norms, stacks.

use std::ops::ControlFlow;

use mlx::{Array, Dtype};

use crate::layers::{Embedding, Linear, Matrix, PerHead, Product, RmsNorm, Stack};
use crate::{Error, Result};

use super::{MatrixFact, Source, Stored, Weights, random};

/// A place in the tree of names, such as `model.layers.3.self_attn`.
pub(crate) struct Scope<'w, 'p> {
    weights: &'w Weights<'p>,
    path: String,
}

/// The sizes of a stack of matrices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StackSizes {
    /// How many matrices.
    pub n: i32,
    /// How many of them one token uses.
    pub n_used: i32,
    pub n_in: i32,
    pub n_out: i32,
}

impl<'w, 'p> Scope<'w, 'p> {
    pub(super) fn root(weights: &'w Weights<'p>) -> Self {
        Self { weights, path: String::new() }
    }

    /// The place `name` below this one.
    pub fn at(&self, name: &str) -> Scope<'w, 'p> {
        Scope { weights: self.weights, path: self.join(name) }
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The activations' dtype.
    pub fn dtype(&self) -> Dtype {
        self.weights.dtype
    }

    /// Whether the files hold a linear layer of this name; for random weights `otherwise`.
    pub fn has_linear(&self, name: &str, otherwise: bool) -> bool {
        match &self.weights.source {
            Source::Random(_) => otherwise,
            Source::Folder { tensors, .. } => {
                tensors.borrow().map.contains_key(&format!("{}.weight", self.join(name)))
            }
        }
    }

    /// Notes that the head is the embedding, which a decode step then reads whole; `is_stated` says
    /// whether the config knows.
    pub fn note_tied_head(&self, is_stated: bool) {
        let mut state = self.weights.state.borrow_mut();
        state.tally.head_is_tied = true;
        if !is_stated {
            let note = "there is no lm_head although config.json does not say that it is tied: \
                        the embedding serves as the head";
            state.notes.push(note.to_owned());
        }
    }

    /// A linear layer `n_in` → `n_out`.
    pub fn linear(&self, name: &str, n_in: i32, n_out: i32, bias: bool) -> Result<Linear> {
        let weight = self.matrix(name, &[n_out, n_in])?;
        let bias = bias.then(|| self.vector(&format!("{name}.bias"), n_out, 0.0)).transpose()?;
        Ok(Linear { weight, bias })
    }

    /// One stored linear layer `n_in` → `n_out` as several: each takes the outputs that its list
    /// names.
    pub fn linear_rows(
        &self,
        name: &str,
        n_in: i32,
        n_out: i32,
        rows: &[Vec<i32>],
    ) -> Result<Vec<Linear>> {
        let (path, shape) = (self.join(name), [n_out, n_in]);
        let stored = self.stored(&path, &shape)?;
        let part = |list: &Vec<i32>| {
            let index = Array::from_slice(list, &[list.len() as i32])?;
            let part = match &stored {
                Stored::Dense(w) => Stored::Dense(w.take(&index, 0)?),
                Stored::Quantized(q) => Stored::Quantized(q.take_rows(&index)?),
            };
            Ok(Linear { weight: self.owned(part, &[list.len() as i32, n_in])?, bias: None })
        };
        rows.iter().map(part).collect()
    }

    /// A stack of linear layers, of which each token uses a few.
    pub fn stack(&self, name: &str, sizes: StackSizes, bias: bool) -> Result<Stack> {
        let before = self.weights.state.borrow().tally.weight_bytes;
        let weight = self.matrix(name, &[sizes.n, sizes.n_out, sizes.n_in])?;
        let bias = match bias {
            true => {
                Some(self.floats(&format!("{name}.bias"), &[sizes.n, sizes.n_out], self.dtype())?)
            }
            false => None,
        };
        let mut state = self.weights.state.borrow_mut();
        let n_bytes = state.tally.weight_bytes - before;
        state.tally.expert_bytes += n_bytes;
        state.tally.idle_expert_bytes +=
            n_bytes * (sizes.n - sizes.n_used).max(0) as u64 / sizes.n as u64;
        Ok(Stack { weight, bias })
    }

    /// A linear layer `n_in` → `n_out` for each of `n` heads.
    pub fn per_head(&self, name: &str, n: i32, n_in: i32, n_out: i32) -> Result<PerHead> {
        let (w, shape) = (self.weights, [n, n_out, n_in]);
        let mut stored = self.stored(&self.join(name), &shape)?;
        if let Stored::Quantized(q) = &stored
            && w.proves_products()
            && Product::proven_per_head(q, &shape, w.dtype)? == Product::Expanded
        {
            stored = Stored::Dense(q.dequantize(w.dtype)?);
        }
        self.own(&stored, &shape);
        Ok(PerHead::new(match stored {
            Stored::Dense(table) => Matrix::Dense(table),
            Stored::Quantized(q) => Matrix::Quantized(q, Product::Fused),
        }))
    }

    /// A table of `rows` embeddings.
    pub fn embedding(&self, name: &str, rows: i32, width: i32) -> Result<Embedding> {
        let before = self.weights.state.borrow().tally.weight_bytes;
        let matrix = self.matrix(name, &[rows, width])?;
        let mut state = self.weights.state.borrow_mut();
        state.tally.embedding_bytes += state.tally.weight_bytes - before;
        Ok(match matrix {
            Matrix::Dense(table) => Embedding::Dense(table),
            Matrix::Quantized(table, product) => {
                Embedding::Quantized(table, product, self.weights.dtype)
            }
        })
    }

    /// An RMS norm over `width` values. Its weight stays in f32 where a layout's conversion formed
    /// it there.
    pub fn norm(&self, name: &str, width: i32, eps: f32) -> Result<RmsNorm> {
        let name = format!("{name}.weight");
        let dtype = match self.was_formed_in_f32(&name) {
            true => Dtype::F32,
            false => self.dtype(),
        };
        let weight = self.filled(&name, &[width], 1.0, dtype)?;
        Ok(RmsNorm { weight, eps })
    }

    /// An RMS norm whose weight is stored around 0; the 1 is added in f32.
    pub fn norm_around_zero(&self, name: &str, width: i32, eps: f32) -> Result<RmsNorm> {
        let weight = self.filled(&format!("{name}.weight"), &[width], 0.0, Dtype::F32)?;
        let weight = weight.offset(1.0)?;
        self.weights.state.borrow_mut().pending.push(weight.clone());
        Ok(RmsNorm { weight, eps })
    }

    fn was_formed_in_f32(&self, name: &str) -> bool {
        match &self.weights.source {
            Source::Random(_) => false,
            Source::Folder { tensors, .. } => {
                let tensors = tensors.borrow();
                let norm = tensors.map.get(&self.join(name));
                !tensors.is_mlx && norm.is_some_and(|norm| norm.array.dtype() == Dtype::F32)
            }
        }
    }

    /// A vector of `n` floats in the activations' dtype; `random` is its value where weights are
    /// random.
    pub fn vector(&self, name: &str, n: i32, random: f32) -> Result<Array> {
        self.filled(name, &[n], random, self.dtype())
    }

    /// A vector of `n` floats in f32, whatever the activations are.
    pub fn vector_f32(&self, name: &str, n: i32, random: f32) -> Result<Array> {
        self.filled(name, &[n], random, Dtype::F32)
    }

    fn filled(&self, name: &str, shape: &[i32], random: f32, dtype: Dtype) -> Result<Array> {
        let w = self.weights;
        let array = match &w.source {
            Source::Random(_) => Array::full(shape, random, dtype)?,
            Source::Folder { tensors, .. } => w.float(tensors, &self.join(name), shape, dtype)?,
        };
        w.own(shape.iter().map(|&n| i64::from(n)).product(), [&array]);
        Ok(array)
    }

    /// Floats that are never quantized.
    pub fn floats(&self, name: &str, shape: &[i32], dtype: Dtype) -> Result<Array> {
        let w = self.weights;
        let path = self.join(name);
        let array = match &w.source {
            Source::Random(_) => random::floats(&path, shape, dtype)?,
            Source::Folder { tensors, .. } => w.float(tensors, &path, shape, dtype)?,
        };
        w.own(shape.iter().map(|&n| i64::from(n)).product(), [&array]);
        Ok(array)
    }

    /// A matrix `[rows, n_in]` or a stack of them `[n, rows, n_in]`, not transposed.
    pub fn matrix(&self, name: &str, shape: &[i32]) -> Result<Matrix> {
        let stored = self.stored(&self.join(name), shape)?;
        self.owned(stored, shape)
    }

    fn stored(&self, path: &str, shape: &[i32]) -> Result<Stored> {
        let stored = self.found(path, shape)?;
        let quantization = match &stored {
            Stored::Dense(_) => None,
            Stored::Quantized(matrix) => Some(matrix.quantization),
        };
        let (path, shape) = (path.to_owned(), shape.to_vec());
        let fact = MatrixFact { path, shape, quantization };
        self.weights.state.borrow_mut().matrices.push(fact);
        Ok(stored)
    }

    fn found(&self, path: &str, shape: &[i32]) -> Result<Stored> {
        let w = self.weights;
        match &w.source {
            Source::Random(quantization) => random::matrix(path, shape, *quantization, w.dtype),
            Source::Folder { tensors, declared, .. } => {
                Ok(match w.quantized((tensors, declared), path, shape)? {
                    Some(quantized) => Stored::Quantized(quantized),
                    None => {
                        let name = format!("{path}.weight");
                        Stored::Dense(w.float(tensors, &name, shape, w.dtype)?)
                    }
                })
            }
        }
    }

    fn owned(&self, stored: Stored, shape: &[i32]) -> Result<Matrix> {
        self.own(&stored, shape);
        Ok(match stored {
            Stored::Dense(table) => Matrix::Dense(table),
            Stored::Quantized(q) => {
                let product = self.weights.product_of(&q, shape)?;
                Matrix::Quantized(q, product)
            }
        })
    }

    /// Notes that a matrix of this shape belongs to the model.
    fn own(&self, stored: &Stored, shape: &[i32]) {
        let w = self.weights;
        let n_parameters = shape.iter().map(|&n| i64::from(n)).product();
        match stored {
            Stored::Dense(table) => w.own(n_parameters, [table]),
            Stored::Quantized(q) => {
                w.own(n_parameters, [&q.weight, &q.scales].into_iter().chain(&q.biases))
            }
        };
    }

    /// Reads what has been taken so far into memory, checks it, and reports progress.
    ///
    /// # Errors
    /// A file cannot be read, scales are not finite, memory is short, or the caller called it off.
    pub fn settle(&self) -> Result<()> {
        if !self.weights.reads {
            return Ok(());
        }
        let mut state = self.weights.state.borrow_mut();
        self.weights.check_memory(state.tally.weight_bytes)?;
        let pending = std::mem::take(&mut state.pending);
        let checks = std::mem::take(&mut state.checks);
        mlx::eval(pending.iter().chain(checks.iter().map(|(_, _, check)| check)))?;
        for (path, name, check) in checks {
            if !check.item::<bool>()? {
                let reason = "holds values that are not finite numbers".to_owned();
                return Err(Error::Tensor { path, name, reason });
            }
        }
        let done = state.tally.weight_bytes;
        let total = state.total_bytes.max(done);
        match (state.progress)(done, total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }
}
