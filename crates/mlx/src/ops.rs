//! Array methods: shape, arithmetic, reductions, sorting, indexing, products. Each builds one graph
//! node.
//!
//! Errors: every method fails if MLX rejects the shapes or dtypes; the error shows them.

use mlx_sys::ffi;

use crate::array::{list, opt, unlist};
use crate::{Array, Dtype, Result};

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        pub fn $name(&self) -> Result<Array> {
            Array::wrap(stringify!($name), &[self], ffi::$name(&self.0))
        }
    )*};
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        pub fn $name(&self, other: &Array) -> Result<Array> {
            Array::wrap(stringify!($name), &[self, other], ffi::$name(&self.0, &other.0))
        }
    )*};
}

macro_rules! reduction {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        ///
        /// Over `axes`, which are removed.
        pub fn $name(&self, axes: &[i32]) -> Result<Array> {
            Array::wrap(stringify!($name), &[self], ffi::$name(&self.0, axes, false))
        }
    )*};
}

macro_rules! along_axis {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        pub fn $name(&self, axis: i32) -> Result<Array> {
            Array::wrap(stringify!($name), &[self], ffi::$name(&self.0, axis))
        }
    )*};
}

/// Elementwise.
impl Array {
    unary! {
        /// −x.
        neg,
        /// |x|.
        abs,
        /// −1, 0 or 1.
        sign,
        /// eˣ.
        exp,
        /// eˣ − 1, exact near 0.
        expm1,
        /// ln x.
        log,
        /// ln(1 + x), exact near 0.
        log1p,
        /// √x.
        sqrt,
        /// 1/√x.
        rsqrt,
        /// x².
        square,
        /// 1/x.
        reciprocal,
        /// 1/(1 + e⁻ˣ).
        sigmoid,
        /// Hyperbolic tangent.
        tanh,
        /// Gauss's error function.
        erf,
        /// Sine.
        sin,
        /// Cosine.
        cos,
        /// Rounds down.
        floor,
        /// Rounds up.
        ceil,
        /// Rounds to the nearest integer, halves to even.
        round,
        /// Boolean not.
        logical_not,
        /// Whether x is NaN.
        is_nan,
        /// Whether x is neither infinite nor NaN.
        is_finite,
        /// The same elements in row-major order in a buffer of their own; the same array if it is
        /// that already.
        contiguous,
        /// Converts to 8-bit floats (E4M3), as u8.
        to_fp8,
    }

    binary! {
        /// x + y.
        add,
        /// x − y.
        sub,
        /// x · y, elementwise.
        mul,
        /// x / y.
        div,
        /// ⌊x / y⌋.
        floor_div,
        /// Remainder with the sign of y.
        rem,
        /// xʸ.
        pow,
        /// The larger one.
        maximum,
        /// The smaller one.
        minimum,
        /// ln(eˣ + eʸ).
        log_add_exp,
        /// x = y, as bool.
        eq,
        /// x ≠ y, as bool.
        ne,
        /// x < y, as bool.
        lt,
        /// x ≤ y, as bool.
        le,
        /// x > y, as bool.
        gt,
        /// x ≥ y, as bool.
        ge,
        /// Boolean and.
        logical_and,
        /// Boolean or.
        logical_or,
        /// Bitwise and.
        bit_and,
        /// Bitwise or.
        bit_or,
        /// Bitwise exclusive or.
        bit_xor,
        /// x · 2ʸ on integers.
        shift_left,
        /// x / 2ʸ on integers.
        shift_right,
        /// Matrix product over the last two axes; leading axes broadcast.
        matmul,
    }

    /// x · `factor`, in the array's own dtype.
    pub fn scale(&self, factor: f32) -> Result<Array> {
        self.mul(&Array::scalar(factor, self.dtype())?)
    }

    /// x + `value`, in the array's own dtype.
    pub fn offset(&self, value: f32) -> Result<Array> {
        self.add(&Array::scalar(value, self.dtype())?)
    }

    /// x·σ(x).
    pub fn silu(&self) -> Result<Array> {
        self.mul(&self.sigmoid()?)
    }

    /// ½x(1 + tanh(√(2/π)(x + 0.044715x³))), formed in f32.
    pub fn gelu_tanh(&self) -> Result<Array> {
        let x = self.astype(Dtype::F32)?;
        let inner = x.square()?.scale(0.044_715)?.offset(1.0)?.mul(&x)?;
        let inner = inner.scale(std::f32::consts::FRAC_2_PI.sqrt())?;
        x.scale(0.5)?.mul(&inner.tanh()?.offset(1.0)?)?.astype(self.dtype())
    }

