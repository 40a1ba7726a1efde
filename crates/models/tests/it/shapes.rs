//! Random weights in known shapes: counts that match the published models, and logits that are
//! numbers.

use std::ops::ControlFlow;

use mlx::{Array, Device};
use models::{LoadOptions, ShapeQuantization, Source, Step};

fn load(
    name: &str,
    quantization: ShapeQuantization,
    n_layers: i32,
) -> models::Result<models::Loaded> {
    Device::open().unwrap();
    let source = Source::Shape { name: name.to_owned(), quantization, n_layers: Some(n_layers) };
    models::load(&source, &LoadOptions::default(), &mut |_, _| ControlFlow::Continue(()))
}

#[test]
fn one_layer_of_qwen3_runs_in_every_quantization() {
    // 4.25 to 16 bits a weight; head and embedding are tied in this shape, so all is read for each
    // token.
    let cases = [
        (ShapeQuantization::Affine4, 4.5),
        (ShapeQuantization::Mxfp4, 4.25),
        (ShapeQuantization::Affine8, 8.5),
        (ShapeQuantization::Bf16, 16.0),
    ];
    for (quantization, bits) in cases {
        let loaded = load("qwen3-0.6b", quantization, 1).unwrap();
        let info = &loaded.info;
        let layer = 1024 * (2048 + 2 * 1024 + 2048) + 3 * 1024 * 3072 + 2 * 1024 + 2 * 128;
        assert_eq!(info.n_parameters, 151_936 * 1024 + layer + 1024);
        let bits_found = info.weight_bytes as f64 * 8.0 / info.n_parameters as f64;
        assert!((bits_found - bits).abs() < 0.01, "{quantization:?}: {bits_found}");
        assert_eq!(info.weight_bytes_per_token, info.weight_bytes);
    }
}

#[test]
fn random_logits_are_finite_and_differ() {
    let loaded = load("qwen3-0.6b", ShapeQuantization::Bf16, 1).unwrap();
    let tokens = Array::from_slice(&[3i32, 9], &[1, 2]).unwrap();
    let mut states = loaded.model.new_state();
    let hidden = loaded.model.forward(&tokens, &Step::new(0, 2), &mut states).unwrap();
    let last = hidden.slice_axis(1, 1..2).unwrap();
    let logits = loaded.model.logits(&last).unwrap().to_f32_vec().unwrap();
    assert!(logits.iter().all(|v| v.is_finite()));
    assert!(logits.iter().any(|v| (v - logits[0]).abs() > 1e-3));
}

#[test]
fn unknown_shapes_say_what_is_known() {
    let said = load("qwen9-1t", ShapeQuantization::Bf16, 1).unwrap_err().to_string();
    assert!(said.contains("qwen9-1t") && said.contains("qwen3-8b"), "{said}");
    let said = load("qwen3-0.6b", ShapeQuantization::Bf16, 29).unwrap_err().to_string();
    assert!(said.contains("only 28 layers"), "{said}");
    assert!("5bit".parse::<ShapeQuantization>().unwrap_err().to_string().contains("mxfp4"));
}

#[test]
fn a_step_reads_the_experts_that_its_rows_use() {
    let case = crate::folder::goldens().join("qwen3_moe/default");
    let dir = crate::folder::folder_of(&case, 1);
    let info = crate::folder::load(dir.path(), &LoadOptions::default()).unwrap().info;
    let config = crate::folder::json(&case.join("config.json"));
    let number = |key: &str| config[key].as_f64().unwrap();
    let n_experts = config.get("num_experts").or(config.get("num_local_experts")).unwrap();
    let share = number("num_experts_per_tok") / n_experts.as_f64().unwrap();
    let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-6 * b, "{a} {b}");
    let experts = info.expert_bytes as f64;
    close(info.weight_bytes_per_step(1), info.weight_bytes_per_token as f64);
    let two = info.weight_bytes_per_token as f64 + experts * share * (1.0 - share);
    close(info.weight_bytes_per_step(2), two);
    let embedding = 4.0 * number("vocab_size") * number("hidden_size");
    close(info.weight_bytes_per_step(10_000), info.weight_bytes as f64 - embedding);
}
