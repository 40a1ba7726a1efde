//! Draws from a vocabulary: the backend's form against the twin, and against MLX's noise.

use kernels::sampling::{self, Draw, reference};
use mlx::{Array, Backend, Dtype, Key};

use crate::{Values, device, doubles};

const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

fn tokens(x: &Array) -> Vec<u32> {
    assert_eq!(x.dtype(), Dtype::U32);
    x.to_vec::<u32>().unwrap()
}

/// Scores of which few are large, as a model's are.
fn scores(rows: i32, vocab: i32, seed: u64) -> Array {
    Values(seed).array(&[rows, vocab], |x| 12.0 * x * x * x)
}

#[test]
fn the_first_largest_is_found_wherever_it_is() {
    let _device = device();
    for dtype in FLOATS {
        for shape in [&[1, 151_936][..], &[3, 37], &[2, 5, 1000], &[7], &[4, 1]] {
            let x = Values(3).array(shape, |x| x).astype(dtype).unwrap();
            let (found, wanted) = (sampling::argmax(&x).unwrap(), reference::argmax(&x).unwrap());
            assert_eq!(found.shape(), wanted.shape());
            assert_eq!(tokens(&found), tokens(&wanted), "{shape:?} {dtype}");
        }
    }
    for n in [1, 31, 64, 65, 200] {
        for at in [0, n / 2, n - 1] {
            let mut list = vec![-3.0f32; n];
            list[at] = -1.0;
            list[n - 1] = -1.0;
            let x = Array::from_slice(&list, &[1, n as i32]).unwrap();
            assert_eq!(tokens(&sampling::argmax(&x).unwrap()), [at as u32], "{at} of {n}");
        }
    }
    let none = Array::full(&[1, 70], f32::NEG_INFINITY, Dtype::F32).unwrap();
    assert_eq!(tokens(&sampling::argmax(&none).unwrap()), [0]);
    let turned = scores(70, 3, 1).swap_axes(0, 1).unwrap();
    assert_eq!(
        tokens(&sampling::argmax(&turned).unwrap()),
        tokens(&reference::argmax(&turned).unwrap())
    );
}

#[test]
fn noise_is_mlxs_own() {
    let _device = device();
    for vocab in [1, 2, 37, 64, 1001, 4096] {
        let zeros = Array::zeros(&[1, vocab], Dtype::F32).unwrap();
        for i in 0..40u64 {
            let key = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let noise = Key::from_seed(key).unwrap().gumbel(&[1, vocab], Dtype::F32).unwrap();
            let draw = Draw { temperature: 1.0, key, ..Draw::GREEDY };
            let found = sampling::draw(&zeros, &[draw]).unwrap();
            assert_eq!(tokens(&found), tokens(&noise.argmax(-1).unwrap()), "{vocab}, {i}");
        }
    }
}

/// Settings of all kinds.
fn draws() -> Vec<Draw> {
    let plain = Draw { temperature: 1.0, ..Draw::GREEDY };
    let mut list = vec![
        Draw::GREEDY,
        Draw { top_k: 3, top_p: 0.1, ..Draw::GREEDY },
        plain,
        Draw { temperature: 0.6, ..plain },
        Draw { temperature: 1e-38, ..plain },
        Draw { temperature: 30.0, ..plain },
        Draw { top_k: 1, ..plain },
        Draw { temperature: 5.0, top_k: 20, ..plain },
        Draw { temperature: 0.7, top_k: 20, top_p: 0.8, ..plain },
        Draw { temperature: 5.0, top_k: u32::MAX, ..plain },
        Draw { top_p: 0.9, ..plain },
        Draw { temperature: 9.0, top_p: 0.97, ..plain },
        Draw { top_p: 1e-6, ..plain },
        Draw { top_p: 0.0, ..plain },
        Draw { min_p: 0.05, ..plain },
        Draw { min_p: 1.0, ..plain },
        Draw { temperature: 4.0, top_k: 300, top_p: 0.95, min_p: 0.02, key: 0 },
    ];
    for (i, draw) in list.iter_mut().enumerate() {
        draw.key = (i as u64 + 1).wrapping_mul(0x2545_f491_4f6c_dd1d);
    }
    list
}

