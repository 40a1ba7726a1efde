//! What happens to a store, chosen at random, and beside it a map of what was acknowledged. The
//! process and the machine may end at every change of a file; then the store is opened again, and
//! has what was acknowledged, perhaps what was under way, and nothing else, byte for byte.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;

use kvcache::{Class, ExtentId, Ns, Place, Record, Token, Waiting};
use kvstore::{Error, Fingerprint, Store};

use crate::forgetful::{Fault, Forgetful, Rng};

const CLASSES: [Class; 6] = [
    Class::Interior,
    Class::BranchPoint,
    Class::TurnEnd,
    Class::OutputEnd(Waiting::Tool),
    Class::OutputEnd(Waiting::Person),
    Class::System,
];

/// What happens.
#[derive(Debug)]
enum Act {
    Write {
        record: Record,
        pieces: Vec<Vec<u8>>,
    },
    Remove {
        ids: Vec<ExtentId>,
    },
    /// Of an extent the first pieces are kept.
    Cut {
        id: ExtentId,
        n_kept: usize,
    },
    /// The next changes meet this fault; `None` takes it away.
    Fault(Option<(usize, Fault)>),
    /// The process ends, the machine goes on.
    Restart,
    /// The machine stops.
    Crash,
    /// Every piece of everything is read.
    ReadAll,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Extent {
    record: Record,
    pieces: Vec<Vec<u8>>,
}

/// What a run came past: one that never lost a write proves nothing about losing them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    pub n_written: usize,
    pub n_removed: usize,
    pub n_full: usize,
    pub n_latched: usize,
    pub n_failed_writes: usize,
    pub n_failed_removes: usize,
    pub n_failed_opens: usize,
    pub n_restarts: usize,
    pub n_crashes: usize,
    /// Found again though its write or removal had failed, and not found.
    pub n_maybe_found: [usize; 2],
    pub n_found: usize,
    pub n_torn: usize,
    pub n_strays: usize,
    pub n_lost: usize,
    pub n_rewritten: usize,
    pub n_read: usize,
    pub n_cut_bytes: usize,
    pub n_failed_cuts: usize,
}

impl Outcome {
    pub fn add(&mut self, o: &Self) {
        self.n_written += o.n_written;
        self.n_removed += o.n_removed;
        self.n_full += o.n_full;
        self.n_latched += o.n_latched;
        self.n_failed_writes += o.n_failed_writes;
        self.n_failed_removes += o.n_failed_removes;
        self.n_failed_opens += o.n_failed_opens;
        self.n_restarts += o.n_restarts;
        self.n_crashes += o.n_crashes;
        (0..2).for_each(|k| self.n_maybe_found[k] += o.n_maybe_found[k]);
        self.n_found += o.n_found;
        self.n_torn += o.n_torn;
        self.n_strays += o.n_strays;
        self.n_lost += o.n_lost;
        self.n_rewritten += o.n_rewritten;
        self.n_read += o.n_read;
        self.n_cut_bytes += o.n_cut_bytes;
        self.n_failed_cuts += o.n_failed_cuts;
    }

    /// The counts that a long enough run raises.
    pub fn reached(&self) -> [usize; 19] {
        let [found, gone] = self.n_maybe_found;
        [
            self.n_written,
            self.n_removed,
            self.n_full,
            self.n_latched,
            self.n_failed_writes,
            self.n_failed_removes,
            self.n_failed_opens,
            self.n_restarts,
            self.n_crashes,
            found,
            gone,
            self.n_found,
            self.n_torn,
            self.n_strays,
            self.n_lost,
            self.n_rewritten,
            self.n_read,
            self.n_cut_bytes,
            self.n_failed_cuts,
        ]
    }
}

struct World {
    files: Forgetful,
    store: Option<Store>,
    fingerprint: Fingerprint,
    quota_bytes: u64,
    /// Per extent; with many the index is soon written anew.
    max_new_tokens: usize,
    /// Acknowledged, and there.
    there: BTreeMap<ExtentId, Extent>,
    /// Writing or removing it has failed: the store cannot say whether it is there after a restart.
    maybe_written: BTreeMap<ExtentId, Extent>,
    maybe_removed: BTreeMap<ExtentId, Extent>,
    /// Has been in use in this process: a cache never uses an id again.
    used: BTreeSet<ExtentId>,
    rng: Rng,
    outcome: Outcome,
}

/// Runs `n_acts` acts that `seed` chooses.
pub fn run(seed: u64, n_acts: usize) -> Outcome {
    let mut rng = Rng(seed);
    let max_new_tokens = if rng.one_in(2) { 9 } else { 600 };
    let quota_bytes = if rng.one_in(3) { 300 * max_new_tokens as u64 } else { 1 << 40 };
    let mut world = World::new(rng, quota_bytes, max_new_tokens);
    world.open();
    for _ in 0..n_acts {
        let act = world.choose();
        world.act(act);
    }
    world.act(Act::Crash);
    world.act(Act::ReadAll);
    world.outcome
}

