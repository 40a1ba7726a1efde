//! Rows of activations as 8-bit integers, laid out as the kernels' registers want them.
//!
//! A block is 64 elements; its elements of even and of odd index lie in two halves of 32 bytes, as
//! the low and the high nibbles of packed 4-bit codes do. Eight neighbours share a scale: they are
//! the eight that one 32-bit lane of the sums adds up, so that finer scales than those of the
//! weights cost one multiplication per block. The rounding error of a normal vector is 0.3 %.

use crate::cpu::{each, for_processor};

/// Elements of a block.
pub(super) const BLOCK: usize = 64;
/// Sums of a block's lanes.
pub(super) const LANES: usize = 8;

/// Some rows.
pub(super) struct Activations {
    /// Blocks of a row; the last may be filled up with zeros.
    pub n_blocks: usize,
    /// Elements that one offset of the weights applies to: 16, 32 or 64.
    unit: usize,
    /// Sums of a row, with zeros up to whole vectors.
    n_sums: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<f32>,
}

/// One row.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    /// 64 for each block.
    pub codes: &'a [i8],
    /// 8 for each block.
    pub scales: &'a [f32],
    /// The sum of the rounded values of every unit.
    pub sums: &'a [f32],
}

/// How many sums a row of `n` elements has, in whole vectors.
pub(super) fn n_sums(n: usize, unit: usize) -> usize {
    (n.div_ceil(BLOCK) * BLOCK / unit).next_multiple_of(LANES)
}

impl Activations {
    /// Rounds rows of `width`.
    pub fn new(x: &[f32], width: usize, unit: usize) -> Self {
        let n_rows = x.len() / width;
        let n_blocks = width.div_ceil(BLOCK);
        let n_sums = n_sums(width, unit);
        let mut made = Self {
            n_blocks,
            unit,
            n_sums,
            codes: vec![0; n_rows * n_blocks * BLOCK],
            scales: vec![0.0; n_rows * n_blocks * LANES],
            sums: vec![0.0; n_rows * n_sums],
        };
        let slices = made
            .codes
            .chunks_mut(n_blocks * BLOCK)
            .zip(made.scales.chunks_mut(n_blocks * LANES))
            .zip(made.sums.chunks_mut(n_sums))
            .zip(x.chunks(width))
            .map(|(((codes, scales), sums), x)| std::sync::Mutex::new((codes, scales, sums, x)))
            .collect::<Vec<_>>();
        let row = |i: usize| {
            if let Ok(mut slices) = slices[i].lock() {
                let (codes, scales, sums, x) = &mut *slices;
                round(x, unit, codes, scales, sums);
            }
        };
        if n_rows < 4 {
            (0..n_rows).for_each(row)
        } else {
            each(n_rows, &row)
        }
        drop(slices);
        made
    }

    /// Elements that share a sum.
    pub fn unit(&self) -> usize {
        self.unit
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> Row<'_> {
        Row {
            codes: &self.codes[i * self.n_blocks * BLOCK..][..self.n_blocks * BLOCK],
            scales: &self.scales[i * self.n_blocks * LANES..][..self.n_blocks * LANES],
            sums: &self.sums[i * self.n_sums..][..self.n_sums],
        }
    }
}

for_processor! {
    /// Rounds one row.
    round = round_body(
        x: &[f32], unit: usize, codes: &mut [i8], scales: &mut [f32], sums: &mut [f32]
    )
}

#[inline(always)]
fn round_body<const FUSED: bool>(
    x: &[f32],
    unit: usize,
    codes: &mut [i8],
    scales: &mut [f32],
    sums: &mut [f32],
) {
    // Adding and subtracting 1.5·2²³ rounds to an integer, half-way to the even one.
    const ROUND: f32 = 12_582_912.0;
    let per_unit = unit / 8;
    for (i, scale) in scales.iter_mut().enumerate() {
        let mut eight = [0.0f32; 8];
        let begin = (8 * i).min(x.len());
        let n = (x.len() - begin).min(8);
        eight[..n].copy_from_slice(&x[begin..begin + n]);
        let mut largest = [0.0f32; 8];
        for (m, v) in largest.iter_mut().zip(&eight) {
            *m = v.abs();
        }
        for half in [4, 2, 1] {
            for j in 0..half {
                largest[j] =
                    if largest[j + half] > largest[j] { largest[j + half] } else { largest[j] };
            }
        }
        *scale = largest[0] / 127.0;
        let inverse = if largest[0] > 0.0 { 127.0 / largest[0] } else { 0.0 };
        let mut rounded = [0.0f32; 8];
        for (r, v) in rounded.iter_mut().zip(&eight) {
            *r = (v * inverse + ROUND) - ROUND;
        }
        let mut sum = rounded;
        for half in [4, 2, 1] {
            for j in 0..half {
                sum[j] += sum[j + half];
            }
        }
        sums[i / per_unit] += sum[0] * *scale;
        let (block, lane) = (i / LANES * BLOCK, i % LANES);
        for j in 0..4 {
            codes[block + 4 * lane + j] = rounded[2 * j] as i8;
            codes[block + 32 + 4 * lane + j] = rounded[2 * j + 1] as i8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounded_rows_are_near_and_padded_with_zeros() {
        let width = 64 + 24;
        let x = (0..3 * width).map(|i| ((i * i) as f32).sin() * 3.0).collect::<Vec<_>>();
        let made = Activations::new(&x, width, 16);
        assert_eq!(made.n_blocks, 2);
        for row in 0..3 {
            let (r, x) = (made.row(row), &x[row * width..][..width]);
            let value = |e: usize| {
                let (block, at) = (e / BLOCK * BLOCK, e % BLOCK);
                f32::from(r.codes[block + (at % 2) * 32 + at / 2]) * r.scales[e / 8]
            };
            for (e, wanted) in x.iter().enumerate() {
                assert!((value(e) - wanted).abs() <= 0.51 * r.scales[e / 8], "{row} {e}");
            }
            assert!((width..2 * BLOCK).all(|e| value(e) == 0.0));
            for (unit, sum) in r.sums.iter().enumerate() {
                let inside = (16 * unit..16 * unit + 16).filter(|e| *e < 2 * BLOCK);
                let wanted = inside.map(value).sum::<f32>();
                assert!((sum - wanted).abs() < 1e-4, "{row}: unit {unit}");
            }
        }
    }

    #[test]
    fn a_row_with_an_infinity_stays_not_finite() {
        let mut x = vec![1.0f32; 64];
        x[3] = f32::INFINITY;
        let made = Activations::new(&x, 64, 64);
        assert!(!made.row(0).scales[0].is_finite());
    }
}
