//! A device, a host and a disk that store hashes of prefixes instead of keys, values and states,
//! obey the cache, and compare every row and state that a sequence reads with what it should be.
//! Beside them a naive model: the prefixes that were ever computed or captured.

use std::collections::{HashMap, HashSet};

use kvcache::{
    BlockId, Budgets, Cache, Class, Costs, Evict, ExtentId, Group, Item, Kind, Layout, Ns, Op,
    Policy, Record, SeqId, Stats, Tier, Token, Transfer, Waiting,
};

/// Splitmix64: small, and the same everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What stands for everything that a device computes from a prefix.
pub fn prefix_hash(ns: Ns, tokens: &[Token]) -> u64 {
    tokens.iter().fold(mix(ns.0 + 1), |hash, token| mix(hash ^ u64::from(*token) << 1 ^ 0x51))
}

/// What a run came past: one that never restores proves nothing about restoring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Folds what was decided, so that runs can be compared.
    pub hash: u64,
    pub n_block_copies: u64,
    pub n_state_copies: u64,
    pub n_restores: u64,
    pub n_lost: u64,
    /// Extents cut off.
    pub n_cut: u64,
    pub n_moved: u64,
    pub n_no_room: u64,
    pub n_captured: u64,
    pub n_capture_refused: u64,
    pub n_evicted: [u64; 3],
    pub n_transfers: [u64; 2],
}

impl Outcome {
    pub fn add(&mut self, o: &Outcome) {
        self.hash = self.hash.rotate_left(5) ^ o.hash;
        self.n_block_copies += o.n_block_copies;
        self.n_state_copies += o.n_state_copies;
        self.n_restores += o.n_restores;
        self.n_lost += o.n_lost;
        self.n_cut += o.n_cut;
        self.n_moved += o.n_moved;
        self.n_no_room += o.n_no_room;
        self.n_captured += o.n_captured;
        self.n_capture_refused += o.n_capture_refused;
        (0..3).for_each(|t| self.n_evicted[t] += o.n_evicted[t]);
        (0..2).for_each(|k| self.n_transfers[k] += o.n_transfers[k]);
    }
}

pub const POISON: u64 = 0xdead;

/// A sequence as its engine sees it.
pub struct Live {
    pub id: SeqId,
    pub ns: Ns,
    /// What it will compute, and then goes on to generate.
    pub tokens: Vec<Token>,
    pub is_flushed: bool,
}

/// Blocks and states of one tier, per group.
type Memory = Vec<HashMap<BlockId, Vec<u64>>>;

pub struct World {
    pub cache: Cache,
    pub layout: Layout,
    memory: [Memory; 2],
    /// Pieces of extents by their offset.
    disk: HashMap<ExtentId, HashMap<u64, Vec<u64>>>,
    /// Bytes of the pieces in each extent's file.
    files: HashMap<ExtentId, u64>,
    /// The index: what each extent that was written well has.
    pub index: Vec<(ExtentId, Record)>,
    pub live: Vec<Live>,
    pub flying: Vec<Transfer>,
    computed: HashSet<u64>,
    captured: HashSet<u64>,
    pub budgets: [u64; 3],
    costs: Costs,
    /// Something went that nobody evicted: by a flush or a restart.
    has_lost: bool,
    pub now: u64,
    pub outcome: Outcome,
    last: Stats,
}

/// One policy or another for each tier, by the budgets: a cache must be sound under all.
fn policies(budgets: [u64; 3]) -> [Box<dyn Evict>; 3] {
    budgets.map(|bytes| Policy::ALL[bytes as usize % Policy::ALL.len()].build())
}

