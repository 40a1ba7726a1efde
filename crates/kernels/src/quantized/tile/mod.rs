//! The inner loops: a few rows of codes times a few rows of 8-bit activations.
//!
//! Of each block the products of bytes are summed to eight 32-bit lanes without loss, brought to
//! f32, and multiplied by the scales of activations and weights; the offsets of the weights meet
//! the sums of the activations at the end. The loops are written once (`loops.rs`); a [`Form`]
//! brings a processor's registers to them, or does without (`portable.rs`).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod loops;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use super::activations::Row;
use super::coded::Scalings;
use loops::{BYTES, Line, NIBBLES, StoredLines, Tile, Work};

/// A row of weights.
#[derive(Clone, Copy)]
pub(super) struct Codes<'a> {
    /// 64 bytes for each block, or 32 of nibbles, as [`Source`] says.
    pub codes: &'a [u8],
    /// One scale for each block, or one for each lane of each block.
    pub scales: &'a [f32],
    /// One for each sum of the activations.
    pub offsets: &'a [f32],
}

/// How the codes of a row lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Unpacked.
    Unpacked,
    /// As stored: two codes share a byte, and the table says what they stand for.
    Nibbles(Option<&'static [u8; 16]>),
    /// As stored: 8-bit codes one after another.
    Bytes,
}

/// What the codes of a row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// Signed bytes (once they are unpacked); else unsigned, below 64.
    pub signed: bool,
    /// Where they come from.
    pub source: Source,
    /// The lanes of a block have scales of their own.
    pub lanes: bool,
}

/// Most rows of weights of one tile.
pub(super) const ROWS: usize = 4;
/// Most rows of activations.
pub(super) const TOKENS: usize = 4;

/// Rows of weights one after another.
pub(super) struct Weights<'a> {
    /// As many bytes for each row.
    pub codes: &'a [u8],
    /// How many.
    pub n_bytes: usize,
    /// Of the same rows.
    pub scalings: &'a Scalings,
    /// How many there are.
    pub n: usize,
}

impl Weights<'_> {
    #[inline(always)]
    fn row(&self, i: usize) -> Codes<'_> {
        Codes {
            codes: &self.codes[i * self.n_bytes..][..self.n_bytes],
            scales: self.scalings.scales(i),
            offsets: self.scalings.offsets(i),
        }
    }
}

