//! Every form of every operation against its twin. Built against the CPU library, the program also
//! runs with CUDA's, and then holds CUDA's forms against the same twins.
#![allow(clippy::unwrap_used)]

mod activation;
mod attention;
mod blocks;
mod causal_conv;
mod dense;
mod embedding;
mod experts;
mod gated_delta;
mod grouped;
mod joined;
mod norm;
mod quantized;
mod rope;
mod router;
mod sampling;
mod self_attention;
mod swap;

use mlx::{Array, CpuKernel, Device, Dtype};

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

/// The same against f64, for which `values` are a row-major list.
#[track_caller]
fn close_to_f64(what: &str, found: &Array, wanted: &[f64], bound: f64) {
    let found = found.to_f32_vec().unwrap();
    assert_eq!(found.len(), wanted.len(), "{what}");
    let off = found.iter().zip(wanted).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>();
    let size = wanted.iter().map(|b| b * b).sum::<f64>();
    assert!(off.sqrt() <= bound * size.sqrt().max(1e-6), "{what}: {:.3e} off", off.sqrt());
}

/// The elements in f64.
fn doubles(x: &Array) -> Vec<f64> {
    x.to_f32_vec().unwrap().into_iter().map(f64::from).collect()
}

/// The same array as a view: every second element of a larger one in each axis but the last, whose
/// elements lie one after another if `packed`, and `begin` elements into it.
fn view(x: &Array, packed: bool, begin: i32) -> Array {
    let shape = x.shape();
    let last = shape.len() - 1;
    let step = |i: usize| if packed && i == last { 1 } else { 2 };
    let strides = (0..shape.len()).map(step).collect::<Vec<_>>();
    let first = (0..shape.len()).map(|i| if i == last { begin } else { 0 }).collect::<Vec<_>>();
    let stop = (0..shape.len()).map(|i| first[i] + (shape[i] - 1) * strides[i] + 1);
    let stop = stop.collect::<Vec<_>>();
    let size = stop.iter().map(|n| n + 3).collect::<Vec<_>>();
    let room = Array::full(&size, 7.0, x.dtype()).unwrap();
    // Steps are written one axis at a time: MLX updates whole blocks.
    let mut spread = x.clone();
    for (axis, &step) in strides.iter().enumerate() {
        if step == 2 {
            let axis = axis as i32;
            let twice = mlx::stack(&[&spread, &spread], axis + 1).unwrap();
            let mut wide = spread.shape().to_vec();
            wide[axis as usize] *= 2;
            let n = wide[axis as usize] - 1;
            spread = twice.reshape(&wide).unwrap().slice_axis(axis, 0..n).unwrap();
        }
    }
    let room = room.slice_update(&spread, &first, &stop).unwrap();
    let view = room.slice_strided(&first, &stop, &strides).unwrap();
    assert_eq!(view.shape(), shape);
    view
}

/// Where the evaluated elements of an array lie that nothing else holds; and the array.
fn address(x: Array) -> (usize, Array) {
    let (send, receive) = std::sync::mpsc::channel();
    let send = std::sync::Mutex::new(send);
    let seen = CpuKernel::update(x, &[], move |_, out| {
        let send = send.lock().map_err(|e| e.to_string())?;
        send.send(out.bytes_mut().as_ptr() as usize).map_err(|e| e.to_string())
    });
    let seen = seen.unwrap();
    seen.eval().unwrap();
    (receive.recv().unwrap(), seen)
}

/// The bound for results of inputs of this dtype.
fn bound(dtype: Dtype) -> f64 {
    if dtype == Dtype::F32 { 1e-4 } else { 5e-3 }
}
