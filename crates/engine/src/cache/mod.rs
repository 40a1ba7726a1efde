//! The prefix cache at work: `kvcache` keeps the books, and here are the arrays and bytes of them,
//! and the ones who move them: [`Pools`] on the device, [`Tiers`] below it.
//!
//! A sequence begins on the longest known prefix of its prompt, goes on pass by pass, and leaves
//! what it computed to others. What goes wrong with memory is an error of one request; afterwards
//! nothing is cached on the device, and the next request is a plain miss.

mod costs;
mod disk;
mod inspect;
mod moves;
mod paging;
mod passes;
mod pools;
mod room;
mod states;
mod tiers;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use kvcache::{
    Begun, BlockId, BlockTable, Budgets, Cache, Capture, Class, Kind, Match, NoRoom, Ns, Op,
    Policy, Position, SeqId, Tier, Transfer, TransferId,
};
use mlx::{Array, Backend, Device};
use models::{Blocks, Loaded, Step};

use self::costs::Measured;
use self::disk::Disk;
pub(crate) use self::disk::Folder;
use self::passes::Passes;
use self::pools::{BLOCK_TOKENS, Pools};
use self::states::{Held, States};
use self::tiers::Tiers;
use crate::{Error, Result};

/// Nothing of it is stored.
const NOWHERE: u32 = kernels::self_attention::NOWHERE;
/// Blocks by which tables grow at least.
const TABLE_STRIDE: usize = 16;

/// Passes over prompts that the device works on while the host goes on.
const MAX_UNDER_WAY: usize = 2;

/// How long to wait for a disk when there is nothing else to do.
pub(crate) const DISK_PATIENCE: Duration = Duration::from_millis(20);
/// No token of any model is as large.
const FIRST_NAME: u32 = 1 << 31;

/// One model's cache.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    books: Cache,
    pools: Pools,
    passes: Passes,
    tiers: Tiers,
    disk: Option<Disk>,
    measured: Measured,
    born: Instant,
    /// What is being computed.
    issued: Vec<Array>,
    /// Passes over prompts, oldest first, and when the last one before them ended.
    under_way: VecDeque<UnderWay>,
    last_end: Instant,
    /// Tokens that got names of their own.
    n_named: u32,
}

/// A pass that the device may still be computing.
#[derive(Debug)]
struct UnderWay {
    hidden: Array,
    n_tokens: usize,
    begun: Instant,
}

/// What a pass made.
pub(crate) struct Passed {
    /// `[B, L, E]`.
    pub hidden: Array,
    /// States at the captures that were asked for.
    pub captured: Vec<States>,
}

/// Of a table for so many blocks: longer by up to an eighth or [`TABLE_STRIDE`], so that shapes
/// change rarely.
fn table_width(n_blocks: usize) -> usize {
    let stride = n_blocks.checked_ilog2().map_or(0, |log| (1 << log) / 8);
    n_blocks.next_multiple_of(stride.max(TABLE_STRIDE))
}

/// Where a token is stored, if it is.
fn slot(table: &BlockTable<'_>, token: usize, written_from: usize) -> u32 {
    if token < written_from {
        return NOWHERE;
    }
    let block = table.blocks[token / BLOCK_TOKENS - table.first_idx].0;
    block * BLOCK_TOKENS as u32 + (token % BLOCK_TOKENS) as u32
}

impl PrefixCache {
    /// With so many bytes for each tier, and what an earlier process left on disk. With a `stride`
    /// of more than 1, answers do not depend on what is cached, bit for bit: sequences resume at
    /// multiples of it alone, on rows that came from passes over whole strides.
    ///
    /// # Errors
    /// The model remembers nothing.
    pub fn new(
        device: &Device,
        loaded: &Loaded,
        mut budgets: Budgets,
        folder: Option<Folder>,
        stride: usize,
    ) -> Result<Self> {
        let memory = loaded.model.memory();
        let pools = Pools::new(memory, loaded.info.dtype, stride, budgets.0[0]);
        let mut pools =
            pools.ok_or_else(|| Error::caller("the model has no layers that remember"))?;
        pools.begin()?;
        let measured = Measured::default();
        let policies = std::array::from_fn(|_| Policy::Hazard.build());
        let opened = folder.and_then(|folder| Disk::open(&folder.naming_layout(pools.layout())));
        if opened.is_none() {
            budgets.0[2] = 0;
        }
        let mut books = Cache::new(pools.layout().clone(), budgets, measured.costs(), policies);
        let disk = opened.map(|(mut disk, found)| {
            let found = found.map(|found| (found.record, found.id, found.piece_bytes));
            disk.remove(books.adopt_all(found, 0));
            disk
        });
        Ok(Self {
            books,
            tiers: Tiers::new(device, &mut pools, budgets.0[1]),
            pools,
            passes: Passes::default(),
            disk,
            measured,
            born: Instant::now(),
            issued: Vec::new(),
            under_way: VecDeque::new(),
            last_end: Instant::now(),
            n_named: 0,
        })
    }

