//! What the writer writes: all of it follows from the id.

use kvcache::{Class, Ns, Record, Token};
use kvstore::Fingerprint;

/// Whose folder it is.
pub fn fingerprint() -> Fingerprint {
    Fingerprint::new("killed", [("weights", "none")])
}

/// An extent of up to four pieces of up to 20 KB.
pub fn extent(id: u64) -> (Record, Vec<Vec<u8>>) {
    let tokens = (0..10 + id % 50).map(|k| (id / 8 * 1_000 + k) as Token).collect();
    let record = Record { ns: Ns(id % 2), tokens, start: (id % 10) as usize, class: Class::System };
    let piece = |k: u64| {
        let n_bytes = 1 + (id * 7_919 + k * 104_729) % 20_000;
        (0..n_bytes).map(|at| (id * 31 + k * 7 + at * (at >> 8 | 1)) as u8).collect()
    };
    (record, (0..id % 5).map(piece).collect())
}
