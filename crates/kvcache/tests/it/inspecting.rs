//! What the trie shows of itself.

use kvcache::{Cause, NodeView, Ns};

use crate::{FULL, NS, PLENTY, STATE, join, serve, text, world};

/// Every node hangs where it says, and none is told twice.
fn check_tree(nodes: &[NodeView<'_>]) {
    for (idx, node) in nodes.iter().enumerate() {
        let above = node.parent.map(|parent| &nodes[parent]);
        assert!(node.parent.is_none_or(|parent| parent < idx), "{node:?}");
        assert_eq!(node.from, above.map_or(0, |n| n.from + n.tokens.len()), "{node:?}");
        assert!(above.is_none_or(|above| above.ns == node.ns), "{node:?}");
        assert!(node.covered.iter().all(|n| *n <= node.tokens.len()), "{node:?}");
    }
    let below = |idx: usize| nodes.iter().filter(|node| node.parent == Some(idx)).count();
    for (idx, node) in nodes.iter().enumerate() {
        assert_eq!(node.n_children, below(idx), "{node:?}");
    }
}

#[test]
fn the_tree_has_every_node_once_and_the_path_is_a_part_of_it() {
    for kinds in [&[FULL][..], &[FULL, STATE]] {
        let mut world = world(4, kinds, [PLENTY, 0, 0]);
        let trunk = text(1, 30);
        serve(&mut world, &trunk, &[], 0);
        serve(&mut world, &join(&[trunk[..17].to_vec(), text(2, 9)]), &[], 0);
        serve(&mut world, &join(&[trunk[..9].to_vec(), text(3, 5)]), &[], 0);
        let cache = &world.cache;
        let (before, nodes) = (cache.stats(), cache.tree(usize::MAX));
        check_tree(&nodes);
        assert_eq!((nodes.len(), nodes[0].tokens), (cache.n_nodes(), &trunk[..9]));
        assert!(nodes.iter().all(|node| node.ns == NS && node.n_locks == [0; 3]));
        let asked = join(&[trunk[..20].to_vec(), text(4, 3)]);
        let path = cache.path(NS, &asked);
        let places = path.iter().map(|node| (node.from, node.tokens.len())).collect::<Vec<_>>();
        assert_eq!(places, [(0, 9), (9, 8), (17, 13)], "{kinds:?}");
        assert!(path.iter().all(|node| nodes.iter().any(|n| n.tokens == node.tokens)));
        let (cached, asked_on) = (trunk[20..28].to_vec(), text(4, 3));
        let parting = Cause::Diverged { at: 20, cached, asked: asked_on };
        assert_eq!(cache.parting(NS, &asked), Some(parting), "{kinds:?}");
        assert_eq!(cache.parting(NS, &trunk[..20]), None);
        assert_eq!(cache.path(Ns(99), &asked), []);
        assert_eq!(cache.tree(2), nodes[..2], "those above come first");
        assert_eq!(cache.stats(), before, "looking changes nothing");
    }
}
