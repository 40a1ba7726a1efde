//! Evicts what is least likely to be used soon, by the cost that it saves and per byte.
//!
//! Units are sorted into kinds: why they are there, how often they were used, and whether they were
//! the last of what was used together. For each kind a [`Curve`] learns when such units are used
//! again; the worth of a unit is its kind's worth at its age, times the cost that it saves, over
//! its bytes. So the policy finds out by itself that the end of a tool call is wanted in seconds
//! and then never again, that an answer whose reasoning the next prompt drops is not wanted at all,
//! and that a document nobody came back to will stay that way.
//!
//! Units of one kind and about the same cost per byte stand in one line by use; only the heads of
//! lines are compared, so a victim costs O(lines + log n). There are at most 48 kinds, and as many
//! lines of each as there are octaves of cost per byte.

use std::collections::{BTreeMap, BTreeSet};

use super::curve::{Curve, learn};
use super::order::{Order, Ordered};
use super::{Class, Tick, Unit, UnitId, Waiting};

/// Evicts by learned time of reuse. Holds up to [`GHOSTS_PER_UNIT`] ghosts for each unit, of about
/// a hundred bytes each.
pub type Hazard = Ordered<ByHazard>;

const N_CLASSES: usize = 6;
/// Uses that are told apart; more count as this many.
const MAX_USES: usize = 4;
const N_KINDS: usize = N_CLASSES * MAX_USES * 2;

/// Ghosts per unit that is here.
const GHOSTS_PER_UNIT: usize = 4;
/// Ghosts that are kept however few units there are.
const MIN_GHOSTS: usize = 256;
/// Events between two lessons, at least; else an eighth of what is watched, so that a lesson, which
/// walks over all of it, costs a constant per event.
const MIN_EVENTS: usize = 64;
const WATCHED_PER_EVENT: usize = 8;
/// What one lesson leaves of the weight of older ones.
const KEEP: f64 = 0.99;

/// What is learned from, of units and ghosts alike.
#[derive(Debug, Clone, Copy)]
struct Life {
    class: Class,
    n_uses: u8,
    /// Nothing that was used with it lies deeper.
    is_last: bool,
    last_use: Tick,
}

impl Life {
    fn kind(&self) -> usize {
        let class = match self.class {
            Class::Interior => 0,
            Class::BranchPoint => 1,
            Class::TurnEnd => 2,
            Class::OutputEnd(Waiting::Tool) => 3,
            Class::OutputEnd(Waiting::Person) => 4,
            Class::System => 5,
        };
        let n_uses = usize::from(self.n_uses).min(MAX_USES - 1);
        (class * MAX_USES + n_uses) * 2 + usize::from(self.is_last)
    }

    /// Tells what happened since the last lesson.
    fn watched(&self, curve: &mut Curve, last_lesson: Tick, now: Tick) {
        let age = |at: Tick| at.saturating_sub(self.last_use);
        curve.watched(age(last_lesson), age(now));
    }

    fn used(&self, curve: &mut Curve, last_lesson: Tick, now: Tick) {
        self.watched(curve, last_lesson, now);
        curve.used(now.saturating_sub(self.last_use));
    }
}

#[derive(Debug)]
struct Entry {
    unit: Unit,
    life: Life,
    place: u64,
}

impl Entry {
    /// The line it stands in: its kind, and the octave of its cost per byte.
    fn line(&self) -> (usize, u64) {
        (self.life.kind(), self.unit.density().to_bits() >> 52)
    }

    fn waiting(&self, id: UnitId) -> Waiter {
        Waiter { id, density: self.unit.density(), last_use: self.life.last_use }
    }
}

/// What comparing heads of lines needs of an entry.
#[derive(Debug)]
struct Waiter {
    id: UnitId,
    density: f64,
    last_use: Tick,
}

/// The order of [`Hazard`].
#[derive(Debug)]
pub struct ByHazard {
    entries: BTreeMap<UnitId, Entry>,
    lines: BTreeMap<(usize, u64), BTreeMap<u64, Waiter>>,
    ghosts: BTreeMap<u64, Life>,
    /// Ghosts by last use.
    fading: BTreeSet<(Tick, u64)>,
    curves: Vec<Curve>,
    n_places: u64,
    n_events: usize,
    last_lesson: Tick,
    now: Tick,
    /// Depth and time of the latest use: what comes in the same tick and lies less deep was used
    /// together with it.
    latest: (u64, Tick),
}

impl Default for ByHazard {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            lines: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            fading: BTreeSet::new(),
            curves: vec![Curve::new(); N_KINDS],
            n_places: 0,
            n_events: 0,
            last_lesson: 0,
            now: 0,
            latest: (0, 0),
        }
    }
}

