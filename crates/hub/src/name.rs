//! Names from outside: identifiers, never paths.

use std::fmt;

use crate::error::HubError;

const MAX_PART_BYTES: usize = 96;

/// A name in the store: `name` or `org/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelName(String);

/// `shape:NAME:QUANT`: random weights in a known model's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeName {
    /// Which shape, e.g. `qwen3-8b`. Whether it exists is known to the runner.
    pub name: String,
    /// How its weights are stored.
    pub quantization: Quantization,
}

/// Weight formats that a shape can be made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// Not quantized.
    Bf16,
    /// 8-bit groups.
    EightBit,
    /// 4-bit groups.
    FourBit,
    /// OCP microscaling 4-bit floats.
    Mxfp4,
}

impl ModelName {
    /// Takes `name` or `org/name` of letters, digits, `.`, `_` and `-`; no part begins with a dot.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let parts: Vec<_> = text.split('/').collect();
        let reason = if parts.len() > 2 {
            Some("it has more than one slash".to_owned())
        } else {
            parts.iter().find_map(|part| broken_rule(part))
        };
        match reason {
            None => Ok(Self(text.to_owned())),
            Some(reason) => Err(HubError::InvalidName { name: text.to_owned(), reason }),
        }
    }

    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn broken_rule(part: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if part.is_empty() {
        Some("a part of it is empty".into())
    } else if part.len() > MAX_PART_BYTES {
        Some(format!("a part of it is longer than {MAX_PART_BYTES} characters"))
    } else if part.starts_with('.') {
        Some("a part of it begins with a dot".into())
    } else {
        let c = part.chars().find(|&c| !allowed(c))?;
        Some(format!("it holds {c:?}; letters, digits, '.', '_' and '-' are allowed"))
    }
}

impl ShapeName {
    /// The prefix that tells a shape from a name.
    pub const PREFIX: &str = "shape:";

    /// Takes what follows the prefix: `NAME:QUANT`.
    pub(crate) fn parse(rest: &str) -> Result<Self, HubError> {
        let invalid = |reason: String| HubError::InvalidName {
            name: format!("{}{rest}", Self::PREFIX),
            reason,
        };
        let formats = Quantization::ALL.map(Quantization::as_str).join(", ");
        let (name, quantization) = rest.split_once(':').ok_or_else(|| {
            invalid(format!("a shape is written shape:NAME:QUANT, QUANT one of {formats}"))
        })?;
        if let Some(reason) = broken_rule(name) {
            return Err(invalid(reason));
        }
        let known = Quantization::ALL.into_iter().find(|known| known.as_str() == quantization);
        let quantization =
            known.ok_or_else(|| invalid(format!("{quantization:?} is not one of {formats}")))?;
        Ok(Self { name: name.to_owned(), quantization })
    }
}

impl Quantization {
    const ALL: [Self; 4] = [Self::Bf16, Self::EightBit, Self::FourBit, Self::Mxfp4];

    /// As it is written in an argument.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::EightBit => "8bit",
            Self::FourBit => "4bit",
            Self::Mxfp4 => "mxfp4",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_identifiers() {
        for good in ["demo", "Qwen3-0.6B", "org/name_1", "a"] {
            assert_eq!(ModelName::parse(good).unwrap().as_str(), good);
        }
        let long = "x".repeat(97);
        let bad = [
            "",
            "/",
            "a/",
            "/a",
            "..",
            "../a",
            "a/..",
            "a/../b",
            "a/b/c",
            ".hidden",
            "a/.b",
            "a b",
            "a\0b",
            "a\nb",
            "a\\b",
            "C:",
            "ä",
            "~",
            "a\u{202e}b",
            &long,
        ];
        for bad in bad {
            assert!(ModelName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn shapes_name_a_known_format() {
        let shape = ShapeName::parse("qwen3-8b:4bit").unwrap();
        assert_eq!((shape.name.as_str(), shape.quantization.as_str()), ("qwen3-8b", "4bit"));
        for (bad, says) in [
            ("qwen3-8b", "shape:NAME:QUANT"),
            ("qwen3-8b:5bit", "bf16, 8bit, 4bit, mxfp4"),
            ("../x:4bit", "begins with a dot"),
            (":4bit", "empty"),
        ] {
            let error = ShapeName::parse(bad).unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }
}
