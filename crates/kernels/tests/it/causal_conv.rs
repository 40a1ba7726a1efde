//! The causal convolution: the backend's form against the twin.

use kernels::{CausalConv, Convolved};
use mlx::{Array, Dtype};

use crate::{Values, close, device};

struct Inputs {
    u: Array,
    tail: Array,
    weight: Array,
}

impl Inputs {
    fn new([rows, steps, channels, width]: [i32; 4], dtype: Dtype) -> Self {
        let mut values = Values(steps as u64 + 3);
        let cast = |x: Array| x.astype(dtype).unwrap();
        Self {
            u: cast(values.array(&[rows, steps, channels], |x| 2.0 * x)),
            tail: cast(values.array(&[rows, width - 1, channels], |x| 2.0 * x)),
            weight: cast(values.array(&[channels, width], |x| x)),
        }
    }

    fn conv(&self) -> CausalConv<'_> {
        CausalConv { u: &self.u, tail: Some(&self.tail), weight: &self.weight, lengths: None }
    }
}

#[track_caller]
fn same(what: &str, found: &Convolved, wanted: &Convolved) {
    let dtype = wanted.out.dtype();
    assert_eq!((found.out.dtype(), found.tail.dtype()), (dtype, dtype), "{what}");
    let bound = if dtype == Dtype::F32 { 1e-6 } else { 1e-3 };
    close(&format!("{what}, out"), &found.out, &wanted.out, bound);
    close(&format!("{what}, tail"), &found.tail, &wanted.tail, 0.0);
}

#[test]
fn the_twin_agrees_with_the_sum_written_as_loops() {
    let _device = device();
    let x = Inputs::new([2, 5, 3, 4], Dtype::F32);
    let vec = |x: &Array| x.to_f32_vec().unwrap();
    let (u, tail, weight) = (vec(&x.u), vec(&x.tail), vec(&x.weight));
    let mut out = Vec::new();
    for (b, t, c) in (0..2).flat_map(|b| (0..5).flat_map(move |t| (0..3).map(move |c| (b, t, c)))) {
        let sum = (0..4)
            .map(|j| {
                let row = if t + j < 3 {
                    tail[(b * 3 + t + j) * 3 + c]
                } else {
                    u[(b * 5 + t + j - 3) * 3 + c]
                };
                row * weight[c * 4 + j]
            })
            .sum::<f32>();
        out.push(sum / (1.0 + (-sum).exp()));
    }
    let found = x.conv().reference().unwrap();
    close("out", &found.out, &Array::from_slice(&out, &[2, 5, 3]).unwrap(), 1e-6);
    close("tail", &found.tail, &x.u.slice_axis(1, 2..5).unwrap(), 0.0);
}

#[test]
fn every_size_and_dtype_agrees_with_the_twin() {
    let _device = device();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        for sizes in [[3, 1, 10, 4], [2, 2, 7, 4], [1, 3, 600, 4], [2, 37, 258, 4]] {
            let x = Inputs::new(sizes, dtype);
            let what = format!("{sizes:?} {dtype}");
            same(&what, &x.conv().run().unwrap(), &x.conv().reference().unwrap());
            let fresh = CausalConv { tail: None, ..x.conv() };
            same(&what, &fresh.run().unwrap(), &fresh.reference().unwrap());
        }
    }
    for width in [2, 3, 8] {
        let x = Inputs::new([2, 5, 12, width], Dtype::F32);
        same("width", &x.conv().run().unwrap(), &x.conv().reference().unwrap());
    }
}

#[test]
fn a_sequence_parted_anywhere_gives_the_same() {
    let _device = device();
    let x = Inputs::new([2, 21, 6, 4], Dtype::F32);
    let whole = x.conv().run().unwrap();
    for at in [1, 2, 3, 4, 16, 17, 20] {
        let part = |range| x.u.slice_axis(1, range).unwrap();
        let (first, second) = (part(0..at), part(at..21));
        let before = CausalConv { u: &first, ..x.conv() }.run().unwrap();
        let after = CausalConv { u: &second, tail: Some(&before.tail), ..x.conv() }.run().unwrap();
        let out = mlx::concatenate(&[&before.out, &after.out], 1).unwrap();
        same("parted", &Convolved { out, tail: after.tail }, &whole);
    }
}

