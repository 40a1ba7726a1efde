//! Self-attention over a cache: the backend's form against the twin, chunk by chunk.

use kernels::rope::{HeadNorm, Heads, Rotation};
use kernels::self_attention::{Attended, Cache, Latent, Layout, NOWHERE, SelfAttention};
use kernels::{Masks, Positions};
use mlx::{Array, Backend, Dtype};

use crate::{Values, address, bound, close, device};

/// Sizes and kinds of one layer.
#[derive(Clone, Copy, Debug)]
struct Layer {
    heads: i32,
    kv_heads: i32,
    dim: i32,
    value_dim: i32,
    /// Elements behind each query, as gates are.
    behind: i32,
    norms: bool,
    window: Option<i32>,
    sinks: bool,
}

const PLAIN: Layer = Layer {
    heads: 6,
    kv_heads: 2,
    dim: 24,
    value_dim: 24,
    behind: 0,
    norms: false,
    window: None,
    sinks: false,
};

const LAYERS: [Layer; 4] = [
    PLAIN,
    Layer { heads: 4, kv_heads: 4, dim: 17, value_dim: 10, norms: true, ..PLAIN },
    Layer { heads: 3, kv_heads: 1, window: Some(5), behind: 7, sinks: true, ..PLAIN },
    Layer { heads: 10, kv_heads: 5, dim: 128, value_dim: 128, norms: true, ..PLAIN },
];

/// What a layer has beside its inputs.
struct Weights {
    layer: Layer,
    rotation: Rotation,
    q_norm: Array,
    k_norm: Array,
    sinks: Array,
}

/// What enters for some new tokens.
struct Tokens {
    q: Array,
    k: Array,
    v: Array,
}

impl Weights {
    fn new(layer: Layer, values: &mut Values) -> Self {
        let turned = layer.dim / 4 * 2;
        let mut norm = || values.array(&[layer.dim], |x| 1.0 + 0.5 * x);
        let (q_norm, k_norm) = (norm(), norm());
        let rotation = Rotation::powers(100.0, turned, false).unwrap();
        let sinks = values.array(&[layer.heads], |x| 2.0 * x);
        Self { layer, rotation, q_norm, k_norm, sinks }
    }

    fn tokens(&self, rows: i32, n: i32, dtype: Dtype, values: &mut Values) -> Tokens {
        let l = self.layer;
        let mut new = |width| values.array(&[rows, n, width], |x| 2.0 * x).astype(dtype).unwrap();
        Tokens {
            q: new(l.heads * (l.dim + l.behind)),
            k: new(l.kv_heads * l.dim),
            v: new(l.kv_heads * l.value_dim),
        }
    }

    fn cache(&self, rows: i32, room: i32, dtype: Dtype) -> Cache {
        let l = self.layer;
        let zeros = |dim| Array::zeros(&[rows, l.kv_heads, room, dim], dtype).unwrap();
        Cache { keys: zeros(l.dim), values: zeros(l.value_dim) }
    }

    fn call<'a>(
        &'a self,
        tokens: &'a Tokens,
        positions: Positions<'a>,
        begins: Option<&'a [i32]>,
        masks: &'a Masks,
    ) -> SelfAttention<'a> {
        let l = self.layer;
        let heads = |x, n_heads, weight| Heads {
            x,
            n_heads,
            begin: 0,
            head_dim: l.dim,
            norm: l.norms.then_some(HeadNorm { weight, eps: 1e-3 }),
            rotation: &self.rotation,
            positions,
        };
        SelfAttention {
            q: heads(&tokens.q, l.heads, &self.q_norm),
            k: heads(&tokens.k, l.kv_heads, &self.k_norm),
            v: &tokens.v,
            scale: (l.dim as f32).sqrt().recip(),
            window: l.window,
            sinks: l.sinks.then_some(&self.sinks),
            masks,
            layout: Layout::Rows { begins },
        }
    }
}

/// How far results may be off: in 16 bits, roundings of heads, weights and sums come together.
fn within(dtype: Dtype) -> f64 {
    2.0 * bound(dtype)
}

