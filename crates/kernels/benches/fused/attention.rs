//! Attention over a cache.

use kernels::{Attention, Kv, Masks, Positions};
use mlx::{Array, Backend, Dtype, Result};

use crate::{Form, Plan, values};

/// Heads of published models over a cache with room for more: queries, earlier tokens.
pub(crate) fn attention(plan: &Plan) {
    // Query heads, key heads, and sizes of keys and values: Qwen3 0.6B and 8B,
    // Qwen3-Next, GLM's latent.
    let heads: &[[i32; 4]] = match plan.is_bench {
        true => &[[16, 8, 128, 128], [32, 8, 128, 128], [16, 2, 256, 256], [20, 1, 576, 512]],
        false => &[[4, 2, 16, 16], [4, 1, 24, 16]],
    };
    let sizes: &[(i32, i32)] = match plan.is_bench {
        true => &[(1, 512), (1, 4096), (1, 32768), (128, 0), (512, 0), (512, 3584)],
        false => &[(1, 9), (5, 0)],
    };
    for (&[n, k, d, dv], &(queries, before)) in
        heads.iter().flat_map(|h| sizes.iter().map(move |s| (h, s)))
    {
        let cast = |x: Array| x.astype(Dtype::Bf16).unwrap();
        let q = &cast(values(&[1, n, queries, d], 0.1));
        let room = (before + queries + 255) / 256 * 256;
        let keys = &cast(values(&[1, k, room, d], 0.2));
        // A latent's values are the first columns of its keys.
        let held = &match k {
            1 => keys.slice_axis(3, 0..dv).unwrap(),
            _ => cast(values(&[1, k, room, dv], 0.3)),
        };
        mlx::eval([q, keys, held]).unwrap();
        let call = move |n: usize, form: fn(&Attention<'_>) -> Result<Array>| {
            let call = || {
                let masks = &Masks::default();
                let kv = Kv::Rows { keys, values: held, first_key: 0 };
                let (scale, positions) = ((d as f32).sqrt().recip(), Positions::Same(before));
                form(&Attention { q, kv, scale, positions, window: None, sinks: None, masks })
            };
            (0..n).map(|_| call()).collect::<Result<Vec<_>>>()
        };
        let calls = if plan.backend == Backend::Cpu { 1 } else { 30 };
        let mut forms: Vec<Form<'_>> =
            vec![("run", calls, Box::new(move |n| call(n, |a| a.run())))];
        // MLX takes up to half a minute for the rest.
        if plan.backend != Backend::Cpu || queries == 1 || queries + before <= 512 {
            forms.insert(0, ("built_in", calls, Box::new(move |n| call(n, |a| a.built_in()))));
        }
        plan.compare(&format!("attention {n}/{k}x{d}, {queries} at {before}, bf16"), forms);
    }
}
