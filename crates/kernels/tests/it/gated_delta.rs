//! The gated delta rule: every form against the step-by-step twin.

use kernels::gated_delta::{Projected, gates, gates_reference};
use kernels::{GatedDelta, Updated};
use mlx::{Array, Dtype, Result};

use crate::{Values, bound, close, close_to_f64, device, doubles};

/// A form under test.
type Form = fn(&GatedDelta<'_>, &[i32]) -> Result<Updated>;

fn forms() -> Vec<(&'static str, Form)> {
    vec![
        ("update", |g, c| g.update(c)),
        ("chunked", |g, c| g.chunked(c)),
        ("built in", |g, c| g.built_in(c)),
    ]
}

/// Pairwise different sizes: rows, key heads, value heads, Dk, Dv.
#[derive(Clone, Copy)]
struct Sizes {
    rows: i32,
    k_heads: i32,
    v_heads: i32,
    k_dim: i32,
    v_dim: i32,
}

const USUAL: Sizes = Sizes { rows: 3, k_heads: 2, v_heads: 4, k_dim: 32, v_dim: 48 };

/// What the inputs are like.
#[derive(Clone, Copy)]
struct Like {
    dtype: Dtype,
    /// ln g lies in decay..0.
    decay: f32,
    /// β lies in this range.
    beta: (f32, f32),
    /// Share of a direction common to all keys.
    alike: f32,
}

const PLAIN: Like = Like { dtype: Dtype::F32, decay: -0.2, beta: (0.05, 0.95), alike: 0.3 };

struct Inputs {
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    state: Array,
}

fn normalised(x: &Array, factor: f32) -> Array {
    x.rms_norm(None, 1e-6 / x.dim(-1) as f32).unwrap().scale(factor).unwrap()
}

impl Inputs {
    fn new(s: Sizes, steps: i32, like: Like) -> Self {
        let mut values = Values(steps as u64 + 17);
        let keys = [s.rows, steps, s.k_heads, s.k_dim];
        let root = (s.k_dim as f32).sqrt().recip();
        let (lo, hi) = like.beta;
        let cast = |x: Array| x.astype(like.dtype).unwrap();
        Self {
            q: cast(normalised(&values.array(&keys, |x| x), root * root)),
            k: cast(normalised(
                &values.array(&keys, |x| x * (1.0 - like.alike) + like.alike),
                root,
            )),
            v: cast(values.array(&[s.rows, steps, s.v_heads, s.v_dim], |x| x)),
            log_decay: values.array(&[s.rows, steps, s.v_heads], |x| like.decay * (x + 1.0) / 2.0),
            beta: values.array(&[s.rows, steps, s.v_heads], |x| lo + (hi - lo) * (x + 1.0) / 2.0),
            state: values.array(&[s.rows, s.v_heads, s.v_dim, s.k_dim], |x| x * 0.2),
        }
    }

    fn rule(&self) -> GatedDelta<'_> {
        GatedDelta {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            log_decay: &self.log_decay,
            beta: &self.beta,
            state: Some(&self.state),
            lengths: None,
        }
    }

    /// Steps `range` of the inputs.
    fn part(&self, range: std::ops::Range<i32>) -> Self {
        let cut = |x: &Array| x.slice_axis(1, range.clone()).unwrap();
        Self {
            q: cut(&self.q),
            k: cut(&self.k),
            v: cut(&self.v),
            log_decay: cut(&self.log_decay),
            beta: cut(&self.beta),
            state: self.state.clone(),
        }
    }
}

#[track_caller]
fn same(what: &str, found: &Updated, wanted: &Updated, bound: f64) {
    close(&format!("{what}, out"), &found.out, &wanted.out, bound);
    close(&format!("{what}, state"), &found.state, &wanted.state, bound);
    assert_eq!(found.captured.len(), wanted.captured.len(), "{what}");
    for (i, (found, wanted)) in found.captured.iter().zip(&wanted.captured).enumerate() {
        close(&format!("{what}, capture {i}"), found, wanted, bound);
    }
}

