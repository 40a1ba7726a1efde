//! Packed codes to bytes with NEON.

use std::arch::aarch64::*;

use super::{BLOCK, Spread};

/// 4-bit codes; returns how many blocks it did.
#[target_feature(enable = "neon")]
pub(super) fn nibbles(table: Option<&[u8; 16]>, packed: &[u8], to: &mut [u8]) -> usize {
    // SAFETY: the table has 16 bytes.
    let table = table.map(|table| unsafe { vld1q_u8(table.as_ptr()) });
    let (blocks, _) = packed.as_chunks::<32>();
    for (packed, to) in blocks.iter().zip(to.as_chunks_mut::<BLOCK>().0) {
        for i in 0..2 {
            // SAFETY: 16 bytes are readable behind half of the chunk's 32, and writable behind
            // either half of each half of the block's 64.
            unsafe {
                let both = vld1q_u8(packed.as_ptr().add(16 * i));
                let (mut low, mut high) = (vandq_u8(both, vdupq_n_u8(15)), vshrq_n_u8::<4>(both));
                if let Some(table) = table {
                    (low, high) = (vqtbl1q_u8(table, low), vqtbl1q_u8(table, high));
                }
                vst1q_u8(to.as_mut_ptr().add(16 * i), low);
                vst1q_u8(to.as_mut_ptr().add(32 + 16 * i), high);
            }
        }
    }
    blocks.len()
}

/// Codes of any width; returns how many blocks it did. The last block is not done: eight bytes are
/// read for each eight codes.
#[target_feature(enable = "neon")]
pub(super) fn streams(spread: &Spread, packed: &[u8], to: &mut [u8]) -> usize {
    let bits = spread.bits;
    let n_bytes = 8 * bits;
    let n_whole = packed.len().saturating_sub(8) / n_bytes;
    for (block, to) in to.as_chunks_mut::<BLOCK>().0.iter_mut().take(n_whole).enumerate() {
        let eights = &packed[block * n_bytes..block * n_bytes + 7 * bits + 8];
        for half in 0..2 {
            let eight = |i: usize| spread.eight(&eights[(4 * half + i) * bits..]);
            // Four bytes each: E0 O0 E1 O1, and E2 O2 E3 O3.
            let p = vreinterpretq_u32_u8(vcombine_u8(eight(0), eight(1)));
            let q = vreinterpretq_u32_u8(vcombine_u8(eight(2), eight(3)));
            let flip = vdupq_n_u8(spread.flip);
            let even = veorq_u8(vreinterpretq_u8_u32(vuzp1q_u32(p, q)), flip);
            let odd = veorq_u8(vreinterpretq_u8_u32(vuzp2q_u32(p, q)), flip);
            // SAFETY: 16 bytes are writable behind either half of each half of the block's 64.
            unsafe {
                vst1q_u8(to.as_mut_ptr().add(16 * half), even);
                vst1q_u8(to.as_mut_ptr().add(32 + 16 * half), odd);
            }
        }
    }
    n_whole
}

impl Spread {
    /// The codes of even index, then those of odd index.
    #[inline]
    #[target_feature(enable = "neon")]
    fn eight(&self, packed: &[u8]) -> uint8x8_t {
        let packed = &packed[..8];
        // SAFETY: 8 bytes of the slice and 16 of both arrays are readable.
        let (packed, bytes, factors) = unsafe {
            (
                vld1_u8(packed.as_ptr()),
                vld1q_u8(self.bytes.as_ptr()),
                vld1q_u16(self.factors.as_ptr()),
            )
        };
        let pairs = vqtbl1q_u8(vcombine_u8(packed, packed), bytes);
        let high = vmulq_u16(vreinterpretq_u16_u8(pairs), factors);
        vmovn_u16(vshlq_u16(high, vdupq_n_s16(self.bits as i16 - 16)))
    }
}
