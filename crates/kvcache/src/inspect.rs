//! What the trie holds, for people: the path of one prompt, and the tree from its roots down.
//! Looking changes nothing (C13).

use std::collections::VecDeque;

use crate::arena::Handle;
use crate::cache::Cache;
use crate::evict::Class;
use crate::layout::{N_TIERS, Ns, Token};
use crate::reason::Cause;

/// A node as it is now. Arrays are by tier, device first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView<'a> {
    /// Whose it is.
    pub ns: Ns,
    /// The index of the node above in the same list; none below a root.
    pub parent: Option<usize>,
    /// Tokens from the root to its first.
    pub from: usize,
    /// Its own tokens.
    pub tokens: &'a [Token],
    /// How many of them have rows, from the first.
    pub covered: [usize; N_TIERS],
    /// Whether a checkpoint stands at its end.
    pub saved: [bool; N_TIERS],
    /// Why it is there.
    pub class: Class,
    /// Sequences and transfers that pin it, by tier.
    pub n_locks: [u32; N_TIERS],
    /// Nodes right below it, in this list or not.
    pub n_children: usize,
}

impl Cache {
    /// The nodes that a prompt runs through, from the root down; the last may go on otherwise than
    /// the prompt.
    pub fn path(&self, ns: Ns, tokens: &[Token]) -> Vec<NodeView<'_>> {
        let nodes = self.trie.walk(ns, tokens).nodes.into_iter().enumerate();
        nodes.map(|(idx, node)| self.view(ns, idx.checked_sub(1), node)).collect()
    }

    /// Where a prompt parts from what is known, whatever else limits what is reused of it:
    /// [`Cause::Diverged`], or [`Cause::NeverSeen`] if nothing else goes on there.
    pub fn parting(&self, ns: Ns, tokens: &[Token]) -> Option<Cause> {
        let walk = self.trie.walk(ns, tokens);
        (walk.seen < tokens.len()).then(|| self.continuation(tokens, &walk))
    }

    /// The nodes of all namespaces, level by level, at most `max_nodes`.
    pub fn tree(&self, max_nodes: usize) -> Vec<NodeView<'_>> {
        let mut views = Vec::new();
        let below = |node: Handle| self.trie.nodes[node].children.iter().map(|(_, child)| *child);
        let roots = self.trie.roots.iter();
        let mut next = roots
            .flat_map(|(ns, root)| below(*root).map(|node| (*ns, None, node)))
            .collect::<VecDeque<_>>();
        while views.len() < max_nodes
            && let Some((ns, parent, node)) = next.pop_front()
        {
            next.extend(below(node).map(|child| (ns, Some(views.len()), child)));
            views.push(self.view(ns, parent, node));
        }
        views
    }

    /// How many nodes the tree has.
    pub fn n_nodes(&self) -> usize {
        self.trie.nodes.len() - self.trie.roots.len() - self.trie.orphans.len()
    }

    fn view(&self, ns: Ns, parent: Option<usize>, node: Handle) -> NodeView<'_> {
        let node = &self.trie.nodes[node];
        NodeView {
            ns,
            parent,
            from: node.start,
            tokens: node.edge.tokens(),
            covered: std::array::from_fn(|tier| node.runs[tier].n_tokens),
            saved: std::array::from_fn(|tier| node.saved[tier].is_some()),
            class: node.class,
            n_locks: node.n_locks,
            n_children: node.children.len(),
        }
    }
}
