//! What every family offers to the engine.

use std::cell::RefCell;
use std::fmt;

use mlx::{Array, Dtype};

use crate::Result;
use crate::state::LayerState;

/// A language model over token ids. Stateless: what a sequence remembers is passed in.
pub trait Model: fmt::Debug {
    /// One state per layer, empty.
    fn new_state(&self) -> Vec<LayerState>;

    /// Token ids `[B, L]` → hidden states `[B, L, E]` before the last norm. All rows stand at
    /// `step.position`; `states` gain the new tokens.
    ///
    /// # Errors
    /// MLX refuses an operation.
    fn forward(&self, tokens: &Array, step: &Step, states: &mut [LayerState]) -> Result<Array>;

    /// Bytes of state that one token of one sequence adds, with activations of `dtype_bytes`.
    fn kv_bytes_per_token(&self, dtype_bytes: usize) -> u64;

    /// Hidden states `[.., E]` → logits `[.., V]`.
    ///
    /// # Errors
    /// MLX refuses an operation.
    fn logits(&self, hidden: &Array) -> Result<Array>;
}

/// Where in its sequence one forward pass stands.
#[derive(Debug)]
pub struct Step {
    /// Tokens before the first new one.
    pub position: i32,
    /// L, the new tokens.
    pub n_tokens: i32,
    /// The mask of the window layers, built by the first of them: (window, first key, mask).
    mask: RefCell<Option<(i32, i32, Array)>>,
}

impl Step {
    /// `n_tokens` new tokens after `position` earlier ones.
    pub fn new(position: i32, n_tokens: i32) -> Self {
        Self { position, n_tokens, mask: RefCell::new(None) }
    }

    /// `[L, T − first]`: which keys from `first` on a query sees through a window that counts
    /// itself.
    pub(crate) fn window_mask(&self, window: i32, first: i32) -> Result<Array> {
        let mut kept = self.mask.borrow_mut();
        if let Some((_, _, mask)) = kept.as_ref().filter(|(w, f, _)| (*w, *f) == (window, first)) {
            return Ok(mask.clone());
        }
        let end = f64::from(self.position + self.n_tokens);
        let queries =
            Array::arange(f64::from(self.position), end, 1.0, Dtype::I32)?.expand_dims(&[1])?;
        let keys = Array::arange(f64::from(first), end, 1.0, Dtype::I32)?;
        let distance = queries.sub(&keys)?;
        let mask = distance
            .ge(&Array::from_slice(&[0i32], &[])?)?
            .logical_and(&distance.lt(&Array::from_slice(&[window], &[])?)?)?;
        *kept = Some((window, first, mask.clone()));
        Ok(mask)
    }
}

/// Facts about a loaded model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// `model_type` as the registry knows it.
    pub family: String,
    /// Number of layers.
    pub n_layers: i32,
    /// V.
    pub vocab_size: i32,
    /// The longest sequence the config promises.
    pub context_tokens: i32,
    /// Weights and biases, as many as the unquantized model has.
    pub n_parameters: u64,
    /// Bytes of all weights in memory.
    pub weight_bytes: u64,
    /// Bytes of weights that one decode step reads.
    pub weight_bytes_per_token: u64,
    /// Bytes of state that one token of one sequence adds.
    pub kv_bytes_per_token: u64,
    /// Dtype of activations.
    pub dtype: Dtype,
    /// For example "4-bit affine, group 64"; none if all weights are floats.
    pub quantization: Option<String>,
}

/// A model and its facts.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub model: Box<dyn Model>,
    /// Its facts.
    pub info: ModelInfo,
    /// What was passed over on purpose, one sentence each.
    pub notes: Vec<String>,
}
