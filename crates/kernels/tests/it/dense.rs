//! Products with matrices of floats: the backend's form against the twin and against sums in f64.

use kernels::dense::{product, product_transposed, products, reference, swiglu};
use mlx::{Array, Backend, Dtype};

use crate::{Values, close, device};

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

/// Of results in this dtype, whose sums are those of f32.
fn bound(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 1e-6,
        Dtype::F16 => 5e-4,
        _ => 4e-3,
    }
}

/// What the product of `x` `[rows, in]` and `w` `[out, in]` is, by the definition.
fn by_definition(x: &Array, w: &Array) -> Vec<f64> {
    let n_in = x.dim(-1) as usize;
    let (x, w) = (x.to_f32_vec().unwrap(), w.to_f32_vec().unwrap());
    let sum =
        |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    x.chunks(n_in).flat_map(|x| w.chunks(n_in).map(move |w| sum(x, w))).collect()
}

#[track_caller]
fn check(what: &str, x: &Array, w: &Array) {
    let found = product(x, w).unwrap();
    let wanted = reference(x, w).unwrap();
    assert_eq!(found.dtype(), x.dtype(), "{what}");
    close(what, &found, &wanted, bound(x.dtype()));
}

#[test]
fn every_number_of_rows_is_the_sum_and_agrees_with_the_twin() {
    let _device = device();
    for (n_in, n_out) in [(48, 31), (129, 70), (1, 5), (7, 1), (523, 150)] {
        for n_rows in (1..=9).chain([16, 17, 67]) {
            let mut values = Values((n_rows * 1000 + n_in) as u64);
            let x = values.array(&[n_rows, n_in], |v| v);
            let w = values.array(&[n_out, n_in], |v| v);
            let what = format!("{n_rows} rows of {n_in} to {n_out}");
            check(&what, &x, &w);
            let found = product(&x, &w).unwrap().to_f32_vec().unwrap();
            let wanted = by_definition(&x, &w);
            let largest = wanted.iter().fold(0f64, |most, v| most.max(v.abs()));
            for (found, wanted) in found.into_iter().zip(wanted) {
                let off = (f64::from(found) - wanted).abs();
                assert!(off <= 1e-5 * largest, "{what}: {found} for {wanted}");
            }
        }
    }
}

#[test]
fn x_and_w_may_have_different_dtypes() {
    let _device = device();
    for (x_dtype, w_dtype) in DTYPES.into_iter().flat_map(|x| DTYPES.map(|w| (x, w))) {
        for n_rows in [1, 4, 7, 20] {
            let mut values = Values(n_rows as u64);
            let x = values.array(&[n_rows, 3, 77], |v| v).astype(x_dtype).unwrap();
            let w = values.array(&[45, 77], |v| v).astype(w_dtype).unwrap();
            check(&format!("{n_rows} rows, {x_dtype} and {w_dtype}"), &x, &w);
        }
    }
}

#[test]
fn few_rows_of_16_bits_agree_with_the_twin_and_on_cuda_are_the_same_alone() {
    let device = device();
    for dtype in [Dtype::Bf16, Dtype::F16] {
        for (n_in, n_out) in [(32, 5), (96, 16), (320, 45), (2080, 70)] {
            for n_rows in [1, 3, 8, 9, 17, 32, 33] {
                let mut values = Values((n_rows * 1000 + n_in) as u64);
                let x = values.array(&[n_rows, n_in], |v| v).astype(dtype).unwrap();
                let w = values.array(&[n_out, n_in], |v| v).astype(dtype).unwrap();
                let what = format!("{n_rows} rows of {n_in} to {n_out}, {dtype}");
                check(&what, &x, &w);
                if n_rows > 8 || device.backend() != Backend::Cuda {
                    continue;
                }
                let all = product(&x, &w).unwrap();
                for i in 0..n_rows {
                    let row = |x: &Array| x.slice_axis(0, i..i + 1).unwrap();
                    let alone = product(&row(&x), &w).unwrap().to_bytes().unwrap();
                    assert_eq!(alone, row(&all).to_bytes().unwrap(), "{what}, row {i}");
                }
            }
        }
    }
}

#[test]
fn several_matrices_at_once_and_joined_ones_give_what_each_gives() {
    let _device = device();
    for (dtype, n_rows, n_in) in [
        (Dtype::Bf16, 1, 256),
        (Dtype::F16, 5, 96),
        (Dtype::Bf16, 31, 544),
        (Dtype::F32, 4, 64),
        (Dtype::Bf16, 3, 50),
        (Dtype::F16, 40, 64),
    ] {
        let mut values = Values(n_in as u64);
        let mut array = |shape: &[i32]| values.array(shape, |v| v).astype(dtype).unwrap();
        let x = array(&[n_rows, 1, n_in]);
        let all = [24, 7, 40].map(|n_out| array(&[n_out, n_in]));
        let found = products(&x, &all.each_ref()).unwrap();
        for (found, w) in found.iter().zip(&all) {
            let what = format!("{n_rows} rows of {n_in} to {}, {dtype}", w.dim(0));
            close(&what, found, &reference(&x, w).unwrap(), bound(dtype));
        }
        let up = array(&[24, n_in]);
        let [gate, of_up] = [&all[0], &up].map(|w| reference(&x, w).unwrap());
        let wanted = gate.silu().unwrap().mul(&of_up).unwrap();
        let what = format!("swiglu, {n_rows} rows of {n_in}, {dtype}");
        close(&what, &swiglu(&x, &all[0], &up).unwrap(), &wanted, 3.0 * bound(dtype));
        let message = swiglu(&x, &all[0], &all[1]).unwrap_err().to_string();
        assert!(message.contains("differ in their outputs"), "{message}");
    }
}

