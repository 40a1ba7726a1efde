//! What every form of every operation costs, host and device together.
//!
//! `cargo bench -p kernels --bench fused` prints one line per form and size: microseconds per call,
//! how many times faster than the first form of the size, and a hash of the result, so that nobody
//! speeds it up by changing what it computes. `cargo test` runs it small. Words after `--bench`
//! choose operations by the beginning of their names.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use kernels::router::{self, Routed, Sigmoid, reference};
use kernels::{CausalConv, Convolved, GatedDelta, Updated, dense};
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
    gated_delta(&plan);
    causal_conv(&plan);
    routers(&plan);
    products(&plan);
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

struct Delta {
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    state: Array,
}

impl Delta {
    /// Heads as in the published models: 16 for keys, 32 for values, all of size 128.
    fn new(rows: i32, steps: i32, dtype: Dtype) -> Self {
        let (hk, hv, d) = (16, 32, 128);
        let unit = |seed: f32, scale: f32| {
            let x = values(&[rows, steps, hk, d], seed).rms_norm(None, 1e-8).unwrap();
            x.scale(scale).unwrap().astype(dtype).unwrap()
        };
        let root = (d as f32).sqrt().recip();
        let half = |x: Array| x.scale(0.5).unwrap().offset(0.5).unwrap();
        let made = Self {
            q: unit(0.1, root * root),
            k: unit(0.2, root),
            v: values(&[rows, steps, hv, d], 0.3).astype(dtype).unwrap(),
            log_decay: half(values(&[rows, steps, hv], 0.4)).scale(-0.2).unwrap(),
            beta: half(values(&[rows, steps, hv], 0.5)),
            state: values(&[rows, hv, d, d], 0.6).scale(0.1).unwrap(),
        };
        mlx::eval([&made.q, &made.k, &made.v, &made.log_decay, &made.beta, &made.state]).unwrap();
        made
    }

    fn rule<'a>(&'a self, state: &'a Array) -> GatedDelta<'a> {
        GatedDelta {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            log_decay: &self.log_decay,
            beta: &self.beta,
            state: Some(state),
            lengths: None,
        }
    }

    /// `n` calls, each from the state that the one before left.
    fn chain(
        &self,
        n: usize,
        step: impl Fn(&GatedDelta<'_>) -> Result<Updated>,
    ) -> Result<Vec<Array>> {
        let mut results = Vec::new();
        let mut state = self.state.clone();
        for _ in 0..n {
            let updated = step(&self.rule(&state))?;
            state = updated.state;
            results.push(updated.out);
        }
        results.push(state);
        Ok(results)
    }
}

fn stock(g: &GatedDelta<'_>) -> Result<Updated> {
    let (out, state) = g.q.gated_delta_update(g.k, g.v, &g.log_decay.exp()?, g.beta, g.state)?;
    Ok(Updated { out, state, captured: Vec::new() })
}

fn gated_delta(plan: &Plan) {
    let on_cpu = plan.backend == Backend::Cpu;
    let sizes: &[(i32, i32)] = match (plan.is_bench, on_cpu) {
        (false, _) => &[(1, 1), (1, 8)],
        (true, true) => &[(1, 1), (4, 1), (1, 8), (1, 64), (1, 512)],
        (true, false) => &[
            (1, 1),
            (8, 1),
            (32, 1),
            (1, 8),
            (1, 32),
            (1, 33),
            (1, 64),
            (1, 512),
            (1, 2048),
            (4, 2048),
        ],
    };
    for &(rows, steps) in sizes {
        for dtype in [Dtype::Bf16, Dtype::F32] {
            if dtype == Dtype::F32 && !matches!(steps, 1 | 512 | 2048) {
                continue;
            }
            let x = &Delta::new(rows, steps, dtype);
            let calls = if on_cpu {
                1
            } else if steps == 1 {
                30
            } else {
                8
            };
            let mut forms: Vec<Form<'_>> = Vec::new();
            if rows * steps <= 2048 {
                forms.push((
                    "stock MLX",
                    if steps > 64 { 1 } else { calls },
                    Box::new(move |n| x.chain(n, stock)),
                ));
            }
            if rows * steps <= 64 || on_cpu {
                forms.push(("twin", 1, Box::new(move |n| x.chain(n, |g| g.sequential(&[])))));
            }
            forms.push(("chunked", calls, Box::new(move |n| x.chain(n, |g| g.chunked(&[])))));
            forms.push(("update", calls, Box::new(move |n| x.chain(n, |g| g.update(&[])))));
            if steps == 2048 {
                let at = [512, 1024, 2048];
                forms.push((
                    "update, 3 captures",
                    calls,
                    Box::new(move |n| x.chain(n, |g| g.update(&at))),
                ));
            }
            plan.compare(&format!("gated_delta {rows}x{steps}, {dtype}"), forms);
        }
    }
}

/// The convolution over the 8,192 channels of the published models.
fn causal_conv(plan: &Plan) {
    let (channels, width) = (8192, 4);
    let sizes: &[(i32, i32)] =
        if plan.is_bench { &[(1, 1), (32, 1), (1, 512), (1, 2048)] } else { &[(1, 3)] };
    for &(rows, steps) in sizes {
        let cast = |x: Array| x.astype(Dtype::Bf16).unwrap();
        let u = &cast(values(&[rows, steps, channels], 0.1));
        let tail = &cast(values(&[rows, width - 1, channels], 0.2));
        let weight = &cast(values(&[channels, width], 0.3));
        mlx::eval([u, tail, weight]).unwrap();
        let chain = move |n: usize, form: fn(&CausalConv<'_>) -> Result<Convolved>| {
            let (mut tail, mut results) = (tail.clone(), Vec::new());
            for _ in 0..n {
                let made = form(&CausalConv { u, tail: Some(&tail), weight, lengths: None })?;
                tail = made.tail;
                results.push(made.out);
            }
            Ok(results)
        };
        let calls = if plan.backend == Backend::Cpu { 1 } else { 30 };
        let forms: Vec<Form<'_>> = vec![
            ("stock MLX", calls, Box::new(move |n| chain(n, stock_conv))),
            ("twin", calls, Box::new(move |n| chain(n, |c| c.reference()))),
            ("run", calls, Box::new(move |n| chain(n, |c| c.run()))),
        ];
        plan.compare(&format!("causal_conv {rows}x{steps}x{channels}, bf16"), forms);
    }
}