    /// Limits elements to `[lo, hi]`; an absent bound does not limit.
    pub fn clip(&self, lo: Option<&Array>, hi: Option<&Array>) -> Result<Array> {
        // SAFETY: both pointers are null or borrowed from arrays that outlive the call.
        let result = unsafe { ffi::clip(&self.0, opt(lo), opt(hi)) };
        Array::wrap("clip", &[self], result)
    }

    /// With `self` as condition: `x` where true, else `y`.
    pub fn select(&self, x: &Array, y: &Array) -> Result<Array> {
        Array::wrap("select", &[self, x, y], ffi::where_(&self.0, &x.0, &y.0))
    }

    /// Converts the elements to `dtype`; the same array if they are that already.
    pub fn astype(&self, dtype: Dtype) -> Result<Array> {
        if self.dtype() == dtype {
            return Ok(self.clone());
        }
        Array::wrap("astype", &[self], ffi::astype(&self.0, dtype.code()))
    }

    /// The same bytes read as `dtype`; the last axis grows or shrinks with the element's size.
    pub fn view(&self, dtype: Dtype) -> Result<Array> {
        Array::wrap("view", &[self], ffi::view(&self.0, dtype.code()))
    }

    /// 8-bit floats (E4M3, stored as u8) as `dtype`.
    pub fn from_fp8(&self, dtype: Dtype) -> Result<Array> {
        Array::wrap("from_fp8", &[self], ffi::from_fp8(&self.0, dtype.code()))
    }
}

/// Shape.
impl Array {
    /// The same elements in row-major order in another shape; one size may be −1.
    pub fn reshape(&self, shape: &[i32]) -> Result<Array> {
        Array::wrap("reshape", &[self], ffi::reshape(&self.0, shape))
    }

    /// Reorders the axes: axis `i` of the result is axis `axes[i]`.
    pub fn transpose(&self, axes: &[i32]) -> Result<Array> {
        Array::wrap("transpose", &[self], ffi::transpose(&self.0, axes))
    }

    /// Exchanges two axes.
    pub fn swap_axes(&self, i: i32, j: i32) -> Result<Array> {
        Array::wrap("swap_axes", &[self], ffi::swap_axes(&self.0, i, j))
    }

    /// Inserts axes of size 1 at these positions of the result.
    pub fn expand_dims(&self, axes: &[i32]) -> Result<Array> {
        Array::wrap("expand_dims", &[self], ffi::expand_dims(&self.0, axes))
    }

    /// Removes these axes of size 1.
    pub fn squeeze(&self, axes: &[i32]) -> Result<Array> {
        Array::wrap("squeeze", &[self], ffi::squeeze(&self.0, axes))
    }

    /// Repeats axes of size 1 up to `shape`, without copying.
    pub fn broadcast_to(&self, shape: &[i32]) -> Result<Array> {
        Array::wrap("broadcast_to", &[self], ffi::broadcast_to(&self.0, shape))
    }

    /// Joins axes `from..=to` into one.
    pub fn flatten(&self, from: i32, to: i32) -> Result<Array> {
        Array::wrap("flatten", &[self], ffi::flatten(&self.0, from, to))
    }

    /// Elements `start..stop` of every axis.
    pub fn slice(&self, start: &[i32], stop: &[i32]) -> Result<Array> {
        self.slice_strided(start, stop, &vec![1; start.len()])
    }

    /// Elements `start..stop` of every axis, every `strides`-th.
    pub fn slice_strided(&self, start: &[i32], stop: &[i32], strides: &[i32]) -> Result<Array> {
        Array::wrap("slice", &[self], ffi::slice(&self.0, start, stop, strides))
    }

    /// Elements `range` of one axis; all of the others.
    pub fn slice_axis(&self, axis: i32, range: std::ops::Range<i32>) -> Result<Array> {
        let mut start = vec![0; self.n_dims()];
        let mut stop = self.shape().to_vec();
        let i = if axis < 0 { axis + self.n_dims() as i32 } else { axis } as usize;
        if let (Some(first), Some(last)) = (start.get_mut(i), stop.get_mut(i)) {
            (*first, *last) = (range.start, range.end);
        }
        self.slice(&start, &stop)
    }

