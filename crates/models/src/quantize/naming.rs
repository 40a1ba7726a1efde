//! The names of the output: those that mlx-lm's loader of a family expects, and which tensors that
//! are not run it passes over.

/// How one kind of config.json names its tensors.
#[derive(Debug)]
pub(super) struct Naming {
    /// Values of `model_type` at the root.
    model_types: &'static [&'static str],
    /// What `model_type` becomes, where MLX tools know the model by another name.
    pub renamed: Option<&'static str>,
    /// Keys of `text_config` that mlx-lm looks for at the root.
    pub at_root: &'static [&'static str],
    /// Stands before the names of the text model.
    pub prefix: &'static str,
    /// Beginnings of names of tensors that are not run and may stay: mlx-lm drops them by name.
    passed_over: &'static [&'static str],
    /// Beginnings of such names that it knows by another one.
    respelled: &'static [(&'static str, &'static str)],
}

const TEXT: Naming = Naming {
    model_types: &[],
    renamed: None,
    at_root: &[],
    prefix: "",
    passed_over: &[],
    respelled: &[],
};

const QWEN3_5: Naming = Naming {
    model_types: &["qwen3_5", "qwen3_5_moe"],
    prefix: "language_model.",
    passed_over: &["mtp.", "model.visual.", "vision_tower."],
    respelled: &[("visual.", "model.visual."), ("model.vision_tower.", "vision_tower.")],
    ..TEXT
};

/// What differs from [`TEXT`].
const NAMINGS: &[Naming] = &[
    QWEN3_5,
    Naming { model_types: &["qwen3_5_text"], renamed: Some("qwen3_5"), ..QWEN3_5 },
    Naming { model_types: &["qwen3_5_moe_text"], renamed: Some("qwen3_5_moe"), ..QWEN3_5 },
    Naming {
        model_types: &["gemma3"],
        at_root: &["vocab_size"],
        prefix: "language_model.",
        passed_over: &["vision_tower.", "multi_modal_projector."],
        respelled: &[
            ("model.vision_tower.", "vision_tower."),
            ("model.multi_modal_projector.", "multi_modal_projector."),
        ],
        ..TEXT
    },
    Naming { model_types: &["glm4_moe_lite"], passed_over: &["model.layers."], ..TEXT },
];

impl Naming {
    /// Of a config with this `model_type` at its root.
    pub fn of(model_type: &str) -> &'static Naming {
        let found = NAMINGS.iter().find(|naming| naming.model_types.contains(&model_type));
        found.unwrap_or(&TEXT)
    }

    /// The name of a tensor, or the path of a matrix, of the text model.
    pub fn name(&self, inner: &str) -> String {
        format!("{}{inner}", self.prefix)
    }

    /// The name under which a tensor that is not run may stay.
    pub fn aside(&self, name: &str) -> Option<String> {
        let respell = |(from, to): &(&str, &str)| Some(format!("{to}{}", name.strip_prefix(from)?));
        let name = self.respelled.iter().find_map(respell).unwrap_or_else(|| name.to_owned());
        self.passed_over.iter().any(|start| name.starts_with(start)).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_mlx_lms_loaders() {
        let check = |model_type: &str, inner: &str, wanted: &str| {
            assert_eq!(Naming::of(model_type).name(inner), wanted);
        };
        check("llama", "model.norm.weight", "model.norm.weight");
        check("gemma3_text", "model.norm.weight", "model.norm.weight");
        check("gemma3", "model.norm.weight", "language_model.model.norm.weight");
        check("qwen3_5", "lm_head", "language_model.lm_head");
        check("qwen3_5_moe_text", "lm_head", "language_model.lm_head");
        assert_eq!(Naming::of("qwen3_5_moe_text").renamed, Some("qwen3_5_moe"));
    }

    #[test]
    fn what_is_not_run_stays_only_where_mlx_lm_passes_it_over() {
        let check = |model_type: &str, name: &str, wanted: Option<&str>| {
            assert_eq!(Naming::of(model_type).aside(name).as_deref(), wanted, "{name}");
        };
        check("qwen3_5", "mtp.fc.weight", Some("mtp.fc.weight"));
        check("qwen3_5", "visual.norm.weight", Some("model.visual.norm.weight"));
        check("qwen3_5", "model.vision_tower.a", Some("vision_tower.a"));
        check("qwen3_5", "model.visual.a", Some("model.visual.a"));
        check("qwen3_next", "mtp.fc.weight", None);
        check("gemma3", "model.multi_modal_projector.a", Some("multi_modal_projector.a"));
        check("gemma3", "model.visual.a", None);
        check(
            "glm4_moe_lite",
            "model.layers.47.eh_proj.weight",
            Some("model.layers.47.eh_proj.weight"),
        );
        check("llama", "vision_tower.a", None);
    }
}
