//! Experts: a router chooses a few of many feed-forward blocks for each token. N tokens · E hidden
//! · I width of an expert · k experts per token.

use kernels::{activation, dense, experts, router};
use mlx::{Array, Dtype};

use crate::checkpoint::{Scope, StackSizes};
use crate::layers::{FeedForward, Linear, Stack, SwiGlu};
use crate::{Error, Result};

/// Pairs of one product: more than 65,535 do not fit the launch grids of MLX on CUDA, and the
/// results of each pair are held at once.
const MAX_PAIRS: i32 = 1 << 15;

/// How a token's experts are chosen and weighed.
#[derive(Debug)]
pub enum Router {
    /// The softmax over all experts; of its largest, divided by their sum if `normalizes` (Qwen).
    Softmax {
        /// E → n experts.
        gate: Linear,
        /// k.
        n_used: i32,
        /// Whether the weights of the chosen add up to 1.
        normalizes: bool,
    },
    /// The largest logits, weighed by the softmax over them alone (gpt-oss).
    TopSoftmax {
        /// E → n experts.
        gate: Linear,
        /// k.
        n_used: i32,
    },
    /// Sigmoids, in f32: chosen with a correction bias, weighed without it (GLM).
    Sigmoid {
        /// `[E, n]`, f32.
        gate: Array,
        /// `[n]`, f32; takes part in the choice alone.
        correction_bias: Array,
        /// Groups, k, and what becomes of the weights.
        how: router::Sigmoid,
    },
}

impl Router {
    /// Tokens `[N, E]` → their experts (u32) and weights, both `[N, k]`.
    fn choose(&self, x: &Array) -> Result<(Array, Array)> {
        match self {
            Router::Softmax { gate, n_used, normalizes } => {
                let routed = router::softmax_topk(&gate.forward(x)?, *n_used, *normalizes)?;
                Ok((routed.indices, routed.weights.astype(x.dtype())?))
            }
            Router::TopSoftmax { gate, n_used } => {
                let routed = router::topk_softmax(&gate.forward(x)?, *n_used)?;
                Ok((routed.indices, routed.weights.astype(x.dtype())?))
            }
            Router::Sigmoid { gate, correction_bias, how } => {
                // [N, n]
                let logits = dense::product_transposed(&x.astype(Dtype::F32)?, gate)?;
                let routed = router::sigmoid_topk(&logits, correction_bias, how)?;
                Ok((routed.indices, routed.weights))
            }
        }
    }
}

/// What an expert does between its projections.
#[derive(Clone, Copy, Debug)]
pub enum Activation {
    /// silu(gate) ⊙ up.
    SwiGlu,
    /// (up + 1) ⊙ gate · σ(α · gate), gate limited from above and up on both sides (gpt-oss).
    ClampedSwiGlu {
        /// α.
        alpha: f32,
        /// The limit.
        limit: f32,
    },
}

impl Activation {
    fn apply(self, gate: &Array, up: &Array) -> Result<Array> {
        match self {
            Activation::SwiGlu => Ok(activation::swiglu(gate, up)?),
            Activation::ClampedSwiGlu { alpha, limit } => {
                Ok(activation::clamped_swiglu(gate, up, alpha, limit)?)
            }
        }
    }
}

/// The sizes of experts, and how they differ between families.
#[derive(Clone, Copy, Debug)]
pub struct ExpertsConfig {
    /// E.
    pub hidden: i32,
    /// I.
    pub inner: i32,
    /// How many there are.
    pub n_experts: i32,
    /// k.
    pub n_used: i32,
    /// Biases on all three projections.
    pub bias: bool,
    /// Between them.
    pub activation: Activation,
}

impl ExpertsConfig {
    /// Fails unless k of n experts can be chosen; `used` and `all` are the config's names for them.
    pub(crate) fn check(&self, used: &str, all: &str) -> Result<()> {
        if self.n_used <= self.n_experts {
            return Ok(());
        }
        let (k, n) = (self.n_used, self.n_experts);
        Err(Error::config(used, format!("asks for {k} experts, but {all} is {n}")))
    }
}

/// The experts' weights, one stack for each projection.
#[derive(Debug)]
pub struct Experts {
    gate_proj: Stack, // E → I
    up_proj: Stack,   // E → I
    down_proj: Stack, // I → E
    activation: Activation,
}

impl Experts {
    /// Takes the three stacks from `weights`.
    pub(crate) fn load(weights: &Scope<'_, '_>, config: &ExpertsConfig) -> Result<Self> {
        let c = config;
        let sizes = |n_in, n_out| StackSizes { n: c.n_experts, n_used: c.n_used, n_in, n_out };
        Ok(Self {
            gate_proj: weights.stack("gate_proj", sizes(c.hidden, c.inner), c.bias)?,
            up_proj: weights.stack("up_proj", sizes(c.hidden, c.inner), c.bias)?,
            down_proj: weights.stack("down_proj", sizes(c.inner, c.hidden), c.bias)?,
            activation: c.activation,
        })
    }

