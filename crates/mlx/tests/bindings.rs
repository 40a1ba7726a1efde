//! The bindings against values worked out by hand or by plain Rust loops, and their behaviour when
//! misused.
#![allow(clippy::unwrap_used)]

use mlx::{
    Array, Attend, Backend, CpuKernel, CudaKernel, CudaSource, Device, Dtype, Error, Gathered, Key,
    Launch, MetalKernel, MetalSource, QuantMode, Quantization, Rope, Safetensors,
};

fn device() -> Device {
    Device::open().expect("the CPU backend is always there")
}

fn f32s(values: &[f32], shape: &[i32]) -> Array {
    Array::from_slice(values, shape).expect("test values fit their shape")
}

fn i32s(values: &[i32], shape: &[i32]) -> Array {
    Array::from_slice(values, shape).expect("test values fit their shape")
}

/// Deterministic, sign-changing, irregular values.
fn wavy(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * i + 3 * i) as f32 * 0.37).sin() * 1.5).collect()
}

#[track_caller]
fn check(found: &Array, shape: &[i32], wanted: &[f32]) {
    assert_eq!(found.shape(), shape);
    let values = found.to_f32_vec().expect("evaluates");
    assert_eq!(values.len(), wanted.len());
    for (i, (a, b)) in values.iter().zip(wanted).enumerate() {
        assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "element {i}: found {a}, wanted {b}");
    }
}

fn matmul(a: &[f32], b: &[f32], n: usize, k: usize, m: usize) -> Vec<f32> {
    let mut out = vec![0.0; n * m];
    for i in 0..n {
        for j in 0..m {
            out[i * m + j] = (0..k).map(|x| a[i * k + x] * b[x * m + j]).sum();
        }
    }
    out
}

#[test]
fn the_loaded_library_is_the_pinned_release() {
    let device = device();
    assert_eq!(mlx::library_version().unwrap(), mlx::PINNED_VERSION);
    assert!(!device.facts().unwrap().is_empty());
}

#[test]
fn elementwise_methods_agree_with_rust() {
    let _device = device();
    let x = [-2.5f32, -0.75, 0.5, 1.25];
    let y = [0.5f32, 2.0, -1.5, 3.0];
    let (a, b) = (f32s(&x, &[4]), f32s(&y, &[4]));
    type Unary = (fn(&Array) -> mlx::Result<Array>, fn(f32) -> f32);
    let unary: [Unary; 16] = [
        (Array::neg, |v| -v),
        (Array::abs, f32::abs),
        (Array::sign, f32::signum),
        (Array::exp, f32::exp),
        (Array::expm1, f32::exp_m1),
        (Array::square, |v| v * v),
        (Array::reciprocal, |v| 1.0 / v),
        (Array::sigmoid, |v| 1.0 / (1.0 + (-v).exp())),
        (Array::tanh, f32::tanh),
        (Array::sin, f32::sin),
        (Array::cos, f32::cos),
        (Array::floor, f32::floor),
        (Array::ceil, f32::ceil),
        (Array::silu, |v| v / (1.0 + (-v).exp())),
        (|a| a.abs()?.sqrt(), |v| v.abs().sqrt()),
        (|a| a.abs()?.log(), |v| v.abs().ln()),
    ];
    for (ours, rust) in unary {
        check(&ours(&a).unwrap(), &[4], &x.map(rust));
    }
    type Binary = (fn(&Array, &Array) -> mlx::Result<Array>, fn(f32, f32) -> f32);
    let binary: [Binary; 8] = [
        (Array::add, |v, w| v + w),
        (Array::sub, |v, w| v - w),
        (Array::mul, |v, w| v * w),
        (Array::div, |v, w| v / w),
        (Array::maximum, f32::max),
        (Array::minimum, f32::min),
        (Array::log_add_exp, |v, w| (v.exp() + w.exp()).ln()),
        (|a, b| a.lt(b)?.select(a, b), |v, w| if v < w { v } else { w }),
    ];
    for (ours, rust) in binary {
        let wanted = [0, 1, 2, 3].map(|i| rust(x[i], y[i]));
        check(&ours(&a, &b).unwrap(), &[4], &wanted);
    }
}

