//! Eight f32 side by side, so that an inner loop is written once for every processor.

/// Eight f32, loaded, multiplied and stored together.
///
/// Every method asks that the processor has the instructions of the implementation, and that
/// pointers lead to as many elements as are read or written; none needs to be aligned.
#[allow(clippy::missing_safety_doc)] // Said above, once for all.
pub(crate) trait Lanes: Copy {
    unsafe fn zero() -> Self;
    /// The value at `from` in every lane.
    unsafe fn splat(from: *const f32) -> Self;
    /// Eight f32.
    unsafe fn f32(from: *const u8) -> Self;
    /// Eight bf16, widened.
    unsafe fn bf16(from: *const u8) -> Self;
    /// Eight f16, widened.
    unsafe fn f16(from: *const u8) -> Self;
    /// a·b + c.
    unsafe fn madd(a: Self, b: Self, c: Self) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Lane j of result i is lane i of row j.
    unsafe fn transposed(rows: [Self; 8]) -> [Self; 8];

    /// `work` as a function of its own, compiled for the processor: inner loops that fill all
    /// registers must not share them with what stands around them.
    unsafe fn apart<W: Work>(work: W) -> W::Out;

    /// The sum of all lanes.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = [0.0f32; 8];
        // SAFETY: eight values fit.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let halves: [f32; 4] = std::array::from_fn(|i| lanes[i] + lanes[i + 4]);
        (halves[0] + halves[2]) + (halves[1] + halves[3])
    }
}

/// A computation that any lanes can do.
pub(crate) trait Work {
    type Out;

    /// # Safety
    /// The processor has what `V` needs, and the work's own data are as it wants them.
    unsafe fn run<V: Lanes>(self) -> Self::Out;
}

/// How a tensor's elements are stored.
pub(crate) trait Stored {
    /// Bytes of an element.
    const BYTES: usize;

    /// Eight elements.
    ///
    /// # Safety
    /// That of [`Lanes`].
    unsafe fn lanes<V: Lanes>(from: *const u8) -> V;

    /// One element.
    ///
    /// # Safety
    /// It can be read.
    unsafe fn one(from: *const u8) -> f32;
}

pub(crate) struct F32;
pub(crate) struct Bf16;
pub(crate) struct F16;

impl Stored for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn lanes<V: Lanes>(from: *const u8) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::f32(from) }
    }

    #[inline(always)]
    unsafe fn one(from: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<f32>().read_unaligned() }
    }
}

impl Stored for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn lanes<V: Lanes>(from: *const u8) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::bf16(from) }
    }

    #[inline(always)]
    unsafe fn one(from: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        let bits = unsafe { from.cast::<u16>().read_unaligned() };
        f32::from_bits(u32::from(bits) << 16)
    }
}

impl Stored for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn lanes<V: Lanes>(from: *const u8) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::f16(from) }
    }

    #[inline(always)]
    unsafe fn one(from: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        crate::cpu::from_f16(unsafe { from.cast::<u16>().read_unaligned() })
    }
}

/// In Rust's own arithmetic, for every processor.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    unsafe fn each<E: Stored>(from: *const u8) -> Self {
        let mut lanes = [0.0; 8];
        for (i, lane) in lanes.iter_mut().enumerate() {
            // SAFETY: eight elements can be read, by the caller's promise.
            *lane = unsafe { E::one(from.add(i * E::BYTES)) };
        }
        Self(lanes)
    }
}

