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
    if kind.source != Source::Unpacked {
        for (r, (t, x)) in (0..w.n).flat_map(|r| x.iter().enumerate().map(move |x| (r, x))) {
            let w = &w.row(r);
            to.values[r + t * to.stride] =
                if fast { fast_line(w, x, kind) } else { portable_one(w, x, kind) };
        }
        return;
    }
    let mut first = 0;
    while first < w.n {
        let left = w.n - first;
        let n = match x.len() {
            1 if left >= 4 => 4,
            2.. if left >= 2 => 2,
            _ => 1,
        };
        let mut rows = [w.row(first); ROWS];
        for (r, row) in rows.iter_mut().enumerate().take(n) {
            *row = w.row(first + r);
        }
        let mut t = 0;
        while t < x.len() {
            let n_x = if x.len() - t >= 4 { 4 } else { 1 };
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

/// Rows of nibbles with a scale and a bias in bf16 for each block, all as they are stored.
pub(super) struct Stored<'a> {
    pub codes: &'a [u8],
    pub scales: &'a [u8],
    pub biases: &'a [u8],
}

impl Stored<'_> {
    /// Blocks that [`Stored::products`] takes at once: rows must have a multiple of them.
    pub const EIGHT: usize = 8;

    /// The products of all rows with one row of activations, if the processor has a form for that.
    pub fn products(&self, x: &Row<'_>, to: &mut [f32]) -> bool {
        #[cfg(target_arch = "x86_64")]
        if fast_forms() {
            // SAFETY: the processor has AVX2 and FMA.
            unsafe { avx2::stored_lines(self, x, to) };
            return true;
        }
        let _ = (x, to);
        false
    }
}

/// Where products go: one row for each row of activations.
pub(super) struct Table<'a> {
    pub values: &'a mut [f32],
    pub stride: usize,
}