fn stock_conv(c: &CausalConv<'_>) -> Result<Convolved> {
    let rows = mlx::concatenate(&[c.tail.expect("given"), c.u], 1)?;
    let (channels, n) = (c.u.dim(2), rows.dim(1));
    let out = rows.conv1d(&c.weight.expand_dims(&[2])?, 0, channels)?.silu()?;
    let before = c.weight.dim(1) - 1;
    Ok(Convolved { out, tail: rows.slice_axis(1, n - before..n)?.contiguous()? })
}

fn routers(plan: &Plan) {
    let glm = Sigmoid { k: 4, n_group: 1, topk_group: 1, normalise: true, scale: 1.8 };
    let grouped = Sigmoid { k: 8, n_group: 8, topk_group: 4, normalise: true, scale: 2.5 };
    let tokens: &[i32] = if plan.is_bench { &[1, 32, 2048] } else { &[3] };
    let calls = if plan.backend == Backend::Cpu { 1 } else { 30 };
    let repeat = |n: usize, form: &dyn Fn() -> Result<Routed>| {
        let routed = (0..n).map(|_| form()).collect::<Result<Vec<_>>>()?;
        Ok(routed.into_iter().flat_map(|r| [r.indices, r.weights]).collect())
    };
    for &n in tokens {
        for (experts, k) in [(128, 8), (512, 10)] {
            let x = &values(&[n, experts], 0.7);
            let forms: Vec<Form<'_>> = vec![
                (
                    "twin",
                    calls,
                    Box::new(move |n| repeat(n, &|| reference::softmax_topk(x, k, true))),
                ),
                (
                    "softmax_topk",
                    calls,
                    Box::new(move |n| repeat(n, &|| router::softmax_topk(x, k, true))),
                ),
            ];
            plan.compare(&format!("router softmax {n}x{experts}, top {k}"), forms);
        }
        let x = &values(&[n, 32], 0.7);
        let forms: Vec<Form<'_>> = vec![
            ("twin", calls, Box::new(move |n| repeat(n, &|| reference::topk_softmax(x, 4)))),
            ("topk_softmax", calls, Box::new(move |n| repeat(n, &|| router::topk_softmax(x, 4)))),
        ];
        plan.compare(&format!("router logits {n}x32, top 4"), forms);
        for (experts, how) in [(64, &glm), (256, &grouped)] {
            let (x, bias) = (&values(&[n, experts], 0.7), &values(&[experts], 0.8));
            let forms: Vec<Form<'_>> = vec![
                (
                    "twin",
                    calls,
                    Box::new(move |n| repeat(n, &|| reference::sigmoid_topk(x, bias, how))),
                ),
                (
                    "sigmoid_topk",
                    calls,
                    Box::new(move |n| repeat(n, &|| router::sigmoid_topk(x, bias, how))),
                ),
            ];
            plan.compare(&format!("router sigmoid {n}x{experts}, {} groups", how.n_group), forms);
        }
    }
}