/// All forms against the twin.
#[track_caller]
fn check(what: &str, s: Sizes, steps: i32, like: Like, capture: &[i32]) {
    let inputs = Inputs::new(s, steps, like);
    let wanted = inputs.rule().sequential(capture).unwrap();
    assert_eq!(wanted.out.dtype(), like.dtype);
    for (name, form) in forms() {
        let found = form(&inputs.rule(), capture).unwrap();
        assert_eq!(found.out.dtype(), like.dtype);
        assert_eq!(found.state.dtype(), Dtype::F32);
        same(&format!("{what}, {steps} steps, {name}"), &found, &wanted, bound(like.dtype));
    }
}

#[test]
fn the_twin_agrees_with_the_rule_written_as_loops() {
    let _device = device();
    let s = USUAL;
    let inputs = Inputs::new(s, 3, PLAIN);
    let vec = |x: &Array| x.to_f32_vec().unwrap();
    let (q, k, v) = (vec(&inputs.q), vec(&inputs.k), vec(&inputs.v));
    let (decay, beta) = (vec(&inputs.log_decay), vec(&inputs.beta));
    let mut state = vec(&inputs.state);
    let n = |x: i32| x as usize;
    let mut out = vec![0.0; n(s.rows * 3 * s.v_heads * s.v_dim)];
    for (b, t, h, d) in (0..n(s.rows)).flat_map(|b| {
        (0..3).flat_map(move |t| {
            (0..n(s.v_heads)).flat_map(move |h| (0..n(s.v_dim)).map(move |d| (b, t, h, d)))
        })
    }) {
        let gate = (b * 3 + t) * n(s.v_heads) + h;
        let key = ((b * 3 + t) * n(s.k_heads) + h / 2) * n(s.k_dim);
        let row = ((b * n(s.v_heads) + h) * n(s.v_dim) + d) * n(s.k_dim);
        let at = gate * n(s.v_dim) + d;
        let row = &mut state[row..][..n(s.k_dim)];
        row.iter_mut().for_each(|x| *x *= decay[gate].exp());
        let known = row.iter().zip(&k[key..]).map(|(a, b)| a * b).sum::<f32>();
        let delta = (v[at] - known) * beta[gate];
        row.iter_mut().zip(&k[key..]).for_each(|(x, k)| *x += delta * k);
        out[at] = row.iter().zip(&q[key..]).map(|(a, b)| a * b).sum::<f32>();
    }
    let found = inputs.rule().sequential(&[]).unwrap();
    let wanted = Array::from_slice(&out, &[s.rows, 3, s.v_heads, s.v_dim]).unwrap();
    close("out", &found.out, &wanted, 1e-5);
    let wanted = Array::from_slice(&state, &[s.rows, s.v_heads, s.v_dim, s.k_dim]).unwrap();
    close("state", &found.state, &wanted, 1e-5);
}

#[test]
fn every_form_agrees_with_the_twin_at_odd_lengths() {
    let _device = device();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for steps in [1, 2, 31, 63, 64, 65, 128, 130] {
            check(&format!("{dtype}"), USUAL, steps, Like { dtype, ..PLAIN }, &[]);
        }
    }
    check("f16", USUAL, 70, Like { dtype: Dtype::F16, ..PLAIN }, &[]);
}

/// One test per size of heads: on a GPU each compiles kernels of its own.
macro_rules! heads_of {
    ($($name:ident: $k_heads:literal / $v_heads:literal, $k_dim:literal, $v_dim:literal;)*) => {$(
        #[test]
        fn $name() {
            let _device = device();
            let (k_heads, v_heads, k_dim, v_dim) = ($k_heads, $v_heads, $k_dim, $v_dim);
            let s = Sizes { rows: 1, k_heads, v_heads, k_dim, v_dim };
            for (dtype, steps, at) in
                [(Dtype::F32, 67, 33), (Dtype::Bf16, 67, 33), (Dtype::F32, 1, 0)]
            {
                check("heads", s, steps, Like { dtype, ..PLAIN }, &[at]);
            }
        }
    )*};
}

