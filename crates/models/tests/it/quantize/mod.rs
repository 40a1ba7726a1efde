//! Quantizing: every family in every mode against its own dequantized weights, the files that come
//! out, and what stops a run.

mod runs;
mod sources;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use mlx::{Array, Backend, Device, Dtype, QuantMode, Quantization, Quantized};
use models::quantize::{
    QuantizeLimits, QuantizeReport, Role, SHARD_BYTES, Settings, Target, quantize,
};
use models::{LoadOptions, Loaded};
use safetensors::tensor::{Dtype as FileDtype, TensorView};
use serde_json::{Value, json};

use crate::folder::{self, difference, logits};
use sources::{FAMILIES, source};

pub const LIMITS: QuantizeLimits =
    QuantizeLimits { free_bytes: |_| None, shard_bytes: SHARD_BYTES };
/// Less than one layer of the small models: many files.
pub const SMALL_SHARDS: QuantizeLimits = QuantizeLimits { shard_bytes: 40_000, ..LIMITS };

pub fn affine(bits: i32, group_size: i32) -> Quantization {
    Quantization { mode: QuantMode::Affine, bits, group_size }
}

pub fn codes(quantization: Quantization) -> Settings {
    Settings::plain(Target::Codes(quantization))
}

fn floats(dtype: Dtype) -> Settings {
    Settings::plain(Target::Floats(dtype))
}

pub fn run(source: &Path, target: &Path, settings: &Settings) -> models::Result<QuantizeReport> {
    run_within(source, target, settings, LIMITS)
}

pub fn run_within(
    source: &Path,
    target: &Path,
    settings: &Settings,
    limits: QuantizeLimits,
) -> models::Result<QuantizeReport> {
    Device::open().unwrap();
    quantize(source, target, settings, limits, &mut |_| ControlFlow::Continue(()))
}

fn f32_options() -> LoadOptions {
    // As the program has it: MLX's products are not all right on every device.
    let proves_products = Device::open().unwrap().backend() != Backend::Cpu;
    LoadOptions { dtype: Some(Dtype::F32), proves_products, ..LoadOptions::default() }
}

const TOKENS: [i32; 13] = [3, 71, 20, 5, 5, 44, 0, 12, 63, 9, 31, 50, 2];

fn f32_logits(folder: &Path) -> Vec<f32> {
    let loaded = folder::load(folder, &f32_options()).unwrap_or_else(|e| panic!("{e}"));
    logits(&loaded, &TOKENS, 5)
}

fn relative(found: &[f32], wanted: &[f32]) -> f64 {
    difference(found, wanted, wanted.len() / TOKENS.len()).0
}

pub fn tensors_of(folder: &Path) -> BTreeMap<String, Array> {
    let list = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = list.filter(|path| path.extension().is_some_and(|ext| ext == "safetensors"));
    let mut all = BTreeMap::new();
    for file in files {
        let content = mlx::load_safetensors(&file).unwrap();
        assert_eq!(content.metadata["format"], "mlx");
        let before = all.len();
        let n = content.tensors.len();
        all.extend(content.tensors);
        assert_eq!(all.len(), before + n, "a name stands in two files");
    }
    all
}

/// The coding of a path as config.json states it, read as MLX tools read it.
fn stated(config: &Value, path: &str) -> Quantization {
    let all = &config["quantization"];
    let entry = all.get(path).filter(|entry| entry.is_object()).unwrap_or(all);
    let number = |key: &str| entry[key].as_i64().unwrap() as i32;
    Quantization {
        mode: entry["mode"].as_str().unwrap_or("affine").parse().unwrap(),
        bits: number("bits"),
        group_size: number("group_size"),
    }
}

/// Writes a folder of floats with the very values of the codes in another one.
fn write_dequantized(coded: &Path, target: &Path) {
    let mut config = folder::json(&coded.join("config.json"));
    let mut tensors = tensors_of(coded);
    let paths = tensors.keys().filter_map(|name| Some(name.strip_suffix(".scales")?.to_owned()));
    for path in paths.collect::<Vec<_>>() {
        let mut take = |part: &str| tensors.remove(&format!("{path}.{part}"));
        let wide = |array: Array| array.astype(Dtype::F32).unwrap();
        let quantization = stated(&config, &path);
        let (weight, scales) = (take("weight").unwrap(), take("scales").unwrap());
        let is_affine = quantization.mode == QuantMode::Affine;
        let biases = take("biases").map(wide);
        assert_eq!(biases.is_some(), is_affine, "{path}");
        let scales = if is_affine { wide(scales) } else { scales };
        let matrix = Quantized { weight, scales, biases, quantization };
        tensors.insert(format!("{path}.weight"), matrix.dequantize(Dtype::F32).unwrap());
    }
    config.as_object_mut().unwrap().retain(|key, _| !key.starts_with("quantization"));
    std::fs::write(target.join("config.json"), config.to_string()).unwrap();
    let metadata = [("format".to_owned(), "mlx".to_owned())].into();
    let content = mlx::Safetensors { tensors, metadata };
    mlx::save_safetensors(&target.join("model.safetensors"), &content).unwrap();
}

