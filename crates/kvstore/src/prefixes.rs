//! The tokens of many records, each coded against the earlier one with which it has the longest
//! prefix in common: that one's number, the length of the prefix, and the tokens after it, its
//! run. A conversation's tokens are kept once, however many records end along it.
//!
//! A run begins where it leaves its base, so that following runs from their beginnings is a trie:
//! its branches are found by run, place and token. Looking up is linear in what is equal.

use std::collections::HashMap;

use kvcache::Token;

/// The number of no run.
pub const NONE: u32 = u32::MAX;

/// Runs, in the order in which they were added.
#[derive(Debug, Default)]
pub struct Prefixes {
    runs: Vec<Run>,
    /// The run that goes on with a token where another one is left.
    branches: HashMap<(u32, u32, Token), u32>,
}

#[derive(Debug)]
struct Run {
    base: u32,
    /// Tokens that are the base's.
    n_shared: u32,
    /// Those after them.
    tokens: Box<[Token]>,
}

impl Run {
    fn end(&self) -> usize {
        self.n_shared as usize + self.tokens.len()
    }
}

impl Prefixes {
    /// The run that has the longest beginning of `tokens`, and how long that is.
    pub fn nearest(&self, tokens: &[Token]) -> (u32, u32) {
        let (mut run, mut at) = (NONE, 0);
        while let Some(token) = tokens.get(at)
            && let Some(next) = self.branches.get(&(run, at as u32, *token))
            && let Some(here) = self.runs.get(*next as usize)
        {
            let pairs = here.tokens.iter().zip(&tokens[at..]);
            at += pairs.take_while(|(a, b)| a == b).count();
            run = *next;
        }
        (run, at as u32)
    }

    /// Adds a run. `None` if its base cannot be: it is not there, or has not that many tokens, or
    /// is not itself what has the last of them.
    pub fn push(&mut self, base: u32, n_shared: u32, tokens: Vec<Token>) -> Option<u32> {
        let is_sound = match self.runs.get(base as usize) {
            None => base == NONE && n_shared == 0,
            Some(run) => run.n_shared < n_shared && n_shared as usize <= run.end(),
        };
        let run = u32::try_from(self.runs.len()).ok().filter(|run| is_sound && *run != NONE)?;
        if let Some(first) = tokens.first() {
            self.branches.entry((base, n_shared, *first)).or_insert(run);
        }
        self.runs.push(Run { base, n_shared, tokens: tokens.into() });
        Some(run)
    }

    /// All tokens of a record. Empty if there is no such run.
    pub fn tokens(&self, run: u32) -> Vec<Token> {
        let Some(mut here) = self.runs.get(run as usize) else { return Vec::new() };
        let mut parts = vec![&here.tokens[..]];
        while let Some(base) = self.runs.get(here.base as usize) {
            parts.push(&base.tokens[..(here.n_shared - base.n_shared) as usize]);
            here = base;
        }
        parts.reverse();
        parts.concat()
    }

    /// How many tokens a record has.
    pub fn n_tokens(&self, run: u32) -> usize {
        self.runs.get(run as usize).map_or(0, Run::end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(a: &[Token], b: &[Token]) -> usize {
        a.iter().zip(b).take_while(|(a, b)| a == b).count()
    }

    #[test]
    fn the_nearest_run_is_that_of_the_longest_common_prefix() {
        let mut state = 1u64;
        let mut draw = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % n
        };
        for _ in 0..200 {
            let (mut prefixes, mut known) = (Prefixes::default(), Vec::<Vec<Token>>::new());
            for _ in 0..30 {
                let mut tokens = match known.len() {
                    0 => Vec::new(),
                    n => known[draw(n as u64) as usize].clone(),
                };
                tokens.truncate(draw(tokens.len() as u64 + 1) as usize);
                tokens.extend((0..draw(6)).map(|_| draw(3) as Token));
                let (base, n_shared) = prefixes.nearest(&tokens);
                let best = known.iter().map(|other| common(other, &tokens)).max().unwrap_or(0);
                assert_eq!(n_shared as usize, best, "{tokens:?} after {known:?}");
                let rest = tokens[best..].to_vec();
                let run = prefixes.push(base, n_shared, rest).expect("what is nearest is sound");
                known.push(tokens);
                assert_eq!(run as usize + 1, known.len());
            }
            for (run, tokens) in known.iter().enumerate() {
                assert_eq!(prefixes.tokens(run as u32), *tokens);
                assert_eq!(prefixes.n_tokens(run as u32), tokens.len());
            }
        }
    }

    #[test]
    fn a_base_that_cannot_be_is_refused() {
        let mut prefixes = Prefixes::default();
        assert_eq!(prefixes.push(NONE, 0, vec![1, 2, 3]), Some(0));
        assert_eq!(prefixes.push(0, 2, vec![4]), Some(1));
        for (base, n_shared) in [(NONE, 1), (0, 0), (0, 4), (1, 2), (1, 4), (2, 1), (7, 0)] {
            assert_eq!(prefixes.push(base, n_shared, vec![9]), None, "{base} {n_shared}");
        }
        assert_eq!(prefixes.push(1, 3, Vec::new()), Some(2));
        assert_eq!(prefixes.tokens(2), [1, 2, 4]);
        assert_eq!(prefixes.tokens(9), []);
    }
}
