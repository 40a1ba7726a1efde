//! Quantizing: what can be asked, which choices make sense, and what is told of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::request::RequestId;
use crate::sampling::InvalidField;

/// How a group of weights is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum CodingMode {
    /// q·scale + bias.
    Affine,
    /// E2M1 values with one E8M0 scale for 32.
    Mxfp4,
    /// E4M3 values with one E8M0 scale for 32.
    Mxfp8,
    /// E2M1 values with one E4M3 scale for 16.
    Nvfp4,
}

impl CodingMode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Affine, Self::Mxfp4, Self::Mxfp8, Self::Nvfp4];

    /// As config.json has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Mxfp8 => "mxfp8",
            Self::Nvfp4 => "nvfp4",
        }
    }

    /// The bits that it has.
    fn bits(self) -> &'static [u32] {
        match self {
            Self::Affine => &[2, 3, 4, 5, 6, 8],
            Self::Mxfp4 | Self::Nvfp4 => &[4],
            Self::Mxfp8 => &[8],
        }
    }

    /// Weights that may share a scale.
    fn group_sizes(self) -> &'static [u32] {
        match self {
            Self::Affine => &[32, 64, 128],
            Self::Mxfp4 | Self::Mxfp8 => &[32],
            Self::Nvfp4 => &[16],
        }
    }

    /// The usual coding of this mode.
    pub fn usual(self) -> Coding {
        let (bits, group_size) = match self {
            Self::Affine => (4, 64),
            other => (other.bits()[0], other.group_sizes()[0]),
        };
        Coding { mode: self, bits, group_size }
    }
}

impl FromStr for CodingMode {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == name);
        found.ok_or_else(|| format!("'{name}' is none of affine, mxfp4, mxfp8, nvfp4"))
    }
}

/// A mode with its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Coding {
    /// The mode.
    pub mode: CodingMode,
    /// Bits of a weight, without scales.
    pub bits: u32,
    /// Weights that share a scale.
    pub group_size: u32,
}

impl Coding {
    /// Whether MLX has it.
    pub fn validate(self) -> Result<(), InvalidField> {
        let check = |field, value: u32, allowed: &[u32]| match allowed.contains(&value) {
            true => Ok(()),
            false => {
                let list = allowed.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
                let mode = self.mode.name();
                let reason = format!("must be one of {list} for {mode}, not {value}");
                Err(InvalidField::new(field, reason))
            }
        };
        check("bits", self.bits, self.mode.bits())?;
        check("group_size", self.group_size, self.mode.group_sizes())
    }
}

/// A dtype of floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum FloatType {
    /// 8 bits of exponent.
    Bf16,
    /// 5 bits of exponent.
    F16,
    /// 32 bits.
    F32,
}

impl fmt::Display for FloatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
        })
    }
}

impl FromStr for FloatType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all = [Self::Bf16, Self::F16, Self::F32];
        let found = all.into_iter().find(|dtype| dtype.to_string() == name);
        found.ok_or_else(|| format!("'{name}' is none of bf16, f16, f32"))
    }
}

/// What becomes of matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum QuantizeTarget {
    /// Codes.
    Codes(Coding),
    /// Floats: no quantization, or the end of one.
    Floats(FloatType),
}

/// Write a model anew, with its matrices in codes or in floats. Asked of a runner without a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct QuantizeRequest {
    /// The request's name in every event about it.
    pub id: RequestId,
    /// Absolute path of a folder in Hugging Face layout.
    pub source: String,
    /// Absolute path of the folder to be made.
    pub target: String,
    /// The default.
    pub coding: QuantizeTarget,
    /// Bits of the matrices that a mixed recipe gives more to; `None`: no such recipe.
    pub high_bits: Option<u32>,
    /// Patterns of matrices that stay in floats.
    pub keep: Vec<String>,
    /// Patterns of matrices with a coding of their own; the last that matches counts.
    pub at: Vec<(String, Coding)>,
    /// Dtype of floats and scales; `None`: the source's own.
    pub dtype: Option<FloatType>,
    /// Replace a model that stands at the target.
    pub overwrites: bool,
}

impl QuantizeRequest {
    /// Checks what can be known without a model.
    pub fn validate(&self) -> Result<(), InvalidField> {
        for (_, coding) in &self.at {
            coding.validate().map_err(|e| InvalidField::new("at", e.to_string()))?;
        }
        let alone = |field: &'static str, is_given: bool, dtype: FloatType| match is_given {
            true => {
                let reason = format!("has no meaning where everything becomes {dtype}");
                Err(InvalidField::new(field, reason))
            }
            false => Ok(()),
        };
        match (self.coding, self.high_bits) {
            (QuantizeTarget::Codes(coding), None) => coding.validate(),
            (QuantizeTarget::Codes(coding), Some(bits)) => {
                if coding.mode != CodingMode::Affine {
                    let reason = format!("is mixed, which is affine, not {}", coding.mode.name());
                    return Err(InvalidField::new("recipe", reason));
                }
                coding.validate()?;
                Coding { bits, ..coding }.validate()
            }
            (QuantizeTarget::Floats(dtype), high_bits) => {
                alone("recipe", high_bits.is_some(), dtype)?;
                alone("keep", !self.keep.is_empty(), dtype)?;
                alone("at", !self.at.is_empty(), dtype)?;
                alone("dtype", self.dtype.is_some(), dtype)
            }
        }
    }
}