impl ByHazard {
    fn put(&mut self, id: UnitId, entry: Entry) {
        self.lines.entry(entry.line()).or_default().insert(entry.place, entry.waiting(id));
        self.entries.insert(id, entry);
    }

    fn next_place(&mut self) -> u64 {
        self.n_places += 1;
        self.n_places
    }

    /// Notes a use; true if it is the deepest of what is used together.
    fn is_last(&mut self, depth_tokens: u64, now: Tick) -> bool {
        let (depth, when) = std::mem::replace(&mut self.latest, (depth_tokens, now));
        when != now || depth_tokens >= depth
    }

    fn take_ghost(&mut self, key: u64) -> Option<Life> {
        let ghost = self.ghosts.remove(&key)?;
        self.fading.remove(&(ghost.last_use, key));
        Some(ghost)
    }

    fn put_ghost(&mut self, key: u64, ghost: Life) {
        self.take_ghost(key);
        self.fading.insert((ghost.last_use, key));
        self.ghosts.insert(key, ghost);
    }

    fn event(&mut self, now: Tick) {
        self.now = now;
        self.n_events += 1;
        let n_watched = self.entries.len() + self.ghosts.len();
        if self.n_events < MIN_EVENTS.max(n_watched / WATCHED_PER_EVENT) {
            return;
        }
        self.n_events = 0;
        let lives = self.entries.values().map(|entry| &entry.life).chain(self.ghosts.values());
        for life in lives {
            life.watched(&mut self.curves[life.kind()], self.last_lesson, now);
        }
        self.last_lesson = now;
        learn(&mut self.curves, KEEP);
    }
}

impl Order for ByHazard {
    fn insert(&mut self, id: UnitId, unit: Unit, now: Tick) {
        let n_uses = self.take_ghost(unit.key).map_or(0, |ghost| ghost.n_uses);
        let is_last = self.is_last(unit.depth_tokens, now);
        let life = Life { class: unit.class, n_uses, is_last, last_use: now };
        let place = self.next_place();
        self.put(id, Entry { unit, life, place });
        self.event(now);
    }

    fn touch(&mut self, id: UnitId, now: Tick) {
        self.hide(id);
        let Some(mut entry) = self.entries.remove(&id) else { return };
        entry.life.used(&mut self.curves[entry.life.kind()], self.last_lesson, now);
        entry.life.n_uses = entry.life.n_uses.saturating_add(1);
        entry.life.last_use = now;
        entry.life.is_last = self.is_last(entry.unit.depth_tokens, now);
        entry.place = self.next_place();
        self.put(id, entry);
        self.event(now);
    }

    fn update(&mut self, id: UnitId, unit: Unit) {
        self.hide(id);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.unit = unit;
            entry.life.class = unit.class;
            self.show(id);
        }
    }

    fn remove(&mut self, id: UnitId) {
        self.hide(id);
        let Some(Entry { unit, life, .. }) = self.entries.remove(&id) else { return };
        self.put_ghost(unit.key, life);
        if self.ghosts.len() > MIN_GHOSTS.max(GHOSTS_PER_UNIT * self.entries.len())
            && let Some((_, key)) = self.fading.pop_first()
            && let Some(ghost) = self.ghosts.remove(&key)
        {
            ghost.watched(&mut self.curves[ghost.kind()], self.last_lesson, self.now);
        }
    }

    fn missed(&mut self, key: u64, now: Tick) {
        if let Some(mut ghost) = self.take_ghost(key) {
            ghost.used(&mut self.curves[ghost.kind()], self.last_lesson, now);
            ghost.n_uses = ghost.n_uses.saturating_add(1);
            ghost.last_use = now;
            self.put_ghost(key, ghost);
            self.event(now);
        }
    }

    fn first(&self, now: Tick) -> Option<UnitId> {
        let heads = self.lines.iter().filter_map(|((kind, _), line)| {
            let (&place, head) = line.first_key_value()?;
            let worth = self.curves[*kind].worth(now.saturating_sub(head.last_use));
            Some((worth * head.density, place, head.id))
        });
        let lowest = heads.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        lowest.map(|(_, _, id)| id)
    }

    fn hide(&mut self, id: UnitId) {
        let Some(entry) = self.entries.get(&id) else { return };
        let (line, place) = (entry.line(), entry.place);
        if let Some(units) = self.lines.get_mut(&line) {
            units.remove(&place);
            if units.is_empty() {
                self.lines.remove(&line);
            }
        }
    }

    fn show(&mut self, id: UnitId) {
        if let Some(entry) = self.entries.get(&id) {
            self.lines.entry(entry.line()).or_default().insert(entry.place, entry.waiting(id));
        }
    }
}