#[test]
fn shape_methods_move_elements_where_they_say() {
    let _device = device();
    let a = f32s(&[0., 1., 2., 3., 4., 5.], &[2, 3]);
    check(&a.swap_axes(0, 1).unwrap(), &[3, 2], &[0., 3., 1., 4., 2., 5.]);
    check(&a.transpose(&[1, 0]).unwrap(), &[3, 2], &[0., 3., 1., 4., 2., 5.]);
    check(&a.reshape(&[3, -1]).unwrap(), &[3, 2], &[0., 1., 2., 3., 4., 5.]);
    check(&a.slice(&[0, 1], &[2, 3]).unwrap(), &[2, 2], &[1., 2., 4., 5.]);
    check(&a.slice_axis(-1, 2..3).unwrap(), &[2, 1], &[2., 5.]);
    check(&a.slice_strided(&[0, 0], &[2, 3], &[1, 2]).unwrap(), &[2, 2], &[0., 2., 3., 5.]);
    check(&a.slice_at(&i32s(&[1], &[1]), &[1], &[2, 2]).unwrap(), &[2, 2], &[1., 2., 4., 5.]);
    check(&a.flip(1).unwrap(), &[2, 3], &[2., 1., 0., 5., 4., 3.]);
    check(&a.pad(&[0], &[1], &[0], 9.0).unwrap(), &[3, 3], &[9., 9., 9., 0., 1., 2., 3., 4., 5.]);
    check(&a.repeat(2, 0).unwrap(), &[4, 3], &[0., 1., 2., 0., 1., 2., 3., 4., 5., 3., 4., 5.]);
    check(&a.expand_dims(&[1]).unwrap().squeeze(&[1]).unwrap(), &[2, 3], &[0., 1., 2., 3., 4., 5.]);
    let parts = a.split_at(&[1], 1).unwrap();
    check(&parts[0], &[2, 1], &[0., 3.]);
    check(&parts[1], &[2, 2], &[1., 2., 4., 5.]);
    check(
        &mlx::concatenate(&[&parts[1], &parts[0]], 1).unwrap(),
        &[2, 3],
        &[1., 2., 0., 4., 5., 3.],
    );
    check(&mlx::stack(&[&parts[0], &parts[0]], 2).unwrap(), &[2, 1, 2], &[0., 0., 3., 3.]);
}

#[test]
fn updates_and_gathers_touch_only_their_positions() {
    let _device = device();
    let a = f32s(&[0., 1., 2., 3., 4., 5.], &[2, 3]);
    let b = f32s(&[7., 8.], &[2, 1]);
    check(&a.slice_update(&b, &[0, 1], &[2, 2]).unwrap(), &[2, 3], &[0., 7., 2., 3., 8., 5.]);
    let moved = a.slice_update_at(&b, &i32s(&[2], &[1]), &[1]).unwrap();
    check(&moved, &[2, 3], &[0., 1., 7., 3., 4., 8.]);
    check(&a, &[2, 3], &[0., 1., 2., 3., 4., 5.]);
    check(
        &a.take(&i32s(&[1, 1, 0], &[3]), 0).unwrap(),
        &[3, 3],
        &[3., 4., 5., 3., 4., 5., 0., 1., 2.],
    );
    let at = i32s(&[2, 0], &[2, 1]);
    check(&a.take_along(&at, 1).unwrap(), &[2, 1], &[2., 3.]);
    check(&a.put_along(&at, &b, 1).unwrap(), &[2, 3], &[0., 1., 7., 8., 4., 5.]);
    let rows = i32s(&[1, 1], &[2]);
    let updates = f32s(&[1., 1., 1., 2., 2., 2.], &[2, 1, 3]);
    let added = a.scatter_add(&[&rows], &updates, &[0]).unwrap();
    check(&added, &[2, 3], &[0., 1., 2., 6., 7., 8.]);
    check(&a.gather(&[&rows], &[0], &[1, 3]).unwrap(), &[2, 1, 3], &[3., 4., 5., 3., 4., 5.]);
}

