//! A folder in memory that fails when told to and forgets, at a crash, what was not synced: all of
//! it, a part, or in favour of garbage. It may also forget what it said it could not sync.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kvstore::files::{Files, Handle};

/// Splitmix64: small, and the same everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// What happens to the act at which the countdown ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails; later ones work.
    Once(io::ErrorKind),
    /// It fails, and so do all that make files longer, until the fault is taken away.
    Full,
    /// It and all later ones fail: the process is about to be gone.
    Stop,
}

/// What is in a file now, and what would be there after a crash at least.
#[derive(Debug, Clone, Default)]
struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// Ranges that could not be synced: no later sync makes up for that.
    lost: Vec<Range<usize>>,
}

#[derive(Debug, Clone)]
enum NameAct {
    Put(String, usize),
    Rename(String, String),
    Remove(String),
}

type Names = BTreeMap<String, usize>;

struct State {
    contents: Vec<Content>,
    names: Names,
    synced_names: Names,
    /// Since the last sync.
    name_acts: Vec<NameAct>,
    rng: Rng,
    countdown: Option<(usize, Fault)>,
    /// Looks into files that work before one fails.
    looks_left: Option<usize>,
    has_stopped: bool,
    is_full: bool,
}

/// The folder; copies are the same one.
#[derive(Clone)]
pub struct Forgetful(Arc<Mutex<State>>);

struct Open {
    folder: Forgetful,
    content: usize,
}

fn apply(names: &mut Names, act: &NameAct) {
    match act {
        NameAct::Put(name, content) => {
            names.insert(name.clone(), *content);
        }
        NameAct::Rename(from, to) => {
            if let Some(content) = names.remove(from) {
                names.insert(to.clone(), content);
            }
        }
        NameAct::Remove(name) => {
            names.remove(name);
        }
    }
}

impl Content {
    fn sync(&mut self) {
        self.synced.clone_from(&self.now);
    }

    /// Of two lengths the bytes that both have, as far as they are equal, are safe.
    fn after_crash(&mut self, rng: &mut Rng) {
        let n_safe = self.now.iter().zip(&self.synced).take_while(|(a, b)| a == b).count();
        let n_new = self.now.len() - n_safe;
        let mut left = match rng.below(4) {
            0 => self.synced.clone(),
            1 => self.now[..n_safe + rng.below(n_new + 1)].to_vec(),
            _ => self.now.clone(),
        };
        let n_left = left.len().max(n_safe) - n_safe;
        if n_left > 0 && left.len() > n_safe && rng.one_in(2) {
            // A stretch that never reached the disk: zeros, or what was there before.
            let from = n_safe + rng.below(n_left);
            let to = from + 1 + rng.below(left.len() - from);
            let is_zero = rng.one_in(2);
            left[from..to].fill_with(|| if is_zero { 0 } else { rng.next() as u8 });
        }
        for range in self.lost.drain(..) {
            let end = range.end.min(left.len());
            if range.start < end && rng.one_in(2) {
                left[range.start..end].fill_with(|| rng.next() as u8);
            }
        }
        self.now = left;
        self.sync();
    }
}

