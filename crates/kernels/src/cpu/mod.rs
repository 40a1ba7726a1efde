//! What the CPU forms share: threads, conversions, and buffers that tasks write parts of.

pub(crate) mod lanes;
mod pool;

use std::marker::PhantomData;

use mlx::{Dtype, Element, TensorMut, TensorRef};

pub use pool::set_threads;
pub(crate) use pool::{each, n_threads};

/// Why a kernel fails; MLX reports it at evaluation.
pub(crate) type Failure = String;

/// A kernel's floating-point input.
#[derive(Clone, Copy)]
pub(crate) enum Floats<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u8]),
    F16(&'a [u8]),
}

impl<'a> Floats<'a> {
    pub(crate) fn new(tensor: &TensorRef<'a>) -> Result<Self, Failure> {
        match tensor.dtype {
            Dtype::F32 => tensor.as_slice().map(Self::F32),
            Dtype::Bf16 => Ok(Self::Bf16(tensor.bytes())),
            Dtype::F16 => Ok(Self::F16(tensor.bytes())),
            other => Err(format!("{other} is not converted")),
        }
    }

    /// Elements `start..` as f32, as many as `to` takes.
    #[inline(always)]
    pub(crate) fn read(&self, start: usize, to: &mut [f32]) {
        match self {
            Self::F32(values) => to.copy_from_slice(&values[start..start + to.len()]),
            Self::Bf16(bytes) => {
                let bytes = bytes[2 * start..2 * (start + to.len())].chunks_exact(2);
                for (to, pair) in to.iter_mut().zip(bytes) {
                    *to = f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16);
                }
            }
            Self::F16(bytes) => {
                let bytes = bytes[2 * start..2 * (start + to.len())].chunks_exact(2);
                for (to, pair) in to.iter_mut().zip(bytes) {
                    *to = from_f16(u16::from_le_bytes([pair[0], pair[1]]));
                }
            }
        }
    }
}

/// The value of an f16. Shifted into place its exponent is 112 too small, also where it is
/// subnormal.
#[inline(always)]
fn from_f16(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    let finite = f32::from_bits(magnitude << 13) * f32::from_bits((112 + 127) << 23);
    let special = f32::from_bits(0x7f80_0000 | (magnitude << 13));
    let value = if magnitude < 0x7c00 { finite } else { special };
    f32::from_bits(value.to_bits() | (u32::from(bits & 0x8000) << 16))
}

/// Rounds to bf16, halves to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    (if x.is_nan() { (bits >> 16) | 0x40 } else { rounded }) as u16
}

/// Rounds to f16, halves to even; NaN stays NaN, and what is too large becomes infinite.
#[inline(always)]
pub(crate) fn f16_bits(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) & 0x8000;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let bits = if magnitude > 0x7f80_0000 {
        0x7e00
    } else if magnitude >= 0x4780_0000 {
        0x7c00 // 2¹⁶ and more
    } else if magnitude < 0x3880_0000 {
        // Subnormal: in the sum with ½ the last place is worth 2⁻²⁴.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000
    } else {
        // The exponent is 112 smaller; 13 bits fall away.
        (magnitude + 0x0fff + ((magnitude >> 13) & 1) - (112 << 23)) >> 13
    };
    (sign | bits) as u16
}

/// An output of which every task writes parts of its own.
pub(crate) struct Parts<'a> {
    data: *mut u8,
    n_bytes: usize,
    dtype: Dtype,
    life: PhantomData<&'a mut [u8]>,
}

// SAFETY: `write` and `slice` bind their callers to disjoint parts, and bytes have no thread.
unsafe impl Sync for Parts<'_> {}

impl<'a> Parts<'a> {
    /// `tensor` must hold f32, bf16, f16 or u32.
    pub(crate) fn new(tensor: &'a mut TensorMut<'_>) -> Result<Self, Failure> {
        let dtype = tensor.dtype;
        if !matches!(dtype, Dtype::F32 | Dtype::Bf16 | Dtype::F16 | Dtype::U32) {
            return Err(format!("{dtype} is not written"));
        }
        let bytes = tensor.bytes_mut();
        Ok(Self { data: bytes.as_mut_ptr(), n_bytes: bytes.len(), dtype, life: PhantomData })
    }

    /// Writes `values` as elements `start..` of an f32, bf16 or f16 output, rounded to its dtype.
    ///
    /// # Safety
    /// No other task reads or writes these elements.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, start: usize, values: &[f32]) {
        if !matches!(self.dtype, Dtype::Bf16 | Dtype::F16) {
            // SAFETY: the caller's promise.
            unsafe { self.slice::<f32>(start, values.len()) }.copy_from_slice(values);
            return;
        }
        assert!(2 * (start + values.len()) <= self.n_bytes, "a task writes inside the output");
        // SAFETY: inside the output, by the assertion; not shared, by the caller's promise.
        let to =
            unsafe { std::slice::from_raw_parts_mut(self.data.add(2 * start), 2 * values.len()) };
        let pairs = to.chunks_exact_mut(2).zip(values);
        if self.dtype == Dtype::Bf16 {
            pairs.for_each(|(to, value)| to.copy_from_slice(&bf16_bits(*value).to_le_bytes()));
        } else {
            pairs.for_each(|(to, value)| to.copy_from_slice(&f16_bits(*value).to_le_bytes()));
        }
    }

    /// Elements `start..start + n` of an output of 4-byte `T`.
    ///
    /// # Safety
    /// No other task reads or writes these elements while the slice lives.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn slice<T: Element>(&self, start: usize, n: usize) -> &mut [T] {
        assert!(self.dtype == T::DTYPE && size_of::<T>() == 4, "another type is stored");
        assert!(4 * (start + n) <= self.n_bytes, "a task writes inside the output");
        // SAFETY: inside the output, by the assertion, which MLX aligns for every dtype; not
        // shared, by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.cast::<T>().add(start), n) }
    }
}