heads_of! {
    heads_may_have_16_keys_and_80_values: 1 / 3, 16, 80;
    heads_may_have_48_keys_and_16_values: 2 / 6, 48, 16;
    heads_may_have_128_keys_and_96_values: 1 / 2, 128, 96;
    heads_may_have_64_keys_and_32_values: 3 / 3, 64, 32;
    heads_may_have_80_keys_and_128_values: 1 / 2, 80, 128;
    heads_may_have_256_keys_and_64_values: 1 / 2, 256, 64;
    heads_may_have_20_keys_and_12_values: 2 / 4, 20, 12;
    heads_may_have_32_keys_and_24_values: 2 / 4, 32, 24;
    heads_may_have_5_keys_and_7_values: 1 / 1, 5, 7;
}

#[test]
fn dtypes_of_inputs_may_differ() {
    let _device = device();
    for steps in [3, 70] {
        let mut inputs = Inputs::new(USUAL, steps, PLAIN);
        inputs.v = inputs.v.astype(Dtype::Bf16).unwrap();
        let wanted = inputs.rule().sequential(&[]).unwrap();
        for (name, form) in forms() {
            let found = form(&inputs.rule(), &[]).unwrap();
            assert_eq!(found.out.dtype(), Dtype::Bf16);
            same(name, &found, &wanted, bound(Dtype::Bf16));
            close(name, &found.state, &wanted.state, bound(Dtype::F32));
        }
    }
}

#[test]
fn gates_and_betas_may_lie_at_their_ends_and_keys_may_be_alike() {
    let _device = device();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (what, decay, beta, alike) in [
            ("forgets at once", -60.0, (0.1, 0.9), 0.3),
            ("forgets nothing", -1e-6, (0.1, 0.9), 0.3),
            ("replaces", -0.1, (0.995, 1.0), 0.3),
            ("replaces, keys alike", -1e-3, (0.999, 1.0), 0.97),
            ("learns nothing", -0.1, (0.0, 1e-3), 0.3),
            ("learns nothing, keys alike", -1e-3, (0.0, 1e-3), 0.97),
            ("keys alike", -1e-3, (0.3, 0.7), 0.97),
        ] {
            check(what, USUAL, 130, Like { dtype, decay, beta, alike }, &[70]);
        }
    }
}

#[test]
fn a_resumed_state_continues_as_if_never_parted() {
    let _device = device();
    for (name, form) in forms() {
        for (steps, at) in [(130, 1), (130, 63), (130, 64), (130, 65), (130, 129), (40, 39)] {
            let inputs = Inputs::new(USUAL, steps, PLAIN);
            let whole = form(&inputs.rule(), &[]).unwrap();
            let (first, mut second) = (inputs.part(0..at), inputs.part(at..steps));
            let before = form(&first.rule(), &[]).unwrap();
            second.state = before.state;
            let after = form(&second.rule(), &[]).unwrap();
            let out = mlx::concatenate(&[&before.out, &after.out], 1).unwrap();
            close(&format!("{name} parted at {at}, out"), &out, &whole.out, 1e-4);
            close(&format!("{name} parted at {at}"), &after.state, &whole.state, 1e-4);
        }
    }
}

#[test]
fn states_are_captured_after_any_step() {
    let _device = device();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let like = Like { dtype, ..PLAIN };
        check("captures", USUAL, 130, like, &[0, 1, 17, 63, 64, 65, 100, 128, 130]);
        check("captures", USUAL, 20, like, &[0, 1, 19, 20]);
        check("captures", USUAL, 1, like, &[0, 1]);
        check("captures", USUAL, 64, like, &[64]);
    }
}

#[test]
fn a_captured_state_holds_no_other_alive() {
    let _device = device();
    let inputs = Inputs::new(USUAL, 130, PLAIN);
    for (name, form) in forms() {
        for state in form(&inputs.rule(), &[3, 64, 70, 130]).unwrap().captured {
            assert!(state.buffer_bytes().unwrap() < 2 * state.n_bytes(), "{name}");
        }
    }
}