#[test]
fn reductions_and_order_agree_with_rust() {
    let _device = device();
    let a = f32s(&[3., -1., 2., 0.5, 4., -2.], &[2, 3]);
    check(&a.sum(&[1]).unwrap(), &[2], &[4., 2.5]);
    check(&a.mean_keep(&[0]).unwrap(), &[1, 3], &[1.75, 1.5, 0.]);
    check(&a.max(&[0]).unwrap(), &[3], &[3., 4., 2.]);
    check(&a.cumsum(1).unwrap(), &[2, 3], &[3., 2., 4., 0.5, 4.5, 2.5]);
    check(&a.cumsum_exclusive(1).unwrap(), &[2, 3], &[0., 3., 2., 0., 0.5, 4.5]);
    check(&a.argmax(1).unwrap(), &[2], &[0., 1.]);
    check(&a.sort(1).unwrap(), &[2, 3], &[-1., 2., 3., -2., 0.5, 4.]);
    check(&a.argsort(1).unwrap(), &[2, 3], &[1., 2., 0., 2., 0., 1.]);
    check(&a.topk(1, 1).unwrap(), &[2, 1], &[3., 4.]);
    let e = [3f32, -1., 2.].map(f32::exp);
    let total: f32 = e.iter().sum();
    let row = a.slice(&[0, 0], &[1, 3]).unwrap();
    check(&row.softmax(&[-1]).unwrap(), &[1, 3], &e.map(|v| v / total));
    check(&row.log_sum_exp(&[1]).unwrap(), &[1], &[total.ln()]);
}

#[test]
fn products_agree_with_loops() {
    let _device = device();
    let (n, k, m) = (3usize, 5usize, 7usize);
    let (x, y) = (wavy(n * k), wavy(k * m + 1)[1..].to_vec());
    let (a, b) = (f32s(&x, &[3, 5]), f32s(&y, &[5, 7]));
    let wanted = matmul(&x, &y, n, k, m);
    check(&a.matmul(&b).unwrap(), &[3, 7], &wanted);
    let bias = f32s(&[1.0; 7], &[7]);
    let with_bias = wanted.iter().map(|v| 2.0 * v + 0.5).collect::<Vec<_>>();
    check(&bias.addmm(&a, &b, 2.0, 0.5).unwrap(), &[3, 7], &with_bias);
    let expert = i32s(&[1, 0], &[2]);
    let experts = mlx::stack(&[&b, &b.neg().unwrap()], 0).unwrap();
    let lhs = a.slice(&[0, 0], &[2, 5]).unwrap().expand_dims(&[1]).unwrap();
    let found = lhs.gather_mm(&experts, None, Some(&expert), false).unwrap();
    let signed = wanted[..14].iter().enumerate().map(|(i, v)| if i < 7 { -v } else { *v });
    check(&found, &[2, 1, 7], &signed.collect::<Vec<_>>());
}

#[test]
fn a_depthwise_convolution_slides_each_channel_by_itself() {
    let _device = device();
    let x = f32s(&[1., 10., 2., 20., 3., 30., 4., 40.], &[1, 4, 2]);
    let w = f32s(&[1., 2., 3., -1., 0., 1.], &[2, 3, 1]);
    let found = x.conv1d(&w, 0, 2).unwrap();
    check(&found, &[1, 2, 2], &[1. + 4. + 9., -10. + 30., 2. + 6. + 12., -20. + 40.]);
}

/// What is wrong with one coding in one dtype, on rows of `inner`: nothing, it is hoped.
fn audit(quantization: Quantization, dtype: Dtype, inner: usize) -> Vec<String> {
    let (rows, out) = (3usize, 48usize);
    let x = f32s(&wavy(rows * inner), &[3, inner as i32]).astype(dtype).unwrap();
    let w = f32s(&wavy(out * inner + 7)[7..], &[48, inner as i32]).astype(dtype).unwrap();
    let q = w.quantize(quantization).unwrap();
    let plain = q.dequantize(Dtype::F32).unwrap().to_f32_vec().unwrap();
    let mut wrong = Vec::new();
    let mut check = |what: &str, found: Vec<f32>, wanted: &[f32], bound: f32| {
        let far = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        if far.is_nan() || far > bound {
            wrong.push(format!("{quantization:?} {dtype} {inner} wide: {what} is {far} off"));
        }
    };
    // At most one step of the coding: even steps in affine, relative ones in the float formats.
    let step = match quantization.mode {
        QuantMode::Affine => 3.0 / (f32::exp2(quantization.bits as f32) - 1.0),
        QuantMode::Mxfp8 => 1.5 / 16.0,
        QuantMode::Mxfp4 | QuantMode::Nvfp4 => 1.5 / 4.0,
    };
    check("the round trip", plain.clone(), &w.to_f32_vec().unwrap(), step + 0.02);
    let mut transposed = vec![0.0; plain.len()];
    for (i, row) in plain.chunks(inner).enumerate() {
        row.iter().enumerate().for_each(|(j, v)| transposed[j * out + i] = *v);
    }
    let wanted = matmul(&x.to_f32_vec().unwrap(), &transposed, rows, inner, out);
    let largest = wanted.iter().fold(0f32, |m, v| m.max(v.abs()));
    let bound = largest * if dtype == Dtype::F32 { 1e-3 } else { 0.06 };
    check("the product", x.quantized_matmul(&q).unwrap().to_f32_vec().unwrap(), &wanted, bound);
    let both = w.reshape(&[2, 24, inner as i32]).unwrap().quantize(quantization).unwrap();
    let pick = i32s(&[1, 0, 1], &[3]);
    let which = Gathered { rhs: Some(&pick), ..Gathered::default() };
    let gathered = x.expand_dims(&[1]).unwrap().gather_qmm(&both, which).unwrap();
    let of_experts = [1usize, 0, 1].iter().enumerate().flat_map(|(row, &expert)| {
        let first = row * out + expert * 24;
        wanted[first..first + 24].to_vec()
    });
    let of_experts = of_experts.collect::<Vec<_>>();
    check("the gathered product", gathered.to_f32_vec().unwrap(), &of_experts, bound);
    wrong
}

