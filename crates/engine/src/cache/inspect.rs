//! What is in the cache, in the protocol's words.

use kvcache::{Cause, Class, NodeView, Ns, TierStats};
use protocol::{CacheNode, Divergence, Inspect, InspectRequest, Inspected, NodeKind, TierTotals};

use super::{FIRST_NAME, PrefixCache};
use crate::found::{n, told};

impl PrefixCache {
    /// What is there, in the protocol's words.
    pub fn inspect(&self, request: &InspectRequest) -> Inspected {
        let (found, differs, nodes) = match &request.what {
            Inspect::Prompt { namespace, tokens } => {
                let ns = Ns(*namespace);
                let found = told(request.id, &self.find(ns, tokens));
                let differs = self.books.parting(ns, tokens).and_then(divergence);
                (Some(found), differs, self.books.path(ns, tokens))
            }
            Inspect::Tree { max_nodes } => (None, None, self.books.tree(*max_nodes as usize)),
        };
        let stats = self.books.stats();
        Inspected {
            id: request.id,
            found,
            differs,
            nodes: nodes.iter().map(|view| node(view, request.shown_tokens as usize)).collect(),
            n_nodes: self.books.n_nodes() as u64,
            tiers: stats.tiers.map(totals),
        }
    }
}

/// A node, with so many of its tokens as long as they are below the first that are no tokens yet.
fn node(view: &NodeView<'_>, shown_tokens: usize) -> CacheNode {
    let first = view.tokens.iter().copied().take_while(|token| *token < FIRST_NAME);
    CacheNode {
        namespace: view.ns.0,
        parent: view.parent.map(n),
        from: n(view.from),
        n_tokens: n(view.tokens.len()),
        first: first.take(shown_tokens).collect(),
        covered: view.covered.map(n),
        has_checkpoint: view.saved,
        kind: match view.class {
            Class::Interior => NodeKind::Interior,
            Class::BranchPoint => NodeKind::Branch,
            Class::TurnEnd => NodeKind::Turn,
            Class::OutputEnd(_) => NodeKind::Answer,
            Class::System => NodeKind::System,
        },
        is_in_use: view.n_locks.iter().any(|n_locks| *n_locks > 0),
        n_children: n(view.n_children),
    }
}

/// Where a prompt parts from what is cached.
fn divergence(cause: Cause) -> Option<Divergence> {
    match cause {
        Cause::Diverged { at, cached, asked } => Some(Divergence { at: n(at), cached, asked }),
        _ => None,
    }
}

/// Totals of a tier.
fn totals(stats: TierStats) -> TierTotals {
    TierTotals {
        budget_bytes: stats.budget_bytes,
        live_bytes: stats.live_bytes,
        cached_bytes: stats.cached_bytes,
        n_evicted: stats.n_evicted,
        hit_tokens: stats.n_hit_tokens,
    }
}