/// Products of rows with matrices of floats, and what the machine could do at best: multiply and
/// add in registers, and read memory.
fn products(plan: &Plan) {
    let sizes: &[(i32, i32, i32, Dtype)] = match plan.is_bench {
        false => &[(2, 16, 24, Dtype::F32)],
        true => &[
            (1, 1024, 3072, Dtype::F32),
            (1, 1024, 3072, Dtype::Bf16),
            (1, 1024, 151_936, Dtype::Bf16),
            (4, 1024, 3072, Dtype::Bf16),
            (8, 1024, 3072, Dtype::Bf16),
            (16, 1024, 3072, Dtype::Bf16),
            (128, 1024, 3072, Dtype::F32),
            (128, 1024, 3072, Dtype::Bf16),
            (512, 1024, 3072, Dtype::F32),
            (512, 1024, 3072, Dtype::Bf16),
        ],
    };
    let effort = if plan.is_bench { 1 << 25 } else { 1 << 10 };
    for &(rows, n_in, n_out, dtype) in sizes {
        let name = format!("dense {rows}x{n_in}x{n_out}, {dtype}");
        if !plan.wants(&name) {
            continue;
        }
        let x = &values(&[rows, n_in], 0.1).astype(dtype).unwrap();
        let w = &values(&[n_out, n_in], 0.2).astype(dtype).unwrap();
        mlx::eval([x, w]).unwrap();
        let calls = if plan.backend == Backend::Cuda { 30 } else { 1 };
        let repeat = move |n: usize, form: fn(&Array, &Array) -> Result<Array>| {
            (0..n).map(|_| form(x, w)).collect()
        };
        let stock = |x: &Array, w: &Array| x.matmul(&w.swap_axes(-1, -2)?);
        let forms: Vec<Form<'_>> = vec![
            ("stock MLX", calls, Box::new(move |n| repeat(n, stock))),
            ("product", calls, Box::new(move |n| repeat(n, dense::product))),
        ];
        let us = plan.compare(&name, forms);
        if plan.backend == Backend::Cpu {
            let (read, peak) = (read_gb_per_s(effort), peak_gflops(effort));
            let gflops = 2e-3 * f64::from(rows) * f64::from(n_in) * f64::from(n_out) / us;
            let gb_per_s = 1e-3 * w.n_bytes() as f64 / us;
            let share = 100.0 * gflops / peak;
            println!(
                "    {gflops:.1} GFLOP/s of {peak:.1} ({share:.0} %), \
                 w at {gb_per_s:.1} GB/s of {read:.1}"
            );
        }
    }
}

/// Runs `work` on every processor, three times, and gives the shortest seconds.
fn on_all(work: &(dyn Fn(usize) + Sync)) -> f64 {
    let n = std::thread::available_parallelism().map_or(1, usize::from);
    let run = |_| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for i in 0..n {
                scope.spawn(move || work(i));
            }
        });
        start.elapsed().as_secs_f64() / n as f64
    };
    (0..3).map(run).fold(f64::INFINITY, f64::min)
}

/// Billions of additions and multiplications a second that all processors make on registers.
fn peak_gflops(effort: usize) -> f64 {
    #[inline(always)]
    fn body(n: usize) {
        let mut sums = black_box([[1.0f32; 8]; 12]);
        let (a, b) = (black_box([0.5f32; 8]), black_box([0.25f32; 8]));
        for _ in 0..n {
            for sum in &mut sums {
                for i in 0..8 {
                    sum[i] = sum[i].mul_add(a[i], b[i]);
                }
            }
        }
        black_box(sums);
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn wide(n: usize) {
        body(n);
    }
    let seconds = on_all(&|_| {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has both.
            return unsafe { wide(effort) };
        }
        body(effort);
    });
    2.0 * 96.0 * effort as f64 / seconds / 1e9
}

/// Billions of bytes a second that all processors read of memory.
fn read_gb_per_s(effort: usize) -> f64 {
    let memory = vec![1u64; effort];
    let n = std::thread::available_parallelism().map_or(1, usize::from);
    let part = effort / n;
    let seconds = on_all(&|i| {
        let mut sums = [0u64; 32];
        for line in memory[i * part..(i + 1) * part].chunks_exact(32) {
            for (sum, value) in sums.iter_mut().zip(line) {
                *sum = sum.wrapping_add(*value);
            }
        }
        black_box(sums);
    });
    8.0 * part as f64 / seconds / 1e9
}
