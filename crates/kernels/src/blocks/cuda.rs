//! Blocks written into a pool in place: see `self_attention/cuda.rs` for why MLX's own operation
//! would copy the pool. Launches of one evaluation come after those of the one before.

use mlx::{Array, Dtype, Launch, Result};

use super::Changed;
use crate::cuda::Kernel;

const THREADS: i32 = 256;

pub(super) fn write(pool: Array, blocks: &Array, ids: &[u32]) -> Result<Changed> {
    let ids = Array::staged(ids, &[ids.len() as i32])?;
    let kernel = Kernel {
        name: "offshoot_write_blocks".to_owned(),
        source: include_str!("write.cu"),
        inputs: vec![("pool", Some(&pool)), ("blocks", Some(blocks)), ("ids", Some(&ids))],
        outputs: vec!["done"],
        call: &|| "offshoot::write_blocks<SIZE, T>(pool, blocks, ids, done);".to_owned(),
        shared_bytes: 0,
    };
    let size = block_size(&pool);
    let done = launch(&kernel, [size, ids.dim(0), 1], &[("SIZE", size)], pool.dtype())?;
    Ok(Changed { pool, done })
}

pub(super) fn copy(pools: Vec<Array>, from: &[u32], to: &[u32]) -> Result<Vec<Changed>> {
    let n = pools.len();
    let sizes = pools.iter().map(block_size);
    let ids = from.iter().chain(to).map(|id| *id as i32);
    let plan = sizes.clone().chain(ids).collect::<Vec<_>>();
    let plan = Array::staged(&plan, &[plan.len() as i32])?;
    let names = (0..n).map(|i| format!("pool{i}_")).collect::<Vec<_>>();
    let named = names.iter().map(String::as_str).zip(&pools).chain([("plan", &plan)]);
    let call = || {
        let pointers = names.iter().map(|name| format!("(T*){name}")).collect::<Vec<_>>();
        let pointers = pointers.join(", ");
        format!(
            "T* const pools[] = {{{pointers}}};\n\
             offshoot::copy_blocks<T>(pools, plan, plan + {n}, done);"
        )
    };
    let kernel = Kernel {
        name: format!("offshoot_copy_blocks_{n}"),
        source: include_str!("copy.cu"),
        inputs: named.map(|(name, array)| (name, Some(array))).collect(),
        outputs: vec!["done"],
        call: &call,
        shared_bytes: 0,
    };
    let most = sizes.max().unwrap_or(0);
    let n_threads = [most, n as i32, from.len() as i32];
    let done = launch(&kernel, n_threads, &[], pools[0].dtype())?;
    Ok(pools.into_iter().map(|pool| Changed { pool, done: done.clone() }).collect())
}

/// What comes back is there when all threads are done.
fn launch(
    kernel: &Kernel<'_>,
    [x, y, z]: [i32; 3],
    ints: &[(&str, i32)],
    dtype: Dtype,
) -> Result<Array> {
    let made = kernel.launch(&Launch {
        outputs: &[(&[1], Dtype::U32)],
        grid: [(x + THREADS - 1) / THREADS * THREADS, y, z],
        group: [THREADS, 1, 1],
        ints,
        dtypes: &[("T", dtype)],
    })?;
    Ok(made.into_iter().next().expect("one output was asked for"))
}

/// Elements of a block.
fn block_size(pool: &Array) -> i32 {
    pool.dim(1) * pool.dim(2) * pool.dim(3)
}
