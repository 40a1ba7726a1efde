//! Turned heads: the backend's form against the twin, and against sines in f64.

use kernels::Positions;
use kernels::rope::{HeadNorm, Heads, Rotation, turn_both};
use mlx::{Array, Dtype};

use crate::{Values, bound, close, close_to_f64, device, doubles, view};

const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

/// Sizes of heads in groups.
#[derive(Clone, Copy, Debug)]
struct Shape {
    rows: i32,
    tokens: i32,
    n: i32,
    group: i32,
    begin: i32,
    dim: i32,
    turned: i32,
}

const SHAPES: [Shape; 6] = [
    Shape { rows: 1, tokens: 1, n: 3, group: 128, begin: 0, dim: 128, turned: 128 },
    Shape { rows: 3, tokens: 2, n: 5, group: 20, begin: 0, dim: 10, turned: 10 },
    Shape { rows: 2, tokens: 7, n: 3, group: 13, begin: 2, dim: 11, turned: 6 },
    Shape { rows: 2, tokens: 3, n: 1, group: 40, begin: 24, dim: 16, turned: 16 },
    Shape { rows: 1, tokens: 67, n: 4, group: 66, begin: 1, dim: 65, turned: 32 },
    Shape { rows: 4, tokens: 1, n: 2, group: 9, begin: 0, dim: 9, turned: 2 },
];

struct Inputs {
    x: Array,
    weight: Array,
    rotation: Rotation,
    shape: Shape,
}

fn at_rows(positions: &Array) -> Positions<'_> {
    Positions::Rows { positions, lengths: None }
}

/// Powers of two: their reciprocals, which MLX takes, are exact.
fn frequencies(n: i32) -> Vec<f64> {
    (0..n / 2).map(|i| 0.75f64.powi(i % 3) * 0.5f64.powi(i / 3)).collect()
}

impl Inputs {
    fn new(shape: Shape, dtype: Dtype, traditional: bool) -> Self {
        let s = shape;
        let mut values = Values((s.tokens * 10 + s.dim) as u64);
        let x = values.array(&[s.rows, s.tokens, s.n * s.group], |x| 2.0 * x);
        let weight = values.array(&[s.dim], |x| 1.0 + 0.5 * x);
        Self {
            x: x.astype(dtype).unwrap(),
            weight,
            rotation: Rotation::frequencies(&frequencies(s.turned), traditional).unwrap(),
            shape,
        }
    }

    fn heads(&self) -> Heads<'_> {
        Heads {
            x: &self.x,
            n_heads: self.shape.n,
            begin: self.shape.begin,
            head_dim: self.shape.dim,
            norm: None,
            rotation: &self.rotation,
            positions: Positions::Same(0),
        }
    }

    fn norm(&self) -> Option<HeadNorm<'_>> {
        Some(HeadNorm { weight: &self.weight, eps: 1e-3 })
    }

    /// All of it in f64, but for the angles.
    fn in_f64(&self, positions: &[i32], traditional: bool, factor: f64) -> Vec<f64> {
        let s = self.shape;
        let (x, weight, turns) = (doubles(&self.x), doubles(&self.weight), frequencies(s.turned));
        let mut out = Vec::new();
        for (b, h, t) in (0..s.rows)
            .flat_map(|b| (0..s.n).flat_map(move |h| (0..s.tokens).map(move |t| (b, h, t))))
        {
            let from = (((b * s.tokens + t) * s.n + h) * s.group + s.begin) as usize;
            let head = &x[from..from + s.dim as usize];
            let mean = head.iter().map(|x| x * x).sum::<f64>() / f64::from(s.dim);
            let scale = (mean + 1e-3).sqrt().recip();
            let mut head = head.iter().zip(&weight).map(|(x, w)| x * scale * w).collect::<Vec<_>>();
            let position = (positions[b as usize] + t) as f32;
            for (i, f) in turns.iter().enumerate() {
                let half = s.turned as usize / 2;
                let (i, j) = if traditional { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let (sin, cos) = f64::from(position * *f as f32).sin_cos();
                let (a, b) = (head[i], head[j]);
                head[i] = (a * cos - b * sin) * factor;
                head[j] = (b * cos + a * sin) * factor;
            }
            out.extend(head);
        }
        out
    }
}

