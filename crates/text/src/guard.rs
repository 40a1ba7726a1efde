//! Keeps untrusted text from becoming special tokens.
//!
//! Before rendering, a marker (a private-use character found nowhere in the input) is put into
//! each literal of an added token in the caller's strings, after the literal's first character.
//! After rendering, the text is cut at the markers and the pieces are encoded one by one, so the
//! literal exists in no piece. Invariants:
//! 1. The rendered text without markers is what the template renders from the plain strings,
//!    unless the template itself looks for such a literal in them.
//! 2. A literal that starts in a caller's string is cut, also when the template or the next
//!    string completes it: a tail that could open a literal is marked as well.
//! 3. Literals of blanks or of one character are left alone: they open no role, and whitespace
//!    runs are ordinary text to the tokenizers that list them as added tokens.

use std::collections::HashSet;

use aho_corasick::AhoCorasick;
use minijinja::Value;

use crate::{Error, Json, Result};

/// Literals of the added tokens of one tokenizer.
#[derive(Debug)]
pub struct Guard {
    added: Literals,
    special: Literals,
}

/// Which literals are marked in a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Every added token: text of users, tools and documents.
    Added,
    /// Only special ones: the model's own text, where templates look for `</think>`.
    Special,
}

#[derive(Debug)]
struct Literals {
    automaton: AhoCorasick,
    /// Sorted, so that all literals with a given prefix are neighbours.
    sorted: Vec<String>,
    max_bytes: usize,
}

impl Guard {
    /// Builds the guard from `(literal, special)` pairs.
    pub fn new<'a>(tokens: impl IntoIterator<Item = (&'a str, bool)>) -> Result<Guard> {
        let (mut added, mut special) = (Vec::new(), Vec::new());
        for (literal, is_special) in tokens {
            let blank = literal.chars().all(|c| c.is_whitespace() || c == '\u{2581}');
            if blank || literal.chars().nth(1).is_none() {
                continue;
            }
            added.push(literal.to_owned());
            if is_special {
                special.push(literal.to_owned());
            }
        }
        Ok(Guard { added: Literals::new(added)?, special: Literals::new(special)? })
    }

    /// Whether `literal` is kept out of the callers' text.
    pub fn guards(&self, literal: &str) -> bool {
        self.added.sorted.binary_search_by(|known| known.as_str().cmp(literal)).is_ok()
    }

    /// Marks one plain text that no template touches, ready to be encoded.
    pub fn mark_text(&self, text: &str) -> Result<Rendered> {
        let marker = free_marker(std::iter::once(text))?;
        let marked = Marking { guard: self, marker }.string(text, Scope::Added);
        Ok(Rendered { text: marked, marker })
    }
}

impl Literals {
    fn new(mut literals: Vec<String>) -> Result<Literals> {
        literals.sort();
        literals.dedup();
        let automaton = AhoCorasick::new(&literals)
            .map_err(|e| Error::Model(format!("tokenizer.json: too many added tokens: {e}")))?;
        let max_bytes = literals.iter().map(String::len).max().unwrap_or(0);
        Ok(Literals { automaton, sorted: literals, max_bytes })
    }

    /// Byte positions after the first character of each literal, and of each tail that is the
    /// beginning of one, ascending.
    fn cuts(&self, text: &str) -> Vec<usize> {
        let after_first =
            |start: usize| start + text[start..].chars().next().map_or(0, char::len_utf8);
        let mut cuts: Vec<usize> = self
            .automaton
            .find_overlapping_iter(text)
            .map(|found| after_first(found.start()))
            .collect();
        // Templates like to trim, and what they append may complete the literal.
        let trimmed = text.trim_end();
        let tail_start = trimmed.len().saturating_sub(self.max_bytes);
        for (start, _) in trimmed.char_indices().rev().take_while(|(at, _)| *at >= tail_start) {
            let tail = &trimmed[start..];
            let at = self.sorted.partition_point(|literal| literal.as_str() < tail);
            if self.sorted.get(at).is_some_and(|literal| literal.starts_with(tail)) {
                cuts.push(after_first(start));
            }
        }
        cuts.sort_unstable();
        cuts.dedup();
        cuts
    }
}

/// A guard with the marker chosen for one rendering.
#[derive(Clone, Copy)]
pub(crate) struct Marking<'a> {
    pub guard: &'a Guard,
    pub marker: char,
}

