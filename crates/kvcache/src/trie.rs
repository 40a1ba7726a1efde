//! The trie of tokens: edges, nodes, and the walk along them. It knows that a node has residency
//! (blocks, a checkpoint) in each tier, and no more; `residency.rs` moves it.
//!
//! An edge is a range of a shared token run, so a split copies no token. An edge grows in place
//! while nobody else has a range of its run; otherwise growth goes on in a child. A node without
//! children takes 376 bytes, a header of 40 for a run of its own, and 4 bytes per token; per block
//! that a tier has, 4 bytes, and 8 more and a unit of 16 in a layout without checkpoints. A child
//! adds 12 bytes to its parent, which keeps them sorted. What vectors hold in reserve comes on top.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::arena::{Arena, Handle};
use crate::blocks::BlockId;
use crate::evict::{Class, UnitId};
use crate::layout::{N_TIERS, Ns, Token};

/// A range of a token run.
#[derive(Debug, Clone)]
pub(crate) struct Edge {
    run: Arc<Vec<Token>>,
    from: usize,
    len: usize,
}

impl Edge {
    pub fn new(tokens: &[Token]) -> Self {
        Self { run: Arc::new(tokens.to_vec()), from: 0, len: tokens.len() }
    }

    pub fn tokens(&self) -> &[Token] {
        &self.run[self.from..self.from + self.len]
    }

    /// Gives back what a run that nobody shares holds in reserve.
    pub fn settle(&mut self) {
        if let Some(run) = Arc::get_mut(&mut self.run) {
            run.shrink_to_fit();
        }
    }

    /// Keeps the first `at` tokens and returns the rest.
    fn split_off(&mut self, at: usize) -> Self {
        // Nobody appends to a shared run.
        self.settle();
        let tail = Self { run: self.run.clone(), from: self.from + at, len: self.len - at };
        self.len = at;
        tail
    }

    /// Appends in place, or refuses because the run is shared.
    fn append(&mut self, tokens: &[Token]) -> bool {
        let end = self.end();
        match Arc::get_mut(&mut self.run) {
            Some(run) if run.len() == end => run.extend_from_slice(tokens),
            _ => return false,
        }
        self.len += tokens.len();
        true
    }

    /// Tokens from the run's first to the edge's last.
    fn end(&self) -> usize {
        self.from + self.len
    }
}

/// The rows of a node's first tokens in one tier.
#[derive(Debug, Default, Clone)]
pub(crate) struct Run {
    /// Tokens of the edge that are covered, from its first.
    pub n_tokens: usize,
    /// For each block index from the one that holds the edge's first token, one block of each full
    /// group. A block has the rows of the whole path that fall into it, also where it begins
    /// before the edge: the deepest node that has an index is right for all above it.
    pub blocks: Vec<BlockId>,
    /// The policy's names of the indices, in layouts without checkpoints. Indices that came while
    /// the node is pinned get theirs when the pin goes.
    pub units: Vec<UnitId>,
}

/// What a checkpoint keeps: for each group, the blocks of `Layout::saved_blocks`.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    pub blocks: Vec<Vec<BlockId>>,
    pub unit: UnitId,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub parent: Option<Handle>,
    /// Tokens from the root to the edge's first.
    pub start: usize,
    pub edge: Edge,
    /// Of the namespace and all tokens to the edge's end.
    pub hash: u64,
    /// By first token.
    pub children: Vec<(Token, Handle)>,
    pub runs: [Run; N_TIERS],
    /// Checkpoints at the node's end.
    pub saved: [Option<Saved>; N_TIERS],
    pub class: Class,
    /// Tokens to the end of the prompt that last ended in the edge; 0 for none.
    pub prompt_end: usize,
    /// Sequences and transfers whose path in the tier leads through here.
    pub n_locks: [u32; N_TIERS],
    /// Children that have rows in the tier.
    pub n_resident_children: [u32; N_TIERS],
    /// In the queue of what is to be copied down, from the tier.
    pub is_queued: [bool; N_TIERS],
}

impl Node {
    fn new(parent: Option<Handle>, start: usize, edge: Edge, hash: u64) -> Self {
        Self {
            parent,
            start,
            edge,
            hash,
            children: Vec::new(),
            runs: Default::default(),
            saved: Default::default(),
            class: Class::Interior,
            prompt_end: 0,
            n_locks: [0; N_TIERS],
            n_resident_children: [0; N_TIERS],
            is_queued: [false; N_TIERS],
        }
    }