    /// Tokens `[N, E]`, their experts and weights `[N, k]` → the weighted sum `[N, E]`.
    fn forward(&self, x: &Array, chosen: &Array, weights: &Array) -> Result<Array> {
        self.forward_by(MAX_PAIRS, x, chosen, weights)
    }

    /// The same with at most `max_pairs` at once.
    fn forward_by(
        &self,
        max_pairs: i32,
        x: &Array,
        chosen: &Array,
        weights: &Array,
    ) -> Result<Array> {
        let (n, k) = (chosen.dim(0), chosen.dim(1));
        if n > 1 && n * k > max_pairs {
            let step = (max_pairs / k).max(1);
            let slices = (0..n).step_by(step as usize).map(|begin| {
                let tokens = begin..n.min(begin + step);
                self.forward_by(
                    max_pairs,
                    &x.slice_axis(0, tokens.clone())?,
                    &chosen.slice_axis(0, tokens.clone())?,
                    &weights.slice_axis(0, tokens)?,
                )
            });
            let slices = slices.collect::<Result<Vec<_>>>()?;
            return Ok(mlx::concatenate(&slices.iter().collect::<Vec<_>>(), 0)?);
        }
        let y = if n * k < experts::sorts_from() {
            let x = x.reshape(&[n, 1, 1, -1])?;
            self.run(&x, chosen, false)?.squeeze(&[2])? // [N, k, E]
        } else {
            let pairs = chosen.flatten(0, 1)?;
            let order = pairs.argsort(0)?;
            let k_array = Array::scalar(k as f32, order.dtype())?;
            let rows = x.take(&order.floor_div(&k_array)?, 0)?.reshape(&[n * k, 1, -1])?;
            let sorted = self.run(&rows, &pairs.take(&order, 0)?, true)?.squeeze(&[1])?;
            sorted.take(&order.argsort(0)?, 0)?.reshape(&[n, k, x.dim(1)])?
        };
        let weighted = y.mul(&weights.expand_dims(&[-1])?)?;
        Ok(weighted.sum(&[1])?.astype(x.dtype())?)
    }

    fn run(&self, x: &Array, which: &Array, sorted: bool) -> Result<Array> {
        let (gate, up) = (&self.gate_proj, &self.up_proj);
        let inner = match self.activation {
            Activation::SwiGlu => Stack::swiglu(gate, up, x, which, sorted)?,
            clamped => {
                clamped.apply(&gate.forward(x, which, sorted)?, &up.forward(x, which, sorted)?)?
            }
        };
        self.down_proj.forward(&inner, which, sorted)
    }
}

/// A feed-forward block that every token passes, weighed by a sigmoid where it has a gate.
#[derive(Debug)]
pub struct SharedExpert {
    /// The block.
    pub mlp: SwiGlu,
    /// E → 1.
    pub gate: Option<Linear>,
}

/// Router, experts and perhaps a shared one.
#[derive(Debug)]
pub struct Moe {
    /// Chooses.
    pub router: Router,
    /// The chosen ones.
    pub experts: Experts,
    /// The one that is always there.
    pub shared: Option<SharedExpert>,
}

impl FeedForward for Moe {
    fn forward_onto(&self, onto: &Array, x: &Array) -> Result<Array> {
        let tokens = x.reshape(&[-1, x.dim(-1)])?; // [N, E]
        let (chosen, weights) = self.router.choose(&tokens)?;
        let mut y = self.experts.forward(&tokens, &chosen, &weights)?;
        if let Some(shared) = &self.shared {
            let mut always = shared.mlp.forward(&tokens)?;
            if let Some(gate) = &shared.gate {
                always = always.mul(&gate.forward(&tokens)?.sigmoid()?)?;
            }
            y = y.add(&always)?;
        }
        Ok(onto.add(&y.reshape(x.shape())?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Matrix;
    use mlx::{Device, Key};

    #[test]
    fn many_pairs_in_slices_give_what_they_give_at_once() {
        Device::open().unwrap();
        let normal =
            |seed, shape: &[i32]| Key::from_seed(seed).unwrap().normal(shape, Dtype::F32).unwrap();
        let stack = |seed, n_out, n_in| Stack {
            weight: Matrix::Dense(normal(seed, &[5, n_out, n_in])),
            bias: None,
        };
        let experts = Experts {
            gate_proj: stack(1, 24, 16),
            up_proj: stack(2, 24, 16),
            down_proj: stack(3, 16, 24),
            activation: Activation::SwiGlu,
        };
        let (x, weights) = (normal(4, &[43, 16]), normal(5, &[43, 3]));
        let chosen = Key::from_seed(6).unwrap().integers(0, 5, &[43, 3]).unwrap();
        let chosen = chosen.astype(Dtype::U32).unwrap();
        let run = |pairs| experts.forward_by(pairs, &x, &chosen, &weights).unwrap();
        let wanted = run(1000);
        for pairs in [2, 70, 128] {
            let off = run(pairs).sub(&wanted).unwrap().abs().unwrap().max(&[0, 1]).unwrap();
            assert!(off.item::<f32>().unwrap() < 1e-3, "{pairs}");
        }
    }
}
