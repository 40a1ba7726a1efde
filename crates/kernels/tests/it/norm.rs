//! Norms: the backend's form against the twin, and against sums in f64.

use kernels::norm::{self, reference};
use mlx::{Array, Dtype};

use crate::{Values, bound, close, close_to_f64, device, doubles, view};

const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

struct Inputs {
    x: Array,
    y: Array,
    gate: Array,
    weight: Array,
}

impl Inputs {
    fn new(shape: &[i32], dtype: Dtype, weight: Dtype) -> Self {
        let mut values = Values(shape.iter().sum::<i32>() as u64);
        let mut cast = |scale: f32| values.array(shape, |x| scale * x).astype(dtype).unwrap();
        let (x, y, gate) = (cast(3.0), cast(0.5), cast(4.0));
        let width = *shape.last().unwrap();
        let weight = values.array(&[width], |x| 1.0 + 0.5 * x).astype(weight).unwrap();
        Self { x, y, gate, weight }
    }
}

/// The norm of rows of `width` elements.
fn in_f64(x: &[f64], weight: Option<&[f64]>, width: usize, eps: f64) -> Vec<f64> {
    let norm = |row: &[f64]| {
        let factor = (row.iter().map(|x| x * x).sum::<f64>() / width as f64 + eps).sqrt().recip();
        let weigh = |(i, x): (usize, &f64)| x * factor * weight.map_or(1.0, |w| w[i]);
        row.iter().enumerate().map(weigh).collect::<Vec<_>>()
    };
    x.chunks(width).flat_map(norm).collect()
}

#[track_caller]
fn check(what: &str, i: &Inputs) {
    let (eps, weight) = (1e-3, Some(&i.weight));
    let dtype = i.x.dtype();
    let compare = |op: &str, found: &Array, wanted: &Array| {
        assert_eq!(found.dtype(), dtype, "{what}, {op}");
        // The twin rounds a gated norm twice.
        let times = if op == "gated" { 2.0 } else { 1.0 };
        let bound = if dtype == Dtype::F32 { 1e-6 } else { times * bound(dtype) };
        close(&format!("{what}, {op}"), found, wanted, bound);
    };
    for weight in [weight, None] {
        let wanted = reference::rms_norm(&i.x, weight, eps).unwrap();
        compare("norm", &norm::rms_norm(&i.x, weight, eps).unwrap(), &wanted);
        let wanted = reference::add_rms_norm(&i.x, &i.y, weight, eps).unwrap();
        let found = norm::add_rms_norm(&i.x, &i.y, weight, eps).unwrap();
        compare("norm of the sum", &found.normed, &wanted.normed);
        assert_eq!(found.sum.to_bytes().unwrap(), wanted.sum.to_bytes().unwrap(), "{what}");
        let wanted = reference::gated_rms_norm(&i.x, &i.gate, weight, eps).unwrap();
        compare("gated", &norm::gated_rms_norm(&i.x, &i.gate, weight, eps).unwrap(), &wanted);
    }
    let wanted = reference::unit(&i.x, eps, 0.25).unwrap();
    compare("unit", &norm::unit(&i.x, eps, 0.25).unwrap(), &wanted);
}

const SHAPES: [&[i32]; 7] =
    [&[7], &[1, 1, 1024], &[2, 3, 33], &[5, 1], &[3, 2, 5, 128], &[37, 1000], &[2, 8191]];

#[test]
fn every_size_and_dtype_agrees_with_the_twin() {
    let _device = device();
    for shape in SHAPES {
        for dtype in FLOATS {
            for weight in FLOATS {
                let what = format!("{shape:?}, {dtype}, weight {weight}");
                check(&what, &Inputs::new(shape, dtype, weight));
            }
        }
    }
}