const MODES: [Quantization; 11] = [
    Quantization { mode: QuantMode::Affine, bits: 2, group_size: 32 },
    Quantization { mode: QuantMode::Affine, bits: 3, group_size: 64 },
    Quantization { mode: QuantMode::Affine, bits: 4, group_size: 64 },
    Quantization { mode: QuantMode::Affine, bits: 4, group_size: 32 },
    Quantization { mode: QuantMode::Affine, bits: 5, group_size: 32 },
    Quantization { mode: QuantMode::Affine, bits: 6, group_size: 64 },
    Quantization { mode: QuantMode::Affine, bits: 8, group_size: 64 },
    Quantization { mode: QuantMode::Affine, bits: 8, group_size: 128 },
    Quantization { mode: QuantMode::Mxfp4, bits: 4, group_size: 32 },
    Quantization { mode: QuantMode::Mxfp8, bits: 8, group_size: 32 },
    Quantization { mode: QuantMode::Nvfp4, bits: 4, group_size: 16 },
];

/// The relative error of normal values, at least and at most, from runs of MLX's quantizer.
fn error_range(q: Quantization) -> (f64, f64) {
    match (q.mode, q.bits) {
        (QuantMode::Affine, 2) => (0.25, 0.5),
        (QuantMode::Affine, 3) => (0.12, 0.25),
        (QuantMode::Affine, 4) => (0.05, 0.12),
        (QuantMode::Affine, 5) => (0.025, 0.06),
        (QuantMode::Affine, 6) => (0.012, 0.03),
        (QuantMode::Affine, _) => (0.002, 0.012),
        (QuantMode::Mxfp4, _) => (0.08, 0.2),
        (QuantMode::Mxfp8, _) => (0.015, 0.05),
        (QuantMode::Nvfp4, _) => (0.06, 0.15),
    }
}

#[test]
fn every_family_in_every_mode_computes_with_exactly_its_dequantized_weights() {
    let dir = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let original = dir.path().join(family);
        std::fs::create_dir(&original).unwrap();
        source(family).write(&original, Dtype::Bf16, 2);
        let wanted = f32_logits(&original);
        for q in MODES {
            let name = format!("{family}-{}-{}-{}", q.mode, q.bits, q.group_size);
            let target = dir.path().join(&name);
            let report = match run(&original, &target, &codes(q)) {
                Ok(report) => report,
                Err(e) if q.group_size == 128 => {
                    assert!(e.to_string().contains("nothing would be quantized"), "{name}: {e}");
                    continue;
                }
                Err(e) => panic!("{name}: {e}"),
            };
            let found = f32_logits(&target);
            let plain = dir.path().join(format!("{name}-dequantized"));
            std::fs::create_dir(&plain).unwrap();
            write_dequantized(&target, &plain);
            let exact = relative(&found, &f32_logits(&plain));
            assert!(exact < 2e-5, "{name}: {exact:.2e} from its dequantized weights");
            let (low, high) = error_range(q);
            for role in report.roles.iter().filter(|role| role.role != Role::Other) {
                // Routers have 8 bits, and what stays in floats has no error.
                let is_plain = report.floats.is_empty() && role.role != Role::Router;
                let error = role.relative_rms_error;
                assert!(!is_plain || (low..high).contains(&error), "{name}: {role:?}");
            }
            let off = relative(&found, &wanted);
            assert!(off > 1e-4 && off < 30.0 * high, "{name}: logits {off:.2e} off");
        }
    }
}

