//! Activations: the backend's form against the twin, and against f64.

use kernels::activation::{self, reference};
use mlx::{Array, Dtype, Result};

use crate::{Values, bound, close, close_to_f64, device, doubles, view};

const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

/// An operation: name, fast form, twin, one pair of elements in f64.
type Op = (
    &'static str,
    fn(&Array, &Array) -> Result<Array>,
    fn(&Array, &Array) -> Result<Array>,
    fn(f64, f64) -> f64,
);

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn gelu(x: f64) -> f64 {
    let t = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + t.tanh())
}

const OPS: [Op; 4] = [
    ("swiglu", activation::swiglu, reference::swiglu, |g, u| g * sigmoid(g) * u),
    ("geglu", activation::geglu, reference::geglu, |g, u| gelu(g) * u),
    (
        "clamped_swiglu",
        |g, u| activation::clamped_swiglu(g, u, 1.75, 2.5),
        |g, u| reference::clamped_swiglu(g, u, 1.75, 2.5),
        |g, u| (u.clamp(-2.5, 2.5) + 1.0) * g.min(2.5) * sigmoid(1.75 * g.min(2.5)),
    ),
    (
        "sigmoid_gated",
        |g, u| activation::sigmoid_gated(u, g),
        |g, u| reference::sigmoid_gated(u, g),
        |g, u| u * sigmoid(g),
    ),
];

fn pair(shape: &[i32], dtype: Dtype) -> [Array; 2] {
    let mut values = Values(shape.iter().sum::<i32>() as u64);
    [6.0, 4.0].map(|scale| values.array(shape, |x| scale * x).astype(dtype).unwrap())
}

const SHAPES: [&[i32]; 6] =
    [&[5], &[1, 1, 3072], &[3, 2, 1025], &[7, 1, 2, 33], &[41, 1], &[19, 2049]];

#[test]
fn every_size_and_dtype_agrees_with_the_twin_and_with_f64() {
    let _device = device();
    for (name, form, twin, function) in OPS {
        for (shape, dtype) in SHAPES.into_iter().flat_map(|s| FLOATS.map(|d| (s, d))) {
            let what = format!("{name} {shape:?} {dtype}");
            let [gate, up] = pair(shape, dtype);
            let found = form(&gate, &up).unwrap();
            assert_eq!((found.shape(), found.dtype()), (shape, dtype), "{what}");
            let near = if dtype == Dtype::F32 { 1e-6 } else { bound(dtype) };
            // The twin rounds after every operation.
            let twice = if dtype == Dtype::F32 { near } else { 2.0 * near };
            close(&what, &found, &twin(&gate, &up).unwrap(), twice);
            let pairs = doubles(&gate).into_iter().zip(doubles(&up));
            let wanted = pairs.map(|(g, u)| function(g, u)).collect::<Vec<_>>();
            close_to_f64(&what, &found, &wanted, near);
        }
    }
}

#[test]
fn far_from_0_functions_reach_their_limits() {
    let _device = device();
    let far = [-1e4f32, -200.0, -90.0, 90.0, 200.0, 1e4];
    let gate = Array::from_slice(&far, &[6]).unwrap();
    let up = Array::full(&[6], 2.0, Dtype::F32).unwrap();
    for (name, form, _, function) in OPS {
        let found = form(&gate, &up).unwrap().to_f32_vec().unwrap();
        for (found, gate) in found.iter().zip(far) {
            let wanted = function(f64::from(gate), 2.0);
            let off = (f64::from(*found) - wanted).abs();
            assert!(off <= 1e-6 * wanted.abs() + 1e-30, "{name} {gate}: {found} {wanted}");
        }
    }
}

#[test]
fn inputs_need_not_lie_compactly() {
    let _device = device();
    for (name, form, twin, _) in OPS {
        for (packed, begin) in [(true, 0), (true, 3), (false, 1)] {
            let [gate, up] = pair(&[3, 5, 45], Dtype::F32).map(|x| view(&x, packed, begin));
            close(name, &form(&gate, &up).unwrap(), &twin(&gate, &up).unwrap(), 1e-6);
        }
    }
}

#[test]
fn a_gate_may_have_its_last_axis_parted() {
    let _device = device();
    for dtype in FLOATS {
        let mut values = Values(5);
        // [B, L, n, 2D]: what is gated stands before each gate.
        let both = values.array(&[2, 3, 5, 14], |x| 3.0 * x).astype(dtype).unwrap();
        let gate = both.slice_axis(3, 7..14).unwrap();
        let x = both.slice_axis(3, 0..7).unwrap().reshape(&[2, 3, 35]).unwrap();
        let found = activation::sigmoid_gated(&x, &gate).unwrap();
        close("parted", &found, &reference::sigmoid_gated(&x, &gate).unwrap(), bound(dtype));
    }
}

#[test]
fn gates_stand_behind_their_heads() {
    let _device = device();
    for dtype in FLOATS {
        for (outer, heads, dim) in [(&[2, 3][..], 5, 16), (&[4], 3, 8), (&[1, 2], 3, 7)] {
            let mut values = Values(heads as u64);
            let mut floats = |width: i32| {
                let shape = [outer, &[width]].concat();
                values.array(&shape, |x| 3.0 * x).astype(dtype).unwrap()
            };
            let (x, queries) = (floats(heads * dim), floats(2 * heads * dim));
            let found = activation::sigmoid_gated_behind(&x, &queries, dim).unwrap();
            let wanted = reference::sigmoid_gated_behind(&x, &queries, dim).unwrap();
            close(&format!("{outer:?}, {heads} of {dim}"), &found, &wanted, bound(dtype));
        }
    }
}

#[test]
fn bad_inputs_are_refused_with_a_reason() {
    let _device = device();
    let [gate, up] = pair(&[2, 3, 6], Dtype::F32);
    let half = gate.astype(Dtype::Bf16).unwrap();
    let ints = gate.astype(Dtype::I32).unwrap();
    let none = gate.slice_axis(1, 0..0).unwrap();
    let parted = gate.reshape(&[2, 3, 2, 3]).unwrap();
    let number = Array::scalar(1.0, Dtype::F32).unwrap();
    for (found, reason) in [
        (activation::swiglu(&ints, &up), "gate must be f32, f16 or bf16"),
        (activation::swiglu(&half, &up), "the other array must be bf16"),
        (activation::geglu(&gate, &none), "shapes do not fit"),
        (activation::geglu(&parted, &up), "shapes do not fit"),
        (activation::sigmoid_gated(&parted, &gate), "shapes do not fit"),
        (activation::sigmoid_gated_behind(&gate, &up, 3), "shapes do not fit"),
        (activation::sigmoid_gated_behind(&half, &up, 3), "queries must be bf16"),
        (activation::swiglu(&none, &none), "there must be an element"),
        (activation::swiglu(&number, &number), "there must be an element"),
        (activation::clamped_swiglu(&gate, &up, 1.7, -1.0), "-1 is no limit"),
        (activation::clamped_swiglu(&gate, &up, 1.7, f32::NAN), "NaN is no limit"),
    ] {
        let message = found.unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}
