//! Quantized products: the backend's form against the twin, and against sums in f64.

use kernels::quantized::{
    chosen, chosen_swiglu, floats, product_onto, products, reference, swiglu,
};
use mlx::{Array, Backend, Dtype, QuantMode, Quantization, Quantized};

use crate::{Values, close, device};

const FORMS: [(QuantMode, i32, i32); 15] = [
    (QuantMode::Affine, 2, 32),
    (QuantMode::Affine, 2, 128),
    (QuantMode::Affine, 3, 64),
    (QuantMode::Affine, 3, 32),
    (QuantMode::Affine, 4, 32),
    (QuantMode::Affine, 4, 64),
    (QuantMode::Affine, 4, 128),
    (QuantMode::Affine, 5, 64),
    (QuantMode::Affine, 6, 32),
    (QuantMode::Affine, 6, 128),
    (QuantMode::Affine, 8, 32),
    (QuantMode::Affine, 8, 64),
    (QuantMode::Mxfp4, 4, 32),
    (QuantMode::Mxfp8, 8, 32),
    (QuantMode::Nvfp4, 4, 16),
];

/// Activations of these dtypes, and how far products may be off.
const DTYPES: [(Dtype, f64); 3] = [(Dtype::F32, 1e-5), (Dtype::Bf16, 5e-3), (Dtype::F16, 5e-3)];

/// On CUDA weights may become floats of 16 bits on the way.
fn loosened(bound: f64) -> f64 {
    match (device().backend(), bound > 1e-4) {
        (Backend::Cuda, true) => 2.0 * bound,
        _ => bound,
    }
}

fn quantized(
    values: &mut Values,
    shape: &[i32],
    dtype: Dtype,
    form: (QuantMode, i32, i32),
) -> Quantized {
    let (mode, bits, group_size) = form;
    let w = values.array(shape, |v| v).astype(dtype).unwrap();
    w.quantize(Quantization { mode, bits, group_size }).unwrap()
}

/// x·wᵀ in f64, of what x and w hold after rounding.
fn exact(x: &Array, w: &Quantized) -> Vec<f64> {
    let (n_in, n_out) = (x.dim(-1) as usize, w.weight.dim(-2) as usize);
    let x = x.astype(Dtype::F32).unwrap().to_f32_vec().unwrap();
    let w = floats(w).unwrap().to_f32_vec().unwrap();
    let product = |x: &[f32], w: &[f32]| {
        x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>()
    };
    let rows = x.chunks(n_in);
    rows.flat_map(|x| w.chunks(n_in).take(n_out).map(|w| product(x, w)).collect::<Vec<_>>())
        .collect()
}

#[track_caller]
fn close_to(what: &str, found: &Array, wanted: &[f64], bound: f64) {
    let found = found.astype(Dtype::F32).unwrap().to_f32_vec().unwrap();
    assert_eq!(found.len(), wanted.len(), "{what}");
    let off = found.iter().zip(wanted).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>();
    let size = wanted.iter().map(|b| b * b).sum::<f64>();
    assert!(off.sqrt() <= bound * size.sqrt(), "{what}: {:.2e}", (off / size).sqrt());
}

#[test]
fn products_of_every_form_agree_with_sums_in_f64() {
    let _device = device();
    for form in FORMS {
        for (dtype, bound) in DTYPES.map(|(dtype, bound)| (dtype, loosened(bound))) {
            for (n, groups, n_out) in [(1, 3, 37), (2, 1, 5), (5, 4, 33), (13, 5, 70), (32, 40, 17)]
            {
                let n_in = groups * form.2.max(32);
                let mut values = Values((n_in * n_out + n) as u64);
                let w = quantized(&mut values, &[n_out, n_in], dtype, form);
                let x = values.array(&[n, n_in], |v| 3.0 * v).astype(dtype).unwrap();
                let what = format!("{n} × {n_in} → {n_out}, {form:?}, {dtype}");
                let found = products(&x, &[&w]).unwrap().remove(0);
                assert_eq!((found.shape(), found.dtype()), (&[n, n_out][..], dtype), "{what}");
                close_to(&what, &found, &exact(&x, &w), bound);
                close(&what, &found, &reference(&x, &w, None).unwrap(), bound);
            }
        }
    }
}

