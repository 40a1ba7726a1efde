//! Attention by MLX's own operation, with as few masks as it needs.

use mlx::{Array, Attend, Dtype, Result};

use super::twin::{self, defined, laid_out};
use super::{Attention, Kv, Positions, Sizes};

/// Scores up to which f32 costs little: 16 MiB of them.
const FEW_SCORES: i64 = 1 << 22;

/// Few scores of 16 bits by the definition; all else by MLX's attention, over numbers alone.
pub(super) fn on_cuda(a: &Attention<'_>, s: Sizes) -> Result<Array> {
    let n_scores = [s.rows, s.heads, s.queries, s.keys].map(i64::from).iter().product::<i64>();
    if dtype(a) != Dtype::F32 && n_scores <= FEW_SCORES {
        return twin::run(a, s, a.masks);
    }
    match a.positions {
        Positions::Same(_) => run(a, s), // Never reads behind the last query.
        Positions::Rows { .. } => {
            let (keys, values) = &defined(a, s)?;
            let kv = Kv::Rows { keys, values, first_key: a.kv.first_key() };
            run(&Attention { kv, ..*a }, s)
        }
    }
}

/// MLX's attention as it is: it multiplies what is masked by 0. For sizes for which it has no
/// kernel it rounds scores and weights to the dtype that it computes in.
pub(super) fn run(a: &Attention<'_>, s: Sizes) -> Result<Array> {
    let (keys, values) = laid_out(a)?;
    let first = a.kv.first_key();
    let window = a.window.filter(|&window| window < s.keys);
    let attend = |from: i32, to: i32, mask: Attend<'_>| {
        let part = |x: &Array| x.slice_axis(2, from - first..to - first);
        let sinks = a.sinks.map(|sinks| sinks.astype(dtype(a))).transpose()?;
        a.q.attention(&part(&keys)?, &part(&values)?, a.scale, mask, sinks.as_ref())
    };
    let out = match a.positions {
        Positions::Rows { .. } => {
            let mask = a.masks.get(a, s, window, (first, first + s.keys))?;
            attend(first, first + s.keys, Attend::Mask(&mask))?
        }
        Positions::Same(position) => {
            let end = position + s.queries;
            let from = window.map_or(first, |window| first.max(position - (window - 1)));
            if s.queries == 1 {
                attend(from, end, Attend::All)?
            } else if window.is_some_and(|window| window < end - first) {
                let mask = a.masks.get(a, s, window, (from, end))?;
                attend(from, end, Attend::Mask(&mask))?
            } else {
                attend(from, end, Attend::Causal)?
            }
        }
    };
    out.swap_axes(1, 2)?.reshape(&s.out())?.astype(a.q.dtype())
}

/// The dtype that MLX computes in, in which it wants sinks.
fn dtype(a: &Attention<'_>) -> Dtype {
    let (q, keys) = (a.q.dtype(), a.kv.both().0.dtype());
    if q == keys { q } else { Dtype::F32 }
}
