//! Finding a tag in an answer, token by token.

use std::sync::OnceLock;

use protocol::Tag;

use crate::vocabulary::{Vocabulary, is_blank};

/// A tag that is looked for.
#[derive(Debug)]
pub(crate) struct Marker {
    pattern: Pattern,
    /// For each length that may have been found: tokens that end the tag in their midst and go on
    /// with more than blanks.
    crossing: Vec<OnceLock<Vec<u32>>>,
}

#[derive(Debug)]
enum Pattern {
    Tokens(Search<u32>),
    Text(Search<u8>),
}

/// How much of a tag has been found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// So many of its tokens or bytes, not all.
    Part(usize),
    /// All of it.
    Whole {
        /// Whether the last token goes on with more than blanks.
        crosses: bool,
    },
}

impl Marker {
    pub fn new(tag: &Tag) -> Self {
        let (pattern, n) = match tag {
            Tag::Tokens(tokens) => (Pattern::Tokens(Search::new(tokens)), tokens.len()),
            Tag::Text(text) => (Pattern::Text(Search::new(text.as_bytes())), text.len()),
        };
        Self { pattern, crossing: (0..n).map(|_| OnceLock::new()).collect() }
    }

    /// What is found after one more token, where a part of length `at` was.
    pub fn step(&self, at: usize, token: u32, vocabulary: &Vocabulary) -> Found {
        match &self.pattern {
            Pattern::Tokens(search) => match search.step(at, token) {
                at if at == search.wanted.len() => Found::Whole { crosses: false },
                at => Found::Part(at),
            },
            Pattern::Text(search) => search.step_text(at, vocabulary.text(token)),
        }
    }

    /// Whether a token goes on with the tag, or ends it, and spells nothing else.
    pub fn continues(&self, at: usize, token: u32, vocabulary: &Vocabulary) -> bool {
        match &self.pattern {
            Pattern::Tokens(search) => search.wanted[at] == token,
            Pattern::Text(search) => {
                let text = vocabulary.text(token);
                !text.is_empty() && search.wanted[at..].starts_with(text)
            }
        }
    }

    /// All tokens that do.
    pub fn continuing(&self, at: usize, vocabulary: &Vocabulary) -> Vec<u32> {
        match &self.pattern {
            Pattern::Tokens(search) => vec![search.wanted[at]],
            Pattern::Text(_) => {
                let all = 0..vocabulary.n_rows() as u32;
                all.filter(|token| self.continues(at, *token, vocabulary)).collect()
            }
        }
    }

    /// Tokens that would end the tag and go on with more than blanks, where a part is found.
    pub fn crossing(&self, at: usize, vocabulary: &Vocabulary) -> &[u32] {
        let crosses = |token: &u32| {
            let is_long = vocabulary.text(*token).len() > self.crossing.len() - at;
            is_long && self.step(at, *token, vocabulary) == Found::Whole { crosses: true }
        };
        match &self.pattern {
            Pattern::Tokens(_) => &[],
            Pattern::Text(_) => self.crossing[at]
                .get_or_init(|| (0..vocabulary.n_rows() as u32).filter(crosses).collect()),
        }
    }
}

/// Search for a sequence (Knuth, Morris & Pratt, "Fast pattern matching in strings", 1977).
#[derive(Debug)]
struct Search<T> {
    wanted: Vec<T>,
    /// For each length found, the longest shorter one that is found as well.
    shorter: Vec<usize>,
}

impl<T: Copy + Eq> Search<T> {
    fn new(wanted: &[T]) -> Self {
        let mut search = Self { wanted: wanted.to_vec(), shorter: vec![0; wanted.len()] };
        for n in 1..wanted.len() {
            let below = if n == 1 { 0 } else { search.step(search.shorter[n - 1], wanted[n - 1]) };
            search.shorter[n] = below;
        }
        search
    }

    /// The length found after one more item; `at` is less than the whole.
    fn step(&self, mut at: usize, item: T) -> usize {
        while at > 0 && self.wanted[at] != item {
            at = self.shorter[at];
        }
        if self.wanted[at] == item { at + 1 } else { 0 }
    }
}

impl Search<u8> {
    fn step_text(&self, mut at: usize, text: &[u8]) -> Found {
        if text.is_empty() {
            // Not a token of text: it parts what is on its two sides.
            return Found::Part(0);
        }
        for (i, byte) in text.iter().enumerate() {
            at = self.step(at, *byte);
            if at == self.wanted.len() {
                return Found::Whole { crosses: !is_blank(&text[i + 1..]) };
            }
        }
        Found::Part(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_found_where_a_plain_search_finds_them() {
        let mut x = 7u64;
        let mut below = |n: u64| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (x >> 33) % n
        };
        for _ in 0..2000 {
            let n = 1 + below(5);
            let wanted = (0..n).map(|_| below(2) as u8).collect::<Vec<_>>();
            let text = (0..30).map(|_| below(2) as u8).collect::<Vec<_>>();
            let search = Search::new(&wanted);
            let mut at = 0;
            let end = text.iter().position(|byte| {
                at = search.step(at, *byte);
                at == wanted.len()
            });
            let plain = text.windows(wanted.len()).position(|window| window == wanted);
            assert_eq!(end.map(|end| end + 1 - wanted.len()), plain, "{wanted:?} in {text:?}");
        }
    }
}