    /// Tokens from the root to the edge's end.
    pub fn end(&self) -> usize {
        self.start + self.edge.len
    }

    /// Tokens from the root to the end of the covered rows; the node's start if there are none.
    pub fn covered(&self, tier: usize) -> usize {
        self.start + self.runs[tier].n_tokens
    }

    pub fn is_covered(&self, tier: usize) -> bool {
        self.runs[tier].n_tokens == self.edge.len
    }

    /// Covered tokens of the tier that has most.
    pub fn n_known(&self) -> usize {
        self.runs.iter().map(|r| r.n_tokens).max().unwrap_or(0)
    }

    /// Only remembered. A root has no rows itself.
    pub fn is_bare(&self) -> bool {
        self.n_known() == 0 && self.n_resident_children == [0; N_TIERS]
    }

    pub fn is_locked(&self) -> bool {
        self.n_locks != [0; N_TIERS]
    }

    pub fn child(&self, first: Token) -> Option<Handle> {
        let idx = self.children.binary_search_by_key(&first, |c| c.0).ok()?;
        Some(self.children[idx].1)
    }

    fn set_child(&mut self, first: Token, child: Handle) {
        match self.children.binary_search_by_key(&first, |c| c.0) {
            Ok(idx) => self.children[idx].1 = child,
            Err(idx) => self.children.insert(idx, (first, child)),
        }
    }
}

/// Where a walk ended.
#[derive(Debug)]
pub(crate) struct Walk {
    /// From the root's child to the deepest node of which a token matched.
    pub nodes: Vec<Handle>,
    pub root: Option<Handle>,
    /// Tokens that matched.
    pub seen: usize,
    /// Tokens from the first that have rows, per tier.
    pub covered: [usize; N_TIERS],
}

impl Walk {
    /// The node in whose edge token `at` − 1 lies; the root for 0.
    pub fn node_at(&self, trie: &Trie, at: usize) -> Option<Handle> {
        let idx = self.nodes.partition_point(|n| trie.nodes[*n].end() < at);
        if at == 0 { self.root } else { self.nodes.get(idx).copied() }
    }
}

#[derive(Debug)]
pub(crate) struct Trie {
    pub nodes: Arena<Node>,
    pub roots: BTreeMap<Ns, Handle>,
    /// Roots of flushed namespaces that live sequences still hang on.
    pub orphans: Vec<Handle>,
    /// Tokens of all edges.
    pub n_tokens: usize,
    /// Those of them that have rows in some tier.
    pub n_known_tokens: usize,
    /// Nodes without rows in any tier; of roots, those that nothing with rows hangs on.
    pub n_bare: usize,
}

/// About what a node takes beside its tokens: its slot, the header of a run, its entry in the
/// parent.
pub(crate) const NODE_BYTES: usize = size_of::<(u32, Option<Node>)>() + 40 + 12;

fn hash_of(ns: Ns) -> u64 {
    hash(ns.0, &[0])
}

/// Goes on with the hash of a prefix. What it names is compared by nobody but policies.
pub(crate) fn hash(of_prefix: u64, tokens: &[Token]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let fold =
        |hash: u64, token: &Token| (hash.rotate_left(23) ^ u64::from(*token)).wrapping_mul(ODD);
    tokens.iter().fold(of_prefix, fold)
}

/// How many leading tokens agree.
pub(crate) fn n_common(a: &[Token], b: &[Token]) -> usize {
    const STRIDE: usize = 256;
    let n = a.len().min(b.len());
    let mut at = 0;
    // Whole strides compare as memory; only the last is looked at token by token.
    while at + STRIDE <= n && a[at..at + STRIDE] == b[at..at + STRIDE] {
        at += STRIDE;
    }
    at + a[at..n].iter().zip(&b[at..n]).take_while(|(x, y)| x == y).count()
}

impl Trie {
    pub fn new() -> Self {
        let (nodes, roots, orphans) = (Arena::new(), BTreeMap::new(), Vec::new());
        Self { nodes, roots, orphans, n_tokens: 0, n_known_tokens: 0, n_bare: 0 }
    }

    /// About what tokens and nodes without rows take.
    pub fn dead_bytes(&self) -> usize {
        (self.n_tokens - self.n_known_tokens) * size_of::<Token>() + self.n_bare * NODE_BYTES
    }

