//! Attention: every form against the definition computed here in f64, and against the twin.

use kernels::attention::{Attention, Kv, Masks, Positions};
use mlx::{Array, Dtype};

use crate::{Values, bound, close, device};

/// One call: sizes, where the rows stand, and what there is beside q, keys and values.
#[derive(Clone, Debug)]
struct Case {
    heads: i32,
    kv_heads: i32,
    dim: i32,
    value_dim: i32,
    queries: i32,
    /// Tokens before the first query of each row.
    positions: Vec<i32>,
    first_key: i32,
    window: Option<i32>,
    sinks: bool,
    dtype: Dtype,
}

impl Case {
    fn new([heads, kv_heads, dim, queries]: [i32; 4], positions: &[i32]) -> Self {
        Self {
            heads,
            kv_heads,
            dim,
            value_dim: dim,
            queries,
            positions: positions.to_vec(),
            first_key: 0,
            window: None,
            sinks: false,
            dtype: Dtype::F32,
        }
    }
}

/// The inputs of a case. What no query may see is NaN.
struct Inputs {
    case: Case,
    q: Array,
    keys: Array,
    values: Array,
    sinks: Option<Array>,
    /// `[B]`
    positions: Array,
}

const SCALE: f32 = 0.3;

impl Inputs {
    fn new(case: &Case) -> Self {
        let mut values = Values(case.dim as u64 + 10 * case.queries as u64);
        let c = case.clone();
        let rows = c.positions.len() as i32;
        let last = c.positions.iter().max().unwrap() + c.queries - c.first_key;
        let mut ends = c.positions.iter().map(|p| p + c.queries - c.first_key).collect::<Vec<_>>();
        let room = last + 3;
        let mut cached = |dim: i32| {
            let mut at = 0;
            let all = values.array(&[rows, c.kv_heads, room, dim], |x| 2.0 * x);
            let mut all = all.to_f32_vec().unwrap();
            for &end in &ends {
                for _head in 0..c.kv_heads {
                    let row = &mut all[at..at + (room * dim) as usize];
                    row[(end * dim) as usize..].fill(f32::NAN);
                    at += (room * dim) as usize;
                }
            }
            Array::from_slice(&all, &[rows, c.kv_heads, room, dim]).unwrap().astype(c.dtype)
        };
        let (keys, held) = (cached(c.dim).unwrap(), cached(c.value_dim).unwrap());
        ends.clear();
        let q = values.array(&[rows, c.heads, c.queries, c.dim], |x| 2.0 * x);
        let sinks = c.sinks.then(|| values.array(&[c.heads], |x| 3.0 * x));
        let positions = Array::from_slice(&c.positions, &[rows]).unwrap();
        Self { q: q.astype(c.dtype).unwrap(), keys, values: held, sinks, positions, case: c }
    }

    fn attention<'a>(&'a self, masks: &'a Masks) -> Attention<'a> {
        let (keys, values) = (&self.keys, &self.values);
        let same = self.case.positions.windows(2).all(|pair| pair[0] == pair[1]);
        Attention {
            q: &self.q,
            kv: Kv::Rows { keys, values, first_key: self.case.first_key },
            scale: SCALE,
            positions: match same {
                true => Positions::Same(self.case.positions[0]),
                false => Positions::Rows { positions: &self.positions, lengths: None },
            },
            window: self.case.window,
            sinks: self.sinks.as_ref(),
            masks,
        }
    }

    /// The definition, in f64.
    fn wanted(&self) -> Array {
        let c = &self.case;
        let numbers = |x: &Array| x.to_f32_vec().unwrap();
        let (q, keys, values) = (numbers(&self.q), numbers(&self.keys), numbers(&self.values));
        let sinks = self.sinks.as_ref().map(numbers);
        let room = self.keys.dim(2);
        let mut out = Vec::new();
        for (b, &position) in (0i32..).zip(&c.positions) {
            for (i, h) in (0..c.queries).flat_map(|i| (0..c.heads).map(move |h| (i, h))) {
                let head = b * c.kv_heads + h / (c.heads / c.kv_heads);
                let vector = |list: &[f32], row: i32, dim: i32| {
                    let part = &list[(row * dim) as usize..][..dim as usize];
                    part.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()
                };
                let query = vector(&q, (b * c.heads + h) * c.queries + i, c.dim);
                let at = position + i;
                let from = c.window.map_or(0, |w| at - w + 1).max(c.first_key);
                let rows = (from..=at).map(|t| head * room + t - c.first_key);
                let logits = rows.clone().map(|row| {
                    let key = vector(&keys, row, c.dim);
                    let dot = query.iter().zip(&key).map(|(a, b)| a * b).sum::<f64>();
                    f64::from(SCALE) * dot
                });
                let logits = logits.collect::<Vec<_>>();
                let sink = sinks.as_ref().map(|sinks| f64::from(sinks[h as usize]).exp());
                let sum = logits.iter().map(|x| x.exp()).sum::<f64>() + sink.unwrap_or(0.0);
                let mut total = vec![0.0; c.value_dim as usize];
                for (row, logit) in rows.zip(&logits) {
                    let value = vector(&values, row, c.value_dim);
                    let weight = logit.exp() / sum;
                    total.iter_mut().zip(value).for_each(|(x, v)| *x += weight * v);
                }
                out.extend(total.iter().map(|&x| x as f32));
            }
        }
        let shape = [c.positions.len() as i32, c.queries, c.heads * c.value_dim];
        Array::from_slice(&out, &shape).unwrap()
    }