#[test]
fn floats_in_mlx_layout_give_the_logits_of_the_source() {
    let dir = tempfile::tempdir().unwrap();
    for family in FAMILIES.iter().chain(&["gpt_oss_mxfp4"]) {
        let original = dir.path().join(family);
        std::fs::create_dir(&original).unwrap();
        source(family).write(&original, Dtype::F32, 1);
        // Where the layout adds 1 to norms, the sum is rounded, not the norm.
        let adds = family.starts_with("qwen3_next") || family.starts_with("qwen3_5");
        for (dtype, tolerance) in [(Dtype::F32, 0.0), (Dtype::F16, 0.02), (Dtype::Bf16, 0.15)] {
            let (target, rounded) = (
                dir.path().join(format!("{family}-{dtype}")),
                dir.path().join(format!("{family}-{dtype}-rounded")),
            );
            let report = run_within(&original, &target, &floats(dtype), SMALL_SHARDS).unwrap();
            std::fs::create_dir(&rounded).unwrap();
            source(family).write(&rounded, dtype, 2);
            let off = relative(&f32_logits(&target), &f32_logits(&rounded));
            let tolerance = if adds { tolerance } else { 0.0 };
            assert!(off <= f64::max(tolerance, 1e-6), "{family} in {dtype}: {off:.2e}");
            assert!(report.n_shards > 2);
            let loaded = folder::load(&target, &LoadOptions::default()).unwrap();
            assert_eq!(loaded.info.dtype, dtype);
            assert_eq!(loaded.info.quantization, None);
        }
    }
}

/// Also the checks of dtype and of names that other tools rely on.
#[test]
fn the_folder_is_what_mlx_tools_expect() {
    let dir = tempfile::tempdir().unwrap();
    let check = |family: &str, has: &[&str], has_not: &[&str]| {
        let (original, target) = (dir.path().join(family), dir.path().join(format!("{family}-q")));
        std::fs::create_dir(&original).unwrap();
        source(family).write(&original, Dtype::Bf16, 1);
        std::fs::write(original.join("tokenizer.json"), "{}").unwrap();
        let report = run_within(&original, &target, &codes(affine(4, 64)), SMALL_SHARDS).unwrap();
        let tensors = tensors_of(&target);
        for name in has {
            assert!(tensors.contains_key(*name), "{family}: {name} is not in {:?}", tensors.keys());
        }
        for name in has_not {
            assert!(!tensors.keys().any(|found| found.contains(name)), "{family}: {name}");
        }
        for (name, tensor) in &tensors {
            let wanted = if tensor.dtype() == Dtype::U32 { Dtype::U32 } else { Dtype::Bf16 };
            assert_eq!(tensor.dtype(), wanted, "{family}: {name}");
        }
        let index = folder::json(&target.join("model.safetensors.index.json"));
        let map = index["weight_map"].as_object().unwrap();
        assert!(map.keys().eq(tensors.keys()), "{family}");
        let n_bytes = tensors.values().map(|tensor| tensor.n_bytes() as u64).sum::<u64>();
        assert_eq!(index["metadata"]["total_size"], n_bytes);
        assert_eq!(std::fs::read(target.join("tokenizer.json")).unwrap(), b"{}");
        (folder::json(&target.join("config.json")), report)
    };
    let (config, _) = check("llama", &["model.layers.0.self_attn.q_proj.scales"], &[]);
    assert_eq!(config["quantization"], json!({"group_size": 64, "bits": 4, "mode": "affine"}));
    assert_eq!(config["quantization"], config["quantization_config"]);
    assert_eq!(config["tie_word_embeddings"], false);

    let router = json!({"group_size": 64, "bits": 8, "mode": "affine"});
    let names =
        ["model.layers.0.mlp.switch_mlp.down_proj.biases", "model.layers.0.mlp.gate.scales"];
    let (config, _) = check("qwen3_moe", &names, &[".experts."]);
    assert_eq!(config["quantization"]["model.layers.0.mlp.gate"], router);

    let (_, report) = check("qwen3_next", &["model.layers.0.linear_attn.conv1d.weight"], &["mtp."]);
    assert!(report.notes.iter().any(|note| note.contains("mtp.fc.weight")), "{report:?}");

    let names = [
        "language_model.lm_head.scales",
        "language_model.model.layers.0.linear_attn.in_proj_qkv.scales",
        "model.visual.patch_embed.proj.weight",
        "mtp.fc.weight",
    ];
    let (config, _) = check("qwen3_5", &names, &["mtp.fc.scales", "conv1d.scales"]);
    assert_eq!(config["model_type"], "qwen3_5");
    assert_eq!(config["text_config"]["tie_word_embeddings"], false);
    let (config, report) = check("qwen3_5_text", &["language_model.lm_head.scales"], &[]);
    assert_eq!(config["model_type"], "qwen3_5");
    assert!(report.notes.iter().any(|note| note.contains("qwen3_5_text")), "{report:?}");
    let (config, _) = check("qwen3_5_moe", &["mtp.fc.weight"], &[]);
    let gate = "language_model.model.layers.1.mlp.shared_expert_gate";
    assert_eq!(config["quantization"][gate], router);

    let names = ["model.layers.1.self_attn.embed_q.scales", "model.layers.2.eh_proj.weight"];
    let absent = ["mlp.gate.scales", "eh_proj.scales", "kv_b_proj"];
    let (config, report) = check("glm4_moe_lite", &names, &absent);
    assert_eq!(config["quantization"]["model.layers.0.self_attn.o_proj"], false);
    assert!(report.floats.iter().all(|(path, why)| path.contains("o_proj") && why.contains("64")));

    let names = ["model.layers.0.mlp.router.scales", "model.layers.0.self_attn.sinks"];
    let (config, _) = check("gpt_oss", &names, &["gate_up_proj", "sinks.scales"]);
    assert_eq!(config["quantization"]["model.layers.1.mlp.router"], router);
    let names = [
        "language_model.model.embed_tokens.scales",
        "vision_tower.vision_model.post_layernorm.weight",
    ];
    let (config, _) = check("gemma3", &names, &["lm_head"]);
    assert_eq!(config["text_config"]["tie_word_embeddings"], true);
    assert_eq!(config["vocab_size"], 72);
}

