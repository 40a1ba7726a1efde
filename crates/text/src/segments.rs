//! Segments of prompts that were encoded before: a conversation repeats all but its end with every
//! request, and encoding is most of the work until the model sees it.
//!
//! A text is cut before special tokens, and only where no way of encoding the whole can differ from
//! encoding the parts: where the tokenizer looks at what stands beside a token, or puts blanks in
//! front of texts, nothing is cut. What one caller has sent makes nothing faster for another:
//! namespaces do not see each other's segments.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aho_corasick::AhoCorasick;
use tokenizers::AddedToken;

/// Shorter ones are encoded as fast as they are looked up.
const MIN_BYTES: usize = 128;
/// Of all that is remembered, texts and ids.
const MAX_BYTES: usize = 32 << 20;

/// Where texts may be cut.
#[derive(Debug)]
pub(crate) struct Cuts(Option<AhoCorasick>);

impl Cuts {
    /// Before these tokens of a tokenizer that puts no blanks in front of texts.
    pub fn new<'a>(added: impl Iterator<Item = &'a AddedToken> + Clone) -> Self {
        let looks_around = |token: &AddedToken| token.lstrip || token.rstrip || token.single_word;
        if added.clone().any(looks_around) {
            return Self::none();
        }
        let literals = added.clone().map(|token| token.content.as_str()).collect::<Vec<_>>();
        let opens = added.filter(|token| token.special && !token.normalized);
        let opens = opens.map(|token| token.content.as_str());
        let safe = opens.filter(|literal| is_safe(literal, &literals)).collect::<Vec<_>>();
        Self(AhoCorasick::new(safe).ok().filter(|automaton| automaton.patterns_len() > 0))
    }

    /// Nowhere.
    pub fn none() -> Self {
        Self(None)
    }

    /// The segments of a text.
    pub fn segments<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let Some(automaton) = &self.0 else { return vec![text] };
        let mut cuts = automaton.find_overlapping_iter(text).map(|m| m.start()).collect::<Vec<_>>();
        cuts.push(text.len());
        cuts.sort_unstable();
        let mut start = 0;
        let mut segment = |end: usize| {
            let segment = &text[start..end];
            start = end;
            (!segment.is_empty()).then_some(segment)
        };
        cuts.into_iter().filter_map(&mut segment).collect()
    }
}

/// Whether no token, this one included, can begin before this literal and end in or behind it.
fn is_safe(literal: &str, all: &[&str]) -> bool {
    !literal.is_empty()
        && all.iter().all(|token| {
            let tails = token.char_indices().skip(1).map(|(at, _)| &token[at..]);
            tails.into_iter().all(|tail| !tail.starts_with(literal) && !literal.starts_with(tail))
        })
}

/// What was encoded lately, and into what.
#[derive(Debug, Default)]
pub struct Segments {
    kept: Mutex<Kept>,
    hashing: RandomState,
}

/// Two generations: when the younger has half of the room, the older one goes.
#[derive(Debug, Default)]
struct Kept {
    young: HashMap<u64, Segment>,
    old: HashMap<u64, Segment>,
    young_bytes: usize,
}

/// Whose segment it is, and whether it continues another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Of {
    pub namespace: u64,
    pub continues: bool,
}

#[derive(Debug)]
struct Segment {
    of: Of,
    text: Box<str>,
    ids: Arc<[u32]>,
}