    /// The same tokens in blocks of `n`, in disorder, with a table.
    fn in_blocks(&self, n: i32) -> (Array, Array, Array) {
        let (rows, room) = (self.keys.dim(0), self.keys.dim(2));
        let max = (room + n - 1) / n;
        let n_blocks = rows * max + 2;
        // A step that shares no divisor with the number of blocks visits all of them.
        let step = (3..).find(|s| (2..=*s).all(|d| s % d != 0 || n_blocks % d != 0)).unwrap();
        let place = |i: i32| (i * step + 1) % n_blocks;
        let pool = |x: &Array| {
            let (kv_heads, dim) = (x.dim(1), x.dim(3));
            let from = x.to_f32_vec().unwrap();
            let mut to = vec![f32::NAN; (n_blocks * n * kv_heads * dim) as usize];
            for (b, h) in (0..rows).flat_map(|b| (0..kv_heads).map(move |h| (b, h))) {
                for t in 0..room {
                    let block = place(b * max + t / n);
                    let source = ((b * kv_heads + h) * room + t) * dim;
                    let target = ((block * kv_heads + h) * n + t % n) * dim;
                    to[target as usize..][..dim as usize]
                        .copy_from_slice(&from[source as usize..][..dim as usize]);
                }
            }
            let pool = Array::from_slice(&to, &[n_blocks, kv_heads, n, dim]).unwrap();
            pool.astype(x.dtype()).unwrap()
        };
        let used = |b: i32, i: i32| i * n < self.case.positions[b as usize] + self.case.queries;
        let table = (0..rows * max).map(|i| match used(i / max, i % max) {
            true => place(i) as u32,
            false => u32::MAX, // what no query sees may be anything
        });
        let table = Array::from_slice(&table.collect::<Vec<_>>(), &[rows, max]).unwrap();
        (pool(&self.keys), pool(&self.values), table)
    }
}

/// All forms that this backend has.
#[track_caller]
fn check(case: &Case) {
    let (x, masks) = (Inputs::new(case), Masks::default());
    let (a, wanted) = (x.attention(&masks), x.wanted());
    let exact = if case.dtype == Dtype::F32 { 1e-5 } else { bound(case.dtype) };
    let found = a.run().unwrap();
    assert_eq!(found.dtype(), case.dtype, "{case:?}");
    close(&format!("{case:?}"), &found, &wanted, exact);
    close(&format!("twin, {case:?}"), &a.reference().unwrap(), &wanted, exact);
    if case.first_key != 0 {
        return;
    }
    for n in [1, 4, 16] {
        let (keys, values, table) = x.in_blocks(n);
        let kv = Kv::Blocks { keys: &keys, values: &values, table: &table };
        let masks = Masks::default();
        let paged = Attention { kv, masks: &masks, ..a };
        close(&format!("blocks of {n}, {case:?}"), &paged.run().unwrap(), &wanted, exact);
        if n == 4 {
            close(
                &format!("twin of blocks, {case:?}"),
                &paged.reference().unwrap(),
                &wanted,
                exact,
            );
        }
    }
}

#[test]
fn single_queries_agree_with_the_definition() {
    let _device = device();
    for (heads, kv_heads) in [(3, 3), (6, 3), (6, 2), (8, 2), (10, 2), (12, 2), (14, 2), (20, 1)] {
        for position in [0, 1, 6, 7, 62, 63, 64, 130] {
            check(&Case::new([heads, kv_heads, 40, 1], &[position, position]));
        }
    }
}