#[track_caller]
fn agree(what: &str, found: &Attended, wanted: &Attended, bound: f64) {
    close(what, &found.out, &wanted.out, bound);
    close(&format!("keys, {what}"), &found.cache.keys, &wanted.cache.keys, bound);
    close(&format!("values, {what}"), &found.cache.values, &wanted.cache.values, 0.0);
}

#[test]
fn chunk_after_chunk_the_cache_grows_and_is_attended_over_as_in_the_twin() {
    let _device = device();
    for (layer, dtype) in
        LAYERS.iter().flat_map(|l| [Dtype::F32, Dtype::Bf16, Dtype::F16].map(|d| (*l, d)))
    {
        let mut values = Values((layer.dim + layer.heads) as u64);
        let weights = Weights::new(layer, &mut values);
        let mut caches = [weights.cache(3, 90, dtype), weights.cache(3, 90, dtype)];
        let mut position = 0;
        for n in [5, 1, 40, 1, 2] {
            let (tokens, masks) = (weights.tokens(3, n, dtype, &mut values), Masks::default());
            let call = weights.call(&tokens, Positions::Same(position), None, &masks);
            let [first, second] = caches;
            let (found, wanted) = (call.run(first).unwrap(), call.reference(second).unwrap());
            let what = format!("{n} at {position}, {layer:?}, {dtype}");
            agree(&what, &found, &wanted, within(dtype));
            caches = [found.cache, wanted.cache];
            position += n;
        }
    }
}

#[test]
fn rows_may_stand_at_positions_of_their_own() {
    let _device = device();
    for (layer, dtype) in LAYERS.iter().flat_map(|l| [Dtype::F32, Dtype::Bf16].map(|d| (*l, d))) {
        let mut values = Values(layer.dim as u64);
        let weights = Weights::new(layer, &mut values);
        let shape = |dim| [2, layer.kv_heads, 71, dim];
        for (n, begins) in [(1, [63, 4]), (7, [0, 64]), (3, [20, 21])] {
            let masks = Masks::default();
            let mut random = |dim| values.array(&shape(dim), |x| x).astype(dtype).unwrap();
            let (keys, held) = (random(layer.dim), random(layer.value_dim));
            let cache = || Cache { keys: keys.clone(), values: held.clone() };
            let tokens = weights.tokens(2, n, dtype, &mut values);
            let positions = Array::from_slice(&begins, &[2]).unwrap();
            let rows = Positions::Rows { positions: &positions, lengths: None };
            let call = weights.call(&tokens, rows, Some(&begins), &masks);
            let (found, wanted) = (call.run(cache()).unwrap(), call.reference(cache()).unwrap());
            agree(&format!("{n} at {begins:?}, {layer:?}"), &found, &wanted, within(dtype));
        }
    }
}

/// Where tokens of two rows lie in a pool of blocks of 4, in no order: row b's tokens from
/// 4·i on are in block `table[b][i]`.
struct Blocks {
    table: Vec<[u32; 6]>,
}

impl Blocks {
    fn new() -> Self {
        Self { table: vec![[7, 2, 9, 0, 12, 5], [3, 11, 1, 8, 4, 10]] }
    }

    fn slot(&self, row: usize, token: i32) -> u32 {
        self.table[row][token as usize / 4] * 4 + token as u32 % 4
    }

    /// The slots of `n` tokens from `begins` on; the first `n_known` of the second row go nowhere.
    fn slots(&self, begins: [i32; 2], n: i32, n_known: i32) -> Array {
        let slot = |row: usize, i: i32| match row == 1 && i < n_known {
            true => NOWHERE,
            false => self.slot(row, begins[row] + i),
        };
        let slots = (0..2).flat_map(|row| (0..n).map(move |i| (row, i)));
        let slots = slots.map(|(row, i)| slot(row, i)).collect::<Vec<_>>();
        Array::from_slice(&slots, &[2, n]).unwrap()
    }

    fn table(&self) -> Array {
        Array::from_slice(self.table.as_flattened(), &[2, 6]).unwrap()
    }
}

