//! Which models have to go so that another one fits: the least recently used of those at rest.

use std::time::Instant;

/// A loaded model, as far as its place in memory goes.
#[derive(Debug, Clone)]
pub(crate) struct Tenant {
    pub name: String,
    /// Weights and, where it is known, cache.
    pub bytes: u64,
    /// Since when it is at rest; none while it answers.
    pub idle_since: Option<Instant>,
    /// Never unloaded for another one.
    pub is_pinned: bool,
}

/// What models may take together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// None: not bounded.
    pub budget_bytes: Option<u64>,
    pub max_models: usize,
}

/// Why there is no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// Not even alone.
    TooLarge { budget_bytes: u64 },
    /// Those that are loaded are at work, or pinned.
    Busy { names: Vec<String> },
}

impl Room {
    /// The models to unload, in this order, before one of `bytes` is loaded.
    pub fn make(&self, tenants: &[Tenant], bytes: u64) -> Result<Vec<String>, Shortage> {
        if let Some(budget_bytes) = self.budget_bytes.filter(|budget| bytes > *budget) {
            return Err(Shortage::TooLarge { budget_bytes });
        }
        let mut kept_bytes = tenants.iter().map(|tenant| tenant.bytes).sum::<u64>();
        let mut n_kept = tenants.len();
        let mut at_rest = at_rest(tenants);
        let mut leaving = Vec::new();
        while n_kept + 1 > self.max_models
            || self.budget_bytes.is_some_and(|budget| kept_bytes.saturating_add(bytes) > budget)
        {
            let Some(tenant) = at_rest.next() else {
                let names = tenants.iter().map(|tenant| tenant.name.clone());
                return Err(Shortage::Busy { names: names.collect() });
            };
            kept_bytes -= tenant.bytes;
            n_kept -= 1;
            leaving.push(tenant.name.clone());
        }
        Ok(leaving)
    }
}

/// Those that can be unloaded, the longest at rest first.
pub(crate) fn at_rest(tenants: &[Tenant]) -> impl Iterator<Item = &Tenant> {
    let unpinned = tenants.iter().filter(|tenant| !tenant.is_pinned);
    let mut at_rest: Vec<_> =
        unpinned.filter_map(|tenant| Some((tenant.idle_since?, tenant))).collect();
    at_rest.sort_by_key(|(since, _)| *since);
    at_rest.into_iter().map(|(_, tenant)| tenant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_longest_at_rest_leave_and_no_more_than_needed() {
        let start = Instant::now();
        let tenant = |name: &str, bytes, idle: Option<u64>, is_pinned| Tenant {
            name: name.to_owned(),
            bytes,
            idle_since: idle.map(|s| start + Duration::from_secs(s)),
            is_pinned,
        };
        let tenants = [
            tenant("young", 30, Some(9), false),
            tenant("pinned", 20, Some(1), true),
            tenant("busy", 10, None, false),
            tenant("old", 5, Some(2), false),
        ];
        let check = |budget_bytes, max_models, bytes, expected: Result<&[&str], Shortage>| {
            let room = Room { budget_bytes, max_models };
            let expected =
                expected.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
            assert_eq!(room.make(&tenants, bytes), expected, "{budget_bytes:?} {bytes}");
        };
        let names = ["young", "pinned", "busy", "old"].map(str::to_owned).to_vec();
        check(None, 9, 1000, Ok(&[]));
        check(Some(100), 9, 35, Ok(&[]));
        check(Some(100), 9, 36, Ok(&["old"]));
        check(Some(100), 9, 41, Ok(&["old", "young"]));
        check(Some(100), 9, 71, Err(Shortage::Busy { names: names.clone() }));
        check(Some(100), 9, 101, Err(Shortage::TooLarge { budget_bytes: 100 }));
        check(None, 4, 1, Ok(&["old"]));
        check(None, 1, 1, Err(Shortage::Busy { names }));
    }
}