/// The twin's angles are MLX's own.
fn tolerance(dtype: Dtype) -> f64 {
    if dtype == Dtype::F32 { 1e-5 } else { bound(dtype) }
}

#[track_caller]
fn same(what: &str, heads: &Heads<'_>) {
    let (found, wanted) = (heads.turn().unwrap(), heads.reference().unwrap());
    assert_eq!(found.dtype(), heads.x.dtype(), "{what}");
    close(what, &found, &wanted, tolerance(heads.x.dtype()));
}

#[test]
fn every_size_and_dtype_agrees_with_the_twin() {
    let _device = device();
    for shape in SHAPES {
        for (dtype, traditional) in FLOATS.into_iter().flat_map(|d| [(d, false), (d, true)]) {
            let i = Inputs::new(shape, dtype, traditional);
            let what = format!("{shape:?}, {dtype}, {traditional}");
            let firsts = (0..shape.rows).map(|b| 5 * b + 2).collect::<Vec<_>>();
            let rows = Array::from_slice(&firsts, &[shape.rows]).unwrap();
            for positions in [Positions::Same(0), Positions::Same(37), at_rows(&rows)] {
                let plain = Heads { positions, ..i.heads() };
                same(&what, &plain);
                same(&what, &Heads { norm: i.norm(), ..plain });
                let larger = i.rotation.magnified(1.25, shape.dim).unwrap();
                same(&what, &Heads { norm: i.norm(), rotation: &larger, ..plain });
            }
        }
    }
}

#[test]
fn in_f32_heads_turn_as_in_f64_also_far_from_the_start() {
    let _device = device();
    for shape in SHAPES {
        for traditional in [false, true] {
            for first in [0, 1000, 130_000] {
                let i = Inputs::new(shape, Dtype::F32, traditional);
                let firsts = (0..shape.rows).map(|b| first + 3 * b).collect::<Vec<_>>();
                let rows = Array::from_slice(&firsts, &[shape.rows]).unwrap();
                let positions = at_rows(&rows);
                let rotation = &i.rotation.magnified(1.5, shape.dim).unwrap();
                let heads = Heads { norm: i.norm(), positions, rotation, ..i.heads() };
                let wanted = i.in_f64(&firsts, traditional, 1.5);
                close_to_f64(&format!("{shape:?}"), &heads.turn().unwrap(), &wanted, 5e-7);
            }
        }
    }
}

#[test]
fn powers_of_a_base_turn_as_the_list_of_them() {
    let _device = device();
    let i = Inputs::new(SHAPES[4], Dtype::F32, false);
    let list = (0..16).map(|i| 10_000f64.powf(-2.0 * f64::from(i) / 32.0)).collect::<Vec<_>>();
    let listed = Rotation::frequencies(&list, false).unwrap();
    let powers = Rotation::powers(10_000.0, 32, false).unwrap();
    assert_eq!((listed.n_turned(), powers.n_turned()), (32, 32));
    let positions = Positions::Same(300);
    let listed = Heads { rotation: &listed, positions, ..i.heads() };
    let powers = Heads { rotation: &powers, positions, ..i.heads() };
    // MLX computes powers in f32, which shows in angles of hundreds of radians.
    close("forms", &powers.turn().unwrap(), &listed.turn().unwrap(), 1e-6);
    close("twin", &powers.reference().unwrap(), &listed.turn().unwrap(), 1e-3);
}

#[test]
fn inputs_need_not_lie_compactly() {
    let _device = device();
    for dtype in FLOATS {
        for (packed, begin) in [(true, 0), (true, 3), (false, 1)] {
            let mut i = Inputs::new(SHAPES[2], dtype, false);
            i.x = view(&i.x, packed, begin);
            i.weight = view(&i.weight, packed, begin);
            let rows = view(&Array::from_slice(&[4, 9], &[2]).unwrap(), packed, begin);
            let positions = at_rows(&rows);
            same("views", &Heads { norm: i.norm(), positions, ..i.heads() });
        }
    }
}

