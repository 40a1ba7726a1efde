//! What the CPU forms share: threads, conversions, and buffers that tasks write parts of.

pub(crate) mod lanes;
mod pool;
pub(crate) mod products;

use std::marker::PhantomData;
use std::ops::Range;

use mlx::{Dtype, Element, StridedRef, TensorMut, TensorRef};

pub(crate) use pool::each;
pub use pool::{n_threads, set_threads};

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

    /// The elements from the first to the last one, and what lies between.
    fn of_span(tensor: &StridedRef<'a>) -> Result<Self, Failure> {
        let span = tensor.span();
        match tensor.dtype {
            Dtype::F32 => {
                // SAFETY: any 4 bytes are an f32.
                let (before, values, after) = unsafe { span.align_to::<f32>() };
                if !before.is_empty() || !after.is_empty() {
                    return Err("an f32 input is not aligned".to_owned());
                }
                Ok(Self::F32(values))
            }
            Dtype::Bf16 => Ok(Self::Bf16(span)),
            Dtype::F16 => Ok(Self::F16(span)),
            other => Err(format!("{other} is not converted")),
        }
    }

    /// Asks for elements `start..start + n`, which will be read soon; there may be fewer.
    pub(crate) fn prefetch(&self, start: usize, n: usize) {
        match self {
            Self::F32(values) => prefetch(part(values, start, n)),
            Self::Bf16(bytes) | Self::F16(bytes) => prefetch(part(bytes, 2 * start, 2 * n)),
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

/// A floating-point input, which may be a view of something larger, as rows along its last axis.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    values: Floats<'a>,
    /// Sizes and strides of the axes before the last.
    outer: (&'a [i32], &'a [i64]),
    /// Elements of a row.
    pub(crate) width: usize,
    step: usize,
    is_packed: bool,
}

impl<'a> Rows<'a> {
    /// `tensor` must have an axis.
    pub(crate) fn new(tensor: &StridedRef<'a>) -> Result<Self, Failure> {
        let (shape, strides) = (tensor.shape, tensor.strides);
        let [.., width] = shape else { return Err("a number has no rows".to_owned()) };
        let mut packed = 1;
        let is_packed = shape.iter().zip(strides).rev().all(|(&n, &stride)| {
            let fits = n == 1 || stride == packed;
            packed *= i64::from(n);
            fits
        });
        let last = shape.len() - 1;
        Ok(Self {
            values: Floats::of_span(tensor)?,
            outer: (&shape[..last], &strides[..last]),
            width: *width as usize,
            step: strides[last] as usize,
            is_packed,
        })
    }

    /// Elements `from..` of a row as f32, as many as `to` takes.
    #[inline(always)]
    pub(crate) fn read(&self, row: usize, from: usize, to: &mut [f32]) {
        let begin = if self.is_packed { row * self.width } else { self.begin(row) };
        if self.step == 1 || self.is_packed {
            return self.values.read(begin + from, to);
        }
        for (i, to) in to.iter_mut().enumerate() {
            self.values.read(begin + (from + i) * self.step, std::slice::from_mut(to));
        }
    }

    /// Where a row begins.
    fn begin(&self, row: usize) -> usize {
        let (mut rest, mut begin) = (row, 0);
        for (&n, &stride) in self.outer.0.iter().zip(self.outer.1).rev() {
            begin += rest % n as usize * stride as usize;
            rest /= n as usize;
        }
        begin
    }
}

/// The values of a list or a table of 4-byte numbers, in order.
pub(crate) fn numbers<T>(t: &StridedRef<'_>, from: fn([u8; 4]) -> T) -> Vec<T> {
    let (rows, columns) = match *t.shape {
        [n] => (1, n as usize),
        [rows, columns] => (rows as usize, columns as usize),
        _ => unreachable!("lists and tables were checked"),
    };
    let stride = |axis_from_last: usize| {
        t.strides.iter().rev().nth(axis_from_last).map_or(0, |&stride| stride as usize)
    };
    let mut values = Vec::with_capacity(rows * columns);
    for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
        let at = 4 * (row * stride(1) + column * stride(0));
        let bytes = &t.span()[at..][..4];
        values.push(from([bytes[0], bytes[1], bytes[2], bytes[3]]));
    }
    values
}