#[test]
fn in_blocks_as_in_rows_and_as_in_the_twin() {
    let _device = device();
    let blocks = Blocks::new();
    let table = blocks.table();
    for (layer, dtype) in LAYERS.iter().flat_map(|l| [Dtype::F32, Dtype::Bf16].map(|d| (*l, d))) {
        let mut values = Values(layer.dim as u64 + 1);
        let weights = Weights::new(layer, &mut values);
        let pool = |dim| Array::zeros(&[14, layer.kv_heads, 4, dim], dtype).unwrap();
        let pools = || Cache { keys: pool(layer.dim), values: pool(layer.value_dim) };
        let (mut first, mut second) = (pools(), pools());
        let mut rows = weights.cache(2, 24, dtype);
        let mut begins = [0, 3];
        for (n, n_known) in [(5, 0), (1, 0), (9, 0), (3, 2)] {
            let (tokens, masks) = (weights.tokens(2, n, dtype, &mut values), Masks::default());
            let positions = Array::from_slice(&begins, &[2]).unwrap();
            let at = Positions::Rows { positions: &positions, lengths: None };
            let in_rows = weights.call(&tokens, at, Some(&begins), &masks);
            let slots = blocks.slots(begins, n, n_known);
            let layout = Layout::Blocks { table: &table, slots: &slots, begins: &positions };
            let in_blocks = SelfAttention { layout, ..in_rows };
            let (found, wanted) = (in_blocks.run(first).unwrap(), in_blocks.reference(second));
            let (wanted, of_rows) = (wanted.unwrap(), in_rows.run(rows).unwrap());
            let what = format!("{n} at {begins:?}, {layer:?}, {dtype}");
            close(&what, &found.out, &wanted.out, within(dtype));
            // What is not written differs from what rows have: only the first row is the same.
            let upper = |x: &Array| x.slice_axis(0, 0..1).unwrap();
            if n_known == 0 {
                close(&what, &found.out, &of_rows.out, within(dtype));
            } else {
                close(&what, &upper(&found.out), &upper(&of_rows.out), within(dtype));
            }
            // The last slot is nobody's.
            let known = |x: &Array| x.slice_axis(0, 0..13).unwrap();
            close(&what, &known(&found.cache.keys), &known(&wanted.cache.keys), within(dtype));
            close(&what, &known(&found.cache.values), &known(&wanted.cache.values), 0.0);
            (first, second, rows) = (found.cache, wanted.cache, of_rows.cache);
            begins = begins.map(|begin| begin + n);
        }
    }
}

/// What else a layer is: its window, and whether it has sinks.
const KINDS: [(Option<i32>, bool); 4] =
    [(None, false), (Some(40), false), (None, true), (Some(333), true)];

/// Where six rows stand.
const BEGINS: [i32; 6] = [0, 1, 63, 64, 517, 1_029];

