//! What there is, in memory: extents with their records, and the tokens of these coded as in the
//! file. An [`Entry`] is one change of it; [`crate::log`] has them in a file.
//!
//! ```text
//! Add      0  1  the number 1
//!          1  1  class of the checkpoint, see `class_of`
//!          2  8  id of the extent
//!         10  8  namespace
//!         18  4  tokens whose rows lie in other extents
//!         22  4  base: which earlier Add of this file begins with the same tokens, from 0;
//!                2³² − 1 for none
//!         26  4  how many tokens are the base's
//!         30  8  bytes of the extent's file
//!         38  4  pieces that it was written with
//!         42  8  checksum in its header
//!         50     tokens after those of the base, 4 bytes each
//! Remove   0  1  the number 2
//!          1     ids of extents, 8 bytes each
//! Cut      0  1  the number 3
//!          1     for each of some extents 8 its id · 8 bytes of its file from now on
//! ```

use std::collections::BTreeMap;

use kvcache::{Class, ExtentId, Ns, Record, Token, Waiting};

use crate::extent::Sealed;
use crate::fields::Fields;
use crate::prefixes::Prefixes;

/// All extents.
#[derive(Debug, Default)]
pub struct Index {
    extents: BTreeMap<ExtentId, Extent>,
    prefixes: Prefixes,
    /// Bytes of their files.
    extent_bytes: u64,
    /// Bytes of their entries.
    entry_bytes: u64,
    /// Tokens whose rows they have.
    n_tokens: u64,
}

#[derive(Debug)]
struct Extent {
    sealed: Sealed,
    ns: Ns,
    start: u32,
    class: Class,
    run: u32,
    entry_bytes: u64,
}

/// One change.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry {
    Add {
        id: ExtentId,
        sealed: Sealed,
        ns: Ns,
        start: u32,
        class: Class,
        base: u32,
        n_shared: u32,
        tokens: Vec<Token>,
    },
    Remove(Vec<ExtentId>),
    /// Files that end earlier from now on.
    Cut(Vec<(ExtentId, u64)>),
}

impl Entry {
    /// What stands in the file.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Add { id, sealed, ns, start, class, base, n_shared, tokens } => {
                let mut bytes = Vec::with_capacity(50 + 4 * tokens.len());
                bytes.extend([1, code(*class)]);
                bytes.extend(id.0.to_le_bytes());
                bytes.extend(ns.0.to_le_bytes());
                [start, base, n_shared].into_iter().for_each(|n| bytes.extend(n.to_le_bytes()));
                bytes.extend(sealed.n_bytes.to_le_bytes());
                bytes.extend(sealed.n_pieces.to_le_bytes());
                bytes.extend(sealed.checksum.to_le_bytes());
                tokens.iter().for_each(|token| bytes.extend(token.to_le_bytes()));
                bytes
            }
            Self::Remove(ids) => {
                let ids = ids.iter().flat_map(|id| id.0.to_le_bytes());
                std::iter::once(2).chain(ids).collect()
            }
            Self::Cut(cuts) => {
                let numbers = cuts.iter().flat_map(|(id, n_bytes)| [id.0, *n_bytes]);
                std::iter::once(3).chain(numbers.flat_map(u64::to_le_bytes)).collect()
            }
        }
    }

    /// What the file says, if it says anything.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        match fields.u8()? {
            1 => {
                let class = class_of(fields.u8()?)?;
                let (id, ns) = (ExtentId(fields.u64()?), Ns(fields.u64()?));
                let (start, base, n_shared) = (fields.u32()?, fields.u32()?, fields.u32()?);
                let (n_bytes, n_pieces) = (fields.u64()?, fields.u32()?);
                let sealed = Sealed { n_bytes, n_pieces, checksum: fields.u64()? };
                let tokens = fields.all_u32()?;
                Some(Self::Add { id, sealed, ns, start, class, base, n_shared, tokens })
            }
            2 => Some(Self::Remove(fields.all_u64()?.into_iter().map(ExtentId).collect())),
            3 => {
                let numbers = fields.all_u64()?;
                let (pairs, []) = numbers.as_chunks::<2>() else { return None };
                Some(Self::Cut(pairs.iter().map(|[id, n]| (ExtentId(*id), *n)).collect()))
            }
            _ => None,
        }
    }
}