    fn now(&self) -> u64 {
        self.born.elapsed().as_micros() as u64
    }

    /// What is known of a prompt.
    pub fn find(&self, ns: Ns, prompt: &[u32]) -> Match {
        self.books.find(ns, prompt)
    }

    /// Totals.
    pub fn stats(&self) -> kvcache::Stats {
        self.books.stats()
    }

    /// Tokens of the longest sequence that the device can hold alone.
    pub fn max_tokens(&self) -> u64 {
        let layout = self.pools.layout();
        let budget = self.books.stats().tiers[0].budget_bytes;
        let (mut fixed_bytes, mut block_bytes) = (0, 0);
        for group in layout.groups() {
            match group.kind {
                Kind::Full => block_bytes += group.bytes,
                Kind::Window { tokens } => {
                    let n = tokens.div_ceil(layout.block_tokens()) + 2;
                    fixed_bytes += n as u64 * group.bytes;
                }
                Kind::Recurrent => fixed_bytes += group.bytes,
            }
        }
        match budget.saturating_sub(fixed_bytes) {
            0 => 0,
            _ if block_bytes == 0 => u64::MAX,
            free => free / block_bytes * layout.block_tokens() as u64,
        }
    }

    /// Whether only the most valuable checkpoints should be made: the device is nearly full of what
    /// is kept for later.
    pub fn is_tight(&self) -> bool {
        let device = self.books.stats().tiers[0];
        device.n_evicted > 0 && device.free_bytes < device.budget_bytes / 16
    }

    /// Begins a sequence on the best known prefix.
    ///
    /// # Errors
    /// Memory is short. The inner one: the device's budget has no room even for the beginning; it
    /// may have when another sequence has ended.
    pub fn begin(
        &mut self,
        ns: Ns,
        prompt: &[u32],
    ) -> Result<std::result::Result<(SeqId, Match), NoRoom>> {
        let Begun { seq, ops, found } = match self.books.begin(ns, prompt, self.now()) {
            Ok(begun) => begun,
            Err(no_room) => return Ok(Err(no_room)),
        };
        let restores = ops.iter().filter_map(|op| match op {
            Op::Restore(transfer) => Some(transfer.id),
            _ => None,
        });
        let restores = restores.collect::<Vec<_>>();
        if let Err(error) = self.obey(ops) {
            // The disk is asked last: what failed before it is not on its way. What has been begun
            // on the host must not write where others are put.
            let _ = self.tiers.wait();
            self.books.end(seq, self.now());
            for id in restores {
                self.books.finish(id, false, self.now());
            }
            return Err(error);
        }
        Ok(Ok((seq, found)))
    }

    /// Where a sequence goes on; none while it waits for bytes from another tier.
    pub fn position(&self, seq: SeqId) -> Option<Position> {
        self.books.position(seq)
    }

    fn obey(&mut self, ops: Vec<Op>) -> Result<()> {
        let ids = ops.iter().flat_map(room::ids_of).collect::<Vec<_>>();
        self.make_way(&ids)?;
        for op in &ops {
            let Op::Restore(transfer) = op else { continue };
            transfer.items.iter().try_for_each(|item| self.fit(item.group, item.to.0))?;
        }
        for op in ops {
            match op {
                Op::CopyBlock { group, from, to, .. } => {
                    self.fit(group, to.0)?;
                    self.pools.copy_block(group, from.0, to.0)?;
                }
                Op::CopyState { group, from, to } => {
                    self.fit(group, to.0)?;
                    let states = self.pools.slot(group, from.0).own()?;
                    self.pools.set_slot(group, to.0, Some(states));
                }
                Op::ZeroState { group, to } => {
                    self.fit(group, to.0)?;
                    self.pools.set_slot(group, to.0, None);
                }
                Op::Restore(transfer) => match (transfer.from, &mut self.disk) {
                    (Tier::Disk, Some(disk)) => disk.read(transfer),
                    _ => self.begin_move(&transfer)?,
                },
            }
        }
        Ok(())
    }