/// The same few acts, of which the change after `left` others meets a fault; then the machine or
/// the process ends. Conversations are written and those before removed, until the index is
/// written anew. None if there are no more changes than `left`.
pub fn run_with(left: usize, fault: Fault, machine_stops: bool) -> Option<Outcome> {
    let mut world = World::new(Rng(left as u64), 1 << 40, 600);
    world.files.fail_after(Some((left, fault)));
    world.open();
    for k in 0..8u32 {
        let tokens = (0..600).map(|at| at * (k + 1)).collect();
        let record = Record { ns: Ns(1), tokens, start: 0, class: Class::TurnEnd };
        let pieces = [7, 30].map(|n| (0..n).map(|_| world.rng.next() as u8).collect());
        world.write(Extent { record, pieces: pieces.into() });
        let oldest = world.there.keys().next().copied();
        world.remove(oldest.filter(|_| k > 0).as_slice());
        world.read_all();
    }
    let was_met = world.files.has_failed();
    let act = if machine_stops { Act::Crash } else { Act::Restart };
    world.act(act);
    world.files.fail_after(None);
    world.act(Act::ReadAll);
    was_met.then_some(world.outcome)
}

impl World {
    fn new(mut rng: Rng, quota_bytes: u64, max_new_tokens: usize) -> Self {
        Self {
            files: Forgetful::new(rng.next()),
            store: None,
            fingerprint: Fingerprint::new("fuzz", [("seed", "any")]),
            quota_bytes,
            max_new_tokens,
            there: BTreeMap::new(),
            maybe_written: BTreeMap::new(),
            maybe_removed: BTreeMap::new(),
            used: BTreeSet::new(),
            rng,
            outcome: Outcome::default(),
        }
    }

    fn choose(&mut self) -> Act {
        let rng = &mut self.rng;
        let any = |rng: &mut Rng, there: &BTreeMap<ExtentId, Extent>| {
            there.keys().nth(rng.below(there.len())).copied()
        };
        match rng.below(100) {
            0..50 => {
                let parent = any(rng, &self.there).map(|id| self.there[&id].record.tokens.clone());
                let mut tokens = parent.unwrap_or_default();
                let is_new = rng.one_in(3);
                let n_old = rng.below(tokens.len() + 1);
                tokens.truncate(if is_new { n_old } else { 5 * self.max_new_tokens });
                let start = tokens.len();
                let n_new = rng.below(self.max_new_tokens);
                tokens.extend((0..n_new).map(|_| rng.below(3) as Token));
                let class = CLASSES[rng.below(CLASSES.len())];
                let ns = Ns(rng.below(3) as u64);
                let n_pieces = rng.below(5);
                let pieces = (0..n_pieces).map(|_| {
                    let n = 1 + rng.below(90);
                    (0..n).map(|_| rng.next() as u8).collect()
                });
                let pieces = pieces.collect();
                Act::Write { record: Record { ns, tokens, start, class }, pieces }
            }
            50..66 => {
                let n = 1 + rng.below(3);
                let ids = (0..n).filter_map(|_| any(rng, &self.there)).collect();
                Act::Remove { ids }
            }
            66..72 if !self.there.is_empty() => {
                let id = any(rng, &self.there).expect("there are some");
                Act::Cut { id, n_kept: rng.below(self.there[&id].pieces.len() + 1) }
            }
            66..86 => {
                let fault = match rng.below(6) {
                    0 => Fault::Once(ErrorKind::Other),
                    1 => Fault::Once(ErrorKind::StorageFull),
                    2 => Fault::Full,
                    _ => Fault::Stop,
                };
                let fault = (rng.below(14), fault);
                Act::Fault((!rng.one_in(5)).then_some(fault))
            }
            86..91 => Act::Restart,
            91..97 => Act::Crash,
            _ => Act::ReadAll,
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Write { record, pieces } => self.write(Extent { record, pieces }),
            Act::Remove { ids } => self.remove(&ids),
            Act::Cut { id, n_kept } => self.cut(id, n_kept),
            Act::Fault(fault) => self.files.fail_after(fault),
            Act::ReadAll => self.read_all(),
            Act::Restart | Act::Crash => {
                self.store = None;
                match act {
                    Act::Crash => self.files.crash(),
                    _ => self.files.restart(),
                }
                self.outcome.n_crashes += usize::from(matches!(act, Act::Crash));
                self.outcome.n_restarts += usize::from(matches!(act, Act::Restart));
                if self.rng.one_in(3) {
                    let fault = (self.rng.below(12), Fault::Stop);
                    self.files.fail_after(Some(fault));
                }
                self.open();
            }
        }
        if let Some(store) = &self.store {
            let stats = store.stats();
            assert_eq!(stats.n_extents, self.there.len());
            assert!(stats.extent_bytes + stats.index_bytes <= self.quota_bytes.max(44));
        }
    }

    /// The smallest id that a cache might use, so that those of removed extents come again after a
    /// restart.
    fn new_id(&mut self) -> ExtentId {
        let id = (0..).map(ExtentId).find(|id| !self.used.contains(id)).expect("there are many");
        self.used.insert(id);
        id
    }

