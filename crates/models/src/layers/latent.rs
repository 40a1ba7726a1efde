//! Multi-head latent attention: keys and values of all heads are expanded from one latent per
//! token, the only thing that is cached beside one rotated key that the heads share. Reference:
//! DeepSeek-V2 (2024); transformers 5.23 `modeling_glm4_moe_lite.py`.
//!
//! Two forms of the same sum: expanded writes out keys and values of every cached token, absorbed
//! brings queries into the latent's space instead. The cheaper one is taken.
//!
//! H heads · N, R, V unrotated, rotated and value dims of a head · C latent.

use std::rc::Rc;

use kernels::Kv;
use kernels::self_attention::{Latent, Layout};
use mlx::Array;

use crate::checkpoint::Scope;
use crate::layers::{HeadsIn, Linear, Mixer, PerHead, RmsNorm, Rope};
use crate::state::{Kept, KvState, LayerState, Memory};
use crate::{Result, Step};

/// Of the norms of both latents, whatever `rms_norm_eps` says.
const LATENT_EPS: f32 = 1e-6;

/// The sizes.
#[derive(Clone, Debug)]
pub struct LatentConfig {
    /// E.
    pub hidden: i32,
    /// H.
    pub n_heads: i32,
    /// The latent of queries; none: they come straight from the hidden state.
    pub q_lora_rank: Option<i32>,
    /// C.
    pub kv_lora_rank: i32,
    /// N.
    pub nope: i32,
    /// R.
    pub rope: i32,
    /// V.
    pub value: i32,
    /// Biases on the projections from and to the hidden state.
    pub bias: bool,
    /// What multiplies the logits.
    pub scale: f32,
}

impl LatentConfig {
    /// Whether expanding keys and values of T cached tokens costs less than attending over the
    /// latent for L queries, per head in multiplications.
    fn expands(&self, n_new: i32, n_all: i32) -> bool {
        let [l, t] = [n_new, n_all].map(f64::from);
        let [c, n, r, v] = [self.kv_lora_rank, self.nope, self.rope, self.value].map(f64::from);
        let expanded = t * c * (n + v) + l * t * (n + r + v);
        let absorbed = l * c * (n + v) + l * t * (2.0 * c + r);
        expanded < absorbed
    }
}

/// The layer.
#[derive(Debug)]
pub struct LatentAttention {
    queries: Queries,
    kv_a_proj_with_mqa: Linear, // E → C + R
    kv_a_layernorm: RmsNorm,    // C
    embed_q: PerHead,           // N → C for each head
    unembed_out: PerHead,       // C → V for each head
    o_proj: Linear,             // H·V → E
    rope: Rc<Rope>,
    config: LatentConfig,
}

/// E → H·(N + R), directly or through a latent.
#[derive(Debug)]
enum Queries {
    Direct { q_proj: Linear },
    Latent { q_a_proj: Linear, q_a_layernorm: RmsNorm, q_b_proj: Linear },
}

impl Queries {
    fn load(weights: &Scope<'_, '_>, c: &LatentConfig) -> Result<Self> {
        let width = c.n_heads * (c.nope + c.rope);
        let Some(rank) = c.q_lora_rank else {
            return Ok(Queries::Direct {
                q_proj: weights.linear("q_proj", c.hidden, width, false)?,
            });
        };
        Ok(Queries::Latent {
            q_a_proj: weights.linear("q_a_proj", c.hidden, rank, c.bias)?,
            q_a_layernorm: weights.norm("q_a_layernorm", rank, LATENT_EPS)?,
            q_b_proj: weights.linear("q_b_proj", rank, width, false)?,
        })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Queries::Direct { q_proj } => q_proj.forward(x),
            Queries::Latent { q_a_proj, q_a_layernorm, q_b_proj } => {
                q_b_proj.forward(&q_a_layernorm.forward(&q_a_proj.forward(x)?)?)
            }
        }
    }
}

impl LatentAttention {
    /// Takes its projections and norms from `weights`; `rope` turns R dims.
    pub(crate) fn load(
        weights: &Scope<'_, '_>,
        config: &LatentConfig,
        rope: &Rc<Rope>,
    ) -> Result<Self> {
        let c = config;
        let latent = c.kv_lora_rank;
        Ok(Self {
            queries: Queries::load(weights, c)?,
            kv_a_proj_with_mqa: weights.linear(
                "kv_a_proj_with_mqa",
                c.hidden,
                latent + c.rope,
                c.bias,
            )?,
            kv_a_layernorm: weights.norm("kv_a_layernorm", latent, LATENT_EPS)?,
            embed_q: weights.per_head("embed_q", c.n_heads, c.nope, latent)?,
            unembed_out: weights.per_head("unembed_out", c.n_heads, latent, c.value)?,
            o_proj: weights.linear("o_proj", c.n_heads * c.value, c.hidden, c.bias)?,
            rope: rope.clone(),
            config: c.clone(),
        })
    }