    /// Begins a transfer to or from the host, which may end at once.
    fn begin_move(&mut self, transfer: &Transfer) -> Result<()> {
        let begun = Instant::now();
        match self.tiers.begin(transfer, &mut self.pools)? {
            Some(is_ok) => self.ended(transfer, is_ok, begun.elapsed()),
            None => Ok(()),
        }
    }

    /// A transfer to or from the host has ended.
    fn ended(&mut self, transfer: &Transfer, is_ok: bool, took: Duration) -> Result<()> {
        if transfer.to == Tier::Device {
            self.measured.moved(transfer.from, transfer.n_bytes, took);
        }
        self.finish(transfer.id, is_ok)
    }

    /// A transfer has ended.
    fn finish(&mut self, id: TransferId, is_ok: bool) -> Result<()> {
        let ops = self.books.finish(id, is_ok, self.now());
        self.obey(ops)
    }

    /// Makes room for the next tokens of a sequence, for all or for none.
    ///
    /// # Errors
    /// There is no room, or memory is short.
    pub fn reserve(&mut self, seq: SeqId, n_tokens: usize) -> Result<()> {
        if let Err(no_room) = self.books.reserve(seq, n_tokens, self.now()) {
            let device = self.books.stats().tiers[0];
            return Err(Error::world(format!(
                "the cache has no room for {n_tokens} more tokens ({} of {} MiB are in use by \
                 running requests): send a shorter prompt, run fewer at once, or give it more \
                 memory (--cache-memory)",
                device.live_bytes >> 20,
                device.budget_bytes >> 20,
            ))
            .because(&no_room));
        }
        self.fit_all(&self.last_ids(seq))
    }

    /// The highest id of each of a sequence's tables.
    fn last_ids(&self, seq: SeqId) -> Vec<(usize, BlockId)> {
        let groups = 0..self.pools.layout().groups().len();
        let last = |group| self.books.block_table(seq, group)?.blocks.iter().max().copied();
        groups.filter_map(|group| Some((group, last(group)?))).collect()
    }

    /// Bytes that become live when a sequence comes to `n_tokens` tokens, beyond those that are. Of
    /// one that has no place yet also what its `tokens` would pin of what nobody else does.
    pub fn needed_bytes(&self, seq: Option<SeqId>, ns: Ns, tokens: &[u32], n_tokens: usize) -> u64 {
        let layout = self.pools.layout();
        let n_blocks = n_tokens.div_ceil(layout.block_tokens());
        let n_pinned = match seq {
            None if !tokens.is_empty() => self.books.n_pinned(ns, tokens) / layout.block_tokens(),
            _ => 0,
        };
        let needed = layout.groups().iter().enumerate().map(|(group, of)| {
            let table = seq.and_then(|seq| self.books.block_table(seq, group));
            let n_held = table.map_or(n_pinned, |table| table.blocks.len());
            let n = match of.kind {
                Kind::Full => n_blocks,
                Kind::Window { tokens } => n_blocks.min(tokens.div_ceil(layout.block_tokens()) + 2),
                Kind::Recurrent => 1,
            };
            n.saturating_sub(n_held) as u64 * of.bytes
        });
        needed.sum()
    }

    /// Runs the model on the next tokens of sequences, for which there is room. `ids` are `[B, L]`,
    /// a row for each. `captures` are numbers of them after which states are wanted, ascending; of
    /// one sequence only.
    ///
    /// # Errors
    /// MLX refuses an operation.
    pub fn pass(
        &mut self,
        loaded: &Loaded,
        ids: &Array,
        seqs: &[SeqId],
        captures: &[i32],
    ) -> Result<Passed> {
        let n = ids.dim(1) as usize;
        let position = |seq: &SeqId| self.books.position(*seq).expect("a sequence that goes on");
        let positions = seqs.iter().map(position).collect::<Vec<_>>();
        let tables = self.tables(seqs, &positions, n)?;
        let begins = positions.iter().map(|p| p.at as i32).collect::<Vec<_>>();
        let step = match begins[..] {
            [first, ref rest @ ..] if rest.iter().all(|begin| *begin == first) => {
                Step::new(first, n as i32)
            }
            _ => Step::ragged(&begins, &vec![n as i32; seqs.len()])?,
        };
        let slots = seqs.iter().filter_map(|seq| self.slot_of(*seq)).collect::<Vec<_>>();
        let captures = if slots.is_empty() { &[] } else { captures };
        let step = step.over_blocks(tables)?.capturing(captures.to_vec());
        let states = self.pools.lend(&slots)?;
        let hidden = match captures.is_empty() {
            true => self.passes.run(loaded, ids, &step, states),
            false => loaded.model.forward(ids, &step, states).map_err(Error::from),
        };
        let captured = self.pools.keep(&slots, captures.len());
        Ok(Passed { hidden: hidden?, captured })
    }

