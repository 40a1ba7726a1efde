//! For tests of what a kill leaves: `kvstore_writer ROOT` writes and removes extents until it is
//! killed, and prints what was acknowledged: `+ ID` or `- ID` a line.

use std::io::Write;
use std::path::Path;

use kvcache::ExtentId;
use kvstore::Store;

#[path = "killed/contents.rs"]
mod contents;

fn main() {
    let root = std::env::args().nth(1).expect("a folder");
    let opened = Store::open(Path::new(&root), &contents::fingerprint(), 1 << 40);
    let (store, found) = opened.expect("nobody else has it");
    let mut next = found.map(|found| found.id.0 + 1).max().unwrap_or(0);
    let mut out = std::io::stdout().lock();
    loop {
        let (record, pieces) = contents::extent(next);
        let pieces = pieces.iter().map(Vec::as_slice).collect::<Vec<_>>();
        store.write(ExtentId(next), &record, &pieces).expect("the disk has room");
        writeln!(out, "+ {next}").expect("somebody reads");
        if next % 3 == 2 {
            let gone = next - 2;
            store.remove(&[ExtentId(gone)]).expect("the disk has room");
            writeln!(out, "- {gone}").expect("somebody reads");
        }
        next += 1;
    }
}
