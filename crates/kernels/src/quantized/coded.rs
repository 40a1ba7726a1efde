//! Quantized matrices as bytes: rows of codes, and what a code means.
//!
//! Every form whose codes are small integers is brought to one: w = code·scale + offset, with codes
//! that are unsigned (up to 6 bits) or signed bytes. E2M1 values are twice themselves plus 12, so
//! that they are 0..=24.

use mlx::{Dtype, QuantMode, Quantization, TensorRef};

use super::activations::{BLOCK, LANES};
use crate::cpu::{Failure, Floats};

/// Scales or offsets.
#[derive(Clone, Copy)]
enum Numbers<'a> {
    Floats(Floats<'a>),
    /// Powers of two.
    E8m0(&'a [u8]),
    E4m3(&'a [u8]),
}

/// A matrix, or a stack of them one after another.
pub(super) struct Coded<'a> {
    codes: &'a [u8],
    scales: Numbers<'a>,
    biases: Option<Floats<'a>>,
    quantization: Quantization,
    /// Weights of a row.
    pub n_in: usize,
    /// Rows of one matrix.
    pub n_out: usize,
    /// Matrices.
    pub n_matrices: usize,
}

/// The 16 E2M1 values.
const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The same as codes: twice the value, plus 12.
pub(super) const E2M1_CODES: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// The value of an E4M3 byte: no infinities, one NaN.
pub(super) fn e4m3(byte: u8) -> f32 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction * 2f32.powi(-9),
        _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 128 == 0 { magnitude } else { -magnitude }
}

/// 2^(byte − 127); 255 is no number.
pub(super) fn e8m0(byte: u8) -> f32 {
    match byte {
        255 => f32::NAN,
        0 => f32::from_bits(1 << 22),
        _ => f32::from_bits(u32::from(byte) << 23),
    }
}

impl<'a> Coded<'a> {
    /// Codes, scales and, of affine matrices, biases, with shapes that were checked.
    pub fn new(tensors: &[TensorRef<'a>], quantization: Quantization) -> Result<Self, Failure> {
        let shape = tensors[0].shape;
        let (packed, rows) = (shape[shape.len() - 1] as usize, &shape[..shape.len() - 1]);
        let scales = match (quantization.mode, tensors[1].dtype) {
            (QuantMode::Affine, _) => Numbers::Floats(Floats::new(&tensors[1])?),
            (QuantMode::Mxfp4 | QuantMode::Mxfp8, Dtype::U8) => Numbers::E8m0(tensors[1].bytes()),
            (QuantMode::Nvfp4, Dtype::U8) => Numbers::E4m3(tensors[1].bytes()),
            (mode, dtype) => return Err(format!("scales of {mode} in {dtype}")),
        };
        Ok(Self {
            codes: tensors[0].bytes(),
            scales,
            biases: tensors.get(2).map(Floats::new).transpose()?,
            quantization,
            n_in: packed * 32 / quantization.bits as usize,
            n_out: rows.last().map_or(1, |n| *n as usize),
            n_matrices: rows.iter().rev().skip(1).map(|n| *n as usize).product(),
        })
    }

    /// Whether the codes are integers that the integer kernels take.
    pub fn is_integer(&self) -> bool {
        self.quantization.mode != QuantMode::Mxfp8
    }

    /// Whether the codes, as the kernels take them, are signed bytes.
    pub fn is_signed(&self) -> bool {
        self.quantization.bits == 8
    }

    /// Whether two codes share a byte, so that kernels split them in registers.
    pub fn is_nibbles(&self) -> bool {
        self.quantization.bits == 4
    }

    /// The table that nibbles go through.
    pub fn table(&self) -> Option<&'static [u8; 16]> {
        let is_e2m1 = matches!(self.quantization.mode, QuantMode::Mxfp4 | QuantMode::Nvfp4);
        is_e2m1.then_some(&E2M1_CODES)
    }

    /// Bits of a code.
    pub fn bits(&self) -> usize {
        self.quantization.bits as usize
    }

    /// Weights that share an offset, at most a block.
    pub fn unit(&self) -> usize {
        (self.quantization.group_size as usize).min(BLOCK)
    }

    /// Whether the lanes of a block differ in scale.
    pub fn has_lanes(&self) -> bool {
        self.unit() < BLOCK
    }

