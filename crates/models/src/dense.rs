//! What the dense families share: the config keys of a pre-norm decoder, and how it is put together
//! from them.

use std::rc::Rc;

use crate::checkpoint::{Scope, Weights};
use crate::config::Config;
use crate::layers::{Attention, AttentionConfig, Block, Decoder, DecoderSizes, Rope, SwiGlu};
use crate::registry::RopeTokens;
use crate::{Error, Model, Result};

/// The keys that the dense families share, with transformers' defaults.
pub(crate) struct DenseConfig {
    pub sizes: DecoderSizes,
    pub attention: AttentionConfig,
    pub intermediate_size: i32,
    pub mlp_bias: bool,
    pub rope: Rc<Rope>,
}

/// What a family does when a key is missing.
pub(crate) struct Defaults {
    /// For `num_key_value_heads`; none means as many as query heads.
    pub n_kv_heads: Option<i32>,
    /// For `head_dim`; none means hidden / heads.
    pub head_dim: Option<i32>,
}

impl DenseConfig {
    pub fn read(config: &Config<'_>, defaults: &Defaults, rope_tokens: RopeTokens) -> Result<Self> {
        config.only("hidden_act", "silu")?;
        let hidden = config.size("hidden_size")?;
        let n_heads = config.size("num_attention_heads")?;
        let n_kv_heads =
            config.size_or("num_key_value_heads", defaults.n_kv_heads.unwrap_or(n_heads))?;
        if n_heads % n_kv_heads != 0 {
            let reason = format!("{n_kv_heads} does not divide the {n_heads} query heads");
            return Err(Error::config("num_key_value_heads", reason));
        }
        let head_dim = config.size_or("head_dim", defaults.head_dim.unwrap_or(hidden / n_heads))?;
        config.fits("head_dim", n_heads, head_dim)?;
        let norm_eps = config.number_or("rms_norm_eps", 1e-6)? as f32;
        if norm_eps < 0.0 {
            return Err(Error::config("rms_norm_eps", format!("must not be below 0: {norm_eps}")));
        }
        let traditional = config.flag_or("rope_traditional", false)?;
        let rope = Rope::new(&config.rope(1e4)?, head_dim, rope_tokens, traditional)?;
        Ok(Self {
            sizes: DecoderSizes {
                vocab: config.size("vocab_size")?,
                hidden,
                n_layers: config.n_layers()?,
                norm_eps,
                tied: config.flag_or("tie_word_embeddings", false)?,
            },
            attention: AttentionConfig {
                hidden,
                n_heads,
                n_kv_heads,
                head_dim,
                qkv_bias: false,
                o_bias: false,
                qk_norm_eps: None,
                window: None,
            },
            intermediate_size: config.size("intermediate_size")?,
            mlp_bias: false,
            rope: Rc::new(rope),
        })
    }

    /// The model; `windows` holds one entry per layer, or is empty where no layer has a window.
    pub fn decoder(
        &self,
        weights: &Weights<'_>,
        windows: &[Option<i32>],
    ) -> Result<Box<dyn Model>> {
        let block = |scope: &Scope<'_, '_>, i: i32| {
            let window = windows.get(i as usize).copied().flatten();
            self.block(scope, &AttentionConfig { window, ..self.attention.clone() })
        };
        Ok(Box::new(Decoder::load(&weights.root(), self.sizes, block)?))
    }

    fn block(&self, scope: &Scope<'_, '_>, attention: &AttentionConfig) -> Result<Block> {
        let (hidden, eps) = (self.sizes.hidden, self.sizes.norm_eps);
        Ok(Block {
            input_layernorm: scope.norm("input_layernorm", hidden, eps)?,
            self_attn: Attention::load(&scope.at("self_attn"), attention, &self.rope)?,
            post_attention_layernorm: scope.norm("post_attention_layernorm", hidden, eps)?,
            mlp: SwiGlu::load(&scope.at("mlp"), hidden, self.intermediate_size, self.mlp_bias)?,
        })
    }
}