impl State {
    /// Before each look at files: the error that it is to have.
    fn look(&mut self) -> io::Result<()> {
        match self.looks_left.as_mut() {
            None => Ok(()),
            Some(0) => {
                self.looks_left = None;
                Err(io::Error::other("the disk does not answer"))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    /// Before each change: the error that it is to have.
    fn change(&mut self, n_new_bytes: usize) -> io::Result<()> {
        if self.has_stopped {
            return Err(io::Error::other("the process is gone"));
        }
        if let Some((left, fault)) = self.countdown.as_mut() {
            if *left > 0 {
                *left -= 1;
            } else {
                let fault = *fault;
                self.countdown = None;
                self.is_full = fault == Fault::Full;
                self.has_stopped = fault == Fault::Stop;
                if let Fault::Once(kind) = fault {
                    return Err(kind.into());
                }
                if self.has_stopped {
                    return Err(io::Error::other("the process ends"));
                }
            }
        }
        match self.is_full && n_new_bytes > 0 {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

impl Forgetful {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            contents: Vec::new(),
            names: Names::new(),
            synced_names: Names::new(),
            name_acts: Vec::new(),
            rng: Rng(seed),
            countdown: None,
            looks_left: None,
            has_stopped: false,
            is_full: false,
        })))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics with it")
    }

    /// The change after `left` others has the fault; with `None`, no fault is to come.
    pub fn fail_after(&self, fault: Option<(usize, Fault)>) {
        let mut state = self.state();
        (state.countdown, state.is_full) = (fault, false);
    }

    /// The look after `left` others fails, once. Whether an earlier one has been met.
    pub fn fail_look_after(&self, left: Option<usize>) -> bool {
        let before = std::mem::replace(&mut self.state().looks_left, left);
        before.is_none()
    }

    /// Whether the fault has been met.
    pub fn has_failed(&self) -> bool {
        self.state().countdown.is_none()
    }

    /// The process has ended; the machine goes on.
    pub fn restart(&self) {
        let mut state = self.state();
        (state.has_stopped, state.countdown, state.is_full) = (false, None, false);
    }

    /// The machine has stopped.
    pub fn crash(&self) {
        self.restart();
        let mut guard = self.state();
        let state = &mut *guard;
        let mut names = std::mem::take(&mut state.synced_names);
        let keeps_order = state.rng.one_in(2);
        let n_kept = state.rng.below(state.name_acts.len() + 1);
        for (k, act) in std::mem::take(&mut state.name_acts).iter().enumerate() {
            if if keeps_order { k < n_kept } else { state.rng.one_in(2) } {
                apply(&mut names, act);
            }
        }
        state.names.clone_from(&names);
        state.synced_names = names;
        for content in &mut state.contents {
            content.after_crash(&mut state.rng);
        }
    }

    fn find(&self, name: &str) -> io::Result<Box<dyn Handle>> {
        let content = self.state().names.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Open { folder: self.clone(), content }))
    }

    fn open_file(&self, name: &str) -> io::Result<Box<dyn Handle>> {
        self.state().look()?;
        self.find(name)
    }

    fn name_act(&self, act: NameAct, n_new_bytes: usize) -> io::Result<()> {
        let mut state = self.state();
        state.change(n_new_bytes)?;
        if let NameAct::Rename(name, _) | NameAct::Remove(name) = &act
            && !state.names.contains_key(name)
        {
            return Err(io::ErrorKind::NotFound.into());
        }
        apply(&mut state.names, &act);
        state.name_acts.push(act);
        Ok(())
    }
}

impl Files for Forgetful {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }

    fn names(&self) -> io::Result<Vec<(String, u64)>> {
        let mut state = self.state();
        state.look()?;
        let n_bytes = |content: &usize| state.contents[*content].now.len() as u64;
        Ok(state.names.iter().map(|(name, content)| (name.clone(), n_bytes(content))).collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Handle>> {
        if let Ok(found) = self.find(name) {
            found.cut(0)?;
            return Ok(found);
        }
        let content = {
            let mut state = self.state();
            state.contents.push(Content::default());
            state.contents.len() - 1
        };
        self.name_act(NameAct::Put(name.to_owned(), content), 1)?;
        self.find(name)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Handle>> {
        self.open_file(name)
    }

    fn edit(&self, name: &str) -> io::Result<Box<dyn Handle>> {
        self.open_file(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.name_act(NameAct::Rename(from.to_owned(), to.to_owned()), 0)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.name_act(NameAct::Remove(name.to_owned()), 0)
    }

    fn sync(&self) -> io::Result<()> {
        let mut guard = self.state();
        let state = &mut *guard;
        state.change(0)?;
        state.synced_names.clone_from(&state.names);
        state.name_acts.clear();
        Ok(())
    }
}

impl Handle for Open {
    fn n_bytes(&self) -> io::Result<u64> {
        let mut state = self.folder.state();
        state.look()?;
        Ok(state.contents[self.content].now.len() as u64)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.folder.state();
        state.look()?;
        let bytes = state.contents[self.content].now.get(offset as usize..);
        let bytes = bytes.and_then(|bytes| bytes.get(..into.len()));
        into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut guard = self.folder.state();
        let state = &mut *guard;
        let result = state.change(bytes.len());
        // What fails may have been done in part.
        let n = if result.is_ok() { bytes.len() } else { state.rng.below(bytes.len() + 1) };
        let content = &mut state.contents[self.content];
        let (from, to) = (offset as usize, offset as usize + n);
        if n > 0 {
            content.now.resize(content.now.len().max(to), 0);
            content.now[from..to].copy_from_slice(&bytes[..n]);
            content.lost.retain(|range| range.end <= from || to <= range.start);
        }
        result
    }

    fn cut(&self, n_bytes: u64) -> io::Result<()> {
        let mut state = self.folder.state();
        state.change(0)?;
        let content = &mut state.contents[self.content];
        content.now.resize(n_bytes as usize, 0);
        content.lost.retain(|range| range.start < n_bytes as usize);
        content.lost.iter_mut().for_each(|range| range.end = range.end.min(n_bytes as usize));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut guard = self.folder.state();
        let state = &mut *guard;
        let result = state.change(0);
        let content = &mut state.contents[self.content];
        match result {
            Ok(()) => content.sync(),
            // That a process ends before it syncs is no failure of the disk.
            Err(_) if state.has_stopped => {}
            Err(_) => {
                let (safe, all) = (content.synced.len().min(content.now.len()), content.now.len());
                content.lost.push(safe..all);
            }
        }
        result
    }
}