#[test]
fn the_tail_ends_where_each_sequence_ends() {
    let _device = device();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let mut x = Inputs::new([5, 20, 6, 4], dtype);
        let lengths = [20, 1, 0, 2, 17];
        let lens = Array::from_slice(&lengths, &[5]).unwrap();
        let step = Array::arange(0.0, 20.0, 1.0, Dtype::I32).unwrap();
        let behind =
            step.reshape(&[1, 20, 1]).unwrap().ge(&lens.reshape(&[5, 1, 1]).unwrap()).unwrap();
        x.u = behind.select(&Array::scalar(f32::NAN, dtype).unwrap(), &x.u).unwrap();
        for tail in [Some(&x.tail), None] {
            let conv = CausalConv { lengths: Some(&lens), tail, ..x.conv() };
            for (form, found) in [("run", conv.run().unwrap()), ("twin", conv.reference().unwrap())]
            {
                let finite = found.out.is_finite().unwrap().all(&[0, 1, 2]).unwrap();
                assert!(finite.item::<bool>().unwrap(), "{form}");
                for (b, &n) in lengths.iter().enumerate() {
                    let row = |x: &Array| x.slice_axis(0, b as i32..b as i32 + 1).unwrap();
                    let before = tail.map(row);
                    if n == 0 {
                        let kept = before.unwrap_or_else(|| row(&x.tail).scale(0.0).unwrap());
                        close(form, &row(&found.tail), &kept, 0.0);
                        continue;
                    }
                    let u = row(&x.u).slice_axis(1, 0..n).unwrap();
                    let alone = CausalConv { u: &u, tail: before.as_ref(), ..x.conv() };
                    let out = row(&found.out).slice_axis(1, 0..n).unwrap();
                    let found = Convolved { out, tail: row(&found.tail) };
                    same(&format!("{form}, row {b}"), &found, &alone.reference().unwrap());
                }
            }
        }
    }
}

#[test]
fn inputs_need_not_lie_compactly() {
    let _device = device();
    let x = Inputs::new([2, 9, 6, 4], Dtype::Bf16);
    let wanted = x.conv().reference().unwrap();
    let wide = |x: &Array| {
        let wide = mlx::concatenate(&[x, x], -1).unwrap();
        wide.slice_axis(-1, x.dim(-1)..2 * x.dim(-1)).unwrap()
    };
    let views = Inputs { u: wide(&x.u), tail: wide(&x.tail), weight: wide(&x.weight) };
    same("views", &views.conv().run().unwrap(), &wanted);
    // A view that begins at an odd element but is compact.
    let flat =
        mlx::concatenate(&[&x.u.reshape(&[-1]).unwrap(), &x.u.reshape(&[-1]).unwrap()], 0).unwrap();
    let n = x.u.n_elements() as i32;
    let odd = flat.slice_axis(0, 1..n + 1).unwrap();
    let (first, rest) =
        (odd.slice_axis(0, n - 1..n).unwrap(), odd.slice_axis(0, 0..n - 1).unwrap());
    let back = mlx::concatenate(&[&first, &rest], 0).unwrap();
    assert_eq!(back.to_f32_vec().unwrap(), x.u.to_f32_vec().unwrap());
    let u = odd.reshape(&[2, 9, 6]).unwrap();
    let shifted = CausalConv { u: &u, ..x.conv() };
    same("odd start", &shifted.run().unwrap(), &shifted.reference().unwrap());
}

#[test]
fn bad_inputs_are_refused_with_a_reason() {
    let _device = device();
    let x = Inputs::new([2, 5, 6, 4], Dtype::F32);
    let conv = x.conv();
    let half = x.tail.astype(Dtype::Bf16).unwrap();
    let long = x.u.slice_axis(1, 0..4).unwrap();
    let turned = x.weight.swap_axes(0, 1).unwrap();
    let narrow = x.weight.slice_axis(1, 0..1).unwrap();
    let ints = x.u.astype(Dtype::I32).unwrap();
    let lengths = Array::from_slice(&[1.0f32, 2.0], &[2]).unwrap();
    let none = x.u.slice_axis(1, 0..0).unwrap();
    let flat = x.u.reshape(&[-1]).unwrap();
    for (conv, reason) in [
        (CausalConv { u: &flat, ..conv }, "u must have 3 dimensions"),
        (CausalConv { u: &ints, ..conv }, "u must be f32, f16 or bf16"),
        (CausalConv { u: &none, ..conv }, "no dimension of u may be 0"),
        (CausalConv { tail: Some(&half), ..conv }, "tail must be f32"),
        (CausalConv { tail: Some(&long), ..conv }, "tail must have shape [2, 3, 6]"),
        (CausalConv { weight: &turned, ..conv }, "weight must have shape [6, 6]"),
        (CausalConv { weight: &narrow, ..conv }, "a kernel of 1 steps is not among 2..=8"),
        (CausalConv { lengths: Some(&lengths), ..conv }, "lengths must be i32"),
    ] {
        for found in [conv.run(), conv.reference()] {
            let message = found.unwrap_err().to_string();
            assert!(message.contains(reason), "{message}");
        }
    }
}