fn audit_all(quantizations: &[Quantization], dtype: Dtype) {
    let _device = device();
    let widths = [128, 384];
    let wrong = quantizations
        .iter()
        .flat_map(|q| widths.iter().flat_map(|&inner| audit(*q, dtype, inner)))
        .collect::<Vec<_>>();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn affine(group_size: i32) -> [Quantization; 6] {
    [2, 3, 4, 5, 6, 8].map(|bits| Quantization { mode: QuantMode::Affine, bits, group_size })
}

const FLOAT_MODES: [Quantization; 3] = [
    Quantization { mode: QuantMode::Mxfp4, bits: 4, group_size: 32 },
    Quantization { mode: QuantMode::Mxfp8, bits: 8, group_size: 32 },
    Quantization { mode: QuantMode::Nvfp4, bits: 4, group_size: 16 },
];

/// One test each, because a GPU compiles every form anew and the tests can share its processors.
macro_rules! quantized_products_are_those_of_the_dequantized_matrix {
    ($($name:ident: $quantizations:expr, $dtype:ident;)*) => {$(
        #[test]
        fn $name() {
            audit_all(&$quantizations, Dtype::$dtype);
        }
    )*};
}

quantized_products_are_those_of_the_dequantized_matrix! {
    quantized_products_are_right_in_float_modes_f32: FLOAT_MODES, F32;
    quantized_products_are_right_in_float_modes_bf16: FLOAT_MODES, Bf16;
    quantized_products_are_right_in_groups_of_32_f32: affine(32), F32;
    quantized_products_are_right_in_groups_of_32_bf16: affine(32), Bf16;
    quantized_products_are_right_in_groups_of_64_f32: affine(64), F32;
    quantized_products_are_right_in_groups_of_64_bf16: affine(64), Bf16;
    quantized_products_are_right_in_groups_of_128_f32: affine(128), F32;
    quantized_products_are_right_in_groups_of_128_bf16: affine(128), Bf16;
}

#[test]
fn rope_rotates_both_pairings_and_takes_reciprocal_frequencies() {
    let _device = device();
    let x = [1f32, 2., 3., 4., 5.];
    let a = f32s(&x, &[1, 1, 1, 5]);
    let position = 3;
    let angles = [3.0f32 * 1.0, 3.0 * 100f32.powf(-0.5)];
    let turn = |p: f32, q: f32, t: f32| (p * t.cos() - q * t.sin(), q * t.cos() + p * t.sin());
    for traditional in [false, true] {
        let mut wanted = x;
        for (i, &angle) in angles.iter().enumerate() {
            let (p, q) = if traditional { (2 * i, 2 * i + 1) } else { (i, i + 2) };
            (wanted[p], wanted[q]) = turn(x[p], x[q], angle);
        }
        let rope = Rope { dims: 4, traditional, base: 100.0, scale: 1.0, freqs: None };
        check(&a.rope(&rope, position).unwrap(), &[1, 1, 1, 5], &wanted);
        let reciprocals = f32s(&[1.0, 10.0], &[2]);
        let rope = Rope { freqs: Some(reciprocals), ..rope };
        check(&a.rope(&rope, position).unwrap(), &[1, 1, 1, 5], &wanted);
        check(&a.rope_rows(&rope, &i32s(&[3], &[1])).unwrap(), &[1, 1, 1, 5], &wanted);
    }
}

#[test]
fn attention_groups_query_heads_and_aligns_the_causal_mask_to_the_last_key() {
    let _device = device();
    let (h, k, l, t, d, v) = (6usize, 2usize, 3usize, 5usize, 4usize, 7usize);
    let (q, ks, vs) =
        (wavy(h * l * d), wavy(k * t * d + 3)[3..].to_vec(), wavy(k * t * v + 5)[5..].to_vec());
    let sinks = wavy(h);
    let mut wanted = vec![0f32; h * l * v];
    for head in 0..h {
        let kv = head / (h / k);
        for i in 0..l {
            let scores = (0..=i + t - l)
                .map(|j| {
                    (0..d)
                        .map(|x| q[(head * l + i) * d + x] * ks[(kv * t + j) * d + x])
                        .sum::<f32>()
                        * 0.3
                })
                .collect::<Vec<_>>();
            let total: f32 = scores.iter().map(|s| s.exp()).sum::<f32>() + sinks[head].exp();
            for (j, s) in scores.iter().enumerate() {
                for x in 0..v {
                    wanted[(head * l + i) * v + x] += s.exp() / total * vs[(kv * t + j) * v + x];
                }
            }
        }
    }
    let q = f32s(&q, &[1, 6, 3, 4]);
    let ks = f32s(&ks, &[1, 2, 5, 4]);
    let vs = f32s(&vs, &[1, 2, 5, 7]);
    let sinks = f32s(&sinks, &[6]);
    let found = q.attention(&ks, &vs, 0.3, Attend::Causal, Some(&sinks)).unwrap();
    check(&found, &[1, 6, 3, 7], &wanted);
    let rows = Array::arange(2.0, 5.0, 1.0, Dtype::I32).unwrap().reshape(&[3, 1]).unwrap();
    let mask = rows.ge(&Array::arange(0.0, 5.0, 1.0, Dtype::I32).unwrap()).unwrap();
    let found = q.attention(&ks, &vs, 0.3, Attend::Mask(&mask), Some(&sinks)).unwrap();
    check(&found, &[1, 6, 3, 7], &wanted);
}

#[test]
fn norms_divide_by_the_root_mean_square() {
    let _device = device();
    let x = [3f32, 4.];
    let a = f32s(&x, &[1, 2]);
    let w = f32s(&[2., 0.5], &[2]);
    let r = 1.0 / (12.5f32 + 0.1).sqrt();
    check(&a.rms_norm(Some(&w), 0.1).unwrap(), &[1, 2], &[6. * r, 2. * r]);
    check(&a.rms_norm(None, 0.1).unwrap(), &[1, 2], &[3. * r, 4. * r]);
    let s = 1.0 / (0.25f32 + 0.1).sqrt();
    check(&a.layer_norm(None, None, 0.1).unwrap(), &[1, 2], &[-0.5 * s, 0.5 * s]);
}

#[test]
fn the_same_key_gives_the_same_numbers_and_split_keys_differ() {
    let _device = device();
    let draw = |seed| {
        Key::from_seed(seed).unwrap().uniform(&[64], Dtype::F32).unwrap().to_f32_vec().unwrap()
    };
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
    let (a, b) = Key::from_seed(7).unwrap().split().unwrap();
    assert_ne!(
        a.bits(&[8]).unwrap().to_vec::<u32>().unwrap(),
        b.bits(&[8]).unwrap().to_vec::<u32>().unwrap()
    );
    let normal = a.normal(&[10_000], Dtype::F32).unwrap();
    assert!(normal.mean(&[0]).unwrap().item::<f32>().unwrap().abs() < 0.05);
    assert!((normal.variance(&[0]).unwrap().item::<f32>().unwrap() - 1.0).abs() < 0.05);
    let integers = b.integers(-2, 3, &[500]).unwrap().to_vec::<i32>().unwrap();
    assert_eq!((integers.iter().min(), integers.iter().max()), (Some(&-2), Some(&2)));
    let logits = f32s(&[0.0, f32::NEG_INFINITY, 0.0], &[1, 3]).broadcast_to(&[200, 3]).unwrap();
    let drawn = a.categorical(&logits).unwrap().to_vec::<u32>().unwrap();
    assert!(drawn.iter().all(|&i| i != 1) && drawn.contains(&0) && drawn.contains(&2));
}

#[test]
fn files_keep_names_dtypes_values_and_metadata() {
    let _device = device();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let mut content = Safetensors::default();
    content.tensors.insert("x".into(), f32s(&wavy(6), &[2, 3]).astype(Dtype::Bf16).unwrap());
    content.tensors.insert("y".into(), i32s(&[4, 5], &[2]));
    content.metadata.insert("format".into(), "mlx".into());
    mlx::save_safetensors(&path, &content).unwrap();
    let loaded = mlx::load_safetensors(&path).unwrap();
    assert_eq!(loaded.metadata, content.metadata);
    assert_eq!(loaded.tensors["x"].dtype(), Dtype::Bf16);
    assert_eq!(loaded.tensors["x"].to_bytes().unwrap(), content.tensors["x"].to_bytes().unwrap());
    assert_eq!(loaded.tensors["y"].to_vec::<i32>().unwrap(), [4, 5]);
    let absent = mlx::load_safetensors(&dir.path().join("none.safetensors"));
    assert!(absent.unwrap_err().to_string().contains("load_safetensors"));
}

#[test]
fn errors_name_the_operation_and_the_shapes() {
    let _device = device();
    let (a, b) = (f32s(&wavy(6), &[2, 3]), f32s(&wavy(8), &[2, 4]));
    let said = a.matmul(&b).unwrap_err().to_string();
    assert!(said.starts_with("matmul(f32[2, 3], f32[2, 4]): "), "{said}");
    let said = a.reshape(&[4]).unwrap_err().to_string();
    assert!(said.starts_with("reshape(f32[2, 3]): "), "{said}");
    let said = a.attention(&b, &b, 1.0, Attend::Causal, None).unwrap_err().to_string();
    assert!(said.contains("f32[2, 4]"), "{said}");
    assert!(matches!(
        a.to_vec::<i32>(),
        Err(Error::Dtype { found: Dtype::F32, wanted: Dtype::I32, .. })
    ));
    assert!(Array::from_slice(&[1f32], &[2]).is_err());
    assert!(Array::from_slice(&[1f32], &[-1, -1]).is_err());
    assert!(a.item::<f32>().is_err());
    let odd = Quantization { mode: QuantMode::Affine, bits: 4, group_size: 64 };
    assert!(a.quantize(odd).unwrap_err().to_string().contains("quantize(f32[2, 3])"));
}

#[test]
fn a_cpu_kernel_in_rust_is_a_node_like_any_other() {
    let _device = device();
    let a = f32s(&wavy(6), &[2, 3]);
    let sum_rows = |x: &Array| {
        CpuKernel::call(&[x], &[(&[3], Dtype::F32), (&[1], Dtype::I32)], |ins, outs| {
            let width = ins[0].shape[1] as usize;
            for row in ins[0].as_slice::<f32>()?.chunks(width) {
                let sums = outs[0].as_mut_slice::<f32>()?;
                sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += v);
            }
            outs[1].as_mut_slice::<i32>()?[0] = ins[0].shape[0];
            Ok(())
        })
    };
    let outs = sum_rows(&a.offset(1.0).unwrap()).unwrap();
    let wanted = a.sum(&[0]).unwrap().offset(2.0).unwrap().to_f32_vec().unwrap();
    check(&outs[0].scale(1.0).unwrap(), &[3], &wanted);
    assert_eq!(outs[1].to_vec::<i32>().unwrap(), [2]);
    let turned = a.swap_axes(0, 1).unwrap().swap_axes(0, 1).unwrap();
    let strided = turned.slice_strided(&[0, 0], &[2, 3], &[1, 1]).unwrap();
    check(&sum_rows(&strided).unwrap()[0], &[3], &a.sum(&[0]).unwrap().to_f32_vec().unwrap());
}

