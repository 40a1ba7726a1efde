//! Packed codes of a row as one byte each, in the order of [`super::activations`].
//!
//! MLX packs codes as a stream of bits, the first lowest, so that eight codes take as many bytes as
//! a code has bits. Signed bytes are 8-bit codes minus 128.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;

use super::activations::BLOCK;
use super::coded::{Coded, word};
#[cfg(target_arch = "x86_64")]
use avx2 as wide;
#[cfg(target_arch = "aarch64")]
use neon as wide;

/// Unpacks `packed` to whole blocks; beyond the row's end they are 0. What another row left there
/// could be no number.
pub(super) fn unpack(coded: &Coded<'_>, packed: &[u8], to: &mut [u8]) {
    let (n_bytes, mut n_done) = (BLOCK * coded.bits() / 8, 0);
    if crate::cpu::has_wide() {
        // SAFETY: the processor has the instructions.
        n_done = unsafe {
            match coded.is_nibbles() {
                true => wide::nibbles(coded.table(), packed, to),
                false => wide::streams(&Spread::new(coded.bits()), packed, to),
            }
        };
    }
    portable(coded, &packed[n_done * n_bytes..], &mut to[n_done * BLOCK..]);
}

/// How eight packed codes get a 16-bit lane each, codes of even index before those of odd index:
/// the two bytes that hold the code, a multiplication that moves it to the lane's top, and a shift
/// down to 0.
struct Spread {
    bits: usize,
    /// Which bytes; from 128 on, none.
    bytes: [u8; 16],
    factors: [u16; 8],
    /// Signed codes change their sign bit.
    flip: u8,
}

impl Spread {
    fn new(bits: usize) -> Self {
        let (mut bytes, mut factors) = ([0u8; 16], [0u16; 8]);
        for lane in 0..8 {
            let j = if lane < 4 { 2 * lane } else { 2 * (lane - 4) + 1 };
            let first = j * bits / 8;
            let offset = j * bits % 8;
            bytes[2 * lane] = first as u8;
            // The last code may end with the last byte: the byte after it would be another's.
            bytes[2 * lane + 1] = if offset + bits > 8 { first as u8 + 1 } else { 0x80 };
            factors[lane] = 1 << (16 - bits - offset);
        }
        Self { bits, bytes, factors, flip: if bits == 8 { 128 } else { 0 } }
    }
}

/// The slow twin.
fn portable(coded: &Coded<'_>, packed: &[u8], to: &mut [u8]) {
    let (bits, table) = (coded.bits(), coded.table());
    let flip = if coded.is_signed() { 128 } else { 0 };
    to[packed.len() / (8 * bits) * BLOCK..].fill(0);
    for (lane, eight) in packed.chunks(bits).enumerate() {
        let word = word(eight);
        let at = lane / 8 * BLOCK + lane % 8 * 4;
        for j in 0..8 {
            let code = (word >> (j * bits)) as u8 & ((1u16 << bits) - 1) as u8;
            let code = table.map_or(code, |table| table[usize::from(code)]);
            to[at + j % 2 * 32 + j / 2] = code ^ flip;
        }
    }
}

#[cfg(test)]
mod tests {
    use mlx::{Dtype, QuantMode, Quantization, TensorRef};

    use super::*;

    #[test]
    fn the_fast_form_unpacks_what_the_slow_one_does() {
        for (mode, bits) in
            [(2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (8, 0), (4, 1)].map(|(bits, mode)| {
                (if mode == 0 { QuantMode::Affine } else { QuantMode::Mxfp4 }, bits)
            })
        {
            let quantization = Quantization { mode, bits, group_size: 32 };
            for width in [32, 64, 96, 64 * 5, 64 * 7 + 32] {
                let n_bytes = width * bits as usize / 8;
                let packed =
                    (0..n_bytes).map(|i| (i * 167 + i * i * 13 + 5) as u8).collect::<Vec<_>>();
                let is_affine = mode == QuantMode::Affine;
                let scales = vec![0u8; width / 32 * if is_affine { 2 } else { 1 }];
                let shapes = [[1, (n_bytes / 4) as i32], [1, width as i32 / 32]];
                let dtype = if is_affine { Dtype::Bf16 } else { Dtype::U8 };
                let coded = Coded::new(
                    &[
                        TensorRef::new(&packed, &shapes[0], Dtype::U32),
                        TensorRef::new(&scales, &shapes[1], dtype),
                    ],
                    quantization,
                )
                .unwrap();
                let room = width.div_ceil(BLOCK) * BLOCK;
                let (mut slow, mut fast) = (vec![0xff; room], vec![0xff; room]);
                portable(&coded, coded.packed(0), &mut slow);
                unpack(&coded, coded.packed(0), &mut fast);
                let inside = |e: &usize| e / BLOCK * BLOCK + e % BLOCK % 2 * 32 + e % BLOCK / 2;
                for e in 0..width {
                    assert_eq!(fast[inside(&e)], slow[inside(&e)], "{bits} bits: {e} of {width}");
                }
                for e in width..room {
                    assert_eq!((fast[inside(&e)], slow[inside(&e)]), (0, 0), "{bits} bits: {e}");
                }
            }
        }
    }
}
