//! Small float checkpoints of every family as the Hub has them, with widths that groups divide.

use std::collections::BTreeMap;
use std::path::Path;

use mlx::{Array, Device, Dtype, Key};
use serde_json::{Value, json};

use crate::folder;

/// A config and the shapes of its tensors.
pub struct Source {
    pub config: Value,
    pub shapes: BTreeMap<String, Vec<i32>>,
    /// Codes instead of floats: names of 8-bit tensors.
    bytes: Vec<String>,
}

pub const FAMILIES: [&str; 12] = [
    "llama",
    "qwen2",
    "qwen3_tied",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5",
    "qwen3_5_text",
    "qwen3_5_moe",
    "glm4_moe_lite",
    "gpt_oss",
    "gemma3",
    "gemma3_text",
];

const HIDDEN: i32 = 64;
const VOCAB: i32 = 72;
const INNER: i32 = 192;
const EXPERTS: i32 = 5;
const EXPERT_INNER: i32 = 128;

impl Source {
    fn new(config: Value) -> Self {
        let mut source = Self { config, shapes: BTreeMap::new(), bytes: Vec::new() };
        let common = json!({
            "hidden_size": HIDDEN, "vocab_size": VOCAB, "num_hidden_layers": 2,
            "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
            "intermediate_size": INNER, "rms_norm_eps": 1e-5, "rope_theta": 1000.0,
            "max_position_embeddings": 512, "tie_word_embeddings": false,
        });
        for (key, value) in common.as_object().unwrap() {
            if source.config.get(key).is_none() {
                source.config[key] = value.clone();
            }
        }
        source.put("model.embed_tokens.weight", &[VOCAB, HIDDEN]);
        source.put("model.norm.weight", &[HIDDEN]);
        if source.config["tie_word_embeddings"] == false {
            source.put("lm_head.weight", &[VOCAB, HIDDEN]);
        }
        source
    }

    fn put(&mut self, name: &str, shape: &[i32]) {
        self.shapes.insert(name.to_owned(), shape.to_vec());
    }

    /// `list` below `at`, each with `.weight`.
    fn matrices(&mut self, at: &str, list: &[(&str, &[i32])]) {
        for (name, shape) in list {
            self.put(&format!("{at}.{name}.weight"), shape);
        }
    }

    fn layers(&self) -> Vec<String> {
        let n = self.config["num_hidden_layers"].as_i64().unwrap();
        (0..n).map(|i| format!("model.layers.{i}")).collect()
    }

    fn norms(&mut self, layer: &str) {
        for name in ["input_layernorm", "post_attention_layernorm"] {
            self.put(&format!("{layer}.{name}.weight"), &[HIDDEN]);
        }
    }

    /// Eight heads of 32, two for keys and values; queries `q_factor` times as wide.
    fn attention(&mut self, layer: &str, q_factor: i32, qk_norm: bool) {
        let at = format!("{layer}.self_attn");
        self.matrices(
            &at,
            &[
                ("q_proj", &[256 * q_factor, HIDDEN]),
                ("k_proj", &[64, HIDDEN]),
                ("v_proj", &[64, HIDDEN]),
                ("o_proj", &[HIDDEN, 256]),
            ],
        );
        if qk_norm {
            self.matrices(&at, &[("q_norm", &[32]), ("k_norm", &[32])]);
        }
    }

    fn mlp(&mut self, at: &str, inner: i32) {
        self.matrices(
            at,
            &[
                ("gate_proj", &[inner, HIDDEN]),
                ("up_proj", &[inner, HIDDEN]),
                ("down_proj", &[HIDDEN, inner]),
            ],
        );
    }

    fn experts(&mut self, layer: &str) {
        for e in 0..EXPERTS {
            self.mlp(&format!("{layer}.mlp.experts.{e}"), EXPERT_INNER);
        }
        self.put(&format!("{layer}.mlp.gate.weight"), &[EXPERTS, HIDDEN]);
    }

    fn fused_experts(&mut self, layer: &str) {
        let at = format!("{layer}.mlp");
        self.put(&format!("{at}.experts.gate_up_proj"), &[EXPERTS, 2 * EXPERT_INNER, HIDDEN]);
        self.put(&format!("{at}.experts.down_proj"), &[EXPERTS, HIDDEN, EXPERT_INNER]);
        self.put(&format!("{at}.gate.weight"), &[EXPERTS, HIDDEN]);
    }

