//! Eight f32 side by side, so that an inner loop is written once for every processor: registers
//! where there is a form for them, arrays elsewhere. For loops that must stay in registers, which
//! compilers do not promise for arrays.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;

use super::{from_f16, madd};

/// The processor's own registers.
#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Wide;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Wide;

/// Eight values. Those of a processor's own registers are used only where it has the instructions:
/// inside of what [`natively`] or [`super::for_processor`] run.
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

    /// `work` as a function of its own, compiled for the processor: inner loops that fill all
    /// registers must not share them with what stands around them.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn apart<W: Work>(work: W) -> W::Out;

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

/// A computation that any lanes can do.
pub(crate) trait Work {
    type Out;

    fn run<V: Lanes>(self) -> Self::Out;
}

/// Does `work` in the processor's own registers where it can.
pub(crate) fn natively<W: Work>(work: W) -> W::Out {
    // SAFETY: the processor is asked.
    unsafe { if super::has_wide() { Wide::apart(work) } else { Plain::<false>::apart(work) } }
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

    #[inline(never)]
    unsafe fn apart<W: Work>(work: W) -> W::Out {
        work.run::<Self>()
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

    /// What every method gives; where it goes wrong, the assertion says.
    struct Check;

    impl Work for Check {
        type Out = ();

        #[inline(always)]
        fn run<V: Lanes>(self) {
            check::<V>();
        }
    }

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
        let mixed: [f32; 8] = [1.5, -2.0, 0.25, 65504.0, -0.5, 2f32.powi(-24), f32::INFINITY, -0.0];
        let halves = mixed.map(|v| crate::cpu::f16_bits(v).to_le_bytes());
        let found = values(StoredF16::widen::<V>(halves.as_flattened().as_array().unwrap()));
        assert_eq!(found.map(f32::to_bits), mixed.map(f32::to_bits));
        let brains = rows[3].map(|v| crate::cpu::bf16_bits(v).to_le_bytes());
        let found = values(StoredBf16::widen::<V>(brains.as_flattened().as_array().unwrap()));
        assert_eq!(found, rows[3]);
        let mut bytes = [0u8; 33];
        for (to, x) in bytes[1..].chunks_exact_mut(4).zip(rows[3]) {
            to.copy_from_slice(&x.to_le_bytes());
        }
        let (eights, rest) = StoredF32::eights(&bytes[1..]);
        assert_eq!((values(StoredF32::widen::<V>(&eights[0])), rest.len()), (rows[3], 0));
    }

    #[test]
    fn every_processors_lanes_do_the_same() {
        check::<Plain<false>>();
        check::<Plain<true>>();
        natively(Check);
    }
}
