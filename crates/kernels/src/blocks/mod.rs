//! Whole blocks of a pool, `[N, K, n, D]`: brought in from elsewhere, taken out to elsewhere, and
//! copied within. What attention reads and writes token by token is
//! [`self_attention`](crate::self_attention)'s.
//!
//! | form | where |
//! |---|---|
//! | [`write_reference`], [`copy_reference`] | everywhere: the twins, and what Metal runs |
//! | `cpu.rs` | CPU: in place, where nothing else holds the pool |
//! | `cuda.rs` | CUDA: in place, whoever holds the pool |

mod cpu;
mod cuda;

use mlx::{Array, Backend, Device, Dtype, Result};

use crate::input::{dims, expect_dtype, expect_shape, refused};

const OP: &str = "blocks";

/// A pool with other blocks in places. The evaluation of `done` must begin before that of anything
/// else that is made of the pool; that of many pools at once does.
#[derive(Debug)]
pub struct Changed {
    /// The pool.
    pub pool: Array,
    /// What makes the change when it is evaluated.
    pub done: Array,
}

impl From<Array> for Changed {
    fn from(pool: Array) -> Self {
        Self { done: pool.clone(), pool }
    }
}

/// The blocks of `pool` that `ids` name, `[k, n, K, D]`, with memory of their own.
///
/// # Errors
/// There is no such block.
pub fn read(pool: &Array, ids: &[u32]) -> Result<Array> {
    check(pool, ids)?;
    pool.take(&Array::staged(ids, &[ids.len() as i32])?, 0)
}

/// `pool` with `blocks` `[k, n, K, D]` as the ones that `ids` name, no two alike. A pool that
/// nothing else holds is written in place, on CUDA any pool.
///
/// # Errors
/// Shapes or dtypes do not fit each other, there is no such block, or one is named twice.
pub fn write(pool: Array, blocks: &Array, ids: &[u32]) -> Result<Changed> {
    check_write(&pool, blocks, ids)?;
    match Device::current_backend() {
        Backend::Cpu => cpu::write(pool, blocks, ids).map(Changed::from),
        Backend::Cuda => cuda::write(pool, blocks, ids),
        Backend::Metal => write_reference(pool, blocks, ids).map(Changed::from),
    }
}

/// Each of `pools`, which may differ in everything but their dtype, with copies of the blocks
/// `from` as the blocks `to`, one for each, none of which is in both lists or twice in `to`. In
/// place as in [`write`]; on CUDA one launch for all.
///
/// # Errors
/// There is no such block, or one is named twice; dtypes differ, or there are no pools.
pub fn copy(pools: Vec<Array>, from: &[u32], to: &[u32]) -> Result<Vec<Changed>> {
    if pools.is_empty() {
        return Err(refused(OP, &[], "there are no blocks to move".to_owned()));
    }
    for pool in &pools {
        check_copy(pool, from, to)?;
        expect_dtype(OP, "pools", pool, pools[0].dtype())?;
    }
    match Device::current_backend() {
        Backend::Cpu => each(pools, |pool| cpu::copy(pool, from, to)),
        Backend::Cuda => cuda::copy(pools, from, to),
        Backend::Metal => each(pools, |pool| copy_reference(pool, from, to)),
    }
}

fn each(pools: Vec<Array>, change: impl Fn(Array) -> Result<Array>) -> Result<Vec<Changed>> {
    pools.into_iter().map(|pool| change(pool).map(Changed::from)).collect()
}

/// The same of one pool in MLX's operations.
///
/// # Errors
/// Those of [`copy`].
pub fn copy_reference(pool: Array, from: &[u32], to: &[u32]) -> Result<Array> {
    check_copy(&pool, from, to)?;
    let blocks = read(&pool, from)?;
    write_reference(pool, &blocks, to)
}

/// The same in MLX's operations.
///
/// # Errors
/// Those of [`write`].
pub fn write_reference(pool: Array, blocks: &Array, ids: &[u32]) -> Result<Array> {
    check_write(&pool, blocks, ids)?;
    let ids = Array::from_slice(ids, &[ids.len() as i32])?;
    pool.scatter(&[&ids], &blocks.expand_dims(&[1])?, &[0])
}

/// The tokens of each row one after another: `[B, K, max·n, D]` by a `table` `[B, max]`, u32.
/// Entries that are no blocks give block 0: what no query needs may be anything.
///
/// # Errors
/// Shapes or dtypes do not fit each other.
pub fn laid_out(pool: &Array, table: &Array) -> Result<Array> {
    let [n_blocks, n_heads, n_tokens, dim] = dims(OP, "pool", pool)?;
    let [rows, width] = dims(OP, "table", table)?;
    expect_dtype(OP, "table", table, Dtype::U32)?;
    let known = table.lt(&Array::from_slice(&[n_blocks as u32], &[])?)?;
    let table = known.select(table, &Array::from_slice(&[0u32], &[])?)?;
    let blocks = pool.take(&table, 0)?.swap_axes(1, 2)?; // [B, K, max, n, D]
    blocks.reshape(&[rows, n_heads, width * n_tokens, dim])
}

fn check(pool: &Array, ids: &[u32]) -> Result<()> {
    let [n_blocks, ..] = dims::<4>(OP, "pool", pool)?;
    if pool.shape().contains(&0) || ids.is_empty() {
        return Err(refused(OP, &[pool], "there are no blocks to move".to_owned()));
    }
    match ids.iter().find(|id| i64::from(**id) >= i64::from(n_blocks)) {
        None => Ok(()),
        Some(id) => Err(refused(OP, &[pool], format!("block {id} is none of {n_blocks}"))),
    }
}

fn check_write(pool: &Array, blocks: &Array, ids: &[u32]) -> Result<()> {
    check(pool, ids)?;
    let [_, n_heads, n_tokens, dim] = dims(OP, "pool", pool)?;
    expect_shape(OP, "blocks", blocks, &[ids.len() as i32, n_heads, n_tokens, dim])?;
    expect_dtype(OP, "blocks", blocks, pool.dtype())?;
    check_once(pool, ids)
}

fn check_copy(pool: &Array, from: &[u32], to: &[u32]) -> Result<()> {
    check(pool, from)?;
    check(pool, to)?;
    if from.len() != to.len() {
        let text = format!("{} blocks cannot go to {} places", from.len(), to.len());
        return Err(refused(OP, &[pool], text));
    }
    let apart = from.iter().copied().collect::<std::collections::BTreeSet<_>>();
    check_once(pool, &apart.into_iter().chain(to.iter().copied()).collect::<Vec<_>>())
}

fn check_once(pool: &Array, ids: &[u32]) -> Result<()> {
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => Err(refused(OP, &[pool], format!("block {} is named twice", pair[0]))),
    }
}