impl Segments {
    /// What a text was encoded into, or is now.
    ///
    /// # Errors
    /// Those of `encode`.
    pub(crate) fn ids<E>(
        &self,
        of: Of,
        text: &str,
        encode: impl FnOnce() -> Result<Vec<u32>, E>,
    ) -> Result<Arc<[u32]>, E> {
        if text.len() < MIN_BYTES {
            return encode().map(Arc::from);
        }
        let key = self.hashing.hash_one((of, text));
        if let Some(ids) = self.lock().find(key, of, text) {
            return Ok(ids);
        }
        let ids: Arc<[u32]> = encode()?.into();
        self.lock().put(key, Segment { of, text: text.into(), ids: Arc::clone(&ids) });
        Ok(ids)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Segment {
    fn bytes(&self) -> usize {
        self.text.len() + size_of_val(&*self.ids) + size_of::<Self>() + size_of::<u64>()
    }
}

impl Kept {
    fn find(&mut self, key: u64, of: Of, text: &str) -> Option<Arc<[u32]>> {
        let is_it = |segment: &&Segment| segment.of == of && *segment.text == *text;
        if let Some(segment) = self.young.get(&key).filter(is_it) {
            return Some(Arc::clone(&segment.ids));
        }
        self.old.get(&key).filter(is_it)?;
        let segment = self.old.remove(&key)?;
        let ids = Arc::clone(&segment.ids);
        self.put(key, segment);
        Some(ids)
    }

    fn put(&mut self, key: u64, segment: Segment) {
        if segment.bytes() > MAX_BYTES / 2 {
            return;
        }
        if self.young_bytes + segment.bytes() > MAX_BYTES / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += segment.bytes();
        if let Some(replaced) = self.young.insert(key, segment) {
            self.young_bytes -= replaced.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_that_others_may_run_into_are_no_places_to_cut() {
        let check = |literal: &str, all: &[&str], expected: bool| {
            assert_eq!(is_safe(literal, all), expected, "{literal} {all:?}");
        };
        check("<|a|>", &["<|a|>", "<|b|>", "<|a|>system"], true);
        check("<|a|>", &["<|a|>", "x<|a|>y"], false);
        check("<|a|>", &["<|a|>", "x<|"], false);
        check("<|a|>", &["<|a|>", "x<"], false);
        check("aba", &["aba"], false);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_belongs_to_its_namespace() {
        let segments = Segments::default();
        let text = |n: usize| format!("{n} {}", "x".repeat(100_000));
        let ask = |namespace, n: usize, ids: &[u32]| {
            let ids = segments
                .ids(Of { namespace, continues: false }, &text(n), || Ok::<_, ()>(ids.to_vec()));
            ids.unwrap().to_vec()
        };
        assert_eq!(ask(1, 0, &[7]), [7]);
        assert_eq!(ask(1, 0, &[8]), [7], "it is remembered");
        assert_eq!(ask(2, 0, &[9]), [9], "another's is not");
        for n in 1..1000 {
            ask(1, n, &[n as u32]);
            assert_eq!(ask(1, 0, &[8]), [7], "what is used stays");
            let kept = segments.lock();
            let all = kept.young.values().chain(kept.old.values());
            assert!(all.map(Segment::bytes).sum::<usize>() <= MAX_BYTES);
        }
        assert_eq!(ask(1, 1, &[6]), [6], "what is not used is forgotten");
        let of = Of { namespace: 1, continues: false };
        assert_eq!(segments.ids(of, "short", || Ok::<_, ()>(vec![1])).unwrap().to_vec(), [1]);
        assert_eq!(segments.ids(of, "short", || Ok::<_, ()>(vec![2])).unwrap().to_vec(), [2]);
    }

    /// Texts of literals, halves of them and words, as templates and callers may mix them.
    #[test]
    fn a_text_in_segments_has_the_ids_of_the_whole() {
        let json = include_bytes!("../../../models/demo/tokenizer.json");
        let tokenizer = crate::Tokenizer::new(json, None, None).unwrap();
        let pieces = [
            "<|im_start|>",
            "<|im_end|>",
            "<|im_",
            "start|>",
            "<",
            "|>",
            "user\n",
            " a  b ",
            "\n\n",
            "Offshoot's prefix cache, 12 ",
            "<think>",
            "</think>",
            "\u{e000}",
            "é",
        ];
        let (segments, mut x, mut n_cut) = (Segments::default(), 9u64, 0);
        for _ in 0..3000 {
            let mut text = String::new();
            for _ in 0..12 {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let piece = pieces[(x >> 40) as usize % pieces.len()];
                text.push_str(&piece.repeat(1 + (x >> 60) as usize));
            }
            let rendered = crate::Rendered { text, marker: '\u{e000}' };
            let whole = tokenizer.encode_rendered(&rendered).unwrap();
            for _ in 0..2 {
                let parts = tokenizer.encode_remembered(&rendered, &segments, 5).unwrap();
                assert_eq!(parts, whole, "{:?}", rendered.text);
            }
            n_cut += usize::from(segments.lock().young.len() > n_cut);
        }
        assert!(n_cut > 100, "{n_cut} segments are remembered");
    }
}