/// `n` new tokens for each row from `begins` on, in blocks that the rows have by turns.
fn over_long_contexts(begins: &[i32], layer: Layer, dtype: Dtype, n: i32, seed: u64) {
    const BLOCK: i32 = 32;
    let rows = begins.len() as i32;
    let per_row = (begins.iter().max().unwrap() + n) / BLOCK + 1;
    let mut values = Values(seed);
    let weights = Weights::new(layer, &mut values);
    // One block is nobody's.
    let n_blocks = rows * per_row + 1;
    let table = (0..rows).flat_map(|b| (0..per_row).map(move |i| (i * rows + b) as u32));
    let table = Array::from_slice(&table.collect::<Vec<_>>(), &[rows, per_row]).unwrap();
    let slot = |b: i32, token: i32| ((token / BLOCK) * rows + b) * BLOCK + token % BLOCK;
    let slots = begins.iter().zip(0..).flat_map(|(begin, b)| {
        // Of one row the first half of the new tokens is known.
        (0..n).map(move |i| match b == 3 && i < n.div_euclid(2).max(1) {
            true => NOWHERE,
            false => slot(b, begin + i) as u32,
        })
    });
    let slots = Array::from_slice(&slots.collect::<Vec<_>>(), &[rows, n]).unwrap();
    let mut pool = |dim| {
        let shape = [n_blocks, layer.kv_heads, BLOCK, dim];
        values.array(&shape, |x| x).astype(dtype).unwrap()
    };
    let (keys, held) = (pool(layer.dim), pool(layer.value_dim));
    mlx::eval([&keys, &held]).unwrap();
    let copy = |x: &Array| {
        let copy = x.offset(0.0).unwrap().contiguous().unwrap();
        copy.eval().unwrap();
        copy
    };
    let mut first = Cache { keys: copy(&keys), values: copy(&held) };
    let mut second = Cache { keys, values: held };
    let positions = Array::from_slice(begins, &[rows]).unwrap();
    let at = Positions::Rows { positions: &positions, lengths: None };
    // Twice, because parts of a pass leave something for the next.
    for turn in 0..2 {
        let (tokens, masks) = (weights.tokens(rows, n, dtype, &mut values), Masks::default());
        let layout = Layout::Blocks { table: &table, slots: &slots, begins: &positions };
        let call = SelfAttention { layout, ..weights.call(&tokens, at, Some(begins), &masks) };
        let (found, wanted) = (call.run(first).unwrap(), call.reference(second).unwrap());
        let what = format!("turn {turn}, {n} new, {layer:?}, {dtype}");
        close(&what, &found.out, &wanted.out, within(dtype));
        let known = |x: &Array| x.slice_axis(0, 0..n_blocks - 1).unwrap();
        close(&what, &known(&found.cache.keys), &known(&wanted.cache.keys), within(dtype));
        close(&what, &known(&found.cache.values), &known(&wanted.cache.values), 0.0);
        (first, second) = (found.cache, wanted.cache);
    }
}

#[test]
fn one_new_token_per_row_over_long_contexts_in_blocks() {
    let _device = device();
    let sizes = [(14, 2, 64), (6, 6, 128), (16, 2, 128), (5, 1, 256), (34, 2, 64)];
    let cases = sizes.iter().flat_map(|s| [Dtype::Bf16, Dtype::F16].map(|d| (*s, d)));
    for (i, ((heads, kv_heads, dim), dtype)) in cases.enumerate() {
        let (window, sinks) = KINDS[i % KINDS.len()];
        let layer =
            Layer { heads, kv_heads, dim, value_dim: dim, norms: true, window, sinks, ..PLAIN };
        over_long_contexts(&BEGINS, layer, dtype, 1, i as u64);
    }
}

#[test]
fn one_new_token_over_contexts_of_as_many_parts_as_there_are() {
    let _device = device();
    for (i, (heads, kv_heads, dim)) in
        [(5, 1, 64), (6, 2, 128), (3, 1, 256)].into_iter().enumerate()
    {
        let sinks = i == 1;
        let layer = Layer { heads, kv_heads, dim, value_dim: dim, norms: true, sinks, ..PLAIN };
        over_long_contexts(&[9_001, 3_100], layer, Dtype::Bf16, 1, 7);
        over_long_contexts(&[5_000], layer, Dtype::Bf16, 1, 8);
    }
}

#[test]
fn many_new_tokens_per_row_over_long_contexts_in_blocks() {
    let _device = device();
    let sizes = [
        (14, 2, 64, 64),
        (6, 6, 128, 128),
        (16, 2, 128, 128),
        (5, 1, 256, 256),
        (3, 3, 96, 64),
        (4, 2, 192, 128),
    ];
    for (i, (heads, kv_heads, dim, value_dim)) in sizes.into_iter().enumerate() {
        let (window, sinks) = KINDS[i % KINDS.len()];
        let dtype = [Dtype::Bf16, Dtype::F16][i % 2];
        let layer = Layer { heads, kv_heads, dim, value_dim, norms: true, window, sinks, ..PLAIN };
        for n in [2, 17, 70] {
            over_long_contexts(&BEGINS, layer, dtype, n, i as u64);
        }
    }
}

