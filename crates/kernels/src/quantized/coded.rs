//! Quantized matrices as bytes: rows of codes, and what a code means.
//!
//! Every form whose codes are small integers is brought to one: w = code·scale + offset, with codes
//! that are unsigned (up to 6 bits) or signed bytes. E2M1 values are twice themselves plus 12, so
//! that they are 0..=24.

use mlx::{Dtype, QuantMode, Quantization, TensorRef};

use super::activations::{BLOCK, LANES, n_sums};
use super::tile::Stored;
use crate::cpu::{Failure, Floats, for_processor, madd, part, prefetch};

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

/// The 16 E2M1 values as codes: twice the value, plus 12.
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
        self.packed_rows(row, 1)
    }

    /// The packed codes of `n` rows from row `first` on.
    pub fn packed_rows(&self, first: usize, n: usize) -> &'a [u8] {
        let n_bytes = self.n_in * self.bits() / 8;
        &self.codes[first * n_bytes..][..n * n_bytes]
    }

    /// `n` rows from row `first` on as they are stored, if they are what [`Stored`] is.
    pub fn stored(&self, first: usize, n: usize) -> Option<Stored<'a>> {
        let q = self.quantization;
        let fits = q.mode == QuantMode::Affine && q.bits == 4 && q.group_size as usize == BLOCK;
        let (Numbers::Floats(Floats::Bf16(scales)), Some(Floats::Bf16(biases))) =
            (self.scales, self.biases)
        else {
            return None;
        };
        if !fits || !self.n_in.is_multiple_of(Stored::EIGHT * BLOCK) {
            return None;
        }
        let groups = 2 * first * self.groups()..2 * (first + n) * self.groups();
        Some(Stored {
            codes: self.packed_rows(first, n),
            scales: &scales[groups.clone()],
            biases: &biases[groups],
        })
    }

    fn groups(&self) -> usize {
        self.n_in / self.quantization.group_size as usize
    }

    /// Asks for the scales and offsets of `n` rows from row `first` on, which will be read soon.
    pub fn prefetch_scalings(&self, first: usize, n: usize) {
        let (begin, n) = (first * self.groups(), n * self.groups());
        match self.scales {
            Numbers::Floats(floats) => floats.prefetch(begin, n),
            Numbers::E8m0(bytes) | Numbers::E4m3(bytes) => prefetch(part(bytes, begin, n)),
        }
        if let Some(biases) = self.biases {
            biases.prefetch(begin, n);
        }
    }

    /// Scales and offsets from group `begin` on as they are stored.
    #[inline(always)]
    fn read(&self, begin: usize, scales: &mut [f32], biases: &mut [f32]) {
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

    /// The same for codes as the kernels take them.
    #[inline(always)]
    fn changed(&self, begin: usize, scales: &mut [f32], biases: &mut [f32]) {
        self.read(begin, scales, biases);
        let (factor, shift) = match self.quantization.mode {
            QuantMode::Affine if self.is_signed() => (1.0, 128.0),
            QuantMode::Affine | QuantMode::Mxfp8 => return,
            QuantMode::Mxfp4 | QuantMode::Nvfp4 => (0.5, -12.0),
        };
        for (scale, bias) in scales.iter_mut().zip(biases) {
            *scale *= factor;
            *bias += shift * *scale;
        }
    }
}

/// Scales and offsets of some rows, for codes as the kernels take them.
#[derive(Default)]
pub(super) struct Scalings {
    /// Of each row: one for each block, or one for each lane of each block.
    scales: Vec<f32>,
    /// Of each row: one for each unit, with zeros up to whole vectors.
    offsets: Vec<f32>,
    n_scales: usize,
    n_offsets: usize,
    room: Vec<f32>,
}

impl Scalings {
    #[cfg(test)]
    pub fn of(scales: Vec<f32>, offsets: Vec<f32>, n: usize) -> Self {
        let (n_scales, n_offsets) = (scales.len() / n, offsets.len() / n);
        Self { scales, offsets, n_scales, n_offsets, room: Vec::new() }
    }

    /// Reads those of `n` rows from row `first` on.
    pub fn read(&mut self, coded: &Coded<'_>, first: usize, n: usize) {
        let n_blocks = coded.n_in.div_ceil(BLOCK);
        self.n_scales = n_blocks * if coded.has_lanes() { LANES } else { 1 };
        self.n_offsets = n_sums(coded.n_in, coded.unit());
        let n_groups = coded.groups();
        if self.scales.len() < n * self.n_scales {
            self.scales.resize(n * self.n_scales, 0.0);
        }
        if self.offsets.len() < n * self.n_offsets {
            self.offsets.resize(n * self.n_offsets, 0.0);
        }
        if self.room.len() < 2 * n * n_groups {
            self.room.resize(2 * n * n_groups, 0.0);
        }
        read(coded, first, n, self);
    }

