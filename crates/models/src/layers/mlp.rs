//! The gated feed-forward block of the dense families.

use mlx::Array;

use crate::Result;
use crate::checkpoint::Scope;
use crate::layers::{FeedForward, Linear};

/// down( silu(gate x) ⊙ up x ).
#[derive(Debug)]
pub struct SwiGlu {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl SwiGlu {
    /// Takes its three projections from `weights`; E is `hidden`, the width between is `inner`.
    pub(crate) fn load(
        weights: &Scope<'_, '_>,
        hidden: i32,
        inner: i32,
        bias: bool,
    ) -> Result<Self> {
        Ok(Self {
            gate_proj: weights.linear("gate_proj", hidden, inner, bias)?,
            up_proj: weights.linear("up_proj", hidden, inner, bias)?,
            down_proj: weights.linear("down_proj", inner, hidden, bias)?,
        })
    }
}

impl SwiGlu {
    /// `[.., E]` → `[.., I]`, before the projection down.
    fn inner(&self, x: &Array) -> Result<Array> {
        Linear::swiglu(&self.gate_proj, &self.up_proj, x)
    }

    /// `[.., E]` → `[.., E]`.
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        self.down_proj.forward(&self.inner(x)?)
    }
}

impl FeedForward for SwiGlu {
    fn forward_onto(&self, onto: &Array, x: &Array) -> Result<Array> {
        self.down_proj.forward_onto(onto, &self.inner(x)?)
    }
}