fn fast_forms() -> bool {
    #[cfg(target_arch = "x86_64")]
    return crate::cpu::has_wide();
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
fn fast_line(w: &Codes<'_>, x: &Row<'_>, kind: Kind) -> f32 {
    portable_one(w, x, kind)
}

#[cfg(not(target_arch = "x86_64"))]
fn fast_tile(w: &[Codes<'_>], x: &[Row<'_>], kind: Kind) -> Sums {
    portable(w, x, kind)
}

/// The form for AVX2 of codes as they are stored. The processor has it.
#[cfg(target_arch = "x86_64")]
fn fast_line(w: &Codes<'_>, x: &Row<'_>, kind: Kind) -> f32 {
    // SAFETY: the caller looked for AVX2 and FMA.
    unsafe {
        match (kind.source, kind.lanes) {
            (Source::Nibbles(_), false) => avx2::line::<{ avx2::NIBBLES }, false>(w, x, kind),
            (Source::Nibbles(_), true) => avx2::line::<{ avx2::NIBBLES }, true>(w, x, kind),
            (Source::Bytes, false) => avx2::line::<{ avx2::BYTES }, false>(w, x, kind),
            (Source::Bytes, true) => avx2::line::<{ avx2::BYTES }, true>(w, x, kind),
            (Source::Unpacked, _) => portable_one(w, x, kind),
        }
    }
}

/// The form for AVX2 of unpacked codes. The processor has it.
#[cfg(target_arch = "x86_64")]
fn fast_tile(w: &[Codes<'_>], x: &[Row<'_>], kind: Kind) -> Sums {
    macro_rules! form {
        ($r:literal, $t:literal) => {
            // SAFETY: the caller looked for AVX2 and FMA.
            unsafe {
                match (kind.signed, kind.lanes) {
                    (false, false) => avx2::tile::<$r, $t, false, false>(w, x),
                    (false, true) => avx2::tile::<$r, $t, false, true>(w, x),
                    (true, false) => avx2::tile::<$r, $t, true, false>(w, x),
                    (true, true) => avx2::tile::<$r, $t, true, true>(w, x),
                }
            }
        };
    }
    match (w.len(), x.len()) {
        (4, 1) => form!(4, 1),
        (2, 4) => form!(2, 4),
        (2, 1) => form!(2, 1),
        (1, 4) => form!(1, 4),
        (1, 1) => form!(1, 1),
        _ => portable(w, x, kind),
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Codes, Kind, LANES, Row, Source, Stored, Sums};

    // The sources, as generic arguments can tell them.
    pub(super) const NIBBLES: u8 = 1;
    pub(super) const BYTES: u8 = 2;

    /// How far ahead of its use stored code is asked for, once for each line of the cache: some
    /// rows, which are too short for the processor to find out by itself.
    const AHEAD_BYTES: usize = 2048;

    /// R rows of codes times T rows of activations.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn tile<const R: usize, const T: usize, const SIGNED: bool, const BY_LANE: bool>(
        w: &[Codes<'_>],
        x: &[Row<'_>],
    ) -> Sums {
        let n_blocks = x[0].codes.len() / BLOCK;
        check::<R, T>(w, x, n_blocks * BLOCK, n_blocks * if BY_LANE { LANES } else { 1 });
        let (w, x) = (&w[..R], &x[..T]);
        let ones = _mm256_set1_epi16(1);
        let mut acc = [[_mm256_setzero_ps(); T]; R];
        for b in 0..n_blocks {
            let mut codes = [(ones, ones); R];
            let mut scales = [_mm256_setzero_ps(); R];
            for r in 0..R {
                // SAFETY: inside the row and its scales, by the check.
                unsafe {
                    let at = w[r].codes.as_ptr().add(b * BLOCK).cast::<__m256i>();
                    codes[r] = (_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1)));
                    scales[r] = scale::<BY_LANE>(&w[r], b);
                }
            }
            for t in 0..T {
                // SAFETY: inside the row, by the check.
                let (x_codes, x_scales) = unsafe { activations(&x[t], b) };
                for r in 0..R {
                    let dots = dots::<SIGNED>(codes[r], x_codes, ones);
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

    /// One row of stored codes times one row of activations: memory is read in one stream, which
    /// comes 1.4 times as fast as rows side by side do. Sums of even and odd blocks do not wait for
    /// each other.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn line<const SOURCE: u8, const BY_LANE: bool>(
        w: &Codes<'_>,
        x: &Row<'_>,
        kind: Kind,
    ) -> f32 {
        let n_blocks = x.codes.len() / BLOCK;
        let n_bytes = if SOURCE == NIBBLES { 32 } else { BLOCK };
        let n_scales = n_blocks * if BY_LANE { LANES } else { 1 };
        check::<1, 1>(&[*w], &[*x], n_blocks * n_bytes, n_scales);
        let (ones, table) = (_mm256_set1_epi16(1), table(kind));
        let product = |b: usize, acc: __m256| {
            // SAFETY: inside both rows and their scales, by the check.
            let (codes, scale, (x_codes, x_scales)) = unsafe {
                let codes = block::<SOURCE>(w.codes.as_ptr().add(b * n_bytes), table);
                (codes, scale::<BY_LANE>(w, b), activations(x, b))
            };
            let dots = if SOURCE == BYTES {
                dots::<true>(codes, x_codes, ones)
            } else {
                dots::<false>(codes, x_codes, ones)
            };
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), _mm256_mul_ps(x_scales, scale), acc)
        };
        let (mut even, mut odd) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        for pair in 0..n_blocks / 2 {
            for line in 0..2 * n_bytes / 64 {
                let at = w.codes.as_ptr().wrapping_add(2 * pair * n_bytes + line * 64);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD_BYTES).cast());
            }
            even = product(2 * pair, even);
            odd = product(2 * pair + 1, odd);
        }
        if n_blocks % 2 == 1 {
            even = product(n_blocks - 1, even);
        }
        total(_mm256_add_ps(even, odd), w.offsets, x.sums)
    }

    /// [`line`] after line, with scales and biases read on the way: a pass of its own over them
    /// would hold up the stream of codes.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn stored_lines(w: &Stored<'_>, x: &Row<'_>, to: &mut [f32]) {
        let n_blocks = x.codes.len() / BLOCK;
        assert!(n_blocks.is_multiple_of(Stored::EIGHT) && x.scales.len() == n_blocks * LANES);
        assert!(x.sums.len() == n_blocks && w.codes.len() == to.len() * n_blocks * 32);
        assert!(w.scales.len() == to.len() * n_blocks * 2 && w.biases.len() == w.scales.len());
        let ones = _mm256_set1_epi16(1);
        for (r, to) in to.iter_mut().enumerate() {
            let (mut even, mut odd) = (_mm256_setzero_ps(), _mm256_setzero_ps());
            for eight in 0..n_blocks / Stored::EIGHT {
                let (b, at) = (eight * Stored::EIGHT, r * n_blocks + eight * Stored::EIGHT);
                let mut scales = [0.0; Stored::EIGHT];
                // SAFETY: eight blocks from `b` on are inside x, and from `at` on inside w, by the
                // assertions.
                unsafe {
                    _mm256_storeu_ps(
                        scales.as_mut_ptr(),
                        eight_bf16(w.scales.as_ptr().add(2 * at)),
                    );
                    let biases = eight_bf16(w.biases.as_ptr().add(2 * at));
                    let sums = _mm256_loadu_ps(x.sums.as_ptr().add(b));
                    even = _mm256_fmadd_ps(biases, sums, even);
                }
                for pair in 0..Stored::EIGHT / 2 {
                    // SAFETY: as above.
                    let codes = unsafe { w.codes.as_ptr().add((at + 2 * pair) * 32) };
                    _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(AHEAD_BYTES).cast());
                    let product = |i: usize, acc: __m256| {
                        // SAFETY: as above.
                        let (codes, (x_codes, x_scales)) = unsafe {
                            let codes = block::<NIBBLES>(codes.add(i * 32), None);
                            (codes, activations(x, b + 2 * pair + i))
                        };
                        let dots = _mm256_cvtepi32_ps(dots::<false>(codes, x_codes, ones));
                        let scale = _mm256_set1_ps(scales[2 * pair + i]);
                        _mm256_fmadd_ps(dots, _mm256_mul_ps(x_scales, scale), acc)
                    };
                    even = product(0, even);
                    odd = product(1, odd);
                }
            }
            *to = total(_mm256_add_ps(even, odd), &[], &[]);
        }
    }

    /// Eight bf16 as f32.
    ///
    /// # Safety
    /// 16 bytes are readable at `at`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn eight_bf16(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        let halves = unsafe { _mm_loadu_si128(at.cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    }

    /// What the lanes of a block are multiplied by.
    ///
    /// # Safety
    /// The row has scales for block `b`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn scale<const BY_LANE: bool>(w: &Codes<'_>, b: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            if BY_LANE {
                _mm256_loadu_ps(w.scales.as_ptr().add(b * LANES))
            } else {
                _mm256_broadcast_ss(w.scales.get_unchecked(b))
            }
        }
    }

    /// The two halves of a block, and its scales.
    ///
    /// # Safety
    /// The row has block `b`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn activations(x: &Row<'_>, b: usize) -> ((__m256i, __m256i), __m256) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = x.codes.as_ptr().add(b * BLOCK).cast::<__m256i>();
            let scales = _mm256_loadu_ps(x.scales.as_ptr().add(b * LANES));
            ((_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))), scales)
        }
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

    /// The codes of a stored block.
    ///
    /// # Safety
    /// A block of this source lies at `at`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn block<const SOURCE: u8>(at: *const u8, table: Option<__m256i>) -> (__m256i, __m256i) {
        let (mask, bytes, flip) =
            (_mm256_set1_epi8(15), _mm256_set1_epi16(255), _mm256_set1_epi8(-128));
        let halves = at.cast::<__m256i>();
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

    #[test]
    fn rows_as_they_are_stored_give_what_read_ones_do() {
        for (n_rows, n_blocks) in [(1, 8), (5, 16), (3, 24)] {
            let codes = (0..n_rows * n_blocks * 32).map(|i| (i * 89 % 256) as u8);
            let codes = codes.collect::<Vec<_>>();
            let bf16 = |f: fn(usize) -> f32| {
                let values = (0..n_rows * n_blocks).map(f).collect::<Vec<_>>();
                let bytes = values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes());
                let bytes = bytes.collect::<Vec<_>>();
                (values, bytes)
            };
            let (scales, scale_bytes) = bf16(|i| 0.5 + (i % 7) as f32);
            let (offsets, bias_bytes) = bf16(|i| (i % 11) as f32 - 5.0);
            let x = (0..n_blocks * BLOCK).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>();
            let made = Activations::new(&x, n_blocks * BLOCK, BLOCK);
            let stored = Stored { codes: &codes, scales: &scale_bytes, biases: &bias_bytes };
            let mut found = vec![0.0; n_rows];
            if !stored.products(&made.row(0), &mut found) {
                return;
            }
            let scalings = &Scalings::of(scales, offsets, n_rows);
            let w = Weights { codes: &codes, n_bytes: n_blocks * 32, scalings, n: n_rows };
            let kind = Kind { signed: false, source: Source::Nibbles(None), lanes: false };
            for (r, found) in found.iter().enumerate() {
                let wanted = portable_one(&w.row(r), &made.row(0), kind);
                let off = (found - wanted).abs();
                assert!(off <= 1e-5 * wanted.abs().max(1e3), "{found} {wanted}");
            }
        }
    }

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