    /// The scales of row `i` of those that were read.
    pub fn scales(&self, i: usize) -> &[f32] {
        &self.scales[i * self.n_scales..][..self.n_scales]
    }

    /// The offsets of row `i` of those that were read.
    pub fn offsets(&self, i: usize) -> &[f32] {
        &self.offsets[i * self.n_offsets..][..self.n_offsets]
    }
}

for_processor! {
    /// Fills rows that have room.
    read = read_body(coded: &Coded<'_>, first: usize, n: usize, to: &mut Scalings)
}

#[inline(always)]
fn read_body<const FUSED: bool>(coded: &Coded<'_>, first: usize, n: usize, to: &mut Scalings) {
    let (n_groups, group_size) = (coded.groups(), coded.quantization.group_size as usize);
    let n_all = n * n_groups;
    if group_size == BLOCK && to.n_offsets == n_groups {
        coded.changed(first * n_groups, &mut to.scales[..n_all], &mut to.offsets[..n_all]);
        return;
    }
    let (stored, biases) = to.room[..2 * n_all].split_at_mut(n_all);
    coded.changed(first * n_groups, stored, biases);
    let rows = stored.chunks(n_groups).zip(biases.chunks(n_groups));
    let targets = to.scales.chunks_mut(to.n_scales).zip(to.offsets.chunks_mut(to.n_offsets));
    for ((stored, biases), (scales, offsets)) in rows.zip(targets) {
        let n_written = match (group_size / (BLOCK / LANES)).min(LANES) {
            _ if group_size > BLOCK => {
                let share = group_size / BLOCK;
                for (i, (scale, bias)) in stored.iter().zip(biases).enumerate() {
                    scales[i * share..][..share].fill(*scale);
                    offsets[i * share..][..share].fill(*bias);
                }
                (n_groups * share, n_groups * share)
            }
            2 => (spread::<2>(stored, scales), copy(biases, offsets)),
            4 => (spread::<4>(stored, scales), copy(biases, offsets)),
            _ => (copy(stored, scales), copy(biases, offsets)),
        };
        scales[n_written.0..].fill(0.0);
        offsets[n_written.1..].fill(0.0);
    }
}

/// Every value N times.
#[inline(always)]
fn spread<const N: usize>(from: &[f32], to: &mut [f32]) -> usize {
    for (value, to) in from.iter().zip(to.chunks_exact_mut(N)) {
        to.copy_from_slice(&[*value; N]);
    }
    N * from.len()
}

#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) -> usize {
    to[..from.len()].copy_from_slice(from);
    from.len()
}

for_processor! {
    /// Unpacked codes of a row as floats, in the same order.
    floats = floats_body(coded: &Coded<'_>, codes: &[u8], by: (&[f32], &[f32]), to: &mut [f32])
}

impl Coded<'_> {
    /// Unpacked codes of a row as floats, in the same order; `scalings` hold the row as `i`.
    pub fn floats(&self, codes: &[u8], scalings: &Scalings, i: usize, to: &mut [f32]) {
        floats(self, codes, (scalings.scales(i), scalings.offsets(i)), to);
    }
}

#[inline(always)]
fn floats_body<const FUSED: bool>(
    coded: &Coded<'_>,
    codes: &[u8],
    (scales, offsets): (&[f32], &[f32]),
    to: &mut [f32],
) {
    let lanes_per_unit = coded.unit() / (BLOCK / LANES);
    let blocks = codes.chunks_exact(BLOCK).zip(to.chunks_exact_mut(BLOCK));
    for (b, (codes, to)) in blocks.enumerate() {
        let (mut scale, mut offset) = ([0.0f32; LANES], [0.0f32; LANES]);
        for l in 0..LANES {
            scale[l] = if coded.has_lanes() { scales[b * LANES + l] } else { scales[b] };
            offset[l] = offsets[(b * LANES + l) / lanes_per_unit];
        }
        if coded.quantization.mode == QuantMode::Mxfp8 {
            for (i, (to, code)) in to.iter_mut().zip(codes).enumerate() {
                *to = E4M3[usize::from(code ^ 128)] * scale[i % 32 / 4];
            }
            continue;
        }
        for half in 0..2 {
            for l in 0..LANES {
                let at = 32 * half + 4 * l;
                for i in at..at + 4 {
                    let code =
                        if coded.is_signed() { codes[i] as i8 as f32 } else { f32::from(codes[i]) };
                    to[i] = madd::<FUSED>(code, scale[l], offset[l]);
                }
            }
        }
    }
}

/// The value of every E4M3 byte.
static E4M3: std::sync::LazyLock<[f32; 256]> =
    std::sync::LazyLock::new(|| std::array::from_fn(|byte| e4m3(byte as u8)));

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
        let magnitudes = [0.0f32, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let values = magnitudes.into_iter().chain(magnitudes.map(|m| -m));
        for (code, value) in E2M1_CODES.iter().zip(values) {
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
