//! AVX2: products of bytes are summed to 16 bits, then to 32.

use std::arch::x86_64::*;

use super::super::activations::BLOCK;
use super::loops::{Registers, Work};
use crate::cpu::lanes::Wide;

/// Used only where the processor has AVX2, FMA and F16C.
pub(super) struct Avx2;

impl Avx2 {
    /// # Safety
    /// The processor has the features.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<W: Work>(work: W) -> W::Out {
        work.run::<Self>()
    }
}

impl Registers for Avx2 {
    type Sums = Wide;
    type Codes = (__m256i, __m256i);
    type Inputs = (__m256i, __m256i);
    type Table = __m256i;

    #[inline(always)]
    fn table(values: &[u8; 16]) -> __m256i {
        // SAFETY: the processor has AVX2, by the type's promise, and 16 bytes are readable; so
        // below.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(values.as_ptr().cast())) }
    }

    #[inline(always)]
    fn nibbles(from: &[u8; BLOCK / 2], table: Option<__m256i>) -> (__m256i, __m256i) {
        // SAFETY: 32 bytes are readable.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            let both = _mm256_loadu_si256(from.as_ptr().cast());
            let low = _mm256_and_si256(both, mask);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(both), mask);
            match table {
                Some(table) => (_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high)),
                None => (low, high),
            }
        }
    }

    #[inline(always)]
    fn bytes(from: &[u8; BLOCK]) -> (__m256i, __m256i) {
        let (a, b) = Self::unpacked::<true>(from);
        // SAFETY: the processor has AVX2.
        unsafe {
            let (low, flip) = (_mm256_set1_epi16(255), _mm256_set1_epi8(-128));
            let (a, b) = (_mm256_xor_si256(a, flip), _mm256_xor_si256(b, flip));
            let even = _mm256_packus_epi16(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
            let odd = _mm256_packus_epi16(_mm256_srli_epi16::<8>(a), _mm256_srli_epi16::<8>(b));
            (
                _mm256_permute4x64_epi64::<0b11_01_10_00>(even),
                _mm256_permute4x64_epi64::<0b11_01_10_00>(odd),
            )
        }
    }

    #[inline(always)]
    fn unpacked<const SIGNED: bool>(from: &[u8; BLOCK]) -> (__m256i, __m256i) {
        let at = from.as_ptr().cast::<__m256i>();
        // SAFETY: 64 bytes are readable.
        unsafe { (_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))) }
    }

    #[inline(always)]
    fn inputs<const SIGNED: bool>(from: &[i8; BLOCK]) -> (__m256i, __m256i) {
        let at = from.as_ptr().cast::<__m256i>();
        // SAFETY: 64 bytes are readable.
        unsafe { (_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))) }
    }

    /// No sum of 16 bits can overflow: unsigned codes have at most 6 bits, and signed ones are
    /// added up as pairs only.
    #[inline(always)]
    fn dots<const SIGNED: bool>(w: (__m256i, __m256i), x: (__m256i, __m256i)) -> Wide {
        // SAFETY: the processor has AVX2.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let dots = if SIGNED {
                let a = _mm256_maddubs_epi16(_mm256_abs_epi8(w.0), _mm256_sign_epi8(x.0, w.0));
                let b = _mm256_maddubs_epi16(_mm256_abs_epi8(w.1), _mm256_sign_epi8(x.1, w.1));
                _mm256_add_epi32(_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones))
            } else {
                let (a, b) = (_mm256_maddubs_epi16(w.0, x.0), _mm256_maddubs_epi16(w.1, x.1));
                _mm256_madd_epi16(_mm256_add_epi16(a, b), ones)
            };
            Wide(_mm256_cvtepi32_ps(dots))
        }
    }

    #[inline(always)]
    fn ask_for(at: *const u8) {
        // SAFETY: every x86-64 has the instruction, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }

    #[inline(always)]
    unsafe fn apart<W: Work>(work: W) -> W::Out {
        // SAFETY: the caller's promise.
        unsafe { Self::run(work) }
    }
}
