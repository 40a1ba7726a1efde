//! Folders that mlx-lm converted and quantized: logits against transformers on the dequantized
//! weights, and packed bytes.

use mlx::{Backend, Device, Dtype, QuantMode, Quantization, Quantized};
use models::LoadOptions;

use crate::folder::{self, case_tokens, difference, expected, goldens, json, logits};

/// Two tests for each folder.
macro_rules! folders {
    ($($name:ident),* $(,)?) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];

        mod in_f32_logits_are_those_of_the_dequantized_weights {
            $(#[test] fn $name() { super::agrees_in_f32(stringify!($name)); })*
        }

        mod in_its_own_dtype_a_folder_stays_near_the_reference {
            $(#[test] fn $name() { super::stays_near_in_its_own_dtype(stringify!($name)); })*
        }
    };
}

folders! {
    gemma3_text_affine4_32, glm4_moe_lite_affine4_32, glm4_moe_lite_affine4_32_kv_b, gpt_oss_mxfp4,
    gpt_oss_mxfp4_hub, llama_affine2_32_biases, llama_affine4_64_f16, llama_affine4_64_overrides,
    llama_affine6_32_tied, llama_mxfp4_tied_f16, llama_mxfp8, qwen3_5_affine4_64_f16,
    qwen3_5_moe_affine4_32, qwen3_affine3_64, qwen3_affine5_128, qwen3_affine8_32_tied,
    qwen3_moe_affine4_32, qwen3_moe_mxfp4_f16, qwen3_mxfp4_overrides, qwen3_next_affine4_32,
    qwen3_nvfp4,
}

#[test]
fn every_quantized_folder_has_its_tests() {
    let cases = folder::cases("quantized");
    let found = cases.iter().map(|case| case.file_name().unwrap().to_str().unwrap());
    assert_eq!(found.collect::<Vec<_>>(), NAMES);
}

fn agrees_in_f32(name: &str) {
    let case = goldens().join("quantized").join(name);
    let facts = json(&case.join("case.json"));
    let tokens = case_tokens(&facts);
    let options = LoadOptions {
        dtype: Some(Dtype::F32),
        rope_tokens: facts["rope_length"].as_i64().map(|n| n as i32),
        proves_products: true,
        ..LoadOptions::default()
    };
    let loaded = folder::load(&case, &options).unwrap();
    let wanted = expected(&case, "expected.f32");
    for chunk in [tokens.len(), 3] {
        let found = logits(&loaded, &tokens, chunk);
        let (relative, kl) = difference(&found, &wanted, loaded.info.vocab_size as usize);
        assert!(
            relative <= 1e-4 && kl <= 1e-6,
            "in chunks of {chunk}: relative {relative:.2e}, KL {kl:.2e}"
        );
    }
}

fn stays_near_in_its_own_dtype(name: &str) {
    let case = goldens().join("quantized").join(name);
    let facts = json(&case.join("case.json"));
    let options = LoadOptions { proves_products: true, ..LoadOptions::default() };
    let loaded = folder::load(&case, &options).unwrap();
    let wanted_dtype = match facts["dtype"].as_str().unwrap() {
        "float16" => Dtype::F16,
        _ => Dtype::Bf16,
    };
    assert_eq!(loaded.info.dtype, wanted_dtype);
    let tokens = case_tokens(&facts);
    let found = logits(&loaded, &tokens, tokens.len());
    let wanted = expected(&case, "expected.f32");
    let (relative, _) = difference(&found, &wanted, loaded.info.vocab_size as usize);
    // mlx-lm itself is 0.5 % to 1 % (f16) and 1 % to 7 % (bf16) off on these folders.
    let agrees = facts["mlx_lm_f32_difference"].as_f64().unwrap() < 1e-4;
    let own = facts["mlx_lm_native_difference"].as_f64().unwrap();
    let allowed = if agrees { (2.0 * own).max(0.08) } else { 0.08 };
    assert!(relative <= allowed, "{relative:.2e}");
}

/// The packings of `vectors.safetensors`: codes unpack to the stated values, and quantizing gives
/// the codes again.
#[test]
fn packed_vectors_of_every_mode_unpack_and_pack_as_documented() {
    let device = Device::open().unwrap();
    let file = mlx::load_safetensors(&goldens().join("quantized/vectors.safetensors")).unwrap();
    let mut n_checked = 0;
    for (name, weight) in &file.tensors {
        let Some(base) = name.strip_suffix(".weight") else { continue };
        let part = |p: &str| file.tensors.get(&format!("{base}.{p}")).cloned();
        let fields = base.split('_').collect::<Vec<_>>();
        let quantization = Quantization {
            mode: fields[0].parse::<QuantMode>().unwrap(),
            bits: fields[1].parse().unwrap(),
            group_size: fields[2].parse().unwrap(),
        };
        let dtype = match fields.get(3) {
            None => Dtype::F32,
            Some(&"float16") => Dtype::F16,
            Some(&"bfloat16") => Dtype::Bf16,
            Some(other) => panic!("{other}"),
        };
        let packed = Quantized {
            weight: weight.clone(),
            scales: part("scales").unwrap(),
            biases: part("biases"),
            quantization,
        };
        let wanted = part("dequantized").unwrap();
        let found = packed.dequantize(Dtype::F32).unwrap();
        let error = found.sub(&wanted).unwrap().abs().unwrap().max(&[0, 1]).unwrap();
        let scale = wanted.abs().unwrap().max(&[0, 1]).unwrap().item::<f32>().unwrap();
        let allowed = if dtype == Dtype::F32 { 1e-6 } else { 1e-2 };
        assert!(error.item::<f32>().unwrap() <= allowed * scale, "{name}");
        let again = file.tensors["input"].astype(dtype).unwrap().quantize(quantization).unwrap();
        let (codes, stated) = (again.weight.to_bytes().unwrap(), weight.to_bytes().unwrap());
        if device.backend() == Backend::Cpu {
            assert_eq!(codes, stated, "{name}");
        } else {
            // A GPU rounds otherwise half-way between two codes: its codes must be as good.
            let off = |codes: &Quantized| {
                let input = file.tensors["input"].astype(Dtype::F32).unwrap();
                let off = codes.dequantize(Dtype::F32).unwrap().sub(&input).unwrap();
                off.square().unwrap().mean(&[0, 1]).unwrap().item::<f32>().unwrap().sqrt()
            };
            let (found, allowed) = (off(&again), 1.01 * off(&packed));
            assert!(found <= allowed, "{name}: {found} of {allowed}");
        }
        n_checked += 1;
    }
    assert_eq!(n_checked, 23);
}
