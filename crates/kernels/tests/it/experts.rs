//! Products with chosen matrices: the backend's form against the twin.

use kernels::experts::{Shared, Sum, product, reference};
use mlx::{Array, Dtype};

use crate::{Values, bound, close, device};

/// Ascending if `sorted`, else in an order of their own.
fn indices(n: i32, n_matrices: i32, sorted: bool, shape: &[i32]) -> Array {
    let mut list = (0..n).map(|i| (i * 7 + 3) as u32 % n_matrices as u32).collect::<Vec<_>>();
    if sorted {
        list.sort_unstable();
    }
    Array::from_slice(&list, shape).unwrap()
}

#[test]
fn rows_of_chosen_matrices_agree_with_the_twin() {
    let _device = device();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        for (n, k, n_matrices, n_in, n_out) in [
            (1, 2, 5, 24, 33),
            (3, 4, 7, 50, 19),
            (9, 8, 12, 129, 70),
            (2, 1, 1, 3, 4),
            (5, 3, 4, 416, 21),
            // Matrices with so many rows that they are written out first.
            (31, 6, 5, 270, 37),
        ] {
            let mut values = Values(n as u64 * 100 + n_out as u64);
            let w = values.array(&[n_matrices, n_out, n_in], |v| v).astype(dtype).unwrap();
            let what = format!("{n} rows of {n_in}, {k} of {n_matrices} matrices, {dtype}");
            // One row of x for all of its matrices.
            let x = values.array(&[n, 1, 1, n_in], |v| v).astype(dtype).unwrap();
            let which = indices(n * k, n_matrices, false, &[n, k]);
            let wanted = reference(&x, &w, &which).unwrap();
            let found = product(&x, &w, &which, false).unwrap();
            assert_eq!((found.shape(), found.dtype()), (&[n, k, 1, n_out][..], dtype), "{what}");
            close(&what, &found, &wanted, bound(dtype));
            // The same, chosen the other way round by a view.
            let turned = which.swap_axes(0, 1).unwrap();
            let rows = x.reshape(&[1, n, 1, n_in]).unwrap();
            let found = product(&rows, &w, &turned, false).unwrap().swap_axes(0, 1).unwrap();
            close(&what, &found, &wanted, bound(dtype));
            // One row for each matrix, in the matrices' order. An inserted axis has a stride of
            // its own.
            let x = values.array(&[n * k, n_in], |v| v).astype(dtype).unwrap();
            let x = x.expand_dims(&[1]).unwrap();
            let which = indices(n * k, n_matrices, true, &[n * k]);
            let wanted = reference(&x, &w, &which).unwrap();
            close(&what, &product(&x, &w, &which, true).unwrap(), &wanted, bound(dtype));
        }
    }
}

#[test]
fn rows_that_do_not_fit_and_matrices_that_are_not_there_are_refused() {
    let device = device();
    let array = |shape: &[i32], dtype| Array::zeros(shape, dtype).unwrap();
    let (x, w) = (array(&[2, 1, 6], Dtype::F32), array(&[3, 4, 5], Dtype::F32));
    let which = indices(2, 3, true, &[2]);
    let said = product(&x, &w, &which, true).unwrap_err().to_string();
    assert!(said.contains("do not fit"), "{said}");
    for rows in [array(&[3, 1, 6], Dtype::F32), array(&[1, 2, 1, 6], Dtype::F32)] {
        let found = product(&rows, &array(&[3, 4, 6], Dtype::F32), &which, true);
        let said = found.unwrap_err().to_string();
        assert!(said.contains("rows and indices do not fit"), "{said}");
    }
    let said = product(&x, &array(&[3, 4, 6], Dtype::U32), &which, true).unwrap_err().to_string();
    assert!(said.contains("w must be f32, f16 or bf16"), "{said}");
    if device.backend() == mlx::Backend::Cpu {
        let beyond = Array::from_slice(&[1u32, 3], &[2]).unwrap();
        let found = product(&x, &array(&[3, 4, 6], Dtype::F32), &beyond, true).unwrap();
        let said = found.eval().unwrap_err().to_string();
        assert!(said.contains("matrix 3 is none of 3"), "{said}");
    }
}

#[test]
fn weighed_experts_are_added_onto_tokens_as_in_the_twin() {
    let _device = device();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        for (n, k, width, has_places, has_shared, has_gate) in [
            (1, 8, 2048, false, true, true),
            (3, 2, 7, true, false, false),
            (5, 1, 20, false, false, false),
            (37, 6, 1026, true, true, true),
            (2, 3, 1, false, true, false),
        ] {
            let mut values = Values(n as u64 * 1000 + width as u64);
            let mut array = |shape: &[i32]| values.array(shape, |v| v).astype(dtype).unwrap();
            let (onto, y) = (array(&[n, width]), array(&[n * k, width]));
            let (shared, gate) = (array(&[n, width]), array(&[n, 1]));
            let weights = array(&[n, k]).astype(Dtype::F32).unwrap();
            let places = (0..n * k).map(|i| (n * k - 1 - i) as u32).collect::<Vec<_>>();
            let places = Array::from_slice(&places, &[n, k]).unwrap();
            let shared = Shared { y: &shared, gate: has_gate.then_some(&gate) };
            let sum = Sum {
                onto: &onto,
                y: &y,
                places: has_places.then_some(&places),
                weights: &weights,
                shared: has_shared.then_some(shared),
            };
            let what = format!("{n} tokens of {width}, {k} experts, {dtype}");
            let found = sum.run().unwrap();
            assert_eq!(found.dtype(), dtype, "{what}");
            close(&what, &found, &sum.reference().unwrap(), bound(dtype));
        }
    }
}

#[test]
fn sums_of_what_does_not_fit_are_refused() {
    let device = device();
    let array = |shape: &[i32], dtype| Array::zeros(shape, dtype).unwrap();
    let (onto, y) = (array(&[2, 6], Dtype::F32), array(&[4, 6], Dtype::F32));
    let weights = array(&[2, 2], Dtype::F32);
    let sum = Sum { onto: &onto, y: &y, places: None, weights: &weights, shared: None };
    let short = array(&[3, 6], Dtype::F32);
    let said = Sum { y: &short, ..sum }.run().unwrap_err().to_string();
    assert!(said.contains("y must have shape [4, 6]"), "{said}");
    let said = Sum { weights: &array(&[2, 2], Dtype::F16), ..sum }.run().unwrap_err().to_string();
    assert!(said.contains("weights must be f32"), "{said}");
    let shared = Some(Shared { y: &short, gate: None });
    let said = Sum { shared, ..sum }.run().unwrap_err().to_string();
    assert!(said.contains("shared must have shape [2, 6]"), "{said}");
    if device.backend() == mlx::Backend::Cpu {
        let places = Array::from_slice(&[0u32, 1, 2, 4], &[2, 2]).unwrap();
        let said = Sum { places: Some(&places), ..sum }.run().unwrap().eval();
        assert!(said.unwrap_err().to_string().contains("a place is none of 4 rows"));
    }
}
