//! Blocks written into a pool in place: see `self_attention/cuda.rs` for why MLX's own operation
//! would copy the pool. The launch is evaluated at once, so that what follows comes after it.

use mlx::{Array, Dtype, Launch, Result};

use crate::cuda::Kernel;

const THREADS: i32 = 256;

pub(super) fn write(pool: Array, blocks: &Array, ids: &[u32]) -> Result<Array> {
    let n = ids.len() as i32;
    let size = pool.dim(1) * pool.dim(2) * pool.dim(3);
    let ids = Array::from_slice(ids, &[n])?;
    let kernel = Kernel {
        name: "offshoot_write_blocks".to_owned(),
        source: include_str!("write.cu"),
        inputs: vec![("pool", Some(&pool)), ("blocks", Some(blocks)), ("ids", Some(&ids))],
        outputs: vec!["done"],
        call: &|| "offshoot::write_blocks<SIZE, T>(pool, blocks, ids, done);".to_owned(),
        shared_bytes: 0,
    };
    let made = kernel.launch(&Launch {
        outputs: &[(&[1], Dtype::U32)],
        grid: [(size + THREADS - 1) / THREADS * THREADS, n, 1],
        group: [THREADS, 1, 1],
        ints: &[("SIZE", size)],
        dtypes: &[("T", pool.dtype())],
    })?;
    mlx::eval(&made)?;
    Ok(pool)
}