    fn shared_expert(&mut self, layer: &str) {
        self.mlp(&format!("{layer}.mlp.shared_expert"), 320);
        self.put(&format!("{layer}.mlp.shared_expert_gate.weight"), &[1, HIDDEN]);
    }

    /// Two key heads of 16, four value heads of 32: 64 + 128 channels, and 128 for the gate.
    fn delta_net(&mut self, layer: &str, interleaved: bool) {
        let at = format!("{layer}.linear_attn");
        let projections: &[(&str, &[i32])] = match interleaved {
            true => &[("in_proj_qkvz", &[320, HIDDEN]), ("in_proj_ba", &[8, HIDDEN])],
            false => &[
                ("in_proj_qkv", &[192, HIDDEN]),
                ("in_proj_z", &[128, HIDDEN]),
                ("in_proj_b", &[4, HIDDEN]),
                ("in_proj_a", &[4, HIDDEN]),
            ],
        };
        self.matrices(&at, projections);
        self.matrices(
            &at,
            &[("conv1d", &[192, 1, 4]), ("norm", &[32]), ("out_proj", &[HIDDEN, 128])],
        );
        for name in ["A_log", "dt_bias"] {
            self.put(&format!("{at}.{name}"), &[4]);
        }
    }

    /// Puts the text model into a wrapper: its config, and `from` of names as `to`.
    fn wrap(&mut self, model_type: &str, to: &str, others: &[(&str, &[i32])]) {
        let mut text = self.config.clone();
        text["model_type"] = format!("{model_type}_text").into();
        self.config = json!({
            "model_type": model_type, "text_config": text, "vision_config": {"depth": 1},
            "tie_word_embeddings": text["tie_word_embeddings"],
        });
        let names = std::mem::take(&mut self.shapes);
        self.shapes = names
            .into_iter()
            .map(|(name, shape)| match name.strip_prefix("model.") {
                Some(rest) => (format!("{to}{rest}"), shape),
                None => (name, shape),
            })
            .collect();
        for (name, shape) in others {
            self.put(name, shape);
        }
    }

    /// Writes the folder with random weights of this dtype.
    pub fn write(&self, folder: &Path, dtype: Dtype, n_shards: usize) {
        folder::write(folder, &self.config, self.tensors(dtype), n_shards);
    }

    pub fn tensors(&self, dtype: Dtype) -> BTreeMap<String, Array> {
        Device::open().unwrap();
        let value = |(name, shape): (&String, &Vec<i32>)| {
            let seed =
                name.bytes().fold(7u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x1_0000_01b3));
            let key = Key::from_seed(seed).unwrap();
            if self.bytes.contains(name) {
                // Codes of any value, scales from 2⁻⁹ to 2⁻⁶.
                let (low, high) = if name.ends_with("scales") { (118, 122) } else { (0, 256) };
                let bytes = key.integers(low, high, shape).unwrap().astype(Dtype::U8).unwrap();
                return (name.clone(), bytes);
            }
            let normal = key.normal(shape, Dtype::F32).unwrap();
            let is_norm = name.ends_with("norm.weight");
            let width = *shape.last().unwrap() as f32;
            let scale = if shape.len() == 1 { 0.2 } else { width.sqrt().recip() };
            let centre = if is_norm && !self.is_around_zero(name) { 1.0 } else { 0.0 };
            let value = normal.scale(scale).unwrap().offset(centre).unwrap();
            (name.clone(), value.astype(dtype).unwrap())
        };
        self.shapes.iter().map(value).collect()
    }

    fn is_around_zero(&self, name: &str) -> bool {
        let model_type = self.config["model_type"].as_str().unwrap();
        let is_gated = name.ends_with("linear_attn.norm.weight");
        ["qwen3_next", "qwen3_5", "gemma3"].iter().any(|f| model_type.starts_with(f)) && !is_gated
    }
}

const DELTA: &str = r#"{"linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2, "partial_rotary_factor": 0.25}"#;

fn delta_config(model_type: &str) -> Value {
    let mut config: Value = serde_json::from_str(DELTA).unwrap();
    config["model_type"] = model_type.into();
    config
}

fn moe_config(mut config: Value) -> Value {
    config["num_experts"] = EXPERTS.into();
    config["num_experts_per_tok"] = 2.into();
    config["moe_intermediate_size"] = EXPERT_INNER.into();
    config["shared_expert_intermediate_size"] = 320.into();
    config["norm_topk_prob"] = true.into();
    config
}