#[test]
fn every_size_of_heads_agrees_with_the_definition() {
    let _device = device();
    for dim in [64, 80, 96, 128, 192, 256, 576, 1, 5, 19, 33, 131] {
        check(&Case::new([4, 2, dim, 1], &[70]));
        check(&Case::new([4, 2, dim, 11], &[70]));
    }
    for (dim, value_dim) in [(576, 512), (24, 56), (57, 9), (16, 1)] {
        for queries in [1, 13] {
            let case = Case { value_dim, ..Case::new([6, 3, dim, queries], &[37]) };
            check(&case);
            check(&Case { kv_heads: 1, ..case });
        }
    }
}

#[test]
fn prompts_agree_with_the_definition() {
    let _device = device();
    for (queries, position) in [(2, 0), (3, 5), (9, 0), (64, 0), (65, 1), (131, 0), (50, 100)] {
        check(&Case::new([6, 2, 24, queries], &[position]));
        check(&Case::new([5, 5, 16, queries], &[position, position]));
    }
}

#[test]
fn windows_and_sinks_agree_with_the_definition() {
    let _device = device();
    for window in [1, 2, 7, 64, 65, 100, 1000] {
        for (queries, position) in [(1, 90), (1, 3), (3, 90), (40, 0), (70, 90)] {
            let case = Case::new([6, 2, 24, queries], &[position]);
            let case = Case { window: Some(window), sinks: window % 2 == 0, ..case };
            check(&case);
            let first_key = (position - window + 1).max(0);
            check(&Case { first_key, ..case });
        }
    }
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        check(&Case { sinks: true, dtype, ..Case::new([6, 2, 24, 5], &[30]) });
    }
}

#[test]
fn rows_at_different_positions_agree_with_the_definition() {
    let _device = device();
    for queries in [1, 4, 30] {
        for window in [None, Some(5), Some(90)] {
            let case = Case::new([6, 2, 24, queries], &[0, 131, 7, 64]);
            check(&Case { window, sinks: true, ..case });
        }
    }
}

#[test]
fn every_dtype_agrees_with_the_definition() {
    let _device = device();
    for dtype in [Dtype::Bf16, Dtype::F16] {
        for (queries, dim) in [(1, 64), (1, 37), (3, 24), (20, 64), (20, 37)] {
            let case = Case::new([6, 2, dim, queries], &[90]);
            check(&Case { dtype, value_dim: dim + 3, ..case });
        }
    }
}

#[test]
fn dtypes_of_queries_and_keys_may_differ() {
    let _device = device();
    for (dtype, held) in [(Dtype::F32, Dtype::Bf16), (Dtype::F16, Dtype::Bf16)] {
        let mut x = Inputs::new(&Case { dtype, ..Case::new([6, 2, 24, 7], &[30]) });
        x.keys = x.keys.astype(held).unwrap();
        x.values = x.values.astype(held).unwrap();
        let masks = Masks::default();
        let found = x.attention(&masks).run().unwrap();
        assert_eq!(found.dtype(), dtype);
        close("mixed", &found, &x.wanted(), if dtype == Dtype::F32 { 1e-5 } else { bound(dtype) });
    }
}

#[test]
fn long_contexts_are_parted_without_changing_the_result() {
    let _device = device();
    check(&Case::new([4, 1, 16, 1], &[5000]));
    check(&Case { window: Some(1500), sinks: true, ..Case::new([4, 2, 16, 3], &[4000, 10, 3000]) });
    check(&Case { value_dim: 16, ..Case::new([20, 1, 24, 1], &[4000]) });
}

#[test]
fn inputs_may_be_views_of_something_larger() {
    let _device = device();
    for queries in [1, 21] {
        let case = Case { value_dim: 16, ..Case::new([6, 2, 24, queries], &[40, 40]) };
        let mut x = Inputs::new(&case);
        let wanted = x.wanted();
        // Queries as a projection leaves them; values as the first columns of the keys' rows, in
        // the middle of a buffer with more rows, heads and tokens.
        x.q = x.q.swap_axes(1, 2).unwrap().contiguous().unwrap().swap_axes(1, 2).unwrap();
        let joined = mlx::concatenate(&[&x.values, &x.keys], 3).unwrap();
        let joined = joined.pad(&[0, 1, 2, 3], &[1, 2, 5, 1], &[2, 1, 4, 3], f32::NAN).unwrap();
        let (rows, heads, n) = (1..3, 2..4, x.keys.dim(2));
        let view = joined.slice_axis(0, rows).unwrap().slice_axis(1, heads).unwrap();
        let view = view.slice_axis(2, 5..5 + n).unwrap();
        x.values = view.slice_axis(3, 1..17).unwrap();
        x.keys = view.slice_axis(3, 17..41).unwrap();
        let masks = Masks::default();
        close("views", &x.attention(&masks).run().unwrap(), &wanted, 1e-5);
        // Elements that do not follow each other.
        let scattered = |x: &Array| x.swap_axes(2, 3)?.contiguous()?.swap_axes(2, 3);
        x.q = scattered(&x.q).unwrap();
        x.keys = scattered(&x.keys).unwrap();
        x.values = scattered(&x.values).unwrap();
        close("scattered", &x.attention(&masks).run().unwrap(), &wanted, 1e-5);
    }
}

