//! Prompts as paths of spans of tokens, with equal prefixes sharing nodes. Tokens have no content
//! here: two spans are equal if their names are.

use std::collections::BTreeMap;

/// Spans are cut where the depth is a multiple of this, in tokens.
const GRID_TOKENS: u32 = 1024;

/// What ends at the end of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The system prompt and the tools.
    System,
    /// A message of the user.
    Turn,
    /// The generation header, and with it the prompt.
    Header,
    /// An answer.
    Output,
    /// Nothing that a template knows.
    Nothing,
}

/// A run of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Equal names at equal places are equal tokens.
    pub name: u64,
    /// Length.
    pub n_tokens: u32,
    /// What ends with it.
    pub end: End,
}

/// A node's index; 0 is the empty prefix.
pub type NodeIdx = u32;

/// A piece of a span, and with it a prefix.
#[derive(Debug)]
pub struct Node {
    /// The prefix without this piece.
    pub parent: NodeIdx,
    /// Tokens from the root to the end of this piece.
    pub depth_tokens: u32,
    /// Length of this piece.
    pub n_tokens: u32,
    /// What ends here.
    pub end: End,
    children: BTreeMap<(u64, u32), NodeIdx>,
}

/// All prefixes of a trace.
#[derive(Debug)]
pub struct Prefixes(Vec<Node>);

impl Prefixes {
    /// Only the empty prefix.
    pub fn new() -> Self {
        Self(vec![Self::node(0, 0, 0, End::Nothing)])
    }

    fn node(parent: NodeIdx, depth_tokens: u32, n_tokens: u32, end: End) -> Node {
        Node { parent, depth_tokens, n_tokens, end, children: BTreeMap::new() }
    }

    /// The nodes of a path, made where they are new.
    pub fn add(&mut self, spans: &[Span]) -> Vec<NodeIdx> {
        let mut at = 0;
        let mut path = Vec::new();
        for span in spans {
            let mut left = span.n_tokens;
            for piece in 0.. {
                if left == 0 {
                    break;
                }
                let depth = self.depth(at);
                let n_tokens = left.min(GRID_TOKENS - depth % GRID_TOKENS);
                left -= n_tokens;
                let end = if left == 0 { span.end } else { End::Nothing };
                at = self.child(at, (span.name, piece), depth + n_tokens, n_tokens, end);
                path.push(at);
            }
        }
        path
    }

    fn child(
        &mut self,
        parent: NodeIdx,
        key: (u64, u32),
        depth_tokens: u32,
        n_tokens: u32,
        end: End,
    ) -> NodeIdx {
        let new = self.0.len() as NodeIdx;
        let known = *self.0[parent as usize].children.entry(key).or_insert(new);
        if known == new {
            self.0.push(Self::node(parent, depth_tokens, n_tokens, end));
        }
        known
    }

    /// How many nodes there are, the empty prefix included.
    pub fn n_nodes(&self) -> usize {
        self.0.len()
    }

    /// One node.
    pub fn node_at(&self, idx: NodeIdx) -> &Node {
        &self.0[idx as usize]
    }

    /// Tokens from the root to the end of a node.
    pub fn depth(&self, idx: NodeIdx) -> u32 {
        self.node_at(idx).depth_tokens
    }

    /// The node and all above it but the root, deepest first.
    pub fn upwards(&self, idx: NodeIdx) -> impl Iterator<Item = NodeIdx> + '_ {
        let above = move |&at: &NodeIdx| Some(self.node_at(at).parent);
        std::iter::successors(Some(idx), above).take_while(|&at| at != 0)
    }

    /// Whether `idx` is `top` or lies below it.
    pub fn is_below(&self, idx: NodeIdx, top: NodeIdx) -> bool {
        let depth = self.depth(top);
        self.upwards(idx).take_while(|&at| self.depth(at) >= depth).any(|at| at == top)
    }
}

impl Default for Prefixes {
    fn default() -> Self {
        Self::new()
    }
}