impl World {
    pub fn new(block_tokens: usize, groups: Vec<Group>, budgets: [u64; 3], costs: Costs) -> Self {
        let layout = Layout::new(block_tokens, groups).expect("a sound layout");
        // By the budgets too: most resume anywhere.
        let stride = [1, 1, 1, 5][budgets[0] as usize / 7 % 4];
        let layout = layout.resuming_at_multiples_of(stride);
        let policies = policies(budgets);
        let n_groups = layout.groups().len();
        let memory = || vec![HashMap::new(); n_groups];
        Self {
            cache: Cache::new(layout.clone(), Budgets(budgets), costs, policies),
            layout,
            memory: [memory(), memory()],
            disk: HashMap::new(),
            files: HashMap::new(),
            index: Vec::new(),
            live: Vec::new(),
            flying: Vec::new(),
            computed: HashSet::new(),
            captured: HashSet::new(),
            budgets,
            costs,
            has_lost: false,
            now: 0,
            outcome: Outcome::default(),
            last: Stats::default(),
        }
    }

    pub fn n_rows(&self) -> usize {
        self.layout.block_tokens()
    }

    pub fn rows(&mut self, tier: Tier, group: usize, id: BlockId) -> &mut Vec<u64> {
        let n = self.n_rows();
        self.memory[tier as usize][group].entry(id).or_insert_with(|| vec![POISON; n])
    }

    fn obey(&mut self, ops: Vec<Op>, ns: Ns) {
        for op in ops {
            match op {
                Op::CopyBlock { group, from, to, n_tokens } => {
                    self.outcome.n_block_copies += 1;
                    self.copy(Tier::Device, Tier::Device, group, from, to, n_tokens);
                }
                Op::CopyState { group, from, to } => {
                    self.outcome.n_state_copies += 1;
                    self.copy(Tier::Device, Tier::Device, group, from, to, 1);
                }
                Op::ZeroState { group, to } => {
                    self.rows(Tier::Device, group, to)[0] = prefix_hash(ns, &[]);
                }
                Op::Restore(transfer) => {
                    self.outcome.n_restores += 1;
                    self.flying.push(transfer);
                }
            }
        }
    }

    pub fn copy(&mut self, a: Tier, b: Tier, group: usize, from: BlockId, to: BlockId, n: usize) {
        let mut rows = self.rows(a, group, from).clone();
        rows[n..].fill(POISON);
        *self.rows(b, group, to) = rows;
    }

    /// All that the sequence reads is what it should be.
    pub fn check_reads(&mut self, seq: usize) {
        let Live { id, ns, tokens, .. } = &self.live[seq];
        let (id, ns, tokens) = (*id, *ns, tokens.clone());
        let Some(position) = self.cache.position(id) else { return };
        assert!(position.at < tokens.len().max(1), "a token is left to compute");
        for group in 0..self.layout.groups().len() {
            let table = self.cache.block_table(id, group).expect("a live sequence has tables");
            let (first_idx, blocks) = (table.first_idx, table.blocks.to_vec());
            let range = match self.layout.groups()[group].kind {
                Kind::Full => 0..position.kv_until,
                Kind::Window { tokens } => position.at.saturating_sub(tokens)..position.at,
                Kind::Recurrent => {
                    let state = self.rows(Tier::Device, group, blocks[0])[0];
                    let expected = prefix_hash(ns, &tokens[..position.at]);
                    assert_eq!(state, expected, "the state has seen exactly the prefix");
                    continue;
                }
            };
            for at in range {
                let n = self.n_rows();
                let row = self.rows(Tier::Device, group, blocks[at / n - first_idx])[at % n];
                let expected = prefix_hash(ns, &tokens[..=at]);
                assert_eq!(row, expected, "row {at} of group {group} is the prefix's");
            }
        }
    }

