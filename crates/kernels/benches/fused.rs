//! What every form of every operation costs, host and device together.
//!
//! `cargo bench -p kernels --bench fused` prints one line per form and size: microseconds per call,
//! how many times faster than the first form of the size, and a hash of the result, so that nobody
//! speeds it up by changing what it computes. `cargo test` runs it small. Words after `--bench`
//! choose operations by the beginning of their names.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use kernels::gated_delta::{self, Gates};
use kernels::rope::{HeadNorm, Heads, Positions, Rotation};
use kernels::router::{self, Routed, Sigmoid, reference};
use kernels::sampling::{self, Draw};
use kernels::{
    CausalConv, Convolved, GatedDelta, Updated, activation, dense, embedding, norm, quantized,
};
use mlx::{Array, Backend, Device, Dtype, QuantMode, Quantization, Quantized, Result};

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
    deltas(&plan);
    causal_conv(&plan);
    routers(&plan);
    products(&plan);
    quantized_products(&plan);
    norms(&plan);
    heads(&plan);
    activations(&plan);
    vocabularies(&plan);
    gates(&plan);
    embeddings(&plan);
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

fn deltas(plan: &Plan) {
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

fn norms(plan: &Plan) {
    let wide = 1024;
    for (&n, dtype) in tokens(plan).iter().flat_map(|n| [(n, Dtype::F32), (n, Dtype::Bf16)]) {
        let cast = |x: Array| x.astype(dtype).unwrap();
        let x = &cast(values(&[1, n, wide], 0.1));
        let y = &cast(values(&[1, n, wide], 0.2));
        let weight = &cast(values(&[wide], 0.3));
        mlx::eval([x, y, weight]).unwrap();
        let (w, eps, calls) = (Some(weight), 1e-6, many(plan, n));
        let twin = norm::reference::rms_norm;
        let forms: Vec<Form<'_>> = vec![
            ("twin", calls, Box::new(move |n| repeated(n, &|| twin(x, w, eps)))),
            ("rms_norm", calls, Box::new(move |n| repeated(n, &|| norm::rms_norm(x, w, eps)))),
        ];
        plan.compare(&format!("norm {n}x{wide}, {dtype}"), forms);

        type Add = fn(&Array, &Array, Option<&Array>, f32) -> Result<norm::Added>;
        let both = move |n: usize, form: Add| {
            let made = (0..n).map(|_| form(x, y, w, eps)).collect::<Result<Vec<_>>>()?;
            Ok(made.into_iter().flat_map(|a| [a.sum, a.normed]).collect())
        };
        let forms: Vec<Form<'_>> = vec![
            ("twin", calls, Box::new(move |n| both(n, norm::reference::add_rms_norm))),
            ("add_rms_norm", calls, Box::new(move |n| both(n, norm::add_rms_norm))),
        ];
        plan.compare(&format!("norm of a sum {n}x{wide}, {dtype}"), forms);

        let heads = &[1, n, 16, 128];
        let (x, z) = (&cast(values(heads, 0.1)), &cast(values(heads, 0.2)));
        let weight = &cast(values(&[128], 0.3));
        mlx::eval([x, z, weight]).unwrap();
        let w = Some(weight);
        let twin = norm::reference::gated_rms_norm;
        let gated = norm::gated_rms_norm;
        let forms: Vec<Form<'_>> = vec![
            ("twin", calls, Box::new(move |n| repeated(n, &|| twin(x, z, w, eps)))),
            ("gated_rms_norm", calls, Box::new(move |n| repeated(n, &|| gated(x, z, w, eps)))),
        ];
        plan.compare(&format!("norm gated {n}x16x128, {dtype}"), forms);
    }
}

/// Queries of 16 heads and keys of 8, with a norm over each and without one.
fn heads(plan: &Plan) {
    for (&n, dtype) in tokens(plan).iter().flat_map(|n| [(n, Dtype::F32), (n, Dtype::Bf16)]) {
        for (n_heads, normed) in [(16, true), (8, true), (16, false)] {
            let x = &values(&[1, n, n_heads * 128], 0.1).astype(dtype).unwrap();
            let weight = &values(&[128], 0.3).astype(dtype).unwrap();
            mlx::eval([x, weight]).unwrap();
            let rotation = &Rotation::powers(1e6, 128, false).unwrap();
            let heads = Heads {
                x,
                n_heads,
                begin: 0,
                head_dim: 128,
                norm: normed.then_some(HeadNorm { weight, eps: 1e-6 }),
                rotation,
                positions: Positions::From(500),
            };
            let calls = many(plan, n);
            let forms: Vec<Form<'_>> = vec![
                ("twin", calls, Box::new(move |n| repeated(n, &|| heads.reference()))),
                ("turn", calls, Box::new(move |n| repeated(n, &|| heads.turn()))),
            ];
            let with = if normed { "normed" } else { "plain" };
            plan.compare(&format!("rope {n}x{n_heads}x128 {with}, {dtype}"), forms);
        }
    }
}