    /// The group and slot of a sequence's own states, where the model has any.
    fn slot_of(&self, seq: SeqId) -> Option<(usize, u32)> {
        let group = self.pools.recurrent_group()?;
        let table = self.books.block_table(seq, group)?;
        Some((group, table.blocks.first()?.0))
    }

    /// Where the next tokens of sequences are, for each group with tables.
    fn tables(
        &self,
        seqs: &[SeqId],
        positions: &[Position],
        n_tokens: usize,
    ) -> Result<Vec<Blocks>> {
        let groups = self.pools.layout().groups().iter().enumerate();
        let groups = groups.filter(|(_, of)| of.kind != Kind::Recurrent);
        let tables = groups.map(|(group, of)| {
            let table = |seq: &SeqId| self.books.block_table(*seq, group).expect("it has tables");
            let tables = seqs.iter().map(table).collect::<Vec<_>>();
            let ends = tables.iter().map(|table| table.first_idx + table.blocks.len());
            let width = table_width(ends.max().unwrap_or(0));
            let (mut rows, mut slots) = (vec![0; width * seqs.len()], Vec::new());
            for ((table, position), row) in
                tables.iter().zip(positions).zip(rows.chunks_exact_mut(width))
            {
                let row = row[table.first_idx..].iter_mut();
                row.zip(table.blocks).for_each(|(to, id)| *to = id.0);
                let is_full = of.kind == Kind::Full;
                let written_from = if is_full { position.kv_until } else { position.at };
                let tokens = position.at..position.at + n_tokens;
                slots.extend(tokens.map(|token| slot(table, token, written_from)));
            }
            let n_rows = seqs.len() as i32;
            Ok(Blocks {
                table: Array::staged(&rows, &[n_rows, width as i32])?,
                slots: Array::staged(&slots, &[n_rows, n_tokens as i32])?,
            })
        });
        tables.collect()
    }