#[test]
fn latents_are_attended_over_in_blocks_as_in_the_twin() {
    let _device = device();
    const BLOCK: i32 = 32;
    let cases = [(20, 576, 512, Dtype::Bf16), (5, 80, 64, Dtype::F16), (3, 40, 24, Dtype::F32)];
    for (heads, dim, value_dim, dtype) in cases {
        for (n, begins) in [(1, [300, 31, 0]), (1, [301, 32, 1]), (4, [302, 33, 2])] {
            let mut values = Values(dim as u64 + n as u64);
            let per_row = 310 / BLOCK + 1;
            let table = (0..3).flat_map(|b| (0..per_row).map(move |i| (i * 3 + b) as u32));
            let table = Array::from_slice(&table.collect::<Vec<_>>(), &[3, per_row]).unwrap();
            let slot = |b: i32, t: i32| ((t / BLOCK * 3 + b) * BLOCK + t % BLOCK) as u32;
            let slots = (0..3).flat_map(|b| (0..n).map(move |i| (b, i)));
            let slots = slots.map(|(b, i)| slot(b, begins[b as usize] + i)).collect::<Vec<_>>();
            let slots = Array::from_slice(&slots, &[3, n]).unwrap();
            let positions = Array::from_slice(&begins, &[3]).unwrap();
            let mut array = |shape: &[i32]| {
                let array = values.array(shape, |x| x).astype(dtype).unwrap();
                array.eval().unwrap();
                array
            };
            let pools = array(&[3 * per_row + 1, 1, BLOCK, dim]);
            let (q, new) = (array(&[3, heads, n, dim]), array(&[3, n, dim]));
            let latent = Latent {
                q: &q,
                new: &new,
                value_dim,
                scale: 0.7 / (dim as f32).sqrt(),
                positions: Positions::Rows { positions: &positions, lengths: None },
                masks: &Masks::default(),
                layout: Layout::Blocks { table: &table, slots: &slots, begins: &positions },
            };
            let copy = pools.offset(0.0).unwrap();
            copy.eval().unwrap();
            let (wanted, after) = latent.reference(copy).unwrap();
            mlx::eval([&wanted, &after]).unwrap();
            let (found, pool) = latent.run(pools).unwrap();
            let what = format!("{n} at {begins:?}, {heads} heads of {dim}, {dtype}");
            close(&what, &found, &wanted, within(dtype));
            let known = |x: &Array| x.slice_axis(0, 0..3 * per_row).unwrap();
            close(&what, &known(&pool), &known(&after), 0.0);
        }
    }
}

