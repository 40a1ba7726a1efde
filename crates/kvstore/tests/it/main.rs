//! The store as its owner sees it.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

#[path = "../../examples/fuzz/acts.rs"]
mod acts;
mod damage;
mod faults;
mod folders;
#[path = "../../examples/fuzz/forgetful.rs"]
mod forgetful;
mod restart;
mod room;

use std::path::Path;

use kvcache::{Class, ExtentId, Ns, Place, Record, Token};
use kvstore::files::Files;
use kvstore::{Fingerprint, Found, FoundExtents, Result, Store};

const PLENTY: u64 = 1 << 40;

fn fingerprint() -> Fingerprint {
    Fingerprint::new("org/name", [("weights", "0f1e"), ("dtype", "bf16")])
}

fn open(root: &Path) -> Result<(Store, FoundExtents)> {
    Store::open(root, &fingerprint(), PLENTY)
}

fn open_in(files: impl Files + 'static, quota_bytes: u64) -> (Store, Vec<Found>) {
    let opened = Store::open_in(Box::new(files), &fingerprint(), quota_bytes);
    let (store, found) = opened.expect("nothing fails");
    (store, found.collect())
}

fn record(tokens: &[Token], start: usize) -> Record {
    Record { ns: Ns(7), tokens: tokens.to_vec(), start, class: Class::TurnEnd }
}

/// Bytes that belong to this piece of this extent alone.
fn piece(extent: u64, piece_idx: u64, n_bytes: usize) -> Vec<u8> {
    let mut rng = forgetful::Rng(extent << 32 | piece_idx);
    (0..n_bytes).map(|_| rng.next() as u8).collect()
}

fn place(extent: u64, offset: u64, n_bytes: u64) -> Place {
    Place { extent: ExtentId(extent), offset, n_bytes }
}

fn write(store: &Store, id: u64, tokens: &[Token], start: usize, pieces: &[Vec<u8>]) -> Result<()> {
    let pieces = pieces.iter().map(Vec::as_slice).collect::<Vec<_>>();
    store.write(ExtentId(id), &record(tokens, start), &pieces)
}

fn read(store: &Store, place: Place) -> Result<Vec<u8>> {
    let mut bytes = vec![0; place.n_bytes as usize];
    store.read(place, &mut bytes).map(|()| bytes)
}

#[test]
fn what_was_acknowledged_survives_a_crash_at_any_write_and_nothing_else_does() {
    let mut sum = acts::Outcome::default();
    for seed in 0..400 {
        sum.add(&acts::run(seed, 300));
    }
    assert!(sum.reached().iter().all(|n| *n > 20), "{sum:?}");
}
