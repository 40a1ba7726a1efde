//! A stack of pre-norm residual blocks between an embedding and a head: the frame of every family
//! here.

use std::fmt;

use mlx::Array;

use crate::checkpoint::Scope;
use crate::layers::{Embedding, Matrix, RmsNorm};
use crate::state::{LayerState, Memory};
use crate::{Model, Result, Step};

/// Mixes tokens: attention of any kind, or a recurrent layer.
pub trait Mixer: fmt::Debug {
    /// Its state before the first token.
    fn new_state(&self) -> LayerState;

    /// What it remembers.
    fn memory(&self) -> Memory;

    /// `[B, L, E]` → `[B, L, E]`; `state` gains the new tokens.
    fn forward(&self, x: &Array, step: &Step, state: &mut LayerState) -> Result<Array>;
}

/// Mixes channels: a feed-forward block or experts.
pub trait FeedForward: fmt::Debug {
    /// `onto` plus what the block makes of `x`, all `[B, L, E]`.
    fn forward_onto(&self, onto: &Array, x: &Array) -> Result<Array>;
}

/// One layer of a decoder, residuals included.
pub trait Layer: fmt::Debug {
    /// What mixes its tokens.
    fn mixer(&self) -> &dyn Mixer;

    /// `[B, L, E]` → `[B, L, E]`; `state` gains the new tokens.
    fn forward(&self, x: &Array, step: &Step, state: &mut LayerState) -> Result<Array>;
}

/// h = x + mixer(norm x); out = h + mlp(norm h).
#[derive(Debug)]
pub struct Block {
    /// Before the mixer.
    pub input_layernorm: RmsNorm,
    /// Mixes tokens.
    pub mixer: Box<dyn Mixer>,
    /// Before the feed-forward block.
    pub post_attention_layernorm: RmsNorm,
    /// Mixes channels.
    pub mlp: Box<dyn FeedForward>,
}

impl Block {
    /// With its two norms from `weights`.
    pub(crate) fn load(
        weights: &Scope<'_, '_>,
        sizes: &DecoderSizes,
        mixer: Box<dyn Mixer>,
        mlp: Box<dyn FeedForward>,
    ) -> Result<Box<dyn Layer>> {
        let norm = |name| weights.norm(name, sizes.hidden, sizes.norm_eps);
        Ok(Box::new(Self {
            input_layernorm: norm("input_layernorm")?,
            mixer,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp,
        }))
    }
}

impl Layer for Block {
    fn mixer(&self) -> &dyn Mixer {
        &*self.mixer
    }

    fn forward(&self, x: &Array, step: &Step, state: &mut LayerState) -> Result<Array> {
        let mixed = self.mixer.forward(&self.input_layernorm.forward(x)?, step, state)?;
        let [h, normed] = self.post_attention_layernorm.of_sum(x, &mixed)?;
        self.mlp.forward_onto(&h, &normed)
    }
}

/// The whole model.
#[derive(Debug)]
pub struct Decoder {
    sizes: DecoderSizes,
    embed_tokens: Embedding,
    layers: Vec<Box<dyn Layer>>,
    norm: RmsNorm,
    lm_head: Matrix,
    /// Multiplies the embeddings.
    pub embedding_scale: Option<f32>,
    /// c: logits become c · tanh(logits / c).
    pub logit_softcap: Option<f32>,
}

impl Decoder {
    /// Loads the parts that all families name alike; `layer(scope, i)` loads layer i from
    /// `model.layers.{i}`, `norm` the last norm. The head is tied to the embedding iff the
    /// checkpoint has no `lm_head`; `tied` is only what random weights do.
    pub(crate) fn load(
        weights: &Scope<'_, '_>,
        sizes: DecoderSizes,
        norm: impl Fn(&Scope<'_, '_>) -> Result<RmsNorm>,
        mut layer: impl FnMut(&Scope<'_, '_>, i32) -> Result<Box<dyn Layer>>,
    ) -> Result<Self> {
        let model = weights.at("model");
        let embed_tokens = model.embedding("embed_tokens", sizes.vocab, sizes.hidden)?;
        let mut layers = Vec::new();
        for i in 0..sizes.n_layers {
            layers.push(layer(&model.at("layers").at(&i.to_string()), i)?);
            weights.settle()?;
        }
        let norm = norm(&model)?;
        let lm_head = if weights.has_linear("lm_head", !sizes.tied) {
            weights.linear("lm_head", sizes.hidden, sizes.vocab, false)?.weight
        } else {
            weights.note_tied_head(sizes.tied);
            embed_tokens.as_head()?
        };
        weights.settle()?;
        Ok(Self {
            sizes,
            embed_tokens,
            layers,
            norm,
            lm_head,
            embedding_scale: None,
            logit_softcap: None,
        })
    }
}

/// The sizes outside the blocks.
#[derive(Clone, Copy, Debug)]
pub struct DecoderSizes {
    /// V.
    pub vocab: i32,
    /// E.
    pub hidden: i32,
    /// Number of blocks.
    pub n_layers: i32,
    /// ε of the last norm.
    pub norm_eps: f32,
    /// Whether the config says that head and embedding are one.
    pub tied: bool,
}

impl Model for Decoder {
    fn vocab_size(&self) -> i32 {
        self.sizes.vocab
    }

    fn new_state(&self) -> Vec<LayerState> {
        self.layers.iter().map(|layer| layer.mixer().new_state()).collect()
    }

    fn embed(&self, tokens: &Array) -> Result<Array> {
        let h = self.embed_tokens.forward(tokens)?;
        Ok(match self.embedding_scale {
            Some(factor) => h.scale(factor)?,
            None => h,
        })
    }

    fn through_layers(
        &self,
        embedded: &Array,
        step: &Step,
        states: &mut [LayerState],
    ) -> Result<Array> {
        let mut h = embedded.clone();
        for (layer, state) in self.layers.iter().zip(states) {
            h = layer.forward(&h, step, state)?;
        }
        Ok(h)
    }

    fn memory(&self) -> Vec<Memory> {
        self.layers.iter().map(|layer| layer.mixer().memory()).collect()
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        let logits = self.lm_head.apply(&self.norm.forward(hidden)?)?;
        Ok(match self.logit_softcap {
            Some(cap) => logits.scale(1.0 / cap)?.tanh()?.scale(cap)?,
            None => logits,
        })
    }
}
