//! Blocks of a pool that come, go and stay: against the twin, and against lists.

use kernels::blocks;
use kernels::self_attention::{Layout, NOWHERE, extend, extend_reference};
use mlx::{Array, Backend, Dtype};

use crate::{Values, address, device};

fn numbers(x: &Array) -> Vec<f32> {
    x.to_f32_vec().unwrap()
}

/// The pool after the change.
fn written(changed: mlx::Result<blocks::Changed>) -> Array {
    let blocks::Changed { pool, done } = changed.unwrap();
    done.eval().unwrap();
    pool
}

#[test]
fn copied_blocks_are_twice_in_every_pool_and_all_others_are_as_they_were() {
    let _device = device();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let mut values = Values(4);
        let pools = [[9, 4, 3, 5], [7, 1, 3, 200], [8, 2, 3, 1]].map(|shape| {
            let pool = values.array(&shape, |x| x).astype(dtype).unwrap();
            pool.eval().unwrap();
            pool
        });
        let (from, to) = ([6, 1, 6], [0, 5, 3]);
        let wanted = pools.each_ref().map(|pool| {
            let (mut list, size) = (numbers(pool), pool.n_elements() / pool.dim(0) as usize);
            for (from, to) in from.into_iter().zip(to) {
                let [from, to] = [from, to].map(|id| id as usize * size);
                list.copy_within(from..from + size, to);
            }
            assert_eq!(numbers(&blocks::copy_reference(pool.clone(), &from, &to).unwrap()), list);
            list
        });
        let found = blocks::copy(pools.into(), &from, &to).unwrap();
        let found = found.into_iter().map(|changed| written(Ok(changed)));
        assert_eq!(found.map(|pool| numbers(&pool)).collect::<Vec<_>>(), wanted, "{dtype}");
    }
}

#[test]
fn written_blocks_are_there_and_all_others_are_as_they_were() {
    let _device = device();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let mut values = Values(1);
        let array = |values: &mut Values, shape: &[i32]| {
            let array = values.array(shape, |x| x).astype(dtype).unwrap();
            array.eval().unwrap();
            array
        };
        let pool = array(&mut values, &[7, 4, 3, 5]);
        let new = array(&mut values, &[2, 4, 3, 5]);
        let ids = [5, 1];
        let wanted = blocks::write_reference(pool.clone(), &new, &ids).unwrap();
        let mut list = numbers(&pool);
        for (block, id) in numbers(&new).chunks(60).zip(ids) {
            list[id as usize * 60..][..60].copy_from_slice(block);
        }
        let found = written(blocks::write(pool, &new, &ids));
        assert_eq!(numbers(&found), list, "{dtype}");
        assert_eq!(numbers(&wanted), list, "{dtype}");
        let read = blocks::read(&found, &ids).unwrap();
        assert_eq!(numbers(&read), numbers(&new), "{dtype}");
        assert!(read.buffer_bytes().unwrap() <= 2 * read.n_bytes() + 16_384);
        // As a view of something larger.
        let view = array(&mut values, &[2, 4, 3, 9]).slice_axis(3, 2..7).unwrap();
        let found = written(blocks::write(found, &view, &[0, 6]));
        assert_eq!(numbers(&blocks::read(&found, &[0, 6]).unwrap()), numbers(&view), "{dtype}");
    }
}

#[test]
fn a_pool_that_nothing_else_holds_is_written_in_place() {
    if device().backend() != Backend::Cpu {
        return;
    }
    let (before, pool) = address(Array::zeros(&[50, 4, 3, 5], Dtype::F32).unwrap());
    let new = Array::full(&[1, 4, 3, 5], 2.0, Dtype::F32).unwrap();
    let pool = written(blocks::write(pool, &new, &[7]));
    let tokens = Array::full(&[1, 2, 20], 3.0, Dtype::F32).unwrap();
    let slots = Array::from_slice(&[7u32, 4], &[1, 2]).unwrap();
    let table = Array::from_slice(&[2u32, 1], &[1, 2]).unwrap();
    let begins = Array::from_slice(&[0], &[1]).unwrap();
    let layout = Layout::Blocks { table: &table, slots: &slots, begins: &begins };
    let pool = extend(pool, &tokens, layout).unwrap().pool;
    let (after, pool) = address(pool);
    assert_eq!(before, after);
    let held = pool.clone();
    let other = written(blocks::write(pool, &new, &[8]));
    assert_eq!(numbers(&other)[8 * 60], 2.0);
    assert_eq!(numbers(&held)[8 * 60], 0.0);
}