#[test]
fn codes_of_a_published_model_stay_and_their_neighbours_are_quantized() {
    let dir = tempfile::tempdir().unwrap();
    let (original, target) = (dir.path().join("source"), dir.path().join("target"));
    std::fs::create_dir(&original).unwrap();
    source("gpt_oss_mxfp4").write(&original, Dtype::Bf16, 2);
    let report = run(&original, &target, &codes(affine(8, 32))).unwrap();
    assert!(report.notes.iter().any(|note| note.contains("6 matrices are codes")), "{report:?}");
    let experts = report.roles.iter().find(|role| role.role == Role::Experts).unwrap();
    assert_eq!((experts.relative_rms_error, experts.n_tensors), (0.0, 6));
    let config = folder::json(&target.join("config.json"));
    let stated = &config["quantization"]["model.layers.0.mlp.experts.down_proj"];
    assert_eq!(*stated, json!({"group_size": 32, "bits": 4, "mode": "mxfp4"}));
    assert!(config["quantization_config"].get("quant_method").is_none());
    let off = relative(&f32_logits(&target), &f32_logits(&original));
    assert!(off < 0.05, "{off:.2e}");
    let loaded: Loaded = folder::load(&target, &LoadOptions::default()).unwrap();
    assert_eq!(loaded.info.family, "gpt_oss");
}