const VISION: &[(&str, &[i32])] = &[
    ("model.visual.patch_embed.proj.weight", &[16, 3, 2, 2]),
    ("model.visual.blocks.0.attn.qkv.bias", &[48]),
    ("mtp.fc.weight", &[64, 128]),
    ("mtp.layers.0.input_layernorm.weight", &[64]),
];

/// The source of a family, or of a family in a form of its own.
pub fn source(family: &str) -> Source {
    match family {
        "llama" => dense(json!({"model_type": "llama", "rope_scaling": null}), false),
        "qwen2" => qwen2(),
        "qwen3_tied" => dense(json!({"model_type": "qwen3", "tie_word_embeddings": true}), true),
        "qwen3_moe" => qwen3_moe(),
        "qwen3_next" => hybrid(moe_config(delta_config("qwen3_next")), true),
        "qwen3_5" | "qwen3_5_text" => {
            let mut source = hybrid(delta_config("qwen3_5_text"), false);
            if family == "qwen3_5" {
                source.wrap("qwen3_5", "model.language_model.", VISION);
            }
            source
        }
        "qwen3_5_moe" => {
            let mut source = hybrid(moe_config(delta_config("qwen3_5_moe_text")), false);
            source.wrap("qwen3_5_moe", "model.language_model.", VISION);
            source
        }
        "glm4_moe_lite" => glm(),
        "gpt_oss" => gpt_oss(false),
        "gpt_oss_mxfp4" => gpt_oss(true),
        "gemma3" => {
            let mut source = gemma("gemma3_text");
            let others: &[(&str, &[i32])] = &[
                ("vision_tower.vision_model.post_layernorm.weight", &[16]),
                ("multi_modal_projector.mm_input_projection_weight", &[16, 64]),
            ];
            source.wrap("gemma3", "language_model.model.", others);
            source
        }
        "gemma3_text" => gemma("gemma3_text"),
        other => panic!("{other}"),
    }
}

fn dense(config: Value, qk_norm: bool) -> Source {
    let mut source = Source::new(config);
    for layer in source.layers() {
        source.norms(&layer);
        source.attention(&layer, 1, qk_norm);
        source.mlp(&format!("{layer}.mlp"), INNER);
    }
    source
}

fn qwen2() -> Source {
    let mut source = dense(json!({"model_type": "qwen2", "num_attention_heads": 2}), false);
    source.config.as_object_mut().unwrap().remove("head_dim");
    for layer in source.layers() {
        let at = format!("{layer}.self_attn");
        for (name, shape) in [("q_proj", [HIDDEN, HIDDEN]), ("o_proj", [HIDDEN, HIDDEN])] {
            source.put(&format!("{at}.{name}.weight"), &shape);
        }
        for name in ["q_proj", "k_proj", "v_proj"] {
            source.put(&format!("{at}.{name}.bias"), &[HIDDEN]);
        }
    }
    source
}

fn qwen3_moe() -> Source {
    let mut source = Source::new(moe_config(json!({
        "model_type": "qwen3_moe", "decoder_sparse_step": 1, "mlp_only_layers": [1],
    })));
    for (i, layer) in source.layers().iter().enumerate() {
        source.norms(layer);
        source.attention(layer, 1, true);
        match i {
            0 => source.experts(layer),
            _ => source.mlp(&format!("{layer}.mlp"), INNER),
        }
    }
    source
}

/// One gated delta net, one layer of attention.
fn hybrid(config: Value, interleaved: bool) -> Source {
    let has_experts = config.get("num_experts").is_some();
    let mut source = Source::new(config);
    for (i, layer) in source.layers().iter().enumerate() {
        source.norms(layer);
        match i {
            0 => source.delta_net(layer, interleaved),
            _ => source.attention(layer, 2, true),
        }
        match (has_experts, interleaved) {
            (false, _) => source.mlp(&format!("{layer}.mlp"), INNER),
            (true, true) => source.experts(layer),
            (true, false) => source.fused_experts(layer),
        }
        if has_experts {
            source.shared_expert(layer);
        }
    }
    if interleaved {
        source.put("mtp.fc.weight", &[64, 128]);
    }
    source
}

