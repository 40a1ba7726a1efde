//! How the work of a call is parted: queries of one row and one head of keys, and the keys they
//! see.

use std::ops::Range;

use super::TILE;
use super::many::BLOCK;

/// So many queries of one head of keys, or fewer, take keys and values as they are stored. With 8
/// that takes little more than half the time of panels, with 20 it makes no difference.
pub(super) const FEW: usize = 16;

/// What one task does: some queries of one row and one head of keys, and some keys.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unit {
    pub(super) row: usize,
    /// Of keys.
    pub(super) head: usize,
    /// Queries, counted over the heads that share the keys: number i·(H/K) + g is query i of the
    /// g-th of them.
    pub(super) rows: Range<usize>,
    /// Positions of keys.
    pub(super) keys: Range<usize>,
}

/// The units of the same queries stand one after another.
pub(super) struct Plan {
    pub(super) units: Vec<Unit>,
    /// Ranges of `units` with the same queries.
    pub(super) parts: Vec<Range<usize>>,
}

impl Plan {
    /// `whole` are units with all the keys that their queries see. Keys are parted where there
    /// would be too few tasks for the threads, or one would outlast the others.
    pub(super) fn new(whole: Vec<Unit>, n_threads: usize) -> Self {
        // Four for each thread: one that began late, or was held up, leaves its rest to the others.
        let n_keys = whole.iter().map(|unit| unit.keys.len()).sum::<usize>();
        let most = match n_threads {
            1 => usize::MAX,
            n => n_keys.div_ceil(4 * n).next_multiple_of(TILE).max(4 * TILE),
        };
        let (mut units, mut parts) = (Vec::new(), Vec::new());
        for unit in whole {
            let n = unit.keys.len().div_ceil(most).max(1);
            let size = unit.keys.len().div_ceil(n).next_multiple_of(TILE);
            let begin = units.len();
            let mut from = unit.keys.start;
            while from < unit.keys.end {
                let to = unit.keys.end.min(from + size);
                units.push(Unit { keys: from..to, ..unit.clone() });
                from = to;
            }
            parts.push(begin..units.len());
        }
        Self { units, parts }
    }
}

/// Ranges of `n` queries of one head that are worked on together: few enough that they and their
/// results stay in the second-nearest cache beside a tile of keys and values.
pub(super) fn tiles(n: usize, dim: usize, value_dim: usize) -> impl Iterator<Item = Range<usize>> {
    let most = (60_000 / (dim + value_dim)).clamp(24, 120) / BLOCK * BLOCK;
    let size = n.div_ceil(n.div_ceil(most).max(1)).next_multiple_of(BLOCK).max(1);
    (0..n).step_by(size).map(move |from| from..n.min(from + size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_every_unit_is_met_once_with_any_number_of_threads() {
        let unit = |row, keys| Unit { row, head: 0, rows: 0..3, keys };
        let whole = vec![unit(0, 0..1), unit(1, 5..70_000), unit(2, 64..128), unit(3, 1..1000)];
        for n_threads in [1, 2, 3, 16, 1000] {
            let plan = Plan::new(whole.clone(), n_threads);
            assert_eq!(plan.parts.len(), whole.len());
            for (part, wanted) in plan.parts.iter().zip(&whole) {
                let mut next = wanted.keys.start;
                for unit in &plan.units[part.clone()] {
                    assert_eq!((unit.row, unit.keys.start), (wanted.row, next));
                    assert!(!unit.keys.is_empty());
                    next = unit.keys.end;
                }
                assert_eq!(next, wanted.keys.end);
            }
            assert!(plan.units.len() <= whole.len() + 4 * n_threads);
            assert_eq!(plan.units.len() > whole.len(), n_threads > 1);
        }
    }

    #[test]
    fn tiles_cover_all_queries_and_are_never_too_large() {
        for n in [0, 1, 6, 119, 120, 121, 5000] {
            for (dim, value_dim) in [(64, 64), (576, 512), (7, 3), (4000, 4000)] {
                let tiles = tiles(n, dim, value_dim).collect::<Vec<_>>();
                assert_eq!(tiles.iter().map(|t| t.len()).sum::<usize>(), n);
                assert!(tiles.iter().all(|t| (1..=120).contains(&t.len())));
                assert!(tiles.windows(2).all(|pair| pair[0].end == pair[1].start));
            }
        }
    }
}
