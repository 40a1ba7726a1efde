//! Launches that are joined give what they give one by one, to the last bit: also with new inputs,
//! other numbers of rows, what is not a launch among them, and results wanted from the middle.

use kernels::{activation, dense, norm};
use mlx::{Array, Backend, Device, Dtype, Recording, eval, joined};

use crate::{Values, device, view};

const WIDTH: i32 = 64;
const INNER: i32 = 96;
const LAYERS: usize = 6;

struct Layer {
    norm: Array,
    gate: Array,
    up: Array,
    down: Array,
}

fn layers() -> Vec<Layer> {
    let mut values = Values(41);
    let mut floats = |shape: &[i32]| values.array(shape, |x| 0.3 * x).astype(Dtype::Bf16).unwrap();
    let layer = |_| Layer {
        norm: floats(&[WIDTH]),
        gate: floats(&[INNER, WIDTH]),
        up: floats(&[INNER, WIDTH]),
        down: floats(&[WIDTH, INNER]),
    };
    let layers = (0..LAYERS).map(layer).collect::<Vec<_>>();
    eval(layers.iter().flat_map(|l| [&l.norm, &l.gate, &l.up, &l.down])).unwrap();
    layers
}

/// The last sum `[B, L, E]`, and what the layers that `wanted` names have made on the way. In the
/// middle stands an operation of MLX whose result has gaps, if `broken`.
fn run(layers: &[Layer], x: &Array, wanted: &[usize], broken: bool) -> Vec<Array> {
    let mut results = Vec::new();
    let mut h = x.clone();
    for (i, layer) in layers.iter().enumerate() {
        let normed = norm::rms_norm(&h, Some(&layer.norm), 1e-5).unwrap();
        let flat = normed.reshape(&[normed.dim(0) * normed.dim(1), WIDTH]).unwrap();
        let made = dense::products(&flat, &[&layer.gate, &layer.up]).unwrap();
        let inner = activation::swiglu(&made[0], &made[1]).unwrap();
        let out = dense::product(&inner, &layer.down).unwrap().reshape(h.shape()).unwrap();
        if wanted.contains(&i) {
            results.push(inner);
            results.push(out.clone());
        }
        h = norm::add_rms_norm(&h, &out, None, 1e-5).unwrap().sum;
        if broken && i == layers.len() / 2 {
            let twice = mlx::stack(&[&h, &h], 3).unwrap(); // [B, L, E, 2]
            h = twice.slice_axis(3, 0..1).unwrap().squeeze(&[3]).unwrap();
        }
    }
    results.push(h);
    results
}

fn input(seed: u64, rows: i32, tokens: i32) -> Array {
    let x = Values(seed).array(&[rows, tokens, WIDTH], |x| x).astype(Dtype::Bf16).unwrap();
    x.eval().unwrap();
    x
}

#[track_caller]
fn check(layers: &[Layer], x: &Array, wanted: &[usize], broken: bool) {
    let expected = run(layers, x, wanted, broken);
    eval(&expected).unwrap();
    let found = joined(&run(layers, x, wanted, broken)).unwrap();
    eval(&found).unwrap();
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let what = format!("result {i} of {:?}, {wanted:?}, {broken}", x.shape());
        assert_eq!(found.shape(), expected.shape(), "{what}");
        assert_eq!(found.to_bytes().unwrap(), expected.to_bytes().unwrap(), "{what}");
    }
}

#[test]
fn joined_launches_give_what_they_give_one_by_one() {
    let _device = device();
    let layers = layers();
    for seed in 0..3 {
        for (rows, tokens) in [(1, 1), (3, 1), (2, 4)] {
            let x = input(seed, rows, tokens);
            check(&layers, &x, &[], false);
            check(&layers, &x, &[1, 4], false);
            check(&layers, &x, &[0, LAYERS - 1], true);
        }
    }
    // As many launches of other sizes.
    check(&layers[..LAYERS - 1], &input(3, 5, 1), &[], false);
}

#[test]
fn what_lies_with_gaps_is_copied_before_the_launches() {
    let _device = device();
    let x = view(&input(7, 2, 3), true, 1);
    x.eval().unwrap();
    check(&layers(), &x, &[2], false);
}

