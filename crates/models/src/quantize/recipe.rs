//! Which coding a matrix gets, by its path: the tables of roles, and the rules of recipes.

use mlx::{QuantMode, Quantization};

use crate::{Error, Result};

use super::settings::{Recipe, Settings, Target};

/// What a tensor does in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The table of token vectors.
    Embedding,
    /// Attention's projections.
    Attention,
    /// The projections of gated delta nets, with their convolutions.
    LinearAttention,
    /// Dense blocks, and those that every token passes beside its experts.
    Mlp,
    /// Stacks of experts.
    Experts,
    /// What chooses and weighs experts.
    Router,
    /// The projection to the vocabulary.
    Head,
    /// Norms, biases and other vectors.
    Other,
}

impl Role {
    /// All of them, as reports list them.
    pub const ALL: [Role; 8] = [
        Role::Embedding,
        Role::Attention,
        Role::LinearAttention,
        Role::Mlp,
        Role::Experts,
        Role::Router,
        Role::Head,
        Role::Other,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Role::Embedding => "embedding",
            Role::Attention => "attention",
            Role::LinearAttention => "linear_attention",
            Role::Mlp => "mlp",
            Role::Experts => "experts",
            Role::Router => "router",
            Role::Head => "head",
            Role::Other => "other",
        }
    }

    /// Of the tensor at `path`.
    pub(super) fn of(path: &str, n_dims: usize) -> Role {
        if n_dims < 2 || path.ends_with(".bias") {
            return Role::Other;
        }
        let parts = path.split('.').collect::<Vec<_>>();
        let holds = |run: &[&str]| parts.windows(run.len()).any(|window| window == run);
        let found = ROLES.iter().find(|(run, _)| holds(run));
        found.map_or(Role::Other, |(_, role)| *role)
    }
}

/// Runs of a path's parts, and what is there. The first that fits counts.
#[rustfmt::skip]
const ROLES: &[(&[&str], Role)] = &[
    (&["embed_tokens"], Role::Embedding),
    (&["lm_head"], Role::Head),
    (&["mlp", "gate"], Role::Router),
    (&["mlp", "router"], Role::Router),
    (&["mlp", "shared_expert_gate"], Role::Router),
    (&["mlp", "switch_mlp"], Role::Experts),
    (&["mlp", "experts"], Role::Experts),
    (&["linear_attn"], Role::LinearAttention),
    (&["self_attn"], Role::Attention),
    (&["mlp"], Role::Mlp),
];

/// Routers: a wrong expert costs more than these few bytes save.
const ROUTER: Quantization = Quantization { mode: QuantMode::Affine, bits: 8, group_size: 64 };

/// Parts of names that get the high bits of a mixed recipe in some of the layers: v projections,
/// also of latents, and those at the end of a block.
const PROMOTED: [&str; 4] = ["v_proj", "v_a_proj", "v_b_proj", "down_proj"];

/// What becomes of one matrix.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Choice {
    Codes(Quantization),
    /// Stays in floats, and why.
    Floats(String),
}

/// The choice for the matrix at `path` with rows of `n_in`.
pub(super) fn choose(
    settings: &Settings,
    default: Quantization,
    path: &str,
    n_in: i32,
    n_layers: i32,
) -> Result<Choice> {
    if let Some(pattern) = settings.keep.iter().find(|pattern| pattern.matches(path)) {
        return Ok(Choice::Floats(format!("'{pattern}' keeps it")));
    }
    if let Some((pattern, q)) = settings.at.iter().rev().find(|(p, _)| p.matches(path)) {
        if n_in % q.group_size != 0 {
            return Err(Error::Settings(format!(
                "'{pattern}' asks for groups of {}, but {path} has rows of {n_in}, which they do \
                 not divide",
                q.group_size
            )));
        }
        return Ok(Choice::Codes(*q));
    }
    let coding = match (Role::of(path, 2), settings.recipe) {
        (Role::Router, _) => ROUTER,
        (role, Recipe::Mixed { high_bits }) if is_promoted(path, role, n_layers) => {
            Quantization { bits: high_bits, ..default }
        }
        _ => default,
    };
    // MLX tools test the default group before anything else; whoever loads this may, too.
    for group_size in [default.group_size, coding.group_size] {
        if n_in % group_size != 0 {
            let why = format!("groups of {group_size} do not divide its rows of {n_in}");
            return Ok(Choice::Floats(why));
        }
    }
    Ok(Choice::Codes(coding))
}

fn is_promoted(path: &str, role: Role, n_layers: i32) -> bool {
    if role == Role::Head {
        return true;
    }
    let mut parts = path.split('.').skip_while(|part| *part != "layers").skip(1);
    let layer_idx = parts.next().and_then(|part| part.parse::<i32>().ok()).unwrap_or(0);
    let eighth = n_layers / 8;
    let has_more = layer_idx < eighth
        || layer_idx >= 7 * n_layers / 8
        || (layer_idx - eighth).rem_euclid(3) == 2;
    has_more && PROMOTED.iter().any(|name| path.contains(name))
}

