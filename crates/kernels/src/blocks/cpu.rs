//! Blocks lie one after another in a pool, so each is a range of bytes.

use mlx::{Array, CpuKernel, Result};

pub(super) fn write(pool: Array, blocks: &Array, ids: &[u32]) -> Result<Array> {
    let block_bytes = pool.n_bytes() / pool.dim(0) as usize;
    let (blocks, ids) = (blocks.contiguous()?, ids.to_vec());
    CpuKernel::update(pool, &[&blocks], move |ins, pool| {
        let (from, to) = (ins[0].span(), pool.bytes_mut());
        for (block, id) in from.chunks_exact(block_bytes).zip(&ids) {
            let begin = *id as usize * block_bytes;
            to[begin..begin + block_bytes].copy_from_slice(block);
        }
        Ok(())
    })
}

pub(super) fn copy(pool: Array, from: &[u32], to: &[u32]) -> Result<Array> {
    let block_bytes = pool.n_bytes() / pool.dim(0) as usize;
    let pairs = from.iter().copied().zip(to.iter().copied()).collect::<Vec<_>>();
    CpuKernel::update(pool, &[], move |_, pool| {
        for (from, to) in &pairs {
            let [from, to] = [from, to].map(|id| *id as usize * block_bytes);
            pool.bytes_mut().copy_within(from..from + block_bytes, to);
        }
        Ok(())
    })
}
