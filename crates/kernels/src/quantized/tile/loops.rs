//! The loops, over whatever registers a processor has.
//!
//! A product is a [`Work`], which [`Registers::apart`] makes a function of its own, compiled for
//! the processor. Loops check all sizes first and read without checks then.

use super::super::activations::{BLOCK, LANES, Row};
use super::{Codes, Stored};
use crate::cpu::lanes::{Lanes, Wide};

/// Codes as they are stored, two to a byte.
pub(super) const NIBBLES: u8 = 0;
/// 8-bit codes as they are stored.
pub(super) const BYTES: u8 = 1;

/// How far ahead of its use stored code is asked for, once for each line of the cache: some rows,
/// which are too short for the processor to find out by itself.
const AHEAD_BYTES: usize = 2048;

/// Sums of a block's lanes in f32: one for each, or two that are added at the end.
pub(super) trait Sums: Copy {
    fn splat(x: f32) -> Self;
    /// One value for each lane.
    fn lanes(from: &[f32; LANES]) -> Self;
    fn mul(self, other: Self) -> Self;
    fn add(self, other: Self) -> Self;
    /// `self · b + c`.
    fn madd(self, b: Self, c: Self) -> Self;
    /// Adds `a · b`, of which each lane takes one product.
    fn with_products(self, a: Wide, b: Wide) -> Self;
    fn total(self) -> f32;
}

impl Sums for Wide {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Lanes::splat(x)
    }

    #[inline(always)]
    fn lanes(from: &[f32; LANES]) -> Self {
        Lanes::load(from)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Lanes::mul(self, other)
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Lanes::add(self, other)
    }

    #[inline(always)]
    fn madd(self, b: Self, c: Self) -> Self {
        Lanes::madd(self, b, c)
    }

    #[inline(always)]
    fn with_products(self, a: Wide, b: Wide) -> Self {
        Lanes::madd(a, b, self)
    }

    #[inline(always)]
    fn total(self) -> f32 {
        Lanes::sum(self)
    }
}

/// What the loops take from a processor. Used only inside of what [`Registers::apart`] runs.
pub(super) trait Registers {
    type Sums: Sums;
    /// A block of codes, those of even and those of odd index.
    type Codes: Copy;
    /// A block of activations, likewise.
    type Inputs: Copy;
    /// What nibbles stand for.
    type Table: Copy;

    fn table(values: &[u8; 16]) -> Self::Table;
    /// Codes of two to a byte.
    fn nibbles(from: &[u8; BLOCK / 2], table: Option<Self::Table>) -> Self::Codes;
    /// 8-bit codes as they are stored, which become signed.
    fn bytes(from: &[u8; BLOCK]) -> Self::Codes;
    /// Unpacked codes, signed or not.
    fn unpacked<const SIGNED: bool>(from: &[u8; BLOCK]) -> Self::Codes;
    /// Activations to be multiplied with such codes.
    fn inputs<const SIGNED: bool>(from: &[i8; BLOCK]) -> Self::Inputs;
    /// The products of a block, summed by lane.
    fn dots<const SIGNED: bool>(w: Self::Codes, x: Self::Inputs) -> Self::Sums;
    /// Asks for the memory at `at`, which need not be there.
    fn ask_for(at: *const u8);

    /// `work` as a function of its own.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn apart<W: Work>(work: W) -> W::Out;
}

/// A computation on any registers.
pub(super) trait Work {
    type Out;

    fn run<P: Registers>(self) -> Self::Out;
}

/// R rows of unpacked codes times T rows of activations.
pub(super) struct Tile<'a, const R: usize, const T: usize, const SIGNED: bool, const BY_LANE: bool>
{
    pub w: &'a [Codes<'a>],
    pub x: &'a [Row<'a>],
}

impl<const R: usize, const T: usize, const SIGNED: bool, const BY_LANE: bool> Work
    for Tile<'_, R, T, SIGNED, BY_LANE>
{
    type Out = super::Sums;

    #[inline(always)]
    fn run<P: Registers>(self) -> super::Sums {
        let (w, x) = (&self.w[..R], &self.x[..T]);
        let n_blocks = x[0].codes.len() / BLOCK;
        check(w, x, n_blocks * BLOCK, n_blocks * if BY_LANE { LANES } else { 1 });
        let mut acc = [[P::Sums::splat(0.0); T]; R];
        for b in 0..n_blocks {
            // SAFETY: inside the rows and their scales, by the check.
            unsafe {
                let mut codes = [unpacked::<P, SIGNED>(&w[0], b); R];
                let mut scales = [scale::<P, BY_LANE>(&w[0], b); R];
                for r in 1..R {
                    codes[r] = unpacked::<P, SIGNED>(&w[r], b);
                    scales[r] = scale::<P, BY_LANE>(&w[r], b);
                }
                for t in 0..T {
                    let (x_codes, x_scales) = activations::<P, SIGNED>(&x[t], b);
                    for r in 0..R {
                        let dots = P::dots::<SIGNED>(codes[r], x_codes);
                        acc[r][t] = dots.madd(x_scales.mul(scales[r]), acc[r][t]);
                    }
                }
            }
        }
        let mut sums = super::Sums::default();
        for r in 0..R {
            for t in 0..T {
                sums[r][t] = total(acc[r][t], w[r].offsets, x[t].sums);
            }
        }
        sums
    }
}