#[test]
fn tokens_go_to_their_slots_and_some_nowhere() {
    let _device = device();
    for (dtype, dim) in [(Dtype::F32, 5), (Dtype::Bf16, 6), (Dtype::F16, 24), (Dtype::Bf16, 64)] {
        let mut values = Values(2);
        let size = 2 * dim as usize;
        let pool = values.array(&[5, 2, 4, dim], |x| x).astype(dtype).unwrap();
        let new = values.array(&[2, 3, 2 * dim], |x| x).astype(dtype).unwrap();
        mlx::eval([&pool, &new]).unwrap();
        // Row 0 has tokens 0..3 in block 1, the third of them known; row 1 tokens 3..6 in blocks 3
        // and 0, the second of them nowhere.
        let slots = Array::from_slice(&[4, 5, NOWHERE, 15, NOWHERE, 1], &[2, 3]).unwrap();
        let table = Array::from_slice(&[1u32, 2, 3, 0], &[2, 2]).unwrap();
        let begins = Array::from_slice(&[0, 3], &[2]).unwrap();
        let layout = Layout::Blocks { table: &table, slots: &slots, begins: &begins };
        // The last slot, in the last block, is nobody's.
        let known = |x: &Array| numbers(x)[..16 * size].to_vec();
        let mut wanted = known(&pool);
        let dim = dim as usize;
        for (token, slot, head) in [(0, 4), (1, 5), (3, 15), (5, 1)]
            .into_iter()
            .flat_map(|(token, slot)| [0, 1].map(|head| (token, slot, head)))
        {
            let to = ((slot / 4 * 2 + head) * 4 + slot % 4) * dim;
            let from = &numbers(&new)[token * size + head * dim..][..dim];
            wanted[to..][..dim].copy_from_slice(from);
        }
        assert_eq!(known(&extend_reference(&pool, &new, layout).unwrap()), wanted);
        let made = extend(pool, &new, layout).unwrap();
        if let Some(rows) = &made.rows {
            rows.eval().unwrap();
            let laid_out = blocks::laid_out(&made.pool, &table).unwrap();
            for (row, end) in [(0, 3), (1, 6)] {
                let part = |x: &Array| {
                    let own = x.slice_axis(0, row..row + 1).unwrap();
                    numbers(&own.slice_axis(2, 0..end).unwrap())
                };
                assert_eq!(part(rows), part(&laid_out), "{dtype}, row {row}");
            }
        }
        assert_eq!(known(&made.pool), wanted, "{dtype}");
    }
}

#[test]
fn blocks_that_are_none_or_do_not_fit_are_refused() {
    let _device = device();
    let pool = || Array::zeros(&[7, 4, 3, 5], Dtype::F32).unwrap();
    let new = |n, dtype| Array::zeros(&[n, 4, 3, 5], dtype).unwrap();
    let f32 = Dtype::F32;
    let write = |new: &Array, ids: &[u32]| blocks::write(pool(), new, ids).map(|c| c.pool);
    let copy = |from: &[u32], to: &[u32]| {
        blocks::copy(vec![pool()], from, to).map(|mut changed| changed.remove(0).pool)
    };
    let other = || Array::zeros(&[7, 4, 3, 5], Dtype::Bf16).unwrap();
    for (found, reason) in [
        (blocks::read(&pool(), &[3, 7]), "block 7 is none of 7"),
        (blocks::read(&pool(), &[]), "there are no blocks to move"),
        (write(&new(2, f32), &[7, 0]), "block 7 is none of 7"),
        (write(&new(2, f32), &[3, 3]), "block 3 is named twice"),
        (write(&new(1, f32), &[3, 4]), "must have shape [2, 4, 3, 5]"),
        (write(&new(1, Dtype::Bf16), &[3]), "must be f32"),
        (copy(&[7], &[0]), "block 7 is none of 7"),
        (copy(&[0], &[7]), "block 7 is none of 7"),
        (copy(&[1, 2], &[0]), "2 blocks cannot go to 1 places"),
        (copy(&[1, 2], &[0, 0]), "block 0 is named twice"),
        (copy(&[1, 2], &[3, 1]), "block 1 is named twice"),
        (blocks::copy(vec![pool(), other()], &[1], &[2]).map(|_| pool()), "must be f32"),
    ] {
        let message = found.unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}
