//! What one node of MLX's graph costs the host: building it, and running it.
//!
//! `cargo bench -p mlx --bench graph_cost` prints one line per kind of node; `cargo test` runs it
//! small. The hash of the results shows that two versions computed the same.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use mlx::{Array, Attend, CpuKernel, Device, Dtype, Rope};

fn main() {
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let n_nodes = if is_bench { 2000 } else { 20 };
    let n_runs = if is_bench { 7 } else { 1 };
    let device = Device::open().unwrap();
    println!(
        "{}, MLX {}, {n_nodes} nodes, best of {n_runs}",
        device.backend(),
        mlx::PINNED_VERSION
    );
    println!("{:<28} {:>14} {:>14}  hash", "node", "build us/node", "run us/node");
    let mut values = Vec::new();
    for (name, step, start) in kinds() {
        let (build, run, hash) = (0..n_runs)
            .map(|_| measure(&start, step, n_nodes))
            .reduce(|a, b| (a.0.min(b.0), a.1.min(b.1), b.2))
            .unwrap();
        println!("{name:<28} {build:>14.2} {run:>14.2}  {hash:016x}");
        values.push(hash);
    }
    assert!(values.iter().all(|hash| *hash != 0), "every chain gave numbers");
}

type Kind = (&'static str, fn(&Array) -> mlx::Result<Array>, Array);

fn kinds() -> Vec<Kind> {
    let wave = (0..2048).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>();
    let row = Array::from_slice(&wave, &[1, 2048]).unwrap();
    let heads = row.reshape(&[1, 16, 1, 128]).unwrap();
    vec![
        ("add, 2048 values", |x| x.add(x)?.scale(0.5), row.clone()),
        ("rms_norm, 2048 values", |x| x.rms_norm(None, 1e-5), row.clone()),
        ("cpu kernel in Rust (identity)", identity, row),
        ("rope, 16 heads of 128", rope, heads.clone()),
        ("attention, 16 heads, 1 key", |x| x.attention(x, x, 0.1, Attend::All, None), heads),
    ]
}

fn rope(x: &Array) -> mlx::Result<Array> {
    x.rope(&Rope { dims: 128, traditional: false, base: 1e4, scale: 1.0, freqs: None }, 3)
}

fn identity(x: &Array) -> mlx::Result<Array> {
    let outs = CpuKernel::call(&[x], &[(&[1, 2048], Dtype::F32)], |ins, outs| {
        outs[0].bytes_mut().copy_from_slice(ins[0].bytes());
        Ok(())
    });
    Ok(outs?.remove(0))
}

/// Microseconds per node to build and to run a chain, and a hash of its end.
fn measure(start: &Array, step: fn(&Array) -> mlx::Result<Array>, n: usize) -> (f64, f64, u64) {
    start.eval().unwrap();
    let begun = Instant::now();
    let mut x = start.clone();
    for _ in 0..n {
        x = step(&x).unwrap();
    }
    let built = Instant::now();
    x.eval().unwrap();
    let done = Instant::now();
    let us = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e6 / n as f64;
    let hash = x.to_bytes().unwrap().iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    (us(begun, built), us(built, done), black_box(hash))
}
