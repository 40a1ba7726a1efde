//! The inner loops: a few rows of codes times a few rows of 8-bit activations.
//!
//! Of each block the products of bytes are summed to eight 32-bit lanes without loss, brought to
//! f32, and multiplied by the scales of activations and weights; the offsets of the weights meet
//! the sums of the activations at the end. No sum of 16 bits can overflow: unsigned codes have at
//! most 6 bits, and signed ones are added up as pairs only.

use super::activations::{BLOCK, LANES, Row};
use super::coded::Scalings;

/// A row of weights.
#[derive(Clone, Copy)]
pub(super) struct Codes<'a> {
    /// 64 bytes for each block, or 32 of nibbles, as [`Source`] says.
    pub codes: &'a [u8],
    /// One scale for each block, or one for each lane of each block.
    pub scales: &'a [f32],
    /// One for each sum of the activations.
    pub offsets: &'a [f32],
}

/// How the codes of a row lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Unpacked.
    Unpacked,
    /// As stored: two codes share a byte, and the table says what they stand for.
    Nibbles(Option<&'static [u8; 16]>),
    /// As stored: 8-bit codes one after another.
    Bytes,
}

/// What the codes of a row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// Signed bytes (once they are unpacked); else unsigned, below 64.
    pub signed: bool,
    /// Where they come from.
    pub source: Source,
    /// The lanes of a block have scales of their own.
    pub lanes: bool,
}

/// Most rows of weights of one tile.
pub(super) const ROWS: usize = 4;
/// Most rows of activations.
pub(super) const TOKENS: usize = 4;

/// Rows of weights one after another.
pub(super) struct Weights<'a> {
    /// As many bytes for each row.
    pub codes: &'a [u8],
    /// How many.
    pub n_bytes: usize,
    /// Of the same rows.
    pub scalings: &'a Scalings,
    /// How many there are.
    pub n: usize,
}

impl Weights<'_> {
    #[inline(always)]
    fn row(&self, i: usize) -> Codes<'_> {
        Codes {
            codes: &self.codes[i * self.n_bytes..][..self.n_bytes],
            scales: self.scalings.scales(i),
            offsets: self.scalings.offsets(i),
        }
    }
}

/// The products of all `w` with all `x`, of which there are at most [`TOKENS`].
pub(super) fn products(w: &Weights<'_>, x: &[Row<'_>], kind: Kind, to: &mut Table<'_>) {
    let fast = fast_forms();
    let mut first = 0;
    while first < w.n {
        let left = w.n - first;
        let one_by_one = x.len() == 1 || kind.source != Source::Unpacked;
        let n = if one_by_one && left >= 4 {
            4
        } else if !one_by_one && left >= 2 {
            2
        } else {
            1
        };
        let mut rows = [w.row(first); ROWS];
        for (r, row) in rows.iter_mut().enumerate().take(n) {
            *row = w.row(first + r);
        }
        let mut t = 0;
        while t < x.len() {
            let n_x = if x.len() - t >= 4 && !one_by_one { 4 } else { 1 };
            let (w, x) = (&rows[..n], &x[t..t + n_x]);
            let sums = if fast { fast_tile(w, x, kind) } else { portable(w, x, kind) };
            for (r, sums) in sums.iter().enumerate().take(n) {
                for (i, sum) in sums.iter().enumerate().take(n_x) {
                    to.values[(first + r) + (t + i) * to.stride] = *sum;
                }
            }
            t += n_x;
        }
        first += n;
    }
}

/// Where products go: one row for each row of activations.
pub(super) struct Table<'a> {
    pub values: &'a mut [f32],
    pub stride: usize,
}