    /// Computes the next tokens of a sequence; false if there is no room or it waits.
    pub fn step(&mut self, seq: usize, n_tokens: usize) -> bool {
        self.check_reads(seq);
        let Live { id, ns, tokens, is_flushed } = &self.live[seq];
        let (id, ns, is_flushed) = (*id, *ns, *is_flushed);
        let Some(position) = self.cache.position(id) else { return false };
        let from = position.at;
        let to = (from + n_tokens).min(tokens.len());
        let tokens = tokens[..to].to_vec();
        let before = self.cache.stats();
        if self.cache.reserve(id, to - from, self.now).is_err() {
            assert_eq!(self.cache.stats(), before, "no room, nothing changed");
            self.outcome.n_no_room += 1;
            return false;
        }
        for group in 0..self.layout.groups().len() {
            let table = self.cache.block_table(id, group).expect("a live sequence has tables");
            let (first_idx, blocks) = (table.first_idx, table.blocks.to_vec());
            let kind = self.layout.groups()[group].kind;
            if kind == Kind::Recurrent {
                self.rows(Tier::Device, group, blocks[0])[0] = prefix_hash(ns, &tokens);
                continue;
            }
            let first = if kind == Kind::Full { position.kv_until.max(from) } else { from };
            for at in first..to {
                let n = self.n_rows();
                let row = prefix_hash(ns, &tokens[..=at]);
                self.rows(Tier::Device, group, blocks[at / n - first_idx])[at % n] = row;
            }
        }
        self.cache.advance(id, &tokens[from..]);
        for at in from..if is_flushed { from } else { to } {
            self.computed.insert(prefix_hash(ns, &tokens[..=at]));
        }
        // As generating does: there is always a next token.
        if to == self.live[seq].tokens.len() {
            let next = (prefix_hash(ns, &tokens) % 2) as Token;
            self.live[seq].tokens.push(next);
        }
        true
    }

    pub fn begin(&mut self, ns: Ns, prompt: Vec<Token>) -> Option<usize> {
        let before = self.cache.stats();
        self.check_found(ns, &prompt);
        let Ok(begun) = self.cache.begin(ns, &prompt, self.now) else {
            let after = self.cache.stats();
            assert_eq!(before.tiers, after.tiers, "no room, nothing changed");
            self.outcome.n_no_room += 1;
            return None;
        };
        let copied = begun.ops.iter().filter(|op| matches!(op, Op::CopyBlock { .. })).count();
        assert!(copied <= self.layout.groups().len(), "branching copies a block per group");
        if self.now.is_multiple_of(3) {
            self.pack_around(&begun.ops);
        }
        self.obey(begun.ops, ns);
        self.live.push(Live { id: begun.seq, ns, tokens: prompt, is_flushed: false });
        self.check_reads(self.live.len() - 1);
        Some(self.live.len() - 1)
    }

    pub fn capture(&mut self, seq: usize) -> bool {
        let Live { id, ns, tokens, is_flushed } = &self.live[seq];
        let (id, ns, is_flushed) = (*id, *ns, *is_flushed);
        let Some(position) = self.cache.position(id) else { return false };
        let prefix = tokens[..position.at].to_vec();
        let class = [Class::TurnEnd, Class::OutputEnd(Waiting::Tool)][prefix.len() % 2];
        let Some(slots) = self.cache.capture(id, class, self.now) else { return false };
        for (group, slot) in slots {
            let state = prefix_hash(ns, &prefix);
            self.rows(Tier::Device, group, slot)[0] = state;
        }
        if !is_flushed {
            self.captured.insert(prefix_hash(ns, &prefix));
        }
        true
    }

    pub fn end(&mut self, seq: usize) {
        let live = self.live.swap_remove(seq);
        self.cache.end(live.id, self.now);
    }

    /// What an item is read from.
    fn source(&mut self, from: Tier, item: &Item) -> Vec<u64> {
        match (from, item.place) {
            (Tier::Disk, Some(place)) => self.disk[&place.extent][&place.offset].clone(),
            _ => self.rows(from, item.group, item.from).clone(),
        }
    }