    pub fn root(&mut self, ns: Ns) -> Handle {
        let (nodes, n_bare) = (&mut self.nodes, &mut self.n_bare);
        *self.roots.entry(ns).or_insert_with(|| {
            *n_bare += 1;
            nodes.insert(Node::new(None, 0, Edge::new(&[]), hash_of(ns)))
        })
    }

    /// Forgets a root that nothing hangs on.
    pub fn drop_root(&mut self, root: Handle) {
        self.roots.retain(|_, r| *r != root);
        self.orphans.retain(|r| *r != root);
        self.nodes.remove(root);
        self.n_bare -= 1;
    }

    pub fn walk(&self, ns: Ns, tokens: &[Token]) -> Walk {
        let root = self.roots.get(&ns).copied();
        let mut walk = Walk { nodes: Vec::new(), root, seen: 0, covered: [0; N_TIERS] };
        let Some(mut at) = root else { return walk };
        while let Some(first) = tokens.get(walk.seen)
            && let Some(child) = self.nodes[at].child(*first)
        {
            let node = &self.nodes[child];
            let n = n_common(node.edge.tokens(), &tokens[walk.seen..]);
            for (covered, run) in walk.covered.iter_mut().zip(&node.runs) {
                if *covered == node.start {
                    *covered += n.min(run.n_tokens);
                }
            }
            walk.seen += n;
            walk.nodes.push(child);
            if n < node.edge.len {
                break;
            }
            at = child;
        }
        walk
    }

    /// The ancestor of `node`, or itself, in whose edge token `at` − 1 lies; the root for 0.
    pub fn ancestor_at(&self, mut node: Handle, at: usize) -> Handle {
        while let Some(parent) = self.nodes[node].parent
            && self.nodes[node].start >= at
        {
            node = parent;
        }
        node
    }

    pub fn root_of(&self, mut node: Handle) -> Handle {
        while let Some(parent) = self.nodes[node].parent {
            node = parent;
        }
        node
    }

    /// Tokens from the first that have rows in the tier on the way to the end of `node`.
    pub fn covered_to(&self, node: Handle, tier: usize) -> usize {
        let mut at = node;
        loop {
            let here = &self.nodes[at];
            match here.parent {
                // Rows lie within the parent's (I3), so the deepest that has any says it all.
                Some(parent) if here.runs[tier].n_tokens == 0 => at = parent,
                _ => return here.covered(tier),
            }
        }
    }

    /// A new leaf.
    pub fn add_child(&mut self, parent: Handle, tokens: &[Token]) -> Handle {
        let above = &self.nodes[parent];
        let (start, hash) = (above.end(), hash(above.hash, tokens));
        let child = self.nodes.insert(Node::new(Some(parent), start, Edge::new(tokens), hash));
        self.nodes[parent].set_child(tokens[0], child);
        self.n_tokens += tokens.len();
        self.n_bare += 1;
        child
    }

    /// Lets a leaf grow, unless its end means something or its run is shared.
    pub fn grow(&mut self, leaf: Handle, tokens: &[Token]) -> bool {
        let node = &mut self.nodes[leaf];
        let is_free = node.parent.is_some()
            && node.children.is_empty()
            && node.saved.iter().all(Option::is_none);
        let has_grown = is_free && node.edge.append(tokens);
        if has_grown {
            node.hash = hash(node.hash, tokens);
            self.n_tokens += tokens.len();
        }
        has_grown
    }

    /// Cuts the edge of `node` before token `at`. The lower part keeps the handle, because all who
    /// know a node mean its end; the upper part is new, and has no residency yet.
    pub fn cut(&mut self, node: Handle, at: usize) -> Handle {
        let lower = &mut self.nodes[node];
        let (start, parent) = (lower.start, lower.parent.expect("a root has no edge to cut"));
        let tail = lower.edge.split_off(at - start);
        let head = std::mem::replace(&mut lower.edge, tail);
        lower.start = at;
        lower.parent = None;
        let (first, lower_first) = (head.tokens()[0], lower.edge.tokens()[0]);
        let hash = hash(self.nodes[parent].hash, head.tokens());
        let mut upper = Node::new(Some(parent), start, head, hash);
        upper.children.push((lower_first, node));
        let upper = self.nodes.insert(upper);
        self.nodes[node].parent = Some(upper);
        self.nodes[parent].set_child(first, upper);
        self.n_bare += 1;
        upper
    }

