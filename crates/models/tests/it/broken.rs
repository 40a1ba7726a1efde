//! Checkpoints and configs that are not what they should be: each is refused with words that name
//! the culprit.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use mlx::{Array, Dtype};
use models::{LoadOptions, Source};
use serde_json::{Value, json};

use crate::folder::{self, folder_of, goldens, tensors, write};

type Tensors = BTreeMap<String, Array>;

/// Writes `goldens/<family>/<case>` after a change of config and tensors, and returns what loading
/// it says.
fn said_after(case: &str, change: impl FnOnce(&mut Value, &mut Tensors)) -> String {
    mlx::Device::open().unwrap();
    let case = goldens().join(case);
    let mut config = folder::json(&case.join("config.json"));
    let mut tensors = tensors(&case);
    change(&mut config, &mut tensors);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &config, tensors, 1);
    error_of(dir.path())
}

fn error_of(folder: &Path) -> String {
    match folder::load(folder, &LoadOptions::default()) {
        Ok(loaded) => panic!("loaded {:?}", loaded.info),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn check(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "'{word}' is not in: {said}");
    }
}

#[test]
fn all_missing_tensors_are_listed_at_once() {
    let said = said_after("llama/default", |_, tensors| {
        tensors.remove("model.layers.1.mlp.up_proj.weight");
        tensors.remove("model.norm.weight");
    });
    check(&said, &["missing", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"]);
}

#[test]
fn unused_tensors_are_named_with_their_file() {
    let said = said_after("qwen3/default", |_, tensors| {
        let stray = Array::zeros(&[3], Dtype::F32).unwrap();
        tensors.insert("model.layers.0.self_attn.sinks".into(), stray);
    });
    check(&said, &["model.layers.0.self_attn.sinks", "model.safetensors", "qwen3"]);
}

#[test]
fn buffers_that_old_checkpoints_carry_are_passed_over() {
    mlx::Device::open().unwrap();
    let case = goldens().join("llama/default");
    let mut list = tensors(&case);
    let buffer = Array::zeros(&[7], Dtype::F32).unwrap();
    list.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), buffer);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &folder::json(&case.join("config.json")), list, 1);
    folder::load(dir.path(), &LoadOptions::default()).unwrap();
}

#[test]
fn a_misshapen_tensor_is_shown_with_both_shapes() {
    let name = "model.layers.0.self_attn.k_proj.weight";
    let said = said_after("llama/default", |_, tensors| {
        tensors.insert(name.into(), Array::zeros(&[28, 47], Dtype::F32).unwrap());
    });
    check(&said, &[name, "[28, 47]", "[28, 48]", "model.safetensors"]);
}

#[test]
fn integers_where_floats_belong_are_refused() {
    let name = "model.layers.2.mlp.gate_proj.weight";
    let said = said_after("llama/default", |_, tensors| {
        tensors.insert(name.into(), Array::zeros(&[104, 48], Dtype::I32).unwrap());
    });
    check(&said, &[name, "I32"]);
}

#[test]
fn a_truncated_file_is_refused_before_anything_is_read() {
    let dir = folder_of(&goldens().join("llama/default"), 1);
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for keep in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..keep]).unwrap();
        check(&error_of(dir.path()), &["model.safetensors", "truncated"]);
    }
    let mut longer = whole.clone();
    longer.push(0);
    std::fs::write(&path, &longer).unwrap();
    check(&error_of(dir.path()), &["model.safetensors", "longer"]);
    std::fs::write(&path, b"not a safetensors file at all").unwrap();
    check(&error_of(dir.path()), &["model.safetensors", "no safetensors file"]);
}

#[test]
fn a_header_that_lies_about_offsets_is_refused() {
    let dir = folder_of(&goldens().join("llama/default"), 1);
    let path = dir.path().join("model.safetensors");
    for header in [
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
        r#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#,
        r#"{"a":{"#,
    ] {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        file.extend([0; 8]);
        std::fs::write(&path, &file).unwrap();
        check(&error_of(dir.path()), &["model.safetensors", "header"]);
    }
}

#[test]
fn a_missing_or_misplaced_shard_is_named() {
    let dir = folder_of(&goldens().join("qwen2/default"), 2);
    let index = dir.path().join("model.safetensors.index.json");
    let shard = dir.path().join("model-00002-of-00002.safetensors");
    std::fs::rename(&shard, dir.path().join("elsewhere")).unwrap();
    check(&error_of(dir.path()), &["model-00002-of-00002.safetensors", "not there"]);
    std::fs::write(&index, json!({"weight_map": {"x": "../model.safetensors"}}).to_string())
        .unwrap();
    check(&error_of(dir.path()), &["../model.safetensors", "no file name"]);
    std::fs::write(&index, "{}").unwrap();
    check(&error_of(dir.path()), &["weight_map"]);
}