impl Index {
    /// The entry of an extent that is to be added. `None` if its numbers have no room.
    pub fn entry(&self, id: ExtentId, record: &Record, sealed: Sealed) -> Option<Entry> {
        let Record { ns, tokens, start, class } = record;
        u32::try_from(tokens.len()).ok()?;
        let start = u32::try_from(*start).ok().filter(|_| *start <= tokens.len())?;
        let (base, n_shared) = self.prefixes.nearest(tokens);
        let tokens = tokens.get(n_shared as usize..)?.to_vec();
        Some(Entry::Add { id, sealed, ns: *ns, start, class: *class, base, n_shared, tokens })
    }

    /// Makes a change whose entry has `entry_bytes` in the file. `None` if it cannot be: nothing
    /// has changed then.
    pub fn apply(&mut self, entry: Entry, entry_bytes: u64) -> Option<()> {
        let (id, sealed, ns, start, class, base, n_shared, tokens) = match entry {
            Entry::Remove(ids) => {
                ids.into_iter().for_each(|id| self.remove(id));
                return Some(());
            }
            Entry::Cut(cuts) => {
                cuts.into_iter().for_each(|(id, n_bytes)| self.cut(id, n_bytes));
                return Some(());
            }
            Entry::Add { id, sealed, ns, start, class, base, n_shared, tokens } => {
                (id, sealed, ns, start, class, base, n_shared, tokens)
            }
        };
        let n_tokens = u32::try_from(tokens.len()).ok()?.checked_add(n_shared)?;
        let extent_bytes = self.extent_bytes.checked_add(sealed.n_bytes)?;
        if start > n_tokens || self.extents.contains_key(&id) {
            return None;
        }
        let run = self.prefixes.push(base, n_shared, tokens)?;
        self.extents.insert(id, Extent { sealed, ns, start, class, run, entry_bytes });
        self.extent_bytes = extent_bytes;
        self.entry_bytes += entry_bytes;
        self.n_tokens += u64::from(n_tokens - start);
        Some(())
    }

    fn remove(&mut self, id: ExtentId) {
        let Some(extent) = self.extents.remove(&id) else { return };
        let n_tokens = self.prefixes.n_tokens(extent.run) as u64;
        self.extent_bytes -= extent.sealed.n_bytes;
        self.entry_bytes -= extent.entry_bytes;
        self.n_tokens -= n_tokens - u64::from(extent.start);
    }

    fn cut(&mut self, id: ExtentId, n_bytes: u64) {
        let Some(extent) = self.extents.get_mut(&id) else { return };
        let n_gone = extent.sealed.n_bytes.saturating_sub(n_bytes);
        extent.sealed.n_bytes -= n_gone;
        self.extent_bytes -= n_gone;
    }

    /// What was recorded of an extent.
    pub fn record(&self, id: ExtentId) -> Option<Record> {
        let Extent { ns, start, class, run, .. } = self.extents.get(&id)?;
        let tokens = self.prefixes.tokens(*run);
        Some(Record { ns: *ns, tokens, start: *start as usize, class: *class })
    }

    /// All extents, in the order in which they were added.
    pub fn by_age(&self) -> Vec<ExtentId> {
        let mut ids = self.extents.iter().map(|(id, e)| (e.run, *id)).collect::<Vec<_>>();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// All extents, those first whose rows others build on.
    pub fn by_start(&self) -> Vec<ExtentId> {
        let order = |(id, e): (&ExtentId, &Extent)| (e.start, self.prefixes.n_tokens(e.run), *id);
        let mut ids = self.extents.iter().map(order).collect::<Vec<_>>();
        ids.sort_unstable();
        ids.into_iter().map(|(_, _, id)| id).collect()
    }

    pub fn sealed(&self, id: ExtentId) -> Option<Sealed> {
        self.extents.get(&id).map(|extent| extent.sealed)
    }

    pub fn ids(&self) -> impl Iterator<Item = ExtentId> {
        self.extents.keys().copied()
    }

    pub fn n_extents(&self) -> usize {
        self.extents.len()
    }

    pub fn extent_bytes(&self) -> u64 {
        self.extent_bytes
    }

    /// Bytes of the entries of what is there: about what a log without the dead would have.
    pub fn entry_bytes(&self) -> u64 {
        self.entry_bytes
    }

    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }
}

fn code(class: Class) -> u8 {
    match class {
        Class::Interior => 0,
        Class::BranchPoint => 1,
        Class::TurnEnd => 2,
        Class::OutputEnd(Waiting::Tool) => 3,
        Class::OutputEnd(Waiting::Person) => 4,
        Class::System => 5,
    }
}

