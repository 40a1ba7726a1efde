//! Rows in the order of their matrices: orders, and products against those of dequantized matrices.

use kernels::experts::reference;
use kernels::grouped::Groups;
use mlx::{Array, Dtype, QuantMode, Quantization, Quantized};

use crate::{Values, bound, close, device};

/// As many pairs for each matrix as chance has it, and none for the last.
fn which(n: i32, k: i32, n_matrices: i32) -> (Vec<u32>, Array) {
    let mut values = Values(n as u64 * 31 + k as u64);
    let others = (n_matrices - 1).max(1);
    let index = |x: f32| ((x.abs() * others as f32) as i32).min(others - 1) as u32;
    let list = (0..n * k).map(|_| index(values.next())).collect::<Vec<_>>();
    let array = Array::from_slice(&list, &[n, k]).unwrap();
    (list, array)
}

#[test]
fn pairs_come_in_the_order_of_their_matrices_and_every_one_has_a_place() {
    let _device = device();
    for (n, k, n_matrices) in [(1, 1, 1), (1, 8, 128), (70, 3, 5), (513, 8, 1100), (2000, 2, 3)] {
        let (list, array) = which(n, k, n_matrices);
        let groups = Groups::of(&array, n_matrices).unwrap();
        let mut wanted = list.clone();
        wanted.sort_unstable();
        assert_eq!(groups.which().unwrap().to_vec::<u32>().unwrap(), wanted, "{n} rows of {k}");
        let places = groups.places.to_vec::<u32>().unwrap();
        let at_places = places.iter().map(|&place| wanted[place as usize]).collect::<Vec<_>>();
        assert_eq!(at_places, list, "{n} rows of {k}");
        let mut sorted = places.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..(n * k) as u32), "{n} rows of {k}");
        // The row of each pair is at the pair's place.
        let numbers = (0..n).map(|i| i as f32).collect::<Vec<_>>();
        let x = Array::from_slice(&numbers, &[n, 1]).unwrap();
        let rows = groups.rows(&x).unwrap().to_f32_vec().unwrap();
        let is_own =
            |(pair, &place): (usize, &u32)| rows[place as usize] as usize == pair / k as usize;
        assert!(places.iter().enumerate().all(is_own), "{n} rows of {k}");
    }
}

fn floats(w: &Quantized) -> Array {
    w.dequantize(Dtype::F32).unwrap()
}

#[test]
fn products_of_rows_in_order_are_those_of_dequantized_matrices() {
    let _device = device();
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        for (n, k, n_matrices, n_in, n_out, bits, group_size) in [
            (3, 2, 4, 128, 40, 4, 64),
            (90, 3, 5, 256, 264, 4, 32),
            (150, 2, 3, 192, 130, 8, 64),
            (40, 4, 7, 384, 300, 4, 128),
            // Inner sizes that are no whole steps.
            (20, 2, 3, 96, 24, 4, 32),
        ] {
            let mut values = Values((n * n_in + bits) as u64);
            let mut array = |shape: &[i32]| values.array(shape, |v| v).astype(dtype).unwrap();
            let quantization = Quantization { mode: QuantMode::Affine, bits, group_size };
            let [gate, up] =
                [0, 1].map(|_| array(&[n_matrices, n_out, n_in]).quantize(quantization).unwrap());
            let (x, rows) = (array(&[n, n_in]), array(&[n * k, n_in]));
            let (_, which) = which(n, k, n_matrices);
            let groups = Groups::of(&which, n_matrices).unwrap();
            let what = format!("{n} rows of {n_in} to {n_out}, {bits} bits, {dtype}");
            let found = groups.product(&rows, &gate).unwrap();
            let in_order = rows.expand_dims(&[1]).unwrap();
            let wanted = reference(&in_order, &floats(&gate), &groups.which().unwrap()).unwrap();
            close(&what, &found, &wanted.squeeze(&[1]).unwrap(), 3.0 * bound(dtype));
            let found = groups.swiglu(&x, &gate, &up).unwrap();
            let of = |w: &Quantized| {
                let rows = groups.rows(&x).unwrap().astype(Dtype::F32).unwrap();
                reference(&rows, &floats(w), &groups.which().unwrap()).unwrap()
            };
            let gates = of(&gate);
            let wanted = gates.sigmoid().unwrap().mul(&gates).unwrap().mul(&of(&up)).unwrap();
            let wanted = wanted.squeeze(&[1]).unwrap();
            close(&what, &found.astype(Dtype::F32).unwrap(), &wanted, 6.0 * bound(dtype));
        }
    }
}

#[test]
fn rows_and_stacks_that_do_not_fit_the_groups_are_refused() {
    let _device = device();
    let quantization = Quantization { mode: QuantMode::Affine, bits: 4, group_size: 64 };
    let stack =
        |n| Array::zeros(&[n, 8, 128], Dtype::Bf16).unwrap().quantize(quantization).unwrap();
    let rows = |n| Array::zeros(&[n, 128], Dtype::Bf16).unwrap();
    let groups = Groups::of(&which(70, 2, 3).1, 3).unwrap();
    for (n, stack) in [(70, stack(3)), (140, stack(2))] {
        let said = groups.product(&rows(n), &stack).unwrap_err().to_string();
        assert!(said.contains("140 rows of x, or stacks of 3 were expected"), "{said}");
    }
    let said = groups.swiglu(&rows(140), &stack(3), &stack(3)).unwrap_err().to_string();
    assert!(said.contains("70 rows of x"), "{said}");
    let narrow = Array::zeros(&[140, 64], Dtype::Bf16).unwrap();
    assert!(groups.product(&narrow, &stack(3)).is_err());
}

#[test]
fn indices_of_another_shape_or_dtype_are_refused() {
    let _device = device();
    let said = Groups::of(&Array::zeros(&[4], Dtype::U32).unwrap(), 3).unwrap_err().to_string();
    assert!(said.contains("which"), "{said}");
    let said = Groups::of(&Array::zeros(&[4, 1], Dtype::I32).unwrap(), 3).unwrap_err().to_string();
    assert!(said.contains("which must be u32"), "{said}");
}
