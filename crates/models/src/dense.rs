//! What the dense families share: the config keys of a pre-norm decoder, and how it is put together
//! from them.

use std::rc::Rc;

use crate::checkpoint::{Scope, Weights};
use crate::config::Config;
use crate::layers::{
    Attention, AttentionConfig, Block, Decoder, DecoderSizes, Layer, RmsNorm, Rope, SwiGlu,
};
use crate::registry::RopeTokens;
use crate::{Error, Model, Result};

/// The keys that the dense families share, with transformers' defaults.
pub(crate) struct DenseConfig {
    pub sizes: DecoderSizes,
    pub attention: AttentionConfig,
    /// Of dense blocks.
    pub intermediate_size: Option<i32>,
    pub mlp_bias: bool,
    pub rope: Rc<Rope>,
}

/// What a family does when a key is missing.
pub(crate) struct Defaults {
    /// For `num_key_value_heads`; none means as many as query heads.
    pub n_kv_heads: Option<i32>,
    /// For `head_dim`; none means hidden / heads.
    pub head_dim: Option<i32>,
    /// For `rope_theta`.
    pub rope_theta: f64,
    /// For `partial_rotary_factor`.
    pub partial_rotary_factor: f64,
    /// For `rms_norm_eps`.
    pub norm_eps: f64,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            n_kv_heads: None,
            head_dim: None,
            rope_theta: 1e4,
            partial_rotary_factor: 1.0,
            norm_eps: 1e-6,
        }
    }
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
        let traditional = config.flag_or("rope_traditional", false)?;
        let rope = config.rope(defaults.rope_theta, defaults.partial_rotary_factor)?;
        let rope = Rope::new(&rope, head_dim, rope_tokens, traditional)?;
        Ok(Self {
            sizes: sizes(config, None, defaults.norm_eps, false)?,
            attention: AttentionConfig::plain(hidden, n_heads, n_kv_heads, head_dim),
            intermediate_size: config.size_opt("intermediate_size")?,
            mlp_bias: false,
            rope: Rc::new(rope),
        })
    }

    /// A dense feed-forward block.
    ///
    /// # Errors
    /// The config does not say how wide it is.
    pub fn mlp(&self, scope: &Scope<'_, '_>) -> Result<SwiGlu> {
        let inner = self.intermediate_size;
        let inner = inner.ok_or_else(|| Error::config("intermediate_size", "is missing"))?;
        SwiGlu::load(scope, self.sizes.hidden, inner, self.mlp_bias)
    }

    /// The last norm.
    pub fn last_norm(&self, model: &Scope<'_, '_>) -> Result<RmsNorm> {
        model.norm("norm", self.sizes.hidden, self.sizes.norm_eps)
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
        let norm = |model: &Scope<'_, '_>| self.last_norm(model);
        Ok(Box::new(Decoder::load(&weights.root(), self.sizes, norm, block)?))
    }

    fn block(&self, scope: &Scope<'_, '_>, attention: &AttentionConfig) -> Result<Box<dyn Layer>> {
        let mixer = Attention::load(&scope.at("self_attn"), attention, &self.rope)?;
        let mlp = self.mlp(&scope.at("mlp"))?;
        Block::load(scope, &self.sizes, Box::new(mixer), Box::new(mlp))
    }
}

/// The sizes outside the blocks; `vocab`, `eps` and `tied` where the config does not say.
pub(crate) fn sizes(
    config: &Config<'_>,
    vocab: Option<i32>,
    eps: f64,
    tied: bool,
) -> Result<DecoderSizes> {
    let norm_eps = config.number_or("rms_norm_eps", eps)? as f32;
    if norm_eps < 0.0 {
        return Err(Error::config("rms_norm_eps", format!("must not be below 0: {norm_eps}")));
    }
    Ok(DecoderSizes {
        vocab: match vocab {
            Some(vocab) => config.size_or("vocab_size", vocab)?,
            None => config.size("vocab_size")?,
        },
        hidden: config.size("hidden_size")?,
        n_layers: config.n_layers()?,
        norm_eps,
        tied: config.flag_or("tie_word_embeddings", tied)?,
    })
}
