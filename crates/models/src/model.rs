//! What every family offers to the engine.

use std::fmt;

use kernels::self_attention::Layout;
use kernels::{Masks, Positions};
use mlx::{Array, Dtype};

use crate::Result;
use crate::state::{LayerState, Memory};

/// A language model over token ids. Stateless: what a sequence remembers is passed in.
pub trait Model: fmt::Debug {
    /// V.
    fn vocab_size(&self) -> i32;

    /// One state per layer, empty.
    fn new_state(&self) -> Vec<LayerState>;

    /// Token ids `[B, L]` → what the first layer takes, `[B, L, E]`.
    ///
    /// # Errors
    /// MLX refuses an operation.
    fn embed(&self, tokens: &Array) -> Result<Array>;

    /// Embedded tokens → hidden states `[B, L, E]` before the last norm. `states` gain the new
    /// tokens. With one new token per row over blocks, the operations depend on the shapes of the
    /// arrays alone, wherever the rows stand: they may be recorded and run again.
    ///
    /// # Errors
    /// MLX refuses an operation.
    fn through_layers(
        &self,
        embedded: &Array,
        step: &Step,
        states: &mut [LayerState],
    ) -> Result<Array>;

    /// Token ids `[B, L]` → hidden states `[B, L, E]` before the last norm. `states` gain the new
    /// tokens.
    ///
    /// # Errors
    /// MLX refuses an operation.
    fn forward(&self, tokens: &Array, step: &Step, states: &mut [LayerState]) -> Result<Array> {
        self.through_layers(&self.embed(tokens)?, step, states)
    }

    /// What each layer remembers.
    fn memory(&self) -> Vec<Memory>;

    /// Hidden states `[.., E]` → logits `[.., V]`.
    ///
    /// # Errors
    /// MLX refuses an operation.
    fn logits(&self, hidden: &Array) -> Result<Array>;
}

/// Where in their sequences the rows of one forward pass stand.
#[derive(Debug)]
pub struct Step {
    /// Tokens before the first new one; of the longest row, where rows differ.
    pub position: i32,
    /// L, the new tokens; of the longest row, where rows differ.
    pub n_tokens: i32,
    rows: Option<Rows>,
    masks: Masks,
    blocks: Option<OverBlocks>,
    captures: Vec<i32>,
}

#[derive(Debug)]
struct OverBlocks {
    /// Of each group.
    tables: Vec<Blocks>,
    /// `[B]`, i32: the position of each row.
    begins: Array,
}

/// Where the tokens of a pass lie in pools, for layers that share a table. Both as in
/// [`Layout::Blocks`].
#[derive(Debug)]
pub struct Blocks {
    /// `[B, max]`, u32.
    pub table: Array,
    /// `[B, L]`, u32.
    pub slots: Array,
}

/// Rows at different positions, padded at their ends to a common number of tokens.
#[derive(Debug)]
struct Rows {
    positions: Vec<i32>,
    /// `[B]`, i32.
    positions_array: Array,
    /// `[B]`, i32: new tokens that are not padding.
    lengths: Array,
}

impl Step {
    /// `n_tokens` new tokens after `position` earlier ones, in all rows.
    pub fn new(position: i32, n_tokens: i32) -> Self {
        Self {
            position,
            n_tokens,
            rows: None,
            masks: Masks::default(),
            blocks: None,
            captures: Vec::new(),
        }
    }

    /// The same over pools of blocks: a table for each group of layers.
    ///
    /// # Errors
    /// MLX refuses to make an array of positions.
    pub fn over_blocks(mut self, tables: Vec<Blocks>) -> Result<Self> {
        let begins = match &self.rows {
            Some(rows) => rows.positions_array.clone(),
            None => {
                let n_rows = tables.first().map_or(1, |blocks| blocks.table.dim(0));
                Array::staged(&vec![self.position; n_rows as usize], &[n_rows])?
            }
        };
        let of_tables = tables.iter().flat_map(|blocks| [&blocks.table, &blocks.slots]);
        let lengths = self.rows.iter().map(|rows| &rows.lengths);
        let all = of_tables.chain(lengths).chain([&begins]).collect::<Vec<_>>();
        let mut near = kernels::upload(&all)?.into_iter();
        let mut next = || near.next().expect("as many come back as were given");
        let tables = tables.iter().map(|_| Blocks { table: next(), slots: next() }).collect();
        self.rows.iter_mut().for_each(|rows| rows.lengths = next());
        let begins = next();
        self.rows.iter_mut().for_each(|rows| rows.positions_array = begins.clone());
        self.blocks = Some(OverBlocks { tables, begins });
        Ok(self)
    }