/// a·b + c, fused where the instructions are there.
#[inline(always)]
pub(crate) fn madd<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Σ a·b, in sums kept side by side.
#[inline(always)]
pub(crate) fn dot<const FUSED: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 32];
    let (a, b) = (a.chunks_exact(32), b.chunks_exact(32));
    let rest = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum::<f32>();
    for (a, b) in a.zip(b) {
        for i in 0..32 {
            sums[i] = madd::<FUSED>(a[i], b[i], sums[i]);
        }
    }
    let mut width = 16;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0] + rest
}

/// eˣ to within 2 units in the last place, in a form that compilers can do on many values at once;
/// 0 below −87, and the largest power of two above 88.
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    // x = n ln 2 + r. Adding and subtracting 1.5·2²³ rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    let limited = x.clamp(-87.0, 88.0);
    let rounded = madd::<FUSED>(limited, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = madd::<FUSED>(n, -0.693_359_4, limited);
    let r = madd::<FUSED>(n, 2.121_944_4e-4, r);
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = madd::<FUSED>(p, r, c);
    }
    // The low bits of the rounded sum are n; the exponent's place takes n + 127.
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { p * power }
}

/// Whether fused, 8-wide arithmetic may be used.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

/// Defines `$name`, which runs `$body::<true>` compiled for AVX2 and FMA where the processor has
/// them, and `$body` as the target allows elsewhere.
macro_rules! for_processor {
    ($(#[$doc:meta])* $name:ident = $body:ident($($arg:ident: $type:ty),* $(,)?)) => {
        $(#[$doc])*
        fn $name($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn wide($($arg: $type),*) {
                    $body::<true>($($arg),*)
                }
                if crate::cpu::has_avx2() {
                    // SAFETY: the processor has both features.
                    return unsafe { wide($($arg),*) };
                }
            }
            $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(crate) use for_processor;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_the_libraries() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            for found in [exp::<false>(x), exp::<true>(x)] {
                let wanted = f64::from(x).exp();
                assert!((f64::from(found) - wanted).abs() <= 3e-7 * wanted, "{x}: {found}");
            }
        }
        assert_eq!(exp::<true>(-1000.0), 0.0);
        assert!(exp::<true>(1000.0) > 1e38);
        assert!(exp::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn every_kind_of_f16_becomes_its_value() {
        for (bits, value) in [
            (0x0000, 0.0f32),
            (0x3c00, 1.0),
            (0xc100, -2.5),
            (0x7bff, 65504.0),
            (0x0001, 5.960_464_5e-8),
            (0x83ff, -6.097_555e-5),
            (0x7c00, f32::INFINITY),
            (0xfc00, f32::NEG_INFINITY),
        ] {
            assert_eq!(from_f16(bits), value, "{bits:#x}");
        }
        assert!(from_f16(0x7e00).is_nan());
        assert!(from_f16(0x8000).is_sign_negative());
    }

    #[test]
    fn every_f16_survives_and_what_lies_between_goes_to_the_nearest() {
        for bits in 0..0x7c00u16 {
            for bits in [bits, bits | 0x8000] {
                let value = from_f16(bits);
                assert_eq!(f16_bits(value), bits, "{value}");
                // Half way to the next one, whose bits are one more; the last next is infinite.
                let next = if bits & 0x7fff == 0x7bff { 65536.0 } else { from_f16(bits + 1).abs() };
                let half = ((value.abs() + next) / 2.0).copysign(value);
                assert_eq!(f16_bits(half), bits + (bits & 1), "{half}");
                let below = f32::from_bits(half.to_bits() - 1);
                let above = f32::from_bits(half.to_bits() + 1);
                assert_eq!((f16_bits(below), f16_bits(above)), (bits, bits + 1), "{half}");
            }
        }
        assert_eq!(f16_bits(f32::NEG_INFINITY), 0xfc00);
        assert_eq!(f16_bits(1e30), 0x7c00);
        assert!(from_f16(f16_bits(f32::NAN)).is_nan());
    }

    #[test]
    fn bf16_rounds_to_the_nearest_and_halves_to_even() {
        for (value, bits) in [
            (1.0f32, 0x3f80),
            (-2.5, 0xc020),
            (f32::from_bits(0x3f80_8000), 0x3f80),
            (f32::from_bits(0x3f81_8000), 0x3f82),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (f32::INFINITY, 0x7f80),
            (f32::MAX, 0x7f80),
        ] {
            assert_eq!(bf16_bits(value), bits, "{value}");
        }
        assert!(f32::from_bits(u32::from(bf16_bits(f32::NAN)) << 16).is_nan());
    }
}