    /// A block of `size` that begins at `start` (one number per axis in `axes`), where `start` is
    /// computed on the device.
    pub fn slice_at(&self, start: &Array, axes: &[i32], size: &[i32]) -> Result<Array> {
        Array::wrap("slice_at", &[self, start], ffi::slice_at(&self.0, &start.0, axes, size))
    }

    /// A copy in which `start..stop` is replaced by `update`; in place when nobody else holds this
    /// array.
    pub fn slice_update(&self, update: &Array, start: &[i32], stop: &[i32]) -> Result<Array> {
        let result = ffi::slice_update(&self.0, &update.0, start, stop);
        Array::wrap("slice_update", &[self, update], result)
    }

    /// Like [`Array::slice_update`] from a position computed on the device: one number per axis in
    /// `axes`.
    pub fn slice_update_at(&self, update: &Array, start: &Array, axes: &[i32]) -> Result<Array> {
        let result = ffi::slice_update_at(&self.0, &update.0, &start.0, axes);
        Array::wrap("slice_update_at", &[self, update, start], result)
    }

    /// `n` equal parts along `axis`.
    pub fn split(&self, n: i32, axis: i32) -> Result<Vec<Array>> {
        unlist("split", &[self], ffi::split(&self.0, n, axis))
    }

    /// Parts along `axis` that begin at 0 and at each index of `at`.
    pub fn split_at(&self, at: &[i32], axis: i32) -> Result<Vec<Array>> {
        unlist("split_at", &[self], ffi::split_at(&self.0, at, axis))
    }

    /// Repeats each element `n` times along `axis`.
    pub fn repeat(&self, n: i32, axis: i32) -> Result<Array> {
        Array::wrap("repeat", &[self], ffi::repeat(&self.0, n, axis))
    }

    /// Repeats the whole array `reps[i]` times along axis `i`.
    pub fn tile(&self, reps: &[i32]) -> Result<Array> {
        Array::wrap("tile", &[self], ffi::tile(&self.0, reps))
    }

    /// Adds `low` elements before and `high` after, per axis in `axes`, filled with `value`.
    pub fn pad(&self, axes: &[i32], low: &[i32], high: &[i32], value: f32) -> Result<Array> {
        let value = Array::scalar(value, self.dtype())?;
        Array::wrap("pad", &[self], ffi::pad(&self.0, axes, low, high, &value.0))
    }

    along_axis! {
        /// Reverses the order along `axis`.
        flip,
        /// Ascending order along `axis`.
        sort,
        /// Indices (u32) that would sort along `axis`, ascending.
        argsort,
    }
}

/// Reductions, scans, order.
impl Array {
    reduction! {
        /// Sum.
        sum,
        /// Mean.
        mean,
        /// Product.
        prod,
        /// Largest element.
        max,
        /// Smallest element.
        min,
        /// Whether all are true.
        all,
        /// Whether any is true.
        any,
        /// Variance (divided by n).
        variance,
        /// ln Σ eˣ.
        log_sum_exp,
    }

    /// Sum over `axes`, which stay with size 1.
    pub fn sum_keep(&self, axes: &[i32]) -> Result<Array> {
        Array::wrap("sum_keep", &[self], ffi::sum(&self.0, axes, true))
    }

    /// Mean over `axes`, which stay with size 1.
    pub fn mean_keep(&self, axes: &[i32]) -> Result<Array> {
        Array::wrap("mean_keep", &[self], ffi::mean(&self.0, axes, true))
    }

    /// Largest element over `axes`, which stay with size 1.
    pub fn max_keep(&self, axes: &[i32]) -> Result<Array> {
        Array::wrap("max_keep", &[self], ffi::max(&self.0, axes, true))
    }

    /// ln Σ eˣ over `axes`, which stay with size 1.
    pub fn log_sum_exp_keep(&self, axes: &[i32]) -> Result<Array> {
        Array::wrap("log_sum_exp_keep", &[self], ffi::log_sum_exp(&self.0, axes, true))
    }

    /// Softmax over `axes`, computed in f32, in the array's dtype.
    pub fn softmax(&self, axes: &[i32]) -> Result<Array> {
        Array::wrap("softmax", &[self], ffi::softmax(&self.0, axes, true))
    }

    /// Running sum along `axis`, each element included.
    pub fn cumsum(&self, axis: i32) -> Result<Array> {
        Array::wrap("cumsum", &[self], ffi::cumsum(&self.0, axis, false, true))
    }

    /// Running sum along `axis` of the elements before each.
    pub fn cumsum_exclusive(&self, axis: i32) -> Result<Array> {
        Array::wrap("cumsum_exclusive", &[self], ffi::cumsum(&self.0, axis, false, false))
    }