/// One row of stored codes times one row of activations: memory is read in one stream, which comes
/// 1.4 times as fast as rows side by side do. Sums of even and odd blocks do not wait for each
/// other.
pub(super) struct Line<'a, const SOURCE: u8, const BY_LANE: bool> {
    pub w: &'a Codes<'a>,
    pub x: &'a Row<'a>,
    /// What nibbles stand for, if not for themselves.
    pub table: Option<&'static [u8; 16]>,
}

impl<const SOURCE: u8, const BY_LANE: bool> Work for Line<'_, SOURCE, BY_LANE> {
    type Out = f32;

    #[inline(always)]
    fn run<P: Registers>(self) -> f32 {
        let Self { w, x, table } = self;
        let n_blocks = x.codes.len() / BLOCK;
        let n_bytes = if SOURCE == NIBBLES { BLOCK / 2 } else { BLOCK };
        let n_scales = n_blocks * if BY_LANE { LANES } else { 1 };
        check(&[*w], &[*x], n_blocks * n_bytes, n_scales);
        let table = table.map(P::table);
        let (mut even, mut odd) = (P::Sums::splat(0.0), P::Sums::splat(0.0));
        for pair in 0..n_blocks / 2 {
            for line in 0..2 * n_bytes / 64 {
                let at = w.codes.as_ptr().wrapping_add(2 * pair * n_bytes + line * 64);
                P::ask_for(at.wrapping_add(AHEAD_BYTES));
            }
            // SAFETY: inside both rows and their scales, by the check.
            unsafe {
                even = with_stored::<P, SOURCE, BY_LANE>(w, x, table, 2 * pair, even);
                odd = with_stored::<P, SOURCE, BY_LANE>(w, x, table, 2 * pair + 1, odd);
            }
        }
        if n_blocks % 2 == 1 {
            // SAFETY: as above.
            even = unsafe { with_stored::<P, SOURCE, BY_LANE>(w, x, table, n_blocks - 1, even) };
        }
        total(even.add(odd), w.offsets, x.sums)
    }
}

/// Adds the products of stored block `b`.
///
/// # Safety
/// Both rows have it, and scales for it.
#[inline(always)]
unsafe fn with_stored<P: Registers, const SOURCE: u8, const BY_LANE: bool>(
    w: &Codes<'_>,
    x: &Row<'_>,
    table: Option<P::Table>,
    b: usize,
    to: P::Sums,
) -> P::Sums {
    // SAFETY: the caller's promise.
    unsafe {
        let scale = scale::<P, BY_LANE>(w, b);
        if SOURCE == BYTES {
            let codes = P::bytes(&*w.codes.as_ptr().add(b * BLOCK).cast());
            let (x_codes, x_scales) = activations::<P, true>(x, b);
            return P::dots::<true>(codes, x_codes).madd(x_scales.mul(scale), to);
        }
        let codes = P::nibbles(&*w.codes.as_ptr().add(b * BLOCK / 2).cast(), table);
        let (x_codes, x_scales) = activations::<P, false>(x, b);
        P::dots::<false>(codes, x_codes).madd(x_scales.mul(scale), to)
    }
}

/// [`Line`] after line, with scales and biases read on the way: a pass of its own over them would
/// hold up the stream of codes.
pub(super) struct StoredLines<'a> {
    pub w: &'a Stored<'a>,
    pub x: &'a Row<'a>,
    pub to: &'a mut [f32],
}