#[test]
fn rows_of_different_lengths_are_as_if_alone() {
    let _device = device();
    for (dtype, steps, lengths) in [
        (Dtype::F32, 130, [130, 65, 7]),
        (Dtype::Bf16, 130, [1, 128, 64]),
        (Dtype::F32, 20, [20, 1, 0]),
        (Dtype::F32, 1, [0, 1, 0]),
    ] {
        let like = Like { dtype, ..PLAIN };
        let mut inputs = Inputs::new(USUAL, steps, like);
        let lens = Array::from_slice(&lengths, &[3]).unwrap();
        let capture = [steps / 2, steps].map(|p| p.max(1)).to_vec();
        let capture = if capture[0] == capture[1] { vec![capture[0]] } else { capture };
        // What lies behind a row's end must not matter, whatever it is.
        let step = Array::arange(0.0, f64::from(steps), 1.0, Dtype::I32).unwrap();
        let beyond = step.reshape(&[1, -1]).unwrap().ge(&lens.reshape(&[3, 1]).unwrap()).unwrap();
        let beyond = beyond.reshape(&[3, steps, 1, 1]).unwrap();
        let nan = Array::scalar(f32::NAN, dtype).unwrap();
        inputs.k = beyond.select(&nan, &inputs.k).unwrap();
        inputs.v = beyond.select(&nan, &inputs.v).unwrap();
        for (name, form) in forms() {
            let rule = GatedDelta { lengths: Some(&lens), ..inputs.rule() };
            let found = form(&rule, &capture).unwrap();
            let finite = found.out.is_finite().unwrap().all(&[0, 1, 2, 3]).unwrap();
            assert!(finite.item::<bool>().unwrap(), "{name}");
            for (b, &n) in lengths.iter().enumerate() {
                let row = |x: &Array| x.slice_axis(0, b as i32..b as i32 + 1).unwrap();
                if n == 0 {
                    close("no steps", &row(&found.state), &row(&inputs.state), 0.0);
                    continue;
                }
                let mut alone = inputs.part(0..n);
                for x in [
                    &mut alone.q,
                    &mut alone.k,
                    &mut alone.v,
                    &mut alone.log_decay,
                    &mut alone.beta,
                    &mut alone.state,
                ] {
                    *x = row(x);
                }
                let at = capture.iter().map(|p| *p.min(&n)).collect::<Vec<_>>();
                let mut unique = at.clone();
                unique.dedup();
                let wanted = alone.rule().sequential(&unique).unwrap();
                let what = format!("{name}, row {b} of {n} steps");
                let out = row(&found.out).slice_axis(1, 0..n).unwrap();
                close(&what, &out, &wanted.out, bound(dtype));
                close(&what, &row(&found.state), &wanted.state, bound(dtype));
                for (i, p) in at.iter().enumerate() {
                    let wanted = &wanted.captured[unique.iter().position(|u| u == p).unwrap()];
                    close(
                        &format!("{what}, capture {i}"),
                        &row(&found.captured[i]),
                        wanted,
                        bound(dtype),
                    );
                }
            }
        }
    }
}

#[test]
fn an_absent_state_is_zero() {
    let _device = device();
    for steps in [1, 5, 70] {
        let inputs = Inputs::new(USUAL, steps, PLAIN);
        let zero = inputs.state.scale(0.0).unwrap();
        let wanted = GatedDelta { state: Some(&zero), ..inputs.rule() }.sequential(&[0]).unwrap();
        for (name, form) in forms() {
            let found = form(&GatedDelta { state: None, ..inputs.rule() }, &[0]).unwrap();
            same(name, &found, &wanted, 1e-4);
        }
    }
}

#[test]
fn inputs_need_not_lie_compactly() {
    let _device = device();
    for (dtype, steps) in [(Dtype::F32, 70), (Dtype::Bf16, 3), (Dtype::Bf16, 70)] {
        let inputs = Inputs::new(USUAL, steps, Like { dtype, ..PLAIN });
        let wanted = inputs.rule().sequential(&[2]).unwrap();
        // The same values as a view into a wider array.
        let wide = |x: &Array| {
            let wide = mlx::concatenate(&[x, x], -1).unwrap();
            wide.slice_axis(-1, x.dim(-1)..2 * x.dim(-1)).unwrap()
        };
        let views = Inputs {
            q: wide(&inputs.q),
            k: wide(&inputs.k),
            v: wide(&inputs.v),
            log_decay: wide(&inputs.log_decay),
            beta: wide(&inputs.beta),
            state: wide(&inputs.state),
        };
        // The same values from an odd element of a longer array on.
        let shift = |x: &Array| {
            let flat = x.reshape(&[-1]).unwrap();
            let long = mlx::concatenate(&[&flat.slice_axis(0, 0..1).unwrap(), &flat], 0).unwrap();
            long.slice_axis(0, 1..long.dim(0)).unwrap().reshape(x.shape()).unwrap()
        };
        let shifted = Inputs {
            q: shift(&inputs.q),
            k: shift(&inputs.k),
            v: shift(&inputs.v),
            log_decay: shift(&inputs.log_decay),
            beta: shift(&inputs.beta),
            state: shift(&inputs.state),
        };
        for (name, form) in forms() {
            same(name, &form(&views.rule(), &[2]).unwrap(), &wanted, bound(dtype));
            same(name, &form(&shifted.rule(), &[2]).unwrap(), &wanted, bound(dtype));
        }
    }
}

