//! Products with chosen matrices: the backend's form against the twin.

use kernels::experts::{product, reference};
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