impl Work for StoredLines<'_> {
    type Out = ();

    #[inline(always)]
    fn run<P: Registers>(self) {
        let Self { w, x, to } = self;
        let n_blocks = x.codes.len() / BLOCK;
        assert!(n_blocks.is_multiple_of(Stored::EIGHT) && x.scales.len() == n_blocks * LANES);
        assert!(x.sums.len() == n_blocks && w.codes.len() == to.len() * n_blocks * BLOCK / 2);
        assert!(w.scales.len() == to.len() * n_blocks * 2 && w.biases.len() == w.scales.len());
        for (r, to) in to.iter_mut().enumerate() {
            let (mut even, mut odd) = (P::Sums::splat(0.0), P::Sums::splat(0.0));
            for eight in 0..n_blocks / Stored::EIGHT {
                let (b, at) = (eight * Stored::EIGHT, r * n_blocks + eight * Stored::EIGHT);
                let mut scales = [0.0; Stored::EIGHT];
                // SAFETY: eight blocks from `b` on are inside x, and from `at` on inside w, by the
                // assertions.
                unsafe {
                    Wide::from_bf16(&*w.scales.as_ptr().add(2 * at).cast()).store(&mut scales);
                    let biases = Wide::from_bf16(&*w.biases.as_ptr().add(2 * at).cast());
                    let sums = Wide::load(&*x.sums.as_ptr().add(b).cast());
                    even = even.with_products(biases, sums);
                }
                for pair in 0..Stored::EIGHT / 2 {
                    // SAFETY: as above.
                    let codes = unsafe { w.codes.as_ptr().add((at + 2 * pair) * BLOCK / 2) };
                    P::ask_for(codes.wrapping_add(AHEAD_BYTES));
                    // SAFETY: as above.
                    unsafe {
                        let codes = &*codes.cast::<[[u8; BLOCK / 2]; 2]>();
                        let (scales, b) = (&scales[2 * pair..][..2], b + 2 * pair);
                        even = with_nibbles::<P>(&codes[0], scales[0], x, b, even);
                        odd = with_nibbles::<P>(&codes[1], scales[1], x, b + 1, odd);
                    }
                }
            }
            *to = even.add(odd).total();
        }
    }
}

/// Adds the products of nibbles that share a scale with block `b`.
///
/// # Safety
/// The row has it.
#[inline(always)]
unsafe fn with_nibbles<P: Registers>(
    codes: &[u8; BLOCK / 2],
    scale: f32,
    x: &Row<'_>,
    b: usize,
    to: P::Sums,
) -> P::Sums {
    // SAFETY: the caller's promise.
    let (x_codes, x_scales) = unsafe { activations::<P, false>(x, b) };
    let dots = P::dots::<false>(P::nibbles(codes, None), x_codes);
    dots.madd(x_scales.mul(P::Sums::splat(scale)), to)
}

/// A block of unpacked codes.
///
/// # Safety
/// The row has block `b`.
#[inline(always)]
unsafe fn unpacked<P: Registers, const SIGNED: bool>(w: &Codes<'_>, b: usize) -> P::Codes {
    // SAFETY: the caller's promise.
    unsafe { P::unpacked::<SIGNED>(&*w.codes.as_ptr().add(b * BLOCK).cast()) }
}

/// What the lanes of a block are multiplied by.
///
/// # Safety
/// The row has scales for block `b`.
#[inline(always)]
unsafe fn scale<P: Registers, const BY_LANE: bool>(w: &Codes<'_>, b: usize) -> P::Sums {
    // SAFETY: the caller's promise.
    unsafe {
        if BY_LANE {
            P::Sums::lanes(&*w.scales.as_ptr().add(b * LANES).cast())
        } else {
            P::Sums::splat(*w.scales.get_unchecked(b))
        }
    }
}

/// A block of activations, and its scales.
///
/// # Safety
/// The row has block `b`.
#[inline(always)]
unsafe fn activations<P: Registers, const SIGNED: bool>(
    x: &Row<'_>,
    b: usize,
) -> (P::Inputs, P::Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        let codes = P::inputs::<SIGNED>(&*x.codes.as_ptr().add(b * BLOCK).cast());
        (codes, P::Sums::lanes(&*x.scales.as_ptr().add(b * LANES).cast()))
    }
}

/// Everything that a loop relies on.
#[inline(always)]
fn check(w: &[Codes<'_>], x: &[Row<'_>], n_bytes: usize, n_scales: usize) {
    let n_codes = x[0].codes.len();
    for w in w {
        assert!(w.codes.len() >= n_bytes && w.scales.len() >= n_scales);
    }
    for x in x {
        assert!(x.codes.len() == n_codes && x.scales.len() >= n_codes / BLOCK * LANES);
    }
}

/// The sum of the lanes, and of offsets times sums.
#[inline(always)]
fn total<S: Sums>(mut lanes: S, offsets: &[f32], sums: &[f32]) -> f32 {
    let (offsets, _) = offsets.as_chunks::<LANES>();
    for (offset, sum) in offsets.iter().zip(sums.as_chunks::<LANES>().0) {
        lanes = lanes.with_products(Lanes::load(offset), Lanes::load(sum));
    }
    lanes.total()
}
