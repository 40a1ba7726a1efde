//! Norms, rotary heads, activations, routers, embeddings, and choices among a vocabulary.

use kernels::Positions;
use kernels::rope::{HeadNorm, Heads, Rotation};
use kernels::router::{self, Routed, Sigmoid, reference};
use kernels::sampling::{self, Draw};
use kernels::{activation, embedding, norm};
use mlx::{Array, Backend, Dtype, QuantMode, Quantization, Result};

use crate::{Form, Plan, many, repeated, tokens, values};

pub(crate) fn routers(plan: &Plan) {
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

pub(crate) fn norms(plan: &Plan) {
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
pub(crate) fn heads(plan: &Plan) {
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
                positions: Positions::Same(500),
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

pub(crate) fn activations(plan: &Plan) {
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
pub(crate) fn vocabularies(plan: &Plan) {
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

pub(crate) fn embeddings(plan: &Plan) {
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