#[test]
fn rows_of_all_settings_draw_what_the_twin_draws_alone_and_together() {
    let _device = device();
    let draws = draws();
    let n = draws.len() as i32;
    for vocab in [1, 19, 64, 500, 5003] {
        for round in 0..8u64 {
            let all = scores(n, vocab, 77 * round + vocab as u64);
            let again = draws.iter().map(|d| Draw { key: d.key ^ round, ..*d }).collect::<Vec<_>>();
            let wanted = tokens(&reference::draw(&all, &again).unwrap());
            assert_eq!(tokens(&sampling::draw(&all, &again).unwrap()), wanted, "{vocab}");
            for (i, draw) in again.iter().enumerate() {
                let row = all.slice_axis(0, i as i32..i as i32 + 1).unwrap();
                let found = tokens(&sampling::draw(&row, &[*draw]).unwrap());
                assert_eq!(found, wanted[i..i + 1], "{draw:?} of {vocab}");
            }
        }
    }
}

#[test]
fn scores_of_16_bits_and_many_equal_ones_are_drawn_from_as_in_the_twin() {
    let _device = device();
    let draws = draws();
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let all = scores(draws.len() as i32, 700, 5).astype(dtype).unwrap();
        let wanted = tokens(&reference::draw(&all, &draws).unwrap());
        assert_eq!(tokens(&sampling::draw(&all, &draws).unwrap()), wanted, "{dtype}");
    }
    // One of four values each: limits fall on equal scores, of which all are kept.
    let all = Values(8).array(&[draws.len() as i32, 700], |x| (2.0 * x).round());
    // Where top-p's share falls between equal scores, rounding decides nothing.
    let wanted = tokens(&reference::draw(&all, &draws).unwrap());
    assert_eq!(tokens(&sampling::draw(&all, &draws).unwrap()), wanted);
}

#[test]
fn a_whole_vocabulary_is_drawn_from_as_in_the_twin() {
    let _device = device();
    let plain = Draw { temperature: 0.8, key: 17, ..Draw::GREEDY };
    for draw in [
        plain,
        Draw { top_k: 20, top_p: 0.95, ..plain },
        Draw { temperature: 3.0, top_p: 0.95, ..plain },
        Draw { temperature: 1.0, min_p: 0.1, ..plain },
    ] {
        let x = scores(1, 151_936, 21);
        let wanted = tokens(&reference::draw(&x, &[draw]).unwrap());
        assert_eq!(tokens(&sampling::draw(&x, &[draw]).unwrap()), wanted, "{draw:?}");
    }
}

#[test]
fn what_is_minus_infinity_is_never_drawn() {
    let _device = device();
    let mut list = vec![f32::NEG_INFINITY; 400];
    (list[7], list[300]) = (0.5, 0.25);
    let x = Array::from_slice(&list, &[1, 400]).unwrap();
    for draw in draws() {
        let found = tokens(&sampling::draw(&x, &[draw]).unwrap());
        assert!(found == [7] || found == [300], "{draw:?}: {found:?}");
    }
}