/// The default coding, where there are codes.
pub(super) fn default_of(target: Target) -> Option<Quantization> {
    match target {
        Target::Codes(quantization) => Some(quantization),
        Target::Floats(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::settings::Pattern;

    const AFFINE: Quantization = Quantization { mode: QuantMode::Affine, bits: 4, group_size: 64 };

    fn settings(q: Quantization, recipe: Recipe) -> Settings {
        Settings { recipe, ..Settings::plain(Target::Codes(q)) }
    }

    fn codes(choice: Result<Choice>) -> Quantization {
        match choice.unwrap() {
            Choice::Codes(q) => q,
            Choice::Floats(why) => panic!("{why}"),
        }
    }

    #[test]
    fn every_kind_of_tensor_has_its_role() {
        for (path, n_dims, role) in [
            ("model.embed_tokens", 2, Role::Embedding),
            ("lm_head", 2, Role::Head),
            ("model.layers.0.self_attn.q_proj", 2, Role::Attention),
            ("model.layers.0.self_attn.embed_q", 3, Role::Attention),
            ("model.layers.0.self_attn.q_norm.weight", 1, Role::Other),
            ("model.layers.0.self_attn.q_proj.bias", 1, Role::Other),
            ("model.layers.0.linear_attn.in_proj_qkvz", 2, Role::LinearAttention),
            ("model.layers.0.linear_attn.conv1d.weight", 3, Role::LinearAttention),
            ("model.layers.0.linear_attn.A_log", 1, Role::Other),
            ("model.layers.0.mlp.gate", 2, Role::Router),
            ("model.layers.0.mlp.gate.weight", 2, Role::Router),
            ("model.layers.0.mlp.gate_proj", 2, Role::Mlp),
            ("model.layers.0.mlp.router", 2, Role::Router),
            ("model.layers.0.mlp.shared_expert_gate", 2, Role::Router),
            ("model.layers.0.mlp.shared_expert.up_proj", 2, Role::Mlp),
            ("model.layers.0.mlp.switch_mlp.up_proj", 3, Role::Experts),
            ("model.layers.0.mlp.experts.up_proj", 3, Role::Experts),
            ("model.layers.0.mlp.experts.up_proj.bias", 2, Role::Other),
            ("model.norm.weight", 1, Role::Other),
        ] {
            assert_eq!(Role::of(path, n_dims), role, "{path}");
        }
    }

    #[test]
    fn routers_have_eight_bits_whatever_the_recipe() {
        let mxfp4 = Quantization { mode: QuantMode::Mxfp4, bits: 4, group_size: 32 };
        for (default, recipe) in [
            (AFFINE, Recipe::Default),
            (Quantization { bits: 2, ..AFFINE }, Recipe::Mixed { high_bits: 6 }),
            (mxfp4, Recipe::Default),
        ] {
            let settings = settings(default, recipe);
            for router in ["mlp.gate", "mlp.router", "mlp.shared_expert_gate"] {
                let path = format!("model.layers.3.{router}");
                assert_eq!(codes(choose(&settings, default, &path, 128, 8)), ROUTER, "{path}");
            }
        }
    }

    /// The rule of mlx-lm's recipes, written down for 16 layers: first and last two, and every
    /// third from the fifth on.
    #[test]
    fn mixed_recipes_promote_the_head_and_some_layers() {
        let settings = settings(AFFINE, Recipe::Mixed { high_bits: 6 });
        let bits = |path: &str| codes(choose(&settings, AFFINE, path, 128, 16)).bits;
        let high = [0, 1, 4, 7, 10, 13, 14, 15];
        for layer in 0..16 {
            let wanted = if high.contains(&layer) { 6 } else { 4 };
            for name in ["self_attn.v_proj", "self_attn.kv_a_proj_with_mqa", "mlp.down_proj"] {
                assert_eq!(bits(&format!("model.layers.{layer}.{name}")), wanted, "{layer} {name}");
            }
            assert_eq!(bits(&format!("model.layers.{layer}.self_attn.k_proj")), 4);
        }
        assert_eq!((bits("lm_head"), bits("model.embed_tokens")), (6, 4));
    }

    #[test]
    fn widths_that_a_group_does_not_divide_stay_in_floats() {
        let check = |default: Quantization, path: &str, n_in, says: Option<&str>| {
            let settings = settings(default, Recipe::Default);
            match (choose(&settings, default, path, n_in, 4).unwrap(), says) {
                (Choice::Codes(_), None) => {}
                (Choice::Floats(why), Some(says)) => assert!(why.contains(says), "{why}"),
                (found, _) => panic!("{path}: {found:?}"),
            }
        };
        let group = |mode, group_size| Quantization { mode, bits: 4, group_size };
        check(AFFINE, "lm_head", 96, Some("64"));
        check(group(QuantMode::Mxfp4, 32), "lm_head", 96, None);
        check(group(QuantMode::Mxfp4, 32), "model.layers.0.mlp.gate", 96, Some("64"));
        check(group(QuantMode::Affine, 128), "model.layers.0.mlp.gate", 192, Some("128"));
    }

    #[test]
    fn patterns_win_over_recipes_and_keep_wins_over_at() {
        let own = |bits, group_size| Quantization { mode: QuantMode::Affine, bits, group_size };
        let pattern = |text| Pattern::new(text).unwrap();
        let settings = Settings {
            keep: vec![pattern("layers.0")],
            at: vec![(pattern("mlp"), own(6, 32)), (pattern("down_proj"), own(3, 32))],
            ..settings(AFFINE, Recipe::Default)
        };
        let choice = |path: &str, n_in| choose(&settings, AFFINE, path, n_in, 4);
        assert_eq!(codes(choice("model.layers.1.mlp.up_proj", 96)), own(6, 32));
        assert_eq!(codes(choice("model.layers.1.mlp.down_proj", 96)), own(3, 32));
        assert_eq!(codes(choice("model.layers.1.mlp.gate", 96)), own(6, 32));
        let kept = choice("model.layers.0.mlp.up_proj", 96).unwrap();
        assert_eq!(kept, Choice::Floats("'layers.0' keeps it".to_owned()));
        let error = choice("model.layers.1.mlp.up_proj", 80).unwrap_err().to_string();
        assert!(error.contains("rows of 80"), "{error}");
    }
}
