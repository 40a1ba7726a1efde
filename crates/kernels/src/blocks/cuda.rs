//! Blocks written into a pool in place: see `self_attention/cuda.rs` for why MLX's own operation
//! would copy the pool. What comes after must not begin before `done` is evaluated.

use mlx::{Array, Dtype, Launch, Result};

use super::Changed;
use crate::cuda::Kernel;

const THREADS: i32 = 256;

pub(super) fn write(pool: Array, blocks: &Array, ids: &[u32]) -> Result<Changed> {
    let ids = Array::from_slice(ids, &[ids.len() as i32])?;
    let kernel = Kernel {
        name: "offshoot_write_blocks".to_owned(),
        source: include_str!("write.cu"),
        inputs: vec![("pool", Some(&pool)), ("blocks", Some(blocks)), ("ids", Some(&ids))],
        outputs: vec!["done"],
        call: &|| "offshoot::write_blocks<SIZE, T>(pool, blocks, ids, done);".to_owned(),
        shared_bytes: 0,
    };
    let done = launch(&kernel, &pool, ids.dim(0))?;
    Ok(Changed { pool, done })
}

pub(super) fn copy(pool: Array, from: &[u32], to: &[u32]) -> Result<Changed> {
    let [from, to] = [from, to].map(|ids| Array::from_slice(ids, &[ids.len() as i32]));
    let (from, to) = (from?, to?);
    let kernel = Kernel {
        name: "offshoot_copy_blocks".to_owned(),
        source: include_str!("copy.cu"),
        inputs: vec![("pool", Some(&pool)), ("from", Some(&from)), ("to", Some(&to))],
        outputs: vec!["done"],
        call: &|| "offshoot::copy_blocks<SIZE, T>(pool, from, to, done);".to_owned(),
        shared_bytes: 0,
    };
    let done = launch(&kernel, &pool, from.dim(0))?;
    Ok(Changed { pool, done })
}

/// Threads for each element of `n` blocks.
fn launch(kernel: &Kernel<'_>, pool: &Array, n: i32) -> Result<Array> {
    let size = pool.dim(1) * pool.dim(2) * pool.dim(3);
    let made = kernel.launch(&Launch {
        outputs: &[(&[1], Dtype::U32)],
        grid: [(size + THREADS - 1) / THREADS * THREADS, n, 1],
        group: [THREADS, 1, 1],
        ints: &[("SIZE", size)],
        dtypes: &[("T", pool.dtype())],
    })?;
    Ok(made.into_iter().next().expect("one output was asked for"))
}
