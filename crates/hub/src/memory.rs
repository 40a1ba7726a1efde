//! What a sequence takes of memory, by a model's config alone: keys and values, and the states of
//! recurrent layers.

use serde_json::{Map, Value};

/// Bytes that one sequence takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceMemory {
    /// Per token, of the layers that see the whole text.
    pub kv_bytes_per_token: u64,
    /// Of the layers that see a window: its length in tokens, and bytes per token.
    pub window: Option<(u64, u64)>,
    /// Of recurrent layers, however long the text is.
    pub state_bytes: u64,
}

impl SequenceMemory {
    /// All bytes of a text of so many tokens.
    pub fn bytes(&self, n_tokens: u64) -> u64 {
        let window = self
            .window
            .map_or(0, |(window, per_token)| window.min(n_tokens).saturating_mul(per_token));
        let kv = self.kv_bytes_per_token.saturating_mul(n_tokens);
        kv.saturating_add(window).saturating_add(self.state_bytes)
    }

    /// By the config of a known family; none for others, and for configs without sizes.
    pub(crate) fn of(config: &Map<String, Value>) -> Option<Self> {
        let text = config.get("text_config").and_then(Value::as_object).unwrap_or(config);
        let family = text.get("model_type").or_else(|| config.get("model_type"))?.as_str()?;
        Config { text, root: config, family: family.trim_end_matches("_text") }.memory()
    }
}

/// A layer's part in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    Full,
    Window,
    Recurrent,
}

struct Config<'a> {
    text: &'a Map<String, Value>,
    root: &'a Map<String, Value>,
    /// Without the ending of text models in wrappers.
    family: &'a str,
}

