//! How the next token is chosen, and which settings make sense.
//!
//! Order of application: logit bias, penalties, temperature, top-k, top-p, min-p, draw.

use serde::{Deserialize, Serialize};

/// Settings of the sampler for one request. The defaults are [`Sampling::greedy`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token and ignores the fields up to `min_p`.
    pub temperature: f32,
    /// Keep only the k most likely tokens; 0 is off.
    pub top_k: u32,
    /// Keep the smallest set of tokens whose probabilities reach this sum; 1 is off.
    pub top_p: f32,
    /// Drop tokens below this share of the most likely token's probability; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens already seen; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every token already seen; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted per occurrence from the logit of every token already seen; 0 is off.
    pub frequency_penalty: f32,
    /// How many of the last tokens (prompt and answer) the penalties look back on; 0 is all.
    pub penalty_window_tokens: u32,
    /// Added to the logits of single tokens: (token id, bias).
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the request's own random stream: same seed, same request, same tokens.
    pub seed: u64,
}

/// A field whose value cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {reason}")]
pub struct InvalidField {
    /// The field's name as it is in the protocol.
    pub field: &'static str,
    /// What is wrong with it, and the range that is right.
    pub reason: String,
}

impl InvalidField {
    pub(crate) fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self { field, reason: reason.into() }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self::greedy()
    }
}

impl Sampling {
    /// Always the most likely token; every other setting off.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window_tokens: 0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }

    /// Whether the most likely token is taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks every field's range; NaN and infinities are refused everywhere.
    pub fn validate(&self) -> Result<(), InvalidField> {
        // (field, value, whether it is in range, the range in words)
        let t = self.temperature;
        let (p, m, r) = (self.top_p, self.min_p, self.repetition_penalty);
        let checks = [
            ("temperature", t, t >= 0.0, "at least 0"),
            ("top_p", p, p > 0.0 && p <= 1.0, "above 0 and at most 1"),
            ("min_p", m, (0.0..=1.0).contains(&m), "from 0 to 1"),
            ("repetition_penalty", r, r > 0.0, "above 0"),
            ("presence_penalty", self.presence_penalty, true, "a finite number"),
            ("frequency_penalty", self.frequency_penalty, true, "a finite number"),
        ];
        for (field, value, in_range, range) in checks {
            if !value.is_finite() || !in_range {
                return Err(InvalidField::new(field, format!("must be {range}, not {value}")));
            }
        }
        for (token, bias) in &self.logit_bias {
            if !bias.is_finite() {
                let reason = format!("must hold finite numbers, not {bias} for token {token}");
                return Err(InvalidField::new("logit_bias", reason));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_is_valid() {
        assert_eq!(Sampling::greedy().validate(), Ok(()));
        assert!(Sampling::default().is_greedy());
    }

    #[test]
    fn every_bad_value_names_its_field() {
        let check = |field: &str, set: &dyn Fn(&mut Sampling, f32), bad: &[f32]| {
            for &value in bad.iter().chain(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) {
                let mut sampling = Sampling::greedy();
                set(&mut sampling, value);
                let error = sampling.validate().expect_err(field);
                assert_eq!(error.field, field, "{value}");
            }
        };
        check("temperature", &|s, v| s.temperature = v, &[-0.1]);
        check("top_p", &|s, v| s.top_p = v, &[0.0, -0.5, 1.01]);
        check("min_p", &|s, v| s.min_p = v, &[-0.01, 1.01]);
        check("repetition_penalty", &|s, v| s.repetition_penalty = v, &[0.0, -1.0]);
        check("presence_penalty", &|s, v| s.presence_penalty = v, &[]);
        check("frequency_penalty", &|s, v| s.frequency_penalty = v, &[]);
        check("logit_bias", &|s, v| s.logit_bias = vec![(3, v)], &[]);
    }
}
