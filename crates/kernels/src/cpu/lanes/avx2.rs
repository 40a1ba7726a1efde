//! Eight f32 in one register of AVX2.

use std::arch::x86_64::*;

use super::{Lanes, Work};

/// A register. Used only where the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Wide(pub(crate) __m256);

impl Wide {
    /// # Safety
    /// The processor has the features.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<W: Work>(work: W) -> W::Out {
        work.run::<Self>()
    }
}

impl Lanes for Wide {
    const FUSED: bool = true;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: the processor has AVX2, by the type's promise; so below.
        Self(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    fn load(from: &[f32; 8]) -> Self {
        // SAFETY: eight values are readable.
        Self(unsafe { _mm256_loadu_ps(from.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; 8]) {
        // SAFETY: eight values are writable.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), self.0) };
    }

    #[inline(always)]
    fn from_f32(from: &[u8; 32]) -> Self {
        // SAFETY: 32 bytes are readable, and the load needs no alignment.
        Self(unsafe { _mm256_loadu_ps(from.as_ptr().cast()) })
    }

    #[inline(always)]
    fn from_bf16(from: &[u8; 16]) -> Self {
        // SAFETY: 16 bytes are readable, and the load needs no alignment.
        unsafe {
            let narrow = _mm_loadu_si128(from.as_ptr().cast());
            let wide = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(narrow));
            Self(_mm256_castsi256_ps(wide))
        }
    }

    #[inline(always)]
    fn from_f16(from: &[u8; 16]) -> Self {
        // SAFETY: 16 bytes are readable, and the load needs no alignment.
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) })
    }

    #[inline(always)]
    fn madd(self, b: Self, c: Self) -> Self {
        // SAFETY: the processor has FMA, by the type's promise.
        Self(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the processor has AVX2.
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: the processor has AVX2.
        Self(unsafe { _mm256_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the processor has AVX2.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: the processor has AVX2.
        unsafe {
            let upper = _mm256_extractf128_ps::<1>(self.0);
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), upper);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn transpose(r: [Self; 8]) -> [Self; 8] {
        // SAFETY: the processor has AVX2.
        unsafe {
            // Pairs of rows, then fours, within the halves; then the halves change places.
            let lo = |i: usize| _mm256_unpacklo_ps(r[i].0, r[i + 1].0);
            let hi = |i: usize| _mm256_unpackhi_ps(r[i].0, r[i + 1].0);
            let four = |a: __m256, b: __m256| {
                (_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b))
            };
            let ((a0, a1), (a2, a3)) = (four(lo(0), lo(2)), four(hi(0), hi(2)));
            let ((b0, b1), (b2, b3)) = (four(lo(4), lo(6)), four(hi(4), hi(6)));
            let low = |a, b| Self(_mm256_permute2f128_ps::<0x20>(a, b));
            let high = |a, b| Self(_mm256_permute2f128_ps::<0x31>(a, b));
            [
                low(a0, b0),
                low(a1, b1),
                low(a2, b2),
                low(a3, b3),
                high(a0, b0),
                high(a1, b1),
                high(a2, b2),
                high(a3, b3),
            ]
        }
    }

    #[inline(always)]
    unsafe fn apart<W: Work>(work: W) -> W::Out {
        // SAFETY: the caller's promise.
        unsafe { Self::run(work) }
    }
}