impl Lanes for Portable {
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 8])
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self([unsafe { from.read_unaligned() }; 8])
    }

    #[inline(always)]
    unsafe fn f32(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::each::<F32>(from) }
    }

    #[inline(always)]
    unsafe fn bf16(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::each::<Bf16>(from) }
    }

    #[inline(always)]
    unsafe fn f16(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::each::<F16>(from) }
    }

    #[inline(always)]
    unsafe fn madd(a: Self, b: Self, mut c: Self) -> Self {
        for i in 0..8 {
            c.0[i] = crate::cpu::madd::<{ cfg!(target_arch = "aarch64") }>(a.0[i], b.0[i], c.0[i]);
        }
        c
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) };
    }

    #[inline(never)]
    unsafe fn apart<W: Work>(work: W) -> W::Out {
        // SAFETY: the caller's promise.
        unsafe { work.run::<Self>() }
    }

    #[inline(always)]
    unsafe fn transposed(rows: [Self; 8]) -> [Self; 8] {
        std::array::from_fn(|i| Self(std::array::from_fn(|j| rows[j].0[i])))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::Avx2;

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! AVX2, FMA and F16C.
    use std::arch::x86_64::*;

    use super::{Lanes, Work};

    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256);

    impl Avx2 {
        /// Whether the processor has the instructions.
        pub(crate) fn is_there() -> bool {
            crate::cpu::has_avx2() && is_x86_feature_detected!("f16c")
        }

        /// # Safety
        /// That of [`Lanes`] and of the work.
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn run<W: Work>(work: W) -> W::Out {
            // SAFETY: the caller's promise.
            unsafe { work.run::<Self>() }
        }
    }

    impl Lanes for Avx2 {
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller's promise, as in all below.
            Self(unsafe { _mm256_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn splat(from: *const f32) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm256_broadcast_ss(&*from) })
        }

        #[inline(always)]
        unsafe fn f32(from: *const u8) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm256_loadu_ps(from.cast()) })
        }

        #[inline(always)]
        unsafe fn bf16(from: *const u8) -> Self {
            // SAFETY: as above.
            unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
            }
        }

        #[inline(always)]
        unsafe fn f16(from: *const u8) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
        }

        #[inline(always)]
        unsafe fn madd(a: Self, b: Self, c: Self) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm256_fmadd_ps(a.0, b.0, c.0) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(to, self.0) };
        }

        #[inline(always)]
        unsafe fn apart<W: Work>(work: W) -> W::Out {
            // SAFETY: as above.
            unsafe { Self::run(work) }
        }

        #[inline(always)]
        unsafe fn transposed(rows: [Self; 8]) -> [Self; 8] {
            let [a, b, c, d, e, f, g, h] = rows;
            // SAFETY: as above.
            unsafe {
                // Pairs of rows, then fours within 128 bits, then the halves.
                let (ab0, ab1) = (_mm256_unpacklo_ps(a.0, b.0), _mm256_unpackhi_ps(a.0, b.0));
                let (cd0, cd1) = (_mm256_unpacklo_ps(c.0, d.0), _mm256_unpackhi_ps(c.0, d.0));
                let (ef0, ef1) = (_mm256_unpacklo_ps(e.0, f.0), _mm256_unpackhi_ps(e.0, f.0));
                let (gh0, gh1) = (_mm256_unpacklo_ps(g.0, h.0), _mm256_unpackhi_ps(g.0, h.0));
                let low = [
                    _mm256_shuffle_ps::<0x44>(ab0, cd0),
                    _mm256_shuffle_ps::<0xee>(ab0, cd0),
                    _mm256_shuffle_ps::<0x44>(ab1, cd1),
                    _mm256_shuffle_ps::<0xee>(ab1, cd1),
                ];
                let high = [
                    _mm256_shuffle_ps::<0x44>(ef0, gh0),
                    _mm256_shuffle_ps::<0xee>(ef0, gh0),
                    _mm256_shuffle_ps::<0x44>(ef1, gh1),
                    _mm256_shuffle_ps::<0xee>(ef1, gh1),
                ];
                [
                    Self(_mm256_permute2f128_ps::<0x20>(low[0], high[0])),
                    Self(_mm256_permute2f128_ps::<0x20>(low[1], high[1])),
                    Self(_mm256_permute2f128_ps::<0x20>(low[2], high[2])),
                    Self(_mm256_permute2f128_ps::<0x20>(low[3], high[3])),
                    Self(_mm256_permute2f128_ps::<0x31>(low[0], high[0])),
                    Self(_mm256_permute2f128_ps::<0x31>(low[1], high[1])),
                    Self(_mm256_permute2f128_ps::<0x31>(low[2], high[2])),
                    Self(_mm256_permute2f128_ps::<0x31>(low[3], high[3])),
                ]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<V: Lanes>() {
        let values: [f32; 8] = [1.5, -2.0, 0.25, 7.0, -0.5, 3.0, 11.0, -4.0];
        let halves: [u16; 8] = std::array::from_fn(|i| crate::cpu::f16_bits(values[i]));
        let brains: [u16; 8] = std::array::from_fn(|i| crate::cpu::bf16_bits(values[i]));
        let listed = |v: V| {
            let mut to = [0.0f32; 8];
            // SAFETY: eight values fit; the caller of `check` asked for the instructions.
            unsafe { v.store(to.as_mut_ptr()) };
            to
        };
        // SAFETY: as above, and eight values are read everywhere.
        unsafe {
            let whole = V::f32(values.as_ptr().cast());
            assert_eq!(listed(whole), values);
            assert_eq!(listed(V::f16(halves.as_ptr().cast())), values);
            assert_eq!(listed(V::bf16(brains.as_ptr().cast())), values);
            assert_eq!(whole.sum(), values.iter().sum::<f32>());
            let doubled = V::madd(whole, V::splat(&2.0), V::zero());
            assert_eq!(listed(doubled), values.map(|v| 2.0 * v));
            let rows: [[f32; 8]; 8] =
                std::array::from_fn(|i| std::array::from_fn(|j| (10 * i + j) as f32));
            let turned = V::transposed(rows.map(|row| V::f32(row.as_ptr().cast())));
            for (i, row) in turned.into_iter().enumerate() {
                assert_eq!(listed(row), std::array::from_fn(|j| (10 * j + i) as f32));
            }
        }
    }

    #[test]
    fn every_processors_lanes_hold_and_turn_the_same_values() {
        check::<Portable>();
        #[cfg(target_arch = "x86_64")]
        if Avx2::is_there() {
            check::<Avx2>();
        }
    }
}
