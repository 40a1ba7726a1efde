//! Live sequences: a pinned path, block tables, and a tail that grows the trie as tokens are
//! computed, so that others share it while it runs and an early end keeps what was computed.
//!
//! A block that is not full has one owner who may write further rows. Who begins inside a block
//! takes it over if nobody owns it and nobody wrote beyond, and copies it otherwise. A sequence may
//! compute tokens that another has put into the trie meanwhile: it then writes its own blocks, and
//! they enter the trie where the two part.

use std::sync::Arc;

use crate::arena::Handle;
use crate::blocks::BlockId;
use crate::cache::{Begun, Cache, NoRoom, Op, Position, SeqId};
use crate::evict::{Class, Tick};
use crate::layout::{Kind, Ns, Tier, Token};
use crate::reason::Cause;
use crate::residency::Rows;

/// The blocks of one group that a sequence reads and writes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    /// The index of the first block; more than 0 when a window has moved on.
    pub first_idx: usize,
    pub blocks: Vec<BlockId>,
    /// The first index that the sequence may write.
    pub own_from: usize,
}

impl Table {
    fn end_idx(&self) -> usize {
        self.first_idx + self.blocks.len()
    }
}

#[derive(Debug)]
pub(crate) struct Sequence {
    pub root: Handle,
    /// The pinned path: rows up to the position, and up to `kv_until`, lie on it.
    pub node: Handle,
    pub pos: usize,
    pub kv_until: usize,
    /// Per group; of a recurrent one, the live state.
    pub tables: Vec<Table>,
    pub prompt: Arc<[Token]>,
    /// The restore it waits for.
    pub restore: Option<Handle>,
}

/// A block table as of now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockTable<'a> {
    /// The index of the first block: row i of the table holds tokens from
    /// `(first_idx + i) · block_tokens`.
    pub first_idx: usize,
    /// Blocks; of a recurrent group, the one live state.
    pub blocks: &'a [BlockId],
}

impl Cache {
    /// Begins a sequence on the best known prefix of `tokens`, its prompt. Namespaces never share.
    ///
    /// # Errors
    /// `NoRoom` if the device has not one block per group and the states that it needs.
    pub fn begin(&mut self, ns: Ns, tokens: &[Token], now: Tick) -> Result<Begun, NoRoom> {
        self.now = now;
        let walk = self.trie.walk(ns, tokens);
        let mut found = self.explain(ns, tokens, &walk);
        let root = self.trie.root(ns);
        let mut refusal = None;
        for candidate in found.candidates.clone() {
            let at = candidate.at;
            let kv_until = walk.covered[0].max(at);
            let last = walk.node_at(&self.trie, kv_until).unwrap_or(root);
            let node = self.node_ending(last, kv_until);
            self.lock(node, Tier::Device);
            let seq = Sequence {
                root,
                node,
                pos: at,
                kv_until,
                tables: Vec::new(),
                prompt: Arc::from(tokens),
                restore: None,
            };
            let seated = match candidate.tier {
                Tier::Device => self.seat(node, at, kv_until, None).map(|(tables, ops)| {
                    (SeqId(self.seqs.insert(Sequence { tables, ..seq })), ops)
                }),
                _ => self.begin_restore(&walk, at, seq),
            };
            match seated {
                Ok((seq, ops)) => {
                    self.miss(&walk, tokens, root, at);
                    if self.layout.needs_checkpoints() {
                        self.touch(node, at, kv_until);
                    }
                    (found.usable, found.tier) = (at, candidate.tier);
                    self.stats.n_begun += 1;
                    self.stats.n_asked_tokens += tokens.len() as u64;
                    self.stats.tiers[candidate.tier.idx()].n_hit_tokens += at as u64;
                    self.log.push(found.clone());
                    self.after();
                    return Ok(Begun { seq, ops, found });
                }
                Err(error) => {
                    self.unlock(node, Tier::Device);
                    found.cause = Cause::NoRoom { at };
                    refusal.get_or_insert(error);
                }
            }
        }
        self.drop_empty_root(root);
        self.after();
        Err(refusal.expect("there is always the candidate of computing everything"))
    }

