//! Packed codes of a row as one byte each, in the order of [`super::activations`].
//!
//! MLX packs codes as a stream of bits, the first lowest, so that eight codes take as many bytes as
//! a code has bits. Signed bytes are 8-bit codes minus 128.

use super::activations::BLOCK;
use super::coded::{Coded, word};

/// Unpacks `packed` to whole blocks; beyond the row's end they are 0. What another row left there
/// could be no number.
pub(super) fn unpack(coded: &Coded<'_>, packed: &[u8], to: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::has_wide() {
        // SAFETY: the processor has AVX2.
        return unsafe { avx2::unpack(coded, packed, to) };
    }
    portable(coded, packed, to);
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

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Coded};

    #[target_feature(enable = "avx2")]
    pub(super) fn unpack(coded: &Coded<'_>, packed: &[u8], to: &mut [u8]) {
        let n_bytes = BLOCK * coded.bits() / 8;
        let n_whole = if coded.is_nibbles() {
            nibbles(coded.table(), packed, to)
        } else {
            streams(coded.bits(), packed, to)
        };
        super::portable(coded, &packed[n_whole * n_bytes..], &mut to[n_whole * BLOCK..]);
    }

    /// 4-bit codes; returns how many blocks it did.
    #[target_feature(enable = "avx2")]
    fn nibbles(table: Option<&[u8; 16]>, packed: &[u8], to: &mut [u8]) -> usize {
        let mask = _mm256_set1_epi8(15);
        let n_whole = packed.len() / 32;
        let blocks = packed.chunks_exact(32).zip(to.chunks_exact_mut(BLOCK));
        let put = |to: &mut [u8], low, high| {
            assert!(to.len() == BLOCK);
            // SAFETY: 64 bytes are there, by the assertion.
            unsafe {
                _mm256_storeu_si256(to.as_mut_ptr().cast(), low);
                _mm256_storeu_si256(to.as_mut_ptr().add(32).cast(), high);
            }
        };
        for (packed, to) in blocks {
            // SAFETY: the chunk has 32 bytes.
            let both = unsafe { _mm256_loadu_si256(packed.as_ptr().cast()) };
            let low = _mm256_and_si256(both, mask);
            let high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
            match table {
                Some(table) => {
                    // SAFETY: the table has 16 bytes.
                    let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
                    let table = _mm256_broadcastsi128_si256(table);
                    put(to, _mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high));
                }
                None => put(to, low, high),
            }
        }
        n_whole
    }

    /// Codes of `bits`; returns how many blocks it did. The last block is not done: eight bytes are
    /// read for each eight codes.
    ///
    /// Of eight codes each gets the two bytes that hold it as a 16-bit lane, codes of even index
    /// before those of odd index; a multiplication moves it to the lane's top, a shift down to 0.
    #[target_feature(enable = "avx2")]
    fn streams(bits: usize, packed: &[u8], to: &mut [u8]) -> usize {
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
        // SAFETY: both arrays have 16 bytes.
        let (bytes, factors) = unsafe {
            (
                _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())),
                _mm256_broadcastsi128_si256(_mm_loadu_si128(factors.as_ptr().cast())),
            )
        };
        let down = _mm_cvtsi32_si128(16 - bits as i32);
        let flip = _mm256_set1_epi8(if bits == 8 { -128 } else { 0 });
        let n_bytes = 8 * bits;
        let n_whole = (packed.len().saturating_sub(8)) / n_bytes;
        for (block, to) in to.chunks_exact_mut(BLOCK).take(n_whole).enumerate() {
            let eights = &packed[block * n_bytes..block * n_bytes + 7 * bits + 8];
            // Groups of eight codes `i` and `i + 4`.
            let pair = |i: usize| {
                let (a, b) = (&eights[i * bits..][..8], &eights[(i + 4) * bits..][..8]);
                // SAFETY: both slices have 8 bytes.
                let (a, b) = unsafe {
                    (_mm_loadl_epi64(a.as_ptr().cast()), _mm_loadl_epi64(b.as_ptr().cast()))
                };
                let both = _mm256_set_m128i(b, a);
                let spread = _mm256_mullo_epi16(_mm256_shuffle_epi8(both, bytes), factors);
                _mm256_srl_epi16(spread, down)
            };
            // Four bytes each: E0 O0 E1 O1 | E4 O4 E5 O5, and E2 O2 E3 O3 | E6 O6 E7 O7.
            let p = _mm256_castsi256_ps(_mm256_packus_epi16(pair(0), pair(1)));
            let q = _mm256_castsi256_ps(_mm256_packus_epi16(pair(2), pair(3)));
            let even = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(p, q));
            let odd = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(p, q));
            // SAFETY: the chunk has 64 bytes.
            unsafe {
                _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_xor_si256(even, flip));
                _mm256_storeu_si256(to.as_mut_ptr().add(32).cast(), _mm256_xor_si256(odd, flip));
            }
        }
        n_whole
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
