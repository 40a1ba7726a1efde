//! What every form of every operation costs, host and device together.
//!
//! `cargo bench -p kernels --bench fused` prints one line per form and size: microseconds per call,
//! how many times faster than the first form of the size, and a hash of the result, so that nobody
//! speeds it up by changing what it computes. `cargo test` runs it small. Words after `--bench`
//! choose operations by the beginning of their names.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use kernels::router::{self, Routed, Sigmoid, reference};
use kernels::{Attention, CausalConv, Convolved, GatedDelta, Kv, Masks, Positions, Updated};
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
    attention(&plan);
}

impl Plan {
    /// Measures the forms of one size.
    fn compare(&self, name: &str, forms: Vec<Form<'_>>) {
        if !self.wanted.is_empty() && !self.wanted.iter().any(|w| name.starts_with(w.as_str())) {
            return;
        }
        let mut first = None;
        for (form, calls, build) in forms {
            let calls = if self.is_bench { calls } else { 1 };
            let (us, hash) = self.measure(calls, &*build);
            let first = *first.get_or_insert(us);
            println!(
                "{name:<44} {form:<26} {calls:>6} {us:>12.1} {:>8.1}x  {hash:016x}",
                first / us
            );
        }
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

/// Heads of published models over a cache with room for more: queries, earlier tokens.
fn attention(plan: &Plan) {
    // Query heads, key heads, and sizes of keys and values: Qwen3 0.6B and 8B,
    // Qwen3-Next, GLM's latent.
    let heads: &[[i32; 4]] = match plan.is_bench {
        true => &[[16, 8, 128, 128], [32, 8, 128, 128], [16, 2, 256, 256], [20, 1, 576, 512]],
        false => &[[4, 2, 16, 16], [4, 1, 24, 16]],
    };
    let sizes: &[(i32, i32)] = match plan.is_bench {
        true => &[(1, 512), (1, 4096), (1, 32768), (128, 0), (512, 0), (512, 3584)],
        false => &[(1, 9), (5, 0)],
    };
    for (&[n, k, d, dv], &(queries, before)) in
        heads.iter().flat_map(|h| sizes.iter().map(move |s| (h, s)))
    {
        let cast = |x: Array| x.astype(Dtype::Bf16).unwrap();
        let q = &cast(values(&[1, n, queries, d], 0.1));
        let room = (before + queries + 255) / 256 * 256;
        let keys = &cast(values(&[1, k, room, d], 0.2));
        // A latent's values are the first columns of its keys.
        let held = &match k {
            1 => keys.slice_axis(3, 0..dv).unwrap(),
            _ => cast(values(&[1, k, room, dv], 0.3)),
        };
        mlx::eval([q, keys, held]).unwrap();
        let call = move |n: usize, form: fn(&Attention<'_>) -> Result<Array>| {
            let call = || {
                let masks = &Masks::default();
                let kv = Kv::Rows { keys, values: held, first_key: 0 };
                let (scale, positions) = ((d as f32).sqrt().recip(), Positions::Same(before));
                form(&Attention { q, kv, scale, positions, window: None, sinks: None, masks })
            };
            (0..n).map(|_| call()).collect::<Result<Vec<_>>>()
        };
        let calls = if plan.backend == Backend::Cpu { 1 } else { 30 };
        let mut forms: Vec<Form<'_>> =
            vec![("run", calls, Box::new(move |n| call(n, |a| a.run())))];
        // MLX takes up to half a minute for the rest.
        if plan.backend != Backend::Cpu || queries == 1 || queries + before <= 512 {
            forms.insert(0, ("built_in", calls, Box::new(move |n| call(n, |a| a.built_in()))));
        }
        plan.compare(&format!("attention {n}/{k}x{d}, {queries} at {before}, bf16"), forms);
    }
}