#[test]
fn bad_inputs_are_refused_with_a_reason() {
    let _device = device();
    let i = Inputs::new(SHAPES[2], Dtype::F32, false);
    let heads = i.heads();
    let flat = i.x.reshape(&[-1]).unwrap();
    let ints = i.x.astype(Dtype::I32).unwrap();
    let none = i.x.slice_axis(1, 0..0).unwrap();
    let short = i.weight.slice_axis(0, 0..10).unwrap();
    let norm = Some(HeadNorm { weight: &short, eps: 1e-6 });
    let floats = Array::zeros(&[2], Dtype::F32).unwrap();
    let many = Array::zeros(&[3], Dtype::I32).unwrap();
    let wide = Rotation::powers(1e4, 12, false).unwrap();
    let other = i.rotation.magnified(2.0, 10).unwrap();
    for (heads, reason) in [
        (Heads { x: &flat, ..heads }, "x must have 3 dimensions"),
        (Heads { x: &ints, ..heads }, "x must be f32, f16 or bf16"),
        (Heads { x: &none, ..heads }, "no dimension of x may be 0"),
        (Heads { n_heads: 4, ..heads }, "4 heads do not divide 39 elements"),
        (Heads { n_heads: 0, ..heads }, "0 heads do not divide 39 elements"),
        (Heads { begin: 3, ..heads }, "11 elements from 3 on do not fit 13"),
        (Heads { begin: -1, ..heads }, "11 elements from -1 on do not fit 13"),
        (Heads { head_dim: 14, ..heads }, "14 elements from 2 on do not fit 13"),
        (Heads { rotation: &wide, ..heads }, "12 elements of a head of 11 cannot turn"),
        (Heads { rotation: &other, ..heads }, "factors for 10 elements do not fit 11"),
        (Heads { norm, ..heads }, "weight must have shape [11]"),
        (Heads { positions: at_rows(&floats), ..heads }, "positions must be i32"),
        (Heads { positions: at_rows(&many), ..heads }, "positions must have shape [2]"),
    ] {
        for found in [heads.turn(), heads.reference()] {
            let message = found.unwrap_err().to_string();
            assert!(message.contains(reason), "{message}");
        }
    }
    for (found, reason) in [
        (Rotation::powers(1e4, 7, false), "7 elements do not turn in pairs"),
        (Rotation::powers(1e4, 0, false), "0 elements do not turn in pairs"),
        (Rotation::frequencies(&[], false), "frequencies must be finite and not 0, one or more"),
        (Rotation::frequencies(&[1.0, 0.0], true), "frequencies must be finite and not 0"),
    ] {
        let message = found.unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn two_arrays_turn_together_as_each_of_them_alone() {
    let _device = device();
    let shapes = [
        Shape { rows: 3, tokens: 2, n: 5, group: 20, begin: 0, dim: 10, turned: 10 },
        Shape { rows: 3, tokens: 2, n: 4, group: 37, begin: 3, dim: 33, turned: 8 },
    ];
    let begins = Array::from_slice(&[7, 0, 1000], &[3]).unwrap();
    for dtype in FLOATS {
        let [a, b] = [Inputs::new(shapes[0], dtype, false), Inputs::new(shapes[1], dtype, true)];
        let a_heads = Heads { norm: a.norm(), positions: at_rows(&begins), ..a.heads() };
        // At the positions of the first one, whatever its own.
        let found = turn_both(&a_heads, &b.heads()).unwrap();
        let b_heads = Heads { positions: at_rows(&begins), ..b.heads() };
        for (heads, found) in [a_heads, b_heads].iter().zip(&found) {
            close(&format!("{dtype}"), found, &heads.reference().unwrap(), bound(dtype));
        }
    }
}