fn glm() -> Source {
    let mut source = Source::new(json!({
        "model_type": "glm4_moe_lite", "q_lora_rank": 192, "kv_lora_rank": 128,
        "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 96,
        "n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "moe_intermediate_size": EXPERT_INNER, "first_k_dense_replace": 1, "n_group": 1,
        "topk_group": 1, "routed_scaling_factor": 1.8, "norm_topk_prob": true,
        "num_attention_heads": 3, "num_key_value_heads": 3, "num_nextn_predict_layers": 1,
        "attention_bias": false, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        "rope_scaling": null, "partial_rotary_factor": 1.0,
    }));
    source.config.as_object_mut().unwrap().remove("head_dim");
    for (i, layer) in source.layers().iter().enumerate() {
        source.norms(layer);
        let list: &[(&str, &[i32])] = &[
            ("q_a_proj", &[192, HIDDEN]),
            ("q_a_layernorm", &[192]),
            ("q_b_proj", &[288, 192]),
            ("kv_a_proj_with_mqa", &[160, HIDDEN]),
            ("kv_a_layernorm", &[128]),
            ("kv_b_proj", &[480, 128]),
            ("o_proj", &[HIDDEN, 288]),
        ];
        source.matrices(&format!("{layer}.self_attn"), list);
        if i == 0 {
            source.mlp(&format!("{layer}.mlp"), INNER);
            continue;
        }
        source.experts(layer);
        source.put(&format!("{layer}.mlp.gate.e_score_correction_bias"), &[EXPERTS]);
        source.mlp(&format!("{layer}.mlp.shared_experts"), EXPERT_INNER);
    }
    source.put("model.layers.2.eh_proj.weight", &[64, 128]);
    source
}

fn gpt_oss(in_codes: bool) -> Source {
    let mut source = Source::new(json!({
        "model_type": "gpt_oss", "num_local_experts": EXPERTS, "num_experts_per_tok": 2,
        "intermediate_size": EXPERT_INNER, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"], "swiglu_limit": 7.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                         "original_max_position_embeddings": 4096, "truncate": true},
    }));
    if in_codes {
        source.config["quantization_config"] = json!({"quant_method": "mxfp4"});
    }
    for layer in source.layers() {
        source.norms(&layer);
        source.attention(&layer, 1, false);
        let at = format!("{layer}.self_attn");
        for (name, n) in [("q_proj", 256), ("k_proj", 64), ("v_proj", 64), ("o_proj", HIDDEN)] {
            source.put(&format!("{at}.{name}.bias"), &[n]);
        }
        source.put(&format!("{at}.sinks"), &[8]);
        let at = format!("{layer}.mlp");
        source.put(&format!("{at}.router.weight"), &[EXPERTS, HIDDEN]);
        source.put(&format!("{at}.router.bias"), &[EXPERTS]);
        let at = format!("{at}.experts");
        let (wide, hidden) = (2 * EXPERT_INNER, HIDDEN);
        source.put(&format!("{at}.gate_up_proj_bias"), &[EXPERTS, wide]);
        source.put(&format!("{at}.down_proj_bias"), &[EXPERTS, hidden]);
        if !in_codes {
            source.put(&format!("{at}.gate_up_proj"), &[EXPERTS, hidden, wide]);
            source.put(&format!("{at}.down_proj"), &[EXPERTS, EXPERT_INNER, hidden]);
            continue;
        }
        for (name, out, n_in) in
            [("gate_up_proj", wide, hidden), ("down_proj", hidden, EXPERT_INNER)]
        {
            for (end, shape) in [
                ("blocks", vec![EXPERTS, out, n_in / 32, 16]),
                ("scales", vec![EXPERTS, out, n_in / 32]),
            ] {
                let name = format!("{at}.{name}_{end}");
                source.put(&name, &shape);
                source.bytes.push(name);
            }
        }
    }
    source
}

fn gemma(model_type: &str) -> Source {
    let mut source = dense(
        json!({
            "model_type": model_type, "tie_word_embeddings": true, "query_pre_attn_scalar": 24,
            "sliding_window": 8, "sliding_window_pattern": 2, "rope_local_base_freq": 300.0,
            "hidden_activation": "gelu_pytorch_tanh",
        }),
        true,
    );
    for layer in source.layers() {
        for name in ["pre_feedforward_layernorm", "post_feedforward_layernorm"] {
            source.put(&format!("{layer}.{name}.weight"), &[HIDDEN]);
        }
    }
    source
}