#[test]
fn queries_that_do_not_count_need_no_keys() {
    let _device = device();
    let x = Inputs::new(&Case::new([6, 2, 24, 5], &[3, 60, 20]));
    let (wanted, masks) = (x.wanted(), Masks::default());
    let counts = [5, 0, 2];
    let lengths = Array::from_slice(&counts, &[3]).unwrap();
    // Row 1 has no query that counts, wherever it stands.
    let positions = Array::from_slice(&[3, 9999, 20], &[3]).unwrap();
    let rows = Positions::Rows { positions: &positions, lengths: Some(&lengths) };
    let found = Attention { positions: rows, ..x.attention(&masks) }.run().unwrap();
    assert!(found.is_finite().unwrap().all(&[0, 1, 2]).unwrap().item::<bool>().unwrap());
    for (b, n) in (0..).zip(counts).filter(|(_, n)| *n > 0) {
        let row = |x: &Array| {
            x.slice_axis(0, b..b + 1).unwrap().slice_axis(1, 0..n).unwrap().contiguous().unwrap()
        };
        close(&format!("row {b}"), &row(&found), &row(&wanted), 1e-5);
    }
}

#[test]
fn the_built_in_form_agrees_too() {
    let _device = device();
    for (queries, positions) in [(1, [9, 9]), (6, [9, 9]), (6, [3, 12])] {
        for window in [None, Some(4), Some(50)] {
            let case = Case { window, sinks: true, ..Case::new([6, 2, 24, queries], &positions) };
            let mut x = Inputs::new(&case);
            let wanted = x.wanted();
            // It multiplies what is masked by 0.
            let defined = |x: &Array| {
                let is_nan = x.eq(x).unwrap().logical_not().unwrap();
                is_nan.select(&Array::scalar(0.0, x.dtype()).unwrap(), x).unwrap()
            };
            (x.keys, x.values) = (defined(&x.keys), defined(&x.values));
            let masks = Masks::default();
            let a = x.attention(&masks);
            close(&format!("{case:?}"), &a.built_in().unwrap(), &wanted, 1e-5);
            let (keys, values, table) = x.in_blocks(4);
            let (keys, values) = (&defined(&keys), &defined(&values));
            let masks = Masks::default();
            let kv = Kv::Blocks { keys, values, table: &table };
            let found = Attention { kv, masks: &masks, ..a }.built_in().unwrap();
            close(&format!("blocks, {case:?}"), &found, &wanted, 1e-5);
        }
    }
}

#[test]
fn where_scores_are_rounded_results_are_off_by_as_much() {
    let _device = device();
    // MLX has a kernel for no such size and rounds scores, by at most `unit` of the largest.
    for (dtype, unit) in [(Dtype::Bf16, 1.0 / 256.0), (Dtype::F16, 1.0 / 2048.0)] {
        let x = Inputs::new(&Case { dtype, value_dim: 40, ..Case::new([6, 2, 37, 20], &[90]) });
        let f32s = |x: &Array| x.astype(Dtype::F32).unwrap();
        let q = f32s(&x.q).reshape(&[1, 2, 60, 37]).unwrap();
        let keys = f32s(&x.keys.slice_axis(2, 0..110).unwrap()).swap_axes(2, 3).unwrap();
        let scores = q.matmul(&keys).unwrap().scale(SCALE).unwrap().to_f32_vec().unwrap();
        let largest = f64::from(scores.iter().fold(0.0f32, |most, score| most.max(score.abs())));
        let masks = Masks::default();
        let found = x.attention(&masks).built_in().unwrap();
        close(&format!("{dtype}"), &found, &x.wanted(), bound(dtype) + unit * largest);
    }
}

