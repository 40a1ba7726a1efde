//! Checkpoint folders made on the spot: golden weights from the counter-based generator that
//! `goldens/README.md` defines, and the comparison of logits.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlx::{Array, Device, Dtype, Safetensors};
use models::{LoadOptions, Loaded, Source, Step};
use serde_json::Value;

const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

pub fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens")
}

pub fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn fnv1a64(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn unit(stream: u64, i: u64) -> f32 {
    let mut z = stream.wrapping_add((i + 1).wrapping_mul(GAMMA));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (f64::from((z >> 40) as u32) * f64::exp2(-23.0) - 1.0) as f32
}

/// What decides the weights of a case beside names and shapes.
#[derive(Default)]
struct Recipe {
    seed: u64,
    /// What norm weights lie around: 1, or 0 where the model adds 1.
    norm_centre: f32,
    /// Ends of names, and the power of two that such tensors are multiplied by.
    scales: Vec<(String, i32)>,
}

impl Recipe {
    fn of(case: &Path) -> Self {
        let facts = json(&case.join("case.json"));
        let seed = facts["seed"].as_str().unwrap().trim_start_matches("0x");
        let scales = facts["scales"].as_object().into_iter().flatten();
        Self {
            seed: u64::from_str_radix(seed, 16).unwrap(),
            norm_centre: facts["norm_centre"].as_f64().unwrap_or(1.0) as f32,
            scales: scales.map(|(end, e)| (end.clone(), e.as_i64().unwrap() as i32)).collect(),
        }
    }

    /// The values of one golden tensor.
    fn values(&self, name: &str, shape: &[i32]) -> Vec<f32> {
        let stream = fnv1a64(name) ^ self.seed;
        let n: i32 = shape.iter().product();
        let (centre, width) = self.centre_and_width(name, shape);
        let ends = self.scales.iter().filter(|(end, _)| name.ends_with(end.as_str()));
        let scale = f32::exp2(ends.map(|(_, e)| *e as f32).sum());
        (0..n as u64).map(|i| (centre + width * unit(stream, i)) * scale).collect()
    }

    /// Values lie in [centre − width, centre + width).
    fn centre_and_width(&self, name: &str, shape: &[i32]) -> (f32, f32) {
        if shape.len() == 1 && name.ends_with("norm.weight") {
            let is_gated = name.ends_with("linear_attn.norm.weight");
            return (if is_gated { 1.0 } else { self.norm_centre }, 0.25);
        }
        let width = match name {
            _ if name.ends_with("A_log") => return (-2.0, 2.0),
            _ if name.ends_with("sinks") => 2.0,
            _ if name.ends_with("embed_tokens.weight") || name.ends_with("dt_bias") => 1.0,
            _ if shape.len() == 1 || name.ends_with("bias") => 0.25,
            _ => {
                let n_in = f64::from(*shape.last().unwrap());
                let fits = |k: &i32| n_in < 3.0 * 4f64.powi(1 + k);
                f32::exp2(-(0..).find(fits).unwrap() as f32)
            }
        };
        (0.0, width)
    }
}

#[test]
fn the_generator_gives_the_documented_values() {
    assert_eq!(fnv1a64(""), 0xcbf2_9ce4_8422_2325);
    assert_eq!(fnv1a64("a"), 0xaf63_dc4c_8601_ec8c);
    let recipe = Recipe { seed: fnv1a64("qwen3/default"), norm_centre: 1.0, ..Recipe::default() };
    let check = |name: &str, shape: &[i32], i: usize, bits: u32| {
        assert_eq!(recipe.values(name, shape)[i].to_bits(), bits, "{name} {i}");
    };
    check("model.embed_tokens.weight", &[79, 54], 0, 0x3f21_6eb6);
    check("model.embed_tokens.weight", &[79, 54], 4265, 0x3ea5_ae04);
    check("model.layers.0.self_attn.q_proj.weight", &[84, 54], 4535, 0x3e5b_1a3a);
    check("model.layers.0.self_attn.q_norm.weight", &[14], 13, 0x3f98_873b);
    check("model.layers.2.mlp.down_proj.weight", &[54, 104], 5615, 0xbe33_c2f2);
    check("model.layers.1.self_attn.k_proj.bias", &[28], 0, 0x3e69_9ea4);
}

#[test]
fn tensors_of_experts_and_gated_delta_layers_have_the_documented_values() {
    let mut recipe = Recipe { seed: fnv1a64("qwen3_5/default"), ..Recipe::default() };
    let check = |recipe: &Recipe, name: &str, shape: &[i32], bits: u32| {
        let name = format!("model.layers.{name}");
        let last = *recipe.values(&name, shape).last().unwrap();
        assert_eq!(last.to_bits(), bits, "{name}");
    };
    check(&recipe, "0.linear_attn.A_log", &[6], 0xbee6_7b98);
    check(&recipe, "0.linear_attn.dt_bias", &[6], 0xbe34_4478);
    check(&recipe, "0.linear_attn.conv1d.weight", &[108, 1, 4], 0xbf4f_a766);
    check(&recipe, "0.linear_attn.norm.weight", &[10], 0x3f94_a5d0);
    check(&recipe, "1.self_attn.q_norm.weight", &[24], 0x3db8_adc8);
    check(&recipe, "0.mlp.experts.down_proj", &[5, 56, 22], 0xbeb9_1a22);
    check(&recipe, "0.mlp.experts.gate_up_proj_bias", &[5, 44], 0xbe7f_abee);
    check(&recipe, "0.self_attn.sinks", &[4], 0x3ee9_21b0);
    recipe.scales = vec![("conv1d.weight".to_owned(), -9)];
    check(&recipe, "0.linear_attn.conv1d.weight", &[108, 1, 4], 0xbacf_a766);
}

/// The tensors of a golden case.
pub fn tensors(case: &Path) -> BTreeMap<String, Array> {
    let recipe = Recipe::of(case);
    let shapes = json(&case.join("tensors.json"));
    let make = |(name, shape): (&String, &Value)| {
        let shape = shape
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_i64().unwrap() as i32)
            .collect::<Vec<_>>();
        let array = Array::from_slice(&recipe.values(name, &shape), &shape).unwrap();
        (name.clone(), array)
    };
    shapes.as_object().unwrap().iter().map(make).collect()
}

