//! Where the elements of queries, keys and values lie.

use std::borrow::Cow;

use mlx::{Dtype, StridedRef};

use crate::attention::Sizes;
use crate::cpu::Failure;
use crate::cpu::lanes::{Lanes, Stored, StoredBf16, StoredF16, StoredF32};

/// A tensor of four dimensions, the last one of consecutive elements.
pub(super) struct Tensor<'a> {
    bytes: Cow<'a, [u8]>,
    /// Elements from one index to the next, of the first three dimensions.
    strides: [usize; 3],
    width: usize,
    pub(super) dtype: Dtype,
}

impl<'a> Tensor<'a> {
    /// As it lies, or copied if its last axis has gaps.
    pub(super) fn new(t: &StridedRef<'a>) -> Result<Self, Failure> {
        let sizes = <[i32; 4]>::try_from(t.shape).map_err(|_| "four dimensions are needed")?;
        let sizes = sizes.map(|n| n as usize);
        let strides: [usize; 4] = std::array::from_fn(|i| t.strides[i] as usize);
        let [_, second, third, width] = sizes;
        let (bytes, strides) = if width == 1 || strides[3] == 1 {
            (Cow::Borrowed(t.span()), [strides[0], strides[1], strides[2]])
        } else {
            let compact = [second * third * width, third * width, width];
            (Cow::Owned(compacted(t, sizes, strides)), compact)
        };
        Ok(Self { bytes, strides, width, dtype: t.dtype })
    }

    /// The bytes of the last axis at this index.
    #[inline(always)]
    pub(super) fn at(&self, index: [usize; 3]) -> &[u8] {
        let item = self.dtype.size_bytes();
        let [a, b, c] = self.strides;
        &self.bytes[(index[0] * a + index[1] * b + index[2] * c) * item..][..self.width * item]
    }
}

/// The elements one after another.
fn compacted(t: &StridedRef<'_>, sizes: [usize; 4], strides: [usize; 4]) -> Vec<u8> {
    let item = t.dtype.size_bytes();
    let mut bytes = Vec::with_capacity(sizes.iter().product::<usize>() * item);
    let n_outer = sizes[0] * sizes[1] * sizes[2];
    for i in 0..n_outer {
        let index = [i / (sizes[1] * sizes[2]), i / sizes[2] % sizes[1], i % sizes[2]];
        let at = index.iter().zip(strides).map(|(i, stride)| i * stride).sum::<usize>();
        for d in 0..sizes[3] {
            bytes.extend_from_slice(&t.span()[(at + d * strides[3]) * item..][..item]);
        }
    }
    bytes
}

/// How a token of a row is found.
pub(super) enum Place {
    /// One after another, from this position on.
    Rows { first_key: usize },
    /// In blocks of so many tokens, `max` numbers of blocks per row.
    Blocks { table: Vec<u32>, max: usize, block: usize },
}

impl Place {
    /// The index of a token's key or value.
    #[inline(always)]
    pub(super) fn index(&self, row: usize, head: usize, token: usize) -> [usize; 3] {
        match self {
            Place::Rows { first_key } => [row, head, token - first_key],
            Place::Blocks { table, max, block } => {
                [table[row * max + token / block] as usize, head, token % block]
            }
        }
    }

    /// Refuses numbers of blocks for these tokens of a row that the pool does not have.
    pub(super) fn check(
        &self,
        row: usize,
        tokens: std::ops::Range<usize>,
        n_blocks: usize,
    ) -> Result<(), Failure> {
        let Place::Blocks { table, max, block } = self else {
            return Ok(());
        };
        for i in tokens.start / block..tokens.end.div_ceil(*block) {
            let number = table[row * max + i];
            if number as usize >= n_blocks {
                return Err(format!(
                    "attention: row {row}'s table names block {number} for tokens {}.., but the \
                     pool has {n_blocks} blocks",
                    i * block
                ));
            }
        }
        Ok(())
    }
}

/// Elements of any of the three types as f32, multiplied.
#[inline(always)]
pub(super) fn read_scaled<V: Lanes>(dtype: Dtype, bytes: &[u8], scale: f32, to: &mut [f32]) {
    match dtype {
        Dtype::Bf16 => scaled::<V, StoredBf16>(bytes, scale, to),
        Dtype::F16 => scaled::<V, StoredF16>(bytes, scale, to),
        _ => scaled::<V, StoredF32>(bytes, scale, to),
    }
}

#[inline(always)]
fn scaled<V: Lanes, E: Stored>(bytes: &[u8], scale: f32, to: &mut [f32]) {
    let (eights, rest) = E::eights(bytes);
    let (wide, narrow) = to.as_chunks_mut::<8>();
    for (to, from) in wide.iter_mut().zip(eights) {
        E::widen::<V>(from).mul(V::splat(scale)).store(to);
    }
    for (to, from) in narrow.iter_mut().zip(rest.chunks_exact(E::BYTES)) {
        *to = E::one(from) * scale;
    }
}

/// Bounds of the keys that a query at `position` sees.
pub(super) fn seen(
    position: usize,
    window: Option<usize>,
    first_key: usize,
) -> std::ops::Range<usize> {
    let from = window.map_or(0, |window| (position + 1).saturating_sub(window));
    from.max(first_key)..position + 1
}

/// The tokens that a row's queries see, of `n` queries from `position` on.
pub(super) fn seen_by_all(
    position: usize,
    n: usize,
    window: Option<usize>,
    first_key: usize,
) -> std::ops::Range<usize> {
    if n == 0 {
        return first_key..first_key;
    }
    seen(position, window, first_key).start..position + n
}

/// Where the first key of the inputs stands, as the sizes count it.
pub(super) fn check_row(
    sizes: &Sizes,
    first_key: i32,
    row: usize,
    position: i32,
    n: i32,
) -> Result<(), Failure> {
    sizes
        .check_position(first_key, position, n)
        .map_err(|message| format!("attention: row {row}: {message}"))
}
