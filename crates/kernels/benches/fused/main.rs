//! What every form of every operation costs, host and device together.
//!
//! `cargo bench -p kernels --bench fused` prints one line per form and size: microseconds per call,
//! how many times faster than the first form of the size, and a hash of the result, so that nobody
//! speeds it up by changing what it computes. `cargo test` runs it small. Words after `--bench`
//! choose operations by the beginning of their names.
#![allow(clippy::unwrap_used)]

mod attention;
mod pointwise;
mod products;
mod recurrent;

use std::time::Instant;

use mlx::{Array, Backend, Device, Dtype, Result};

/// Calls of one evaluation, so that starting and waiting are shared, and how often it is repeated.
struct Plan {
    is_bench: bool,
    backend: Backend,
    wanted: Vec<String>,
}

/// One form of an operation at one size: adds a number of calls to the graph and gives what to
/// evaluate, the last being the result that is hashed.
type Form<'a> = (&'a str, usize, Box<dyn Fn(usize) -> Result<Vec<Array>> + 'a>);

fn main() {
    let args = std::env::args().skip(1).collect::<Vec<_>>();
    let device = Device::open().unwrap();
    let plan = Plan {
        is_bench: args.iter().any(|arg| arg == "--bench"),
        backend: device.backend(),
        wanted: args.into_iter().filter(|arg| !arg.starts_with('-')).collect(),
    };
    println!("{}, MLX {}", device.backend(), mlx::PINNED_VERSION);
    println!(
        "{:<44} {:<26} {:>6} {:>12} {:>9}  hash",
        "operation", "form", "calls", "us/call", "speed"
    );
    recurrent::deltas(&plan);
    recurrent::causal_conv(&plan);
    pointwise::routers(&plan);
    products::products(&plan);
    products::quantized_products(&plan);
    products::chosen(&plan);
    products::experts(&plan);
    pointwise::norms(&plan);
    pointwise::heads(&plan);
    pointwise::activations(&plan);
    pointwise::vocabularies(&plan);
    recurrent::gates(&plan);
    pointwise::embeddings(&plan);
    attention::attention(&plan);
}

impl Plan {
    fn wants(&self, name: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|w| name.starts_with(w.as_str()))
    }

    /// Measures the forms of one size; the microseconds of the last one.
    fn compare(&self, name: &str, forms: Vec<Form<'_>>) -> f64 {
        let (mut first, mut last) = (None, f64::NAN);
        if !self.wants(name) {
            return last;
        }
        for (form, calls, build) in forms {
            let calls = if self.is_bench { calls } else { 1 };
            let (us, hash) = self.measure(calls, &*build);
            let first = *first.get_or_insert(us);
            last = us;
            println!(
                "{name:<44} {form:<26} {calls:>6} {us:>12.1} {:>8.1}x  {hash:016x}",
                first / us
            );
        }
        last
    }

    /// Best microseconds per call, and a hash of the result.
    fn measure(&self, calls: usize, build: &dyn Fn(usize) -> Result<Vec<Array>>) -> (f64, u64) {
        let budget = if self.is_bench { 0.4 } else { 0.0 };
        let result = build(1).unwrap();
        mlx::eval(&result).unwrap();
        let bytes = result.last().unwrap().to_bytes().unwrap();
        let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        });
        let (begun, mut best) = (Instant::now(), f64::INFINITY);
        loop {
            let start = Instant::now();
            let results = build(calls).unwrap();
            mlx::eval(&results).unwrap();
            best = best.min(start.elapsed().as_secs_f64() * 1e6 / calls as f64);
            if begun.elapsed().as_secs_f64() >= budget {
                return (best, hash);
            }
        }
    }
}

/// Reproducible values in −1..1.
fn values(shape: &[i32], seed: f32) -> Array {
    let n = shape.iter().product::<i32>();
    let x = Array::arange(0.0, f64::from(n), 1.0, Dtype::F32).unwrap().scale(0.618_034).unwrap();
    let x = x.offset(seed).unwrap();
    let x = x.sub(&x.floor().unwrap()).unwrap().scale(2.0).unwrap().offset(-1.0).unwrap();
    // Differences of neighbours are alike: mixed by a sine of their squares.
    let x = x.square().unwrap().scale(917.3).unwrap().add(&x.scale(53.1).unwrap()).unwrap();
    let x = x.sin().unwrap().reshape(shape).unwrap();
    x.eval().unwrap();
    x
}

/// Results of `n` calls.
fn repeated(n: usize, form: &dyn Fn() -> Result<Array>) -> Result<Vec<Array>> {
    (0..n).map(|_| form()).collect()
}

/// Tokens of a step: one, some rows, a prompt.
fn tokens(plan: &Plan) -> &'static [i32] {
    if plan.is_bench { &[1, 8, 512] } else { &[3] }
}

/// Calls of elementwise operations that share one evaluation.
fn many(plan: &Plan, n: i32) -> usize {
    if plan.backend == Backend::Cpu && n > 8 { 8 } else { 50 }
}