#[test]
fn a_cpu_kernel_gets_views_of_any_kind_in_order_or_as_they_lie() {
    let _device = device();
    let x = f32s(&wavy(120), &[2, 3, 4, 5]);
    let views = [
        x.clone(),
        x.swap_axes(1, 2).unwrap(),
        x.swap_axes(2, 3).unwrap(),
        x.slice(&[0, 1, 1, 0], &[2, 3, 3, 5]).unwrap(),
        x.slice(&[1, 0, 0, 2], &[2, 3, 4, 3]).unwrap(),
        x.slice_axis(0, 0..1).unwrap().broadcast_to(&[4, 3, 4, 5]).unwrap(),
        x.slice_strided(&[1, 2, 3, 4], &[-3, -4, -5, -6], &[-1, -1, -2, -1]).unwrap(),
        x.slice_axis(1, 0..0).unwrap(),
    ];
    for view in views {
        let output = [(view.shape(), Dtype::F32)];
        let in_order = CpuKernel::call(&[&view], &output, |ins, outs| {
            outs[0].as_mut_slice::<f32>()?.copy_from_slice(ins[0].as_slice::<f32>()?);
            Ok(())
        });
        let wanted = view.to_f32_vec().unwrap();
        assert_eq!(in_order.unwrap()[0].to_f32_vec().unwrap(), wanted, "{:?}", view.shape());
        let as_it_lies = CpuKernel::call_strided(&[&view], &output, |ins, outs| {
            let (shape, strides, span) = (ins[0].shape, ins[0].strides, ins[0].span());
            for (i, out) in outs[0].as_mut_slice::<f32>()?.iter_mut().enumerate() {
                let (mut rest, mut at) = (i, 0);
                for (&n, &stride) in shape.iter().zip(strides).rev() {
                    at += (rest % n as usize) * stride as usize;
                    rest /= n as usize;
                }
                *out = f32::from_le_bytes(span[4 * at..4 * at + 4].try_into().unwrap());
            }
            Ok(())
        });
        match as_it_lies.unwrap()[0].to_f32_vec() {
            Ok(found) => assert_eq!(found, wanted, "{:?}", view.shape()),
            Err(error) => assert!(error.to_string().contains("go backwards"), "{error}"),
        }
    }
}