    /// Attends over latents of C + R elements without expanding them: queries are brought into the
    /// latent's space, and its weighted sum is expanded in the end. → `[B, L, H·V]`.
    fn absorbed(&self, q_n: &Array, q_r: &Array, kept: &Kept<'_>, step: &Step) -> Result<Array> {
        let q = mlx::concatenate(&[&self.embed_q.forward(q_n)?, q_r], -1)?; // [B, H, L, C + R]
        let values = kept.values(self.config.kv_lora_rank)?;
        self.unembedded(&self.attend(&q, kept.kv(&values), step)?)
    }

    /// The same with `new` `[B, L, C + R]` joining a pool on the way.
    fn absorbed_over_blocks(
        &self,
        q_n: &Array,
        q_r: &Array,
        new: &Array,
        cache: &mut KvState,
        step: &Step,
    ) -> Result<Array> {
        let c = &self.config;
        let q = mlx::concatenate(&[&self.embed_q.forward(q_n)?, q_r], -1)?; // [B, H, L, C + R]
        let latent = Latent {
            q: &q,
            new,
            value_dim: c.kv_lora_rank,
            scale: c.scale,
            positions: step.positions(),
            masks: step.masks(),
            layout: cache.layout(step),
        };
        let [pool] =
            cache.take([[new.dim(0), 1, 0, c.kv_lora_rank + c.rope]], new.dtype(), step)?;
        let (sums, pool) = latent.run(pool)?;
        cache.keep([pool]);
        self.unembedded(&sums)
    }

    /// `[B, L, H·C]` → `[B, L, H·V]`.
    fn unembedded(&self, sums: &Array) -> Result<Array> {
        let c = &self.config;
        let (rows, n) = (sums.dim(0), sums.dim(1));
        let sums = sums.reshape(&[rows, n, c.n_heads, c.kv_lora_rank])?.swap_axes(1, 2)?;
        let out = self.unembed_out.forward(&sums)?; // [B, H, L, V]
        Ok(out.swap_axes(1, 2)?.reshape(&[rows, n, c.n_heads * c.value])?)
    }

    /// The same with keys and values of every head written out.
    fn expanded(&self, q_n: &Array, q_r: &Array, kept: &Kept<'_>, step: &Step) -> Result<Array> {
        let (c, kv) = (&self.config, kept.rows(step)?); // [B, 1, T, C + R]
        let latent = kv.slice_axis(3, 0..c.kv_lora_rank)?; // [B, 1, T, C]
        let k_r = kv.slice_axis(3, c.kv_lora_rank..c.kv_lora_rank + c.rope)?;
        let k_n = self.embed_q.transposed(&latent)?; // [B, H, T, N]
        let k_r = k_r.broadcast_to(&[k_n.dim(0), k_n.dim(1), k_n.dim(2), c.rope])?;
        let q = mlx::concatenate(&[q_n, q_r], -1)?; // [B, H, L, N + R]
        let keys = mlx::concatenate(&[&k_n, &k_r], -1)?;
        let values = self.unembed_out.forward(&latent)?;
        self.attend(&q, Kv::Rows { keys: &keys, values: &values, first_key: 0 }, step)
    }

    /// Queries `[B, H, L, D]` over keys of K heads → `[B, L, H·Dv]`.
    fn attend(&self, q: &Array, kv: Kv<'_>, step: &Step) -> Result<Array> {
        let attention = kernels::Attention {
            q,
            kv,
            scale: self.config.scale,
            positions: step.positions(),
            window: None,
            sinks: None,
            masks: step.masks(),
        };
        Ok(attention.run()?)
    }
}

impl Mixer for LatentAttention {
    fn new_state(&self) -> LayerState {
        LayerState::Kv(KvState::default())
    }

    fn memory(&self) -> Memory {
        let width = self.config.kv_lora_rank + self.config.rope;
        Memory::Tokens { buffers: vec![[1, width]], window: None }
    }

