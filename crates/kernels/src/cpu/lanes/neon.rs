//! Eight f32 in two registers of NEON.

use std::arch::aarch64::*;

use super::{Lanes, Work};

/// Values 0 to 3 and 4 to 7. Every processor of this architecture has the instructions.
#[derive(Clone, Copy)]
pub(crate) struct Wide(pub(crate) float32x4_t, pub(crate) float32x4_t);

impl Lanes for Wide {
    const FUSED: bool = true;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: the processor has NEON; so below.
        let four = unsafe { vdupq_n_f32(x) };
        Self(four, four)
    }

    #[inline(always)]
    fn load(from: &[f32; 8]) -> Self {
        // SAFETY: eight values are readable.
        unsafe { Self(vld1q_f32(from.as_ptr()), vld1q_f32(from.as_ptr().add(4))) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; 8]) {
        // SAFETY: eight values are writable.
        unsafe {
            vst1q_f32(to.as_mut_ptr(), self.0);
            vst1q_f32(to.as_mut_ptr().add(4), self.1);
        }
    }

    #[inline(always)]
    fn from_f32(from: &[u8; 32]) -> Self {
        let at = from.as_ptr();
        // SAFETY: 32 bytes are readable, and loads of bytes need no alignment.
        unsafe {
            Self(vreinterpretq_f32_u8(vld1q_u8(at)), vreinterpretq_f32_u8(vld1q_u8(at.add(16))))
        }
    }

    #[inline(always)]
    fn from_bf16(from: &[u8; 16]) -> Self {
        // SAFETY: 16 bytes are readable, and loads of bytes need no alignment.
        unsafe {
            let narrow = vreinterpretq_u16_u8(vld1q_u8(from.as_ptr()));
            let low = vshll_n_u16::<16>(vget_low_u16(narrow));
            let high = vshll_high_n_u16::<16>(narrow);
            Self(vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high))
        }
    }

    #[inline(always)]
    fn from_f16(from: &[u8; 16]) -> Self {
        // SAFETY: 16 bytes are readable, and loads of bytes need no alignment.
        unsafe {
            let narrow = vreinterpretq_f16_u8(vld1q_u8(from.as_ptr()));
            Self(vcvt_f32_f16(vget_low_f16(narrow)), vcvt_high_f32_f16(narrow))
        }
    }

    #[inline(always)]
    fn madd(self, b: Self, c: Self) -> Self {
        // SAFETY: the processor has NEON.
        unsafe { Self(vfmaq_f32(c.0, self.0, b.0), vfmaq_f32(c.1, self.1, b.1)) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the processor has NEON.
        unsafe { Self(vaddq_f32(self.0, other.0), vaddq_f32(self.1, other.1)) }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: the processor has NEON.
        unsafe { Self(vmulq_f32(self.0, other.0), vmulq_f32(self.1, other.1)) }
    }

    /// By comparison: the processor's own maximum of NaN and a number is NaN.
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the processor has NEON.
        unsafe {
            Self(
                vbslq_f32(vcgtq_f32(self.0, other.0), self.0, other.0),
                vbslq_f32(vcgtq_f32(self.1, other.1), self.1, other.1),
            )
        }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: the processor has NEON.
        unsafe {
            let four = vaddq_f32(self.0, self.1);
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        }
    }

    #[inline(always)]
    fn transpose(r: [Self; 8]) -> [Self; 8] {
        let [a, b] =
            [turn([r[0].0, r[1].0, r[2].0, r[3].0]), turn([r[4].0, r[5].0, r[6].0, r[7].0])];
        let [c, d] =
            [turn([r[0].1, r[1].1, r[2].1, r[3].1]), turn([r[4].1, r[5].1, r[6].1, r[7].1])];
        [
            Self(a[0], b[0]),
            Self(a[1], b[1]),
            Self(a[2], b[2]),
            Self(a[3], b[3]),
            Self(c[0], d[0]),
            Self(c[1], d[1]),
            Self(c[2], d[2]),
            Self(c[3], d[3]),
        ]
    }

    #[inline(never)]
    unsafe fn apart<W: Work>(work: W) -> W::Out {
        work.run::<Self>()
    }
}

/// Value i of vector j becomes value j of vector i.
#[inline(always)]
fn turn([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: the processor has NEON.
    unsafe {
        // Pairs of values, then pairs of pairs.
        let pairs = |x, y| {
            (vreinterpretq_f64_f32(vtrn1q_f32(x, y)), vreinterpretq_f64_f32(vtrn2q_f32(x, y)))
        };
        let ((ab0, ab1), (cd0, cd1)) = (pairs(a, b), pairs(c, d));
        [
            vreinterpretq_f32_f64(vtrn1q_f64(ab0, cd0)),
            vreinterpretq_f32_f64(vtrn1q_f64(ab1, cd1)),
            vreinterpretq_f32_f64(vtrn2q_f64(ab0, cd0)),
            vreinterpretq_f32_f64(vtrn2q_f64(ab1, cd1)),
        ]
    }
}