#[test]
fn logprobs_are_those_of_f64() {
    let _device = device();
    for (rows, vocab) in [(1, 1), (3, 37), (2, 9000)] {
        let x = scores(rows, vocab, 4);
        let given = (0..rows).map(|i| (i * 7 % vocab) as u32).collect::<Vec<_>>();
        let list = Array::from_slice(&given, &[rows]).unwrap();
        for n in [0, 1, 5, 20, vocab, vocab + 1] {
            // MLX adds thousands of numbers up in f32.
            let forms = [
                (sampling::logprobs(&x, &list, n), 1e-6),
                (reference::logprobs(&x, &list, n), 1e-5),
            ];
            for (found, bound) in forms {
                let found = found.unwrap();
                let n = n.min(vocab) as usize;
                let chosen = found.chosen.to_f32_vec().unwrap();
                assert_eq!((chosen.len(), found.best.is_some()), (rows as usize, n > 0));
                for (row, x) in doubles(&x).chunks(vocab as usize).enumerate() {
                    let sum = x.iter().map(|x| x.exp()).sum::<f64>().ln();
                    let is = |found: f32, token: u32| {
                        let wanted = x[token as usize] - sum;
                        let off = (f64::from(found) - wanted).abs();
                        assert!(off <= bound * wanted.abs().max(1.0), "{found} is not {wanted}");
                    };
                    is(chosen[row], given[row]);
                    let Some((ids, values)) = &found.best else { continue };
                    let ids = &tokens(ids)[row * n..][..n];
                    let values = &values.to_f32_vec().unwrap()[row * n..][..n];
                    ids.iter().zip(values).for_each(|(id, value)| is(*value, *id));
                    let mut order = (0..vocab as u32).collect::<Vec<_>>();
                    order.sort_by(|&a, &b| x[b as usize].total_cmp(&x[a as usize]));
                    let mut ids = ids.to_vec();
                    ids.sort_unstable();
                    ids.sort_by(|&a, &b| x[b as usize].total_cmp(&x[a as usize]));
                    assert_eq!(ids, order[..n]);
                }
            }
        }
    }
}

#[test]
fn bad_inputs_are_refused_with_a_reason() {
    let _device = device();
    let x = scores(2, 9, 1);
    let draw = Draw { temperature: 1.0, ..Draw::GREEDY };
    let ints = x.astype(Dtype::I32).unwrap();
    let none = x.slice_axis(1, 0..0).unwrap();
    let flat = x.reshape(&[-1]).unwrap();
    let list = Array::from_slice(&[1u32, 8], &[2]).unwrap();
    let one = Array::from_slice(&[1u32], &[1]).unwrap();
    let chosen = |found: mlx::Result<sampling::Logprobs>| found.map(|l| l.chosen);
    for (found, reason) in [
        (sampling::argmax(&ints), "x must be f32, f16 or bf16"),
        (sampling::argmax(&none), "there must be an element"),
        (sampling::draw(&flat, &[draw]), "scores must have 2 dimensions"),
        (sampling::draw(&x, &[draw]), "1 draws do not fit 2 rows"),
        (
            sampling::draw(&x, &[draw, Draw { temperature: -1.0, ..draw }]),
            "a temperature of -1 is below 0",
        ),
        (
            sampling::draw(&x, &[draw, Draw { top_p: 1.5, ..draw }]),
            "top-p 1.5 and min-p 0 must be from 0 to 1",
        ),
        (
            sampling::draw(&x, &[draw, Draw { min_p: f32::NAN, ..draw }]),
            "top-p 1 and min-p NaN must be from 0 to 1",
        ),
        (chosen(sampling::logprobs(&flat, &list, 1)), "logits must have 2 dimensions"),
        (chosen(sampling::logprobs(&x, &one, 1)), "tokens must have shape [2]"),
        (chosen(sampling::logprobs(&x, &x, 1)), "tokens must be u32"),
    ] {
        let message = found.unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn on_the_cpu_tokens_are_checked_when_they_are_read() {
    let device = device();
    let far = Array::from_slice(&[1u32, 9], &[2]).unwrap();
    // Nothing is read yet.
    let chosen = sampling::logprobs(&scores(2, 9, 1), &far, 0).unwrap().chosen;
    assert_eq!(chosen.shape(), [2]);
    if device.backend() == Backend::Cpu {
        let message = chosen.eval().unwrap_err().to_string();
        assert!(message.contains("a token is not below 9"), "{message}");
    }
}
