//! What all policies share: units that may not go when their turn comes.
//!
//! Such a unit is in use, or something hangs on it. It keeps its place but steps aside for some
//! victims, each time for twice as many, up to the number at which all that stepped aside makes
//! [`ASKED_PER_VICTIM`] questions for each victim. So `victim` is amortised O(log n) whatever is
//! pinned, and what becomes free has its turn soon.

use std::collections::BTreeMap;
use std::fmt::Debug;

use super::by_slot::BySlot;
use super::{Evict, Tick, Unit, UnitId};

/// Questions in vain for each victim, at most, on average. With fewer, what became free waits so
/// long that its place is lost: with 2, agents find 4 to 6 % less than under plain LRU.
const ASKED_PER_VICTIM: u64 = 64;

/// An order of units. Hidden ones keep their place and are never first.
pub trait Order: Debug {
    /// A unit came.
    fn insert(&mut self, id: UnitId, unit: Unit, now: Tick);
    /// It served a request. It is not hidden.
    fn touch(&mut self, id: UnitId, now: Tick);
    /// It changed. It is not hidden.
    fn update(&mut self, id: UnitId, unit: Unit);
    /// It is gone. It is not hidden.
    fn remove(&mut self, id: UnitId);
    /// See [`Evict::missed`].
    fn missed(&mut self, _key: u64, _now: Tick) {}
    /// The next to go of those that are not hidden. With `hide` and `show` it is asked for far more
    /// often than anything else happens: none of the three should search.
    fn first(&mut self, now: Tick) -> Option<UnitId>;
    /// The first is the victim.
    fn chosen(&mut self, _id: UnitId) {}
    /// It steps aside.
    fn hide(&mut self, id: UnitId);
    /// It is back.
    fn show(&mut self, id: UnitId);
}

#[derive(Debug)]
struct Aside {
    /// How many victims it waits this time.
    wait: u64,
    /// It is back when so many victims were chosen; none if it is back now.
    until: Option<u64>,
}

/// A policy made of an order.
#[derive(Debug, Default)]
pub struct Ordered<O> {
    order: O,
    /// Units that were asked in vain since their last use.
    aside: BySlot<Aside>,
    /// Who is back when so many victims were chosen, and some that are back already.
    wakes: BTreeMap<u64, Vec<UnitId>>,
    n_victims: u64,
}

impl<O: Order + Default> Ordered<O> {
    /// Knows no unit yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<O: Order> Ordered<O> {
    #[cfg(test)]
    pub(super) fn order(&self) -> &O {
        &self.order
    }

    /// Back in the order, if it had stepped aside.
    fn show(&mut self, id: UnitId) {
        if self.aside.get_mut(id).and_then(|aside| aside.until.take()).is_some() {
            self.order.show(id);
        }
    }

    fn hide(&mut self, id: UnitId) {
        let n_aside = self.aside.len() as u64;
        let wait = self.aside.get(id).map_or(0, |aside| aside.wait);
        let wait = (2 * wait + 1).min(1 + n_aside / ASKED_PER_VICTIM);
        let until = self.n_victims.saturating_add(wait);
        self.aside.insert(id, Aside { wait, until: Some(until) });
        self.wakes.entry(until).or_default().push(id);
        self.order.hide(id);
    }

    fn show_until(&mut self, n_victims: u64) {
        while let Some(first) = self.wakes.first_entry()
            && *first.key() <= n_victims
        {
            let (until, ids) = first.remove_entry();
            for id in ids {
                let Some(aside) = self.aside.get_mut(id) else { continue };
                if aside.until.take_if(|at| *at == until).is_some() {
                    self.order.show(id);
                }
            }
        }
    }

    fn first_allowed(&mut self, now: Tick, may: &mut dyn FnMut(UnitId) -> bool) -> Option<UnitId> {
        while let Some(id) = self.order.first(now) {
            if may(id) {
                self.order.chosen(id);
                return Some(id);
            }
            self.hide(id);
        }
        None
    }
}

impl<O: Order> Evict for Ordered<O> {
    fn insert(&mut self, id: UnitId, unit: Unit, now: Tick) {
        self.remove(id);
        self.order.insert(id, unit, now);
    }

    fn touch(&mut self, id: UnitId, now: Tick) {
        self.show(id);
        self.aside.remove(id);
        self.order.touch(id, now);
    }

    fn update(&mut self, id: UnitId, unit: Unit) {
        let until = self.aside.get(id).and_then(|aside| aside.until);
        self.show(id);
        self.order.update(id, unit);
        if let (Some(until), Some(aside)) = (until, self.aside.get_mut(id)) {
            aside.until = Some(until);
            self.order.hide(id);
        }
    }

    fn remove(&mut self, id: UnitId) {
        self.show(id);
        self.aside.remove(id);
        self.order.remove(id);
    }

    fn missed(&mut self, key: u64, now: Tick) {
        self.order.missed(key, now);
    }

    fn victim(&mut self, now: Tick, may: &mut dyn FnMut(UnitId) -> bool) -> Option<UnitId> {
        self.n_victims += 1;
        self.show_until(self.n_victims);
        if let Some(id) = self.first_allowed(now, may) {
            return Some(id);
        }
        // Nothing is left but what stepped aside in earlier turns; it may have become free.
        self.show_until(u64::MAX);
        self.first_allowed(now, may)
    }
}
