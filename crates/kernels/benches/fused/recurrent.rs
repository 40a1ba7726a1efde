//! Recurrent layers: the gated delta rule, its gates, and the convolution.

use kernels::gated_delta::{self, Gates};
use kernels::{CausalConv, Convolved, GatedDelta, Updated};
use mlx::{Array, Backend, Dtype, Result};

use crate::{Form, Plan, many, tokens, values};

pub(crate) struct Delta {
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

pub(crate) fn stock(g: &GatedDelta<'_>) -> Result<Updated> {
    let (out, state) = g.q.gated_delta_update(g.k, g.v, &g.log_decay.exp()?, g.beta, g.state)?;
    Ok(Updated { out, state, captured: Vec::new() })
}

pub(crate) fn deltas(plan: &Plan) {
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
pub(crate) fn causal_conv(plan: &Plan) {
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

pub(crate) fn stock_conv(c: &CausalConv<'_>) -> Result<Convolved> {
    let rows = mlx::concatenate(&[c.tail.expect("given"), c.u], 1)?;
    let (channels, n) = (c.u.dim(2), rows.dim(1));
    let out = rows.conv1d(&c.weight.expand_dims(&[2])?, 0, channels)?.silu()?;
    let before = c.weight.dim(1) - 1;
    Ok(Convolved { out, tail: rows.slice_axis(1, n - before..n)?.contiguous()? })
}

pub(crate) fn gates(plan: &Plan) {
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
