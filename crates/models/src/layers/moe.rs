//! Experts: a router chooses a few of many feed-forward blocks for each token. N tokens · E hidden
//! · I width of an expert · k experts per token.

use kernels::experts::{self, Shared, Sum};
use kernels::grouped::{self, Groups};
use kernels::router::{self, Routed};
use kernels::{activation, dense};
use mlx::{Array, Dtype, Quantized};

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
    /// k.
    fn n_used(&self) -> i32 {
        match self {
            Router::Softmax { n_used, .. } | Router::TopSoftmax { n_used, .. } => *n_used,
            Router::Sigmoid { how, .. } => how.k,
        }
    }

    /// The experts of tokens `[N, E]`, and what `beside` makes of the tokens.
    fn choose(&self, x: &Array, beside: Option<&Linear>) -> Result<(Routed, Option<Array>)> {
        let logits = |gate| match beside {
            Some(beside) => {
                let [logits, beside] = Linear::forward_all([gate, beside], x)?;
                Ok((logits, Some(beside)))
            }
            None => Ok::<_, Error>((gate.forward(x)?, None)),
        };
        match self {
            Router::Softmax { gate, n_used, normalizes } => {
                let (logits, beside) = logits(gate)?;
                Ok((router::softmax_topk(&logits, *n_used, *normalizes)?, beside))
            }
            Router::TopSoftmax { gate, n_used } => {
                let (logits, beside) = logits(gate)?;
                Ok((router::topk_softmax(&logits, *n_used)?, beside))
            }
            Router::Sigmoid { gate, correction_bias, how } => {
                // [N, n]
                let logits = dense::product_transposed(&x.astype(Dtype::F32)?, gate)?;
                let routed = router::sigmoid_topk(&logits, correction_bias, how)?;
                Ok((routed, beside.map(|beside| beside.forward(x)).transpose()?))
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
    n_experts: i32,
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
            n_experts: c.n_experts,
        })
    }

    /// What the experts `chosen` `[N, k]` make of tokens `[N, E]`: `[N·k, E]`, and where the pairs
    /// are in it, `[N, k]`, unless they are in order.
    fn forward(&self, x: &Array, chosen: &Array) -> Result<(Array, Option<Array>)> {
        let (n, k, width) = (chosen.dim(0), chosen.dim(1), x.dim(1));
        let codes = self.plain_codes();
        let pays = codes.is_some_and(|codes| grouped::pays(n * k, x, &codes));
        if n * k < experts::sorts_from() && !pays {
            let x = x.reshape(&[n, 1, 1, width])?;
            return Ok((self.run(&x, chosen, false)?.reshape(&[n * k, width])?, None));
        }
        let groups = Groups::of(chosen, self.n_experts)?;
        let y = match codes {
            Some([gate, up, down]) => groups.product(&groups.swiglu(x, gate, up)?, down)?,
            None => self.run(&groups.rows(x)?, &groups.which()?, true)?.squeeze(&[1])?,
        };
        Ok((y, Some(groups.places)))
    }

    /// The codes of all projections, if there is nothing else to them.
    fn plain_codes(&self) -> Option<[&Quantized; 3]> {
        let Activation::SwiGlu = self.activation else { return None };
        let stacks = [&self.gate_proj, &self.up_proj, &self.down_proj];
        let plain = stacks.map(|stack| stack.weight.codes().filter(|_| stack.bias.is_none()));
        let [gate, up, down] = plain;
        Some([gate?, up?, down?])
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

impl Moe {
    /// `onto` plus what the experts make of `x`, both `[N, E]`, with at most `max_pairs` at once.
    fn forward_by(&self, max_pairs: i32, onto: &Array, x: &Array) -> Result<Array> {
        let (n, step) = (x.dim(0), (max_pairs / self.router.n_used()).max(1));
        if n > step {
            let slices = (0..n).step_by(step as usize).map(|begin| {
                let slice = |x: &Array| x.slice_axis(0, begin..n.min(begin + step));
                self.forward_by(max_pairs, &slice(onto)?, &slice(x)?)
            });
            let slices = slices.collect::<Result<Vec<_>>>()?;
            return Ok(mlx::concatenate(&slices.iter().collect::<Vec<_>>(), 0)?);
        }
        let shared_gate = self.shared.as_ref().and_then(|shared| shared.gate.as_ref());
        let (routed, gate) = self.router.choose(x, shared_gate)?;
        let (y, places) = self.experts.forward(x, &routed.indices)?;
        let shared = self.shared.as_ref().map(|shared| shared.mlp.forward(x)).transpose()?;
        let sum = Sum {
            onto,
            y: &y,
            places: places.as_ref(),
            weights: &routed.weights,
            shared: shared.as_ref().map(|y| Shared { y, gate: gate.as_ref() }),
        };
        Ok(sum.run()?)
    }
}

impl FeedForward for Moe {
    fn forward_onto(&self, onto: &Array, x: &Array) -> Result<Array> {
        let tokens = |x: &Array| x.reshape(&[-1, x.dim(-1)]); // [N, E]
        let sum = self.forward_by(MAX_PAIRS, &tokens(onto)?, &tokens(x)?)?;
        Ok(sum.reshape(x.shape())?)
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
            n_experts: 5,
        };
        let gate = Linear { weight: Matrix::Dense(normal(4, &[5, 16])), bias: None };
        let router = Router::Softmax { gate, n_used: 3, normalizes: true };
        let moe = Moe { router, experts, shared: None };
        let (onto, x) = (normal(5, &[43, 16]), normal(6, &[43, 16]));
        let run = |pairs| moe.forward_by(pairs, &onto, &x).unwrap();
        let wanted = run(1000);
        for pairs in [2, 70, 128] {
            let off = run(pairs).sub(&wanted).unwrap().abs().unwrap().max(&[0, 1]).unwrap();
            assert!(off.item::<f32>().unwrap() < 1e-3, "{pairs}");
        }
    }
}
