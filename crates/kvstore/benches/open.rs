//! What a store costs when a process starts, and while it runs. `cargo bench -p kvstore` measures,
//! `cargo test` runs it small. The hash is of what was found, so that nobody makes it faster by
//! finding something else.
//!
//! Folders to be opened are filled without syncing, which would take minutes and changes nothing
//! for who opens them; writes that are measured are synced. Files are in the system's memory.

use std::hint::black_box;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kvcache::{
    Budgets, Cache, Class, Costs, ExtentId, Group, Kind, Layout, Link, Lru, Ns, Place, Prefill,
    Record, Token, policies,
};
use kvstore::files::{Files, Folder, Handle};
use kvstore::{Fingerprint, Store};

const PIECE_BYTES: usize = 1_000;

fn fingerprint() -> Fingerprint {
    Fingerprint::new("bench", [("weights", "none")])
}

/// A folder that says it has synced.
struct Unsynced(Folder);

struct UnsyncedHandle(Box<dyn Handle>);

impl Files for Unsynced {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }
    fn names(&self) -> io::Result<Vec<(String, u64)>> {
        self.0.names()
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn Handle>> {
        Ok(Box::new(UnsyncedHandle(self.0.create(name)?)))
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn Handle>> {
        self.0.open(name)
    }
    fn edit(&self, name: &str) -> io::Result<Box<dyn Handle>> {
        Ok(Box::new(UnsyncedHandle(self.0.edit(name)?)))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Handle for UnsyncedHandle {
    fn n_bytes(&self) -> io::Result<u64> {
        self.0.n_bytes()
    }
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(into, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }
    fn cut(&self, n_bytes: u64) -> io::Result<()> {
        self.0.cut(n_bytes)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Conversations that share a beginning, and have a checkpoint after each turn.
struct Size {
    n_conversations: u32,
    n_turns: usize,
    turn_tokens: usize,
    /// How many of the conversations are still there.
    n_kept: u32,
}

fn record(size: &Size, who: u32, turn: usize) -> Record {
    let n = size.turn_tokens * (turn + 1);
    let own = |k: usize| (k as u32).wrapping_mul(2_654_435_761) ^ (who + 1).wrapping_mul(40_503);
    let tokens = (0..n).map(|k| if k < size.turn_tokens { k as Token } else { own(k) }).collect();
    Record { ns: Ns(1), tokens, start: size.turn_tokens * turn, class: Class::TurnEnd }
}

fn fill(root: &Path, size: &Size) {
    let folder = root.join(fingerprint().folder());
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    let files = Box::new(Unsynced(Folder::new(folder)));
    let (store, _) = Store::open_in(files, &fingerprint(), u64::MAX).expect("it opens");
    let piece = [7; PIECE_BYTES];
    for who in 0..size.n_conversations {
        let ids = (0..size.n_turns).map(|turn| {
            let id = ExtentId(u64::from(who) << 20 | turn as u64);
            store.write(id, &record(size, who, turn), &[&piece]).expect("there is room");
            id
        });
        let ids = ids.collect::<Vec<_>>();
        if who >= size.n_kept {
            store.remove(&ids).expect("there is room");
        }
    }
}

fn cache() -> Cache {
    let groups = [Kind::Full, Kind::Recurrent].map(|kind| Group { kind, bytes: 1 });
    let layout = Layout::new(16, groups.to_vec()).expect("a sound layout");
    let link = Link { latency_us: 100.0, bytes_per_us: 1e4 };
    let costs = Costs { prefill: Prefill { a: 1.0, b: 1.0, c: 0.0 }, host: link, disk: link };
    Cache::new(layout, Budgets([1 << 40; 3]), costs, policies(Lru::new))
}

fn fold(hash: &mut u64, found: u64) {
    *hash = (hash.rotate_left(23) ^ found).wrapping_mul(0x9e37_79b9_7f4a_7c15);
}

fn measure_open(size: &Size) {
    let root = tempfile::tempdir().expect("a folder can be made");
    fill(root.path(), size);
    let Size { n_conversations, n_turns, turn_tokens, n_kept } = *size;
    println!(
        "open: {n_conversations} conversations of {n_turns} turns of {turn_tokens} tokens were \
         written, {n_kept} are there"
    );
    for _ in 0..3 {
        let start = Instant::now();
        let opened = Store::open(root.path(), &fingerprint(), u64::MAX);
        let (store, found) = opened.expect("nobody else has it");
        let open_ms = start.elapsed().as_secs_f64() * 1e3;
        let start = Instant::now();
        let (mut hash, mut n_tokens) = (0, 0);
        for found in found {
            n_tokens += found.record.tokens.len();
            fold(&mut hash, found.id.0 ^ found.n_bytes << 40);
            fold(&mut hash, found.record.tokens.last().copied().unwrap_or(0).into());
        }
        let records_ms = start.elapsed().as_secs_f64() * 1e3;
        let stats = store.stats();
        println!(
            "  opening {open_ms:.1} ms   {} records of {n_tokens} tokens: {records_ms:.1} ms   \
             index {} bytes   hash {hash:016x}",
            stats.n_extents, stats.index_bytes
        );
    }
    let (_store, found) = Store::open(root.path(), &fingerprint(), u64::MAX).expect("it is free");
    let (start, mut cache) = (Instant::now(), cache());
    let n_found = found.size_hint().1.unwrap_or(0);
    let found = found.map(|found| (found.record, found.id, found.piece_bytes));
    let n_adopted = n_found - cache.adopt_all(found, 1).len();
    println!(
        "  with entering {n_adopted} of them into the cache {:8.1} ms",
        start.elapsed().as_secs_f64() * 1e3
    );
}

/// Extents of `n_pieces` pieces of `piece_bytes`, written, and read again piece by piece.
fn measure_bytes(n_extents: u64, n_pieces: usize, piece_bytes: usize) {
    let root = tempfile::tempdir().expect("a folder can be made");
    let (store, _) = Store::open(root.path(), &fingerprint(), u64::MAX).expect("it is new");
    let pieces = (0..n_pieces).map(|k| vec![k as u8 | 1; piece_bytes]).collect::<Vec<_>>();
    let pieces = pieces.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let record = Record { ns: Ns(0), tokens: vec![1; 1_000], start: 0, class: Class::System };
    let mb = |n: u64| n as f64 * n_pieces as f64 * piece_bytes as f64 / 1e6;
    let mut write_ms = Vec::new();
    for id in 0..n_extents {
        let start = Instant::now();
        store.write(ExtentId(id), &record, &pieces).expect("there is room");
        write_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    write_ms.sort_by(f64::total_cmp);
    let start = Instant::now();
    let mut into = vec![0; piece_bytes];
    for extent in (0..n_extents).map(ExtentId) {
        for k in 0..n_pieces {
            let offset = (k * piece_bytes) as u64;
            let place = Place { extent, offset, n_bytes: piece_bytes as u64 };
            store.read(place, &mut into).expect("it was written");
            assert_eq!(black_box(&into)[piece_bytes / 2], k as u8 | 1);
        }
    }
    let read_s = start.elapsed().as_secs_f64();
    let median_ms = write_ms[write_ms.len() / 2];
    println!(
        "bytes: {n_extents} extents of {n_pieces} pieces of {piece_bytes} bytes: a synced write \
         {median_ms:.2} ms (median; longest {:.2}), {:.0} MB/s; reads {:.0} MB/s",
        write_ms[write_ms.len() - 1],
        mb(1) / median_ms * 1e3,
        mb(n_extents) / read_s
    );
}

fn main() {
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    if !is_bench {
        measure_open(&Size { n_conversations: 12, n_turns: 3, turn_tokens: 20, n_kept: 5 });
        measure_bytes(2, 3, 1_000);
        return;
    }
    // 10⁵ extents written, 3,000 there; 10⁵ there; long conversations.
    let size = |n_conversations, n_turns, turn_tokens, n_kept| Size {
        n_conversations,
        n_turns,
        turn_tokens,
        n_kept,
    };
    measure_open(&size(2_000, 50, 400, 60));
    measure_open(&size(2_000, 50, 100, 2_000));
    measure_open(&size(60, 50, 2_000, 60));
    measure_bytes(200, 1, 4_096);
    measure_bytes(40, 64, 65_536);
    measure_bytes(8, 64, 1 << 20);
}