#[test]
fn several_matrices_at_once_give_what_each_gives_alone() {
    let _device = device();
    let mut values = Values(5);
    let x = values.array(&[2, 3, 128], |v| v).astype(Dtype::Bf16).unwrap();
    let forms = [FORMS[5], FORMS[4], FORMS[10], FORMS[13]];
    let sizes = [24, 7, 40, 9];
    let all = forms
        .iter()
        .zip(sizes)
        .map(|(form, n_out)| quantized(&mut values, &[n_out, 128], Dtype::Bf16, *form));
    let all = all.collect::<Vec<_>>();
    let together = products(&x, &all.iter().collect::<Vec<_>>()).unwrap();
    for ((found, w), n_out) in together.iter().zip(&all).zip(sizes) {
        assert_eq!(found.shape(), [2, 3, n_out]);
        let alone = products(&x, &[w]).unwrap().remove(0);
        assert_eq!(found.to_bytes().unwrap(), alone.to_bytes().unwrap());
    }
}

#[test]
fn a_row_gives_the_same_alone_and_among_others() {
    let device = device();
    let n = 29;
    let mut values = Values(77);
    for form in [FORMS[4], FORMS[5], FORMS[11], FORMS[8], FORMS[12]] {
        // MLX's products know no such promise.
        if device.backend() != Backend::Cpu && !matches!(form, (QuantMode::Affine, 4 | 8, _)) {
            continue;
        }
        let w = quantized(&mut values, &[45, 256], Dtype::Bf16, form);
        let x = values.array(&[n, 256], |v| v).astype(Dtype::Bf16).unwrap();
        let all = products(&x, &[&w]).unwrap().remove(0);
        for i in 0..n {
            let row = x.slice_axis(0, i..i + 1).unwrap();
            let alone = products(&row, &[&w]).unwrap().remove(0);
            let among = all.slice_axis(0, i..i + 1).unwrap();
            assert_eq!(alone.to_bytes().unwrap(), among.to_bytes().unwrap(), "{form:?}, row {i}");
        }
    }
}

#[test]
fn gate_and_up_are_joined_as_their_products_would_be() {
    let _device = device();
    for (form, n) in [(FORMS[5], 3), (FORMS[12], 3), (FORMS[11], 9), (FORMS[4], 32)] {
        for (dtype, bound) in DTYPES {
            let mut values = Values(form.1 as u64);
            let [gate, up] = [0, 1].map(|_| quantized(&mut values, &[50, 192], dtype, form));
            let x = values.array(&[n, 192], |v| v).astype(dtype).unwrap();
            let wide = x.astype(Dtype::F32).unwrap();
            let by = |w| reference(&wide, w, None).unwrap();
            let wanted = by(&gate).silu().unwrap().mul(&by(&up)).unwrap().astype(dtype).unwrap();
            let found = swiglu(&x, &gate, &up).unwrap();
            assert_eq!((found.shape(), found.dtype()), (&[n, 50][..], dtype));
            close(&format!("{form:?} {dtype}"), &found, &wanted, 2.0 * bound);
        }
    }
}

#[test]
fn chosen_matrices_agree_with_the_twin() {
    let _device = device();
    for form in [FORMS[5], FORMS[4], FORMS[11], FORMS[12], FORMS[13], FORMS[14]] {
        for (dtype, bound) in DTYPES.map(|(dtype, bound)| (dtype, loosened(bound))) {
            for (n, k, n_matrices, n_out) in [(1, 2, 5, 133), (7, 3, 4, 20), (40, 4, 6, 35)] {
                let n_in = 384;
                let mut values = Values(n as u64);
                let w = quantized(&mut values, &[n_matrices, n_out, n_in], dtype, form);
                let up = quantized(&mut values, &[n_matrices, n_out, n_in], dtype, form);
                let mut list = (0..n * k).map(|i| (i * 7 + 3) as u32 % n_matrices as u32);
                let what = format!("{n} rows, {k} of {n_matrices}, {form:?}, {dtype}");
                let x = values.array(&[n, 1, 1, n_in], |v| v).astype(dtype).unwrap();
                let which = list.by_ref().collect::<Vec<_>>();
                let which = Array::from_slice(&which, &[n, k]).unwrap();
                let found = chosen(&x, &w, &which, false).unwrap();
                assert_eq!((found.shape(), found.dtype()), (&[n, k, 1, n_out][..], dtype));
                let wanted = reference(&x, &w, Some(&which)).unwrap();
                close(&what, &found, &wanted, bound);
                let wide = x.astype(Dtype::F32).unwrap();
                let by = |w| reference(&wide, w, Some(&which)).unwrap();
                let wanted = by(&w).silu().unwrap().mul(&by(&up)).unwrap().astype(dtype).unwrap();
                let found = chosen_swiglu(&x, &w, &up, &which, false).unwrap();
                close(&what, &found, &wanted, 2.0 * bound);
                // A row of x for each pair, in the matrices' order.
                let mut sorted = which.to_vec::<u32>().unwrap();
                sorted.sort_unstable();
                let which = Array::from_slice(&sorted, &[n * k]).unwrap();
                let x = values.array(&[n * k, 1, n_in], |v| v).astype(dtype).unwrap();
                let wanted = reference(&x, &w, Some(&which)).unwrap();
                close(&what, &chosen(&x, &w, &which, true).unwrap(), &wanted, bound);
            }
        }
    }
}

