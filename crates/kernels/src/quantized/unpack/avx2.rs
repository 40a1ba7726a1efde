//! Packed codes to bytes with AVX2.

use std::arch::x86_64::*;

use super::{BLOCK, Spread};

/// 4-bit codes; returns how many blocks it did.
#[target_feature(enable = "avx2")]
pub(super) fn nibbles(table: Option<&[u8; 16]>, packed: &[u8], to: &mut [u8]) -> usize {
    let mask = _mm256_set1_epi8(15);
    let n_whole = packed.len() / 32;
    let blocks = packed.chunks_exact(32).zip(to.chunks_exact_mut(BLOCK));
    let put = |to: &mut [u8], low, high| {
        assert!(to.len() == BLOCK);
        // SAFETY: 64 bytes are there, by the assertion.
        unsafe {
            _mm256_storeu_si256(to.as_mut_ptr().cast(), low);
            _mm256_storeu_si256(to.as_mut_ptr().add(32).cast(), high);
        }
    };
    for (packed, to) in blocks {
        // SAFETY: the chunk has 32 bytes.
        let both = unsafe { _mm256_loadu_si256(packed.as_ptr().cast()) };
        let low = _mm256_and_si256(both, mask);
        let high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
        match table {
            Some(table) => {
                // SAFETY: the table has 16 bytes.
                let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
                let table = _mm256_broadcastsi128_si256(table);
                put(to, _mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high));
            }
            None => put(to, low, high),
        }
    }
    n_whole
}

/// Codes of any width; returns how many blocks it did. The last block is not done: eight bytes are
/// read for each eight codes.
#[target_feature(enable = "avx2")]
pub(super) fn streams(spread: &Spread, packed: &[u8], to: &mut [u8]) -> usize {
    let bits = spread.bits;
    // SAFETY: both arrays have 16 bytes.
    let (bytes, factors) = unsafe {
        (
            _mm256_broadcastsi128_si256(_mm_loadu_si128(spread.bytes.as_ptr().cast())),
            _mm256_broadcastsi128_si256(_mm_loadu_si128(spread.factors.as_ptr().cast())),
        )
    };
    let down = _mm_cvtsi32_si128(16 - bits as i32);
    let flip = _mm256_set1_epi8(spread.flip as i8);
    let n_bytes = 8 * bits;
    let n_whole = (packed.len().saturating_sub(8)) / n_bytes;
    for (block, to) in to.chunks_exact_mut(BLOCK).take(n_whole).enumerate() {
        let eights = &packed[block * n_bytes..block * n_bytes + 7 * bits + 8];
        // Groups of eight codes `i` and `i + 4`.
        let pair = |i: usize| {
            let (a, b) = (&eights[i * bits..][..8], &eights[(i + 4) * bits..][..8]);
            // SAFETY: both slices have 8 bytes.
            let (a, b) =
                unsafe { (_mm_loadl_epi64(a.as_ptr().cast()), _mm_loadl_epi64(b.as_ptr().cast())) };
            let both = _mm256_set_m128i(b, a);
            let spread = _mm256_mullo_epi16(_mm256_shuffle_epi8(both, bytes), factors);
            _mm256_srl_epi16(spread, down)
        };
        // Four bytes each: E0 O0 E1 O1 | E4 O4 E5 O5, and E2 O2 E3 O3 | E6 O6 E7 O7.
        let p = _mm256_castsi256_ps(_mm256_packus_epi16(pair(0), pair(1)));
        let q = _mm256_castsi256_ps(_mm256_packus_epi16(pair(2), pair(3)));
        let even = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(p, q));
        let odd = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(p, q));
        // SAFETY: the chunk has 64 bytes.
        unsafe {
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_xor_si256(even, flip));
            _mm256_storeu_si256(to.as_mut_ptr().add(32).cast(), _mm256_xor_si256(odd, flip));
        }
    }
    n_whole
}
