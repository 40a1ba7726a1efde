//! AVX-512 with VNNI: a block in one register, whose products of bytes are summed to 32 bits at
//! once. Sums of even and of odd elements stay apart until the end, so that every lane of a block
//! has two.
//!
//! The instruction multiplies unsigned bytes with signed ones. Signed codes are raised by 128, and
//! what that adds, 128 times the sum of the activations, is taken off: the same integers.

use std::arch::x86_64::*;

use super::super::activations::{BLOCK, LANES};
use super::loops::{Registers, Sums, Work};
use crate::cpu::lanes::{Lanes, Wide};

/// Whether the processor has what [`Avx512`] needs.
pub(super) fn is_there() -> bool {
    use std::arch::is_x86_feature_detected as has;
    crate::cpu::has_wide() && has!("avx512f") && has!("avx512bw") && has!("avx512vnni")
}

/// Used only where [`is_there`] holds.
pub(super) struct Avx512;

impl Avx512 {
    /// # Safety
    /// The processor has the features.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vnni")]
    unsafe fn run<W: Work>(work: W) -> W::Out {
        work.run::<Self>()
    }
}

/// Two sums for each lane: lanes of the even elements, then of the odd ones.
#[derive(Clone, Copy)]
pub(super) struct Twice(__m512);

impl Sums for Twice {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: the processor has AVX-512, by the promise of `Avx512`; so below.
        Self(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    fn lanes(from: &[f32; LANES]) -> Self {
        // SAFETY: eight values are readable.
        unsafe {
            let eight = _mm256_loadu_pd(from.as_ptr().cast());
            Self(_mm512_castpd_ps(_mm512_broadcast_f64x4(eight)))
        }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: the processor has AVX-512.
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the processor has AVX-512.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn madd(self, b: Self, c: Self) -> Self {
        // SAFETY: the processor has AVX-512.
        Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }

    #[inline(always)]
    fn with_products(self, a: Wide, b: Wide) -> Self {
        // SAFETY: the processor has AVX-512.
        unsafe {
            let (a, b) = (_mm512_zextps256_ps512(a.0), _mm512_zextps256_ps512(b.0));
            Self(_mm512_fmadd_ps(a, b, self.0))
        }
    }

    #[inline(always)]
    fn total(self) -> f32 {
        // SAFETY: the processor has AVX-512.
        let (even, odd) = unsafe {
            let odd = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0));
            (Wide(_mm512_castps512_ps256(self.0)), Wide(_mm256_castpd_ps(odd)))
        };
        Lanes::sum(Lanes::add(even, odd))
    }
}

/// Activations, and what the sums of a block begin with.
#[derive(Clone, Copy)]
pub(super) struct Inputs {
    x: __m512i,
    begin: __m512i,
}

impl Registers for Avx512 {
    type Sums = Twice;
    /// Unsigned; signed codes are raised by 128.
    type Codes = __m512i;
    type Inputs = Inputs;
    type Table = __m512i;

    #[inline(always)]
    fn table(values: &[u8; 16]) -> __m512i {
        // SAFETY: 16 bytes are readable.
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(values.as_ptr().cast())) }
    }

    #[inline(always)]
    fn nibbles(from: &[u8; BLOCK / 2], table: Option<__m512i>) -> __m512i {
        // SAFETY: 32 bytes are readable.
        unsafe {
            let both = _mm512_broadcast_i64x4(_mm256_loadu_si256(from.as_ptr().cast()));
            // The upper half moves down by four bits; what comes from the byte above is cut off.
            let places = _mm512_set_epi64(4, 4, 4, 4, 0, 0, 0, 0);
            let codes = _mm512_and_si512(_mm512_srlv_epi64(both, places), _mm512_set1_epi8(15));
            match table {
                Some(table) => _mm512_shuffle_epi8(table, codes),
                None => codes,
            }
        }
    }

    #[inline(always)]
    fn bytes(from: &[u8; BLOCK]) -> __m512i {
        // SAFETY: 64 bytes are readable.
        unsafe {
            let pairs = _mm512_loadu_si512(from.as_ptr().cast());
            let even = _mm512_cvtepi16_epi8(pairs);
            let odd = _mm512_cvtepi16_epi8(_mm512_srli_epi16::<8>(pairs));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(even), odd)
        }
    }

    #[inline(always)]
    fn unpacked<const SIGNED: bool>(from: &[u8; BLOCK]) -> __m512i {
        // SAFETY: 64 bytes are readable.
        unsafe {
            let codes = _mm512_loadu_si512(from.as_ptr().cast());
            if SIGNED { _mm512_xor_si512(codes, _mm512_set1_epi8(-128)) } else { codes }
        }
    }

    #[inline(always)]
    fn inputs<const SIGNED: bool>(from: &[i8; BLOCK]) -> Inputs {
        // SAFETY: 64 bytes are readable.
        unsafe {
            let (x, zero) = (_mm512_loadu_si512(from.as_ptr().cast()), _mm512_setzero_si512());
            let raised = _mm512_dpbusd_epi32(zero, _mm512_set1_epi8(-128), x);
            Inputs { x, begin: if SIGNED { _mm512_sub_epi32(zero, raised) } else { zero } }
        }
    }

    #[inline(always)]
    fn dots<const SIGNED: bool>(w: __m512i, x: Inputs) -> Twice {
        // SAFETY: the processor has AVX-512.
        Twice(unsafe { _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(x.begin, w, x.x)) })
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