    /// Tables for going on at `at` on the path to `node`, which the caller has pinned and which
    /// ends at `kv_until`. Allocates at most one block per group, and the states unless given.
    pub(crate) fn seat(
        &mut self,
        node: Handle,
        at: usize,
        kv_until: usize,
        states: Option<Vec<Table>>,
    ) -> Result<(Vec<Table>, Vec<Op>), NoRoom> {
        let n_groups = self.layout.groups.len();
        let anchor = self.trie.ancestor_at(node, at);
        let saved = self.trie.nodes[anchor].saved[0].as_ref().filter(|_| at > 0);
        let saved = saved.map_or_else(|| vec![Vec::new(); n_groups], |s| s.blocks.clone());
        let n_blocks = self.layout.n_blocks(kv_until);
        let rows = self.path_rows(node, Tier::Device, 0, kv_until);
        let mut tables = vec![Table::default(); n_groups];
        let mut n_bytes = 0;
        for (group, table) in tables.iter_mut().enumerate() {
            let kind = self.layout.groups[group].kind;
            let (first, end) = match kind {
                Kind::Full => (0, kv_until),
                _ => (self.layout.saved_blocks(group, at).start, at),
            };
            table.first_idx = if kind == Kind::Recurrent { 0 } else { first };
            table.own_from = end / self.layout.block_tokens;
            table.blocks = match self.layout.full.iter().position(|g| *g == group) {
                Some(k) => (0..n_blocks).map(|i| rows[i * self.layout.full.len() + k]).collect(),
                None => saved[group].clone(),
            };
            // Until it is decided, nothing of this may be evicted: not a checkpoint either.
            for id in &table.blocks {
                self.blocks.pool(Tier::Device, group).enliven(*id);
            }
            let needs_block = match kind {
                Kind::Recurrent => states.is_none(),
                _ => self.must_copy(group, table, end),
            };
            n_bytes += if needs_block { self.layout.groups[group].bytes } else { 0 };
        }
        let room = self.make_room(Tier::Device, n_bytes);
        if let Err(error) = room {
            self.drop_tables(&tables);
            return Err(error);
        }
        let mut ops = Vec::new();
        for (group, table) in tables.iter_mut().enumerate() {
            let given = states.as_ref().map(|tables| tables[group].clone());
            self.make_writable(group, table, at, kv_until, given, &mut ops);
        }
        Ok((tables, ops))
    }

    /// Whether going on at `end` must not write into the table's last block.
    fn must_copy(&mut self, group: usize, table: &Table, end: usize) -> bool {
        let n_rows = end % self.layout.block_tokens;
        let last = table.blocks.last().filter(|_| n_rows > 0);
        last.is_some_and(|id| {
            let block = self.blocks.pool(Tier::Device, group).get(*id);
            block.is_owned || block.n_rows as usize != n_rows
        })
    }

    fn make_writable(
        &mut self,
        group: usize,
        table: &mut Table,
        at: usize,
        kv_until: usize,
        given: Option<Table>,
        ops: &mut Vec<Op>,
    ) {
        let kind = self.layout.groups[group].kind;
        let end = if kind == Kind::Full { kv_until } else { at };
        let n_tokens = end % self.layout.block_tokens;
        if kind == Kind::Recurrent {
            let pool = self.blocks.pool(Tier::Device, group);
            let to = given.map_or_else(|| pool.alloc(), |table| table.blocks[0]);
            match table.blocks.pop() {
                Some(from) => {
                    ops.push(Op::CopyState { group, from, to });
                    self.blocks.drop_live(Tier::Device, group, from);
                }
                None => ops.push(Op::ZeroState { group, to }),
            }
            (table.own_from, table.blocks) = (0, vec![to]);
        } else if self.must_copy(group, table, end) {
            let pool = self.blocks.pool(Tier::Device, group);
            let to = pool.alloc();
            pool.get_mut(to).n_rows = n_tokens as u32;
            pool.get_mut(to).is_owned = true;
            let last = table.blocks.last_mut().expect("what must be copied is there");
            let from = std::mem::replace(last, to);
            ops.push(Op::CopyBlock { group, from, to, n_tokens });
            self.blocks.drop_live(Tier::Device, group, from);
        } else if n_tokens > 0
            && let Some(last) = table.blocks.last()
        {
            self.blocks.pool(Tier::Device, group).get_mut(*last).is_owned = true;
        }
    }

