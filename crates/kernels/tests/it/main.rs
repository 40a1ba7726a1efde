//! Every form of every operation against its twin. Built against the CPU library, the program also
//! runs with CUDA's, and then holds CUDA's forms against the same twins.
#![allow(clippy::unwrap_used)]

mod attention;
mod causal_conv;
mod experts;
mod gated_delta;
mod router;

use mlx::{Array, Device, Dtype};

fn device() -> Device {
    Device::open().expect("the CPU backend is always there")
}

/// Reproducible values, evenly spread in −1..1.
struct Values(u64);

impl Values {
    fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn array(&mut self, shape: &[i32], value: impl Fn(f32) -> f32) -> Array {
        let n = shape.iter().product::<i32>();
        let values = (0..n).map(|_| value(self.next())).collect::<Vec<_>>();
        Array::from_slice(&values, shape).unwrap()
    }
}

/// ‖found − wanted‖ ≤ `bound` · ‖wanted‖, in f64, with equal shapes.
#[track_caller]
fn close(what: &str, found: &Array, wanted: &Array, bound: f64) {
    assert_eq!(found.shape(), wanted.shape(), "{what}");
    let (a, b) = (found.to_f32_vec().unwrap(), wanted.to_f32_vec().unwrap());
    let pairs = || a.iter().zip(&b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    let off = pairs().map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let size = pairs().map(|(_, b)| b * b).sum::<f64>().sqrt();
    assert!(off <= bound * size.max(1e-6), "{what}: {off:.3e} off, of {size:.3e}");
}

/// The bound for results of inputs of this dtype.
fn bound(dtype: Dtype) -> f64 {
    if dtype == Dtype::F32 { 1e-4 } else { 5e-3 }
}