    /// The same, with recurrent layers also giving the states after the first p new tokens, for
    /// every p of `captures`, ascending and from 1 to all.
    pub fn capturing(self, captures: Vec<i32>) -> Self {
        Self { captures, ..self }
    }

    /// Rows with their own positions and numbers of new tokens. Token ids are padded at the end to
    /// the longest; what comes out for padding means nothing.
    ///
    /// # Errors
    /// MLX refuses to make the two lists arrays.
    pub fn ragged(positions: &[i32], lengths: &[i32]) -> Result<Self> {
        let array = |list: &[i32]| Array::staged(list, &[list.len() as i32]);
        let rows = Rows {
            positions: positions.to_vec(),
            positions_array: array(positions)?,
            lengths: array(lengths)?,
        };
        let longest = |list: &[i32]| list.iter().copied().max().unwrap_or(0);
        let (position, n_tokens) = (longest(positions), longest(lengths));
        Ok(Self { rows: Some(rows), ..Self::new(position, n_tokens) })
    }

    /// Where the tokens of a group's layers lie.
    pub(crate) fn blocks(&self, group: usize) -> Layout<'_> {
        let blocks = self.blocks.as_ref().expect("pools are for steps over blocks");
        let Blocks { table, slots } = &blocks.tables[group];
        Layout::Blocks { table, slots, begins: &blocks.begins }
    }

    /// What of a step over blocks lies on the device.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let of_rows = self.rows.iter().flat_map(|rows| [&rows.positions_array, &rows.lengths]);
        let tables = self.blocks.iter().flat_map(|blocks| {
            let of_tables = blocks.tables.iter().flat_map(|table| [&table.table, &table.slots]);
            of_tables.chain([&blocks.begins])
        });
        of_rows.chain(tables)
    }

    /// Where states are captured.
    pub(crate) fn captures(&self) -> &[i32] {
        &self.captures
    }

    /// The position of each row, where rows differ.
    pub(crate) fn rows(&self) -> Option<&[i32]> {
        self.rows.as_ref().map(|rows| &rows.positions[..])
    }

    /// `[B]`, new tokens of each row, where rows differ.
    pub(crate) fn lengths(&self) -> Option<&Array> {
        self.rows.as_ref().map(|rows| &rows.lengths)
    }

    /// Where the queries of this step stand.
    pub(crate) fn positions(&self) -> Positions<'_> {
        match &self.rows {
            None => Positions::Same(self.position),
            Some(rows) => {
                Positions::Rows { positions: &rows.positions_array, lengths: Some(&rows.lengths) }
            }
        }
    }

    /// The masks that attention layers share.
    pub(crate) fn masks(&self) -> &Masks {
        &self.masks
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
    /// Bytes of weights that a decode step of one row reads.
    pub weight_bytes_per_token: u64,
    /// Bytes of experts, of all together.
    pub expert_bytes: u64,
    /// The share of them that one token does not use.
    pub idle_expert_share: f64,
    /// Bytes of state that one token of one sequence adds.
    pub kv_bytes_per_token: u64,
    /// Bytes of state of one sequence, whatever its length.
    pub fixed_state_bytes: u64,
    /// Dtype of activations.
    pub dtype: Dtype,
    /// For example "4-bit affine, group 64"; none if all weights are floats.
    pub quantization: Option<String>,
}

impl ModelInfo {
    /// Bytes of weights that a decode step of so many rows reads: all experts that any of them
    /// uses, if each chooses on its own and none is preferred.
    pub fn weight_bytes_per_step(&self, n_rows: u32) -> f64 {
        let (step, experts) = (self.weight_bytes_per_token as f64, self.expert_bytes as f64);
        if self.expert_bytes == 0 {
            return step;
        }
        let always = step - experts * (1.0 - self.idle_expert_share);
        always + experts * (1.0 - self.idle_expert_share.powf(f64::from(n_rows)))
    }
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