    pub fn finish(&mut self, transfer: usize, is_ok: bool) {
        let transfer = self.flying.swap_remove(transfer);
        let record = self.cache.record(transfer.id);
        for item in &transfer.items {
            let n_good = if item.n_tokens == 0 { 1 } else { item.n_tokens };
            let mut rows = self.source(transfer.from, item);
            rows[if is_ok { n_good } else { 0 }..].fill(POISON);
            match (transfer.to, item.place) {
                (Tier::Disk, Some(place)) => {
                    let extent = self.disk.entry(place.extent).or_default();
                    assert!(extent.insert(place.offset, rows).is_none(), "pieces do not overlap");
                    let record = record.clone().filter(|_| is_ok && place.offset == 0);
                    self.index.extend(record.map(|record| (place.extent, record)));
                }
                _ => *self.rows(transfer.to, item.group, item.to) = rows,
            }
        }
        if let Some(place) = transfer.items.first().and_then(|item| item.place)
            && transfer.to == Tier::Disk
        {
            self.files.insert(place.extent, transfer.n_bytes);
        }
        let ops = self.cache.finish(transfer.id, is_ok, self.now);
        // Only the sequence that waited has ops, and zero states are the same in its namespace.
        let seq = self.live.iter().find(|l| {
            let state = ops.iter().find_map(|op| match op {
                Op::ZeroState { group, to } => Some((*group, *to)),
                _ => None,
            });
            state.is_some_and(|(group, to)| {
                self.cache.block_table(l.id, group).is_some_and(|t| t.blocks == [to])
            })
        });
        let ns = seq.map_or(Ns(0), |l| l.ns);
        self.obey(ops, ns);
        assert_eq!(self.cache.finish(transfer.id, true, self.now), [], "a transfer ends once");
    }

    pub fn copies(&mut self, max_bytes: u64) {
        let transfers = self.cache.next_copies(max_bytes, self.now);
        self.flying.extend(transfers);
    }

    /// Enters an extent as an index would have it: rows from `start` on and the checkpoint.
    pub fn adopt(&mut self, ns: Ns, tokens: &[Token], start: usize) -> Option<bool> {
        self.now += 1;
        let extent = ExtentId(self.now << 20);
        let (n, mut offset) = (self.n_rows(), 0);
        let mut pieces = HashMap::new();
        let mut put = |bytes: u64, rows: Vec<u64>| {
            pieces.insert(offset, rows);
            offset += bytes;
        };
        let block = |idx: usize| {
            let hash =
                |at: usize| tokens.get(..=at).map_or(POISON, |prefix| prefix_hash(ns, prefix));
            (idx * n..(idx + 1) * n).map(hash).collect::<Vec<_>>()
        };
        let groups = self.layout.groups().to_vec();
        let indices = start / n..if tokens.len() > start { tokens.len().div_ceil(n) } else { 0 };
        for idx in indices {
            let full = groups.iter().filter(|g| g.kind == Kind::Full);
            full.for_each(|g| put(g.bytes, block(idx)));
        }
        for group in groups.iter().filter(|_| self.layout.needs_checkpoints()) {
            match group.kind {
                Kind::Full => {}
                Kind::Recurrent => put(group.bytes, vec![prefix_hash(ns, tokens); n]),
                Kind::Window { tokens: window } => {
                    let first = tokens.len().saturating_sub(window) / n;
                    (first..tokens.len().div_ceil(n)).for_each(|idx| put(group.bytes, block(idx)));
                }
            }
        }
        let record = Record { ns, tokens: tokens.to_vec(), start, class: Class::TurnEnd };
        let is_adopted = self.cache.adopt(&record, extent, offset, self.now).ok();
        self.cache.adopted(self.now);
        if is_adopted == Some(true) {
            self.disk.insert(extent, pieces);
            self.files.insert(extent, offset);
            self.index.push((extent, record));
            for at in 0..tokens.len() {
                self.computed.insert(prefix_hash(ns, &tokens[..=at]));
            }
            self.captured.insert(prefix_hash(ns, tokens));
        }
        is_adopted
    }

    pub fn note_stats(&mut self) {
        let stats = self.cache.stats();
        self.outcome.add(&Outcome {
            n_captured: stats.n_captured,
            n_capture_refused: stats.n_capture_refused,
            n_evicted: stats.tiers.map(|t| t.n_evicted),
            n_transfers: stats.n_transfers,
            ..Outcome::default()
        });
    }

