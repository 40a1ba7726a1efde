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
//! lines of each as there are octaves of cost per byte. Of a long path only the end may go, so a
//! victim can take a hundred questions and more; they are asked in one tick, and what the head of a
//! line is worth is worked out again only where another one has come.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::by_slot::BySlot;
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
/// A line with fewer units that stand there no more is not worth cleaning.
const MIN_STALE: usize = 8;
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
}

/// Where a unit stands.
#[derive(Debug)]
struct Waiter {
    line_idx: usize,
    place: u64,
    density: f64,
    last_use: Tick,
    is_shown: bool,
}

impl Waiter {
    fn stands(&self, line_idx: usize, place: u64) -> bool {
        self.is_shown && self.line_idx == line_idx && self.place == place
    }
}

/// Units of one kind and one octave of cost per byte.
#[derive(Debug)]
struct Line {
    kind: usize,
    /// By place, those that are shown, and some that stand here no more or are hidden.
    units: BinaryHeap<Reverse<(u64, UnitId)>>,
    n_shown: usize,
    /// The first of them.
    head: Option<(u64, UnitId)>,
}

/// The worth of the head of a line that has none. No other is as high.
const NONE: u64 = u64::MAX;

/// The order of [`Hazard`].
#[derive(Debug)]
pub struct ByHazard {
    entries: BTreeMap<UnitId, Entry>,
    waiters: BySlot<Waiter>,
    /// All lines that there have been; `line_indices` finds them.
    lines: Vec<Line>,
    line_indices: BTreeMap<(usize, u64), usize>,
    /// Of each line's head, as bits, which sort as floats do that are not negative.
    worths: Vec<u64>,
    /// The tick for which they are right; none after a lesson.
    worths_at: Option<Tick>,
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
            waiters: BySlot::default(),
            lines: Vec::new(),
            line_indices: BTreeMap::new(),
            worths: Vec::new(),
            worths_at: None,
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
        self.stand(id, &entry);
        self.entries.insert(id, entry);
    }

    /// Stands in the line of its kind from now on.
    fn stand(&mut self, id: UnitId, entry: &Entry) {
        let (key, lines, worths) = (entry.line(), &mut self.lines, &mut self.worths);
        let line_idx = *self.line_indices.entry(key).or_insert_with(|| {
            lines.push(Line { kind: key.0, units: BinaryHeap::new(), n_shown: 0, head: None });
            worths.push(NONE);
            lines.len() - 1
        });
        let (density, last_use) = (entry.unit.density(), entry.life.last_use);
        let waiter = Waiter { line_idx, place: entry.place, density, last_use, is_shown: false };
        self.waiters.insert(id, waiter);
        self.show(id);
    }

    /// Finds the head of a line anew.
    fn look(&mut self, line_idx: usize) {
        let (line, waiters) = (&mut self.lines[line_idx], &self.waiters);
        (line.head, self.worths[line_idx]) = (None, NONE);
        while let Some(&Reverse((place, id))) = line.units.peek() {
            if let Some(waiter) = waiters.get(id).filter(|w| w.stands(line_idx, place)) {
                let age = self.worths_at.unwrap_or(self.now).saturating_sub(waiter.last_use);
                // Never -0, whose bits sort last.
                let worth = self.curves[line.kind].worth(age) * waiter.density + 0.0;
                (line.head, self.worths[line_idx]) = (Some((place, id)), worth.to_bits());
                return;
            }
            line.units.pop();
        }
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
        self.worths_at = None;
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
        if let Some(mut entry) = self.entries.remove(&id) {
            entry.unit = unit;
            entry.life.class = unit.class;
            self.put(id, entry);
        }
    }

    fn remove(&mut self, id: UnitId) {
        self.hide(id);
        self.waiters.remove(id);
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

    fn first(&mut self, now: Tick) -> Option<UnitId> {
        if self.worths_at != Some(now) {
            self.worths_at = Some(now);
            (0..self.lines.len()).for_each(|line_idx| self.look(line_idx));
        }
        let lowest = *self.worths.iter().min()?;
        let are_lowest = self.worths.iter().zip(&self.lines).filter(|(worth, _)| **worth == lowest);
        are_lowest.filter_map(|(_, line)| line.head).min().map(|(_, id)| id)
    }

    fn hide(&mut self, id: UnitId) {
        let Some(waiter) = self.waiters.get_mut(id).filter(|waiter| waiter.is_shown) else {
            return;
        };
        waiter.is_shown = false;
        let (line_idx, place) = (waiter.line_idx, waiter.place);
        let line = &mut self.lines[line_idx];
        line.n_shown -= 1;
        if line.head.is_some_and(|(first, _)| first == place) {
            self.look(line_idx);
        }
    }

    fn show(&mut self, id: UnitId) {
        let Some(waiter) = self.waiters.get_mut(id).filter(|waiter| !waiter.is_shown) else {
            return;
        };
        waiter.is_shown = true;
        let (line_idx, place) = (waiter.line_idx, waiter.place);
        let line = &mut self.lines[line_idx];
        line.n_shown += 1;
        line.units.push(Reverse((place, id)));
        if line.units.len() > 2 * line.n_shown + MIN_STALE {
            let mut units = std::mem::take(&mut line.units).into_vec();
            units.sort_unstable();
            units.dedup();
            let waiters = &self.waiters;
            let stands = |place, id| waiters.get(id).is_some_and(|w| w.stands(line_idx, place));
            units.retain(|Reverse((place, id))| stands(*place, *id));
            line.units = units.into();
        }
        if line.head.is_none_or(|(first, _)| place < first) {
            self.look(line_idx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Evict;
    use super::*;

    #[test]
    fn lines_are_cleaned_of_units_that_stand_there_no_more() {
        let mut hazard = Hazard::new();
        let ids = [0, 1, 2].map(|slot| UnitId(slot, 0));
        let unit =
            |key| Unit { key, bytes: 1, saved_cost: 1.0, depth_tokens: 1, class: Class::System };
        ids.iter().for_each(|id| hazard.insert(*id, unit(u64::from(id.0)), 0));
        // All get into one line, of which the first is never touched again.
        (0..4).for_each(|_| ids.iter().for_each(|id| hazard.touch(*id, 0)));
        for now in 1..1_000 {
            hazard.touch(ids[1 + now as usize % 2], now);
        }
        let n_units = hazard.order().lines.iter().map(|line| line.units.len()).max();
        assert!(n_units <= Some(2 * 3 + MIN_STALE), "{n_units:?}");
        for expected in ids.map(Some).into_iter().chain([None]) {
            let victim = hazard.victim(1_000, &mut |_| true);
            assert_eq!(victim, expected);
            victim.into_iter().for_each(|id| hazard.remove(id));
        }
    }
}
