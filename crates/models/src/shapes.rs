//! Known models' shapes: their config.json without their weights, built into the program.

use std::str::FromStr;

use mlx::{QuantMode, Quantization};

use crate::{Error, Result};

macro_rules! shapes {
    ($($name:literal),* $(,)?) => {
        /// The names that `shape:NAME:…` knows.
        pub const SHAPE_NAMES: &[&str] = &[$($name),*];

        /// The config.json of a shape.
        pub(crate) fn config(name: &str) -> Result<&'static str> {
            match name {
                $($name => Ok(include_str!(concat!("../../../bench/shapes/", $name, ".json"))),)*
                _ => Err(Error::UnknownShape { name: name.to_owned() }),
            }
        }
    };
}

shapes! {
    "qwen3-0.6b", "qwen3-8b", "qwen3-30b-a3b", "qwen3-next-80b-a3b", "qwen3.5-35b-a3b",
    "glm-4.7-flash", "gpt-oss-20b",
}

/// How a shape's random matrices are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShapeQuantization {
    /// Not at all.
    Bf16,
    /// Affine, 4 bits, group 64.
    Affine4,
    /// Affine, 8 bits, group 64.
    Affine8,
    /// E2M1 in groups of 32.
    Mxfp4,
}

impl ShapeQuantization {
    /// The coding of a matrix with rows of `n_in`; none where the group does not divide them, as
    /// MLX tools leave those.
    pub(crate) fn for_width(self, n_in: i32) -> Option<Quantization> {
        let quantization = match self {
            ShapeQuantization::Bf16 => return None,
            ShapeQuantization::Affine4 => {
                Quantization { mode: QuantMode::Affine, bits: 4, group_size: 64 }
            }
            ShapeQuantization::Affine8 => {
                Quantization { mode: QuantMode::Affine, bits: 8, group_size: 64 }
            }
            ShapeQuantization::Mxfp4 => {
                Quantization { mode: QuantMode::Mxfp4, bits: 4, group_size: 32 }
            }
        };
        (n_in % quantization.group_size == 0).then_some(quantization)
    }
}

impl FromStr for ShapeQuantization {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "bf16" => Ok(ShapeQuantization::Bf16),
            "4bit" => Ok(ShapeQuantization::Affine4),
            "8bit" => Ok(ShapeQuantization::Affine8),
            "mxfp4" => Ok(ShapeQuantization::Mxfp4),
            _ => Err(Error::Shape {
                name: format!("…:{name}"),
                reason: format!("quantization '{name}' is none of bf16, 8bit, 4bit, mxfp4"),
            }),
        }
    }
}
