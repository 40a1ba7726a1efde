//! Eight f32 side by side: registers of AVX2 where the processor has it, arrays elsewhere. For
//! loops that must stay in registers, which compilers do not promise for arrays.

use super::{from_f16, madd};

/// Eight values.
pub(crate) trait Lanes: Copy {
    /// Whether products are added without rounding between.
    const FUSED: bool;

    fn splat(x: f32) -> Self;
    fn load(from: &[f32; 8]) -> Self;
    fn store(self, to: &mut [f32; 8]);
    /// Widens eight bf16.
    fn from_bf16(from: &[u8; 16]) -> Self;
    /// `self · b + c`.
    fn madd(self, b: Self, c: Self) -> Self;
    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// The larger of each pair; `other` where `self` is NaN.
    fn max(self, other: Self) -> Self;
    fn sum(self) -> f32;
    /// Value i of vector j becomes value j of vector i.
    fn transpose(rows: [Self; 8]) -> [Self; 8];

    /// Eight f32 that may begin anywhere.
    #[inline(always)]
    fn from_f32(from: &[u8; 32]) -> Self {
        let (words, _) = from.as_chunks::<4>();
        let mut wide = [0.0; 8];
        wide.iter_mut().zip(words).for_each(|(x, word)| *x = f32::from_le_bytes(*word));
        Self::load(&wide)
    }

    /// Widens eight f16.
    #[inline(always)]
    fn from_f16(from: &[u8; 16]) -> Self {
        let (pairs, _) = from.as_chunks::<2>();
        let mut wide = [0.0; 8];
        wide.iter_mut().zip(pairs).for_each(|(x, pair)| *x = from_f16(u16::from_le_bytes(*pair)));
        Self::load(&wide)
    }
}

/// An array: what every processor can do. Fused where its instructions are part of the target.
#[derive(Clone, Copy)]
pub(crate) struct Plain<const FUSED: bool>([f32; 8]);

impl<const FUSED: bool> Lanes for Plain<FUSED> {
    const FUSED: bool = FUSED;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; 8])
    }

    #[inline(always)]
    fn load(from: &[f32; 8]) -> Self {
        Self(*from)
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; 8]) {
        *to = self.0;
    }

    #[inline(always)]
    fn from_bf16(from: &[u8; 16]) -> Self {
        let (pairs, _) = from.as_chunks::<2>();
        let mut wide = [0.0; 8];
        for (x, pair) in wide.iter_mut().zip(pairs) {
            *x = f32::from_bits(u32::from(u16::from_le_bytes(*pair)) << 16);
        }
        Self(wide)
    }

    #[inline(always)]
    fn madd(self, b: Self, c: Self) -> Self {
        let mut out = c.0;
        for (out, (a, b)) in out.iter_mut().zip(self.0.iter().zip(b.0)) {
            *out = madd::<FUSED>(*a, b, *out);
        }
        Self(out)
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let mut out = self.0;
        out.iter_mut().zip(other.0).for_each(|(a, b)| *a += b);
        Self(out)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        let mut out = self.0;
        out.iter_mut().zip(other.0).for_each(|(a, b)| *a *= b);
        Self(out)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        let mut out = other.0;
        out.iter_mut().zip(self.0).for_each(|(b, a)| *b = if a > *b { a } else { *b });
        Self(out)
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let x = self.0;
        ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]))
    }

    #[inline(always)]
    fn transpose(rows: [Self; 8]) -> [Self; 8] {
        let mut out = rows;
        for (i, out) in out.iter_mut().enumerate() {
            out.0.iter_mut().zip(&rows).for_each(|(x, row)| *x = row.0[i]);
        }
        out
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Wide;

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::Lanes;

    /// A register of AVX2. Used only inside of what [`crate::cpu::for_processor`] runs where the
    /// processor has AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct Wide(__m256);

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
    }
}

/// A floating-point type as it is stored, eight at a time.
pub(crate) trait Stored {
    /// Bytes of one.
    const BYTES: usize;
    /// The bytes of eight.
    type Eight: Copy;

