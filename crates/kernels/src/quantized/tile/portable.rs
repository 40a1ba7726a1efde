//! The slow twin, for any processor: lane by lane, as the layout says.

use super::super::activations::{BLOCK, LANES, Row};
use super::{Codes, Kind, Source, Sums};

/// Some rows of codes times some rows of activations.
pub(super) fn tile(w: &[Codes<'_>], x: &[Row<'_>], kind: Kind) -> Sums {
    let mut sums = Sums::default();
    for (r, w) in w.iter().enumerate() {
        for (t, x) in x.iter().enumerate() {
            sums[r][t] = line(w, x, kind);
        }
    }
    sums
}

/// One row of codes times one row of activations.
pub(super) fn line(w: &Codes<'_>, x: &Row<'_>, kind: Kind) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (b, x_codes) in x.codes.chunks_exact(BLOCK).enumerate() {
        let mut codes = [0i32; BLOCK];
        match kind.source {
            Source::Nibbles(table) => {
                let value = |code: u8| table.map_or(code, |table| table[usize::from(code)]);
                for (i, byte) in w.codes[b * 32..][..32].iter().enumerate() {
                    codes[i] = i32::from(value(byte & 15));
                    codes[32 + i] = i32::from(value(byte >> 4));
                }
            }
            Source::Bytes => {
                for (e, byte) in w.codes[b * BLOCK..][..BLOCK].iter().enumerate() {
                    codes[e % 2 * 32 + e / 2] = i32::from(*byte) - 128;
                }
            }
            Source::Unpacked => {
                for (code, byte) in codes.iter_mut().zip(&w.codes[b * BLOCK..][..BLOCK]) {
                    *code = if kind.signed { i32::from(*byte as i8) } else { i32::from(*byte) };
                }
            }
        }
        let mut dots = [0i32; LANES];
        for half in 0..2 {
            for i in 0..32 {
                let at = 32 * half + i;
                dots[i / 4] += codes[at] * i32::from(x_codes[at]);
            }
        }
        for l in 0..LANES {
            let scale = if kind.lanes { w.scales[b * LANES + l] } else { w.scales[b] };
            lanes[l] += dots[l] as f32 * (x.scales[b * LANES + l] * scale);
        }
    }
    let offsets = w.offsets.iter().zip(x.sums).map(|(offset, sum)| offset * sum).sum::<f32>();
    lanes.iter().sum::<f32>() + offsets
}