#[test]
fn an_mlx_quantized_source_is_refused_but_can_become_floats() {
    let dir = tempfile::tempdir().unwrap();
    for case in folder::cases("quantized") {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let config = folder::json(&case.join("config.json"));
        // Published codes are another matter.
        if config["quantization_config"].get("quant_method").is_none() {
            let error = run(&case, &dir.path().join("no"), &codes(affine(4, 32))).unwrap_err();
            assert!(error.to_string().contains("quantized already"), "{name}: {error}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let target = dir.path().join(&name);
        run(&case, &target, &floats(Dtype::F32)).unwrap();
        let config = folder::json(&target.join("config.json"));
        assert!(
            config.get("quantization").is_none() && config.get("quantization_config").is_none()
        );
        let facts = folder::json(&case.join("case.json"));
        let tokens = folder::case_tokens(&facts);
        let options = LoadOptions { rope_tokens: Some(tokens.len() as i32), ..f32_options() };
        let loaded = folder::load(&target, &options).unwrap();
        let found = logits(&loaded, &tokens, tokens.len());
        let wanted = folder::expected(&case, "expected.f32");
        let off = difference(&found, &wanted, loaded.info.vocab_size as usize).0;
        assert!(off < 1e-4, "{name}: {off:.2e}");
        std::fs::remove_dir_all(&target).unwrap();
    }
}

/// Codes and scales of every packing as MLX itself makes them of the same matrix.
#[test]
fn codes_are_those_of_mlx_bit_by_bit() {
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("source");
    std::fs::create_dir(&original).unwrap();
    let llama = source("llama");
    llama.write(&original, Dtype::F16, 1);
    let sources = llama.tensors(Dtype::F16);
    for q in MODES {
        let target = dir.path().join(format!("{}-{}-{}", q.mode, q.bits, q.group_size));
        let report = run(&original, &target, &codes(q)).unwrap();
        let found = tensors_of(&target);
        let mut mlp = [0.0, 0.0];
        for (name, tensor) in &sources {
            let path = name.trim_end_matches(".weight");
            let bytes = |array: &Array| array.to_bytes().unwrap();
            let Some(scales) = found.get(&format!("{path}.scales")) else {
                assert_eq!(bytes(&found[name]), bytes(tensor), "{name}");
                continue;
            };
            let wanted = tensor.quantize(q).unwrap();
            assert_eq!(bytes(&found[name]), bytes(&wanted.weight), "{name}");
            assert_eq!(scales.dtype(), wanted.scales.dtype());
            assert_eq!(bytes(scales), bytes(&wanted.scales), "{name}");
            if name.contains(".mlp.") {
                let n = tensor.n_elements() as f64;
                mlp = [mlp[0] + n * distance(&wanted, tensor), mlp[1] + n];
            }
            if let Some(biases) = wanted.biases {
                assert_eq!(bytes(&found[&format!("{path}.biases")]), bytes(&biases), "{name}");
            }
        }
        let reported = report.roles.iter().find(|role| role.role == Role::Mlp).unwrap();
        let wanted = mlp[0] / f64::max(mlp[1], 1.0) * mlp[1] / reported.n_weights as f64;
        let off = (reported.relative_rms_error - wanted).abs();
        assert!(off <= 1e-4 * wanted, "{q:?}: {} instead of {wanted}", reported.relative_rms_error);
    }
}

/// √(Σ(code − value)² / Σ value²), value by value in f64.
fn distance(codes: &Quantized, values: &Array) -> f64 {
    let wide = |array: &Array| array.astype(Dtype::F32).unwrap();
    let is_affine = codes.quantization.mode == QuantMode::Affine;
    let scales = if is_affine { wide(&codes.scales) } else { codes.scales.clone() };
    let codes = Quantized { scales, biases: codes.biases.as_ref().map(wide), ..codes.clone() };
    let found = codes.dequantize(Dtype::F32).unwrap().to_f32_vec().unwrap();
    let pairs = || found.iter().zip(values.to_f32_vec().unwrap());
    let squares = pairs().map(|(a, b)| (f64::from(*a) - f64::from(b)).powi(2)).sum::<f64>();
    (squares / pairs().map(|(_, b)| f64::from(b).powi(2)).sum::<f64>()).sqrt()
}

/// Block-scaled 8-bit floats give what their widened values give.
#[test]
fn an_fp8_source_is_widened_first() {
    let dir = tempfile::tempdir().unwrap();
    let [coded, plain] = ["fp8", "bf16"].map(|name| dir.path().join(name));
    let llama = source("llama");
    let mut widened = llama.tensors(Dtype::Bf16);
    let mut views = Vec::new();
    for (name, tensor) in &mut widened {
        let shape = |array: &Array| array.shape().iter().map(|&n| n as usize).collect::<Vec<_>>();
        if !name.ends_with("_proj.weight") {
            views.push((name.clone(), FileDtype::BF16, shape(tensor), tensor.to_bytes().unwrap()));
            continue;
        }
        let codes = tensor.astype(Dtype::F32).unwrap().scale(32.0).unwrap().to_fp8().unwrap();
        let blocks = tensor.shape().iter().map(|n| (n + 127) / 128).collect::<Vec<_>>();
        let scales = Array::full(&blocks, 1.0 / 32.0, Dtype::F32).unwrap();
        let values = codes.from_fp8(Dtype::F32).unwrap().scale(1.0 / 32.0).unwrap();
        *tensor = values.astype(Dtype::Bf16).unwrap();
        for (end, dtype, array) in
            [("", FileDtype::F8_E4M3, &codes), ("_scale_inv", FileDtype::F32, &scales)]
        {
            let bytes = array.to_bytes().unwrap();
            views.push((format!("{name}{end}"), dtype, shape(array), bytes));
        }
    }
    std::fs::create_dir(&coded).unwrap();
    let file = views.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(file, None).unwrap();
    std::fs::write(coded.join("model.safetensors"), bytes).unwrap();
    let mut config = llama.config.clone();
    config["quantization_config"] = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    std::fs::write(coded.join("config.json"), config.to_string()).unwrap();
    std::fs::create_dir(&plain).unwrap();
    folder::write(&plain, &llama.config, widened, 1);
    let [a, b] = [&coded, &plain].map(|source| {
        let target = source.with_extension("4bit");
        run(source, &target, &codes(affine(4, 32))).unwrap();
        (tensors_of(&target), folder::json(&target.join("config.json")))
    });
    assert_eq!(a.1, b.1);
    assert!(a.0.keys().eq(b.0.keys()));
    for (name, tensor) in &a.0 {
        assert_eq!(tensor.to_bytes().unwrap(), b.0[name].to_bytes().unwrap(), "{name}");
    }
}