    /// All whole eights, and the bytes that are left.
    fn eights(bytes: &[u8]) -> (&[Self::Eight], &[u8]);
    fn widen<V: Lanes>(from: &Self::Eight) -> V;
    /// The element that `bytes` begin with.
    fn one(bytes: &[u8]) -> f32;
}

/// f32, as stored.
pub(crate) struct StoredF32;
/// bf16, as stored.
pub(crate) struct StoredBf16;
/// f16, as stored.
pub(crate) struct StoredF16;

impl Stored for StoredF32 {
    const BYTES: usize = 4;
    type Eight = [u8; 32];

    #[inline(always)]
    fn eights(bytes: &[u8]) -> (&[[u8; 32]], &[u8]) {
        bytes.as_chunks()
    }

    #[inline(always)]
    fn widen<V: Lanes>(from: &[u8; 32]) -> V {
        V::from_f32(from)
    }

    #[inline(always)]
    fn one(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

impl Stored for StoredBf16 {
    const BYTES: usize = 2;
    type Eight = [u8; 16];

    #[inline(always)]
    fn eights(bytes: &[u8]) -> (&[[u8; 16]], &[u8]) {
        bytes.as_chunks()
    }

    #[inline(always)]
    fn widen<V: Lanes>(from: &[u8; 16]) -> V {
        V::from_bf16(from)
    }

    #[inline(always)]
    fn one(bytes: &[u8]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)
    }
}

impl Stored for StoredF16 {
    const BYTES: usize = 2;
    type Eight = [u8; 16];

    #[inline(always)]
    fn eights(bytes: &[u8]) -> (&[[u8; 16]], &[u8]) {
        bytes.as_chunks()
    }

    #[inline(always)]
    fn widen<V: Lanes>(from: &[u8; 16]) -> V {
        V::from_f16(from)
    }

    #[inline(always)]
    fn one(bytes: &[u8]) -> f32 {
        from_f16(u16::from_le_bytes([bytes[0], bytes[1]]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::for_processor;

    fn values<V: Lanes>(x: V) -> [f32; 8] {
        let mut to = [0.0; 8];
        x.store(&mut to);
        to
    }

    #[inline(always)]
    fn check<V: Lanes>() {
        let rows: [[f32; 8]; 8] =
            std::array::from_fn(|i| std::array::from_fn(|j| (8 * i + j) as f32 + 0.25));
        let turned = V::transpose(rows.map(|row| V::load(&row)));
        for (i, column) in turned.into_iter().enumerate() {
            assert_eq!(values(column), std::array::from_fn(|j| rows[j][i]), "column {i}");
        }
        let x = V::load(&rows[0]);
        assert_eq!(x.sum(), 30.0);
        assert_eq!(values(x.madd(V::splat(2.0), V::splat(1.0)))[7], 15.5);
        let (sum, product) = (x.add(V::splat(1.0)), x.mul(V::splat(2.0)));
        assert_eq!((values(sum)[3], values(product)[3]), (4.25, 6.5));
        assert_eq!(values(x.max(V::splat(4.0)))[3..5], [4.0, 4.25]);
        assert_eq!(values(V::splat(f32::NAN).max(x)), rows[0]);
        let bytes: [u8; 16] = std::array::from_fn(|i| if i % 2 == 0 { 0 } else { 0x3f });
        assert_eq!(values(V::from_bf16(&bytes)), [f32::from_bits(0x3f00_0000); 8]);
        assert_eq!(values(V::from_f16(&bytes)), [1.75; 8]);
        let mut bytes = [0u8; 33];
        for (to, x) in bytes[1..].chunks_exact_mut(4).zip(rows[3]) {
            to.copy_from_slice(&x.to_le_bytes());
        }
        let (eights, rest) = StoredF32::eights(&bytes[1..]);
        assert_eq!((values(StoredF32::widen::<V>(&eights[0])), rest.len()), (rows[3], 0));
    }

    for_processor! { natively = natively_body() }

    #[inline(always)]
    fn natively_body<const FUSED: bool>() {
        #[cfg(target_arch = "x86_64")]
        if FUSED {
            return check::<Wide>();
        }
        check::<Plain<FUSED>>();
    }

    #[test]
    fn both_kinds_of_lanes_do_the_same() {
        check::<Plain<false>>();
        check::<Plain<true>>();
        natively();
    }
}