#[test]
fn bad_inputs_are_refused_with_a_reason() {
    let _device = device();
    let inputs = Inputs::new(USUAL, 5, PLAIN);
    let rule = inputs.rule();
    let (short, ints) = (inputs.part(0..4), inputs.v.astype(Dtype::I32).unwrap());
    let half = inputs.beta.astype(Dtype::Bf16).unwrap();
    let odd_heads = inputs.v.slice_axis(2, 0..3).unwrap();
    let odd_beta = inputs.beta.slice_axis(2, 0..3).unwrap();
    let turned = inputs.state.swap_axes(2, 3).unwrap();
    let lengths = Array::from_slice(&[1i32, 2], &[2]).unwrap();
    let flat = inputs.q.reshape(&[-1]).unwrap();
    let none = inputs.part(0..0);
    for (what, rule, capture, reason) in [
        ("q", GatedDelta { q: &flat, ..rule }, &[][..], "q must have 4 dimensions"),
        ("k", GatedDelta { k: &short.k, ..rule }, &[], "k must have shape [3, 5, 2, 32]"),
        ("v", GatedDelta { v: &ints, ..rule }, &[], "v must be f32, f16 or bf16"),
        ("beta", GatedDelta { beta: &half, ..rule }, &[], "beta must be f32"),
        ("steps", GatedDelta { log_decay: &short.log_decay, ..rule }, &[], "log_decay must have"),
        ("state", GatedDelta { state: Some(&turned), ..rule }, &[], "state must have shape"),
        ("lengths", GatedDelta { lengths: Some(&lengths), ..rule }, &[], "lengths must have"),
        (
            "heads",
            GatedDelta {
                v: &odd_heads,
                beta: &odd_beta,
                log_decay: &odd_beta,
                state: None,
                ..rule
            },
            &[],
            "3 value heads do not share 2 key heads",
        ),
        ("empty", GatedDelta { state: None, ..none.rule() }, &[], "no dimension may be 0"),
        ("beyond", rule, &[6], "capture must ascend within 0..=5"),
        ("order", rule, &[3, 2], "capture must ascend within 0..=5"),
        ("twice", rule, &[2, 2], "capture must ascend within 0..=5"),
    ] {
        for (_, form) in forms() {
            let message = form(&rule, capture).unwrap_err().to_string();
            assert!(message.contains(reason), "{what}: {message}");
        }
    }
}