    /// The packed codes of a row, counted through the whole stack.
    pub fn packed(&self, row: usize) -> &'a [u8] {
        let n_bytes = self.n_in * self.bits() / 8;
        &self.codes[row * n_bytes..][..n_bytes]
    }

    fn groups(&self) -> usize {
        self.n_in / self.quantization.group_size as usize
    }

    /// The scales (and offsets) of a row's groups as they are stored.
    fn stored(&self, row: usize, scales: &mut [f32], biases: &mut [f32]) {
        let begin = row * self.groups();
        match self.scales {
            Numbers::Floats(floats) => floats.read(begin, scales),
            Numbers::E8m0(bytes) => {
                scales.iter_mut().zip(&bytes[begin..]).for_each(|(s, byte)| *s = e8m0(*byte));
            }
            Numbers::E4m3(bytes) => {
                scales.iter_mut().zip(&bytes[begin..]).for_each(|(s, byte)| *s = e4m3(*byte));
            }
        }
        match &self.biases {
            Some(floats) => floats.read(begin, biases),
            None => biases.fill(0.0),
        }
    }

    /// A row's scales, one for each block or one for each lane of each block, and its offsets, one
    /// for each unit, for codes as the integer kernels take them.
    #[inline(always)]
    pub fn numbers(&self, row: usize, scales: &mut [f32], offsets: &mut [f32], room: &mut [f32]) {
        let n_groups = self.groups();
        let (stored, biases) = room.split_at_mut(n_groups);
        let biases = &mut biases[..n_groups];
        self.stored(row, stored, biases);
        let (factor, shift) = match self.quantization.mode {
            QuantMode::Affine if self.is_signed() => (1.0, 128.0),
            QuantMode::Affine | QuantMode::Mxfp8 => (1.0, 0.0),
            QuantMode::Mxfp4 | QuantMode::Nvfp4 => (0.5, -12.0),
        };
        for (scale, bias) in stored.iter_mut().zip(&mut *biases) {
            *scale *= factor;
            *bias += shift * *scale;
        }
        let group_size = self.quantization.group_size as usize;
        if group_size == BLOCK {
            scales[..n_groups].copy_from_slice(stored);
            offsets[..n_groups].copy_from_slice(biases);
        } else if group_size > BLOCK {
            let share = group_size / BLOCK;
            for (i, (scale, bias)) in stored.iter().zip(&*biases).enumerate() {
                scales[i * share..][..share].fill(*scale);
                offsets[i * share..][..share].fill(*bias);
            }
        } else {
            let share = group_size / (BLOCK / LANES);
            for (i, scale) in stored.iter().enumerate() {
                scales[i * share..][..share].fill(*scale);
            }
            offsets[..n_groups].copy_from_slice(biases);
        }
    }

    /// A row's weights as floats.
    #[inline(always)]
    pub fn floats(&self, row: usize, to: &mut [f32], room: &mut [f32]) {
        let n_groups = self.groups();
        let (scales, biases) = room.split_at_mut(n_groups);
        let biases = &mut biases[..n_groups];
        self.stored(row, scales, biases);
        let packed = self.packed(row);
        let group_size = self.quantization.group_size as usize;
        let groups = to.chunks_mut(group_size).zip(scales.iter().zip(&*biases)).enumerate();
        match (self.quantization.mode, self.bits()) {
            (QuantMode::Mxfp8, _) => {
                for (g, (to, (scale, _))) in groups {
                    let codes = &packed[g * group_size..][..group_size];
                    to.iter_mut().zip(codes).for_each(|(to, code)| *to = e4m3(*code) * scale);
                }
            }
            (QuantMode::Mxfp4 | QuantMode::Nvfp4, _) => {
                for (g, (to, (scale, _))) in groups {
                    let codes = &packed[g * group_size / 2..][..group_size / 2];
                    for (to, code) in to.chunks_exact_mut(2).zip(codes) {
                        to[0] = E2M1[usize::from(code & 15)] * scale;
                        to[1] = E2M1[usize::from(code >> 4)] * scale;
                    }
                }
            }
            (QuantMode::Affine, 4) => {
                for (g, (to, (scale, bias))) in groups {
                    let codes = &packed[g * group_size / 2..][..group_size / 2];
                    for (to, code) in to.chunks_exact_mut(2).zip(codes) {
                        to[0] = f32::from(code & 15) * scale + bias;
                        to[1] = f32::from(code >> 4) * scale + bias;
                    }
                }
            }
            (QuantMode::Affine, bits) => {
                for (g, (to, (scale, bias))) in groups {
                    let codes = packed[g * group_size * bits / 8..].chunks_exact(bits);
                    for (to, eight) in to.chunks_exact_mut(8).zip(codes) {
                        let word = word(eight);
                        for (j, to) in to.iter_mut().enumerate() {
                            let code = (word >> (j * bits)) & ((1 << bits) - 1);
                            *to = code as f32 * scale + bias;
                        }
                    }
                }
            }
        }
    }
}

/// Up to eight bytes, the first lowest.
#[inline(always)]
pub(super) fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_floats_have_their_values() {
        for (code, value) in E2M1_CODES.iter().zip(E2M1) {
            assert_eq!(f32::from(*code), 2.0 * value + 12.0);
        }
        for (byte, value) in
            [(0x00, 0.0), (0x01, 1.0 / 512.0), (0x38, 1.0), (0xbc, -1.5), (0x7e, 448.0)]
        {
            assert_eq!(e4m3(byte), value, "{byte:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        assert_eq!((e8m0(127), e8m0(130), e8m0(0)), (1.0, 8.0, 2f32.powi(-127)));
        assert!(e8m0(255).is_nan());
    }
}