impl Config<'_> {
    fn memory(&self) -> Option<SequenceMemory> {
        let layers = self.layers()?;
        let count = |kind| layers.iter().filter(|layer| **layer == kind).count() as u64;
        let (n_full, n_window, n_recurrent) =
            (count(Layer::Full), count(Layer::Window), count(Layer::Recurrent));
        let per_layer = if n_full + n_window > 0 { self.kv_bytes()? } else { 0 };
        let state = if n_recurrent > 0 { self.state_bytes()? } else { 0 };
        let window = match n_window {
            0 => None,
            n => Some((self.window()?, n.saturating_mul(per_layer))),
        };
        Some(SequenceMemory {
            kv_bytes_per_token: n_full.saturating_mul(per_layer),
            window,
            state_bytes: n_recurrent.saturating_mul(state),
        })
    }

    /// What each layer is. The list in the config wins over rules.
    fn layers(&self) -> Option<Vec<Layer>> {
        // No model comes near it; a config is somebody's text.
        let n_layers = self.number("num_hidden_layers").filter(|n| *n <= 10_000)? as usize;
        let listed = self.text.get("layer_types").and_then(Value::as_array);
        let by_rule = |is: &dyn Fn(usize) -> Layer| Some((0..n_layers).map(is).collect());
        if let Some(listed) = listed {
            let kind = |kind: &Value| match kind.as_str()? {
                "full_attention" => Some(Layer::Full),
                // A list may say so where the switch says no.
                "sliding_attention" if self.window().is_none() => Some(Layer::Full),
                "sliding_attention" => Some(Layer::Window),
                "linear_attention" => Some(Layer::Recurrent),
                _ => None,
            };
            let kinds: Option<Vec<_>> = listed.iter().take(n_layers).map(kind).collect();
            return kinds.filter(|kinds| kinds.len() == n_layers);
        }
        match self.family {
            "llama" | "glm4_moe_lite" => by_rule(&|_| Layer::Full),
            "mistral" => {
                let has_window = self.window().is_some();
                by_rule(&|_| if has_window { Layer::Window } else { Layer::Full })
            }
            "qwen2" | "qwen3" | "qwen3_moe" => {
                let first = self.number("max_window_layers").unwrap_or(28) as usize;
                let has_window = self.window().is_some();
                by_rule(&|idx| if has_window && idx >= first { Layer::Window } else { Layer::Full })
            }
            "gemma3" => {
                let every = self.number("sliding_window_pattern").unwrap_or(6).max(1) as usize;
                by_rule(&|idx| if (idx + 1) % every == 0 { Layer::Full } else { Layer::Window })
            }
            "gpt_oss" => by_rule(&|idx| if idx % 2 == 0 { Layer::Window } else { Layer::Full }),
            "qwen3_next" | "qwen3_5" | "qwen3_5_moe" => {
                let every = self.number("full_attention_interval").unwrap_or(4).max(1) as usize;
                by_rule(&|idx| if (idx + 1) % every == 0 { Layer::Full } else { Layer::Recurrent })
            }
            _ => None,
        }
    }

    /// The window in tokens; none where there is none.
    fn window(&self) -> Option<u64> {
        let default = match self.family {
            "mistral" | "gemma3" => Some(4096),
            "gpt_oss" => Some(128),
            _ => None,
        };
        let needs_switch = matches!(self.family, "qwen2" | "qwen3" | "qwen3_moe");
        let is_on = self.text.get("use_sliding_window").and_then(Value::as_bool);
        if needs_switch && is_on != Some(true) {
            return None;
        }
        match self.text.get("sliding_window") {
            // Written and null is "none"; not written is the default.
            Some(value) => value.as_u64(),
            None => default.or_else(|| needs_switch.then_some(4096)),
        }
    }

    /// Keys and values of one token in one layer.
    fn kv_bytes(&self) -> Option<u64> {
        if self.family == "glm4_moe_lite" {
            let latent = self.number("kv_lora_rank").unwrap_or(512);
            let rope = self.number("qk_rope_head_dim").unwrap_or(64);
            return Some(latent.saturating_add(rope).saturating_mul(self.width()));
        }
        let is_gemma = self.family == "gemma3";
        let n_heads = self.number("num_attention_heads").or(is_gemma.then_some(8));
        let n_kv_heads =
            self.number("num_key_value_heads").or(is_gemma.then_some(4)).or(n_heads)?;
        let head_dim = self.number("head_dim").or_else(|| match self.family {
            "qwen3" => Some(128),
            "qwen3_next" | "qwen3_5" | "qwen3_5_moe" | "gemma3" => Some(256),
            "gpt_oss" => Some(64),
            _ => self.number("hidden_size")?.checked_div(n_heads?),
        })?;
        Some(n_kv_heads.saturating_mul(head_dim).saturating_mul(2 * self.width()))
    }

    /// The state of one recurrent layer: the matrix in f32, the convolution's tail as activations.
    fn state_bytes(&self) -> Option<u64> {
        let number = |key, default| self.number(key).unwrap_or(default);
        let (n_value_heads, n_key_heads) =
            (number("linear_num_value_heads", 32), number("linear_num_key_heads", 16));
        let (value_dim, key_dim) =
            (number("linear_value_head_dim", 128), number("linear_key_head_dim", 128));
        let tail = number("linear_conv_kernel_dim", 4).checked_sub(1)?;
        let matrix = n_value_heads.checked_mul(value_dim)?.checked_mul(key_dim)?.checked_mul(4)?;
        let keys = n_key_heads.checked_mul(key_dim)?.checked_mul(2)?;
        let row = n_value_heads.checked_mul(value_dim)?.checked_add(keys)?;
        matrix.checked_add(tail.checked_mul(row)?.checked_mul(self.width())?)
    }

    /// Bytes of an activation.
    fn width(&self) -> u64 {
        let mut dtype = ["dtype", "torch_dtype"]
            .iter()
            .filter_map(|key| self.text.get(*key).or_else(|| self.root.get(*key))?.as_str());
        if dtype.next() == Some("float32") { 4 } else { 2 }
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.text.get(key)?.as_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    fn of(config: &Value) -> Option<SequenceMemory> {
        SequenceMemory::of(config.as_object().unwrap())
    }

    #[test]
    fn the_shapes_of_known_models_take_what_their_sizes_say() {
        let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/shapes");
        let check = |name: &str, kv: u64, window: Option<(u64, u64)>, state: u64| {
            let text = std::fs::read_to_string(shapes.join(format!("{name}.json"))).unwrap();
            let memory = of(&serde_json::from_str(&text).unwrap()).unwrap();
            let expected = SequenceMemory { kv_bytes_per_token: kv, window, state_bytes: state };
            assert_eq!(memory, expected, "{name}");
        };
        check("qwen3-0.6b", 28 * 2 * 8 * 128 * 2, None, 0);
        check("qwen3-8b", 36 * 2 * 8 * 128 * 2, None, 0);
        check("qwen3-30b-a3b", 48 * 2 * 4 * 128 * 2, None, 0);
        check("glm-4.7-flash", 47 * (512 + 64) * 2, None, 0);
        check("gpt-oss-20b", 12 * 2 * 8 * 64 * 2, Some((128, 12 * 2 * 8 * 64 * 2)), 0);
        let state = 32 * 128 * 128 * 4 + 3 * (2 * 16 * 128 + 32 * 128) * 2;
        check("qwen3-next-80b-a3b", 12 * 2 * 2 * 256 * 2, None, 36 * state);
        check("qwen3.5-35b-a3b", 10 * 2 * 2 * 256 * 2, None, 30 * state);
    }

    #[test]
    fn windows_and_states_do_not_grow() {
        let memory =
            SequenceMemory { kv_bytes_per_token: 3, window: Some((100, 7)), state_bytes: 11 };
        for (n_tokens, bytes) in [(0, 11), (50, 150 + 350 + 11), (1000, 3000 + 700 + 11)] {
            assert_eq!(memory.bytes(n_tokens), bytes);
        }
    }

    /// Layers that see everything, a window's length and layers, and whether there is a state.
    type Kinds = (u64, Option<(u64, u64)>, bool);

    #[test]
    fn layers_are_what_the_config_or_the_family_says() {
        let check = |more: Value, expected: Option<Kinds>| {
            let mut config = json!({"num_hidden_layers": 6, "num_attention_heads": 3,
                                    "num_key_value_heads": 1, "head_dim": 1});
            for (key, value) in more.as_object().unwrap() {
                config[key] = value.clone();
            }
            let found = of(&config).map(|memory| {
                let window = memory.window.map(|(window, bytes)| (window, bytes / 4));
                (memory.kv_bytes_per_token / 4, window, memory.state_bytes > 0)
            });
            assert_eq!(found, expected, "{config}");
        };
        check(json!({"model_type": "llama"}), Some((6, None, false)));
        check(json!({"model_type": "mistral"}), Some((0, Some((4096, 6)), false)));
        check(json!({"model_type": "mistral", "sliding_window": null}), Some((6, None, false)));
        check(json!({"model_type": "qwen2", "sliding_window": 9}), Some((6, None, false)));
        let windowed = json!({"model_type": "qwen3", "use_sliding_window": true,
                              "sliding_window": 9, "max_window_layers": 2});
        check(windowed, Some((2, Some((9, 4)), false)));
        check(json!({"model_type": "gemma3_text"}), Some((1, Some((4096, 5)), false)));
        check(
            json!({"model_type": "gemma3_text", "sliding_window": 512,
                   "sliding_window_pattern": 3}),
            Some((2, Some((512, 4)), false)),
        );
        check(json!({"model_type": "gpt_oss"}), Some((3, Some((128, 3)), false)));
        check(json!({"model_type": "qwen3_next"}), Some((1, None, true)));
        check(
            json!({"model_type": "qwen3_5_moe_text", "full_attention_interval": 2}),
            Some((3, None, true)),
        );
        let listed = json!({"model_type": "gemma3_text", "layer_types": ["full_attention",
            "sliding_attention", "full_attention", "full_attention", "full_attention",
            "full_attention"]});
        check(listed, Some((5, Some((4096, 1)), false)));
        check(json!({"model_type": "llama", "layer_types": ["full_attention"]}), None);
        check(json!({"model_type": "unheard_of"}), None);
        check(json!({"model_type": "llama", "num_hidden_layers": 1u64 << 60}), None);
        let huge = json!({"model_type": "qwen3_next", "linear_num_value_heads": u64::MAX});
        check(huge, None);
    }

    #[test]
    fn floats_of_four_bytes_take_twice_as_much() {
        let config = |dtype: &str| {
            json!({"model_type": "wrapper", "dtype": dtype, "text_config": {"model_type": "llama",
                   "num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 15}})
        };
        assert_eq!(of(&config("bfloat16")).unwrap().kv_bytes_per_token, 2 * 2 * 3 * 5 * 2);
        assert_eq!(of(&config("float32")).unwrap().kv_bytes_per_token, 2 * 2 * 3 * 5 * 4);
    }
}