#[test]
fn slots_that_are_none_or_meet_are_refused() {
    let device = device();
    let mut values = Values(6);
    let weights = Weights::new(PLAIN, &mut values);
    let (tokens, masks) = (weights.tokens(2, 3, Dtype::F32, &mut values), Masks::default());
    let pool = || Array::zeros(&[14, 2, 4, 24], Dtype::F32).unwrap();
    let table = Blocks::new().table();
    let floats = table.astype(Dtype::F32).unwrap();
    let call = |table, slots: &Array| {
        let begins = Array::from_slice(&[0, 0], &[2]).unwrap();
        let layout = Layout::Blocks { table, slots, begins: &begins };
        let a = weights.call(&tokens, Positions::Same(0), None, &masks);
        SelfAttention { layout, ..a }.run(Cache { keys: pool(), values: pool() })
    };
    let list = |list: [u32; 6]| Array::from_slice(&list, &[2, 3]).unwrap();
    let fine = list([28, 29, 30, 12, 13, 14]);
    let short = fine.slice_axis(1, 0..2).unwrap();
    for (found, reason) in [
        (call(&floats, &fine), "table must be u32"),
        (call(&table, &short), "slots must have shape [2, 3]"),
    ] {
        let message = found.unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
    if device.backend() != Backend::Cpu {
        return;
    }
    for (slots, reason) in [
        (list([28, 29, 30, 12, 13, 56]), "slot 56 is none of 56"),
        (list([28, 29, 30, 12, 29, 14]), "two tokens go to slot 29"),
    ] {
        let message = call(&table, &slots).unwrap().out.eval().unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn a_cache_that_is_held_elsewhere_keeps_its_values_there() {
    let _device = device();
    let mut values = Values(3);
    let weights = Weights::new(PLAIN, &mut values);
    let (tokens, masks) = (weights.tokens(1, 2, Dtype::F32, &mut values), Masks::default());
    let cache = weights.cache(1, 9, Dtype::F32);
    mlx::eval([&cache.keys, &cache.values]).unwrap();
    let held = cache.keys.clone();
    let call = weights.call(&tokens, Positions::Same(4), None, &masks);
    let made = call.run(cache).unwrap();
    mlx::eval([&made.out, &made.cache.keys]).unwrap();
    assert!(held.to_f32_vec().unwrap().iter().all(|x| *x == 0.0));
    assert!(made.cache.keys.to_f32_vec().unwrap().iter().any(|x| *x != 0.0));
}

#[test]
fn a_cache_that_nothing_else_holds_is_extended_in_place() {
    let device = device();
    if device.backend() != Backend::Cpu {
        return;
    }
    let mut values = Values(5);
    let weights = Weights::new(PLAIN, &mut values);
    let Cache { keys, values: cached } = weights.cache(1, 2_000, Dtype::F32);
    let ((keys_before, keys), (values_before, cached)) = (address(keys), address(cached));
    let (tokens, masks) = (weights.tokens(1, 1, Dtype::F32, &mut values), Masks::default());
    let call = weights.call(&tokens, Positions::Same(4), None, &masks);
    let made = call.run(Cache { keys, values: cached }).unwrap();
    mlx::eval([&made.out, &made.cache.keys, &made.cache.values]).unwrap();
    assert_eq!(address(made.cache.keys).0, keys_before);
    assert_eq!(address(made.cache.values).0, values_before);
}

#[test]
fn bad_inputs_are_refused_with_a_reason() {
    let _device = device();
    let mut values = Values(4);
    let weights = Weights::new(PLAIN, &mut values);
    let (tokens, masks) = (weights.tokens(2, 3, Dtype::F32, &mut values), Masks::default());
    let a = weights.call(&tokens, Positions::Same(4), None, &masks);
    let cache = || weights.cache(2, 9, Dtype::F32);
    let other = weights.tokens(2, 4, Dtype::F32, &mut values);
    let half = tokens.v.astype(Dtype::Bf16).unwrap();
    let begins = Array::from_slice(&[1, 2], &[2]).unwrap();
    let rows = Positions::Rows { positions: &begins, lengths: None };
    let far = [1, 7];
    for (a, reason) in [
        (SelfAttention { v: &other.v, ..a }, "v must have shape [2, 3, 48]"),
        (SelfAttention { k: Heads { x: &other.k, ..a.k }, ..a }, "k must have shape [2, 3, 48]"),
        (SelfAttention { v: &half, ..a }, "v must be f32"),
        (SelfAttention { window: Some(0), ..a }, "a window of no keys"),
        (
            SelfAttention { q: Heads { positions: Positions::Same(7), ..a.q }, ..a },
            "a cache of 9 tokens has no room for 3 at 7",
        ),
        (
            SelfAttention { q: Heads { positions: rows, ..a.q }, ..a },
            "positions of 2 rows are missing as numbers",
        ),
        (
            SelfAttention {
                q: Heads { positions: rows, ..a.q },
                layout: Layout::Rows { begins: Some(&far) },
                ..a
            },
            "has no room for 3 at 7",
        ),
    ] {
        for found in [a.run(cache()), a.reference(cache())] {
            let message = found.unwrap_err().to_string();
            assert!(message.contains(reason), "{message}");
        }
    }
    let message = a.run(weights.cache(1, 9, Dtype::F32)).unwrap_err().to_string();
    assert!(message.contains("keys must have shape [2, 2, 9, 24]"), "{message}");
}