#[test]
fn a_cpu_kernel_may_be_dropped_before_it_has_run() {
    let _device = device();
    let guard = std::sync::Arc::new(41);
    let held = guard.clone();
    let x = f32s(&[1.0], &[1]);
    let result = {
        let out = CpuKernel::call(&[&x], &[(&[1], Dtype::F32)], move |_, outs| {
            outs[0].as_mut_slice::<f32>()?[0] = *held as f32 + 1.0;
            Ok(())
        });
        out.unwrap()[0].scale(2.0).unwrap()
    };
    mlx::async_eval([&result]).unwrap();
    assert_eq!(result.item::<f32>().unwrap(), 84.0);
    drop(result);
    Device::open().unwrap().default_stream().unwrap().synchronize().unwrap();
    assert_eq!(std::sync::Arc::strong_count(&guard), 1);
}

#[test]
fn a_cpu_kernels_error_reaches_the_one_who_evaluates() {
    let _device = device();
    let x = f32s(&[1.0], &[1]);
    let out = CpuKernel::call(&[&x], &[(&[1], Dtype::F32)], |ins, _| {
        ins[0].as_slice::<i32>().map(|_| ())
    });
    let said = out.unwrap()[0].eval().unwrap_err().to_string();
    assert!(said.contains("the tensor holds f32, not i32"), "{said}");
    check(&x.offset(1.0).unwrap(), &[1], &[2.0]);
}