    pub(crate) fn drop_tables(&mut self, tables: &[Table]) {
        for (group, table) in tables.iter().enumerate() {
            for id in &table.blocks {
                self.blocks.drop_live(Tier::Device, group, *id);
            }
        }
    }

    /// Where a sequence is; `None` while it waits for a restore, and for one that has ended.
    pub fn position(&self, seq: SeqId) -> Option<Position> {
        let seq = self.seqs.get(seq.0).filter(|s| s.restore.is_none())?;
        Some(Position { at: seq.pos, kv_until: seq.kv_until.max(seq.pos) })
    }

    /// The blocks of `group` that hold what the sequence may read, and room for what was reserved.
    /// `None` for a sequence that has ended.
    pub fn block_table(&self, seq: SeqId, group: usize) -> Option<BlockTable<'_>> {
        let table = self.seqs.get(seq.0)?.tables.get(group)?;
        Some(BlockTable { first_idx: table.first_idx, blocks: &table.blocks })
    }

    /// Makes room for the next `n_tokens` tokens of a sequence.
    ///
    /// # Errors
    /// `NoRoom`; nothing has changed then.
    ///
    /// # Panics
    /// If the sequence has no position.
    pub fn reserve(&mut self, seq: SeqId, n_tokens: usize, now: Tick) -> Result<(), NoRoom> {
        self.now = now;
        let n_blocks = self.layout.n_blocks(self.ready(seq).pos + n_tokens);
        let n_new = |group: usize, table: &Table| match self.layout.groups[group].kind {
            Kind::Recurrent => 0,
            _ => n_blocks.saturating_sub(table.end_idx()),
        };
        let tables = self.seqs[seq.0].tables.iter().enumerate();
        let n_new = tables.map(|(group, table)| n_new(group, table)).collect::<Vec<_>>();
        let groups = n_new.iter().zip(&self.layout.groups);
        self.make_room(Tier::Device, groups.map(|(n, g)| *n as u64 * g.bytes).sum())?;
        for (group, n) in n_new.into_iter().enumerate() {
            for _ in 0..n {
                let pool = self.blocks.pool(Tier::Device, group);
                let id = pool.alloc();
                pool.get_mut(id).is_owned = true;
                self.seqs[seq.0].tables[group].blocks.push(id);
            }
        }
        self.after();
        Ok(())
    }

    fn ready(&self, seq: SeqId) -> &Sequence {
        let seq = self.seqs.get(seq.0).expect("a sequence is used before it ends");
        assert!(seq.restore.is_none(), "a sequence is used after its restore");
        seq
    }

    /// `tokens` are computed: their rows are in the blocks, and the live states have seen them.
    ///
    /// # Panics
    /// If the sequence has no position, or if room for the tokens was not reserved.
    pub fn advance(&mut self, id: SeqId, tokens: &[Token]) {
        let seq = self.ready(id);
        let (from, kv_until) = (seq.pos, seq.kv_until);
        let to = from + tokens.len();
        for (group, table) in seq.tables.iter().enumerate() {
            let has_room = self.layout.groups[group].kind == Kind::Recurrent
                || table.end_idx() >= self.layout.n_blocks(to);
            assert!(has_room, "tokens are computed into reserved blocks");
        }
        self.note_rows(id, from, to);
        let n_gap = (kv_until.saturating_sub(from)).min(tokens.len());
        self.seqs[id.0].pos += n_gap;
        let mut rest = &tokens[n_gap..];
        while !rest.is_empty() {
            let n = self.grow(id, rest);
            rest = &rest[n..];
        }
        self.slide_windows(id);
        self.after();
    }

    fn note_rows(&mut self, id: SeqId, from: usize, to: usize) {
        let block_tokens = self.layout.block_tokens;
        let seq = &self.seqs[id.0];
        for (group, table) in seq.tables.iter().enumerate() {
            if self.layout.groups[group].kind == Kind::Recurrent {
                continue;
            }
            for idx in (from / block_tokens).max(table.own_from)..to.div_ceil(block_tokens) {
                let n_rows = (to - idx * block_tokens).min(block_tokens) as u32;
                let id = table.blocks[idx - table.first_idx];
                let block = self.blocks.pool(Tier::Device, group).get_mut(id);
                block.n_rows = block.n_rows.max(n_rows);
            }
        }
    }

    /// Takes some of `tokens` into the trie, at the sequence's position; returns how many.
    fn grow(&mut self, id: SeqId, tokens: &[Token]) -> usize {
        let (node, at) = (self.seqs[id.0].node, self.seqs[id.0].pos);
        let here = &self.trie.nodes[node];
        if let Some(parent) = here.parent
            && here.start >= at
        {
            // Cut by another, or at the last step: the position lies further up.
            self.seqs[id.0].node = parent;
            self.unlock_one(node, Tier::Device);
            self.prune(node, Tier::Device);
            self.bury(node);
            return 0;
        }
        if at < here.end() {
            let n = crate::trie::n_common(&here.edge.tokens()[at - here.start..], tokens);
            if n == 0 {
                self.node_ending(node, at);
            } else {
                self.cover(id, at + n);
            }
            return n;
        }
        if let Some(child) = here.child(tokens[0]) {
            let n = crate::trie::n_common(self.trie.nodes[child].edge.tokens(), tokens);
            self.lock_one(child, Tier::Device);
            self.seqs[id.0].node = child;
            self.cover(id, at + n);
            return n;
        }
        if !(here.is_covered(0) && self.trie.grow(node, tokens)) {
            let child = self.trie.add_child(node, tokens);
            self.lock_one(child, Tier::Device);
            self.seqs[id.0].node = child;
        }
        self.cover(id, at + tokens.len());
        tokens.len()
    }

    /// The sequence has come to `to` within its node, and gives the rows that are missing there.
    fn cover(&mut self, id: SeqId, to: usize) {
        let seq = &mut self.seqs[id.0];
        seq.pos = to;
        let node = seq.node;
        let covered = self.trie.nodes[node].covered(0);
        if to <= covered {
            return;
        }
        let first_idx = covered / self.layout.block_tokens;
        let indices = first_idx..self.layout.n_blocks(to);
        let mut blocks = Vec::with_capacity(indices.len() * self.layout.full.len());
        for idx in indices.clone() {
            blocks.extend(self.layout.full.iter().map(|g| seq.tables[*g].blocks[idx]));
        }
        self.extend(node, Tier::Device, to, &Rows { first_idx, blocks: &blocks });
        if !self.layout.needs_checkpoints() && indices.len() > 1 {
            self.queue_copy(node, Tier::Device);
        }
    }

    fn slide_windows(&mut self, id: SeqId) {
        let seq = &mut self.seqs[id.0];
        for (group, table) in seq.tables.iter_mut().enumerate() {
            let Kind::Window { tokens } = self.layout.groups[group].kind else { continue };
            let first_idx = seq.pos.saturating_sub(tokens) / self.layout.block_tokens;
            let n_gone = first_idx.saturating_sub(table.first_idx);
            for (offset, id) in table.blocks.drain(..n_gone).enumerate() {
                if table.first_idx + offset >= table.own_from {
                    self.blocks.pool(Tier::Device, group).get_mut(id).is_owned = false;
                }
                self.blocks.drop_live(Tier::Device, group, id);
            }
            table.first_idx += n_gone;
            table.own_from = table.own_from.max(first_idx);
        }
    }

    /// Makes a checkpoint where the sequence is. Returns the states (group, id) to which the owner
    /// copies the sequence's, before the next `advance`; none if there is one already. `None`: not
    /// cached, which is never fatal (C12), or not needed in this layout.
    pub fn capture(&mut self, id: SeqId, class: Class, now: Tick) -> Option<Vec<(usize, BlockId)>> {
        self.now = now;
        let seq = self.seqs.get(id.0).filter(|s| s.restore.is_none() && s.pos > 0)?;
        if !self.layout.needs_checkpoints() {
            return None;
        }
        let (at, node) = (seq.pos, seq.node);
        let node = self.node_ending(node, at);
        self.trie.nodes[node].class = class;
        if self.trie.nodes[node].saved[0].is_some() {
            self.touch(node, at, at);
            self.after();
            return Some(Vec::new());
        }
        let is_state = |g: &usize| self.layout.groups[*g].kind == Kind::Recurrent;
        let states = (0..self.layout.groups.len()).filter(is_state).collect::<Vec<_>>();
        let n_bytes = states.iter().map(|g| self.layout.groups[*g].bytes).sum();
        if self.make_room(Tier::Device, n_bytes).is_err() {
            self.stats.n_capture_refused += 1;
            self.after();
            return None;
        }
        let mut blocks = Vec::new();
        for (group, table) in self.seqs[id.0].tables.iter().enumerate() {
            let indices = self.layout.saved_blocks(group, at);
            blocks.push(match self.layout.groups[group].kind {
                Kind::Recurrent => vec![self.blocks.pool(Tier::Device, group).alloc()],
                _ => indices.map(|idx| table.blocks[idx - table.first_idx]).collect(),
            });
        }
        let slots = states.iter().map(|g| (*g, blocks[*g][0])).collect::<Vec<_>>();
        self.save(node, Tier::Device, blocks);
        for (group, id) in &slots {
            self.blocks.drop_live(Tier::Device, *group, *id);
        }
        self.stats.n_captured += 1;
        self.after();
        Some(slots)
    }

    /// Ends a sequence, done or cancelled, also one that waits for a restore. What it computed
    /// stays where a checkpoint, or a layout without them, can use it. Nothing to do if it ended.
    pub fn end(&mut self, id: SeqId, now: Tick) {
        self.now = now;
        let Some(seq) = self.seqs.remove(id.0) else { return };
        for (group, table) in seq.tables.iter().enumerate() {
            let n_read = table.own_from.saturating_sub(table.first_idx);
            for id in table.blocks.iter().skip(n_read) {
                self.blocks.pool(Tier::Device, group).get_mut(*id).is_owned = false;
            }
        }
        self.drop_tables(&seq.tables);
        let is_whole = self.trie.nodes[seq.node].runs[0].n_tokens > 0;
        if !self.layout.needs_checkpoints() && is_whole {
            self.queue_copy(seq.node, Tier::Device);
        }
        let prompt_end = seq.prompt.len().min(seq.pos);
        let node = self.trie.ancestor_at(seq.node, prompt_end);
        self.trie.nodes[node].prompt_end = prompt_end;
        self.unlock(seq.node, Tier::Device);
        // Blocks that it read count as used now, after those that it computed: what hangs on
        // others is older than they are, and a policy that goes by time meets it first.
        if !self.layout.needs_checkpoints() && self.trie.nodes.get(seq.node).is_some() {
            self.touch(seq.node, seq.kv_until, seq.kv_until);
        }
        if let Some(node) = self.trie.nodes.get_mut(seq.node) {
            node.edge.settle();
        }
        self.drop_empty_root(seq.root);
        self.after();
    }
}