fn fast_forms() -> bool {
    #[cfg(target_arch = "x86_64")]
    return crate::cpu::has_avx2();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

type Sums = [[f32; TOKENS]; ROWS];

/// The slow twin, for any processor.
fn portable(w: &[Codes<'_>], x: &[Row<'_>], kind: Kind) -> Sums {
    let mut sums = Sums::default();
    for (r, w) in w.iter().enumerate() {
        for (t, x) in x.iter().enumerate() {
            sums[r][t] = portable_one(w, x, kind);
        }
    }
    sums
}

fn portable_one(w: &Codes<'_>, x: &Row<'_>, kind: Kind) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (b, x_codes) in x.codes.chunks_exact(BLOCK).enumerate() {
        let mut codes = [0i32; BLOCK];
        match kind.source {
            Source::Nibbles(table) => {
                let value = |code: u8| table.map_or(code, |table| table[usize::from(code)]);
                for (i, byte) in w.codes[b * 32..][..32].iter().enumerate() {
                    codes[i] = i32::from(value(byte & 15));
                    codes[32 + i] = i32::from(value(byte >> 4));
                }
            }
            Source::Bytes => {
                for (e, byte) in w.codes[b * BLOCK..][..BLOCK].iter().enumerate() {
                    codes[e % 2 * 32 + e / 2] = i32::from(*byte) - 128;
                }
            }
            Source::Unpacked => {
                for (code, byte) in codes.iter_mut().zip(&w.codes[b * BLOCK..][..BLOCK]) {
                    *code = if kind.signed { i32::from(*byte as i8) } else { i32::from(*byte) };
                }
            }
        }
        let mut dots = [0i32; LANES];
        for half in 0..2 {
            for i in 0..32 {
                let at = 32 * half + i;
                dots[i / 4] += codes[at] * i32::from(x_codes[at]);
            }
        }
        for l in 0..LANES {
            let scale = if kind.lanes { w.scales[b * LANES + l] } else { w.scales[b] };
            lanes[l] += dots[l] as f32 * (x.scales[b * LANES + l] * scale);
        }
    }
    let offsets = w.offsets.iter().zip(x.sums).map(|(offset, sum)| offset * sum).sum::<f32>();
    lanes.iter().sum::<f32>() + offsets
}

#[cfg(not(target_arch = "x86_64"))]
fn fast_tile(w: &[Codes<'_>], x: &[Row<'_>], kind: Kind) -> Sums {
    portable(w, x, kind)
}