    /// Computes a pass over `n_tokens` of prompts and what it leaves behind, and `others` with it.
    /// On the CPU all is there when this returns; elsewhere it may be under way.
    ///
    /// # Errors
    /// The device fails, memory first of all.
    pub fn compute<'a>(
        &mut self,
        seqs: &[SeqId],
        passed: &Passed,
        others: impl Iterator<Item = &'a Array>,
        n_tokens: usize,
    ) -> Result<()> {
        let begun = Instant::now();
        let wanted = self.left_behind(seqs, passed, others);
        self.settle()?;
        if Device::current_backend() == Backend::Cpu {
            mlx::eval(&wanted)?;
            self.prefilled(n_tokens, begun.elapsed());
            return Ok(());
        }
        mlx::async_eval(&wanted)?;
        self.under_way.push_back(UnderWay { hidden: passed.hidden.clone(), n_tokens, begun });
        self.wait(MAX_UNDER_WAY)
    }

    /// Waits until no more than `n_passes` over prompts are under way.
    fn wait(&mut self, n_passes: usize) -> Result<()> {
        while self.under_way.len() > n_passes
            && let Some(pass) = self.under_way.pop_front()
        {
            pass.hidden.eval()?;
            let now = Instant::now();
            let took = now - pass.begun.max(self.last_end);
            self.last_end = now;
            self.prefilled(pass.n_tokens, took);
        }
        Ok(())
    }

    fn prefilled(&mut self, n_tokens: usize, took: Duration) {
        self.measured.prefilled(n_tokens, took.as_secs_f64() * 1e6);
        self.books.measured(self.measured.costs());
    }

    /// What has to be evaluated after a pass.
    fn left_behind<'a>(
        &self,
        seqs: &[SeqId],
        passed: &Passed,
        others: impl Iterator<Item = &'a Array>,
    ) -> Vec<Array> {
        let own = seqs.iter().filter_map(|seq| self.slot_of(*seq));
        let own = own.map(|(group, slot)| match self.pools.slot(group, slot) {
            Held::Own(states) => states,
            Held::Row { of, .. } => of,
        });
        let states = own.chain(&passed.captured).flatten();
        let states = states.flat_map(|s| [&s.conv_tail, &s.state]).flatten();
        let mut wanted = self.pools.arrays().chain(states).cloned().collect::<Vec<_>>();
        wanted.extend(others.cloned());
        if Device::current_backend() == Backend::Cuda {
            // There launches write into pools behind MLX's back: nothing but what follows from
            // them has them run.
            wanted.push(passed.hidden.clone());
        }
        wanted
    }

    /// Begins to compute `wanted`, which a pass leads to.
    ///
    /// # Errors
    /// The device fails, memory first of all.
    pub fn issue<'a>(&mut self, wanted: impl Iterator<Item = &'a Array>) -> Result<()> {
        self.settle()?;
        self.issued = wanted.cloned().collect();
        Ok(mlx::async_eval(&self.issued)?)
    }

    /// Waits for what is being computed where the next pass must not begin before it is there: on
    /// the CPU a pool is written in place only if nothing is going to read it.
    fn settle(&mut self) -> Result<()> {
        let issued = std::mem::take(&mut self.issued);
        if Device::current_backend() == Backend::Cpu {
            mlx::eval(&issued)?;
        }
        Ok(())
    }

    /// The tokens of a pass are known: they are the sequence's from now on, and what was captured
    /// among them is kept. Captures stand at positions from the beginning.
    ///
    /// # Errors
    /// Memory is short.
    pub fn advance(
        &mut self,
        seq: SeqId,
        tokens: &[u32],
        captures: &[Capture],
        captured: Vec<States>,
    ) -> Result<()> {
        let mut at = self.books.position(seq).expect("it made a pass").at;
        let tokens = self.names(at, tokens);
        let mut rest = &tokens[..];
        for (k, capture) in captures.iter().enumerate() {
            let (now, later) = rest.split_at(capture.at - at);
            self.books.advance(seq, now);
            (at, rest) = (capture.at, later);
            self.capture_states(seq, capture.class, captured.get(k))?;
        }
        self.books.advance(seq, rest);
        Ok(())
    }

    /// The same for one token of a pass that captured nothing.
    ///
    /// # Errors
    /// Memory is short.
    pub fn advance_one(&mut self, seq: SeqId, token: u32) -> Result<()> {
        self.advance(seq, &[token], &[], Vec::new())
    }

    /// Where a sequence that shares `n_tokens` may resume at most.
    pub fn resumes_at(&self, n_tokens: usize) -> usize {
        let stride = self.pools.layout().stride();
        n_tokens / stride * stride
    }

    /// Tokens as the books are to know them after a pass over all of `tokens`, from `at` on: as
    /// they are, or names that no prompt has, where others would not compute the same bits.
    fn names<'t>(&mut self, at: usize, tokens: &'t [u32]) -> Cow<'t, [u32]> {
        let stride = self.pools.layout().stride();
        let is_whole = at.is_multiple_of(stride) && tokens.len().is_multiple_of(stride);
        if stride == 1 || is_whole {
            return Cow::Borrowed(tokens);
        }
        let name = |_| {
            self.n_named = self.n_named.wrapping_add(1);
            FIRST_NAME | self.n_named
        };
        tokens.iter().map(name).collect()
    }

    /// The same with nothing to capture.
    pub fn grow(&mut self, seq: SeqId, tokens: &[u32]) {
        self.books.advance(seq, tokens);
    }

    /// Keeps the sequence's states where it stands, if the model needs that to resume there.
    ///
    /// # Errors
    /// Memory is short.
    pub fn capture(&mut self, seq: SeqId, class: Class) -> Result<()> {
        self.capture_states(seq, class, None)
    }

    fn capture_states(&mut self, seq: SeqId, class: Class, states: Option<&States>) -> Result<()> {
        let Some(slots) = self.books.capture(seq, class, self.now()) else { return Ok(()) };
        self.make_way(&slots)?;
        for (group, to) in slots {
            self.fit(group, to.0)?;
            let states = match (states, self.slot_of(seq)) {
                (Some(states), _) => states.clone(),
                (None, Some((group, slot))) => self.pools.slot(group, slot).own()?,
                (None, None) => continue,
            };
            self.pools.set_slot(group, to.0, Some(states));
        }
        Ok(())
    }

    /// Ends a sequence; what it computed stays where it can be used.
    pub fn end(&mut self, seq: SeqId) {
        if let Some((group, slot)) = self.slot_of(seq) {
            self.pools.set_slot(group, slot, None);
        }
        self.books.end(seq, self.now());
    }

    /// Forgets a namespace.
    pub fn flush(&mut self, ns: Ns) {
        self.books.flush(ns);
    }
}