    /// Another process finds the extents and the index, and nothing else.
    pub fn restart(&mut self) {
        self.note_stats();
        let on_disk = self.on_disk();
        // What a transfer pins may be of no use to others.
        let is_settled =
            self.flying.is_empty() && self.cache.stats().extent_bytes <= self.budgets[2];
        let policies = policies(self.budgets);
        self.cache = Cache::new(self.layout.clone(), Budgets(self.budgets), self.costs, policies);
        (self.live, self.flying) = (Vec::new(), Vec::new());
        self.has_lost = true;
        self.last = Stats::default();
        let mut index = std::mem::take(&mut self.index);
        index.sort_by_key(|(_, record)| record.start);
        self.files.retain(|extent, _| index.iter().any(|(id, _)| id == extent));
        let found = index.iter().map(|(id, record)| (record.clone(), *id, self.files[id]));
        let useless = self.cache.adopt_all(found, self.now);
        index.retain(|(id, _)| !useless.contains(id));
        self.index = index;
        for extent in useless {
            self.disk.remove(&extent);
            self.files.remove(&extent);
        }
        let found = self.on_disk();
        let mut kept = on_disk.iter().map(|prefix| (prefix, found.contains(prefix)));
        if is_settled {
            let lost = kept.find(|(_, is_found)| !is_found);
            assert_eq!(lost, None, "what was on disk is found by another process");
        }
    }

    /// All prefixes whose rows lie on disk up to a node's end or as far as the node has them, and
    /// whether a checkpoint stands there.
    fn on_disk(&self) -> HashSet<(u64, bool)> {
        let views = self.cache.tree(usize::MAX);
        let mut hashes = Vec::<Vec<Token>>::new();
        let mut found = HashSet::new();
        for view in &views {
            let mut path = view.parent.map_or_else(Vec::new, |parent| hashes[parent].clone());
            path.extend(&view.tokens[..view.covered[2]]);
            // A bare place is found where a node ends or not: only rows to it count.
            let ends = 1..=view.covered[2];
            for n in ends {
                found.insert((prefix_hash(view.ns, &path[..view.from + n]), false));
            }
            if view.saved[2] {
                found.insert((prefix_hash(view.ns, &path), true));
            }
            path.extend(&view.tokens[view.covered[2]..]);
            hashes.push(path);
        }
        found
    }

    pub fn flush(&mut self, ns: Ns) {
        self.cache.flush(ns);
        self.has_lost = true;
        self.live.iter_mut().filter(|l| l.ns == ns).for_each(|l| l.is_flushed = true);
        assert_eq!(self.cache.find(ns, &[0, 1]).seen, 0, "nothing is known after a flush");
    }

    /// An extent turns out to be damaged. What is being moved may need it; else nobody asks for it
    /// again, or it would not be found.
    pub fn lose(&mut self, nth: usize) {
        let mut extents = self.disk.keys().copied().collect::<Vec<_>>();
        extents.sort_unstable();
        let Some(extent) = extents.get(nth % extents.len().max(1)).copied() else { return };
        let before = self.cache.stats();
        self.cache.lose(&[extent], self.now);
        let after = self.cache.stats();
        assert_eq!(after.tiers[0], before.tiers[0], "only the disk has lost anything");
        assert_eq!(after.tiers[1], before.tiers[1], "only the disk has lost anything");
        self.has_lost = true;
        if self.flying.is_empty() {
            self.disk.remove(&extent);
            self.files.remove(&extent);
            self.index.retain(|(id, _)| *id != extent);
            let dead = self.cache.take_dead_extents();
            // A process that ended may have left some that the index does not name.
            self.outcome.n_lost += u64::from(dead.contains(&extent));
            for extent in dead {
                self.disk.remove(&extent);
                self.files.remove(&extent);
                self.index.retain(|(id, _)| *id != extent);
            }
        }
    }