impl Marking<'_> {
    /// `text` with the marker inside each guarded literal.
    pub fn string(&self, text: &str, scope: Scope) -> String {
        let literals = match scope {
            Scope::Added => &self.guard.added,
            Scope::Special => &self.guard.special,
        };
        let mut marked = String::with_capacity(text.len() + 4);
        let mut copied = 0;
        for cut in literals.cuts(text) {
            marked.push_str(&text[copied..cut]);
            marked.push(self.marker);
            copied = cut;
        }
        marked.push_str(&text[copied..]);
        marked
    }

    /// JSON as a template value, strings and keys marked.
    pub fn json(&self, json: &Json, scope: Scope) -> Value {
        match json {
            Json::Null => Value::from(()),
            Json::Bool(flag) => Value::from(*flag),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(int), _) => Value::from(int),
                (None, Some(int)) => Value::from(int),
                (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::from(self.string(text, scope)),
            Json::Array(items) => {
                Value::from(items.iter().map(|item| self.json(item, scope)).collect::<Vec<_>>())
            }
            Json::Object(map) => Value::from_pairs(
                map.iter().map(|(key, item)| (self.string(key, scope), self.json(item, scope))),
            ),
        }
    }
}

/// A rendered chat (or a plain text) that remembers which literals are the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub(crate) text: String,
    pub(crate) marker: char,
}

impl Rendered {
    /// The text as the model reads it.
    pub fn text(&self) -> String {
        self.text.replace(self.marker, "")
    }

    /// The end of the text, as far as the template surely wrote it: no literal in it is one that
    /// a caller's string held.
    pub fn tail(&self) -> &str {
        self.text.rsplit(self.marker).next().unwrap_or_default()
    }

    /// The pieces that are to be encoded one by one; joined they are [`Rendered::text`].
    pub fn pieces(&self) -> impl Iterator<Item = &str> {
        self.text.split(self.marker).filter(|piece| !piece.is_empty())
    }
}

/// The first private-use character that occurs in none of `texts`.
pub(crate) fn free_marker<'a>(texts: impl Iterator<Item = &'a str>) -> Result<char> {
    let private = ['\u{E000}'..='\u{F8FF}', '\u{F0000}'..='\u{FFFFD}'];
    let used: HashSet<char> = texts
        .flat_map(str::chars)
        .filter(|c| private.iter().any(|range| range.contains(c)))
        .collect();
    private.into_iter().flatten().find(|c| !used.contains(c)).ok_or_else(|| {
        Error::Request(
            "the text uses every private-use character of Unicode; remove some of them".into(),
        )
    })
}

/// Collects every string and key of `json`.
pub(crate) fn strings_of<'a>(json: &'a Json, into: &mut Vec<&'a str>) {
    match json {
        Json::String(text) => into.push(text),
        Json::Array(items) => items.iter().for_each(|item| strings_of(item, into)),
        Json::Object(map) => {
            for (key, item) in map {
                into.push(key);
                strings_of(item, into);
            }
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(text: &str) -> String {
        let guard = Guard::new([("<|a|>", true), ("<t>", false), ("aXa", false), ("\n\n", false)]);
        let guard = guard.unwrap();
        Marking { guard: &guard, marker: '^' }.string(text, Scope::Added)
    }

    #[test]
    fn a_literal_a_tail_and_overlapping_literals_are_cut_after_their_first_character() {
        for (text, want) in [
            ("plain", "plain"),
            ("x<|a|>y", "x<^|a|>y"),
            ("aXaXa", "a^Xa^Xa^"),
            ("tail <|", "tail <^|"),
            ("tail <| \n", "tail <^| \n"),
            ("<<t>", "<<^t>"),
            ("\n\n", "\n\n"),
            ("a < b", "a < b"),
        ] {
            assert_eq!(marked(text), want, "{text:?}");
        }
    }

    #[test]
    fn the_marker_is_a_character_the_text_does_not_hold() {
        assert_eq!(free_marker(["a\u{E000}", "\u{E001}"].into_iter()).unwrap(), '\u{E002}');
        let all: String = ('\u{E000}'..='\u{F8FF}').chain('\u{F0000}'..='\u{FFFFD}').collect();
        assert!(matches!(free_marker(std::iter::once(all.as_str())), Err(Error::Request(_))));
    }
}