#[test]
fn bad_inputs_are_refused_with_a_reason() {
    let _device = device();
    let x = Inputs::new(&Case { sinks: true, ..Case::new([6, 2, 24, 5], &[3, 3]) });
    let masks = Masks::default();
    let (a, keys, values) = (x.attention(&masks), &x.keys, &x.values);
    let rows = |keys, values, first_key| Kv::Rows { keys, values, first_key };
    let flat = x.q.reshape(&[-1]).unwrap();
    let ints = x.q.astype(Dtype::I32).unwrap();
    let none = x.q.slice_axis(2, 0..0).unwrap();
    let half = x.values.astype(Dtype::Bf16).unwrap();
    let short = x.keys.slice_axis(2, 0..9).unwrap();
    let narrow = x.keys.slice_axis(3, 0..23).unwrap();
    let one_row = x.keys.slice_axis(0, 0..1).unwrap();
    let five = x.q.slice_axis(1, 0..5).unwrap();
    let few_sinks = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    let (pool_keys, pool_values, table) = x.in_blocks(4);
    let blocks = |table| Kv::Blocks { keys: &pool_keys, values: &pool_values, table };
    let signed = table.astype(Dtype::I32).unwrap();
    let one_table = table.slice_axis(0, 0..1).unwrap();
    let short_table = table.slice_axis(1, 0..1).unwrap();
    let floats = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    let three = Array::from_slice(&[1, 2, 3], &[3]).unwrap();
    let at = |positions, lengths| Positions::Rows { positions, lengths };
    for (a, reason) in [
        (Attention { q: &flat, ..a }, "q must have 4 dimensions"),
        (Attention { q: &ints, ..a }, "q must be f32, f16 or bf16"),
        (Attention { q: &none, ..a }, "no dimension of q may be 0"),
        (Attention { q: &five, ..a }, "2 heads do not divide the 5 of q"),
        (Attention { kv: rows(&narrow, values, 0), ..a }, "keys must have shape [2, 2, 11, 24]"),
        (Attention { kv: rows(&one_row, &one_row, 0), ..a }, "keys must have shape [2, 2, 11, 24]"),
        (Attention { kv: rows(keys, &short, 0), ..a }, "values must have shape [2, 2, 11, 24]"),
        (Attention { kv: rows(keys, &half, 0), ..a }, "values must be f32"),
        (Attention { kv: rows(keys, values, -1), ..a }, "first_key is -1, which is no position"),
        (
            Attention { kv: rows(keys, values, 4), ..a },
            "queries at 3..8 do not lie among the keys at 4..15",
        ),
        (
            Attention { positions: Positions::Same(7), ..a },
            "queries at 7..12 do not lie among the keys at 0..11",
        ),
        (Attention { positions: at(&floats, None), ..a }, "positions must be i32"),
        (Attention { positions: at(&three, None), ..a }, "positions must have shape [2]"),
        (Attention { positions: at(&x.positions, Some(&floats)), ..a }, "lengths must be i32"),
        (Attention { positions: at(&x.positions, Some(&three)), ..a }, "lengths must have shape"),
        (Attention { window: Some(0), ..a }, "a window of 0 keys sees nothing"),
        (Attention { sinks: Some(&few_sinks), ..a }, "sinks must have shape [6]"),
        (Attention { kv: blocks(&signed), ..a }, "table must be u32"),
        (Attention { kv: blocks(&one_table), ..a }, "table must have shape [2, 3]"),
        (
            Attention { kv: blocks(&short_table), ..a },
            "queries at 3..8 do not lie among the keys at 0..4",
        ),
    ] {
        for found in [a.run(), a.reference(), a.built_in()] {
            let message = found.unwrap_err().to_string();
            assert!(message.contains(reason), "{message}");
        }
    }
}

#[test]
fn what_arrays_say_is_checked_when_they_are_read() {
    let device = device();
    if device.backend() != mlx::Backend::Cpu {
        return;
    }
    let x = Inputs::new(&Case::new([6, 2, 24, 5], &[3, 60]));
    let masks = Masks::default();
    let a = x.attention(&masks);
    let far = Array::from_slice(&[3, 64], &[2]).unwrap();
    let before = Array::from_slice(&[-1, 4], &[2]).unwrap();
    let (keys, values, _) = x.in_blocks(4);
    let table = Array::full(&[2, 17], 77.0, Dtype::U32).unwrap();
    let kv = Kv::Blocks { keys: &keys, values: &values, table: &table };
    let at = |positions| Positions::Rows { positions, lengths: None };
    for (a, reason) in [
        (
            Attention { positions: at(&far), ..a },
            "row 1: queries at 64..69 do not lie among the keys at 0..68",
        ),
        (
            Attention { positions: at(&before), ..a },
            "row 0: queries at -1..4 do not lie among the keys at 0..68",
        ),
        (Attention { kv, ..a }, "row 0's table names block 77 for tokens 0.., but the pool has"),
    ] {
        let message = a.run().unwrap().eval().unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}
