//! Every form that the processor has against the portable one. With `--nocapture` they say which
//! those are.

use super::super::activations::{Activations, BLOCK, LANES};
use super::super::coded::E2M1_CODES;
use super::*;

/// All kinds of codes, each with the number that its bytes are below.
const KINDS: [(Kind, usize); 9] = [
    (Kind { signed: false, source: Source::Nibbles(None), lanes: false }, 256),
    (Kind { signed: false, source: Source::Nibbles(Some(&E2M1_CODES)), lanes: true }, 256),
    (Kind { signed: false, source: Source::Nibbles(None), lanes: true }, 256),
    (Kind { signed: true, source: Source::Bytes, lanes: false }, 256),
    (Kind { signed: true, source: Source::Bytes, lanes: true }, 256),
    (Kind { signed: false, source: Source::Unpacked, lanes: false }, 64),
    (Kind { signed: false, source: Source::Unpacked, lanes: true }, 64),
    (Kind { signed: true, source: Source::Unpacked, lanes: false }, 256),
    (Kind { signed: true, source: Source::Unpacked, lanes: true }, 256),
];

/// Every form that this processor has.
fn forms_there() -> Vec<Form> {
    let (there, absent) = Form::ALL.iter().partition::<Vec<Form>, _>(|form| form.is_there());
    println!("by the forms {there:?}, without {absent:?}");
    there
}

/// Rows of codes, many at the ends of their range, and how many bytes a row has.
fn codes(kind: Kind, limit: usize, n_rows: usize, n_blocks: usize) -> (Vec<u8>, usize) {
    let n_bytes = n_blocks * if matches!(kind.source, Source::Nibbles(_)) { 32 } else { BLOCK };
    let codes = (0..n_rows * n_bytes).map(|i| match i % 5 {
        0 => (limit - 1) as u8,
        1 if kind.signed => 128,
        1 => 0,
        _ => (i * 37 % limit) as u8,
    });
    (codes.collect(), n_bytes)
}

/// Holds the products by `form` to the portable ones; `relative` is how far off they may be.
fn check(form: Form, w: &Weights<'_>, x: &[Row<'_>], kind: Kind, relative: f32) {
    let mut found = vec![f32::NAN; w.n * x.len()];
    for (t, x) in x.chunks(TOKENS).enumerate() {
        let values = &mut found[t * TOKENS * w.n..];
        form.products(w, x, kind, &mut Table { values, stride: w.n });
    }
    for (t, x) in x.iter().enumerate() {
        for r in 0..w.n {
            let (found, wanted) = (found[t * w.n + r], portable::line(&w.row(r), x, kind));
            let bound = relative * wanted.abs().max(1e3);
            assert!((found - wanted).abs() <= bound, "{form:?}, {kind:?}: {found} {wanted}");
        }
    }
}

#[test]
fn rows_as_they_are_stored_give_what_read_ones_do_by_every_form() {
    let forms = forms_there();
    for (n_rows, n_blocks) in [(1, 8), (5, 16), (3, 24)] {
        let codes = (0..n_rows * n_blocks * 32).map(|i| (i * 89 % 256) as u8).collect::<Vec<_>>();
        let bf16 = |f: fn(usize) -> f32| {
            let values = (0..n_rows * n_blocks).map(f).collect::<Vec<_>>();
            let bytes = values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes());
            let bytes = bytes.collect::<Vec<_>>();
            (values, bytes)
        };
        let (scales, scale_bytes) = bf16(|i| 0.5 + (i % 7) as f32);
        let (offsets, bias_bytes) = bf16(|i| (i % 11) as f32 - 5.0);
        let x = (0..n_blocks * BLOCK).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>();
        let made = Activations::new(&x, n_blocks * BLOCK, BLOCK);
        let stored = Stored { codes: &codes, scales: &scale_bytes, biases: &bias_bytes };
        let scalings = &Scalings::of(scales, offsets, n_rows);
        let w = Weights { codes: &codes, n_bytes: n_blocks * 32, scalings, n: n_rows };
        let kind = Kind { signed: false, source: Source::Nibbles(None), lanes: false };
        for form in forms.iter().filter(|form| **form != Form::Portable) {
            let mut found = vec![0.0; n_rows];
            form.run(StoredLines { w: &stored, x: &made.row(0), to: &mut found }).unwrap();
            for (r, found) in found.iter().enumerate() {
                let wanted = portable::line(&w.row(r), &made.row(0), kind);
                let off = (found - wanted).abs();
                assert!(off <= 1e-5 * wanted.abs().max(1e3), "{form:?}: {found} {wanted}");
            }
        }
    }
}