#[test]
fn infinities_and_nans_are_not_hidden_by_rounding() {
    let _device = device();
    let mut values = Values(3);
    let w = quantized(&mut values, &[9, 64], Dtype::Bf16, FORMS[5]);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = vec![1.0f32; 64];
        x[17] = bad;
        let x = Array::from_slice(&x, &[1, 64]).unwrap().astype(Dtype::Bf16).unwrap();
        let y = products(&x, &[&w]).unwrap().remove(0).to_f32_vec().unwrap();
        assert!(y.iter().all(|y| !y.is_finite()), "{bad}: {y:?}");
    }
}

#[test]
fn what_another_matrix_left_behind_does_not_reach_a_row_that_ends_inside_a_block() {
    let _device = device();
    let mut values = Values(8);
    let (mxfp8, x) = (FORMS[13], values.array(&[3, 64], |v| v));
    // Codes of all ones are no numbers in E4M3.
    let mut broken = quantized(&mut values, &[64, 64], Dtype::F32, mxfp8);
    broken.weight = Array::from_slice(&[u32::MAX; 64 * 16], &[64, 16]).unwrap();
    let short = quantized(&mut values, &[40, 32], Dtype::F32, mxfp8);
    let narrow = x.slice_axis(1, 0..32).unwrap();
    for _ in 0..20 {
        products(&x, &[&broken]).unwrap()[0].eval().unwrap();
        let found = products(&narrow, &[&short]).unwrap().remove(0);
        close_to("a short row", &found, &exact(&narrow, &short), 1e-5);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = device();
    let mut values = Values(1);
    let w = quantized(&mut values, &[9, 128], Dtype::F32, FORMS[5]);
    let zeros = |shape: &[i32], dtype| Array::zeros(shape, dtype).unwrap();
    let said = products(&zeros(&[2, 64], Dtype::F32), &[&w]).unwrap_err().to_string();
    assert!(said.contains("do not fit x"), "{said}");
    let said = products(&zeros(&[2, 128], Dtype::I32), &[&w]).unwrap_err().to_string();
    assert!(said.contains("x must be f32, f16 or bf16"), "{said}");
    let other = quantized(&mut values, &[8, 128], Dtype::F32, FORMS[5]);
    let said = swiglu(&zeros(&[2, 128], Dtype::F32), &w, &other).unwrap_err().to_string();
    assert!(said.contains("differ in their outputs"), "{said}");
    let stack = quantized(&mut values, &[3, 8, 128], Dtype::F32, FORMS[5]);
    let x = zeros(&[2, 1, 128], Dtype::F32);
    let said = chosen(&x, &stack, &zeros(&[3], Dtype::U32), false).unwrap_err().to_string();
    assert!(said.contains("do not fit the indices"), "{said}");
    if device.backend() == Backend::Cpu {
        let beyond = Array::from_slice(&[1u32, 3], &[2]).unwrap();
        let said = chosen(&x, &stack, &beyond, false).unwrap().eval().unwrap_err().to_string();
        assert!(said.contains("matrix 3 is none of 3"), "{said}");
    }
}

#[test]
fn a_product_is_added_to_what_it_continues() {
    let _device = device();
    for form in [FORMS[5], FORMS[11], FORMS[12]] {
        for (dtype, bound) in DTYPES {
            for (n, n_out) in [(1, 37), (5, 33)] {
                let mut values = Values((n_out + n) as u64);
                let w = quantized(&mut values, &[n_out, 192], dtype, form);
                let x = values.array(&[2, n, 192], |v| v).astype(dtype).unwrap();
                let onto = values.array(&[2, n, n_out], |v| 9.0 * v).astype(dtype).unwrap();
                let found = product_onto(&onto, &x, &w).unwrap();
                let before = onto.to_f32_vec().unwrap();
                let sums = exact(&x, &w).into_iter().zip(before).map(|(y, b)| y + f64::from(b));
                let what = format!("{n} to {n_out}, {form:?}, {dtype}");
                close_to(&what, &found, &sums.collect::<Vec<_>>(), bound);
                let short = onto.slice_axis(2, 0..n_out - 1).unwrap();
                let message = product_onto(&short, &x, &w).unwrap_err().to_string();
                assert!(message.contains("onto must have shape"), "{message}");
            }
        }
    }
}