#[test]
fn reading_a_value_does_not_wait_for_work_that_was_queued_later() {
    let _device = device();
    let early = f32s(&[1.0], &[1]).offset(1.0).unwrap();
    mlx::async_eval([&early]).unwrap();
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let late = CpuKernel::call(&[&f32s(&[1.0], &[1])], &[(&[1], Dtype::F32)], move |_, _| {
        let wait = std::time::Duration::from_secs(10);
        gate.lock().unwrap().recv_timeout(wait).map_err(|_| "nobody read meanwhile".to_owned())
    });
    let late = late.unwrap().remove(0);
    mlx::async_eval([&late]).unwrap();
    assert_eq!(early.item::<f32>().unwrap(), 2.0);
    release.send(()).unwrap();
    late.eval().unwrap();
}

#[test]
fn shapes_and_bytes_that_would_break_rusts_promises_are_refused() {
    let _device = device();
    assert!(Array::from_bytes(&[], &[1 << 16; 4], Dtype::U8).is_err(), "2⁶⁴ elements are not 0");
    assert!(Array::from_bytes(&[0; 7], &[2], Dtype::F32).is_err());
    let two = Array::from_slice(&[1u8, 2], &[2]).unwrap().view(Dtype::Bool).unwrap();
    assert!(two.to_vec::<bool>().unwrap_err().to_string().contains("0 or 1"));
    assert_eq!(two.to_bytes().unwrap(), [1, 2]);
    let said = |x: &Array, read: fn(&mlx::TensorRef<'_>) -> Result<(), String>| {
        let out = CpuKernel::call(&[x], &[(&[1], Dtype::F32)], move |ins, _| read(&ins[0]));
        out.unwrap()[0].eval().unwrap_err().to_string()
    };
    assert!(said(&two, |x| x.as_slice::<bool>().map(drop)).contains("0 or 1"));
}