/// Writes config and tensors as one file, or as two shards with an index.
pub fn write(folder: &Path, config: &Value, tensors: BTreeMap<String, Array>, n_shards: usize) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    if n_shards == 1 {
        let content = Safetensors { tensors, metadata: BTreeMap::new() };
        return mlx::save_safetensors(&folder.join("model.safetensors"), &content).unwrap();
    }
    let mut shards = (0..n_shards).map(|_| Safetensors::default()).collect::<Vec<_>>();
    let mut map = serde_json::Map::new();
    for (i, (name, array)) in tensors.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{n_shards:05}.safetensors", i % n_shards + 1);
        map.insert(name.clone(), file.into());
        shards[i % n_shards].tensors.insert(name, array);
    }
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{n_shards:05}.safetensors", i + 1);
        mlx::save_safetensors(&folder.join(file), shard).unwrap();
    }
    let index = serde_json::json!({ "weight_map": map });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// A golden case as a folder in a temporary place.
pub fn folder_of(case: &Path, n_shards: usize) -> tempfile::TempDir {
    Device::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &json(&case.join("config.json")), tensors(case), n_shards);
    dir
}

pub fn load(folder: &Path, options: &LoadOptions) -> models::Result<Loaded> {
    Device::open().unwrap();
    models::load(&Source::Folder(folder.to_owned()), options, &mut |_, _| ControlFlow::Continue(()))
}

/// Logits of every position, prefilled in chunks, as rows.
pub fn logits(loaded: &Loaded, tokens: &[i32], chunk: usize) -> Vec<f32> {
    let mut states = loaded.model.new_state();
    let mut rows = Vec::new();
    for (i, part) in tokens.chunks(chunk).enumerate() {
        let step = Step::new((i * chunk) as i32, part.len() as i32);
        let ids = Array::from_slice(part, &[1, part.len() as i32]).unwrap();
        let hidden = loaded.model.forward(&ids, &step, &mut states).unwrap();
        let logits = loaded.model.logits(&hidden).unwrap();
        assert_eq!(logits.dtype(), loaded.info.dtype, "nothing widens the activations");
        rows.extend(logits.astype(Dtype::F32).unwrap().to_f32_vec().unwrap());
    }
    rows
}

pub fn expected(case: &Path, file: &str) -> Vec<f32> {
    let bytes = std::fs::read(case.join(file)).unwrap();
    bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// max|a − b| / max|b|, and the largest KL divergence of a row.
pub fn difference(found: &[f32], wanted: &[f32], n_cols: usize) -> (f64, f64) {
    assert_eq!(found.len(), wanted.len());
    let largest = |it: &mut dyn Iterator<Item = f64>| it.fold(0.0, f64::max);
    let pairs = || found.iter().zip(wanted).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    let relative =
        largest(&mut pairs().map(|(a, b)| if a.is_nan() { f64::INFINITY } else { (a - b).abs() }))
            / largest(&mut pairs().map(|(_, b)| b.abs()));
    let log_softmax = |row: &[f32]| {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total = row.iter().map(|v| f64::from(v - top).exp()).sum::<f64>().ln();
        row.iter().map(|v| f64::from(v - top) - total).collect::<Vec<_>>()
    };
    let rows = wanted.chunks(n_cols).zip(found.chunks(n_cols));
    let kl = largest(&mut rows.map(|(p, q)| {
        let (p, q) = (log_softmax(p), log_softmax(q));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
    }));
    (relative, kl)
}

pub fn case_tokens(case: &Value) -> Vec<i32> {
    case["tokens"].as_array().unwrap().iter().map(|t| t.as_i64().unwrap() as i32).collect()
}

/// The folders below `goldens/<family>`.
pub fn cases(family: &str) -> Vec<PathBuf> {
    let list = std::fs::read_dir(goldens().join(family)).unwrap();
    let mut cases = list.map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect::<Vec<_>>();
    cases.sort();
    assert!(!cases.is_empty());
    cases
}