#[test]
fn results_outlive_the_launches_that_follow() {
    let _device = device();
    let layers = layers();
    let of = |seed: u64| joined(&run(&layers, &input(seed, 1, 1), &[3], false)).unwrap();
    let kept = (0..40).map(of).collect::<Vec<_>>();
    mlx::async_eval(kept.iter().flatten()).unwrap();
    for (seed, found) in (0..).zip(&kept) {
        let expected = run(&layers, &input(seed, 1, 1), &[3], false);
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.to_bytes().unwrap(), expected.to_bytes().unwrap(), "seed {seed}");
        }
    }
}

#[test]
fn what_is_computed_already_stays() {
    let _device = device();
    let layers = layers();
    let made = run(&layers, &input(5, 1, 2), &[], false);
    eval(&made).unwrap();
    let again = joined(&made).unwrap();
    assert_eq!(again[0].to_bytes().unwrap(), made[0].to_bytes().unwrap());
    assert!(joined(&[] as &[Array]).unwrap().is_empty());
}

#[test]
fn weights_that_a_launch_makes_are_not_read_before_they_are_there() {
    let _device = device();
    let mut layers = layers();
    let gates = layers.iter().map(|layer| layer.gate.clone()).collect::<Vec<_>>();
    for (seed, i) in [(21, 0), (22, LAYERS / 2), (23, LAYERS - 1)] {
        let (x, scale) = (input(seed, 2, 1), layers[i].norm.clone());
        let mut made = || {
            layers[i].gate = norm::rms_norm(&gates[i], Some(&scale), 1e-5).unwrap();
            run(&layers, &x, &[], false)
        };
        let expected = made();
        // What they are made of may be recorded, but not as one with what reads them.
        assert!(Recording::of(&expected, [&x]).unwrap().is_none(), "layer {i}");
        eval(&expected).unwrap();
        let found = joined(&made()).unwrap();
        assert_eq!(found[0].to_bytes().unwrap(), expected[0].to_bytes().unwrap(), "layer {i}");
        layers[i].gate = gates[i].clone();
    }
}

#[test]
fn a_recording_gives_what_its_graph_would_give() {
    let _device = device();
    let layers = layers();
    for (rows, tokens) in [(1, 1), (3, 2)] {
        let first = input(11, rows, tokens);
        let made = run(&layers, &first, &[2], false);
        let Some(recording) = Recording::of(&made, [&first]).unwrap() else {
            assert_ne!(Device::current_backend(), Backend::Cuda, "it is of launches alone");
            return;
        };
        // Also from an array that is not computed yet, and from one with gaps.
        let later = input(12, rows, tokens).offset(0.5).unwrap();
        let broken = view(&input(13, rows, tokens), true, 1);
        for x in [first, input(14, rows, tokens), later, broken] {
            let found = recording.run([&x]).unwrap();
            let expected = run(&layers, &x, &[2], false);
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.shape(), expected.shape());
                assert_eq!(found.to_bytes().unwrap(), expected.to_bytes().unwrap());
            }
        }
    }
}

#[test]
fn recordings_are_the_same_if_nothing_else_goes_in() {
    let _device = device();
    let layers = layers();
    let of = |x: &Array| Recording::of(&run(&layers, x, &[], false), [x]).unwrap();
    let (Some(a), Some(b)) = (of(&input(1, 2, 1)), of(&input(2, 2, 1))) else { return };
    assert!(a.is_same(&b));
    assert!(!a.is_same(&of(&input(1, 1, 1)).unwrap()), "another number of rows");
    // Weights that are made anew each time.
    let doubled = |x: &Array| {
        let mut h = x.clone();
        for layer in &layers {
            let weight = layer.norm.scale(2.0).unwrap();
            weight.eval().unwrap();
            for _ in 0..4 {
                h = norm::rms_norm(&h, Some(&weight), 1e-5).unwrap();
            }
        }
        Recording::of([&h], [x]).unwrap().unwrap()
    };
    assert!(!doubled(&input(1, 1, 1)).is_same(&doubled(&input(1, 1, 1))));
    // What is not a launch lies between.
    assert!(Recording::of(&run(&layers, &input(1, 1, 1), &[], true), []).unwrap().is_none());
}