fn activations(plan: &Plan) {
    type Op = fn(&Array, &Array) -> Result<Array>;
    let ops: [(&str, Op, Op); 4] = [
        ("swiglu", activation::reference::swiglu, activation::swiglu),
        ("geglu", activation::reference::geglu, activation::geglu),
        (
            "clamped",
            |g, u| activation::reference::clamped_swiglu(g, u, 1.702, 7.0),
            |g, u| activation::clamped_swiglu(g, u, 1.702, 7.0),
        ),
        ("sigmoid", activation::reference::sigmoid_gated, activation::sigmoid_gated),
    ];
    for (&n, dtype) in tokens(plan).iter().flat_map(|n| [(n, Dtype::F32), (n, Dtype::Bf16)]) {
        let gate = &values(&[1, n, 3072], 0.1).astype(dtype).unwrap();
        let up = &values(&[1, n, 3072], 0.2).astype(dtype).unwrap();
        mlx::eval([gate, up]).unwrap();
        let calls = many(plan, n);
        for (name, twin, form) in ops {
            let forms: Vec<Form<'_>> = vec![
                ("twin", calls, Box::new(move |n| repeated(n, &|| twin(gate, up)))),
                (name, calls, Box::new(move |n| repeated(n, &|| form(gate, up)))),
            ];
            plan.compare(&format!("activation {name} {n}x3072, {dtype}"), forms);
        }
    }
}

/// One row of a large vocabulary, of which few scores are high.
fn vocabularies(plan: &Plan) {
    let vocab = if plan.is_bench { 151_936 } else { 1000 };
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let x = values(&[1, vocab], 0.1);
        let x = &x.square().unwrap().mul(&x).unwrap().scale(12.0).unwrap().astype(dtype).unwrap();
        x.eval().unwrap();
        let forms: Vec<Form<'_>> = vec![
            ("twin", 10, Box::new(move |n| repeated(n, &|| sampling::reference::argmax(x)))),
            ("argmax", 10, Box::new(move |n| repeated(n, &|| sampling::argmax(x)))),
        ];
        plan.compare(&format!("vocabulary argmax {vocab}, {dtype}"), forms);

        let plain = Draw { temperature: 0.8, key: 7, ..Draw::GREEDY };
        for (what, draw) in [
            ("unlimited", plain),
            ("top-k 20, top-p 0.95", Draw { top_k: 20, top_p: 0.95, ..plain }),
            ("top-p 0.95", Draw { top_p: 0.95, ..plain }),
            ("min-p 0.05", Draw { min_p: 0.05, ..plain }),
        ] {
            type Op = fn(&Array, &[Draw]) -> Result<Array>;
            let run = move |n: usize, op: Op| repeated(n, &|| op(x, &[draw]));
            let forms: Vec<Form<'_>> = vec![
                ("twin", 2, Box::new(move |n| run(n, sampling::reference::draw))),
                ("draw", 2, Box::new(move |n| run(n, sampling::draw))),
            ];
            plan.compare(&format!("vocabulary {what}, {dtype}"), forms);
        }

        let token = &Array::from_slice(&[3u32], &[1]).unwrap();
        type Op = fn(&Array, &Array, i32) -> Result<sampling::Logprobs>;
        let run = move |n: usize, op: Op| -> Result<Vec<Array>> {
            let made = (0..n).map(|_| op(x, token, 20)).collect::<Result<Vec<_>>>()?;
            Ok(made.into_iter().map(|l| l.chosen).collect())
        };
        let forms: Vec<Form<'_>> = vec![
            ("twin", 2, Box::new(move |n| run(n, sampling::reference::logprobs))),
            ("logprobs", 2, Box::new(move |n| run(n, sampling::logprobs))),
        ];
        plan.compare(&format!("vocabulary 20 logprobs, {dtype}"), forms);
    }
}