#[test]
fn in_f32_norms_are_those_of_f64() {
    let _device = device();
    for shape in SHAPES {
        let i = Inputs::new(shape, Dtype::F32, Dtype::F32);
        let (x, weight) = (doubles(&i.x), doubles(&i.weight));
        let width = weight.len();
        let wanted = in_f64(&x, Some(&weight), width, 1e-5);
        let found = norm::rms_norm(&i.x, Some(&i.weight), 1e-5).unwrap();
        close_to_f64("norm", &found, &wanted, 3e-7);
        let z = doubles(&i.gate);
        let gated = wanted.iter().zip(z).map(|(x, z)| x * z / (1.0 + (-z).exp()));
        let found = norm::gated_rms_norm(&i.x, &i.gate, Some(&i.weight), 1e-5).unwrap();
        close_to_f64("gated", &found, &gated.collect::<Vec<_>>(), 5e-7);
        let sum = doubles(&i.x.add(&i.y).unwrap());
        let found = norm::add_rms_norm(&i.x, &i.y, None, 1e-5).unwrap();
        close_to_f64("sum", &found.normed, &in_f64(&sum, None, width, 1e-5), 3e-7);
        let unit = in_f64(&x, None, width, 1e-5).iter().map(|x| 0.3 * x).collect::<Vec<_>>();
        close_to_f64("unit", &norm::unit(&i.x, 1e-5, 0.3).unwrap(), &unit, 3e-7);
    }
}

#[test]
fn inputs_need_not_lie_compactly() {
    let _device = device();
    for dtype in FLOATS {
        for (packed, begin) in [(true, 0), (true, 3), (false, 1)] {
            let i = Inputs::new(&[3, 5, 45], dtype, dtype);
            let spread = |x: &Array| view(x, packed, begin);
            let weight = view(&i.weight, packed, begin);
            let views = Inputs { x: spread(&i.x), y: spread(&i.y), gate: spread(&i.gate), weight };
            check(&format!("views, {dtype}, {packed}"), &views);
            let turned = |x: &Array| x.swap_axes(0, 1).unwrap();
            let (x, y, gate) = (turned(&i.x), turned(&i.y), turned(&i.gate));
            check("turned", &Inputs { x, y, gate, weight: i.weight });
        }
    }
}

#[test]
fn a_sum_too_large_for_f16_is_infinite_as_in_the_twin() {
    let _device = device();
    let x = Array::full(&[2, 9], 50_000.0, Dtype::F16).unwrap();
    for form in [norm::add_rms_norm, reference::add_rms_norm] {
        let sum = form(&x, &x, None, 1e-6).unwrap().sum;
        assert!(sum.to_f32_vec().unwrap().iter().all(|x| *x == f32::INFINITY));
    }
}

#[test]
fn bad_inputs_are_refused_with_a_reason() {
    let _device = device();
    let i = Inputs::new(&[2, 3, 6], Dtype::F32, Dtype::F32);
    let (x, w) = (&i.x, Some(&i.weight));
    let number = Array::scalar(1.0, Dtype::F32).unwrap();
    let none = x.slice_axis(1, 0..0).unwrap();
    let ints = x.astype(Dtype::I32).unwrap();
    let half = x.astype(Dtype::Bf16).unwrap();
    let short = x.slice_axis(2, 0..5).unwrap();
    for (found, reason) in [
        (norm::rms_norm(&ints, w, 1e-6), "x must be f32, f16 or bf16"),
        (norm::rms_norm(&number, None, 1e-6), "x must have a dimension"),
        (norm::rms_norm(&none, w, 1e-6), "no dimension of x may be 0"),
        (norm::rms_norm(&short, w, 1e-6), "weight must have shape [5]"),
        (norm::rms_norm(x, Some(&ints), 1e-6), "weight must be f32, f16 or bf16"),
        (norm::add_rms_norm(x, &half, w, 1e-6).map(|a| a.sum), "y must be f32"),
        (norm::add_rms_norm(x, &short, w, 1e-6).map(|a| a.sum), "y must have shape [2, 3, 6]"),
        (norm::gated_rms_norm(x, &short, w, 1e-6), "gate must have shape [2, 3, 6]"),
        (norm::gated_rms_norm(x, &ints, w, 1e-6), "gate must be f32, f16 or bf16"),
        (norm::unit(&ints, 1e-6, 2.0), "x must be f32, f16 or bf16"),
    ] {
        let message = found.unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}
