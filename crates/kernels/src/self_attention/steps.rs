//! Attention of many queries in shapes that come again.
//!
//! On CUDA MLX has cuDNN compile its attention for each number of queries and of keys, 50 ms on an
//! H200, and a prompt's end is hardly ever as long as another's. So queries are padded to the steps
//! that they touch: their shapes are as many as the steps of a context. A few queries have them
//! computed by the twin, which is compiled once for all.

use mlx::{Array, Dtype, Result};

use crate::Positions;
use crate::attention::{Attention, Kv};

/// Tokens of a step: what tables of blocks grow by, so that keys end where steps do.
const STEP: i32 = 512;
/// Queries that are few: over a long context a step of padding takes longer than their logits in
/// memory.
const FEW: i32 = 16;
/// Heads for which cuDNN is asked.
const MAX_DIM: i32 = 128;

/// Attention over rows of keys and values that are finite also behind the last query:
/// `[B, L, H·Dv]`.
pub(super) fn attend(a: &Attention<'_>) -> Result<Array> {
    let (Positions::Same(position), Kv::Rows { keys, values, first_key: 0 }) = (a.positions, a.kv)
    else {
        return a.run();
    };
    let n = a.q.dim(2);
    let is_compiled = matches!(a.q.dtype(), Dtype::Bf16 | Dtype::F16)
        && a.window.is_none()
        && a.q.dim(3).max(values.dim(3)) <= MAX_DIM;
    if !is_compiled || n == 1 {
        return a.run();
    }
    if n <= FEW {
        return a.reference();
    }
    let begin = position / STEP * STEP;
    let end = (position + n + STEP - 1) / STEP * STEP;
    if keys.dim(2) < end {
        return a.run();
    }
    let before = position - begin;
    let q = a.q.pad(&[2], &[before], &[end - position - n], 0.0)?;
    let out = Attention { q: &q, positions: Positions::Same(begin), ..*a }.run()?;
    out.slice_axis(1, before..before + n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Masks;
    use mlx::{Device, Key};

    #[test]
    fn padded_to_steps_and_few_as_the_twin_has_it() {
        Device::open().unwrap();
        let normal = |seed, shape: &[i32]| {
            let x = Key::from_seed(seed).unwrap().normal(shape, Dtype::F32).unwrap();
            x.astype(Dtype::Bf16).unwrap()
        };
        for (position, n, room) in [
            (0, 2, 512),
            (510, 16, 1024),
            (0, 512, 512),
            (512, 17, 1024),
            (700, 40, 1024),
            (1000, 60, 1536),
            // No room for a whole step behind them.
            (1000, 60, 1100),
        ] {
            let (q, keys) = (normal(1, &[2, 6, n, 16]), normal(2, &[2, 3, room, 16]));
            let (values, masks) = (normal(3, &[2, 3, room, 24]), Masks::default());
            let sinks = normal(4, &[6]);
            for sinks in [None, Some(&sinks)] {
                let attention = Attention {
                    q: &q,
                    kv: Kv::Rows { keys: &keys, values: &values, first_key: 0 },
                    scale: 0.25,
                    positions: Positions::Same(position),
                    window: None,
                    sinks,
                    masks: &masks,
                };
                let (found, wanted) = (attend(&attention).unwrap(), attention.reference().unwrap());
                assert_eq!(found.shape(), wanted.shape());
                let off = found.sub(&wanted).unwrap().abs().unwrap().max(&[0, 1, 2]).unwrap();
                let off = off.astype(Dtype::F32).unwrap().item::<f32>().unwrap();
                assert!(off < 0.03, "{n} at {position} of {room}: {off}");
            }
        }
    }
}
