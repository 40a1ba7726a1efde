//! What a model must keep to be resumed, what it weighs, and what moving or recomputing it costs.
//!
//! A prefix of p tokens may be resumed if, at once, every full group has the rows of [0, p), every
//! window group those of [p − W, p), and every recurrent group a state taken exactly at p. A layout
//! of full groups alone resumes anywhere; all others resume at checkpoints.

/// A token id as the tokenizer gives it; keys of media are folded into ids by the caller.
pub type Token = u32;

/// Who may share with whom: the same tokens in two namespaces never meet (C8). The caller folds
/// the fingerprint of the model and its tenant into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ns(pub u64);

/// Where bytes lie, fastest first. A tier with a budget of 0 is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Memory that attention reads.
    Device,
    /// Memory of the host, in blocks of the same size.
    Host,
    /// Storage that survives the process.
    Disk,
}

/// How many tiers there are.
pub const N_TIERS: usize = 3;

impl Tier {
    /// All tiers, fastest first.
    pub const ALL: [Tier; N_TIERS] = [Tier::Device, Tier::Host, Tier::Disk];

    pub(crate) fn idx(self) -> usize {
        self as usize
    }
}

/// What the layers of a group keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Keys and values, or latents, of every token.
    Full,
    /// Keys and values of the last `tokens` tokens.
    Window {
        /// How far back the layers look, at least 1.
        tokens: usize,
    },
    /// A state of fixed size that is valid after exactly the tokens it has seen.
    Recurrent,
}

/// Layers that share one block table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// What they keep.
    pub kind: Kind,
    /// Bytes of one block over all layers of the group; for a recurrent group, of one state.
    pub bytes: u64,
}

/// The groups of one model.
#[derive(Debug, Clone)]
pub struct Layout {
    pub(crate) block_tokens: usize,
    pub(crate) groups: Vec<Group>,
    /// Which groups are full: a node keeps one block per index and entry of this list.
    pub(crate) full: Vec<usize>,
    /// Sequences resume at multiples of it alone.
    pub(crate) stride: usize,
}

impl Layout {
    /// `None` if blocks have no tokens, if there is no group, if a window looks nowhere, or if a
    /// group weighs nothing: no budget could bound it.
    pub fn new(block_tokens: usize, groups: Vec<Group>) -> Option<Self> {
        let is_sound = |g: &Group| g.bytes > 0 && g.kind != Kind::Window { tokens: 0 };
        if block_tokens == 0 || groups.is_empty() || !groups.iter().all(is_sound) {
            return None;
        }
        let is_full = |idx: &usize| groups[*idx].kind == Kind::Full;
        let full = (0..groups.len()).filter(is_full).collect();
        Some(Self { block_tokens, groups, full, stride: 1 })
    }

    /// The same, with sequences that resume at multiples of `stride` alone (at least 1): whoever
    /// computes in chunks that end there then splits every prompt alike, whatever is cached.
    pub fn resuming_at_multiples_of(self, stride: usize) -> Self {
        Self { stride: stride.max(1), ..self }
    }

    /// Tokens between two places where sequences may resume.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Tokens of one block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// The groups, in the order that group indices mean everywhere.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Whether a prefix can only be resumed at a checkpoint.
    pub fn needs_checkpoints(&self) -> bool {
        self.full.len() < self.groups.len()
    }

    /// Blocks that hold the first `n_tokens` tokens.
    pub(crate) fn n_blocks(&self, n_tokens: usize) -> usize {
        n_tokens.div_ceil(self.block_tokens)
    }

    /// Bytes of one block of every full group.
    pub(crate) fn full_bytes(&self) -> u64 {
        self.full.iter().map(|g| self.groups[*g].bytes).sum()
    }

    /// The block indices that group `group` needs of [0, `at`) to go on at `at`, full groups
    /// aside; a recurrent group's only index is 0.
    pub(crate) fn saved_blocks(&self, group: usize, at: usize) -> std::ops::Range<usize> {
        match self.groups[group].kind {
            Kind::Full => 0..0,
            Kind::Window { tokens } => {
                at.saturating_sub(tokens) / self.block_tokens..self.n_blocks(at)
            }
            Kind::Recurrent => 0..1,
        }
    }

    /// Bytes of a checkpoint at `at`, if it shared nothing.
    pub(crate) fn saved_bytes(&self, at: usize) -> u64 {
        let groups = self.groups.iter().enumerate();
        groups.map(|(g, group)| self.saved_blocks(g, at).len() as u64 * group.bytes).sum()
    }
}

/// Bytes that each tier may hold, device first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets(pub [u64; N_TIERS]);

/// Time to compute tokens [p0, p1): `a + b·(p1 − p0) + c·(p1² − p0²)`, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prefill {
    /// Microseconds of any pass.
    pub a: f64,
    /// Microseconds per token.
    pub b: f64,
    /// Microseconds per token and token of context, halved.
    pub c: f64,
}

impl Prefill {
    /// Microseconds for tokens [`from`, `to`).
    pub fn us(&self, from: usize, to: usize) -> f64 {
        if from >= to {
            return 0.0;
        }
        let (p0, p1) = (from as f64, to as f64);
        self.a + self.b * (p1 - p0) + self.c * (p1 * p1 - p0 * p0)
    }
}

/// Time to bring bytes from a tier to the device: `latency_us + bytes / bytes_per_us`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Microseconds before the first byte.
    pub latency_us: f64,
    /// Bytes per microsecond (MB/s).
    pub bytes_per_us: f64,
}

/// What was measured on this machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// Computing.
    pub prefill: Prefill,
    /// Reading back from the host.
    pub host: Link,
    /// Reading back from the disk.
    pub disk: Link,
}

impl Costs {
    /// Microseconds to bring `bytes` up from `tier`; nothing for nothing, and for the device.
    pub fn load_us(&self, tier: Tier, bytes: u64) -> f64 {
        let link = match tier {
            Tier::Device => return 0.0,
            Tier::Host => self.host,
            Tier::Disk => self.disk,
        };
        if bytes == 0 { 0.0 } else { link.latency_us + bytes as f64 / link.bytes_per_us }
    }
}