    /// Compares a lookup with the naive model: never more than was computed, and exactly that
    /// while nothing had to go.
    pub fn check_found(&mut self, ns: Ns, prompt: &[Token]) {
        let before = self.cache.stats();
        let found = self.cache.find(ns, prompt);
        assert_eq!(self.cache.stats(), before, "looking changes nothing");
        let decided = found.usable as u64 ^ (found.matched as u64) << 20;
        self.outcome.hash = mix(self.outcome.hash ^ decided);
        let is_computed = |n: &usize| self.computed.contains(&prefix_hash(ns, &prompt[..*n]));
        let n_computed = (1..=prompt.len()).take_while(is_computed).count();
        let max = n_computed.min(prompt.len().saturating_sub(1));
        let is_captured = |n: &usize| self.captured.contains(&prefix_hash(ns, &prompt[..*n]));
        let needs_checkpoints = self.layout.needs_checkpoints();
        let stride = self.layout.stride();
        let mut places = (1..=max).rev().filter(|at| at % stride == 0);
        let n_usable = match needs_checkpoints {
            true => places.find(is_captured).unwrap_or(0),
            false => places.next().unwrap_or(0),
        };
        assert_eq!(found.usable % stride, 0, "{found:?}");
        assert!(found.seen <= n_computed && found.matched <= found.seen, "{found:?}");
        assert!(found.usable <= found.matched && found.usable <= n_usable, "{found:?}");
        let cold = found.candidates.iter().find(|c| c.at == 0).expect("cold is always possible");
        assert!(found.candidates[0].cost_us <= cold.cost_us, "never slower than cold");
        let n_evicted: u64 = before.tiers.iter().map(|t| t.n_evicted).sum();
        if n_evicted == 0 && !self.has_lost {
            let longest = found.candidates.iter().map(|c| c.at).max();
            assert_eq!(longest, Some(n_usable), "nothing is lost while there is room: {found:?}");
        }
    }

    /// The end of every act.
    pub fn settle(&mut self) {
        for extent in self.cache.take_dead_extents() {
            self.disk.remove(&extent);
            self.files.remove(&extent);
            self.index.retain(|(id, _)| *id != extent);
        }
        for (extent, n_bytes) in self.cache.take_shortened_extents() {
            self.outcome.n_cut += 1;
            self.disk.entry(extent).or_default().retain(|offset, _| *offset < n_bytes);
            self.files.entry(extent).and_modify(|n| *n = n_bytes.min(*n));
        }
        self.check_files();
        self.check_totals();
    }

    /// Files have the bytes that the cache counts, and no more than the budget.
    fn check_files(&self) {
        let to_come = self.flying.iter().filter(|t| t.to == Tier::Disk).map(|t| t.n_bytes);
        let n_bytes = self.files.values().sum::<u64>() + to_come.sum::<u64>();
        let stats = self.cache.stats();
        assert_eq!(n_bytes, stats.extent_bytes, "files have the bytes that are counted");
        let disk = stats.tiers[2];
        assert!(n_bytes <= disk.budget_bytes || disk.live_bytes > 0, "{disk:?}");
    }

    fn check_totals(&mut self) {
        let (now, last) = (self.cache.stats(), self.last);
        for (k, (t, was)) in now.tiers.iter().zip(&last.tiers).enumerate() {
            let used = t.live_bytes + t.cached_bytes;
            assert!(k != 2 || used <= now.extent_bytes, "what is on disk lies in extents");
            let used = if k == 2 { now.extent_bytes } else { used };
            assert!(used > t.budget_bytes || used + t.free_bytes == t.budget_bytes);
            assert!(t.n_evicted >= was.n_evicted && t.n_hit_tokens >= was.n_hit_tokens);
        }
        assert!(now.n_begun >= last.n_begun && now.n_captured >= last.n_captured);
        self.last = now;
    }

    /// Ends everything; then nothing is left.
    pub fn close(&mut self) {
        while !self.flying.is_empty() {
            self.finish(0, true);
        }
        while !self.live.is_empty() {
            self.end(0);
        }
        for ns in 0..3 {
            self.flush(Ns(ns));
        }
        self.cache.check();
        let stats = self.cache.stats();
        for tier in stats.tiers {
            assert_eq!((tier.live_bytes, tier.cached_bytes), (0, 0), "a flush leaves nothing");
        }
        assert_eq!((stats.n_nodes, stats.n_tokens), (0, 0), "a flush leaves nothing");
        assert_eq!(stats.extent_bytes, 0, "a flush leaves nothing");
    }
}
