//! NEON with the extension `dotprod`: products of signed bytes are summed to 32 bits at once. Codes
//! that are not signed have at most 6 bits and pass as signed ones.

use std::arch::aarch64::*;
use std::arch::asm;

use super::super::activations::BLOCK;
use super::loops::{Registers, Work};
use crate::cpu::lanes::Wide;

/// Whether the processor has what [`Neon`] needs.
pub(super) fn is_there() -> bool {
    std::arch::is_aarch64_feature_detected!("dotprod")
}

/// Used only where [`is_there`] holds.
pub(super) struct Neon;

impl Neon {
    /// # Safety
    /// The processor has the features.
    #[inline(never)]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn run<W: Work>(work: W) -> W::Out {
        work.run::<Self>()
    }
}

/// Adds the products of each four bytes to the lane that they are in.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_products(mut to: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction, whose intrinsic is not stable, reads and writes these registers.
    unsafe {
        asm!(
            "sdot {to:v}.4s, {a:v}.16b, {b:v}.16b",
            to = inout(vreg) to, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    to
}

/// Both halves of a block, 16 bytes each: even ones, then odd ones.
type Block = [int8x16_t; 4];

impl Registers for Neon {
    type Sums = Wide;
    type Codes = Block;
    type Inputs = Block;
    type Table = uint8x16_t;

    #[inline(always)]
    fn table(values: &[u8; 16]) -> uint8x16_t {
        // SAFETY: every processor of this architecture has NEON, and 16 bytes are readable; so
        // below.
        unsafe { vld1q_u8(values.as_ptr()) }
    }

    #[inline(always)]
    fn nibbles(from: &[u8; BLOCK / 2], table: Option<uint8x16_t>) -> Block {
        // SAFETY: 32 bytes are readable.
        unsafe {
            let (a, b) = (vld1q_u8(from.as_ptr()), vld1q_u8(from.as_ptr().add(16)));
            let low = vdupq_n_u8(15);
            let codes =
                [vandq_u8(a, low), vandq_u8(b, low), vshrq_n_u8::<4>(a), vshrq_n_u8::<4>(b)];
            let codes = match table {
                Some(table) => codes.map(|codes| vqtbl1q_u8(table, codes)),
                None => codes,
            };
            codes.map(|codes| vreinterpretq_s8_u8(codes))
        }
    }

    #[inline(always)]
    fn bytes(from: &[u8; BLOCK]) -> Block {
        // SAFETY: 64 bytes are readable.
        unsafe {
            let (a, b) = (vld2q_u8(from.as_ptr()), vld2q_u8(from.as_ptr().add(32)));
            let flip = vdupq_n_u8(128);
            [a.0, b.0, a.1, b.1].map(|codes| vreinterpretq_s8_u8(veorq_u8(codes, flip)))
        }
    }

    #[inline(always)]
    fn unpacked<const SIGNED: bool>(from: &[u8; BLOCK]) -> Block {
        // SAFETY: 64 bytes are readable.
        std::array::from_fn(|i| unsafe { vld1q_s8(from.as_ptr().cast::<i8>().add(16 * i)) })
    }

    #[inline(always)]
    fn inputs<const SIGNED: bool>(from: &[i8; BLOCK]) -> Block {
        // SAFETY: 64 bytes are readable.
        std::array::from_fn(|i| unsafe { vld1q_s8(from.as_ptr().add(16 * i)) })
    }

    #[inline(always)]
    fn dots<const SIGNED: bool>(w: Block, x: Block) -> Wide {
        // SAFETY: the processor has the extension, by the type's promise.
        unsafe {
            let zero = vdupq_n_s32(0);
            let low = add_products(add_products(zero, w[0], x[0]), w[2], x[2]);
            let high = add_products(add_products(zero, w[1], x[1]), w[3], x[3]);
            Wide(vcvtq_f32_s32(low), vcvtq_f32_s32(high))
        }
    }

    /// Nothing: whether asking helps was not measured on such a processor.
    #[inline(always)]
    fn ask_for(_: *const u8) {}

    #[inline(always)]
    unsafe fn apart<W: Work>(work: W) -> W::Out {
        // SAFETY: the caller's promise.
        unsafe { Self::run(work) }
    }
}