/// y = n·x on whichever device backend there is; the others refuse with words.
#[test]
fn device_kernels_run_on_their_backend_and_are_refused_elsewhere() {
    let device = device();
    let x = f32s(&wavy(70), &[70]);
    let launch = Launch {
        outputs: &[(&[70], Dtype::F32)],
        grid: [70, 1, 1],
        group: [32, 1, 1],
        ints: &[("N", 3)],
        dtypes: &[("T", Dtype::F32)],
    };
    let check_result = |backend, name: &str, result: mlx::Result<Vec<Array>>| {
        if device.backend() == backend {
            let wanted = wavy(70).iter().map(|v| 3.0 * v).collect::<Vec<_>>();
            check(&result.unwrap()[0], &[70], &wanted);
        } else {
            let said = result.expect_err("no such backend").to_string();
            assert!(said.contains(name), "{said}");
        }
    };
    let cuda = CudaSource {
        name: "times",
        inputs: &["x"],
        outputs: &["y"],
        body: "int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < 70) y[i] = T(N) * x[i];",
        header: "",
        row_contiguous: true,
        shared_bytes: 0,
        n_late: None,
    };
    let result = CudaKernel::new(&cuda).and_then(|kernel| kernel.launch(&[&x], &launch));
    check_result(Backend::Cuda, "cuda_kernel", result);
    let metal = MetalSource {
        name: "times",
        inputs: &["x"],
        outputs: &["y"],
        body: "uint i = thread_position_in_grid.x; if (i < 70) y[i] = T(N) * x[i];",
        header: "",
        row_contiguous: true,
        atomic_outputs: false,
    };
    let result = MetalKernel::new(&metal).and_then(|kernel| kernel.launch(&[&x], &launch));
    check_result(Backend::Metal, "metal_kernel", result);
}

#[test]
fn work_on_a_second_stream_is_seen_by_the_first() {
    let device = device();
    let second = device.new_stream().unwrap();
    let a = second.scope(|| f32s(&wavy(6), &[6]).offset(1.0)).unwrap();
    let wanted = wavy(6).iter().map(|v| (v + 1.0) * 2.0).collect::<Vec<_>>();
    check(&a.scale(2.0).unwrap(), &[6], &wanted);
    second.synchronize().unwrap();
}

#[test]
fn a_compact_copy_of_a_slice_lets_the_big_buffer_go() {
    let _device = device();
    let big = Array::full(&[1024, 256], 1.0, Dtype::F32).unwrap().offset(1.0).unwrap();
    big.eval().unwrap();
    let part = big.slice(&[10, 0], &[11, 256]).unwrap();
    assert!(part.buffer_bytes().unwrap() >= 1024 * 256 * 4);
    let copy = part.reshape(&[256]).unwrap().offset(0.0).unwrap();
    assert!(copy.buffer_bytes().unwrap() < 8192);
}

#[test]
fn an_update_writes_in_place_where_nothing_else_holds_the_array_and_into_a_copy_elsewhere() {
    let _device = device();
    let set = |old: Array, at: usize| {
        CpuKernel::update(old, &[], move |_, out| {
            out.as_mut_slice::<f32>()?[at] = 7.0;
            Ok(())
        })
        .unwrap()
    };
    let old = Array::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2]).unwrap();
    let held = old.clone();
    let turned = old.swap_axes(0, 1).unwrap();
    for (array, wanted) in [(old, [1.0, 7.0, 3.0, 4.0]), (turned, [1.0, 7.0, 2.0, 4.0])] {
        let new = set(array, 1);
        assert_eq!(new.to_f32_vec().unwrap(), wanted);
        assert_eq!(set(new, 0).to_f32_vec().unwrap()[..2], [7.0, 7.0]);
    }
    assert_eq!(held.to_f32_vec().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    let failing = CpuKernel::update(held, &[], |_, _| Err("no".to_owned())).unwrap();
    assert!(failing.eval().unwrap_err().to_string().contains("no"));
}
