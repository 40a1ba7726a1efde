//! A stack of pre-norm residual blocks between an embedding and a head: the frame of every family
//! here.

use mlx::Array;

use crate::checkpoint::Scope;
use crate::layers::{Attention, Embedding, Matrix, RmsNorm, SwiGlu};
use crate::state::LayerState;
use crate::{Model, Result, Step};

/// h = x + attention(norm x); out = h + mlp(norm h).
#[derive(Debug)]
pub struct Block {
    /// Before attention.
    pub input_layernorm: RmsNorm,
    /// Mixes tokens.
    pub self_attn: Attention,
    /// Before the feed-forward block.
    pub post_attention_layernorm: RmsNorm,
    /// Mixes channels.
    pub mlp: SwiGlu,
}

impl Block {
    fn forward(&self, x: &Array, step: &Step, state: &mut LayerState) -> Result<Array> {
        let h =
            x.add(&self.self_attn.forward(&self.input_layernorm.forward(x)?, step, state)?)?;
        Ok(h.add(&self.mlp.forward(&self.post_attention_layernorm.forward(&h)?)?)?)
    }
}

/// The whole model.
#[derive(Debug)]
pub struct Decoder {
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    lm_head: Matrix,
}

impl Decoder {
    /// Loads the parts that all families name alike; `block(scope, i)` loads layer i from
    /// `model.layers.{i}`. The head is tied to the embedding iff the checkpoint has no `lm_head`;
    /// `tied` is only what random weights do.
    pub(crate) fn load(
        weights: &Scope<'_, '_>,
        sizes: DecoderSizes,
        mut block: impl FnMut(&Scope<'_, '_>, i32) -> Result<Block>,
    ) -> Result<Self> {
        let model = weights.at("model");
        let embed_tokens = model.embedding("embed_tokens", sizes.vocab, sizes.hidden)?;
        let mut layers = Vec::new();
        for i in 0..sizes.n_layers {
            layers.push(block(&model.at("layers").at(&i.to_string()), i)?);
            weights.settle()?;
        }
        let norm = model.norm("norm", sizes.hidden, sizes.norm_eps)?;
        let lm_head = if weights.has_linear("lm_head", !sizes.tied) {
            weights.linear("lm_head", sizes.hidden, sizes.vocab, false)?.weight
        } else {
            weights.note_tied_head(sizes.tied);
            embed_tokens.as_head()?
        };
        weights.settle()?;
        Ok(Self { embed_tokens, layers, norm, lm_head })
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
    fn new_state(&self) -> Vec<LayerState> {
        self.layers.iter().map(|block| block.self_attn.new_state()).collect()
    }

    fn forward(&self, tokens: &Array, step: &Step, states: &mut [LayerState]) -> Result<Array> {
        let mut h = self.embed_tokens.forward(tokens)?; // [B, L, E]
        for (block, state) in self.layers.iter().zip(states) {
            h = block.forward(&h, step, state)?;
        }
        Ok(h)
    }

    fn kv_bytes_per_token(&self, dtype_bytes: usize) -> u64 {
        self.layers.iter().map(|block| block.self_attn.kv_bytes_per_token(dtype_bytes)).sum()
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        self.lm_head.apply(&self.norm.forward(hidden)?)
    }
}
