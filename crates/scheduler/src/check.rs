//! Recounts everything and compares it with the totals.

use std::collections::BTreeMap;

use crate::MAX_HOLDS;
use crate::fair::{Account, MAX_IDLE};
use crate::request::{Request, State};
use crate::scheduler::Scheduler;

impl Scheduler {
    /// Asserts the invariants of the crate's first page, each under its number.
    ///
    /// # Panics
    /// If one does not hold.
    pub fn check(&self) {
        self.check_places();
        self.check_accounts();
        self.check_idle();
        for (id, request) in &self.requests {
            self.check_request(request);
            if let Some(slice) = self.slice(*id) {
                let Request { n_prompt, n_tokens, .. } = *request;
                let chunk_tokens = request.chunk_tokens;
                let is_break =
                    |at: usize| at.is_multiple_of(chunk_tokens) || at == n_prompt || at == n_tokens;
                let is_inside = slice.to > slice.from && slice.to <= n_tokens;
                assert!(is_inside, "I6: a slice ends at the last known token");
                let replays = self.limits.replays_by_token && slice.from >= n_prompt;
                assert!(replays || is_break(slice.to), "I6: a slice ends at a break point");
                let whole = (slice.from + 1..slice.to).all(|at| !is_break(at));
                assert!(whole, "I6: no break point is inside of a slice");
            }
        }
    }

    fn check_places(&self) {
        let seated = self.requests.iter().filter(|(_, request)| request.seat().is_some());
        let seated = seated.map(|(id, request)| (request.no, *id)).collect::<BTreeMap<_, _>>();
        assert_eq!(seated, self.seated, "I1: seated requests are listed");
        assert!(self.seated.len() <= self.limits.max_rows, "I2: rows are bounded");
        let marks = self.requests.values().map(Request::mark).collect::<Vec<_>>();
        let n_waiting = marks.iter().filter(|mark| mark.is_waiting).count();
        assert_eq!(n_waiting, self.n_waiting, "I2: waiting requests are counted");
        assert!(n_waiting <= self.limits.max_waiting, "I2: the queue is bounded");
        let n_ahead = marks.iter().map(|mark| mark.n_ahead).sum::<u64>();
        assert_eq!(n_ahead, self.n_ahead, "I2: the work ahead is counted");
    }

    fn check_request(&self, request: &Request) {
        assert!(request.n_holds <= MAX_HOLDS, "I3: nobody is held for ever");
        let at = request.at().unwrap_or(0);
        assert!(at <= request.n_max, "I6: no more is computed than was asked for");
        let Some(seat) = request.seat() else { return };
        for (until, id) in &seat.held {
            let held = self.requests.get(id).map(|held| &held.state);
            let is_held = matches!(held, Some(State::Held { until: u, .. }) if u == until);
            assert!(is_held, "I3: who is held knows it");
            assert!(at < *until, "I3: what is held for is not there yet");
        }
    }

    fn check_accounts(&self) {
        let mut counted: BTreeMap<_, Account> = BTreeMap::new();
        for (id, request) in &self.requests {
            let (mark, account) = (request.mark(), counted.entry(request.key).or_default());
            account.n_requests += 1;
            account.n_seated += usize::from(mark.is_seated);
            account.n_waiting += usize::from(mark.is_waiting);
            account.n_backlog += usize::from(mark.is_backlog);
            account.queue.extend(mark.place.map(|place| (place, *id)));
            if let State::Held { by, until } = request.state {
                let holder = self.requests.get(&by).and_then(Request::seat);
                let is_listed = holder.is_some_and(|seat| seat.held.contains(&(until, *id)));
                assert!(is_listed, "I3: who holds has a seat and knows it");
            }
        }
        let keys = counted.keys().collect::<Vec<_>>();
        assert_eq!(keys, self.keys.accounts.keys().collect::<Vec<_>>(), "I4: keys have accounts");
        for (key, account) in &self.keys.accounts {
            let is = &counted[key];
            assert_eq!(is.queue, account.queue, "I1: queues have who is neither held nor seated");
            let counts = |a: &Account| (a.n_requests, a.n_seated, a.n_waiting, a.n_backlog);
            assert_eq!(counts(is), counts(account), "I4: accounts count requests");
            assert!(is.n_seated <= self.limits.max_rows_per_key, "I2: rows of a key are bounded");
            let max_waiting = self.limits.max_waiting_per_key;
            assert!(is.n_waiting <= max_waiting, "I2: the queue of a key is bounded");
            let most = self.keys.virtual_time + self.keys.credit;
            assert!(account.served <= most, "I5: what nobody else wanted is no debt");
        }
        let queued = self.keys.accounts.iter().filter(|(_, account)| !account.queue.is_empty());
        let order = queued.map(|(key, account)| (account.served, *key)).collect();
        assert_eq!(self.keys.order, order, "I4: keys with a queue are in order");
    }

    fn check_idle(&self) {
        let keys = &self.keys;
        let order = keys.idle.iter().map(|(key, served)| (*served, *key)).collect();
        assert_eq!(keys.idle_order, order, "I4: idle keys are in order");
        assert!(keys.idle.len() <= MAX_IDLE, "I4: idle keys are bounded");
        let is_idle = |key| !keys.accounts.contains_key(key);
        assert!(keys.idle.keys().all(is_idle), "I4: idle keys have no requests");
        let now = keys.virtual_time;
        assert!(keys.idle.values().all(|served| *served > now), "I4: idle keys are ahead");
    }
}
