//! The softmax of a query while its keys come by in tiles.

use crate::cpu::exp;
use crate::cpu::lanes::Lanes;

/// What is known of a query's softmax: the largest logit so far, and the sum of exponentials with
/// it taken off.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    pub(super) max: f32,
    pub(super) sum: f32,
}

impl Softmax {
    pub(super) const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// Takes in a tile's logits, all of which the query sees, and makes them weights. Returns what
    /// earlier weights are to be multiplied by.
    #[inline(always)]
    pub(super) fn absorb<V: Lanes>(&mut self, logits: &mut [f32]) -> f32 {
        let max = largest::<V>(logits, self.max);
        // A loop, not a closure: closures of iterators may become functions of their own, which
        // know less of the processor.
        for x in logits.iter_mut() {
            *x = if V::FUSED { exp::<true>(*x - max) } else { exp::<false>(*x - max) };
        }
        let (eights, rest) = logits.as_chunks::<8>();
        let mut sums = V::splat(0.0);
        for eight in eights {
            sums = sums.add(V::load(eight));
        }
        let kept = if max == self.max { 1.0 } else { exp::<false>(self.max - max) };
        self.sum = self.sum * kept + sums.sum() + rest.iter().sum::<f32>();
        self.max = max;
        kept
    }

    /// Takes in a logit of which only the exponential counts; returns like [`Softmax::absorb`].
    pub(super) fn absorb_sink(&mut self, logit: f32) -> f32 {
        let max = self.max.max(logit);
        let kept = exp::<false>(self.max - max);
        self.sum = self.sum * kept + exp::<false>(logit - max);
        self.max = max;
        kept
    }
}

#[inline(always)]
fn largest<V: Lanes>(logits: &[f32], start: f32) -> f32 {
    let (eights, rest) = logits.as_chunks::<8>();
    let mut lanes = V::splat(start);
    for eight in eights {
        lanes = V::load(eight).max(lanes);
    }
    let mut found = [0.0; 8];
    lanes.store(&mut found);
    let mut max = start;
    for &x in found.iter().chain(rest) {
        max = if x > max { x } else { max };
    }
    max
}
