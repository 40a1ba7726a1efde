//! Routers: the backend's form against the twin, and the twin against loops.

use kernels::router::{self, Routed, Sigmoid, reference};
use mlx::{Array, Dtype};

use crate::{Values, close, device};

/// Logits without ties, also after rounding to 16 bits.
fn logits(n: i32, experts: i32, dtype: Dtype) -> Array {
    let mut values = Values(n as u64 * 1000 + experts as u64);
    let mut rows = Vec::new();
    for _ in 0..n {
        let mut order = (0..experts).collect::<Vec<_>>();
        for i in (1..order.len()).rev() {
            let j = ((values.next() + 1.0) / 2.0 * (i + 1) as f32) as usize;
            order.swap(i, j.min(i));
        }
        rows.extend(order.iter().map(|&i| (i - experts / 2) as f32 * 0.0625));
    }
    Array::from_slice(&rows, &[n, experts]).unwrap().astype(dtype).unwrap()
}

#[track_caller]
fn same(what: &str, found: &Routed, wanted: &Routed) {
    assert_eq!(found.indices.dtype(), Dtype::U32);
    assert_eq!(found.weights.dtype(), Dtype::F32);
    assert_eq!(found.indices.shape(), wanted.indices.shape());
    let indices = |r: &Routed| r.indices.to_vec::<u32>().unwrap();
    assert_eq!(indices(found), indices(wanted), "{what}");
    close(what, &found.weights, &wanted.weights, 1e-6);
}

const SIZES: [(i32, i32, i32); 6] =
    [(1, 128, 8), (3, 512, 10), (7, 64, 4), (5, 33, 32), (2, 6, 6), (9, 40, 1)];

#[test]
fn probabilities_and_chosen_logits_agree_with_the_twin() {
    let _device = device();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        for (n, experts, k) in SIZES {
            let x = logits(n, experts, dtype);
            let what = format!("{n}x{experts}, {k}, {dtype}");
            for normalise in [false, true] {
                let wanted = reference::softmax_topk(&x, k, normalise).unwrap();
                same(&what, &router::softmax_topk(&x, k, normalise).unwrap(), &wanted);
            }
            let wanted = reference::topk_softmax(&x, k).unwrap();
            same(&what, &router::topk_softmax(&x, k).unwrap(), &wanted);
        }
    }
}

#[test]
fn sigmoids_with_a_bias_and_groups_agree_with_the_twin() {
    let _device = device();
    for (n, experts, k, n_group, topk_group) in [
        (1, 64, 4, 1, 1),
        (5, 256, 8, 8, 4),
        (3, 160, 6, 5, 2),
        (4, 24, 5, 3, 1),
        (2, 64, 32, 32, 17),
        (6, 12, 2, 6, 3),
    ] {
        for (normalise, scale) in [(true, 1.8), (false, 2.5), (true, 1.0)] {
            let how = Sigmoid { k, n_group, topk_group, normalise, scale };
            let x = logits(n, experts, Dtype::F32);
            let bias = Values(9).array(&[experts], |x| 0.3 * x);
            let found = router::sigmoid_topk(&x, &bias, &how).unwrap();
            let wanted = reference::sigmoid_topk(&x, &bias, &how).unwrap();
            same(&format!("{n}x{experts}, {how:?}"), &found, &wanted);
        }
    }
}

#[test]
fn experts_beyond_what_kernels_hold_are_still_routed() {
    let _device = device();
    let x = logits(2, 1100, Dtype::F32);
    let found = router::softmax_topk(&x, 40, true).unwrap();
    same("many", &found, &reference::softmax_topk(&x, 40, true).unwrap());
}

#[test]
fn the_twins_agree_with_numbers_worked_out_by_hand() {
    let _device = device();
    let check = |found: Routed, indices: &[u32], weights: &[f64]| {
        assert_eq!(found.indices.to_vec::<u32>().unwrap(), indices);
        for (found, wanted) in found.weights.to_vec::<f32>().unwrap().iter().zip(weights) {
            assert!((f64::from(*found) - wanted).abs() < 1e-6, "{found} is not {wanted}");
        }
    };
    let logits = [0.5f32, 2.0, -1.0, 1.0, 0.0, 1.5];
    let x = Array::from_slice(&logits, &[1, 6]).unwrap();
    let e = logits.map(|x| f64::from(x).exp());
    let all = e.iter().sum::<f64>();
    check(reference::softmax_topk(&x, 2, false).unwrap(), &[1, 5], &[e[1] / all, e[5] / all]);
    let two = e[1] + e[5];
    check(reference::softmax_topk(&x, 2, true).unwrap(), &[1, 5], &[e[1] / two, e[5] / two]);
    check(reference::topk_softmax(&x, 2).unwrap(), &[1, 5], &[e[1] / two, e[5] / two]);

    // Groups (0, 1), (2, 3), (4, 5). With the bias the last two are best, and expert 1 is out.
    let bias = Array::from_slice(&[-1.0f32, 0.0, 0.9, 0.0, 0.0, 0.2], &[6]).unwrap();
    let s = e.map(|e| e / (1.0 + e));
    let how = Sigmoid { k: 2, n_group: 3, topk_group: 2, normalise: false, scale: 2.0 };
    check(reference::sigmoid_topk(&x, &bias, &how).unwrap(), &[2, 5], &[2.0 * s[2], 2.0 * s[5]]);
    let how = Sigmoid { normalise: true, ..how };
    let two = s[2] + s[5];
    let wanted = [2.0 * s[2] / two, 2.0 * s[5] / two];
    check(reference::sigmoid_topk(&x, &bias, &how).unwrap(), &[2, 5], &wanted);
}

#[test]
fn bad_inputs_are_refused_with_a_reason() {
    let _device = device();
    let x = logits(2, 12, Dtype::F32);
    let bias = Array::zeros(&[12], Dtype::F32).unwrap();
    let short = Array::zeros(&[11], Dtype::F32).unwrap();
    let how = Sigmoid { k: 4, n_group: 3, topk_group: 2, normalise: true, scale: 1.0 };
    let flat = x.reshape(&[-1]).unwrap();
    let none = x.slice_axis(0, 0..0).unwrap();
    let ints = x.astype(Dtype::I32).unwrap();
    for (found, reason) in [
        (router::softmax_topk(&flat, 1, true), "logits must have 2 dimensions"),
        (router::softmax_topk(&ints, 1, true), "logits must be f32, f16 or bf16"),
        (router::softmax_topk(&none, 1, true), "there must be a token"),
        (router::softmax_topk(&x, 13, true), "13 of 12 experts cannot be chosen"),
        (router::topk_softmax(&x, 0), "0 of 12 experts cannot be chosen"),
        (router::sigmoid_topk(&x, &short, &how), "bias must have shape [12]"),
        (
            router::sigmoid_topk(&x, &bias, &Sigmoid { n_group: 5, ..how }),
            "5 groups do not divide 12 experts",
        ),
        (
            router::sigmoid_topk(&x, &bias, &Sigmoid { n_group: 12, topk_group: 4, ..how }),
            "12 groups do not divide 12 experts",
        ),
        (
            router::sigmoid_topk(&x, &bias, &Sigmoid { topk_group: 4, ..how }),
            "4 of 3 groups do not hold 4 experts",
        ),
        (
            router::sigmoid_topk(&x, &bias, &Sigmoid { k: 9, ..how }),
            "2 of 3 groups do not hold 9 experts",
        ),
    ] {
        let message = found.unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}