    /// Forgets the tokens of a leaf that have no rows, and the leaf if none is left. Returns the
    /// parent if the leaf is gone.
    pub fn trim_leaf(&mut self, leaf: Handle) -> Option<Handle> {
        let node = &mut self.nodes[leaf];
        let (n_known, len) = (node.n_known(), node.edge.len);
        let parent = node.parent?;
        self.n_tokens -= len - n_known;
        if n_known > 0 {
            node.edge.len = n_known;
            self.nodes[leaf].hash = hash(self.nodes[parent].hash, self.nodes[leaf].edge.tokens());
            self.shorten_run(leaf);
            return None;
        }
        let gone = self.nodes.remove(leaf).expect("the leaf was just looked at");
        self.n_bare -= 1;
        let first = gone.edge.tokens()[0];
        drop(gone);
        let above = &mut self.nodes[parent];
        if let Ok(idx) = above.children.binary_search_by_key(&first, |c| c.0) {
            above.children.remove(idx);
        }
        self.shorten_run(parent);
        Some(parent)
    }

    /// Frees what of a run follows the last of its pieces, if `node` has that. What its pieces
    /// share is copied, and only where less than half of the run is left, so that each token that
    /// is freed pays for one.
    fn shorten_run(&mut self, node: Handle) {
        let edge = &mut self.nodes[node].edge;
        let end = edge.end();
        if let Some(run) = Arc::get_mut(&mut edge.run) {
            run.truncate(end);
            run.shrink_to_fit();
            return;
        }
        if edge.run.len() < 2 * end {
            return;
        }
        let longer = edge.run.clone();
        // Cuts leave the pieces of a run one above the other, and only leaves go.
        let mut pieces = vec![node];
        while let Some(parent) = pieces.last().and_then(|piece| self.nodes[*piece].parent)
            && Arc::ptr_eq(&self.nodes[parent].edge.run, &longer)
        {
            pieces.push(parent);
        }
        // Another may have a piece further down.
        if Arc::strong_count(&longer) == pieces.len() + 1 {
            let shorter = Arc::new(longer[..end].to_vec());
            for piece in pieces {
                self.nodes[piece].edge.run = shorter.clone();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_as_large_as_the_page_says() {
        assert_eq!(size_of::<Node>(), 376);
    }

    #[test]
    fn an_edge_grows_in_place_and_a_cut_copies_no_token() {
        let mut edge = Edge::new(&[1, 2, 3, 4]);
        assert!(edge.append(&[5]));
        let mut tail = edge.split_off(3);
        assert_eq!((edge.tokens(), tail.tokens()), (&[1, 2, 3][..], &[4, 5][..]));
        assert!(Arc::ptr_eq(&edge.run, &tail.run));
        assert!(!edge.append(&[9]) && !tail.append(&[6]), "neither writes what the other has");
    }

    #[test]
    fn of_a_run_in_pieces_what_nobody_has_any_more_is_freed() {
        let mut trie = Trie::new();
        let root = trie.root(Ns(0));
        let tokens = (0..100).collect::<Vec<Token>>();
        let lower = trie.add_child(root, &tokens);
        let upper = trie.cut(lower, 10);
        let middle = trie.cut(lower, 40);
        let side = trie.add_child(middle, &[7]);
        let run_len = |trie: &Trie, node: Handle| trie.nodes[node].edge.run.len();
        trie.trim_leaf(side);
        assert_eq!(run_len(&trie, upper), 100, "the leaf that went had no piece of it");
        assert_eq!(trie.trim_leaf(lower), Some(middle));
        assert_eq!((run_len(&trie, upper), run_len(&trie, middle)), (40, 40));
        assert!(Arc::ptr_eq(&trie.nodes[upper].edge.run, &trie.nodes[middle].edge.run));
        let both = [upper, middle].map(|node| trie.nodes[node].edge.tokens());
        assert_eq!(both.concat(), tokens[..40]);
        trie.trim_leaf(middle);
        assert_eq!(run_len(&trie, upper), 10);
        assert_eq!(trie.n_bare, 2, "it and the root");
        assert!(trie.grow(upper, &[9]), "a run that nobody shares grows in place");
    }

    #[test]
    fn common_beginnings_end_where_tokens_differ() {
        for n in [0, 1, 255, 256, 257, 511, 512, 700] {
            let a = vec![7; n];
            let mut b = [a.clone(), vec![8; 3]].concat();
            assert_eq!(n_common(&a, &b), n);
            for at in [0, n / 2, n.saturating_sub(1)].into_iter().filter(|at| *at < n) {
                b[at] = 9;
                assert_eq!(n_common(&a, &b), at, "{n}");
                b[at] = 7;
            }
        }
    }
}
