//! What the caller chooses: the coding of matrices, the recipe, and exceptions by path.

use std::fmt;

use mlx::{Dtype, QuantMode, Quantization};

use crate::{Error, Result};

/// What becomes of matrices that nothing else is said of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Codes.
    Codes(Quantization),
    /// Floats of this dtype: a float checkpoint in MLX's layout, dequantized if it must be.
    Floats(Dtype),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Floats(dtype) => dtype.fmt(f),
            Target::Codes(q) => write!(f, "{}-bit {}, group {}", q.bits, q.mode, q.group_size),
        }
    }
}

/// How bits are spread over the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// The same coding everywhere, but 8 bits for routers.
    Default,
    /// More bits for the head everywhere, and for v and down projections in the first and the last
    /// eighth of the layers and in every third between. Other matrices have the default coding.
    Mixed {
        /// Bits of those.
        high_bits: i32,
    },
}

/// The choices for one run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The default.
    pub target: Target,
    /// The spread of bits.
    pub recipe: Recipe,
    /// Matrices that stay in floats. Wins over `at`.
    pub keep: Vec<Pattern>,
    /// Matrices with a coding of their own; of several that match the last one counts.
    pub at: Vec<(Pattern, Quantization)>,
    /// Dtype of floats and scales; else the checkpoint's own.
    pub dtype: Option<Dtype>,
    /// Replaces a model that stands at the target.
    pub overwrites: bool,
}

impl Settings {
    /// One coding everywhere.
    pub fn plain(target: Target) -> Self {
        let (keep, at) = (Vec::new(), Vec::new());
        Self { target, recipe: Recipe::Default, keep, at, dtype: None, overwrites: false }
    }

    /// What can be known without a model.
    pub(super) fn check(&self) -> Result<()> {
        let refused = |reason: String| Err(Error::Settings(reason));
        for q in self.at.iter().map(|(_, q)| *q) {
            check_coding(q)?;
        }
        match (self.target, self.recipe) {
            (Target::Codes(q), Recipe::Default) => check_coding(q)?,
            (Target::Codes(q), Recipe::Mixed { high_bits }) => {
                check_coding(q)?;
                check_coding(Quantization { bits: high_bits, ..q })?;
                if q.mode != QuantMode::Affine {
                    return refused(format!("mixed recipes are affine, not {}", q.mode));
                }
            }
            (Target::Floats(dtype), recipe) => {
                if !is_half_or_single(dtype) {
                    return refused(format!("{dtype} is none of bf16, f16, f32"));
                }
                if recipe != Recipe::Default || !self.keep.is_empty() || !self.at.is_empty() {
                    return refused(format!(
                        "with {dtype} everything is floats: recipes and patterns have no meaning"
                    ));
                }
            }
        }
        match self.dtype {
            Some(dtype) if !is_half_or_single(dtype) => {
                refused(format!("dtype {dtype} is none of bf16, f16, f32"))
            }
            _ => Ok(()),
        }
    }
}

fn is_half_or_single(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::Bf16 | Dtype::F16 | Dtype::F32)
}

/// Whether MLX has this coding.
fn check_coding(q: Quantization) -> Result<()> {
    let (bits, groups): (&[i32], &[i32]) = match q.mode {
        QuantMode::Affine => (&[2, 3, 4, 5, 6, 8], &[32, 64, 128]),
        QuantMode::Mxfp4 => (&[4], &[32]),
        QuantMode::Mxfp8 => (&[8], &[32]),
        QuantMode::Nvfp4 => (&[4], &[16]),
    };
    if bits.contains(&q.bits) && groups.contains(&q.group_size) {
        return Ok(());
    }
    Err(Error::Settings(format!(
        "{} has no {} bits in groups of {}: bits are {bits:?}, groups {groups:?}",
        q.mode, q.bits, q.group_size
    )))
}

/// Names places in the tree of names by a run of its parts: `lm_head`, `v_proj`, `layers.0`,
/// `layers.*.mlp.down_proj`. `*` stands for any characters within a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// From its text.
    ///
    /// # Errors
    /// A part is empty, or holds what no name has.
    pub fn new(text: &str) -> Result<Self> {
        let is_part = |part: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || "_-*".contains(c);
            !part.is_empty() && part.chars().all(fits)
        };
        if text.split('.').all(is_part) {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::Settings(format!(
            "pattern '{text}' is no run of names' parts, such as lm_head or layers.*.mlp"
        )))
    }

    /// Whether a path holds the run.
    pub fn matches(&self, path: &str) -> bool {
        let wanted = self.0.split('.').collect::<Vec<_>>();
        let parts = path.split('.').collect::<Vec<_>>();
        let fits = |run: &[&str]| wanted.iter().zip(run).all(|(w, part)| part_matches(w, part));
        parts.windows(wanted.len()).any(fits)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A part with `*` for any characters.
fn part_matches(wanted: &str, part: &str) -> bool {
    let mut pieces = wanted.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = part.strip_prefix(first) else { return false };
    let Some(last) = pieces.next_back() else { return rest.is_empty() };
    for piece in pieces {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_runs_of_whole_parts() {
        let check = |pattern: &str, path: &str, wanted: bool| {
            assert_eq!(Pattern::new(pattern).unwrap().matches(path), wanted, "{pattern} {path}");
        };
        let path = "model.layers.1.self_attn.v_proj";
        check("v_proj", path, true);
        check("proj", path, false);
        check("*proj", path, true);
        check("layers.1", path, true);
        check("layers.1", "model.layers.10.self_attn.v_proj", false);
        check("layers.*.self_attn", path, true);
        check("layers.*.mlp", path, false);
        check("model.layers.1.self_attn.v_proj", path, true);
        check("self_*tn.v*j", path, true);
        check("v*v_proj", path, false);
        check("a*b*c", "xx.aabbc", true);
        check("model.layers.1.self_attn.v_proj.weight", path, false);
    }

    #[test]
    fn bad_patterns_and_codings_are_refused_with_what_is_allowed() {
        for text in ["", "a..b", "a/b", "mlp.", "ü"] {
            let error = Pattern::new(text).unwrap_err().to_string();
            assert!(error.contains("lm_head"), "{error}");
        }
        let check = |mode, bits, group_size, says: &str| {
            let coding = Quantization { mode, bits, group_size };
            let error = Settings::plain(Target::Codes(coding)).check().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        check(QuantMode::Affine, 7, 64, "[2, 3, 4, 5, 6, 8]");
        check(QuantMode::Affine, 4, 16, "[32, 64, 128]");
        check(QuantMode::Mxfp4, 4, 64, "[32]");
        check(QuantMode::Mxfp8, 4, 32, "[8]");
        check(QuantMode::Nvfp4, 4, 32, "[16]");
        let mixed = |mode, bits, high_bits| {
            let coding = Quantization { mode, bits, group_size: 32 };
            let recipe = Recipe::Mixed { high_bits };
            Settings { recipe, ..Settings::plain(Target::Codes(coding)) }.check()
        };
        assert!(mixed(QuantMode::Affine, 3, 6).is_ok());
        assert!(mixed(QuantMode::Affine, 3, 7).is_err());
        assert!(mixed(QuantMode::Mxfp4, 4, 4).is_err());
        let floats = Settings::plain(Target::Floats(Dtype::F16));
        assert!(floats.check().is_ok());
        let keep = vec![Pattern::new("lm_head").unwrap()];
        assert!(Settings { keep, ..floats }.check().is_err());
        assert!(Settings::plain(Target::Floats(Dtype::U8)).check().is_err());
    }
}