    fn write(&mut self, extent: Extent) {
        let id = self.new_id();
        let Some(store) = &self.store else { return };
        let pieces = extent.pieces.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let n_before = store.stats().index_bytes;
        match store.write(id, &extent.record, &pieces) {
            Ok(()) => {
                self.outcome.n_written += 1;
                self.outcome.n_rewritten += usize::from(store.stats().index_bytes < n_before);
                self.there.insert(id, extent);
                self.maybe_removed.clear();
            }
            Err(error) => {
                match error {
                    Error::Full { .. } => self.outcome.n_full += 1,
                    Error::Latched => self.outcome.n_latched += 1,
                    Error::Io { .. } => self.outcome.n_failed_writes += 1,
                    _ => panic!("{error}"),
                }
                if matches!(error, Error::Io { .. }) {
                    self.maybe_written.insert(id, extent);
                }
            }
        }
    }

    fn remove(&mut self, ids: &[ExtentId]) {
        let Some(store) = &self.store else { return };
        let n_before = store.stats().index_bytes;
        let result = store.remove(ids);
        self.outcome.n_rewritten += usize::from(store.stats().index_bytes < n_before);
        self.outcome.n_removed += ids.len();
        for id in ids {
            let Some(extent) = self.there.remove(id) else { continue };
            if result.is_err() {
                self.maybe_removed.insert(*id, extent);
            }
        }
        match result {
            // The log knows of all that was removed before, too.
            Ok(()) => self.maybe_removed.clear(),
            Err(_) => self.outcome.n_failed_removes += 1,
        }
    }

    /// What is cut off is asked for no more; whether it is there after a crash, nobody says.
    fn cut(&mut self, id: ExtentId, n_kept: usize) {
        let Some(store) = &self.store else { return };
        let extent = self.there.get_mut(&id).expect("it was chosen among those that are there");
        extent.pieces.truncate(n_kept);
        let bytes_of = |extent: &Extent| extent.pieces.iter().map(|p| p.len() as u64).sum::<u64>();
        let n_before = store.stats().extent_bytes;
        self.outcome.n_failed_cuts += usize::from(store.cut(&[(id, bytes_of(extent))]).is_err());
        self.outcome.n_cut_bytes += (n_before - store.stats().extent_bytes) as usize;
    }

    fn open(&mut self) {
        let (found, store) = loop {
            let files = Box::new(self.files.clone());
            match Store::open_in(files, &self.fingerprint, self.quota_bytes) {
                Ok((store, found)) => break (found.collect::<Vec<_>>(), store),
                Err(Error::Io { .. } | Error::Full { .. }) => {
                    self.outcome.n_failed_opens += 1;
                    match self.rng.one_in(2) {
                        true => self.files.crash(),
                        false => self.files.restart(),
                    }
                }
                Err(error) => panic!("{error}"),
            }
        };
        let opening = store.opening();
        assert_eq!(opening.restarted, None);
        self.outcome.n_torn += usize::from(opening.n_torn_bytes > 0);
        self.outcome.n_strays += opening.n_strays;
        self.outcome.n_lost += opening.n_lost;
        let order = found.iter().map(|f| (f.record.start, f.record.tokens.len()));
        assert!(order.is_sorted(), "those that others build on come first");
        let mut there = BTreeMap::new();
        for found in found {
            let acknowledged = self.there.remove(&found.id);
            let maybe = self.maybe_removed.remove(&found.id);
            let maybe = maybe.or_else(|| self.maybe_written.remove(&found.id));
            self.outcome.n_found += usize::from(acknowledged.is_some());
            self.outcome.n_maybe_found[0] += usize::from(acknowledged.is_none());
            let extent = acknowledged.or(maybe).expect("what is found was written");
            assert_eq!(extent.record, found.record);
            let piece_bytes = extent.pieces.iter().map(|p| p.len() as u64).sum::<u64>();
            assert!(found.piece_bytes >= piece_bytes);
            there.insert(found.id, extent);
        }
        assert!(self.there.is_empty(), "what was acknowledged is found: {:?}", self.there);
        for maybe in [&mut self.maybe_written, &mut self.maybe_removed] {
            self.outcome.n_maybe_found[1] += maybe.len();
            maybe.clear();
        }
        self.used = there.keys().copied().collect();
        self.there = there;
        self.store = Some(store);
        self.read_all();
    }

    fn read_all(&mut self) {
        let Some(store) = &self.store else { return };
        for (id, extent) in &self.there {
            let mut offset = 0;
            for piece in &extent.pieces {
                let place = Place { extent: *id, offset, n_bytes: piece.len() as u64 };
                let mut bytes = vec![0; piece.len()];
                store.read(place, &mut bytes).expect("what is there can be read");
                assert_eq!(bytes, *piece);
                offset += place.n_bytes;
                self.outcome.n_read += 1;
            }
        }
    }
}