/// For which instructions the loops are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Any.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON with the extension for dot products.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Form {
    /// All of this architecture, the best first.
    #[cfg(target_arch = "x86_64")]
    const ALL: &[Self] = &[Self::Avx512, Self::Avx2, Self::Portable];
    #[cfg(target_arch = "aarch64")]
    const ALL: &[Self] = &[Self::Neon, Self::Portable];

    /// Whether the processor has the instructions.
    fn is_there(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => crate::cpu::has_wide(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::is_there(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => neon::is_there(),
        }
    }

    /// The best that the processor has.
    fn best() -> Self {
        Self::ALL.iter().copied().find(|form| form.is_there()).unwrap_or(Self::Portable)
    }

    /// Does `work` in the registers of this form, which is there; the portable one has none.
    #[inline(always)]
    fn run<W: Work>(self, work: W) -> Option<W::Out> {
        use loops::Registers;
        debug_assert!(self.is_there(), "{self:?}");
        // SAFETY: a form that is used is there: it is the best, or a test asked.
        unsafe {
            match self {
                Self::Portable => None,
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => Some(avx2::Avx2::apart(work)),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => Some(avx512::Avx512::apart(work)),
                #[cfg(target_arch = "aarch64")]
                Self::Neon => Some(neon::Neon::apart(work)),
            }
        }
    }

    /// A row of codes as they are stored.
    fn line(self, w: &Codes<'_>, x: &Row<'_>, kind: Kind) -> f32 {
        let found = match (kind.source, kind.lanes) {
            (Source::Nibbles(table), false) => self.run(Line::<NIBBLES, false> { w, x, table }),
            (Source::Nibbles(table), true) => self.run(Line::<NIBBLES, true> { w, x, table }),
            (Source::Bytes, false) => self.run(Line::<BYTES, false> { w, x, table: None }),
            (Source::Bytes, true) => self.run(Line::<BYTES, true> { w, x, table: None }),
            (Source::Unpacked, _) => None,
        };
        found.unwrap_or_else(|| portable::line(w, x, kind))
    }

    /// Unpacked codes.
    fn tile(self, w: &[Codes<'_>], x: &[Row<'_>], kind: Kind) -> Sums {
        macro_rules! tile {
            ($r:literal, $t:literal) => {
                match (kind.signed, kind.lanes) {
                    (false, false) => self.run(Tile::<$r, $t, false, false> { w, x }),
                    (false, true) => self.run(Tile::<$r, $t, false, true> { w, x }),
                    (true, false) => self.run(Tile::<$r, $t, true, false> { w, x }),
                    (true, true) => self.run(Tile::<$r, $t, true, true> { w, x }),
                }
            };
        }
        let found = match (w.len(), x.len()) {
            (4, 1) => tile!(4, 1),
            (2, 4) => tile!(2, 4),
            (2, 1) => tile!(2, 1),
            (1, 4) => tile!(1, 4),
            (1, 1) => tile!(1, 1),
            _ => None,
        };
        found.unwrap_or_else(|| portable::tile(w, x, kind))
    }

    /// [`products`] by this form.
    fn products(self, w: &Weights<'_>, x: &[Row<'_>], kind: Kind, to: &mut Table<'_>) {
        if kind.source != Source::Unpacked {
            for (r, (t, x)) in (0..w.n).flat_map(|r| x.iter().enumerate().map(move |x| (r, x))) {
                to.values[r + t * to.stride] = self.line(&w.row(r), x, kind);
            }
            return;
        }
        let mut first = 0;
        while first < w.n {
            let left = w.n - first;
            let n = match x.len() {
                1 if left >= 4 => 4,
                2.. if left >= 2 => 2,
                _ => 1,
            };
            let mut rows = [w.row(first); ROWS];
            for (r, row) in rows.iter_mut().enumerate().take(n) {
                *row = w.row(first + r);
            }
            let mut t = 0;
            while t < x.len() {
                let n_x = if x.len() - t >= 4 { 4 } else { 1 };
                let sums = self.tile(&rows[..n], &x[t..t + n_x], kind);
                for (r, sums) in sums.iter().enumerate().take(n) {
                    for (i, sum) in sums.iter().enumerate().take(n_x) {
                        to.values[(first + r) + (t + i) * to.stride] = *sum;
                    }
                }
                t += n_x;
            }
            first += n;
        }
    }
}

/// The products of all `w` with all `x`, of which there are at most [`TOKENS`].
pub(super) fn products(w: &Weights<'_>, x: &[Row<'_>], kind: Kind, to: &mut Table<'_>) {
    Form::best().products(w, x, kind, to);
}

/// Rows of nibbles with a scale and a bias in bf16 for each block, all as they are stored.
pub(super) struct Stored<'a> {
    pub codes: &'a [u8],
    pub scales: &'a [u8],
    pub biases: &'a [u8],
}

impl Stored<'_> {
    /// Blocks that [`Stored::products`] takes at once: rows must have a multiple of them.
    pub const EIGHT: usize = 8;

    /// The products of all rows with one row of activations, if the processor has a form for that.
    pub fn products(&self, x: &Row<'_>, to: &mut [f32]) -> bool {
        Form::best().run(StoredLines { w: self, x, to }).is_some()
    }
}

/// Where products go: one row for each row of activations.
pub(super) struct Table<'a> {
    pub values: &'a mut [f32],
    pub stride: usize,
}

type Sums = [[f32; TOKENS]; ROWS];

#[cfg(test)]
mod tests;