    fn forward(&self, x: &Array, step: &Step, state: &mut LayerState) -> Result<Array> {
        let LayerState::Kv(cache) = state else { unreachable!("an attention layer's own state") };
        let c = &self.config;
        let (rows, n) = (x.dim(0), x.dim(1));
        let q = self.queries.forward(x)?;
        let turns =
            HeadsIn { x: &q, n_heads: c.n_heads, begin: c.nope, head_dim: c.rope, norm: None };
        // The factor that yarn has for turned dims: on the queries alone, squared.
        let q_r = self.rope.queries(&turns, step).turn()?; // [B, H, L, R]
        let q_r =
            if self.rope.logit_factor == 1.0 { q_r } else { q_r.scale(self.rope.logit_factor)? };
        let q = q.reshape(&[rows, n, c.n_heads, c.nope + c.rope])?.swap_axes(1, 2)?;
        let q_n = q.slice_axis(3, 0..c.nope)?; // [B, H, L, N]

        let latent = self.kv_a_proj_with_mqa.forward(x)?; // [B, L, C + R]
        let compressed = self.kv_a_layernorm.forward(&latent.slice_axis(2, 0..c.kv_lora_rank)?)?;
        let (begin, head_dim) = (c.kv_lora_rank, c.rope);
        let k_r = HeadsIn { x: &latent, n_heads: 1, begin, head_dim, norm: None };
        let k_r = self.rope.keys(&k_r, step).turn()?; // [B, 1, L, R]
        let new = mlx::concatenate(&[&compressed, &k_r.squeeze(&[1])?], -1)?; // [B, L, C + R]
        let out = match (c.expands(n, step.position + step.n_tokens), cache.layout(step)) {
            (true, _) => self.expanded(&q_n, &q_r, &cache.append(&new, step)?, step)?,
            (false, Layout::Rows { .. }) => {
                self.absorbed(&q_n, &q_r, &cache.append(&new, step)?, step)?
            }
            (false, Layout::Blocks { .. }) => {
                self.absorbed_over_blocks(&q_n, &q_r, &new, cache, step)?
            }
        }; // [B, L, H·V]
        self.o_proj.forward(&out)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use mlx::{Device, Dtype, Key};

    use super::*;
    use crate::checkpoint::Weights;
    use crate::layers::{RopeConfig, RopeKind};
    use crate::{LoadOptions, ShapeQuantization};

    fn check(quantization: ShapeQuantization, dtype: Dtype, tolerance: f32) {
        Device::open().unwrap();
        let (hidden, n_heads, latent, nope, rope_dims, value) = (96, 3, 128, 64, 10, 40);
        let config = LatentConfig {
            hidden,
            n_heads,
            q_lora_rank: Some(32),
            kv_lora_rank: latent,
            nope,
            rope: rope_dims,
            value,
            bias: false,
            scale: 0.2,
        };
        let rope =
            RopeConfig { theta: 100.0, partial: 1.0, max_tokens: 64, kind: RopeKind::Default };
        let rope = Rc::new(Rope::new(&rope, rope_dims, 64, true).unwrap());
        let mut progress = |_, _| ControlFlow::Continue(());
        let weights = Weights::random(quantization, &LoadOptions::default(), &mut progress);
        let layer = LatentAttention::load(&weights.root().at("attention"), &config, &rope).unwrap();
        let normal = |seed, shape: &[i32]| {
            Key::from_seed(seed).unwrap().normal(shape, Dtype::F32).unwrap().astype(dtype).unwrap()
        };
        for (n_new, n_all) in [(1, 9), (5, 9), (7, 7)] {
            let q_n = normal(1, &[2, n_heads, n_new, nope]);
            let q_r = normal(2, &[2, n_heads, n_new, rope_dims]);
            let kept = Kept::Rows(normal(3, &[2, 1, n_all, latent + rope_dims]));
            let step = Step::new(n_all - n_new, n_new);
            let absorbed = layer.absorbed(&q_n, &q_r, &kept, &step).unwrap();
            let expanded = layer.expanded(&q_n, &q_r, &kept, &step).unwrap();
            assert_eq!(absorbed.shape(), [2, n_new, n_heads * value]);
            let numbers = |a: &Array| a.to_f32_vec().unwrap();
            let largest = numbers(&expanded).iter().fold(0f32, |m, v| m.max(v.abs()));
            for (a, b) in numbers(&absorbed).iter().zip(numbers(&expanded)) {
                assert!((a - b).abs() <= tolerance * largest, "{n_new} of {n_all}: {a} {b}");
            }
        }
    }

    #[test]
    fn absorbed_and_expanded_attention_are_the_same() {
        check(ShapeQuantization::Bf16, Dtype::F32, 1e-5);
        // Dequantizing rounds to the dtype of the scales, bf16 here.
        check(ShapeQuantization::Affine4, Dtype::F32, 0.01);
        check(ShapeQuantization::Affine8, Dtype::Bf16, 0.03);
    }

    #[test]
    fn few_queries_are_absorbed_and_long_prompts_expanded() {
        let glm = LatentConfig {
            hidden: 2048,
            n_heads: 20,
            q_lora_rank: Some(768),
            kv_lora_rank: 512,
            nope: 192,
            rope: 64,
            value: 256,
            bias: false,
            scale: 0.0625,
        };
        assert!(!glm.expands(1, 1000) && !glm.expands(16, 4096));
        assert!(glm.expands(2048, 2048) && glm.expands(2048, 65536));
    }
}
