//! Keys, their queues, and tokens computed for each: who is behind is next.

use std::collections::{BTreeMap, BTreeSet};

use crate::request::{Id, Key, Mark, Place};

/// Virtual time has fractions of tokens: keys share one by their number.
const UNITS: u64 = 1 << 16;
/// Keys without requests that are remembered for being ahead.
pub(crate) const MAX_IDLE: usize = 4096;

/// One key's requests and what was computed for them.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// Units computed, from where the key started.
    pub served: u64,
    pub queue: BTreeSet<(Place, Id)>,
    pub n_requests: usize,
    pub n_seated: usize,
    pub n_waiting: usize,
    pub n_backlog: usize,
}

#[derive(Debug)]
pub(crate) struct Keys {
    /// Of keys that have requests.
    pub accounts: BTreeMap<Key, Account>,
    /// Keys whose queue is not empty, the least served first.
    pub order: BTreeSet<(u64, Key)>,
    /// What was computed for keys that have none, and are ahead of virtual time.
    pub idle: BTreeMap<Key, u64>,
    pub idle_order: BTreeSet<(u64, Key)>,
    /// Units that a server which gives all keys the same would have given each.
    pub virtual_time: u64,
    /// How far an account may be from virtual time, in units: what a key did not use is no claim
    /// for ever, and what nobody else wanted no debt.
    pub credit: u64,
}

impl Keys {
    pub fn new(credit_tokens: usize) -> Self {
        Self {
            accounts: BTreeMap::new(),
            order: BTreeSet::new(),
            idle: BTreeMap::new(),
            idle_order: BTreeSet::new(),
            virtual_time: 0,
            credit: credit_tokens as u64 * UNITS,
        }
    }

    /// What was computed for a key, in units.
    pub fn served(&self, key: Key) -> u64 {
        self.accounts.get(&key).map_or(self.virtual_time, |account| account.served)
    }

    /// The same after `n_tokens` more.
    pub fn after(served: u64, n_tokens: usize) -> u64 {
        served + n_tokens as u64 * UNITS
    }

    pub fn n_waiting(&self, key: Key) -> usize {
        self.accounts.get(&key).map_or(0, |account| account.n_waiting)
    }

    /// The least served key after `after` that has a queue, with its first request.
    pub fn next_queued(&self, after: Option<(u64, Key)>) -> Option<((u64, Key), Id)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let entry = *self.order.range((from, Unbounded)).next()?;
        let head = self.accounts.get(&entry.1)?.queue.first()?.1;
        Some((entry, head))
    }

    /// `n_tokens` were computed for a key.
    pub fn serve(&mut self, key: Key, n_tokens: usize) {
        let units = n_tokens as u64 * UNITS;
        self.virtual_time += units / self.accounts.len().max(1) as u64;
        let least = self.virtual_time.saturating_sub(self.credit);
        let most = self.virtual_time + self.credit;
        self.set_served(key, (self.served(key).max(least) + units).min(most));
        self.forget_idle();
    }

    fn set_served(&mut self, key: Key, served: u64) {
        let Some(account) = self.accounts.get_mut(&key) else { return };
        if !account.queue.is_empty() {
            self.order.remove(&(account.served, key));
            self.order.insert((served, key));
        }
        account.served = served;
    }

    /// A request of a key has come, gone or changed.
    pub fn change(&mut self, key: Key, id: Id, before: Option<Mark>, after: Option<Mark>) {
        self.open(key);
        let Some(account) = self.accounts.get_mut(&key) else { return };
        let (had_queue, had_backlog) = (!account.queue.is_empty(), account.n_backlog > 0);
        if let Some(mark) = before {
            account.n_requests -= 1;
            account.n_seated -= usize::from(mark.is_seated);
            account.n_waiting -= usize::from(mark.is_waiting);
            account.n_backlog -= usize::from(mark.is_backlog);
            if let Some(place) = mark.place {
                account.queue.remove(&(place, id));
            }
        }
        if let Some(mark) = after {
            account.n_requests += 1;
            account.n_seated += usize::from(mark.is_seated);
            account.n_waiting += usize::from(mark.is_waiting);
            account.n_backlog += usize::from(mark.is_backlog);
            account.queue.extend(mark.place.map(|place| (place, id)));
        }
        let entry = (account.served, key);
        match (had_queue, !account.queue.is_empty()) {
            (false, true) => self.order.insert(entry),
            (true, false) => self.order.remove(&entry),
            _ => false,
        };
        let (is_gone, has_backlog) = (account.n_requests == 0, account.n_backlog > 0);
        if has_backlog && !had_backlog {
            // It wanted nothing until now: it has no claim on what others got meanwhile.
            self.set_served(key, self.virtual_time.max(entry.0));
        }
        if is_gone {
            self.close(key);
        }
    }

    fn open(&mut self, key: Key) {
        if self.accounts.contains_key(&key) {
            return;
        }
        let remembered = self.idle.remove(&key);
        if let Some(served) = remembered {
            self.idle_order.remove(&(served, key));
        }
        let served = remembered.unwrap_or(0).max(self.virtual_time);
        self.accounts.insert(key, Account { served, ..Account::default() });
    }

    fn close(&mut self, key: Key) {
        let Some(account) = self.accounts.remove(&key) else { return };
        if account.served > self.virtual_time {
            self.idle.insert(key, account.served);
            self.idle_order.insert((account.served, key));
        }
        self.forget_idle();
    }

    fn forget_idle(&mut self) {
        while let Some((served, key)) = self.idle_order.first().copied()
            && (served <= self.virtual_time || self.idle.len() > MAX_IDLE)
        {
            self.idle_order.pop_first();
            self.idle.remove(&key);
        }
    }
}
