//! A real cache over real bytes, from one process to the next: what was computed goes down to disk,
//! and after a restart another cache finds it and brings back the same bytes.

use std::collections::HashMap;
use std::path::Path;

use kvcache::{
    BlockId, Budgets, Cache, Class, Costs, Group, Item, Kind, Layout, Link, Lru, Ns, Op, Prefill,
    SeqId, Tier, Token, Transfer, policies,
};
use kvstore::Store;

use crate::forgetful::Rng;
use crate::open;

const N_ROWS: usize = 4;
const NS: Ns = Ns(3);
/// Of a row in each group of rows.
const ROW_BYTES: usize = 24;
const STATE_BYTES: usize = 1_000;

/// A model's memory: what attention would read, and the books about it.
struct Engine {
    cache: Cache,
    kinds: Vec<Kind>,
    memory: HashMap<(usize, BlockId), Vec<u8>>,
    store: Store,
    now: u64,
}

/// What a group has of a prefix: any function of group and all tokens.
fn bytes_of(group: usize, tokens: &[Token], n_bytes: usize) -> Vec<u8> {
    let seed = tokens.iter().fold(group as u64 + 1, |hash, token| {
        (hash ^ u64::from(*token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    });
    let mut rng = Rng(seed);
    (0..n_bytes).map(|_| rng.next() as u8).collect()
}

fn n_bytes(kind: Kind) -> usize {
    if kind == Kind::Recurrent { STATE_BYTES } else { N_ROWS * ROW_BYTES }
}

impl Engine {
    /// Opens the store and enters what it has; what is of no use is removed.
    fn start(root: &Path, kinds: &[Kind]) -> Self {
        let groups = kinds.iter().map(|kind| Group { kind: *kind, bytes: n_bytes(*kind) as u64 });
        let layout = Layout::new(N_ROWS, groups.collect()).unwrap();
        let link = Link { latency_us: 1.0, bytes_per_us: 1e6 };
        let prefill = Prefill { a: 10.0, b: 10.0, c: 0.001 };
        let costs = Costs { prefill, host: link, disk: link };
        let budgets = Budgets([1 << 20, 0, 1 << 20]);
        let mut cache = Cache::new(layout, budgets, costs, policies(Lru::new));
        let (store, found) = open(root).unwrap();
        let found = found.map(|found| (found.record, found.id, found.piece_bytes));
        let useless = cache.adopt_all(found, 1);
        store.remove(&useless).unwrap();
        let (kinds, memory) = (kinds.to_vec(), HashMap::new());
        Self { cache, kinds, memory, store, now: 1 }
    }

    fn block(&mut self, group: usize, id: BlockId) -> &mut Vec<u8> {
        let n_bytes = n_bytes(self.kinds[group]);
        self.memory.entry((group, id)).or_insert_with(|| vec![0; n_bytes])
    }

    fn obey(&mut self, ops: Vec<Op>) {
        for op in ops {
            match op {
                Op::CopyBlock { group, from, to, .. } | Op::CopyState { group, from, to } => {
                    let bytes = self.block(group, from).clone();
                    *self.block(group, to) = bytes;
                }
                Op::ZeroState { group, to } => {
                    *self.block(group, to) = bytes_of(group, &[], STATE_BYTES);
                }
                Op::Restore(transfer) => self.restore(&transfer),
            }
        }
    }

    fn restore(&mut self, transfer: &Transfer) {
        assert_eq!((transfer.from, transfer.to), (Tier::Disk, Tier::Device));
        let mut read = |item: &Item| {
            let place = item.place.unwrap();
            let mut bytes = vec![0; place.n_bytes as usize];
            let result = self.store.read(place, &mut bytes);
            self.memory.insert((item.group, item.to), bytes);
            result
        };
        let is_ok = transfer.items.iter().all(|item| read(item).is_ok());
        let ops = self.cache.finish(transfer.id, is_ok, self.now);
        self.obey(ops);
    }

    /// Copies down all that there is to copy.
    fn write_through(&mut self) -> usize {
        let mut n_extents = 0;
        loop {
            self.now += 1;
            let transfers = self.cache.next_copies(u64::MAX, self.now);
            if transfers.is_empty() {
                return n_extents;
            }
            for transfer in transfers {
                let record = self.cache.record(transfer.id).unwrap();
                let blocks = transfer.items.iter().map(|item| (item.group, item.from));
                let pieces = blocks.map(|block| &self.memory[&block][..]).collect::<Vec<_>>();
                let extent = transfer.items[0].place.unwrap().extent;
                self.store.write(extent, &record, &pieces).unwrap();
                self.cache.finish(transfer.id, true, self.now);
                n_extents += 1;
            }
        }
    }

    /// Computes a prompt from where it is known, and says from where. What is read is compared.
    fn serve(&mut self, prompt: &[Token]) -> usize {
        self.now += 1;
        let begun = self.cache.begin(NS, prompt, self.now).unwrap();
        let seq = begun.seq;
        self.obey(begun.ops);
        let position = self.cache.position(seq).unwrap();
        self.check(seq, &prompt[..position.at], position.kv_until.min(position.at));
        let rest = prompt.len() - position.at;
        self.cache.reserve(seq, rest, self.now).unwrap();
        for group in 0..self.kinds.len() {
            let table = self.cache.block_table(seq, group).unwrap();
            let (first_idx, blocks) = (table.first_idx, table.blocks.to_vec());
            match self.kinds[group] {
                Kind::Recurrent => {
                    *self.block(group, blocks[0]) = bytes_of(group, prompt, STATE_BYTES);
                }
                kind => {
                    let known = if kind == Kind::Full { position.kv_until } else { position.at };
                    for at in known..prompt.len() {
                        let row = bytes_of(group, &prompt[..=at], ROW_BYTES);
                        let from = at % N_ROWS * ROW_BYTES;
                        let block = self.block(group, blocks[at / N_ROWS - first_idx]);
                        block[from..from + ROW_BYTES].copy_from_slice(&row);
                    }
                }
            }
        }
        self.cache.advance(seq, &prompt[position.at..]);
        for (group, id) in self.cache.capture(seq, Class::TurnEnd, self.now).unwrap_or_default() {
            *self.block(group, id) = bytes_of(group, prompt, STATE_BYTES);
        }
        self.cache.end(seq, self.now);
        position.at
    }

    /// All that a sequence reads that has gone as far as `prefix` is what it should be.
    fn check(&mut self, seq: SeqId, prefix: &[Token], n_full: usize) {
        for group in 0..self.kinds.len() {
            let table = self.cache.block_table(seq, group).unwrap();
            let (first_idx, blocks) = (table.first_idx, table.blocks.to_vec());
            let rows = match self.kinds[group] {
                Kind::Full => 0..n_full,
                Kind::Window { tokens } => prefix.len().saturating_sub(tokens)..prefix.len(),
                Kind::Recurrent => {
                    let state = bytes_of(group, prefix, STATE_BYTES);
                    assert!(*self.block(group, blocks[0]) == state);
                    continue;
                }
            };
            for at in rows {
                let from = at % N_ROWS * ROW_BYTES;
                let block = self.block(group, blocks[at / N_ROWS - first_idx]);
                let row = bytes_of(group, &prefix[..=at], ROW_BYTES);
                assert_eq!(block[from..from + ROW_BYTES], row, "row {at} of group {group}");
            }
        }
    }
}

fn prompts() -> [Vec<Token>; 4] {
    let text = |who: u32, n: u32| (0..n).map(|k| who * 1_000 + k).collect::<Vec<_>>();
    let join = |parts: &[Vec<Token>]| parts.concat();
    let trunk = text(1, 21);
    let long = join(&[trunk.clone(), text(2, 14)]);
    [trunk.clone(), long.clone(), join(&[trunk, text(3, 5)]), join(&[long, text(4, 30)])]
}

const LAYOUTS: [&[Kind]; 3] = [
    &[Kind::Full],
    &[Kind::Full, Kind::Recurrent],
    &[Kind::Window { tokens: 6 }, Kind::Full, Kind::Recurrent, Kind::Full],
];

#[test]
fn yesterdays_conversations_are_resumed_from_the_bytes_that_were_written() {
    for kinds in LAYOUTS {
        let root = tempfile::tempdir().unwrap();
        let mut engine = Engine::start(root.path(), kinds);
        for prompt in prompts() {
            engine.serve(&prompt);
            assert!(engine.write_through() > 0);
        }
        let before = engine.store.stats();
        drop(engine);
        let mut engine = Engine::start(root.path(), kinds);
        engine.cache.check();
        assert_eq!(engine.store.stats().n_extents, before.n_extents);
        assert_eq!(engine.cache.stats().tiers[0].cached_bytes, 0, "the device is empty");
        for prompt in prompts() {
            let goes_on = [&prompt[..], &[7, 8, 9]].concat();
            assert_eq!(engine.serve(&goes_on), prompt.len(), "{kinds:?}");
        }
        assert!(engine.store.stats().n_read_bytes > 0);
        // What was new today is there tomorrow, under ids that do not meet those of yesterday.
        engine.write_through();
        assert!(engine.store.stats().n_extents > before.n_extents);
        drop(engine);
        let mut engine = Engine::start(root.path(), kinds);
        let [.., last] = prompts();
        let goes_on = [&last[..], &[7, 8, 9, 10]].concat();
        assert_eq!(engine.serve(&goes_on), last.len() + 3);
    }
}

#[test]
fn a_damaged_extent_is_a_plain_miss_and_what_does_not_need_it_is_found() {
    for kinds in LAYOUTS {
        let root = tempfile::tempdir().unwrap();
        let mut engine = Engine::start(root.path(), kinds);
        let [trunk, long, ..] = prompts();
        engine.serve(&trunk);
        engine.write_through();
        engine.serve(&long);
        engine.write_through();
        drop(engine);
        let folder = root.path().join(crate::fingerprint().folder());
        let mut names = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|suffix| suffix == "extent"))
            .collect::<Vec<_>>();
        names.sort();
        let last = names.last().unwrap();
        let mut bytes = std::fs::read(last).unwrap();
        let at = bytes.len() - 1;
        bytes[at] ^= 4;
        std::fs::write(last, bytes).unwrap();
        let mut engine = Engine::start(root.path(), kinds);
        let goes_on = |prompt: &[Token]| [prompt, &[7, 8]].concat();
        assert_eq!(engine.serve(&goes_on(&long)), 0, "a restore counts as a whole");
        assert_eq!(engine.store.stats().n_corrupt, 1);
        drop(engine);
        let mut engine = Engine::start(root.path(), kinds);
        assert_eq!(engine.serve(&goes_on(&trunk)), trunk.len());
        assert_eq!(engine.store.stats().n_corrupt, 0);
    }
}