/// How far a quantization is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct QuantizeProgress {
    /// Which request.
    pub id: RequestId,
    /// Bytes of the source that are done.
    pub done_bytes: u64,
    /// Bytes of the source.
    pub total_bytes: u64,
    /// Files of weights that are finished: they stay when the run is stopped.
    pub done_shards: u32,
    /// Files of weights in all.
    pub n_shards: u32,
}

/// The tensors of one role, such as experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct RoleReport {
    /// Its name.
    pub role: String,
    /// Tensors; codes with their scales are one.
    pub n_tensors: u64,
    /// Weights in them.
    pub n_weights: u64,
    /// Bytes written.
    pub n_bytes: u64,
    /// Bits of a weight, scales included.
    pub bits_per_weight: f64,
    /// √(Σ(output − source)² / Σ source²) of each tensor, averaged by weights.
    pub relative_rms_error: f64,
}

/// What a quantization has made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct QuantizeReport {
    /// Which request.
    pub id: RequestId,
    /// The family as the model's config names it.
    pub family: String,
    /// The default coding in words.
    pub coding: String,
    /// By role.
    pub roles: Vec<RoleReport>,
    /// Weights of the model.
    pub n_weights: u64,
    /// Bits of a weight, scales included.
    pub bits_per_weight: f64,
    /// Size of the source's files of weights.
    pub source_bytes: u64,
    /// Size of the output's.
    pub target_bytes: u64,
    /// Files of weights.
    pub n_shards: u32,
    /// Those that an earlier run had finished.
    pub n_resumed_shards: u32,
    /// Matrices that stay in floats, and why.
    pub floats: Vec<(String, String)>,
    /// What else is to be said.
    pub notes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(coding: QuantizeTarget) -> QuantizeRequest {
        QuantizeRequest {
            id: RequestId(1),
            source: "/a".into(),
            target: "/b".into(),
            coding,
            high_bits: None,
            keep: vec![],
            at: vec![],
            dtype: None,
            overwrites: false,
        }
    }

    #[test]
    fn the_usual_codings_are_valid_and_others_are_refused_with_what_is_allowed() {
        for mode in CodingMode::ALL {
            assert_eq!(mode.name().parse(), Ok(mode));
            assert_eq!(mode.usual().validate(), Ok(()));
        }
        let check = |mode, bits, group_size, says: &str| {
            let error = Coding { mode, bits, group_size }.validate().unwrap_err().to_string();
            assert_eq!(error, says);
        };
        check(CodingMode::Affine, 7, 64, "bits must be one of 2, 3, 4, 5, 6, 8 for affine, not 7");
        check(
            CodingMode::Affine,
            4,
            16,
            "group_size must be one of 32, 64, 128 for affine, not 16",
        );
        check(CodingMode::Nvfp4, 4, 32, "group_size must be one of 16 for nvfp4, not 32");
        check(CodingMode::Mxfp8, 4, 32, "bits must be one of 8 for mxfp8, not 4");
        assert!("fp4".parse::<CodingMode>().unwrap_err().contains("mxfp4"));
        assert!("half".parse::<FloatType>().unwrap_err().contains("bf16, f16, f32"));
    }

    #[test]
    fn choices_that_contradict_each_other_name_their_field() {
        let check = |coding, field: &str, set: &dyn Fn(&mut QuantizeRequest)| {
            let mut request = request(coding);
            assert_eq!(request.validate(), Ok(()));
            set(&mut request);
            assert_eq!(request.validate().expect_err(field).field, field);
        };
        let affine = QuantizeTarget::Codes(CodingMode::Affine.usual());
        let mxfp4 = CodingMode::Mxfp4.usual();
        let floats = QuantizeTarget::Floats(FloatType::F16);
        check(affine, "bits", &|r| r.high_bits = Some(7));
        check(affine, "at", &|r| r.at = vec![("x".into(), Coding { bits: 8, ..mxfp4 })]);
        check(QuantizeTarget::Codes(mxfp4), "recipe", &|r| r.high_bits = Some(6));
        check(floats, "recipe", &|r| r.high_bits = Some(6));
        check(floats, "keep", &|r| r.keep = vec!["x".into()]);
        check(floats, "at", &|r| r.at = vec![("x".into(), mxfp4)]);
        check(floats, "dtype", &|r| r.dtype = Some(FloatType::F16));
    }
}