#[test]
fn folders_without_a_model_say_what_is_missing() {
    mlx::Device::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    check(&error_of(dir.path()), &["config.json"]);
    std::fs::write(dir.path().join("config.json"), "{").unwrap();
    check(&error_of(dir.path()), &["config.json"]);
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    check(&error_of(dir.path()), &["model_type"]);
    std::fs::write(dir.path().join("config.json"), r#"{"model_type":"gpt9"}"#).unwrap();
    check(&error_of(dir.path()), &["gpt9", "llama", "qwen3"]);
    std::fs::write(dir.path().join("config.json"), r#"{"model_type":"llama"}"#).unwrap();
    check(&error_of(dir.path()), &["holds no .safetensors file"]);
}

#[test]
fn configs_that_lie_are_refused_by_the_name_of_the_field() {
    let cases: &[(&str, Value, &[&str])] = &[
        ("num_key_value_heads", json!(4), &["num_key_value_heads", "6"]),
        ("num_attention_heads", json!(0), &["num_attention_heads", "integer"]),
        ("num_attention_heads", json!(12), &["q_proj.weight", "shape"]),
        ("hidden_size", json!(-48), &["hidden_size"]),
        ("hidden_size", json!("48"), &["hidden_size"]),
        ("hidden_size", json!(1u64 << 40), &["hidden_size"]),
        ("hidden_size", json!(null), &["hidden_size", "missing"]),
        ("vocab_size", json!(90), &["embed_tokens.weight", "[89, 48]", "[90, 48]"]),
        ("num_hidden_layers", json!(4), &["missing", "model.layers.3."]),
        ("num_hidden_layers", json!(1 << 20), &["num_hidden_layers", "4096"]),
        ("head_dim", json!(1 << 26), &["head_dim", "width"]),
        ("rope_parameters", json!({"rope_type": "yarn", "factor": 0}), &["factor", "above 0"]),
        (
            "rope_parameters",
            json!({"full_attention": {"rope_type": "default", "rope_theta": 1e6}}),
            &["rope_parameters", "full_attention"],
        ),
        ("num_hidden_layers", json!(2), &["model.layers.2.", "does not have"]),
        ("hidden_act", json!("gelu"), &["hidden_act", "gelu", "silu"]),
        ("rms_norm_eps", json!("small"), &["rms_norm_eps"]),
        ("rms_norm_eps", json!(-1e-5), &["rms_norm_eps", "below 0"]),
        ("attention_bias", json!("yes"), &["attention_bias"]),
        ("rope_parameters", json!({"rope_type": "spiral"}), &["rope_type", "spiral", "yarn"]),
        ("rope_parameters", json!({"rope_type": "linear"}), &["factor", "missing"]),
        ("rope_parameters", json!({"rope_type": "linear", "factor": 0}), &["factor", "above 0"]),
        ("rope_parameters", json!({"rope_theta": 0.5}), &["rope_theta"]),
        (
            "rope_parameters",
            json!({"rope_theta": {"__float__": "Infinity"}}),
            &["rope_theta", "finite"],
        ),
        (
            "rope_parameters",
            json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}),
            &["short_factor", "1 numbers", "7 pairs"],
        ),
        ("layer_types", json!(["full_attention"]), &["layer_types", "1 layers"]),
        ("layer_types", json!(["full_attention", "spiral", "full_attention"]), &["spiral"]),
    ];
    for (key, value, words) in cases {
        let said = said_after("llama/default", |config, _| config[*key] = value.clone());
        check(&said, words);
    }
}