#[test]
fn gates_agree_with_the_twin_and_with_f64() {
    let _device = device();
    for (shape, dtype) in [[1, 1, 32], [3, 7, 5], [2, 300, 48]]
        .into_iter()
        .flat_map(|s| [Dtype::F32, Dtype::Bf16, Dtype::F16].map(|d| (s, d)))
    {
        let mut values = Values(shape[1] as u64);
        // Both lie in one projection, as in layers where they come from one matrix.
        let wide = [shape[0], shape[1], 2 * shape[2]];
        let both = values.array(&wide, |x| 9.0 * x).astype(dtype).unwrap();
        let a = both.slice_axis(2, 0..shape[2]).unwrap();
        let b = both.slice_axis(2, shape[2]..2 * shape[2]).unwrap();
        let dt_bias = values.array(&[shape[2]], |x| 3.0 * x);
        let decay = values.array(&[shape[2]], |x| -1.5 - x);
        let found = gates(&a, &b, &dt_bias, &decay).unwrap();
        let twin = gates_reference(&a, &b, &dt_bias, &decay).unwrap();
        close("decay", &found.log_decay, &twin.log_decay, 1e-6);
        close("beta", &found.beta, &twin.beta, 1e-6);
        let (bias, decay) = (doubles(&dt_bias), doubles(&decay));
        let softplus =
            |(i, a): (usize, f64)| (a + bias[i % bias.len()]).exp().ln_1p() * decay[i % bias.len()];
        let wanted = doubles(&a).into_iter().enumerate().map(softplus).collect::<Vec<_>>();
        close_to_f64("decay", &found.log_decay, &wanted, 1e-6);
        let wanted = doubles(&b).into_iter().map(|b| 1.0 / (1.0 + (-b).exp())).collect::<Vec<_>>();
        close_to_f64("beta", &found.beta, &wanted, 1e-6);
    }
}

#[test]
fn gates_of_bad_inputs_are_refused_with_a_reason() {
    let _device = device();
    let zeros = |shape: &[i32], dtype| Array::zeros(shape, dtype).unwrap();
    let (a, list) = (zeros(&[2, 3, 4], Dtype::F32), zeros(&[4], Dtype::F32));
    let (ints, half) = (zeros(&[2, 3, 4], Dtype::I32), zeros(&[4], Dtype::Bf16));
    let (wide, none) = (zeros(&[2, 3, 5], Dtype::F32), zeros(&[2, 0, 4], Dtype::F32));
    for (found, reason) in [
        (gates(&list, &a, &list, &list), "a must have 3 dimensions"),
        (gates(&ints, &a, &list, &list), "a must be f32, f16 or bf16"),
        (gates(&a, &ints, &list, &list), "b must be f32, f16 or bf16"),
        (gates(&a, &wide, &list, &list), "b must have shape [2, 3, 4]"),
        (gates(&wide, &wide, &list, &list), "dt_bias must have shape [5]"),
        (gates(&a, &a, &list, &half), "decay must be f32"),
        (gates(&none, &none, &list, &list), "no dimension of a may be 0"),
    ] {
        let message = found.unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn inputs_of_the_rule_are_made_of_projections_as_in_the_twin() {
    let _device = device();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        for (rows, steps, k_heads, k_dim, v_heads, v_dim) in
            [(1, 1, 16, 128, 32, 128), (3, 5, 2, 40, 4, 33), (2, 17, 1, 7, 3, 1)]
        {
            let mut values = Values((steps * 100 + k_dim) as u64);
            let mut array = |shape: &[i32]| values.array(shape, |x| 3.0 * x);
            let width = 2 * k_heads * k_dim + v_heads * v_dim;
            let heads = [rows, steps, v_heads];
            let of_dtype = |x: Array| x.astype(dtype).unwrap();
            let qkv = of_dtype(array(&[rows, steps, width]));
            let (a, b) = (of_dtype(array(&heads)), of_dtype(array(&heads)));
            let (dt_bias, decay) = (array(&[v_heads]), array(&[v_heads]));
            let projected = Projected {
                qkv: &qkv,
                a: &a,
                b: &b,
                dt_bias: &dt_bias,
                decay: &decay,
                k_heads,
                k_dim,
                eps: 1e-3,
            };
            let what =
                format!("{rows} rows of {steps} steps, {k_heads} and {v_heads} heads, {dtype}");
            let (found, wanted) = (projected.inputs().unwrap(), projected.reference().unwrap());
            for (name, found, wanted) in [
                ("q", found.q, wanted.q),
                ("k", found.k, wanted.k),
                ("v", found.v, wanted.v),
                ("decay", found.gates.log_decay, wanted.gates.log_decay),
                ("beta", found.gates.beta, wanted.gates.beta),
            ] {
                assert_eq!(found.dtype(), wanted.dtype(), "{what}: {name}");
                close(&format!("{what}: {name}"), &found, &wanted, bound(dtype));
            }
            let said = Projected { k_dim: width, ..projected }.inputs().unwrap_err().to_string();
            assert!(said.contains("do not fit"), "{said}");
        }
    }
}