/// The form for AVX2. The processor has it.
#[cfg(target_arch = "x86_64")]
fn fast_tile(w: &[Codes<'_>], x: &[Row<'_>], kind: Kind) -> Sums {
    macro_rules! form {
        ($r:literal, $t:literal, $source:ident, $signed:literal) => {
            // SAFETY: the caller looked for AVX2 and FMA.
            unsafe {
                match kind.lanes {
                    false => avx2::tile::<$r, $t, { avx2::$source }, $signed, false>(w, x, kind),
                    true => avx2::tile::<$r, $t, { avx2::$source }, $signed, true>(w, x, kind),
                }
            }
        };
    }
    match (kind.source, kind.signed, w.len(), x.len()) {
        (Source::Nibbles(_), _, 4, 1) => form!(4, 1, NIBBLES, false),
        (Source::Nibbles(_), _, 1, 1) => form!(1, 1, NIBBLES, false),
        (Source::Bytes, _, 4, 1) => form!(4, 1, BYTES, true),
        (Source::Bytes, _, 1, 1) => form!(1, 1, BYTES, true),
        (Source::Unpacked, false, 4, 1) => form!(4, 1, UNPACKED, false),
        (Source::Unpacked, false, 2, 4) => form!(2, 4, UNPACKED, false),
        (Source::Unpacked, false, 2, 1) => form!(2, 1, UNPACKED, false),
        (Source::Unpacked, false, 1, 4) => form!(1, 4, UNPACKED, false),
        (Source::Unpacked, false, 1, 1) => form!(1, 1, UNPACKED, false),
        (Source::Unpacked, true, 4, 1) => form!(4, 1, UNPACKED, true),
        (Source::Unpacked, true, 2, 4) => form!(2, 4, UNPACKED, true),
        (Source::Unpacked, true, 2, 1) => form!(2, 1, UNPACKED, true),
        (Source::Unpacked, true, 1, 4) => form!(1, 4, UNPACKED, true),
        (Source::Unpacked, true, 1, 1) => form!(1, 1, UNPACKED, true),
        _ => portable(w, x, kind),
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Codes, Kind, LANES, Row, Source, Sums};

    // The sources, as generic arguments can tell them.
    pub(super) const UNPACKED: u8 = 0;
    pub(super) const NIBBLES: u8 = 1;
    pub(super) const BYTES: u8 = 2;

    /// How far ahead of its use packed code is asked for: a row is too short for the processor to
    /// find out by itself.
    const AHEAD_BYTES: usize = 3072;

    /// R rows of codes times T rows of activations.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn tile<
        const R: usize,
        const T: usize,
        const SOURCE: u8,
        const SIGNED: bool,
        const BY_LANE: bool,
    >(
        w: &[Codes<'_>],
        x: &[Row<'_>],
        kind: Kind,
    ) -> Sums {
        let n_blocks = x[0].codes.len() / BLOCK;
        let w_bytes = if SOURCE == NIBBLES { 32 } else { BLOCK };
        check::<R, T>(w, x, n_blocks * w_bytes, n_blocks * if BY_LANE { LANES } else { 1 });
        let (w, x) = (&w[..R], &x[..T]);
        let (ones, table) = (_mm256_set1_epi16(1), table(kind));
        let mut acc = [[_mm256_setzero_ps(); T]; R];
        for b in 0..n_blocks {
            let mut codes = [(ones, ones); R];
            let mut scales = [_mm256_setzero_ps(); R];
            for r in 0..R {
                // SAFETY: inside the row and its scales, by the check.
                unsafe {
                    codes[r] = block::<SOURCE>(w[r].codes.as_ptr().add(b * w_bytes), table);
                    scales[r] = if BY_LANE {
                        _mm256_loadu_ps(w[r].scales.as_ptr().add(b * LANES))
                    } else {
                        _mm256_broadcast_ss(w[r].scales.get_unchecked(b))
                    };
                }
            }
            for t in 0..T {
                // SAFETY: inside the row, by the check.
                let (x0, x1, x_scales) = unsafe {
                    let at = x[t].codes.as_ptr().add(b * BLOCK).cast::<__m256i>();
                    let scales = _mm256_loadu_ps(x[t].scales.as_ptr().add(b * LANES));
                    (_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1)), scales)
                };
                for r in 0..R {
                    let dots = dots::<SIGNED>(codes[r], (x0, x1), ones);
                    let scale = _mm256_mul_ps(x_scales, scales[r]);
                    acc[r][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scale, acc[r][t]);
                }
            }
        }
        let mut sums = Sums::default();
        for r in 0..R {
            for t in 0..T {
                sums[r][t] = total(acc[r][t], w[r].offsets, x[t].sums);
            }
        }
        sums
    }

    /// Everything that the loop relies on.
    #[inline]
    fn check<const R: usize, const T: usize>(
        w: &[Codes<'_>],
        x: &[Row<'_>],
        n_bytes: usize,
        n_scales: usize,
    ) {
        let n_codes = x[0].codes.len();
        assert!(w.len() == R && x.len() == T);
        for w in w {
            assert!(w.codes.len() >= n_bytes && w.scales.len() >= n_scales);
        }
        for x in x {
            assert!(x.codes.len() == n_codes && x.scales.len() >= n_codes / BLOCK * LANES);
        }
    }

    /// The table of nibbles, if there is one.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn table(kind: Kind) -> Option<__m256i> {
        match kind.source {
            Source::Nibbles(Some(t)) => {
                // SAFETY: the table has 16 bytes.
                Some(_mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(t.as_ptr().cast()) }))
            }
            _ => None,
        }
    }

    /// The codes of a block.
    ///
    /// # Safety
    /// A block of this source lies at `at`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn block<const SOURCE: u8>(at: *const u8, table: Option<__m256i>) -> (__m256i, __m256i) {
        let (mask, bytes, flip) =
            (_mm256_set1_epi8(15), _mm256_set1_epi16(255), _mm256_set1_epi8(-128));
        let halves = at.cast::<__m256i>();
        if SOURCE == UNPACKED {
            // SAFETY: the caller's promise.
            return unsafe { (_mm256_loadu_si256(halves), _mm256_loadu_si256(halves.add(1))) };
        }
        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD_BYTES).cast());
        if SOURCE == BYTES {
            // SAFETY: the caller's promise.
            let (a, b) = unsafe { (_mm256_loadu_si256(halves), _mm256_loadu_si256(halves.add(1))) };
            let (a, b) = (_mm256_xor_si256(a, flip), _mm256_xor_si256(b, flip));
            let even = _mm256_packus_epi16(_mm256_and_si256(a, bytes), _mm256_and_si256(b, bytes));
            let odd = _mm256_packus_epi16(_mm256_srli_epi16::<8>(a), _mm256_srli_epi16::<8>(b));
            return (
                _mm256_permute4x64_epi64::<0b11_01_10_00>(even),
                _mm256_permute4x64_epi64::<0b11_01_10_00>(odd),
            );
        }
        // SAFETY: the caller's promise.
        let both = unsafe { _mm256_loadu_si256(halves) };
        let low = _mm256_and_si256(both, mask);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(both), mask);
        match table {
            Some(table) => (_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high)),
            None => (low, high),
        }
    }

    /// The products of a block, summed by lane.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn dots<const SIGNED: bool>(
        w: (__m256i, __m256i),
        x: (__m256i, __m256i),
        ones: __m256i,
    ) -> __m256i {
        if !SIGNED {
            let (a, b) = (_mm256_maddubs_epi16(w.0, x.0), _mm256_maddubs_epi16(w.1, x.1));
            return _mm256_madd_epi16(_mm256_add_epi16(a, b), ones);
        }
        let a = _mm256_maddubs_epi16(_mm256_abs_epi8(w.0), _mm256_sign_epi8(x.0, w.0));
        let b = _mm256_maddubs_epi16(_mm256_abs_epi8(w.1), _mm256_sign_epi8(x.1, w.1));
        _mm256_add_epi32(_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones))
    }

    /// The sum of the lanes, and of offsets times sums.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn total(lanes: __m256, offsets: &[f32], sums: &[f32]) -> f32 {
        let mut lanes = lanes;
        for (offset, sum) in offsets.chunks_exact(LANES).zip(sums.chunks_exact(LANES)) {
            // SAFETY: both have eight values.
            let (offset, sum) =
                unsafe { (_mm256_loadu_ps(offset.as_ptr()), _mm256_loadu_ps(sum.as_ptr())) };
            lanes = _mm256_fmadd_ps(offset, sum, lanes);
        }
        let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::activations::Activations;
    use super::*;

    /// Codes at both ends of their range next to activations at theirs.
    #[test]
    fn the_fast_form_gives_what_the_slow_one_does_also_at_the_ends_of_the_range() {
        let n_blocks = 5;
        for (signed, source, lanes, limit) in [
            (false, Source::Nibbles(None), false, 256),
            (false, Source::Nibbles(Some(&super::super::coded::E2M1_CODES)), true, 256),
            (false, Source::Nibbles(None), true, 256),
            (true, Source::Bytes, false, 256),
            (true, Source::Bytes, true, 256),
            (false, Source::Unpacked, false, 64),
            (false, Source::Unpacked, true, 64),
            (true, Source::Unpacked, false, 256),
            (true, Source::Unpacked, true, 256),
        ] {
            let kind = Kind { signed, source, lanes };
            for (n_w, n_x) in [(1, 1), (2, 1), (4, 1), (7, 1), (1, 4), (3, 6), (5, 9), (2, 4)] {
                let is_nibbles = matches!(source, Source::Nibbles(_));
                let n_bytes = n_blocks * if is_nibbles { 32 } else { BLOCK };
                let codes = (0..n_w * n_bytes).map(|i| match i % 5 {
                    0 => (limit - 1) as u8,
                    1 => {
                        if signed {
                            128
                        } else {
                            0
                        }
                    }
                    _ => (i * 37 % limit) as u8,
                });
                let codes = codes.collect::<Vec<_>>();
                let x = (0..n_x * n_blocks * BLOCK).map(|i| match i % 3 {
                    0 => 1.0,
                    1 => -1.0,
                    _ => (i as f32 * 0.37).sin(),
                });
                let x = x.collect::<Vec<_>>();
                let made = Activations::new(&x, n_blocks * BLOCK, 32);
                let n_scales = n_w * n_blocks * if lanes { LANES } else { 1 };
                let scales = (0..n_scales).map(|i| 0.5 + (i % 7) as f32);
                let scales = scales.collect::<Vec<_>>();
                let n_offsets = made.row(0).sums.len();
                let offsets = (0..n_w * n_offsets).map(|i| (i % 11) as f32 - 5.0);
                let offsets = offsets.collect::<Vec<_>>();
                let scalings = &Scalings::of(scales, offsets, n_w);
                let w = Weights { codes: &codes, n_bytes, scalings, n: n_w };
                let rows = (0..n_x).map(|t| made.row(t)).collect::<Vec<_>>();
                let mut found = vec![0.0; n_w * n_x];
                for (t, x) in rows.chunks(TOKENS).enumerate() {
                    let values = &mut found[t * TOKENS * n_w..];
                    products(&w, x, kind, &mut Table { values, stride: n_w });
                }
                for (t, x) in rows.iter().enumerate() {
                    for r in 0..n_w {
                        let found = found[t * n_w + r];
                        let wanted = portable_one(&w.row(r), x, kind);
                        let off = (found - wanted).abs();
                        assert!(off <= 1e-5 * wanted.abs().max(1e3), "{found} {wanted}");
                    }
                }
            }
        }
    }
}
