//! Traces of requests as Mooncake's (FAST '25) are: each has `hash_ids`, one id per block of the
//! prompt, where equal ids mean an equal prefix up to and including the block. Its other fields
//! (`timestamp`, `input_length`, `output_length`) are not used: order is time, and what was
//! answered shows in later prompts. Whoever has the file reads its lines.

use std::collections::BTreeMap;

use crate::layout::Token;

/// The prompts of a trace, in order of arrival.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Trace {
    requests: Vec<Vec<Token>>,
    names: BTreeMap<u64, Token>,
}

/// The trace has more distinct ids than tokens can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

impl std::fmt::Display for TooMany {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("more distinct hash_ids than a simulation can tell apart")
    }
}

impl std::error::Error for TooMany {}

impl Trace {
    /// No request yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one request, by the ids of its blocks.
    ///
    /// # Errors
    /// [`TooMany`]; the request is not taken then.
    pub fn push(&mut self, ids: &[u64]) -> Result<(), TooMany> {
        let mut tokens = Vec::with_capacity(ids.len());
        for id in ids {
            let next = Token::try_from(self.names.len()).ok().filter(|next| *next < Token::MAX);
            let next = next.ok_or(TooMany)?;
            tokens.push(*self.names.entry(*id).or_insert(next));
        }
        self.requests.push(tokens);
        Ok(())
    }

    /// One token per block, numbered by first appearance.
    pub fn requests(&self) -> &[Vec<Token>] {
        &self.requests
    }

    /// Distinct blocks: the footprint.
    pub fn n_distinct(&self) -> usize {
        self.names.len()
    }

    /// Blocks of all requests.
    pub fn n_blocks(&self) -> usize {
        self.requests.iter().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_named_by_first_appearance() {
        let mut trace = Trace::new();
        for ids in [&[46, 9][..], &[46, u64::MAX], &[]] {
            trace.push(ids).unwrap();
        }
        assert_eq!(trace.requests(), [vec![0, 1], vec![0, 2], vec![]]);
        assert_eq!((trace.n_distinct(), trace.n_blocks()), (3, 4));
    }
}