/// 0 interior, 1 branch point, 2 end of a message, 3 and 4 end of an answer that waits for a tool
/// or a person, 5 system prompt.
fn class_of(code: u8) -> Option<Class> {
    Some(match code {
        0 => Class::Interior,
        1 => Class::BranchPoint,
        2 => Class::TurnEnd,
        3 => Class::OutputEnd(Waiting::Tool),
        4 => Class::OutputEnd(Waiting::Person),
        5 => Class::System,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEALED: Sealed = Sealed { n_bytes: 70, n_pieces: 1, checksum: 9 };

    fn add(index: &mut Index, id: u64, tokens: &[Token], start: usize) -> Option<usize> {
        let (tokens, ns, class) = (tokens.to_vec(), Ns(1), Class::TurnEnd);
        let record = Record { ns, tokens, start, class };
        let entry = index.entry(ExtentId(id), &record, SEALED)?;
        let bytes = entry.bytes();
        assert_eq!(Entry::parse(&bytes).as_ref(), Some(&entry));
        index.apply(entry, bytes.len() as u64)?;
        assert_eq!(index.record(ExtentId(id)), Some(record));
        Some(bytes.len())
    }

    #[test]
    fn a_conversations_tokens_are_stored_once_however_many_extents_it_has() {
        let tokens = (0..100_000).collect::<Vec<Token>>();
        let mut index = Index::default();
        let n_bytes = (1..=50).map(|k| {
            add(&mut index, k, &tokens[..2_000 * k as usize], 2_000 * (k as usize - 1)).unwrap()
        });
        assert_eq!(n_bytes.sum::<usize>(), 4 * 100_000 + 50 * 50);
        assert_eq!(index.n_tokens(), 100_000);
        assert_eq!(index.entry_bytes(), 4 * 100_000 + 50 * 50);
    }

    #[test]
    fn tokens_of_what_was_removed_serve_what_builds_on_them() {
        let mut index = Index::default();
        add(&mut index, 1, &[1, 2, 3], 0).unwrap();
        add(&mut index, 2, &[1, 2, 4, 5], 2).unwrap();
        index.apply(Entry::Remove(vec![ExtentId(1), ExtentId(8)]), 0).unwrap();
        assert_eq!(add(&mut index, 3, &[1, 2, 3, 6], 3), Some(50 + 4));
        assert_eq!(index.record(ExtentId(1)), None);
        let cut = Entry::Cut(vec![(ExtentId(2), 60), (ExtentId(3), 90), (ExtentId(8), 1)]);
        assert_eq!(Entry::parse(&cut.bytes()).as_ref(), Some(&cut));
        index.apply(cut, 0).unwrap();
        assert_eq!(index.sealed(ExtentId(2)), Some(Sealed { n_bytes: 60, ..SEALED }));
        assert_eq!((index.n_extents(), index.extent_bytes(), index.n_tokens()), (2, 130, 3));
        assert_eq!(index.by_start(), [ExtentId(2), ExtentId(3)]);
    }

    #[test]
    fn what_cannot_be_is_refused_and_changes_nothing() {
        let mut index = Index::default();
        add(&mut index, 1, &[1, 2, 3], 0).unwrap();
        assert_eq!(add(&mut index, 1, &[4], 0), None, "an id is used twice");
        assert_eq!(add(&mut index, 2, &[4], 2), None, "it starts behind its end");
        let entry = |base, n_shared, n_bytes| Entry::Add {
            id: ExtentId(7),
            sealed: Sealed { n_bytes, n_pieces: 1, checksum: 0 },
            ns: Ns(0),
            start: 0,
            class: Class::System,
            base,
            n_shared,
            tokens: vec![1],
        };
        for bad in [entry(0, 4, 1), entry(1, 1, 1), entry(0, u32::MAX, 1), entry(0, 1, u64::MAX)] {
            assert_eq!(index.apply(bad, 1), None);
        }
        assert_eq!((index.n_extents(), index.extent_bytes(), index.n_tokens()), (1, 70, 3));
        for bytes in [&[][..], &[4], &[1, 0], &[2, 0], &[1; 53], &[1, 6], &[3; 9]] {
            assert_eq!(Entry::parse(bytes), None, "{bytes:?}");
        }
        assert_eq!(Entry::parse(&[2]), Some(Entry::Remove(Vec::new())));
    }
}
