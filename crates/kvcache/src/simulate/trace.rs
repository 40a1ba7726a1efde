//! Traces of requests in Mooncake's format (FAST '25): one JSON object a line with `hash_ids`, one
//! id per block of the prompt, where equal ids mean an equal prefix up to and including the block.
//! Other fields (`timestamp`, `input_length`, `output_length`) are not used: order is time, and
//! what was answered shows in later prompts.

use std::collections::BTreeMap;

use crate::layout::Token;

/// The prompts of a trace, in order of arrival.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Trace {
    requests: Vec<Vec<Token>>,
    names: BTreeMap<u64, Token>,
}

/// A line that is no request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine(pub &'static str);

impl std::fmt::Display for BadLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadLine {}

impl Trace {
    /// No request yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one line; an empty one is nothing.
    ///
    /// # Errors
    /// `BadLine` if it is not an object with a list `hash_ids` of whole numbers; nothing is taken.
    pub fn push_line(&mut self, line: &str) -> Result<(), BadLine> {
        if line.trim().is_empty() {
            return Ok(());
        }
        let ids = hash_ids(line)?;
        self.push(&ids)
    }

    /// Takes one request, by the ids of its blocks.
    ///
    /// # Errors
    /// `BadLine` if the trace has more distinct ids than tokens can name.
    pub fn push(&mut self, ids: &[u64]) -> Result<(), BadLine> {
        let mut tokens = Vec::with_capacity(ids.len());
        for id in ids {
            let next = Token::try_from(self.names.len()).ok().filter(|next| *next < Token::MAX);
            let next = next.ok_or(BadLine("more distinct hash_ids than a simulation can tell"))?;
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

/// The list of numbers under the only key that is read. A key within a string value would have
/// its quotes escaped, so the first unescaped match is the key.
fn hash_ids(line: &str) -> Result<Vec<u64>, BadLine> {
    const MISSING: BadLine = BadLine("expected a JSON object with \"hash_ids\": [numbers]");
    let line = line.trim();
    if !line.starts_with('{') || !line.ends_with('}') {
        return Err(MISSING);
    }
    let (_, rest) = line.split_once("\"hash_ids\"").ok_or(MISSING)?;
    let rest = rest.trim_start().strip_prefix(':').ok_or(MISSING)?;
    let rest = rest.trim_start().strip_prefix('[').ok_or(MISSING)?;
    let (list, _) = rest.split_once(']').ok_or(MISSING)?;
    if list.trim().is_empty() {
        return Ok(Vec::new());
    }
    list.split(',').map(|id| id.trim().parse().map_err(|_| MISSING)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_blocks_named_by_first_appearance() {
        let mut trace = Trace::new();
        for line in [
            r#"{"timestamp": 0, "input_length": 1024, "output_length": 5, "hash_ids": [46, 9]}"#,
            "",
            r#" {"hash_ids":[46,18446744073709551615],"timestamp":1} "#,
            r#"{"hash_ids": []}"#,
        ] {
            trace.push_line(line).unwrap();
        }
        assert_eq!(trace.requests(), [vec![0, 1], vec![0, 2], vec![]]);
        assert_eq!((trace.n_distinct(), trace.n_blocks()), (3, 4));
    }

    #[test]
    fn what_is_no_request_is_refused_and_changes_nothing() {
        for line in [
            "x",
            "{}",
            r#"{"hash_ids": 3}"#,
            r#"{"hash_ids": [1, 2.5]}"#,
            r#"{"hash_ids": [1, -2]}"#,
            r#"{"hash_ids": [1, 2"#,
            r#"{"hash_ids": [1,]}"#,
        ] {
            let mut trace = Trace::new();
            assert!(trace.push_line(line).is_err(), "{line}");
            assert_eq!(trace, Trace::new(), "{line}");
        }
    }
}