    /// Index (u32) of the first largest element along `axis`, which is removed.
    pub fn argmax(&self, axis: i32) -> Result<Array> {
        Array::wrap("argmax", &[self], ffi::argmax(&self.0, axis, false))
    }

    /// Index (u32) of the first smallest element along `axis`, which is removed.
    pub fn argmin(&self, axis: i32) -> Result<Array> {
        Array::wrap("argmin", &[self], ffi::argmin(&self.0, axis, false))
    }

    /// The `k` largest elements along `axis`, in no stated order.
    pub fn topk(&self, k: i32, axis: i32) -> Result<Array> {
        Array::wrap("topk", &[self], ffi::topk(&self.0, k, axis))
    }

    /// Indices (u32) such that position `k` is as after sorting, smaller ones before it and larger
    /// ones after it.
    pub fn argpartition(&self, k: i32, axis: i32) -> Result<Array> {
        Array::wrap("argpartition", &[self], ffi::argpartition(&self.0, k, axis))
    }
}

/// Gather and scatter.
impl Array {
    /// The entries `indices` along `axis`.
    pub fn take(&self, indices: &Array, axis: i32) -> Result<Array> {
        Array::wrap("take", &[self, indices], ffi::take(&self.0, &indices.0, axis))
    }

    /// For every position the element whose index along `axis` stands in `indices`.
    pub fn take_along(&self, indices: &Array, axis: i32) -> Result<Array> {
        Array::wrap("take_along", &[self, indices], ffi::take_along(&self.0, &indices.0, axis))
    }

    /// The inverse of [`Array::take_along`]: a copy with `values` at `indices`.
    pub fn put_along(&self, indices: &Array, values: &Array, axis: i32) -> Result<Array> {
        let result = ffi::put_along(&self.0, &indices.0, &values.0, axis);
        Array::wrap("put_along", &[self, indices, values], result)
    }

    /// Slices of `slice_sizes` at positions given by one index array per axis in `axes`.
    pub fn gather(&self, indices: &[&Array], axes: &[i32], slice_sizes: &[i32]) -> Result<Array> {
        let result = ffi::gather(&self.0, &list(indices.iter().copied()), axes, slice_sizes);
        Array::wrap("gather", &[self], result)
    }

    /// A copy in which the slices at `indices` are replaced by `updates`.
    pub fn scatter(&self, indices: &[&Array], updates: &Array, axes: &[i32]) -> Result<Array> {
        let result = ffi::scatter(&self.0, &list(indices.iter().copied()), &updates.0, axes);
        Array::wrap("scatter", &[self, updates], result)
    }

    /// A copy in which `updates` are added at `indices`; repeated indices add up.
    pub fn scatter_add(&self, indices: &[&Array], updates: &Array, axes: &[i32]) -> Result<Array> {
        let result = ffi::scatter_add(&self.0, &list(indices.iter().copied()), &updates.0, axes);
        Array::wrap("scatter_add", &[self, updates], result)
    }
}

/// Products.
impl Array {
    /// `alpha`·(`a` `b`) + `beta`·self.
    pub fn addmm(&self, a: &Array, b: &Array, alpha: f32, beta: f32) -> Result<Array> {
        Array::wrap("addmm", &[self, a, b], ffi::addmm(&self.0, &a.0, &b.0, alpha, beta))
    }

    /// Matrix product of `self[lhs]` and `other[rhs]`: matrices are chosen by index; absent indices
    /// mean all in order. `sorted` promises that indices ascend, for speed.
    pub fn gather_mm(
        &self,
        other: &Array,
        lhs: Option<&Array>,
        rhs: Option<&Array>,
        sorted: bool,
    ) -> Result<Array> {
        // SAFETY: the pointers are null or borrowed from arrays that outlive the call.
        let result = unsafe { ffi::gather_mm(&self.0, &other.0, opt(lhs), opt(rhs), sorted) };
        Array::wrap("gather_mm", &[self, other], result)
    }

    /// One-dimensional convolution. Input `[B, T, C]`, weight `[C_out, K, C/groups]`; with `groups
    /// = C` it is depthwise.
    pub fn conv1d(&self, weight: &Array, padding: i32, groups: i32) -> Result<Array> {
        let result = ffi::conv1d(&self.0, &weight.0, 1, padding, 1, groups);
        Array::wrap("conv1d", &[self, weight], result)
    }
}