/// Codes at both ends of their range next to activations at theirs.
#[test]
fn every_form_gives_what_the_portable_one_does_also_at_the_ends_of_the_range() {
    let (n_blocks, forms) = (5, forms_there());
    for (kind, limit) in KINDS {
        for (n_w, n_x) in [(1, 1), (2, 1), (4, 1), (7, 1), (1, 4), (3, 6), (5, 9), (2, 4)] {
            let (codes, n_bytes) = codes(kind, limit, n_w, n_blocks);
            let x = (0..n_x * n_blocks * BLOCK).map(|i| match i % 3 {
                0 => 1.0,
                1 => -1.0,
                _ => (i as f32 * 0.37).sin(),
            });
            let x = x.collect::<Vec<_>>();
            let made = Activations::new(&x, n_blocks * BLOCK, 32);
            let n_scales = n_w * n_blocks * if kind.lanes { LANES } else { 1 };
            let scales = (0..n_scales).map(|i| 0.5 + (i % 7) as f32).collect();
            let n_offsets = made.row(0).sums.len();
            let offsets = (0..n_w * n_offsets).map(|i| (i % 11) as f32 - 5.0).collect();
            let scalings = &Scalings::of(scales, offsets, n_w);
            let w = Weights { codes: &codes, n_bytes, scalings, n: n_w };
            let rows = (0..n_x).map(|t| made.row(t)).collect::<Vec<_>>();
            for form in &forms {
                check(*form, &w, &rows, kind, 1e-5);
            }
        }
    }
}

/// With small whole numbers as scales all is below 2²⁴, where f32 rounds nothing: every form must
/// give the same bits.
#[test]
fn every_form_sums_integers_without_loss() {
    let (n_w, n_x, n_blocks, forms) = (3, 5, 3, forms_there());
    let x_codes = (0..n_x * n_blocks * BLOCK).map(|i| match i % 4 {
        0 => 127,
        1 => -127,
        _ => (i * 53 % 255) as u8 as i8,
    });
    let x_codes = x_codes.map(|code| code.max(-127)).collect::<Vec<_>>();
    let x_scales = (0..n_x * n_blocks * LANES).map(|i| (1 + i % 2) as f32).collect::<Vec<_>>();
    let sums = (0..n_x * LANES).map(|i| (i % 13) as f32).collect::<Vec<_>>();
    let rows = (0..n_x).map(|t| Row {
        codes: &x_codes[t * n_blocks * BLOCK..][..n_blocks * BLOCK],
        scales: &x_scales[t * n_blocks * LANES..][..n_blocks * LANES],
        sums: &sums[t * LANES..][..LANES],
    });
    let rows = rows.collect::<Vec<_>>();
    for (kind, limit) in KINDS {
        let (codes, n_bytes) = codes(kind, limit, n_w, n_blocks);
        let n_scales = n_w * n_blocks * if kind.lanes { LANES } else { 1 };
        let scales = (0..n_scales).map(|i| (1 + i / 3 % 2) as f32).collect();
        let offsets = (0..n_w * LANES).map(|i| (i % 11) as f32 - 5.0).collect();
        let scalings = &Scalings::of(scales, offsets, n_w);
        let w = Weights { codes: &codes, n_bytes, scalings, n: n_w };
        for form in &forms {
            check(*form, &w, &rows, kind, 0.0);
            check(*form, &w, &rows[..1], kind, 0.0);
        }
    }
}