#[test]
fn a_matrix_for_each_head_is_that_heads_and_may_be_transposed() {
    let _device = device();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for n in [1, 3, 40] {
            let mut values = Values(n as u64 + 9);
            let w = values.array(&[5, 19, 26], |v| v).astype(dtype).unwrap();
            for heads in [5, 1] {
                let what = format!("{n} rows of {heads} heads, {dtype}");
                let x = values.array(&[2, heads, n, 26], |v| v).astype(dtype).unwrap();
                check(&what, &x, &w);
                let x = values.array(&[2, heads, n, 19], |v| v).astype(dtype).unwrap();
                let found = product_transposed(&x, &w).unwrap();
                assert_eq!(found.shape(), [2, 5, n, 26], "{what}");
                let wanted = reference(&x, &w.swap_axes(1, 2).unwrap()).unwrap();
                close(&what, &found, &wanted, bound(dtype));
            }
        }
    }
    // One row, and matrices for more axes than x has.
    let mut values = Values(3);
    let w = values.array(&[3, 2, 6, 10], |v| v);
    check("a row", &values.array(&[10], |v| v), &values.array(&[6, 10], |v| v));
    check("more matrices", &values.array(&[4, 10], |v| v), &w);
    check(
        "both broadcast",
        &values.array(&[3, 1, 4, 10], |v| v),
        &values.array(&[2, 6, 10], |v| v),
    );
}

#[test]
fn inputs_need_not_lie_compactly() {
    let _device = device();
    let mut values = Values(17);
    for dtype in DTYPES {
        for n in [2, 21] {
            let wide = values.array(&[n, 4, 70], |v| v).astype(dtype).unwrap();
            let w = values.array(&[33, 90], |v| v).astype(dtype).unwrap();
            let views = [
                ("a part of each row", wide.slice_axis(2, 7..40).unwrap()),
                ("rows turned", wide.slice_axis(2, 3..36).unwrap().swap_axes(0, 1).unwrap()),
                ("rows across", values.array(&[33, n], |v| v).swap_axes(0, 1).unwrap()),
                ("one row, repeated", values.array(&[33], |v| v).broadcast_to(&[n, 33]).unwrap()),
            ];
            let long = values.array(&[200], |v| v).astype(dtype).unwrap();
            let odd = long.slice_axis(0, 3..131).unwrap().reshape(&[2, 64]).unwrap();
            let wide_w = values.array(&[33, 64], |v| v).astype(dtype).unwrap();
            check(&format!("rows from an odd place, {dtype}"), &odd, &wide_w);
            for (what, x) in views {
                let what = format!("{what}, {n} rows, {dtype}");
                check(&what, &x, &w.slice_axis(1, 5..38).unwrap());
                check(&what, &x, &w.slice_axis(1, 0..29).unwrap().swap_axes(0, 1).unwrap());
            }
        }
    }
}

#[test]
fn nothing_gives_nothing_and_no_inputs_give_zeros() {
    let _device = device();
    let zeros = |shape: &[i32]| Array::zeros(shape, Dtype::F32).unwrap();
    assert_eq!(product(&zeros(&[0, 6]), &zeros(&[4, 6])).unwrap().to_f32_vec().unwrap(), []);
    assert_eq!(product(&zeros(&[3, 6]), &zeros(&[0, 6])).unwrap().shape(), [3, 0]);
    let half = |shape: &[i32]| Array::zeros(shape, Dtype::Bf16).unwrap();
    let found = product(&half(&[3, 64]), &half(&[0, 64])).unwrap();
    assert_eq!(found.to_f32_vec().unwrap(), []);
    let found = product(&zeros(&[2, 0]), &zeros(&[3, 0])).unwrap();
    assert_eq!(found.to_f32_vec().unwrap(), [0.0; 6]);
}

#[test]
fn bad_inputs_are_refused_with_a_reason() {
    let _device = device();
    let zeros = |shape: &[i32], dtype| Array::zeros(shape, dtype).unwrap();
    let f32 = |shape: &[i32]| zeros(shape, Dtype::F32);
    for (x, w, reason) in [
        (zeros(&[2, 6], Dtype::I32), f32(&[4, 6]), "x must be f32, f16 or bf16"),
        (f32(&[2, 6]), zeros(&[4, 6], Dtype::U32), "w must be f32, f16 or bf16"),
        (f32(&[2, 6]), f32(&[6, 4]), "do not fit"),
        (f32(&[2, 6]), f32(&[6]), "do not fit"),
        (f32(&[6]), f32(&[2, 4, 6]), "do not fit"),
        (f32(&[3, 5, 6]), f32(&[2, 4, 6]), "do not fit"),
    ] {
        let results = [product(&x, &w), reference(&x, &w)];
        for found in results {
            let message = found.unwrap_err().to_string();
            assert!(message.contains(reason), "{message}");
        }
        let transposed = if w.n_dims() < 2 { w } else { w.swap_axes(-1, -2).unwrap() };
        assert!(product_transposed(&x, &transposed).is_err());
    }
}