fn gates(plan: &Plan) {
    for &n in tokens(plan) {
        let x = |seed| values(&[1, n, 32], seed).astype(Dtype::Bf16).unwrap();
        let (a, b) = (&x(0.1), &x(0.2));
        let (bias, decay) = (&values(&[32], 0.3), &values(&[32], 0.4));
        mlx::eval([a, b, bias, decay]).unwrap();
        type Op = fn(&Array, &Array, &Array, &Array) -> Result<Gates>;
        let run = move |n: usize, op: Op| -> Result<Vec<Array>> {
            let made = (0..n).map(|_| op(a, b, bias, decay)).collect::<Result<Vec<_>>>()?;
            Ok(made.into_iter().flat_map(|g| [g.log_decay, g.beta]).collect())
        };
        let calls = many(plan, n);
        let forms: Vec<Form<'_>> = vec![
            ("twin", calls, Box::new(move |n| run(n, gated_delta::gates_reference))),
            ("gates", calls, Box::new(move |n| run(n, gated_delta::gates))),
        ];
        plan.compare(&format!("gates {n}x32, bf16"), forms);
    }
}

fn embeddings(plan: &Plan) {
    let vocab = if plan.is_bench { 20_000 } else { 50 };
    for bits in [4, 8] {
        let how = Quantization { mode: QuantMode::Affine, bits, group_size: 64 };
        let floats = values(&[vocab, 1024], 0.1).astype(Dtype::Bf16).unwrap();
        let table = &floats.quantize(how).unwrap();
        mlx::eval([&table.weight, &table.scales]).unwrap();
        for &n in tokens(plan) {
            let ids = (0..n).map(|i| (i * 7919) % vocab).collect::<Vec<_>>();
            let ids = &Array::from_slice(&ids, &[1, n]).unwrap();
            let dtype = Dtype::Bf16;
            let twin = embedding::reference::rows;
            let calls = many(plan, n);
            let forms: Vec<Form<'_>> = vec![
                ("twin", calls, Box::new(move |n| repeated(n, &|| twin(table, ids, dtype)))),
                (
                    "rows",
                    calls,
                    Box::new(move |n| repeated(n, &|| embedding::rows(table, ids, dtype))),
                ),
            ];
            plan.compare(&format!("embedding {n}x1024, {bits} bits"), forms);
        }
    }
}

/// Products with quantized matrices. Several matrices by turns, so that none stays in a cache.
fn quantized_products(plan: &Plan) {
    let affine = |bits| Quantization { mode: QuantMode::Affine, bits, group_size: 64 };
    let mxfp4 = Quantization { mode: QuantMode::Mxfp4, bits: 4, group_size: 32 };
    for (name, form) in
        [("4 bits", affine(4)), ("8 bits", affine(8)), ("3 bits", affine(3)), ("mxfp4", mxfp4)]
    {
        for (rows, n_in, n_out) in
            [(1, 1024, 3072), (1, 3072, 1024), (1, 1024, 65536), (8, 1024, 3072), (512, 1024, 3072)]
        {
            let random = || values(&[n_out, n_in], 0.3).astype(Dtype::Bf16).unwrap();
            let w: Vec<Quantized> = (0..if n_out > 10000 { 1 } else { 16 })
                .map(|_| random().quantize(form).unwrap())
                .collect();
            let parts = w.iter().flat_map(|w| [&w.weight, &w.scales].into_iter().chain(&w.biases));
            mlx::eval(parts).unwrap();
            let x = values(&[rows, n_in], 0.1).astype(Dtype::Bf16).unwrap();
            let each = |calls: usize, product: &dyn Fn(&Array, &Quantized) -> Result<Array>| {
                (0..calls).map(|i| product(&x, &w[i % w.len()])).collect::<Result<Vec<_>>>()
            };
            let stock_calls = if plan.backend == Backend::Cpu { 1 } else { 32 };
            let forms: Vec<Form<'_>> = vec![
                (
                    "stock MLX",
                    stock_calls,
                    Box::new(|calls| each(calls, &|x, w| x.quantized_matmul(w))),
                ),
                (
                    "products",
                    if rows > 100 { 4 } else { 32 },
                    Box::new(|calls| {
                        each(calls, &|x, w| Ok(quantized::products(x, &[w])?.remove(0)))
                    }),
                ),
            ];
            plan.compare(&format!("quantized {rows}x{n_in} to {n_out}, {name}"), forms);
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