/// Elements that one task takes: fewer take less time than waking a thread.
const TASK_ELEMENTS: usize = 1 << 14;

/// Calls `task` with parts of `n` rows that cost as much as `width` elements each. Few elements are
/// left to the calling thread.
pub(crate) fn each_rows(n: usize, width: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
    let rows = (TASK_ELEMENTS / width.max(1)).max(1);
    each(n.div_ceil(rows), &|i| task(i * rows..n.min((i + 1) * rows)));
}

/// Elements `start..start + n`, as far as they are there.
pub(crate) fn part<T>(values: &[T], start: usize, n: usize) -> &[T] {
    &values[start.min(values.len())..(start + n).min(values.len())]
}

/// Asks the memory for these values, which will be read soon.
#[inline(always)]
pub(crate) fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks((64 / size_of::<T>()).max(1)) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 has the instruction, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
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

/// Rounds to f16, halves to even; what is too large becomes infinite, NaN stays NaN.
#[inline(always)]
pub(crate) fn f16_bits(x: f32) -> u16 {
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    // The exponent is 112 too large. Where the result is subnormal, adding ½ puts the last bit that
    // it has in the last place, which rounds.
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + ((magnitude >> 13) & 1));
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if magnitude < 113 << 23 { subnormal } else { normal >> 13 };
    let nan = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    // From 65520 on the nearest is infinity.
    let bits = if magnitude < 0x477f_f000 { finite } else { nan };
    bits as u16 | sign
}

/// Rounds to a dtype: f32, bf16 or f16.
#[inline(always)]
pub(crate) fn round_to(dtype: Dtype, values: &mut [f32]) {
    match dtype {
        Dtype::Bf16 => {
            values.iter_mut().for_each(|x| *x = f32::from_bits(u32::from(bf16_bits(*x)) << 16));
        }
        Dtype::F16 => values.iter_mut().for_each(|x| *x = from_f16(f16_bits(*x))),
        _ => {}
    }
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

    #[cfg(test)]
    pub(crate) fn of(values: &'a mut [f32]) -> Self {
        let (data, n_bytes) = (values.as_mut_ptr().cast(), size_of_val(values));
        Self { data, n_bytes, dtype: Dtype::F32, life: PhantomData }
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

/// Whether the processor has the registers of [`lanes::Wide`] and fused arithmetic on them.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_wide() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx2") && has!("fma") && has!("f16c")
}

/// Every one of this architecture has them.
#[cfg(target_arch = "aarch64")]
pub(crate) const fn has_wide() -> bool {
    true
}

/// Defines `$name`, which runs `$body::<true>` compiled for AVX2, FMA and F16C where the processor
/// has them, and `$body` as the target allows elsewhere.
macro_rules! for_processor {
    ($(#[$doc:meta])* $name:ident = $body:ident($($arg:ident: $type:ty),* $(,)?)) => {
        $(#[$doc])*
        fn $name($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn wide($($arg: $type),*) {
                    $body::<true>($($arg),*)
                }
                if crate::cpu::has_wide() {
                    // SAFETY: the processor has the features.
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
    fn every_f16_is_written_as_it_was_read_and_halves_round_to_even() {
        for bits in (0..=0x7c00u16).chain(0x8000..=0xfc00) {
            assert_eq!(f16_bits(from_f16(bits)), bits, "{bits:#x}");
        }
        // Between two neighbours: the half goes to the even one, what is beside it to the nearer.
        for bits in 0..0x7bffu16 {
            let half = (f64::from(from_f16(bits)) + f64::from(from_f16(bits + 1))) / 2.0;
            let half = half as f32;
            assert_eq!(f16_bits(half), bits + (bits & 1), "{bits:#x}");
            assert_eq!(f16_bits(half.next_down()), bits, "{bits:#x}");
            assert_eq!(f16_bits(-half.next_up()), 0x8000 | (bits + 1), "{bits:#x}");
        }
        for (value, bits) in [(65519.0f32, 0x7bff), (65520.0, 0x7c00), (-1e30, 0xfc00)] {
            assert_eq!(f16_bits(value), bits, "{value}");
        }
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
