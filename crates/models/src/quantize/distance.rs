//! How far codes are from the values that they stand for, by the written format alone: what is
//! measured is what any reader of the file will see.

use mlx::{Array, QuantMode, Quantization, Quantized};

use crate::Result;

/// Sums over values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Distance {
    squares: f64,
    of_squares: f64,
}

impl Distance {
    /// √(Σ(code − value)² / Σ value²).
    pub fn relative(self) -> f64 {
        if self.squares == 0.0 { 0.0 } else { (self.squares / self.of_squares).sqrt() }
    }

    /// Whether all values were finite: the squares of finite ones have a sum.
    pub fn is_finite(self) -> bool {
        self.of_squares.is_finite()
    }

    /// With the sums of another part.
    pub fn plus(self, other: Distance) -> Self {
        Self {
            squares: self.squares + other.squares,
            of_squares: self.of_squares + other.of_squares,
        }
    }

    /// Of two equally long lists.
    pub fn between(found: impl Iterator<Item = f32>, values: &[f32]) -> Self {
        let add = |sums: Distance, (found, value): (f32, &f32)| {
            let (found, value) = (f64::from(found), f64::from(*value));
            Distance {
                squares: sums.squares + (found - value) * (found - value),
                of_squares: sums.of_squares + value * value,
            }
        };
        found.zip(values).fold(Distance::default(), add)
    }
}

/// Codes in plain memory, which other threads may read.
#[derive(Debug)]
pub(super) struct PlainCodes {
    /// Little-endian words.
    pub words: Vec<u8>,
    /// One for each group.
    scales: Vec<f32>,
    /// Affine only.
    biases: Option<Vec<f32>>,
    quantization: Quantization,
}

impl PlainCodes {
    /// Copies them.
    pub fn of(codes: &Quantized) -> Result<Self> {
        let scales = match codes.quantization.mode {
            QuantMode::Affine => codes.scales.to_f32_vec()?,
            QuantMode::Mxfp4 | QuantMode::Mxfp8 => decoded(&codes.scales, e8m0)?,
            QuantMode::Nvfp4 => decoded(&codes.scales, e4m3)?,
        };
        Ok(Self {
            words: codes.weight.to_bytes()?,
            scales,
            biases: codes.biases.as_ref().map(Array::to_f32_vec).transpose()?,
            quantization: codes.quantization,
        })
    }

    /// Whether scales and offsets are numbers.
    pub fn are_finite(&self) -> bool {
        self.scales.iter().chain(self.biases.iter().flatten()).all(|scale| scale.is_finite())
    }

    /// Of the codes from the values that they were made of.
    pub fn distance(&self, values: &[f32]) -> Distance {
        match self.quantization.mode {
            QuantMode::Affine => self.by(values, |code| code as f32),
            QuantMode::Mxfp4 | QuantMode::Nvfp4 => {
                self.by(values, |code| E2M1[code as usize % E2M1.len()])
            }
            QuantMode::Mxfp8 => {
                let table = (0..=u8::MAX).map(e4m3).collect::<Vec<_>>();
                self.by(values, |code| table[code as usize % table.len()])
            }
        }
    }

    /// Groups fill whole words in every coding.
    fn by(&self, values: &[f32], decode: impl Fn(u32) -> f32) -> Distance {
        let Quantization { bits, group_size, .. } = self.quantization;
        let (bits, n) = (bits as u32, group_size as usize);
        let groups = values.chunks(n).zip(self.words.chunks(n * bits as usize / 8));
        let mut sums = Distance::default();
        for (g, (values, words)) in groups.enumerate() {
            let scale = self.scales[g];
            let bias = self.biases.as_ref().map_or(0.0, |biases| biases[g]);
            let mut words = words.chunks_exact(4);
            let (mut ahead, mut n_ahead) = (0u64, 0);
            let codes = std::iter::from_fn(|| {
                if n_ahead < bits {
                    let word = words.next()?.try_into().expect("chunks of four");
                    ahead |= u64::from(u32::from_le_bytes(word)) << n_ahead;
                    n_ahead += 32;
                }
                let code = (ahead & ((1 << bits) - 1)) as u32;
                (ahead, n_ahead) = (ahead >> bits, n_ahead - bits);
                Some(decode(code) * scale + bias)
            });
            sums = sums.plus(Distance::between(codes, values));
        }
        sums
    }
}

fn decoded(scales: &Array, decode: fn(u8) -> f32) -> Result<Vec<f32>> {
    Ok(scales.to_bytes()?.into_iter().map(decode).collect())
}

/// A sign, then 0, ½, 1, 1½, 2, 3, 4, 6.
const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// A power of two.
fn e8m0(code: u8) -> f32 {
    if code == u8::MAX { f32::NAN } else { f32::exp2(f32::from(code) - 127.0) }
}

/// Sign, 4 bits of exponent around 7, 3 of mantissa; no infinities.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * f32::exp2(-6.0),
        _ => (1.0 + mantissa / 8.0) * f32::exp2((exponent - 7) as f32),
    };
    if code & 128 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlx::{Device, Dtype, Key};

    #[test]
    fn codes_are_read_as_mlx_reads_them() {
        Device::open().unwrap();
        let values = Key::from_seed(3).unwrap().normal(&[6, 384], Dtype::F32).unwrap();
        let mut codings =
            vec![(QuantMode::Mxfp4, 4, 32), (QuantMode::Mxfp8, 8, 32), (QuantMode::Nvfp4, 4, 16)];
        for bits in [2, 3, 4, 5, 6, 8] {
            codings.extend([32, 64, 128].map(|group_size| (QuantMode::Affine, bits, group_size)));
        }
        for (mode, bits, group_size) in codings {
            let quantization = Quantization { mode, bits, group_size };
            let codes = values.quantize(quantization).unwrap();
            let plain = PlainCodes::of(&codes).unwrap();
            assert!(plain.are_finite());
            let by_mlx = codes.dequantize(Dtype::F32).unwrap().to_f32_vec().unwrap();
            // No distance from what MLX makes of the codes, but for a fused product and sum.
            assert!(plain.distance(&by_mlx).relative() < 1e-6, "{quantization:?}");
            let values = values.to_f32_vec().unwrap();
            let wanted = Distance::between(by_mlx.into_iter(), &values).relative();
            let found = plain.distance(&values).relative();
            assert!(wanted > 1e-3 && (found - wanted).abs() < 1e-5 * wanted, "{quantization:?}");
        }
    }

    #[test]
    fn one_value_that_is_not_finite_shows_in_the_sums() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!Distance::between([1.0, 1.0].into_iter(), &[1.0, bad]).is_finite());
        }
        let largest = Distance::between([0.0].into_iter().cycle(), &[f32::MAX; 1000]);
        assert!(largest.is_finite());
        assert_eq!(Distance::between([2.0, -1.0].into_iter(), &[2.0, -1.0]).relative(), 0.0);
        assert_eq!(Distance::between([3.0, 0.0].into_iter(), &[3.0, 4.0]).relative(), 0.8);
    }
}