/// A quantized golden folder after a change of its config.
fn quantized_said(case: &str, change: impl FnOnce(&mut Value)) -> String {
    let source = goldens().join("quantized").join(case);
    let dir = tempfile::tempdir().unwrap();
    let mut config = folder::json(&source.join("config.json"));
    change(&mut config);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(source.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    error_of(dir.path())
}

#[test]
fn quantization_settings_that_do_not_fit_the_tensors_are_refused() {
    let case = "llama_affine4_64_f16";
    let said = quantized_said(case, |config| config["quantization"]["mode"] = json!("int4"));
    check(&said, &["mode", "int4", "affine"]);
    let path = "model.layers.0.mlp.up_proj";
    let said = quantized_said(case, |config| {
        config["quantization"][path] = json!({"bits": 8, "group_size": 64});
    });
    check(&said, &[path, "config.json states", "8"]);
    let said = quantized_said(case, |config| config["quantization"][path] = json!(false));
    check(&said, &[path, "not quantized"]);
    let said = quantized_said(case, |config| {
        config["quantization"] = json!(null);
        config["quantization_config"] = json!({"quant_method": "gptq", "bits": 4});
    });
    check(&said, &["quant_method", "gptq"]);
    let said = quantized_said(case, |config| {
        config["quantization"][path] = json!({"bits": "four", "group_size": 64});
    });
    check(&said, &[path, "bits"]);
}

#[test]
fn scales_that_are_not_finite_are_refused() {
    mlx::Device::open().unwrap();
    let source = goldens().join("quantized/llama_affine4_64_f16");
    let mut file = mlx::load_safetensors(&source.join("model.safetensors")).unwrap();
    let name = "model.layers.0.mlp.up_proj.scales";
    let nan = Array::full(&[1, 1], f32::NAN, file.tensors[name].dtype()).unwrap();
    let spoiled = file.tensors[name].slice_update(&nan, &[3, 0], &[4, 1]).unwrap();
    file.tensors.insert(name.into(), spoiled);
    let dir = tempfile::tempdir().unwrap();
    mlx::save_safetensors(&dir.path().join("model.safetensors"), &file).unwrap();
    std::fs::copy(source.join("config.json"), dir.path().join("config.json")).unwrap();
    check(&error_of(dir.path()), &[name, "not finite"]);
}

#[test]
fn loading_can_be_called_off_and_reports_growing_bytes() {
    let dir = folder_of(&goldens().join("llama/default"), 1);
    let source = Source::Folder(dir.path().to_owned());
    let mut seen = Vec::new();
    let result = models::load(&source, &LoadOptions::default(), &mut |done, total| {
        seen.push((done, total));
        if seen.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(result, Err(models::Error::Cancelled)));
    assert!(seen[0].0 < seen[1].0 && seen[1].0 < seen[1].1, "{seen:?}");
}

#[test]
fn weights_larger_than_the_memory_are_refused_before_they_are_read() {
    let dir = folder_of(&goldens().join("llama/default"), 1);
    let options = LoadOptions { memory_bytes: Some(1000), ..LoadOptions::default() };
    let said = folder::load(dir.path(), &options).unwrap_err().to_string();
    check(&said, &["memory", "0 MiB are free"]);
}

#[test]
fn a_head_that_is_not_there_is_the_embedding_with_a_note() {
    mlx::Device::open().unwrap();
    let case = goldens().join("llama/default");
    let mut list = tensors(&case);
    list.remove("lm_head.weight");
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &folder::json(&case.join("config.json")), list, 1);
    let loaded = folder::load(dir.path(), &LoadOptions::default()).unwrap();
    check(&loaded.notes.join(" "), &["lm_head"]);
}

#[test]
fn configs_of_experts_and_hybrids_that_lie_are_refused_by_the_name_of_the_field() {
    let cases: &[(&str, &str, Value, &[&str])] = &[
        ("qwen3_moe/default", "num_experts_per_tok", json!(4096), &["num_experts_per_tok", "4096"]),
        ("qwen3_moe/default", "num_experts", json!(2), &["num_experts"]),
        (
            "qwen3_moe/fused",
            "num_experts_per_tok",
            json!(null),
            &["num_experts_per_tok", "missing"],
        ),
        ("qwen3_moe/default", "moe_intermediate_size", json!(3), &["switch_mlp", "shape"]),
        ("qwen3_moe/default", "mlp_only_layers", json!([-1]), &["mlp_only_layers", "integers"]),
        ("qwen3_moe/default", "mlp_only_layers", json!([0]), &["missing", "layers.0.mlp."]),
        ("qwen3_next/default", "linear_num_key_heads", json!(5), &["linear_num_key_heads", "5"]),
        ("qwen3_next/default", "linear_value_head_dim", json!(7), &["in_proj_qkvz", "shape"]),
        ("qwen3_next/default", "linear_conv_kernel_dim", json!(5), &["conv1d", "shape"]),
        ("qwen3_5/default", "layer_types", json!(["spiral"]), &["layer_types"]),
        ("qwen3_5/default", "linear_key_head_dim", json!(7), &["in_proj_qkv", "shape"]),
        ("glm4_moe_lite/default", "n_group", json!(1000), &["n_group", "1000"]),
        ("glm4_moe_lite/default", "kv_lora_rank", json!(9), &["kv_lora_rank or shape", "9"]),
        ("glm4_moe_lite/default", "qk_rope_head_dim", json!(3), &["partial_rotary_factor", "3"]),
        ("glm4_moe_lite/default", "topk_method", json!("greedy"), &["topk_method", "greedy"]),
        ("glm4_moe_lite/default", "mlp_layer_types", json!(["wide"]), &["mlp_layer_types"]),
        ("gpt_oss/default", "sliding_window", json!(0), &["sliding_window", "integer"]),
        ("gpt_oss/default", "sliding_window", json!(-7), &["sliding_window"]),
        ("gpt_oss/default", "num_local_experts", json!(3), &["num_local_experts or shape", "3"]),
        ("gemma3_text/default", "sliding_window", json!("wide"), &["sliding_window"]),
        ("gemma3_text/default", "vocab_size", json!(null), &["embed_tokens", "[262208, 56]"]),
        ("gemma3_text/default", "query_pre_attn_scalar", json!(0), &["query_pre_attn_scalar"]),
        ("gemma3_text/default", "attn_logit_softcapping", json!(30.0), &["attn_logit_softcapping"]),
        (
            "gemma3_text/default",
            "final_logit_softcapping",
            json!(-1.0),
            &["softcapping", "above 0"],
        ),
        ("gemma3_text/default", "hidden_activation", json!("silu"), &["hidden_activation"]),
    ];
    for (case, key, value, words) in cases {
        let said = said_after(case, |config, _| {
            // Wherever the text model's keys are.
            let inner = config.get("text_config").is_some();
            let text = if inner { &mut config["text_config"] } else { config };
            text[*key] = value.clone();
        });
        for word in *words {
            let found = word.split(" or ").any(|word| said.contains(word));
            assert!(found, "{case} with {key} = {value}: '{word}' is not in: {said}");
        }
    }
}

#[test]
fn an_expert_that_is_missing_or_misshapen_among_others_is_named() {
    let is_of = |name: &str, expert: usize| name.contains(&format!(".experts.{expert}.gate_proj."));
    let said = said_after("qwen3_moe/default", |_, tensors| {
        let name = tensors.keys().find(|name| is_of(name, 1)).unwrap().clone();
        tensors.remove(&name);
    });
    check(&said, &["switch_mlp.gate_proj", "expert 1 is missing", "experts.2.gate_proj"]);
    let said = said_after("qwen3_moe/default", |_, tensors| {
        let name = tensors.keys().find(|name| is_of(name, 2)).unwrap().clone();
        tensors.insert(name, Array::zeros(&[3, 4], Dtype::F32).unwrap());
    });
    check(&said, &["experts.2.gate_proj.weight", "[3, 4]", "expert 0"]);
    // The last one is no hole: there are fewer experts than the config says.
    let said = said_after("qwen3_moe/default", |_, tensors| {
        let last = tensors.keys().filter_map(|name| expert_number(name)).max().unwrap();
        tensors.retain(|name, _| expert_number(name) != Some(last));
    });
    check(&said, &["switch_mlp", "shape", "the config implies"]);
}

fn expert_number(name: &str) -> Option<usize> {
    name.split_once(".experts.")?.1.split('.').next()?.parse().ok()
}

#[test]
fn eight_bit_floats_need_scales_that_fit() {
    let name = "model.layers.0.mlp.up_proj.weight";
    let widened = |rows: i32, cols: i32, scale_dtype: Dtype| {
        said_after("llama/default", |config, tensors| {
            config["quantization_config"] = json!({"quant_method": "fp8"});
            let scales = Array::full(&[rows, cols], 1.0, scale_dtype).unwrap();
            tensors.insert(format!("{name}_scale_inv"), scales);
        })
    };
    check(&widened(1, 1, Dtype::F32), &[name, "F8_E4M3", "F32"]);
    let said = said_after("llama/default", |_, tensors| {
        tensors.remove(name);
        tensors.insert(format!("{name}_scale_inv"), Array::full(&[1, 1], 1.0, Dtype::F32).unwrap());
    });
    check(&said, &["weight_scale_inv", name, "missing"]);
}

#[test]
fn eight_bit_scales_that_are_no_numbers_are_refused() {
    mlx::Device::open().unwrap();
    for (case, code) in
        [("llama_mxfp4_tied_f16", 255.0), ("llama_mxfp8", 255.0), ("qwen3_nvfp4", 127.0)]
    {
        let source = goldens().join("quantized").join(case);
        let mut file = mlx::load_safetensors(&source.join("model.safetensors")).unwrap();
        let name = "model.layers.1.mlp.up_proj.scales";
        let nan = Array::full(&[1, 1], code, Dtype::U8).unwrap();
        let spoiled = file.tensors[name].slice_update(&nan, &[5, 1], &[6, 2]).unwrap();
        file.tensors.insert(name.into(), spoiled);
        let dir = tempfile::tempdir().unwrap();
        mlx::save_safetensors(&dir.path().join("model.safetensors"), &file).unwrap();
        std::fs::copy(source.join("config.json"), dir.path().join("config.json")).unwrap();
        check(&error_of(dir.path()), &[name, "not finite"]);
    }
}
